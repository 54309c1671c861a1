//! The copies that a target holds: the one that serves, those before it, and the one that is being built.
//!
//! ```text
//! public            what serves
//! bullwork_new_…    what is being built beside it; of a run that is going on, or was killed
//! bullwork_old7_…   what served before, as generation 7
//! ```
//!
//! One stand-in schema for each real one. What belongs to which generation is in `bullwork.generation*`,
//! written in the transaction that moves the objects, so it is true after any crash.

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};
use crate::worker::Run;

/// Longest name of a schema, in bytes.
const LONGEST: usize = 63;

/// The schema in which what belongs into `real` is built.
pub(super) fn new_schema(real: &str) -> String {
    stand_in("bullwork_new_", real)
}

/// The schema that holds what belonged into `real` in an earlier generation.
pub(super) fn old_schema(generation: i64, real: &str) -> String {
    stand_in(&format!("bullwork_old{generation}_"), real)
}

fn stand_in(prefix: &str, real: &str) -> String {
    let whole = format!("{prefix}{real}");
    if whole.len() <= LONGEST {
        return whole;
    }
    use sha2::Digest;
    let hash: String = sha2::Sha256::digest(real.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{hash}")
}

/// Makes a schema for what is being built, unless it is there for that already.
///
/// # Errors
/// When somebody has a schema of that name: it must never be dropped with ours.
pub(super) async fn stage_schema(target: &Client, name: &str) -> anyhow::Result<()> {
    let doing = || format!("making schema `{name}`");
    let sql = "select to_regnamespace($1) is not null, exists (select from bullwork.staged_schema where name = $2)";
    let row = target.query_one(sql, &[&quote_identifier(name), &name]).await.doing(doing)?;
    let (exists, ours): (bool, bool) = (row.get(0), row.get(1));
    anyhow::ensure!(
        ours || !exists,
        "the target has a schema `{name}` that no run of ours made; names that begin with bullwork_new_ and bullwork_old are Bullwork's: rename it"
    );
    // Made and noted at once: without its note it would pass for somebody else's at the next run.
    let make = if exists { String::new() } else { format!("create schema {};", quote_identifier(name)) };
    let note = format!("insert into bullwork.staged_schema values ({}) on conflict do nothing", quote_literal(name));
    target.batch_execute(&format!("{make} {note}")).await.doing(doing)?;
    Ok(())
}

/// Removes what a killed run was building. Tells whether there was something.
pub(super) async fn drop_unfinished(target: &Client) -> Result<bool, PostgresError> {
    // Before anything goes, or it would be taken for whole.
    super::resume::forget(target).await?;
    let sql = "select s.name, n.oid is not null from bullwork.staged_schema s left join pg_namespace n on n.nspname = s.name order by 1";
    let rows = target.query(sql, &[]).await.doing(|| "reading bullwork.staged_schema".to_owned())?;
    let mut dropped = false;
    for row in rows {
        let (schema, exists): (String, bool) = (row.get(0), row.get(1));
        let note = format!("delete from bullwork.staged_schema where name = {}", quote_literal(&schema));
        drop_schemas(target, &[schema], &note).await?;
        dropped |= exists;
    }
    Ok(dropped)
}

/// Drops schemas with all that is in them, and notes it with `note`, all at once: a copy that is half gone must never be brought
/// back. A foreign key to a kept table ends with it, which locks that table for a
/// moment: readers must never queue behind a lock that is not granted, so it is asked for again and again instead.
async fn drop_schemas(target: &Client, schemas: &[String], note: &str) -> Result<(), PostgresError> {
    let names: Vec<String> = schemas.iter().map(|name| quote_identifier(name)).collect();
    let drop = if names.is_empty() { String::new() } else { format!("drop schema if exists {} cascade;", names.join(", ")) };
    let sql = format!("set local lock_timeout = '50ms'; {drop} {note}");
    let mut tries = 0;
    loop {
        match target.batch_execute(&format!("begin; {sql}; commit")).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let _ = target.batch_execute("rollback").await;
                tries += 1;
                if tries >= 600 || !super::swap::may_pass(&error) {
                    return Err(error).doing(|| format!("dropping schema `{}`", schemas.join("`, `")));
                }
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }
}

/// Removes all generations but the newest `keep` that do not serve. One that somebody's own objects need stays, and is
/// told by name.
pub(super) async fn drop_surplus(run: &Run, target: &Client, keep: u32) -> Result<(), PostgresError> {
    let doing = || "reading bullwork.generation".to_owned();
    let sql = "select id from bullwork.generation where not serves order by id desc offset $1";
    for row in target.query(sql, &[&i64::from(keep)]).await.doing(doing)? {
        let generation: i64 = row.get(0);
        let sql = "select stand_in from bullwork.generation_schema where generation = $1";
        let schemas: Vec<String> =
            target.query(sql, &[&generation]).await.doing(doing)?.into_iter().map(|row| row.get(0)).collect();
        let needed = needed_from_outside(target, &schemas).await?;
        if !needed.is_empty() {
            run.warn(format!(
                "generation {generation} is kept, because other objects need it: {}; drop or change these, and the next run removes it",
                needed.join(", ")
            ));
            continue;
        }
        match drop_schemas(target, &schemas, &format!("delete from bullwork.generation where id = {generation}")).await {
            Ok(()) if schemas.is_empty() => {}
            Ok(()) => run.info(format!("removed generation {generation}")),
            Err(error) => run.warn(format!("generation {generation} is kept for now: {error}")),
        }
    }
    Ok(())
}

/// Bytes of the generations that [`drop_surplus`] would remove.
pub(super) async fn surplus_size(target: &Client, keep: u32) -> Result<u64, PostgresError> {
    const SQL: &str = "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                       where c.relkind in ('r', 'm') and (n.nspname in (select name from bullwork.staged_schema) or n.nspname in (select stand_in from bullwork.generation_schema \
                       where generation in (select id from bullwork.generation where not serves order by id desc offset $1)))";
    let doing = || "asking how large earlier generations are".to_owned();
    let bytes: i64 = target.query_one(SQL, &[&i64::from(keep)]).await.doing(doing)?.get(0);
    Ok(bytes.unsigned_abs())
}

/// Forgets which copy serves: it is replaced in place, and none before it is left.
pub(super) async fn forget(run: &Run, target: &Client) -> Result<(), PostgresError> {
    drop_surplus(run, target, 0).await?;
    let sql = "delete from bullwork.generation where serves";
    target.execute(sql, &[]).await.doing(|| "writing bullwork.generation".to_owned())?;
    Ok(())
}

/// Objects elsewhere that would go with these schemas.
async fn needed_from_outside(target: &Client, schemas: &[String]) -> Result<Vec<String>, PostgresError> {
    const SQL: &str = r"
with ns as (select oid from pg_namespace where nspname = any($1)),
     inside(classid, objid) as (
       select 'pg_class'::regclass::oid, oid from pg_class where relnamespace in (select oid from ns)
       union all select 'pg_type'::regclass, oid from pg_type where typnamespace in (select oid from ns)
       union all select 'pg_proc'::regclass, oid from pg_proc where pronamespace in (select oid from ns)
     )
select distinct coalesce(v.identity, i.identity) from pg_depend d join inside r on r.classid = d.refclassid and r.objid = d.refobjid
  left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
  left join lateral pg_identify_object('pg_class'::regclass, w.ev_class, 0) v on w.oid is not null,
  pg_identify_object(d.classid, d.objid, d.objsubid) i
 where d.deptype in ('n', 'a') and not exists (select from inside o where o.classid = d.classid and o.objid = d.objid)
   and not exists (select from unnest($1) s where position(quote_ident(s) in i.identity) > 0 or position(quote_ident(s) in v.identity) > 0)
 order by 1";
    let rows = target.query(SQL, &[&schemas]).await.doing(|| "looking for what needs an earlier generation".to_owned())?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}

/// Notes that the outgoing copy is generation `old` now, kept in `schemas` (real, stand-in), and that what came in serves.
pub(super) async fn note(
    target: &Client,
    old: i64,
    schemas: &[(String, String)],
    snapshot: &str,
    incoming: &[(u32, u32)],
) -> Result<i64, PostgresError> {
    let doing = || "writing bullwork.generation".to_owned();
    let sql = "update bullwork.generation set serves = false, replaced_at = now() where serves";
    target.execute(sql, &[]).await.doing(doing)?;
    for (real, stand_in) in schemas {
        let sql =
            "insert into bullwork.generation_schema (generation, real, stand_in) values ($1, $2, $3) on conflict do nothing";
        target.execute(sql, &[&old, real, stand_in]).await.doing(doing)?;
    }
    let sql = "insert into bullwork.generation (source_snapshot, serves) values ($1, true) returning id";
    let new: i64 = target.query_one(sql, &[&snapshot]).await.doing(doing)?.get(0);
    note_objects(target, new, incoming).await?;
    Ok(new)
}

/// Keeps the list of what is ours with the generation that stops serving: what hangs on its tables is somebody else's.
pub(super) async fn keep_keys(target: &Client, generation: i64) -> Result<(), PostgresError> {
    let sql = "insert into bullwork.generation_key select $1, kind, identity from bullwork.replicated on conflict do nothing";
    target.execute(sql, &[&generation]).await.doing(|| "writing bullwork.generation_key".to_owned())?;
    Ok(())
}

/// Brings the list back that was kept with a generation that serves again.
pub(super) async fn restore_keys(target: &Client, generation: i64) -> Result<(), PostgresError> {
    for sql in [
        "delete from bullwork.replicated where $1 in (select generation from bullwork.generation_key)",
        "insert into bullwork.replicated select kind, identity from bullwork.generation_key where generation = $1 on conflict do nothing",
        "delete from bullwork.generation_key where generation = $1",
    ] {
        target.execute(sql, &[&generation]).await.doing(|| "writing bullwork.replicated".to_owned())?;
    }
    Ok(())
}

/// Notes what serves as generation `serving`.
pub(super) async fn note_objects(target: &Client, serving: i64, objects: &[(u32, u32)]) -> Result<(), PostgresError> {
    let (classes, oids): (Vec<u32>, Vec<u32>) = objects.iter().copied().unzip();
    let sql = "insert into bullwork.generation_object select $1, * from unnest($2::oid[], $3::oid[]) on conflict do nothing";
    target.execute(sql, &[&serving, &classes, &oids]).await.doing(|| "writing bullwork.generation_object".to_owned())?;
    Ok(())
}

/// The generation that serves; made when the copy was there before generations were counted.
pub(super) async fn serving(target: &Client) -> Result<i64, PostgresError> {
    let doing = || "reading bullwork.generation".to_owned();
    if let Some(row) = target.query_opt("select id from bullwork.generation where serves", &[]).await.doing(doing)? {
        return Ok(row.get(0));
    }
    let sql = "insert into bullwork.generation (serves) values (true) returning id";
    Ok(target.query_one(sql, &[]).await.doing(doing)?.get(0))
}

/// For people: which copy serves now; nothing, where none is counted.
pub(super) async fn told(target: &Client) -> Result<Option<String>, PostgresError> {
    let doing = || "asking which copy serves".to_owned();
    let exists = "select to_regclass('bullwork.generation') is not null";
    if !target.query_one(exists, &[]).await.doing(doing)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "select id, made_at::timestamptz(0)::text from bullwork.generation where serves";
    let row = target.query_opt(sql, &[]).await.doing(doing)?;
    Ok(row.map(|row| format!("generation {} of {} serves", row.get::<_, i64>(0), row.get::<_, &str>(1))))
}

#[cfg(test)]
mod tests {
    use super::super::catalog::is_stand_in;
    use super::*;

    #[test]
    fn stand_ins_are_short_enough_and_recognised() {
        let long = "é".repeat(30);
        for real in ["public", "We.ird \"x\"", long.as_str()] {
            for stand_in in [new_schema(real), old_schema(1_234_567, real)] {
                assert!(stand_in.len() <= LONGEST && is_stand_in(&stand_in), "{stand_in}");
            }
        }
        assert_ne!(new_schema(&long), new_schema(&format!("{long}x")));
        for other in ["public", "bullwork", "bullwork_new", "bullwork_older", "bullwork_old_x", "bullwork_oldx_y"] {
            assert!(!is_stand_in(other), "{other}");
        }
    }
}
