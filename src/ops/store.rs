//! The queues as an operator addresses them: by name, in one Redis, under one prefix.

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::{self, Reader};
pub use crate::queue::{CancelOutcome, Counts, Job, State};
use crate::queue::{JobOptions, NewJob, Queue};
use crate::redis::{Redis, RedisError};
use crate::worker::{Declaration, RetryPolicy};

/// What is wrong with an address, without the name of the setting: whoever tells it knows where it came from.
fn without_setting(error: &RedisError) -> String {
    match error {
        RedisError::Url(problem) => problem.clone(),
        other => other.to_string(),
    }
}

/// Why there is no connection, and a doubt that the words alone would not raise: a server of another
/// sort hangs up, or answers what no Redis does.
pub(super) fn told(error: &RedisError) -> String {
    let text = error.to_string();
    let lower = text.to_lowercase();
    let hung_up = ["broken pipe", "reset by peer", "unexpected end", "protocol"].iter().any(|word| lower.contains(word));
    if hung_up { format!("{text}; is what listens there a Redis?") } else { text }
}

/// The queue store.
#[derive(Clone, Debug)]
pub struct Store {
    redis: Redis,
    prefix: String,
    /// What to correct when there is no connection.
    way_out: &'static str,
}

impl Store {
    /// The store that `REDIS_URL` and `QUEUE_PREFIX` name. Nothing is connected.
    pub fn from_settings(reader: &Reader<'_>) -> Option<Self> {
        let prefix = reader.text(&config::QUEUE_PREFIX);
        match Redis::new(&reader.text(&config::REDIS_URL)) {
            Ok(redis) => Some(Store { redis, prefix, way_out: "start Redis, or set REDIS_URL" }),
            Err(error) => {
                reader.problem(config::REDIS_URL.name, without_setting(&error));
                None
            }
        }
    }

    /// The store at `url` under `prefix`.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn at(url: &str, prefix: &str) -> anyhow::Result<Self> {
        let redis = Redis::new(url).map_err(|error| anyhow!("the address {}", without_setting(&error)))?;
        Ok(Store { redis, prefix: prefix.to_owned(), way_out: "start Redis, or correct the address" })
    }

    /// The URL without password.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.redis.shown()
    }

    /// The Redis behind it.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// The queue called `name`.
    #[must_use]
    pub fn queue(&self, name: &str) -> Queue {
        Queue::new(self.redis.clone(), &self.prefix, name, Clock::System)
    }

    /// Fails with what to do when Redis does not answer.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn check(&self) -> anyhow::Result<()> {
        let connection = self.redis.connection().await;
        let mut connection = connection.map_err(|error| anyhow!("{}: {}", self.way_out, told(&error)))?;
        redis::cmd("PING")
            .query_async::<()>(&mut connection)
            .await
            .map_err(crate::redis::RedisError::from)
            .with_context(|| format!("asking Redis at {}", self.shown()))
    }

    /// Adds one empty job with the standard options, as the scheduler does; returns its id.
    ///
    /// # Errors
    /// When Redis does not take it.
    pub async fn restart(&self, kind: &Declaration, policy: &RetryPolicy) -> anyhow::Result<String> {
        self.add(kind, policy, json!({})).await
    }

    /// The same for a job with data.
    ///
    /// # Errors
    /// When Redis does not take it.
    pub async fn add(&self, kind: &Declaration, policy: &RetryPolicy, data: Value) -> anyhow::Result<String> {
        self.add_with(kind, policy.options(), data).await
    }

    /// The same with options of its own. With an id of its own that a job has already, nothing is added.
    ///
    /// # Errors
    /// When Redis does not take it.
    pub async fn add_with(&self, kind: &Declaration, options: JobOptions, data: Value) -> anyhow::Result<String> {
        let added = self.queue(kind.queue).add(&NewJob::unnamed(data, options)).await?;
        Ok(added.id().to_owned())
    }

    /// How many jobs are in which state.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn counts(&self, queue: &str) -> anyhow::Result<Counts> {
        Ok(self.queue(queue).counts().await?)
    }

    /// The jobs in `state`, from `start` to `end` (both included) in Bull's order for that state.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn list(&self, queue: &str, state: State, start: isize, end: isize) -> anyhow::Result<Vec<Job>> {
        let ascending = !matches!(state, State::Completed | State::Failed);
        Ok(self.queue(queue).jobs(&[state], start, end, ascending).await?)
    }

    /// One job with its state.
    ///
    /// # Errors
    /// When there is no such job, or Redis does not answer.
    pub async fn job(&self, queue: &str, id: &str) -> anyhow::Result<(Job, Option<State>)> {
        let handle = self.queue(queue);
        let Some(job) = handle.job(id).await? else { bail!("queue `{queue}` has no job `{id}`") };
        Ok((job, handle.state(id).await?))
    }

    /// The job's log lines, oldest first.
    ///
    /// # Errors
    /// When there is no such job, or Redis does not answer.
    pub async fn logs(&self, queue: &str, id: &str) -> anyhow::Result<Vec<String>> {
        self.job(queue, id).await?;
        Ok(self.queue(queue).logs(id, 0, -1).await?)
    }

    /// Puts a failed job back to wait; a completed one only when `completed` says so, because its
    /// successor would be added a second time.
    ///
    /// # Errors
    /// When the job is not finished, or Redis does not answer.
    pub async fn retry(&self, queue: &str, id: &str, completed: bool) -> anyhow::Result<()> {
        if self.job(queue, id).await?.1 == Some(State::Completed) && !completed {
            bail!(
                "job `{id}` of `{queue}` is completed, not failed; `bullwork restart:KIND` adds a new job, `retry {id} --completed` runs this one again"
            );
        }
        self.queue(queue).retry(id).await.with_context(|| format!("retrying job `{id}` of `{queue}`"))
    }

    /// Puts all failed jobs back to wait; returns how many.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn retry_all_failed(&self, queue: &str) -> anyhow::Result<u64> {
        Ok(self.queue(queue).retry_all_failed().await?)
    }

    /// Lets a delayed job run now.
    ///
    /// # Errors
    /// When the job is not delayed, or Redis does not answer.
    pub async fn promote(&self, queue: &str, id: &str) -> anyhow::Result<()> {
        self.job(queue, id).await?;
        self.queue(queue).promote(id).await.with_context(|| format!("promoting job `{id}` of `{queue}`"))
    }

    /// Removes a job that is not running.
    ///
    /// # Errors
    /// When the job runs, is not there, or Redis does not answer.
    pub async fn remove(&self, queue: &str, id: &str) -> anyhow::Result<()> {
        self.job(queue, id).await?;
        self.queue(queue).remove(id).await.with_context(|| format!("removing job `{id}` of `{queue}`"))
    }

    /// Cancels a job: a running one is told to stop, any other that is not finished fails at once.
    ///
    /// # Errors
    /// When the job is finished already, is not there, or Redis does not answer.
    pub async fn cancel(&self, queue: &str, id: &str, by: &str) -> anyhow::Result<CancelOutcome> {
        self.job(queue, id).await?;
        self.queue(queue).request_cancel(id, by).await.with_context(|| format!("cancelling job `{id}` of `{queue}`"))
    }

    /// Stops new jobs from being taken, in all processes.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn pause(&self, queue: &str) -> anyhow::Result<()> {
        Ok(self.queue(queue).pause().await?)
    }

    /// Lets jobs be taken again.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn resume(&self, queue: &str) -> anyhow::Result<()> {
        Ok(self.queue(queue).resume().await?)
    }
}
