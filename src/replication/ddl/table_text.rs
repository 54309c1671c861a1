//! Writes tables: `CREATE TABLE` with all that belongs into it, and the steps that follow.
//!
//! A partition is made by itself and attached, so that its columns stand as they stand on the
//! source. A table that inherits is made with `INHERITS` where that gives the columns in the
//! source's order, or else by itself and tied to its parents, where all its columns are its own.

use super::draft::{Draft, Inline, Item, PG_ATTRDEF, PG_CLASS, PG_CONSTRAINT, PG_INHERITS, STEP, Segment, Sql, Stage};
use super::tables::{Check, Column, Relation};
use super::{Cause, Kind, Refusal, views};
use crate::postgres::{quote_identifier, quote_qualified};

pub(super) fn write(draft: &mut Draft) {
    let mut oids: Vec<u32> = draft.relations.keys().copied().collect();
    oids.sort_unstable();
    for relation in draft.relations.values().filter(|r| !r.is_partition()) {
        for parent in &relation.parents {
            draft.heirs.entry(*parent).or_default().push(relation.oid);
        }
    }
    for oid in &oids {
        let relation = draft.relations[oid].clone();
        match relation.sort {
            'r' | 'p' => table(draft, &relation),
            _ => views::write(draft, &relation),
        }
        if let Some(tablespace) = &relation.tablespace {
            draft.lost.push(Refusal {
                kind: Kind::Tablespace,
                schema: Some(relation.name.schema.clone()),
                name: relation.name.name.clone(),
                oid: *oid,
                cause: Cause::Property,
                reason: format!("it lies in tablespace {tablespace}; the copy lies in the target's default one"),
            });
        }
    }
    for oid in &oids {
        let relation = draft.relations[oid].clone();
        after(draft, &relation);
    }
}

/// How a table comes by its parents.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Descent {
    None,
    Inherits,
    Tied,
    Partition,
}

fn descent(draft: &Draft, relation: &Relation) -> Descent {
    if relation.is_partition() {
        return Descent::Partition;
    }
    if relation.parents.is_empty() {
        return Descent::None;
    }
    let mut expected: Vec<&str> = Vec::new();
    let parents = relation.parents.iter().filter_map(|p| draft.relations.get(p)).flat_map(|p| &p.columns);
    for column in parents.chain(relation.columns.iter().filter(|c| c.local)) {
        if !expected.contains(&column.name.as_str()) {
            expected.push(&column.name);
        }
    }
    let all_own = relation.columns.iter().all(|c| c.local);
    if all_own && !relation.columns.iter().map(|c| c.name.as_str()).eq(expected) { Descent::Tied } else { Descent::Inherits }
}

fn table(draft: &mut Draft, relation: &Relation) {
    let descent = descent(draft, relation);
    let quoted = relation.name.quoted();
    let mut elements = Vec::new();
    let mut marks = Vec::new();
    for column in &relation.columns {
        if let Some(element) = column_element(draft, relation, column, descent, &mut marks) {
            elements.push(element);
        }
        marks.extend(column_marks("table only", &quoted, column));
    }
    for check in
        relation.checks.iter().filter(|c| c.validated && (c.local || matches!(descent, Descent::Partition | Descent::Tied)))
    {
        elements.push(vec![Segment::Inline(check_inline(&quoted, &relation.name.name, check))]);
    }
    match relation.identity {
        'f' => marks.push(format!("alter table only {quoted} replica identity full")),
        'n' => marks.push(format!("alter table only {quoted} replica identity nothing")),
        _ => {}
    }
    let identities = relation.columns.iter().filter_map(|c| draft.identities.get(&(relation.oid, c.number)));
    marks.extend(identities.filter_map(|i| i.persistence.clone()));

    // Of a partitioned table it means nothing, and servers from 18 on refuse it.
    let unlogged = if relation.unlogged && relation.sort == 'r' { "unlogged " } else { "" };
    let mut head = format!("create {unlogged}table {quoted}");
    if let Some(of_type) = &relation.of_type {
        head.push_str(&format!(" of {of_type}"));
    }
    let mut tail = String::new();
    // A table of a type may have no list at all, but not an empty one.
    if relation.of_type.is_none() || !elements.is_empty() {
        head.push_str(" (\n    ");
        tail.push_str("\n)");
    }
    if descent == Descent::Inherits {
        tail.push_str(&format!(" inherits ({})", relation.parent_names.join(", ")));
    }
    if let Some(key) = &relation.partition_key {
        tail.push_str(&format!(" partition by {key}"));
    }
    if let Some(method) = &relation.access_method {
        tail.push_str(&format!(" using {}", quote_identifier(method)));
    }
    if !relation.options.is_empty() {
        tail.push_str(&format!(" with ({})", relation.options.join(", ")));
    }
    for mark in marks {
        tail.push_str(&format!(";\n{mark}"));
    }
    let mut item = Item::new(
        (PG_CLASS, relation.oid),
        Kind::Table,
        Stage::Pre,
        Some(relation.name.schema.clone()),
        relation.name.name.clone(),
        String::new(),
    )
    .of(relation.oid);
    item.sql = Sql::List { head, elements, tail };
    draft.add(item);
}

/// The column of that name in the parents.
fn inherited<'a>(draft: &'a Draft, relation: &'a Relation, column: &'a Column) -> impl Iterator<Item = &'a Column> {
    let parents = relation.parents.iter().filter_map(|p| draft.relations.get(p));
    parents.filter_map(|p| p.columns.iter().find(|c| c.name == column.name))
}

/// The column as it stands in the list; none where the parents bring it.
fn column_element(
    draft: &mut Draft,
    relation: &Relation,
    column: &Column,
    descent: Descent,
    marks: &mut Vec<String>,
) -> Option<Vec<Segment>> {
    let quoted = relation.name.quoted();
    let name = quote_identifier(&column.name);
    // Servers of before 18 do not know whose NOT NULL is; what parents bring is not said again. An unproven one brings nothing proven.
    let mut says_filled = column.filled;
    if descent == Descent::Inherits {
        let theirs: Vec<&Column> = inherited(draft, relation, column).collect();
        let differs = theirs.iter().any(|c| c.default != column.default);
        let lacks = column.default.is_none() && theirs.iter().any(|c| c.default.is_some());
        if lacks {
            marks.push(format!("alter table only {quoted} alter column {name} drop default"));
        }
        // What the parents bring, and nothing to say of it. A generated column's expression cannot
        // be set later, so one that differs is told again.
        let told_again = column.generated != ' ' && differs;
        let given = theirs.iter().any(|c| c.filled) && !keeps_not_null(draft, relation.parents.as_slice(), &column.name);
        says_filled = column.filled && (!given || draft.version >= 180_000 && column.filled_local);
        if !(column.local || told_again) {
            match &column.filled_name {
                _ if !says_filled => {}
                Some(constraint) => marks.push(format!("alter table only {quoted} add {}", of_column(constraint, &name))),
                None => marks.push(format!("alter table only {quoted} alter column {name} set not null")),
            }
            if differs && let Some(default) = &column.default {
                let sql = format!("alter table only {quoted} alter column {name} set default {default}");
                set_default(draft, relation, column, sql);
            }
            return None;
        }
    }
    let mut segments = Vec::new();
    if relation.of_type.is_some() {
        let says = column.filled || column.default.is_some() || column.identity != ' ';
        if !says {
            return None;
        }
        segments.push(Segment::Text(format!("{name} with options")));
    } else {
        segments.push(Segment::Text(format!("{name} {}", column.of_type)));
    }
    if let Some(default) = &column.default {
        segments.push(match column.generated {
            's' => Segment::Text(format!(" generated always as ({default}) stored")),
            'v' => Segment::Text(format!(" generated always as ({default}) virtual")),
            _ => Segment::Inline(Inline {
                object: (PG_ATTRDEF, column.default_oid),
                kind: Kind::Default,
                name: format!("{} {}", relation.name.name, column.name),
                text: format!(" default {default}"),
                apart: format!("alter table only {quoted} alter column {name} set default {default}"),
            }),
        });
    }
    if let Some(identity) = draft.identities.get(&(relation.oid, column.number)) {
        let when = if column.identity == 'a' { "always" } else { "by default" };
        segments.push(Segment::Text(format!(" generated {when} as identity ({})", identity.options)));
    }
    // A partition states what it will inherit, or it could not be attached.
    if says_filled {
        segments.push(Segment::Text(match &column.filled_name {
            Some(name) => format!(" {name}"),
            None if keeps_not_null(draft, &[relation.oid], &column.name) => " not null no inherit".to_owned(),
            None => " not null".to_owned(),
        }));
    }
    Some(segments)
}

/// Whether a table below `tables` may hold NULL in a column that is NOT NULL in them: servers of before 18 let heirs differ.
fn keeps_not_null(draft: &Draft, tables: &[u32], column: &str) -> bool {
    if !draft.crosses(180_000) {
        return false;
    }
    let mut waiting = tables.to_vec();
    while let Some(at) = waiting.pop() {
        for heir in draft.heirs.get(&at).into_iter().flatten() {
            if draft.relations[heir].columns.iter().any(|c| c.name == column && !c.filled) {
                return true;
            }
            waiting.push(*heir);
        }
    }
    false
}

/// `constraint x not null` as it stands outside of a column's definition.
fn of_column(constraint: &str, column: &str) -> String {
    match constraint.strip_suffix(" no inherit") {
        Some(constraint) => format!("{constraint} {column} no inherit"),
        None => format!("{constraint} {column}"),
    }
}

fn set_default(draft: &mut Draft, relation: &Relation, column: &Column, sql: String) {
    let name = format!("{} {}", relation.name.name, column.name);
    let item =
        Item::new((PG_ATTRDEF, column.default_oid), Kind::Default, Stage::Pre, Some(relation.name.schema.clone()), name, sql)
            .of(relation.oid);
    draft.add(item);
}

fn check_inline(quoted: &str, table: &str, check: &Check) -> Inline {
    let constraint = format!("constraint {} {}", quote_identifier(&check.name), check.definition);
    Inline {
        object: (PG_CONSTRAINT, check.oid),
        kind: Kind::Check,
        name: format!("{table} {}", check.name),
        apart: format!("alter table {quoted} add {constraint}"),
        text: constraint,
    }
}

/// What can only be set once the column is there.
pub(super) fn column_marks(what: &str, quoted: &str, column: &Column) -> Vec<String> {
    let alter = format!("alter {what} {quoted} alter column {}", quote_identifier(&column.name));
    let mut marks = Vec::new();
    if let Some(storage) = &column.storage {
        marks.push(format!("{alter} set storage {storage}"));
    }
    if column.statistics >= 0 {
        marks.push(format!("{alter} set statistics {}", column.statistics));
    }
    if let Some(options) = &column.options {
        marks.push(format!("{alter} set ({options})"));
    }
    marks
}

/// Steps that need the item of the table, or of two.
fn after(draft: &mut Draft, relation: &Relation) {
    let quoted = relation.name.quoted();
    let schema = Some(relation.name.schema.clone());
    let own = (PG_CLASS, relation.oid);
    let step = |kind, stage, sql| {
        Item::new((STEP, relation.oid), kind, stage, schema.clone(), relation.name.name.clone(), sql).of(relation.oid)
    };
    if let Some(bound) = &relation.partition_bound {
        for (parent, name) in relation.parents.iter().zip(&relation.parent_names) {
            let sql = format!("alter table only {name} attach partition {quoted} {bound}");
            let index = draft.add_step(step(Kind::Partition, Stage::Pre, sql), &[own, (PG_CLASS, *parent)]);
            draft.made_by.insert((PG_INHERITS, relation.oid), index);
        }
    } else if relation.sort == 'r' && descent(draft, relation) == Descent::Tied {
        for (parent, name) in relation.parents.iter().zip(&relation.parent_names) {
            let sql = format!("alter table only {quoted} inherit {name}");
            draft.add_step(step(Kind::Inheritance, Stage::Pre, sql), &[own, (PG_CLASS, *parent)]);
        }
    }
    if relation.row_security || relation.forced {
        let mut sql = Vec::new();
        if relation.row_security {
            sql.push(format!("alter table {quoted} enable row level security"));
        }
        if relation.forced {
            sql.push(format!("alter table only {quoted} force row level security"));
        }
        draft.add_step(step(Kind::RowSecurity, Stage::Post, sql.join(";\n")), &[own]);
    }
    let tied = relation.sort == 'r' && descent(draft, relation) == Descent::Tied;
    for check in relation.checks.iter().filter(|c| !c.validated && (c.local || tied)) {
        let inline = check_inline(&quoted, &relation.name.name, check);
        let item = Item::new(inline.object, Kind::Check, Stage::Post, schema.clone(), inline.name, inline.apart).of(relation.oid);
        let index = draft.add(item);
        draft.needs.push((index, own));
    }
    // A default that differs from the parents', or a view's: set by itself, once its column is there.
    for column in relation.columns.iter().filter(|c| c.default_oid != 0) {
        if relation.sort == 'v' {
            let (schema, name) = (&relation.name.schema, &relation.name.name);
            let default = column.default.as_deref().unwrap_or_default();
            let sql = format!(
                "alter view {} alter column {} set default {default}",
                quote_qualified(schema, name),
                quote_identifier(&column.name)
            );
            set_default(draft, relation, column, sql);
            let index = draft.items.len() - 1;
            draft.items[index].stage = Stage::Float;
        }
        if let Some(index) = draft.made_by.get(&(PG_ATTRDEF, column.default_oid)) {
            draft.needs.push((*index, own));
        }
    }
}
