//! Removes the archives that no rule keeps, from both stores, every night.
//!
//! Guarantees: the newest complete archive stays, and the newest proven one; what a store keeps by an object lock is told, and
//! stays whole. Safe to run again: what a killed run left half removed is not listed, and goes with the next run.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backup::prune::{PruneError, prune};
use crate::backup::retention::{self, Rules};
use crate::backup::settings as backup;
use crate::backup::shelf::Shelf;
use crate::config::{Reader, Setting};
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs.
pub static BACKUP_PRUNE_SCHEDULE: Setting = Setting::new(
    "BACKUP_PRUNE_SCHEDULE",
    "When archives that no BACKUP_KEEP_… rule keeps are removed, as a cron expression, where a rule is set; `never` leaves it to `bullwork backup prune`.",
)
.default("50 3 * * *");

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// Only tell what would go.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Removes archives.
#[derive(Debug)]
pub struct BackupPrune {
    shelves: Vec<Shelf>,
    rules: Option<Rules>,
    schedule: Option<Schedule>,
}

#[async_trait::async_trait]
impl JobKind for BackupPrune {
    const NAME: &'static str = "backup-prune";
    const QUEUE: &'static str = "Backup prune queue";
    const SUMMARY: &'static str = "Remove the archives that no rule keeps";
    const SETTINGS: &'static [&'static Setting] = &[
        &retention::BACKUP_KEEP_LAST,
        &retention::BACKUP_KEEP_HOURLY,
        &retention::BACKUP_KEEP_DAILY,
        &retention::BACKUP_KEEP_WEEKLY,
        &retention::BACKUP_KEEP_MONTHLY,
        &retention::BACKUP_KEEP_YEARLY,
        &BACKUP_PRUNE_SCHEDULE,
    ];
    type Payload = Payload;

    fn from_settings(reader: &Reader<'_>) -> Self {
        let rules = Rules::from_settings(reader);
        let wanted = backup::wanted(reader);
        let shelves = if wanted { [backup::shelf(reader), backup::second(reader)] } else { [None, None] };
        BackupPrune {
            shelves: shelves.into_iter().flatten().collect(),
            schedule: if wanted && rules.is_some() { Schedule::unless_never(reader, &BACKUP_PRUNE_SCHEDULE) } else { None },
            rules,
        }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        if self.shelves.is_empty() {
            return Ok(Outcome::Refuse(backup::NO_STORE.to_owned()));
        }
        let Some(rules) = &self.rules else {
            let way_out = "set one of BACKUP_KEEP_LAST, …_HOURLY, …_DAILY, …_WEEKLY, …_MONTHLY, …_YEARLY";
            return Ok(Outcome::Refuse(format!("no rule says what stays, so nothing is removed; {way_out}")));
        };
        let mut stores = Vec::new();
        let mut failed = None;
        for shelf in &self.shelves {
            match prune(&ctx.run, shelf, rules, ctx.payload.dry_run).await {
                Ok(pruned) => stores.push(pruned),
                Err(PruneError::Stopped(stopped)) => return Err(stopped.into()),
                // The other store is not to wait for this one.
                Err(PruneError::Storage(error)) => {
                    ctx.run.warn(format!("not everything was removed from {}: {error}", shelf.shown()));
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            None => Ok(Outcome::Done(json!({"stores": stores}))),
            Some(error) => Err(error).context("removing archives"),
        }
    }
}
