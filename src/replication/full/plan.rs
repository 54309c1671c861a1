//! What a full replication would do, found out without changing anything.
//!
//! The run itself reads and decides the same way ([`look`], [`objection`]) and logs the same plan, so what is shown is what
//! happens, unless somebody changes either database in between.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use tokio_postgres::Client;

use super::catalog::{self, Graph};
use super::drops::{self, DropPlan};
use super::session::Sessions;
use super::source::{self, Source};
use super::target::{Fate, Judge};
use super::{Config, Refused, generation, stage, state, swap};
use crate::postgres::{Connection, Database, Doing, PostgresError};
use crate::replication::rules::RulesError;
use crate::replication::settings::{TableMode, TableName};
use crate::worker::Run;

/// Bytes a second, while no run has shown what these two servers do.
const GUESS: u64 = 50_000_000;

/// A table, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedTable {
    /// Its name as in `BACKUP_MODE`.
    pub table: String,
    /// `full`, `incremental`, `delta` or `none`.
    pub mode: &'static str,
    /// On the source, with indexes; none: it is not there.
    pub bytes: Option<u64>,
    /// As the source's last ANALYZE counted.
    pub rows: Option<u64>,
    /// Estimated; of tables that are copied.
    pub seconds: Option<f64>,
    /// Columns that are masked, and whether rows are left behind.
    pub note: String,
}

/// Room on the target, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// What the new copy takes, about.
    pub needed: u64,
    /// What earlier generations give back before it is built.
    pub freed: u64,
    /// What is free; none: not known.
    pub free: Option<u64>,
}

impl Room {
    /// Whether two copies fit, as far as is known.
    #[must_use]
    pub fn suffices(&self) -> bool {
        // A tenth more: indexes are built with temporary files, and the server's log grows.
        self.free.is_none_or(|free| free + self.freed >= self.needed + self.needed / 10)
    }
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Why tables are replaced in place; none: they are built beside the copy that serves, and switched in.
    pub in_place_because: Option<String>,
    /// All tables, the largest first; those that are kept behind them.
    pub tables: Vec<PlannedTable>,
    /// Objects of the source that the target will not have, and why.
    pub left_out: Vec<(String, String)>,
    /// Objects of the target that go because the source dropped them.
    pub dropped: Vec<String>,
    /// Room on the target.
    pub room: Room,
    /// Estimated, for all of it.
    pub seconds: f64,
    /// Whether the estimate rests on an earlier run.
    pub measured: bool,
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "under 1 s".to_owned(),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A few lines for the log; the command prints a table as well.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copied = self.tables.iter().filter(|t| t.mode == "full");
        let bytes: u64 = copied.clone().filter_map(|t| t.bytes).sum();
        let basis = if self.measured { "by the last run" } else { "guessed: no run was measured yet" };
        write!(f, "plan: {} tables, {} with indexes, about {} ({basis})", copied.count(), size(bytes), duration(self.seconds))?;
        match &self.in_place_because {
            None => write!(f, "; built beside the copy that serves, then switched in")?,
            Some(reason) => write!(f, "; replaced in place: {reason}")?,
        }
        let kept: Vec<String> =
            self.tables.iter().filter(|t| t.mode != "full").map(|t| format!("{} ({})", t.table, t.mode)).collect();
        if !kept.is_empty() {
            write!(f, "; kept: {}", kept.join(", "))?;
        }
        if !self.left_out.is_empty() {
            let names: Vec<&str> = self.left_out.iter().map(|(name, _)| name.as_str()).collect();
            write!(f, "; left out: {}", names.join(", "))?;
        }
        if !self.dropped.is_empty() {
            write!(f, "; dropped, for the source no longer has them: {}", self.dropped.join(", "))?;
        }
        write!(f, "; room on the target: {} needed", size(self.room.needed))?;
        if self.room.freed > 0 {
            write!(f, ", {} given back by an earlier generation", size(self.room.freed))?;
        }
        match self.room.free {
            Some(free) => write!(f, ", {} free", size(free)),
            None => write!(f, ", free space not known (REPLICATION_TARGET_SPACE tells it)"),
        }
    }
}

impl Plan {
    /// The plan's tables in columns, for a terminal.
    #[must_use]
    pub fn rows(&self) -> Vec<[String; 6]> {
        let row = |t: &PlannedTable| {
            [
                t.table.clone(),
                t.mode.to_owned(),
                t.bytes.map_or_else(|| "-".to_owned(), size),
                t.rows.map_or_else(|| "?".to_owned(), |rows| rows.to_string()),
                t.seconds.map_or_else(|| "-".to_owned(), duration),
                t.note.clone(),
            ]
        };
        self.tables.iter().map(row).collect()
    }
}

/// Both sides, read.
pub(super) struct Looked {
    pub(super) there: Graph,
    pub(super) source: Source,
}

/// Reads both sides, and refuses what the run could not finish on. `exporter` is in its transaction.
pub(super) async fn look(run: &Run, config: &Config, exporter: &Connection, target: &Client) -> anyhow::Result<Looked> {
    let there = Graph::read(target).await?;
    let mut source = Source::read(exporter, &there, &config.modes).await?;
    config.rules.enter(exporter).await?;
    source.apply(config.rules.apply(exporter, config.foreign_keys).await.map_err(|error| match error {
        RulesError::Refused(text) => Refused(text).into(),
        RulesError::Postgres(error) => anyhow::Error::from(error),
    })?)?;
    check_target(target, &source, &there, config).await?;
    run.info("Start create Backup");
    run.progress(|p| p.phase = "definitions".to_owned());
    source.read_definitions(exporter, target).await?;
    run.info("End create Backup");
    Ok(Looked { there, source })
}

/// Refuses a target that the run could not finish on, before anything is changed.
async fn check_target(target: &Client, source: &Source, there: &Graph, config: &Config) -> anyhow::Result<()> {
    let recorded = if state::exists(target).await? { state::recorded(target).await? } else { HashSet::new() };
    let plan = drops::decide(there, &source.known(&recorded, &config.enrichment.view_names()))?;
    let mut foreign: Vec<String> =
        plan.replaced.iter().map(|id| &there.nodes[id]).filter(|n| !n.owned).map(catalog::Node::told).collect();
    foreign.sort();
    anyhow::ensure!(
        foreign.is_empty(),
        "the target's role does not own what is to be replaced: {}; make it their owner, or a member of the owner",
        foreign.join(", ")
    );
    let schemas: HashSet<&str> =
        source.relations.keys().map(|name| name.schema.as_str()).chain(std::iter::once(catalog::OWN_SCHEMA)).collect();
    let schemas: Vec<&str> = schemas.into_iter().collect();
    const LACKING: &str = "select coalesce(array_agg(s order by s), '{}') from unnest($1::text[]) s left join pg_namespace n on n.nspname = s \
                           where case when n.oid is null then not has_database_privilege(current_database(), 'create') \
                           else not has_schema_privilege(n.oid, 'create') end";
    let lacking: Vec<String> =
        target.query_one(LACKING, &[&schemas]).await.doing(|| "checking our rights on the target".to_owned())?.get(0);
    anyhow::ensure!(
        lacking.is_empty(),
        "the target's role may not create in schema {}; grant create on the schema (or on the database, where it does not exist) to it",
        lacking.join(", ")
    );
    let may: bool = target
        .query_one("select has_database_privilege(current_database(), 'create')", &[])
        .await
        .doing(|| "checking our rights on the target".to_owned())?
        .get(0);
    anyhow::ensure!(
        may || config.swap.is_none(),
        "the target's role may not create schemas, in which the copy is built beside the one that serves; grant create on the database to it, or set REPLICATION_SWAP=off"
    );
    const LOCKING: &str =
        "select coalesce((select has_language_privilege(oid, 'usage') from pg_language where lanname = 'plpgsql'), false)";
    let may: bool = target.query_one(LOCKING, &[]).await.doing(|| "checking our rights on the target".to_owned())?.get(0);
    anyhow::ensure!(
        may || config.swap.is_none(),
        "the target's role may not use the language plpgsql, in which the locks for the switch are taken; create the extension plpgsql, or grant usage on the language to it, or set REPLICATION_SWAP=off"
    );
    Ok(())
}

/// Why the copy cannot be built beside the live one.
pub(super) fn objection(config: &Config, there: &Graph, plan: &DropPlan, source: &Source, room: &Room) -> Option<String> {
    if config.swap.is_none() {
        return Some("REPLICATION_SWAP is off".to_owned());
    }
    let others = swap::not_ours(there, plan);
    let names: Vec<String> = source.tables.iter().filter(|t| t.holds_names).map(|t| format!("`{}`", t.name)).collect();
    if !others.is_empty() {
        Some(format!(
            "the target's role does not own {}, which would have to move with the tables that are replaced; make it their owner, or a member of the owner",
            others.join(", ")
        ))
    } else if !names.is_empty() {
        Some(format!(
            "table {} has a column of a type such as regclass, whose values are objects by name: they would be those of the old copy",
            names.join(", ")
        ))
    } else if !room.suffices() {
        Some(format!(
            "the target has no room for two copies: about {} needed, {} free",
            size(room.needed),
            size(room.free.unwrap_or_default() + room.freed)
        ))
    } else {
        None
    }
}

/// What is known of the room on the target. `kept` earlier generations stay while the copy is built.
pub(super) async fn room(target: &Client, config: &Config, source: &Source) -> Result<Room, PostgresError> {
    let doing = || "asking how large the target is".to_owned();
    let needed = source.tables.iter().map(|t| t.whole.unsigned_abs()).sum();
    let freed = match config.swap {
        Some(swap) if state::exists(target).await? => {
            generation::surplus_size(target, swap.generations.saturating_sub(1)).await?
        }
        _ => 0,
    };
    // Of other databases only a superuser, or who may connect to them, learns the size.
    const USED: &str = "select coalesce(sum(pg_database_size(oid)), 0)::int8 from pg_database \
                        where datallowconn and has_database_privilege(oid, 'connect')";
    let free = match config.target_space {
        Some(most) => {
            let used: i64 = target.query_one(USED, &[]).await.doing(doing)?.get(0);
            Some(most.saturating_sub(used.unsigned_abs()))
        }
        None => free_here(target, &config.target).await,
    };
    Ok(Room { needed, freed, free })
}

/// Free space of the target's data directory, where that is on this machine and we may know of it.
async fn free_here(target: &Client, database: &Database) -> Option<u64> {
    if !database.is_here() {
        return None;
    }
    // Hidden, and no error, where we may not know of it.
    let row = target.query_opt("select setting from pg_settings where name = 'data_directory'", &[]).await.ok()??;
    let stat = nix::sys::statvfs::statvfs(row.get::<_, Option<String>>(0)?.as_str()).ok()?;
    Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// Puts the plan together. Nothing is made: what each definition would come to is judged only.
pub(super) async fn draw(
    target: &Client,
    config: &Config,
    looked: &Looked,
    drops: &DropPlan,
    (room, in_place_because): (Room, Option<String>),
) -> Result<Plan, PostgresError> {
    let Looked { there, source } = looked;
    let last = if state::exists(target).await? { state::pace(target).await? } else { None };
    let total: u64 = source.tables.iter().map(|t| t.whole.unsigned_abs()).sum();
    let pace = last.unwrap_or(GUESS as f64);
    let seconds = |bytes: u64| bytes as f64 / pace;
    let mut tables: Vec<PlannedTable> = source
        .tables
        .iter()
        .map(|t| PlannedTable {
            table: t.name.to_string(),
            mode: "full",
            bytes: Some(t.whole.unsigned_abs()),
            rows: source.estimates.get(&t.oid).map(|rows| rows.max(0.0) as u64),
            seconds: Some(seconds(t.whole.unsigned_abs())),
            note: note(&t.projection),
        })
        .collect();
    let mut kept: Vec<PlannedTable> = source
        .kept
        .iter()
        .map(|name| PlannedTable {
            table: name.to_string(),
            mode: match config.modes.mode_of(name) {
                TableMode::Incremental => "incremental",
                TableMode::Delta => "delta",
                _ => "none",
            },
            bytes: source.kept_sizes.get(name).map(|bytes| bytes.unsigned_abs()),
            rows: None,
            seconds: None,
            note: "kept".to_owned(),
        })
        .collect();
    kept.sort_by(|a, b| a.table.cmp(&b.table));
    tables.extend(kept);
    let mut left_out = source.refused.clone();
    left_out.extend(left_out_by_kept(source, there, drops, config.foreign_keys));
    Ok(Plan {
        in_place_because,
        tables,
        left_out,
        dropped: drops.outdated.clone(),
        room,
        seconds: seconds(total),
        measured: last.is_some(),
    })
}

fn note(projection: &crate::replication::projection::Projection) -> String {
    let masked = projection.readings.iter().filter(|r| r.instead.is_some()).count();
    let mut notes = Vec::new();
    if masked > 0 {
        notes.push(format!("{masked} columns masked"));
    }
    if projection.condition.is_some() {
        notes.push("rows chosen by a condition".to_owned());
    }
    notes.join(", ")
}

/// What goes without because it needs a kept table that the target does not have, and what needs that.
fn left_out_by_kept(source: &Source, there: &Graph, drops: &DropPlan, foreign_keys: bool) -> Vec<(String, String)> {
    let present = stage::staying(there, drops);
    let mut judge = Judge::new(source, there, foreign_keys);
    let mut found = Vec::new();
    for (i, entry) in source.entries.iter().enumerate() {
        let fate = judge.judge(i, &present);
        if let Fate::Skipped(reason) = &fate {
            found.push((format!("{} {}", entry.kind, entry.told()), reason.clone()));
        }
        judge.fates[i] = Some(fate);
    }
    found
}

/// Finds out what a run would do. Writes nothing to either side.
///
/// # Errors
/// What would stop a run before it changed anything.
pub async fn plan(run: &Run, config: &Config) -> anyhow::Result<Plan> {
    let sessions = Sessions::new(&config.source, &config.target, &config.rules);
    let work = async {
        let (exporter, target) = tokio::try_join!(sessions.source(), sessions.target())?;
        source::check_servers((&config.source, &config.target), &exporter, &target).await?;
        let begin = "begin isolation level repeatable read read only";
        exporter.batch_execute(begin).await.doing(|| "opening a snapshot of the source".to_owned())?;
        target.batch_execute(begin).await.doing(|| "opening a snapshot of the target".to_owned())?;
        let looked = look(run, config, &exporter, &target).await?;
        let recorded = if state::exists(&target).await? { state::recorded(&target).await? } else { HashSet::new() };
        let drops = drops::decide(&looked.there, &looked.source.known(&recorded, &config.enrichment.view_names()))?;
        let room = room(&target, config, &looked.source).await?;
        let objection = objection(config, &looked.there, &drops, &looked.source, &room);
        anyhow::Ok(draw(&target, config, &looked, &drops, (room, objection)).await?)
    };
    run.unless_stopped(Box::pin(work)).await?
}

/// Sizes of the kept tables, by name; those of their partitions and indexes are within.
pub(super) async fn kept_sizes(source: &Client, kept: &HashSet<TableName>) -> Result<HashMap<TableName, i64>, PostgresError> {
    const SIZES: &str = "select n.nspname::text, c.relname::text, (select coalesce(sum(pg_total_relation_size(t.relid)), 0)::int8 \
                         from pg_partition_tree(c.oid) t) + case c.relkind when 'r' then pg_total_relation_size(c.oid) else 0 end \
                         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p') and not c.relispartition";
    if kept.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = source.query(SIZES, &[]).await.doing(|| "asking how large the kept tables are".to_owned())?;
    let sized = rows.into_iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2)));
    Ok(sized.filter(|(name, _)| kept.contains(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_need_room_for_one_more_and_a_tenth() {
        let room = |free| Room { needed: 1000, freed: 100, free };
        assert!(room(None).suffices(), "what is not known does not hinder");
        assert!(room(Some(1000)).suffices());
        assert!(!room(Some(999)).suffices());
    }

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!((size(999), size(1_500), size(2_000_000_000)), ("999 B".to_owned(), "1.5 kB".to_owned(), "2.0 GB".to_owned()));
        assert_eq!(
            (duration(0.2), duration(90.0), duration(600.0)),
            ("under 1 s".to_owned(), "90 s".to_owned(), "10 min".to_owned())
        );
    }
}
