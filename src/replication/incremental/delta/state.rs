//! What the target remembers of a table's last delta run, and what that says about the next one.
//!
//! One row a table in `bullwork.delta_watermark` on the target, written in the transaction that
//! writes the rows, as the last thing in it. It is not the appended tables' watermark: a table that
//! changes its mode has rows that the other mode does not answer for.
//!
//! ```text
//! table_schema, table_name   the table
//! target_oid, target_rows    the target's table itself, and how many rows it was left with
//! key_columns                the key; empty without one
//! columns, types             the columns copied, and their types on the source
//! source_oid, source_files   the source's table, and a hash of its files and those of its partitions
//! rules                      a digest of the rules that rows were copied under
//! source_labels              a hash of the labels of its enums, which change without a row being written
//! source_snapshot, source_identity, replicated_at     as in the other table
//! xmin                       the number of the transaction: a row of the table that is newer is not ours
//! ```
//!
//! Every row is compared when there is no such state; when it is of another source, timeline, target
//! table, rules or key, ahead of the source, or two billion transactions old; when the source's table was
//! replaced, rewritten or truncated or got other partitions; when a column is new or has another type; when the
//! target has not as many rows as it was left with; when it has rows that somebody else wrote.

use std::collections::{HashMap, HashSet};

use futures_util::future::try_join_all;
use tokio_postgres::Row;

use super::{Course, Table, key_set};
use crate::postgres::{Connection, Doing, PostgresError};
use crate::replication::incremental::catalogue::Relation;
use crate::replication::incremental::mapping::Plan;
use crate::replication::incremental::watermark::{self, Late, SourceState, Watermark};
use crate::replication::settings::TableName;

/// The state of an unchanged table is left alone for so many transactions: far from two billion, and far
/// enough that a quiet table is written once in many nights.
const RENEW: i64 = 50_000_000;
/// Beyond half of the circle of transaction numbers, "newer" means nothing.
const FARTHEST: i32 = 2_000_000_000;

const EXISTS: &str = "select pg_catalog.to_regclass('bullwork.delta_watermark') is not null";
const CREATE: &str = "create table if not exists bullwork.delta_watermark (
    table_schema text not null,
    table_name text not null,
    target_oid oid not null,
    target_rows int8 not null,
    key_columns text[] not null,
    columns text[] not null,
    types text[] not null,
    source_oid oid not null,
    source_files text not null,
    source_labels text not null,
    rules text not null,
    source_snapshot text not null,
    source_identity text not null,
    replicated_at timestamptz not null default now(),
    primary key (table_schema, table_name))";

/// What the source's table is, apart from its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub oid: u32,
    pub files: String,
    pub labels: String,
    /// The columns copied.
    pub columns: Vec<String>,
    /// Their types.
    pub types: Vec<String>,
    /// What rules they are copied under.
    pub rules: String,
}

/// What the last run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub mark: Watermark,
    pub rows: u64,
    pub shape: Shape,
    /// Transactions of the target since then.
    pub age: i32,
}

/// The hashes of a table's files and of its enums' labels.
#[derive(Clone, Debug, Default)]
pub(super) struct Hashes {
    files: String,
    labels: String,
}

impl Hashes {
    /// Those of the source's tables with these oids.
    pub(super) async fn read(source: &Connection, tables: &[u32]) -> Result<HashMap<u32, Hashes>, PostgresError> {
        let sql = "select r.oid,
            (select md5(string_agg(c.oid::text || '/' || c.relfilenode::text, ',' order by c.oid))
                from (select r.oid union select p.relid from pg_catalog.pg_partition_tree(r.oid::regclass) p) files
                join pg_catalog.pg_class c on c.oid = files.oid),
            (select md5(coalesce(string_agg(a.attname || ':' || e.enumlabel, ',' order by a.attnum, e.enumsortorder), ''))
                from pg_catalog.pg_attribute a
                join pg_catalog.pg_type t on t.oid = a.atttypid
                join pg_catalog.pg_enum e on e.enumtypid in (t.oid, t.typelem, t.typbasetype)
                where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped)
            from unnest($1::oid[]) r(oid)";
        let rows = source.query(sql, &[&tables]).await.doing(|| "reading what the delta tables are on the source".to_owned())?;
        Ok(rows.iter().map(|row| (row.get(0), Hashes { files: row.get(1), labels: row.get(2) })).collect())
    }
}

impl Shape {
    pub(super) fn new(plan: &Plan, relation: &Relation, hashes: Hashes, rules: String) -> Shape {
        let all = plan.columns();
        let copied = relation.columns.iter().filter(|c| all.contains(&c.name));
        let (columns, types) = copied.map(|c| (c.name.clone(), c.sql_type.clone())).unzip();
        Shape { oid: relation.oid, files: hashes.files, labels: hashes.labels, columns, types, rules }
    }

    /// What changed since `before` that rows do not tell.
    fn change_since(&self, before: &Shape) -> Option<String> {
        for (column, now) in self.columns.iter().zip(&self.types) {
            match before.columns.iter().position(|c| c == column).map(|at| &before.types[at]) {
                None => return Some(format!("column `{column}` is new")),
                Some(then) if then != now => return Some(format!("the type of column `{column}` changed from {then} to {now}")),
                Some(_) => {}
            }
        }
        if self.rules != before.rules {
            return Some("the rules are others now".to_owned());
        }
        if self.oid != before.oid {
            return Some("the source's table was replaced".to_owned());
        }
        if self.files != before.files {
            return Some("the source's table was rewritten or truncated, or its partitions changed".to_owned());
        }
        (self.labels != before.labels).then(|| "the labels of an enum changed".to_owned())
    }
}

/// Makes the table of states when it is absent; schema `bullwork` is there.
pub(super) async fn prepare(target: &Connection) -> Result<(), PostgresError> {
    let doing = || "making the table `bullwork.delta_watermark` on the target".to_owned();
    let exists: bool = target.query_one(EXISTS, &[]).await.doing(doing)?.get(0);
    if !exists {
        target.batch_execute(CREATE).await.doing(doing)?;
    }
    key_set::prepare(target).await
}

/// What the last run left, of all tables.
pub(super) async fn load(target: &Connection) -> Result<HashMap<TableName, State>, PostgresError> {
    let sql = "select target_oid, target_rows, key_columns, columns, types, source_oid, source_files, source_labels,
            source_snapshot, source_identity, age(xmin), rules, table_schema, table_name
        from bullwork.delta_watermark";
    let rows = target.query(sql, &[]).await.doing(|| "reading what the last run left of the delta tables".to_owned())?;
    let state = |row: &Row| State {
        mark: Watermark {
            target_oid: row.get(0),
            key_columns: row.get(2),
            last_key: None,
            snapshot: row.get(8),
            identity: row.get(9),
            rules: None,
        },
        rows: row.get::<_, i64>(1).try_into().unwrap_or_default(),
        shape: Shape {
            oid: row.get(5),
            files: row.get(6),
            labels: row.get(7),
            columns: row.get(3),
            types: row.get(4),
            rules: row.get(11),
        },
        age: row.get(10),
    };
    Ok(rows.iter().map(|row| (TableName { schema: row.get(12), name: row.get(13) }, state(row))).collect())
}

/// Remembers the tables that were written, or whose state grows old.
///
/// In a subtransaction: its number is above that of every row that this transaction wrote, in
/// subtransactions of its own or of triggers.
pub(super) async fn remember(target: &Connection, now: &SourceState, tables: &[Table]) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.delta_watermark
            (table_schema, table_name, target_oid, target_rows, key_columns, columns, types, source_oid, source_files,
             source_labels, source_snapshot, source_identity, rules)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        on conflict (table_schema, table_name) do update set target_oid = excluded.target_oid,
            target_rows = excluded.target_rows, key_columns = excluded.key_columns, columns = excluded.columns,
            types = excluded.types, source_oid = excluded.source_oid, source_files = excluded.source_files,
            source_labels = excluded.source_labels, source_snapshot = excluded.source_snapshot,
            source_identity = excluded.source_identity, rules = excluded.rules, replicated_at = now()";
    let written: Vec<&Table> = tables.iter().filter(|t| t.stale || t.course != Course::Unchanged).collect();
    if written.is_empty() {
        return Ok(());
    }
    let doing = || "storing what this run left of the delta tables".to_owned();
    target.batch_execute("savepoint bullwork_states").await.doing(doing)?;
    let (statement, triggered) = tokio::try_join!(
        async { target.prepare(sql).await.doing(doing) },
        triggered(target, written.iter().map(|t| t.target.oid))
    )?;
    let statement = &statement;
    // Sent one behind the other, without waiting for each answer.
    try_join_all(written.iter().map(|table| async move {
        let (name, shape) = (&table.plan.table, &table.shape);
        let rows = i64::try_from(table.rows_left()).unwrap_or(i64::MAX);
        target
            .execute(
                statement,
                &[
                    &name.schema,
                    &name.name,
                    &table.target.oid,
                    &rows,
                    &table.plan.key.columns,
                    &shape.columns,
                    &shape.types,
                    &shape.oid,
                    &shape.files,
                    &shape.labels,
                    &now.snapshot,
                    &now.identity,
                    &shape.rules,
                ],
            )
            .await
            .doing(|| format!("storing what this run left of table `{name}`"))
    }))
    .await?;
    for table in written {
        let keys = table.keys_left(target, triggered.contains(&table.target.oid)).await?;
        key_set::store(target, &table.plan.table, &now.snapshot, keys.as_ref()).await?;
    }
    target.batch_execute("release savepoint bullwork_states").await.doing(doing)
}

/// Those of the target's tables with these oids at which somebody's triggers or rules act on what is written.
pub(super) async fn triggered(target: &Connection, tables: impl Iterator<Item = u32>) -> Result<HashSet<u32>, PostgresError> {
    let sql = "select t.oid from unnest($1::oid[]) t(oid)
        where exists (select from (select t.oid union select p.relid from pg_catalog.pg_partition_tree(t.oid::regclass) p) parts
            join pg_catalog.pg_class c on c.oid = parts.oid
            where c.relhasrules or exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and not g.tgisinternal))";
    let oids: Vec<u32> = tables.collect();
    let rows = target.query(sql, &[&oids]).await.doing(|| "looking for triggers of the target's tables".to_owned())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

impl Table {
    /// The transaction from which on rows are new on the source, or why that is not known.
    pub(super) fn since(&self, now: &SourceState) -> Result<i64, String> {
        let stored = self.stored.as_ref();
        let xmin = match watermark::decide(stored.map(|s| &s.mark), now, &self.plan, &self.source, self.target.oid, None) {
            Late::Since(xmin) => xmin,
            Late::Everything(reason) => return Err(reason.to_owned()),
            Late::FirstLoad => return Err("the target's table is empty".to_owned()),
        };
        let Some(stored) = stored else { return Err("no earlier run left a snapshot".to_owned()) };
        if !(0..FARTHEST).contains(&stored.age) {
            return Err("the last run is two billion transactions of the target ago".to_owned());
        }
        if let Some(change) = self.shape.change_since(&stored.shape) {
            return Err(change);
        }
        if self.plan.projection.condition.is_some() {
            return Err("its rows are chosen by a condition, which may choose others although none was written".to_owned());
        }
        Ok(xmin)
    }

    /// What of the target's table is not as the last run left it. `written` are rows that somebody else wrote.
    pub(super) fn meddled(&self, written: u64) -> Option<String> {
        let left = self.stored.as_ref().map_or(self.before, |stored| stored.rows);
        if left != self.before {
            return Some(format!("the target's table has {} rows, but the last run left {left}", self.before));
        }
        (written > 0).then(|| format!("somebody else wrote {written} rows of the target's table"))
    }

    /// Whether the state of an unchanged table is old enough to be written again.
    pub(super) fn grows_old(&self, now: &SourceState, xmin: i64) -> bool {
        now.xmax - xmin > RENEW || self.stored.as_ref().is_some_and(|s| i64::from(s.age) > RENEW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rows_do_not_tell_is_named() {
        let shape = |columns: &[(&str, &str)], oid, files: &str| Shape {
            oid,
            files: files.to_owned(),
            labels: String::new(),
            columns: columns.iter().map(|c| c.0.to_owned()).collect(),
            types: columns.iter().map(|c| c.1.to_owned()).collect(),
            rules: String::new(),
        };
        let before = shape(&[("id", "integer"), ("a", "text")], 1, "f");
        let change = |now: &Shape| now.change_since(&before).unwrap_or_default();
        assert_eq!(change(&before), "");
        assert_eq!(change(&shape(&[("id", "integer")], 1, "f")), "", "a dropped column leaves the others as they are");
        assert_eq!(change(&shape(&[("id", "bigint")], 1, "g")), "the type of column `id` changed from integer to bigint");
        assert_eq!(change(&shape(&[("b", "text"), ("id", "integer")], 1, "f")), "column `b` is new");
        assert!(change(&shape(&[("id", "integer")], 2, "g")).contains("was replaced"));
        assert!(change(&shape(&[("id", "integer")], 1, "g")).contains("rewritten or truncated"));
        assert!(change(&Shape { rules: "x".to_owned(), ..before.clone() }).contains("rules are others"));
        assert!(change(&Shape { labels: "x".to_owned(), ..before.clone() }).contains("labels of an enum"));
    }
}
