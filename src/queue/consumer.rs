//! Runs the jobs of a queue, several side by side, for programs that use this module as a library.
//!
//! - A *feeder* takes jobs while fewer than [`ConsumerOptions::concurrency`] are run; when none waits, it blocks on a
//!   connection of its own until one comes.
//! - A *lane* runs a job, settles it, and takes the next one in the same step; lanes that are done at the same time take their
//!   *turns* together.
//! - The *keeper* renews all locks; a run whose lock is lost is dropped at its next await.
//! - The *maintainer* moves due jobs and puts back those whose worker vanished.

mod feeder;
mod keeper;
mod lane;
mod turns;

use std::collections::HashMap;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::turns::Turns;
use super::{Failure, Job, Queue, QueueError};

/// After an error of Redis's.
const BACK_OFF: Duration = Duration::from_secs(2);

/// Shortest lock: a shorter one would be lost to any hiccup.
const SHORTEST_LOCK: Duration = Duration::from_secs(1);
/// Shortest time between two looks for stalled jobs.
const SHORTEST_CHECK: Duration = Duration::from_millis(100);
/// Longest of either.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How a [`Consumer`] works. What is beyond the bounds named here counts as the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Jobs run side by side; 1. At least 1.
    pub concurrency: usize,
    /// How long a job stays ours without a sign of life; 30 s. It is renewed at half of that. From a second to a year.
    pub lock: Duration,
    /// How often jobs of vanished workers are looked for; 30 s. From a tenth of a second to a year.
    pub stall_check: Duration,
    /// A job whose workers vanished more often than this fails for good; 1.
    pub max_stalled: u32,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        let half_minute = Duration::from_secs(30);
        ConsumerOptions { concurrency: 1, lock: half_minute, stall_check: half_minute, max_stalled: 1 }
    }
}

impl ConsumerOptions {
    fn within_bounds(self) -> Self {
        ConsumerOptions {
            concurrency: self.concurrency.clamp(1, Semaphore::MAX_PERMITS),
            lock: self.lock.clamp(SHORTEST_LOCK, LONGEST),
            stall_check: self.stall_check.clamp(SHORTEST_CHECK, LONGEST),
            max_stalled: self.max_stalled,
        }
    }
}

/// A job that is being run by a handler.
#[derive(Clone, Debug)]
pub struct ActiveJob {
    job: Arc<Job>,
    queue: Queue,
    lost: CancellationToken,
}

impl ActiveJob {
    /// Stores how far the run is, and publishes it.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn progress(&self, progress: &Value) -> Result<(), QueueError> {
        self.queue.set_progress(&self.job.id, progress).await
    }

    /// Appends a line to the job's log.
    ///
    /// # Errors
    /// [`QueueError::Missing`], or Redis's.
    pub async fn log(&self, line: impl Into<String>) -> Result<(), QueueError> {
        self.queue.log(&self.job.id, &[line.into()]).await.map(drop)
    }

    /// Cancelled when the job is not ours any more, or somebody cancelled it. The handler is dropped then; what it spawned
    /// should listen.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Deref for ActiveJob {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send>>;

/// A run that is going on.
struct Running {
    /// Of the job.
    id: String,
    /// Ends the run.
    lost: CancellationToken,
    /// Who cancelled the job, when it ends for that.
    cancelled_by: Option<String>,
}

/// What the parts of a consumer share.
struct Shared {
    queue: Queue,
    options: ConsumerOptions,
    handler: Box<dyn Fn(ActiveJob) -> Handling + Send + Sync>,
    slots: Arc<Semaphore>,
    turns: Turns,
    /// By their tokens: another lane may run a job again before the one where it failed has looked at the answer.
    running: Mutex<HashMap<String, Running>>,
    /// Take nothing more.
    quiet: CancellationToken,
    /// Hand back what is run.
    abandon: CancellationToken,
    lanes: TaskTracker,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs jobs until it is stopped. Dropped without [`Consumer::stop`], its jobs are put back by the next stall check.
///
/// Jobs run at least once. When this process dies, its jobs run elsewhere one to two [`ConsumerOptions::stall_check`]s after
/// their lock ran out. A run whose lock is lost all the same (the process stood still for longer) is dropped at its next await, and
/// cannot end the job any more. While Redis is away, it is asked every two seconds, and jobs that end meanwhile are settled when it
/// is back in time.
///
/// The handler is run on the tokio runtime, so what blocks belongs on [`tokio::task::spawn_blocking`]: locks are renewed on the same
/// runtime, and when all of its threads are blocked for longer than a lock lasts, the jobs are run again elsewhere. It needs no
/// more than one thread: on a runtime of the current thread, jobs that do little take the least time.
///
/// A job that is the run of a schedule has the next run armed before the handler is called; nothing else is needed for a
/// schedule to go on. One whose times cannot be understood ends with that run: an error is logged, and a line put into the log of
/// the job.
pub struct Consumer {
    shared: Arc<Shared>,
    feeder: JoinHandle<()>,
    helpers: Vec<JoinHandle<()>>,
}

impl Consumer {
    /// Begins to run the jobs of `queue` with `handler`. An error, or a panic, is a failed attempt.
    pub fn start<H, F>(queue: &Queue, options: ConsumerOptions, handler: H) -> Consumer
    where
        H: Fn(ActiveJob) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, Failure>> + Send + 'static,
    {
        let options = options.within_bounds();
        let shared = Arc::new(Shared {
            queue: queue.clone(),
            options,
            handler: Box::new(move |job| Box::pin(handler(job))),
            slots: Arc::new(Semaphore::new(options.concurrency)),
            turns: Turns::begin(queue, options.concurrency, options.lock),
            running: Mutex::default(),
            quiet: CancellationToken::new(),
            abandon: CancellationToken::new(),
            lanes: TaskTracker::new(),
        });
        let feeder = tokio::spawn(feeder::feed(Arc::clone(&shared)));
        let helpers = vec![tokio::spawn(keeper::keep(Arc::clone(&shared))), tokio::spawn(keeper::maintain(Arc::clone(&shared)))];
        Consumer { shared, feeder, helpers }
    }

    /// Takes nothing more, waits for the runs until `limit`, and hands back the jobs that are not done by then: they
    /// are taken next, and the attempt does not count.
    ///
    /// A handler ends at an await, and so does this: one that blocks a thread of the runtime cannot be dropped before it is done.
    /// When it blocks all of them, this returns only after it, and the locks may have run out by then: the jobs are run again. What
    /// runs on [`tokio::task::spawn_blocking`] holds up nothing, but goes on after its job was handed back; let it look at
    /// [`ActiveJob::lost`].
    pub async fn stop(mut self, limit: Duration) {
        self.shared.quiet.cancel();
        let _ = (&mut self.feeder).await;
        self.shared.lanes.close();
        if tokio::time::timeout(limit, self.shared.lanes.wait()).await.is_err() {
            self.shared.abandon.cancel();
            let _ = tokio::time::timeout(BACK_OFF * 5, self.shared.lanes.wait()).await;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.feeder.abort();
        for helper in &self.helpers {
            helper.abort();
        }
        self.shared.quiet.cancel();
        self.shared.abandon.cancel();
    }
}
