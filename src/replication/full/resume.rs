//! Goes on with what a run that was cut off had built beside the copy that serves.
//!
//! Each table's rows are committed together with a note that they are whole (`bullwork.staged_table`). The next run
//! takes these over when it would make the very same definitions ([`digest`]), and then
//!
//! | [`Resume`] | when the source | then |
//! |---|---|---|
//! | `consistent` | shows the same snapshot: nobody wrote since | goes on; all rows are of one moment |
//! | `consistent` | was written | starts over: the exported snapshot died with the run that held it |
//! | `relaxed` | is the same server and database | goes on; the tables that were there are of the earlier moment |
//!
//! What comes after the rows (keys, views, triggers …) is made again, and what is there already counts as made:
//! nobody else works in these schemas.

use std::collections::{HashMap, HashSet};

use sha2::Digest;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{Key, OWN_SCHEMA};
use super::source::Source;
use crate::postgres::{Doing, PostgresError};
use crate::replication::ddl::Kind;
use crate::replication::incremental::watermark::SourceState;
use crate::replication::settings::TableName;
use crate::replication::verify::Depth;
use crate::worker::Run;

/// What a run makes of the one before it that was cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// All tables are of one moment of the source.
    #[default]
    Consistent,
    /// What is there is kept, though the source moved on.
    Relaxed,
}

/// Tables that are whole already, with their rows.
pub(super) type Done = HashMap<TableName, u64>;

pub(super) const TABLES: &str = "
create table if not exists bullwork.staging (
  one boolean primary key default true check (one),
  digest text not null, source_snapshot text not null, source_identity text not null, begun_at timestamptz not null default now()
);
create table if not exists bullwork.staged_table (
  table_schema text not null, table_name text not null, rows bigint not null, primary key (table_schema, table_name)
);";

/// What the definitions and columns come to: two runs with the same would make the same tables.
pub(super) fn digest(source: &Source, present: &HashSet<Key>, verify: Depth) -> String {
    let mut hash = sha2::Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION"));
    // What was only counted is not taken for proven.
    add(&format!("{verify:?}"));
    // Positions of sequences move all the time and are set again.
    for entry in source.entries.iter().filter(|e| e.kind != Kind::SequenceValue) {
        add(&entry.sql);
    }
    // They come by size, which changes by itself.
    let mut tables: Vec<_> = source.tables.iter().collect();
    tables.sort_by_key(|table| table.oid);
    for table in tables {
        add(&table.name.quoted());
        table.columns().iter().for_each(|column| add(column));
        // What was copied as it is must not be taken for masked.
        add(&table.rules);
    }
    // Our own schema is there from the first run on.
    let inside = format!("{OWN_SCHEMA}.");
    let own = |(_, identity): &&Key| {
        identity == OWN_SCHEMA || identity.starts_with(&inside) || identity.contains(&format!(" on {inside}"))
    };
    let mut present: Vec<&Key> = present.iter().filter(|key| !own(key)).collect();
    present.sort();
    for (kind, identity) in present {
        add(kind);
        add(identity);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tables that can be taken over; nothing when the run starts over, which is told with the reason.
pub(super) async fn look(
    run: &Run,
    target: &Client,
    digest: &str,
    now: &SourceState,
    policy: Resume,
) -> Result<Option<Done>, PostgresError> {
    let doing = || "reading bullwork.staging".to_owned();
    let sql = "select digest, source_snapshot, source_identity, begun_at::timestamptz(0)::text from bullwork.staging";
    let Some(row) = target.query_opt(sql, &[]).await.doing(doing)? else { return Ok(None) };
    let (before, snapshot, identity, begun): (String, String, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let sql = "select table_schema, table_name, rows from bullwork.staged_table";
    let rows = target.query(sql, &[]).await.doing(doing)?;
    let done: Done = rows
        .into_iter()
        .map(|row| (TableName { schema: row.get(0), name: row.get(1) }, u64::try_from(row.get::<_, i64>(2)).unwrap_or(0)))
        .collect();
    if done.is_empty() {
        return Ok(None);
    }
    let same_moment = snapshot == now.snapshot;
    let reason = if before != digest {
        "the definitions, the settings or the program changed since"
    } else if identity != now.identity {
        "it read another source, or the source was promoted or restored"
    } else if !same_moment && policy == Resume::Consistent {
        "the source was written since, and all tables are to be of one moment (REPLICATION_RESUME=relaxed would keep them)"
    } else {
        let moment = if same_moment { "nobody has written to the source since" } else { "their rows are of that moment" };
        run.info(format!(
            "going on with the run that began at {begun} and was cut off: {} tables are whole; {moment}",
            done.len()
        ));
        return Ok(Some(done));
    };
    run.info(format!("starting over: a run that began at {begun} was cut off with {} tables whole, but {reason}", done.len()));
    Ok(None)
}

/// Notes that definitions are staged; in the transaction that makes them.
pub(super) async fn begin(target: &Client, digest: &str, now: &SourceState) -> Result<(), PostgresError> {
    let doing = || "writing bullwork.staging".to_owned();
    forget(target).await?;
    let sql = "insert into bullwork.staging (digest, source_snapshot, source_identity) values ($1, $2, $3)";
    target.execute(sql, &[&digest, &now.snapshot, &now.identity]).await.doing(doing)?;
    Ok(())
}

/// Notes that a table's rows are whole; in the transaction that wrote them.
pub(super) async fn note(target: &Client, table: &TableName, rows: u64) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.staged_table values ($1, $2, $3)";
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    target.execute(sql, &[&table.schema, &table.name, &rows]).await.doing(|| format!("noting that table `{table}` is whole"))?;
    Ok(())
}

/// Nothing is staged any more.
pub(super) async fn forget(target: &Client) -> Result<(), PostgresError> {
    let sql = "delete from bullwork.staged_table; delete from bullwork.staging";
    target.batch_execute(sql).await.doing(|| "writing bullwork.staging".to_owned())
}

/// Indexes and constraints that stand in the schemas of what is staged.
pub(super) async fn built(target: &Client, source: &Source) -> Result<HashSet<TableName>, PostgresError> {
    const SQL: &str = "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                       where n.nspname = any($1) and c.relkind in ('i', 'I') \
                       union select n.nspname, k.conname from pg_constraint k join pg_namespace n on n.oid = k.connamespace where n.nspname = any($1)";
    let schemas: Vec<&str> = source.relocation.schemas().map(|(_, stand_in)| stand_in).collect();
    let rows = target.query(SQL, &[&schemas]).await.doing(|| "listing the indexes that are built".to_owned())?;
    Ok(rows.into_iter().map(|row| TableName { schema: row.get(0), name: row.get(1) }).collect())
}

/// The statement failed because it was done before.
pub(super) fn is_done(error: &tokio_postgres::Error, kind: Kind) -> bool {
    error.code().is_some_and(|code| match kind {
        // A second primary key.
        Kind::Key if *code == SqlState::INVALID_TABLE_DEFINITION => true,
        _ => [SqlState::DUPLICATE_OBJECT, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_FUNCTION].contains(code),
    })
}
