//! Cron expressions in Bull's dialect, and the next time they fire.
//!
//! Bull hands its expressions to the Node library cron-parser 4.9, so producers, dashboards and our
//! workers agree on a job's slot only if we read them alike (wire format §7.3):
//!
//! - 5 fields, or 6 with seconds first; fewer are filled from the left with second 0, then `*`
//! - `,` `-` `/` `*`, `?` in the day fields, names of months and days, 0 and 7 are Sunday
//! - both day fields restricted: *either* may match
//! - `L` last day of the month, `5L` last Friday, `2#2` second Tuesday
//! - `@yearly @monthly @weekly @daily @hourly`
//!
//! Daylight saving, when the hours are restricted: the first slot that falls into the missing hour
//! fires by the length of the gap later (02:30 → 03:30), so a nightly run is never lost; in autumn a
//! slot fires in the first pass of the repeated hour only. `*` hours follow the real time: nothing
//! is missing, nothing is repeated.
//!
//! - `expression`: the text, read into sets
//! - `zone`: wall-clock time and back
//! - `search`: the next instant that matches
//!
//! Why not a crate: ADR 0002, which also lists where we differ from Bull on purpose.

mod expression;
mod search;
mod zone;

use std::fmt;

use crate::clock::Millis;
use expression::Expression;
use zone::Zone;

/// A point in 2001, from which [`check`] looks for a first slot; any would do, because the calendar
/// repeats within what the search covers.
const SOME_TIME: Millis = 1_000_000_000_000;

/// What is wrong with an expression or its time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CronError {
    /// The expression cannot be read or can never fire.
    Expression {
        /// The expression, shortened.
        expression: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The time zone is not known.
    Zone(String),
}

impl std::error::Error for CronError {}

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CronError::Expression { expression, problem } => {
                write!(f, "cron expression `{expression}`: {problem}; for example `10 5 * * *` is every day at 05:10")
            }
            CronError::Zone(name) => {
                write!(f, "time zone `{name}` is unknown; write an IANA name such as `Europe/Paris` or `UTC`")
            }
        }
    }
}

impl CronError {
    fn expression(expression: &str, problem: impl Into<String>) -> Self {
        CronError::Expression { expression: shortened(expression), problem: problem.into() }
    }
}

/// Enough of `text` to recognise it: errors end up in logs and job hashes.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The first time strictly after `after` that matches `expression` in `time_zone`, or in the
/// process's own zone (`TZ`, `/etc/localtime`) when none is given, as Bull does it.
///
/// `None` when nothing matches within the bounds of the search (10 000 steps, some 27 years):
/// `0 0 31 4,6 *` never fires.
///
/// # Errors
/// When the expression cannot be read or the time zone is unknown.
pub fn next_run(expression: &str, time_zone: Option<&str>, after: Millis) -> Result<Option<Millis>, CronError> {
    let zone = Zone::named(time_zone)?;
    let expression = Expression::parse(expression)?;
    Ok(search::next(&expression, &zone, after))
}

/// Whether `expression` is fit for a schedule. Stricter than [`next_run`], which must live with what
/// other programs left in Redis: an empty expression (Bull takes it for every minute) and one that
/// never fires are mistakes here, and so is one of fewer than five fields, which would be filled from
/// the left: `10 5 * *` is every minute from 10:00 to 10:59 on the 5th, not ten past five.
///
/// # Errors
/// Names the expression, what is wrong with it, and a good one.
pub fn check(expression: &str, time_zone: Option<&str>) -> Result<(), CronError> {
    if expression.trim().is_empty() {
        return Err(CronError::expression(expression, "it is empty"));
    }
    let fields = expression.split_whitespace().count();
    if fields < 5 && !expression.trim().starts_with('@') {
        let s = if fields == 1 { "" } else { "s" };
        return Err(CronError::expression(
            expression,
            format!("it has {fields} field{s} of the 5 (6 with seconds first) that it needs"),
        ));
    }
    match next_run(expression, time_zone, SOME_TIME)? {
        Some(_) => Ok(()),
        None => Err(CronError::expression(expression, "it never fires: no date has all that it asks for")),
    }
}

/// The first multiple of `every_ms` since 1970-01-01T00:00:00Z strictly after `after`, whatever the
/// time zone: a daily one fires at midnight UTC. `None` when `every_ms` is not positive or the time
/// cannot be told.
#[must_use]
pub fn next_every(every_ms: i64, after: Millis) -> Option<Millis> {
    if every_ms <= 0 {
        return None;
    }
    after.div_euclid(every_ms).checked_add(1)?.checked_mul(every_ms)
}
