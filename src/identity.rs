//! Who this process is, and a fresh token for each run.
//!
//! Identity is new at each start: a restarted process must never be taken for the one before,
//! whose locks may still stand.

use uuid::Uuid;

/// A fresh token: proof that one run owns one job (wire format §6.5).
#[must_use]
pub fn new_token() -> String {
    Uuid::new_v4().to_string()
}

/// The machine's name, for log lines and connection names.
#[must_use]
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "localhost".to_owned())
}
