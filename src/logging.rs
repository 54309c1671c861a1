//! Log lines: bunyan JSON for machines, text for people.
//!
//! A JSON line has `name`, `hostname`, `pid`, `level` (10 trace … 50 error), `time`, `msg`, `v`, and
//! the event's fields as members of their own, because dashboards of the reference system read
//! `table_name` and its like at the top level (contract §2, §4). Written here rather than with
//! `tracing-bunyan-formatter`, which puts the span's name in front of `msg`.
//!
//! Every text passes [`crate::redact::scrub`]. A reader that went away (`bullwork … | head`) loses
//! lines but never stops the work. A panic is one line like any other, with its text.
//!
//! - `line`: the two forms of a line
//! - [`rotating`]: a file for them besides standard output

mod line;
pub mod rotating;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Reader};
use line::{Form, Origin, Record};

/// The event field that carries a run's members as one JSON object; the layer unfolds it.
pub(crate) const FIELDS: &str = "fields";

/// Levels of other crates' lines: their milestones are not ours.
const OTHERS: LevelFilter = LevelFilter::WARN;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text when standard output is a terminal, else JSON.
    #[default]
    Auto,
    /// Bunyan JSON.
    Json,
    /// For people.
    Text,
}

/// What the log looks like.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The `name` of each line.
    pub app: String,
    /// How lines are written.
    pub format: Format,
    /// Lowest level that is logged.
    pub level: LevelFilter,
    /// `test` raises the level to error.
    pub node_env: String,
}

impl LogSettings {
    /// Reads `APP`, `LOG_FORMAT`, `LOG_LEVEL` and `NODE_ENV`.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let format = match reader.text(&config::LOG_FORMAT).as_str() {
            "auto" => Format::Auto,
            "json" => Format::Json,
            "text" => Format::Text,
            other => {
                reader.problem(config::LOG_FORMAT.name, format!("`{other}` is none of json, text, auto"));
                Format::Auto
            }
        };
        let level = match reader.text(&config::LOG_LEVEL).to_ascii_lowercase().as_str() {
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            other => {
                reader.problem(config::LOG_LEVEL.name, format!("`{other}` is none of error, warn, info, debug, trace"));
                LevelFilter::INFO
            }
        };
        LogSettings { app: reader.text(&config::APP), format, level, node_env: reader.text(&config::NODE_ENV) }
    }

    fn filter(&self) -> Targets {
        let level = if self.node_env == "test" { LevelFilter::ERROR } else { self.level };
        let own = ["bullwork", "bull_repl"].map(|name| (name, level));
        Targets::new().with_targets(own).with_default(level.min(OTHERS))
    }

    fn form(&self, terminal: bool) -> Form {
        match self.format {
            Format::Json => Form::Json,
            Format::Auto if !terminal => Form::Json,
            // https://no-color.org
            Format::Auto | Format::Text => Form::Text { colours: terminal && std::env::var_os("NO_COLOR").is_none() },
        }
    }
}

/// Starts the log of this process on standard output, and has panics logged there. Later calls
/// change nothing.
pub fn init(settings: &LogSettings) {
    init_with_file(settings, None);
}

/// The same, with every line in `file` too.
pub fn init_with_file(settings: &LogSettings, file: Option<rotating::Rotating>) {
    let form = settings.form(std::io::stdout().is_terminal());
    let lines = Lines::new(&settings.app, form, std::io::stdout()).with_filter(settings.filter());
    let in_file = file.map(|file| Lines::new(&settings.app, settings.form(false), file).with_filter(settings.filter()));
    if tracing_subscriber::registry().with(lines).with(in_file).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            tracing::error!("panic: {}", describe(panic));
        }));
    }
}

/// A panic's text and place.
#[must_use]
pub(crate) fn describe(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("without a text");
    match panic.location() {
        Some(place) => format!("{text}, at {place}"),
        None => text.to_owned(),
    }
}

/// Someone who wants to see each line besides the log itself: level, message, fields.
pub(crate) type Listener = Box<dyn Fn(Level, &str, &Map<String, Value>) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Hands every line that is logged from now on, masked as in the log, to `listener`. It must not
/// log itself. There is one; later calls change nothing.
pub(crate) fn listen(listener: Listener) {
    let _ = LISTENER.set(listener);
}

/// Writes each event as a line.
struct Lines<W> {
    origin: Origin,
    form: Form,
    out: Mutex<W>,
}

impl<W: Write> Lines<W> {
    fn new(app: &str, form: Form, out: W) -> Self {
        let origin = Origin { app: app.to_owned(), host: crate::identity::host(), process: std::process::id() };
        Lines { origin, form, out: Mutex::new(out) }
    }
}

impl<S: Subscriber, W: Write + 'static> Layer<S> for Lines<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let record = Record::new(*event.metadata().level(), crate::clock::Clock::System.now(), &seen.message, seen.fields);
        if let Some(listener) = LISTENER.get() {
            listener(record.level, &record.message, &record.fields);
        }
        let text = record.render(self.form, &self.origin);
        // One write a line, so that processes that share the output do not mix within a line. A
        // reader that is gone is no reason to stop.
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Seen {
    message: String,
    fields: Map<String, Value>,
}

impl Seen {
    fn put(&mut self, field: &tracing::field::Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (FIELDS, Value::String(text)) if text.is_empty() => {}
            (FIELDS, Value::String(text)) => match serde_json::from_str(&text) {
                Ok(Value::Object(members)) => self.fields.extend(members),
                _ => {
                    self.fields.insert(FIELDS.to_owned(), Value::String(text));
                }
            },
            (name, value) => {
                self.fields.insert(name.to_owned(), value);
            }
        }
    }
}

impl tracing::field::Visit for Seen {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &tracing::field::Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.put(field, Value::from(value));
    }

    fn record_error(&mut self, field: &tracing::field::Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(value.source(), |error| error.source());
        let text = causes.fold(value.to_string(), |text, cause| format!("{text}: {cause}"));
        self.put(field, Value::from(text));
    }
}

/// Logs `message` with members that are known only at run time.
pub fn emit(level: Level, message: &str, fields: &Map<String, Value>) {
    let fields = if fields.is_empty() { String::new() } else { Value::Object(fields.clone()).to_string() };
    // tracing fixes an event's level at compile time.
    match level {
        Level::ERROR => tracing::error!(fields, "{message}"),
        Level::WARN => tracing::warn!(fields, "{message}"),
        Level::INFO => tracing::info!(fields, "{message}"),
        Level::DEBUG => tracing::debug!(fields, "{message}"),
        Level::TRACE => tracing::trace!(fields, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::config::Environment;
    use crate::redact::Secret;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn settings(pairs: &[(&str, &str)]) -> LogSettings {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let settings = LogSettings::from_settings(&reader);
        reader.finish().unwrap();
        settings
    }

    fn logged(form: Form, settings: &LogSettings, work: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let lines = Lines::new(&settings.app, form, buffer.clone()).with_filter(settings.filter());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), work);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn json_lines(settings: &LogSettings, work: impl FnOnce()) -> Vec<Value> {
        logged(Form::Json, settings, work).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_bunyan_json_with_the_fields_at_the_top() {
        let lines = json_lines(&settings(&[("APP", "pix-db-replication")]), || {
            let fields = json!({"table_name": "answers", "job.id": "7", "rows": 12, "nested": {"a": [1]}});
            emit(Level::INFO, "Table copied", fields.as_object().unwrap());
            tracing::error!(queue.name = "Replication queue", attempt = 2, ok = false, "Failed");
        });
        assert_eq!(lines.len(), 2);
        let first = lines[0].as_object().unwrap();
        assert_eq!(first["name"], "pix-db-replication");
        assert_eq!((&first["level"], &first["v"]), (&json!(30), &json!(0)));
        assert_eq!(first["msg"], "Table copied");
        assert_eq!(first["pid"], std::process::id());
        assert!(first["hostname"].is_string());
        let time = first["time"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok() && time.len() == 24 && time.ends_with('Z'), "{time}");
        assert_eq!((&first["table_name"], &first["job.id"], &first["rows"]), (&json!("answers"), &json!("7"), &json!(12)));
        assert_eq!(first["nested"], json!({"a": [1]}));
        assert!(!first.contains_key(FIELDS));
        assert_eq!((&lines[1]["level"], &lines[1]["attempt"], &lines[1]["ok"]), (&json!(50), &json!(2), &json!(false)));
        assert_eq!(lines[1]["queue.name"], "Replication queue");
    }

    #[test]
    fn a_field_cannot_take_the_place_of_a_core_member() {
        let lines = json_lines(&settings(&[]), || {
            emit(Level::WARN, "real", json!({"msg": "false", "level": 10, "name": "x"}).as_object().unwrap());
        });
        assert_eq!((&lines[0]["msg"], &lines[0]["level"], &lines[0]["name"]), (&json!("real"), &json!(40), &json!("bullwork")));
        assert_eq!((&lines[0]["msg_"], &lines[0]["level_"], &lines[0]["name_"]), (&json!("false"), &json!(10), &json!("x")));
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand_in_a_line() {
        let _secret = Secret::new("log-secret-value");
        let text = logged(Form::Json, &settings(&[]), || {
            let fields = json!({"url": "postgres://u:hunter2@h/d", "deep": [{"x": "log-secret-value"}], "log-secret-value": 1});
            emit(Level::INFO, "with log-secret-value", fields.as_object().unwrap());
            tracing::info!(target = ?Some("log-secret-value"), "again");
        });
        assert!(!text.contains("log-secret-value") && !text.contains("hunter2"), "{text}");
        assert!(text.contains("postgres://u:***@h/d"), "{text}");
    }

    #[test]
    fn levels_below_the_wanted_one_are_left_out_and_node_env_test_logs_errors_only() {
        let all = || {
            tracing::error!("e");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::info!(target: "hyper", "foreign milestone");
            tracing::warn!(target: "hyper", "foreign warning");
        };
        let messages = |settings: &LogSettings| -> String {
            json_lines(settings, all).iter().map(|l| l["msg"].as_str().unwrap().to_owned() + "|").collect()
        };
        assert_eq!(messages(&settings(&[])), "e|i|foreign warning|");
        assert_eq!(messages(&settings(&[("LOG_LEVEL", "debug")])), "e|i|d|foreign warning|");
        assert_eq!(messages(&settings(&[("NODE_ENV", "test")])), "e|");
    }

    #[test]
    fn text_for_people_is_one_entry_a_line_without_control_characters() {
        let text = logged(Form::Text { colours: false }, &settings(&[]), || {
            emit(Level::WARN, "first\nsecond \u{1b}[31mred", json!({"rows": 3, "table_name": "a b"}).as_object().unwrap());
        });
        let (time, rest) = text.split_at(8);
        assert!(time.bytes().all(|b| b.is_ascii_digit() || b == b':'), "{text}");
        assert_eq!(rest, "  WARN first\n               second \\u{1b}[31mred  rows=3 table_name=\"a b\"\n");
    }

    #[test]
    fn a_reader_that_went_away_does_not_stop_the_work() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let subscriber = tracing_subscriber::registry().with(Lines::new("x", Form::Json, Broken));
        tracing::subscriber::with_default(subscriber, || tracing::info!("nobody hears this"));
    }

    #[test]
    fn the_format_follows_the_kind_of_output_unless_it_is_set() {
        assert_eq!(settings(&[]).form(false), Form::Json);
        assert!(matches!(settings(&[]).form(true), Form::Text { .. }));
        assert_eq!(settings(&[("LOG_FORMAT", "json")]).form(true), Form::Json);
        assert_eq!(settings(&[("LOG_FORMAT", "text")]).form(false), Form::Text { colours: false });
        let environment = Environment::of([("LOG_FORMAT", "xml"), ("LOG_LEVEL", "loud")]);
        let reader = Reader::new(&environment);
        LogSettings::from_settings(&reader);
        let error = reader.finish().unwrap_err().to_string();
        assert!(error.contains("`xml` is none of") && error.contains("`loud` is none of"), "{error}");
    }
}
