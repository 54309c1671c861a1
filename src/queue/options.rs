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

/// Jobs that stand for the same thing: while one of them holds the name, adding another adds nothing (wire format §6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// What they stand for.
    pub id: String,
    /// How long the name is held, in milliseconds; until the job is finished or removed when absent.
    pub ttl: Option<u64>,
}

impl Debounce {
    /// Its `ttl` as Redis takes it, which knows no time of 0 and none beyond 2^53.
    pub(super) fn expiry(&self) -> Option<u64> {
        self.ttl.filter(|ttl| *ttl > 0).map(|ttl| ttl.min(1 << 52))
    }
}

/// What a producer asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobOptions {
    /// Tries in all; 0 means 1.
    pub attempts: u32,
    /// Wait between tries; none: at once.
    pub backoff: Option<Backoff>,
    /// Wait before the first try, in milliseconds.
    pub delay: i64,
    /// 1 is taken first, before jobs without one; 0 means none.
    pub priority: u32,
    /// Taken before what waits already, jobs with a priority too. With a priority of its own it has no effect.
    pub lifo: bool,
    /// Own id instead of the counter's.
    pub job_id: Option<String>,
    /// Creation time; now when absent.
    pub timestamp: Option<Millis>,
    /// Kept completed jobs.
    pub remove_on_complete: Keep,
    /// Kept failed jobs.
    pub remove_on_fail: Keep,
    /// Longest attempt in milliseconds, enforced by the worker.
    pub timeout: Option<u64>,
    /// Newest stack traces kept; all when absent or 0.
    pub stack_trace_limit: Option<u64>,
    /// What it stands for, so that it is not added twice.
    pub debounce: Option<Debounce>,
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

    /// Reads what a producer stored; what cannot be read keeps all.
    #[must_use]
    pub fn from_json(stored: Option<&Value>) -> Self {
        match stored {
            Some(Value::Bool(true)) => Keep::None,
            Some(Value::String(text)) if text == "true" => Keep::None,
            Some(Value::Object(limits)) => {
                let count = number(limits.get("count")).filter(|n| *n >= 0.0).map(|n| n as u64);
                match (number(limits.get("age")).filter(|n| *n >= 0.0), count) {
                    (_, Some(0)) => Keep::None,
                    (Some(seconds), count) => Keep::Age { seconds: seconds as u64, count },
                    (None, Some(count)) => Keep::Count(count),
                    (None, None) => Keep::All,
                }
            }
            other => match number(other) {
                Some(n) if n >= 1.0 => Keep::Count(n as u64),
                Some(n) if n >= 0.0 => Keep::None,
                _ => Keep::All,
            },
        }
    }

    /// Number and age in seconds as the scripts take them: below 0 is no limit.
    pub(super) fn limits(self) -> (i64, i64) {
        let fit = |n: u64| i64::try_from(n).unwrap_or(i64::MAX).min(1 << 40);
        match self {
            Keep::All => (-1, -1),
            Keep::None => (0, -1),
            Keep::Count(n) => (fit(n), -1),
            Keep::Age { seconds, count } => (count.map_or(-1, fit), fit(seconds)),
        }
    }
}

/// A number, or text that is one (tools store both); nothing else.
pub(super) fn number(stored: Option<&Value>) -> Option<f64> {
    match stored? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|n: &f64| n.is_finite())
}

/// The same without its fraction, when it is not negative.
pub(super) fn whole(stored: Option<&Value>) -> Option<u64> {
    number(stored).filter(|n| *n >= 0.0).map(|n| n as u64)
}

/// What JavaScript takes for true.
pub(super) fn truthy(stored: Option<&Value>) -> bool {
    match stored {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// Tries in all that stored options ask for, at least 1.
pub(super) fn attempts(opts: &Value) -> u32 {
    whole(opts.get("attempts")).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX)).max(1)
}

/// Wait in milliseconds after failure number `failures` (wire format §6.7).
///
/// A strategy that only some other worker knows waits its plain `delay`: Bull's error there would
/// leave the job in `active`, and failing it for good would lose its tries.
pub(super) fn backoff_delay(opts: &Value, failures: u32) -> Millis {
    let Some(backoff) = opts.get("backoff") else { return 0 };
    let Some(base) = number(Some(backoff)).or_else(|| number(backoff.get("delay"))) else { return 0 };
    let wait = match backoff.get("type").and_then(Value::as_str) {
        Some("exponential") => ((2_f64.powi(i32::try_from(failures).unwrap_or(i32::MAX)) - 1.0) * base + 0.5).floor(),
        _ => base,
    };
    // A hundred years: beyond that a score has no meaning.
    wait.clamp(0.0, 3.2e12) as Millis
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
        if let Some(timeout) = self.timeout {
            opts.insert("timeout".into(), json!(timeout));
        }
        if let Some(limit) = self.stack_trace_limit {
            opts.insert("stackTraceLimit".into(), json!(limit));
        }
        if let Some(id) = &self.job_id {
            opts.insert("jobId".into(), json!(id));
        }
        if let Some(debounce) = &self.debounce {
            let mut stored = json!({"id": debounce.id});
            if let Some(ttl) = debounce.ttl {
                stored["ttl"] = json!(ttl);
            }
            opts.insert("debounce".into(), stored);
        }
        opts.insert("attempts".into(), json!(self.attempts.max(1)));
        opts.insert("delay".into(), json!(self.delay));
        opts.insert("timestamp".into(), json!(self.timestamp.unwrap_or(now)));
        if let Some(backoff) = &self.backoff {
            opts.insert("backoff".into(), json!({"type": backoff.kind, "delay": backoff.delay}));
        }
        Value::Object(opts)
    }

    /// Reads stored options. Members that this type does not know, or that hold something it
    /// cannot express, are kept in [`JobOptions::other`].
    #[must_use]
    pub fn from_json(stored: &Value) -> Self {
        let mut other = stored.as_object().cloned().unwrap_or_default();
        let mut take = |name: &str| other.shift_remove(name);
        let attempts = take("attempts");
        let delay = take("delay");
        let timestamp = take("timestamp");
        let priority = take("priority");
        let lifo = take("lifo");
        let timeout = take("timeout");
        let limit = take("stackTraceLimit");
        let complete = take("removeOnComplete");
        let fail = take("removeOnFail");
        let job_id = take("jobId").and_then(|id| match id {
            Value::String(id) => Some(id),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        });
        let debounce = take("debounce").and_then(|stored| {
            let id = match stored.get("id")? {
                Value::String(id) => id.clone(),
                Value::Number(id) => id.to_string(),
                _ => return None,
            };
            Some(Debounce { id, ttl: whole(stored.get("ttl")).filter(|ttl| *ttl > 0) })
        });
        let backoff = match take("backoff") {
            Some(Value::Object(stored)) => Some(Backoff {
                kind: stored.get("type").and_then(Value::as_str).unwrap_or("fixed").to_owned(),
                delay: whole(stored.get("delay")).unwrap_or(0),
            }),
            stored => whole(stored.as_ref()).map(|delay| Backoff { kind: "fixed".to_owned(), delay }),
        };
        JobOptions {
            attempts: whole(attempts.as_ref()).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            backoff,
            delay: number(delay.as_ref()).map_or(0, |ms| ms as i64),
            priority: whole(priority.as_ref()).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            lifo: truthy(lifo.as_ref()),
            job_id,
            timestamp: number(timestamp.as_ref()).map(|ms| ms as Millis),
            remove_on_complete: Keep::from_json(complete.as_ref()),
            remove_on_fail: Keep::from_json(fail.as_ref()),
            timeout: whole(timeout.as_ref()),
            stack_trace_limit: whole(limit.as_ref()),
            debounce,
            other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_read_however_tools_wrote_it() {
        let cases = [
            (json!(true), Keep::None),
            (json!("true"), Keep::None),
            (json!(0), Keep::None),
            (json!(false), Keep::All),
            (json!(null), Keep::All),
            (json!(-1), Keep::All),
            (json!("x"), Keep::All),
            (json!(["x"]), Keep::All),
            (json!(7), Keep::Count(7)),
            (json!("7"), Keep::Count(7)),
            (json!({"count": 0, "age": 5}), Keep::None),
            (json!({"age": "60"}), Keep::Age { seconds: 60, count: None }),
            (json!({"age": 60, "count": 2}), Keep::Age { seconds: 60, count: Some(2) }),
            (json!({"age": null, "count": -1}), Keep::All),
        ];
        for (stored, keep) in cases {
            assert_eq!(Keep::from_json(Some(&stored)), keep, "{stored}");
        }
        assert_eq!(Keep::from_json(None), Keep::All);
        assert_eq!(Keep::Count(u64::MAX).limits(), (1 << 40, -1));
    }

    #[test]
    fn options_survive_being_stored_and_read() {
        let options = JobOptions {
            attempts: 4,
            backoff: Some(Backoff::exponential(Duration::from_millis(700))),
            delay: 90,
            priority: 2,
            lifo: true,
            job_id: Some("x".into()),
            timestamp: Some(12),
            remove_on_complete: Keep::Count(3),
            remove_on_fail: Keep::Age { seconds: 9, count: Some(1) },
            timeout: Some(100),
            stack_trace_limit: Some(2),
            debounce: Some(Debounce { id: "user 7".into(), ttl: Some(500) }),
            other: json!({"custom": [1]}).as_object().cloned().unwrap_or_default(),
        };
        assert_eq!(JobOptions::from_json(&options.to_json(0)), options);
        assert_eq!(JobOptions::from_json(&json!("rubbish")), JobOptions { attempts: 1, ..JobOptions::default() });
    }
}
