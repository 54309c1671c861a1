//! Streams one table from source to target.
//!
//! One transaction on the target: it empties the table, fills it and commits only when both sides
//! counted the same rows. `FREEZE` is for readers as much as for speed: a session in an older
//! snapshot would see an ordinary new table as empty. Rows are gathered, because sending each by
//! itself costs 1.8 times the CPU (measured: 2.13 s against 1.18 s for 455 MB).

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

use super::tables::SourceTable;
use crate::postgres::{Doing, explain, quote_identifier};

/// Bytes gathered before they are sent; at most twice this is held for each worker, besides one row.
const CHUNK: usize = 128 * 1024;

/// What was copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Copies a table; `told` hears the rows and bytes of each chunk.
pub(super) async fn copy(
    source: &Client,
    target: &mut Client,
    table: &SourceTable,
    told: impl Fn(u64, u64),
) -> anyhow::Result<Copied> {
    let name = &table.name;
    let columns = if table.columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", table.columns.iter().map(|c| quote_identifier(c)).collect::<Vec<_>>().join(", "))
    };
    let form = if table.binary { "binary" } else { "text" };
    let quoted = name.quoted();

    let out = source.copy_out(&format!("copy {quoted}{columns} to stdout (format {form})")).await;
    let mut out = std::pin::pin!(out.doing(|| format!("reading table `{name}` from the source"))?);
    let tx = target.transaction().await.doing(|| format!("writing table `{name}`"))?;
    // ONLY: the heirs of a table are tables of their own here.
    tx.batch_execute(&format!("truncate table only {quoted}"))
        .await
        .doing(|| format!("emptying table `{name}` on the target"))?;
    let sink = tx.copy_in::<_, Bytes>(&format!("copy {quoted}{columns} from stdin (format {form}, freeze)")).await;
    let mut sink = Box::pin(sink.doing(|| format!("writing table `{name}` on the target"))?);

    let mut buffer = BytesMut::with_capacity(2 * CHUNK);
    // The server sends one message for each row, and in binary one more for the trailer.
    let (mut messages, mut bytes, mut told_messages, mut told_bytes) = (0u64, 0u64, 0u64, 0u64);
    loop {
        let message = match out.try_next().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                // Dropped unfinished, the sink sends CopyFail: the target never takes the part
                // that it has for the whole.
                drop(sink);
                let reason = explain(&error);
                let _ = tx.rollback().await;
                anyhow::bail!("reading table `{name}` from the source broke off after {messages} rows: {reason}");
            }
        };
        messages += 1;
        bytes += message.len() as u64;
        buffer.extend_from_slice(&message);
        if buffer.len() >= CHUNK {
            sink.send(buffer.split().freeze()).await.doing(|| format!("writing table `{name}` on the target"))?;
            buffer.reserve(2 * CHUNK);
            told(messages - told_messages, bytes - told_bytes);
            (told_messages, told_bytes) = (messages, bytes);
        }
    }
    if !buffer.is_empty() {
        sink.send(buffer.freeze()).await.doing(|| format!("writing table `{name}` on the target"))?;
    }
    let written = sink.as_mut().finish().await.doing(|| format!("writing table `{name}` on the target"))?;
    let read = if table.binary { messages.saturating_sub(1) } else { messages };
    anyhow::ensure!(
        read == written,
        "table `{name}`: the source sent {read} rows and the target took {written}; the table was left empty"
    );
    tx.commit().await.doing(|| format!("committing table `{name}` on the target"))?;
    told(read.saturating_sub(told_messages), bytes - told_bytes);
    Ok(Copied { rows: read, bytes })
}
