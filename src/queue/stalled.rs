//! Recovery of jobs whose worker vanished (wire format §6.12).

use std::time::Duration;

use super::take::milliseconds;
use super::{Queue, QueueError, scripts};

/// What a look for stalled jobs brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StallCheck {
    /// False when some worker looked within the interval; nothing was done then.
    pub ran: bool,
    /// Jobs that are taken next now.
    pub requeued: Vec<String>,
    /// Jobs that stalled more often than allowed, failed for good.
    pub failed: Vec<String>,
}

impl Queue {
    /// Puts back the jobs whose lock is gone since the last look, and marks all active ones for the
    /// next. A job is back between one and two intervals after its lock ran out. A job that stalled
    /// more than `limit` times fails for good: it is likely what kills its workers.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn recover_stalled(&self, interval: Duration, limit: u32) -> Result<StallCheck, QueueError> {
        let mut call = self.call(&scripts::RECOVER_STALLED, &[self.keys().of("stalled-check")]);
        call.arg(milliseconds(interval)).arg(limit);
        let mut answer = self.run("", &call).await?;
        if answer.code == 0 {
            return Ok(StallCheck::default());
        }
        let count = usize::try_from(answer.number()?).unwrap_or(0);
        let mut requeued = answer.texts();
        let failed = requeued.split_off(count.min(requeued.len()));
        Ok(StallCheck { ran: true, requeued, failed })
    }
}
