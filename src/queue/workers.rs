//! Who serves a queue (wire format §6.21): every worker has one connection that is named after its queue.

use std::time::Duration;

use base64::Engine;
use redis::aio::MultiplexedConnection;

use super::{Queue, QueueError};
use crate::redis::RedisError;

/// Longest wait for the name to be set.
const LIMIT: Duration = Duration::from_secs(10);

/// A worker, as Redis sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerClient {
    /// `host:port` of its end of the connection.
    pub address: String,
    /// How long it has been connected.
    pub connected: Duration,
}

/// The name of the connections of a queue's workers.
pub(super) fn client_name(prefix: &str, queue: &str) -> String {
    format!("{prefix}:{}", base64::engine::general_purpose::STANDARD.encode(queue))
}

impl Queue {
    /// The workers that serve the queue, in whatever language.
    ///
    /// # Errors
    /// Redis's; some hosts do not allow `CLIENT LIST`.
    pub async fn workers(&self) -> Result<Vec<WorkerClient>, QueueError> {
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST");
        let clients: String = list.query_async(&mut self.connection().await?).await?;
        // Bull looks for names that begin so, and finds the workers of queues whose encoded names begin alike.
        let name = client_name(self.prefix(), self.name());
        Ok(clients.lines().filter_map(|client| worker(client, &name)).collect())
    }

    /// Opens a connection that shows a worker, and its number.
    pub(super) async fn named_connection(&self) -> Result<(MultiplexedConnection, i64), QueueError> {
        let mut connection = self.redis().dedicated().await?;
        let number = name_connection(&mut connection, &client_name(self.prefix(), self.name())).await?;
        Ok((connection, number))
    }
}

async fn name_connection(connection: &mut MultiplexedConnection, name: &str) -> Result<i64, QueueError> {
    let mut pipe = redis::pipe();
    pipe.cmd("CLIENT").arg("SETNAME").arg(name).ignore().cmd("CLIENT").arg("ID");
    let named = tokio::time::timeout(LIMIT, pipe.query_async::<(i64,)>(connection)).await;
    let (number,) = named.map_err(|_| RedisError::Command(format!("no answer within {} s", LIMIT.as_secs())))??;
    Ok(number)
}

/// A line of `CLIENT LIST`, when the client has that name.
fn worker(client: &str, name: &str) -> Option<WorkerClient> {
    let member = |wanted: &str| client.split(' ').find_map(|member| member.strip_prefix(wanted)?.strip_prefix('='));
    if member("name") != Some(name) {
        return None;
    }
    let connected = Duration::from_secs(member("age").and_then(|age| age.parse().ok()).unwrap_or(0));
    Some(WorkerClient { address: member("addr").unwrap_or_default().to_owned(), connected })
}

/// Shows a worker that has no connection of its own for waiting.
#[derive(Debug)]
pub struct Presence {
    queue: Queue,
    connection: Option<MultiplexedConnection>,
}

impl Presence {
    /// Of a worker of `queue`. It is not seen before the first [`Presence::renew`].
    #[must_use]
    pub fn new(queue: &Queue) -> Self {
        Presence { queue: queue.clone(), connection: None }
    }

    /// Makes sure that the worker is seen. Call it now and then: a connection that nobody uses may be closed.
    ///
    /// # Errors
    /// Redis's.
    pub async fn renew(&mut self) -> Result<(), QueueError> {
        if let Some(mut connection) = self.connection.take() {
            let name = client_name(self.queue.prefix(), self.queue.name());
            if name_connection(&mut connection, &name).await.is_ok() {
                self.connection = Some(connection);
                return Ok(());
            }
        }
        self.connection = Some(self.queue.named_connection().await?.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_have_bulls_names() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/bull-vectors.json")).unwrap();
        for case in vectors["client_name"].as_array().unwrap() {
            assert_eq!(client_name("bull", case["queue"].as_str().unwrap()), case["setname"].as_str().unwrap());
        }
    }

    #[test]
    fn only_the_whole_name_is_a_worker_of_the_queue() {
        let line = "id=7 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 fd=8 name=bull:YQ== age=61 idle=3 flags=b cmd=blmove";
        let found = worker(line, "bull:YQ==").unwrap();
        assert_eq!((found.address.as_str(), found.connected.as_secs()), ("127.0.0.1:5000", 61));
        assert_eq!((worker(line, "bull:YQ"), worker("rubbish", "bull:YQ==")), (None, None));
    }
}
