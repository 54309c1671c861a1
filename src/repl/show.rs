//! Tables and texts of the REPL.

use comfy_table::{ContentArrangement, Table, presets};

use crate::clock::{Millis, to_rfc3339};
use crate::ops::plain::plain;
use crate::ops::store::{CancelOutcome, Counts, Job, State};

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// The table of `stats`, in bull-repl's order.
pub(super) fn stats(counts: &Counts) -> Table {
    let mut table = table();
    table.set_header(["waiting", "active", "completed", "failed", "delayed", "paused"]);
    table.add_row([counts.waiting, counts.active, counts.completed, counts.failed, counts.delayed, counts.paused]);
    table
}

fn time(at: Option<Millis>) -> String {
    at.map(to_rfc3339).unwrap_or_default()
}

pub(super) fn jobs(jobs: &[Job]) -> Table {
    let mut table = table();
    table.set_header(["id", "name", "added", "started", "finished", "tries", "progress", "failed because"]);
    for job in jobs {
        table.add_row([
            plain(&job.id),
            plain(&job.name),
            to_rfc3339(job.timestamp),
            time(job.processed_on),
            time(job.finished_on),
            format!("{} of {}", job.attempts_made, job.attempts()),
            job.progress.as_ref().map(|progress| plain(&progress.to_string())).unwrap_or_default(),
            job.failed_reason.as_deref().map(plain).unwrap_or_default(),
        ]);
    }
    table
}

pub(super) fn job(job: &Job, state: Option<State>) -> Table {
    let mut table = table();
    table.set_header(["field", "value"]);
    let optional = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    for (field, value) in [
        ("id", job.id.clone()),
        ("name", job.name.clone()),
        ("state", state.map_or_else(|| "stuck (in no list)".to_owned(), |state| state.to_string())),
        ("data", job.raw_data.clone()),
        ("opts", job.opts.to_string()),
        ("added", to_rfc3339(job.timestamp)),
        ("started", time(job.processed_on)),
        ("finished", time(job.finished_on)),
        ("tries", format!("{} of {}", job.attempts_made, job.attempts())),
        ("delay", job.delay.to_string()),
        ("progress", optional(&job.progress)),
        ("result", optional(&job.return_value)),
        ("failed because", job.failed_reason.clone().unwrap_or_default()),
        ("stack trace", job.stacktrace.join("\n")),
    ] {
        table.add_row([field, &plain(&value)]);
    }
    table
}

pub(super) fn cancelled(id: &str, outcome: CancelOutcome) -> String {
    match outcome {
        CancelOutcome::Requested => format!("job {id} was told to stop; it does within seconds"),
        CancelOutcome::Cancelled => format!("job {id} was not running and counts as failed now"),
        CancelOutcome::AlreadyFinished => format!("job {id} was finished already; nothing changed"),
    }
}
