//! Queues in the Redis layout of Bull 4.16: the only module that knows Redis keys.
//!
//! A job is a hash; its id is in exactly one of these, which is its state:
//!
//! ```text
//! add ──┬─► wait ◄─────► paused          by pause and resume
//!       │    │
//!       │   take                         lock set, processedOn
//!       │    ▼
//!       │  active ──┬─► completed        and the successor is in its line
//!       │           ├─► failed           no tries left, or cancelled
//!       │           ├─► delayed          back-off, snooze
//!       │           └─► wait             retry at once; handed back; its worker vanished
//!       │
//!       └─► delayed ──► wait             due, or promoted by hand
//!            failed ──► wait             retried by hand
//! ```
//!
//! Guarantees:
//! - A transition is one script (`queue/scripts/*.lua`), so that whoever dies or is cut off at any point leaves
//!   the job in its old or its new state, never in two or in none.
//! - Only the run whose token is in the job's lock can end or extend it. Its lock runs out when its
//!   process dies; [`Queue::recover_stalled`] then puts the job back: every job runs at least once.
//! - Completing a job and adding its successor, in whatever queue, is one transition.
//! - What others wrote is never trusted: ids without a job, hashes without options, broken JSON and
//!   keys of the wrong type neither abort a script half-way nor stop a worker.
//!
//! Needs: Redis 6.2 or newer, `maxmemory-policy noeviction`, and clocks that agree within seconds,
//! since all times are the clients'.
//!
//! # Add
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc_redis.rs"));
//! use bullwork::clock::Clock;
//! use bullwork::queue::{Added, JobOptions, NewJob, Queue};
//! use bullwork::redis::Redis;
//! use serde_json::json;
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let server = DocRedis::start();
//! let redis = Redis::new("redis://127.0.0.1:6379")?;
//! # let redis = Redis::new(&server.url())?;
//! let queue = Queue::new(redis, "bull", "mails", Clock::System);
//! let soon = JobOptions { attempts: 3, delay: 5_000, ..JobOptions::default() };
//! let added = queue.add(&NewJob::unnamed(json!({"to": "ann@example.net"}), soon)).await?;
//! assert_eq!(added, Added::New("1".into()));
//!
//! let to = |n| NewJob::unnamed(json!({"to": n}), JobOptions { attempts: 3, ..JobOptions::default() });
//! queue.add_many(&(0..10_000).map(to).collect::<Vec<_>>()).await?;
//! assert_eq!(queue.counts().await?.waiting, 10_000);
//! # Ok(())
//! # }
//! ```
//!
//! # Run
//!
//! See [`Consumer`] for what it does, and [`Queue::take`] for loops of your own.
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc_redis.rs"));
//! use std::time::Duration;
//!
//! use bullwork::clock::Clock;
//! use bullwork::queue::{Consumer, ConsumerOptions, Failure, JobOptions, NewJob, Outcome, Queue};
//! use bullwork::redis::Redis;
//! use serde_json::json;
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let server = DocRedis::start();
//! let redis = Redis::new("redis://127.0.0.1:6379")?;
//! # let redis = Redis::new(&server.url())?;
//! let queue = Queue::new(redis, "bull", "mails", Clock::System);
//! let options = ConsumerOptions { concurrency: 10, ..ConsumerOptions::default() };
//! let consumer = Consumer::start(&queue, options, |job| async move {
//!     let to = job.data["to"].as_str().ok_or_else(|| Failure::new("the job names nobody"))?;
//!     job.log(format!("to {to}")).await?;
//!     job.progress(&json!(50)).await?;
//!     Ok(json!({"sent": to}))
//! });
//!
//! let mail = NewJob::unnamed(json!({"to": "ann@example.net"}), JobOptions::default());
//! let (_, outcome) = queue.add_and_wait(&mail, Duration::from_secs(10)).await?;
//! assert_eq!(outcome, Some(Outcome::Completed { value: json!({"sent": "ann@example.net"}) }));
//! consumer.stop(Duration::from_secs(20)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Listen
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc_redis.rs"));
//! use bullwork::clock::Clock;
//! use bullwork::queue::{Event, JobOptions, NewJob, Queue};
//! use bullwork::redis::Redis;
//! use serde_json::json;
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let server = DocRedis::start();
//! let redis = Redis::new("redis://127.0.0.1:6379")?;
//! # let redis = Redis::new(&server.url())?;
//! let queue = Queue::new(redis, "bull", "mails", Clock::System);
//! let mut events = queue.events().await?;
//! queue.add(&NewJob::unnamed(json!({}), JobOptions::default())).await?;
//! queue.pause().await?;
//! assert_eq!(events.next().await, Some(Event::Waiting { id: "1".into() }));
//! assert_eq!(events.next().await, Some(Event::Paused));
//! # Ok(())
//! # }
//! ```
//!
//! # Look and operate
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc_redis.rs"));
//! use bullwork::clock::Clock;
//! use bullwork::queue::{JobOptions, NewJob, Queue, State};
//! use bullwork::redis::Redis;
//! use serde_json::json;
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let server = DocRedis::start();
//! let redis = Redis::new("redis://127.0.0.1:6379")?;
//! # let redis = Redis::new(&server.url())?;
//! let queue = Queue::new(redis, "bull", "mails", Clock::System);
//! let later = JobOptions { delay: 60_000, ..JobOptions::default() };
//! let id = queue.add(&NewJob::unnamed(json!({"to": "ann@example.net"}), later)).await?.id().to_owned();
//! assert_eq!(queue.state(&id).await?, Some(State::Delayed));
//! queue.promote(&id).await?;
//! for job in queue.jobs(&[State::Waiting, State::Active], 0, 99, true).await? {
//!     println!("{} {} {}", job.id, job.data, job.attempts());
//! }
//! queue.remove(&id).await?;
//! assert_eq!(queue.job(&id).await?, None);
//! # Ok(())
//! # }
//! ```
//!
//! # Rooms
//!
//! - [`options`]: what a producer asks for, stored as `opts`
//! - [`job`]: a job as stored, and one to add
//! - `add` `take` `settle` `delayed` `stalled`: the life of a job
//! - `consumer`: runs jobs side by side, for programs that use this module as a library
//! - `repeat`: schedules · `operate`: what people do by hand · `clean`: removing many · `look`: counts, lists, states
//! - `tell` `events`: what runs tell, and what is published · `outcome`: waiting for an end
//! - `limiter` `metrics` `workers`: how many runs begin, how many ended, who runs them

mod add;
mod clean;
mod consumer;
mod delayed;
mod error;
mod events;
pub mod job;
mod keys;
mod limiter;
mod look;
pub mod metrics;
mod operate;
pub mod options;
mod outcome;
mod repeat;
mod scripts;
mod settle;
mod stalled;
mod take;
mod tell;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use add::Added;
pub use clean::Cleaned;
pub use consumer::{ActiveJob, Consumer, ConsumerOptions};
pub use error::QueueError;
pub use events::{Event, EventStream};
pub use job::{Job, NewJob};
pub use limiter::Limiter;
pub use look::{Counts, State};
pub use metrics::Metrics;
pub use operate::CancelOutcome;
pub use options::{Backoff, Debounce, JobOptions, Keep};
pub use outcome::Outcome;
pub use repeat::{Armed, Repeat, RepeatEntry};
pub use settle::{Completed, Failed, Failure};
pub use stalled::StallCheck;
pub use take::{Admission, Renewed, Taken};

pub use workers::{Presence, WorkerClient};

use crate::clock::Clock;
use crate::identity;
use crate::redis::Redis;
use keys::Keys;
use take::milliseconds;

/// A queue. Cheap to clone; clones share their publisher's token.
#[derive(Clone, Debug)]
pub struct Queue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    redis: Redis,
    prefix: String,
    name: String,
    keys: Keys,
    clock: Clock,
    /// Tells our messages from others' (wire format §5).
    publisher: String,
    limiter: Option<Limiter>,
    /// Minutes in which ends are counted; 0: they are not.
    metrics: u32,
    /// Whether the last look at the line brought a job.
    took_some: AtomicBool,
}

impl Queue {
    /// The queue `name` under `prefix` (Bull's default is `bull`). Nothing is connected or written.
    #[must_use]
    pub fn new(redis: Redis, prefix: &str, name: &str, clock: Clock) -> Queue {
        Queue {
            inner: Arc::new(Inner {
                redis,
                prefix: prefix.to_owned(),
                name: name.to_owned(),
                keys: Keys::new(prefix, name),
                clock,
                publisher: identity::new_uuid(),
                limiter: None,
                metrics: 0,
                took_some: AtomicBool::new(false),
            }),
        }
    }

    /// The same queue, of which at most so many runs begin in a time. Give it to its workers, and to its producers when it is by
    /// group.
    #[must_use]
    pub fn with_limiter(&self, limiter: Limiter) -> Queue {
        self.changed(|inner| inner.limiter = Some(limiter))
    }

    /// The same queue, of which the ends that its workers bring about are counted in each minute, and the last `minutes` kept
    /// ([`metrics::TWO_WEEKS`] is what tools show).
    #[must_use]
    pub fn with_metrics(&self, minutes: u32) -> Queue {
        self.changed(|inner| inner.metrics = minutes)
    }

    fn changed(&self, change: impl FnOnce(&mut Inner)) -> Queue {
        let Inner { redis, prefix, name, keys, clock, publisher, limiter, metrics, .. } = &*self.inner;
        let mut inner = Inner {
            redis: redis.clone(),
            prefix: prefix.clone(),
            name: name.clone(),
            keys: keys.clone(),
            clock: clock.clone(),
            publisher: publisher.clone(),
            limiter: limiter.clone(),
            metrics: *metrics,
            took_some: AtomicBool::new(false),
        };
        change(&mut inner);
        Queue { inner: Arc::new(inner) }
    }

    /// Its name in Redis.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The prefix of its keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// The server that holds it.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.inner.redis
    }

    /// Where its times come from.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// A connection for short commands; refused for a queue that cannot have a name in Redis.
    async fn connection(&self) -> Result<crate::redis::Connection, QueueError> {
        if self.inner.name.is_empty() || self.inner.name.chars().any(char::is_control) {
            return Err(QueueError::InvalidName);
        }
        Ok(self.inner.redis.connection().await?)
    }

    fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    fn publisher(&self) -> &str {
        &self.inner.publisher
    }

    fn limiter(&self) -> Option<&Limiter> {
        self.inner.limiter.as_ref()
    }

    fn metrics_kept(&self) -> u32 {
        self.inner.metrics
    }

    /// As Bull: an empty line is told once after the last job, not at every look.
    fn tells_drained(&self) -> bool {
        self.inner.took_some.load(Ordering::Relaxed)
    }

    fn took(&self, some: bool) {
        self.inner.took_some.store(some, Ordering::Relaxed);
    }
}
