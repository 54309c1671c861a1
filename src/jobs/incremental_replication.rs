//! Appends to the warehouse what was added to production since the last run, and brings tables of mode `delta` up to date.
//!
//! Safe to run twice: rows and watermark are committed together, so a second run finds nothing to
//! do. Interrupted: both transactions are rolled back; the next run starts over from the last one
//! that finished.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{Reader, Setting};
use crate::postgres::Database;
use crate::replication::incremental::{Incremental, IncrementalError};
use crate::replication::kindness::Kindness;
use crate::replication::rules::{REPLICATION_MASK_KEY, REPLICATION_RULES, Rules};
use crate::replication::settings::{
    self, BACKUP_MODE, REPLICATION_BUSY_QUERY, REPLICATION_BUSY_SESSIONS, REPLICATION_MAX_RATE, SOURCE_DATABASE_URL,
    TARGET_DATABASE_URL, TableMode, TableModes,
};
use crate::worker::{JobContext, JobKind, Outcome};

/// What an empty target table means.
pub static INCREMENTAL_FIRST_LOAD: Setting = Setting::new(
    "INCREMENTAL_FIRST_LOAD",
    "Whether an incremental or delta table that is empty or absent on the target is loaded whole: true or false. With false an empty table is an error, as in the reference system.",
)
.default("true");

/// Nothing is asked of the job.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Payload {}

/// The kind.
#[derive(Clone, Debug)]
pub struct IncrementalReplication {
    source: Option<Database>,
    target: Option<Database>,
    modes: TableModes,
    rules: Rules,
    kindness: Kindness,
    first_load: bool,
}

#[async_trait::async_trait]
impl JobKind for IncrementalReplication {
    const NAME: &'static str = "incremental-replication";
    const QUEUE: &'static str = "Incremental replication queue";
    const SUMMARY: &'static str = "Append new rows of the incremental tables to the target";
    const THEN: Option<&'static str> = Some("learning-content-replication");
    const SETTINGS: &'static [&'static Setting] = &[
        &SOURCE_DATABASE_URL,
        &TARGET_DATABASE_URL,
        &BACKUP_MODE,
        &REPLICATION_RULES,
        &REPLICATION_MASK_KEY,
        &INCREMENTAL_FIRST_LOAD,
        &REPLICATION_MAX_RATE,
        &REPLICATION_BUSY_SESSIONS,
        &REPLICATION_BUSY_QUERY,
    ];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        super::replicates(reader)
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        IncrementalReplication {
            source: settings::source(reader),
            target: settings::target(reader),
            modes: TableModes::from_settings(reader),
            rules: Rules::from_settings(reader),
            kindness: Kindness::from_settings(reader),
            first_load: reader.flag(&INCREMENTAL_FIRST_LOAD),
        }
    }

    fn writes_to(&self) -> Option<&Database> {
        self.target.as_ref()
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> anyhow::Result<Outcome> {
        let (Some(source), Some(target)) = (self.source.clone(), self.target.clone()) else {
            return Ok(Outcome::Refuse("SOURCE_DATABASE_URL or TARGET_DATABASE_URL cannot be used".to_owned()));
        };
        let work = Incremental {
            source,
            target,
            modes: self.modes.clone(),
            rules: self.rules.clone(),
            kindness: self.kindness.clone(),
            first_load: self.first_load,
        };
        match work.replicate(&ctx.run).await {
            Ok(summary) => {
                let mut result = json!({ "tables": summary.tables, "rows": summary.rows });
                // Rows of appended tables are only ever inserted.
                if self.modes.keys_with(TableMode::Delta).next().is_some() {
                    result["updated"] = json!(summary.updated);
                    result["deleted"] = json!(summary.deleted);
                }
                Ok(Outcome::Done(result))
            }
            Err(error) if error.is_final() => Ok(Outcome::Refuse(error.to_string())),
            // As itself, not as text of ours: the worker tells an interrupted run from a failed one.
            Err(IncrementalError::Stopped(stopped)) => Err(stopped.into()),
            Err(error) => Err(error.into()),
        }
    }
}
