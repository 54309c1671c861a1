//! Names of a queue's keys, and ids that must not become one (wire format §1, §4).

use super::QueueError;

/// Longest id we accept, in bytes: a key of this size is still cheap, and no producer of ours comes near.
const LONGEST_ID: usize = 512;

/// Last parts of the keys that are no jobs.
const RESERVED: &[&str] = &[
    "id",
    "wait",
    "waiting",
    "paused",
    "resumed",
    "active",
    "delayed",
    "priority",
    "completed",
    "failed",
    "repeat",
    "meta-paused",
    "meta",
    "stalled",
    "stalled-check",
    "limiter",
    "progress",
    "drained",
    "duplicated",
    "debounced",
];
/// Beginnings of the keys that are no jobs.
const RESERVED_BEGINNINGS: &[&str] = &["limiter:", "de:", "metrics:"];
/// Ends of the keys that belong to another job.
const RESERVED_ENDS: &[&str] = &[":lock", ":logs"];

/// The keys that scripts are given first: the six of `open_line` in `scripts/prelude.lua`, then the others of `open_queue` in
/// `scripts/placing.lua`.
const BLOCK: [&str; 11] =
    ["wait", "active", "completed", "stalled", "priority", "meta-paused", "paused", "delayed", "id", "failed", "repeat"];

/// The keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// `P:Q:`
    base: String,
    /// `bullwork:cancel:P:Q`: our own, so that Bull's `obliterate` and `removeJobs` never meet it.
    cancel: String,
    /// Written out once, because every script is given them.
    block: Vec<String>,
}

impl Keys {
    pub(super) fn new(prefix: &str, name: &str) -> Self {
        let base = format!("{prefix}:{name}:");
        let block = BLOCK.iter().map(|suffix| format!("{base}{suffix}")).collect();
        Keys { base, cancel: format!("bullwork:cancel:{prefix}:{name}"), block }
    }

    /// `P:Q:`
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn of(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.base)
    }

    pub(super) fn block(&self) -> &[String] {
        &self.block
    }

    pub(super) fn job(&self, id: &str) -> String {
        self.of(id)
    }

    pub(super) fn lock(&self, id: &str) -> String {
        format!("{}{id}:lock", self.base)
    }

    pub(super) fn logs(&self, id: &str) -> String {
        format!("{}{id}:logs", self.base)
    }

    /// Holds who ordered to cancel the job while it runs.
    pub(super) fn cancel(&self, id: &str) -> String {
        format!("{}:{id}", self.cancel)
    }

    /// What belongs to one job's run: the job, its lock, the order to cancel it.
    pub(super) fn of_run(&self, id: &str) -> [String; 3] {
        [self.job(id), self.lock(id), self.cancel(id)]
    }

    /// Channel that tells of such orders.
    pub(super) fn cancel_channel(&self) -> &str {
        &self.cancel
    }
}

/// Refuses what [`check_id`] refuses, and ids that other tools cannot handle.
pub(super) fn check_new_id(id: &str) -> Result<(), QueueError> {
    let reason = if id.len() > LONGEST_ID {
        "it is longer than 512 bytes"
    } else if id.chars().any(char::is_control) {
        "it holds control characters"
    } else {
        return check_id(id);
    };
    Err(refusal(id, reason))
}

/// Refuses ids that are, or hide, another key of the queue. Whatever else a foreign producer thought of is run, shown and removed.
pub(super) fn check_id(id: &str) -> Result<(), QueueError> {
    let reason = if id.is_empty() {
        "it is empty"
    } else if RESERVED.contains(&id) || RESERVED_BEGINNINGS.iter().any(|b| id.starts_with(b)) {
        "a key of the queue has that name"
    } else if RESERVED_ENDS.iter().any(|e| id.ends_with(e)) {
        "a key of another job ends so"
    } else {
        return Ok(());
    };
    Err(refusal(id, reason))
}

fn refusal(id: &str, reason: &'static str) -> QueueError {
    QueueError::InvalidId { id: id.chars().take(80).flat_map(char::escape_default).collect(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_name_another_key_are_refused() {
        let long = "x".repeat(513);
        for id in ["", "wait", "id", "meta", "repeat", "7:lock", "a:logs", "de:x", "limiter:g", "a\nb", "a\0", long.as_str()] {
            assert!(check_new_id(id).is_err(), "{id:?}");
        }
        for id in ["a\nb", "a\0", long.as_str()] {
            assert!(check_id(id).is_ok(), "a job of another program's is handled: {id:?}");
        }
        for id in ["", "wait", "7:lock", "de:x"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["1", "nightly", "repeat:0a:17", "é", "a b", "locked", "waiter"] {
            assert!(check_new_id(id).is_ok(), "{id:?}");
        }
    }
}
