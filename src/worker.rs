//! The engine that runs jobs. It knows kinds of job only through [`JobKind`].
//!
//! - [`kind`]: what a kind of job is
//! - [`run`]: what a handler is given: log, progress, the order to stop
//! - [`target_lock`]: one writer at a time for each target database
//! - [`chain`]: the job that follows a completed one
//! - `consumer`: the loops around one queue; `execution`: one run of one job; `journal`: its log

pub mod chain;
mod consumer;
mod execution;
mod journal;
pub mod kind;
pub mod run;
pub mod target_lock;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use kind::{Declaration, Frame, JobContext, JobKind, Kind, Memory, Outcome, RetryPolicy};
pub use run::{Progress, Record, Run, RunSink, Stopped};

use crate::config::{Reader, Setting};
use crate::queue::Queue;

/// How long a lock lasts without renewal.
pub static JOB_LOCK_SECONDS: Setting = Setting::new(
    "JOB_LOCK_SECONDS",
    "Seconds that a job stays locked without a sign of life from its worker, 2 to 3600; it is renewed four times in that span. A killed worker's job runs again one to two spans later.",
)
.default("60");

/// Times of locks and checks (ADR 0003).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A lock's life without renewal.
    pub lock: Duration,
    /// Between two checks for stalled jobs.
    pub stall_check: Duration,
}

impl Timing {
    /// Reads [`JOB_LOCK_SECONDS`]; stalled jobs are looked for twice in a lock's life.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let lock = reader.seconds(&JOB_LOCK_SECONDS, 2..=3600);
        Timing { lock, stall_check: lock / 2 }
    }
}

/// One queue to consume.
pub struct Consumed {
    /// Its kind.
    pub kind: Kind,
    /// The queue itself.
    pub queue: Queue,
    /// The queue of the kind's successor.
    pub then: Option<Queue>,
}

/// Consumes each queue, one job at a time unless its kind wants several, until `quiet`; returns when every run is settled.
pub async fn serve(consumed: Vec<Consumed>, policy: RetryPolicy, timing: Timing, quiet: CancellationToken) {
    let tracker = TaskTracker::new();
    for Consumed { kind, queue, then } in consumed {
        let quiet = quiet.clone();
        tracker.spawn(consumer::consume(execution::Surroundings {
            queue,
            kind,
            then,
            policy,
            timing,
            quiet,
            renew: Arc::default(),
        }));
    }
    tracker.close();
    tracker.wait().await;
}
