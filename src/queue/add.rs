//! Adding jobs, one or many (wire format §6.1).

use serde_json::Value;

use super::job::{NewJob, stored_data};
use super::options::Debounce;
use super::scripts::{Call, NO_MORE};
use super::{Queue, QueueError, keys, scripts};
use crate::clock::Millis;

/// Jobs added by one script: Redis serves nobody else meanwhile.
const BATCH: usize = 1000;
/// Bytes of data given to one script.
const BATCH_BYTES: usize = 8 << 20;

/// What became of an add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// A new job.
    New(String),
    /// A job with that custom id exists in some state, finished ones included; nothing was added.
    Duplicate(String),
    /// This job holds the debounce that was asked for; nothing was added.
    Debounced(String),
}

impl Added {
    /// Id of the job that now exists, new or not.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Added::New(id) | Added::Duplicate(id) | Added::Debounced(id) => id,
        }
    }
}

/// A job with its options written out: what the scripts are given.
pub(super) struct Stored {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: String,
    pub(super) opts: Value,
    pub(super) timestamp: Millis,
    pub(super) delay: Millis,
    pub(super) priority: u32,
    pub(super) lifo: bool,
    pub(super) debounce: Option<Debounce>,
}

impl Stored {
    fn new(job: &NewJob, now: Millis) -> Result<Self, QueueError> {
        let id = job.options.job_id.clone().unwrap_or_default();
        if job.options.job_id.is_some() {
            keys::check_new_id(&id)?;
        }
        Ok(Stored {
            id,
            name: job.name.clone(),
            data: stored_data(&job.data),
            opts: job.options.to_json(now),
            timestamp: job.options.timestamp.unwrap_or(now),
            delay: job.options.delay.max(0),
            priority: job.options.priority,
            lifo: job.options.lifo,
            debounce: job.options.debounce.clone().filter(|d| !d.id.is_empty()),
        })
    }

    /// For `queue`, whose limiter may go by group.
    pub(super) fn of(queue: &Queue, job: &NewJob, now: Millis) -> Result<Self, QueueError> {
        let mut stored = Stored::new(job, now)?;
        if let Some(limiter) = queue.limiter() {
            limiter.put_into_group(&mut stored, &job.data)?;
        }
        Ok(stored)
    }

    /// Appends the ten arguments of `insert` in `scripts/prelude.lua`.
    pub(super) fn append_to(&self, call: &mut Call) {
        call.arg(&self.id)
            .arg(&self.name)
            .arg(&self.data)
            .arg(self.opts.to_string())
            .arg(self.timestamp)
            .arg(self.delay)
            .arg(self.priority)
            .arg(u8::from(self.lifo))
            .arg(self.debounce.as_ref().map_or("", |d| &d.id))
            .arg(self.debounce.as_ref().and_then(Debounce::expiry).map(|ttl| ttl.to_string()).unwrap_or_default());
    }

    /// Roughly what it takes on the way.
    fn size(&self) -> usize {
        self.data.len() + 512
    }
}

impl Queue {
    /// Adds a job. When the connection breaks during the call, the job may have been added: give it an
    /// id of its own where running twice is not harmless.
    ///
    /// # Errors
    /// [`QueueError::InvalidId`], [`QueueError::WrongType`], or Redis's.
    pub async fn add(&self, job: &NewJob) -> Result<Added, QueueError> {
        let stored = Stored::of(self, job, self.clock().now())?;
        let mut added = self.insert(&[stored]).await?;
        added.pop().ok_or_else(|| QueueError::Answer("it names no job".into()))
    }

    /// Adds many jobs, in their order. All of them are looked at before the first is sent. Those of one batch, up
    /// to a thousand and [`BATCH_BYTES`], are added by one script: together, or not at all.
    ///
    /// # Errors
    /// As [`Queue::add`]. After an error of Redis's the batches before were added, and the one under way perhaps.
    pub async fn add_many(&self, jobs: &[NewJob]) -> Result<Vec<Added>, QueueError> {
        let now = self.clock().now();
        let all = jobs.iter().map(|job| Stored::of(self, job, now)).collect::<Result<Vec<_>, _>>()?;
        let mut added = Vec::with_capacity(all.len());
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take(BATCH).take_while(|job| {
                bytes += job.size();
                bytes <= BATCH_BYTES
            });
            let (batch, others) = rest.split_at(fitting.count().max(1));
            added.extend(self.insert(batch).await?);
            rest = others;
        }
        Ok(added)
    }

    async fn insert(&self, jobs: &[Stored]) -> Result<Vec<Added>, QueueError> {
        let mut call = self.call(&scripts::ADD, NO_MORE);
        for job in jobs {
            job.append_to(&mut call);
        }
        let id = jobs.first().map_or("", |job| &job.id);
        let answers = self.run(id, &call).await?.texts();
        Ok(answers
            .chunks_exact(2)
            .map(|pair| {
                let id = pair[1].clone();
                match pair[0].as_str() {
                    "1" => Added::New(id),
                    "0" => Added::Duplicate(id),
                    _ => Added::Debounced(id),
                }
            })
            .collect())
    }
}
