//! Tables that only grow: every row of the source up to the watermark must be on the target, by its key.
//!
//! The target may have more (rows deleted on the source since) and other values (updates are not followed), so keys are compared, not
//! values. Equal checksums of the keys up to the watermark settle it. Otherwise the keys travel and those that the target lacks are
//! counted; keys of rows that were written since the last run are left to the next one.

use tokio_postgres::Client;

use super::sums::{self, Form, Sums};
use crate::postgres::{Connection, Doing, quote_identifier};
use crate::replication::incremental::catalogue::{self, Relation};
use crate::replication::incremental::{mapping, stream, watermark};
use crate::replication::projection::Projection;
use crate::replication::rules::Applied;
use crate::replication::settings::TableName;

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// The target does not have the table.
    Absent,
    /// Rows up to the watermark, on both sides, and how many of the source's the target lacks.
    Compared { rows: (i64, i64), missing: i64 },
}

/// Compares; `target` must be in a transaction.
pub(super) async fn compare(
    form: Form,
    source: &mut Connection,
    target: &Connection,
    table: &TableName,
    rules: &Applied,
) -> anyhow::Result<Found> {
    let gone = || anyhow::anyhow!("table `{table}` was dropped from the source just now");
    let here = catalogue::relation(source, table).await?.ok_or_else(gone)?;
    let Some(there) = catalogue::relation(target, table).await? else { return Ok(Found::Absent) };
    let plan = mapping::plan(table, &here, &there)?;
    let mark = if known(target).await? { watermark::load(target, table).await? } else { None };
    let names = plan.key.columns.clone();
    let columns = sums::columns(source, here.oid, &names).await?;
    let projection = mapping::ruled(table, rules.projection(here.oid, &names))?;
    // A key without value is never copied.
    let mut conditions: Vec<String> = names.iter().map(|c| format!("{} is not null", quote_identifier(c))).collect();
    // Without a watermark, what is there is taken for what was copied.
    let last = match &mark {
        Some(mark) => mark.last_key,
        None => catalogue::highest(target, table, &plan.key).await?,
    };
    conditions.extend(last.filter(|_| plan.key.ordered).map(|last| plan.up_to(last)));
    let select = |relation: &Relation, projection: &Projection, conditions: &[String]| {
        let from = format!("{}{}", if relation.partitioned { "" } else { "only " }, table.quoted());
        let rows = projection.select(&from, &names, Some(&conditions.join(" and ")));
        if plan.key.unique { rows } else { format!("select distinct * from ({rows}) k") }
    };
    let doing = || format!("comparing the keys of table `{table}`");
    let of = async |client: &Client, rows: String| {
        let row = client.query_one(&form.sums(&rows, &columns, None), &[]).await;
        row.doing(doing).map(|row| Sums::of(&row, 0))
    };
    let (wanted, found) = tokio::try_join!(
        of(source, select(&here, &projection, &conditions)),
        of(target, select(&there, &Projection::plain(&names), &conditions))
    )?;
    let rows = (wanted.rows, found.rows);
    if wanted == found {
        return Ok(Found::Compared { rows, missing: 0 });
    }

    let since = mark.and_then(|m| m.snapshot.split(':').next()?.parse::<i64>().ok()).filter(|_| !here.foreign_parts);
    conditions.extend(since.map(|xmin| format!("age(xmin) > age('{}'::xid)", xmin.rem_euclid(1 << 32))));
    let list = Projection::plain(&names).columns();
    let stage = format!("create temporary table bullwork_keys on commit drop as select {list} from {} limit 0", table.quoted());
    target.batch_execute(&stage).await.doing(doing)?;
    let into = format!("copy pg_temp.bullwork_keys from stdin {}", plan.format());
    let keys = format!("copy ({}) to stdout {}", select(&here, &projection, &conditions), plan.format());
    let told = format!("the keys of table `{table}`");
    let what = stream::What { told, binary: plan.binary, plain: projection.is_plain() };
    stream::pipe(source, &keys, target, &into, &what, &mut |_| ()).await?;
    target.batch_execute("analyze pg_temp.bullwork_keys").await.doing(doing)?;
    let equal: Vec<String> = names.iter().map(|c| format!("t.{0} = k.{0}", quote_identifier(c))).collect();
    let count = format!(
        "select count(*) from pg_temp.bullwork_keys k where not exists (select from {} t where {})",
        table.quoted(),
        equal.join(" and ")
    );
    let missing = target.query_one(&count, &[]).await.doing(doing)?.get(0);
    target.batch_execute("drop table pg_temp.bullwork_keys").await.doing(doing)?;
    Ok(Found::Compared { rows, missing })
}

async fn known(target: &Client) -> anyhow::Result<bool> {
    let sql = "select to_regclass('bullwork.incremental_watermark') is not null";
    Ok(target.query_one(sql, &[]).await.doing(|| "looking for watermarks".to_owned())?.get(0))
}

/// Has the next incremental run compare every key of the table and bring what is missing.
pub(super) async fn repair(target: &Client, table: &TableName) -> anyhow::Result<()> {
    if known(target).await? {
        let sql = "delete from bullwork.incremental_watermark where table_schema = $1 and table_name = $2";
        target.execute(sql, &[&table.schema, &table.name]).await.doing(|| format!("forgetting how far table `{table}` is"))?;
    }
    Ok(())
}
