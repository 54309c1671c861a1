//! What a run logged, for tests that look at it.

use std::sync::{Arc, Mutex};

use bullwork::worker::{Progress, Record, Run, RunSink};
use serde_json::Map;
use tokio_util::sync::CancellationToken;

/// Keeps the lines of a run.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<Record>>);

impl RunSink for Lines {
    fn line(&self, record: &Record) {
        self.0.lock().expect("no holder panics").push(record.clone());
    }

    fn progress(&self, _: &Progress) {}
}

impl Lines {
    /// A run that must stop with `stop`, and its lines.
    pub(crate) fn of_run(stop: CancellationToken) -> (Run, Arc<Lines>) {
        let lines = Arc::new(Lines::default());
        (Run::new(Map::new(), stop, Some(lines.clone())), lines)
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.0.lock().expect("no holder panics").clone()
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.records().into_iter().map(|r| r.message).collect()
    }

    /// Whether a line holds `part`.
    pub(crate) fn holds(&self, part: &str) -> bool {
        self.messages().iter().any(|m| m.contains(part))
    }
}
