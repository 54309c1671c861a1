//! How long each part of a run took, for log and result.

use std::time::Instant;

use serde_json::json;

use crate::worker::Run;

/// A stopwatch with laps.
pub(super) struct Stages {
    began: Instant,
    lap: Instant,
    /// Milliseconds of each stage.
    pub(super) laps: Vec<(&'static str, u64)>,
}

impl Stages {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Stages { began: now, lap: now, laps: Vec::new() }
    }

    /// Ends a stage, which is logged.
    pub(super) fn end(&mut self, run: &Run, stage: &'static str) {
        let milliseconds = self.end_quietly();
        self.laps.push((stage, milliseconds));
        run.info_with(format!("{stage}: {milliseconds} ms"), json!({"stage": stage, "duration_ms": milliseconds}));
    }

    /// The milliseconds since the last one.
    pub(super) fn end_quietly(&mut self) -> u64 {
        let milliseconds = self.lap.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.lap = Instant::now();
        milliseconds
    }

    /// Milliseconds since the start.
    pub(super) fn total(&self) -> u64 {
        self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }
}
