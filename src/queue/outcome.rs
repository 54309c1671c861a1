//! Waiting for what becomes of a job.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Added, Event, EventStream, NewJob, Queue, QueueError, State};

/// A message may be missed, so the job is looked at this often, too.
const LOOK: Duration = Duration::from_secs(5);
/// Before another subscription when one was cut.
const AGAIN: Duration = Duration::from_secs(1);
/// That a job is removed is told by nobody, but is cheap to ask.
const EXISTS: Duration = Duration::from_secs(1);
/// Longest wait, so that its end is a time that can be told.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is done.
    Completed {
        /// Its result; `null` when its handler returned nothing.
        value: Value,
    },
    /// It failed for good.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Queue {
    /// Waits until a job completes or fails for good, at most for `limit`: none then. A cut connection or a restart of Redis costs
    /// time, not the outcome.
    ///
    /// # Errors
    /// [`QueueError::Missing`] when there is no such job (any more): one that is removed as it ends has no outcome unless it is
    /// waited for before, as [`Queue::add_and_wait`] does. [`QueueError::InvalidId`], or Redis's for longer than the limit.
    pub async fn outcome(&self, id: &str, limit: Duration) -> Result<Option<Outcome>, QueueError> {
        super::keys::check_id(id)?;
        let events = self.events().await.ok();
        self.wait(id, events, Instant::now() + limit.min(LONGEST)).await
    }

    /// Adds a job and waits for its outcome, at most for `limit`: none then. Nothing is missed, even when the job is removed as it
    /// ends, unless the connection is cut meanwhile.
    ///
    /// # Errors
    /// As [`Queue::add`] and [`Queue::outcome`].
    pub async fn add_and_wait(&self, job: &NewJob, limit: Duration) -> Result<(Added, Option<Outcome>), QueueError> {
        let events = self.events().await?;
        let added = self.add(job).await?;
        let outcome = self.wait(added.id(), Some(events), Instant::now() + limit.min(LONGEST)).await?;
        Ok((added, outcome))
    }

    async fn wait(&self, id: &str, mut events: Option<EventStream>, end: Instant) -> Result<Option<Outcome>, QueueError> {
        let mut was_missing = false;
        loop {
            let mut pause = LOOK;
            let last = Instant::now() >= end;
            match self.look_for_outcome(id).await {
                Ok(Some(outcome)) => return Ok(Some(outcome)),
                Ok(None) if last => return Ok(None),
                Ok(None) => {}
                // Perhaps removed as it ended, and its message is on its way.
                Err(QueueError::Missing(_)) if !was_missing && !last && events.is_some() => {
                    (was_missing, pause) = (true, AGAIN);
                }
                Err(QueueError::Redis(_)) if !last => {}
                Err(error) => return Err(error),
            }
            let next_look = end.min(Instant::now() + pause);
            let heard = tokio::time::timeout_at(next_look, hear(events.as_mut(), id));
            let heard = tokio::select! {
                heard = heard => heard,
                () = self.vanishes(id), if !was_missing => continue,
            };
            match heard {
                Ok(Some(outcome)) => return Ok(Some(outcome)),
                Ok(None) => {
                    tokio::time::sleep_until(next_look.min(Instant::now() + AGAIN)).await;
                    events = self.events().await.ok();
                }
                Err(_) => {}
            }
        }
    }

    /// Returns when there is no job `id`.
    async fn vanishes(&self, id: &str) {
        loop {
            tokio::time::sleep(EXISTS).await;
            let Ok(mut connection) = self.connection().await else { continue };
            if let Ok(false) = redis::Cmd::exists(self.keys().job(id)).query_async::<bool>(&mut connection).await {
                return;
            }
        }
    }

    async fn look_for_outcome(&self, id: &str) -> Result<Option<Outcome>, QueueError> {
        let state = self.state(id).await?;
        if !matches!(state, Some(State::Completed | State::Failed)) {
            return if state.is_some() { Ok(None) } else { Err(QueueError::Missing(id.to_owned())) };
        }
        let job = self.job(id).await?.ok_or_else(|| QueueError::Missing(id.to_owned()))?;
        Ok(Some(match state {
            Some(State::Completed) => Outcome::Completed { value: job.return_value.unwrap_or_default() },
            _ => Outcome::Failed { reason: job.failed_reason.unwrap_or_default() },
        }))
    }
}

/// The outcome of `id` when it is told; none when nobody tells any more.
async fn hear(events: Option<&mut EventStream>, id: &str) -> Option<Outcome> {
    let events = events?;
    loop {
        match events.next().await? {
            Event::Completed { id: ended, value } if ended == id => {
                return Some(Outcome::Completed { value: value.unwrap_or_default() });
            }
            Event::Failed { id: ended, reason } if ended == id => return Some(Outcome::Failed { reason }),
            _ => {}
        }
    }
}
