//! Tables and their columns as fixtures need them: what decides how a value is written as JSON, and read back.

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::replication::settings::TableName;

const TABLE: &str = "select c.oid, n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p') and c.relpersistence <> 't' \
    and (n.nspname = 'public' and c.relname = $1 or n.nspname || '.' || c.relname = $1) \
    order by n.nspname = 'public' desc limit 1";

/// Columns with the type under their domain, and their places in the primary key (whose array begins at 0).
const COLUMNS: &str = "
select a.attname::text, format_type(a.atttypid, a.atttypmod), t.typtype::text, t.oid, coalesce(e.oid, 0), coalesce(e.typtype::text, ''),
       coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0), a.attidentity::text = 'a',
       coalesce(to_jsonb(a) ->> 'attgenerated', '') <> ''
  from pg_attribute a
  join lateral (with recursive base(oid, typtype, typbasetype, typelem, typcategory) as (
           select y.oid, y.typtype, y.typbasetype, y.typelem, y.typcategory from pg_type y where y.oid = a.atttypid
           union all select y.oid, y.typtype, y.typbasetype, y.typelem, y.typcategory from pg_type y join base b on y.oid = b.typbasetype)
         select * from base where typtype <> 'd') t on true
  left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
  left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
 where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
 order by a.attnum";

/// Types by their fixed numbers.
pub(super) mod oid {
    pub(in crate::backup) const BOOL: u32 = 16;
    pub(in crate::backup) const BYTEA: u32 = 17;
    pub(in crate::backup) const NUMBERS: [u32; 6] = [20, 21, 23, 26, 700, 701];
    pub(in crate::backup) const NUMERIC: u32 = 1700;
    pub(in crate::backup) const INTERVAL: u32 = 1186;
    pub(in crate::backup) const MONEY: u32 = 790;
    /// `json` and `jsonb`.
    pub(in crate::backup) const JSON: [u32; 2] = [114, 3802];
}

/// A column.
pub(super) struct Column {
    pub(super) name: String,
    /// Its type as SQL writes it.
    pub(super) sql_type: String,
    /// `typtype` of the type under its domain.
    pub(super) kind: String,
    /// Number of that type.
    pub(super) oid: u32,
    /// Type of an array's elements; 0 for what is no array.
    pub(super) element: u32,
    /// Their `typtype`.
    pub(super) element_kind: String,
    /// Place in the primary key, from 1; 0 outside.
    pub(super) key_place: i32,
    /// Whether it numbers rows itself, always.
    pub(super) always_numbered: bool,
    /// Whether it follows from other columns; such a value cannot be loaded.
    pub(super) generated: bool,
}

/// The table that people call `shown`: in `public`, or with its schema.
pub(super) async fn table(client: &Client, shown: &str) -> Result<Option<(u32, TableName)>, PostgresError> {
    let row = client.query_opt(TABLE, &[&shown]).await.doing(|| format!("looking for table `{shown}`"))?;
    Ok(row.map(|row| (row.get(0), TableName { schema: row.get(1), name: row.get(2) })))
}

/// The columns of the table with this number, in their order.
pub(super) async fn columns(client: &Client, table: u32, shown: &TableName) -> Result<Vec<Column>, PostgresError> {
    let rows = client.query(COLUMNS, &[&table]).await.doing(|| format!("reading the columns of `{shown}`"))?;
    let column = |row: &tokio_postgres::Row| Column {
        name: row.get(0),
        sql_type: row.get(1),
        kind: row.get(2),
        oid: row.get(3),
        element: row.get(4),
        element_kind: row.get(5),
        key_place: row.get(6),
        always_numbered: row.get(7),
        generated: row.get(8),
    };
    Ok(rows.iter().map(column).collect())
}

/// Those of the primary key, in its order.
pub(super) fn key(columns: &[Column]) -> Vec<&Column> {
    let mut key: Vec<&Column> = columns.iter().filter(|column| column.key_place > 0).collect();
    key.sort_by_key(|column| column.key_place);
    key
}
