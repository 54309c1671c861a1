//! Redis: the shared connection and dedicated ones. Knows no key.
//!
//! Hazard (design §4): a redis connection has a response timeout and a dropped future does not
//! stop the server-side command, so the [`Connection`] that all share is for short commands only; a
//! subscriber, or whoever blocks, gets a connection of its own.

mod connection;

use std::sync::Arc;
use std::time::Duration;

use redis::IntoConnectionInfo;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};

pub use connection::Connection;

use crate::redact;

/// Longest wait for the answer to one short command, and for a connection.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that vanished without a word is noticed within half a minute: a subscriber only reads, so nothing else
/// would ever tell it. Commands are small and wait for their answer, so none is held back to fill a packet.
fn tcp() -> TcpSettings {
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);
    TcpSettings::default().set_nodelay(true).set_keepalive(probes)
}

/// What can go wrong between us and Redis.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL cannot be used.
    #[error("REDIS_URL {0}")]
    Url(String),
    /// No connection to be had.
    #[error("connecting to Redis at {url}: {reason}")]
    Connect {
        /// Masked URL.
        url: String,
        /// Why.
        reason: String,
    },
    /// Redis answered with an error, or not in time.
    #[error("{0}")]
    Command(String),
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        RedisError::Command(redact::scrub(&error.to_string()))
    }
}

/// A Redis server. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<connection::Shared>,
    client: redis::Client,
    shown: String,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Redis {
    /// Reads the URL. Nothing is connected.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        let shown = redact::mask_url(url);
        if let Ok(parsed) = url::Url::parse(url)
            && let Some(password) = parsed.password()
        {
            redact::remember(password);
        }
        let bad =
            |e: String| RedisError::Url(format!("`{shown}` cannot be used: {}; write redis://host:6379/0", redact::scrub(&e)));
        let info = url.into_connection_info().map_err(|e| bad(e.to_string()))?.set_tcp_settings(tcp());
        let client = redis::Client::open(info).map_err(|e| bad(e.to_string()))?;
        Ok(Redis { shared: Arc::default(), client, shown })
    }

    /// The URL without password.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn refused(&self, reason: impl std::fmt::Display) -> RedisError {
        RedisError::Connect { url: self.shown.clone(), reason: redact::scrub(&reason.to_string()) }
    }

    /// The connection that all share, for short commands.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn connection(&self) -> Result<Connection, RedisError> {
        self.shared.get(|| self.open(Some(COMMAND_TIMEOUT))).await
    }

    /// A connection of its own for whoever blocks: an answer may take as long as it likes.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn dedicated(&self) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        self.open(None).await
    }

    async fn open(&self, response_timeout: Option<Duration>) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        let config = connection::config(response_timeout);
        self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| self.refused(e))
    }

    /// A connection of its own for subscriptions.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn subscriber(&self) -> Result<redis::aio::PubSub, RedisError> {
        match tokio::time::timeout(COMMAND_TIMEOUT, self.client.get_async_pubsub()).await {
            Ok(Ok(pubsub)) => Ok(pubsub),
            Ok(Err(error)) => Err(self.refused(error)),
            Err(_) => Err(self.refused(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
        }
    }
}
