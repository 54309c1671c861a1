//! Triggers, rules and policies.

use tokio_postgres::Row;

use super::Kind;
use super::draft::{Draft, PG_CLASS, PG_CONSTRAINT, PG_INHERITS, Stage};
use super::rows::{self, OWN, free};

/// `; alter table … enable …`, for another state than the usual one.
fn state(column: &str, what: &str, name: &str) -> String {
    format!(
        "case {column} when 'O' then '' else format(e';\\nalter table only %I.%I %s {what} %I', n.nspname, c.relname, \
         case {column} when 'D' then 'disable' when 'R' then 'enable replica' when 'A' then 'enable always' else 'enable' end, {name}) end"
    )
}

/// The generic columns, then the table and the constraint of a constraint trigger. A partition's
/// copy of its parent's trigger comes with that.
pub(super) fn triggers(version: i32) -> String {
    format!(
        "select t.tableoid, t.oid, n.nspname::text, format('%s %s', c.relname, t.tgname), pg_get_triggerdef(t.oid, false) || {}, null::text, c.oid, t.tgconstraint \
         from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
         where not t.tgisinternal {} and c.relkind in ('r', 'p', 'v', 'm') and {OWN} and {} and {}",
        state("t.tgenabled", "trigger", "t.tgname"),
        if version >= 130_000 { "and t.tgparentid = 0" } else { "" },
        free("pg_class", "c"),
        free("pg_trigger", "t")
    )
}

/// Copies in partitions that are enabled otherwise than a new one. Each table's state is set by
/// itself (`only`), because servers differ in whether a parent's goes on to its partitions.
pub(super) fn trigger_states(version: i32) -> String {
    let parents = if version >= 130_000 {
        "select oid, tgparentid from pg_trigger where tgparentid <> 0"
    } else {
        "select objid, refobjid from pg_depend where classid = 'pg_trigger'::regclass and refclassid = 'pg_trigger'::regclass"
    };
    format!(
        "with recursive parents(oid, parent) as ({parents}), copies(oid, root) as ( \
           select p.oid, u.oid from parents p join pg_trigger u on u.oid = p.parent where not u.tgisinternal \
             and u.oid not in (select oid from parents) \
           union all select p.oid, c.root from parents p join copies c on c.oid = p.parent) \
         select t.tableoid, t.oid, n.nspname::text, format('%s %s', c.relname, t.tgname), \
         format('alter table only %I.%I %s trigger %I', n.nspname, c.relname, \
           case t.tgenabled when 'D' then 'disable' when 'R' then 'enable replica' else 'enable always' end, t.tgname), \
         null::text, c.oid, x.root \
         from copies x join pg_trigger t on t.oid = x.oid join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
         where t.tgenabled <> 'O' and c.relkind in ('r', 'p') and {OWN} and {}",
        free("pg_class", "c")
    )
}

pub(super) fn add_triggers(draft: &mut Draft, rows: Vec<Row>, kind: Kind) {
    for row in rows {
        let table: u32 = row.get(6);
        let other: u32 = row.get(7);
        let item = rows::item(draft, &row, kind, Stage::Post).of(table);
        let id = item.id;
        if kind == Kind::TriggerState {
            draft.add_step(item, &[(PG_CLASS, table), (PG_INHERITS, table), (id.0, other)]);
        } else {
            let index = draft.add(item);
            draft.needs.push((index, (PG_CLASS, table)));
            if other != 0 {
                draft.part_of.insert((PG_CONSTRAINT, other), id);
            }
        }
    }
}

pub(super) fn rules() -> String {
    format!(
        "select r.tableoid, r.oid, n.nspname::text, format('%s %s', c.relname, r.rulename), rtrim(pg_get_ruledef(r.oid), ';') || {}, null::text, c.oid \
         from pg_rewrite r join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace \
         where r.rulename <> '_RETURN' and c.relkind in ('r', 'p', 'v', 'm') and {OWN} and {} and {}",
        state("r.ev_enabled", "rule", "r.rulename"),
        free("pg_class", "c"),
        free("pg_rewrite", "r")
    )
}

/// The generic columns, then the table, and the roles that are named.
pub(super) fn policies() -> String {
    format!(
        "select p.tableoid, p.oid, n.nspname::text, format('%s %s', c.relname, p.polname), \
         format('create policy %I on %I.%I as %s for %s to %s', p.polname, n.nspname, c.relname, \
           case when p.polpermissive then 'permissive' else 'restrictive' end, \
           case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end, \
           (select string_agg(case u.r when 0 then 'public' else quote_ident(pg_get_userbyid(u.r)) end, ', ' order by u.k) \
              from unnest(p.polroles) with ordinality u(r, k))) \
         || coalesce(' using (' || pg_get_expr(p.polqual, p.polrelid) || ')', '') \
         || coalesce(' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''), null::text, c.oid, \
         array(select pg_get_userbyid(r)::text from unnest(p.polroles) r where r <> 0) \
         from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace where {OWN} and {}",
        free("pg_class", "c")
    )
}

/// Of tables: the generic columns, then the table and, of policies, the roles.
pub(super) fn add_of_tables(draft: &mut Draft, rows: Vec<Row>, kind: Kind) {
    for row in rows {
        let table: u32 = row.get(6);
        let mut item = rows::item(draft, &row, kind, Stage::Post).of(table);
        if kind == Kind::Policy {
            item.roles = row.get(7);
        }
        let index = draft.add(item);
        draft.needs.push((index, (PG_CLASS, table)));
    }
}
