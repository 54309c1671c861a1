//! What the database holds at the snapshot: rows of each table, by count and fingerprint.
//!
//! A fingerprint does not depend on the rows' order and changes when a value does. Each row becomes a number:
//! the server's own hash of the row, in which values whose hash is not exact stand as they print, so that `1.0` and
//! `1.00`, or two spellings of a `citext`, differ; servers before 14, which hash no rows, hash all values as they print. The numbers are hashed once more before
//! they are added up: the server's hash of a row is a sum over its columns, so without that two rows that swap
//! a value would add up to the same. 64 bits of each row count twice; a change is missed once in 10¹⁹.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::manifest;
use super::pattern::Business;
use super::reading::{ROW_HASH_SINCE, Reading};
use crate::postgres::{Database, Doing, PostgresError, quote_identifier};
use crate::replication::settings::TableName;
use crate::replication::verify::sums::{Column, Form};
use crate::worker::Run;

/// Tables that have rows of their own: no partitions, whose rows count with their table's, and nothing that
/// ends with its session.
const TABLES: &str = "select c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relpersistence = 'u', \
    exists (select from pg_inherits i where i.inhrelid = c.oid) \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't' and c.oid >= 16384 order by 2, 3";
/// Their columns. A type is exact when equal hashes mean equal text.
/// Those of heirs go by name.
const COLUMNS: &str = "select a.attrelid, a.attname::text, 17 in (t.oid, t.typbasetype), \
    t.oid in (16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950) \
      and coalesce((select to_jsonb(l) ->> 'collisdeterministic' from pg_collation l where l.oid = a.attcollation), 'true') = 'true' \
    from pg_attribute a join pg_type t on t.oid = a.atttypid \
    where a.attnum > 0 and not a.attisdropped and a.attrelid = any($1) order by a.attrelid, \
    case when exists (select from pg_inherits i where i.inhrelid = a.attrelid) then a.attname end, a.attnum";
const LARGE_OBJECTS: &str =
    "select count(*), has_table_privilege('pg_catalog.pg_largeobject', 'select') from pg_catalog.pg_largeobject_metadata";
/// Their contents, the same for a restored copy: a page of the source may be missing or short where the copy's holds zeros, so
/// zeros at the end of a page do not count, and the length of an object does.
const LARGE_OBJECT_CONTENTS: &str = "select loid, pageno, data from \
    (select loid, pageno, rtrim(encode(data, 'hex'), '0') as data from pg_catalog.pg_largeobject offset 0) p where data <> '' \
    union all (select distinct on (loid) loid, -1, (pageno::int8 * current_setting('block_size')::int8 / 4 + length(data))::text \
    from pg_catalog.pg_largeobject order by loid, pageno desc)";
/// Whose they are. Owners may be others for a copy, and rights are written otherwise.
const LARGE_OBJECT_RIGHTS: &str = "select oid, lomowner, lomacl from pg_catalog.pg_largeobject_metadata";
/// Name under which they are compared.
const LARGE_OBJECT: &str = "large objects";

/// A table as it is read.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) business: bool,
    oid: u32,
    partitioned: bool,
    unlogged: bool,
    /// Inherits from another table. Its copy may have its columns in another order.
    heir: bool,
    columns: Vec<Column>,
    /// Which of these the server's hash of a row tells apart whenever they print otherwise; none where it hashes no rows.
    exact: Option<Vec<bool>>,
}

/// A table's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How many.
    pub rows: u64,
    /// Of their values.
    pub fingerprint: String,
}

/// The business tables, by the name that people write.
pub type BusinessRows = BTreeMap<String, Seen>;

/// Lists the tables. On a standby unlogged ones cannot be read; they are no part of its dump either.
pub(super) async fn tables(reading: &Reading, business: &Business) -> Result<Vec<Table>, PostgresError> {
    let doing = || "listing the tables".to_owned();
    let client: &Client = &reading.session;
    let mut tables: Vec<Table> = client
        .query(TABLES, &[])
        .await
        .doing(doing)?
        .into_iter()
        .map(|row| {
            let name = TableName { schema: row.get(1), name: row.get(2) };
            Table {
                business: business.holds(&name),
                name,
                oid: row.get(0),
                partitioned: row.get(3),
                unlogged: row.get(4),
                heir: row.get(5),
                columns: Vec::new(),
                exact: (reading.version >= ROW_HASH_SINCE).then(Vec::new),
            }
        })
        .filter(|table| !(reading.origin.standby && table.unlogged))
        .collect();
    let places: BTreeMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    let oids: Vec<u32> = places.keys().copied().collect();
    for row in client.query(COLUMNS, &[&oids]).await.doing(doing)? {
        let table = &mut tables[places[&row.get::<_, u32>(0)]];
        table.columns.push(Column { name: row.get(1), bytes: row.get(2) });
        if let Some(exact) = &mut table.exact {
            exact.push(row.get(3));
        }
    }
    Ok(tables)
}

impl Table {
    fn from(&self) -> String {
        from(&self.name, self.partitioned)
    }

    /// Counts the rows and makes their fingerprint.
    pub(super) async fn look(&self, client: &Client) -> Result<Seen, PostgresError> {
        let (form, sql) = if let Some(exact) = self.exact.as_ref().filter(|exact| !exact.is_empty()) {
            let hash = format!("select pg_catalog.hash_record_extended({}, 0) as h from", self.row(exact));
            let sums = "select count(*), coalesce(sum(h), 0)::text, coalesce(sum(hashint8extended(h, 1)), 0)::text";
            // `offset 0`: else the hash would be worked out once for each sum.
            ("record", format!("{sums} from ({hash} {} t offset 0) r", self.from()))
        } else {
            let columns: Vec<String> = self.columns.iter().map(|c| quote_identifier(&c.name)).collect();
            let select = format!("select {} from {}", columns.join(", "), self.from());
            ("text", Form::Fast.sums(&select, &self.columns, None))
        };
        let row = client.query_one(&sql, &[]).await.doing(|| format!("reading table `{}`", self.name))?;
        let (rows, sums): (i64, [&str; 2]) = (row.get(0), [row.get(1), row.get(2)]);
        Ok(Seen { rows: u64::try_from(rows).unwrap_or_default(), fingerprint: format!("{form}:{}:{}", sums[0], sums[1]) })
    }

    /// The row that is hashed.
    fn row(&self, exact: &[bool]) -> String {
        if !self.heir && exact.iter().all(|exact| *exact) {
            // A mere `t` would be a column of that name.
            return "t.*".to_owned();
        }
        let value = |(column, exact): (&Column, &bool)| {
            let name = format!("t.{}", quote_identifier(&column.name));
            // As the type prints it: a cast to text may be somebody's own, and tell less.
            let printed =
                || format!("(case when {name} is not distinct from null then null else concat({name}) end) collate \"C\"");
            if *exact { name } else { printed() }
        };
        let values: Vec<String> = self.columns.iter().zip(exact).map(value).collect();
        format!("row({})", values.join(", "))
    }
}

/// Looks at every business table. Large objects are one of them where all tables are.
///
/// False in the second place: there are some, and the role may not read them, so nothing can be called unchanged.
pub(super) async fn look(
    run: &Run,
    client: &Client,
    tables: &[Table],
    business: &Business,
) -> Result<(BusinessRows, bool), PostgresError> {
    let chosen: Vec<&Table> = tables.iter().filter(|table| table.business).collect();
    run.progress(|p| {
        "compare".clone_into(&mut p.phase);
        (p.done, p.total) = (0, chosen.len() as u64);
    });
    let mut seen = BusinessRows::new();
    for table in chosen {
        seen.insert(table.name.to_string(), table.look(client).await?);
        run.progress(|p| p.done += 1);
    }
    let mut whole = true;
    if business.is_everything() {
        let manifest::LargeObjects { objects, fingerprint } = large_objects(client, true).await?;
        whole = objects == 0 || fingerprint.is_some();
        if let Some(contents) = fingerprint {
            let rights = sums(client, LARGE_OBJECT_RIGHTS, &["oid", "lomowner", "lomacl"]).await?;
            seen.insert(LARGE_OBJECT.to_owned(), Seen { rows: objects, fingerprint: format!("{contents} {rights}") });
        }
    }
    Ok((seen, whole))
}

/// Counts the large objects and makes, where `read` says so and the role may, the fingerprint of what they hold; there is
/// none of no objects.
pub(super) async fn large_objects(client: &Client, read: bool) -> Result<manifest::LargeObjects, PostgresError> {
    let row = client.query_one(LARGE_OBJECTS, &[]).await.doing(|| "looking for large objects".to_owned())?;
    let objects = u64::try_from(row.get::<_, i64>(0)).unwrap_or_default();
    let fingerprint = match read && objects > 0 && row.get(1) {
        true => Some(sums(client, LARGE_OBJECT_CONTENTS, &["loid", "pageno", "data"]).await?),
        false => None,
    };
    Ok(manifest::LargeObjects { objects, fingerprint })
}

/// The large objects for the manifest: as seen where they are business, else counted.
pub(super) async fn large_objects_seen(client: &Client, seen: &BusinessRows) -> Result<manifest::LargeObjects, PostgresError> {
    match seen.get(LARGE_OBJECT) {
        Some(Seen { rows, fingerprint }) => {
            let contents = fingerprint.split(' ').next().unwrap_or_default();
            Ok(manifest::LargeObjects { objects: *rows, fingerprint: Some(contents.to_owned()) })
        }
        None => large_objects(client, false).await,
    }
}

/// The fingerprint of what `select` gives.
async fn sums(client: &Client, select: &str, columns: &[&str]) -> Result<String, PostgresError> {
    let columns: Vec<Column> = columns.iter().map(|name| Column { name: (*name).to_owned(), bytes: false }).collect();
    let sql = Form::Fast.sums(select, &columns, None);
    let row = client.query_one(&sql, &[]).await.doing(|| "reading the large objects".to_owned())?;
    Ok(format!("text:{}:{}", row.get::<_, &str>(1), row.get::<_, &str>(2)))
}

/// All tables for the manifest: the business ones as seen, the others counted.
pub(super) async fn inventory(
    client: &Client,
    tables: &[Table],
    seen: &BusinessRows,
) -> Result<Vec<manifest::Table>, PostgresError> {
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        let (rows, fingerprint) = match seen.get(&table.name.to_string()) {
            Some(seen) => (seen.rows, Some(seen.fingerprint.clone())),
            None => (count(client, &table.name, table.partitioned).await?, None),
        };
        let TableName { schema, name } = table.name.clone();
        all.push(manifest::Table { schema, name, rows, fingerprint });
    }
    Ok(all)
}

/// Counts the rows of those tables of `database`. What row security would hide is an error, not less.
pub(super) async fn count_all(database: &Database, tables: &[manifest::Table]) -> Result<u64, PostgresError> {
    let session = database.connect("restore").await?;
    let doing = || "listing the tables".to_owned();
    session.batch_execute("set row_security = off; set statement_timeout = 0").await.doing(doing)?;
    let mut rows = 0;
    for row in session.query(TABLES, &[]).await.doing(doing)? {
        let name = TableName { schema: row.get(1), name: row.get(2) };
        if tables.iter().any(|table| (&table.schema, &table.name) == (&name.schema, &name.name)) {
            rows += count(&session, &name, row.get(3)).await?;
        }
    }
    Ok(rows)
}

async fn count(client: &Client, table: &TableName, partitioned: bool) -> Result<u64, PostgresError> {
    let sql = format!("select count(*) from {}", from(table, partitioned));
    let rows: i64 = client.query_one(&sql, &[]).await.doing(|| format!("counting table `{table}`"))?.get(0);
    Ok(u64::try_from(rows).unwrap_or_default())
}

/// Rows of heirs belong to the heirs, those of partitions to nobody else.
fn from(table: &TableName, partitioned: bool) -> String {
    format!("{}{}", if partitioned { "" } else { "only " }, table.quoted())
}

/// The tables that differ, with those that are in one of the two only.
pub(super) fn differences(before: &BusinessRows, now: &BusinessRows) -> Vec<String> {
    let mut changed: Vec<String> =
        now.iter().filter(|(name, seen)| before.get(*name) != Some(seen)).map(|(name, _)| name.clone()).collect();
    changed.extend(before.keys().filter(|name| !now.contains_key(*name)).cloned());
    changed.sort();
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_came_or_went_are_differences_too() {
        let seen = |rows| Seen { rows, fingerprint: format!("record:{rows}:0") };
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(n, r)| ((*n).to_owned(), seen(*r))).collect::<BusinessRows>();
        let before = map(&[("a", 1), ("b", 2), ("gone", 3)]);
        assert_eq!(differences(&before, &map(&[("a", 1), ("b", 3), ("new", 1)])), ["b", "gone", "new"]);
        assert!(differences(&before, &before.clone()).is_empty());
    }
}
