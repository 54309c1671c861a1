//! Queues in the Redis layout of Bull 4.16: the only module that knows Redis keys.
//!
//! - [`options`]: what a producer asks for, stored as `opts`

pub mod options;

pub use options::{Backoff, JobOptions, Keep};
