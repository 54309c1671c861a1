//! Tables, partitions, views and materialized views, and their columns, as read.

use tokio_postgres::Row;

use super::draft::{Draft, PG_CLASS};
use super::rows::{OWN, collate, free};
use super::{Table, TableKind};
use crate::replication::settings::TableName;

#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// `pg_class.relkind`.
    pub(super) sort: char,
    pub(super) unlogged: bool,
    pub(super) identity: char,
    pub(super) row_security: bool,
    pub(super) forced: bool,
    pub(super) partition_key: Option<String>,
    pub(super) partition_bound: Option<String>,
    pub(super) options: Vec<String>,
    /// Other than `heap`, which a partitioned table may name for its partitions to come.
    pub(super) access_method: Option<String>,
    pub(super) of_type: Option<String>,
    /// In their order.
    pub(super) parents: Vec<u32>,
    /// Their names, quoted; an extension's table may be among them.
    pub(super) parent_names: Vec<String>,
    /// Of a view, without the last semicolon.
    pub(super) definition: Option<String>,
    pub(super) populated: bool,
    pub(super) tablespace: Option<String>,
    pub(super) columns: Vec<Column>,
    pub(super) checks: Vec<Check>,
}

impl Relation {
    pub(super) fn is_partition(&self) -> bool {
        self.partition_bound.is_some()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) number: i16,
    pub(super) name: String,
    /// With compression and collation.
    pub(super) of_type: String,
    pub(super) bare_type: String,
    pub(super) collation: String,
    pub(super) filled: bool,
    /// A name for NOT NULL where the server keeps one, `no inherit` and the like.
    pub(super) filled_name: Option<String>,
    pub(super) filled_local: bool,
    pub(super) local: bool,
    pub(super) identity: char,
    /// `s`: stored, `v`: virtual.
    pub(super) generated: char,
    pub(super) default: Option<String>,
    pub(super) default_oid: u32,
    pub(super) storage: Option<String>,
    pub(super) statistics: i32,
    pub(super) options: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) definition: String,
    pub(super) validated: bool,
    pub(super) local: bool,
}

fn character(row: &Row, column: usize) -> char {
    row.get::<_, Option<&str>>(column).and_then(|t| t.chars().next()).unwrap_or(' ')
}

/// `name='value'` out of each of `array`.
fn settings(array: &str, prefix: &str) -> String {
    format!(
        "(select array_agg(format('{prefix}%I=%L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)) order by k) \
         from unnest({array}) with ordinality u(o, k))"
    )
}

/// Relations that make up the result; foreign tables are told elsewhere, as not copied.
pub(super) fn relations() -> String {
    format!(
        "select c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'u', c.relreplident::text, c.relrowsecurity, \
         c.relforcerowsecurity, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid), \
         coalesce({} || coalesce({}, '{{}}'), {}, '{{}}')::text[], \
         case when m.amname <> 'heap' or c.relkind = 'p' then m.amname::text end, \
         case when c.reloftype <> 0 then format_type(c.reloftype, null) end, \
         array(select i.inhparent from pg_inherits i where i.inhrelid = c.oid order by i.inhseqno), \
         case when c.relkind in ('v', 'm') then rtrim(pg_get_viewdef(c.oid), ';') end, c.relispopulated, s.spcname::text, \
         case when c.relkind in ('r', 'm') then pg_table_size(c.oid) else 0 end, c.reltuples::float8, \
         has_table_privilege(c.oid, 'select') and not row_security_active(c.oid), \
         array(select format('%I.%I', pn.nspname, pc.relname) from pg_inherits i join pg_class pc on pc.oid = i.inhparent \
           join pg_namespace pn on pn.oid = pc.relnamespace where i.inhrelid = c.oid order by i.inhseqno) \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace left join pg_class t on t.oid = c.reltoastrelid \
         left join pg_am m on m.oid = c.relam left join pg_tablespace s on s.oid = c.reltablespace \
         where c.relkind in ('r', 'p', 'v', 'm') and c.relpersistence <> 't' and {OWN} and {}",
        settings("c.reloptions", ""),
        settings("t.reloptions", "toast."),
        settings("t.reloptions", "toast."),
        free("pg_class", "c")
    )
}

pub(super) fn add_relations(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let relation = Relation {
            oid: row.get(0),
            name: TableName { schema: row.get(1), name: row.get(2) },
            sort: character(&row, 3),
            unlogged: row.get(4),
            identity: character(&row, 5),
            row_security: row.get(6),
            forced: row.get(7),
            partition_key: row.get(8),
            partition_bound: row.get(9),
            options: row.get(10),
            access_method: row.get(11),
            of_type: row.get(12),
            parents: row.get(13),
            parent_names: row.get(20),
            definition: row.get(14),
            populated: row.get(15),
            tablespace: row.get(16),
            columns: Vec::new(),
            checks: Vec::new(),
        };
        let kind = match relation.sort {
            'p' => Some(TableKind::Partitioned),
            'm' => Some(TableKind::MaterializedView),
            'r' if relation.is_partition() => Some(TableKind::Partition),
            'r' => Some(TableKind::Table),
            _ => None,
        };
        if let Some(kind) = kind {
            let rows: f64 = row.get(18);
            draft.tables.push(Table {
                oid: relation.oid,
                name: relation.name.clone(),
                kind,
                columns: Vec::new(),
                bytes: row.get(17),
                // Before 14, a table that was never counted says 0.
                rows: (rows >= 0.0).then_some(rows),
                condition: None,
                readable: row.get(19),
                parents: relation.parents.clone(),
            });
        }
        draft.relations.insert(relation.oid, relation);
    }
}

pub(super) fn columns(version: i32) -> String {
    let collation = collate("a.attcollation", "t.typcollation");
    let compression = if version >= 140_000 {
        "case a.attcompression when 'p' then ' compression pglz' when 'l' then ' compression lz4' else '' end"
    } else {
        "''"
    };
    // NOT NULL is a constraint with a name from 18 on; one that is NOT VALID is made by itself.
    let (filled, name, local, join) = if version >= 180_000 {
        (
            "a.attnotnull and coalesce(k.convalidated, true)",
            "case when k.oid is not null then format('constraint %I not null%s', k.conname, case when k.connoinherit then ' no inherit' else '' end) end",
            "coalesce(k.conislocal, true)",
            "left join pg_constraint k on k.conrelid = a.attrelid and k.contype = 'n' and k.conkey[1] = a.attnum",
        )
    } else {
        ("a.attnotnull", "null::text", "true", "")
    };
    format!(
        "select a.attrelid, a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), {compression}, {collation}, {filled}, {name}, {local}, \
         a.attislocal, a.attidentity::text, a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), coalesce(d.oid, 0), \
         case when a.attstorage <> t.typstorage then case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end end, \
         coalesce(a.attstattarget, -1)::int4, array_to_string({}, ', ') \
         from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace \
         join pg_type t on t.oid = a.atttypid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum {join} \
         where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm') and c.relpersistence <> 't' and c.oid >= 16384 and {OWN} \
         order by a.attrelid, a.attnum",
        settings("a.attoptions", "")
    )
}

pub(super) fn add_columns(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let relation: u32 = row.get(0);
        let bare_type: String = row.get(3);
        let (compression, collation): (String, String) = (row.get(4), row.get(5));
        let column = Column {
            number: row.get(1),
            name: row.get(2),
            of_type: format!("{bare_type}{compression}{collation}"),
            bare_type,
            collation,
            filled: row.get(6),
            filled_name: row.get(7),
            filled_local: row.get(8),
            local: row.get(9),
            identity: character(&row, 10),
            generated: character(&row, 11),
            default: row.get(12),
            default_oid: row.get(13),
            storage: row.get(14),
            statistics: row.get(15),
            options: row.get::<_, Option<String>>(16).filter(|o| !o.is_empty()),
        };
        let Some(relation) = draft.relations.get_mut(&relation) else { continue };
        if column.default_oid != 0 {
            draft.part_of.insert((super::draft::PG_ATTRDEF, column.default_oid), (PG_CLASS, relation.oid));
        }
        relation.columns.push(column);
    }
    for table in &mut draft.tables {
        if let Some(relation) = draft.relations.get(&table.oid) {
            table.columns = relation.columns.iter().filter(|c| c.generated == ' ').map(|c| c.name.clone()).collect();
        }
    }
}

/// Checks; and from 18 on, where NOT NULL may be unproven too, those that are.
pub(super) fn checks(version: i32) -> String {
    let unproven = if version >= 180_000 { "or k.contype = 'n' and not k.convalidated" } else { "" };
    format!(
        "select k.conrelid, k.oid, k.conname::text, pg_get_constraintdef(k.oid), k.convalidated, k.conislocal from pg_constraint k \
         join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace \
         where (k.contype = 'c' {unproven}) and k.conrelid <> 0 and {OWN} order by k.conrelid, k.conname"
    )
}

pub(super) fn add_checks(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let Some(relation) = draft.relations.get_mut(&row.get(0)) else { continue };
        let check = Check { oid: row.get(1), name: row.get(2), definition: row.get(3), validated: row.get(4), local: row.get(5) };
        draft.part_of.insert((super::draft::PG_CONSTRAINT, check.oid), (PG_CLASS, relation.oid));
        relation.checks.push(check);
    }
}

/// Extensions' tables whose rows, or some of them, are the user's.
pub(super) fn extension_tables() -> String {
    "select c.oid, n.nspname::text, c.relname::text, nullif(e.extcondition[x.k], ''), pg_table_size(c.oid), c.reltuples::float8, \
     has_table_privilege(c.oid, 'select') and not row_security_active(c.oid), \
     array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum) \
     from pg_extension e, unnest(e.extconfig) with ordinality x(relation, k) join pg_class c on c.oid = x.relation \
     join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r'"
        .to_owned()
}

pub(super) fn add_extension_tables(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let estimate: f64 = row.get(5);
        draft.tables.push(Table {
            oid: row.get(0),
            name: TableName { schema: row.get(1), name: row.get(2) },
            kind: TableKind::Extension,
            condition: row.get(3),
            bytes: row.get(4),
            rows: (estimate >= 0.0).then_some(estimate),
            readable: row.get(6),
            columns: row.get(7),
            parents: Vec::new(),
        });
    }
}
