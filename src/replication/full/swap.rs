//! Switches a target from one generation to another, in one short transaction.
//!
//! Every replaced object is moved into the schema of its generation, every new one into its real schema. Readers hold a lock on
//! each table that they use until their transaction ends, so the switch waits for them; it asks for all locks at once, gives up
//! after some ten milliseconds, lets everybody pass, and asks again ([`super::locks`]). Whoever reads meanwhile never waits longer
//! than that, and never sees two generations in one statement. Until the transaction is committed the old generation serves,
//! whatever happens.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use super::catalog::{Graph, Key, OWN_SCHEMA, ObjectId, PG_CLASS};
use super::drops::DropPlan;
use super::generation::{self, new_schema, old_schema};
use super::locks::{self, Lock, Locks};
use super::policies::RowSecurity;
use super::relocate::{self, Relocation};
use super::saved::{self, Present};
use super::{stage, state, tables, target};
use crate::postgres::{Doing, PostgresError, explain, quote_identifier};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// From one attempt to the next, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often it is told that the switch waits.
const TELL: Duration = Duration::from_secs(300);

/// What comes in.
pub(super) struct Incoming<'a> {
    /// Stand-in schema → real one; more are added for somebody's own objects.
    pub(super) schemas: HashMap<String, String>,
    pub(super) relocation: Relocation,
    /// Functions that are replaced where they are: identity and definition.
    pub(super) functions: Vec<(String, String)>,
    /// What is ours from now on, besides what was and stays.
    pub(super) made: HashSet<Key>,
    pub(super) snapshot: &'a str,
    /// Plain indexes of the source, and of the enrichment: those of anybody else are made again.
    pub(super) index_names: HashSet<TableName>,
}

/// A switch that is ready.
struct Plan {
    there: Graph,
    drops: DropPlan,
    recorded: HashSet<Key>,
    moving: Vec<u32>,
    locks: Vec<Lock>,
    /// What everything that refers to the outgoing objects comes to; another value: somebody changed something.
    references: (i64, i64),
}

/// Whether an attempt failed for a lock that others hold.
pub(super) fn may_pass(error: &tokio_postgres::Error) -> bool {
    let passing = [&SqlState::LOCK_NOT_AVAILABLE, &SqlState::T_R_DEADLOCK_DETECTED, &SqlState::QUERY_CANCELED];
    error.code().is_some_and(|code| passing.contains(&code))
}

/// Switches to what is staged. `decide` says what goes, from the target's catalogue and what is recorded there. Returns what
/// somebody's own objects could not be made on the new tables; their definitions are stored.
pub(super) async fn switch(
    run: &Run,
    target: &mut Client,
    mut incoming: Incoming<'_>,
    patience: Duration,
    decide: impl Fn(&Graph, &HashSet<Key>) -> anyhow::Result<DropPlan>,
) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    let (mut pause, mut told) = (PAUSES.0, None::<Instant>);
    let mut staged: HashSet<Key> = HashSet::new();
    let (mut locks, mut lost_told) = (Locks::default(), false);
    loop {
        let there = Graph::read(target).await?;
        let recorded = state::recorded(target).await?;
        let drops = decide(&there, &recorded)?;
        stage_others(run, target, &mut incoming, &there, &drops, &recorded, &mut staged).await?;
        let moving: Vec<u32> = stage::movable(&drops).iter().map(|id| id.1).collect();
        keep_security(run, target, &incoming, &moving).await?;
        if !std::mem::replace(&mut lost_told, true) {
            tell_lost(run, target, &incoming, &moving).await?;
        }
        let references = references(target, &moving).await?;
        let keyed = drops.foreign_keys.iter().map(|id| (PG_CLASS, there.nodes[id].table));
        let wanted = locks::of(target, &there, drops.gone.iter().copied().chain(keyed)).await?;
        let plan = Plan { there, drops, recorded, moving, locks: wanted, references };
        loop {
            match attempt(run, target, &incoming, &plan, &mut locks).await {
                Ok(true) => return Ok(saved::make_again(run, target, Present::Forget).await?),
                // Somebody made or dropped something that hangs on the outgoing tables: look again.
                Ok(false) => {
                    anyhow::ensure!(
                        started.elapsed() < patience,
                        "views or keys over replaced tables came and went for {} s, faster than they could be made on the new \
                         ones; end what makes them, or raise REPLICATION_SWAP_TIMEOUT",
                        patience.as_secs()
                    );
                    break;
                }
                Err(error) if error.downcast_ref::<tokio_postgres::Error>().is_some_and(may_pass) => {
                    anyhow::ensure!(
                        started.elapsed() < patience,
                        "readers held replaced tables for {} s ({}); end them, or raise REPLICATION_SWAP_TIMEOUT",
                        patience.as_secs(),
                        holders(target, &plan.moving).await
                    );
                    if told.is_none_or(|at| at.elapsed() > TELL) {
                        told = Some(Instant::now());
                        run.info(format!("the switch waits for readers: {}", holders(target, &plan.moving).await));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(error) => {
                    return Err(match error.downcast::<tokio_postgres::Error>() {
                        Ok(error) => anyhow::anyhow!("switching to the new copy: {}", explain(&error)),
                        Err(error) => error,
                    });
                }
            }
        }
    }
}

/// Makes somebody's own views, functions and indexes beside, on the new tables. What cannot be made is stored, told by name,
/// and tried again by each run.
async fn stage_others(
    run: &Run,
    target: &mut Client,
    incoming: &mut Incoming<'_>,
    there: &Graph,
    drops: &DropPlan,
    recorded: &HashSet<Key>,
    staged: &mut HashSet<Key>,
) -> anyhow::Result<()> {
    let mut wanted: Vec<(Key, Vec<String>)> = Vec::new();
    for id in &drops.saved {
        let node = &there.nodes[id];
        if !staged.contains(&node.key()) {
            wanted.push((node.key(), saved::definition(target, node).await?));
        }
    }
    if recorded.iter().any(|(kind, _)| kind == "index") {
        for index in tables::plain_indexes(target).await? {
            let key: Key = ("index".to_owned(), index.identity.clone());
            let ours = incoming.index_names.contains(&index.name) || recorded.contains(&key);
            if drops.replaced.contains(&(PG_CLASS, index.table)) && !ours && !staged.contains(&key) {
                wanted.push((key, vec![saved::index_definition(target, &index).await?]));
            }
        }
    }
    let names: Vec<TableName> = wanted.iter().filter_map(|(key, _)| relocate::split(&key.1)).collect();
    for name in &names {
        if !incoming.relocation.add(name.clone()) {
            incoming.relocation.add_schema(&name.schema, new_schema(&name.schema));
            incoming.relocation.add(name.clone());
        }
        let stand_in = new_schema(&name.schema);
        generation::stage_schema(target, &stand_in).await?;
        incoming.schemas.insert(stand_in, name.schema.clone());
    }
    let doing = || "making somebody's own objects on the new tables".to_owned();
    let mut tx = target.transaction().await.doing(doing)?;
    for (key, statements) in wanted {
        saved::make_beside(run, &mut tx, &key, &statements, &incoming.relocation).await?;
        staged.insert(key);
    }
    tx.commit().await.doing(doing)?;
    Ok(())
}

/// Gives the tables that come the row security that those that go have on the target alone.
async fn keep_security(run: &Run, target: &mut Client, incoming: &Incoming<'_>, moving: &[u32]) -> anyhow::Result<()> {
    let security = RowSecurity::of(target, moving).await?;
    let doing = || "keeping row security".to_owned();
    let mut tx = target.transaction().await.doing(doing)?;
    security.give(run, &mut tx, &incoming.relocation).await?;
    tx.commit().await.doing(doing)?;
    Ok(())
}

/// What hangs on tables that go and has no counterpart of its name on those that come: somebody added it on the target, or the
/// source has dropped it.
const LOST: &str = r#"
with pair as (
  select c.oid as old, s.oid as new, format('%I.%I', n.nspname, c.relname) as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join unnest($2::text[], $3::text[]) m(stand_in, real) on m.real = n.nspname
    join pg_namespace sn on sn.nspname = m.stand_in join pg_class s on s.relnamespace = sn.oid and s.relname = c.relname
   where c.oid = any($1) and c.relkind in ('r', 'p')
)
select format('trigger %I of %s', t.tgname, name) from pair join pg_trigger t on t.tgrelid = old
 where not t.tgisinternal and not exists (select from pg_trigger x where x.tgrelid = new and x.tgname = t.tgname)
union all
select format('check constraint %I of %s', k.conname, name) from pair join pg_constraint k on k.conrelid = old
 where k.contype = 'c' and not exists (select from pg_constraint x where x.conrelid = new and x.conname = k.conname)
union all
select format('rule %I of %s', r.rulename, name) from pair join pg_rewrite r on r.ev_class = old
 where not exists (select from pg_rewrite x where x.ev_class = new and x.rulename = r.rulename)
union all
select format('statistics %I of %s', e.stxname, name) from pair join pg_statistic_ext e on e.stxrelid = old
 where not exists (select from pg_statistic_ext x where x.stxrelid = new and x.stxname = e.stxname)
union all
select format('comment on %s', name) from pair join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = old and d.objsubid = 0
 where not exists (select from pg_description x where x.classoid = 'pg_class'::regclass and x.objoid = new and x.objsubid = 0)
union all
select format('%s in publication %I', name, p.pubname) from pair join pg_publication_rel r on r.prrelid = old join pg_publication p on p.oid = r.prpubid
order by 1
"#;
/// Of these so many are named.
const NAMED: usize = 20;

/// Tells what people will miss on the new tables.
async fn tell_lost(run: &Run, target: &Client, incoming: &Incoming<'_>, moving: &[u32]) -> Result<(), PostgresError> {
    let (stand_ins, real): (Vec<&str>, Vec<&str>) = incoming.schemas.iter().map(|(a, b)| (a.as_str(), b.as_str())).unzip();
    let doing = || "reading what hangs on the live copy".to_owned();
    let rows = target.query(LOST, &[&moving, &stand_ins, &real]).await.doing(doing)?;
    let mut names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if names.is_empty() {
        return Ok(());
    }
    if names.len() > NAMED {
        let more = names.len() - NAMED;
        names.truncate(NAMED);
        names.push(format!("and {more} more"));
    }
    run.warn(format!("not on the new copy, for the source does not have it: {}", names.join(", ")));
    Ok(())
}

pub(super) async fn references(target: &Client, moving: &[u32]) -> Result<(i64, i64), PostgresError> {
    let sql = "select count(*), coalesce(sum(hashtext(format('%s %s %s %s', classid, objid, refclassid, refobjid))), 0)::int8 \
               from pg_depend where refobjid = any($1)";
    let row = target.query_one(sql, &[&moving]).await.doing(|| "reading what depends on the live copy".to_owned())?;
    Ok((row.get(0), row.get(1)))
}

/// Who keeps the switch waiting.
async fn holders(target: &Client, moving: &[u32]) -> String {
    let sql = "select string_agg(distinct format('server process %s \"%s\", in its transaction for %s s', a.pid, a.application_name, \
               extract(epoch from now() - a.xact_start)::int), '; ') from pg_locks l join pg_stat_activity a on a.pid = l.pid \
               where l.relation = any($1) and l.granted and a.pid <> pg_backend_pid() and l.database = (select oid from pg_database where datname = current_database())";
    match target.query_one(sql, &[&moving]).await {
        Ok(row) => row.get::<_, Option<String>>(0).unwrap_or_else(|| "none is left now".to_owned()),
        Err(error) => explain(&error),
    }
}

/// One attempt: true when the new generation serves, false when the plan is out of date.
async fn attempt(
    run: &Run,
    target: &mut Client,
    incoming: &Incoming<'_>,
    plan: &Plan,
    locks: &mut Locks,
) -> anyhow::Result<bool> {
    let Plan { there, drops, recorded, moving, .. } = plan;
    let outgoing = generation::serving(target).await?;
    let mut old: BTreeSet<String> = stage::movable(drops).iter().filter_map(|id| there.nodes.get(id)?.schema.clone()).collect();
    old.extend(schemas_of_statistics(target, moving).await?);
    let old: Vec<(String, String)> = old.into_iter().map(|real| (real.clone(), old_schema(outgoing, &real))).collect();
    let relations: Vec<u32> = drops.replaced.iter().filter(|id| id.0 == PG_CLASS).map(|id| id.1).collect();
    let privileges = saved::privileges(target, &relations).await?;
    let out = moves(target, moving, &old).await?;
    let (into, objects) = moves_of_schemas(target, &incoming.schemas).await?;
    let keys = foreign_key_drops(target, &drops.foreign_keys).await?;

    let begun = Instant::now();
    let mut tx = target.transaction().await?;
    make_schemas(&tx, &old).await?;
    // Before the locks: readers wait from these on, and this took as long as all that follows.
    let gone: HashSet<Key> = drops.gone.iter().filter_map(|id| Some(there.nodes.get(id)?.key())).collect();
    let made: HashSet<Key> = recorded.iter().filter(|key| !gone.contains(key)).chain(&incoming.made).cloned().collect();
    generation::keep_keys(tx.client(), outgoing).await?;
    tx.batch_execute("delete from bullwork.staged_schema").await?;
    state::record(tx.client(), made.into_iter().chain([("index".to_owned(), String::new())])).await?;
    let serving = generation::note(tx.client(), outgoing, &old, incoming.snapshot, &objects).await?;
    super::resume::forget(tx.client()).await?;
    state::enter(tx.client(), state::Phase::Switched, 0).await?;
    locks.take(&tx, &plan.locks).await?;
    if references(tx.client(), moving).await? != plan.references {
        return Ok(false);
    }
    let mut kept_keys = Vec::new();
    for id in &drops.foreign_keys {
        kept_keys.push(saved::ForeignKey::read(tx.client(), &there.nodes[id]).await?);
    }
    let mut sql: Vec<String> = Vec::new();
    for real in incoming.schemas.values().filter(|real| !old.iter().any(|(other, _)| other == *real)) {
        sql.push(format!("create schema if not exists {}", quote_identifier(real)));
    }
    sql.extend(keys);
    sql.extend(drops.orphans.iter().map(|id| format!("alter sequence {} owned by none", there.nodes[id].table_name().quoted())));
    sql.extend(out);
    sql.extend(into);
    sql.extend(incoming.schemas.keys().map(|stand_in| format!("drop schema {}", quote_identifier(stand_in))));
    tx.batch_execute(&sql.join(";\n")).await?;
    for (identity, definition) in &incoming.functions {
        if target::attempt(&mut tx, &target::or_replace(definition)).await?.is_ok() {
            continue;
        }
        // Its result type changed: it makes room. Who needs the old one keeps it.
        let schema = relocate::split(identity).map_or_else(String::new, |name| old_schema(outgoing, &name.schema));
        let aside = quote_identifier(&schema);
        let sql = format!("create schema if not exists {aside}; alter routine {identity} set schema {aside}; {definition}");
        if let Err(reason) = target::attempt(&mut tx, &sql).await? {
            run.warn(format!("left out function {identity}: {reason}"));
        }
    }
    for key in &kept_keys {
        key.make(&mut tx).await?;
    }
    target::grant(&mut tx, privileges).await?;
    default_privileges(&mut tx, &objects).await?;
    tx.batch_execute("set local synchronous_commit = on").await?;
    tx.commit().await?;
    let took = begun.elapsed();
    run.info(format!("generation {serving} serves; the switch took {} ms, generation {outgoing} is kept", took.as_millis()));
    Ok(true)
}

/// Makes those of the real schemas and their stand-ins that are missing.
pub(super) async fn make_schemas(tx: &Transaction<'_>, schemas: &[(String, String)]) -> Result<(), tokio_postgres::Error> {
    let names = schemas.iter().flat_map(|(real, stand_in)| [real, stand_in]);
    let made: Vec<String> = names.map(|name| format!("create schema if not exists {}", quote_identifier(name))).collect();
    tx.batch_execute(&made.join(";\n")).await
}

/// Routines first: they are named with the types of their arguments, where these are now. Those that make values of a
/// range type do not move with it by themselves.
const MOVES: &str = r#"
select n.nspname::text, m.sql from (
  select c.relnamespace as ns, 1 as rank, c.oid, format('alter %s %I.%I set schema ', case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
         when 'S' then 'sequence' when 'f' then 'foreign table' else 'table' end, n.nspname, c.relname) as sql
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid = any($1) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
     and not (c.relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
              and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') and d.refobjid = any($1)))
  union all
  select t.typnamespace, 2, t.oid, format('alter type %s set schema ', i.identity)
    from pg_type t, pg_identify_object('pg_type'::regclass, t.oid, 0) i
   where t.oid = any($1) or (t.typtype = 'm' and exists (select from pg_depend d where d.classid = 'pg_type'::regclass and d.objid = t.oid
         and d.refclassid = 'pg_type'::regclass and d.deptype = 'i' and d.refobjid = any($1)))
  union all
  select p.pronamespace, 0, p.oid, format('alter routine %s set schema ', i.identity)
    from pg_proc p, pg_identify_object('pg_proc'::regclass, p.oid, 0) i where p.oid = any($1) or exists (
         select from pg_depend d left join pg_depend r on r.classid = d.refclassid and r.objid = d.refobjid and r.deptype = 'i'
          where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_type'::regclass and d.deptype = 'i'
            and (d.refobjid = any($1) or (r.refclassid = 'pg_type'::regclass and r.refobjid = any($1))))
  union all
  select s.stxnamespace, 4, s.oid, format('alter statistics %I.%I set schema ', n.nspname, s.stxname)
    from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = any($1)
) m join pg_namespace n on n.oid = m.ns order by m.rank, m.oid
"#;

/// Schemas of the tables' extended statistics, which need not lie beside their table.
async fn schemas_of_statistics(target: &Client, tables: &[u32]) -> Result<Vec<String>, PostgresError> {
    let sql = "select distinct n.nspname::text from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = any($1)";
    let rows = target.query(sql, &[&tables]).await.doing(|| "reading where extended statistics lie".to_owned())?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}

/// Statements that move objects, each into what stands for its schema.
pub(super) async fn moves(target: &Client, oids: &[u32], places: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let places: HashMap<&str, &str> = places.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let rows = target.query(MOVES, &[&oids]).await.doing(|| "reading what is moved".to_owned())?;
    let statement = |row: tokio_postgres::Row| {
        let to = places.get(row.get::<_, &str>(0))?;
        Some(format!("{}{}", row.get::<_, &str>(1), quote_identifier(to)))
    };
    Ok(rows.into_iter().filter_map(statement).collect())
}

/// Statements that move everything out of the schemas (stand-in → real), and what that is.
pub(super) async fn moves_of_schemas(
    target: &Client,
    schemas: &HashMap<String, String>,
) -> anyhow::Result<(Vec<String>, Vec<ObjectId>)> {
    const ALL: &str = r#"
select 'pg_class'::regclass::oid, c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = any($1) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select 'pg_type'::regclass, t.oid from pg_type t join pg_namespace n on n.oid = t.typnamespace
 where n.nspname = any($1) and (t.typtype in ('e', 'd', 'r') or (t.typtype = 'c' and (select relkind from pg_class where oid = t.typrelid) = 'c')
       or (t.typtype = 'b' and not exists (select from pg_type e where e.typarray = t.oid)))
union all
select 'pg_proc'::regclass, p.oid from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where n.nspname = any($1) and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'i')
"#;
    let names: Vec<&str> = schemas.keys().map(String::as_str).collect();
    let rows = target.query(ALL, &[&names]).await.doing(|| "reading what was built".to_owned())?;
    let objects: Vec<ObjectId> = rows.into_iter().map(|row| (row.get(0), row.get(1))).collect();
    let oids: Vec<u32> = objects.iter().map(|id| id.1).collect();
    let places: Vec<(String, String)> = schemas.iter().map(|(from, to)| (from.clone(), to.clone())).collect();
    Ok((moves(target, &oids, &places).await?, objects))
}

/// Statements that drop the foreign keys of kept tables to what goes.
pub(super) async fn foreign_key_drops(target: &Client, keys: &[ObjectId]) -> anyhow::Result<Vec<String>> {
    const SQL: &str = "select format('alter table %I.%I drop constraint %I', n.nspname, c.relname, k.conname) from pg_constraint k \
                       join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace where k.oid = any($1)";
    let oids: Vec<u32> = keys.iter().map(|id| id.1).collect();
    let rows = target.query(SQL, &[&oids]).await.doing(|| "reading foreign keys".to_owned())?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}

/// Gives what the real schemas' default privileges say, which knew nothing of the stand-ins.
async fn default_privileges(tx: &mut Transaction<'_>, objects: &[ObjectId]) -> anyhow::Result<()> {
    const SQL: &str = r"
select format('grant %s on %s %I.%I to %s%s', x.privilege_type, case c.relkind when 'S' then 'sequence' else 'table' end, n.nspname, c.relname,
              case x.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(x.grantee)) end, case when x.is_grantable then ' with grant option' else '' end)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  join pg_default_acl d on d.defaclnamespace = n.oid and d.defaclrole = c.relowner
       and d.defaclobjtype = case c.relkind when 'S' then 'S' else 'r' end, aclexplode(d.defaclacl) x
 where c.oid = any($1) and x.grantee <> c.relowner";
    let oids: Vec<u32> = objects.iter().filter(|id| id.0 == PG_CLASS).map(|id| id.1).collect();
    let rows = tx.query(SQL, &[&oids]).await.doing(|| "reading default privileges".to_owned())?;
    target::grant(tx, rows.into_iter().map(|row| row.get(0)).collect()).await?;
    Ok(())
}

/// Whether our role may move everything that goes; else who stands in the way.
pub(super) fn not_ours(there: &Graph, drops: &DropPlan) -> Vec<String> {
    let mut names: Vec<String> = stage::movable(drops)
        .iter()
        .chain(&drops.foreign_keys)
        .filter_map(|id| there.nodes.get(id))
        .filter(|node| !node.owned && node.schema.as_deref() != Some(OWN_SCHEMA))
        .map(super::catalog::Node::told)
        .collect();
    names.sort();
    names
}
