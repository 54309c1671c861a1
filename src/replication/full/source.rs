//! Everything that a run knows of the source, read in one snapshot; and the checks that come
//! before anything is changed.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokio_postgres::Client;

use super::Refused;
use super::archive::Entry;
use super::catalog::{self, Graph, Key, OWN_SCHEMA, PG_CLASS};
use super::dump;
use super::relocate::Relocation;
use super::tables::{self, SourceIndex, SourceKey, SourceTable};
use crate::postgres::client_programs::PgDump;
use crate::postgres::same::same_database;
use crate::postgres::{Connection, Database, Doing};
use crate::replication::rules::Applied;
use crate::replication::settings::{TableMode, TableModes, TableName};
use crate::worker::Run;

/// The source as of the run's snapshot.
pub(super) struct Source {
    pub(super) graph: Graph,
    /// Objects that are not an extension's.
    pub(super) keys: HashSet<Key>,
    /// Tables, views and sequences by name, with their kind.
    pub(super) relations: HashMap<TableName, String>,
    /// Tables that are copied, largest first.
    pub(super) tables: Vec<SourceTable>,
    pub(super) indexes: HashMap<u32, Vec<SourceIndex>>,
    /// Plain indexes of any table, by name and as the server tells them.
    pub(super) index_names: HashSet<TableName>,
    pub(super) index_identities: Vec<String>,
    pub(super) foreign_keys: Vec<SourceKey>,
    /// Foreign keys that need not hold, by oid: rows that they point to may be left behind.
    pub(super) loose_keys: HashSet<u32>,
    /// Every definition, in an order that works.
    pub(super) entries: Vec<Entry>,
    /// Names of the tables that the target keeps.
    pub(super) kept: HashSet<TableName>,
    /// The source's tables that the target keeps, partitions included.
    pub(super) kept_oids: HashSet<u32>,
    /// Materialized views that are empty on the source too.
    pub(super) unpopulated: HashSet<u32>,
    /// Where the target's objects stand while they are made.
    pub(super) relocation: Relocation,
}

/// What the two servers are.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    pub(super) source_major: u32,
    pub(super) target_major: u32,
}

/// Refuses a pair of databases that cannot be source and target.
pub(super) async fn check_servers(
    run: &Run,
    databases: (&Database, &Database),
    source: &Connection,
    target: &Connection,
) -> anyhow::Result<Servers> {
    const SERVER: &str = "select pg_is_in_recovery(), current_setting('server_version_num')::int";
    let (from, to) = databases;
    let row = source.query_one(SERVER, &[]).await.doing(|| format!("asking {from} what it is"))?;
    let (recovering, source_version): (bool, i32) = (row.get(0), row.get(1));
    anyhow::ensure!(
        !recovering,
        "the source {from} is in recovery (a standby, or restoring), where no snapshot can be shared; set SOURCE_DATABASE_URL to the primary"
    );
    let row = target.query_one(SERVER, &[]).await.doing(|| format!("asking {to} what it is"))?;
    let (recovering, target_version): (bool, i32) = (row.get(0), row.get(1));
    anyhow::ensure!(!recovering, "the target {to} is in recovery and cannot be written; set TARGET_DATABASE_URL to the primary");
    if same_database(target, source).await? {
        return Err(Refused(format!(
            "source and target are one database ({from} and {to}); a full replication would drop what it copies; correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL"
        ))
        .into());
    }
    let major = |version: i32| u32::try_from(version / 10_000).unwrap_or_default();
    let servers = Servers { source_major: major(source_version), target_major: major(target_version) };
    if servers.target_major < servers.source_major {
        run.warn(format!(
            "the target runs PostgreSQL {} and the source {}: definitions that the target does not know will be refused",
            servers.target_major, servers.source_major
        ));
    }
    Ok(servers)
}

impl Source {
    /// Reads the source in `session`'s snapshot. `target` tells which names exist there.
    pub(super) async fn read(session: &Client, target: &Graph, modes: &TableModes) -> anyhow::Result<Source> {
        let graph = Graph::read(session).await?;
        let known: Vec<TableName> = graph.table_names();
        let mut everywhere = known.clone();
        everywhere.extend(target.table_names());
        check_modes(modes, &everywhere)?;
        let kept: HashSet<TableName> = everywhere.into_iter().filter(|t| modes.mode_of(t) != TableMode::Full).collect();
        let is_named = |oid: u32| graph.nodes.get(&(PG_CLASS, oid)).is_some_and(|n| kept.contains(&n.table_name()));
        let mut kept_oids = HashSet::new();
        for node in graph.nodes.values().filter(|n| n.is_table()) {
            if !graph.is_within(node.id.1, &is_named) {
                continue;
            }
            kept_oids.insert(node.id.1);
            let mut parents = graph.parents.get(&node.id.1).into_iter().flatten();
            if let Some(parent) = parents.find(|p| !graph.is_within(**p, &is_named)) {
                let parent = graph.nodes.get(&(PG_CLASS, *parent)).map(|n| n.table_name().to_string()).unwrap_or_default();
                return Err(Refused(format!(
                    "BACKUP_MODE keeps table `{}`, which is a part of table `{parent}`; give the mode to `{parent}`",
                    node.table_name()
                ))
                .into());
            }
        }
        let mut tables = tables::tables(session).await?;
        tables.retain(|t| {
            t.name.schema != OWN_SCHEMA
                && !kept_oids.contains(&t.oid)
                && graph.nodes.get(&(PG_CLASS, t.oid)).is_some_and(|n| !n.extension)
        });
        let unreadable: Vec<String> = tables.iter().filter(|t| !t.readable).map(|t| t.name.quoted()).collect();
        anyhow::ensure!(
            unreadable.is_empty(),
            "the source's role may not read {} whole; grant select on them to it (and bypassrls where they have row-level security), or set them to \"none\" in BACKUP_MODE",
            unreadable.join(", ")
        );
        tables.sort_by_key(|t| std::cmp::Reverse(t.size));
        let plain = tables::plain_indexes(session).await?;
        let own = graph.nodes.values().filter(|n| !n.extension && n.schema.as_deref() != Some(OWN_SCHEMA));
        let keys = own.clone().map(catalog::Node::key).collect();
        let relations = own.filter(|n| n.is_relation()).map(|n| (n.table_name(), n.kind.clone())).collect();
        Ok(Source {
            keys,
            relations,
            tables,
            indexes: tables::indexes(session).await?,
            index_identities: plain.iter().map(|i| i.identity.clone()).collect(),
            index_names: plain.into_iter().map(|i| i.name).collect(),
            foreign_keys: tables::foreign_keys(session).await?,
            loose_keys: HashSet::new(),
            entries: Vec::new(),
            kept,
            kept_oids,
            unpopulated: tables::unpopulated(session).await?,
            relocation: Relocation::default(),
            graph,
        })
    }

    /// Has the tables read as the rules say.
    pub(super) fn apply(&mut self, rules: Applied) -> Result<(), Refused> {
        for table in &mut self.tables {
            let columns: Vec<String> = table.projection.readings.iter().map(|r| r.column.clone()).collect();
            table.projection = rules.projection(table.oid, &columns).map_err(|column| {
                Refused(format!("table `{}`, column `{column}`: it has no rule, and the table has masks", table.name))
            })?;
        }
        self.loose_keys = rules.loose_keys;
        Ok(())
    }

    /// Adds the definitions, by pg_dump in the same snapshot.
    pub(super) async fn read_definitions(
        &mut self,
        database: &Database,
        session: &Client,
        snapshot: &str,
        major: u32,
        programs: Option<&Path>,
    ) -> anyhow::Result<()> {
        let program = PgDump::find(programs, major).await?;
        let unreadable: Vec<TableName> =
            tables::tables(session).await?.into_iter().filter(|t| !t.readable).map(|t| t.name).collect();
        self.entries = dump::definitions(&program, database, snapshot, &unreadable).await?;
        Ok(())
    }
}

/// Unknown names are refused: a table would be copied, or dropped, against somebody's wish.
fn check_modes(modes: &TableModes, existing: &[TableName]) -> Result<(), Refused> {
    let unknown = modes.unknown(existing);
    if unknown.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = unknown
        .iter()
        .map(|key| {
            let mut near: Vec<(usize, String)> =
                existing.iter().map(|t| (distance(key, &t.to_string()), t.to_string())).collect();
            near.sort();
            near.dedup();
            let near: Vec<String> =
                near.into_iter().take(3).filter(|(d, _)| *d <= (key.len() / 3).max(1)).map(|(_, n)| format!("`{n}`")).collect();
            if near.is_empty() { format!("`{key}`") } else { format!("`{key}` (near: {})", near.join(", ")) }
        })
        .collect();
    Err(Refused(format!("BACKUP_MODE names tables that neither source nor target has: {}; names are exact", told.join("; "))))
}

/// Edits between two names, letter case aside.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_tables_are_told_with_what_was_perhaps_meant() {
        let existing = ["answers", "knowledge-elements", "users"].map(TableName::public);
        let modes = TableModes::of([
            ("anwsers", TableMode::Incremental),
            ("Knowledge-Elements", TableMode::None),
            ("zzz", TableMode::None),
        ]);
        let text = check_modes(&modes, &existing).unwrap_err().to_string();
        assert!(text.contains("`anwsers` (near: `answers`)"), "{text}");
        assert!(text.contains("`Knowledge-Elements` (near: `knowledge-elements`)"), "{text}");
        assert!(text.contains("`zzz`;"), "{text}");
        assert!(check_modes(&TableModes::of([("users", TableMode::None)]), &existing).is_ok());
    }

    #[test]
    fn distances_are_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("Same", "same"), 0);
    }
}
