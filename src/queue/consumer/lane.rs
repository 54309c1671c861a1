//! Runs one job after the other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{ActiveJob, Running, Shared};
use crate::queue::{Admission, Failure, Job, QueueError, Repeat, State, Taken};
use crate::redis::RedisError;
use crate::{cron, identity};

/// Between two tries to settle a job while Redis is away.
const SETTLE_AGAIN: Duration = Duration::from_millis(500);

/// Characters that stay of a reason that is too large to be stored.
const SHORT_REASON: usize = 1000;

/// How a handler ended.
enum End {
    Done(Value),
    Failed(Failure),
    /// Somebody cancelled the job.
    Cancelled(String),
    /// The job is not this run's any more.
    Lost,
    /// The consumer stops.
    Abandoned,
}

/// Runs `job`, then whatever is next, until nothing waits. The slot is free again afterwards.
pub(super) async fn run(shared: Arc<Shared>, job: Job, token: String, slot: OwnedSemaphorePermit) {
    let mut current = Some((job, token));
    while let Some((job, token)) = current {
        current = one(&shared, job, token).await;
    }
    drop(slot);
}

async fn one(shared: &Shared, job: Job, token: String) -> Option<(Job, String)> {
    arm_next(shared, &job).await;
    let lost = CancellationToken::new();
    let running = Running { id: job.id.clone(), lost: lost.clone(), cancelled_by: None };
    shared.running().insert(token.clone(), running);
    let job = Arc::new(job);
    let active = ActiveJob { job: Arc::clone(&job), queue: shared.queue.clone(), lost: lost.clone() };
    let end = handle(shared, active, &token, &lost).await;
    // Its lock is renewed until it is settled.
    let next = settle(shared, &job, &token, end).await;
    shared.running().remove(&token);
    next
}

async fn handle(shared: &Shared, active: ActiveJob, token: &str, lost: &CancellationToken) -> End {
    if let Some(error) = &active.data_error {
        return End::Failed(Failure { retry: false, ..Failure::new(error) });
    }
    let limit = active.timeout().map(Duration::from_millis);
    let handling = AssertUnwindSafe(async { (shared.handler)(active).await }).catch_unwind();
    let late = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        ended = handling => match ended {
            Ok(Ok(value)) => End::Done(value),
            Ok(Err(failure)) => End::Failed(failure),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
                End::Failed(Failure::new(format!("the handler panicked: {}", text.unwrap_or("without a text"))))
            }
        },
        () = late => End::Failed(Failure::new(format!("Promise timed out after {} milliseconds", limit.unwrap_or_default().as_millis()))),
        () = lost.cancelled() => match shared.running().get_mut(token).and_then(|run| run.cancelled_by.take()) {
            Some(by) => End::Cancelled(by),
            None => End::Lost,
        },
        () = shared.abandon.cancelled() => End::Abandoned,
    }
}

/// Tells Redis how the run ended, again and again while Redis is away, until the lock must have run out. The next job and
/// its token, when one was taken.
async fn settle(shared: &Shared, job: &Arc<Job>, token: &str, mut end: End) -> Option<(Job, String)> {
    let queue = &shared.queue;
    let started = Instant::now();
    let next = identity::new_token();
    loop {
        let settled = match &end {
            End::Done(value) if shared.quiet.is_cancelled() => {
                queue.complete(job, token, value, None).await.map(|_| Taken::Empty)
            }
            End::Done(value) if queue.takes_in_turn() => shared.turns.take(job, token, value.to_string(), &next).await,
            End::Done(value) => queue.complete_and_take(job, token, value, &next, shared.options.lock).await,
            End::Failed(failure) => queue.fail(job, token, failure).await.map(|_| Taken::Empty),
            End::Cancelled(by) => {
                let failure = Failure { retry: false, ..Failure::new(format!("cancelled by {by}")) };
                queue.fail(job, token, &failure).await.map(|_| Taken::Empty)
            }
            End::Abandoned => queue.hand_back(job, token).await.map(|()| Taken::Empty),
            End::Lost => {
                let place = match queue.state(&job.id).await {
                    Ok(None) => "is gone: somebody deleted it;".to_owned(),
                    Ok(Some(State::Active)) => "is another worker's now:".to_owned(),
                    Ok(Some(ended @ (State::Completed | State::Failed))) => format!("is {ended} already:"),
                    Ok(Some(state)) => format!("is {state} again:"),
                    Err(_) => "is not this run's any more:".to_owned(),
                };
                tracing::warn!("job {} in {} {place} its run was dropped", job.id, queue.name());
                return None;
            }
        };
        match settled {
            Ok(Taken::Job(job)) => return Some((*job, next)),
            Ok(_) => break,
            // It would be refused again and again.
            Err(QueueError::Redis(error @ RedisError::TooLarge { .. })) if let Some(smaller) = instead(&end, &error) => {
                end = End::Failed(smaller);
            }
            Err(QueueError::Redis(_)) if started.elapsed() < shared.options.lock => tokio::time::sleep(SETTLE_AGAIN).await,
            Err(error) => {
                tracing::error!("Error in {}: settling job {}: {error}", queue.name(), job.id);
                return None;
            }
        }
    }
    if shared.quiet.is_cancelled() || matches!(end, End::Done(_)) {
        return None;
    }
    match queue.take(&next, shared.options.lock, Admission::Any).await {
        Ok(Taken::Job(job)) => Some((*job, next)),
        _ => None,
    }
}

/// The failure to store for an end that is too large to be stored; none when it cannot be made smaller.
fn instead(end: &End, error: &RedisError) -> Option<Failure> {
    match end {
        End::Done(_) => Some(Failure::new(format!("the result cannot be stored: {error}"))),
        End::Failed(failure) if failure.reason.len() + failure.stacktrace.len() > 4 * SHORT_REASON => {
            let beginning: String = failure.reason.chars().take(SHORT_REASON).collect();
            Some(Failure { retry: failure.retry, ..Failure::new(format!("{beginning}… (it cannot be stored whole: {error})")) })
        }
        _ => None,
    }
}

/// Before the run, as Bull does: the next one is armed even if this one takes the process down.
async fn arm_next(shared: &Shared, job: &Job) {
    let queue = &shared.queue;
    let Some(repeat) = Repeat::of(job) else { return };
    let armed = match repeat.next_slot(job.prev_millis(), queue.clock().now(), cron::next_run) {
        Ok(Some(slot)) => queue.next_of(job, slot).await.map(drop),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    let Err(error) = armed else { return };
    let (name, id) = (queue.name(), &job.id);
    if !matches!(error, QueueError::InvalidSchedule(_)) {
        tracing::error!("Error in {name}: arming the run after {id}: {error}");
        return;
    }
    // Another program's; it stands in the set still, so whoever looks at its last run must find out.
    let key = job.repeat_key().unwrap_or("without a key");
    let told = format!("schedule `{key}` will not run again: {error}; remove it, or arm it with other times");
    tracing::error!("Error in {name}: job {id} is the last run of its schedule: {told}");
    if let Err(error) = queue.log(id, &[told]).await {
        tracing::warn!("the log of job {id} in {name} is not written: {error}");
    }
}
