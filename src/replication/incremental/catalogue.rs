//! Tables as the two catalogues describe them, found by their exact names.

use std::collections::HashMap;

use tokio_postgres::types::ToSql;

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

const NAMED: &str = "select w.place, c.oid, c.relkind::text,
        c.relkind = 'p' and exists (select from pg_catalog.pg_partition_tree(c.oid) p
            join pg_catalog.pg_class f on f.oid = p.relid where f.relkind = 'f')
    from unnest($1::text[], $2::text[]) with ordinality w(schema, name, place)
    join pg_catalog.pg_namespace n on n.nspname = w.schema
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name";

fn columns() -> String {
    format!(
        "select a.attrelid, a.attname, tn.nspname, t.typname, pg_catalog.format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.atthasdef or a.attidentity <> '', a.attgenerated <> '',
            wire.portable, wire.base in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype),
            case when a.atthasmissing then a.attmissingval::text end
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid
        join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
        cross join lateral {} wire(base, portable)
        where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped
        order by a.attrelid, a.attnum",
        base_and_portable("a.atttypid")
    )
}

const INDEXES: &str = "select i.indrelid, i.indisprimary, array_agg(a.attname::text order by k.n)
    from pg_catalog.pg_index i
    cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, n)
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = any($1) and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null and k.n <= i.indnkeyatts
    group by i.indrelid, i.indexrelid, i.indisprimary";

/// What the source has by those names: tables, views and foreign tables, with the letter of their kind.
pub(in crate::replication) async fn known(source: &Connection) -> Result<Vec<(TableName, String)>, PostgresError> {
    let rows = source.query(RELATIONS, &[]).await.doing(|| "listing the source's tables".to_owned())?;
    Ok(rows.iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2))).collect())
}

/// The tables of `mode`, `incremental` or `delta`, in the settings' order. A key of the settings is a plain name
/// in `public`, or `schema.table`; names may hold dots themselves, so the catalogue decides.
pub(in crate::replication) fn resolve(
    known: &[(TableName, String)],
    modes: &TableModes,
    mode: TableMode,
) -> Result<Vec<TableName>, IncrementalError> {
    let mut tables = Vec::new();
    for key in modes.keys_with(mode) {
        let before = tables.len();
        let mut repeated = false;
        for (table, kind) in known {
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
    Ok(relations(connection, &[table]).await?.pop().flatten())
}

/// The tables of those names, each named once, in the same order; `None` for one that is not there. Three queries, however many there are: most
/// of what such a query takes is planning it.
pub(in crate::replication) async fn relations(
    connection: &Connection,
    tables: &[&TableName],
) -> Result<Vec<Option<Relation>>, IncrementalError> {
    let doing = || match tables {
        [table] => format!("reading the definition of table `{table}`"),
        _ => format!("reading the definitions of {} tables", tables.len()),
    };
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    let mut found: Vec<Option<Relation>> = vec![None; tables.len()];
    let mut places = HashMap::new();
    for row in connection.query(NAMED, &[&schemas, &names]).await.doing(doing)? {
        let place = usize::try_from(row.get::<_, i64>(0)).unwrap_or_default() - 1;
        let (oid, kind): (u32, String) = (row.get(1), row.get(2));
        if !matches!(kind.as_str(), "r" | "p") {
            let table = tables[place];
            return Err(IncrementalError::Refused(format!("`{table}` is not a table on the target; rename or drop it there")));
        }
        places.insert(oid, place);
        found[place] = Some(Relation { oid, partitioned: kind == "p", foreign_parts: row.get(3), ..Relation::default() });
    }
    let oids: Vec<u32> = places.keys().copied().collect();
    let params: [&(dyn ToSql + Sync); 1] = [&oids];
    let columns = columns();
    let (columns, indexes) =
        tokio::try_join!(connection.query(&columns, &params), connection.query(INDEXES, &params)).doing(doing)?;
    // Only what was found is asked for, and each table is named once.
    let place = |oid: u32| places[&oid];
    for row in columns {
        let Some(relation) = &mut found[place(row.get(0))] else { continue };
        relation.columns.push(Column {
            name: row.get(1),
            type_schema: row.get(2),
            type_name: row.get(3),
            sql_type: row.get(4),
            not_null: row.get(5),
            filled: row.get(6),
            generated: row.get(7),
            portable: row.get(8),
            integer: row.get(9),
            missing: row.get(10),
        });
    }
    for row in indexes {
        let Some(relation) = &mut found[place(row.get(0))] else { continue };
        let columns: Vec<String> = row.get(2);
        if let [only] = columns.as_slice() {
            relation.unique.push(only.clone());
        }
        if row.get(1) {
            relation.primary_key = columns;
        }
    }
    Ok(found)
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
