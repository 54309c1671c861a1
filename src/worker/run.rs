//! One execution of a job, as its handler sees it: where to log, where to tell progress, and
//! whether to stop.

use std::sync::Arc;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::redact;

/// How far a run is; stored as JSON in the job's `progress` field while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Progress {
    /// What is being done now, in a word or two.
    pub phase: String,
    /// Tables (or URLs) finished.
    pub done: u64,
    /// Tables (or URLs) in all; 0 while unknown.
    pub total: u64,
    /// Rows written so far.
    pub rows: u64,
    /// Bytes moved so far.
    pub bytes: u64,
    /// Bytes in all; 0 while unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_total: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A log line of a run, with fields for machines.
#[derive(Clone, Debug)]
pub struct Record {
    /// Severity.
    pub level: tracing::Level,
    /// Reads alone.
    pub message: String,
    /// Extra members of the JSON line.
    pub fields: Map<String, Value>,
}

/// Where a run's lines and progress go besides the process log: the job in Redis, a terminal.
/// Called from handlers, so it must return at once.
pub trait RunSink: Send + Sync {
    /// A line was logged.
    fn line(&self, record: &Record);
    /// Progress changed; the sink decides how often to pass it on.
    fn progress(&self, progress: &Progress);
}

/// Handle to one execution of a job. Cheap to clone; handed to every task of the run.
#[derive(Clone)]
pub struct Run {
    inner: Arc<Inner>,
}

struct Inner {
    /// Members of every log line: `job.id`, `job.kind`, `queue.name` …
    fields: Map<String, Value>,
    progress: Mutex<Progress>,
    stop: CancellationToken,
    sink: Option<Arc<dyn RunSink>>,
}

impl Run {
    /// A run whose lines carry `fields` and which must stop when `stop` is cancelled.
    #[must_use]
    pub fn new(fields: Map<String, Value>, stop: CancellationToken, sink: Option<Arc<dyn RunSink>>) -> Self {
        Run { inner: Arc::new(Inner { fields, progress: Mutex::default(), stop, sink }) }
    }

    /// The same run with another order to stop, for work that something else may end too. It has a progress of its own.
    #[must_use]
    pub fn with_stop(&self, stop: CancellationToken) -> Self {
        let progress = Mutex::new(self.current_progress());
        Run { inner: Arc::new(Inner { fields: self.inner.fields.clone(), progress, stop, sink: self.inner.sink.clone() }) }
    }

    /// A run that only writes to the process log and is never stopped; for tests and one-off use.
    #[must_use]
    pub fn detached() -> Self {
        Run::new(Map::new(), CancellationToken::new(), None)
    }

    /// Cancelled when the run must stop: the process ends, the job was cancelled or its lock lost.
    /// Work that outlives a checkpoint must race against it.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// An error once the run must stop; for checkpoints between steps.
    ///
    /// # Errors
    /// [`Stopped`] when the run must stop.
    pub fn checkpoint(&self) -> Result<(), Stopped> {
        if self.inner.stop.is_cancelled() { Err(Stopped) } else { Ok(()) }
    }

    /// Runs `work` until it ends or the run must stop, whichever is first. The future is dropped
    /// when the run stops, so it must be safe to drop at any await.
    ///
    /// # Errors
    /// [`Stopped`] when the run must stop first.
    pub async fn unless_stopped<F: Future>(&self, work: F) -> Result<F::Output, Stopped> {
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => Err(Stopped),
            output = work => Ok(output),
        }
    }

    /// Logs a milestone.
    pub fn info(&self, message: impl Into<String>) {
        self.log(tracing::Level::INFO, &message.into(), Map::new());
    }

    /// Logs that something was degraded or skipped.
    pub fn warn(&self, message: impl Into<String>) {
        self.log(tracing::Level::WARN, &message.into(), Map::new());
    }

    /// Logs what a human must act on.
    pub fn error(&self, message: impl Into<String>) {
        self.log(tracing::Level::ERROR, &message.into(), Map::new());
    }

    /// Logs a milestone with fields, written as a JSON object: `json!({"table_name": …})`.
    pub fn info_with(&self, message: impl Into<String>, fields: Value) {
        let fields = match fields {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        self.log(tracing::Level::INFO, &message.into(), fields);
    }

    fn log(&self, level: tracing::Level, message: &str, fields: Map<String, Value>) {
        let record = Record { level, message: redact::scrub(message), fields };
        let mut all = self.inner.fields.clone();
        all.extend(record.fields.clone());
        crate::logging::emit(level, &record.message, &all);
        if let Some(sink) = &self.inner.sink {
            sink.line(&record);
        }
    }

    /// Changes the progress and passes it on.
    pub fn progress(&self, change: impl FnOnce(&mut Progress)) {
        let now = {
            let mut progress = self.inner.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            change(&mut progress);
            progress.clone()
        };
        if let Some(sink) = &self.inner.sink {
            sink.progress(&now);
        }
    }

    /// The progress told last.
    #[must_use]
    pub fn current_progress(&self) -> Progress {
        self.inner.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// The run was told to stop; not a failure of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run was told to stop")]
pub struct Stopped;
