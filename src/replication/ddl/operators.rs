//! Operators, their classes and families, casts, transforms.

use tokio_postgres::Row;

use super::draft::{Draft, Fate, Stage};
use super::rows::{self, OWN, free, named, operator};
use super::{Cause, Kind};

// Catalogues whose rows are members of a class or family.
const PG_AMOP: u32 = 2602;
const PG_AMPROC: u32 = 2603;

/// The generic columns, then whether it stands behind its operand. A commutator or negator that does not exist yet is
/// noted by its name, so these need no order.
pub(super) fn operators() -> String {
    format!(
        "select o.tableoid, o.oid, n.nspname::text, format('%s(%s, %s)', o.oprname, \
           case when o.oprleft = 0 then 'none' else format_type(o.oprleft, null) end, \
           case when o.oprright = 0 then 'none' else format_type(o.oprright, null) end), \
         format(e'create operator %I.%s (\\n    %s)', n.nspname, o.oprname, array_to_string(array['function = ' || o.oprcode::text, \
           case when o.oprleft <> 0 then 'leftarg = ' || format_type(o.oprleft, null) end, \
           case when o.oprright <> 0 then 'rightarg = ' || format_type(o.oprright, null) end, \
           'commutator = ' || {}, 'negator = ' || {}, \
           case when o.oprrest <> 0 then 'restrict = ' || o.oprrest::text end, \
           case when o.oprjoin <> 0 then 'join = ' || o.oprjoin::text end, \
           case when o.oprcanhash then 'hashes' end, case when o.oprcanmerge then 'merges' end], e',\\n    ')), null::text, o.oprkind = 'r' \
         from pg_operator o join pg_namespace n on n.oid = o.oprnamespace where o.oprcode <> 0 and {OWN} and {}",
        operator("o.oprcom"),
        operator("o.oprnegate"),
        free("pg_operator", "o")
    )
}

pub(super) fn add_operators(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let mut item = rows::item(draft, &row, Kind::Operator, Stage::Float);
        if row.get(6) && draft.crosses(140_000) {
            let reason = "operators behind their operand are no longer known from PostgreSQL 14 on; call its function instead";
            item.fate = Fate::Refused(Cause::Server, reason.to_owned());
        }
        draft.add(item);
    }
}

pub(super) fn families() -> String {
    format!(
        "select f.tableoid, f.oid, n.nspname::text, format('%s using %s', f.opfname, m.amname), \
         format('create operator family %I.%I using %I', n.nspname, f.opfname, m.amname), \
         'operator families can be made by a superuser only' \
         from pg_opfamily f join pg_namespace n on n.oid = f.opfnamespace join pg_am m on m.oid = f.opfmethod where {OWN} and {}",
        free("pg_opfamily", "f")
    )
}

/// The members of a class or a family (`owner`, an oid in `catalogue`) as text, and their oids.
fn members(catalogue: &str, owner: &str) -> (String, String, String) {
    let of = |table: &str| {
        format!(
            "from pg_depend d join {table} m on m.oid = d.objid where d.classid = '{table}'::regclass \
             and d.refclassid = '{catalogue}'::regclass and d.refobjid = {owner}"
        )
    };
    let (operators, functions) = (of("pg_amop"), of("pg_amproc"));
    let text = format!(
        "array_to_string((select array_agg(format('operator %s %s%s', m.amopstrategy, m.amopopr::regoperator, \
           ' for order by ' || {}) order by m.amopstrategy, m.amopopr::regoperator::text) {operators}) \
         || (select array_agg(format('function %s (%s, %s) %s', m.amprocnum, format_type(m.amproclefttype, null), \
           format_type(m.amprocrighttype, null), m.amproc::regprocedure) order by m.amprocnum, m.amproc::regprocedure::text) {functions}), e',\\n    ')",
        named("pg_opfamily", "opf", "m.amopsortfamily")
    );
    (
        text,
        format!("(select coalesce(array_agg(m.oid), '{{}}') {operators})"),
        format!("(select coalesce(array_agg(m.oid), '{{}}') {functions})"),
    )
}

/// Classes with the members that cannot leave them.
pub(super) fn classes() -> String {
    let (text, operators, functions) = members("pg_opclass", "c.oid");
    format!(
        "select c.tableoid, c.oid, n.nspname::text, format('%s using %s', c.opcname, m.amname), \
         format(e'create operator class %I.%I %sfor type %s using %I family %s as\\n    %s', n.nspname, c.opcname, \
           case when c.opcdefault then 'default ' else '' end, format_type(c.opcintype, null), m.amname, {}, \
           array_to_string(array[nullif({text}, ''), case when c.opckeytype <> 0 then 'storage ' || format_type(c.opckeytype, null) \
             when coalesce({text}, '') = '' then 'storage ' || format_type(c.opcintype, null) end], e',\\n    ')), \
         'operator classes can be made by a superuser only', {operators}, {functions} \
         from pg_opclass c join pg_namespace n on n.oid = c.opcnamespace join pg_am m on m.oid = c.opcmethod where {OWN} and {}",
        named("pg_opfamily", "opf", "c.opcfamily"),
        free("pg_opclass", "c")
    )
}

/// Members that belong to a family only.
pub(super) fn loose_members() -> String {
    let (text, operators, functions) = members("pg_opfamily", "f.oid");
    format!(
        "select * from (select f.tableoid, f.oid, n.nspname::text, format('%s using %s', f.opfname, m.amname), \
         format(e'alter operator family %I.%I using %I add\\n    %s', n.nspname, f.opfname, m.amname, nullif({text}, '')), \
         'operator families can be changed by a superuser only', {operators} as o, {functions} as p \
         from pg_opfamily f join pg_namespace n on n.oid = f.opfnamespace join pg_am m on m.oid = f.opfmethod where {OWN} and {}) f \
         where cardinality(o) + cardinality(p) > 0",
        free("pg_opfamily", "f")
    )
}

pub(super) fn add_with_members(draft: &mut Draft, rows: Vec<Row>, kind: Kind) {
    for row in rows {
        let item = rows::item(draft, &row, kind, Stage::Float);
        let family = item.id;
        let index = if kind == Kind::OperatorFamilyMembers { draft.add_step(item, &[family]) } else { draft.add(item) };
        for (column, catalogue) in [(6, PG_AMOP), (7, PG_AMPROC)] {
            for member in row.get::<_, Vec<u32>>(column) {
                draft.made_by.insert((catalogue, member), index);
            }
        }
    }
}

/// The cast of a range to its multirange is the server's own.
pub(super) fn casts() -> String {
    format!(
        "select k.tableoid, k.oid, null::text, format('(%s AS %s)', format_type(k.castsource, null), format_type(k.casttarget, null)), \
         format('create cast (%s as %s) %s%s', format_type(k.castsource, null), format_type(k.casttarget, null), \
           case k.castmethod when 'f' then 'with function ' || k.castfunc::regprocedure when 'i' then 'with inout' else 'without function' end, \
           case k.castcontext when 'a' then ' as assignment' when 'i' then ' as implicit' else '' end), \
         case when k.castmethod = 'b' then 'a cast without a function can be made by a superuser only' end \
         from pg_cast k where {} \
         and not exists (select from pg_depend i where i.classid = 'pg_cast'::regclass and i.objid = k.oid and i.deptype = 'i')",
        free("pg_cast", "k")
    )
}

pub(super) fn transforms() -> String {
    format!(
        "select t.tableoid, t.oid, null::text, format('for %s language %s', format_type(t.trftype, null), l.lanname), \
         format('create transform for %s language %I (%s)', format_type(t.trftype, null), l.lanname, array_to_string(array[ \
           case when t.trffromsql <> 0 then 'from sql with function ' || t.trffromsql::regprocedure end, \
           case when t.trftosql <> 0 then 'to sql with function ' || t.trftosql::regprocedure end], ', ')), null::text \
         from pg_transform t join pg_language l on l.oid = t.trflang where {}",
        free("pg_transform", "t")
    )
}
