//! Takes jobs for free lanes, and waits for them when there are none.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use super::{BACK_OFF, Shared, lane};
use crate::identity;
use crate::queue::{Admission, Queue, QueueError, Taken, keys};
use crate::redis::RedisError;

/// Redis answers a blocking move after this time at the latest.
const BLOCK: Duration = Duration::from_secs(5);
/// Between two orders to end a blocking move.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(50);
/// More than that means that it, or the way to it, is gone.
const GRACE: Duration = Duration::from_secs(10);

pub(super) async fn feed(shared: Arc<Shared>) {
    let mut waiter = Waiter { queue: shared.queue.clone(), connection: None };
    let mut failing = false;
    loop {
        let slot = tokio::select! {
            biased;
            () = shared.quiet.cancelled() => return,
            slot = Arc::clone(&shared.slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        let token = identity::new_token();
        let pause = match next(&shared, &mut waiter, &token).await {
            Ok(taken) => {
                failing = false;
                match taken {
                    Taken::Job(job) => {
                        shared.lanes.spawn(lane::run(Arc::clone(&shared), *job, token, slot));
                        continue;
                    }
                    Taken::Limited(left) => left,
                    Taken::Empty | Taken::Busy => continue,
                }
            }
            Err(error) => {
                if !failing {
                    tracing::error!("Error in {}: {error}", shared.queue.name());
                }
                failing = true;
                BACK_OFF
            }
        };
        drop(slot);
        tokio::select! {
            () = shared.quiet.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn next(shared: &Shared, waiter: &mut Waiter, token: &str) -> Result<Taken, QueueError> {
    let lock = shared.options.lock;
    match shared.queue.take(token, lock, Admission::Any).await? {
        // Cancelling the wait would leave a job in active that nobody has: it is ended in order instead.
        Taken::Empty => match waiter.wait(&shared.quiet).await? {
            Some(id) => shared.queue.claim(&id, token, lock).await,
            None => Ok(Taken::Empty),
        },
        taken => Ok(taken),
    }
}

/// Waits for jobs on a connection of its own.
struct Waiter {
    queue: Queue,
    connection: Option<(MultiplexedConnection, i64)>,
}

impl Waiter {
    /// Moves the next job from wait to active and tells its id; nothing when none came in time.
    async fn wait(&mut self, quiet: &tokio_util::sync::CancellationToken) -> Result<Option<String>, QueueError> {
        let (connection, number) = match self.connection.take() {
            Some(open) => open,
            None => self.queue.named_connection().await?,
        };
        let mut command = redis::cmd("BLMOVE");
        command.arg(self.queue.keys().of("wait")).arg(self.queue.keys().of("active")).arg("RIGHT").arg("LEFT");
        command.arg(BLOCK.as_secs());
        let mut moving = connection.clone();
        let waiting = async { command.query_async::<Option<Vec<u8>>>(&mut moving).await };
        let mut waiting = std::pin::pin!(tokio::time::timeout(BLOCK + GRACE, waiting));
        let answer = tokio::select! {
            answer = &mut waiting => answer,
            () = quiet.cancelled() => loop {
                // Again and again: the first may overtake the move on its way to Redis.
                if let Ok(mut others) = self.queue.connection().await {
                    let _: Result<i64, _> = redis::cmd("CLIENT").arg("UNBLOCK").arg(number).query_async(&mut others).await;
                }
                if let Ok(answer) = tokio::time::timeout(UNBLOCK_AGAIN, &mut waiting).await {
                    break answer;
                }
            }
        };
        match answer {
            Ok(Ok(id)) => {
                // Only now: a connection that failed is not used again.
                self.connection = Some((connection, number));
                let Some(id) = id else { return Ok(None) };
                let id = match String::from_utf8(id) {
                    Ok(id) => id,
                    Err(error) => {
                        self.queue.set_aside(error.as_bytes()).await?;
                        return Ok(None);
                    }
                };
                if keys::check_id(&id).is_err() {
                    // What nobody can run must not stay in active.
                    let _: i64 = redis::Cmd::lrem(self.queue.keys().of("active"), -1, &id)
                        .query_async(&mut self.queue.connection().await?)
                        .await?;
                    return Ok(None);
                }
                Ok(Some(id))
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(RedisError::Command(format!("no answer within {} s", (BLOCK + GRACE).as_secs())).into()),
        }
    }
}
