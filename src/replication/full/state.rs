//! What the target remembers of us, in its schema `bullwork`, which is never dropped.
//!
//! ```text
//! replication_state   one row: what the last run did, how far the target is, and what the copy that serves lacks
//! last_copy           how large the last whole copy was, and how long it took
//! replicated          kind and identity of everything the last run made
//! saved_object        definitions that were taken away and are still to be made again
//! staging, staged_…    what is being built beside the copy that serves
//! generation_key      what was ours when an earlier copy stopped serving
//! generation…         which copies there are, and what belongs to each
//! ```
//!
//! `replicated` and `saved_object` change in the transaction that drops and makes the definitions,
//! so after a crash they tell the truth.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::catalog::Key;
use crate::postgres::{Doing, PostgresError};

const TABLES: &str = "
create schema if not exists bullwork;
create table if not exists bullwork.replication_state (
  one boolean primary key default true check (one),
  state text not null, phase text not null, started_at timestamptz not null, ended_at timestamptz,
  source_snapshot text, tables_done bigint not null default 0, tables_total bigint not null default 0, problem text, lacks text
);
alter table bullwork.replication_state add column if not exists lacks text;
create table if not exists bullwork.staged_schema (name text primary key);
create table if not exists bullwork.last_copy (one boolean primary key default true check (one), bytes bigint not null, ms bigint not null);
create table if not exists bullwork.replicated (kind text not null, identity text not null, primary key (kind, identity));
create table if not exists bullwork.saved_object (
  id bigint generated always as identity primary key, kind text not null, identity text not null, statements text[] not null,
  saved_at timestamptz not null default now(), problem text, unique (kind, identity)
);
create table if not exists bullwork.generation (
  id bigint generated always as identity primary key, made_at timestamptz not null default now(), source_snapshot text,
  serves boolean not null, replaced_at timestamptz
);
create table if not exists bullwork.generation_schema (
  generation bigint not null references bullwork.generation on delete cascade, real text not null, stand_in text not null,
  primary key (generation, real)
);
create table if not exists bullwork.generation_key (
  generation bigint not null references bullwork.generation on delete cascade, kind text not null, identity text not null,
  primary key (generation, kind, identity)
);
create table if not exists bullwork.generation_object (
  generation bigint not null references bullwork.generation on delete cascade, classid oid not null, objid oid not null,
  primary key (generation, classid, objid)
);";

/// How far the target is, once it is changed; before that it is `preparing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A new generation is being built beside the one that serves.
    Staging,
    /// Definitions are made anew, rows are missing.
    Loading,
    /// All rows are there; keys, views or enrichment are missing.
    Finishing,
    /// The new generation serves; something of somebody else may be missing.
    Switched,
}

impl Phase {
    fn text(self) -> &'static str {
        match self {
            Phase::Staging => "staging",
            Phase::Loading => "loading",
            Phase::Finishing | Phase::Switched => "finishing",
        }
    }

    /// What the copy that serves lacks from now on; none: that does not change.
    fn lacks(self) -> Option<Option<&'static str>> {
        match self {
            Phase::Staging => None,
            Phase::Loading => Some(Some("rows")),
            Phase::Finishing => Some(Some("keys, views and indexes")),
            Phase::Switched => Some(None),
        }
    }
}

/// What the run before left.
#[derive(Clone, Debug)]
pub(super) struct Before {
    pub(super) state: String,
    pub(super) phase: String,
    pub(super) started_at: String,
}

/// Whether the target knows us already.
pub(super) async fn exists(target: &Client) -> Result<bool, PostgresError> {
    let sql = "select to_regclass('bullwork.replicated') is not null and to_regclass('bullwork.saved_object') is not null \
               and to_regclass('bullwork.replication_state') is not null and to_regclass('bullwork.generation_object') is not null \
               and to_regclass('bullwork.staged_table') is not null and to_regclass('bullwork.last_copy') is not null \
               and to_regclass('bullwork.staged_schema') is not null and to_regclass('bullwork.generation_key') is not null";
    Ok(target
        .query_one(sql, &[])
        .await
        .doing(|| "looking for the schema `bullwork`, which the target's user must own".to_owned())?
        .get(0))
}

/// Makes the tables that are missing.
pub(super) async fn prepare(target: &Client) -> Result<(), PostgresError> {
    const NEWEST: &str = "select exists (select from pg_attribute where attrelid = to_regclass('bullwork.replication_state') and attname = 'lacks')";
    let doing = || "looking at bullwork.replication_state".to_owned();
    if exists(target).await? && target.query_one(NEWEST, &[]).await.doing(doing)?.get(0) {
        return Ok(());
    }
    target
        .batch_execute(&format!("{TABLES}{}", super::resume::TABLES))
        .await
        .doing(|| "making the schema `bullwork` on the target".to_owned())
}

/// Notes that a run begins and returns what the one before noted.
pub(super) async fn begin(target: &Client, snapshot: &str, total: u64) -> Result<Option<Before>, PostgresError> {
    let doing = || "noting the start in bullwork.replication_state".to_owned();
    let sql = "select state, phase, started_at::timestamptz(0)::text from bullwork.replication_state";
    let before = target.query_opt(sql, &[]).await.doing(doing)?.map(|row| Before {
        state: row.get(0),
        phase: row.get(1),
        started_at: row.get(2),
    });
    let sql = "insert into bullwork.replication_state as s (state, phase, started_at, source_snapshot, tables_total) \
               values ('running', 'preparing', now(), $1, $2) on conflict (one) do update set state = 'running', phase = 'preparing', \
               started_at = now(), ended_at = null, source_snapshot = $1, tables_done = 0, tables_total = $2, problem = null";
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    target.execute(sql, &[&snapshot, &total]).await.doing(doing)?;
    Ok(before)
}

pub(super) async fn enter(target: &Client, phase: Phase, done: u64) -> Result<(), PostgresError> {
    let done = i64::try_from(done).unwrap_or(i64::MAX);
    let doing = || "noting the phase in bullwork.replication_state".to_owned();
    let sql = "update bullwork.replication_state set phase = $1, tables_done = $2";
    target.execute(sql, &[&phase.text(), &done]).await.doing(doing)?;
    if let Some(lacks) = phase.lacks() {
        target.execute("update bullwork.replication_state set lacks = $1", &[&lacks]).await.doing(doing)?;
    }
    Ok(())
}

/// What the copy that serves lacks since a run that replaced it in place was cut off.
pub(super) async fn lacks(target: &Client) -> Result<Option<String>, PostgresError> {
    let doing = || "reading bullwork.replication_state".to_owned();
    let exists = "select to_regclass('bullwork.replication_state') is not null";
    if !target.query_one(exists, &[]).await.doing(doing)?.get::<_, bool>(0) {
        return Ok(None);
    }
    // Tables of earlier versions have no such column.
    let sql = "select to_jsonb(s) ->> 'lacks' from bullwork.replication_state s";
    Ok(target.query_opt(sql, &[]).await.doing(doing)?.and_then(|row| row.get(0)))
}

/// Whether something of somebody else is still to be made again.
pub(super) async fn is_owing(target: &Client) -> Result<bool, PostgresError> {
    let sql = "select exists (select from bullwork.saved_object)";
    Ok(target.query_one(sql, &[]).await.doing(|| "reading bullwork.saved_object".to_owned())?.get(0))
}

/// Notes the end; `problem` makes it a failure.
pub(super) async fn end(target: &Client, done: u64, problem: Option<&str>) -> Result<(), PostgresError> {
    let sql = "update bullwork.replication_state set state = case when $2::text is null then 'complete' else 'failed' end, \
               phase = case when $2::text is null then 'complete' else phase end, lacks = case when $2::text is not null then lacks end, \
               ended_at = now(), tables_done = $1, problem = $2";
    let done = i64::try_from(done).unwrap_or(i64::MAX);
    target.execute(sql, &[&done, &problem]).await.doing(|| "noting the end in bullwork.replication_state".to_owned())?;
    Ok(())
}

/// Notes how long a whole copy took.
pub(super) async fn note_pace(target: &Client, bytes: u64, took: std::time::Duration) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.last_copy (bytes, ms) values ($1, $2) on conflict (one) do update set bytes = $1, ms = $2";
    let whole = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
    target
        .execute(sql, &[&whole(bytes.into()), &whole(took.as_millis())])
        .await
        .doing(|| "writing bullwork.last_copy".to_owned())?;
    Ok(())
}

/// Bytes a second of the last whole copy; none before the first one, or when that was too small to tell.
pub(super) async fn pace(target: &Client) -> Result<Option<f64>, PostgresError> {
    let sql = "select bytes::float8 * 1000 / greatest(ms, 1) from bullwork.last_copy where bytes > 10000000";
    let row = target.query_opt(sql, &[]).await.doing(|| "reading bullwork.last_copy".to_owned())?;
    Ok(row.map(|row| row.get(0)))
}

/// What earlier runs made.
pub(super) async fn recorded(target: &Client) -> Result<HashSet<Key>, PostgresError> {
    let rows = target.query("select kind, identity from bullwork.replicated", &[]).await;
    Ok(rows.doing(|| "reading bullwork.replicated".to_owned())?.into_iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Replaces the list of what we made.
pub(super) async fn record(target: &Client, made: impl IntoIterator<Item = Key>) -> Result<(), PostgresError> {
    let doing = || "writing bullwork.replicated".to_owned();
    let (kinds, identities): (Vec<String>, Vec<String>) = made.into_iter().unzip();
    target.batch_execute("delete from bullwork.replicated").await.doing(doing)?;
    add_record(target, &kinds, &identities).await
}

/// Adds one object to the list.
pub(super) async fn record_also(target: &Client, key: &Key) -> Result<(), PostgresError> {
    add_record(target, std::slice::from_ref(&key.0), std::slice::from_ref(&key.1)).await
}

async fn add_record(target: &Client, kinds: &[String], identities: &[String]) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.replicated select * from unnest($1::text[], $2::text[]) on conflict do nothing";
    target.execute(sql, &[&kinds, &identities]).await.doing(|| "writing bullwork.replicated".to_owned())?;
    Ok(())
}
