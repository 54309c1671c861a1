//! Everything that a run knows of the source, read in one snapshot; and the checks that come
//! before anything is changed.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::Refused;
use super::catalog::{self, Graph, Key, OWN_SCHEMA, PG_CLASS};
use super::relocate::Relocation;
use super::tables::{self, SourceIndex, SourceKey, SourceTable};
use crate::postgres::same::same_database;
use crate::postgres::{Connection, Database, Doing, older_target};
use crate::replication::ddl::{self, Catalogue, Cause, Statement};
use crate::replication::rules::Applied;
use crate::replication::settings::{TableMode, TableModes, TableName};

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
    pub(super) entries: Vec<Statement>,
    /// What cannot be copied, and why.
    pub(super) refused: Vec<(String, String)>,
    /// Rows of the tables that were counted once, by oid.
    pub(super) estimates: HashMap<u32, f64>,
    /// Bytes of the kept tables that the source has.
    pub(super) kept_sizes: HashMap<TableName, i64>,
    /// Names of the tables that the target keeps.
    pub(super) kept: HashSet<TableName>,
    /// The source's tables that the target keeps, partitions included.
    pub(super) kept_oids: HashSet<u32>,
    /// Materialized views that are empty on the source too.
    pub(super) unpopulated: HashSet<u32>,
    /// Where the target's objects stand while they are made.
    pub(super) relocation: Relocation,
}

/// Whether full replications were made to the database.
const COPY: &str = "select to_regclass('bullwork.generation') is not null";
/// Whether nothing of ours was ever there.
const NO_NOTES: &str = "select to_regnamespace('bullwork') is null";

/// Refuses a pair of databases that cannot be source and target.
pub(super) async fn check_servers(
    databases: (&Database, &Database),
    source: &Connection,
    target: &Connection,
) -> anyhow::Result<()> {
    const SERVER: &str = "select pg_is_in_recovery()";
    let (from, to) = databases;
    let recovering: bool = source.query_one(SERVER, &[]).await.doing(|| format!("asking {from} what it is"))?.get(0);
    anyhow::ensure!(
        !recovering,
        "the source {from} is in recovery (a standby, or restoring), where no snapshot can be shared; set SOURCE_DATABASE_URL to the primary"
    );
    let recovering: bool = target.query_one(SERVER, &[]).await.doing(|| format!("asking {to} what it is"))?.get(0);
    anyhow::ensure!(!recovering, "the target {to} is in recovery and cannot be written; set TARGET_DATABASE_URL to the primary");
    if same_database(target, source).await? {
        return Err(Refused(format!(
            "source and target are one database ({from} and {to}); a full replication would drop what it copies; correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL"
        ))
        .into());
    }
    let row = source.query_one(COPY, &[]).await.doing(|| format!("asking {from} what it is"))?;
    let is_copy: bool = row.get(0);
    if is_copy && target.query_one(NO_NOTES, &[]).await.doing(|| format!("asking {to} what it is"))?.get(0) {
        return Err(Refused(format!(
            "the source {from} holds a copy made by Bullwork, and the target {to} never held one: are SOURCE_DATABASE_URL and \
             TARGET_DATABASE_URL confused? What the target holds would be replaced; where a copy is to be copied, run \
             `create schema bullwork` on the target first"
        ))
        .into());
    }
    match older_target(source, target).await? {
        Some(older) => Err(Refused(older).into()),
        None => Ok(()),
    }
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
            refused: Vec::new(),
            estimates: HashMap::new(),
            kept_sizes: super::plan::kept_sizes(session, &kept).await?,
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
            table.rules = rules.fingerprint(table.oid).stored(&[]);
            table.projection = rules.projection(table.oid, &table.columns()).map_err(|column| {
                Refused(format!("table `{}`, column `{column}`: it has no rule, and the table has masks", table.name))
            })?;
        }
        self.loose_keys = rules.loose_keys;
        Ok(())
    }

    /// Adds the definitions, read in `session`'s snapshot, and what cannot be copied.
    pub(super) async fn read_definitions(&mut self, session: &Connection, target: &Client) -> anyhow::Result<()> {
        const TARGET: &str =
            "select rolsuper, current_setting('server_version_num')::int from pg_roles where rolname = current_user";
        let row = target.query_one(TARGET, &[]).await.doing(|| "reading our rights on the target".to_owned())?;
        let (superuser, version): (bool, i32) = (row.get(0), row.get(1));
        const SCHEMAS: &str = "select nspname::text from pg_namespace";
        let schemas = session.query(SCHEMAS, &[]).await.doing(|| "listing the source's schemas".to_owned())?;
        let without_schemas: Vec<String> =
            schemas.into_iter().map(|row| row.get::<_, String>(0)).filter(|s| catalog::is_own(s)).collect();
        let ours = |schema: &String| (format!("schema {schema}"), "its name is one of Bullwork's own; rename it".to_owned());
        self.refused.extend(without_schemas.iter().map(ours));
        let options = ddl::Options { without_schemas, superuser, target: Some(version), ..ddl::Options::default() };
        let catalogue = Catalogue::read(session, &options).await?;
        for refusal in catalogue.refusals() {
            let what = if refusal.cause == Cause::Property { "a property of " } else { "" };
            self.refused.push((format!("{what}{}", refusal.told()), refusal.reason.clone()));
        }
        self.estimates = catalogue.tables().iter().filter_map(|t| Some((t.oid, t.rows?))).collect();
        self.entries = catalogue.into_statements();
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
