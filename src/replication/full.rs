//! Full replication: everything of the source, streamed into the target, beside the copy that serves.
//!
//! Rows go from `COPY … TO STDOUT` straight into `COPY … FROM STDIN`, several tables at a time, all
//! in one exported snapshot of the source; no file is written and memory does not grow with the
//! database. Definitions come from the catalogue in the same snapshot and are chosen by
//! identity ([`super::ddl`]), indexes and keys are built behind the rows (`build`).
//!
//! ```text
//! checks ─ definitions ─┬─ one transaction: make what the source has, in stand-in schemas (`stage`)
//!                       ├─ rows, indexes, keys, ANALYZE of every table, in parallel
//!   all the while       ├─ postponed views, materialized views, foreign keys, triggers, comments
//!   yesterday's copy    ├─ compatibility views, enrichment, other people's views on the new tables
//!   serves              └─ one short transaction: the copies change places (`swap`)
//! ```
//!
//! With `REPLICATION_SWAP=off` there is room for one copy only: the first transaction drops what is replaced and makes
//! the definitions in its place, and readers see each table empty until its rows are committed.
//!
//! Of tables with rules (`rules`), the source sends masks and the rows that are wanted, never the rest.
//!
//! **Guarantees.** Kept tables (`BACKUP_MODE`) keep rows, indexes, keys and views. Tables, views and
//! functions that the source does not have are left alone, or stored and made again when they
//! stand over a replaced table (`drops`, `saved`). Row counts of both sides are compared for
//! every table, with `REPLICATION_VERIFY=checksum` every value too ([`super::verify`]). The target
//! serves one generation or the next, each whole; the one before is kept ([`rollback()`]).
//!
//! **Memory** is a quarter of a megabyte for each worker plus its widest row, and the catalogue's size.
//!
//! **Needs** SELECT on the source's tables; on the target
//! CREATE and the ownership of what is replaced. Two runs at once into one target must be
//! prevented by the caller (the worker's advisory lock).
//!
//! **On a crash** yesterday's copy serves, and the next run goes on with what was being built, or removes it
//! ([`resume`]). In place, from the commit of the
//! first transaction on, the target is incomplete, says so in `bullwork.replication_state`, and the next run replaces
//! what is there: it is recorded what is ours, and stored definitions wait for the end of the run that succeeds.

mod build;
mod catalog;
mod copy;
mod drops;
mod enrich;
mod finish;
mod generation;
mod keys;
mod locks;
mod outcome;
mod plan;
mod policies;
mod relocate;
mod resume;
mod rollback;
mod saved;
pub(super) mod session;
mod source;
mod stage;
mod state;
mod swap;
pub(super) mod tables;
mod target;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use enrich::{ENRICHMENT_FILE, Enrichment};
pub use plan::{Plan, PlannedTable, Room, plan};
pub use resume::Resume;
pub use rollback::rollback;

use crate::postgres::{Connection, Database, Doing, pooler};
use crate::replication::ddl::Kind;
use crate::replication::incremental::watermark::SourceState;
use crate::replication::kindness::Kindness;
use crate::replication::rules::Rules;
use crate::replication::settings::{TableModes, TableName};
use crate::replication::verify::{Checks, Depth};
use crate::worker::Run;
use build::Work;
use catalog::{Graph, ObjectId, PG_CLASS, PG_CONSTRAINT};
use outcome::{Reached, Serving};
use session::Sessions;
use source::Source;
use target::Judge;

/// What a full replication does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Copied from.
    pub source: Database,
    /// Copied to.
    pub target: Database,
    /// Which tables are kept.
    pub modes: TableModes,
    /// Whether the source's foreign keys are made.
    pub foreign_keys: bool,
    /// Tables copied, and indexes built, at the same time.
    pub jobs: usize,
    /// Views and indexes that are added.
    pub enrichment: Enrichment,
    /// What is masked, and which rows are left behind.
    pub rules: Rules,
    /// How the source is spared.
    pub kindness: Kindness,
    /// How the copy is built beside the live one; none: in its place.
    pub swap: Option<Swap>,
    /// Bytes that the target's databases may take in all; none: as much as there is.
    pub target_space: Option<u64>,
    /// How much of the copy is compared with the source.
    pub verify: Depth,
}

/// How copies change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// How long readers that hold replaced tables are waited for.
    pub patience: Duration,
    /// Earlier generations that are kept.
    pub generations: u32,
    /// What becomes of what a run that was cut off had built.
    pub resume: Resume,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Tables copied.
    pub tables: u64,
    /// Rows copied.
    pub rows: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Wall time.
    pub duration_ms: u64,
    /// Definitions of the source that were left out.
    pub left_out: Vec<String>,
    /// Foreign keys that do not hold, and objects of others that could not be made again.
    pub broken: Vec<String>,
}

/// Trying again cannot help: the configuration is wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Replicates. Stopping is quick at any point: the statements on both servers are cancelled.
///
/// # Errors
/// [`Refused`] for a mistake of configuration; otherwise what failed, and what state the target
/// is in.
pub async fn replicate(run: &Run, config: &Config) -> anyhow::Result<Summary> {
    let sessions = Sessions::new(&config.source, &config.target, &config.rules).throttled(config.kindness.throttle());
    let reached = Reached::default();
    let result = run.unless_stopped(Box::pin(work(run, config, &sessions, &reached))).await;
    let error = match result {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(error)) => error,
        Err(stopped) => stopped.into(),
    };
    sessions.cancel_all().await;
    let state = outcome::describe(config, &reached, &format!("{error:#}")).await;
    if error.is::<crate::worker::run::Stopped>() {
        run.warn(format!("the run was stopped; {state}"));
        return Err(error);
    }
    Err(match error.downcast::<Refused>() {
        Ok(Refused(text)) => Refused(format!("{text}; {state}")).into(),
        Err(error) => anyhow::anyhow!("{error:#}; {state}"),
    })
}

async fn work(run: &Run, config: &Config, sessions: &Sessions<'_>, reached: &Reached) -> anyhow::Result<Summary> {
    let start = Instant::now();
    run.info("Start import and enrichment");
    run.info("Import data from API database");
    run.progress(|p| p.phase = "checking".to_owned());
    pooler::refuse(&config.source).await?;
    let exporter = sessions.source().await?;
    let mut target = sessions.target().await?;
    source::check_servers((&config.source, &config.target), &exporter, &target).await?;
    let own_views = config.enrichment.view_names();

    let snapshot = export(&exporter).await?;
    let moment = SourceState::read(&exporter).await?;
    let looked = plan::look(run, config, &exporter, &target).await?;

    run.info("Start drop Objects AndRestoreBackup");
    for (what, reason) in &looked.source.refused {
        run.warn(format!("left out {what}: {reason}"));
    }
    let total = looked.source.tables.len() as u64;
    reached.tables.store(total, Ordering::Relaxed);
    state::prepare(&target).await?;
    let before = state::begin(&target, &moment.snapshot, total).await?;
    let serving = Serving::ask(&target).await?;
    let is_whole = serving.is_whole();
    reached.begin(serving);
    if let Some(before) = before.filter(|b| b.state != "complete") {
        let what = if before.phase == "staging" { "" } else { ": what it left is replaced" };
        run.info(format!(
            "the run that started at {} did not succeed ({}, {}){what}",
            before.started_at, before.state, before.phase
        ));
    }
    let plan = drops::decide(&looked.there, &looked.source.known(&state::recorded(&target).await?, &own_views))?;
    let room = plan::room(&target, config, &looked.source).await?;
    let objection = plan::objection(config, &looked.there, &plan, &looked.source, &room);
    if let Some(reason) = objection.as_ref().filter(|_| config.swap.is_some()) {
        run.warn(format!("replacing in place, not beside the copy that serves: {reason}"));
    }
    let swap = config.swap.filter(|_| objection.is_none());
    reached.beside.store(swap.is_some(), Ordering::Release);
    let drawn = plan::draw(&target, config, &looked, &plan, (room, objection)).await?;
    run.info_with(drawn.to_string(), serde_json::json!({"plan": drawn}));
    let plan::Looked { there, mut source } = looked;
    target::complete_enums(run, &exporter, &target, &target::kept_enums(&source, &there, &plan)).await?;
    let own_indexes = config.enrichment.index_names();
    let mut functions = stage::Functions::default();
    let mut done = None;
    let mut judge = if let Some(swap) = swap {
        functions = stage::relocate(&exporter, &target, &mut source, &there, &plan, config.foreign_keys).await?;
        let digest = resume::digest(&source, &stage::staying(&there, &plan), config.verify);
        done = resume::look(run, &target, &digest, &moment, swap.resume).await?;
        if done.is_none() && generation::drop_unfinished(&target).await? {
            run.info("removed what an earlier run had begun to build");
        }
        generation::drop_surplus(run, &target, swap.generations.saturating_sub(1)).await?;
        drops::tell(run, &plan);
        let stage = stage::Stage {
            source: &source,
            there: &there,
            plan: &plan,
            functions: &functions,
            foreign_keys: config.foreign_keys,
        };
        stage.make(run, target.client_mut(), (&digest, &moment), done.is_some()).await?
    } else {
        if generation::drop_unfinished(&target).await? {
            run.info(
                "starting over: what is replaced in place cannot go on with what an earlier run had begun to build; removed that",
            );
        }
        generation::forget(run, &target).await?;
        target::rebuild(run, target.client_mut(), &source, &own_views, &own_indexes, config.foreign_keys).await?
    };
    run.info("End drop Objects AndRestoreBackup");

    run.info("Start restore Backup");
    run.info("Start restore");
    finish::set_positions(run, &target, &source, &judge).await?;
    let (mut tables, mut built) = plan_work(&source, &judge);
    if let Some(done) = &done {
        build::take_over(&mut tables, done, &resume::built(&target, &source).await?, &reached.totals);
    }
    run.progress(|p| {
        p.phase = "copying".to_owned();
        p.total = total;
    });
    let checks = Checks::of_run(config.verify, &exporter, &target).await?;
    let workers = config.jobs.max(1);
    let readers = config.kindness.connections.unwrap_or(workers).max(1);
    let keys = keys::of_work(&source, &judge, &tables);
    built.extend(keys.iter().flat_map(|of_table| &of_table.keys).map(|key| (PG_CONSTRAINT, key.oid)));
    let how =
        build::How { workers, readers, staged: swap.is_some(), keys: &keys, again: done.is_some(), checks: checks.as_ref() };
    let building = build::all(run, sessions, (exporter, &snapshot), &tables, how, &reached.totals);
    match sessions.throttle() {
        None => building.await?,
        Some(throttle) => tokio::select! {
            built = building => built?,
            unusable = config.kindness.watch(run, &config.source, throttle) => unusable?,
        },
    }
    if swap.is_none() {
        state::enter(&target, state::Phase::Finishing, total).await?;
    }
    run.progress(|p| p.phase = "finishing".to_owned());
    let mut broken =
        finish::finish(run, sessions, target.client_mut(), &source, &mut judge, (&built, done.is_some()), config.jobs.max(1))
            .await?;
    run.info("Restore done");
    run.info("End restore Backup");

    run.progress(|p| p.phase = "enrichment".to_owned());
    let relocation = &source.relocation;
    let gone: HashSet<TableName> = match swap {
        Some(_) => plan
            .gone
            .iter()
            .filter_map(|id| there.nodes.get(id))
            .filter(|n| n.is_relation())
            .map(catalog::Node::table_name)
            .collect(),
        None => HashSet::new(),
    };
    let views = enrich::make_views(run, target.client_mut(), &config.enrichment, relocation, &gone).await?;
    let unfit = enrich::make_indexes(run, &target, &config.enrichment, &config.modes, relocation, &gone).await?;
    if let Some(checks) = checks {
        checks.refuse_differences(run)?;
    }
    if let Some(swap) = swap {
        run.progress(|p| p.phase = "switching".to_owned());
        let mut made = judge.made_keys();
        made.extend(views);
        made.extend(
            functions.same.iter().chain(&functions.late).filter_map(|i| judge.node(&source.entries[*i])).map(catalog::Node::key),
        );
        let incoming = swap::Incoming {
            schemas: relocation.schemas().map(|(real, stand_in)| (stand_in.to_owned(), real.to_owned())).collect(),
            relocation: relocation.clone(),
            functions: functions
                .late
                .iter()
                .map(|i| &source.entries[*i])
                .filter_map(|entry| Some((judge.node(entry)?.identity.clone(), entry.sql.clone())))
                .collect(),
            made,
            snapshot: &moment.snapshot,
            index_names: source.index_names.union(&own_indexes).cloned().collect(),
        };
        reached.switching.store(true, Ordering::Release);
        let decide =
            |there: &Graph, recorded: &HashSet<catalog::Key>| Ok(drops::decide(there, &source.known(recorded, &own_views))?);
        broken.extend(swap::switch(run, target.client_mut(), incoming, swap.patience, decide).await?);
        // Nobody wants a copy back that was not whole.
        let kept = if is_whole { swap.generations } else { 0 };
        generation::drop_surplus(run, &target, kept).await?;
    }
    if done.is_none() {
        state::note_pace(&target, room.needed, start.elapsed()).await?;
    }
    state::end(&target, total, None).await?;
    run.progress(|p| p.phase = "done".to_owned());
    Ok(Summary {
        tables: total,
        rows: reached.totals.rows.load(Ordering::Relaxed),
        bytes: reached.totals.bytes.load(Ordering::Relaxed),
        duration_ms: build::millis(start),
        left_out: source.refused.iter().map(|(what, _)| what.clone()).chain(judge.skipped()).chain(unfit).collect(),
        broken,
    })
}

/// Starts the source's transaction and shares its snapshot.
async fn export(session: &Connection) -> anyhow::Result<String> {
    let doing = || "sharing a snapshot of the source".to_owned();
    session.batch_execute("begin isolation level repeatable read read only").await.doing(doing)?;
    Ok(session.query_one("select pg_export_snapshot()", &[]).await.doing(doing)?.get(0))
}

/// The tables with what is built on each, and all objects that are built this way.
fn plan_work(source: &Source, judge: &Judge<'_>) -> (Vec<Work>, HashSet<ObjectId>) {
    let mut built = HashSet::new();
    let mut more: std::collections::HashMap<ObjectId, Vec<String>> = std::collections::HashMap::new();
    for (i, entry) in source.entries.iter().enumerate().filter(|(_, e)| e.kind == Kind::Statistics) {
        let table = source.graph.top(entry.object());
        let ordinary = source.graph.nodes.get(&table).is_some_and(|n| n.sort == 'r');
        if ordinary && judge.fates[i] == Some(target::Fate::Made) {
            more.entry(table).or_default().push(entry.sql.clone());
            built.insert(entry.object());
        }
    }
    let work = source
        .tables
        .iter()
        .map(|table| {
            let indexes: Vec<_> = source
                .indexes
                .get(&table.oid)
                .into_iter()
                .flatten()
                .filter(|index| {
                    let object = index.constraint.as_ref().map_or((PG_CLASS, index.oid), |(oid, _)| (PG_CONSTRAINT, *oid));
                    judge.is_made(object)
                })
                .cloned()
                .collect();
            for index in &indexes {
                built.insert((PG_CLASS, index.oid));
                built.extend(index.constraint.as_ref().map(|(oid, _)| (PG_CONSTRAINT, *oid)));
            }
            Work {
                table: table.clone(),
                place: source.relocation.at(&table.name),
                indexes,
                done: false,
                built: HashSet::new(),
                more: more.remove(&(PG_CLASS, table.oid)).unwrap_or_default(),
            }
        })
        .collect();
    (work, built)
}
