//! Takes jobs for free lanes, and waits for them when there are none.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
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
        match next(&shared, &mut waiter, &token).await {
            Ok(Some(job)) => {
                failing = false;
                shared.lanes.spawn(lane::run(Arc::clone(&shared), job, token, slot));
            }
            Ok(None) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::error!("Error in {}: {error}", shared.queue.name());
                }
                failing = true;
                tokio::select! {
                    () = shared.quiet.cancelled() => return,
                    () = tokio::time::sleep(BACK_OFF) => {}
                }
            }
        }
    }
}

async fn next(shared: &Shared, waiter: &mut Waiter, token: &str) -> Result<Option<crate::queue::Job>, QueueError> {
    let lock = shared.options.lock;
    let mut taken = shared.queue.take(token, lock, Admission::Any).await?;
    if taken == Taken::Empty {
        // Cancelling the wait would leave a job in active that nobody has: it is ended in order instead.
        let Some(id) = waiter.wait(&shared.quiet).await? else { return Ok(None) };
        taken = shared.queue.claim(&id, token, lock).await?;
    }
    Ok(match taken {
        Taken::Job(job) => Some(*job),
        _ => None,
    })
}

/// Waits for jobs on a connection of its own.
struct Waiter {
    queue: Queue,
    connection: Option<(MultiplexedConnection, i64)>,
}

impl Waiter {
    /// Moves the next job from wait to active and tells its id; nothing when none came in time.
    async fn wait(&mut self, quiet: &tokio_util::sync::CancellationToken) -> Result<Option<String>, QueueError> {
        let (mut connection, number) = match self.connection.take() {
            Some(open) => open,
            None => self.open().await?,
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
                let id = String::from_utf8_lossy(&id).into_owned();
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
            Err(_) => {
                let _: Result<(), _> = redis::cmd("QUIT").query_async(&mut connection).await;
                Err(RedisError::Command(format!("no answer within {} s", (BLOCK + GRACE).as_secs())).into())
            }
        }
    }

    async fn open(&self) -> Result<(MultiplexedConnection, i64), QueueError> {
        let mut connection = self.queue.redis().dedicated().await?;
        let name = client_name(self.queue.prefix(), self.queue.name());
        let mut pipe = redis::pipe();
        pipe.cmd("CLIENT").arg("SETNAME").arg(name).ignore().cmd("CLIENT").arg("ID");
        let named = tokio::time::timeout(GRACE, pipe.query_async::<(i64,)>(&mut connection)).await;
        let (number,) = named.map_err(|_| RedisError::Command("no answer within 10 s".to_owned()))??;
        Ok((connection, number))
    }
}

/// By which Bull's tools recognize a worker (wire format §6.21).
fn client_name(prefix: &str, queue: &str) -> String {
    format!("{prefix}:{}", base64::engine::general_purpose::STANDARD.encode(queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_have_bulls_names() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors/bull-vectors.json")).unwrap();
        for case in vectors["client_name"].as_array().unwrap() {
            assert_eq!(client_name("bull", case["queue"].as_str().unwrap()), case["setname"].as_str().unwrap());
        }
    }
}
