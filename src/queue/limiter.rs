//! The rate limit of a queue (wire format §6.13).
//!
//! It is kept in Redis, in the keys that Bull uses, so it holds over all workers that are given the same one, Bull's too. A worker
//! that is given none pays no heed to it.

use serde_json::Value;

use super::add::Stored;
use super::scripts::Call;
use super::{Admission, Queue, QueueError, Taken, milliseconds, scripts};
use crate::identity;

/// How many runs may begin in a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limiter {
    /// Runs. 0 counts as 1; to let none begin, pause the queue.
    pub max: u64,
    /// The time, which begins with the first of them. Less than a millisecond counts as one, more than 2^52 as that.
    pub duration: std::time::Duration,
    /// Path into a job's data, such as `customer.id`: each value found there has a limit of its own, and its jobs that have to
    /// wait are put off, so that those of others overtake them. The producer needs the same path: the value becomes the end of the
    /// job's id. Without one, jobs that have to wait stay where they are in the line.
    pub group_key: Option<String>,
    /// By group: jobs that have to wait stay in the line, and all others with them.
    pub bounce_back: bool,
}

impl Limiter {
    /// `max` runs in `duration`.
    #[must_use]
    pub fn new(max: u64, duration: std::time::Duration) -> Self {
        Limiter { max, duration, group_key: None, bounce_back: false }
    }

    /// As Bull: a job's group is what follows the last `:` of its id.
    pub(super) fn put_into_group(&self, job: &mut Stored, data: &Value) -> Result<(), QueueError> {
        let Some(path) = &self.group_key else { return Ok(()) };
        let found = path.split('.').try_fold(data, |data, member| match data {
            Value::Array(list) => list.get(member.parse::<usize>().ok()?),
            other => other.get(member),
        });
        let group = match found {
            Some(Value::String(group)) if !group.is_empty() => group.clone(),
            Some(group @ (Value::Number(_) | Value::Bool(true))) => group.to_string(),
            _ => return Ok(()),
        };
        let own = if job.id.is_empty() { identity::new_uuid() } else { std::mem::take(&mut job.id) };
        job.id = format!("{own}:{group}");
        job.opts["jobId"] = Value::String(job.id.clone());
        super::keys::check_new_id(&job.id)
    }
}

impl Queue {
    /// Takes a job, or claims the one that a blocking move brought to `active`, as the limiter allows.
    pub(super) async fn take_limited(
        &self,
        limiter: &Limiter,
        token: &str,
        lock: std::time::Duration,
        admission: Admission,
        claimed: Option<&str>,
    ) -> Result<Taken, QueueError> {
        loop {
            let mut call: Call = self.call(&scripts::TAKE_LIMITED, &[self.keys().of("limiter"), self.keys().of("limiter:index")]);
            call.arg(token)
                .arg(milliseconds(lock))
                .arg(u8::from(admission == Admission::Sequential))
                .arg(u8::from(self.tells_drained()))
                .arg(claimed.unwrap_or_default())
                .arg(limiter.max.max(1))
                .arg(milliseconds(limiter.duration))
                .arg(u8::from(limiter.group_key.is_some()))
                .arg(u8::from(limiter.bounce_back));
            let answer = self.run(claimed.unwrap_or_default(), &call).await?;
            if answer.code != 3 {
                return self.looked(answer).await;
            }
        }
    }
}
