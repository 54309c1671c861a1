//! What can go wrong with a queue, by name.

use crate::redis::RedisError;

/// Why an operation on a queue was refused or not possible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// Redis cannot be reached or answered with an error, or would take no piece of that size ([`RedisError::TooLarge`]).
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The run does not own the job any more: its lock ran out, or another run has it.
    #[error("the lock of job `{0}` is lost: it ran out or another worker has the job")]
    LockLost(String),
    /// The job is not being run.
    #[error("job `{0}` is not active")]
    NotActive(String),
    /// No such job.
    #[error("there is no job `{0}`")]
    Missing(String),
    /// Only delayed jobs can be promoted.
    #[error("job `{0}` is not delayed")]
    NotDelayed(String),
    /// A worker runs the job; it has to end or be cancelled first.
    #[error("job `{0}` is being run; cancel it first or wait for its end")]
    Locked(String),
    /// A queue whose jobs run is not deleted unless forced.
    #[error("{}", being_run(*.0))]
    ActiveJobs(u64),
    /// Only completed and failed jobs can be run again.
    #[error("job `{0}` is neither failed nor completed")]
    NotFinished(String),
    /// Something else stands where the queue's data belongs.
    #[error("the Redis key `{0}` holds something that is not a Bull queue's; rename or delete it")]
    WrongType(String),
    /// The id would collide with the queue's own keys, or cannot be handled by the tools.
    #[error("job id `{id}` cannot be used: {reason}")]
    InvalidId {
        /// The id, made printable.
        id: String,
        /// Why.
        reason: &'static str,
    },
    /// A queue needs a name.
    #[error("a queue name must not be empty or hold control characters")]
    InvalidName,
    /// A schedule that Bull would refuse as well.
    #[error("the schedule cannot be used: {0}")]
    InvalidSchedule(String),
    /// A script answered what it never does.
    #[error("unexpected answer of a queue script: {0}")]
    Answer(String),
}

fn being_run(jobs: u64) -> String {
    match jobs {
        1 => "a job of the queue is being run; wait for its end or force it".to_owned(),
        _ => format!("{jobs} jobs of the queue are being run; wait for their end or force it"),
    }
}

impl From<redis::RedisError> for QueueError {
    fn from(error: redis::RedisError) -> Self {
        if error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE") {
            return QueueError::WrongType(error.detail().unwrap_or("one of the queue's").to_owned());
        }
        QueueError::Redis(error.into())
    }
}
