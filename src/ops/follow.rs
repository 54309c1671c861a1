//! Follows one job, or its chain, to its end.

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

use super::store::Store;
use crate::jobs;
use crate::queue::{Job, State};
use crate::worker::{Declaration, Progress, chain};

/// Between two looks at the job.
const POLL: Duration = Duration::from_millis(250);
/// How long a completed job's successor is looked for; it was added before the job showed as completed.
const SUCCESSOR_LOOKS: u32 = 40;

/// What is told while a job is followed.
pub trait Watcher {
    /// The job is this one, waiting or running.
    fn job(&mut self, queue: &str, id: &str);
    /// A line was added to its log.
    fn line(&mut self, line: &str);
    /// It is this far.
    fn progress(&mut self, state: State, progress: &Progress);
    /// It has ended with this result.
    fn ended(&mut self, result: &Value);
}

/// Follows job `id` of `kind`; with `whole_chain` its successors too. Returns the last result.
///
/// # Errors
/// With the reason when a job fails for good or vanishes, or when Redis does not answer for long.
pub async fn follow(
    store: &Store,
    kind: &'static Declaration,
    id: &str,
    whole_chain: bool,
    watcher: &mut impl Watcher,
) -> anyhow::Result<Value> {
    let mut kind = kind;
    let mut id = id.to_owned();
    loop {
        let result = one(store, kind.queue, &id, watcher).await?;
        let next = kind.then.and_then(jobs::named).filter(|_| whole_chain);
        let Some(next) = next else { return Ok(result) };
        id = successor(store, kind.queue, &id, next.queue).await?;
        kind = next;
    }
}

async fn one(store: &Store, queue: &str, id: &str, watcher: &mut impl Watcher) -> anyhow::Result<Value> {
    watcher.job(queue, id);
    let handle = store.queue(queue);
    let mut shown = 0;
    let mut misses = 0_u32;
    loop {
        let looked = async {
            let job = handle.job(id).await?;
            let state = handle.state(id).await?;
            let lines = handle.logs(id, shown, -1).await?;
            anyhow::Ok((job, state, lines))
        };
        match looked.await {
            Ok((Some(job), state, lines)) => {
                misses = 0;
                shown += isize::try_from(lines.len()).unwrap_or(0);
                for line in &lines {
                    watcher.line(line);
                }
                if let Some(ended) = ended(&job, state) {
                    let result = ended?;
                    watcher.ended(&result);
                    return Ok(result);
                }
                let progress = job.progress.and_then(|p| serde_json::from_value(p).ok()).unwrap_or_default();
                watcher.progress(state.unwrap_or(State::Waiting), &progress);
            }
            Ok((None, ..)) => bail!("job {id} is not in `{queue}` any more: it was removed before its end was seen"),
            Err(error) => {
                misses += 1;
                if misses > 240 {
                    return Err(error.context("Redis has not answered for a minute; the job goes on without being followed"));
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn ended(job: &Job, state: Option<State>) -> Option<anyhow::Result<Value>> {
    match state {
        Some(State::Completed) => Some(Ok(job.return_value.clone().unwrap_or(Value::Null))),
        Some(State::Failed) => {
            let reason = job.failed_reason.clone().unwrap_or_else(|| "no reason given".to_owned());
            Some(Err(anyhow::anyhow!("job {} failed after {} of {} tries: {reason}", job.id, job.attempts_made, job.attempts())))
        }
        _ => None,
    }
}

async fn successor(store: &Store, queue: &str, id: &str, next: &str) -> anyhow::Result<String> {
    let handle = store.queue(next);
    for _ in 0..SUCCESSOR_LOOKS {
        let all = [State::Waiting, State::Paused, State::Active, State::Delayed, State::Completed, State::Failed];
        let jobs = handle.jobs(&all, 0, 200, false).await?;
        if let Some(job) = jobs.iter().find(|job| chain::follows(job, queue, id)) {
            return Ok(job.id.clone());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("job {id} of `{queue}` is completed, but `{next}` shows no job that follows it")
}
