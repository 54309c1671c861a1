//! Tables as the two catalogues describe them, found by their exact names.

use crate::postgres::{Connection, Doing, PostgresError, quote_identifier};
use crate::replication::binary::base_and_portable;
use crate::replication::settings::{TableMode, TableModes, TableName};

use super::IncrementalError;
use super::mapping::Key;

/// A table of one side.
#[derive(Clone, Debug, Default)]
pub struct Relation {
    /// Identity within its database.
    pub oid: u32,
    /// Whether it is partitioned; otherwise it is an ordinary table.
    pub partitioned: bool,
    /// Whether rows live in foreign partitions, which know no inserting transaction.
    pub foreign_parts: bool,
    /// Its columns in their order.
    pub columns: Vec<Column>,
    /// Names of the primary key's columns; empty without one.
    pub primary_key: Vec<String>,
    /// Columns that are unique by themselves.
    pub unique: Vec<String>,
}

impl Relation {
    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}

/// A column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Schema of its type.
    pub type_schema: String,
    /// The catalogue's name of its type.
    pub type_name: String,
    /// Its type as SQL, with modifiers; qualified when read under an empty `search_path`.
    pub sql_type: String,
    /// Whether NULL is refused.
    pub not_null: bool,
    /// Whether the server fills it by itself when it is left out.
    pub filled: bool,
    /// Whether it is always computed.
    pub generated: bool,
    /// Whether its binary form reads the same in any other database.
    pub portable: bool,
    /// Whether it is a smallint, integer or bigint, or a domain over one.
    pub integer: bool,
    /// What rows hold that are older than the column, as an array literal of one element.
    pub missing: Option<String>,
}

/// All relations that a name of the settings could mean. Catalogue locks only.
const RELATIONS: &str = "select n.nspname, c.relname, c.relkind::text
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't'
      and n.nspname not in ('pg_catalog', 'information_schema')";

const RELATION: &str = "select c.oid, c.relkind::text,
        c.relkind = 'p' and exists (select from pg_catalog.pg_partition_tree(c.oid) p
            join pg_catalog.pg_class f on f.oid = p.relid where f.relkind = 'f')
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname = $2";

fn columns() -> String {
    format!(
        "select a.attname, tn.nspname, t.typname, pg_catalog.format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.atthasdef or a.attidentity <> '', a.attgenerated <> '',
            wire.portable, wire.base in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype),
            case when a.atthasmissing then a.attmissingval::text end
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid
        join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
        cross join lateral {} wire(base, portable)
        where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
        order by a.attnum",
        base_and_portable("a.atttypid")
    )
}

const INDEXES: &str = "select i.indisprimary, array_agg(a.attname::text order by k.n)
    from pg_catalog.pg_index i
    cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, n)
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = $1 and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null and k.n <= i.indnkeyatts
    group by i.indexrelid, i.indisprimary";

/// The tables of `mode`, `incremental` or `delta`, in the settings' order. A key of the settings is a plain name
/// in `public`, or `schema.table`; names may hold dots themselves, so the catalogue decides.
pub(in crate::replication) async fn resolve(
    source: &Connection,
    modes: &TableModes,
    mode: TableMode,
) -> Result<Vec<TableName>, IncrementalError> {
    let rows = source.query(RELATIONS, &[]).await.doing(|| "listing the source's tables".to_owned())?;
    let known: Vec<(TableName, String)> =
        rows.iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2))).collect();
    let mut tables = Vec::new();
    for key in modes.keys_with(mode) {
        let before = tables.len();
        let mut repeated = false;
        for (table, kind) in &known {
            if !(table.schema == "public" && key == table.name) && key != format!("{}.{}", table.schema, table.name) {
                continue;
            }
            if !matches!(kind.as_str(), "r" | "p") {
                return Err(IncrementalError::Refused(format!(
                    "BACKUP_MODE: `{key}` is a view or foreign table of the source; only tables can be incremental or delta"
                )));
            }
            if tables.contains(table) {
                repeated = true;
            } else {
                tables.push(table.clone());
            }
        }
        if tables.len() == before && !repeated {
            return Err(IncrementalError::Refused(format!(
                "BACKUP_MODE: the source has no table `{key}`; names are exact, and `schema.table` outside `public`"
            )));
        }
    }
    Ok(tables)
}

/// The table of that name; `None` when there is none.
pub(in crate::replication) async fn relation(
    connection: &Connection,
    table: &TableName,
) -> Result<Option<Relation>, IncrementalError> {
    let doing = || format!("reading the definition of table `{table}`");
    let Some(row) = connection.query_opt(RELATION, &[&table.schema, &table.name]).await.doing(doing)? else {
        return Ok(None);
    };
    let kind: String = row.get(1);
    if !matches!(kind.as_str(), "r" | "p") {
        return Err(IncrementalError::Refused(format!("`{table}` is not a table on the target; rename or drop it there")));
    }
    let oid: u32 = row.get(0);
    let mut relation = Relation { oid, partitioned: kind == "p", foreign_parts: row.get(2), ..Relation::default() };
    for row in connection.query(&columns(), &[&oid]).await.doing(doing)? {
        relation.columns.push(Column {
            name: row.get(0),
            type_schema: row.get(1),
            type_name: row.get(2),
            sql_type: row.get(3),
            not_null: row.get(4),
            filled: row.get(5),
            generated: row.get(6),
            portable: row.get(7),
            integer: row.get(8),
            missing: row.get(9),
        });
    }
    for row in connection.query(INDEXES, &[&oid]).await.doing(doing)? {
        let columns: Vec<String> = row.get(1);
        if let [only] = columns.as_slice() {
            relation.unique.push(only.clone());
        }
        if row.get(0) {
            relation.primary_key = columns;
        }
    }
    Ok(Some(relation))
}

pub(super) async fn is_empty(target: &Connection, table: &TableName) -> Result<bool, PostgresError> {
    let sql = format!("select not exists (select from {})", table.quoted());
    Ok(target.query_one(&sql, &[]).await.doing(|| format!("reading table `{table}` of the target"))?.get(0))
}

/// The highest key on the target; `None` when the table is empty or its key has no order.
pub(in crate::replication) async fn highest(
    target: &Connection,
    table: &TableName,
    key: &Key,
) -> Result<Option<i64>, PostgresError> {
    let (true, [column]) = (key.ordered, key.columns.as_slice()) else {
        return Ok(None);
    };
    let sql = format!("select max({})::int8 from {}", quote_identifier(column), table.quoted());
    Ok(target.query_one(&sql, &[]).await.doing(|| format!("reading the highest key of table `{table}` on the target"))?.get(0))
}
