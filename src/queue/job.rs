//! A job as it is stored (wire format §2), read without ever failing: whatever a foreign
//! producer wrote must be shown, failed or removed, not crash a worker.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::options::{self, JobOptions, Keep};
use crate::clock::Millis;

/// Name of a job that was added without one.
pub const UNNAMED: &str = "__default__";

/// A job to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// Name; [`UNNAMED`] unless the queue has several sorts of jobs.
    pub name: String,
    /// What the handler is given. `null`, `0`, `false` and `""` are stored as `{}`, as Bull does.
    pub data: Value,
    /// When and how often it runs.
    pub options: JobOptions,
}

impl NewJob {
    /// A job without a name.
    #[must_use]
    pub fn unnamed(data: Value, options: JobOptions) -> Self {
        NewJob { name: UNNAMED.to_owned(), data, options }
    }
}

/// `data` as stored.
pub(super) fn stored_data(data: &Value) -> String {
    let falsy = match data {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if falsy { "{}".to_owned() } else { data.to_string() }
}

/// A stored job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Job {
    /// Its id: a number, a name, or `repeat:<md5>:<slot>`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the handler is given; `{}` when [`Job::data_error`] tells why it cannot be read.
    pub data: Value,
    /// The same as stored.
    pub raw_data: String,
    /// Why `data` cannot be read.
    pub data_error: Option<String>,
    /// All options as stored; `{}` when they cannot be read.
    pub opts: Value,
    /// Failed attempts so far.
    pub attempts_made: u32,
    /// Creation time.
    pub timestamp: Millis,
    /// Wait that was asked for, in ms; 0 once it is over.
    pub delay: Millis,
    /// 1 is taken first; 0 means none.
    pub priority: u32,
    /// Last progress told.
    pub progress: Option<Value>,
    /// Begin of the last attempt.
    pub processed_on: Option<Millis>,
    /// End of the last attempt, when the job is finished.
    pub finished_on: Option<Millis>,
    /// Why the last failed attempt failed. It stays when a later attempt succeeds.
    pub failed_reason: Option<String>,
    /// One for each failed attempt, oldest first.
    pub stacktrace: Vec<String>,
    /// Result.
    pub return_value: Option<Value>,
    /// How often its worker vanished.
    pub stalled_counter: u32,
    /// When it was last retried by hand.
    pub retried_on: Option<Millis>,
}

impl Job {
    /// From the fields of its hash; an empty list is a job that does not exist.
    pub(super) fn from_fields(id: &str, fields: &[String]) -> Option<Self> {
        if fields.is_empty() {
            return None;
        }
        let fields: HashMap<&str, &str> = fields.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
        let text = |name: &str| fields.get(name).copied();
        let json = |name: &str| text(name).and_then(|raw| serde_json::from_str::<Value>(raw).ok());
        let millis = |name: &str| text(name).and_then(leading_integer);
        let small = |name: &str| millis(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);

        let opts = json("opts").filter(Value::is_object).unwrap_or_else(|| Value::Object(Map::new()));
        let raw_data = text("data").unwrap_or("{}").to_owned();
        let (data, data_error) = if options::truthy(opts.get("preventParsingData")) {
            (Value::String(raw_data.clone()), None)
        } else {
            match serde_json::from_str(&raw_data) {
                Ok(data) => (data, None),
                Err(error) => (Value::Object(Map::new()), Some(format!("the job's data is not JSON: {error}"))),
            }
        };
        let stacktrace = match json("stacktrace") {
            Some(Value::Array(lines)) => lines
                .into_iter()
                .map(|line| match line {
                    Value::String(line) => line,
                    other => other.to_string(),
                })
                .collect(),
            _ => Vec::new(),
        };
        Some(Job {
            id: id.to_owned(),
            name: text("name").unwrap_or(UNNAMED).to_owned(),
            data,
            raw_data,
            data_error,
            attempts_made: small("attemptsMade"),
            timestamp: millis("timestamp").unwrap_or(0),
            delay: millis("delay").unwrap_or(0),
            priority: small("priority"),
            progress: json("progress"),
            processed_on: millis("processedOn"),
            finished_on: millis("finishedOn"),
            failed_reason: text("failedReason").map(str::to_owned),
            stacktrace,
            return_value: json("returnvalue"),
            stalled_counter: small("stalledCounter"),
            retried_on: millis("retriedOn"),
            opts,
        })
    }

    /// Tries in all, at least 1.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        options::attempts(&self.opts)
    }

    /// Wait before the next try in milliseconds, when the try that failed now was number `attempts_made`; 0: at once.
    #[must_use]
    pub fn backoff(&self, attempts_made: u32) -> Millis {
        options::backoff_delay(&self.opts, attempts_made)
    }

    /// Longest attempt in milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        options::whole(self.opts.get("timeout")).filter(|ms| *ms > 0)
    }

    /// How many completed jobs stay when it completes.
    #[must_use]
    pub fn keep_completed(&self) -> Keep {
        Keep::from_json(self.opts.get("removeOnComplete"))
    }

    /// How many failed jobs stay when it fails.
    #[must_use]
    pub fn keep_failed(&self) -> Keep {
        Keep::from_json(self.opts.get("removeOnFail"))
    }

    /// Whether it goes to the taking end of the line.
    #[must_use]
    pub fn lifo(&self) -> bool {
        options::truthy(self.opts.get("lifo"))
    }

    /// Key of the schedule that it is a run of.
    #[must_use]
    pub fn repeat_key(&self) -> Option<&str> {
        self.opts.get("repeat")?.get("key")?.as_str()
    }

    /// The slot that it is the run of: the time when the schedule said it should run.
    #[must_use]
    pub fn prev_millis(&self) -> Option<Millis> {
        options::number(self.opts.get("prevMillis")).map(|ms| ms as Millis)
    }

    /// How many runs its schedule has had with it.
    #[must_use]
    pub fn repeat_count(&self) -> u64 {
        options::whole(self.opts.get("repeat").and_then(|repeat| repeat.get("count"))).unwrap_or(0)
    }
}

/// What JavaScript's `parseInt` reads: an integer at the beginning, whatever follows.
fn leading_integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let sign = usize::from(text.starts_with(['-', '+']));
    let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
    text[..sign + digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(fields: &[(&str, &str)]) -> Job {
        let flat: Vec<String> = fields.iter().flat_map(|(k, v)| [(*k).to_owned(), (*v).to_owned()]).collect();
        Job::from_fields("7", &flat).expect("fields were given")
    }

    #[test]
    fn a_hash_with_nothing_but_rubbish_is_still_a_job() {
        let odd = job(&[
            ("data", "{broken"),
            ("opts", "[1]"),
            ("timestamp", "soon"),
            ("attemptsMade", "-4"),
            ("priority", "99999999999999999999"),
            ("stacktrace", "\"x\""),
            ("progress", "nope"),
            ("stalledCounter", ""),
        ]);
        assert!(odd.data_error.as_deref().is_some_and(|e| e.contains("not JSON")));
        assert_eq!((odd.raw_data.as_str(), odd.attempts(), odd.attempts_made), ("{broken", 1, 0));
        assert_eq!((odd.name.as_str(), odd.timestamp, odd.priority), (UNNAMED, 0, 0));
        assert!(odd.stacktrace.is_empty() && odd.progress.is_none() && odd.repeat_key().is_none());
        assert_eq!(Job::from_fields("7", &[]), None);
    }

    #[test]
    fn numbers_are_read_as_parse_int_does() {
        let read = job(&[("timestamp", "1700000000000.7"), ("delay", " 12ms"), ("processedOn", "-5"), ("finishedOn", "x1")]);
        assert_eq!((read.timestamp, read.delay, read.processed_on, read.finished_on), (1_700_000_000_000, 12, Some(-5), None));
    }

    #[test]
    fn data_is_left_as_text_when_the_producer_asks_for_it() {
        let raw = job(&[("data", "not json"), ("opts", r#"{"preventParsingData":true}"#)]);
        assert_eq!((raw.data, raw.data_error), (Value::String("not json".into()), None));
    }
}
