//! What the log says of an appended table, in the reference system's words and fields.

use serde_json::{Value, json};

use super::Work;
use super::watermark::Late;
use crate::worker::Run;

/// Above this, numbers lose digits in programs that read JSON numbers as doubles.
const EXACT_IN_JSON: u64 = (1 << 53) - 1;

pub(super) fn before(run: &Run, item: &Work) {
    let table = &item.plan.table;
    let index = if item.plan.key.ordered { index_value(item.before.unwrap_or(0)) } else { Value::Null };
    run.info_with(
        format!("{table} last record index target {}", index_text(&index)),
        json!({ "last_record_index_before_replication": index, "table_name": table.to_string() }),
    );
    match &item.late {
        Late::FirstLoad => run.info(format!("{table} table is empty on the target: first full load")),
        Late::Everything(reason) => {
            run.info(format!("{table} healing pass: every key that may be on the target is compared, because {reason}"));
        }
        Late::Since(_) => {}
    }
}

pub(super) fn after(run: &Run, item: &Work, after: Option<i64>, rows: u64) {
    let table = &item.plan.table;
    let name = table.to_string();
    let value = |index: Option<i64>| if item.plan.key.ordered { index_value(index.unwrap_or(0)) } else { Value::Null };
    let (before, after) = (value(item.before), value(after));
    run.info(format!("{table} table copy returned: COPY {rows}"));
    run.info_with(
        format!("{table} last record index target after replication {}", index_text(&after)),
        json!({ "last_record_index_after_replication": after, "table_name": name }),
    );
    run.info_with(
        format!("Total of {table} imported {rows}"),
        json!({
            "last_record_index_before_replication": before,
            "last_record_index_after_replication": after,
            "total_records_replicated": rows,
            "table_name": name,
        }),
    );
}

/// A key as a JSON number while every reader keeps its digits, as text beyond.
fn index_value(index: i64) -> Value {
    if index.unsigned_abs() <= EXACT_IN_JSON { json!(index) } else { json!(index.to_string()) }
}

fn index_text(index: &Value) -> String {
    match index {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_beyond_two_to_the_53_keep_their_digits_as_text() {
        assert_eq!(index_value(9_007_199_254_740_991), json!(9_007_199_254_740_991_i64));
        assert_eq!(index_value(9_007_199_254_740_993), json!("9007199254740993"));
        assert_eq!(index_value(i64::MIN), json!("-9223372036854775808"));
    }
}
