//! Rows, indexes and keys of all tables, by a few workers.
//!
//! Every worker has at most one session with each side. Work is taken by size: the largest table
//! first, and its indexes before smaller tables' rows, because they end last. A table's indexes
//! are built side by side as soon as its rows are committed; then its keys are attached to them,
//! its marks set, and it is analysed.

use std::collections::{BinaryHeap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;
use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::copy::{Copied, copy};
use super::keys::{self, TableKeys};
use super::resume::{self, Done};
use super::session::Sessions;
use super::tables::{SourceIndex, SourceTable};
use crate::postgres::{Connection, Doing};
use crate::replication::ddl::Kind;
use crate::replication::settings::TableName;
use crate::replication::verify::Checks;
use crate::worker::Run;

/// One table and what is built on it.
pub(super) struct Work {
    pub(super) table: SourceTable,
    /// Where it is on the target now.
    pub(super) place: TableName,
    pub(super) indexes: Vec<SourceIndex>,
    /// Its rows are there already, from a run that was cut off.
    pub(super) done: bool,
    /// Indexes, and constraints, that are there already, by name.
    pub(super) built: HashSet<String>,
    /// Further definitions that belong before ANALYZE: extended statistics.
    pub(super) more: Vec<String>,
}

/// Counts for the summary, readable while the work goes on.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) tables: AtomicU64,
    pub(super) rows: AtomicU64,
    pub(super) bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Copy,
    Index(usize),
    Finish,
    /// The foreign keys of the table, by their place among all.
    Keys(usize),
}

/// Ordered by the table's size, then by the age of the step.
type Task = (i64, std::cmp::Reverse<u64>, usize, Step);

struct Queue {
    /// Tables to copy.
    copies: BinaryHeap<Task>,
    /// What there is to do on those that are copied.
    tasks: BinaryHeap<Task>,
    /// Foreign keys whose tables are whole.
    keys: Vec<Task>,
    /// Tables whose keys are attached or validated, or that are analysed.
    busy: HashSet<usize>,
    next: u64,
    running: usize,
    /// Copies that are running.
    copying: usize,
    copies_left: usize,
    /// Sessions with the source that wait for the next copy.
    sources: Vec<Connection>,
    /// Exports the snapshot; closed when the last table is copied and checked, to let the source clean up.
    exporter: Option<Connection>,
}

/// How the work is done.
#[derive(Clone, Copy)]
pub(super) struct How<'s> {
    /// Side by side.
    pub(super) workers: usize,
    /// Tables that are read from the source at the same time.
    pub(super) readers: usize,
    /// Beside the live copy, where whole tables are noted.
    pub(super) staged: bool,
    /// Foreign keys between tables of the work.
    pub(super) keys: &'s [TableKeys],
    /// Some of it may be there already, from a run that was cut off.
    pub(super) again: bool,
    /// What looks at every value too.
    pub(super) checks: Option<&'s Checks>,
}

impl Queue {
    /// The largest that may be done now.
    fn pop(&mut self, how: How<'_>) -> Option<Task> {
        let copy = self.copies.peek().filter(|_| self.copying < how.readers);
        let free = |(_, task): &(usize, &Task)| match task.3 {
            Step::Keys(at) => how.keys[at].tables().all(|table| !self.busy.contains(&table)),
            _ => true,
        };
        let keys = self.keys.iter().enumerate().filter(free).max_by_key(|(_, task)| **task);
        if let Some((at, task)) = keys
            && Some(task) >= copy.max(self.tasks.peek())
        {
            let task = self.keys.swap_remove(at);
            self.busy.insert(task.2);
            return Some(task);
        }
        if copy.is_some() && copy >= self.tasks.peek() {
            self.copying += 1;
            return self.copies.pop();
        }
        let task = self.tasks.pop()?;
        if task.3 == Step::Finish {
            self.busy.insert(task.2);
        }
        Some(task)
    }
}

struct Pool<'s> {
    run: Run,
    sessions: &'s Sessions<'s>,
    snapshot: &'s str,
    work: &'s [Work],
    how: How<'s>,
    indexes_left: Vec<AtomicUsize>,
    /// For each table's foreign keys, how many of their tables are not whole yet.
    keys_wait: Vec<AtomicUsize>,
    queue: Mutex<Queue>,
    woken: Notify,
    totals: Arc<Totals>,
}

/// Marks what a run that was cut off has left whole.
pub(super) fn take_over(work: &mut [Work], done: &Done, built: &HashSet<TableName>, totals: &Totals) {
    for work in work {
        let Some(rows) = done.get(&work.table.name) else { continue };
        work.done = true;
        work.built = built.iter().filter(|name| name.schema == work.place.schema).map(|name| name.name.clone()).collect();
        totals.tables.fetch_add(1, Ordering::Relaxed);
        totals.rows.fetch_add(*rows, Ordering::Relaxed);
    }
}

impl Work {
    /// What is to be done first.
    fn first(&self) -> Vec<Step> {
        if self.done { self.after_copy() } else { vec![Step::Copy] }
    }

    fn missing(&self) -> impl Iterator<Item = usize> {
        self.indexes.iter().enumerate().filter(|(_, index)| !self.built.contains(&index.name)).map(|(i, _)| i)
    }

    fn after_copy(&self) -> Vec<Step> {
        let indexes: Vec<Step> = self.missing().map(Step::Index).collect();
        if indexes.is_empty() { vec![Step::Finish] } else { indexes }
    }
}

/// Does all the work; the first failure ends it. Tables that differ from the source by the checks do not.
pub(super) async fn all(
    run: &Run,
    sessions: &Sessions<'_>,
    (exporter, snapshot): (Connection, &str),
    work: &[Work],
    how: How<'_>,
    totals: &Arc<Totals>,
) -> anyhow::Result<()> {
    let workers = how.workers;
    let task = |i: usize, w: &Work, step| (w.table.size, std::cmp::Reverse(i as u64), i, step);
    let (copies, tasks): (BinaryHeap<Task>, BinaryHeap<Task>) = work
        .iter()
        .enumerate()
        .flat_map(|(i, w)| w.first().into_iter().map(move |step| task(i, w, step)))
        .partition(|task| task.3 == Step::Copy);
    let copies_left = work.iter().filter(|w| !w.done).count();
    let pool = Pool {
        run: run.clone(),
        sessions,
        snapshot,
        work,
        indexes_left: work.iter().map(|w| AtomicUsize::new(w.missing().count())).collect(),
        keys_wait: how.keys.iter().map(|keys| AtomicUsize::new(keys.tables().count())).collect(),
        how,
        queue: Mutex::new(Queue {
            copies,
            tasks,
            keys: Vec::new(),
            busy: HashSet::new(),
            next: work.len() as u64,
            running: 0,
            copying: 0,
            sources: Vec::new(),
            copies_left,
            exporter: (copies_left > 0).then_some(exporter),
        }),
        woken: Notify::new(),
        totals: Arc::clone(totals),
    };
    let mut running: futures_util::stream::FuturesUnordered<_> =
        (0..workers.min(work.len()).max(1)).map(|_| pool.worker()).collect();
    use futures_util::TryStreamExt;
    while running.try_next().await?.is_some() {}
    Ok(())
}

impl Pool<'_> {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn worker(&self) -> anyhow::Result<()> {
        let mut target = self.sessions.target_for_one_of(self.how.workers).await?;
        while let Some((_, _, index, step)) = self.take().await {
            let new = match step {
                Step::Copy => {
                    let waiting = self.queue().sources.pop();
                    let mut source = match waiting {
                        Some(source) => source,
                        None => self.sessions.source_in(self.snapshot).await?,
                    };
                    self.copy(index, &mut source, target.client_mut()).await?;
                    self.after_copy(index, source)
                }
                Step::Index(number) => {
                    self.index(index, number, &target).await?;
                    let last = self.indexes_left[index].fetch_sub(1, Ordering::AcqRel) == 1;
                    if last { vec![Step::Finish] } else { Vec::new() }
                }
                Step::Finish => {
                    self.finish(index, target.client_mut()).await?;
                    self.keys_of(index)
                }
                Step::Keys(at) => {
                    keys::make(&self.run, &target, &self.how.keys[at], self.how.again).await?;
                    Vec::new()
                }
            };
            let mut queue = self.queue();
            queue.running -= 1;
            if matches!(step, Step::Finish | Step::Keys(_)) {
                queue.busy.remove(&index);
            }
            for step in new {
                let age = std::cmp::Reverse(queue.next);
                queue.next += 1;
                match step {
                    Step::Keys(at) => {
                        let table = self.how.keys[at].table;
                        queue.keys.push((self.work[table].table.size, age, table, step));
                    }
                    _ => queue.tasks.push((self.work[index].table.size, age, index, step)),
                }
            }
            drop(queue);
            self.woken.notify_waiters();
        }
        Ok(())
    }

    /// The next step; waits while others may still add some. `None`: all is done.
    async fn take(&self) -> Option<Task> {
        loop {
            let mut woken = std::pin::pin!(self.woken.notified());
            // Registered before looking, or a step added in between would wake nobody.
            woken.as_mut().enable();
            {
                let mut queue = self.queue();
                if let Some(task) = queue.pop(self.how) {
                    queue.running += 1;
                    return Some(task);
                }
                if queue.running == 0 {
                    return None;
                }
            }
            woken.await;
        }
    }

    async fn copy(&self, index: usize, source: &mut Connection, target: &mut Client) -> anyhow::Result<()> {
        let (table, place, checks) = (&self.work[index].table, &self.work[index].place, self.how.checks);
        let start = Instant::now();
        let Copied { rows, bytes } = copy(source, target, table, place, self.how.staged && checks.is_none(), |rows, bytes| {
            self.totals.rows.fetch_add(rows, Ordering::Relaxed);
            self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.tell();
        })
        .await?;
        self.totals.tables.fetch_add(1, Ordering::Relaxed);
        self.tell();
        let item = table.name.to_string();
        self.run.info_with(
            format!("TABLE DATA {item}: {rows} rows"),
            json!({"item_kind": "TABLE DATA", "item": item, "table_name": item, "rows": rows, "bytes": bytes, "duration_ms": millis(start)}),
        );
        // Whole is what was found equal, so that no later run takes over what was not.
        if let Some(checks) = checks
            && checks.compare(&self.run, table, place, source, target).await?
            && self.how.staged
        {
            resume::note(target, &table.name, rows).await?;
        }
        Ok(())
    }

    fn tell(&self) {
        self.run.progress(|p| {
            p.done = self.totals.tables.load(Ordering::Relaxed);
            p.rows = self.totals.rows.load(Ordering::Relaxed);
            p.bytes = self.totals.bytes.load(Ordering::Relaxed);
        });
    }

    fn after_copy(&self, index: usize, source: Connection) -> Vec<Step> {
        let over = {
            let mut queue = self.queue();
            queue.copying -= 1;
            queue.copies_left -= 1;
            queue.sources.push(source);
            let wanted = if queue.copies_left == 0 { 0 } else { queue.copies.len() };
            let keep = wanted.min(queue.sources.len());
            let exporter = if queue.copies_left == 0 { queue.exporter.take() } else { None };
            (queue.sources.split_off(keep), exporter)
        };
        drop(over);
        self.work[index].after_copy()
    }

    /// Foreign keys all of whose tables are whole with this one.
    fn keys_of(&self, table: usize) -> Vec<Step> {
        let with_it = self.how.keys.iter().enumerate().filter(|(_, keys)| keys.tables().any(|t| t == table));
        with_it.filter(|(at, _)| self.keys_wait[*at].fetch_sub(1, Ordering::AcqRel) == 1).map(|(at, _)| Step::Keys(at)).collect()
    }

    async fn index(&self, table: usize, number: usize, target: &Client) -> anyhow::Result<()> {
        let work = &self.work[table];
        let index = &work.indexes[number];
        let start = Instant::now();
        target
            .batch_execute(&index.definition)
            .await
            .doing(|| format!("building index `{}` of table `{}`", index.name, work.table.name))?;
        let kind = if index.constraint.is_some() { "CONSTRAINT" } else { "INDEX" };
        let item = format!("{} {}", work.table.name, index.name);
        self.run.info_with(
            format!("{kind} {item}"),
            json!({"item_kind": kind, "item": item, "table_name": work.table.name.to_string(), "duration_ms": millis(start)}),
        );
        Ok(())
    }

    /// Keys, marks and statistics. Attaching locks the table against everything, so it is done
    /// by one worker, when no index of the table is being built any more.
    async fn finish(&self, table: usize, target: &mut Client) -> anyhow::Result<()> {
        let work = &self.work[table];
        let name = &work.table.name;
        let attach = work.indexes.iter().filter_map(|i| i.constraint.as_ref().map(|(_, sql)| sql));
        let marks = work.indexes.iter().flat_map(|i| &i.marks);
        for sql in attach.chain(marks).chain(&work.more) {
            match target.batch_execute(sql).await {
                // The index of a key that was there already: another one cannot be attached to it.
                Err(error) if work.done && was_attached(&error) => {}
                result => result.doing(|| format!("finishing table `{name}`: {sql}"))?,
            }
        }
        target.batch_execute(&format!("analyze {}", work.place.quoted())).await.doing(|| format!("analysing table `{name}`"))?;
        Ok(())
    }
}

/// A key, or extended statistics, is there already.
fn was_attached(error: &tokio_postgres::Error) -> bool {
    resume::is_done(error, Kind::Key) || error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
}

pub(super) fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
