//! What the target has of a table.

use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::replication::settings::TableName;

/// A table of the target.
#[derive(Clone, Debug)]
pub(super) struct There {
    pub(super) oid: u32,
    pub(super) columns: Vec<String>,
    /// Columns that only a new row may be given a value for.
    pub(super) always: Vec<String>,
}

/// The ordinary table of that name.
pub(super) async fn there(target: &Client, table: &TableName) -> Result<Option<There>, PostgresError> {
    const SQL: &str = "select c.oid, coalesce(array_agg(a.attname::text) filter (where a.attnum is not null), '{}'), \
                       coalesce(array_agg(a.attname::text) filter (where a.attidentity = 'a'), '{}') \
                       from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                       left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
                       where n.nspname = $1 and c.relname = $2 and c.relkind = 'r' group by c.oid";
    let row = target.query_opt(SQL, &[&table.schema, &table.name]).await;
    let row = row.doing(|| format!("looking for table `{table}` on the target"))?;
    Ok(row.map(|row| There { oid: row.get(0), columns: row.get(1), always: row.get(2) }))
}

/// What the target says of the copy that serves.
#[derive(Clone, Debug, Default)]
pub(super) struct Copy {
    /// Since when it is as it is, for people: "was begun at …".
    pub(super) since: Option<String>,
    /// It serves again by a rollback: which one it is.
    pub(super) brought_back: Option<String>,
    /// The source's lowest running transaction then, 64 bits.
    pub(super) xmin: Option<i64>,
    /// Its last run did not succeed: how far it came.
    pub(super) unfinished: Option<String>,
}

pub(super) async fn copy(target: &Client) -> Result<Copy, PostgresError> {
    let doing = || "reading bullwork.replication_state".to_owned();
    const EXISTS: &str =
        "select to_regclass('bullwork.replication_state') is not null and to_regclass('bullwork.generation') is not null";
    if !target.query_one(EXISTS, &[]).await.doing(doing)?.get::<_, bool>(0) {
        return Ok(Copy::default());
    }
    // The state is of the last run, which may have failed beside the copy that serves, or been rolled back: then a younger
    // generation is kept. In place there are no generations.
    const SQL: &str = "select s.state = 'complete', s.phase, s.started_at::timestamptz(0)::text, s.source_snapshot, \
                       g.made_at::timestamptz(0)::text, g.source_snapshot, g.id, \
                       exists (select from bullwork.generation y where y.id > g.id and not y.serves) \
                       from bullwork.replication_state s left join bullwork.generation g on g.serves";
    let Some(row) = target.query_opt(SQL, &[]).await.doing(doing)? else { return Ok(Copy::default()) };
    let complete: bool = row.get(0);
    let generation: Option<i64> = row.get(6);
    let rolled_back: bool = row.get(7);
    let switched_at: Option<String> = row.get(4);
    let of_last_run = generation.is_none() || complete && !rolled_back;
    let (since, snapshot): (Option<String>, Option<String>) = if of_last_run {
        (row.get::<_, Option<String>>(2).map(|at| format!("was begun at {at}")), row.get(3))
    } else {
        (switched_at.as_ref().map(|at| format!("was switched in at {at}")), row.get(5))
    };
    Ok(Copy {
        since,
        brought_back: generation
            .filter(|_| rolled_back)
            .map(|id| format!("generation {id} of {}", switched_at.unwrap_or_else(|| "an unknown time".to_owned()))),
        // Copies of earlier versions noted the name of a shared snapshot, which has no colons.
        xmin: snapshot.and_then(|s| s.split_once(':').and_then(|(xmin, _)| xmin.parse().ok())),
        unfinished: (!complete && generation.is_none()).then(|| row.get(1)),
    })
}
