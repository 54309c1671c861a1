//! What an archive asks of a role that restores it and is no superuser, and of the server: noted when it is made, and looked
//! at before anything of it is read back. Rights that are missing would show when most of the work is done.
//!
//! A role may hand what it made over to another one only where it may act as that one, and only where that one may itself make
//! things in the schema. Grants come last in a dump, so inside the restore nobody may but who owns the schema.

use tokio_postgres::Client;

use super::manifest::{Demands, Owner};
use crate::postgres::{Doing, PostgresError, quote_identifier};

/// Things that only a superuser makes, of which a manifest names so many.
const TOLD: i64 = 20;

/// Whoever owns something, and each schema of somebody else's that it is in: with that one's name, or an empty one where it
/// is the schema `public` that every database begins with, which its owner owns. What an extension made is its own affair.
const OWNERS: &str = "
with things(owner, schema, classid, oid) as (
  select relowner, relnamespace, 'pg_class'::regclass, oid from pg_class where relkind in ('r', 'p', 'v', 'm', 'S', 'f', 'c') and relpersistence <> 't'
  union all select proowner, pronamespace, 'pg_proc'::regclass, oid from pg_proc
  union all select typowner, typnamespace, 'pg_type'::regclass, oid from pg_type where typtype in ('d', 'e', 'r') or typtype = 'b' and typcategory <> 'A'
  union all select oprowner, oprnamespace, 'pg_operator'::regclass, oid from pg_operator
  union all select collowner, collnamespace, 'pg_collation'::regclass, oid from pg_collation
  union all select conowner, connamespace, 'pg_conversion'::regclass, oid from pg_conversion
  union all select cfgowner, cfgnamespace, 'pg_ts_config'::regclass, oid from pg_ts_config
  union all select dictowner, dictnamespace, 'pg_ts_dict'::regclass, oid from pg_ts_dict
  union all select stxowner, stxnamespace, 'pg_statistic_ext'::regclass, oid from pg_statistic_ext
  union all select nspowner, 0, 'pg_namespace'::regclass, oid from pg_namespace where nspname !~ '^pg_(temp|toast)'
  union all select lomowner, 0, 'pg_largeobject'::regclass, oid from pg_largeobject_metadata
  union all select srvowner, 0, 'pg_foreign_server'::regclass, oid from pg_foreign_server
  union all select pubowner, 0, 'pg_publication'::regclass, oid from pg_publication
  union all select defaclrole, 0, 'pg_default_acl'::regclass, oid from pg_default_acl
), own as (
  select distinct t.owner, n.nspname, n.nspowner from things t left join pg_namespace n on n.oid = t.schema and n.nspowner <> t.owner
   where t.oid >= 16384 and coalesce(n.nspname, '') !~ '^pg_(temp|toast)'
     and not exists (select from pg_depend d where d.classid = t.classid and d.objid = t.oid and d.deptype = 'e')
)
select pg_get_userbyid(owner)::text, nspname::text,
       case when nspname = 'public' and (nspowner = 10 or pg_get_userbyid(nspowner) = 'pg_database_owner') then '' else pg_get_userbyid(nspowner)::text end
  from own where pg_get_userbyid(owner) !~ '^pg_' order by 1, 2 nulls first";
/// plpgsql is in every database.
const EXTENSIONS: &str = "select extname::text from pg_extension where extname <> 'plpgsql' order by 1";
const SUPERUSER: &str = "
with things(classid, oid, told) as (
  select 'pg_event_trigger'::regclass, oid, 'event trigger ' || evtname from pg_event_trigger
  union all select 'pg_proc'::regclass, p.oid, 'function ' || p.oid::regprocedure from pg_proc p join pg_language l on l.oid = p.prolang
    where (not l.lanpltrusted or p.proleakproof) and p.prokind <> 'a'
      and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'i')
  union all select 'pg_type'::regclass, oid, 'type ' || oid::regtype from pg_type where typtype = 'b' and typcategory <> 'A'
  union all select 'pg_opclass'::regclass, oid, 'operator class ' || opcname from pg_opclass
  union all select 'pg_opfamily'::regclass, oid, 'operator family ' || opfname from pg_opfamily
  union all select 'pg_foreign_data_wrapper'::regclass, oid, 'foreign-data wrapper ' || fdwname from pg_foreign_data_wrapper
  union all select 'pg_am'::regclass, oid, 'access method ' || amname from pg_am
  union all select 'pg_language'::regclass, oid, 'language ' || lanname from pg_language
  union all select 'pg_ts_parser'::regclass, oid, 'text search parser ' || prsname from pg_ts_parser
  union all select 'pg_ts_template'::regclass, oid, 'text search template ' || tmplname from pg_ts_template
  union all select 'pg_cast'::regclass, oid, format('cast from %s to %s', castsource::regtype, casttarget::regtype) from pg_cast where castmethod = 'b'
  union all select 'pg_publication'::regclass, oid, 'publication ' || pubname from pg_publication where puballtables
  union all select 'pg_class'::regclass, c.oid, format('grants on %s by %s, who is not its owner', c.oid::regclass, pg_get_userbyid(x.grantor))
    from pg_class c, aclexplode(c.relacl) x where x.grantor <> c.relowner
)
select distinct told from things t where oid >= 16384 and not exists (select from pg_depend d where d.classid = t.classid and d.objid = t.oid and d.deptype = 'e')
 order by 1 limit $1";

/// Roles that are there, and that ours may not act as.
const NOT_OURS: &str = "select string_agg(format('`%s`', r), ', ' order by r) from unnest($1::text[]) r join pg_roles o on o.rolname = r
    where not pg_has_role(current_user, o.oid, case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end)";
/// Owners who may not make anything in the schema. In `public` of a new database everybody may before PostgreSQL 15; what may be
/// done in that of a database that is there (`$4` is false) is its administrator's affair.
const SHUT_OUT: &str = "select string_agg(format('`%s` in schema `%s`', g.role, g.schema), ', ' order by g.role, g.schema)
    from unnest($1::text[], $2::text[], $3::text[]) g(role, schema, owner)
    left join pg_roles r on r.rolname = g.role
    left join pg_roles o on o.rolname = case g.owner when '' then current_user else g.owner end
   where g.role <> current_user and not coalesce(pg_has_role(r.oid, o.oid, 'usage'), false)
     and (g.owner <> '' or $4 and current_setting('server_version_num')::int >= 150000)
     and not (select rolsuper from pg_roles where rolname = current_user)";
const UNAVAILABLE: &str = "select string_agg(format('`%s`', e), ', ' order by e) from unnest($1::text[]) e
    where not exists (select from pg_available_extensions a where a.name = e)";
const NOT_TRUSTED: &str = "select string_agg(format('`%s`', e), ', ' order by e) from unnest($1::text[]) e
    join pg_available_extensions a on a.name = e join pg_available_extension_versions v on v.name = a.name and v.version = a.default_version
   where v.superuser and not coalesce((to_jsonb(v) ->> 'trusted')::bool, false) and not (select rolsuper from pg_roles where rolname = current_user)";
const IS_SUPERUSER: &str = "select rolsuper from pg_roles where rolname = current_user";
const TO_MAKE: &str = "select r from unnest($1::text[]) r where not exists (select from pg_roles where rolname = r)
    and not (select rolsuper from pg_roles where rolname = current_user) order by 1";

/// What the database asks for. Names are written whole, for the session has an empty `search_path`.
pub(super) async fn of(client: &Client) -> Result<Demands, PostgresError> {
    let doing = || "looking for what needs rights to be restored".to_owned();
    let mut owners: Vec<Owner> = Vec::new();
    for row in client.query(OWNERS, &[]).await.doing(doing)? {
        let (role, schema): (String, Option<String>) = (row.get(0), row.get(1));
        if owners.last().is_none_or(|owner| owner.role != role) {
            owners.push(Owner { role, guest_in: std::collections::BTreeMap::new() });
        }
        if let (Some(owner), Some(schema)) = (owners.last_mut(), schema) {
            owner.guest_in.insert(schema, row.get(2));
        }
    }
    let extensions = client.query(EXTENSIONS, &[]).await.doing(doing)?;
    let superuser = client.query(SUPERUSER, &[&TOLD]).await.doing(doing)?;
    let texts = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get(0)).collect();
    Ok(Demands { owners, extensions: texts(extensions), superuser: texts(superuser) })
}

/// What is missing on this server for this role, a fragment for each; `new` is whether the database is made by the restore.
pub(crate) async fn missing(client: &Client, demands: &Demands, new: bool) -> Result<Vec<String>, PostgresError> {
    let doing = || "looking whether the role may restore the archive".to_owned();
    let roles = names(demands);
    let (mut guests, mut schemas, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
    for owner in &demands.owners {
        for (schema, host) in &owner.guest_in {
            guests.push(&owner.role);
            schemas.push(schema);
            hosts.push(host);
        }
    }
    let mut missing = Vec::new();
    let told = |row: tokio_postgres::Row| row.get::<_, Option<String>>(0);
    if let Some(names) = told(client.query_one(UNAVAILABLE, &[&demands.extensions]).await.doing(doing)?) {
        missing.push(format!("the server does not have the extensions {names} (install their packages there)"));
    }
    if let Some(names) = told(client.query_one(NOT_OURS, &[&roles]).await.doing(doing)?) {
        missing.push(format!(
            "some of it belongs to the roles {names}, of which it is no member (grant them to it, or let a superuser restore)"
        ));
    }
    if let Some(names) = told(client.query_one(SHUT_OUT, &[&guests, &schemas, &hosts, &new]).await.doing(doing)?) {
        missing.push(format!("things of {names} need the schema's owner or a superuser"));
    }
    if let Some(names) = told(client.query_one(NOT_TRUSTED, &[&demands.extensions]).await.doing(doing)?) {
        missing.push(format!("the extensions {names} need a superuser"));
    }
    if !demands.superuser.is_empty() && !client.query_one(IS_SUPERUSER, &[]).await.doing(doing)?.get::<_, bool>(0) {
        missing.push(format!("only a superuser makes: {}", demands.superuser.join(", ")));
    }
    Ok(missing)
}

/// SQL, to follow `roles.sql`, that lets a role which is no superuser act as the owners that it makes: whoever makes a role is no
/// member of it by that.
pub(super) async fn memberships(client: &Client, demands: &Demands) -> Result<String, PostgresError> {
    let rows = client.query(TO_MAKE, &[&names(demands)]).await.doing(|| "looking for the archive's owners".to_owned())?;
    Ok(rows.iter().map(|row| format!("grant {} to current_user;\n", quote_identifier(row.get(0)))).collect())
}

fn names(demands: &Demands) -> Vec<&str> {
    demands.owners.iter().map(|owner| owner.role.as_str()).collect()
}
