//! Views and materialized views.

use std::collections::{HashMap, HashSet};

use super::Kind;
use super::draft::{Draft, Item, ObjectId, PG_CLASS, PG_REWRITE, STEP, Shell, Stage};
use super::table_text::column_marks;
use super::tables::Relation;
use crate::postgres::quote_identifier;

pub(super) fn write(draft: &mut Draft, relation: &Relation) {
    let quoted = relation.name.quoted();
    let (schema, name) = (Some(relation.name.schema.clone()), relation.name.name.clone());
    let definition = relation.definition.as_deref().unwrap_or_default();
    let options = if relation.options.is_empty() { String::new() } else { format!(" with ({})", relation.options.join(", ")) };
    let own: ObjectId = (PG_CLASS, relation.oid);
    if relation.sort == 'v' {
        let sql = format!("create view {quoted}{options} as\n{definition}");
        let mut item = Item::new(own, Kind::View, Stage::Float, schema, name, sql).of(relation.oid);
        let columns: Vec<String> = relation
            .columns
            .iter()
            .map(|c| format!("null::{}{} as {}", c.bare_type, c.collation, quote_identifier(&c.name)))
            .collect();
        item.shell = Some(Shell {
            kind: Kind::ShellView,
            sql: format!("create view {quoted} as select {}", columns.join(", ")),
            // The types of its columns; what it selects from belongs to its rule.
            needs: draft.dependencies.iter().filter(|d| d.from == own).map(|d| d.to).collect(),
            then: Some(format!("create or replace view {quoted}{options} as\n{definition}")),
        });
        draft.add(item);
        return;
    }
    let method = relation.access_method.as_ref().map(|m| format!(" using {}", quote_identifier(m))).unwrap_or_default();
    let mut sql = format!("create materialized view {quoted}{method}{options} as\n{definition}\nwith no data");
    for mark in relation.columns.iter().flat_map(|c| column_marks("materialized view", &quoted, c)) {
        sql.push_str(&format!(";\n{mark}"));
    }
    draft.add(Item::new(own, Kind::MaterializedView, Stage::Float, schema.clone(), name.clone(), sql).of(relation.oid));
    if relation.populated {
        let sql = format!("refresh materialized view {quoted}");
        let step = Item::new((STEP, relation.oid), Kind::Refresh, Stage::Post, schema, name, sql).of(relation.oid);
        draft.add_step(step, &[own]);
    }
}

/// The rule that is a view, as a part of it.
pub(super) fn rules_of_views() -> String {
    "select r.oid, r.ev_class from pg_rewrite r join pg_class c on c.oid = r.ev_class \
     where c.relkind in ('v', 'm') and r.rulename = '_RETURN' and r.oid >= 16384"
        .to_owned()
}

pub(super) fn add_rules_of_views(draft: &mut Draft, rows: Vec<tokio_postgres::Row>) {
    for row in rows {
        draft.part_of.insert((PG_REWRITE, row.get(0)), (PG_CLASS, row.get(1)));
    }
}

/// A refresh comes after those of the materialized views that it reads, through views and
/// functions too; a filled view's indexes are built over its rows.
pub(super) fn chain_refreshes(draft: &mut Draft) {
    let refreshes: HashMap<u32, usize> =
        draft.items.iter().enumerate().filter(|(_, i)| i.kind == Kind::Refresh).map(|(at, i)| (i.relation, at)).collect();
    if refreshes.is_empty() {
        return;
    }
    let mut needs: HashMap<usize, Vec<usize>> = HashMap::new();
    for (from, to) in draft.edges() {
        needs.entry(from).or_default().push(to);
    }
    let mut found = Vec::new();
    for (relation, refresh) in &refreshes {
        let Some(start) = draft.home((PG_CLASS, *relation)) else { continue };
        let mut seen = HashSet::from([start]);
        let mut waiting = vec![start];
        while let Some(at) = waiting.pop() {
            for next in needs.get(&at).into_iter().flatten().filter(|n| seen.insert(**n)) {
                let item = &draft.items[*next];
                match item.kind {
                    Kind::MaterializedView => found.extend(refreshes.get(&item.relation).map(|other| (*refresh, *other))),
                    Kind::Refresh => {}
                    _ => waiting.push(*next),
                }
            }
        }
    }
    let indexes = draft.items.iter().enumerate().filter(|(_, i)| i.kind == Kind::Index);
    found.extend(indexes.filter_map(|(at, i)| refreshes.get(&i.relation).map(|refresh| (at, *refresh))));
    draft.explicit.extend(found);
}
