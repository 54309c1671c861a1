//! Archives the database when its business data changed, every five minutes.
//!
//! Guarantees: an archive that is listed is whole, and a run that says `unchanged` has proven that the newest
//! one holds what the database holds. Results: `unchanged`, `archived`, `skipped` (another run is at it);
//! anything else fails the job.
//!
//! Safe to run again at any point, and from another machine: see [`crate::backup`] for what each step leaves.
//! Interrupted: children and uploads end, nothing of the archive shows; the next run starts over.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::backup::settings as backup;
use crate::backup::{Backup, BackupError, Request, destination, freshness, keys, pattern, watchdog};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::PG_BIN;
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs.
pub static BACKUP_SCHEDULE: Setting = Setting::new(
    "BACKUP_SCHEDULE",
    "When backups run, as a cron expression, where a store is configured; `never` leaves them to `bullwork backup now`. A run that finds nothing changed takes some milliseconds.",
)
.default("*/5 * * * *");
/// Patience.
pub static BACKUP_TIME_LIMIT: Setting =
    Setting::new("BACKUP_TIME_LIMIT", "Minutes after which a backup run counts as failed, 1 to 10080.").default("360");

/// Longest annotation, in characters.
const ANNOTATION: usize = 2_000;

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// An archive even if nothing changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Words to be kept with the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
}

impl Payload {
    /// What can be wrong with it.
    ///
    /// # Errors
    /// When every run would refuse it.
    pub fn check(&self) -> Result<(), String> {
        match self.annotation.as_ref().is_some_and(|text| text.chars().count() > ANNOTATION) {
            true => Err(format!("the annotation has more than {ANNOTATION} characters; shorten it")),
            false => Ok(()),
        }
    }
}

/// Makes archives.
#[derive(Debug)]
pub struct BackupKind {
    /// `None` where no store is configured.
    backup: Option<Backup>,
    schedule: Option<Schedule>,
    time_limit: Duration,
}

#[async_trait::async_trait]
impl JobKind for BackupKind {
    const NAME: &'static str = "backup";
    const QUEUE: &'static str = "Backup queue";
    const SUMMARY: &'static str = "Archive the database in a store if its business data changed";
    const SETTINGS: &'static [&'static Setting] = &[
        &BACKUP_SCHEDULE,
        &BACKUP_TIME_LIMIT,
        &backup::BACKUP_DATABASE_URL,
        &pattern::BACKUP_TABLES,
        &pattern::BACKUP_EXCLUDE_TABLES,
        &backup::BACKUP_AGE_RECIPIENTS,
        &backup::BACKUPS_GPG_RECIPIENT,
        &backup::BACKUP_PLAIN,
        &backup::BACKUP_COMPRESSION,
        &backup::BACKUP_COMPRESSION_LEVEL,
        &watchdog::BACKUP_PING_URL,
        &watchdog::BACKUP_PING_START_URL,
        &watchdog::BACKUP_PING_FAILURE_URL,
        &PG_BIN,
    ];
    type Payload = Payload;

    /// Archives are made where their source is named, and missed there; not where they are only restored, proven or watched.
    fn is_set_up(reader: &Reader<'_>) -> bool {
        let set = |setting: &Setting| reader.optional(setting).is_some();
        let elsewhere = [
            &destination::RESTORE_DATABASE_URL,
            &destination::BACKUP_DRILL_DATABASE_URL,
            &keys::RESTORE_AGE_KEY_FILE,
            &freshness::BACKUP_MAX_AGE,
            &freshness::BACKUP_DRILL_MAX_AGE,
        ];
        set(&backup::BACKUP_DATABASE_URL) || !elsewhere.iter().any(|setting| set(setting))
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        let backup = Backup::from_settings(reader);
        let schedule = if backup::wanted(reader) { Schedule::unless_never(reader, &BACKUP_SCHEDULE) } else { None };
        BackupKind { backup, schedule, time_limit: reader.minutes(&BACKUP_TIME_LIMIT, 1..=10_080) }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.time_limit)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(backup) = &self.backup else {
            return Ok(Outcome::Refuse(backup::NO_STORE.to_owned()));
        };
        if let Err(reason) = ctx.payload.check() {
            return Ok(Outcome::Refuse(reason));
        }
        let Payload { force, annotation } = ctx.payload.clone();
        match backup.take(&ctx.run, &Request { force, annotation }).await {
            Ok(report) => Ok(Outcome::Done(serde_json::to_value(report)?)),
            Err(error) if error.is_final() => Ok(Outcome::Refuse(format!("{:#}", anyhow::Error::from(error)))),
            // As itself: the worker tells an interrupted run from a failed one.
            Err(BackupError::Stopped(stopped)) => Err(stopped.into()),
            Err(error) => Err(error.into()),
        }
    }
}
