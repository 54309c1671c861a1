//! Columns that follow the source's: new ones appear, dropped ones go, another type is taken over.
//!
//! Each change is a transaction of its own before the rows come, because it locks out readers until
//! its end. Only columns that an earlier run copied are dropped or changed: a column that only the
//! target has is somebody's own, and a type that differed from the start is somebody's choice.

use tokio_postgres::error::SqlState;

use super::state::State;
use crate::postgres::{Connection, Doing, explain, quote_identifier};
use crate::replication::incremental::catalogue::{Column, Relation};
use crate::replication::incremental::{IncrementalError, mapping};
use crate::replication::rules::Applied;
use crate::replication::settings::TableName;
use crate::worker::Run;

/// Brings the columns of the target's table, when it exists, up to date. `stored` is what the last run left of it.
pub(super) async fn follow(
    run: &Run,
    target: &Connection,
    applied: &Applied,
    table: &TableName,
    (source, there): (&Relation, Option<&Relation>),
    stored: Option<&State>,
) -> Result<(), IncrementalError> {
    let columns: Vec<String> = source.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone()).collect();
    let masked = mapping::ruled(table, applied.projection(source.oid, &columns))?;
    mapping::add_columns(target, table, (source, there), &masked, run).await?;
    let (Some(stored), Some(there)) = (stored, there) else { return Ok(()) };
    if stored.mark.target_oid != there.oid {
        return Ok(());
    }
    for (name, then) in stored.shape.columns.iter().zip(&stored.shape.types) {
        let Some(column) = there.column(name) else { continue };
        match source.column(name) {
            None => drop_column(run, target, table, column).await?,
            Some(now) if now.sql_type != *then && now.sql_type != column.sql_type && !column.generated => {
                change_type(run, target, table, column, now).await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn drop_column(run: &Run, target: &Connection, table: &TableName, column: &Column) -> Result<(), IncrementalError> {
    let doing = || format!("dropping column `{}` of table `{table}` on the target", column.name);
    let (quoted, name) = (table.quoted(), quote_identifier(&column.name));
    match target.batch_execute(&format!("alter table {quoted} drop column {name}")).await {
        Ok(()) => run.info(format!("{table}: column `{}` is gone from the source and was dropped", column.name)),
        Err(error) if stays(&error) => {
            if column.not_null && !column.filled {
                let nullable = format!("alter table {quoted} alter column {name} drop not null");
                target.batch_execute(&nullable).await.doing(doing)?;
            }
            run.warn(format!("{table}: column `{}` is gone from the source but stays: {}", column.name, explain(&error)));
        }
        Err(error) => Err(error).doing(doing)?,
    }
    Ok(())
}

/// Rewrites the table where the types differ in form, once: readers wait for that.
async fn change_type(
    run: &Run,
    target: &Connection,
    table: &TableName,
    column: &Column,
    now: &Column,
) -> Result<(), IncrementalError> {
    let name = quote_identifier(&column.name);
    let sql = format!("alter table {} alter column {name} type {1} using {name}::{1}", table.quoted(), now.sql_type);
    match target.batch_execute(&sql).await {
        Ok(()) => run.info(format!(
            "{table}: the type of column `{}` was changed from {} to {}, as on the source",
            column.name, column.sql_type, now.sql_type
        )),
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            Err(error).doing(|| format!("changing the type of column `{}` of table `{table}` on the target", column.name))?;
        }
        // The server says why; values go on being converted into the type that is there.
        Err(error) if error.code().is_some() => run.warn(format!(
            "{table}: column `{}` is {} on the source now but stays {} on the target, which converts the values it can: {}",
            column.name,
            now.sql_type,
            column.sql_type,
            explain(&error)
        )),
        Err(error) => Err(error).doing(|| format!("changing the type of column `{}` of table `{table}`", column.name))?,
    }
    Ok(())
}

/// Something depends on the column, or the table is not ours: the copy goes on without it.
fn stays(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| *code == SqlState::DEPENDENT_OBJECTS_STILL_EXIST || *code == SqlState::INSUFFICIENT_PRIVILEGE)
}
