//! What an operator does with the copies in the target.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::Reader;
use crate::jobs::full_replication::FullReplication;
use crate::postgres::Database;
use crate::replication::rules::Rules;
use crate::replication::settings::{PG_RESTORE_JOBS, TableModes};
use crate::replication::{full, settings, verify};
use crate::worker::target_lock::TargetLock;
use crate::worker::{JobKind, Run, RunSink};

/// Reads which database it is about; a mistake is the reader's to tell.
pub fn target(reader: &Reader<'_>) -> Option<Database> {
    settings::target(reader)
}

/// Brings the copy before the one that serves back; tells what happened. Waits for a run that writes to the target.
///
/// # Errors
/// When there is none, or the target refuses; nothing is changed then.
pub async fn rollback(target: &Database, quiet: CancellationToken) -> anyhow::Result<String> {
    let run = Run::new(serde_json::Map::new(), quiet, None);
    let _lock = TargetLock::acquire(target, &run).await.context("keeping others from the target")?;
    run.unless_stopped(full::rollback(&run, target)).await?
}

/// Reads what a full replication does.
pub fn full(reader: &Reader<'_>) -> Option<full::Config> {
    FullReplication::from_settings(reader).config().cloned()
}

/// What a full replication would do now.
///
/// # Errors
/// What would stop it before it changed anything.
pub async fn plan(config: &full::Config, quiet: CancellationToken) -> anyhow::Result<full::Plan> {
    full::plan(&Run::new(serde_json::Map::new(), quiet, None), config).await
}

/// Reads what is compared with what.
pub fn comparison(reader: &Reader<'_>, tables: Vec<String>, repair: bool) -> Option<verify::Config> {
    let (source, target) = (settings::source(reader), settings::target(reader));
    let modes = TableModes::from_settings(reader);
    let jobs = usize::try_from(reader.integer(&PG_RESTORE_JOBS, 1..=32)).unwrap_or(1);
    let rules = Rules::from_settings(reader);
    let (source, target) = source.zip(target)?;
    Some(verify::Config { source, target, modes, jobs, rules, tables, repair })
}

/// Compares both databases as they are now, and repairs the target when asked. Waits for a run that writes to the target, and has
/// others wait.
///
/// # Errors
/// When a side cannot be asked; tables that differ are in the report.
pub async fn verify(config: &verify::Config, quiet: CancellationToken, told: Arc<dyn RunSink>) -> anyhow::Result<verify::Report> {
    let run = Run::new(serde_json::Map::new(), quiet, Some(told));
    let lock = TargetLock::acquire(&config.target, &run).await.context("keeping others from the target")?;
    let lost = lock.lost();
    tokio::select! {
        report = verify::verify(&run, config) => report,
        () = lost.cancelled() => anyhow::bail!("the session that keeps others from the target was lost; what was not repaired is as it was"),
    }
}
