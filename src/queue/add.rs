//! Adding jobs (wire format §6.1).

use redis::ScriptInvocation;
use serde_json::Value;

use super::job::{NewJob, stored_data};
use super::{Queue, QueueError, keys, scripts};
use crate::clock::Millis;

/// What became of an add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// A new job.
    New(String),
    /// A job with that custom id exists in some state, finished ones included; nothing was added.
    Duplicate(String),
}

impl Added {
    /// Id of the job that now exists, new or not.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Added::New(id) | Added::Duplicate(id) => id,
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
}

impl Stored {
    pub(super) fn new(job: &NewJob, now: Millis) -> Result<Self, QueueError> {
        let id = job.options.job_id.clone().unwrap_or_default();
        if job.options.job_id.is_some() {
            keys::check_id(&id)?;
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
        })
    }

    /// Appends the eight arguments of `insert` in `scripts/prelude.lua`.
    pub(super) fn append_to(&self, call: &mut ScriptInvocation<'_>) {
        call.arg(&self.id)
            .arg(&self.name)
            .arg(&self.data)
            .arg(self.opts.to_string())
            .arg(self.timestamp)
            .arg(self.delay)
            .arg(self.priority)
            .arg(u8::from(self.lifo));
    }
}

impl Queue {
    /// Adds a job. When the connection breaks during the call, the job may have been added: give it an
    /// id of its own where running twice is not harmless.
    ///
    /// # Errors
    /// [`QueueError::InvalidId`], [`QueueError::WrongType`], or Redis's.
    pub async fn add(&self, job: &NewJob) -> Result<Added, QueueError> {
        let stored = Stored::new(job, self.clock().now())?;
        let mut call = self.call(&scripts::ADD);
        stored.append_to(&mut call);
        let mut answer = self.run(&stored.id, &call).await?;
        let id = answer.text()?;
        Ok(if answer.code == 1 { Added::New(id) } else { Added::Duplicate(id) })
    }
}
