//! Carries a run's log lines and progress to its job in Redis, off the handler's path.
//!
//! A slow or absent Redis never slows the work down: lines wait in memory up to [`BACKLOG`], then
//! the oldest are dropped and the gap is told; progress keeps only its newest value.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::run::{Progress, Record, RunSink};
use crate::clock;
use crate::queue::Queue;

/// Lines that wait for Redis, at most.
const BACKLOG: usize = 2_000;
/// Between two writes to Redis.
const PACE: Duration = Duration::from_millis(300);
/// How long the last lines may take when the run has ended.
const LAST_WRITE: Duration = Duration::from_secs(3);

/// The sink that a run writes to, and the end that [`write()`] reads.
#[derive(Default)]
pub(crate) struct Journal {
    pending: Mutex<Pending>,
    changed: Notify,
    closed: CancellationToken,
}

#[derive(Default)]
struct Pending {
    lines: VecDeque<String>,
    dropped: u64,
    progress: Option<Progress>,
}

impl Journal {
    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts back what Redis did not take, in front of what came since.
    fn put_back(&self, older: Pending) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.dropped += older.dropped;
        for line in older.lines.into_iter().rev() {
            pending.lines.push_front(line);
        }
        while pending.lines.len() > BACKLOG {
            pending.lines.pop_front();
            pending.dropped += 1;
        }
        if pending.progress.is_none() {
            pending.progress = older.progress;
        }
    }
}

impl RunSink for Journal {
    fn line(&self, record: &Record) {
        let now = clock::to_rfc3339(clock::Clock::System.now());
        let severity = if record.level == tracing::Level::INFO { String::new() } else { format!(" {}", record.level) };
        let line = format!("{now}{severity} {}", record.message);
        self.change(|pending| {
            if pending.lines.len() == BACKLOG {
                pending.lines.pop_front();
                pending.dropped += 1;
            }
            pending.lines.push_back(line);
        });
    }

    fn progress(&self, progress: &Progress) {
        self.change(|pending| pending.progress = Some(progress.clone()));
    }
}

/// Writes to the job `id` whatever arrives, until [`close`].
pub(crate) async fn write(journal: Arc<Journal>, queue: Queue, id: String) {
    while !journal.closed.is_cancelled() {
        tokio::select! {
            () = journal.changed.notified() => {}
            () = journal.closed.cancelled() => return,
        }
        // Never dropped half-way: what was taken out is written or put back.
        flush_once(&journal, &queue, &id).await;
        let _ = tokio::time::timeout(PACE, journal.closed.cancelled()).await;
    }
}

/// Ends the `writer` and writes what is left, for [`LAST_WRITE`] at most.
pub(crate) async fn close(journal: &Journal, writer: JoinHandle<()>, queue: &Queue, id: &str) {
    journal.closed.cancel();
    let last = async {
        let _ = writer.await;
        flush_once(journal, queue, id).await;
    };
    let _ = tokio::time::timeout(LAST_WRITE, last).await;
}

async fn flush_once(journal: &Journal, queue: &Queue, id: &str) {
    let mut pending = journal.take();
    let mut lines: Vec<String> = pending.lines.iter().cloned().collect();
    if pending.dropped > 0 {
        lines.insert(0, format!("({} lines were dropped while Redis did not answer)", pending.dropped));
    }
    if !lines.is_empty() {
        if queue.log(id, &lines).await.is_err() {
            return journal.put_back(pending);
        }
        pending.lines.clear();
        pending.dropped = 0;
    }
    if let Some(progress) = &pending.progress {
        let value = serde_json::to_value(progress).unwrap_or_default();
        if queue.set_progress(id, &value).await.is_err() {
            journal.put_back(pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        Record { level: tracing::Level::INFO, message: message.to_owned(), fields: serde_json::Map::new() }
    }

    #[test]
    fn lines_that_redis_did_not_take_come_back_in_order_and_bounded() {
        let journal = Journal::default();
        journal.line(&record("first"));
        let taken = journal.take();
        journal.line(&record("second"));
        journal.put_back(taken);
        let pending = journal.take();
        assert!(pending.lines[0].ends_with("first") && pending.lines[1].ends_with("second"));

        for n in 0..BACKLOG + 5 {
            journal.line(&record(&n.to_string()));
        }
        let pending = journal.take();
        assert_eq!((pending.lines.len(), pending.dropped), (BACKLOG, 5));
    }
}
