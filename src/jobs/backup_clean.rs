//! Clears the directory of fetched archives on the first of each month: all but the latest.
//!
//! Touches nothing but archives, by their names. Safe to run again; nothing to remove is success.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::backup::local::{self, BACKUP_LOCAL_DIRECTORY, LocalError};
use crate::config::{Reader, Setting};
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs.
pub static BACKUP_CLEAN_SCHEDULE: Setting = Setting::new(
    "BACKUP_CLEAN_SCHEDULE",
    "When BACKUP_LOCAL_DIRECTORY is cleared, as a cron expression, where that is set; `never` leaves it to `bullwork backup clean`.",
)
.default("12 0 1 * *");

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Payload {
    /// Another directory than the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

/// Clears a directory.
#[derive(Debug)]
pub struct BackupClean {
    directory: Option<PathBuf>,
    schedule: Option<Schedule>,
}

#[async_trait::async_trait]
impl JobKind for BackupClean {
    const NAME: &'static str = "backup-clean";
    const QUEUE: &'static str = "Backup clean queue";
    const SUMMARY: &'static str = "Clear the directory of fetched archives";
    const SETTINGS: &'static [&'static Setting] = &[&BACKUP_LOCAL_DIRECTORY, &BACKUP_CLEAN_SCHEDULE];
    type Payload = Payload;

    fn from_settings(reader: &Reader<'_>) -> Self {
        let directory = reader.optional(&BACKUP_LOCAL_DIRECTORY).map(PathBuf::from);
        let schedule = directory.as_ref().and_then(|_| Schedule::unless_never(reader, &BACKUP_CLEAN_SCHEDULE));
        BackupClean { directory, schedule }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(directory) = ctx.payload.directory.clone().or_else(|| self.directory.clone()) else {
            return Ok(Outcome::Refuse("BACKUP_LOCAL_DIRECTORY is not set, so there is nothing to clear".to_owned()));
        };
        let run = ctx.run.clone();
        match tokio::task::spawn_blocking(move || local::clean(&run, &directory)).await? {
            Ok(cleaned) => Ok(Outcome::Done(serde_json::to_value(cleaned)?)),
            Err(LocalError::Stopped(stopped)) => Err(stopped.into()),
            Err(error) => Err(error.into()),
        }
    }
}
