//! The job that follows a completed one.

use serde_json::{Value, json};

use super::kind::RetryPolicy;
use crate::queue::{Job, NewJob, Queue};

/// Member of `opts` that tells which job a successor follows. Bull keeps members that it does
/// not know (wire format §3), and `restart --wait --chain` finds the way by it.
pub const AFTER: &str = "after";

/// The job to add when `job` completes: an empty one with the standard options.
pub(crate) fn successor(policy: &RetryPolicy, queue: &Queue, job: &Job) -> NewJob {
    let mut options = policy.options();
    options.other.insert(AFTER.to_owned(), json!({"queue": queue.name(), "id": job.id}));
    NewJob::unnamed(json!({}), options)
}

/// Whether `job` was added as the successor of job `id` of `queue`.
#[must_use]
pub fn follows(job: &Job, queue: &str, id: &str) -> bool {
    let after = &job.opts[AFTER];
    after["queue"].as_str() == Some(queue) && after["id"].as_str() == Some(id) && after != &Value::Null
}
