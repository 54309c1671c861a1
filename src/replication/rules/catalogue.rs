//! What the rules are held against: the source's tables, columns, unique indexes and foreign keys.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::replication::settings::TableName;

/// A table, view or foreign table.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// As in `pg_class.relkind`.
    pub(super) kind: char,
    pub(super) partition: bool,
    /// What it is a partition or heir of.
    pub(super) parents: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    pub(super) name: String,
    /// As SQL, with modifiers.
    pub(super) sql_type: String,
    /// The type that domains end in: the bare name of one of PostgreSQL's own, `citext`, or `schema.name`.
    pub(super) base: String,
    /// Most characters of a text.
    pub(super) length: Option<usize>,
    pub(super) not_null: bool,
    pub(super) generated: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ForeignKey {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) from: u32,
    pub(super) to: u32,
    /// Pairs of columns.
    pub(super) columns: Vec<(String, String)>,
}

const RELATIONS: &str = "select c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relispartition,
        array(select i.inhparent from pg_inherits i where i.inhrelid = c.oid)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't' and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')";

const COLUMNS: &str = "select a.attrelid, a.attname::text, format_type(a.atttypid, a.atttypmod),
        case when n.nspname = 'pg_catalog' then t.typname::text
             when exists (select from pg_depend d join pg_extension e on e.oid = d.refobjid and e.extname = 'citext'
                  where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e') then 'citext'
             else n.nspname || '.' || t.typname end,
        case when t.oid in ('varchar'::regtype, 'bpchar'::regtype) and b.typmod > 4 then b.typmod - 4
             when t.oid = 'name'::regtype then 63 end,
        a.attnotnull or b.typnotnull, a.attgenerated <> ''
    from pg_attribute a cross join lateral (
        with recursive steps as (
            select t.oid, t.typtype, t.typbasetype, a.atttypmod as typmod, t.typtypmod, t.typnotnull from pg_type t where t.oid = a.atttypid
            union all
            select t.oid, t.typtype, t.typbasetype, s.typtypmod, t.typtypmod, s.typnotnull or t.typnotnull
              from steps s join pg_type t on t.oid = s.typbasetype where s.typtype = 'd')
        select * from steps where typtype <> 'd') b
    join pg_type t on t.oid = b.oid join pg_namespace n on n.oid = t.typnamespace
    where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum";

/// Columns that decide which partition a row is in, those within expressions too.
const PARTITION_KEYS: &str = "select p.partrelid, a.attname::text from pg_partitioned_table p join pg_attribute a on a.attrelid = p.partrelid
    where p.partrelid = any($1) and a.attnum > 0 and (a.attnum = any(p.partattrs::int2[]) or exists (select from pg_depend d
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.objid = p.partrelid and d.refobjid = p.partrelid
          and least(d.objsubid, d.refobjsubid) = 0 and greatest(d.objsubid, d.refobjsubid) = a.attnum))";

/// Unique indexes with the columns that they are made of.
const UNIQUE: &str = "select i.indrelid, c.relname::text, array_agg(a.attname::text order by a.attnum)
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_attribute a on a.attrelid = i.indrelid and a.attnum > 0
    where i.indisunique and i.indrelid = any($1) and (
        exists (select from unnest(i.indkey::int2[]) with ordinality k(num, n) where k.num = a.attnum and k.n <= i.indnkeyatts)
        or i.indexprs is not null and exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum))
    group by i.indrelid, i.indexrelid, c.relname order by c.relname";

const FOREIGN_KEYS: &str = "select k.oid, k.conname::text, k.conrelid, k.confrelid,
        array(select a.attname::text from unnest(k.conkey) with ordinality n(num, i) join pg_attribute a on a.attrelid = k.conrelid and a.attnum = n.num order by n.i),
        array(select a.attname::text from unnest(k.confkey) with ordinality n(num, i) join pg_attribute a on a.attrelid = k.confrelid and a.attnum = n.num order by n.i)
    from pg_constraint k where k.contype = 'f' and k.conparentid = 0 and (k.conrelid = any($1) or k.confrelid = any($1)) order by k.conname, k.oid";

/// Reads the relations.
pub(super) async fn relations(source: &Client) -> Result<Vec<Relation>, PostgresError> {
    let rows = source.query(RELATIONS, &[]).await.doing(|| "reading the source's tables".to_owned())?;
    let relation = |row: tokio_postgres::Row| Relation {
        oid: row.get(0),
        name: TableName { schema: row.get(1), name: row.get(2) },
        kind: row.get::<_, &str>(3).chars().next().unwrap_or('-'),
        partition: row.get(4),
        parents: row.get(5),
    };
    Ok(rows.into_iter().map(relation).collect())
}

/// The columns of `tables`, in their order.
pub(super) async fn columns(source: &Client, tables: &[u32]) -> Result<HashMap<u32, Vec<Column>>, PostgresError> {
    let mut found: HashMap<u32, Vec<Column>> = HashMap::new();
    for row in source.query(COLUMNS, &[&tables]).await.doing(|| "reading the source's columns".to_owned())? {
        found.entry(row.get(0)).or_default().push(Column {
            name: row.get(1),
            sql_type: row.get(2),
            base: row.get(3),
            length: row.get::<_, Option<i32>>(4).and_then(|n| usize::try_from(n).ok()),
            not_null: row.get(5),
            generated: row.get(6),
        });
    }
    Ok(found)
}

/// Columns of partition keys, by partitioned table.
pub(super) async fn partition_keys(source: &Client, tables: &[u32]) -> Result<HashSet<(u32, String)>, PostgresError> {
    let rows = source.query(PARTITION_KEYS, &[&tables]).await.doing(|| "reading the source's partition keys".to_owned())?;
    Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Unique indexes: table, name, columns.
pub(super) async fn unique(source: &Client, tables: &[u32]) -> Result<Vec<(u32, String, Vec<String>)>, PostgresError> {
    let rows = source.query(UNIQUE, &[&tables]).await.doing(|| "reading the source's unique indexes".to_owned())?;
    Ok(rows.into_iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Foreign keys of, and to, `tables`.
pub(super) async fn foreign_keys(source: &Client, tables: &[u32]) -> Result<Vec<ForeignKey>, PostgresError> {
    let rows = source.query(FOREIGN_KEYS, &[&tables]).await.doing(|| "reading the source's foreign keys".to_owned())?;
    let key = |row: tokio_postgres::Row| {
        let (from, to): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
        ForeignKey {
            oid: row.get(0),
            name: row.get(1),
            from: row.get(2),
            to: row.get(3),
            columns: from.into_iter().zip(to).collect(),
        }
    };
    Ok(rows.into_iter().map(key).collect())
}
