//! What operators do to a queue and its jobs (wire format §6.9–6.11, §6.15), and cancelling,
//! which Bull lacks.

use serde_json::json;

use super::job::stored_data;
use super::scripts::NO_MORE;
use super::{Queue, QueueError, keys, scripts};
use crate::clock::Millis;

/// An order to cancel that no run picked up is forgotten after this time.
const CANCEL_LIFE: Millis = 24 * 60 * 60 * 1000;
/// Failed jobs put back by one script call.
const RETRY_BATCH: u64 = 1000;

/// What became of a request to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The job runs; its run is told when it renews its lock, or at once if it listens to [`super::Event`]s.
    Requested,
    /// The job did not run yet; it is failed now.
    Cancelled,
    /// The job was finished already.
    AlreadyFinished,
}

impl Queue {
    /// Stops every worker from taking jobs. What is active runs on.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn pause(&self) -> Result<(), QueueError> {
        self.run("", &self.call(&scripts::PAUSE, &[self.keys().of("meta")])).await.map(drop)
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn resume(&self) -> Result<(), QueueError> {
        self.run("", &self.call(&scripts::RESUME, &[self.keys().of("meta")])).await.map(drop)
    }

    /// Whether workers take nothing.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn is_paused(&self) -> Result<bool, QueueError> {
        let mut connection = self.connection().await?;
        let mut pipe = redis::pipe();
        pipe.exists(self.keys().of("meta-paused")).hexists(self.keys().of("meta"), "paused");
        let (flag, meta): (bool, bool) = pipe.query_async(&mut connection).await?;
        Ok(flag || meta)
    }

    /// Runs a failed or completed job again. Its attempts stay counted, so it gets one try.
    ///
    /// # Errors
    /// [`QueueError::Missing`], [`QueueError::Locked`], [`QueueError::NotFinished`], or Redis's.
    pub async fn retry(&self, id: &str) -> Result<(), QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::RETRY, &self.keys().of_run(id));
        call.arg(id);
        self.run(id, &call).await.map(drop)
    }

    /// Runs all jobs again that are failed now; tells how many.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's; part of the jobs may wait already then.
    pub async fn retry_all_failed(&self) -> Result<u64, QueueError> {
        // Those that fail again meanwhile are left, or this might never end.
        let mut left = self.counts().await?.failed;
        let mut moved = 0;
        while left > 0 {
            let batch = left.min(RETRY_BATCH);
            let mut call = self.call(&scripts::RETRY_FAILED, NO_MORE);
            call.arg(batch);
            let mut answer = self.run("", &call).await?;
            moved += u64::try_from(answer.number()?).unwrap_or(0);
            if u64::try_from(answer.code).unwrap_or(0) < batch {
                break;
            }
            left -= batch;
        }
        Ok(moved)
    }

    /// Runs a delayed job now.
    ///
    /// # Errors
    /// [`QueueError::Missing`], [`QueueError::NotDelayed`], or Redis's.
    pub async fn promote(&self, id: &str) -> Result<(), QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::PROMOTE, &[self.keys().job(id)]);
        call.arg(id);
        self.run(id, &call).await.map(drop)
    }

    /// Removes a job in whatever state. Removing the pending run of a schedule stops the schedule until it is armed again.
    ///
    /// # Errors
    /// [`QueueError::Missing`], [`QueueError::Locked`] while it runs, or Redis's.
    pub async fn remove(&self, id: &str) -> Result<(), QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::REMOVE, &self.keys().of_run(id));
        call.arg(id);
        self.run(id, &call).await.map(drop)
    }

    /// Cancels a job in the name of `by`: one that runs is told to stop, one that waits fails at once. An order
    /// outlives a run that is handed back or put off or whose worker dies: the next run gets it at its first renewal.
    /// It ends when the job is completed, failed (which is for good then), retried by hand or removed.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn request_cancel(&self, id: &str, by: &str) -> Result<CancelOutcome, QueueError> {
        keys::check_id(id)?;
        let reason = format!("cancelled by {by}");
        let mut call = self.call(&scripts::CANCEL, &[self.keys().job(id), self.keys().cancel(id)]);
        call.arg(id)
            .arg(by)
            .arg(CANCEL_LIFE)
            .arg(self.keys().cancel_channel())
            .arg(&reason)
            .arg(json!({"jobId": id, "val": reason}).to_string());
        Ok(match self.run(id, &call).await?.code {
            0 => CancelOutcome::AlreadyFinished,
            1 => CancelOutcome::Requested,
            _ => CancelOutcome::Cancelled,
        })
    }

    /// Replaces a job's data.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn update_data(&self, id: &str, data: &serde_json::Value) -> Result<(), QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::SET_FIELD, &[self.keys().job(id)]);
        call.arg("data").arg(stored_data(data));
        self.run(id, &call).await.map(drop)
    }
}
