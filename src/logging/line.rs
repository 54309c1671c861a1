//! The two forms of a log line.

use std::fmt::Write;

use serde_json::{Map, Value};
use tracing::Level;

use crate::clock::{Millis, to_rfc3339};
use crate::redact::scrub;

/// Members that every JSON line has; a field of the same name gets a `_` behind it.
const CORE: [&str; 7] = ["name", "hostname", "pid", "level", "msg", "time", "v"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text { colours: bool },
}

/// Who writes the lines.
pub(super) struct Origin {
    pub(super) app: String,
    pub(super) host: String,
    pub(super) process: u32,
}

/// One line, masked.
pub(super) struct Record {
    pub(super) level: Level,
    pub(super) time: Millis,
    pub(super) message: String,
    pub(super) fields: Map<String, Value>,
}

impl Record {
    pub(super) fn new(level: Level, time: Millis, message: &str, fields: Map<String, Value>) -> Self {
        Record { level, time, message: scrub(message), fields: masked_members(fields) }
    }

    /// The line with its line feed.
    pub(super) fn render(&self, form: Form, origin: &Origin) -> String {
        match form {
            Form::Json => self.json(origin),
            Form::Text { colours } => self.text(colours),
        }
    }

    fn json(&self, origin: &Origin) -> String {
        let mut line = Map::new();
        line.insert("name".to_owned(), origin.app.clone().into());
        line.insert("hostname".to_owned(), origin.host.clone().into());
        line.insert("pid".to_owned(), origin.process.into());
        line.insert("level".to_owned(), bunyan_level(self.level).into());
        for (name, value) in &self.fields {
            let name = if CORE.contains(&name.as_str()) { format!("{name}_") } else { name.clone() };
            line.insert(name, value.clone());
        }
        line.insert("msg".to_owned(), self.message.clone().into());
        line.insert("time".to_owned(), to_rfc3339(self.time).into());
        line.insert("v".to_owned(), 0.into());
        Value::Object(line).to_string() + "\n"
    }

    /// `05:10:00  INFO message  field=value`, in the zone of the reader.
    fn text(&self, colours: bool) -> String {
        let time = chrono::DateTime::from_timestamp_millis(self.time).unwrap_or_default().with_timezone(&chrono::Local);
        let (colour, plain) = match self.level {
            _ if !colours => ("", ""),
            Level::ERROR => ("\x1b[31m", "\x1b[0m"),
            Level::WARN => ("\x1b[33m", "\x1b[0m"),
            Level::INFO => ("\x1b[32m", "\x1b[0m"),
            _ => ("\x1b[2m", "\x1b[0m"),
        };
        let mut line = format!("{} {colour}{:>5}{plain} {}", time.format("%H:%M:%S"), self.level, for_terminal(&self.message));
        let mut gap = "  ";
        for (name, value) in &self.fields {
            let value = match value {
                Value::String(text)
                    if !text.is_empty() && !text.contains([' ', '"', '=']) && !text.contains(char::is_control) =>
                {
                    for_terminal(text)
                }
                other => for_terminal(&other.to_string()),
            };
            // Writing to a String cannot fail.
            let _ = write!(line, "{gap}{}={value}", for_terminal(name));
            gap = " ";
        }
        line.push('\n');
        line
    }
}

fn bunyan_level(level: Level) -> u8 {
    match level {
        Level::TRACE => 10,
        Level::DEBUG => 20,
        Level::INFO => 30,
        Level::WARN => 40,
        Level::ERROR => 50,
    }
}

fn masked_members(members: Map<String, Value>) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (scrub(&name), masked(value))).collect()
}

fn masked(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(scrub(&text)),
        Value::Array(items) => items.into_iter().map(masked).collect(),
        Value::Object(members) => Value::Object(masked_members(members)),
        other => other,
    }
}

/// Further lines are indented below the first; other control characters are shown, because a
/// message may quote a server's bytes and must not steer the terminal.
fn for_terminal(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' => clean.push_str("\n               "),
            '\t' => clean.push('\t'),
            c if c.is_control() => clean.extend(c.escape_unicode()),
            c => clean.push(c),
        }
    }
    clean
}
