//! Indexes, keys, exclusions, foreign keys, extended statistics.
//!
//! A primary or unique key of a table with rows has its index made first, by a statement of its
//! own: several indexes of one table can be built at once, several keys cannot. A foreign key is
//! made without looking at the rows, where that is possible, and validated by a further statement.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;

use super::draft::{Draft, Fate, Item, PG_CLASS, PG_CONSTRAINT, PG_INHERITS, STEP, Stage};
use super::rows::{self, OWN, free};
use super::{Cause, Kind};
use crate::postgres::{quote_identifier, quote_qualified};

/// Invalid indexes are none of ours, but those of a partitioned table are so until all parts are there.
///
/// Columns: index, table, schema, table's name, index's name, definition, table's sort, constraint,
/// its definition, `using index` form or null, marks, parent index, schema of the parent, its name,
/// whether it is more than unique.
pub(super) fn indexes() -> String {
    format!(
        "select i.indexrelid, i.indrelid, n.nspname::text, c.relname::text, ic.relname::text, pg_get_indexdef(i.indexrelid), c.relkind::text, \
         k.oid, pg_get_constraintdef(k.oid), \
         case when k.contype in ('p', 'u') and m.amname = 'btree' and c.relkind = 'r' then format('%s using index %I%s%s', \
           case k.contype when 'p' then 'primary key' else 'unique' end, ic.relname, \
           case when k.condeferrable then ' deferrable' else '' end, case when k.condeferred then ' initially deferred' else '' end) end, \
         array_remove(array[ \
           case when i.indisclustered then format('alter %s %I.%I cluster on %I', \
             case c.relkind when 'm' then 'materialized view' else 'table' end, n.nspname, c.relname, ic.relname) end, \
           case when i.indisreplident then format('alter table only %I.%I replica identity using index %I', n.nspname, c.relname, ic.relname) end, \
           (select string_agg(format('alter index %I.%I alter column %s set statistics %s', n.nspname, ic.relname, a.attnum, a.attstattarget), \
              e';\\n' order by a.attnum) from pg_attribute a where a.attrelid = i.indexrelid and a.attstattarget >= 0)], null)::text[], \
         h.inhparent, pn.nspname::text, pc.relname::text, i.indisexclusion \
         from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_class c on c.oid = i.indrelid \
         join pg_namespace n on n.oid = c.relnamespace join pg_am m on m.oid = ic.relam \
         left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x') and k.conrelid = i.indrelid \
         left join pg_inherits h on h.inhrelid = i.indexrelid left join pg_class pc on pc.oid = h.inhparent \
         left join pg_namespace pn on pn.oid = pc.relnamespace \
         where c.relkind in ('r', 'p', 'm') and c.relpersistence <> 't' and (i.indisvalid or c.relkind = 'p') and {OWN} and {}",
        free("pg_class", "c")
    )
}

pub(super) fn add_indexes(draft: &mut Draft, rows: Vec<Row>) {
    let mut attached = Vec::new();
    let mut keys = HashMap::new();
    for row in rows {
        let (oid, table): (u32, u32) = (row.get(0), row.get(1));
        let (schema, table_name, name): (String, String, String) = (row.get(2), row.get(3), row.get(4));
        let definition: String = row.get(5);
        let constraint: Option<u32> = row.get(7);
        keys.extend(constraint.map(|key| (oid, key)));
        let using: Option<String> = row.get(9);
        let marks: Vec<String> = row.get(10);
        let marks: String = marks.iter().map(|m| format!(";\n{m}")).collect();
        let told = format!("{table_name} {name}");
        let alter =
            format!("alter table only {} add constraint {}", quote_qualified(&schema, &table_name), quote_identifier(&name));
        let new = |id, kind, sql| Item::new(id, kind, Stage::Post, Some(schema.clone()), told.clone(), sql).of(table);
        let excludes: bool = row.get(14);
        let last = match (constraint, using) {
            (None, _) => draft.add(new((PG_CLASS, oid), Kind::Index, definition + &marks)),
            (Some(constraint), Some(using)) => {
                let index = draft.add(new((PG_CLASS, oid), Kind::Index, definition));
                let key = draft.add(new((PG_CONSTRAINT, constraint), Kind::Key, format!("{alter} {using}{marks}")));
                draft.explicit.push((key, index));
                draft.needs.push((index, (PG_CLASS, table)));
                key
            }
            (Some(constraint), None) => {
                let key =
                    draft.add(new((PG_CONSTRAINT, constraint), Kind::Key, format!("{alter} {}{marks}", row.get::<_, &str>(8))));
                draft.part_of.insert((PG_CLASS, oid), (PG_CONSTRAINT, constraint));
                key
            }
        };
        draft.needs.push((last, (PG_CLASS, table)));
        // No server takes an index of its own for a part of such a key, so the parts have it, which says the same.
        if excludes && row.get::<_, &str>(6) == "p" {
            let reason =
                "the server attaches no partition's index to it; each partition has it by itself, which keeps the same rows out";
            draft.items[last].fate = Fate::Refused(Cause::Server, reason.to_owned());
        }
        if excludes {
            continue;
        }
        if let Some(parent) = row.get::<_, Option<u32>>(11) {
            let parent_name = quote_qualified(row.get(12), row.get(13));
            let sql = format!("alter index {parent_name} attach partition {}", quote_qualified(&schema, &name));
            let step =
                Item::new((STEP, oid), Kind::IndexPartition, Stage::Post, Some(schema.clone()), told.clone(), sql).of(table);
            let index = draft.add_step(step, &[(PG_INHERITS, table)]);
            draft.explicit.push((index, last));
            attached.push((index, parent));
        }
    }
    // With its key, where the parent has one: that is its last step.
    for (index, parent) in attached {
        let parent = keys.get(&parent).map_or((PG_CLASS, parent), |key| (PG_CONSTRAINT, *key));
        draft.needs.push((index, parent));
    }
}

/// The generic columns, then the table, its validation or null, the table referred to.
pub(super) fn foreign_keys() -> String {
    format!(
        "select k.tableoid, k.oid, n.nspname::text, format('%s %s', c.relname, k.conname), \
         format('alter table %s%I.%I add constraint %I %s%s', case c.relkind when 'r' then 'only ' else '' end, n.nspname, c.relname, k.conname, \
           pg_get_constraintdef(k.oid), case when x.later then ' not valid' else '' end), null::text, k.conrelid, \
         case when x.later then format('alter table only %I.%I validate constraint %I', n.nspname, c.relname, k.conname) end, k.confrelid \
         from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace \
         join pg_class f on f.oid = k.confrelid, \
         lateral (select c.relkind = 'r' and f.relkind = 'r' and k.convalidated as later) x \
         where k.contype = 'f' and k.conparentid = 0 and c.relkind in ('r', 'p') and {OWN} and {}",
        free("pg_class", "c")
    )
}

pub(super) fn add_foreign_keys(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let table: u32 = row.get(6);
        let item = rows::item(draft, &row, Kind::ForeignKey, Stage::Post).of(table);
        let (id, schema, name) = (item.id, item.schema.clone(), item.name.clone());
        let index = draft.add(item);
        draft.references.push((index, row.get(8)));
        draft.needs.push((index, (PG_CLASS, table)));
        if let Some(sql) = row.get::<_, Option<String>>(7) {
            let step = Item::new((STEP, id.1), Kind::ForeignKeyValidation, Stage::Post, schema, name, sql).of(table);
            draft.add_step(step, &[id]);
        }
    }
}

/// A key of a partitioned table counts only when the indexes of all partitions are attached.
pub(super) fn chain_foreign_keys(draft: &mut Draft) {
    let mut children: HashMap<u32, Vec<u32>> = std::collections::HashMap::new();
    for relation in draft.relations.values().filter(|r| r.is_partition()) {
        for parent in &relation.parents {
            children.entry(*parent).or_default().push(relation.oid);
        }
    }
    let mut found = Vec::new();
    for (key, table) in &draft.references {
        let mut tree = HashSet::new();
        let mut waiting = vec![*table];
        while let Some(at) = waiting.pop() {
            if tree.insert(at) {
                waiting.extend(children.get(&at).into_iter().flatten());
            }
        }
        if tree.len() > 1 {
            let steps = draft.items.iter().enumerate();
            let steps = steps.filter(|(_, i)| i.kind == Kind::IndexPartition && tree.contains(&i.relation));
            found.extend(steps.map(|(step, _)| (*key, step)));
        }
    }
    draft.explicit.extend(found);
}

pub(super) fn statistics(version: i32) -> String {
    let target = if version >= 130_000 {
        "coalesce((select format(e';\\nalter statistics %I.%I set statistics %s', n.nspname, s.stxname, s.stxstattarget) where s.stxstattarget >= 0), '')"
    } else {
        "''"
    };
    format!(
        "select s.tableoid, s.oid, n.nspname::text, s.stxname::text, pg_get_statisticsobjdef(s.oid) || {target}, null::text, s.stxrelid \
         from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where {OWN} and {}",
        free("pg_statistic_ext", "s")
    )
}
