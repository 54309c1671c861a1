//! Worker 2 of releases: copies from beta to one business server, or brings back what a release replaced there.
//!
//! Guarantees: a server has one worker at a time, over all processes, by a lease in the state store; different servers have
//! different ones, as many in a process as [`RELEASE_COPIES`] says. A server that fails fails the job, and no other server's.
//!
//! Safe to run again at any point: see [`crate::releases::worker2`]. Interrupted: the server goes back to `copying` at once; killed: its
//! lease runs out, and this job, or the look of worker 1 every minute, goes on.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::release::RELEASE_TIME_LIMIT;
use crate::clock::Clock;
use crate::config::{self, Reader, Setting};
use crate::queue::{Debounce, JobOptions, NewJob, Queue};
use crate::redis::Redis;
use crate::releases::settings as releases;
use crate::releases::settings::RELEASE_COPIES;
use crate::releases::worker2::Worked;
use crate::releases::{ReleaseError, Releases};
use crate::worker::{JobContext, JobKind, Outcome, RetryPolicy};

/// Longest wait before a server that another worker holds is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// The server; what is done there is decided by the state store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// The queue of worker 2, for whoever adds jobs to it.
#[derive(Clone, Debug)]
pub struct CopyQueue {
    queue: Queue,
    policy: RetryPolicy,
}

impl CopyQueue {
    /// In the Redis of the settings. `None` when that is not understood, which whoever connects tells.
    pub fn from_settings(reader: &Reader<'_>) -> Option<Self> {
        let redis = Redis::new(&reader.text(&config::REDIS_URL)).ok()?;
        let queue = Queue::new(redis, &reader.text(&config::QUEUE_PREFIX), ReleaseCopy::QUEUE, Clock::System);
        Some(CopyQueue { queue, policy: RetryPolicy::from_settings(reader) })
    }

    /// A job for each server that may be claimed, unless there is one already.
    ///
    /// # Errors
    /// When the state store or Redis fails.
    pub async fn add_what_waits(&self, releases: &Releases) -> Result<()> {
        for server in releases.ledger.claimable().await? {
            let data = serde_json::to_value(Payload { server: Some(server.clone()) })?;
            let debounce = Some(Debounce { id: format!("server-{server}"), ttl: None });
            let job = NewJob::unnamed(data, JobOptions { debounce, ..self.policy.options() });
            self.queue.add(&job).await.with_context(|| format!("adding the job for server `{server}`"))?;
        }
        Ok(())
    }
}

/// Worker 2.
#[derive(Debug)]
pub struct ReleaseCopy {
    /// `None` where no key is configured.
    releases: Option<Releases>,
    copies: Option<CopyQueue>,
    side_by_side: usize,
    time_limit: Duration,
}

#[async_trait::async_trait]
impl JobKind for ReleaseCopy {
    const NAME: &'static str = "release-copy";
    const QUEUE: &'static str = "Release copy queue";
    const SUMMARY: &'static str = "Copy a release from beta to one business server";
    const SETTINGS: &'static [&'static Setting] = &[&RELEASE_COPIES];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        reader.optional(&releases::RELEASE_SSH_KEY).is_some()
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        ReleaseCopy {
            releases: releases::releases(reader),
            copies: CopyQueue::from_settings(reader),
            side_by_side: usize::try_from(reader.integer(&RELEASE_COPIES, 1..=64)).unwrap_or(1),
            time_limit: reader.minutes(&RELEASE_TIME_LIMIT, 1..=10_080),
        }
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.time_limit)
    }

    fn side_by_side(&self) -> Option<usize> {
        Some(self.side_by_side)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(releases) = &self.releases else { return Ok(Outcome::Refuse(releases::NOT_CONFIGURED.to_owned())) };
        releases.ledger.prepare().await?;
        let server = match &ctx.payload.server {
            Some(server) => server.clone(),
            None => match releases.ledger.claimable().await?.into_iter().next() {
                Some(server) => server,
                None => return Ok(Outcome::Done(json!({"server": null}))),
            },
        };
        let outcome = match releases.work_at(&ctx.run, &server).await {
            Ok(Worked::Nothing) => return Ok(Outcome::Done(json!({"server": server, "done": "nothing to do"}))),
            Ok(Worked::Busy(ms)) => {
                let rest = Duration::from_millis(u64::try_from(ms).unwrap_or(0) + 100);
                return Ok(Outcome::Snooze(rest.min(LONGEST_WAIT)));
            }
            Ok(Worked::Done(done, state)) => Outcome::Done(json!({"server": server, "done": done, "release": state.word()})),
            Ok(Worked::Failed(problem, _)) => Outcome::Refuse(problem),
            // As itself: the worker tells an interrupted run from a failed one.
            Err(ReleaseError::Stopped(stopped)) => return Err(stopped.into()),
            // Whoever has it goes on; cancelled, there is nothing to go on with.
            Err(error @ ReleaseError::Lost(_)) => return Ok(Outcome::Refuse(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        if let Some(copies) = &self.copies {
            // The next wave. When this fails, worker 1 finds it within a minute.
            if let Err(error) = copies.add_what_waits(releases).await {
                ctx.run.warn(format!("the servers that come next are not begun yet: {error:#}"));
            }
        }
        Ok(outcome)
    }
}
