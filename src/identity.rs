//! Who this process is, and a fresh token for each run.
//!
//! Identity is new at each start: a restarted process must never be taken for the one before,
//! whose locks may still stand.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// A fresh identity.
#[must_use]
pub fn new_uuid() -> String {
    Uuid::new_v4().to_string()
}

/// A fresh token: proof that one run owns one job (wire format §6.5). Made of the process's identity and a number, which
/// costs no system call.
#[must_use]
pub fn new_token() -> String {
    static PROCESS: LazyLock<String> = LazyLock::new(new_uuid);
    static RUNS: AtomicU64 = AtomicU64::new(1);
    format!("{}:{}", *PROCESS, RUNS.fetch_add(1, Ordering::Relaxed))
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
