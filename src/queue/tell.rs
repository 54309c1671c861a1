//! What a run tells about itself: log lines and progress (wire format §6.14).

use serde_json::{Value, json};

use super::{Queue, QueueError, keys, scripts};

/// Lines of a job's log that stay; a job that is put off every minute must not fill Redis.
const LOG_LINES: u32 = 10_000;

impl Queue {
    /// Appends lines to a job's log, of which the newest 10 000 stay; tells how many there are.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn log(&self, id: &str, lines: &[String]) -> Result<u64, QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::LOG, &[self.keys().job(id), self.keys().logs(id)]);
        call.arg(LOG_LINES);
        for line in lines {
            call.arg(line);
        }
        Ok(u64::try_from(self.run(id, &call).await?.code).unwrap_or(0))
    }

    /// Lines `start` to `end` of a job's log, both included, oldest first; below 0 counts from the end.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn logs(&self, id: &str, start: isize, end: isize) -> Result<Vec<String>, QueueError> {
        keys::check_id(id)?;
        let mut connection = self.connection().await?;
        let lines: Vec<Vec<u8>> = redis::Cmd::lrange(self.keys().logs(id), start, end).query_async(&mut connection).await?;
        Ok(lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
    }

    /// Stores how far a run is, and publishes it.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn set_progress(&self, id: &str, progress: &Value) -> Result<(), QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::SET_FIELD, &[self.keys().job(id)]);
        call.arg("progress").arg(progress.to_string()).arg(json!({"jobId": id, "progress": progress}).to_string());
        self.run(id, &call).await.map(drop)
    }
}
