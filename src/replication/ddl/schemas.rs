//! Schemas, extensions, languages, access methods.

use super::rows::{OWN, free};

pub(super) fn schemas() -> String {
    format!(
        "select 'pg_namespace'::regclass::oid, n.oid, null::text, n.nspname::text, \
         format('create schema %s%I', case n.nspname when 'public' then 'if not exists ' else '' end, n.nspname), null::text \
         from pg_namespace n where {OWN} and (n.nspname = 'public' or {})",
        free("pg_namespace", "n")
    )
}

/// An extension brings its members itself. Not told: its version, so that the target's own serves.
pub(super) fn extensions() -> String {
    "select 'pg_extension'::regclass::oid, e.oid, null::text, e.extname::text, \
     format('create extension if not exists %I with schema %I', e.extname, n.nspname), null::text \
     from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.oid >= 16384"
        .to_owned()
}

/// Languages that came by hand rather than by an extension.
pub(super) fn languages() -> String {
    format!(
        "select 'pg_language'::regclass::oid, l.oid, null::text, l.lanname::text, \
         format('create %slanguage %I handler %s', case when l.lanpltrusted then 'trusted ' else '' end, l.lanname, l.lanplcallfoid::regproc) \
         || case when l.laninline <> 0 then format(' inline %s', l.laninline::regproc) else '' end \
         || case when l.lanvalidator <> 0 then format(' validator %s', l.lanvalidator::regproc) else '' end, \
         'a language without an extension can be made by a superuser only' \
         from pg_language l where l.lanispl and {}",
        free("pg_language", "l")
    )
}

pub(super) fn access_methods() -> String {
    format!(
        "select 'pg_am'::regclass::oid, a.oid, null::text, a.amname::text, \
         format('create access method %I type %s handler %s', a.amname, case a.amtype when 'i' then 'index' else 'table' end, a.amhandler), \
         'access methods can be made by a superuser only' from pg_am a where {}",
        free("pg_am", "a")
    )
}
