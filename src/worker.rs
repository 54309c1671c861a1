//! The engine that runs jobs. It knows kinds of job only through [`JobKind`].
//!
//! - [`kind`]: what a kind of job is
//! - [`run`]: what a handler is given: log, progress, the order to stop

pub mod kind;
pub mod run;

pub use kind::{JobContext, JobKind, Memory, Outcome, RetryPolicy};
pub use run::{Progress, Record, Run, RunSink};
