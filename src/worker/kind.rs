//! What a kind of job is: its queue, options, schedule, successor and handler.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::run::Run;
use crate::config::{Reader, Setting};
use crate::queue::{Backoff, JobOptions};
use crate::schedule::Schedule;

/// A kind of job: one type, one file under `jobs/`.
#[async_trait::async_trait]
pub trait JobKind: Send + Sync + Sized + 'static {
    /// Word for it on the command line; never changes.
    const NAME: &'static str;
    /// Name of its queue in Redis.
    const QUEUE: &'static str;
    /// One line for help texts and the reference.
    const SUMMARY: &'static str;
    /// Kind whose job is added when one of these completes, in the same transition.
    const THEN: Option<&'static str> = None;
    /// Settings that it reads besides the common ones.
    const SETTINGS: &'static [&'static Setting];
    /// The job's `data`. Every field is optional on read, so that `{}` always works.
    type Payload: Serialize + DeserializeOwned + Default + Send + Sync;

    /// Reads its settings, noting every mistake in `reader`.
    fn from_settings(reader: &Reader<'_>) -> Self;

    /// When the scheduler adds a job of this kind; never by default.
    fn schedule(&self) -> Option<Schedule> {
        None
    }

    /// Database that a run writes to. Runs that share one exclude each other, over all kinds and
    /// processes, by an advisory lock there.
    fn writes_to(&self) -> Option<&crate::postgres::Database> {
        None
    }

    /// Longest run; the run fails with a clear reason after that. None by default.
    fn time_limit(&self) -> Option<Duration> {
        None
    }

    /// Does the work. Safe to run again after a crash at any point.
    async fn run(&self, ctx: &JobContext<Self::Payload>) -> anyhow::Result<Outcome>;
}

/// What a handler is given.
pub struct JobContext<P> {
    /// The job's data.
    pub payload: P,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Tries in all.
    pub attempts: u32,
    /// Log, progress, and the order to stop.
    pub run: Run,
    /// Where [`JobContext::remember`] keeps the data; `None` when the step runs without a job.
    pub memory: Option<Arc<dyn Memory>>,
}

/// Keeps what a run has achieved so far where the job's next try finds it.
#[async_trait::async_trait]
pub trait Memory: Send + Sync {
    /// Replaces the job's data.
    async fn remember(&self, data: Value) -> anyhow::Result<()>;
}

impl<P: Serialize> JobContext<P> {
    /// Replaces the job's data, so that the next try of this job starts from `payload`. Does
    /// nothing when the step runs without a job.
    ///
    /// # Errors
    /// When the data cannot be stored, or the job is no longer ours.
    pub async fn remember(&self, payload: &P) -> anyhow::Result<()> {
        match &self.memory {
            Some(memory) => memory.remember(serde_json::to_value(payload)?).await,
            None => Ok(()),
        }
    }
}

/// How a run ended, when it did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Finished; the value is kept as the job's result and the successor is added.
    Done(Value),
    /// Not now: put back to run after the wait, without counting a try.
    Snooze(Duration),
    /// Cannot succeed by trying again: failed at once, for the reason given.
    Refuse(String),
}

/// Tries and waits of every job, from `MAX_RETRY_COUNT` and `EXPONENTIAL_RETRY_DELAY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all.
    pub attempts: u32,
    /// Base of the exponential back-off.
    pub base: Duration,
}

impl RetryPolicy {
    /// Reads the two settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let attempts = reader.integer(&crate::config::MAX_RETRY_COUNT, 1..=1000);
        RetryPolicy {
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            base: reader.milliseconds(&crate::config::EXPONENTIAL_RETRY_DELAY, 0..=86_400_000),
        }
    }

    /// The options that every job of ours is added with.
    #[must_use]
    pub fn options(&self) -> JobOptions {
        JobOptions {
            attempts: self.attempts,
            backoff: (!self.base.is_zero()).then(|| Backoff::exponential(self.base)),
            ..JobOptions::default()
        }
    }
}
