//! Rows that appeared below the watermark: candidates from the source, struck out against the
//! target, the missing ones fetched from the same snapshot.

use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, quote_literal, text_form};

use super::catalogue::Relation;
use super::mapping::Plan;
use super::stream::{self, Copied, What};
use super::watermark::{Late, SourceState};
use super::{IncrementalError, Work};

/// Missing keys asked for at once: enough that the round trip does not count, few enough that the
/// statement stays under a megabyte.
const BATCH: u32 = 10_000;

/// What the pass found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LateRows {
    /// Keys compared.
    pub candidates: u64,
    /// Rows that were missing, copied.
    pub copied: Copied,
}

pub(super) async fn copy(
    source: &mut Connection,
    target: &Connection,
    state: &SourceState,
    item: &Work,
) -> Result<LateRows, IncrementalError> {
    let plan = &item.plan;
    let table = &plan.table;
    let condition = condition(source, plan, state, &item.late, item.before).await?;
    let what = What {
        told: format!("the keys of table `{table}` that may be missing"),
        binary: plan.binary,
        plain: plan.projection.is_plain(),
    };
    let comparing = || format!("comparing the keys of table `{table}` with the target");

    let columns: Vec<String> = plan.key.columns.iter().map(|c| quote_identifier(c)).collect();
    let create = format!(
        "create temporary table bullwork_candidates on commit drop as select {} from {} with no data",
        columns.join(", "),
        table.quoted()
    );
    target.batch_execute(&create).await.doing(comparing)?;
    let into = format!("copy pg_temp.bullwork_candidates from stdin {}", plan.format());
    let keys = plan.select_keys(&item.source, condition.as_deref());
    let found = stream::pipe(source, &keys, target, &into, &what, &mut |_| ()).await?;
    let mut late = LateRows { candidates: found.rows, copied: Copied { bytes: found.bytes, ..Copied::default() } };
    if found.rows > 0 {
        target.batch_execute("analyze pg_temp.bullwork_candidates").await.doing(comparing)?;
        target.batch_execute(&missing(plan)).await.doing(comparing)?;
        loop {
            let fetch = format!("fetch forward {BATCH} from bullwork_missing");
            let rows = target.query(&fetch, &[]).await.doing(comparing)?;
            if rows.is_empty() {
                break;
            }
            let keys: Vec<Vec<&str>> =
                (0..columns.len()).map(|i| rows.iter().map(|row| row.get::<_, &str>(i)).collect()).collect();
            let select = plan.select(&item.source, Some(&among(plan, &item.source, &keys)));
            late.copied.add(stream::copy(source, &select, target, plan, &mut |_| ()).await?);
        }
        target.batch_execute("close bullwork_missing").await.doing(comparing)?;
    }
    target.batch_execute("drop table pg_temp.bullwork_candidates").await.doing(comparing)?;
    Ok(late)
}

/// Condition of the candidates; `None` means every row.
async fn condition(
    source: &Connection,
    plan: &Plan,
    state: &SourceState,
    late: &Late,
    before: Option<i64>,
) -> Result<Option<String>, PostgresError> {
    let mut parts: Vec<String> = before.map(|before| plan.up_to(before)).into_iter().collect();
    if let Late::Since(xmin) = late {
        // Ages count from one number that stays the same for our whole transaction, so the ages
        // of the row and of the snapshot compare as their transactions do.
        let number = xmin.rem_euclid(1 << 32);
        let sql = format!("select age('{number}'::xid)");
        let age: i32 =
            source.query_one(&sql, &[]).await.doing(|| format!("placing the stored snapshot before {}", state.snapshot))?.get(0);
        parts.push(format!("age(xmin) <= {age}"));
    }
    Ok((!parts.is_empty()).then(|| parts.join(" and ")))
}

/// A cursor over the candidates that the target does not have. It sees the target as it is now,
/// not the rows that are copied while it is read.
fn missing(plan: &Plan) -> String {
    let columns: Vec<String> = plan.key.columns.iter().map(|c| quote_identifier(c)).collect();
    let texts: Vec<String> = columns.iter().map(|c| format!("c.{c}::text")).collect();
    let equal: Vec<String> = columns.iter().map(|c| format!("t.{c} = c.{c}")).collect();
    // A key without value equals nothing: such a row would come again every night.
    let known: Vec<String> = columns.iter().map(|c| format!("c.{c} is not null")).collect();
    format!(
        "set local cursor_tuple_fraction = 1; declare bullwork_missing no scroll cursor for select {}{} \
         from pg_temp.bullwork_candidates c where {} and not exists (select from {} t where {})",
        if plan.key.unique { "" } else { "distinct " },
        texts.join(", "),
        known.join(" and "),
        plan.table.quoted(),
        equal.join(" and ")
    )
}

/// Condition of the rows with these keys, given column by column.
fn among(plan: &Plan, source: &Relation, keys: &[Vec<&str>]) -> String {
    let arrays: Vec<String> = plan
        .key
        .columns
        .iter()
        .zip(keys)
        .map(|(name, keys)| {
            let sql_type = source.column(name).map_or("text", |c| c.sql_type.as_str());
            format!("{}::{sql_type}[]", quote_literal(&text_form::array(keys.iter().copied().map(Some))))
        })
        .collect();
    let columns: Vec<String> = plan.key.columns.iter().map(|c| quote_identifier(c)).collect();
    match arrays.as_slice() {
        [only] => format!("{} = any({only})", columns.join(", ")),
        _ => format!("({}) in (select * from unnest({}))", columns.join(", "), arrays.join(", ")),
    }
}
