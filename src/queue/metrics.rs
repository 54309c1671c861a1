//! How many jobs ended in each minute (wire format §6.18).

use super::{Queue, QueueError, State};
use crate::clock::Millis;

/// Two weeks of minutes, as many as Bull's tools show.
pub const TWO_WEEKS: u32 = 14 * 24 * 60;

/// Ends of jobs, counted by the workers that are told to ([`Queue::with_metrics`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// In all.
    pub count: u64,
    /// When the last minute that is in `points` ended, by the job that ended it.
    pub last: Option<Millis>,
    /// In each minute, the newest first; the one that is not over is missing.
    pub points: Vec<u64>,
}

impl Queue {
    /// What was counted of the jobs that completed or failed; nothing for another state. At most `limit` minutes.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn metrics(&self, ends: State, limit: u32) -> Result<Metrics, QueueError> {
        if !matches!(ends, State::Completed | State::Failed) {
            return Ok(Metrics::default());
        }
        let key = self.keys().of(&format!("metrics:{ends}"));
        let mut pipe = redis::pipe();
        pipe.atomic().hmget(&key, &["count", "prevTS"]).lrange(
            format!("{key}:data"),
            0,
            isize::try_from(limit).unwrap_or(isize::MAX) - 1,
        );
        let ((count, last), points): ((Option<String>, Option<String>), Vec<String>) =
            pipe.query_async(&mut self.connection().await?).await?;
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        Ok(Metrics {
            count: number(count).unwrap_or(0),
            last: number(last).and_then(|ms: u64| Millis::try_from(ms).ok()),
            points: if limit == 0 { Vec::new() } else { points.iter().map(|n| n.parse().unwrap_or(0)).collect() },
        })
    }
}
