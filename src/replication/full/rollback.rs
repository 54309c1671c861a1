//! Brings an earlier generation back.
//!
//! The same moves as a switch, the other way round, in one transaction; the generation that served is kept in turn, so a
//! rollback can be rolled back. Views that somebody made since over the tables that go are made again over those that come.

use std::collections::{BTreeSet, HashMap};

use super::catalog::{Graph, ObjectId, PG_CLASS, PG_CONSTRAINT, PG_PROC};
use super::generation::{self, old_schema};
use super::swap::{begin_moves, foreign_key_drops, may_pass, moves, moves_of_schemas, tables_of, views_first};
use super::{saved, state};
use crate::postgres::{Database, Doing, PostgresError, quote_identifier};
use crate::worker::Run;

/// Attempts before readers win: with pauses, a minute.
const TRIES: u32 = 120;

/// Makes the newest earlier generation serve. Returns what happened, for people. Others that write to the target have to be kept out
/// by the caller.
///
/// # Errors
/// When there is none, readers hold its tables for a minute, or the target refuses; nothing is changed then.
pub async fn rollback(run: &Run, target: &Database) -> anyhow::Result<String> {
    let mut target = target.connect("rollback").await?;
    let doing = || "reading bullwork.generation".to_owned();
    anyhow::ensure!(state::exists(&target).await?, "the target has no generations: no full replication has run there");
    const EARLIER: &str = "select g.id, g.made_at::timestamptz(0)::text from bullwork.generation g where not g.serves and exists \
                           (select from bullwork.generation_schema s where s.generation = g.id) order by g.id desc limit 1";
    let Some(row) = target.query_opt(EARLIER, &[]).await.doing(doing)? else {
        anyhow::bail!("the target has no earlier generation; REPLICATION_GENERATIONS says how many are kept");
    };
    let (earlier, made_at): (i64, String) = (row.get(0), row.get(1));
    let sql = "select stand_in, real from bullwork.generation_schema where generation = $1";
    let rows = target.query(sql, &[&earlier]).await.doing(doing)?;
    let schemas: HashMap<String, String> = rows.into_iter().map(|row| (row.get(0), row.get(1))).collect();
    let serving = generation::serving(&target).await?;
    for tried in 1.. {
        match attempt(run, target.client_mut(), serving, earlier, &schemas).await {
            Ok(()) => break,
            Err(error) if tried < TRIES && error.downcast_ref::<tokio_postgres::Error>().is_some_and(may_pass) => {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error.context(format!("generation {serving} goes on serving"))),
        }
    }
    let broken = saved::make_again(run, target.client_mut()).await?;
    let unfit = if broken.is_empty() { String::new() } else { format!("; could not be made again: {}", broken.join("; ")) };
    Ok(format!("generation {earlier} of {made_at} serves; generation {serving} is kept{unfit}"))
}

async fn attempt(
    run: &Run,
    target: &mut tokio_postgres::Client,
    serving: i64,
    earlier: i64,
    schemas: &HashMap<String, String>,
) -> anyhow::Result<()> {
    const OBJECTS: &str = "select classid, objid from bullwork.generation_object where generation = $1";
    let rows = target.query(OBJECTS, &[&serving]).await.doing(|| "reading bullwork.generation_object".to_owned())?;
    let there = Graph::read(target).await?;
    let outgoing: Vec<ObjectId> =
        rows.into_iter().map(|row| (row.get(0), row.get(1))).filter(|id| there.nodes.contains_key(id)).collect();
    anyhow::ensure!(!outgoing.is_empty(), "it is not known what belongs to generation {serving}");
    let all = there.closure_of_dependents(outgoing.iter().copied());
    let hanging: Vec<ObjectId> = all.iter().filter(|id| !outgoing.contains(id)).copied().collect();
    let views: Vec<ObjectId> = there.by_need(hanging.iter().filter(|id| matches!(id.0, PG_CLASS | PG_PROC)).copied().collect());
    let keys: Vec<ObjectId> = hanging
        .iter()
        .filter(|id| {
            id.0 == PG_CONSTRAINT && there.nodes[id].parent == 0 && !outgoing.contains(&(PG_CLASS, there.nodes[id].table))
        })
        .copied()
        .collect();
    let real: BTreeSet<String> = outgoing.iter().filter_map(|id| there.nodes[id].schema.clone()).collect();
    let old: Vec<(String, String)> = real.into_iter().map(|real| (real.clone(), old_schema(serving, &real))).collect();
    let oids: Vec<u32> = outgoing.iter().map(|id| id.1).collect();
    let mut first: Vec<String> = Vec::new();
    for id in views.iter().rev() {
        let node = &there.nodes[id];
        first.push(match node.sort {
            'v' => format!("drop view {}", node.table_name().quoted()),
            'm' => format!("drop materialized view {}", node.table_name().quoted()),
            _ if id.0 == PG_PROC => format!("drop routine {}", node.identity),
            _ => anyhow::bail!("{} was made since and needs what would go; drop it first", node.told()),
        });
    }
    let (views_out, out) = views_first(&there, moves(target, &oids, &old).await?);
    first.extend(views_out);
    let (into, objects) = moves_of_schemas(target, schemas).await?;

    let key_drops = foreign_key_drops(target, &keys).await?;

    let tx = target.transaction().await?;
    for id in &views {
        saved::store(tx.client(), &there.nodes[id]).await?;
    }
    begin_moves(&tx, &old, &first, &tables_of(&there, &outgoing)).await?;
    for id in &keys {
        saved::store_foreign_key(tx.client(), &there.nodes[id]).await?;
    }
    let mut sql = key_drops;
    sql.extend(out);
    sql.extend(into);
    sql.extend(schemas.keys().map(|stand_in| format!("drop schema {}", quote_identifier(stand_in))));
    tx.batch_execute(&sql.join(";\n")).await?;
    note(tx.client(), serving, earlier, &old, &objects).await?;
    tx.commit().await?;
    run.info(format!("generation {earlier} serves again"));
    Ok(())
}

async fn note(
    target: &tokio_postgres::Client,
    serving: i64,
    earlier: i64,
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
