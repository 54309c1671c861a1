//! Enums, composites, domains, ranges, base types.

use tokio_postgres::Row;

use super::draft::{Draft, Fate, Inline, Item, ObjectId, PG_TYPE, Segment, Shell, Sql, Stage};
use super::rows::{self, OWN, collate, free, named};
use super::{Cause, Kind};

pub(super) fn enums() -> String {
    format!(
        "select t.tableoid, t.oid, n.nspname::text, t.typname::text, \
         format('create type %I.%I as enum (%s)', n.nspname, t.typname, \
         (select string_agg(quote_literal(l.enumlabel), ', ' order by l.enumsortorder) from pg_enum l where l.enumtypid = t.oid)), null::text \
         from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.typtype = 'e' and {OWN} and {}",
        free("pg_type", "t")
    )
}

pub(super) fn composites() -> String {
    let collation = collate("a.attcollation", "at.typcollation");
    format!(
        "select t.tableoid, t.oid, n.nspname::text, t.typname::text, \
         format(e'create type %I.%I as (\\n    %s)', n.nspname, t.typname, (select string_agg( \
           format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod), {collation}), e',\\n    ' order by a.attnum) \
           from pg_attribute a join pg_type at on at.oid = a.atttypid where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)), \
         null::text \
         from pg_type t join pg_namespace n on n.oid = t.typnamespace join pg_class c on c.oid = t.typrelid \
         where t.typtype = 'c' and c.relkind = 'c' and {OWN} and {}",
        free("pg_type", "t")
    )
}

/// Domains: the generic columns, then head without default, default, oids of what the head needs.
pub(super) fn domains(version: i32) -> String {
    // A domain's NOT NULL has a name from 17 on.
    let name = if version >= 170_000 {
        "coalesce((select format('constraint %I ', k.conname) from pg_constraint k where k.contypid = t.oid and k.contype = 'n'), '')"
    } else {
        "''"
    };
    let collation = collate("t.typcollation", "b.typcollation");
    format!(
        "with d as (select t.tableoid as class, t.oid, n.nspname::text as schema, t.typname::text as name, \
           format('create domain %I.%I as %s', n.nspname, t.typname, format_type(t.typbasetype, t.typtypmod)) || {collation} as head, \
           pg_get_expr(t.typdefaultbin, 'pg_type'::regclass) as value, \
           case when t.typnotnull then ' ' || {name} || 'not null' else '' end as filled, t.typbasetype, t.typcollation \
           from pg_type t join pg_namespace n on n.oid = t.typnamespace join pg_type b on b.oid = t.typbasetype \
           where t.typtype = 'd' and {OWN} and {}) \
         select class, oid, schema, name, head || coalesce(' default ' || value, '') || filled, null::text, head || filled, \
         format('alter domain %I.%I set default %s', schema, name, value), typbasetype, typcollation from d",
        free("pg_type", "t")
    )
}

pub(super) fn add_domains(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let mut item = rows::item(draft, &row, Kind::Domain, Stage::Float);
        // One element, which the checks join: they stand without commas.
        item.sql = Sql::List { head: row.get(4), elements: vec![Vec::new()], tail: String::new() };
        if let Some(default) = row.get::<_, Option<String>>(7) {
            let needs = vec![(PG_TYPE, row.get(8)), (3456, row.get(9))];
            item.shell = Some(Shell { kind: Kind::Domain, sql: row.get(6), needs, then: Some(default) });
        }
        draft.add(item);
    }
}

/// The generic columns, then the domain, the constraint, and whether it is validated.
pub(super) fn domain_checks() -> String {
    format!(
        "select k.tableoid, k.oid, n.nspname::text, format('%s %s', t.typname, k.conname), \
         format('alter domain %I.%I add ', n.nspname, t.typname), null::text, t.oid, \
         format('constraint %I %s', k.conname, pg_get_constraintdef(k.oid)), k.convalidated \
         from pg_constraint k join pg_type t on t.oid = k.contypid join pg_namespace n on n.oid = t.typnamespace \
         where k.contype = 'c' and {OWN} and {} order by k.contypid, k.conname",
        free("pg_type", "t")
    )
}

/// Within the domain's statement, because a domain that a column uses within an array takes no
/// further check but one that is NOT VALID.
pub(super) fn add_domain_checks(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let object: ObjectId = (row.get(0), row.get(1));
        let domain: ObjectId = (PG_TYPE, row.get(6));
        let (alter, constraint): (&str, &str) = (row.get(4), row.get(7));
        let (name, apart) = (row.get::<_, String>(3), format!("{alter}{constraint}"));
        let home = draft.home(domain).filter(|_| row.get(8));
        match home.map(|at| &mut draft.items[at].sql) {
            Some(Sql::List { elements, .. }) => {
                let text = format!("\n    {constraint}");
                elements[0].push(Segment::Inline(Inline { object, kind: Kind::DomainCheck, name, text, apart }));
                draft.part_of.insert(object, domain);
            }
            _ => {
                let index = draft.add(Item::new(object, Kind::DomainCheck, Stage::Pre, row.get(2), name, apart));
                draft.needs.push((index, domain));
            }
        }
    }
}

/// Ranges: the generic columns, then the shell, where one is needed.
pub(super) fn ranges(version: i32) -> String {
    let multirange = if version >= 140_000 { named("pg_type", "typ", "r.rngmultitypid") } else { "null".to_owned() };
    format!(
        "select t.tableoid, t.oid, n.nspname::text, t.typname::text, \
         format(e'create type %I.%I as range (\\n    %s)', n.nspname, t.typname, array_to_string(array[ \
           'subtype = ' || format_type(r.rngsubtype, null), 'subtype_opclass = ' || {}, \
           case when r.rngcollation <> s.typcollation then 'collation = ' || {} end, \
           case when r.rngcanonical <> 0 then 'canonical = ' || r.rngcanonical::text end, \
           case when r.rngsubdiff <> 0 then 'subtype_diff = ' || r.rngsubdiff::text end, \
           'multirange_type_name = ' || {multirange}], e',\\n    ')), null::text, \
         case when r.rngcanonical <> 0 then format('create type %I.%I', n.nspname, t.typname) end \
         from pg_type t join pg_namespace n on n.oid = t.typnamespace join pg_range r on r.rngtypid = t.oid join pg_type s on s.oid = r.rngsubtype \
         where t.typtype = 'r' and {OWN} and {}",
        named("pg_opclass", "opc", "r.rngsubopc"),
        named("pg_collation", "coll", "r.rngcollation"),
        free("pg_type", "t")
    )
}

/// Base types, and names of types that were never filled in (`typisdefined`).
pub(super) fn base_types(version: i32) -> String {
    let subscript =
        if version >= 140_000 { "case when t.typsubscript <> 0 then 'subscript = ' || t.typsubscript::text end" } else { "null" };
    let function = |column: &str, word: &str| format!("case when t.{column} <> 0 then '{word} = ' || t.{column}::text end");
    format!(
        "select t.tableoid, t.oid, n.nspname::text, t.typname::text, \
         case when t.typisdefined then format(e'create type %I.%I (\\n    %s)', n.nspname, t.typname, array_to_string(array[ \
           'internallength = ' || case when t.typlen < 0 then 'variable' else t.typlen::text end, \
           'input = ' || t.typinput::text, 'output = ' || t.typoutput::text, \
           {}, {}, {}, {}, {}, {subscript}, \
           case when t.typdefault is not null then 'default = ' || quote_literal(t.typdefault) end, \
           case when t.typbyval then 'passedbyvalue' end, \
           'alignment = ' || case t.typalign when 'c' then 'char' when 's' then 'int2' when 'i' then 'int4' else 'double' end, \
           'storage = ' || case t.typstorage when 'p' then 'plain' when 'e' then 'external' when 'x' then 'extended' else 'main' end, \
           case when t.typcategory <> 'U' then 'category = ' || quote_literal(t.typcategory::text) end, \
           case when t.typispreferred then 'preferred = true' end, \
           case when t.typelem <> 0 then 'element = ' || format_type(t.typelem, null) end, \
           case when t.typdelim <> ',' then 'delimiter = ' || quote_literal(t.typdelim::text) end, \
           case when t.typcollation <> 0 then 'collatable = true' end], e',\\n    ')) end, \
         case when t.typisdefined then 'a base type can be made by a superuser only' end, \
         format('create type %I.%I', n.nspname, t.typname) \
         from pg_type t join pg_namespace n on n.oid = t.typnamespace \
         where (t.typtype = 'b' or t.typtype = 'p' and not t.typisdefined) and {OWN} and {} \
         and not exists (select from pg_type s where s.typarray = t.oid)",
        function("typreceive", "receive"),
        function("typsend", "send"),
        function("typmodin", "typmod_in"),
        function("typmodout", "typmod_out"),
        function("typanalyze", "analyze"),
        free("pg_type", "t")
    )
}

/// Ranges and base types; the shell is a name without anything.
pub(super) fn add_with_shell(draft: &mut Draft, rows: Vec<Row>, kind: Kind) {
    for row in rows {
        let (full, shell): (Option<String>, Option<String>) = (row.get(4), row.get(6));
        let kind = if full.is_some() { kind } else { Kind::ShellType };
        let sql = full.clone().or(shell.clone()).unwrap_or_default();
        let mut item = Item::new((row.get(0), row.get(1)), kind, Stage::Float, row.get(2), row.get(3), sql);
        if !draft.superuser
            && let Some(reason) = row.get::<_, Option<String>>(5)
        {
            item.fate = Fate::Refused(Cause::Superuser, reason);
        }
        item.shell = full.and(shell).map(|sql| Shell { kind: Kind::ShellType, sql, needs: Vec::new(), then: None });
        draft.add(item);
    }
}
