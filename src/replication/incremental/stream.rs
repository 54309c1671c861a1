//! One `COPY … TO STDOUT` on the source into one `COPY … FROM STDIN` on the target.
//!
//! Memory is bounded: the source is read only as fast as the target writes. The server sends a
//! message for each row; they are gathered, because a message a row on the way out costs twice the
//! processor time.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};

use crate::postgres::{Connection, Doing, PostgresError};

use super::mapping::Plan;

/// Bytes sent to the target at once.
const CHUNK: usize = 128 * 1024;

/// What a copy moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Rows the source sent.
    pub read: u64,
    /// Rows the target inserted, by its own count; while the copy runs, those read so far.
    pub rows: u64,
    /// Bytes sent.
    pub bytes: u64,
}

impl Copied {
    pub(super) fn add(&mut self, other: Copied) {
        self.read += other.read;
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}

/// Copies the plan's columns as `select` (a `COPY … TO STDOUT`) sends them.
pub(super) async fn copy(
    source: &Connection,
    select: &str,
    target: &Connection,
    plan: &Plan,
    moved: &mut (dyn FnMut(&Copied) + Send),
) -> Result<Copied, PostgresError> {
    let into = format!("copy {} ({}) from stdin {}", plan.table.quoted(), plan.column_list(), plan.format());
    let names = (format!("table `{}`", plan.table), plan.binary);
    pipe(source, select, target, &into, &names.0, names.1, moved).await
}

/// Streams `from` on the source into `into` on the target; `what` is for errors.
pub(super) async fn pipe(
    source: &Connection,
    from: &str,
    target: &Connection,
    into: &str,
    what: &str,
    binary: bool,
    moved: &mut (dyn FnMut(&Copied) + Send),
) -> Result<Copied, PostgresError> {
    let reading = || format!("copying {what}: reading from the source");
    let writing = || format!("copying {what}: writing to the target");
    let rows = source.copy_out(from).await.doing(reading)?;
    let sink = target.copy_in::<_, Bytes>(into).await.doing(writing)?;
    let (mut rows, mut sink) = (Box::pin(rows), Box::pin(sink));
    let mut copied = Copied::default();
    let mut chunk = BytesMut::with_capacity(2 * CHUNK);
    loop {
        match rows.next().await {
            Some(Ok(row)) => {
                copied.read += 1;
                chunk.extend_from_slice(&row);
                if chunk.len() < CHUNK {
                    continue;
                }
            }
            Some(Err(error)) => {
                // Dropping the sink before its end sends CopyFail: the target must not take a
                // broken stream for a short one. The caller rolls back.
                drop(sink);
                return Err(error).doing(reading);
            }
            None => break,
        }
        copied.bytes += chunk.len() as u64;
        copied.rows = copied.read;
        moved(&copied);
        if sink.feed(chunk.split().freeze()).await.is_err() {
            // The sink only knows that the session is over; its end tells more.
            break;
        }
        chunk.reserve(2 * CHUNK);
    }
    if !chunk.is_empty() {
        copied.bytes += chunk.len() as u64;
        let _ = sink.feed(chunk.freeze()).await;
    }
    copied.rows = sink.as_mut().finish().await.doing(writing)?;
    if binary {
        // The trailer is a message of its own.
        copied.read = copied.read.saturating_sub(1);
    }
    moved(&copied);
    Ok(copied)
}
