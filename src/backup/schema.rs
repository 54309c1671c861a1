//! Two digests of the definitions, for two questions.
//!
//! [`catalogue`] asks whether anything was defined otherwise since the last archive. It is taken from the
//! catalogue's own rows, which the snapshot shows as they were; functions such as `pg_get_viewdef` show what is
//! there now, and a definition that is committed just then would be called archived. It may differ where
//! nothing did, never the other way round.
//!
//! [`definitions`] asks whether a restored copy is defined alike. Numbers of objects are others there, so it is
//! taken from definitions as text.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::hex;
use crate::postgres::{Doing, PostgresError};

/// Catalogues whose rows change only with definitions. What VACUUM, ANALYZE and REINDEX write into
/// `pg_class`, `pg_index` and `pg_attribute` is left out; TOAST tables, which VACUUM FULL makes anew, and what ends with a
/// session are no definitions.
const CATALOGUE: &str = "
with own as (
  select c.oid from pg_class c where c.oid >= 16384 and c.relkind <> 't' and c.relnamespace <> 99 and c.relpersistence <> 't'
), rows(x) as (
  select 'class' || (c.oid, c.relname, c.relnamespace, c.reloftype, c.relowner, c.relam, c.relpersistence, c.relkind, c.relrowsecurity,
      c.relforcerowsecurity, c.relreplident, c.relispartition, c.relacl, c.reloptions, c.relpartbound)::text
    from pg_class c join own on own.oid = c.oid
  union all select 'attribute' || (to_jsonb(a) - 'atthasmissing' - 'attmissingval')::text from pg_attribute a join own on own.oid = a.attrelid
  union all select 'default' || d::text from pg_attrdef d join own on own.oid = d.adrelid
  union all select 'index' || (i.indexrelid, i.indrelid, i.indisunique, i.indisprimary, i.indisexclusion, i.indimmediate, i.indisclustered,
      i.indisvalid, i.indisreplident, i.indkey, i.indcollation, i.indclass, i.indoption, i.indexprs, i.indpred)::text
    from pg_index i join own on own.oid = i.indexrelid
  union all select 'constraint' || k::text from pg_constraint k where k.oid >= 16384 and (k.conrelid = 0 or k.conrelid in (select oid from own))
  union all select 'inherits' || i::text from pg_inherits i join own on own.oid = i.inhrelid
  union all select 'partitioned' || p::text from pg_partitioned_table p
  union all select 'sequence' || s::text from pg_sequence s join own on own.oid = s.seqrelid
  union all select 'rewrite' || r::text from pg_rewrite r join own on own.oid = r.ev_class
  union all select 'trigger' || t::text from pg_trigger t join own on own.oid = t.tgrelid
  union all select 'policy' || p::text from pg_policy p
  union all select 'statistics' || s::text from pg_statistic_ext s
  union all select 'type' || t::text from pg_type t join pg_namespace n on n.oid = t.typnamespace
    where t.oid >= 16384 and n.nspname !~ '^pg_temp' and (t.typrelid = 0 or t.typrelid in (select oid from own))
  union all select 'enum' || e::text from pg_enum e
  union all select 'range' || r::text from pg_range r where r.rngtypid >= 16384
  union all select 'function' || p::text from pg_proc p where p.oid >= 16384
  union all select 'aggregate' || a::text from pg_aggregate a where a.aggfnoid >= 16384
  union all select 'schema' || n::text from pg_namespace n where n.nspname !~ '^pg_(temp|toast)' and n.nspname <> 'information_schema'
  union all select 'extension' || e::text from pg_extension e
  union all select 'comment' || d::text from pg_description d where d.objoid >= 16384
  union all select 'operator' || o::text from pg_operator o where o.oid >= 16384
  union all select 'operator class' || o::text from pg_opclass o where o.oid >= 16384
  union all select 'operator family' || o::text from pg_opfamily o where o.oid >= 16384
  union all select 'amop' || a::text from pg_amop a where a.oid >= 16384
  union all select 'amproc' || a::text from pg_amproc a where a.oid >= 16384
  union all select 'cast' || c::text from pg_cast c where c.oid >= 16384
  union all select 'collation' || c::text from pg_collation c where c.oid >= 16384
  union all select 'conversion' || c::text from pg_conversion c where c.oid >= 16384
  union all select 'language' || l::text from pg_language l where l.oid >= 16384
  union all select 'transform' || t::text from pg_transform t
  union all select 'access method' || a::text from pg_am a where a.oid >= 16384
  union all select 'text search' || c::text from pg_ts_config c where c.oid >= 16384
  union all select 'text search dictionary' || d::text from pg_ts_dict d where d.oid >= 16384
  union all select 'text search mapping' || m::text from pg_ts_config_map m where m.mapcfg >= 16384
  union all select 'wrapper' || w::text from pg_foreign_data_wrapper w
  union all select 'server' || s::text from pg_foreign_server s
  union all select 'foreign table' || t::text from pg_foreign_table t
  union all select 'event trigger' || t::text from pg_event_trigger t
  union all select 'default rights' || a::text from pg_default_acl a
  union all select 'publication' || p::text from pg_publication p
  union all select 'published' || p::text from pg_publication_rel p
  union all select 'label' || l::text from pg_seclabel l
)
select count(*)::text || ':' || coalesce(sum(hashtextextended(x, 0)), 0)::text || ':' || coalesce(sum(hashtextextended(x, 1)), 0)::text from rows";

/// What differs when something was defined otherwise; only good for comparing within one server.
pub(super) async fn catalogue(client: &Client) -> Result<String, PostgresError> {
    Ok(client.query_one(CATALOGUE, &[]).await.doing(|| "reading the catalogue".to_owned())?.get(0))
}

/// Extensions stand for their members, whose definitions are theirs. Numbers of columns are counted anew,
/// because dropped ones are not restored; those of heirs go by name, because a dump has them begin with what they inherit.
const DEFINITIONS: &str = "
with foreign_made(classid, objid) as (
  select classid, objid from pg_depend where deptype = 'e'
), own as (
  select c.oid, n.nspname, c.relname, c.relkind,
         not c.relispartition and exists (select from pg_inherits i where i.inhrelid = c.oid) as heir
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid >= 16384 and n.nspname !~ '^pg_' and c.relpersistence <> 't'
     and ('pg_class'::regclass, c.oid) not in (select classid, objid from foreign_made)
)
select 'relation ' || relkind::text || ' ' || nspname || '.' || relname from own where relkind in ('r', 'p', 'v', 'm', 'S', 'f', 'c')
union all
select format('column %s.%s.%s %s %s %s %s', o.nspname, o.relname,
              row_number() over (partition by a.attrelid order by case when o.heir then a.attname end, a.attnum), a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
              coalesce(pg_get_expr(d.adbin, d.adrelid), ''))
  from pg_attribute a join own o on o.oid = a.attrelid and o.relkind in ('r', 'p', 'f', 'c')
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum where a.attnum > 0 and not a.attisdropped
union all
-- Constraints that say only `not null` are columns' in servers before 18.
select format('constraint %s.%s %s %s', o.nspname, o.relname, k.conname, pg_get_constraintdef(k.oid))
  from pg_constraint k join own o on o.oid = k.conrelid where k.contype <> 'n'
union all
select pg_get_indexdef(i.indexrelid) from pg_index i join own o on o.oid = i.indrelid where i.indisvalid
union all
select format('view %s.%s %s', nspname, relname, pg_get_viewdef(oid)) from own where relkind in ('v', 'm')
union all
select format('trigger %s %s', pg_get_triggerdef(t.oid), t.tgenabled) from pg_trigger t join own o on o.oid = t.tgrelid where not t.tgisinternal
union all
select format('policy %s.%s %s %s %s', o.nspname, o.relname, p.polname, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
  from pg_policy p join own o on o.oid = p.polrelid
union all
select format('sequence %s.%s %s %s %s %s %s %s', o.nspname, o.relname, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
  from pg_sequence s join own o on o.oid = s.seqrelid
union all
select pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where p.oid >= 16384 and p.prokind in ('f', 'p') and n.nspname !~ '^pg_' and ('pg_proc'::regclass, p.oid) not in (select classid, objid from foreign_made)
   and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'i')
union all
select format('type %s.%s %s %s %s %s', n.nspname, t.typname, t.typtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull,
              (select string_agg(e.enumlabel, ',' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))
  from pg_type t join pg_namespace n on n.oid = t.typnamespace
 where t.oid >= 16384 and t.typtype in ('d', 'e', 'r') and n.nspname !~ '^pg_' and ('pg_type'::regclass, t.oid) not in (select classid, objid from foreign_made)
union all
select format('constraint of type %s %s', k.conname, pg_get_constraintdef(k.oid)) from pg_constraint k where k.contypid <> 0 and k.contype <> 'n' and k.oid >= 16384
union all
select 'extension ' || extname from pg_extension";

/// SHA-256 of the definitions, in hex; the same for a restored copy on a server of the same major version. The
/// session has to have an empty `search_path`, so that names are written whole.
///
/// # Errors
/// When the catalogue cannot be read.
pub async fn definitions(client: &Client) -> Result<String, PostgresError> {
    let rows = client.query(DEFINITIONS, &[]).await.doing(|| "reading the definitions".to_owned())?;
    let mut lines: Vec<String> = rows.iter().map(|row| casts_inside(row.get(0))).collect();
    lines.sort_unstable();
    let mut digest = Sha256::new();
    for line in lines {
        // Lines may hold newlines themselves.
        digest.update((line.len() as u64).to_le_bytes());
        digest.update(line);
    }
    Ok(hex(&digest.finalize()))
}

/// Has a cast of a whole array stand at each of its elements. `kind in ('a', 'b')` of a varchar column is shown as
/// `(ARRAY['a'::character varying, …])::text[]`, which the server reads as `ARRAY[('a'::character varying)::text, …]` and
/// shows so ever after: a restored copy would have other definitions than its source.
fn casts_inside(text: &str) -> String {
    const BEGIN: &str = "(ARRAY[";
    let Some(at) = text.find(BEGIN) else { return text.to_owned() };
    let (before, inside) = (&text[..at], &text[at + BEGIN.len()..]);
    if let Some((elements, rest)) = elements(inside)
        && let Some(cast) = rest.strip_prefix(")::")
        && let Some(end) = cast.find("[]")
        && cast[..end].chars().all(|c| c.is_alphanumeric() || " _.\"(),".contains(c))
    {
        let element = |element: &&str| format!("({})::{}", casts_inside(element.trim()), &cast[..end]);
        let elements: Vec<String> = elements.iter().map(element).collect();
        return format!("{before}ARRAY[{}]{}", elements.join(", "), casts_inside(&cast[end + 2..]));
    }
    format!("{before}{BEGIN}{}", casts_inside(inside))
}

/// The elements of an array up to its closing bracket, and what comes after that.
fn elements(text: &str) -> Option<(Vec<&str>, &str)> {
    let (mut found, mut begin, mut depth, mut quoted) = (Vec::new(), 0, 0_u32, None);
    for (at, c) in text.char_indices() {
        match (quoted, c) {
            // A quote inside is written twice: it ends the text, and begins it again.
            (Some(quote), c) if c == quote => quoted = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quoted = Some(c),
            (None, '(' | '[') => depth += 1,
            (None, ']') if depth == 0 => {
                found.push(&text[begin..at]);
                return Some((found, &text[at + 1..]));
            }
            (None, ')' | ']') => depth = depth.checked_sub(1)?,
            (None, ',') if depth == 0 => {
                found.push(&text[begin..at]);
                begin = at + 1;
            }
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_of_an_array_is_one_of_its_elements() {
        for (shown, shown_by_the_copy) in [
            (
                "CHECK (((kind)::text = ANY ((ARRAY['a, b'::character varying, 'it''s ]'::character varying])::text[])))",
                "CHECK (((kind)::text = ANY (ARRAY[('a, b'::character varying)::text, ('it''s ]'::character varying)::text])))",
            ),
            ("(ARRAY[f(1, 2)])::numeric(10,2)[] x (ARRAY[1])::\"T\"[]", "ARRAY[(f(1, 2))::numeric(10,2)] x ARRAY[(1)::\"T\"]"),
        ] {
            assert_eq!(casts_inside(shown), shown_by_the_copy);
            assert_eq!(casts_inside(shown_by_the_copy), shown_by_the_copy);
        }
        for same in ["select 1", "(ARRAY[1, 2])", "(ARRAY['", "f((ARRAY[1))", "(ARRAY[1])::int", "x (ARRAY[1]) || (ARRAY[2])"] {
            assert_eq!(casts_inside(same), same);
        }
    }
}
