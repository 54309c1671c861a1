//! Makes a table on the target that only the source has.
//!
//! The definition comes from `pg_dump`, the keys and indexes that follow the load from the
//! catalogue. All of it is part of the run's one transaction: a failed load leaves no table.
//! Foreign keys and triggers are not made: they would bind rows that only grow to tables that the
//! full replication replaces. Partitions that are new on the source are made the same way.

use std::path::Path;

use crate::postgres::client_programs::{DumpError, PgDump};
use crate::postgres::{Connection, Database, Doing, quote_identifier, quote_qualified, server_major};
use crate::replication::settings::TableName;

use super::IncrementalError;
use super::catalogue::Relation;

/// Tables that the target lacks.
pub(super) struct Absent {
    /// The table itself, unless only partitions of it are absent, then these.
    tables: Vec<(u32, TableName)>,
}

impl Absent {
    pub(super) fn contains(&self, table: &TableName) -> bool {
        self.tables.iter().any(|(_, t)| t == table)
    }
}

/// What the target lacks of `table`; `None` when nothing is to be made.
pub(super) async fn absent(
    source: &Connection,
    target: &Connection,
    table: &TableName,
    relation: &Relation,
) -> Result<Option<Absent>, IncrementalError> {
    let there = super::catalogue::relation(target, table).await?;
    let tables = match there {
        None if !relation.partitioned => vec![(relation.oid, table.clone())],
        // A plain table on the target takes the rows of all partitions.
        Some(there) if !(relation.partitioned && there.partitioned) => vec![],
        _ => {
            let sql = "select c.oid, n.nspname, c.relname from pg_catalog.pg_partition_tree($1::oid::regclass) p
                join pg_catalog.pg_class c on c.oid = p.relid
                join pg_catalog.pg_namespace n on n.oid = c.relnamespace order by p.level, c.oid";
            let rows =
                source.query(sql, &[&relation.oid]).await.doing(|| format!("listing the partitions of table `{table}`"))?;
            let mut tables = Vec::new();
            for row in rows {
                let part = TableName { schema: row.get(1), name: row.get(2) };
                let exists: bool = target
                    .query_one("select pg_catalog.to_regclass($1) is not null", &[&part.quoted()])
                    .await
                    .doing(|| format!("looking for partition `{part}` on the target"))?
                    .get(0);
                if !exists {
                    tables.push((row.get(0), part));
                }
            }
            tables
        }
    };
    Ok((!tables.is_empty()).then_some(Absent { tables }))
}

/// Makes the tables without indexes. `programs` is the directory of pg_dump; none: it is looked for.
pub(super) async fn make(
    (source, source_session): (&Database, &Connection),
    programs: Option<&Path>,
    target: &Connection,
    table: &TableName,
    absent: &Absent,
) -> Result<(), IncrementalError> {
    let failed = |reason: String| IncrementalError::Create {
        table: table.clone(),
        reason,
        way_out: "make first what it needs (schema, types, functions); the full replication does that".to_owned(),
    };
    let mut what = vec!["--section=pre-data".to_owned()];
    // A quoted pattern is exact.
    what.extend(absent.tables.iter().map(|(_, absent)| format!("--table={}", absent.quoted())));
    let tool = |error: DumpError| IncrementalError::tool(table, error);
    let program = PgDump::find(programs, server_major(source_session).await?).await.map_err(|e| tool(e.into()))?;
    let dump = program.script(source, &what).await.map_err(tool)?;
    for (_, absent) in &absent.tables {
        let schema = quote_identifier(&absent.schema);
        let exists: bool = target
            .query_one("select pg_catalog.to_regnamespace($1) is not null", &[&schema])
            .await
            .doing(|| format!("looking for schema {schema} on the target"))?
            .get(0);
        if !exists {
            let create = format!("create schema {schema}");
            target.batch_execute(&create).await.map_err(|e| failed(crate::postgres::explain(&e)))?;
        }
    }
    // The dump's own settings are left out: an older server does not know them all. Names are
    // qualified, and texts written for this one.
    let sql = format!(
        "set local search_path = ''; set local standard_conforming_strings = on;\n{}\n; reset search_path",
        dump.definitions
    );
    target.batch_execute(&sql).await.map_err(|e| failed(crate::postgres::explain(&e)))
}

/// Builds keys and indexes behind the load.
pub(super) async fn finish(
    source: &Connection,
    target: &Connection,
    table: &TableName,
    absent: &Absent,
) -> Result<(), IncrementalError> {
    let oids: Vec<u32> = absent.tables.iter().map(|(oid, _)| *oid).collect();
    let reading = || format!("reading the keys and indexes of table `{table}` from the source");
    let building = || format!("building the keys and indexes of table `{table}` on the target");
    // Those of a partition that belong to its parent's come with the parent's.
    let constraints = "select n.nspname, c.relname, o.conname, pg_catalog.pg_get_constraintdef(o.oid)
        from pg_catalog.pg_constraint o
        join pg_catalog.pg_class c on c.oid = o.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where o.conrelid = any($1) and o.contype in ('p', 'u', 'x') and o.conparentid = 0
        order by o.contype, o.conname";
    for row in source.query(constraints, &[&oids]).await.doing(reading)? {
        let (schema, name, constraint, definition): (&str, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let sql =
            format!("alter table {} add constraint {} {definition}", quote_qualified(schema, name), quote_identifier(constraint));
        target.batch_execute(&sql).await.doing(building)?;
    }
    let indexes = "select pg_catalog.pg_get_indexdef(i.indexrelid), pg_catalog.quote_ident(c.relname), i.indisunique
        from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
        where i.indrelid = any($1) and i.indisvalid
          and not exists (select from pg_catalog.pg_constraint o where o.conindid = i.indexrelid and o.contype in ('p', 'u', 'x'))
          and not exists (select from pg_catalog.pg_inherits h where h.inhrelid = i.indexrelid)
        order by c.relname";
    for row in source.query(indexes, &[&oids]).await.doing(reading)? {
        let (definition, name, unique): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
        // A partitioned index is shown as `ON ONLY`, to be completed part by part; we want it whole.
        let head = format!("CREATE {}INDEX {name} ON ", if unique { "UNIQUE " } else { "" });
        let sql = match definition.strip_prefix(&head).and_then(|rest| rest.strip_prefix("ONLY ")) {
            Some(rest) => format!("{head}{rest}"),
            None => definition.to_owned(),
        };
        target.batch_execute(&sql).await.doing(building)?;
    }
    Ok(())
}
