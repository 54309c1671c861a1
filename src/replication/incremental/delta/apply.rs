//! Makes the target's table equal to what was staged.
//!
//! # In this order
//!
//! Rows that are gone are deleted, those that differ updated, new ones inserted, the latter two in
//! one statement: a value that moves from one row to another is free when it is taken, and
//! foreign keys are looked at only when all is done.
//!
//! # Rows that are gone
//!
//! Of these, rows that something on the target refers to are found first ([`spare`]), by one statement a foreign key, and put
//! by. Then nothing refers to the others, and nothing can begin to: they are locked, so who inserts a row that refers to
//! one waits for our commit, and is refused. That is what the server's own check makes sure of, row by row; so where we
//! may, we leave it out ([`Keys::spare_checks`]).
//!
//! # Values that change places
//!
//! A unique index is checked row by row, so two rows cannot exchange a value by an update. When the
//! statement fails for that, it is taken back, and the rows that differ are deleted and inserted again,
//! with the values of columns that only the target has. Not where something refers to them by a
//! key that acts on deletion: that is refused, with the way out.
//!
//! # Tables without key
//!
//! Both sides' whole rows are compared by hash, as often as they occur; what is too many goes, what
//! is missing comes. So readers never find the table empty, and equal rows are not touched.

use tokio_postgres::error::SqlState;

use super::Table;
use super::keys::Keys;
use super::sql::of;
use crate::postgres::{Connection, Doing, PostgresError};
use crate::replication::incremental::{IncrementalError, mapping};
use crate::worker::Run;

/// Applies what was staged. Rows that are gone but still referred to are put by for later.
pub(super) async fn apply(target: &Connection, table: &mut Table, keys: &Keys) -> Result<(), IncrementalError> {
    let doing = || format!("applying the changes of table `{}` to the target", table.plan.table);
    if table.doomed > 0 {
        let sql = format!(
            "create temporary table bullwork_waiting_{} on commit drop as select * from {} with no data",
            table.number,
            table.doomed()
        );
        target.batch_execute(&sql).await.doing(doing)?;
        table.waiting = spare(target, table, keys).await?;
        table.tally.deleted += delete_doomed(target, table, keys).await?;
    }
    if let Some(key) = keys.to(table).find(|k| !table.is_keyed() && k.acts()) {
        return Err(IncrementalError::Refused(format!(
            "table `{}` has no key on the source, so rows that changed are deleted and inserted again, but foreign key `{}` of table `{}` \
             would then change rows there; give the table a primary key on the source, or the foreign key no action on delete",
            table.plan.table, key.name, key.shown
        )));
    }
    target.batch_execute("savepoint bullwork_apply").await.doing(doing)?;
    let first = if table.is_keyed() { upsert(table) } else { by_whole_rows(table) };
    let row = match target.query_one(&first, &[]).await {
        Ok(row) => row,
        Err(error) if table.is_keyed() && changes_places(&error) => {
            target.batch_execute("rollback to savepoint bullwork_apply").await.doing(doing)?;
            refuse_if_acted_upon(target, table, keys).await?;
            target.query_one(&replace(table), &[]).await.doing(doing)?
        }
        Err(error) => Err(error).doing(doing)?,
    };
    target.batch_execute("release savepoint bullwork_apply").await.doing(doing)?;
    let count = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
    table.tally.deleted += count(0);
    table.tally.updated += count(1);
    table.tally.inserted += count(2);
    Ok(())
}

/// After all tables were filled: deletes what waits, but for what is referred to even now.
pub(super) async fn delete_waiting(
    run: &Run,
    target: &Connection,
    table: &mut Table,
    keys: &Keys,
) -> Result<(), IncrementalError> {
    if table.waiting == 0 {
        return Ok(());
    }
    let doing = || format!("deleting rows of table `{}` that are gone from the source", table.plan.table);
    let (doomed, waiting) = (table.doomed(), table.put_by());
    let sql = format!("truncate {doomed}; insert into {doomed} select * from {waiting}; truncate {waiting}");
    target.batch_execute(&sql).await.doing(doing)?;
    table.tally.staying = spare(target, table, keys).await?;
    table.tally.deleted += delete_doomed(target, table, keys).await?;
    if table.tally.staying == 0 {
        return Ok(());
    }
    let mut because = Vec::new();
    for key in keys.to(table) {
        let sql = format!("select exists (select from {waiting} d where {})", key.refers(table, None));
        if target.query_one(&sql, &[]).await.doing(doing)?.get(0) {
            because.push(format!("{} ({})", key.shown, key.name));
        }
    }
    run.warn(format!(
        "{}: {} rows that are gone from the source stay, because foreign keys of the target refer to them: {}; \
         they go when nothing refers to them any more",
        table.plan.table,
        table.tally.staying,
        because.join(", ")
    ));
    Ok(())
}

/// Moves from the doomed to the waiting ones what is referred to by rows that stay; and what those
/// refer to in turn, in the same table. How many there are.
///
/// One statement a key: where no index leads to the rows that refer, they are read once. In one statement for all keys they
/// would be looked for once for each doomed row.
///
/// The doomed rows are locked before: what is not found to refer to them cannot come to do so.
async fn spare(target: &Connection, table: &Table, keys: &Keys) -> Result<u64, PostgresError> {
    let (doomed, waiting) = (table.doomed(), table.put_by());
    let doing = || format!("looking for rows that refer to table `{}` on the target", table.plan.table);
    if keys.to(table).next().is_none() {
        return Ok(0);
    }
    let (there, same) = (table.there(), table.same_key("t", "d"));
    let lock = format!("select count(*) from (select from {there} t join {doomed} d on {same} for update of t) locked");
    target.execute(&lock, &[]).await.doing(doing)?;
    let mut spared = 0;
    loop {
        let before = spared;
        for key in keys.to(table) {
            let sql = format!(
                "with spared as (delete from {doomed} d where {} returning *) insert into {waiting} select * from spared",
                key.refers(table, Some(&doomed))
            );
            spared += target.execute(&sql, &[]).await.doing(doing)?;
        }
        if spared == before {
            return Ok(spared);
        }
    }
}

/// Deletes the doomed rows, which nothing refers to.
async fn delete_doomed(target: &Connection, table: &Table, keys: &Keys) -> Result<u64, PostgresError> {
    let doing = || format!("deleting rows of table `{}` that are gone from the source", table.plan.table);
    let sql = format!("delete from {} t using {} d where {}", table.there(), table.doomed(), table.same_key("t", "d"));
    if !keys.spare_checks(target, table).await? {
        return target.execute(&sql, &[]).await.doing(doing);
    }
    target.batch_execute("set local session_replication_role = replica").await.doing(doing)?;
    let deleted = target.execute(&sql, &[]).await.doing(doing)?;
    target.batch_execute("set local session_replication_role to default").await.doing(doing)?;
    Ok(deleted)
}

/// What an update cannot do: two rows exchange a unique value, or an identity column gets another one.
fn changes_places(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [SqlState::UNIQUE_VIOLATION, SqlState::EXCLUSION_VIOLATION, SqlState::GENERATED_ALWAYS].contains(code)
    })
}

/// A key that cascades would take rows of other tables along when ours are deleted for a moment.
async fn refuse_if_acted_upon(target: &Connection, table: &Table, keys: &Keys) -> Result<(), IncrementalError> {
    for key in keys.to(table).filter(|k| k.acts()) {
        let sql = format!("select exists (select from ({}) d where {})", differing(table), key.refers(table, None));
        let doing = || format!("looking for rows that refer to table `{}` on the target", table.plan.table);
        if target.query_one(&sql, &[]).await.doing(doing)?.get(0) {
            return Err(IncrementalError::Refused(format!(
                "table `{}`: rows exchange values that are unique on the target, which needs them deleted and inserted again, but \
                 foreign key `{}` of table `{}` would then change rows there; make the unique constraint deferrable on the target, \
                 or the foreign key without action on delete",
                table.plan.table, key.name, key.shown
            )));
        }
    }
    Ok(())
}

fn upsert(table: &Table) -> String {
    let plan = &table.plan;
    let key = table.same_key("t", "s");
    // A whole number is itself or another; other keys can be equal and yet look different.
    let columns = plan.columns();
    let set = columns.iter().filter(|c| !plan.key.columns.contains(c) || !table.target.column(c).is_some_and(|c| c.integer));
    let set: Vec<String> = set.map(|c| crate::postgres::quote_identifier(c)).map(|c| format!("{c} = s.{c}")).collect();
    let changed = if set.is_empty() {
        "select where false".to_owned()
    } else {
        format!(
            "update {} t set {} from {} s where {key} and {} returning 1",
            table.there(),
            set.join(", "),
            table.rows(),
            table.differs("t", "s")
        )
    };
    format!(
        "with changed as ({changed}),
        added as (insert into {} ({}) overriding system value select {} from {} s
            where not exists (select from {} t where {key}) and (select count(*) from changed) >= 0 returning 1)
        select 0::int8, (select count(*) from changed), (select count(*) from added)",
        plan.table.quoted(),
        plan.column_list(),
        of("s", &plan.columns()),
        table.rows(),
        table.there(),
    )
}

fn replace(table: &Table) -> String {
    let plan = &table.plan;
    let own = table.own();
    // What somebody filled himself comes back with the row.
    let kept: Vec<String> = (0..own.len()).map(|n| format!("own_{n}")).collect();
    let returning: Vec<String> = plan.key.columns.iter().chain(&own).cloned().collect();
    let names: Vec<String> = plan.key.columns.iter().chain(&kept).cloned().collect();
    let all: Vec<String> = plan.columns().iter().chain(&own).cloned().collect();
    let values: Vec<String> = [of("s", &plan.columns()), of("o", &kept)].into_iter().filter(|list| !list.is_empty()).collect();
    let key = table.same_key("t", "s");
    format!(
        "with differing as materialized ({}),
        removed({}) as (delete from {there} t using differing d where {} returning {}),
        back as (insert into {quoted} ({}) overriding system value select {} from {rows} s join removed o on {}
            where (select count(*) from removed) >= 0 returning 1),
        added as (insert into {quoted} ({}) overriding system value select {} from {rows} s
            where not exists (select from {there} t where {key}) and (select count(*) from removed) >= 0 returning 1)
        select 0::int8, (select count(*) from back), (select count(*) from added)",
        differing(table),
        mapping::list(&names),
        table.same_key("t", "d"),
        of("t", &returning),
        mapping::list(&all),
        values.join(", "),
        table.same_key("s", "o"),
        plan.column_list(),
        of("s", &plan.columns()),
        there = table.there(),
        quoted = plan.table.quoted(),
        rows = table.rows(),
    )
}

/// Keys of rows that are on both sides and differ.
fn differing(table: &Table) -> String {
    format!(
        "select {} from {} t join {} s on {} where {}",
        of("t", &table.plan.key.columns),
        table.there(),
        table.rows(),
        table.same_key("t", "s"),
        table.differs("t", "s")
    )
}

fn by_whole_rows(table: &Table) -> String {
    let plan = &table.plan;
    format!(
        "with old as materialized (select part, place, hash, row_number() over (partition by hash) as number
            from (select t.tableoid as part, t.ctid as place, md5({}::text) as hash from {there} t) h),
        new as materialized (select place, hash, row_number() over (partition by hash) as number
            from (select s.ctid as place, md5({}::text) as hash from {rows} s) h),
        gone as (delete from {there} t using old o where t.tableoid = o.part and t.ctid = o.place
            and not exists (select from new n where n.hash = o.hash and n.number = o.number) returning 1),
        added as (insert into {} ({}) overriding system value select {} from {rows} s join new n on n.place = s.ctid
            where not exists (select from old o where o.hash = n.hash and o.number = n.number)
            and (select count(*) from gone) >= 0 returning 1)
        select (select count(*) from gone), 0::int8, (select count(*) from added)",
        table.row("t"),
        table.row("s"),
        plan.table.quoted(),
        plan.column_list(),
        of("s", &plan.columns()),
        there = table.there(),
        rows = table.rows(),
    )
}
