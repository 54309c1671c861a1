//! Redis: the shared connection and dedicated ones. Knows no key.
//!
//! Hazard (design §4): a redis connection has a response timeout and a dropped future does not
//! stop the server-side command, so the [`Connection`] that all share is for short commands only; a
//! subscriber, or whoever blocks, gets a connection of its own.

mod address;
mod connection;
mod route;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use connection::Connection;

use crate::redact;

/// Longest wait for the answer to one short command, and for a connection.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest name or value of a command that Redis takes. It ends the connection of who sends a larger one.
const PIECE_LIMIT: &str = "proto-max-bulk-len";
/// Every Redis takes this much: the limit cannot be set lower.
const ALWAYS_TAKEN: usize = 1 << 20;

/// What can go wrong between us and Redis.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL cannot be used.
    #[error("the Redis URL {0}")]
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
    /// A name or value of a command is larger than Redis takes; nothing was sent.
    #[error("a piece of {size} bytes is more than Redis takes ({}): make it smaller, or raise that limit", limit_of_pieces(*.limit))]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit, when we may ask for it.
        limit: Option<usize>,
    },
}

/// Redis's name for the limit of a piece, and its value where that is known.
fn limit_of_pieces(limit: Option<usize>) -> String {
    limit.map_or_else(|| PIECE_LIMIT.to_owned(), |bytes| format!("{PIECE_LIMIT}, {bytes} bytes"))
}

/// A Redis server, or several of which one has our keys. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    home: Arc<Home>,
}

/// What all clones, and the connection, share.
struct Home {
    shared: connection::Shared,
    route: route::Route,
    shown: String,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.home.shown)
    }
}

impl Redis {
    /// Reads the URL: `redis://` or `rediss://`, a `…-sentinel://` or a `…-cluster://` one (docs/queue.md). Nothing is
    /// connected.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        let url = url.trim();
        let shown = redact::mask_url(url);
        let address = address::Address::parse(url)
            .map_err(|reason| RedisError::Url(format!("`{shown}` cannot be used: {}", redact::scrub(&reason))))?;
        Ok(Redis { home: Arc::new(Home { shared: connection::Shared::default(), route: route::Route::new(address), shown }) })
    }

    /// The URL without password.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.home.shown
    }

    /// The connection that all share, for short commands.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn connection(&self) -> Result<Connection, RedisError> {
        Home::connection(&self.home).await
    }

    /// For how long Redis has been back after a connection broke: while it was away, locks may have run out that their holders
    /// could not renew. None when no connection has broken.
    pub(crate) fn back_for(&self) -> Option<Duration> {
        self.home.shared.back_for()
    }

    /// A connection of its own for whoever blocks: an answer may take as long as it likes.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn dedicated(&self) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        self.home.open(None).await
    }

    /// A connection of its own for subscriptions.
    ///
    /// # Errors
    /// When none is to be had within 10 s.
    pub async fn subscriber(&self) -> Result<redis::aio::PubSub, RedisError> {
        self.home.within_limit(self.home.route.connect(|client| async move { client.get_async_pubsub().await })).await
    }
}

impl Redis {
    /// Refuses a command of which one of the `pieces` is larger than Redis takes: it would end the connection that all share, and
    /// whoever tries again would end the next. Costs nothing unless one is larger than a mebibyte.
    ///
    /// # Errors
    /// [`RedisError::TooLarge`], or when Redis cannot be asked.
    pub(crate) async fn check_pieces<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), RedisError> {
        let Some(piece) = pieces.filter(|piece| piece.len() > ALWAYS_TAKEN).max_by_key(|piece| piece.len()) else {
            return Ok(());
        };
        let size = piece.len();
        let mut asking = redis::cmd("CONFIG");
        asking.arg("GET").arg(PIECE_LIMIT);
        match asking.query_async::<HashMap<String, usize>>(&mut self.connection().await?).await {
            Ok(limits) => match limits.get(PIECE_LIMIT) {
                Some(limit) if size > *limit => Err(RedisError::TooLarge { size, limit: Some(*limit) }),
                Some(_) => Ok(()),
                None => self.try_piece(piece).await,
            },
            Err(error) if is_cut(&error) => Err(error.into()),
            // Many hosts do not let their users ask.
            Err(_) => self.try_piece(piece).await,
        }
    }

    /// Sends the piece on a connection of its own, with a command that changes nothing. Whatever is answered, it was taken; a
    /// connection that breaks twice, while the other one lives, was ended for it.
    async fn try_piece(&self, piece: &[u8]) -> Result<(), RedisError> {
        for _ in 0..2 {
            let mut own = self.dedicated().await?;
            match tokio::time::timeout(COMMAND_TIMEOUT, redis::cmd("EXISTS").arg(piece).query_async::<redis::Value>(&mut own))
                .await
            {
                Ok(Err(error)) if is_cut(&error) || error.to_string().contains("invalid bulk length") => {}
                Ok(_) => return Ok(()),
                Err(_) => return Err(RedisError::Command(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
            }
        }
        redis::cmd("PING").query_async::<redis::Value>(&mut self.connection().await?).await?;
        Err(RedisError::TooLarge { size: piece.len(), limit: None })
    }
}

fn is_cut(error: &redis::RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || error.is_unrecoverable_error()
}

impl Home {
    async fn connection(self: &Arc<Self>) -> Result<Connection, RedisError> {
        let open = || async { Ok(Connection::new(self.open(Some(COMMAND_TIMEOUT)).await?, Arc::downgrade(self))) };
        self.shared.get(open).await
    }

    async fn open(&self, response_timeout: Option<Duration>) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        let config = connection::config(response_timeout);
        let opening = self.route.connect(|client| {
            let config = config.clone();
            async move {
                let mut opened = client.get_multiplexed_async_connection_with_config(&config).await?;
                // Told now, a missing password is told once, and with the address.
                match redis::cmd("PING").query_async::<redis::Value>(&mut opened).await {
                    Err(error) if error.code() == Some("NOAUTH") => Err(error),
                    _ => Ok(opened),
                }
            }
        });
        // Boxed: it is rare and large, and every command's future would hold it.
        self.within_limit(Box::pin(opening)).await
    }

    async fn within_limit<T>(&self, opening: impl Future<Output = Result<T, String>>) -> Result<T, RedisError> {
        let reason = match tokio::time::timeout(COMMAND_TIMEOUT, opening).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(reason)) => reason,
            Err(_) => self.route.hinted(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs())),
        };
        Err(RedisError::Connect { url: self.shown.clone(), reason: redact::scrub(&reason) })
    }
}
