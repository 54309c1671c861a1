//! The source's tables, indexes and keys: what is copied, and what is built behind it.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::replication::binary::base_and_portable;
use crate::replication::projection::Projection;
use crate::replication::settings::TableName;

/// A table whose rows are copied.
#[derive(Clone, Debug)]
pub(in crate::replication) struct SourceTable {
    pub(in crate::replication) oid: u32,
    pub(in crate::replication) name: TableName,
    /// What is read: columns that hold data of their own, no generated ones.
    pub(in crate::replication) projection: Projection,
    /// What rules it is read under, in short.
    pub(in crate::replication) rules: String,
    /// Bytes on disk, for the order of work.
    pub(in crate::replication) size: i64,
    /// With its indexes and large values.
    pub(in crate::replication) whole: i64,
    /// Every column's binary form means the same on another server.
    pub(in crate::replication) binary: bool,
    /// We may read it, and row-level security hides nothing from us.
    pub(in crate::replication) readable: bool,
    /// A column's values are objects by their names.
    pub(in crate::replication) holds_names: bool,
    /// Number of the file that holds the rows.
    pub(in crate::replication) file: u32,
}

impl SourceTable {
    /// The names of the columns that are read.
    pub(in crate::replication) fn columns(&self) -> Vec<String> {
        self.projection.readings.iter().map(|r| r.column.clone()).collect()
    }
}

fn tables_sql() -> String {
    format!(
        r#"
with columns(relid, num, name, type) as (
  select attrelid, attnum, attname::text, atttypid from pg_attribute where attnum > 0 and not attisdropped and attgenerated = ''
),
-- By itself, because a database has many columns of few types.
types(type, portable) as materialized (
  select d.type, w.portable from (select distinct type from columns) d cross join lateral {} w(base, portable)
)
select c.oid, n.nspname::text, c.relname::text, pg_table_size(c.oid), has_table_privilege(c.oid, 'select') and not row_security_active(c.oid),
       coalesce(array_agg(a.name order by a.num) filter (where a.num is not null), '{{}}'),
       coalesce(bool_and(coalesce(t.portable, false)) filter (where a.num is not null), true),
       coalesce(bool_or(a.type in ('regclass'::regtype, 'regtype'::regtype, 'regproc'::regtype, 'regprocedure'::regtype, 'regoper'::regtype,
                'regoperator'::regtype, 'regconfig'::regtype, 'regdictionary'::regtype, to_regtype('regcollation'))), false),
       c.relfilenode, pg_total_relation_size(c.oid)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join columns a on a.relid = c.oid left join types t on t.type = a.type
 where c.relkind = 'r' and c.relpersistence <> 't' and c.oid >= 16384
 group by 1, 2, 3, 4, 5, c.relfilenode
"#,
        base_and_portable("d.type")
    )
}

/// The source's ordinary tables, partitions among them.
pub(in crate::replication) async fn tables(client: &Client) -> Result<Vec<SourceTable>, PostgresError> {
    let doing = || "reading the source's tables".to_owned();
    let rows = client.query(&tables_sql(), &[]).await.doing(doing)?;
    Ok(rows
        .into_iter()
        .map(|row| SourceTable {
            oid: row.get(0),
            name: TableName { schema: row.get(1), name: row.get(2) },
            size: row.get(3),
            readable: row.get(4),
            projection: Projection::plain(&row.get::<_, Vec<String>>(5)),
            rules: String::new(),
            binary: row.get(6),
            holds_names: row.get(7),
            file: row.get(8),
            whole: row.get(9),
        })
        .collect())
}

/// An index on an ordinary table or a materialized view.
#[derive(Clone, Debug)]
pub(super) struct SourceIndex {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) definition: String,
    /// The primary key or unique constraint that it carries: oid and how to attach it.
    pub(super) constraint: Option<(u32, String)>,
    /// CLUSTER mark, replica identity, statistics targets.
    pub(super) marks: Vec<String>,
}

const INDEXES: &str = r#"
select i.indrelid, i.indexrelid, ic.relname::text, pg_get_indexdef(i.indexrelid), k.oid,
       case when k.oid is not null then format('alter table %I.%I add constraint %I %s using index %I%s%s', n.nspname, c.relname, k.conname,
              case k.contype when 'p' then 'primary key' else 'unique' end, ic.relname,
              case when k.condeferrable then ' deferrable' else '' end, case when k.condeferred then ' initially deferred' else '' end) end,
       array_remove(array[
         case when i.indisclustered then format('alter table %I.%I cluster on %I', n.nspname, c.relname, ic.relname) end,
         case when i.indisreplident then format('alter table only %I.%I replica identity using index %I', n.nspname, c.relname, ic.relname) end,
         (select string_agg(format('alter index %I.%I alter column %s set statistics %s', n.nspname, ic.relname, a.attnum, a.attstattarget), '; ')
            from pg_attribute a where a.attrelid = i.indexrelid and a.attstattarget >= 0)
       ], null)
  from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_class c on c.oid = i.indrelid
  join pg_namespace n on n.oid = c.relnamespace join pg_am am on am.oid = ic.relam
  left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x') and k.conrelid = i.indrelid
 where c.relkind in ('r', 'm') and i.indexrelid >= 16384 and i.indisvalid
   and (k.oid is null or (k.contype in ('p', 'u') and am.amname = 'btree'))
 order by i.indexrelid
"#;

/// Indexes by the oid of their table. Those of exclusion constraints and of partitioned tables are
/// not among them: the archive's definitions make these.
pub(super) async fn indexes(client: &Client) -> Result<HashMap<u32, Vec<SourceIndex>>, PostgresError> {
    let mut found: HashMap<u32, Vec<SourceIndex>> = HashMap::new();
    for row in client.query(INDEXES, &[]).await.doing(|| "reading the source's indexes".to_owned())? {
        let constraint: Option<u32> = row.get(4);
        let attach: Option<String> = row.get(5);
        found.entry(row.get(0)).or_default().push(SourceIndex {
            oid: row.get(1),
            name: row.get(2),
            definition: row.get(3),
            constraint: constraint.zip(attach),
            marks: row.get(6),
        });
    }
    Ok(found)
}

/// An index that carries no constraint and is no partition's part of another.
#[derive(Clone, Debug)]
pub(super) struct PlainIndex {
    pub(super) oid: u32,
    pub(super) table: u32,
    pub(super) name: TableName,
    /// As the server tells it; the kind is `index`.
    pub(super) identity: String,
}

const PLAIN_INDEXES: &str = r#"
select i.indexrelid, i.indrelid, n.nspname::text, c.relname::text, (pg_identify_object('pg_class'::regclass, i.indexrelid, 0)).identity
  from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
 where i.indexrelid >= 16384 and i.indisvalid and n.nspname <> 'pg_toast'
   and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
   and not exists (select from pg_inherits h where h.inhrelid = i.indexrelid)
"#;

/// A database's plain indexes.
pub(super) async fn plain_indexes(client: &Client) -> Result<Vec<PlainIndex>, PostgresError> {
    let rows = client.query(PLAIN_INDEXES, &[]).await.doing(|| "reading indexes".to_owned())?;
    let index = |row: tokio_postgres::Row| PlainIndex {
        oid: row.get(0),
        table: row.get(1),
        name: TableName { schema: row.get(2), name: row.get(3) },
        identity: row.get(4),
    };
    Ok(rows.into_iter().map(index).collect())
}

/// Materialized views that were never filled.
pub(super) async fn unpopulated(client: &Client) -> Result<HashSet<u32>, PostgresError> {
    let rows = client.query("select oid from pg_class where relkind = 'm' and not relispopulated", &[]).await;
    Ok(rows.doing(|| "reading the source's materialized views".to_owned())?.into_iter().map(|row| row.get(0)).collect())
}

/// A foreign key of the source.
#[derive(Clone, Debug)]
pub(super) struct SourceKey {
    pub(super) oid: u32,
    pub(super) table: TableName,
    pub(super) name: String,
    /// The table that has it and the one that it points to.
    pub(super) ends: (u32, u32),
    /// The key that it points to is built with the rows; others, over periods, come at the end.
    pub(super) early: bool,
    /// Makes it without looking at the rows where that is possible.
    pub(super) add: String,
    /// Checks the rows afterwards, where `add` did not.
    pub(super) validate: Option<String>,
    /// Its column leads an index, as the one that it points to does.
    pub(super) ordered: bool,
}

const FOREIGN_KEYS: &str = r#"
select k.oid, n.nspname::text, c.relname::text, k.conname::text,
       format('alter table %s%I.%I add constraint %I %s%s', case c.relkind when 'r' then 'only ' else '' end, n.nspname, c.relname,
              k.conname, pg_get_constraintdef(k.oid), case when c.relkind = 'r' and k.convalidated then ' not valid' else '' end),
       case when c.relkind = 'r' and k.convalidated then
            format('alter table %I.%I validate constraint %I', n.nspname, c.relname, k.conname) end, k.conrelid, k.confrelid,
       exists (select from pg_class i join pg_am m on m.oid = i.relam where i.oid = k.conindid and m.amname = 'btree'),
       cardinality(k.conkey) = 1 and exists (
           select from pg_index x join pg_class i on i.oid = x.indexrelid join pg_am m on m.oid = i.relam
            where x.indrelid = k.conrelid and x.indkey[0] = k.conkey[1] and x.indisvalid and x.indpred is null and m.amname = 'btree')
  from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
 where k.contype = 'f' and k.conparentid = 0 and k.oid >= 16384
 order by pg_table_size(c.oid) desc, k.oid
"#;

/// Foreign keys, those of the largest tables first. A partitioned table's key cannot be made
/// without looking at the rows (before PostgreSQL 18).
pub(super) async fn foreign_keys(client: &Client) -> Result<Vec<SourceKey>, PostgresError> {
    let rows = client.query(FOREIGN_KEYS, &[]).await.doing(|| "reading the source's foreign keys".to_owned())?;
    Ok(rows
        .into_iter()
        .map(|row| SourceKey {
            oid: row.get(0),
            table: TableName { schema: row.get(1), name: row.get(2) },
            name: row.get(3),
            add: row.get(4),
            validate: row.get(5),
            ends: (row.get(6), row.get(7)),
            early: row.get(8),
            ordered: row.get(9),
        })
        .collect())
}
