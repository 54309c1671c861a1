//! How long each phase and item of a replication took, from its log.
//!
//! Reads two formats, also mixed in one file: the reference system's, where the platform puts
//! `2026-03-14 05:10:00.123456 +0000` in front of each line and the restore tool tells `launching
//! item` and `finished item`; and our own bunyan lines, with or without that prefix, where one line
//! for each item carries `item_kind`, `item` and `duration_ms`. The report's words and layout are
//! the reference's (contract §10), because people compare reports over years.
//!
//! A run begins at `Start create Backup`; a day with several runs gets a report for each.

use std::collections::HashMap;
use std::fmt;
use std::io::BufRead;

use chrono::{DateTime, NaiveDate};
use serde::Serialize;
use serde_json::Value;

use super::plain::one_line;
use crate::clock::Millis;

/// Kinds of item, in the report's order. A description belongs to the first that it starts with,
/// so `SEQUENCE` counts `SEQUENCE SET` as well.
pub const KINDS: [&str; 5] = ["FK CONSTRAINT", "CONSTRAINT", "INDEX", "SEQUENCE", "TABLE DATA"];

/// Items shown for each kind.
const DETAILS: usize = 3;

const DUMP: &str = "Start create Backup";
const RESTORE: &str = "Start restore";
const ENRICHMENT: &str = "Restore done";
/// The chain's last line; what follows it that day is no part of the run.
const END: &str = "Import and enrichment done";
/// A further run begins, shortly before its [`DUMP`].
const NEXT: &str = "Start import and enrichment";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ParseLogsError {
    /// The date cannot be read.
    #[error("`{0}` is not a date; write it as 2026-03-14")]
    Date(String),
    /// The file cannot be read.
    #[error("reading the log")]
    Io(#[from] std::io::Error),
    /// No line bears the date.
    #[error("the log has no line of {date}{}", match .range { Some((first, last)) => format!("; its lines are from {first} to {last}"), None => String::from(" and no line with a time at all; expected are lines that start with `2026-03-14 05:10:00.000000 +0000` or JSON lines with `time`") })]
    NoLines {
        /// The date asked for.
        date: String,
        /// First and last day that the file does have.
        range: Option<(NaiveDate, NaiveDate)>,
    },
    /// A phase never began.
    #[error("the log of {date} has no line with `{marker}`: {meaning}")]
    Missing {
        /// The date asked for.
        date: String,
        /// Text that was looked for.
        marker: &'static str,
        /// What that means.
        meaning: &'static str,
    },
}

/// One thing that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// As the restore tool describes it: `INDEX answers answers_pkey`.
    pub description: String,
    /// How long it took.
    pub milliseconds: i64,
}

/// Phases of a run that reached its enrichment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phases {
    /// From `Start create Backup` to `Start restore`.
    pub dump_ms: i64,
    /// From there to `Restore done`.
    pub restore_ms: i64,
    /// From there to `Import and enrichment done`, or to the run's last line when there is none.
    pub enrichment_ms: i64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunReport {
    /// Its first line's time of day, as the log writes it.
    pub started: String,
    /// `None` when a marker is missing: the run did not get that far.
    pub phases: Option<Phases>,
    /// The first marker that is missing.
    pub missing: Option<&'static str>,
    /// Finished items in the order they were launched.
    pub items: Vec<Item>,
}

/// All runs of a day; prints as the contract's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// At least one of them is complete.
    pub runs: Vec<RunReport>,
}

/// Reads a log and reports the runs that began on `date` (`YYYY-MM-DD`, as the lines write it; for
/// JSON lines without a prefix that is UTC).
///
/// # Errors
/// When the date or the log cannot be read, or the day holds no complete run; the message names
/// the first marker that is missing.
pub fn run(mut log: impl BufRead, date: &str) -> Result<Report, ParseLogsError> {
    let day = NaiveDate::parse_from_str(date, "%Y-%m-%d")
        .ok()
        .filter(|day| day.to_string() == date)
        .ok_or_else(|| ParseLogsError::Date(date.to_owned()))?;
    let mut runs: Vec<Observed> = Vec::new();
    let mut range: Option<(NaiveDate, NaiveDate)> = None;
    let mut seen = false;
    let mut bytes = Vec::new();
    // Bytes, because a child's message in the log need not be UTF-8.
    while {
        bytes.clear();
        log.read_until(b'\n', &mut bytes)?
    } > 0
    {
        let line = String::from_utf8_lossy(&bytes);
        let Some(line) = Line::read(line.trim_end()) else { continue };
        let line_day = line.time.date_naive();
        range = Some(range.map_or((line_day, line_day), |(first, last)| (first.min(line_day), last.max(line_day))));
        if line_day != day {
            continue;
        }
        seen = true;
        if line.text.contains(DUMP) {
            runs.push(Observed::starting(&line));
        }
        if let Some(run) = runs.last_mut() {
            run.observe(&line);
        }
    }
    let missing = |marker, meaning| Err(ParseLogsError::Missing { date: date.to_owned(), marker, meaning });
    if !seen {
        return Err(ParseLogsError::NoLines { date: date.to_owned(), range });
    }
    let runs: Vec<RunReport> = runs.into_iter().map(Observed::report).collect();
    match runs.last() {
        None => missing(DUMP, "no replication began that day; did it begin the day before?"),
        Some(_) if runs.iter().any(|run| run.phases.is_some()) => Ok(Report { runs }),
        Some(last) if last.missing == Some(RESTORE) => missing(RESTORE, "the replication did not get beyond reading the source"),
        Some(_) => missing(ENRICHMENT, "the copy did not end that day; it failed, or ended after midnight"),
    }
}

/// A line with a time.
struct Line {
    time: DateTime<chrono::FixedOffset>,
    text: String,
    /// Members of the JSON object, when the line is one.
    members: Option<Value>,
}

impl Line {
    fn read(line: &str) -> Option<Line> {
        let prefixed = DateTime::parse_and_remainder(line, "%Y-%m-%d %H:%M:%S%.f %z").ok();
        let rest = prefixed.map_or(line, |(_, rest)| rest);
        let members = rest
            .find('{')
            .and_then(|start| serde_json::from_str::<Value>(&rest[start..]).ok())
            .filter(|members| members.get("msg").is_some_and(Value::is_string));
        let own_time = || DateTime::parse_from_rfc3339(members.as_ref()?.get("time")?.as_str()?).ok();
        let time = prefixed.map(|(time, _)| time).or_else(own_time)?;
        let text = members.as_ref().and_then(|members| members["msg"].as_str()).unwrap_or(rest).to_owned();
        Some(Line { time, text, members })
    }

    /// Our engine's line for a finished item.
    fn item(&self) -> Option<Item> {
        let members = self.members.as_ref()?;
        let kind = members.get("item_kind")?.as_str()?;
        let name = members.get("item")?.as_str()?;
        let duration = members.get("duration_ms")?;
        #[expect(clippy::cast_possible_truncation, reason = "a fraction of a millisecond is nothing here")]
        let milliseconds = duration.as_i64().or_else(|| duration.as_f64().map(|ms| ms as i64))?;
        Some(Item { description: format!("{kind} {name}"), milliseconds: milliseconds.max(0) })
    }

    /// `launching item 12 INDEX answers answers_pkey` → 12 and its description.
    fn numbered(&self, words: &str) -> Option<(u64, &str)> {
        let (_, rest) = self.text.split_once(words)?;
        let (number, description) = rest.trim_start().split_once(' ')?;
        Some((number.parse().ok()?, description.trim()))
    }
}

/// What is known of a run while reading.
struct Observed {
    started: String,
    dump: Millis,
    restore: Option<Millis>,
    enrichment: Option<Millis>,
    last: Millis,
    /// Lines are not the run's any more.
    ended: bool,
    items: Vec<Item>,
    launched: HashMap<u64, (Millis, usize)>,
}

impl Observed {
    fn starting(line: &Line) -> Self {
        let time = line.time.timestamp_millis();
        Observed {
            started: line.time.format("%H:%M:%S").to_string(),
            dump: time,
            restore: None,
            enrichment: None,
            last: time,
            ended: false,
            items: Vec::new(),
            launched: HashMap::new(),
        }
    }

    fn observe(&mut self, line: &Line) {
        self.ended |= line.text.contains(NEXT);
        if self.ended {
            return;
        }
        let time = line.time.timestamp_millis();
        self.last = time;
        self.ended = line.text.contains(END);
        if line.text.contains(RESTORE) {
            self.restore.get_or_insert(time);
        } else if line.text.contains(ENRICHMENT) {
            self.enrichment.get_or_insert(time);
        } else if let Some(item) = line.item() {
            self.items.push(item);
        } else if let Some((number, description)) = line.numbered("launching item ") {
            self.launched.insert(number, (time, self.items.len()));
            // Negative until it is finished, so that items keep the order of their launch.
            self.items.push(Item { description: description.to_owned(), milliseconds: -1 });
        } else if let Some((number, _)) = line.numbered("finished item ")
            && let Some((launch, place)) = self.launched.remove(&number)
        {
            self.items[place].milliseconds = (time - launch).max(0);
        }
    }

    fn report(mut self) -> RunReport {
        self.items.retain(|item| item.milliseconds >= 0);
        let (phases, missing) = match (self.restore, self.enrichment) {
            (Some(restore), Some(enrichment)) => {
                let phases = Phases {
                    dump_ms: (restore - self.dump).max(0),
                    restore_ms: (enrichment - restore).max(0),
                    enrichment_ms: (self.last - enrichment).max(0),
                };
                (Some(phases), None)
            }
            (None, _) => (None, Some(RESTORE)),
            (_, None) => (None, Some(ENRICHMENT)),
        };
        RunReport { started: self.started, phases, missing, items: self.items }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs.iter().enumerate() {
            // A day with one run looks exactly as in the reference.
            if self.runs.len() > 1 {
                if index > 0 {
                    writeln!(f)?;
                }
                writeln!(f, "Réplication {} sur {}, commencée à {}", index + 1, self.runs.len(), run.started)?;
            }
            run.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(phases) = &self.phases else {
            return writeln!(f, "Inachevée : aucune ligne « {} »", self.missing.unwrap_or(ENRICHMENT));
        };
        writeln!(f, "Durée de création du backup: {}", Spell(phases.dump_ms))?;
        writeln!(f, "Durée de réplication: {}", Spell(phases.restore_ms))?;
        writeln!(f, "Durée de l'enrichissement: {}", Spell(phases.enrichment_ms))?;
        writeln!(f, "Durée totale: {}", Spell(phases.dump_ms + phases.restore_ms + phases.enrichment_ms))?;
        for kind in KINDS {
            let mut items: Vec<&Item> = self.items.iter().filter(|item| kind_of(&item.description) == Some(kind)).collect();
            let total: i64 = items.iter().map(|item| item.milliseconds).fold(0, i64::saturating_add);
            writeln!(f, "{kind} total duration : {}", Spell(total))?;
            items.sort_by_key(|item| std::cmp::Reverse(item.milliseconds));
            for item in items.iter().take(DETAILS) {
                writeln!(f, "\t{} : {}", one_line(&item.description), Spell(item.milliseconds))?;
            }
        }
        Ok(())
    }
}

fn kind_of(description: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|kind| description.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
}

/// Milliseconds as `1h 27min 42s`. Rounded to the second before it is split, so that `60s` cannot
/// appear (the reference rounded the seconds alone).
struct Spell(i64);

impl fmt::Display for Spell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.saturating_add(500) / 1000;
        write!(f, "{}h {}min {}s", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}
