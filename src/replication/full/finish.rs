//! What comes when all rows are there: sequences' positions, postponed views, materialized views,
//! foreign keys, triggers, comments, and other people's objects.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::json;
use tokio_postgres::Client;

use super::build::millis;
use super::catalog::{ObjectId, PG_CLASS, PG_CONSTRAINT};
use super::saved::{self, Present};
use super::session::Sessions;
use super::source::Source;
use super::tables::SourceKey;
use super::target::{Fate, Judge};
use super::{keys, resume};
use crate::postgres::{Doing, PostgresError, explain, quote_identifier};
use crate::replication::ddl::{Kind, Section, Statement};
use crate::worker::Run;

/// Sets the positions of all sequences that were made. Sequences know no snapshots: a position
/// may be later than the rows, which does no harm.
pub(super) async fn set_positions(run: &Run, target: &Client, source: &Source, judge: &Judge<'_>) -> Result<(), PostgresError> {
    let start = Instant::now();
    let made = |(i, entry): &(usize, &Statement)| entry.kind == Kind::SequenceValue && judge.fates[*i] == Some(Fate::Made);
    let positions: Vec<&str> = source.entries.iter().enumerate().filter(made).map(|(_, entry)| entry.sql.as_str()).collect();
    for some in positions.chunks(100) {
        target.batch_execute(&some.join("; ")).await.doing(|| "setting the positions of sequences".to_owned())?;
    }
    run.info_with(
        format!("SEQUENCE SET: {} sequences", positions.len()),
        json!({"item_kind": "SEQUENCE", "item": format!("{} sequences", positions.len()), "duration_ms": millis(start)}),
    );
    Ok(())
}

/// Does all of it, in an order that the objects allow; `again`: some of it may be done. Returns the foreign keys that do not hold.
pub(super) async fn finish(
    run: &Run,
    sessions: &Sessions<'_>,
    target: &mut Client,
    source: &Source,
    judge: &mut Judge<'_>,
    (built, again): (&HashSet<ObjectId>, bool),
    workers: usize,
) -> anyhow::Result<Vec<String>> {
    const LAST: &[Kind] = &[Kind::Trigger, Kind::TriggerState, Kind::Policy, Kind::RowSecurity];
    const APART: &[Kind] = &[Kind::Comment, Kind::SequenceValue];
    let foreign_keys: HashSet<ObjectId> = source.foreign_keys.iter().map(|k| (PG_CONSTRAINT, k.oid)).collect();
    let on_view: HashSet<ObjectId> = source
        .indexes
        .iter()
        .filter(|(table, _)| source.graph.nodes.get(&(PG_CLASS, **table)).is_some_and(|n| n.sort == 'm'))
        .flat_map(|(_, indexes)| indexes.iter().map(|i| (PG_CLASS, i.oid)))
        .collect();
    let ordinary = |e: &Statement| {
        e.section == Section::Post
            && !LAST.contains(&e.kind)
            && !APART.contains(&e.kind)
            && !built.contains(&e.object())
            && !foreign_keys.contains(&e.object())
            && !on_view.contains(&e.object())
    };
    make_some(run, target, source, judge, again, ordinary).await?;
    refresh(run, target, source, judge).await?;
    make_some(run, target, source, judge, again, |e| on_view.contains(&e.object())).await?;

    run.progress(|p| p.phase = "foreign keys".to_owned());
    let mut validations = Vec::new();
    let mut broken = Vec::new();
    let left = |key: &&SourceKey| judge.is_made((PG_CONSTRAINT, key.oid)) && !built.contains(&(PG_CONSTRAINT, key.oid));
    for key in source.foreign_keys.iter().filter(left) {
        let may_fail = if judge.touches_kept((PG_CONSTRAINT, key.oid)) {
            Some("it ties a kept table, whose rows are of another time")
        } else if source.loose_keys.contains(&key.oid) {
            Some("REPLICATION_RULES leaves rows behind, or replaces values, that it points to")
        } else {
            None
        };
        let item = format!("{} {}", key.table, key.name);
        match target.batch_execute(&key.add).await {
            Ok(()) => {}
            Err(error) if again && resume::is_done(&error, Kind::ForeignKey) => {}
            Err(error) if may_fail.is_some() => {
                let error = explain(&error);
                run.warn(format!("left out foreign key {item}: {error}"));
                broken.push(item);
                continue;
            }
            Err(error) => return Err(error).doing(|| format!("making foreign key {item}")).map_err(Into::into),
        }
        validations.extend(keys::Validation::of(key, may_fail));
    }
    broken.extend(keys::validate(run, sessions, validations, workers).await?);

    run.progress(|p| p.phase = "triggers and comments".to_owned());
    make_some(run, target, source, judge, again, |e| LAST.contains(&e.kind) && e.section == Section::Post).await?;
    make_comments(run, target, source, judge, &broken).await?;
    for node in source.graph.nodes.values().filter(|n| n.is_relation() && n.sort == 'p' && judge.is_made(n.id)) {
        let name = node.table_name();
        target
            .batch_execute(&format!("analyze {}", source.relocation.at(&name).quoted()))
            .await
            .doing(|| format!("analysing table `{name}`"))?;
    }
    // Beside the live copy, they are made with the switch.
    if !source.relocation.is_staged() {
        broken.extend(saved::make_again(run, target, Present::Forget).await?);
    }
    Ok(broken)
}

/// Makes the definitions that `wanted` chooses. One that may be refused is left out with a
/// warning, and so is what needs it.
async fn make_some(
    run: &Run,
    target: &Client,
    source: &Source,
    judge: &mut Judge<'_>,
    again: bool,
    wanted: impl Fn(&Statement) -> bool,
) -> anyhow::Result<()> {
    for (i, entry) in source.entries.iter().enumerate() {
        if judge.fates[i] != Some(Fate::Made) || !wanted(entry) {
            continue;
        }
        if let Some(missing) = judge.missing_need(i) {
            judge.skip(run, i, &missing);
            continue;
        }
        let start = Instant::now();
        match target.batch_execute(&entry.sql).await {
            Ok(()) => {}
            Err(error) if again && resume::is_done(&error, entry.kind) => continue,
            Err(error) if judge.is_loose(entry) && !error.is_closed() => {
                judge.skip(run, i, &explain(&error));
                continue;
            }
            Err(error) => {
                return Err(error).doing(|| format!("making {} {}", entry.kind, entry.told())).map_err(Into::into);
            }
        }
        if matches!(entry.kind, Kind::Index | Kind::Key) {
            let kind = entry.kind.to_string().to_uppercase();
            run.info_with(
                format!("{kind} {}", entry.name),
                json!({"item_kind": kind, "item": entry.name, "duration_ms": millis(start)}),
            );
        }
    }
    Ok(())
}

/// Comments of what was made after the rows.
async fn make_comments(
    run: &Run,
    target: &Client,
    source: &Source,
    judge: &mut Judge<'_>,
    broken: &[String],
) -> anyhow::Result<()> {
    let late = |e: &Statement| e.kind == Kind::Comment && e.section == Section::Post;
    for (i, entry) in source.entries.iter().enumerate().filter(|(_, e)| late(e)) {
        if judge.fates[i] != Some(Fate::Made) || judge.missing_need(i).is_some() {
            continue;
        }
        if let Err(error) = target.batch_execute(&entry.sql).await {
            // A key that was left out has no comment; that was told already.
            if broken.is_empty() {
                judge.skip(run, i, &explain(&error));
            }
        }
    }
    Ok(())
}

/// Sets the role's own search path, with what stands for each of its schemas in front of it.
async fn search_path_of_role(target: &Client, source: &Source) -> anyhow::Result<()> {
    let doing = || "resetting the search path".to_owned();
    target.batch_execute("reset search_path").await.doing(doing)?;
    let stand_ins: std::collections::HashMap<&str, &str> = source.relocation.schemas().collect();
    if stand_ins.is_empty() {
        return Ok(());
    }
    let row = target.query_one("select current_schemas(false)::text[]", &[]).await.doing(doing)?;
    let path: Vec<String> = row
        .get::<_, Vec<String>>(0)
        .iter()
        .flat_map(|schema| {
            stand_ins.get(schema.as_str()).copied().into_iter().chain([schema.as_str()]).map(quote_identifier).collect::<Vec<_>>()
        })
        .collect();
    target.execute("select set_config('search_path', $1, false)", &[&path.join(", ")]).await.doing(doing)?;
    Ok(())
}

/// Fills the materialized views in an order that they can be filled in. The role's own search
/// path is used, because their queries were written for it.
async fn refresh(run: &Run, target: &Client, source: &Source, judge: &mut Judge<'_>) -> anyhow::Result<()> {
    for (i, entry) in source.entries.iter().enumerate().filter(|(_, e)| e.kind == Kind::MaterializedView) {
        let Some(node) = source.graph.nodes.get(&entry.object()) else { continue };
        if judge.fates[i] != Some(Fate::Made) || source.unpopulated.contains(&node.id.1) {
            continue;
        }
        let name = node.table_name();
        run.progress(|p| p.phase = format!("materialized view {name}"));
        let sql = format!("refresh materialized view {0}; analyze {0}", source.relocation.at(&name).quoted());
        search_path_of_role(target, source).await?;
        let result = target.batch_execute(&sql).await;
        target
            .batch_execute("select pg_catalog.set_config('search_path', '', false)")
            .await
            .doing(|| "setting the search path".to_owned())?;
        match result {
            Ok(()) => {}
            Err(error) if judge.is_loose(entry) => judge.skip(run, i, &explain(&error)),
            Err(error) => return Err(error).doing(|| format!("filling materialized view `{name}`")).map_err(Into::into),
        }
    }
    Ok(())
}
