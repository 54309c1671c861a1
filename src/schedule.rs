//! Schedules: declared by kinds, reconciled with the repeatables in Redis (wire format §7).
//!
//! Reconciling means: what is declared is armed, what is not declared is removed, what is dead
//! (listed, but with no run pending) is armed again. It is done at start and every minute, and two
//! schedulers that do it at once do no harm: a run's id is made of its schedule and its slot, and
//! arming is one script that adds an id once.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Millis};
use crate::config::{Reader, Setting};
use crate::cron;
use crate::queue::{Armed, Job, Queue, QueueError, Repeat, State, job::UNNAMED};
use crate::worker::RetryPolicy;

/// Time zone of all schedules.
pub static SCHEDULE_TZ: Setting =
    Setting::new("SCHEDULE_TZ", "IANA time zone in which every schedule is read.").default("Europe/Paris");
/// What happens to a run whose time comes while the previous one still runs.
pub static SCHEDULE_OVERLAP: Setting = Setting::new(
    "SCHEDULE_OVERLAP",
    "A scheduled run that comes due while the previous one still runs: `queue-one` starts it afterwards, `skip` drops it.",
)
.default("queue-one");
/// What happens to a run that was missed while nothing ran.
pub static SCHEDULE_CATCH_UP: Setting = Setting::new(
    "SCHEDULE_CATCH_UP",
    "A scheduled run missed while no worker was up: `once` runs it late, once, however many were missed; `skip` waits for the next time.",
)
.default("once");

/// The settings that all schedules share.
pub static SETTINGS: &[&Setting] = &[&SCHEDULE_TZ, &SCHEDULE_OVERLAP, &SCHEDULE_CATCH_UP];

/// Between two rounds of reconciling.
const ROUND: Duration = Duration::from_secs(60);
/// After a round that failed.
const RETRY: Duration = Duration::from_secs(5);
/// A run that starts later than this after its time counts as late.
const PUNCTUAL: Millis = 60_000;

/// When a kind runs by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Cron expression in Bull's dialect ([`crate::cron`]).
    pub cron: String,
    /// IANA time zone.
    pub time_zone: String,
    /// A run that comes due while the previous one runs is dropped instead of queued.
    pub skip_overlap: bool,
    /// A missed run is dropped instead of run late.
    pub skip_missed: bool,
}

impl Schedule {
    /// The schedule whose cron expression stands in `setting`; mistakes are noted in `reader`.
    pub fn from_settings(reader: &Reader<'_>, setting: &Setting) -> Self {
        Schedule::of(reader, setting.name, reader.text(setting))
    }

    /// The same where `setting` may say `never`: then there is none.
    pub fn unless_never(reader: &Reader<'_>, setting: &Setting) -> Option<Self> {
        (reader.text(setting) != "never").then(|| Schedule::from_settings(reader, setting))
    }

    /// A schedule with a fixed cron expression, told as `name` when it is wrong.
    pub fn of(reader: &Reader<'_>, name: &str, cron: String) -> Self {
        let time_zone = reader.text(&SCHEDULE_TZ);
        // Each by itself: one mistake must not hide the other.
        if let Err(error) = cron::check("0 0 * * *", Some(&time_zone)) {
            reader.problem(SCHEDULE_TZ.name, error.to_string());
        }
        if let Err(error) = cron::check(&cron, None) {
            reader.problem(name, error.to_string());
        }
        Schedule {
            cron,
            time_zone,
            skip_overlap: choice(reader, &SCHEDULE_OVERLAP, "queue-one", "skip"),
            skip_missed: choice(reader, &SCHEDULE_CATCH_UP, "once", "skip"),
        }
    }

    fn repeat(&self) -> Repeat {
        Repeat::cron(&self.cron, Some(&self.time_zone))
    }
}

/// Whether `setting` says `second` rather than `first`.
fn choice(reader: &Reader<'_>, setting: &Setting, first: &str, second: &str) -> bool {
    let text = reader.text(setting);
    if text != first && text != second {
        reader.problem(setting.name, format!("`{text}` is neither `{first}` nor `{second}`"));
    }
    text == second
}

/// A queue and the schedule that its kind declares, if any.
#[derive(Clone)]
pub struct Declared {
    /// The kind's queue.
    pub queue: Queue,
    /// Its schedule; `None` removes whatever is scheduled there.
    pub schedule: Option<Schedule>,
}

/// What can keep a round from succeeding.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The queue store.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A cron expression.
    #[error(transparent)]
    Cron(#[from] cron::CronError),
}

/// Reconciles until `quiet`.
pub async fn keep(declared: Vec<Declared>, policy: RetryPolicy, quiet: CancellationToken) {
    let mut told = false;
    loop {
        let mut pause = ROUND;
        for each in &declared {
            match reconcile(each, &policy).await {
                Ok(()) => told = false,
                Err(error) => {
                    pause = RETRY;
                    if !told {
                        told = true;
                        tracing::error!("Error in {}: reconciling the schedule: {error}", each.queue.name());
                    }
                }
            }
        }
        tokio::select! {
            () = quiet.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Makes the repeatables of one queue what its kind declares.
///
/// # Errors
/// When Redis does not answer or the cron expression is wrong.
pub async fn reconcile(declared: &Declared, policy: &RetryPolicy) -> Result<(), ScheduleError> {
    let Declared { queue, schedule } = declared;
    let wanted = schedule.as_ref().map(|s| s.repeat().key(UNNAMED));
    for entry in queue.schedules().await? {
        if Some(&entry.key) != wanted.as_ref() && queue.remove_schedule(&entry.key).await? {
            tracing::info!("removed schedule `{}` of {}: it is not declared any more", entry.key, queue.name());
        }
    }
    let Some(schedule) = schedule else { return Ok(()) };
    let Some(slot) = cron::next_run(&schedule.cron, Some(&schedule.time_zone), queue.clock().now())? else {
        tracing::warn!("schedule `{}` of {} has no next run", schedule.cron, queue.name());
        return Ok(());
    };
    // A run that is pending already stays, even when its time has passed: it is late, not lost.
    if let Armed::Added { id, slot } = queue.arm(&schedule.repeat(), UNNAMED, &json!({}), &policy.options(), slot, None).await? {
        tracing::info!(
            "{} runs next at {} (`{}`, {}): job {id}",
            queue.name(),
            clock::to_rfc3339(slot),
            schedule.cron,
            schedule.time_zone
        );
    }
    Ok(())
}

/// Arms the run after `job`, which was just taken (wire format §7.4). Nothing happens when `job` is
/// no scheduled run or its schedule was removed.
///
/// # Errors
/// When Redis does not answer or the job's cron expression is wrong.
pub async fn arm_next(queue: &Queue, job: &Job) -> Result<(), ScheduleError> {
    let Some(repeat) = Repeat::of(job) else { return Ok(()) };
    if let Some(slot) = repeat.next_slot(job.prev_millis(), queue.clock().now(), cron::next_run)? {
        queue.next_of(job, slot).await?;
    }
    Ok(())
}

/// Why a scheduled run is not to be run, by its schedule's policies; `None` runs it.
///
/// # Errors
/// When Redis does not answer.
pub async fn reason_to_skip(queue: &Queue, schedule: Option<&Schedule>, job: &Job) -> Result<Option<String>, QueueError> {
    let (Some(schedule), Some(slot)) = (schedule, job.prev_millis()) else { return Ok(None) };
    let late = queue.clock().now().saturating_sub(slot);
    // A second try of a run is not late: its first one was decided on.
    if late <= PUNCTUAL || job.attempts_made > 0 || job.stalled_counter > 0 {
        return Ok(None);
    }
    let mut overlapped = false;
    for state in [State::Completed, State::Failed] {
        let newest = queue.jobs(&[state], 0, 0, false).await?;
        overlapped |= newest.iter().any(|last| last.finished_on.is_some_and(|at| at > slot));
    }
    let by = Duration::from_millis(u64::try_from(late).unwrap_or(0)).as_secs();
    if overlapped && schedule.skip_overlap {
        return Ok(Some(format!("the previous run was still going at {}", clock::to_rfc3339(slot))));
    }
    if !overlapped && schedule.skip_missed {
        return Ok(Some(format!("nothing was up to run it at {}", clock::to_rfc3339(slot))));
    }
    let why = if overlapped { "the previous run took until then" } else { "nothing was up to run it" };
    tracing::warn!("job {} in {} was due at {} and runs {by} s late: {why}", job.id, queue.name(), clock::to_rfc3339(slot));
    Ok(None)
}
