//! Incremental replication: appends to the target what was added to the source since the last run.
//!
//! # What it guarantees
//!
//! - One source snapshot for all tables, and one target transaction for all rows and all
//!   watermarks. A run that fails or is killed at any point leaves the target as it was. When the
//!   source breaks in mid-stream the target gets `CopyFail`, never a normal end of input.
//! - Columns are paired by name, so their order and number may differ ([`mapping`]).
//! - No row is lost to a late commit (below).
//! - Updates and deletes of appended tables are *not* followed: a row that is on the target stays as
//!   it is. Tables of mode `delta` follow them ([`delta`]), in the same snapshot and transaction.
//!
//! # Keys and watermarks
//!
//! The key of a table is its integer column `id`, else its single-column integer primary key,
//! else its whole primary key. An integer key has a watermark, the highest one on the target, and
//! rows above it are streamed straight in. Every other key has none: all its rows come by the rule
//! for late commits.
//!
//! # Late commits
//!
//! An id is taken before its transaction commits, so a row may become visible *below* the
//! watermark: a long transaction, a sequence with `CACHE`, an application that reserves ids in
//! blocks. The row may even come from a transaction that began long after the last run.
//!
//! ```text
//!   run 1 takes its snapshot      run 2
//!   ──┬───────────────────────────┬──▶
//!     │ id 8 visible: copied      │ watermark 8; id 7 is visible now and below it
//!     id 7 taken, not committed   └ inserted by a transaction ≥ snapshot 1's xmin: a candidate
//! ```
//!
//! Each run therefore stores the snapshot it read from. A row that was invisible there was written
//! by a transaction that was running (then its number is at or above the snapshot's `xmin`, the
//! lowest running one) or had not begun (above it too). Subtransactions do not appear in a
//! snapshot, but are numbered after their parent. So `row.xmin >= snapshot.xmin` finds every such
//! row, and some more: updated rows, or rows of transactions that had ended but were newer than
//! the oldest running one. The keys found go to a temporary table on the target, those already
//! there are struck out, and only the missing rows are fetched, from the same snapshot ([`late`]).
//! `age()` compares transaction numbers safely across their wrap-around. No index can serve that
//! condition: it costs one sequential scan of the source table.
//!
//! Where the stored snapshot says nothing – there is none, it is of another source or timeline, it
//! lies in the source's future (the source was restored from a backup), it is two billion
//! transactions old, the target table was replaced – *every* key up to the watermark is a
//! candidate, once: the healing pass ([`watermark`]). It also repairs holes that another program
//! left in the target, and so brings back rows that were deleted there by hand while the source
//! still has them.
//!
//! # Rules
//!
//! A table may have rules (`super::rules`): the source sends masks, and of its rows those that are wanted. Keys are
//! compared with the source's, so they cannot be masked. Rows on the target stay as they were copied, so the
//! rules of a table that has rows cannot change.
//!
//! # Tables the target does not have
//!
//! An empty table gets a first full load; an absent one is made first, by the source's definition
//! ([`create`]), and its indexes are built after the load.

pub mod catalogue;
mod create;
mod delta;
mod foreign_keys;
mod late;
pub mod mapping;
mod sessions;
pub(super) mod stream;
mod tell;
pub mod watermark;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use self::catalogue::Relation;
use self::delta::Sides;
use self::mapping::Plan;
use self::watermark::{Late, SourceState, Watermark};
use super::kindness::Kindness;
use super::rules::{Applied, Rules, RulesError};
use super::settings::{TableMode, TableModes, TableName};
use crate::postgres::same::same_database;
use crate::postgres::{Connection, Database, Doing, PostgresError, older_target, pooler};
use crate::throttle::Throttle;
use crate::worker::Run;
use crate::worker::run::Stopped;

/// Longest wait for the target's answer to `ROLLBACK` after a failure.
const ROLLBACK_LIMIT: Duration = Duration::from_secs(10);

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum IncrementalError {
    /// A server could not be reached or refused a statement.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A setting or a table cannot be used; trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// The reference's error, when the first full load is switched off.
    #[error("{0} table must not be empty on target database")]
    EmptyTarget(TableName),
    /// Making an absent table failed.
    #[error(
        "table `{table}` is absent on the target and cannot be made there: {reason}; make it by hand, or make first what it needs (schema, types, functions), as the full replication does"
    )]
    Create {
        /// The table.
        table: TableName,
        /// What was in the way.
        reason: String,
    },
    /// The run was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<RulesError> for IncrementalError {
    fn from(error: RulesError) -> Self {
        match error {
            RulesError::Refused(text) => IncrementalError::Refused(text),
            RulesError::Postgres(error) => IncrementalError::Postgres(error),
        }
    }
}

impl IncrementalError {
    /// Whether another try would end the same way.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, IncrementalError::Refused(_) | IncrementalError::EmptyTarget(_))
    }
}

/// What to replicate, and from where to where.
#[derive(Clone, Debug)]
pub struct Incremental {
    /// Read from, in one read-only transaction.
    pub source: Database,
    /// Written to, in one transaction.
    pub target: Database,
    /// Its tables of mode `incremental` and `delta` are replicated, in its order.
    pub modes: TableModes,
    /// What is masked, and which rows are left behind.
    pub rules: Rules,
    /// How the source is spared.
    pub kindness: Kindness,
    /// Whether an empty target table is loaded whole; an error otherwise.
    pub first_load: bool,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tables replicated.
    pub tables: u64,
    /// Rows inserted.
    pub rows: u64,
    /// Rows updated, in delta tables.
    pub updated: u64,
    /// Rows deleted, in delta tables.
    pub deleted: u64,
    /// Bytes moved.
    pub bytes: u64,
}

/// A table that is about to be copied.
struct Work {
    plan: Plan,
    source: Relation,
    target: Relation,
    /// Highest key on the target before; `None` when it is empty or the key has no order.
    before: Option<i64>,
    late: Late,
    /// Of the rules it is copied under.
    rules: String,
}

impl Incremental {
    /// Replicates. Stops at once, leaving the target as it was, when the run is told to.
    ///
    /// # Errors
    /// When anything is in the way; the target is then as it was, except for columns and the
    /// `bullwork` schema that were added.
    pub async fn replicate(&self, run: &Run) -> Result<Summary, IncrementalError> {
        if [TableMode::Incremental, TableMode::Delta].into_iter().all(|mode| self.modes.keys_with(mode).next().is_none()) {
            run.info("No incremental tables configured");
            return Ok(Summary::default());
        }
        // Dropping the work ends both sessions, and with them their transactions.
        let throttle = self.kindness.throttle();
        // On the heap: a future holds those that it awaits, and this one would fill a thread's stack.
        let work = Box::pin(self.work(run, throttle.clone()));
        let spared = async {
            match &throttle {
                None => work.await,
                Some(throttle) => tokio::select! {
                    done = work => done,
                    unusable = self.kindness.watch(run, &self.source, throttle) => {
                        unusable?;
                        Ok(Summary::default())
                    }
                },
            }
        };
        run.unless_stopped(spared).await?
    }

    async fn work(&self, run: &Run, throttle: Option<Arc<Throttle>>) -> Result<Summary, IncrementalError> {
        run.info("Start incremental replication");
        run.progress(|p| p.phase = "preparing".to_owned());
        let (source, target) = tokio::try_join!(
            self.source.connect("incremental replication, source"),
            self.target.connect("incremental replication, target")
        )?;
        let ahead = pooler::second(&self.source, &source, "incremental replication, looking ahead").await?;
        let (mut source, ahead) = (source.throttled(throttle.clone()), ahead.throttled(throttle));
        tokio::try_join!(sessions::set_up_source(&source), sessions::set_up_source(&ahead), sessions::set_up_target(&target))?;
        if same_database(&target, &source).await? {
            return Err(IncrementalError::Refused(format!(
                "source and target are the same database ({}); correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL",
                self.target
            )));
        }
        if let Some(older) = older_target(&source, &target).await? {
            return Err(IncrementalError::Refused(older));
        }
        let known = catalogue::known(&source).await?;
        let appended = catalogue::resolve(&known, &self.modes, TableMode::Incremental)?;
        let mut deltas = catalogue::resolve(&known, &self.modes, TableMode::Delta)?;
        deltas.retain(|table| !appended.contains(table));
        let tables: Vec<TableName> = appended.iter().chain(&deltas).cloned().collect();
        let state = sessions::open_snapshot(&source, &tables).await?;
        // One table at a time: two would be read at once.
        let ahead = match self.kindness.connections {
            Some(1) => None,
            _ if deltas.is_empty() => None,
            _ => sessions::join_snapshot(run, &source, ahead, &deltas).await?,
        };
        self.rules.enter(&source).await?;
        let applied = self.rules.apply(&source, false).await?;
        let names: Vec<&TableName> = tables.iter().collect();
        let (definitions, there) = tokio::try_join!(read_definitions(&source, &tables), catalogue::relations(&target, &names))?;
        let (appended, deltas) = definitions.split_at(appended.len());
        let (there_appended, there_deltas) = there.split_at(appended.len());
        // Before anything is changed: a table without usable key is a mistake in the settings.
        for (table, relation) in appended {
            let key = mapping::key(table, relation)?;
            mapping::refuse_masked_key(table, &key, &applied.projection(relation.oid, &key.columns))?;
        }
        watermark::prepare(&target).await?;
        for ((table, relation), there) in appended.iter().zip(there_appended) {
            let columns: Vec<String> = relation.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect();
            let masked = mapping::ruled(table, applied.projection(relation.oid, &columns))?;
            mapping::add_columns(&target, table, (relation, there.as_ref()), &masked, run).await?;
        }
        let followed = deltas.iter().zip(there_deltas).map(|((table, source), there)| (table, source, there.as_ref()));
        delta::prepare(run, &target, &applied, followed).await?;

        // Whatever the role's default is: deletions lock rows first, and then need to see who refers to them by now.
        let begin = "begin isolation level read committed";
        target.batch_execute(begin).await.doing(|| "opening the target's transaction".to_owned())?;
        let mut sides = Sides { source: &mut source, ahead: ahead.as_ref(), target: &target };
        match Box::pin(self.transaction(run, &mut sides, (&state, &applied), appended, deltas)).await {
            Ok((summary, tables)) => {
                target.batch_execute("commit").await.doing(|| "committing on the target".to_owned())?;
                foreign_keys::validate(run, &target, &tables).await?;
                run.info_with(
                    "Incremental replication done",
                    json!({
                        "tables": summary.tables,
                        "rows": summary.rows,
                        "rows_updated": summary.updated,
                        "rows_deleted": summary.deleted,
                    }),
                );
                Ok(summary)
            }
            Err(error) => {
                // Awaited, so that no half-done transaction is left when the job is tried again.
                let _ = tokio::time::timeout(ROLLBACK_LIMIT, target.batch_execute("rollback")).await;
                Err(error)
            }
        }
    }

    /// Everything between `BEGIN` and `COMMIT` on the target; with the oids of its tables.
    async fn transaction(
        &self,
        run: &Run,
        sides: &mut Sides<'_>,
        (state, applied): (&SourceState, &Applied),
        appended: &[(TableName, Relation)],
        deltas: &[(TableName, Relation)],
    ) -> Result<(Summary, Vec<u32>), IncrementalError> {
        let target = sides.target;
        let names: Vec<&TableName> = appended.iter().chain(deltas).map(|(table, _)| table).collect();
        let mut there = catalogue::relations(target, &names).await?;
        let mut made = Vec::new();
        for ((table, relation), there) in appended.iter().chain(deltas).zip(&there) {
            if let Some(absent) = create::absent(sides.source, target, table, (relation, there.as_ref())).await? {
                run.info(format!("{table} table is absent on the target: it is made from the source's definition"));
                create::make(sides.source, target, table, &absent).await?;
                made.push(absent);
            }
        }
        if !made.is_empty() {
            there = catalogue::relations(target, &names).await?;
        }
        let mut pairs = Vec::with_capacity(there.len());
        for ((table, relation), there) in appended.iter().chain(deltas).zip(there) {
            let there = there.ok_or_else(|| IncrementalError::Refused(format!("table `{table}` is absent on the target")))?;
            pairs.push((table.clone(), relation.clone(), there));
        }
        let deltas = pairs.split_off(appended.len());
        // Foreign keys that may wait are checked when all tables are complete.
        let wait = "set constraints all deferred";
        target.batch_execute(wait).await.doing(|| "setting up the target's transaction".to_owned())?;

        let mut work = Vec::with_capacity(pairs.len());
        for pair in pairs {
            work.push(self.inspect(run, target, (state, applied), pair).await?);
        }
        for item in &work {
            tell::before(run, item);
        }

        let mut oids: Vec<u32> = work.iter().map(|item| item.target.oid).collect();
        let total = (work.len() + deltas.len()) as u64;
        run.info("Start COPY FROM/TO through STDIN/OUT");
        run.progress(|p| {
            p.phase = "copying".to_owned();
            p.total = total;
        });
        let mut deltas = Box::pin(delta::Deltas::find(self, run, (sides.source, target), applied, deltas, &oids)).await?;
        oids.extend(deltas.oids());
        Box::pin(deltas.fill_before_appended(run, sides, &made, state)).await?;
        let base = run.current_progress();
        let mut summary = Summary { tables: total, ..Summary::default() };
        for item in &work {
            let copied = copy_table(run, sides.source, target, state, item).await?;
            if let Late::FirstLoad = item.late {
                for absent in made.iter().filter(|a| a.contains(&item.plan.table)) {
                    create::finish(sides.source, target, &item.plan.table, absent).await?;
                }
                let analyze = format!("analyze {}", item.plan.table.quoted());
                target.batch_execute(&analyze).await.doing(|| format!("analyzing table `{}`", item.plan.table))?;
            }
            let after = catalogue::highest(target, &item.plan.table, &item.plan.key).await?;
            tell::after(run, item, after, copied.rows);
            let mark = Watermark { rules: Some(item.rules.clone()), ..Watermark::new(&item.plan, item.target.oid, after, state) };
            watermark::store(target, &item.plan.table, &mark).await?;
            summary.rows += copied.rows;
            summary.bytes += copied.bytes;
            run.progress(|p| {
                p.done += 1;
                p.rows = base.rows + summary.rows;
                p.bytes = base.bytes + summary.bytes;
            });
        }
        let done = Box::pin(deltas.finish(run, sides, &made, state)).await?;
        summary.rows += done.inserted;
        summary.bytes += done.bytes;
        (summary.updated, summary.deleted) = (done.updated, done.deleted);
        Ok((summary, oids))
    }

    /// Pairs a source table with the target's and decides where its copy starts.
    async fn inspect(
        &self,
        run: &Run,
        target: &Connection,
        (state, applied): (&SourceState, &Applied),
        (table, source, there): (TableName, Relation, Relation),
    ) -> Result<Work, IncrementalError> {
        let mut plan = mapping::plan(&table, &source, &there)?;
        let columns = plan.columns();
        plan.projection = mapping::ruled(&table, applied.projection(source.oid, &columns))?;
        for note in &plan.notes {
            run.warn(format!("{table}: {note}"));
        }
        let empty = catalogue::is_empty(target, &table).await?;
        if empty && !self.first_load {
            return Err(IncrementalError::EmptyTarget(table));
        }
        let before = catalogue::highest(target, &table, &plan.key).await?;
        let print = applied.fingerprint(source.oid);
        let late = if empty {
            Late::FirstLoad
        } else {
            let stored = watermark::load(target, &table).await?;
            let differences = print.differences(stored.as_ref().and_then(|s| s.rules.as_deref()), &columns);
            if !differences.is_empty() {
                return Err(IncrementalError::Refused(format!(
                    "table `{table}`: its rows on the target were copied under other rules ({}); set REPLICATION_RULES and REPLICATION_MASK_KEY back, or empty the table there (truncate {}), and the next run loads it whole under those of now",
                    differences.join(", "),
                    table.quoted()
                )));
            }
            watermark::decide(stored.as_ref(), state, &plan, &source, there.oid, before)
        };
        Ok(Work { plan, source, target: there, before, late, rules: print.stored(&columns) })
    }
}

async fn read_definitions(source: &Connection, tables: &[TableName]) -> Result<Vec<(TableName, Relation)>, IncrementalError> {
    let names: Vec<&TableName> = tables.iter().collect();
    let mut read = Vec::with_capacity(tables.len());
    for (table, relation) in tables.iter().zip(catalogue::relations(source, &names).await?) {
        let relation =
            relation.ok_or_else(|| IncrementalError::Refused(format!("table `{table}` was dropped from the source just now")))?;
        read.push((table.clone(), relation));
    }
    Ok(read)
}

async fn copy_table(
    run: &Run,
    source: &mut Connection,
    target: &Connection,
    state: &SourceState,
    item: &Work,
) -> Result<stream::Copied, IncrementalError> {
    let table = &item.plan.table;
    let base = run.current_progress();
    let moved = |copied: &stream::Copied| {
        run.progress(|p| {
            p.rows = base.rows + copied.rows;
            p.bytes = base.bytes + copied.bytes;
        });
    };
    // First what is above the watermark, or everything.
    let mut copied = match (&item.late, item.before) {
        (Late::FirstLoad, _) => {
            stream::copy(source, &item.plan.select(&item.source, None), target, &item.plan, &mut |c| moved(c)).await?
        }
        (_, Some(before)) => {
            let above = item.plan.above(before);
            stream::copy(source, &item.plan.select(&item.source, Some(&above)), target, &item.plan, &mut |c| moved(c)).await?
        }
        (_, None) => stream::Copied::default(),
    };
    // Then what appeared below it since.
    if !matches!(item.late, Late::FirstLoad) {
        let late = late::copy(source, target, state, item).await?;
        if late.copied.rows > 0 {
            run.info_with(
                format!("{table} late rows: {} of {} candidates were missing on the target", late.copied.rows, late.candidates),
                json!({ "table_name": table.to_string(), "late_candidates": late.candidates, "late_rows": late.copied.rows }),
            );
        }
        copied.add(late.copied);
    }
    if copied.read != copied.rows {
        run.warn(format!(
            "{table}: {} rows were read but the target kept {}; a trigger or rule there drops rows",
            copied.read, copied.rows
        ));
    }
    Ok(copied)
}
