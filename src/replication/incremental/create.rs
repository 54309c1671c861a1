//! Makes a table on the target that only the source has.
//!
//! The definition comes from the source's catalogue ([`super::super::ddl`]), and so do the keys and indexes
//! that follow the load. All of it is part of the run's one transaction: a failed load leaves no table.
//! Foreign keys and triggers are not made: they would bind rows that only grow to tables that the
//! full replication replaces. Partitions that are new on the source are made the same way.

use std::collections::HashSet;

use crate::postgres::{Connection, Doing, PostgresError, explain, quote_identifier, quote_qualified, server_major};
use crate::replication::ddl::{Catalogue, DdlError, Kind, Options, Section, Statement};
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

/// What the target, whose table is `there`, lacks of `table`; `None` when nothing is to be made.
pub(super) async fn absent(
    source: &Connection,
    target: &Connection,
    table: &TableName,
    (relation, there): (&Relation, Option<&Relation>),
) -> Result<Option<Absent>, IncrementalError> {
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
                if !exists(target, "regclass", &part.quoted()).await? {
                    tables.push((row.get(0), part));
                }
            }
            tables
        }
    };
    Ok((!tables.is_empty()).then_some(Absent { tables }))
}

/// Makes the tables without indexes, and the sequences that their defaults use.
pub(super) async fn make(
    source: &Connection,
    target: &Connection,
    table: &TableName,
    absent: &Absent,
) -> Result<(), IncrementalError> {
    let failed = |reason: String| IncrementalError::Create { table: table.clone(), reason };
    let version = i32::try_from(server_major(target).await?).unwrap_or(0) * 10_000;
    let options = Options { target: Some(version), ..Options::default() };
    let catalogue = Catalogue::read(source, &options).await.map_err(|error| match error {
        DdlError::Postgres(error) => IncrementalError::Postgres(error),
        other => failed(other.to_string()),
    })?;
    if let Some(refusal) = catalogue.refusals().iter().find(|r| absent.tables.iter().any(|(oid, _)| *oid == r.oid)) {
        return Err(failed(refusal.reason.clone()));
    }
    for (_, absent) in &absent.tables {
        let schema = quote_identifier(&absent.schema);
        if !exists(target, "regnamespace", &schema).await? {
            let create = format!("create schema {schema}");
            target.batch_execute(&create).await.map_err(|e| failed(explain(&e)))?;
        }
    }
    let chosen = chosen(target, catalogue.statements(), absent).await?;
    // Texts are written for these, and names are qualified.
    let sql = format!(
        "set local search_path = ''; set local standard_conforming_strings = on;\n{};\nreset search_path",
        chosen.join(";\n")
    );
    target.batch_execute(&sql).await.map_err(|e| failed(explain(&e)))
}

/// The statements, in their order, that make the tables and what belongs to them.
async fn chosen<'s>(target: &Connection, all: &'s [Statement], absent: &Absent) -> Result<Vec<&'s str>, PostgresError> {
    let mut relations: HashSet<u32> = absent.tables.iter().map(|(oid, _)| *oid).collect();
    let before = |s: &&Statement| s.section == Section::Pre;
    let needed: Vec<&Statement> = all
        .iter()
        .filter(|s| relations.contains(&s.relation))
        .filter(before)
        .flat_map(|s| s.depends_on.iter().map(|at| &all[*at]))
        .filter(|s| s.kind == Kind::Sequence)
        .collect();
    for sequence in needed {
        let name = quote_qualified(sequence.schema.as_deref().unwrap_or_default(), &sequence.name);
        if !exists(target, "regclass", &name).await? {
            relations.insert(sequence.oid);
        }
    }
    Ok(all.iter().filter(|s| relations.contains(&s.relation)).filter(before).map(|s| s.sql.as_str()).collect())
}

async fn exists(target: &Connection, class: &str, name: &str) -> Result<bool, PostgresError> {
    let sql = format!("select pg_catalog.to_{class}($1) is not null");
    Ok(target.query_one(&sql, &[&name]).await.doing(|| format!("looking for {name} on the target"))?.get(0))
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
