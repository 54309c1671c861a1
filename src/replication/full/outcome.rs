//! Says, after a failure, which copy serves and why.
//!
//! What is told is asked from the target, for a lost answer says nothing: the statement may have been done. Where the target
//! cannot be asked, what was true before is told, and what may have become of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_postgres::Client;

use super::build::Totals;
use super::{Config, generation, session, state};
use crate::postgres::{Connection, Database, Doing, PostgresError};

/// A server that is started again is waited for so long.
const RESTART: Duration = Duration::from_secs(5);
/// Longest time for asking; the order to stop bounds it.
const ASKING: Duration = Duration::from_secs(8);

/// How far the run came.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Which copy served when the state row on the target became this run's.
    began: OnceLock<Serving>,
    /// The copy is built beside the one that serves.
    pub(super) beside: AtomicBool,
    /// The copies may change places from now on.
    pub(super) switching: AtomicBool,
    pub(super) tables: AtomicU64,
    pub(super) totals: Arc<Totals>,
}

impl Reached {
    /// The state row on the target is of this run; `serving` is what serves.
    pub(super) fn begin(&self, serving: Serving) {
        // Once for each run.
        let _ = self.began.set(serving);
    }

    fn unasked(&self) -> String {
        let Some(before) = self.began.get() else { return "target untouched".to_owned() };
        if self.switching.load(Ordering::Acquire) {
            format!("the target could not be asked how far it is: {before}, unless the new copy does already; either is whole")
        } else if self.beside.load(Ordering::Acquire) {
            format!("the target could not be asked how far it is, but what serves was not touched: {before}")
        } else {
            "the target could not be asked how far it is; the next full replication repairs it either way".to_owned()
        }
    }
}

/// The copy that serves.
#[derive(Debug)]
pub(super) struct Serving {
    /// Nothing, where no generation is counted.
    generation: Option<String>,
    /// What is missing since a run that replaced it in place was cut off.
    lacks: Option<String>,
}

impl Serving {
    pub(super) async fn ask(target: &Client) -> Result<Serving, PostgresError> {
        Ok(Serving { generation: generation::told(target).await?, lacks: state::lacks(target).await? })
    }

    pub(super) fn is_whole(&self) -> bool {
        self.lacks.is_none()
    }

    /// What serves was not changed.
    fn untouched(&self) -> String {
        if self.is_whole() {
            format!("target untouched: {self}")
        } else {
            format!("this run changed nothing, but the target is incomplete: {self}")
        }
    }

    /// The target was not changed at all, and may be empty.
    fn unchanged(&self) -> String {
        if self.generation.is_none() && self.is_whole() { "target untouched".to_owned() } else { self.untouched() }
    }
}

impl std::fmt::Display for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.generation.as_deref().unwrap_or("what was there before serves"))?;
        match &self.lacks {
            Some(lacks) => write!(
                f,
                ", and lacks {lacks} since a run that replaced it in place did not end; the next full replication repairs it"
            ),
            None => Ok(()),
        }
    }
}

/// Notes a failure on the target and tells what state that is in.
pub(super) async fn describe(config: &Config, reached: &Reached, problem: &str) -> String {
    match tokio::time::timeout(ASKING, ask(config, reached, problem)).await {
        Ok(Ok(text)) => text,
        _ => reached.unasked(),
    }
}

async fn ask(config: &Config, reached: &Reached, problem: &str) -> anyhow::Result<String> {
    if reached.began.get().is_none() {
        let target =
            tokio::time::timeout(RESTART, session::for_target(&config.target, "full replication, after a failure")).await??;
        return Ok(Serving::ask(&target).await?.unchanged());
    }
    let done = reached.totals.tables.load(Ordering::Relaxed);
    let target = connect_again(&config.target).await?;
    state::end(&target, done, Some(problem)).await?;
    let told = Serving::ask(&target).await?;
    let phase = target
        .query_one("select phase from bullwork.replication_state", &[])
        .await
        .doing(|| "reading bullwork.replication_state".to_owned())?;
    Ok(match phase.get::<_, &str>(0) {
        "preparing" => told.unchanged(),
        // Others need the room.
        "staging" if problem.contains("SQLSTATE 53100") => {
            generation::drop_unfinished(&target).await?;
            format!("{}; what was built beside it was removed, because the disk is full", told.untouched())
        }
        "staging" => format!("{}; the next run goes on with what was built beside it, or removes it", told.untouched()),
        "finishing" if reached.beside.load(Ordering::Acquire) => {
            if state::is_owing(&target).await? {
                format!("{told}, but not all of somebody's own views and keys; run restart:full-replication")
            } else {
                format!("{told}, whole: only the tidying behind the switch is left, which the next run does")
            }
        }
        "loading" => format!(
            "target incomplete: {done} of {} tables; the next full replication repairs it",
            reached.tables.load(Ordering::Relaxed)
        ),
        // The answer to the last note was lost, not the note.
        "complete" if reached.beside.load(Ordering::Acquire) => {
            format!("{told}, whole: all was done, and only the last answer was lost")
        }
        "complete" => "target complete: all was done, and only the last answer was lost".to_owned(),
        _ => "target incomplete: all rows are there, but not all keys, views and indexes; the next full replication repairs it"
            .to_owned(),
    })
}

/// A session with a server that may just be starting again.
async fn connect_again(database: &Database) -> Result<Connection, PostgresError> {
    let begun = std::time::Instant::now();
    loop {
        match session::for_target(database, "full replication, after a failure").await {
            Err(_) if begun.elapsed() < RESTART => tokio::time::sleep(Duration::from_millis(200)).await,
            session => return session,
        }
    }
}

/// Which generation serves after a rollback that failed; what was sent last may have been done.
pub(super) async fn after_rollback(database: &Database, before: i64, earlier: i64) -> String {
    let asking = async {
        let target = connect_again(database).await?;
        generation::told(&target).await
    };
    match tokio::time::timeout(ASKING, asking).await {
        Ok(Ok(Some(told))) => told,
        _ => format!(
            "the target could not be asked whether generation {before} goes on serving or generation {earlier} does; either is whole"
        ),
    }
}
