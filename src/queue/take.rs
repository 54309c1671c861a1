//! Taking a job, and keeping it (wire format §6.4, §6.5).

use std::time::Duration;

use redis::Value;
use serde_json::json;

use super::job::Job;
use super::scripts::{Answer, NO_MORE};
use super::{Queue, QueueError, scripts};

/// Whether a job may be taken while another one is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Only when nothing is active, over all processes: the queue runs one job at a time.
    Sequential,
    /// In any case.
    Any,
}

/// What a look at the line brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// A job, active and locked now.
    Job(Box<Job>),
    /// Nothing waits, or the queue is paused.
    Empty,
    /// Something waits, but another job is active.
    Busy,
    /// Something waits, but no run may begin before that time has passed.
    Limited(Duration),
}

/// Whether the run still owns its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It does, for another lock period.
    Held,
    /// It does, but somebody, named here, ordered to cancel the job.
    HeldButCancelRequested(String),
    /// It does not; the run must stop without touching anything more.
    Lost,
}

/// A run that is done, and the one after it.
pub(super) struct Turn<'a> {
    pub(super) job: &'a Job,
    pub(super) token: &'a str,
    /// As JSON.
    pub(super) result: &'a str,
    /// Token of the run after it.
    pub(super) next: &'a str,
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

impl Queue {
    /// Takes the next job for the run that `token` names, and locks it. Does not wait. A lock of less than a millisecond, here and
    /// in [`Queue::renew`], counts as one, and of more than 2^52 as that.
    ///
    /// When the connection breaks during the call, the job may have been taken: it comes back when
    /// its lock has run out ([`Queue::recover_stalled`]).
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn take(&self, token: &str, lock: Duration, admission: Admission) -> Result<Taken, QueueError> {
        if let Some(limiter) = self.limiter() {
            return self.take_limited(limiter, token, lock, admission, None).await;
        }
        loop {
            let mut call = self.call(&scripts::TAKE, NO_MORE);
            call.arg(token)
                .arg(milliseconds(lock))
                .arg(u8::from(admission == Admission::Sequential))
                .arg(u8::from(self.tells_drained()));
            let answer = self.run("", &call).await?;
            // A thousand ids without a job were dropped.
            if answer.code == 3 {
                continue;
            }
            return self.looked(answer).await;
        }
    }

    /// What a script that takes one job answered.
    pub(super) async fn looked(&self, mut answer: Answer) -> Result<Taken, QueueError> {
        match answer.code {
            1 => Ok(Taken::Busy),
            2 => {
                let id = answer.bytes()?;
                self.taken(id, answer.values().next().unwrap_or(Value::Nil)).await
            }
            4 => Ok(Taken::Limited(Duration::from_millis(u64::try_from(answer.number()?).unwrap_or(1)))),
            _ => self.nothing_taken(),
        }
    }

    async fn taken(&self, id: Vec<u8>, fields: Value) -> Result<Taken, QueueError> {
        self.took(true);
        match String::from_utf8(id) {
            Ok(id) => match Job::from_fields(&id, fields) {
                Some(job) => Ok(Taken::Job(Box::new(job))),
                None => Err(QueueError::Missing(id)),
            },
            Err(error) => {
                self.set_aside(error.as_bytes()).await?;
                Ok(Taken::Empty)
            }
        }
    }

    fn nothing_taken(&self) -> Result<Taken, QueueError> {
        self.took(false);
        Ok(Taken::Empty)
    }

    /// Fails a job in `active` whose id is no UTF-8, so that no program can name it: it would stall again and again.
    pub(super) async fn set_aside(&self, id: &[u8]) -> Result<(), QueueError> {
        const REASON: &str = "the job's id is no UTF-8 text, so it cannot be run";
        tracing::error!("Failed job in {}: {} {REASON}", self.name(), String::from_utf8_lossy(id).escape_debug());
        let job = [self.keys().base().as_bytes(), id].concat();
        let lock = [job.as_slice(), b":lock"].concat();
        let now = self.clock().now();
        let mut pipe = redis::pipe();
        pipe.atomic().lrem(self.keys().of("active"), -1, id).del(lock);
        pipe.hset(&job, "failedReason", REASON).hset(&job, "finishedOn", now).zadd(self.keys().of("failed"), id, now);
        pipe.query_async::<Value>(&mut self.connection().await?).await?;
        Ok(())
    }

    /// Locks `id`, which a blocking move brought to `active`. Empty: somebody else has it, or it is no job.
    pub(super) async fn claim(&self, id: &str, token: &str, lock: Duration) -> Result<Taken, QueueError> {
        if let Some(limiter) = self.limiter() {
            return self.take_limited(limiter, token, lock, Admission::Any, Some(id)).await;
        }
        let mut call = self.call(&scripts::CLAIM, &[self.keys().job(id), self.keys().lock(id), self.keys().of("paused")]);
        call.arg(id).arg(token).arg(milliseconds(lock));
        self.looked(self.run(id, &call).await?).await
    }

    /// Completes `job` as [`Queue::complete`] does and takes the next one in the same step, for the run `next`.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn complete_and_take(
        &self,
        job: &Job,
        token: &str,
        value: &serde_json::Value,
        next: &str,
        lock: Duration,
    ) -> Result<Taken, QueueError> {
        if !self.takes_in_turn() {
            self.complete(job, token, value, None).await?;
            // Whatever went wrong here will go wrong at the next look, too; the job is completed.
            return Ok(self.take(next, lock, Admission::Any).await.unwrap_or(Taken::Empty));
        }
        let turn = Turn { job, token, result: &value.to_string(), next };
        self.turn_over(&[turn], lock).await?.pop().unwrap_or(Ok(Taken::Empty))
    }

    /// Completes the jobs of several runs and takes as many others, in one step. An answer for each, in their order; the error is
    /// for all of them. Neither limits nor counts: see [`Queue::takes_in_turn`].
    pub(super) async fn turn_over(
        &self,
        turns: &[Turn<'_>],
        lock: Duration,
    ) -> Result<Vec<Result<Taken, QueueError>>, QueueError> {
        let keys: Vec<String> = turns.iter().flat_map(|turn| self.keys().of_run(&turn.job.id)).collect();
        let mut call = self.call(&scripts::COMPLETE_AND_TAKE, &keys);
        call.arg(milliseconds(lock));
        for Turn { job, token, result, next } in turns {
            let (count, age) = job.keep_completed().limits();
            call.arg(&job.id).arg(*token).arg(*result).arg(json!({"jobId": job.id, "val": result}).to_string());
            call.arg(count).arg(age).arg(job.debounce.as_deref().unwrap_or_default()).arg(*next);
        }
        let id = turns.first().map_or("", |turn| &turn.job.id);
        let mut answers = self.run(id, &call).await?.values();
        let mut turned = Vec::with_capacity(turns.len());
        for turn in turns {
            turned.push(match answers.next() {
                Some(Value::BulkString(id)) => Ok(Some(id)),
                Some(Value::Int(code)) => scripts::refused(code, &turn.job.id).map_or(Ok(None), Err),
                other => Err(QueueError::Answer(format!("{other:?} instead of an id"))),
            });
        }
        let mut all = Vec::with_capacity(turns.len());
        for turned in turned {
            all.push(match turned {
                Ok(Some(id)) => self.taken(id, answers.next().unwrap_or(Value::Nil)).await,
                Ok(None) => self.nothing_taken(),
                Err(error) => Err(error),
            });
        }
        Ok(all)
    }

    /// Whether [`Queue::turn_over`] may be used: limits and minutes to count in belong to steps of their own.
    pub(super) fn takes_in_turn(&self) -> bool {
        self.limiter().is_none() && self.metrics_kept() == 0
    }

    /// Keeps the job for another `lock`, and learns whether it is to be cancelled.
    ///
    /// # Errors
    /// Redis's. They do not mean that the lock is lost: try again until it must have run out.
    pub async fn renew(&self, id: &str, token: &str, lock: Duration) -> Result<Renewed, QueueError> {
        let mut call = self.call(&scripts::RENEW, &[self.keys().lock(id), self.keys().cancel(id), self.keys().of("failed")]);
        call.arg(id).arg(token).arg(milliseconds(lock));
        let mut answer = self.run(id, &call).await?;
        Ok(match answer.code {
            0 => Renewed::Lost,
            2 => Renewed::HeldButCancelRequested(answer.text()?),
            _ => Renewed::Held,
        })
    }
}
