//! Repeatable jobs (wire format §7).
//!
//! A schedule is a member of the sorted set `repeat`: its key names it, its score is the next slot.
//! The run for that slot is an ordinary delayed job whose id is made of both, so however many
//! programs arm a schedule, each slot has one run. Taking a run creates the next one.

use md5::{Digest, Md5};
use serde_json::{Map, Value, json};

use super::add::Stored;
use super::job::{Job, stored_data};
use super::options::{self, JobOptions};
use super::scripts::NO_MORE;
use super::{Queue, QueueError, scripts};
use crate::clock::Millis;
use crate::cron;

/// Longest period in milliseconds, some 140 000 years: beyond it a time cannot be told.
const LONGEST_PERIOD: u64 = 1 << 52;

/// When a job repeats. Either `cron` or `every` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repeat {
    /// Cron expression in Bull's dialect.
    pub cron: Option<String>,
    /// Period in milliseconds, aligned on the epoch.
    pub every: Option<u64>,
    /// IANA time zone of `cron`; the process's own when absent.
    pub time_zone: Option<String>,
    /// No slot before it; only with `cron`.
    pub start: Option<Millis>,
    /// No slot after it.
    pub end: Option<Millis>,
    /// Runs in all.
    pub limit: Option<u64>,
    /// Runs so far.
    pub count: u64,
    /// Tells schedules with the same times apart.
    pub id: Option<String>,
}

impl Repeat {
    /// By a cron expression in a time zone.
    pub fn cron(expression: impl Into<String>, time_zone: Option<&str>) -> Self {
        Repeat { cron: Some(expression.into()), time_zone: time_zone.map(str::to_owned), ..Repeat::default() }
    }

    /// Every so many milliseconds.
    #[must_use]
    pub fn every(milliseconds: u64) -> Self {
        Repeat { every: Some(milliseconds), ..Repeat::default() }
    }

    /// The schedule that a stored job is a run of.
    #[must_use]
    pub fn of(job: &Job) -> Option<Self> {
        let stored = job.opts.get("repeat")?.as_object()?;
        let text = |name: &str| stored.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
        let time = |name: &str| match stored.get(name)? {
            Value::String(text) => match chrono::DateTime::parse_from_rfc3339(text) {
                Ok(at) => Some(at.timestamp_millis()),
                Err(_) => text.parse().ok(),
            },
            other => options::number(Some(other)).map(|ms| ms as Millis),
        };
        Some(Repeat {
            cron: text("cron"),
            every: options::whole(stored.get("every")).filter(|ms| *ms > 0),
            time_zone: text("tz"),
            start: time("startDate"),
            end: time("endDate"),
            limit: options::whole(stored.get("limit")).filter(|n| *n > 0),
            count: job.repeat_count(),
            id: match stored.get("jobId") {
                Some(Value::Number(id)) => Some(id.to_string()),
                _ => text("jobId"),
            },
        })
    }

    /// Its member of the set `repeat`, for jobs called `name`. Limit, start and job options are no part of it.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        let id = self.id.as_deref().unwrap_or_default();
        let end = self.end.map(|ms| ms.to_string()).unwrap_or_default();
        match (&self.cron, self.every) {
            (Some(cron), _) => format!("{name}:{id}:{end}:{}:{cron}", self.time_zone.as_deref().unwrap_or_default()),
            (None, every) => format!("{name}:{id}:{end}:{}", every.unwrap_or(0)),
        }
    }

    /// The slot after `previous`, the slot of the run just taken; none when the schedule is over. Slots that
    /// were missed are skipped. `next_match` finds the first match of an expression in a zone strictly after a time:
    /// [`crate::cron::next_run`] does, in Bull's dialect.
    ///
    /// # Errors
    /// [`QueueError::InvalidSchedule`] when neither or both of `cron` and `every` are set, or as `next_match` says.
    pub fn next_slot<E: std::fmt::Display>(
        &self,
        previous: Option<Millis>,
        now: Millis,
        next_match: impl FnOnce(&str, Option<&str>, Millis) -> Result<Option<Millis>, E>,
    ) -> Result<Option<Millis>, QueueError> {
        if self.end.is_some_and(|end| now > end) || self.limit.is_some_and(|limit| self.count >= limit) {
            return Ok(None);
        }
        let base = previous.unwrap_or(0).max(now);
        // Bull takes an empty expression for "every minute" by mistake.
        let cron = self.cron.as_deref().filter(|cron| !cron.trim().is_empty());
        match (cron, self.every.and_then(|ms| Millis::try_from(ms).ok()).filter(|ms| *ms > 0)) {
            (Some(cron), None) => {
                let base = self.start.map_or(base, |start| start.max(base));
                let slot = next_match(cron, self.time_zone.as_deref(), base)
                    .map_err(|error| QueueError::InvalidSchedule(error.to_string()))?;
                Ok(slot.filter(|slot| self.end.is_none_or(|end| *slot <= end)))
            }
            (None, Some(every)) => Ok((base / every).checked_mul(every).and_then(|slot| slot.checked_add(every))),
            (Some(_), Some(_)) => Err(QueueError::InvalidSchedule("it has both `cron` and `every`; give one".into())),
            (None, None) => Err(QueueError::InvalidSchedule("it has neither `cron` nor a positive `every`".into())),
        }
    }

    /// Refuses a schedule that no worker could run.
    fn check(&self, now: Millis) -> Result<(), QueueError> {
        let refused = |reason: String| Err(QueueError::InvalidSchedule(reason));
        if self.limit == Some(0) {
            return refused("its `limit` is 0, so it never runs; leave it out or give a positive number".into());
        }
        if self.every.is_some_and(|every| every > LONGEST_PERIOD) {
            return refused(format!("its `every` is more than {LONGEST_PERIOD} ms"));
        }
        // Neither end nor number of runs matter here: a schedule that is over stays over.
        let forever = Repeat { end: None, limit: None, ..self.clone() };
        match forever.next_slot(None, now, cron::next_run)? {
            Some(_) => Ok(()),
            None => refused(format!("`{}` never fires", self.cron.as_deref().unwrap_or_default())),
        }
    }

    fn to_json(&self, key: &str, count: u64) -> Value {
        let mut stored = Map::new();
        stored.insert("count".into(), json!(count));
        stored.insert("key".into(), json!(key));
        let members = [
            ("cron", self.cron.as_ref().map(|v| json!(v))),
            ("every", self.every.map(|v| json!(v))),
            ("tz", self.time_zone.as_ref().map(|v| json!(v))),
            ("startDate", self.start.map(|v| json!(v))),
            ("endDate", self.end.map(|v| json!(v))),
            ("limit", self.limit.map(|v| json!(v))),
            ("jobId", self.id.as_ref().map(|v| json!(v))),
        ];
        for (name, value) in members {
            if let Some(value) = value {
                stored.insert(name.into(), value);
            }
        }
        Value::Object(stored)
    }
}

fn md5_hex(text: &str) -> String {
    Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Id of a schedule's runs without the slot: `repeat:<md5>:`.
fn run_id_base(name: &str, id: Option<&str>, key: &str) -> String {
    format!("repeat:{}:", md5_hex(&format!("{name}{}:{}", id.unwrap_or_default(), md5_hex(key))))
}

/// What arming a schedule did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Armed {
    /// A run was added.
    Added {
        /// The run.
        id: String,
        /// When it is due.
        slot: Millis,
    },
    /// A run is pending already; its data and options stay as they are.
    Pending {
        /// When it is, or was, due.
        slot: Millis,
    },
    /// The schedule was removed meanwhile; no run was added.
    Removed,
}

/// A schedule as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatEntry {
    /// Its member of the set, all that identifies it. The parts below are wrong when a name or id holds `:`.
    pub key: String,
    /// Name of its jobs.
    pub name: String,
    /// Its own id.
    pub id: Option<String>,
    /// When it ends.
    pub end: Option<Millis>,
    /// Time zone of `cron`.
    pub time_zone: Option<String>,
    /// Cron expression.
    pub cron: Option<String>,
    /// Period in milliseconds.
    pub every: Option<u64>,
    /// Next slot.
    pub next: Millis,
    /// Why our workers cannot run it, as far as its key tells: the run that is pending, if any, is the last.
    pub problem: Option<String>,
}

impl RepeatEntry {
    /// Splits a key into its parts.
    #[must_use]
    pub fn parse(key: &str, next: Millis) -> Self {
        let parts: Vec<&str> = key.split(':').collect();
        let part = |n: usize| parts.get(n).copied().filter(|text| !text.is_empty());
        let has_cron = parts.len() > 4;
        RepeatEntry {
            key: key.to_owned(),
            name: parts[0].to_owned(),
            id: part(1).map(str::to_owned),
            end: part(2).and_then(|ms| ms.parse().ok()),
            time_zone: part(3).filter(|_| has_cron).map(str::to_owned),
            cron: part(4).map(str::to_owned),
            every: part(3).filter(|_| !has_cron).and_then(|ms| ms.parse().ok()),
            next,
            problem: problem(key, next),
        }
    }
}

/// What is wrong with the times in a key. They are its last parts, whatever name and id hold.
fn problem(key: &str, next: Millis) -> Option<String> {
    let mut parts = key.rsplit(':');
    let times = parts.next()?;
    let repeat = match times.parse() {
        Ok(every) => Repeat::every(every),
        Err(_) => Repeat::cron(times, parts.next().filter(|zone| !zone.is_empty())),
    };
    repeat.check(next).err().map(|error| error.to_string())
}

/// One run, before it is stored.
struct Run<'a> {
    name: &'a str,
    key: &'a str,
    id_base: String,
    data: String,
    repeat: Value,
    /// Options besides those that each run has of its own.
    options: Map<String, Value>,
    slot: Millis,
    when: When,
}

/// When a run is written; as `scripts/arm.lua` is told it.
#[derive(Clone, Copy)]
enum When {
    /// None is pending.
    NonePending = 0,
    /// Its schedule stands.
    Scheduled = 1,
    /// It is pending and delayed: it is changed.
    Delayed = 2,
}

impl Queue {
    /// Makes sure that a schedule stands and has a pending run: adds the one for `slot` when none is pending.
    /// Safe to call by several programs and at every start. `previous` is the last run known, for the count. `slot` is what
    /// [`Repeat::next_slot`] says; a [`super::Consumer`] that takes the run arms the next one.
    ///
    /// # Errors
    /// [`QueueError::InvalidSchedule`] when it cannot run, with nothing written: neither or both of `cron` and `every`, a limit of 0,
    /// an expression that cannot be read or never fires, a time zone that nobody knows. [`QueueError::WrongType`], or Redis's.
    pub async fn arm(
        &self,
        repeat: &Repeat,
        name: &str,
        data: &Value,
        options: &JobOptions,
        slot: Millis,
        previous: Option<&Job>,
    ) -> Result<Armed, QueueError> {
        repeat.check(self.clock().now())?;
        let mut repeat = repeat.clone();
        // As Bull: an id given for the job names the schedule.
        repeat.id = repeat.id.or_else(|| options.job_id.clone());
        let key = repeat.key(name);
        let count = previous.map_or(repeat.count, Job::repeat_count).saturating_add(1);
        let opts = match options.to_json(self.clock().now()) {
            Value::Object(opts) => opts,
            _ => Map::new(),
        };
        self.arm_run(Run {
            name,
            key: &key,
            id_base: run_id_base(name, repeat.id.as_deref(), &key),
            data: stored_data(data),
            repeat: repeat.to_json(&key, count),
            options: opts,
            slot,
            when: When::NonePending,
        })
        .await
    }

    /// Makes the schedule called `id` what is given here, whatever it was: its times are replaced, where Bull would keep both
    /// schedules, and the data and options of its pending run are changed while that is delayed, where Bull would ignore
    /// them. Other schedules for jobs called `name` with that id are removed; the new one is armed before, so that one
    /// of them stands if this is broken off: call it again.
    ///
    /// # Errors
    /// As [`Queue::arm`].
    pub async fn set_schedule(
        &self,
        id: &str,
        repeat: &Repeat,
        name: &str,
        data: &Value,
        options: &JobOptions,
        slot: Millis,
    ) -> Result<Armed, QueueError> {
        let repeat = Repeat { id: Some(id.to_owned()), ..repeat.clone() };
        let key = repeat.key(name);
        let armed = self.arm(&repeat, name, data, options, slot, None).await?;
        if let Armed::Pending { slot } = armed {
            let id_base = run_id_base(name, Some(id), &key);
            let count = self.job(&format!("{id_base}{slot}")).await?.map_or(1, |run| run.repeat_count());
            let opts = options.to_json(self.clock().now()).as_object().cloned().unwrap_or_default();
            let (data, repeat) = (stored_data(data), repeat.to_json(&key, count));
            self.arm_run(Run { name, key: &key, id_base, data, repeat, options: opts, slot, when: When::Delayed }).await?;
        }
        for other in self.schedules().await? {
            if other.key != key && is_named(&other.key, name, id) {
                self.remove_schedule(&other.key).await?;
            }
        }
        Ok(armed)
    }

    /// Adds the run that follows `job`, which was just taken, with the same data and options. Does nothing
    /// when the schedule was removed, or `job` is no run of one.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn next_of(&self, job: &Job, slot: Millis) -> Result<Armed, QueueError> {
        let (Some(key), Some(opts)) = (job.repeat_key(), job.opts.as_object()) else { return Ok(Armed::Removed) };
        let mut repeat = opts.get("repeat").cloned().unwrap_or_default();
        repeat["count"] = json!(job.repeat_count().saturating_add(1));
        let id = Repeat::of(job).and_then(|repeat| repeat.id);
        self.arm_run(Run {
            name: &job.name,
            key,
            id_base: run_id_base(&job.name, id.as_deref(), key),
            data: job.raw_data.clone(),
            repeat,
            options: opts.clone(),
            slot,
            when: When::Scheduled,
        })
        .await
    }

    async fn arm_run(&self, run: Run<'_>) -> Result<Armed, QueueError> {
        let now = self.clock().now();
        let id = format!("{}{}", run.id_base, run.slot);
        let delay = run.slot.saturating_sub(now).max(0);
        let mut opts = Map::new();
        opts.insert("repeat".into(), run.repeat);
        opts.insert("jobId".into(), json!(id));
        opts.insert("delay".into(), json!(delay));
        opts.insert("timestamp".into(), json!(now));
        opts.insert("prevMillis".into(), json!(run.slot));
        for (name, value) in run.options {
            opts.entry(name).or_insert(value);
        }
        let opts = Value::Object(opts);
        let stored = Stored {
            name: run.name.to_owned(),
            data: run.data,
            timestamp: now,
            delay,
            priority: options::whole(opts.get("priority")).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            lifo: options::truthy(opts.get("lifo")),
            debounce: None,
            opts,
            id,
        };
        let mut call = self.call(&scripts::ARM, &[self.keys().job(&stored.id)]);
        call.arg(run.key).arg(run.slot).arg(run.id_base).arg(run.when as u8);
        stored.append_to(&mut call);
        let mut answer = self.run(&stored.id, &call).await?;
        Ok(match answer.code {
            0 => Armed::Removed,
            1 => Armed::Pending { slot: slot_of(&answer.text()?) },
            _ => Armed::Added { id: stored.id, slot: run.slot },
        })
    }

    /// All schedules, the one that is due last first.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn schedules(&self) -> Result<Vec<RepeatEntry>, QueueError> {
        let mut connection = self.connection().await?;
        let stored: Vec<(Vec<u8>, String)> =
            redis::Cmd::zrevrange_withscores(self.keys().of("repeat"), 0, -1).query_async(&mut connection).await?;
        Ok(stored.iter().map(|(key, next)| RepeatEntry::parse(&String::from_utf8_lossy(key), slot_of(next))).collect())
    }

    /// Removes a schedule and its delayed runs; tells whether it stood. A run that waits or is active ends
    /// normally and is the last.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn remove_schedule(&self, key: &str) -> Result<bool, QueueError> {
        let mut call = self.call(&scripts::REMOVE_SCHEDULE, NO_MORE);
        call.arg(key);
        Ok(self.run("", &call).await?.code > 0)
    }
}

/// Whether `key` is that of the schedule `id` for jobs called `name`, rather than of a name that goes on with `:id:`. What
/// follows is its end or nothing.
fn is_named(key: &str, name: &str, id: &str) -> bool {
    let rest = key.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')?.strip_prefix(id)?.strip_prefix(':'));
    let end = rest.and_then(|rest| rest.split_once(':')).map(|(end, _)| end);
    end.is_some_and(|end| end.is_empty() || end.len() > 11 && end.bytes().all(|b| b.is_ascii_digit()))
}

/// A score as a time; foreign programs may have written a fraction.
fn slot_of(score: &str) -> Millis {
    score.parse::<f64>().map_or(0, |ms| ms as Millis)
}
