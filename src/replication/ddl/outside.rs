//! What is never copied: it needs a superuser, holds secrets, or acts on other systems. And what
//! depends on what.

use tokio_postgres::Row;

use super::draft::{Dependency, Draft, Fate, Item, ObjectId, PG_CLASS, Stage};
use super::rows::{OWN, free};
use super::{Cause, Kind};

/// Columns: catalogue, oid, kind, schema, name, reason. Only a superuser may see the oid of a
/// subscription on old servers.
pub(super) fn refused() -> String {
    format!(
        "select e.tableoid, e.oid, 'event trigger', null::text, e.evtname::text, 'event triggers can be made by a superuser only, and would fire on our own statements' \
           from pg_event_trigger e where {} \
         union all select p.tableoid, p.oid, 'publication', null, p.pubname::text, 'publications send to other servers' from pg_publication p \
         union all select 'pg_subscription'::regclass, 0, 'subscription', null, s.subname::text, 'subscriptions receive from other servers, with secrets' \
           from pg_subscription s where s.subdbid = (select oid from pg_database where datname = current_database()) \
         union all select w.tableoid, w.oid, 'wrapper', null, w.fdwname::text, 'foreign-data wrappers can be made by a superuser only' \
           from pg_foreign_data_wrapper w where {} \
         union all select s.tableoid, s.oid, 'server', null, s.srvname::text, 'foreign servers lead to other systems, with secrets' \
           from pg_foreign_server s where {} \
         union all select 'pg_user_mapping'::regclass, m.umid, 'mapping', null, format('%s for %s', m.srvname, m.usename), 'user mappings hold secrets' \
           from pg_user_mappings m \
         union all select c.tableoid, c.oid, 'foreign table', n.nspname::text, c.relname::text, 'foreign tables show rows of other systems' \
           from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'f' and {OWN} and {} \
         union all select l.classoid, l.objoid, 'label', null, format('%s %s (%s)', l.objtype, l.objname, l.provider), \
           'security labels belong to a provider that the target may not have' from pg_seclabels l where l.classoid <> 0 and l.objtype not in ('database', 'role', 'tablespace') \
         union all select 0, 0, 'large objects', null, count(*) || ' large objects', 'large objects are no rows of any table' \
           from pg_largeobject_metadata having count(*) > 0",
        free("pg_event_trigger", "e"),
        free("pg_foreign_data_wrapper", "w"),
        free("pg_foreign_server", "s"),
        free("pg_class", "c"),
    )
}

pub(super) fn add_refused(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let (kind, cause) = match row.get::<_, &str>(2) {
            "event trigger" => (Kind::EventTrigger, Cause::Superuser),
            "publication" => (Kind::Publication, Cause::Superuser),
            "subscription" => (Kind::Subscription, Cause::Secret),
            "wrapper" => (Kind::ForeignDataWrapper, Cause::Superuser),
            "server" => (Kind::ForeignServer, Cause::Secret),
            "mapping" => (Kind::UserMapping, Cause::Secret),
            "foreign table" => (Kind::ForeignTable, Cause::Secret),
            "label" => (Kind::SecurityLabel, Cause::Superuser),
            _ => (Kind::LargeObject, Cause::Secret),
        };
        let id: ObjectId = (row.get(0), row.get(1));
        let mut item = Item::new(id, kind, Stage::Post, row.get(3), row.get(4), String::new());
        item.fate = Fate::Refused(cause, row.get(5));
        if kind == Kind::ForeignTable {
            item.relation = id.1;
        }
        // A label is told by the object that it is on, which is copied.
        if matches!(kind, Kind::SecurityLabel | Kind::LargeObject) {
            item.id.0 = super::draft::STEP;
        }
        draft.add(item);
    }
}

/// Objects that are made by another's statement: part, whole.
pub(super) fn parts(version: i32) -> String {
    let multiranges = if version >= 140_000 {
        "union all select t.tableoid, r.rngmultitypid, t.tableoid, r.rngtypid from pg_range r join pg_type t on t.oid = r.rngtypid where r.rngmultitypid >= 16384"
    } else {
        ""
    };
    format!(
        "select t.tableoid, t.oid, 'pg_class'::regclass::oid, t.typrelid from pg_type t join pg_class c on c.oid = t.typrelid \
           where t.typtype = 'c' and c.relkind <> 'c' and t.oid >= 16384 \
         union all select 'pg_class'::regclass, c.oid, 'pg_type'::regclass, c.reltype from pg_class c where c.relkind = 'c' and c.oid >= 16384 \
         union all select t.tableoid, t.typarray, t.tableoid, t.oid from pg_type t where t.typarray >= 16384 {multiranges} \
         union all select d.classid, d.objid, d.refclassid, d.refobjid from pg_depend d \
           where d.classid = 'pg_proc'::regclass and d.deptype = 'i' and d.objid >= 16384 \
         union all select k.tableoid, k.oid, 'pg_type'::regclass, k.contypid from pg_constraint k where k.contypid <> 0 and k.contype = 'n' \
         union all select k.tableoid, k.oid, 'pg_class'::regclass, k.conrelid from pg_constraint k where k.conrelid <> 0 and k.contype = 'n' \
         union all select d.classid, d.objid, d.refclassid, d.refobjid from pg_depend d where d.deptype = 'e' and d.objid >= 16384 and d.refobjid >= 16384"
    )
}

pub(super) fn add_parts(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        draft.part_of.insert((row.get(0), row.get(1)), (row.get(2), row.get(3)));
    }
}

/// Who needs whom. Left out: sequences and partitions, which go with their table but are made
/// before it; indexes of keys, likewise; and the ties between a partition's objects and its parent's.
pub(super) fn dependencies() -> String {
    "select distinct d.classid, d.objid, d.refclassid, d.refobjid from pg_depend d \
     left join pg_class c on d.classid = 'pg_class'::regclass and c.oid = d.objid \
     where d.objid >= 16384 and d.refobjid >= 16384 and d.deptype in ('n', 'a', 'i') \
     and not (d.deptype in ('a', 'i') and d.refclassid = 'pg_class'::regclass and coalesce(c.relkind in ('r', 'p', 'S'), false)) \
     and not (d.deptype = 'i' and d.classid = 'pg_class'::regclass and d.refclassid = 'pg_constraint'::regclass)"
        .to_owned()
}

pub(super) fn add_dependencies(draft: &mut Draft, rows: Vec<Row>) {
    for row in rows {
        let dependency = Dependency { from: (row.get(0), row.get(1)), to: (row.get(2), row.get(3)) };
        // A relation's own row type, and back.
        if dependency.from.0 == PG_CLASS && draft.part_of.get(&dependency.from) == Some(&dependency.to) {
            continue;
        }
        draft.dependencies.push(dependency);
    }
}
