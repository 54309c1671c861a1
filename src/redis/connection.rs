//! One connection for all short commands of a process.
//!
//! Commands of all tasks travel over it side by side, each with its own answer, so a queue under load
//! costs one round trip for many commands. A connection that broke, timed out or turned read-only is not
//! used again: the next command opens a new one, while those that are still on their way end by
//! themselves. A command is never sent twice, since nobody knows whether the first one was done; but for one that a node
//! of a cluster refused because another has its keys (`MOVED`): it was not done, and is sent there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisFuture, ServerError, ServerErrorKind, Value};

use super::{COMMAND_TIMEOUT, Home, RedisError};

/// A connection that was not used for this long is asked whether it lives before a command is given to it, so
/// that the first command after a restart of Redis does not fail.
const IDLE: Duration = Duration::from_secs(1);
/// How long that question may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// From a failed attempt to connect to the next one: many who try again by themselves must not add up to a storm.
const AGAIN: Duration = Duration::from_millis(200);
/// How often one command follows its keys.
const HOPS: u32 = 3;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the first call.
fn now() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A handle on the shared connection, for commands that are answered at once. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    inner: MultiplexedConnection,
    health: Arc<Health>,
    home: Weak<Home>,
}

#[derive(Debug, Default)]
struct Health {
    broken: AtomicBool,
    answered: AtomicU64,
}

/// The connection in use, and since when when it took the place of one that broke.
#[derive(Default)]
struct Current {
    connection: Option<Connection>,
    back_since: Option<Instant>,
}

impl Connection {
    pub(super) fn new(inner: MultiplexedConnection, home: Weak<Home>) -> Connection {
        let health = Health { broken: AtomicBool::new(false), answered: AtomicU64::new(now()) };
        Connection { inner, health: Arc::new(health), home }
    }

    fn is_broken(&self) -> bool {
        self.health.broken.load(Ordering::Relaxed)
    }

    fn is_fresh(&self) -> bool {
        now().saturating_sub(self.health.answered.load(Ordering::Relaxed)) < IDLE.as_millis() as u64
    }

    async fn lives(&mut self) -> bool {
        let ping = redis::cmd("PING");
        matches!(tokio::time::timeout(PING_TIMEOUT, ping.query_async::<Value>(self)).await, Ok(Ok(_)))
    }

    /// Learns from an answer how the connection is.
    fn note(&self, error: Option<&redis::RedisError>) {
        match error {
            Some(error)
                if error.is_io_error()
                    || error.is_timeout()
                    || error.is_connection_dropped()
                    || error.is_unrecoverable_error()
                    // A replica now: its name, or a sentinel, may lead to another server.
                    || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)) =>
            {
                self.health.broken.store(true, Ordering::Relaxed);
            }
            _ => self.health.answered.store(now(), Ordering::Relaxed),
        }
    }

    /// Goes where the keys are; false when that is not possible.
    async fn follow(&mut self, place: &str) -> bool {
        let Some(home) = self.home.upgrade() else { return false };
        self.health.broken.store(true, Ordering::Relaxed);
        home.route.moved(place);
        match home.connection().await {
            Ok(there) => {
                *self = there;
                true
            }
            Err(_) => false,
        }
    }
}

/// `SLOT HOST:PORT`, when the keys are on another node and nothing was done.
fn moved(error: redis::RedisError) -> Option<String> {
    let place = |error: &ServerError| (error.kind() == Some(ServerErrorKind::Moved)).then(|| error.details().map(str::to_owned));
    error.into_server_errors()?.iter().find_map(|(_, error)| place(error).flatten())
}

/// The error in an answer: the driver hands those of the server over as values.
fn error_in(value: &Value) -> Option<redis::RedisError> {
    match value {
        Value::ServerError(error) => Some(error.clone().into()),
        _ => None,
    }
}

impl redis::aio::ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut hops = 0;
            loop {
                let result = self.inner.req_packed_command(cmd).await;
                let error = result.as_ref().map_or_else(|error| Some(error.clone()), error_in);
                self.note(error.as_ref());
                hops += 1;
                match error.and_then(moved) {
                    Some(place) if hops <= HOPS && self.follow(&place).await => {}
                    _ => return result,
                }
            }
        })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut hops = 0;
            loop {
                let result = self.inner.req_packed_commands(pipeline, offset, count).await;
                let (error, all) = match &result {
                    Err(error) => (Some(error.clone()), true),
                    Ok(values) => (values.iter().find_map(error_in), values.iter().all(|value| error_in(value).is_some())),
                };
                self.note(error.as_ref());
                hops += 1;
                match error.and_then(moved) {
                    // Only when all were refused was nothing done.
                    Some(place) if all && hops <= HOPS && self.follow(&place).await => {}
                    _ => return result,
                }
            }
        })
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }
}

/// Where the shared connection is kept.
#[derive(Default)]
pub(super) struct Shared {
    current: Mutex<Current>,
    /// Held while a connection is looked at or opened; why the last attempt failed, and when.
    opening: tokio::sync::Mutex<Option<(Instant, RedisError)>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Connection> {
        self.lock().connection.clone().filter(|c| !c.is_broken())
    }

    /// For how long there has been a connection again; none when the first one has never broken.
    pub(super) fn back_for(&self) -> Option<Duration> {
        self.lock().back_since.map(|since| since.elapsed())
    }

    /// The connection, opened by `open` when there is none that lives. Those who come while it is opened
    /// wait for that one attempt and share its failure.
    pub(super) async fn get<F>(&self, open: impl FnOnce() -> F) -> Result<Connection, RedisError>
    where
        F: Future<Output = Result<Connection, RedisError>>,
    {
        if let Some(connection) = self.current()
            && connection.is_fresh()
        {
            return Ok(connection);
        }
        let came = Instant::now();
        let mut failed = self.opening.lock().await;
        if let Some(mut connection) = self.current()
            && (connection.is_fresh() || connection.lives().await)
        {
            return Ok(connection);
        }
        if let Some((at, error)) = &*failed {
            if *at >= came {
                return Err(error.clone());
            }
            tokio::time::sleep(AGAIN.saturating_sub(at.elapsed())).await;
        }
        match open().await {
            Ok(connection) => {
                let mut current = self.lock();
                if current.connection.replace(connection.clone()).is_some() {
                    current.back_since = Some(Instant::now());
                }
                drop(current);
                *failed = None;
                Ok(connection)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// For connections that are to wait as long as it takes, and for all others.
pub(super) fn config(response_timeout: Option<Duration>) -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new().set_connection_timeout(Some(COMMAND_TIMEOUT)).set_response_timeout(response_timeout)
}
