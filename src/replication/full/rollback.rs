//! Brings an earlier generation back.
//!
//! The same moves as a switch, the other way round; the generation that served is kept in turn, so a rollback can be
//! rolled back. Views that somebody made since over the tables that go are made anew over those that come, before these move.
//!
//! All of it is one transaction: cut off anywhere, it has not happened, or it has and nothing of it is missing. Only the rows
//! behind the foreign keys of kept tables are looked at afterwards; when that is cut off, the next full replication does it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Transaction};

use super::catalog::{Graph, Key, Node, ObjectId, PG_CLASS, PG_CONSTRAINT, PG_PROC};
use super::generation::{self, old_schema};
use super::locks::{self, Locks};
use super::relocate::Relocation;
use super::saved::{self, Present};
use super::swap::{foreign_key_drops, make_schemas, may_pass, moves, moves_of_schemas, references};
use super::{outcome, session, state};
use crate::postgres::{Database, Doing, PostgresError, explain, quote_identifier};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// How long readers of the tables that go are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one attempt to the next.
const PAUSE: Duration = Duration::from_millis(300);

/// An earlier copy, and where it stands.
struct Earlier {
    generation: i64,
    made_at: String,
    /// Stand-in schema → real one.
    schemas: HashMap<String, String>,
}

/// Makes the newest earlier generation serve. Returns what happened, for people. Others that write to the target have to be kept out
/// by the caller.
///
/// # Errors
/// When there is none, readers hold its tables for a minute, the target refuses or is lost; the words say which generation serves.
pub async fn rollback(run: &Run, database: &Database) -> anyhow::Result<String> {
    let mut target = session::for_target(database, "rollback").await?;
    anyhow::ensure!(state::exists(&target).await?, "the target has no generations: no full replication has run there");
    let Some(earlier) = newest(&target).await? else {
        anyhow::bail!("the target has no earlier generation; REPLICATION_GENERATIONS says how many are kept");
    };
    let serving = generation::serving(&target).await?;
    let (mut locks, begun) = (Locks::default(), Instant::now());
    let error = loop {
        match attempt(run, target.client_mut(), serving, &earlier, &mut locks, begun).await {
            Ok(true) => break None,
            // Somebody made or dropped something that hangs on the tables that go: look again.
            Ok(false) if begun.elapsed() < PATIENCE => {}
            Ok(false) => break Some(anyhow::anyhow!("views or keys over the tables that go came and went for a minute")),
            Err(error) => break Some(error),
        }
    };
    if let Some(error) = error {
        let error = match error.downcast::<tokio_postgres::Error>() {
            Ok(error) => anyhow::anyhow!("changing places: {}", explain(&error)),
            Err(error) => error,
        };
        // What was sent last may have been done, though its answer was lost.
        return Err(error.context(outcome::after_rollback(database, serving, earlier.generation).await));
    }
    let Earlier { generation, made_at, .. } = earlier;
    let after = saved::make_again(run, target.client_mut(), Present::Keep).await;
    let unfit = match after {
        Ok(broken) if broken.is_empty() => String::new(),
        Ok(broken) => format!("; could not be made again: {}", broken.join("; ")),
        Err(error) => format!("; what is left to be done is done by the next full replication ({error})"),
    };
    Ok(format!("generation {generation} of {made_at} serves; generation {serving} is kept{unfit}"))
}

async fn newest(target: &Client) -> Result<Option<Earlier>, PostgresError> {
    let doing = || "reading bullwork.generation".to_owned();
    const EARLIER: &str = "select g.id, g.made_at::timestamptz(0)::text from bullwork.generation g where not g.serves and exists \
                           (select from bullwork.generation_schema s where s.generation = g.id) order by g.id desc limit 1";
    let Some(row) = target.query_opt(EARLIER, &[]).await.doing(doing)? else { return Ok(None) };
    let generation: i64 = row.get(0);
    let sql = "select stand_in, real from bullwork.generation_schema where generation = $1";
    let schemas = target.query(sql, &[&generation]).await.doing(doing)?;
    Ok(Some(Earlier {
        generation,
        made_at: row.get(1),
        schemas: schemas.into_iter().map(|row| (row.get(0), row.get(1))).collect(),
    }))
}

/// What is done to the copy that serves.
struct Outgoing {
    objects: Vec<ObjectId>,
    /// Views and functions that somebody made since, each after those that it needs.
    hanging: Vec<ObjectId>,
    /// Foreign keys of kept tables.
    keys: Vec<ObjectId>,
}

impl Outgoing {
    fn find(there: &Graph, objects: Vec<ObjectId>) -> anyhow::Result<Outgoing> {
        let all = there.closure_of_dependents(objects.iter().copied());
        let others: Vec<ObjectId> = all.iter().filter(|id| !objects.contains(id)).copied().collect();
        let of_kept = |id: &&ObjectId| {
            let node = &there.nodes[*id];
            id.0 == PG_CONSTRAINT && node.parent == 0 && !objects.contains(&(PG_CLASS, node.table))
        };
        let hanging = there.by_need(others.iter().filter(|id| matches!(id.0, PG_CLASS | PG_PROC)).copied().collect());
        let in_the_way = hanging.iter().map(|id| &there.nodes[id]).find(|node| kind_to_drop(node).is_none());
        if let Some(node) = in_the_way {
            anyhow::bail!("{} was made since and needs what would go; drop it first", node.told());
        }
        Ok(Outgoing { keys: others.iter().filter(of_kept).copied().collect(), hanging, objects })
    }
}

/// How what somebody made since is dropped; it is made anew on the tables that come.
fn kind_to_drop(node: &Node) -> Option<&'static str> {
    match node.sort {
        'v' if node.is_relation() => Some("view"),
        'm' if node.is_relation() => Some("materialized view"),
        _ if node.id.0 == PG_PROC => Some("routine"),
        _ => None,
    }
}

/// One transaction: true when the earlier generation serves, false when what hangs on the tables that go has changed meanwhile.
async fn attempt(
    run: &Run,
    target: &mut Client,
    serving: i64,
    earlier: &Earlier,
    locks: &mut Locks,
    begun: Instant,
) -> anyhow::Result<bool> {
    const OBJECTS: &str = "select classid, objid from bullwork.generation_object where generation = $1";
    let rows = target.query(OBJECTS, &[&serving]).await.doing(|| "reading bullwork.generation_object".to_owned())?;
    let there = Graph::read(target).await?;
    let objects: Vec<ObjectId> =
        rows.into_iter().map(|row| (row.get(0), row.get(1))).filter(|id| there.nodes.contains_key(id)).collect();
    anyhow::ensure!(!objects.is_empty(), "it is not known what belongs to generation {serving}");
    let oids: Vec<u32> = objects.iter().map(|id| id.1).collect();
    let seen = references(target, &oids).await?;
    let going = Outgoing::find(&there, objects)?;
    let keyed = going.keys.iter().map(|id| (PG_CLASS, there.nodes[id].table));
    let wanted = locks::of(target, &there, going.objects.iter().chain(&going.hanging).copied().chain(keyed)).await?;
    let real: BTreeSet<String> = going.objects.iter().filter_map(|id| there.nodes[id].schema.clone()).collect();
    let old: Vec<(String, String)> = real.into_iter().map(|real| (real.clone(), old_schema(serving, &real))).collect();

    let mut tx = target.transaction().await?;
    let (_, coming) = moves_of_schemas(tx.client(), &earlier.schemas).await?;
    let schemas = make_hanging(run, &mut tx, &there, &going, earlier).await?;
    let mut pause = Duration::from_millis(30);
    loop {
        let mut moving = tx.savepoint("moving").await?;
        make_schemas(&moving, &old).await?;
        match locks.take(&moving, &wanted).await {
            Ok(()) => {}
            Err(error) if may_pass(&error) && begun.elapsed() < PATIENCE => {
                moving.rollback().await?;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        if references(moving.client(), &oids).await? != seen {
            return Ok(false);
        }
        change_places(&mut moving, &there, &going, (&oids, &old), &schemas).await?;
        note(moving.client(), (serving, earlier.generation), &old, &coming).await?;
        moving.commit().await?;
        break;
    }
    tx.batch_execute("set local synchronous_commit = on").await?;
    tx.commit().await?;
    run.info(format!("generation {} serves again", earlier.generation));
    Ok(true)
}

/// Makes what somebody made since on the tables that come, where these are now. Returns which schemas are emptied.
async fn make_hanging(
    run: &Run,
    tx: &mut Transaction<'_>,
    there: &Graph,
    going: &Outgoing,
    earlier: &Earlier,
) -> anyhow::Result<HashMap<String, String>> {
    const NAMES: &str = "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = any($1) \
                         union select n.nspname, t.typname from pg_type t join pg_namespace n on n.oid = t.typnamespace where n.nspname = any($1) \
                         union select n.nspname, p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any($1)";
    let mut schemas = earlier.schemas.clone();
    let stand_ins: Vec<&str> = earlier.schemas.keys().map(String::as_str).collect();
    let rows = tx.query(NAMES, &[&stand_ins]).await.doing(|| "reading the names of what comes".to_owned())?;
    let mut names: HashSet<TableName> = rows
        .into_iter()
        .map(|row| TableName { schema: earlier.schemas[row.get::<_, &str>(0)].clone(), name: row.get(1) })
        .collect();
    for node in going.hanging.iter().map(|id| &there.nodes[id]) {
        names.extend(super::relocate::split(&node.identity));
    }
    let place = |real: &str| {
        let known = earlier.schemas.iter().find(|(_, other)| *other == real).map(|(stand_in, _)| stand_in.clone());
        known.unwrap_or_else(|| old_schema(earlier.generation, real))
    };
    let relocation = Relocation::new(names, place);
    for (real, stand_in) in relocation.schemas() {
        if schemas.insert(stand_in.to_owned(), real.to_owned()).is_none() {
            tx.batch_execute(&format!("create schema {}", quote_identifier(stand_in)))
                .await
                .doing(|| format!("making schema `{stand_in}`"))?;
        }
    }
    for id in &going.hanging {
        let node = &there.nodes[id];
        let key: Key = node.key();
        let statements = saved::definition(tx.client(), node).await?;
        saved::make_beside(run, tx, &key, &statements, &relocation).await?;
    }
    Ok(schemas)
}

/// Moves one copy out and the other in.
async fn change_places(
    tx: &mut Transaction<'_>,
    there: &Graph,
    going: &Outgoing,
    (oids, old): (&[u32], &[(String, String)]),
    schemas: &HashMap<String, String>,
) -> anyhow::Result<()> {
    let mut kept_keys = Vec::new();
    for id in &going.keys {
        kept_keys.push(saved::ForeignKey::read(tx.client(), &there.nodes[id]).await?);
    }
    let mut sql = foreign_key_drops(tx.client(), &going.keys).await?;
    sql.extend(going.hanging.iter().rev().filter_map(|id| {
        let node = &there.nodes[id];
        Some(format!("drop {} {}", kind_to_drop(node)?, node.identity))
    }));
    sql.extend(moves(tx.client(), oids, old).await?);
    sql.extend(moves_of_schemas(tx.client(), schemas).await?.0);
    sql.extend(schemas.keys().map(|stand_in| format!("drop schema {}", quote_identifier(stand_in))));
    tx.batch_execute(&sql.join(";\n")).await?;
    for key in &kept_keys {
        key.make(tx).await?;
    }
    Ok(())
}

async fn note(
    target: &Client,
    (serving, earlier): (i64, i64),
    old: &[(String, String)],
    objects: &[ObjectId],
) -> Result<(), PostgresError> {
    let doing = || "writing bullwork.generation".to_owned();
    for (sql, id) in [
        ("update bullwork.generation set serves = false, replaced_at = now() where id = $1", serving),
        ("update bullwork.generation set serves = true, replaced_at = null where id = $1", earlier),
        ("delete from bullwork.generation_schema where generation = $1", earlier),
    ] {
        target.execute(sql, &[&id]).await.doing(doing)?;
    }
    for (real, stand_in) in old {
        let sql = "insert into bullwork.generation_schema (generation, real, stand_in) values ($1, $2, $3)";
        target.execute(sql, &[&serving, real, stand_in]).await.doing(doing)?;
    }
    generation::note_objects(target, earlier, objects).await?;
    generation::keep_keys(target, serving).await?;
    generation::restore_keys(target, earlier).await
}
