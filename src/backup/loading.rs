//! Groups of fixtures into tables that are there, as Django's `loaddata` does it: a row whose key is taken is
//! overwritten, every other one is added, and sequences go on behind the highest key.
//!
//! All groups are one transaction, in the archive's order, in which tables stand after those that they refer to. Where tables
//! refer to each other in a circle, or to themselves, the keys are looked at when all rows are there. Values are
//! read by the server itself, from the texts that it had written.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_postgres::Client;

use super::fixture::{self, Group};
use super::manifest::{Manifest, Member, MemberKind};
use super::opening::{Event, OpenError, Opening};
use super::restore::Request;
use super::rows::Rows;
use super::table_shape::Shape;
use crate::postgres::{Connection, Doing, PostgresError, quote_identifier};
use crate::worker::Run;

/// Rows are sent in batches of about this many bytes.
const BATCH: usize = 1 << 20;

/// Values read as they were written, whatever the role's settings are.
const BEGIN: &str = "begin;
    set local search_path = '';
    set local datestyle = 'ISO, MDY';
    set local intervalstyle = 'postgres';
    set local timezone = 'UTC';
    set local lc_monetary = 'C';
    set local standard_conforming_strings = on;
    set local statement_timeout = 0;
    set local lock_timeout = '60s';
    set local idle_in_transaction_session_timeout = 0;
    set constraints all deferred;";
const CIRCLES: &str = "select conrelid::regclass::text, conname::text, conrelid, confrelid from pg_constraint \
    where contype = 'f' and not condeferrable and conparentid = 0 and conrelid = any($1) and confrelid = any($1)";

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such group.
    #[error("the archive has no fixtures of group `{group}`; it has: {known}")]
    UnknownGroup {
        /// As it was asked for.
        group: String,
        /// Those that there are.
        known: String,
    },
    /// There is no such table.
    #[error("the database has no table `{0}`, which the fixtures need; make it first")]
    MissingTable(String),
    /// A field that is no column.
    #[error(
        "field `{field}` of the fixtures is no column of `{table}`; set BACKUP_FIXTURES as it was where the archive was made"
    )]
    UnknownField {
        /// The table.
        table: String,
        /// The field.
        field: String,
    },
    /// There are rows already.
    #[error("table `{0}` has rows already; say --into-nonempty to overwrite those with the same keys and keep the others")]
    HasRows(String),
    /// The member is no such fixture.
    #[error("the fixture `{member}` cannot be loaded: {reason}")]
    Shape {
        /// Which.
        member: String,
        /// Why.
        reason: String,
    },
    /// The server refused.
    #[error("loading fixtures, which left nothing behind")]
    Postgres(#[from] PostgresError),
    /// The archive cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl LoadError {
    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            LoadError::Postgres(error) => !matches!(error, PostgresError::Connect { .. }),
            LoadError::Open(error) => error.is_final(),
            _ => true,
        }
    }
}

fn fixtures(manifest: &Manifest) -> impl Iterator<Item = (&str, &Member)> {
    let fixtures = manifest.members.iter().filter(|member| member.kind == MemberKind::Fixture);
    fixtures.filter_map(|member| Some((member.group.as_deref()?, member)))
}

/// Whether the archive has all of `groups`. Those without rows have no fixture, and are known all the same.
pub(super) fn check_groups(manifest: &Manifest, groups: &[String]) -> Result<(), LoadError> {
    let known: Vec<&str> =
        fixtures(manifest).map(|(group, _)| group).chain(manifest.empty_groups.iter().map(String::as_str)).collect();
    match groups.iter().find(|group| !known.contains(&group.as_str())) {
        None => Ok(()),
        Some(group) => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(LoadError::UnknownGroup { group: group.clone(), known })
        }
    }
}

/// Loads the chosen groups; the number of rows.
pub(super) async fn load(
    run: &Run,
    session: Connection,
    mut opening: Opening<'_>,
    manifest: &Manifest,
    request: &Request,
    groups: &[Group],
) -> Result<u64, LoadError> {
    let client: &Client = &session;
    client.batch_execute(BEGIN).await.doing(|| "beginning the transaction".to_owned())?;
    let chosen = |group: &str| request.fixtures.iter().any(|wanted| wanted == group);
    let mut shapes: HashMap<&str, Vec<Shape>> = HashMap::new();
    let mut order: Vec<u32> = Vec::new();
    for (group, member) in fixtures(manifest).filter(|(group, _)| chosen(group)) {
        let mut of_member = Vec::new();
        for table in &member.tables {
            let shape = Shape::read(client, table, fixture::fields(groups, group, table)).await?;
            if !request.into_nonempty && shape.has_rows(client).await? {
                return Err(LoadError::HasRows(table.clone()));
            }
            order.push(shape.oid);
            of_member.push(shape);
        }
        shapes.insert(&member.name, of_member);
    }
    let circles = open_circles(client, &order).await?;
    let mut loading: Option<Loading<'_>> = None;
    let mut rows = 0;
    while let Some(event) = opening.next().await? {
        match event {
            Event::Begin(number) => {
                let member = opening.member(number);
                loading = shapes.get(member.name.as_str()).map(|shapes| Loading::new(client, member, shapes));
            }
            Event::Bytes(bytes) => {
                if let Some(loading) = &mut loading {
                    loading.feed(&bytes).await?;
                    run.progress(|p| (p.bytes, p.rows) = (opening.read(), rows + loading.loaded));
                }
            }
            Event::End(_) => {
                if let Some(loading) = loading.take() {
                    let (name, loaded) = (loading.member.name.clone(), loading.finish().await?);
                    run.info(format!("{name}: {loaded} rows"));
                    rows += loaded;
                }
            }
        }
    }
    close_circles(client, &circles).await?;
    for shape in shapes.values().flatten() {
        shape.advance_sequences(client).await?;
    }
    // Only here, where the archive was read to its end and was what its manifest tells.
    client.batch_execute("commit").await.doing(|| "committing the fixtures".to_owned())?;
    Ok(rows)
}

/// Lets keys that point to rows which come later be looked at when all are there; those keys, by table and name.
async fn open_circles(client: &Client, order: &[u32]) -> Result<Vec<(String, String)>, PostgresError> {
    let doing = || "looking for tables that refer to each other in a circle".to_owned();
    let place = |oid: u32| order.iter().position(|at| *at == oid);
    let rows = client.query(CIRCLES, &[&order]).await.doing(doing)?;
    let late = rows.iter().filter(|row| place(row.get(3)) >= place(row.get(2)));
    let circles: Vec<(String, String)> = late.map(|row| (row.get(0), row.get(1))).collect();
    for (table, key) in &circles {
        let sql = format!("alter table {table} alter constraint {} deferrable initially deferred", quote_identifier(key));
        client.batch_execute(&sql).await.doing(|| format!("putting off the key `{key}` of {table}"))?;
    }
    Ok(circles)
}

async fn close_circles(client: &Client, circles: &[(String, String)]) -> Result<(), PostgresError> {
    client.batch_execute("set constraints all immediate").await.doing(|| "checking the keys".to_owned())?;
    for (table, key) in circles {
        let sql = format!("alter table {table} alter constraint {} not deferrable", quote_identifier(key));
        client.batch_execute(&sql).await.doing(|| format!("giving the key `{key}` of {table} its rule back"))?;
    }
    Ok(())
}

/// What is looked at in a row; its values are the server's business.
#[derive(Deserialize)]
struct Row<'r> {
    #[serde(borrow)]
    model: Cow<'r, str>,
    fields: BTreeMap<String, IgnoredAny>,
}

/// A fixture being loaded. The tables of its rows are those that the manifest tells, in that order.
struct Loading<'l> {
    client: &'l Client,
    member: &'l Member,
    shapes: &'l [Shape],
    rows: Rows,
    /// How many tables were begun.
    begun: usize,
    model: String,
    fields: Vec<String>,
    sql: String,
    batch: String,
    loaded: u64,
}

impl<'l> Loading<'l> {
    fn new(client: &'l Client, member: &'l Member, shapes: &'l [Shape]) -> Self {
        let (model, fields, sql, batch) = (String::new(), Vec::new(), String::new(), String::new());
        Loading { client, member, shapes, rows: Rows::default(), begun: 0, model, fields, sql, batch, loaded: 0 }
    }

    fn wrong(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Shape { member: self.member.name.clone(), reason: reason.into() }
    }

    async fn feed(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let mut found = Vec::new();
        self.rows.feed(bytes, |row| found.push(row)).map_err(|reason| self.wrong(reason))?;
        for row in found {
            self.take(row).await?;
        }
        Ok(())
    }

    async fn take(&mut self, row: Vec<u8>) -> Result<(), LoadError> {
        let text = String::from_utf8(row).map_err(|_| self.wrong("a row is not UTF-8"))?;
        let row: Row<'_> = serde_json::from_str(&text).map_err(|e| self.wrong(format!("a row is none: {e}")))?;
        let other_model = self.begun == 0 || row.model != self.model;
        if other_model || !row.fields.keys().eq(&self.fields) {
            self.flush().await?;
            if other_model {
                self.begun += 1;
                self.model = row.model.into_owned();
            }
            let Some(shape) = self.shapes.get(self.begun - 1) else {
                let told = self.member.tables.join(", ");
                return Err(self.wrong(format!("it has rows of more tables than its manifest tells ({told})")));
            };
            self.fields = row.fields.into_keys().collect();
            self.sql =
                shape.insert(&self.fields).map_err(|field| LoadError::UnknownField { table: shape.shown.clone(), field })?;
        }
        self.batch.push(if self.batch.is_empty() { '[' } else { ',' });
        self.batch.push_str(&text);
        self.loaded += 1;
        if self.batch.len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), LoadError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.batch);
        rows.push(']');
        let table = &self.shapes[self.begun - 1].shown;
        self.client
            .execute(&self.sql, &[&rows])
            .await
            .doing(|| format!("loading rows of `{}` into table `{table}`", self.model))?;
        Ok(())
    }

    async fn finish(mut self) -> Result<u64, LoadError> {
        self.flush().await?;
        if self.begun != self.shapes.len() {
            return Err(self.wrong("it has rows of fewer tables than its manifest tells"));
        }
        let name = &self.member.name;
        self.rows.finish().map_err(|reason| LoadError::Shape { member: name.clone(), reason })?;
        Ok(self.loaded)
    }
}
