//! Whether the copy is the source: proof, and repair of what is not.
//!
//! Both sides work out an order-independent checksum of each table ([`sums`]) and only these numbers travel. What of a table
//! leaves the source is said by its [`Projection`], so masked and subset tables are compared with what they should be.
//!
//! - In the full copy, with `REPLICATION_VERIFY=checksum` ([`Checks`]): the session that copied a table reads it once more in
//!   the same snapshot, the target what it has just committed. A difference fails the run before the switch. The source's
//!   snapshot is held that much longer.
//! - At any time ([`survey`]): every table as both sides have it now.
//! - With repair ([`repair`]): key ranges that differ are found by bisection ([`ranges`]) and brought over, in one transaction a
//!   table. A crash leaves the table as it was.
//!
//! Not compared: generated columns (the target computes them), views, sequences, what only the target has.

mod appended;
mod keys;
mod ranges;
mod repair;
pub(crate) mod sums;
mod survey;
mod there;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;
use tokio_postgres::Client;

use self::sums::{Column, Form, Sums};
use super::full::tables::SourceTable;
use super::projection::Projection;
use super::rules::explain_without_values;
use super::settings::{REPLICATION_VERIFY, TableName};
use crate::config::Reader;
use crate::postgres::{Doing, PostgresError};
use crate::worker::Run;

pub use survey::{Compared, Config, Report, Verdict, verify};

/// How much of a copy is compared with the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// The rows that each side counted while they were copied.
    #[default]
    Counts,
    /// Every value as well.
    Checksum,
}

impl Depth {
    /// Reads `REPLICATION_VERIFY`.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        match reader.text(&REPLICATION_VERIFY).as_str() {
            "counts" => Depth::Counts,
            "checksum" => Depth::Checksum,
            other => {
                reader.problem(REPLICATION_VERIFY.name, format!("`{other}` is neither `counts` nor `checksum`"));
                Depth::Counts
            }
        }
    }
}

/// What values print like depends on these; everything else is the session's ([`super::full::session`]). Only for the
/// checksum's own transaction: what else a target session makes is made as its role's settings say.
const TARGET_SETTINGS: &str =
    "set local timezone = 'UTC'; set local bytea_output = 'hex'; set local extra_float_digits = 3; set local lc_monetary = 'C'";

/// What is compared of a source table.
struct Subject {
    oid: u32,
    name: TableName,
    projection: Projection,
    columns: Vec<Column>,
}

impl Subject {
    /// The one place that says what of a table leaves the source.
    async fn of(source: &Client, table: &SourceTable) -> Result<Subject, PostgresError> {
        Ok(Subject {
            oid: table.oid,
            name: table.name.clone(),
            projection: table.projection.clone(),
            columns: sums::columns(source, table.oid, &table.columns()).await?,
        })
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// The rows that should be on the target, as the source gives them.
    fn wanted(&self) -> String {
        self.projection.select(&format!("only {}", self.name.quoted()), &self.names(), None)
    }

    /// The rows that are on the target, in `place`.
    fn found(&self, place: &TableName) -> String {
        Projection::plain(&self.names()).select(&format!("only {}", place.quoted()), &self.names(), None)
    }

    async fn source_sums(&self, form: Form, source: &Client) -> Result<Sums, PostgresError> {
        let row = source.query_one(&form.sums(&self.wanted(), &self.columns, None), &[]).await;
        let doing = || format!("checksumming table `{}` on the source", self.name);
        let row = match row {
            Err(error) if !self.projection.is_plain() => {
                return Err(PostgresError::Statement { doing: doing(), reason: explain_without_values(&error) });
            }
            row => row.doing(doing)?,
        };
        Ok(Sums::of(&row, 0))
    }

    /// In a transaction with [`TARGET_SETTINGS`].
    async fn target_sums(&self, form: Form, target: &Client, place: &TableName) -> Result<Sums, PostgresError> {
        let row = target.query_one(&form.sums(&self.found(place), &self.columns, None), &[]).await;
        Ok(Sums::of(&row.doing(|| format!("checksumming table `{}` on the target", self.name))?, 0))
    }
}

/// The checks of a full copy.
pub(super) struct Checks {
    form: Form,
    tables: AtomicU64,
    differing: Mutex<Vec<String>>,
}

impl Checks {
    /// None when rows are only counted.
    pub(super) async fn of_run(depth: Depth, source: &Client, target: &Client) -> Result<Option<Checks>, PostgresError> {
        if depth == Depth::Counts {
            return Ok(None);
        }
        let form = Form::agreed(source, target).await?;
        Ok(Some(Checks { form, tables: AtomicU64::new(0), differing: Mutex::default() }))
    }

    /// Compares a table that was just copied to `place`, both sides at once; whether they are equal. `source` is in the run's snapshot.
    pub(super) async fn compare(
        &self,
        run: &Run,
        table: &SourceTable,
        place: &TableName,
        source: &Client,
        target: &mut Client,
    ) -> anyhow::Result<bool> {
        let start = Instant::now();
        let subject = Subject::of(source, table).await?;
        let tx = target.transaction().await.doing(|| format!("checksumming table `{}` on the target", table.name))?;
        tx.batch_execute(TARGET_SETTINGS).await.doing(|| "setting up a checksum".to_owned())?;
        let (wanted, found) =
            tokio::try_join!(subject.source_sums(self.form, source), subject.target_sums(self.form, tx.client(), place))?;
        tx.rollback().await.doing(|| format!("checksumming table `{}` on the target", table.name))?;
        let item = table.name.to_string();
        let equal = wanted == found;
        let fields = json!({"item_kind": "CHECKSUM", "item": item, "table_name": item, "rows": wanted.rows, "equal": equal,
                            "duration_ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)});
        if equal {
            run.info_with(format!("CHECKSUM {item}: equal"), fields);
        } else {
            let told = if wanted.rows == found.rows {
                format!("`{item}` ({} rows, some of other content)", found.rows)
            } else {
                format!("`{item}` ({} rows on the source, {} on the target)", wanted.rows, found.rows)
            };
            run.warn(format!("CHECKSUM {told} differs"));
            self.differing.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        }
        self.tables.fetch_add(1, Ordering::Relaxed);
        Ok(equal)
    }

    /// # Errors
    /// When a table differed; all are named.
    pub(super) fn refuse_differences(self, run: &Run) -> anyhow::Result<()> {
        let mut differing = self.differing.into_inner().unwrap_or_else(PoisonError::into_inner);
        differing.sort();
        anyhow::ensure!(
            differing.is_empty(),
            "what arrived on the target is not what the source has, by checksum: table {}; look for triggers that something on the \
             target puts on new tables, and for values whose text the two servers write differently",
            differing.join(", ")
        );
        run.info(format!("checksums of {} tables are equal on both sides", self.tables.into_inner()));
        Ok(())
    }
}
