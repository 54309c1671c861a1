//! Sequences: by themselves, owned by a column, behind an identity column; and their positions.

use tokio_postgres::{Client, Row};

use super::draft::{Draft, Item, PG_CLASS, STEP, Stage};
use super::rows::{OWN, free};
use super::{Cause, DdlError, Kind, Refusal};
use crate::postgres::{Doing, quote_literal, quote_qualified};

/// Sequences whose positions are read in one query; more make it slow to plan.
const BATCH: usize = 500;

/// What stands behind an identity column.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// `sequence name … start with …`
    pub(super) options: String,
    /// The sequence is logged otherwise than its table.
    pub(super) persistence: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) readable: bool,
}

/// Columns: oid, schema, name, type, options, persistence, kind of ownership, owner's oid, column
/// number, owner's name and column, owner's persistence, readable, owner is a partition.
pub(super) fn sql() -> String {
    format!(
        "select c.oid, n.nspname::text, c.relname::text, format_type(s.seqtypid, null), \
         format('start with %s increment by %s minvalue %s maxvalue %s cache %s%s', s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, \
           case when s.seqcycle then ' cycle' else '' end), c.relpersistence::text, d.deptype::text, d.refobjid, d.refobjsubid::int2, \
         quote_ident(tn.nspname) || '.' || quote_ident(t.relname) || '.' || quote_ident(a.attname), t.relpersistence::text, has_sequence_privilege(c.oid, 'select'), t.relispartition \
         from pg_class c join pg_sequence s on s.seqrelid = c.oid join pg_namespace n on n.oid = c.relnamespace \
         left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_class'::regclass \
           and d.refobjsubid > 0 and d.deptype in ('a', 'i') \
         left join pg_class t on t.oid = d.refobjid left join pg_namespace tn on tn.oid = t.relnamespace \
         left join pg_attribute a on a.attrelid = t.oid and a.attnum = d.refobjsubid \
         where c.relkind = 'S' and c.relpersistence <> 't' and {OWN} and {}",
        free("pg_class", "c")
    )
}

pub(super) fn add(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let (oid, schema, name): (u32, String, String) = (row.get(0), row.get(1), row.get(2));
        let (of_type, options, persistence): (String, String, String) = (row.get(3), row.get(4), row.get(5));
        let quoted = quote_qualified(&schema, &name);
        let is_identity = row.get::<_, Option<&str>>(6) == Some("i");
        if is_identity && row.get::<_, Option<bool>>(12) == Some(true) && draft.crosses(170_000) {
            let reason = format!(
                "from PostgreSQL 17 on a partition has no identity column of its own: {} is filled by its parent's",
                row.get::<_, &str>(9)
            );
            draft.lost.push(Refusal { kind: Kind::Sequence, schema: Some(schema), name, oid, cause: Cause::Property, reason });
            continue;
        }
        draft.sequences.push(Sequence { oid, schema: schema.clone(), name: name.clone(), readable: row.get(11) });
        let owner: Option<u32> = row.get(7);
        if let Some(table) = owner {
            draft.owned_sequences.push((table, oid));
        }
        if is_identity {
            let (table, column): (u32, i16) = (row.get(7), row.get(8));
            let differs = row.get::<_, &str>(10) != persistence;
            let word = if persistence == "u" { "unlogged" } else { "logged" };
            let identity = Identity {
                options: format!("sequence name {quoted} {options}"),
                persistence: (differs && draft.version >= 150_000).then(|| format!("alter sequence {quoted} set {word}")),
            };
            draft.identities.insert((table, column), identity);
            draft.part_of.insert((PG_CLASS, oid), (PG_CLASS, table));
            continue;
        }
        let unlogged = if persistence == "u" { "unlogged " } else { "" };
        let sql = format!("create {unlogged}sequence {quoted} as {of_type} {options}");
        let item = Item::new((PG_CLASS, oid), Kind::Sequence, Stage::Float, Some(schema.clone()), name.clone(), sql).of(oid);
        draft.add(item);
        if let (Some(column), Some(table)) = (row.get::<_, Option<String>>(9), owner) {
            let sql = format!("alter sequence {quoted} owned by {column}");
            let step = Item::new((STEP, oid), Kind::SequenceOwner, Stage::Float, Some(schema), name, sql).of(oid);
            draft.add_step(step, &[(PG_CLASS, oid), (PG_CLASS, table)]);
        }
    }
}

/// Reads the positions, which are no part of any snapshot: they are of this moment.
pub(super) async fn read_values(source: &Client, draft: &mut Draft) -> Result<(), DdlError> {
    let sequences = std::mem::take(&mut draft.sequences);
    for batch in sequences.chunks(BATCH) {
        let mut parts = Vec::new();
        for s in batch {
            if s.readable {
                parts.push(format!("select {}::oid, last_value, is_called from {}", s.oid, quote_qualified(&s.schema, &s.name)));
            } else {
                draft.lost.push(Refusal {
                    kind: Kind::SequenceValue,
                    schema: Some(s.schema.clone()),
                    name: s.name.clone(),
                    oid: s.oid,
                    cause: Cause::Property,
                    reason: "the source's role may not read its position; grant select on the sequence to it".to_owned(),
                });
            }
        }
        if parts.is_empty() {
            continue;
        }
        let rows =
            source.query(&parts.join(" union all "), &[]).await.doing(|| "reading the positions of sequences".to_owned())?;
        for row in rows {
            let oid: u32 = row.get(0);
            let Some(s) = batch.iter().find(|s| s.oid == oid) else { continue };
            let (last, called): (i64, bool) = (row.get(1), row.get(2));
            let sql = format!(
                "select pg_catalog.setval({}::regclass, {last}, {called})",
                quote_literal(&quote_qualified(&s.schema, &s.name))
            );
            let step =
                Item::new((STEP, oid), Kind::SequenceValue, Stage::Post, Some(s.schema.clone()), s.name.clone(), sql).of(oid);
            draft.add_step(step, &[(PG_CLASS, oid)]);
        }
    }
    Ok(())
}
