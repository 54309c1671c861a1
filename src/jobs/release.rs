//! Worker 1 of releases: takes the unfinished release as far as worker 1 can, and adds the jobs of worker 2.
//!
//! Guarantees: each step is a compare-and-set in the state store, so a job too many does nothing; one worker 1 works at a time, over
//! all processes. Results name the release and its state; a release that fails fails the job, too.
//!
//! Safe to run again at any point: see [`crate::releases::worker1`] for what each step does then. By schedule it looks every minute,
//! so that a release goes on although its job was lost with a process or with Redis.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::release_copy::CopyQueue;
use crate::config::{Reader, Setting};
use crate::identity;
use crate::releases::settings as releases;
use crate::releases::worker1::Stands;
use crate::releases::{ReleaseError, Releases};
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs by itself.
pub static RELEASE_SCHEDULE: Setting = Setting::new(
    "RELEASE_SCHEDULE",
    "When an unfinished release is looked at by itself, as a cron expression, where RELEASE_SSH_KEY is set; `never` leaves it to the verbs of `bullwork release`.",
)
.default("* * * * *");
/// Patience.
pub static RELEASE_TIME_LIMIT: Setting = Setting::new(
    "RELEASE_TIME_LIMIT",
    "Minutes after which one run of worker 1, or of worker 2 at one server, counts as failed, 1 to 10080.",
)
.default("1440");

/// While another process is worker 1.
const AGAIN: Duration = Duration::from_secs(3);

/// The job's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// The release that somebody had in mind; what is done is decided by the state store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<i64>,
}

/// Worker 1.
#[derive(Debug)]
pub struct ReleaseKind {
    /// `None` where no key is configured.
    releases: Option<Releases>,
    copies: Option<CopyQueue>,
    schedule: Option<Schedule>,
    time_limit: Duration,
}

#[async_trait::async_trait]
impl JobKind for ReleaseKind {
    const NAME: &'static str = "release";
    const QUEUE: &'static str = "Release queue";
    const SUMMARY: &'static str = "Bring a release to beta, and archive before production";
    const SETTINGS: &'static [&'static Setting] = &[
        &releases::RELEASE_SSH_KEY,
        &releases::RELEASE_KNOWN_HOSTS,
        &releases::RELEASE_STATE_FILE,
        &crate::state::STATE_DATABASE_URL,
        &releases::RELEASE_SPOOL,
        &releases::RELEASE_TRANSPORT,
        &releases::RELEASE_BETA_KEY,
        &releases::RELEASE_BETA_KNOWN_HOSTS,
        &releases::RELEASE_SSH_TIMEOUT,
        &releases::RELEASE_IO_TIMEOUT,
        &releases::RELEASE_LEASE_SECONDS,
        &releases::RELEASE_BACKUP,
        &releases::RELEASE_OWNERSHIP,
        &releases::RELEASE_BEFORE_SWITCH,
        &releases::RELEASE_AFTER_SWITCH,
        &RELEASE_SCHEDULE,
        &RELEASE_TIME_LIMIT,
    ];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        reader.optional(&releases::RELEASE_SSH_KEY).is_some()
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        let releases = releases::releases(reader);
        let schedule = if releases.is_some() { Schedule::unless_never(reader, &RELEASE_SCHEDULE) } else { None };
        let time_limit = reader.minutes(&RELEASE_TIME_LIMIT, 1..=10_080);
        ReleaseKind { releases, copies: CopyQueue::from_settings(reader), schedule, time_limit }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.time_limit)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(releases) = &self.releases else { return Ok(Outcome::Refuse(releases::NOT_CONFIGURED.to_owned())) };
        releases.ledger.prepare().await?;
        let Some(lock) = releases.ledger.worker1().await? else { return Ok(Outcome::Snooze(AGAIN)) };
        let actor = format!("worker-1 {}-{}", identity::host(), std::process::id());
        let lost = lock.lost();
        let stands = tokio::select! {
            stands = releases.advance(&ctx.run, &actor) => stands,
            () = lost.cancelled() => anyhow::bail!("the session that keeps other workers 1 away ended"),
        };
        drop(lock);
        let stands = match stands {
            Ok(stands) => stands,
            // As itself: the worker tells an interrupted run from a failed one.
            Err(ReleaseError::Stopped(stopped)) => return Err(stopped.into()),
            Err(error) => return Err(error.into()),
        };
        if let Some(copies) = &self.copies {
            copies.add_what_waits(releases).await?;
        }
        Ok(match stands {
            Stands::Nowhere => Outcome::Done(json!({"release": null})),
            Stands::At(id, state) => Outcome::Done(json!({"release": id, "state": state.word()})),
            Stands::Failed(id, state, problem) => Outcome::Refuse(format!("release {id} is {state}: {problem}")),
        })
    }
}
