//! Streams one table from source to target.
//!
//! One transaction on the target: it empties the table, fills it and commits only when both sides
//! counted the same rows. Some statements empty a table for older snapshots too (PostgreSQL manual, 13.6), so its file must
//! be the one that it was. `FREEZE` is for readers as much as for speed: a session in an older
//! snapshot would see an ordinary new table as empty.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Client;

use super::resume;
use super::tables::SourceTable;
use crate::postgres::{Connection, Doing, explain};
use crate::replication::rules::explain_without_values;
use crate::replication::settings::TableName;

/// What was copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Copies a table to `place`, and notes that it is whole when it is to be `noted`; `told` hears the rows and bytes of each piece.
pub(super) async fn copy(
    source: &mut Connection,
    target: &mut Client,
    table: &SourceTable,
    place: &TableName,
    noted: bool,
    told: impl Fn(u64, u64),
) -> anyhow::Result<Copied> {
    let name = &table.name;
    let projection = &table.projection;
    let columns = if projection.readings.is_empty() { String::new() } else { format!(" ({})", projection.columns()) };
    let plain = projection.is_plain();
    let what = if plain {
        format!("{}{columns}", name.quoted())
    } else {
        format!("({})", projection.select_all(&format!("only {}", name.quoted())))
    };
    let form = if table.binary { "binary" } else { "text" };
    let quoted = place.quoted();

    let out = source.copy_out_in_pieces(&format!("copy {what} to stdout (format {form})")).await;
    let reason = |error: &tokio_postgres::Error| if plain { explain(error) } else { explain_without_values(error) };
    let mut out = out.map_err(|error| anyhow::anyhow!("reading table `{name}` from the source: {}", reason(&error)))?;
    let tx = target.transaction().await.doing(|| format!("writing table `{name}`"))?;
    // ONLY: the heirs of a table are tables of their own here.
    tx.batch_execute(&format!("truncate table only {quoted}"))
        .await
        .doing(|| format!("emptying table `{name}` on the target"))?;
    let sink = tx.copy_in::<_, Bytes>(&format!("copy {quoted}{columns} from stdin (format {form}, freeze)")).await;
    let mut sink = Box::pin(sink.doing(|| format!("writing table `{name}` on the target"))?);

    // The server sends one message for each row, and in binary one more for the trailer.
    let trailer = u64::from(table.binary);
    let (mut messages, mut rows, mut bytes) = (0u64, 0u64, 0u64);
    loop {
        let piece = match out.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                // Dropped unfinished, the sink sends CopyFail: the target never takes the part
                // that it has for the whole.
                drop(sink);
                let reason = reason(&error);
                let _ = tx.rollback().await;
                anyhow::bail!("reading table `{name}` from the source broke off after {rows} rows: {reason}");
            }
        };
        let before = (rows, bytes);
        messages += piece.messages;
        rows = messages.saturating_sub(trailer);
        bytes += piece.bytes.len() as u64;
        sink.send(piece.bytes).await.doing(|| format!("writing table `{name}` on the target"))?;
        told(rows - before.0, bytes - before.1);
    }
    drop(out);
    // The COPY's lock is held until the session's transaction ends, so this cannot change any more.
    let file: Option<u32> = source
        .query_one("select pg_relation_filenode($1::oid::regclass)", &[&table.oid])
        .await
        .doing(|| format!("reading table `{name}` from the source"))?
        .get(0);
    anyhow::ensure!(
        file == Some(table.file),
        "table `{name}` was truncated or rewritten on the source (TRUNCATE, ALTER TABLE, VACUUM FULL, CLUSTER) after the run began, \
         which takes its rows out of the run's snapshot; run it again, at another time than those"
    );
    let written = sink.as_mut().finish().await.doing(|| format!("writing table `{name}` on the target"))?;
    anyhow::ensure!(
        rows == written,
        "table `{name}`: the source sent {rows} rows and the target took {written}; the table was left empty"
    );
    if noted {
        resume::note(tx.client(), name, rows).await?;
    }
    tx.commit().await.doing(|| format!("committing table `{name}` on the target"))?;
    Ok(Copied { rows, bytes })
}
