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
//! - [`options`]: what a producer asks for, stored as `opts`
//! - [`job`]: a job as stored, and one to add
//! - `add` `take` `settle` `delayed` `stalled`: the life of a job
//! - `consumer`: runs jobs side by side, for programs that use this module as a library
//! - `repeat`: schedules · `operate`: what people do by hand · `clean`: removing many · `look`: counts, lists, states
//! - `tell` `events`: what runs tell, and what is published
//!
//! Not here yet: rate limits, metrics.

mod add;
mod clean;
mod consumer;
mod delayed;
mod error;
mod events;
pub mod job;
mod keys;
mod look;
mod operate;
pub mod options;
mod repeat;
mod scripts;
mod settle;
mod stalled;
mod take;
mod tell;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use add::Added;
pub use clean::Cleaned;
pub use consumer::{ActiveJob, Consumer, ConsumerOptions};
pub use error::QueueError;
pub use events::{Event, EventStream};
pub use job::{Job, NewJob};
pub use look::{Counts, State};
pub use operate::CancelOutcome;
pub use options::{Backoff, Debounce, JobOptions, Keep};
pub use repeat::{Armed, Repeat, RepeatEntry};
pub use settle::{Completed, Failed, Failure};
pub use stalled::StallCheck;
pub use take::{Admission, Renewed, Taken};

use crate::clock::Clock;
use crate::identity;
use crate::redis::Redis;
use keys::Keys;

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
                took_some: AtomicBool::new(false),
            }),
        }
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

    fn took_some(&self) -> &AtomicBool {
        &self.inner.took_some
    }
}
