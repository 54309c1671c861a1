//! What the target remembers of the last run, and what that says about the next one.
//!
//! One row a table in `bullwork.incremental_watermark` on the target, written in the transaction
//! that writes the rows:
//!
//! ```text
//! table_schema, table_name   the table
//! target_oid                 the target's table itself: a replaced one is not trusted
//! key_columns, last_key      the key, and its highest value (NULL for a key without order)
//! source_snapshot            the source's snapshot, xmin:xmax:… in 64-bit transaction numbers
//! source_identity            system identifier / timeline / database; `?` where not readable
//! replicated_at              when
//! rules                      which rules its rows were copied under (super::super::rules)
//! ```
//!
//! The identity holds the timeline because a promoted standby gives transaction numbers a second
//! time that the lost primary had given before.

use crate::postgres::{Connection, Doing, PostgresError};
use crate::replication::settings::TableName;

use super::catalogue::Relation;
use super::mapping::Plan;

/// Beyond half of the 32-bit circle, "before" and "after" mean nothing; this leaves a margin.
const FARTHEST: i64 = 2_000_000_000;

const TABLE_EXISTS: &str = "select pg_catalog.to_regclass('bullwork.incremental_watermark') is not null";
/// Tables of earlier versions have no such column.
const RULES_EXIST: &str = "select exists (select from pg_catalog.pg_attribute
    where attrelid = 'bullwork.incremental_watermark'::regclass and attname = 'rules' and not attisdropped)";
/// Asked before, because `if not exists` wants the right to create even when there is nothing to do.
const SCHEMA_EXISTS: &str = "select pg_catalog.to_regnamespace('bullwork') is not null";
const CREATE_TABLE: &str = "create table if not exists bullwork.incremental_watermark (
    table_schema text not null,
    table_name text not null,
    target_oid oid not null,
    key_columns text[] not null,
    last_key text,
    source_snapshot text not null,
    source_identity text not null,
    replicated_at timestamptz not null default now(),
    rules text,
    primary key (table_schema, table_name))";

/// Where the source stands: our snapshot of it and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `xmin:xmax:…`.
    pub snapshot: String,
    /// Next transaction number at the snapshot, 64 bits.
    pub xmax: i64,
    /// What this source is.
    pub identity: String,
}

/// What the last run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The target's table.
    pub target_oid: u32,
    /// Columns of the key.
    pub key_columns: Vec<String>,
    /// Highest key on the target.
    pub last_key: Option<i64>,
    /// Snapshot of the source.
    pub snapshot: String,
    /// The source.
    pub identity: String,
    /// Rules that its rows were copied under; nothing: none were known.
    pub rules: Option<String>,
}

/// Which rows of a table may have appeared below the watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Late {
    /// The target's table is empty: everything is new.
    FirstLoad,
    /// Rows whose inserting transaction is at or above this one (64 bits).
    Since(i64),
    /// Any row, for this reason.
    Everything(&'static str),
}

/// The lowest running transaction of a snapshot in text form.
fn xmin(snapshot: &str) -> Option<i64> {
    snapshot.split(':').next()?.parse().ok()
}

/// What must be compared below the watermark; pure, so that every case has a test.
#[must_use]
pub fn decide(
    stored: Option<&Watermark>,
    now: &SourceState,
    plan: &Plan,
    source: &Relation,
    target_oid: u32,
    before: Option<i64>,
) -> Late {
    let Some(stored) = stored else {
        return Late::Everything("no earlier run left a snapshot");
    };
    if source.foreign_parts {
        return Late::Everything("rows of foreign partitions do not tell who wrote them");
    }
    if stored.identity != now.identity {
        return Late::Everything("the last run read another source, or the source was promoted or restored");
    }
    if stored.target_oid != target_oid {
        return Late::Everything("the target's table was replaced");
    }
    if stored.key_columns != plan.key.columns {
        return Late::Everything("the key is another one now");
    }
    if stored.last_key > before {
        return Late::Everything("the target's highest key is below the one it had");
    }
    match xmin(&stored.snapshot) {
        None => Late::Everything("the stored snapshot cannot be read"),
        Some(xmin) if xmin > now.xmax => {
            Late::Everything("the stored snapshot is ahead of the source, which was restored from a backup or lags behind")
        }
        Some(xmin) if now.xmax - xmin >= FARTHEST => Late::Everything("the stored snapshot is two billion transactions old"),
        Some(xmin) => Late::Since(xmin),
    }
}

impl SourceState {
    /// Takes the snapshot of the source's transaction.
    pub(in crate::replication) async fn read(source: &Connection) -> Result<Self, PostgresError> {
        let row = source
            .query_one("select s::text, txid_snapshot_xmax(s) from txid_current_snapshot() s", &[])
            .await
            .doing(|| "taking the source's snapshot".to_owned())?;
        Ok(SourceState { snapshot: row.get(0), xmax: row.get(1), identity: identity(source).await? })
    }
}

async fn text(connection: &Connection, sql: &str) -> Result<Option<String>, PostgresError> {
    connection.query_one(sql, &[]).await.doing(|| "reading which server this is".to_owned()).map(|row| row.get(0))
}

async fn flag(connection: &Connection, sql: &str) -> Result<bool, PostgresError> {
    connection.query_one(sql, &[]).await.doing(|| "reading what is allowed".to_owned()).map(|row| row.get(0))
}

async fn system(connection: &Connection) -> Result<Option<String>, PostgresError> {
    // Asked first: calling it without the right would end the transaction.
    if !flag(connection, "select has_function_privilege('pg_catalog.pg_control_system()', 'execute')").await? {
        return Ok(None);
    }
    text(connection, "select system_identifier::text from pg_catalog.pg_control_system()").await
}

async fn identity(source: &Connection) -> Result<String, PostgresError> {
    let timeline = if flag(source, "select pg_catalog.pg_is_in_recovery()").await? {
        if flag(source, "select has_function_privilege('pg_catalog.pg_control_checkpoint()', 'execute')").await? {
            text(source, "select timeline_id::text from pg_catalog.pg_control_checkpoint()").await?
        } else {
            None
        }
    } else {
        let sql = "select ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int8::text";
        text(source, sql).await?
    };
    let database = text(source, "select oid::text from pg_catalog.pg_database where datname = current_database()").await?;
    let known = |part: Option<String>| part.unwrap_or_else(|| "?".to_owned());
    Ok(format!("{}/{}/{}", known(system(source).await?), known(timeline), known(database)))
}

/// Makes the table of watermarks when it is absent.
pub(super) async fn prepare(target: &Connection) -> Result<(), PostgresError> {
    if flag(target, TABLE_EXISTS).await? {
        if !flag(target, RULES_EXIST).await? {
            let doing = || "adding column `rules` to bullwork.incremental_watermark on the target".to_owned();
            let add = "alter table bullwork.incremental_watermark add column if not exists rules text";
            target.batch_execute(add).await.doing(doing)?;
        }
        return Ok(());
    }
    let doing = || "making schema `bullwork` on the target, where watermarks are kept".to_owned();
    if !flag(target, SCHEMA_EXISTS).await? {
        target.batch_execute("create schema if not exists bullwork").await.doing(doing)?;
    }
    target.batch_execute(CREATE_TABLE).await.doing(doing)
}

/// What the last run left for `table`.
pub(in crate::replication) async fn load(target: &Connection, table: &TableName) -> Result<Option<Watermark>, PostgresError> {
    let sql = "select target_oid, key_columns, last_key, source_snapshot, source_identity, rules
        from bullwork.incremental_watermark where table_schema = $1 and table_name = $2";
    let row = target
        .query_opt(sql, &[&table.schema, &table.name])
        .await
        .doing(|| format!("reading the watermark of table `{table}`"))?;
    Ok(row.map(|row| Watermark {
        target_oid: row.get(0),
        key_columns: row.get(1),
        last_key: row.get::<_, Option<String>>(2).and_then(|key| key.parse().ok()),
        snapshot: row.get(3),
        identity: row.get(4),
        rules: row.get(5),
    }))
}

/// Remembers this run; committed with its rows.
pub(super) async fn store(target: &Connection, table: &TableName, mark: &Watermark) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.incremental_watermark
            (table_schema, table_name, target_oid, key_columns, last_key, source_snapshot, source_identity, rules)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        on conflict (table_schema, table_name) do update set target_oid = excluded.target_oid,
            key_columns = excluded.key_columns, last_key = excluded.last_key, source_snapshot = excluded.source_snapshot,
            source_identity = excluded.source_identity, rules = excluded.rules, replicated_at = now()";
    let last_key = mark.last_key.map(|key| key.to_string());
    target
        .execute(
            sql,
            &[
                &table.schema,
                &table.name,
                &mark.target_oid,
                &mark.key_columns,
                &last_key,
                &mark.snapshot,
                &mark.identity,
                &mark.rules,
            ],
        )
        .await
        .doing(|| format!("storing the watermark of table `{table}`"))?;
    Ok(())
}

impl Watermark {
    /// The watermark that this run leaves.
    #[must_use]
    pub fn new(plan: &Plan, target_oid: u32, last_key: Option<i64>, state: &SourceState) -> Self {
        Watermark {
            target_oid,
            key_columns: plan.key.columns.clone(),
            last_key,
            snapshot: state.snapshot.clone(),
            identity: state.identity.clone(),
            rules: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::Key;
    use super::*;
    use crate::replication::projection::Projection;

    #[test]
    fn a_snapshot_that_says_nothing_leads_to_a_healing_pass() {
        let plan = Plan {
            table: TableName::public("t"),
            projection: Projection::plain(&["id".to_owned()]),
            binary: true,
            key: Key { columns: vec!["id".to_owned()], ordered: true, unique: true },
            notes: vec![],
        };
        let now = SourceState { snapshot: "900:950:910".to_owned(), xmax: 950, identity: "7/1/5".to_owned() };
        let stored = Watermark::new(
            &plan,
            42,
            Some(10),
            &SourceState { snapshot: "800:805:801,802".to_owned(), xmax: 805, identity: "7/1/5".to_owned() },
        );
        let decide = |stored: Option<&Watermark>, now: &SourceState, oid, before| {
            decide(stored, now, &plan, &Relation::default(), oid, before)
        };
        assert_eq!(decide(Some(&stored), &now, 42, Some(10)), Late::Since(800));
        assert_eq!(decide(Some(&stored), &now, 42, Some(12)), Late::Since(800));
        let healed = |late: Late| matches!(late, Late::Everything(_));
        assert!(healed(decide(None, &now, 42, Some(10))));
        assert!(healed(decide(Some(&stored), &now, 43, Some(10))), "another target table");
        assert!(healed(decide(Some(&stored), &now, 42, Some(9))), "the target lost rows");
        assert!(healed(decide(Some(&stored), &now, 42, None)), "the target lost rows");
        let restored = SourceState { xmax: 700, ..now.clone() };
        assert!(healed(decide(Some(&stored), &restored, 42, Some(10))), "the source went back");
        let promoted = SourceState { identity: "7/2/5".to_owned(), ..now.clone() };
        assert!(healed(decide(Some(&stored), &promoted, 42, Some(10))), "another timeline");
        let ages_later = SourceState { xmax: 800 + FARTHEST, ..now.clone() };
        assert!(healed(decide(Some(&stored), &ages_later, 42, Some(10))), "too far for 32 bits");
        let broken = Watermark { snapshot: "nonsense".to_owned(), ..stored };
        assert!(healed(decide(Some(&broken), &now, 42, Some(10))));
    }
}
