//! Runs one job after the other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{ActiveJob, Running, Shared};
use crate::queue::{Admission, Failure, Job, QueueError, Repeat, Taken};
use crate::{cron, identity};

/// Between two tries to settle a job while Redis is away.
const SETTLE_AGAIN: Duration = Duration::from_millis(500);

/// How a handler ended.
enum End {
    Done(Value),
    Failed(Failure),
    /// Somebody cancelled the job.
    Cancelled(String),
    /// The job is another worker's now.
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
    let running = Running { token: token.clone(), lost: lost.clone(), cancelled_by: None };
    shared.running().insert(job.id.clone(), running);
    let job = Arc::new(job);
    let active = ActiveJob { job: Arc::clone(&job), queue: shared.queue.clone(), lost: lost.clone() };
    let end = handle(shared, active, &lost).await;
    // Its lock is renewed until it is settled.
    let next = settle(shared, &job, &token, end).await;
    shared.running().remove(&job.id);
    next
}

async fn handle(shared: &Shared, active: ActiveJob, lost: &CancellationToken) -> End {
    if let Some(error) = &active.data_error {
        return End::Failed(Failure { retry: false, ..Failure::new(error) });
    }
    let id = active.id.clone();
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
        () = lost.cancelled() => match shared.running().get_mut(&id).and_then(|run| run.cancelled_by.take()) {
            Some(by) => End::Cancelled(by),
            None => End::Lost,
        },
        () = shared.abandon.cancelled() => End::Abandoned,
    }
}

/// Tells Redis how the run ended, again and again while Redis is away, until the lock must have run out. The next job and
/// its token, when one was taken.
async fn settle(shared: &Shared, job: &Job, token: &str, end: End) -> Option<(Job, String)> {
    let queue = &shared.queue;
    let started = Instant::now();
    let next = identity::new_token();
    loop {
        let settled = match &end {
            End::Done(value) if shared.quiet.is_cancelled() => {
                queue.complete(job, token, value, None).await.map(|_| Taken::Empty)
            }
            End::Done(value) => queue.complete_and_take(job, token, value, &next, shared.options.lock).await,
            End::Failed(failure) => queue.fail(job, token, failure).await.map(|_| Taken::Empty),
            End::Cancelled(by) => {
                let failure = Failure { retry: false, ..Failure::new(format!("cancelled by {by}")) };
                queue.fail(job, token, &failure).await.map(|_| Taken::Empty)
            }
            End::Abandoned => queue.hand_back(job, token).await.map(|()| Taken::Empty),
            End::Lost => {
                tracing::warn!("job {} in {} is another worker's now: its run was dropped", job.id, queue.name());
                return None;
            }
        };
        match settled {
            Ok(Taken::Job(job)) => return Some((*job, next)),
            Ok(_) => break,
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

/// Before the run, as Bull does: the next one is armed even if this one takes the process down.
async fn arm_next(shared: &Shared, job: &Job) {
    let Some(repeat) = Repeat::of(job) else { return };
    let armed = match repeat.next_slot(job.prev_millis(), shared.queue.clock().now(), cron::next_run) {
        Ok(Some(slot)) => shared.queue.next_of(job, slot).await.map(drop).map_err(|error| error.to_string()),
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = armed {
        tracing::error!("Error in {}: arming the run after {}: {error}", shared.queue.name(), job.id);
    }
}
