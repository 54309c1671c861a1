//! Functions, procedures, aggregates.

use tokio_postgres::Row;

use super::draft::{Draft, Fate, PG_TYPE, Shell, Stage};
use super::rows::{self, OWN, free, operator};
use super::{Cause, Kind, Refusal};

/// Made by the server with a range type, not by anybody.
const IMPLICIT: &str =
    "not exists (select from pg_depend i where i.classid = 'pg_proc'::regclass and i.objid = p.oid and i.deptype = 'i')";

/// Functions: the generic columns, then kind, shell, types of the signature, whether it is
/// LEAKPROOF or has a planner's support function.
///
/// The shell is a function of the same signature with nothing in it, which the definition
/// (`CREATE OR REPLACE`) fills; it has the volatility because indexes and generated columns ask, and
/// two statements because the planner puts a single one in the place of the call.
pub(super) fn functions() -> String {
    format!(
        "with settings as materialized (select lower(name) as name from pg_settings where context <> 'user') \
         select p.tableoid, p.oid, n.nspname::text, format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), \
         rtrim(pg_get_functiondef(p.oid), e'\\n'), \
         case when not l.lanpltrusted then format('functions in language %I can be made by a superuser only', l.lanname) \
              when p.proconfig is not null and exists (select from unnest(p.proconfig) s join settings g on g.name = lower(split_part(s, '=', 1))) \
              then 'it sets what only a superuser may set' end, \
         p.prokind::text, \
         case when p.prokind in ('f', 'p') then format('create %s %I.%I(%s)%s language sql%s as %L', \
           case p.prokind when 'f' then 'function' else 'procedure' end, n.nspname, p.proname, pg_get_function_identity_arguments(p.oid), \
           coalesce(' returns ' || pg_get_function_result(p.oid), ''), \
           case when p.prokind = 'p' then '' else case p.provolatile when 'i' then ' immutable' when 's' then ' stable' else '' end end, \
           'select 1; select 1') end, \
         (coalesce(p.proallargtypes, p.proargtypes::oid[]) || p.prorettype)::oid[], p.proleakproof, p.prosupport <> 0 \
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang \
         where p.prokind <> 'a' and {OWN} and {} and {IMPLICIT}",
        free("pg_proc", "p")
    )
}

pub(super) fn add_functions(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let kind = if row.get::<_, &str>(6) == "p" { Kind::Procedure } else { Kind::Function };
        let mut item = rows::item(draft, &row, kind, Stage::Float);
        if let Some(sql) = row.get::<_, Option<String>>(7) {
            let types: Vec<u32> = row.get(8);
            let needs = types.into_iter().map(|t| (PG_TYPE, t)).collect();
            item.shell = Some(Shell { kind: Kind::ShellFunction, sql, needs, then: None });
        }
        if !draft.superuser {
            let definition: &str = row.get(4);
            let mut kept = definition.to_owned();
            let lost = [(9, "LEAKPROOF", " LEAKPROOF"), (10, "SUPPORT", " SUPPORT ")]
                .into_iter()
                .filter(|(column, ..)| row.get(*column));
            for (_, word, text) in lost {
                kept = without_option(&kept, text);
                draft.lost.push(Refusal {
                    kind,
                    schema: item.schema.clone(),
                    name: item.name.clone(),
                    oid: item.id.1,
                    cause: Cause::Property,
                    reason: format!("its option {word} can be set by a superuser only; the function is made without"),
                });
            }
            item.sql = super::draft::Sql::Plain(kept);
        }
        draft.add(item);
    }
}

/// Takes an option out of a definition. The server writes the options on lines of their own,
/// between the line with the result and the one where the body begins.
fn without_option(definition: &str, option: &str) -> String {
    let mut done = false;
    let lines: Vec<String> = definition
        .split('\n')
        .enumerate()
        .filter_map(|(number, line)| {
            if number == 0 || done || line.starts_with("AS ") || !line.starts_with(' ') {
                return Some(line.to_owned());
            }
            let Some(at) = line.find(option) else { return Some(line.to_owned()) };
            done = true;
            let rest = &line[at + option.len()..];
            // An option with a value: the value goes too.
            let rest = if option.ends_with(' ') { rest.find(' ').map_or("", |end| &rest[end..]) } else { rest };
            let line = format!("{}{rest}", &line[..at]);
            (!line.trim().is_empty()).then_some(line)
        })
        .collect();
    lines.join("\n")
}

pub(super) fn add_aggregates(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let mut item = rows::item(draft, &row, Kind::Aggregate, Stage::Float);
        if row.get(6) && draft.crosses(140_000) {
            let reason = "the function of arrays that it uses takes other types from PostgreSQL 14 on; make it over `anycompatible` on the target";
            item.fate = Fate::Refused(Cause::Server, reason.to_owned());
        }
        draft.add(item);
    }
}

/// The generic columns, then whether it uses functions whose types changed.
pub(super) fn aggregates() -> String {
    let function = |column: &str, word: &str| format!("case when a.{column} <> 0 then '{word} = ' || a.{column}::text end");
    let modify = |column: &str, word: &str| {
        format!(
            "case when a.{column} <> case a.aggkind when 'n' then 'r' else 'w' end then '{word} = ' || \
             case a.{column} when 'r' then 'read_only' when 's' then 'shareable' else 'read_write' end end"
        )
    };
    let flag = |column: &str, word: &str| format!("case when a.{column} then '{word}' end");
    let literal =
        |column: &str, word: &str| format!("case when a.{column} is not null then '{word} = ' || quote_literal(a.{column}) end");
    let size = |column: &str, word: &str| format!("case when a.{column} <> 0 then '{word} = ' || a.{column} end");
    let options = [
        "'sfunc = ' || a.aggtransfn::text".to_owned(),
        "'stype = ' || format_type(a.aggtranstype, null)".to_owned(),
        size("aggtransspace", "sspace"),
        function("aggfinalfn", "finalfunc"),
        flag("aggfinalextra", "finalfunc_extra"),
        modify("aggfinalmodify", "finalfunc_modify"),
        function("aggcombinefn", "combinefunc"),
        function("aggserialfn", "serialfunc"),
        function("aggdeserialfn", "deserialfunc"),
        literal("agginitval", "initcond"),
        function("aggmtransfn", "msfunc"),
        function("aggminvtransfn", "minvfunc"),
        "case when a.aggmtranstype <> 0 then 'mstype = ' || format_type(a.aggmtranstype, null) end".to_owned(),
        size("aggmtransspace", "msspace"),
        function("aggmfinalfn", "mfinalfunc"),
        flag("aggmfinalextra", "mfinalfunc_extra"),
        format!("case when a.aggmtransfn <> 0 then {} end", modify("aggmfinalmodify", "mfinalfunc_modify")),
        literal("aggminitval", "minitcond"),
        format!("case when a.aggsortop <> 0 then 'sortop = ' || {} end", operator("a.aggsortop")),
        "case p.proparallel when 's' then 'parallel = safe' when 'r' then 'parallel = restricted' end".to_owned(),
        "case when a.aggkind = 'h' then 'hypothetical' end".to_owned(),
    ];
    format!(
        "select p.tableoid, p.oid, n.nspname::text, format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), \
         format(e'create aggregate %I.%I(%s) (\\n    %s)', n.nspname, p.proname, \
           case when pg_get_function_arguments(p.oid) = '' then '*' else pg_get_function_arguments(p.oid) end, array_to_string(array[{}], e',\\n    ')), \
         case when a.aggtranstype = 'internal'::regtype then 'an aggregate over internal states can be made by a superuser only' end, \
         exists (select from pg_proc b where b.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
           and b.oid < 16384 and b.proname in ('array_append', 'array_cat', 'array_position', 'array_positions', 'array_prepend', 'array_remove', \
           'array_replace', 'width_bucket') and b.proargtypes::oid[] && '{{2277, 2283}}'::oid[]) \
         from pg_proc p join pg_aggregate a on a.aggfnoid = p.oid join pg_namespace n on n.oid = p.pronamespace where {OWN} and {}",
        options.join(", "),
        free("pg_proc", "p")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_taken_out_of_the_head_and_not_out_of_the_body() {
        let definition = "CREATE OR REPLACE FUNCTION s.f(a integer)\n RETURNS boolean\n LANGUAGE plpgsql\n IMMUTABLE LEAKPROOF COST 3\nAS $$\nbegin\n return a LEAKPROOF;\nend$$";
        let kept = without_option(definition, " LEAKPROOF");
        assert!(kept.contains("\n IMMUTABLE COST 3\nAS"), "{kept}");
        assert!(kept.contains("return a LEAKPROOF;"), "{kept}");
        let supported =
            "CREATE OR REPLACE FUNCTION s.f()\n RETURNS boolean\n LANGUAGE sql\n COST 2 SUPPORT s.helper\nAS $$select 1$$";
        assert_eq!(without_option(supported, " SUPPORT ").lines().nth(3), Some(" COST 2"));
        let alone = "CREATE OR REPLACE FUNCTION s.f()\n RETURNS boolean\n LANGUAGE sql\n LEAKPROOF\nAS $$select 1$$";
        assert!(!without_option(alone, " LEAKPROOF").contains("LEAKPROOF"));
    }
}
