//! What `/metrics` says, in Prometheus's text format: how old the newest archive and the newest proof are.
//!
//! The store is listed at most once a minute, however often the text is asked for: ages are counted in hours, and each
//! listing of a bucket is paid for.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use crate::backup::freshness::{Freshness, Limits};
use crate::backup::settings;
use crate::backup::shelf::Shelf;
use crate::config::Reader;

/// How long a listing is good for.
const KEPT: Duration = Duration::from_secs(60);

/// Where the figures come from.
#[derive(Debug)]
pub struct Metrics {
    /// None where no store is configured: there are no figures then.
    shelf: Option<Shelf>,
    limits: Limits,
    /// The last answer, or that there was none; and when.
    seen: Mutex<Option<(Instant, Option<Freshness>)>>,
}

impl Metrics {
    /// Reads where archives are and how old they may be.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let shelf = if settings::wanted(reader) { settings::shelf(reader) } else { None };
        Metrics { shelf, limits: Limits::from_settings(reader), seen: Mutex::new(None) }
    }

    /// The figures of now.
    pub async fn text(&self) -> String {
        let Some(shelf) = &self.shelf else { return String::new() };
        // Whoever asks meanwhile waits, and gets the same answer.
        let mut seen = self.seen.lock().await;
        if seen.as_ref().is_none_or(|(at, _)| at.elapsed() >= KEPT) {
            let looked = super::backup::freshness(shelf, self.limits).await;
            if let Err(error) = &looked {
                tracing::warn!("/metrics has no ages of archives: {}", crate::redact::scrub(&format!("{error:#}")));
            }
            *seen = Some((Instant::now(), looked.ok()));
        }
        text(seen.as_ref().and_then(|(_, freshness)| freshness.as_ref()), self.limits)
    }
}

const ARCHIVE: &str = "{of=\"archive\"}";
const DRILL: &str = "{of=\"drill\"}";

fn text(freshness: Option<&Freshness>, limits: Limits) -> String {
    let number = |yes: bool| f64::from(u8::from(yes));
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
    let mut out = String::new();
    gauge(
        &mut out,
        "bullwork_backup_store_up",
        "Whether the store with the archives answers: 1, or 0 when nothing is known of them.",
        &[("", Some(number(freshness.is_some())))],
    );
    gauge(
        &mut out,
        "bullwork_backup_max_age_seconds",
        "How old the newest one may be (BACKUP_MAX_AGE, BACKUP_DRILL_MAX_AGE).",
        &[(ARCHIVE, seconds(limits.archive)), (DRILL, seconds(limits.drill))],
    );
    let Some(freshness) = freshness else { return out };
    // Whole numbers far below 2^53.
    let time = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp() as f64);
    gauge(
        &mut out,
        "bullwork_backup_newest_timestamp_seconds",
        "When the store got the newest archive, and when a drill last proved one; absent when there is none.",
        &[(ARCHIVE, time(freshness.stored_at)), (DRILL, time(freshness.proven_at))],
    );
    gauge(
        &mut out,
        "bullwork_backup_overdue",
        "1 while it is older than it may be, or there is none; absent without a limit.",
        &[
            (ARCHIVE, limits.archive.map(|_| number(freshness.archive_overdue))),
            (DRILL, limits.drill.map(|_| number(freshness.drill_overdue))),
        ],
    );
    out
}

/// Writes the values that there are, each behind its labels.
fn gauge(out: &mut String, name: &str, help: &str, values: &[(&str, Option<f64>)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (labels, value) in values {
        if let Some(value) = value {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_silent_is_down_and_nothing_is_called_young() {
        let limits = Limits { archive: Some(Duration::from_secs(3600)), drill: None };
        let silent = text(None, limits);
        assert!(silent.contains("\nbullwork_backup_store_up 0\n") && !silent.contains("overdue"), "{silent}");
        assert!(silent.contains("\nbullwork_backup_max_age_seconds{of=\"archive\"} 3600\n"), "{silent}");
        let freshness = Freshness {
            newest: None,
            stored_at: Some(DateTime::from_timestamp(1_700_000_000, 0).unwrap()),
            proven: None,
            proven_at: None,
            archive_overdue: true,
            drill_overdue: false,
            alarms: Vec::new(),
        };
        let known = text(Some(&freshness), limits);
        for line in [
            "bullwork_backup_store_up 1",
            "bullwork_backup_newest_timestamp_seconds{of=\"archive\"} 1700000000",
            "bullwork_backup_overdue{of=\"archive\"} 1",
        ] {
            assert!(known.lines().any(|known| known == line), "{line} in {known}");
        }
        assert!(!known.contains("{of=\"drill\"}"), "without a limit and a drill there is nothing to tell of one: {known}");
    }
}
