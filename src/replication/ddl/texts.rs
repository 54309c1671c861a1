//! What decides how text is compared, converted and searched.

use super::rows::{OWN, free, named};

/// Collations. The version of the provider's library is not told: the target has its own.
pub(super) fn collations(version: i32) -> String {
    // Where a locale of ICU stands has changed twice.
    let locale = match version {
        170_000.. => "c.colllocale",
        150_000.. => "c.colliculocale",
        _ => "null::text",
    };
    let rules = if version >= 160_000 {
        "case when c.collicurules is not null then 'rules = ' || quote_literal(c.collicurules) end"
    } else {
        "null"
    };
    format!(
        "select c.tableoid, c.oid, n.nspname::text, c.collname::text, \
         format('create collation %I.%I (%s)', n.nspname, c.collname, array_to_string(array[ \
           'provider = ' || case c.collprovider when 'c' then 'libc' when 'i' then 'icu' when 'b' then 'builtin' else 'default' end, \
           case when not c.collisdeterministic then 'deterministic = false' end, \
           case when {locale} is not null then 'locale = ' || quote_literal({locale}) \
                when c.collcollate = c.collctype then 'locale = ' || quote_literal(c.collcollate) end, \
           case when {locale} is null and c.collcollate <> c.collctype then 'lc_collate = ' || quote_literal(c.collcollate) end, \
           case when {locale} is null and c.collcollate <> c.collctype then 'lc_ctype = ' || quote_literal(c.collctype) end, \
           {rules}], ', ')), null::text \
         from pg_collation c join pg_namespace n on n.oid = c.collnamespace \
         where c.collencoding in (-1, (select encoding from pg_database where datname = current_database())) and {OWN} and {}",
        free("pg_collation", "c")
    )
}

pub(super) fn conversions() -> String {
    format!(
        "select c.tableoid, c.oid, n.nspname::text, c.conname::text, \
         format('create %sconversion %I.%I for %L to %L from %s', case when c.condefault then 'default ' else '' end, n.nspname, c.conname, \
           pg_encoding_to_char(c.conforencoding), pg_encoding_to_char(c.contoencoding), c.conproc::text), null::text \
         from pg_conversion c join pg_namespace n on n.oid = c.connamespace where {OWN} and {}",
        free("pg_conversion", "c")
    )
}

pub(super) fn parsers() -> String {
    format!(
        "select p.tableoid, p.oid, n.nspname::text, p.prsname::text, \
         format('create text search parser %I.%I (start = %s, gettoken = %s, end = %s, lextypes = %s%s)', n.nspname, p.prsname, \
           p.prsstart::text, p.prstoken::text, p.prsend::text, p.prslextype::text, \
           case when p.prsheadline <> 0 then ', headline = ' || p.prsheadline::text else '' end), \
         'text search parsers can be made by a superuser only' \
         from pg_ts_parser p join pg_namespace n on n.oid = p.prsnamespace where {OWN} and {}",
        free("pg_ts_parser", "p")
    )
}

pub(super) fn templates() -> String {
    format!(
        "select t.tableoid, t.oid, n.nspname::text, t.tmplname::text, \
         format('create text search template %I.%I (%slexize = %s)', n.nspname, t.tmplname, \
           case when t.tmplinit <> 0 then format('init = %s, ', t.tmplinit::text) else '' end, t.tmpllexize::text), \
         'text search templates can be made by a superuser only' \
         from pg_ts_template t join pg_namespace n on n.oid = t.tmplnamespace where {OWN} and {}",
        free("pg_ts_template", "t")
    )
}

pub(super) fn dictionaries() -> String {
    format!(
        "select d.tableoid, d.oid, n.nspname::text, d.dictname::text, \
         format('create text search dictionary %I.%I (template = %s%s)', n.nspname, d.dictname, {}, coalesce(', ' || d.dictinitoption, '')), \
         null::text from pg_ts_dict d join pg_namespace n on n.oid = d.dictnamespace where {OWN} and {}",
        named("pg_ts_template", "tmpl", "d.dicttemplate"),
        free("pg_ts_dict", "d")
    )
}

pub(super) fn configurations() -> String {
    format!(
        "select c.tableoid, c.oid, n.nspname::text, c.cfgname::text, \
         format('create text search configuration %I.%I (parser = %s)', n.nspname, c.cfgname, {}) \
         || coalesce((select string_agg(format(e';\\nalter text search configuration %I.%I add mapping for %I with %s', n.nspname, c.cfgname, m.alias, m.dictionaries), \
            '' order by m.alias) from (select t.alias, string_agg({}, ', ' order by m.mapseqno) as dictionaries \
            from pg_ts_config_map m join ts_token_type(c.cfgparser) t on t.tokid = m.maptokentype where m.mapcfg = c.oid group by t.alias) m), ''), \
         null::text from pg_ts_config c join pg_namespace n on n.oid = c.cfgnamespace where {OWN} and {}",
        named("pg_ts_parser", "prs", "c.cfgparser"),
        named("pg_ts_dict", "dict", "m.mapdict"),
        free("pg_ts_config", "c")
    )
}
