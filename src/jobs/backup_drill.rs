//! Proves that an archive restores: into a scratch database, compared with what the source held, every night.
//!
//! Guarantees: a proof stands beside an archive only after it was restored and every table agreed. Belongs on a
//! machine with the private key; where there is none, or no server for it, nothing is scheduled.
//!
//! Safe to run again: a scratch database that a killed run left is dropped by the next one.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::backup::choice::{Choice, ChoiceError};
use crate::backup::drill::{self, DrillError};
use crate::backup::restore::Restore;
use crate::backup::shelf::Shelf;
use crate::backup::{destination, keys, settings as backup};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::PG_BIN;
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs.
pub static BACKUP_DRILL_SCHEDULE: Setting = Setting::new(
    "BACKUP_DRILL_SCHEDULE",
    "When the newest archive is proven, as a cron expression, where BACKUP_DRILL_DATABASE_URL is set; `never` leaves it to `bullwork backup drill`.",
)
.default("30 4 * * *");
/// Patience.
pub static BACKUP_DRILL_TIME_LIMIT: Setting =
    Setting::new("BACKUP_DRILL_TIME_LIMIT", "Minutes after which a drill counts as failed, 1 to 10080.").default("720");

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// Which archive: `latest`, a name, or `@` and a time.
    pub archive: Choice,
    /// Only read it whole, without a database; no proof is stored then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_restore: bool,
}

/// Proves archives.
#[derive(Debug)]
pub struct BackupDrill {
    shelf: Option<Shelf>,
    keys: keys::Keys,
    /// `None` where no server is configured.
    restore: Option<Restore>,
    schedule: Option<Schedule>,
    time_limit: Duration,
}

#[async_trait::async_trait]
impl JobKind for BackupDrill {
    const NAME: &'static str = "backup-drill";
    const QUEUE: &'static str = "Backup drill queue";
    const SUMMARY: &'static str = "Prove that the newest archive restores";
    const SETTINGS: &'static [&'static Setting] =
        &[&BACKUP_DRILL_SCHEDULE, &destination::BACKUP_DRILL_DATABASE_URL, &BACKUP_DRILL_TIME_LIMIT, &PG_BIN];
    type Payload = Payload;

    fn from_settings(reader: &Reader<'_>) -> Self {
        let wanted = backup::wanted(reader);
        let scheduled = wanted && reader.optional(&destination::BACKUP_DRILL_DATABASE_URL).is_some();
        let servers = [&destination::BACKUP_DRILL_DATABASE_URL, &destination::RESTORE_DATABASE_URL];
        BackupDrill {
            shelf: if wanted { backup::shelf(reader) } else { None },
            keys: keys::Keys::from_settings(reader),
            restore: Restore::from_settings(reader, &servers),
            schedule: if scheduled { Schedule::unless_never(reader, &BACKUP_DRILL_SCHEDULE) } else { None },
            time_limit: reader.minutes(&BACKUP_DRILL_TIME_LIMIT, 1..=10_080),
        }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.time_limit)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(shelf) = &self.shelf else {
            return Ok(Outcome::Refuse(backup::NO_STORE.to_owned()));
        };
        let archive = match ctx.run.unless_stopped(ctx.payload.archive.find(shelf)).await? {
            Ok(archive) => archive,
            Err(ChoiceError::Storage(error)) => return Err(error.into()),
            Err(error) => return Ok(Outcome::Refuse(error.to_string())),
        };
        let result = match (&self.restore, ctx.payload.without_restore) {
            (_, true) => drill::look(&ctx.run, shelf, &self.keys, archive).await.map(serde_json::to_value),
            (Some(restore), false) => restore.drill(&ctx.run, archive).await.map(serde_json::to_value),
            (None, false) => {
                let way_out = "set BACKUP_DRILL_DATABASE_URL (or RESTORE_DATABASE_URL) to a server for scratch databases";
                return Ok(Outcome::Refuse(format!("there is no server to restore to; {way_out}")));
            }
        };
        match result {
            Ok(value) => Ok(Outcome::Done(value?)),
            Err(error) if DrillError::is_stopped(&error) => Err(crate::worker::run::Stopped.into()),
            Err(error) if error.is_final() => Ok(Outcome::Refuse(format!("{:#}", anyhow::Error::from(error)))),
            Err(error) => Err(error.into()),
        }
    }
}
