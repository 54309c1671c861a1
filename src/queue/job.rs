//! A job as it is stored (wire format §2), read without ever failing: whatever a foreign
//! producer wrote must be shown, failed or removed, not crash a worker.

use serde_json::{Map, Value};

use super::options::{self, JobOptions, Keep};
use super::scripts::text_of;
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
    /// Id of the debounce that it was added with.
    pub debounce: Option<String>,
}

impl Job {
    /// From fields and values of its hash in turn; none are a job that does not exist.
    pub(super) fn from_fields(id: &str, hash: redis::Value) -> Option<Self> {
        let redis::Value::Array(fields) = hash else { return None };
        let mut job = Job { id: id.to_owned(), raw_data: "{}".to_owned(), name: UNNAMED.to_owned(), ..Job::default() };
        let mut opts = None;
        let mut fields = fields.into_iter().peekable();
        fields.peek()?;
        while let (Some(redis::Value::BulkString(name)), Some(value)) = (fields.next(), fields.next()) {
            let text = text_of(value);
            match name.as_slice() {
                b"name" => job.name = text,
                b"data" => job.raw_data = text,
                b"opts" => opts = json(&text).filter(Value::is_object),
                b"attemptsMade" => job.attempts_made = small(&text),
                b"timestamp" => job.timestamp = leading_integer(&text).unwrap_or(0),
                b"delay" => job.delay = leading_integer(&text).unwrap_or(0),
                b"priority" => job.priority = small(&text),
                b"progress" => job.progress = json(&text),
                b"processedOn" => job.processed_on = leading_integer(&text),
                b"finishedOn" => job.finished_on = leading_integer(&text),
                b"failedReason" => job.failed_reason = Some(text),
                b"stacktrace" => job.stacktrace = stack_traces(&text),
                b"returnvalue" => job.return_value = json(&text),
                b"stalledCounter" => job.stalled_counter = small(&text),
                b"deid" => job.debounce = Some(text),
                b"retriedOn" => job.retried_on = leading_integer(&text),
                _ => {}
            }
        }
        job.opts = opts.unwrap_or_else(|| Value::Object(Map::new()));
        if options::truthy(job.opts.get("preventParsingData")) {
            job.data = Value::String(job.raw_data.clone());
        } else {
            match serde_json::from_str(&job.raw_data) {
                Ok(data) => job.data = data,
                Err(error) => {
                    job.data = Value::Object(Map::new());
                    job.data_error = Some(format!("the job's data is not JSON: {error}"));
                }
            }
        }
        Some(job)
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

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

fn small(text: &str) -> u32 {
    leading_integer(text).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn stack_traces(text: &str) -> Vec<String> {
    let Some(Value::Array(traces)) = json(text) else { return Vec::new() };
    let text_of = |trace| match trace {
        Value::String(trace) => trace,
        other => other.to_string(),
    };
    traces.into_iter().map(text_of).collect()
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
        let text = |text: &str| redis::Value::BulkString(text.as_bytes().to_vec());
        let flat = fields.iter().flat_map(|(k, v)| [text(k), text(v)]).collect();
        Job::from_fields("7", redis::Value::Array(flat)).expect("fields were given")
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
        assert_eq!(Job::from_fields("7", redis::Value::Array(Vec::new())), None);
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
