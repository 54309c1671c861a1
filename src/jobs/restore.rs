//! Restores an archive into a database; or, for a task of the restore service, a whole cluster ([`crate::restore`]).
//!
//! Guarantees: no statement runs before the archive was read whole and is what its manifest tells; all of it arrives, or
//! nothing; a database that is replaced is kept under another name. What each step leaves: [`crate::backup::restore`].
//!
//! Safe to run again: what a job restores, and its request, are noted in its data before anything is made, so that a
//! further try takes the same archive, although a newer one may be there, and knows the database that it finds. A worker that was killed has left
//! that database empty, or restored. A task's job only wakes a worker: what is to be done, and what was done, is in the state store.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::backup::choice::Choice;
use crate::backup::destination;
use crate::backup::manifest::Manifest;
use crate::backup::restore::{Request, Restore, RestoreError};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::PG_BIN;
use crate::restore::config::Config;
use crate::restore::service::Service;
use crate::worker::{JobContext, JobKind, Outcome};

/// Patience.
pub static RESTORE_TIME_LIMIT: Setting =
    Setting::new("RESTORE_TIME_LIMIT", "Minutes after which a restore, its hook included, counts as failed, 1 to 10080.")
        .default("1440");

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// Which archive: `latest`, a name, or `@` and a time.
    pub archive: Choice,
    /// Name of the database, instead of one derived from the archive's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Whether that one may hold something.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub into_nonempty: bool,
    /// Groups of fixtures instead of the SQL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<String>,
    /// Whether the restored database takes the place of `into`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub swap: bool,
    /// Whether sessions that are in the way of that are ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub end_sessions: bool,
    /// What the first try noted: the request's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The task of the restore service that it performs; everything else is left out then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

impl Payload {
    /// What can be wrong with it before the server is known, and the archive where there is no `manifest` yet.
    ///
    /// # Errors
    /// When every run would refuse it.
    pub fn check(&self, manifest: Option<&Manifest>) -> Result<(), RestoreError> {
        self.request(String::new()).check(manifest)
    }

    fn request(&self, id: String) -> Request {
        let Payload { into, into_nonempty, fixtures, swap, end_sessions, .. } = self.clone();
        Request { id, into, into_nonempty, fixtures, swap, end_sessions }
    }
}

/// Restores archives.
#[derive(Debug)]
pub struct RestoreKind {
    /// `None` where no store or no server is configured.
    restore: Option<Restore>,
    /// `None` where there is no restore service.
    service: Option<Service>,
    time_limit: Duration,
}

/// What restores archives; nothing where no store or no server is configured.
pub fn archives(reader: &Reader<'_>) -> Option<Restore> {
    Restore::from_settings(reader, &[&destination::RESTORE_DATABASE_URL])
}

#[async_trait::async_trait]
impl JobKind for RestoreKind {
    const NAME: &'static str = "restore";
    const QUEUE: &'static str = "Restore queue";
    const SUMMARY: &'static str = "Restore an archive into a database";
    const SETTINGS: &'static [&'static Setting] = &[&destination::RESTORE_HOOK, &RESTORE_TIME_LIMIT, &PG_BIN];
    type Payload = Payload;

    fn from_settings(reader: &Reader<'_>) -> Self {
        let restore = archives(reader);
        let service = Config::from_settings(reader, restore.clone()).map(Service::new);
        RestoreKind { restore, service, time_limit: reader.minutes(&RESTORE_TIME_LIMIT, 1..=10_080) }
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.time_limit)
    }

    fn side_by_side(&self) -> Option<usize> {
        self.service.as_ref().map(|service| service.config().parallel).filter(|parallel| *parallel > 1)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        if let Some(task) = &ctx.payload.task {
            return match &self.service {
                Some(service) => service.perform(&ctx.run, task).await,
                None => {
                    let way_out = "set PROBACKUP_CONFIG to the file that the listener reads";
                    Ok(Outcome::Refuse(format!("this worker has no configuration of the restore service; {way_out}")))
                }
            };
        }
        let Some(restore) = &self.restore else {
            let way_out = "set BACKUP_STORE (or S3_BUCKET_NAME) and RESTORE_DATABASE_URL on the machine that restores";
            return Ok(Outcome::Refuse(format!("there is nothing to restore from or to; {way_out}")));
        };
        let mut payload = ctx.payload.clone();
        let archive = match ctx.run.unless_stopped(payload.archive.find(&restore.shelf)).await? {
            Ok(archive) => archive,
            Err(crate::backup::choice::ChoiceError::Storage(error)) => return Err(error.into()),
            Err(error) => return Ok(Outcome::Refuse(error.to_string())),
        };
        payload.archive = Choice::Named(archive);
        let id = payload.request.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()).clone();
        if payload != ctx.payload {
            ctx.remember(&payload).await.context("noting which archive is restored")?;
        }
        let request = payload.request(id);
        match restore.restore(&ctx.run, archive, &request).await {
            Ok(report) => Ok(Outcome::Done(serde_json::to_value(report)?)),
            // As itself: the worker tells an interrupted run from a failed one.
            Err(error) if error.is_stopped() => Err(crate::worker::run::Stopped.into()),
            Err(error) if error.is_final() => Ok(Outcome::Refuse(format!("{:#}", anyhow::Error::from(error)))),
            Err(error) => Err(error.into()),
        }
    }
}
