//! Consumes one queue, one job at a time over all processes unless its kind wants several.
//!
//! Three loops, each with one responsibility: [`listen`] turns the queue's events into bells,
//! [`maintain`] moves due jobs and recovers stalled ones, a [`lane`] takes and runs. The take is one
//! script that pops only when nothing else is active, so two workers never run two jobs of a queue
//! at once; a worker that was refused looks again at the next event, or after [`POLL`] (automatic
//! retries and stall recovery publish nothing that wakes it). A kind that says
//! [`side by side`](super::JobKind::side_by_side) has as many lanes, which take whatever waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Timing;
use super::execution::{self, Ended, Surroundings};
use crate::clock::Millis;
use crate::identity;
use crate::queue::{Admission, Event, Job, Presence, Queue, QueueError, State, Taken};
use crate::schedule;

/// An idle worker looks by itself this often.
const POLL: Duration = Duration::from_secs(5);
/// After an error, so that a Redis that is down is not hammered.
const RETRY: Duration = Duration::from_secs(2);
/// Stalls after which a job counts as poison: it takes its worker down each time.
const POISON_LIMIT: u32 = 5;

/// What an event rings.
#[derive(Clone, Default)]
struct Bells {
    /// Something may be taken.
    take: Arc<Notify>,
    /// Something is due earlier than `planned`.
    due: Arc<Notify>,
    /// When due jobs are looked for next. Each look publishes the next due time, ours included, so
    /// only a time before this one is news.
    planned: Arc<AtomicI64>,
    /// A running job is to be cancelled: its heartbeat asks Redis at once.
    renew: Arc<Notify>,
}

/// Takes and runs jobs until the process goes quiet; returns when the last one is settled.
pub(crate) async fn consume(around: Surroundings) {
    let queue = around.queue.clone();
    let bells = Bells { renew: around.renew.clone(), ..Bells::default() };
    let helpers = CancellationToken::new();
    let listener = tokio::spawn(listen(queue.clone(), bells.clone(), helpers.clone()));
    let maintainer = tokio::spawn(maintain(queue.clone(), around.timing, bells.clone(), helpers.clone()));
    let (lanes, admission) = match around.kind.side_by_side() {
        None => (1, Admission::Sequential),
        Some(lanes) => (lanes.max(1), Admission::Any),
    };
    futures_util::future::join_all((0..lanes).map(|_| lane(&around, &bells, admission))).await;
    helpers.cancel();
    let _ = tokio::join!(listener, maintainer);
}

/// Takes and runs one job after the other until the process goes quiet.
async fn lane(around: &Surroundings, bells: &Bells, admission: Admission) {
    let queue = &around.queue;
    let mut failing = false;
    let mut waited_for = None;
    while !around.quiet.is_cancelled() {
        let pause = match take_and_run(around, bells, admission, &mut waited_for).await {
            Ok(true) => {
                failing = false;
                continue;
            }
            Ok(false) => {
                if failing {
                    tracing::info!("{} is served again", queue.name());
                }
                failing = false;
                POLL
            }
            Err(error) => {
                if !failing {
                    tracing::error!("Error in {}: {error}", queue.name());
                }
                failing = true;
                RETRY
            }
        };
        tokio::select! {
            () = around.quiet.cancelled() => break,
            () = bells.take.notified(), if !failing => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether a job was taken. `waited_for` is the other worker's job that was told last.
async fn take_and_run(
    around: &Surroundings,
    bells: &Bells,
    admission: Admission,
    waited_for: &mut Option<String>,
) -> Result<bool, QueueError> {
    let queue = &around.queue;
    let token = identity::new_token();
    let job = match queue.take(&token, around.timing.lock, admission).await? {
        Taken::Job(job) => *job,
        Taken::Empty | Taken::Limited(_) => return Ok(false),
        Taken::Busy => {
            let active = queue.jobs(&[State::Active], 0, 0, true).await?.into_iter().next().map(|job| job.id);
            if active.is_some() && active != *waited_for {
                tracing::info!("a job waits in {} until job {} is done", queue.name(), active.as_deref().unwrap_or_default());
                *waited_for = active;
            }
            return Ok(false);
        }
    };
    if around.quiet.is_cancelled() {
        queue.hand_back(&job, &token).await?;
        return Ok(false);
    }
    if admission == Admission::Any {
        // Several jobs may have come with one bell: the next lane looks, too.
        bells.take.notify_one();
    }
    // Before the run, as Bull does: the next run is armed even if this one takes the worker down.
    // The scheduler arms it within a minute should this fail.
    if let Err(error) = schedule::arm_next(queue, &job).await {
        tracing::error!("Error in {}: arming the run after {}: {error}", queue.name(), job.id);
    }
    if let Some(reason) = skip_reason(around, &job).await {
        tracing::warn!("job {} in {} is skipped: {reason}", job.id, queue.name());
        queue.complete(&job, &token, &json!({"skipped": reason}), None).await?;
        return Ok(true);
    }
    let ended = execution::execute(around, job, &token).await;
    // A job that could not be settled waits for its lock's expiry: no busy loop meanwhile.
    Ok(ended != Ended::NotSettled)
}

async fn skip_reason(around: &Surroundings, job: &Job) -> Option<String> {
    match schedule::reason_to_skip(&around.queue, around.kind.schedule().as_ref(), job).await {
        Ok(reason) => reason,
        Err(error) => {
            tracing::warn!("whether job {} in {} comes too late is not known, so it runs: {error}", job.id, around.queue.name());
            None
        }
    }
}

/// Turns the queue's events into bells.
async fn listen(queue: Queue, bells: Bells, end: CancellationToken) {
    loop {
        if let Ok(mut events) = queue.events().await {
            // What happened before the subscription stood is found by looking.
            bells.take.notify_one();
            loop {
                let event = tokio::select! {
                    () = end.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(
                        Event::Waiting { .. }
                        | Event::Resumed
                        | Event::Completed { .. }
                        | Event::Failed { .. }
                        | Event::Stalled { .. },
                    ) => {
                        bells.take.notify_one();
                    }
                    Some(Event::Delayed { until }) if until < bells.planned.load(Ordering::SeqCst) => bells.due.notify_one(),
                    Some(Event::CancelRequested { .. }) => bells.renew.notify_one(),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Moves due jobs to waiting and recovers jobs whose worker died.
async fn maintain(queue: Queue, timing: Timing, bells: Bells, end: CancellationToken) {
    let mut next_stall_check = tokio::time::Instant::now();
    let mut presence = Presence::new(&queue);
    loop {
        let mut pause = POLL.min(timing.stall_check);
        let due = queue.promote_due().await;
        // The living come first: after an outage they renew what ran out meanwhile, and their jobs need not run twice.
        let settled =
            !matches!(due, Err(QueueError::Redis(_))) && queue.redis().back_for().is_none_or(|time| time >= timing.lock / 2);
        match due {
            // A moved job is announced as waiting, which wakes the consumer.
            Ok(Some(due)) => pause = pause.min(until(due, queue.clock().now())),
            Ok(None) => {}
            Err(_) => pause = RETRY,
        }
        if settled && tokio::time::Instant::now() >= next_stall_check {
            // Only tools look at it.
            if let Err(error) = presence.renew().await {
                tracing::debug!("the worker of {} is not listed: {error}", queue.name());
            }
            match queue.recover_stalled(timing.stall_check, POISON_LIMIT).await {
                Ok(check) => {
                    next_stall_check = tokio::time::Instant::now() + timing.stall_check;
                    for id in &check.requeued {
                        tracing::error!("Stalled job in {}: {id}", queue.name());
                        bells.take.notify_one();
                    }
                    for id in &check.failed {
                        tracing::error!(
                            "Failed job in {}: {id} job stalled more than allowable limit (its worker died {} times)",
                            queue.name(),
                            POISON_LIMIT + 1
                        );
                        bells.take.notify_one();
                    }
                }
                Err(_) => pause = RETRY,
            }
        }
        bells
            .planned
            .store(queue.clock().now() + Millis::try_from(pause.as_millis()).unwrap_or(Millis::MAX / 2), Ordering::SeqCst);
        tokio::select! {
            () = end.cancelled() => return,
            () = bells.due.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn until(due: Millis, now: Millis) -> Duration {
    Duration::from_millis(u64::try_from(due - now).unwrap_or(0).max(1))
}
