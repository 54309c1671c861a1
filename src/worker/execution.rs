//! One run of one job, from the taken lock to the settled job.
//!
//! Around the handler stand a heartbeat that renews the job's lock on a task of its own, the
//! target's advisory lock, a journal that carries log lines and progress to Redis, and a time
//! limit. Whatever ends the run, exactly one transition settles the job, and every transition
//! checks the token: a run that lost its lock settles nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::journal::{self, Journal};
use super::kind::{Frame, Kind, Memory, Outcome, RetryPolicy};
use super::run::{Run, RunSink};
use super::target_lock::{TargetLock, TargetLockError};
use super::{Timing, chain};
use crate::queue::{Failed, Failure, Job, Queue, QueueError, Renewed};
use crate::redact::scrub;
use crate::redis::RedisError;

/// How long a handler that was told to stop may take before it is dropped. Well below the
/// shutdown deadline, because handing the job back comes after it.
const STOP_GRACE: Duration = Duration::from_secs(12);
/// Between two tries to settle while Redis does not answer.
const SETTLE_RETRY: Duration = Duration::from_millis(500);
/// How long the process waits for Redis to take a job back when it has to end.
const SETTLE_WHEN_STOPPING: Duration = Duration::from_secs(8);

/// Why a run was told to stop; the first reason counts.
#[derive(Clone, Debug)]
enum StopReason {
    /// The process ends: the job goes back with its attempt.
    Shutdown,
    /// An operator cancelled the job.
    Cancelled(String),
    /// The job's lock is another run's by now: nothing may be settled.
    LockLost,
    /// The advisory lock's session ended: another run may write the target.
    TargetLost,
    /// The kind's time limit.
    TimedOut(Duration),
}

#[derive(Clone)]
struct Stop {
    token: CancellationToken,
    reason: Arc<Mutex<Option<StopReason>>>,
}

impl Stop {
    fn new() -> Self {
        Stop { token: CancellationToken::new(), reason: Arc::default() }
    }

    fn because(&self, reason: StopReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.token.cancel();
    }

    fn reason(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What every execution of a consumer shares.
pub(crate) struct Surroundings {
    pub(crate) queue: Queue,
    pub(crate) kind: Kind,
    /// Queue of the kind's successor.
    pub(crate) then: Option<Queue>,
    pub(crate) policy: RetryPolicy,
    pub(crate) timing: Timing,
    pub(crate) quiet: CancellationToken,
    /// Makes the heartbeat ask Redis now rather than at its next beat.
    pub(crate) renew: Arc<Notify>,
}

/// How the run ended, for the consumer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Completed,
    Failed,
    Snoozed,
    HandedBack,
    /// Another run owns the job by now, or Redis stayed away: nothing was settled.
    NotSettled,
}

/// What the handler, or what stopped it, came to.
enum Verdict {
    Done(Value),
    Snooze(Duration),
    Fail { reason: String, detail: String, retry: bool },
    HandBack,
    Abandon,
}

/// Runs `job`, whose lock `token` holds, and settles it.
pub(crate) async fn execute(around: &Surroundings, job: Job, token: &str) -> Ended {
    let Surroundings { queue, kind, .. } = around;
    let attempt = job.attempts_made.saturating_add(1);
    tracing::info!("Starting job in {}: {}", queue.name(), job.id);

    let stop = Stop::new();
    let journal = Arc::new(Journal::default());
    let run = Run::new(fields(queue, kind, &job, attempt), stop.token.clone(), Some(journal.clone() as Arc<dyn RunSink>));
    let writer = tokio::spawn(journal::write(journal.clone(), queue.clone(), job.id.clone()));
    let heartbeat = tokio::spawn(beat(
        queue.clone(),
        job.id.clone(),
        token.to_owned(),
        around.timing.lock,
        around.renew.clone(),
        stop.clone(),
    ));
    let watcher = {
        let (quiet, stop) = (around.quiet.clone(), stop.clone());
        tokio::spawn(async move {
            quiet.cancelled().await;
            stop.because(StopReason::Shutdown);
        })
    };

    let verdict = work(around, &job, attempt, &run, &stop).await;

    watcher.abort();
    // The verdict belongs in the job's log too, before the job may be removed by retention.
    if let Verdict::Fail { reason, .. } = &verdict {
        run_line(&journal, tracing::Level::ERROR, &format!("failed: {reason}"));
    }
    journal::close(&journal, writer, queue, &job.id).await;
    // The heartbeat goes on until the job is settled: a slow Redis must not cost the lock.
    let ended = settle(around, &job, token, attempt, verdict).await;
    heartbeat.abort();
    ended
}

fn run_line(journal: &Journal, level: tracing::Level, message: &str) {
    journal.line(&super::run::Record { level, message: message.to_owned(), fields: Map::new() });
}

fn fields(queue: &Queue, kind: &Kind, job: &Job, attempt: u32) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("job.id".into(), json!(job.id));
    fields.insert("job.kind".into(), json!(kind.name));
    fields.insert("job.attempt".into(), json!(attempt));
    fields.insert("queue.name".into(), json!(queue.name()));
    fields
}

/// Renews the lock and passes on what the renewal tells.
///
/// A Redis that does not answer proves nothing: nobody can take the job through it either, and
/// the target's own lock keeps other writers out. So only Redis's word that the lock is
/// another's stops the run.
async fn beat(queue: Queue, id: String, token: String, lock: Duration, now: Arc<Notify>, stop: Stop) {
    let mut told = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(lock / 4) => {}
            () = now.notified() => {}
        }
        match queue.renew(&id, &token, lock).await {
            Ok(Renewed::Held) => told = false,
            Ok(Renewed::HeldButCancelRequested(by)) => stop.because(StopReason::Cancelled(by)),
            Ok(Renewed::Lost) => return stop.because(StopReason::LockLost),
            Err(error) if !told => {
                told = true;
                tracing::error!("Error in {}: renewing the lock of job {id}: {error}", queue.name());
            }
            Err(_) => {}
        }
    }
}

async fn work(around: &Surroundings, job: &Job, attempt: u32, run: &Run, stop: &Stop) -> Verdict {
    if let Some(error) = &job.data_error {
        return Verdict::Fail { reason: error.clone(), detail: String::new(), retry: false };
    }
    let target_lock = match &around.kind.writes_to() {
        None => None,
        Some(target) => match TargetLock::acquire(target, run).await {
            Ok(lock) => Some(lock),
            Err(TargetLockError::Stopped(_)) => return stopped(stop, None),
            Err(error) => {
                let reason = scrub(&format!("{:#}", anyhow::Error::new(error)));
                return Verdict::Fail { reason, detail: String::new(), retry: true };
            }
        },
    };
    let guards = guard(stop, target_lock.as_ref(), around.kind.time_limit());
    let frame = Frame {
        attempt,
        attempts: job.attempts(),
        run: run.clone(),
        memory: Some(Arc::new(JobData { queue: around.queue.clone(), id: job.id.clone() })),
    };
    let kind = around.kind.clone();
    let data = job.data.clone();
    // A task of its own, so that a panic ends the job and not the worker.
    let mut handler = tokio::spawn(async move { kind.run(data, frame).await });
    let finished = tokio::select! {
        finished = &mut handler => Some(finished),
        () = stop.token.cancelled() => tokio::time::timeout(STOP_GRACE, &mut handler).await.ok(),
    };
    if finished.is_none() {
        handler.abort();
        let _ = handler.await;
    }
    for guard in guards {
        guard.abort();
    }
    drop(target_lock);
    match finished {
        // What was done is done, even when the order to stop came meanwhile.
        Some(Ok(Ok(Outcome::Done(value)))) if !matches!(stop.reason(), Some(StopReason::LockLost | StopReason::TargetLost)) => {
            Verdict::Done(value)
        }
        Some(Ok(Ok(Outcome::Refuse(reason)))) if stop.reason().is_none() => {
            Verdict::Fail { reason: scrub(&reason), detail: String::new(), retry: false }
        }
        Some(Ok(Ok(Outcome::Snooze(wait)))) if stop.reason().is_none() => Verdict::Snooze(wait),
        Some(Ok(Err(error))) if stop.reason().is_none() => {
            Verdict::Fail { reason: scrub(&format!("{error:#}")), detail: scrub(&format!("{error:?}")), retry: true }
        }
        Some(Ok(Err(error))) => stopped(stop, Some(scrub(&format!("{error:#}")))),
        Some(Err(join)) if join.is_panic() => {
            let text = panic_text(&*join.into_panic());
            Verdict::Fail { reason: format!("the handler panicked: {}", scrub(&text)), detail: String::new(), retry: true }
        }
        _ => stopped(stop, None),
    }
}

/// Tasks that turn a lost target lock or a passed time limit into the order to stop.
fn guard(stop: &Stop, lock: Option<&TargetLock>, limit: Option<Duration>) -> Vec<JoinHandle<()>> {
    let mut guards = Vec::new();
    if let Some(lost) = lock.map(TargetLock::lost) {
        let stop = stop.clone();
        guards.push(tokio::spawn(async move {
            lost.cancelled().await;
            stop.because(StopReason::TargetLost);
        }));
    }
    if let Some(limit) = limit {
        let stop = stop.clone();
        guards.push(tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            stop.because(StopReason::TimedOut(limit));
        }));
    }
    guards
}

/// The verdict on a run that ended because it was told to; `state` is what the handler said last.
fn stopped(stop: &Stop, state: Option<String>) -> Verdict {
    let said = state.filter(|s| !s.is_empty()).map(|s| format!(" ({s})")).unwrap_or_default();
    let fail = |reason: String, retry| Verdict::Fail { reason: format!("{reason}{said}"), detail: String::new(), retry };
    match stop.reason() {
        Some(StopReason::Shutdown) => Verdict::HandBack,
        Some(StopReason::Cancelled(by)) => fail(format!("cancelled by {by}"), false),
        Some(StopReason::LockLost) => Verdict::Abandon,
        Some(StopReason::TargetLost) => {
            fail("the session that locks the target ended, so another run may write there".to_owned(), true)
        }
        Some(StopReason::TimedOut(limit)) => fail(format!("not finished within its time limit of {} s", limit.as_secs()), true),
        None => fail("the handler ended without a result".to_owned(), true),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Settles the job, asking again while Redis does not answer: the lock is kept meanwhile, so no
/// other run takes it. When the process has to end, the lock's expiry does the rest.
async fn settle(around: &Surroundings, job: &Job, token: &str, attempt: u32, mut verdict: Verdict) -> Ended {
    let name = around.queue.name();
    let mut stopping_since = None;
    let mut tries = 0_u32;
    loop {
        let error = match attempt_to_settle(around, job, token, attempt, &verdict).await {
            Ok(ended) => return ended,
            Err(error) => error,
        };
        match &error {
            // Redis was away for longer than the lock lives: it is ours again unless another run
            // has the job by now, and then settling is refused for good.
            QueueError::LockLost(_)
                if tries < 3
                    && matches!(around.queue.renew(&job.id, token, around.timing.lock).await, Ok(held) if held != Renewed::Lost) =>
                {}
            // It would be refused again and again, and be as large after another run.
            QueueError::Redis(RedisError::TooLarge { .. }) if matches!(verdict, Verdict::Done(_)) => {
                let reason = format!("the result cannot be stored: {error}");
                verdict = Verdict::Fail { reason, detail: String::new(), retry: false };
                continue;
            }
            QueueError::Redis(_) => {}
            _ => {
                // After an answer that got lost, the transition may have happened all the same.
                tracing::error!("Error in {name}: job {} is not settled by this run: {error}", job.id);
                return Ended::NotSettled;
            }
        }
        if around.quiet.is_cancelled() {
            let since = stopping_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() >= SETTLE_WHEN_STOPPING {
                tracing::error!("Error in {name}: job {} stays active until its lock expires: {error}", job.id);
                return Ended::NotSettled;
            }
        }
        if tries.is_multiple_of(120) {
            tracing::warn!("settling job {} in {name} is tried again: {error}", job.id);
        }
        tries += 1;
        tokio::time::sleep(SETTLE_RETRY).await;
    }
}

async fn attempt_to_settle(
    around: &Surroundings,
    job: &Job,
    token: &str,
    attempt: u32,
    verdict: &Verdict,
) -> Result<Ended, QueueError> {
    let queue = &around.queue;
    match verdict {
        Verdict::Done(value) => {
            let successor = around.then.as_ref().map(|then| (then, chain::successor(&around.policy, queue, job)));
            queue.complete(job, token, value, successor.as_ref().map(|(then, next)| (*then, next))).await?;
            tracing::info!("Completed job in {}: {}", queue.name(), job.id);
            Ok(Ended::Completed)
        }
        Verdict::Snooze(wait) => {
            queue.snooze(job, token, *wait).await?;
            Ok(Ended::Snoozed)
        }
        Verdict::Fail { reason, detail, retry } => {
            let failure = Failure {
                reason: reason.clone(),
                stacktrace: if detail.is_empty() { reason.clone() } else { detail.clone() },
                retry: *retry,
            };
            let failed = queue.fail(job, token, &failure).await?;
            tracing::error!(
                "Failed job in {}: {} {reason} (Number of attempts: {attempt}/{})",
                queue.name(),
                job.id,
                job.attempts()
            );
            crate::sentry::capture_failure(queue.name(), &job.id, attempt, reason);
            match failed {
                Failed::Final if around.then.is_some() => tracing::error!(
                    "the chain stops at {}: mend the cause, then run `bullwork restart:{}`",
                    queue.name(),
                    around.kind.name
                ),
                Failed::Delayed { until } => {
                    tracing::warn!("job {} in {} runs again at {}", job.id, queue.name(), crate::clock::to_rfc3339(until));
                }
                _ => {}
            }
            Ok(Ended::Failed)
        }
        Verdict::HandBack => {
            queue.hand_back(job, token).await?;
            tracing::info!("handed job {} back to {}: it runs again, this attempt does not count", job.id, queue.name());
            Ok(Ended::HandedBack)
        }
        Verdict::Abandon => {
            tracing::error!(
                "Error in {}: the lock of job {} was lost; this run stopped and settles nothing",
                queue.name(),
                job.id
            );
            Ok(Ended::NotSettled)
        }
    }
}

struct JobData {
    queue: Queue,
    id: String,
}

#[async_trait::async_trait]
impl Memory for JobData {
    async fn remember(&self, data: Value) -> anyhow::Result<()> {
        Ok(self.queue.update_data(&self.id, &data).await?)
    }
}
