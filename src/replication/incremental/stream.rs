//! One `COPY … TO STDOUT` on the source into one `COPY … FROM STDIN` on the target.
//!
//! Memory is bounded: the source is read only as fast as the target writes.

use bytes::Bytes;
use futures_util::SinkExt;

use crate::postgres::{Connection, Doing, PostgresError, explain};
use crate::replication::rules::explain_without_values;

use super::mapping::Plan;

/// What a copy moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::replication) struct Copied {
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
    source: &mut Connection,
    select: &str,
    target: &Connection,
    plan: &Plan,
    moved: &mut (dyn FnMut(&Copied) + Send),
) -> Result<Copied, PostgresError> {
    let into = format!("copy {} ({}) from stdin {}", plan.table.quoted(), plan.column_list(), plan.format());
    let what = What { told: format!("table `{}`", plan.table), binary: plan.binary, plain: plan.projection.is_plain() };
    pipe(source, select, target, &into, &what, moved).await
}

/// What is streamed.
pub(in crate::replication) struct What {
    /// For errors.
    pub told: String,
    pub binary: bool,
    /// Errors of the source may show its values.
    pub plain: bool,
}

/// Streams `from` on the source into `into` on the target.
pub(in crate::replication) async fn pipe(
    source: &mut Connection,
    from: &str,
    target: &Connection,
    into: &str,
    What { told: what, binary, plain }: &What,
    moved: &mut (dyn FnMut(&Copied) + Send),
) -> Result<Copied, PostgresError> {
    let reading = || format!("copying {what}: reading from the source");
    let writing = || format!("copying {what}: writing to the target");
    let failed = |error: tokio_postgres::Error| {
        let reason = if *plain { explain(&error) } else { explain_without_values(&error) };
        PostgresError::Statement { doing: reading(), reason }
    };
    let mut rows = source.copy_out_in_pieces(from).await.map_err(failed)?;
    let mut sink = Box::pin(target.copy_in::<_, Bytes>(into).await.doing(writing)?);
    let mut copied = Copied::default();
    loop {
        let piece = match rows.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                // Dropping the sink before its end sends CopyFail: the target must not take a
                // broken stream for a short one. The caller rolls back.
                drop(sink);
                return Err(failed(error));
            }
        };
        copied.read += piece.messages;
        copied.rows = copied.read;
        copied.bytes += piece.bytes.len() as u64;
        moved(&copied);
        if sink.feed(piece.bytes).await.is_err() {
            // The sink only knows that the session is over; its end tells more.
            break;
        }
    }
    copied.rows = sink.as_mut().finish().await.doing(writing)?;
    if *binary {
        // The trailer is a message of its own.
        copied.read = copied.read.saturating_sub(1);
    }
    moved(&copied);
    Ok(copied)
}
