//! What an operator does with the copies in the target.

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::Reader;
use crate::postgres::Database;
use crate::replication::{full, settings};
use crate::worker::Run;
use crate::worker::target_lock::TargetLock;

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
