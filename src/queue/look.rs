//! Looking at a queue without changing it (wire format §6.19, §6.20).

use super::{Queue, QueueError};

/// How many jobs are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting to be taken.
    pub waiting: u64,
    /// Being run.
    pub active: u64,
    /// Done.
    pub completed: u64,
    /// Failed for good.
    pub failed: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Waiting for the queue to be resumed.
    pub paused: u64,
}

impl Queue {
    /// How many jobs are in each state.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn counts(&self) -> Result<Counts, QueueError> {
        let mut connection = self.connection().await?;
        let mut pipe = redis::pipe();
        pipe.llen(self.keys().of("wait"))
            .llen(self.keys().of("active"))
            .zcard(self.keys().of("completed"))
            .zcard(self.keys().of("failed"))
            .zcard(self.keys().of("delayed"))
            .llen(self.keys().of("paused"));
        let (waiting, active, completed, failed, delayed, paused) = pipe.query_async(&mut connection).await?;
        Ok(Counts { waiting, active, completed, failed, delayed, paused })
    }
}
