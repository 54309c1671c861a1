//! Checksums of a table's rows that do not depend on their order, worked out by the server in one pass without sorting.
//!
//! Each row becomes one number: the hash of its first column's text is the seed for the hash of the second, and so on, so
//! that values which change places, within a row or between rows, change it. NULL and the empty text differ. The checksum is
//! the number of rows, the sum of these numbers and the sum of another function of them; sums are of type `numeric` and never
//! wrap around. A row that differs is missed when its 64 bits come out the same: once in 10¹⁹.
//!
//! Values are compared as they print, byte by byte: `1.0` and `1.00`, `0` and `-0`, `Word` and `word` of type citext are different.
//! Columns are hashed one by one, so a row may be larger than the gigabyte that a text may have; only values that are longer
//! than that in text cannot be compared. `bytea` goes through SHA-256, whose text is short.

use tokio_postgres::{Client, Row};

use crate::postgres::{Doing, PostgresError, quote_identifier};

/// A column that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Its text would be twice as long as it.
    pub(crate) bytes: bool,
}

/// What is compared of some rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) rows: i64,
    sums: [String; 2],
}

impl Sums {
    /// Of no rows.
    pub(super) fn none() -> Self {
        Sums { rows: 0, sums: ["0".to_owned(), "0".to_owned()] }
    }

    /// From the columns of `Form::SUMS`, which begin at `first`.
    pub(super) fn of(row: &Row, first: usize) -> Self {
        Sums { rows: row.get(first), sums: [row.get(first + 1), row.get(first + 2)] }
    }
}

/// How rows are hashed: by what both servers have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The server's own hash of texts, which two servers of the same make agree on.
    Fast,
    /// SHA-256 of the text in UTF-8, the same everywhere, some five times slower.
    Portable,
}

/// Texts, lengths and seeds that show a difference in the hash function, in byte order or in encoding.
const PROBE: &str = r#"
select current_setting('server_encoding'),
       (select string_agg(concat(hashtextextended(t collate pg_catalog."C", s), ' ', hashint8extended(s + length(t), s)), ',' order by s, length(t))
          from unnest(array['', 'a', '=2026-01-02', '=0123456789ab', repeat('=bullwork ', 77)]) t,
               unnest(array[0, 1, -1, 7095768654519824241, -8446744073709551557]) s)"#;

/// Where every row's hash begins: `bullwork` in ASCII.
const SEED: i64 = 0x6275_6c6c_776f_726b;

impl Form {
    /// The fastest form that both servers work out alike.
    pub(crate) async fn agreed(source: &Client, target: &Client) -> Result<Form, PostgresError> {
        let doing = || "comparing how the two servers hash".to_owned();
        let (source, target) =
            (source.query_one(PROBE, &[]).await.doing(doing)?, target.query_one(PROBE, &[]).await.doing(doing)?);
        let seen = |row: &Row| -> (String, String) { (row.get(0), row.get(1)) };
        Ok(if seen(&source) == seen(&target) { Form::Fast } else { Form::Portable })
    }

    /// The hash of the row that `alias` stands for, over `columns` in this order.
    pub(super) fn hash(self, columns: &[Column], alias: &str) -> String {
        let start = match self {
            Form::Fast => format!("'{SEED}'::int8"),
            Form::Portable => "''::bytea".to_owned(),
        };
        columns.iter().fold(start, |hash, column| {
            let name = format!("{alias}.{}", quote_identifier(&column.name));
            let value = if column.bytes { format!("sha256({name})") } else { name.clone() };
            // `is null` would take a composite of nulls for one; concat() prints as the type does, whatever casts there are.
            let text = format!("case when {name} is not distinct from null then '' else concat('=', {value}) end");
            match self {
                Form::Fast => format!("hashtextextended(({text}) collate \"C\", {hash})"),
                Form::Portable => format!("sha256({hash} || convert_to({text}, 'UTF8'))"),
            }
        })
    }

    /// The aggregates over a column `h` of hashes.
    fn aggregates(self) -> String {
        let sums = match self {
            Form::Fast => ["h".to_owned(), "hashint8extended(h, 1)".to_owned()],
            Form::Portable => [1, 9].map(|at| format!("('x' || encode(substr(h, {at}, 8), 'hex'))::bit(64)::int8")),
        };
        format!("count(*), coalesce(sum({}), 0)::text, coalesce(sum({}), 0)::text", sums[0], sums[1])
    }

    /// The checksum of the rows that `select` gives, as far as they meet `condition` (over the alias `t`).
    pub(crate) fn sums(self, select: &str, columns: &[Column], condition: Option<&str>) -> String {
        let filter = condition.map(|c| format!(" where {c}")).unwrap_or_default();
        // `offset 0`: else the hash would be worked out once for each sum.
        format!(
            "select {} from (select {} as h from ({select}) t{filter} offset 0) r",
            self.aggregates(),
            self.hash(columns, "t")
        )
    }

    /// The same for each value of `bucket`, which comes first.
    pub(super) fn sums_by(self, bucket: &str, select: &str, columns: &[Column], condition: Option<&str>) -> String {
        let filter = condition.map(|c| format!(" where {c}")).unwrap_or_default();
        let hash = self.hash(columns, "t");
        format!(
            "select b, {} from (select {bucket} as b, {hash} as h from ({select}) t{filter} offset 0) r group by b",
            self.aggregates()
        )
    }
}

/// The columns of the source's table, as they are compared.
pub(super) async fn columns(source: &Client, table: u32, names: &[String]) -> Result<Vec<Column>, PostgresError> {
    const SQL: &str = "select a.attname::text from pg_attribute a join pg_type t on t.oid = a.atttypid \
                       where a.attrelid = $1 and a.attnum > 0 and 17 in (t.oid, t.typbasetype)";
    let rows = source.query(SQL, &[&table]).await.doing(|| "reading the types of columns".to_owned())?;
    let bytes: Vec<String> = rows.into_iter().map(|row| row.get(0)).collect();
    Ok(names.iter().map(|name| Column { name: name.clone(), bytes: bytes.contains(name) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_columns_hash_seeds_the_next_ones() {
        let column = |name: &str, bytes| Column { name: name.to_owned(), bytes };
        assert_eq!(Form::Fast.hash(&[], "t"), "'7094696001108144747'::int8");
        let sql = Form::Fast.hash(&[column("a", false), column("B\"", true)], "t");
        let first = "hashtextextended((case when t.\"a\" is not distinct from null then '' else concat('=', t.\"a\") end) collate \"C\", '7094696001108144747'::int8)";
        assert!(sql.contains("concat('=', sha256(t.\"B\"\"\"))") && sql.ends_with(&format!(", {first})")), "{sql}");
    }
}
