//! The time, passed in so that tests can set it.
//!
//! Bull takes every time from the client's clock in whole milliseconds, never from Redis
//! (wire format, conventions), so one type serves the queue, the schedules and the logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = i64;

/// Where the current time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that stands still until it is set; for tests.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that shows `now` until [`Clock::set`] is called.
    #[must_use]
    pub fn manual(now: Millis) -> Self {
        Clock::Manual(Arc::new(AtomicI64::new(now)))
    }

    /// The current time in milliseconds.
    #[must_use]
    pub fn now(&self) -> Millis {
        match self {
            Clock::System => chrono::Utc::now().timestamp_millis(),
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Sets a manual clock; the machine's clock is left alone.
    pub fn set(&self, now: Millis) {
        if let Clock::Manual(cell) = self {
            cell.store(now, Ordering::SeqCst);
        }
    }
}

/// `ms` as RFC 3339 text in UTC, for people and logs.
#[must_use]
pub fn to_rfc3339(ms: Millis) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}
