//! Ends of a run: completed, failed, handed back, put off (wire format §6.6, §6.7).
//!
//! Each is one script that does nothing unless the token owns the job's lock and the job is
//! active, so a run whose job was taken again can do no harm. When the connection breaks during
//! a call, the job may have been settled; a second call then answers [`QueueError::LockLost`] or
//! [`QueueError::Missing`].

use std::time::Duration;

use serde_json::{Value, json};

use super::add::Stored;
use super::job::{Job, NewJob};
use super::scripts::{Call, Script};
use super::take::milliseconds;
use super::{Queue, QueueError, delayed, options, scripts};
use crate::clock::Millis;

/// What completing brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Id of the successor, when there was one to add.
    pub successor: Option<String>,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The message people see.
    pub reason: String,
    /// Where it happened; not stored when empty.
    pub stacktrace: String,
    /// Whether to use the tries that are left.
    pub retry: bool,
}

impl Failure {
    /// With a reason, to be tried again as the job's options say.
    #[must_use]
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Failure { reason: reason.to_string(), stacktrace: String::new(), retry: true }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(error)
    }
}

/// What a failed attempt led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// No tries are left, or none wanted.
    Final,
    /// It runs again after its back-off.
    Delayed {
        /// When it is due.
        until: Millis,
    },
    /// It waits already.
    Requeued,
}

impl Queue {
    fn settle(&self, script: &'static Script, job: &Job, token: &str) -> Call {
        let mut call = self.call(script, &self.keys().of_run(&job.id));
        call.arg(&job.id).arg(token);
        call
    }

    /// Completes the job with its result and adds its successor, both or neither.
    ///
    /// # Errors
    /// [`QueueError::LockLost`], [`QueueError::NotActive`], [`QueueError::Missing`]: it is not this run's
    /// any more. [`QueueError::InvalidId`] of the successor, [`QueueError::WrongType`], or Redis's.
    pub async fn complete(
        &self,
        job: &Job,
        token: &str,
        value: &Value,
        then: Option<(&Queue, &NewJob)>,
    ) -> Result<Completed, QueueError> {
        let successor = match then {
            Some((queue, next)) => Some((queue, Stored::of(queue, next, self.clock().now())?)),
            None => None,
        };
        let result = value.to_string();
        let (count, age) = job.keep_completed().limits();
        let mut keys = self.keys().of_run(&job.id).to_vec();
        if let Some((queue, _)) = &successor {
            keys.extend_from_slice(queue.keys().block());
        }
        let mut call = self.call(&scripts::COMPLETE, &keys);
        call.arg(&job.id)
            .arg(token)
            .arg(&result)
            .arg(json!({"jobId": job.id, "val": result}).to_string())
            .arg(count)
            .arg(age)
            .arg(self.metrics_kept());
        if let Some((queue, stored)) = &successor {
            call.arg(queue.keys().base()).arg(queue.publisher());
            stored.append_to(&mut call);
        }
        let mut answer = self.run(&job.id, &call).await?;
        Ok(Completed { successor: if answer.code == 0 { None } else { Some(answer.text()?) } })
    }

    /// Counts the attempt as failed; the job runs again as its options say, or is failed for good.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn fail(&self, job: &Job, token: &str, failure: &Failure) -> Result<Failed, QueueError> {
        let made = job.attempts_made.saturating_add(1);
        let wait = job.backoff(made);
        let until = self.clock().now().saturating_add(wait);
        let next = match (failure.retry && made < job.attempts(), wait > 0) {
            (false, _) => "final",
            (true, true) => "delay",
            (true, false) => "now",
        };
        let (count, age) = job.keep_failed().limits();
        let mut call = self.settle(&scripts::FAIL, job, token);
        call.arg(made)
            .arg(json!(traces(job, failure)).to_string())
            .arg(&failure.reason)
            .arg(json!({"jobId": job.id, "val": failure.reason}).to_string())
            .arg(next)
            .arg(until)
            .arg(delayed::low_bits(&job.id))
            .arg(u8::from(job.lifo()))
            .arg(count)
            .arg(age)
            .arg(self.metrics_kept());
        Ok(match self.run(&job.id, &call).await?.code {
            0 => Failed::Final,
            1 => Failed::Delayed { until },
            _ => Failed::Requeued,
        })
    }

    /// Gives back the job of an interrupted run: it is taken next, and the attempt does not count.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn hand_back(&self, job: &Job, token: &str) -> Result<(), QueueError> {
        self.run(&job.id, &self.settle(&scripts::HAND_BACK, job, token)).await?;
        Ok(())
    }

    /// Puts the job off for `wait`; the attempt does not count.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn snooze(&self, job: &Job, token: &str, wait: Duration) -> Result<(), QueueError> {
        let until = self.clock().now().saturating_add(milliseconds(wait) as Millis);
        let mut call = self.settle(&scripts::SNOOZE, job, token);
        call.arg(until).arg(delayed::low_bits(&job.id));
        self.run(&job.id, &call).await?;
        Ok(())
    }
}

/// The job's stack traces with the new one, the newest as many as it wants to keep.
fn traces(job: &Job, failure: &Failure) -> Vec<String> {
    let mut all = job.stacktrace.clone();
    if !failure.stacktrace.is_empty() {
        all.push(failure.stacktrace.clone());
    }
    if let Some(limit) = options::whole(job.opts.get("stackTraceLimit")).filter(|n| *n > 0) {
        let surplus = all.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        all.drain(..surplus);
    }
    all
}
