//! Comments, and who may do what.
//!
//! Privileges are told as the difference to what the object is born with (or what its extension
//! gave it), by statements that name one role each. The source's owner stands for whoever runs the
//! statements, and every grant counts as the owner's.

use tokio_postgres::Row;

use super::Kind;
use super::draft::{Draft, Item, ObjectId, PG_EXTENSION, STEP, Stage};
use crate::postgres::{quote_identifier, quote_literal};

/// Columns: catalogue, oid, kind, schema, name, identity, text.
///
/// An extension brings its own comment; the standard schema has one that says nothing.
pub(super) fn comments() -> String {
    "select d.classoid, d.objoid, i.type, i.schema, i.identity, d.description, d.objsubid \
     from pg_description d, lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) i \
     left join pg_namespace n on n.nspname = i.schema \
     where (d.objoid >= 16384 or d.classoid = 'pg_namespace'::regclass and i.identity = 'public' and d.description <> 'standard public schema') \
     and i.identity is not null and d.classoid <> 'pg_largeobject'::regclass \
     and not exists (select from pg_depend e where e.classid = d.classoid and e.objid = d.objoid and e.deptype = 'e') \
     and not exists (select from pg_extension x join pg_available_extensions a on a.name = x.extname \
                     where d.classoid = 'pg_extension'::regclass and x.oid = d.objoid and a.comment = d.description)"
        .to_owned()
}

/// What `COMMENT ON`, `GRANT` and the like call an object; `None`: cannot be named so.
fn called(kind: &str, identity: &str) -> Option<String> {
    let kind = match kind {
        "function" | "procedure" | "aggregate" => "routine",
        "table column" | "view column" | "materialized view column" | "composite type column" => "column",
        "table constraint" => "constraint",
        "domain constraint" => {
            let at = outside_quotes(identity, " on ")?;
            return Some(format!("constraint {} on domain {}", &identity[..at], &identity[at + 4..]));
        }
        // Servers of before 16 tell it with an `on`, which no command takes.
        "transform" => {
            let at = outside_quotes(identity, " on language ").unwrap_or(identity.len());
            return Some(format!("transform {}{}", &identity[..at], identity.get(at + 3..).unwrap_or_default()));
        }
        "statistics object" => "statistics",
        "foreign table column" | "foreign table" => return None,
        "default value" | "toast table" => return None,
        other => other,
    };
    Some(format!("{kind} {identity}"))
}

/// Where `wanted` first stands outside of quoted names.
fn outside_quotes(text: &str, wanted: &str) -> Option<usize> {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        if c == '"' {
            quoted = !quoted;
        } else if !quoted && text[at..].starts_with(wanted) {
            return Some(at);
        }
    }
    None
}

pub(super) fn add_comments(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let object: ObjectId = (row.get(0), row.get(1));
        let (kind, identity): (&str, String) = (row.get(2), row.get(4));
        let Some(target) = called(kind, &identity) else { continue };
        let sql = format!("comment on {target} is {}", quote_literal(row.get(5)).trim_start());
        add_to(draft, object, Kind::Comment, row.get(3), identity, sql, Vec::new());
    }
}

/// A step on an object that may be none of ours: then there is no step.
fn add_to(
    draft: &mut Draft,
    object: ObjectId,
    kind: Kind,
    schema: Option<String>,
    name: String,
    sql: String,
    roles: Vec<String>,
) {
    let stage = if kind == Kind::Grant { Stage::Post } else { Stage::Float };
    let mut step = Item::new((STEP, object.1), kind, stage, schema, name, sql);
    step.roles = roles;
    draft.add_step(step, &[object]);
}

/// Comments and grants on objects that no item makes are nobody's; the others belong to the
/// relation that their object belongs to.
pub(super) fn settle(draft: &mut Draft) {
    for at in 0..draft.needs.len() {
        let (index, object) = draft.needs[at];
        if !matches!(draft.items[index].kind, Kind::Comment | Kind::Grant | Kind::ExtensionDependency) {
            continue;
        }
        match draft.home(object) {
            Some(home) => {
                draft.items[index].relation = draft.items[home].relation;
                // A schema's name is in the identity, quoted; the other items have it plain.
                draft.items[index].schema = draft.items[home].schema.clone();
            }
            None if object.1 < 16384 => {}
            None => draft.items[index].fate = super::draft::Fate::LeftOut,
        }
    }
}

/// `DEPENDS ON EXTENSION`. Columns: catalogue, oid, kind, schema, identity, extension's oid, name.
pub(super) fn extension_dependencies() -> String {
    "select d.classid, d.objid, i.type, i.schema, i.identity, x.oid, x.extname::text \
     from pg_depend d join pg_extension x on x.oid = d.refobjid, lateral pg_identify_object(d.classid, d.objid, 0) i \
     where d.refclassid = 'pg_extension'::regclass and d.deptype = 'x' and d.objid >= 16384"
        .to_owned()
}

pub(super) fn add_extension_dependencies(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let object: ObjectId = (row.get(0), row.get(1));
        let identity: String = row.get(4);
        let Some(target) = called(row.get(2), &identity) else { continue };
        let sql = format!("alter {target} depends on extension {}", quote_identifier(row.get(6)));
        let step = Item::new((STEP, object.1), Kind::ExtensionDependency, Stage::Post, row.get(3), identity, sql);
        draft.add_step(step, &[object, (PG_EXTENSION, row.get(5))]);
    }
}

/// Every object with privileges of its own, and what it was born with.
///
/// Columns: catalogue, oid, what `GRANT … ON` calls it, schema, identity, column or null, grantee
/// (empty: everybody), privileges to revoke, to grant, to grant with grant option; whether the
/// grantee is the owner.
pub(super) fn grants() -> String {
    let initial = |catalogue: &str, oid: &str, sub: &str| {
        format!(
            "(select ip.initprivs from pg_init_privs ip where ip.classoid = '{catalogue}'::regclass and ip.objoid = {oid} and ip.objsubid = {sub})"
        )
    };
    format!(
        "with o(class, oid, word, owner, acl, born, col, num) as ( \
           select c.tableoid, c.oid, case c.relkind when 'S' then 'sequence' else 'table' end, c.relowner, c.relacl, \
             coalesce({}, acldefault(case c.relkind when 'S' then 's'::\"char\" else 'r'::\"char\" end, c.relowner)), null::text, 0 \
             from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'S') and c.relacl is not null and c.oid >= 16384 \
           union all select c.tableoid, c.oid, 'table', c.relowner, a.attacl, coalesce({}, acldefault('c', c.relowner)), a.attname::text, a.attnum \
             from pg_attribute a join pg_class c on c.oid = a.attrelid where a.attacl is not null and not a.attisdropped and c.oid >= 16384 \
           union all select p.tableoid, p.oid, 'routine', p.proowner, p.proacl, coalesce({}, acldefault('f', p.proowner)), null, 0 \
             from pg_proc p where p.proacl is not null and p.oid >= 16384 \
           union all select n.tableoid, n.oid, 'schema', n.nspowner, n.nspacl, coalesce({}, acldefault('n', n.nspowner)), null, 0 \
             from pg_namespace n where n.nspacl is not null and (n.oid >= 16384 or n.nspname = 'public') and n.nspname !~ '^pg_' \
           union all select t.tableoid, t.oid, 'type', t.typowner, t.typacl, coalesce({}, acldefault('T', t.typowner)), null, 0 \
             from pg_type t where t.typacl is not null and t.oid >= 16384 \
           union all select l.tableoid, l.oid, 'language', l.lanowner, l.lanacl, coalesce({}, acldefault('l', l.lanowner)), null, 0 \
             from pg_language l where l.lanacl is not null and l.oid >= 16384), \
         x as (select o.class, o.oid, o.num, e.grantee, e.privilege_type as p, e.is_grantable as g, b.has as born, e.k \
           from o cross join lateral (select *, row_number() over () as k from aclexplode(o.acl)) e \
           cross join lateral (select exists (select from aclexplode(o.born) z where z.grantee = e.grantee and z.privilege_type = e.privilege_type \
              and z.is_grantable = e.is_grantable) as has) b \
           where true \
           union all select o.class, o.oid, o.num, e.grantee, e.privilege_type, null, false, 0 \
           from o cross join lateral aclexplode(o.born) e where not exists (select from aclexplode(o.acl) z \
              where z.grantee = e.grantee and z.privilege_type = e.privilege_type)) \
         select o.class, o.oid, o.word, i.schema, i.identity, o.col, case x.grantee when 0 then '' else pg_get_userbyid(x.grantee)::text end, \
           string_agg(x.p, ', ' order by x.k) filter (where x.g is null), \
           string_agg(x.p, ', ' order by x.k) filter (where not x.g and not x.born), \
           string_agg(x.p, ', ' order by x.k) filter (where x.g and not x.born), x.grantee = o.owner, min(x.k) \
         from x join o on o.class = x.class and o.oid = x.oid and o.num = x.num, lateral pg_identify_object(o.class, o.oid, 0) i \
         where x.g is null or not x.born \
         group by 1, 2, 3, 4, 5, 6, 7, x.grantee, o.owner, o.num order by 1, 2, o.num, min(x.k), 7",
        initial("pg_class", "c.oid", "0"),
        initial("pg_class", "c.oid", "a.attnum"),
        initial("pg_proc", "p.oid", "0"),
        initial("pg_namespace", "n.oid", "0"),
        initial("pg_type", "t.oid", "0"),
        initial("pg_language", "l.oid", "0")
    )
}

pub(super) fn add_grants(draft: &mut Draft, rows: Vec<Row>) {
    let mut before: Option<(ObjectId, Option<String>, usize)> = None;
    for row in rows {
        let object: ObjectId = (row.get(0), row.get(1));
        let (word, identity): (&str, String) = (row.get(2), row.get(4));
        let column: Option<String> = row.get(5);
        let grantee: String = row.get(6);
        let owner: bool = row.get(10);
        let on = |privileges: &str| match &column {
            Some(column) => {
                let quoted = quote_identifier(column);
                let each: Vec<String> = privileges.split(", ").map(|p| format!("{p} ({quoted})")).collect();
                format!("{} on {word} {identity}", each.join(", "))
            }
            None => format!("{privileges} on {word} {identity}"),
        };
        let role = match grantee.as_str() {
            _ if owner => "current_user".to_owned(),
            "" => "public".to_owned(),
            name => quote_identifier(name),
        };
        let mut sql = Vec::new();
        if let Some(privileges) = row.get::<_, Option<&str>>(7) {
            sql.push(format!("revoke {} from {role}", on(privileges)));
        }
        if let Some(privileges) = row.get::<_, Option<&str>>(8) {
            sql.push(format!("grant {} to {role}", on(privileges)));
        }
        if let Some(privileges) = row.get::<_, Option<&str>>(9) {
            sql.push(format!("grant {} to {role} with grant option", on(privileges)));
        }
        let roles = if owner || grantee.is_empty() { Vec::new() } else { vec![grantee.clone()] };
        let shown = if grantee.is_empty() { "public" } else { &grantee };
        let name = match &column {
            Some(column) => format!("{word} {identity} ({column}) to {shown}"),
            None => format!("{word} {identity} to {shown}"),
        };
        add_to(draft, object, Kind::Grant, row.get(3), name, sql.join(";\n"), roles);
        // The server keeps them in the order of the granting; and two at once on one object fail.
        let index = draft.items.len() - 1;
        if let Some((last, _, other)) = &before
            && *last == object
        {
            draft.explicit.push((index, *other));
        }
        before = Some((object, column, index));
    }
}

/// Columns: oid, role, schema or null, what it is for, grantee, revoke, grant, with option.
pub(super) fn default_privileges() -> String {
    "with d as (select a.oid, a.defaclrole, n.nspname::text as schema, a.defaclobjtype as sort, a.defaclacl as acl, \
        case when a.defaclnamespace = 0 then acldefault(case a.defaclobjtype when 'S' then 's'::\"char\" else a.defaclobjtype end, a.defaclrole) \
             else acldefault('c', a.defaclrole) end as born \
        from pg_default_acl a left join pg_namespace n on n.oid = a.defaclnamespace \
        where a.defaclobjtype in ('r', 'S', 'f', 'T', 'n')), \
     x as (select d.oid, e.grantee, e.privilege_type as p, e.is_grantable as g from d cross join lateral aclexplode(d.acl) e \
           where not exists (select from aclexplode(d.born) z where z.grantee = e.grantee and z.privilege_type = e.privilege_type and z.is_grantable = e.is_grantable) \
           union all select d.oid, e.grantee, e.privilege_type, null from d cross join lateral aclexplode(d.born) e \
           where not exists (select from aclexplode(d.acl) z where z.grantee = e.grantee and z.privilege_type = e.privilege_type)) \
     select d.oid, pg_get_userbyid(d.defaclrole)::text, d.schema, \
       case d.sort when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' else 'schemas' end, \
       case x.grantee when 0 then '' else pg_get_userbyid(x.grantee)::text end, \
       string_agg(x.p, ', ' order by x.p) filter (where x.g is null), string_agg(x.p, ', ' order by x.p) filter (where not x.g), \
       string_agg(x.p, ', ' order by x.p) filter (where x.g) \
     from d join x on x.oid = d.oid group by 1, 2, 3, 4, 5 order by 2, 3 nulls first, 4, 5"
        .to_owned()
}

pub(super) fn add_default_privileges(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let (role, schema): (String, Option<String>) = (row.get(1), row.get(2));
        let (what, grantee): (&str, String) = (row.get(3), row.get(4));
        let place = schema.as_deref().map(|s| format!(" in schema {}", quote_identifier(s))).unwrap_or_default();
        let head = format!("alter default privileges for role {}{place}", quote_identifier(&role));
        let to = if grantee.is_empty() { "public".to_owned() } else { quote_identifier(&grantee) };
        let mut sql = Vec::new();
        for (column, text) in [(5, "revoke"), (6, "grant"), (7, "grant")] {
            let Some(privileges) = row.get::<_, Option<&str>>(column) else { continue };
            let joint = if column == 5 { "from" } else { "to" };
            let option = if column == 7 { " with grant option" } else { "" };
            sql.push(format!("{head} {text} {privileges} on {what} {joint} {to}{option}"));
        }
        let mut roles = vec![role.clone(), grantee];
        roles.retain(|r| !r.is_empty());
        roles.dedup();
        let name = format!("{what} of {role} for {to}");
        let mut item = Item::new((STEP, row.get(0)), Kind::DefaultPrivileges, Stage::Post, schema, name, sql.join(";\n"));
        item.roles = roles;
        draft.add(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domains_check_is_called_by_its_parts_whatever_their_names() {
        let called = |identity| called("domain constraint", identity).unwrap();
        assert_eq!(called("c on s.d"), "constraint c on domain s.d");
        let transform = |identity| super::called("transform", identity).unwrap();
        assert_eq!(transform("for s.t on language sql"), "transform for s.t language sql");
        assert_eq!(transform("for s.t language sql"), "transform for s.t language sql");
        assert_eq!(called(r#""c on "" on d" on s."a on b""#), r#"constraint "c on "" on d" on domain s."a on b""#);
    }
}
