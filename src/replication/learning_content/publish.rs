//! From the temporary tables to the ones that people read, in one transaction.
//!
//! A table whose columns are the mapping's gets the difference. One that does not exist is made. One
//! whose columns differ is dropped and made again, and what hung on it with it ([`rebuild`]).

use serde_json::{Value, json};
use tokio_postgres::Transaction;

use super::ContentError;
use super::mapping::{Mapping, Table};
use super::rebuild;
use super::stage::staged;
use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, quote_qualified};
use crate::worker::Run;

/// Plain readers hold nobody up; only a table that is made again waits for them, this long.
const LOCK_TIMEOUT: &str = "60s";

/// What one load changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Rows in all tables now.
    pub rows: u64,
    /// New ones among them.
    pub inserted: u64,
    /// Changed ones among them.
    pub updated: u64,
    /// Rows that are gone.
    pub deleted: u64,
}

impl Published {
    /// As a job's result.
    #[must_use]
    pub fn to_json(self) -> Value {
        json!({"rows": self.rows, "inserted": self.inserted, "updated": self.updated, "deleted": self.deleted})
    }

    fn add(&mut self, other: Published) {
        self.rows += other.rows;
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

/// The table as people read it, quoted.
pub(super) fn public(table: &Table) -> String {
    quote_qualified("public", &table.name)
}

pub(super) async fn publish(run: &Run, session: &mut Connection, mapping: &Mapping) -> Result<Published, ContentError> {
    let transaction = session.client_mut().transaction().await.doing(|| "beginning the transaction".to_owned())?;
    transaction
        .batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        .await
        .doing(|| "setting the lock timeout".to_owned())?;
    let mut all = Published::default();
    for table in &mapping.tables {
        let changed = match shape(&transaction, table).await? {
            Shape::Absent => make(&transaction, table).await?,
            Shape::Same => difference(&transaction, table).await?,
            Shape::Different => {
                run.warn(format!("the columns of `{}` are not those of the mapping: it is made again", table.name));
                rebuild::rebuild(run, &transaction, table).await?
            }
        };
        run.info_with(
            format!("{}: {} rows", table.name, changed.rows),
            json!({"table_name": table.name, "rows": changed.rows, "inserted": changed.inserted, "updated": changed.updated, "deleted": changed.deleted}),
        );
        all.add(changed);
    }
    transaction.commit().await.doing(|| "committing the learning content".to_owned())?;
    Ok(all)
}

enum Shape {
    Absent,
    Same,
    Different,
}

/// Whether both relations have the same columns in the same order, and the second one `id` as its
/// primary key. No locks but those of reading the catalogue.
const SAME_SHAPE: &str = "
    WITH columns AS (
        SELECT attrelid, array_agg(ARRAY[attname::text, format_type(atttypid, atttypmod), attnotnull::text] ORDER BY attnum) AS list
        FROM pg_catalog.pg_attribute
        WHERE attrelid = ANY (ARRAY[$1::oid, $2::oid]) AND attnum > 0 AND NOT attisdropped
        GROUP BY attrelid
    )
    SELECT (SELECT count(DISTINCT list) = 1 AND count(*) = 2 FROM columns)
       AND EXISTS (
            SELECT FROM pg_catalog.pg_index i
            JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = $2::oid AND i.indisprimary AND i.indnkeyatts = 1 AND a.attname = 'id')";

async fn shape(transaction: &Transaction<'_>, table: &Table) -> Result<Shape, ContentError> {
    let looking = || format!("looking at `{}`", table.name);
    let found = transaction
        .query_opt(
            "SELECT c.oid, c.relkind = 'r' FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relname = $1",
            &[&table.name],
        )
        .await
        .doing(looking)?;
    let Some(found) = found else { return Ok(Shape::Absent) };
    let (existing, is_table): (u32, bool) = (found.get(0), found.get(1));
    if !is_table {
        return Err(ContentError::NotATable(table.name.clone()));
    }
    let wanted: u32 = transaction.query_one("SELECT to_regclass($1)::oid", &[&staged(table)]).await.doing(looking)?.get(0);
    let same: bool = transaction.query_one(SAME_SHAPE, &[&wanted, &existing]).await.doing(looking)?.get(0);
    Ok(if same { Shape::Same } else { Shape::Different })
}

/// Makes the table with its rows and indexes. Locks only what nobody sees yet.
pub(super) async fn make(transaction: &Transaction<'_>, table: &Table) -> Result<Published, ContentError> {
    let (name, columns) = (public(table), table.column_list());
    transaction
        .batch_execute(&format!("CREATE TABLE {name} ({}, PRIMARY KEY (\"id\"))", table.definition()))
        .await
        .doing(|| format!("creating `{}`", table.name))?;
    let rows = transaction
        .execute(&format!("INSERT INTO {name} ({columns}) SELECT {columns} FROM {}", staged(table)), &[])
        .await
        .doing(|| format!("filling `{}`", table.name))?;
    indexes(transaction, table).await?;
    transaction.batch_execute(&format!("ANALYZE {name}")).await.doing(|| format!("analyzing `{}`", table.name))?;
    Ok(Published { rows, inserted: rows, ..Published::default() })
}

/// Makes the two tables equal, touching only rows that differ. Row locks only: readers go on.
async fn difference(transaction: &Transaction<'_>, table: &Table) -> Result<Published, ContentError> {
    let (name, from, columns) = (public(table), staged(table), table.column_list());
    let comparing = || format!("updating `{}`", table.name);
    let deleted = transaction
        .execute(
            &format!("DELETE FROM {name} AS old WHERE NOT EXISTS (SELECT FROM {from} AS new WHERE new.\"id\" = old.\"id\")"),
            &[],
        )
        .await
        .doing(comparing)?;
    let side = |prefix: &str| {
        table.columns.iter().map(|c| format!("{prefix}.{}", quote_identifier(&c.name))).collect::<Vec<_>>().join(", ")
    };
    let updated = if table.columns.is_empty() {
        0
    } else {
        let assignments: Vec<String> =
            table.columns.iter().map(|c| quote_identifier(&c.name)).map(|column| format!("{column} = new.{column}")).collect();
        transaction
            .execute(
                &format!(
                    "UPDATE {name} AS old SET {} FROM {from} AS new WHERE new.\"id\" = old.\"id\" AND ROW({}) IS DISTINCT FROM ROW({})",
                    assignments.join(", "),
                    side("old"),
                    side("new")
                ),
                &[],
            )
            .await
            .doing(comparing)?
    };
    let inserted = transaction
        .execute(
            &format!(
                "INSERT INTO {name} ({columns}) SELECT {columns} FROM {from} AS new WHERE NOT EXISTS (SELECT FROM {name} AS old WHERE old.\"id\" = new.\"id\")"
            ),
            &[],
        )
        .await
        .doing(comparing)?;
    indexes(transaction, table).await?;
    let rows: i64 = transaction.query_one(&format!("SELECT count(*) FROM {from}"), &[]).await.doing(comparing)?.get(0);
    Ok(Published { rows: rows.unsigned_abs(), inserted, updated, deleted })
}

/// Makes the indexes that are not there. `IF NOT EXISTS` would lock the table to find that out.
async fn indexes(transaction: &Transaction<'_>, table: &Table) -> Result<(), PostgresError> {
    for column in table.columns.iter().filter(|c| c.indexed) {
        let index = table.index_name(column);
        let indexing = || format!("creating the index `{index}`");
        let exists = transaction
            .query_opt(
                "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'public' AND c.relname = $1",
                &[&index],
            )
            .await
            .doing(indexing)?;
        if exists.is_none() {
            let sql =
                format!("CREATE INDEX {} ON {} ({})", quote_identifier(&index), public(table), quote_identifier(&column.name));
            transaction.batch_execute(&sql).await.doing(indexing)?;
        }
    }
    Ok(())
}
