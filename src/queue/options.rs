//! Job options as Bull stores them in the `opts` field (wire format §3).

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock::Millis;

/// Wait before another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// `fixed`, `exponential`, or a strategy that some worker registered.
    pub kind: String,
    /// Base in milliseconds.
    pub delay: u64,
}

impl Backoff {
    /// `(2^failures - 1) × base` before the next try.
    #[must_use]
    pub fn exponential(base: Duration) -> Self {
        Backoff { kind: "exponential".to_owned(), delay: u64::try_from(base.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The same wait before each try.
    #[must_use]
    pub fn fixed(delay: Duration) -> Self {
        Backoff { kind: "fixed".to_owned(), delay: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// How many finished jobs stay (wire format §6.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All of them.
    #[default]
    All,
    /// None: the job goes as it finishes.
    None,
    /// The newest so many.
    Count(u64),
    /// Those younger than `seconds`, and of them the newest `count`.
    Age {
        /// Greatest age in seconds.
        seconds: u64,
        /// Greatest number.
        count: Option<u64>,
    },
}

/// What a producer asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobOptions {
    /// Tries in all; 0 is stored as given and acts as 1.
    pub attempts: u32,
    /// Wait between tries; none: at once.
    pub backoff: Option<Backoff>,
    /// Wait before the first try, in milliseconds.
    pub delay: i64,
    /// 1 is taken first; 0 means none.
    pub priority: u32,
    /// Taken before what waits already.
    pub lifo: bool,
    /// Own id instead of the counter's.
    pub job_id: Option<String>,
    /// Creation time; now when absent.
    pub timestamp: Option<Millis>,
    /// Kept completed jobs.
    pub remove_on_complete: Keep,
    /// Kept failed jobs.
    pub remove_on_fail: Keep,
    /// Members this type does not know, kept as they are.
    pub other: Map<String, Value>,
}

impl Keep {
    fn to_json(self) -> Option<Value> {
        match self {
            Keep::All => None,
            Keep::None => Some(json!(true)),
            Keep::Count(n) => Some(json!(n)),
            Keep::Age { seconds, count: Some(count) } => Some(json!({"age": seconds, "count": count})),
            Keep::Age { seconds, count: None } => Some(json!({"age": seconds})),
        }
    }
}

impl JobOptions {
    /// As stored, with `now` for an absent timestamp.
    #[must_use]
    pub fn to_json(&self, now: Millis) -> Value {
        let mut opts = self.other.clone();
        if self.priority > 0 {
            opts.insert("priority".into(), json!(self.priority));
        }
        if self.lifo {
            opts.insert("lifo".into(), json!(true));
        }
        if let Some(keep) = self.remove_on_complete.to_json() {
            opts.insert("removeOnComplete".into(), keep);
        }
        if let Some(keep) = self.remove_on_fail.to_json() {
            opts.insert("removeOnFail".into(), keep);
        }
        if let Some(id) = &self.job_id {
            opts.insert("jobId".into(), json!(id));
        }
        opts.insert("attempts".into(), json!(self.attempts.max(1)));
        opts.insert("delay".into(), json!(self.delay));
        opts.insert("timestamp".into(), json!(self.timestamp.unwrap_or(now)));
        if let Some(backoff) = &self.backoff {
            opts.insert("backoff".into(), json!({"type": backoff.kind, "delay": backoff.delay}));
        }
        Value::Object(opts)
    }
}
