//! Keeps locks, and moves what is due or was left behind.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;

use super::{BACK_OFF, Shared};
use crate::clock::Millis;
use crate::queue::{QueueError, Renewed};

/// Due jobs are looked for this often, besides when one is announced.
const POLL: Duration = Duration::from_secs(5);

/// Before another subscription when one was cut.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for a subscription to stand.
const LISTEN: Duration = Duration::from_secs(10);

/// Renews the locks of all runs at half of their time, side by side.
pub(super) async fn keep(shared: Arc<Shared>) {
    let lock = shared.options.lock;
    loop {
        tokio::time::sleep(lock / 2).await;
        let runs: Vec<(String, String)> = shared.running().iter().map(|(token, run)| (run.id.clone(), token.clone())).collect();
        let renewing = runs.iter().map(async |(id, token)| (id, token, shared.queue.renew(id, token, lock).await));
        for (id, token, renewed) in futures_util::future::join_all(renewing).await {
            let mut running = shared.running();
            // It may have ended meanwhile.
            let Some(run) = running.get_mut(token) else { continue };
            match renewed {
                Ok(Renewed::Held) => {}
                Ok(Renewed::HeldButCancelRequested(by)) => {
                    run.cancelled_by = Some(by);
                    run.lost.cancel();
                }
                Ok(Renewed::Lost) => run.lost.cancel(),
                // The next one may come in time; a lock that ran out meanwhile is told then.
                Err(error) => tracing::warn!("renewing the lock of job {id} in {}: {error}", shared.queue.name()),
            }
        }
    }
}

/// Moves due jobs into the line, and puts back those whose worker vanished.
pub(super) async fn maintain(shared: Arc<Shared>) {
    let queue = &shared.queue;
    let mut next_stall_check = tokio::time::Instant::now();
    let mut ear: Option<PubSub> = None;
    loop {
        if ear.is_none() {
            ear = listen(&shared).await;
        }
        let mut pause = POLL.min(shared.options.stall_check);
        let due = queue.promote_due().await;
        // The living come first: after an outage they renew what ran out meanwhile, and their jobs need not run twice.
        let settled =
            !matches!(due, Err(QueueError::Redis(_))) && queue.redis().back_for().is_none_or(|time| time >= shared.options.lock);
        match due {
            Ok(Some(due)) => {
                let left = Duration::from_millis(u64::try_from(due - queue.clock().now()).unwrap_or(0).max(1));
                pause = pause.min(left);
            }
            Ok(None) => {}
            Err(_) => pause = BACK_OFF,
        }
        if settled
            && tokio::time::Instant::now() >= next_stall_check
            && let Ok(check) = queue.recover_stalled(shared.options.stall_check, shared.options.max_stalled).await
        {
            next_stall_check = tokio::time::Instant::now() + shared.options.stall_check;
            for id in check.requeued.iter().chain(&check.failed) {
                tracing::warn!("Stalled job in {}: {id}", queue.name());
            }
        }
        let until = queue.clock().now() + Millis::try_from(pause.as_millis()).unwrap_or(Millis::MAX / 2);
        let heard = async {
            match &mut ear {
                Some(ear) => hear(ear, until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            alive = heard => if !alive {
                ear = None;
                // It may be cut at once again and again.
                tokio::time::sleep(AGAIN).await;
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn listen(shared: &Shared) -> Option<PubSub> {
    let mut ear = shared.queue.redis().subscriber().await.ok()?;
    tokio::time::timeout(LISTEN, ear.subscribe(shared.queue.keys().of("delayed"))).await.ok()?.ok()?;
    Some(ear)
}

/// Waits for a job that is due before `until`: each look publishes the next one, ours too. False: the connection is gone.
async fn hear(ear: &mut PubSub, until: Millis) -> bool {
    let mut messages = ear.on_message();
    while let Some(message) = messages.next().await {
        let due = message.get_payload::<String>().ok().and_then(|text| text.parse::<f64>().ok());
        if due.is_some_and(|due| (due.ceil() as Millis) < until) {
            return true;
        }
    }
    false
}
