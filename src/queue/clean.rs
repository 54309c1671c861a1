//! Removing many jobs at once: clean, empty, obliterate (wire format §6.16, §6.17).
//!
//! Each works in calls of a thousand jobs, so that Redis serves others in between; broken off, what is left is whole,
//! and the next one goes on.

use std::time::Duration;

use super::take::milliseconds;
use super::{Queue, QueueError, State, keys, scripts};
use crate::clock::Millis;

/// Keys of a queue besides those that every script is given.
const OTHER_KEYS: &[&str] = &[
    "meta",
    "stalled-check",
    "limiter",
    "limiter:index",
    "metrics:completed",
    "metrics:completed:data",
    "metrics:failed",
    "metrics:failed:data",
];

/// Ids of the jobs that were removed.
pub type Cleaned = Vec<String>;

/// Which jobs of a state go.
struct Which {
    /// Those older than this; all when absent.
    before: Option<Millis>,
    limit: Option<usize>,
    keep_schedules: bool,
}

impl Queue {
    /// Removes the jobs in `state` that ended, else began, else were added more than `grace` ago, oldest first, and at most `limit`
    /// of them. A job that is being run stays. A removed pending run stops its schedule until that is armed again.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's: part of the jobs may be gone then.
    pub async fn clean(&self, state: State, grace: Duration, limit: Option<usize>) -> Result<Cleaned, QueueError> {
        let before = self.clock().now().saturating_sub(Millis::try_from(milliseconds(grace)).unwrap_or(Millis::MAX));
        self.remove_many(state, Which { before: Some(before), limit, keep_schedules: false }).await
    }

    /// Removes all jobs that wait or are delayed, paused ones too, but for the pending runs of schedules. The queue stays paused if it was.
    ///
    /// # Errors
    /// As [`Queue::clean`].
    pub async fn empty(&self) -> Result<Cleaned, QueueError> {
        let mut removed = Vec::new();
        for state in [State::Waiting, State::Paused, State::Delayed] {
            let which = Which { before: None, limit: None, keep_schedules: true };
            removed.extend(self.remove_many(state, which).await?);
        }
        Ok(removed)
    }

    /// Removes all jobs whose id matches a pattern of Redis's (`*`, `?`, `[ab]`, `\\` before what is meant literally), whatever their
    /// state. A job that is being run stays. Takes time in proportion to all keys of the Redis.
    ///
    /// # Errors
    /// As [`Queue::clean`].
    pub async fn remove_matching(&self, pattern: &str) -> Result<Cleaned, QueueError> {
        let mut removed = Vec::new();
        let wanted = format!("{}{pattern}", super::events::literal(self.keys().base()));
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&wanted).arg("COUNT").arg(1000).arg("TYPE").arg("hash");
            let (next, found): (u64, Vec<Vec<u8>>) = scan.query_async(&mut self.connection().await?).await?;
            for key in found {
                let key = String::from_utf8_lossy(&key);
                let Some(id) = key.strip_prefix(self.keys().base()).filter(|id| keys::check_id(id).is_ok()) else { continue };
                match self.remove(id).await {
                    Ok(()) => removed.push(id.to_owned()),
                    // Gone meanwhile, or being run.
                    Err(QueueError::Missing(_) | QueueError::Locked(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(removed);
            }
        }
    }

    async fn remove_many(&self, state: State, which: Which) -> Result<Cleaned, QueueError> {
        let Some(list) = state.list() else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        let mut passed = 0;
        loop {
            let left = which.limit.map_or(1000, |limit| limit.saturating_sub(removed.len()).min(1000));
            if left == 0 {
                return Ok(removed);
            }
            let mut call = self.call(&scripts::CLEAN, &[self.keys().of(list)]);
            call.arg(self.keys().cancel(""))
                .arg(which.before.map(|ms| ms.to_string()).unwrap_or_default())
                .arg(passed)
                .arg(left)
                .arg(u8::from(which.keep_schedules));
            let mut answer = self.run("", &call).await?;
            passed = answer.number()?;
            let ended = answer.text()? == "1";
            removed.extend(answer.texts());
            if ended {
                return Ok(removed);
            }
        }
    }

    /// Deletes the queue with its schedules and all jobs that are in a state. Runs that are going on lose their jobs when `force`d.
    ///
    /// The hashes of jobs that are [`State::Stuck`], which only other programs leave, stay, as with Bull: to find them takes a look at all
    /// keys of the Redis, and their keys cannot be told from those of a queue whose name goes on with `:`.
    /// [`Queue::remove_matching`] with `*` removes them where no other queue's name begins so.
    ///
    /// # Errors
    /// [`QueueError::ActiveJobs`] unless `force`d: nothing changed. Redis's: the queue is paused then, with part of its jobs.
    pub async fn obliterate(&self, force: bool) -> Result<(), QueueError> {
        loop {
            let mut call = self.call(&scripts::OBLITERATE, &OTHER_KEYS.iter().map(|key| self.keys().of(key)).collect::<Vec<_>>());
            call.arg(self.keys().cancel("")).arg(u8::from(force));
            if self.run("", &call).await?.code == 1 {
                return Ok(());
            }
        }
    }
}
