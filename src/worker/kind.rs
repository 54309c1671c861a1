//! What a kind of job is: its queue, options, schedule, successor and handler.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::run::Run;
use crate::config::{self, Reader, Setting};
use crate::postgres::Database;
use crate::queue::{Backoff, JobOptions, Keep};
use crate::schedule::Schedule;

/// A kind of job: one type, one file under `jobs/`.
#[async_trait::async_trait]
pub trait JobKind: Send + Sync + Sized + 'static {
    /// Word for it on the command line; never changes.
    const NAME: &'static str;
    /// Name of its queue in Redis.
    const QUEUE: &'static str;
    /// One line for help texts and the reference.
    const SUMMARY: &'static str;
    /// Kind whose job is added when one of these completes, in the same transition.
    const THEN: Option<&'static str> = None;
    /// Settings that it reads besides the common ones.
    const SETTINGS: &'static [&'static Setting];
    /// The job's `data`. Every field is optional on read, so that `{}` always works.
    type Payload: Serialize + DeserializeOwned + Default + Send + Sync;

    /// Reads its settings, noting every mistake in `reader`.
    fn from_settings(reader: &Reader<'_>) -> Self;

    /// Whether this machine is set up for it. A process that is to run all kinds leaves out those for which it is not; one
    /// that is told to run this kind tells what is missing.
    fn is_set_up(_reader: &Reader<'_>) -> bool {
        true
    }

    /// When the scheduler adds a job of this kind; never by default.
    fn schedule(&self) -> Option<Schedule> {
        None
    }

    /// Database that a run writes to. Runs that share one exclude each other, over all kinds and
    /// processes, by an advisory lock there.
    fn writes_to(&self) -> Option<&Database> {
        None
    }

    /// Longest run; the run fails with a clear reason after that. None by default.
    fn time_limit(&self) -> Option<Duration> {
        None
    }

    /// How many of its jobs a process runs side by side. None by default: one at a time, over all processes. With a number, other
    /// processes run as many of their own meanwhile, so such a kind keeps by itself what must not meet apart.
    fn side_by_side(&self) -> Option<usize> {
        None
    }

    /// Does the work. Safe to run again after a crash at any point.
    async fn run(&self, ctx: &JobContext<Self::Payload>) -> anyhow::Result<Outcome>;
}

/// What a handler is given.
pub struct JobContext<P> {
    /// The job's data.
    pub payload: P,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Tries in all.
    pub attempts: u32,
    /// Log, progress, and the order to stop.
    pub run: Run,
    /// Where data for the next try is kept; nowhere when the step runs without a queue.
    pub memory: Option<Arc<dyn Memory>>,
}

impl<P: Serialize> JobContext<P> {
    /// Keeps `payload` as the job's data, so that a further try starts from it.
    ///
    /// # Errors
    /// When the queue store does not take it.
    pub async fn remember(&self, payload: &P) -> anyhow::Result<()> {
        match &self.memory {
            Some(memory) => memory.remember(serde_json::to_value(payload)?).await,
            None => Ok(()),
        }
    }
}

/// Keeps a job's data between tries.
#[async_trait::async_trait]
pub trait Memory: Send + Sync {
    /// Replaces the job's data.
    async fn remember(&self, data: Value) -> anyhow::Result<()>;
}

/// How a run ended, when it did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Finished; the value is kept as the job's result and the successor is added.
    Done(Value),
    /// Not now: put back to run after the wait, without counting a try.
    Snooze(Duration),
    /// Cannot succeed by trying again: failed at once, for the reason given.
    Refuse(String),
}

/// Tries, waits and retention of every job of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all.
    pub attempts: u32,
    /// Base of the exponential back-off.
    pub base: Duration,
    /// Completed jobs kept in each queue.
    pub keep_completed: u64,
    /// Failed jobs kept in each queue.
    pub keep_failed: u64,
}

impl RetryPolicy {
    /// Reads the four settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let attempts = reader.integer(&config::MAX_RETRY_COUNT, 1..=1000);
        RetryPolicy {
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            base: reader.milliseconds(&config::EXPONENTIAL_RETRY_DELAY, 0..=86_400_000),
            keep_completed: reader.integer(&config::KEEP_COMPLETED_JOBS, 1..=1_000_000),
            keep_failed: reader.integer(&config::KEEP_FAILED_JOBS, 1..=1_000_000),
        }
    }

    /// The options that every job of ours is added with.
    #[must_use]
    pub fn options(&self) -> JobOptions {
        JobOptions {
            attempts: self.attempts,
            backoff: (!self.base.is_zero()).then(|| Backoff::exponential(self.base)),
            remove_on_complete: Keep::Count(self.keep_completed),
            remove_on_fail: Keep::Count(self.keep_failed),
            ..JobOptions::default()
        }
    }
}

/// A kind as the list in `jobs.rs` declares it; nothing is read or connected.
pub struct Declaration {
    /// [`JobKind::NAME`].
    pub name: &'static str,
    /// [`JobKind::QUEUE`].
    pub queue: &'static str,
    /// [`JobKind::SUMMARY`].
    pub summary: &'static str,
    /// [`JobKind::THEN`].
    pub then: Option<&'static str>,
    /// [`JobKind::SETTINGS`].
    pub settings: &'static [&'static Setting],
    build: fn(&Reader<'_>) -> Kind,
    is_set_up: fn(&Reader<'_>) -> bool,
}

impl Declaration {
    /// Declares `K`.
    #[must_use]
    pub const fn of<K: JobKind>() -> Self {
        Declaration {
            name: K::NAME,
            queue: K::QUEUE,
            summary: K::SUMMARY,
            then: K::THEN,
            settings: K::SETTINGS,
            build: |reader| Kind::of(K::from_settings(reader)),
            is_set_up: K::is_set_up,
        }
    }

    /// [`JobKind::is_set_up`].
    #[must_use]
    pub fn is_set_up(&self, reader: &Reader<'_>) -> bool {
        (self.is_set_up)(reader)
    }

    /// Reads the kind's settings, noting every mistake in `reader`.
    #[must_use]
    pub fn build(&self, reader: &Reader<'_>) -> Kind {
        (self.build)(reader)
    }
}

/// A configured kind, ready to run jobs. Cheap to clone.
#[derive(Clone)]
pub struct Kind {
    /// [`JobKind::NAME`].
    pub name: &'static str,
    /// [`JobKind::QUEUE`].
    pub queue: &'static str,
    /// [`JobKind::THEN`].
    pub then: Option<&'static str>,
    handler: Arc<dyn Handler>,
}

/// What differs from run to run, whatever the kind.
pub struct Frame {
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Tries in all.
    pub attempts: u32,
    /// Log, progress, and the order to stop.
    pub run: Run,
    /// Where data for the next try is kept.
    pub memory: Option<Arc<dyn Memory>>,
}

impl Kind {
    /// Wraps a configured kind.
    pub fn of<K: JobKind>(kind: K) -> Self {
        Kind { name: K::NAME, queue: K::QUEUE, then: K::THEN, handler: Arc::new(Typed(kind)) }
    }

    /// [`JobKind::schedule`].
    #[must_use]
    pub fn schedule(&self) -> Option<Schedule> {
        self.handler.schedule()
    }

    /// [`JobKind::writes_to`].
    #[must_use]
    pub fn writes_to(&self) -> Option<Database> {
        self.handler.writes_to()
    }

    /// [`JobKind::time_limit`].
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.handler.time_limit()
    }

    /// [`JobKind::side_by_side`].
    #[must_use]
    pub fn side_by_side(&self) -> Option<usize> {
        self.handler.side_by_side()
    }

    /// Runs the handler on a job's data.
    ///
    /// # Errors
    /// Whatever the handler fails with; data of the wrong shape is an [`Outcome::Refuse`].
    pub async fn run(&self, data: Value, frame: Frame) -> anyhow::Result<Outcome> {
        self.handler.run(data, frame).await
    }
}

#[async_trait::async_trait]
trait Handler: Send + Sync {
    fn schedule(&self) -> Option<Schedule>;
    fn writes_to(&self) -> Option<Database>;
    fn time_limit(&self) -> Option<Duration>;
    fn side_by_side(&self) -> Option<usize>;
    async fn run(&self, data: Value, frame: Frame) -> anyhow::Result<Outcome>;
}

struct Typed<K>(K);

#[async_trait::async_trait]
impl<K: JobKind> Handler for Typed<K> {
    fn schedule(&self) -> Option<Schedule> {
        self.0.schedule()
    }

    fn writes_to(&self) -> Option<Database> {
        self.0.writes_to().cloned()
    }

    fn time_limit(&self) -> Option<Duration> {
        self.0.time_limit()
    }

    fn side_by_side(&self) -> Option<usize> {
        self.0.side_by_side()
    }

    async fn run(&self, data: Value, frame: Frame) -> anyhow::Result<Outcome> {
        let payload = match serde_json::from_value(data) {
            Ok(payload) => payload,
            Err(error) => return Ok(Outcome::Refuse(format!("the job's data is not what a `{}` job takes: {error}", K::NAME))),
        };
        let Frame { attempt, attempts, run, memory } = frame;
        self.0.run(&JobContext { payload, attempt, attempts, run, memory }).await
    }
}
