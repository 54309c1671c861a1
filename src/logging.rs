//! Log lines: bunyan JSON for machines, text for people.
//!
//! A JSON line has `name`, `level` (10 trace … 50 error), `time`, `msg`, `pid`, `hostname`, `v`, and
//! the event's fields as members of their own, because dashboards of the reference system read
//! `table_name` and its like at the top level (contract §2, §4). Written here rather than with
//! `tracing-bunyan-formatter`, which puts the span's name in front of `msg`.

use serde_json::{Map, Value};
use tracing::Level;

/// The event field that carries a run's members as one JSON object; the JSON layer unfolds it.
pub(crate) const FIELDS: &str = "fields";

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
