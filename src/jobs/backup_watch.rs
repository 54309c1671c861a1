//! Raises an alarm when the newest archive, or the newest proof that one restores, is too old.
//!
//! Looks at the store alone, so it runs on any machine that can read it; best on another one than makes the backups.
//! An alarm is a POST to BACKUP_ALARM_URL, and a failed job; it is raised with every run until all is well. A store
//! that does not answer is one too, after the last try.

use anyhow::{Context, Result};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

use crate::backup::freshness::{self, BACKUP_DRILL_MAX_AGE, BACKUP_MAX_AGE, Limits};
use crate::backup::settings as backup;
use crate::backup::shelf::Shelf;
use crate::config::{APP, Reader, Setting};
use crate::redact::{Secret, scrub};
use crate::schedule::Schedule;
use crate::webhook::signature::SigningKey;
use crate::webhook::{self, Endpoint, Message, Redirects};
use crate::worker::{JobContext, JobKind, Outcome};

/// When it runs.
pub static BACKUP_WATCH_SCHEDULE: Setting = Setting::new(
    "BACKUP_WATCH_SCHEDULE",
    "When the ages of the newest archive and the newest drill are compared with their limits, as a cron expression, where one is set; `never` leaves that to `doctor`.",
)
.default("*/30 * * * *");
/// Whom to tell.
pub static BACKUP_ALARM_URL: Setting = Setting::new(
    "BACKUP_ALARM_URL",
    "URL that gets a POST with {\"event\":\"backup.overdue\",\"app\":…,\"alarms\":[…]} while an archive or drill is too old. Unset: the failed job alone tells.",
)
.secret();
/// What proves that it was us.
pub static BACKUP_ALARM_SECRET: Setting = Setting::new(
    "BACKUP_ALARM_SECRET",
    "Signing secret (whsec_<base64>) for that POST, in the way of Standard Webhooks. Unset: it is not signed.",
)
.secret();

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// The job's data: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Payload {}

/// Looks at a store.
#[derive(Debug)]
pub struct BackupWatch {
    app: String,
    shelf: Option<Shelf>,
    limits: Limits,
    alarm: Option<Endpoint>,
    schedule: Option<Schedule>,
}

#[async_trait::async_trait]
impl JobKind for BackupWatch {
    const NAME: &'static str = "backup-watch";
    const QUEUE: &'static str = "Backup watch queue";
    const SUMMARY: &'static str = "Raise an alarm when the newest archive or drill is too old";
    const SETTINGS: &'static [&'static Setting] =
        &[&BACKUP_MAX_AGE, &BACKUP_DRILL_MAX_AGE, &BACKUP_ALARM_URL, &BACKUP_ALARM_SECRET, &BACKUP_WATCH_SCHEDULE];
    type Payload = Payload;

    fn from_settings(reader: &Reader<'_>) -> Self {
        let wanted = backup::wanted(reader);
        let limits = Limits::from_settings(reader);
        BackupWatch {
            app: reader.text(&APP),
            shelf: if wanted { backup::shelf(reader) } else { None },
            limits,
            alarm: alarm(reader),
            schedule: if wanted && limits.any() { Schedule::unless_never(reader, &BACKUP_WATCH_SCHEDULE) } else { None },
        }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some(shelf) = &self.shelf else {
            return Ok(Outcome::Refuse(backup::NO_STORE.to_owned()));
        };
        if !self.limits.any() {
            return Ok(Outcome::Refuse(
                "neither BACKUP_MAX_AGE nor BACKUP_DRILL_MAX_AGE is set, so nothing is ever too old".to_owned(),
            ));
        }
        let freshness = match ctx.run.unless_stopped(freshness::look(shelf, self.limits, Utc::now())).await? {
            Ok(freshness) => freshness,
            Err(error) if ctx.attempt >= ctx.attempts => {
                self.raise(ctx, &[scrub(&error.to_string())]).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        if freshness.alarms.is_empty() {
            return Ok(Outcome::Done(serde_json::to_value(freshness)?));
        }
        for alarm in &freshness.alarms {
            ctx.run.error(alarm.clone());
        }
        self.raise(ctx, &freshness.alarms).await?;
        Ok(Outcome::Refuse(freshness.alarms.join("; ")))
    }
}

impl BackupWatch {
    /// Tells whoever is configured. A receiver that does not answer fails the run, which is tried again.
    async fn raise(&self, ctx: &JobContext<Payload>, alarms: &[String]) -> Result<()> {
        let Some(endpoint) = &self.alarm else { return Ok(()) };
        let client = webhook::client(LIMIT, Redirects::KeepRequest)?;
        let body = json!({"event": "backup.overdue", "app": self.app, "alarms": alarms}).to_string();
        let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
        let sent = webhook::post(&client, LIMIT, endpoint, Message { id, body });
        let told = || format!("{}; the alarm was not heard by {}", alarms.join("; "), endpoint.shown());
        ctx.run.unless_stopped(sent).await?.with_context(told)?;
        Ok(())
    }
}

fn alarm(reader: &Reader<'_>) -> Option<Endpoint> {
    let url = reader.url(&BACKUP_ALARM_URL, &["https", "http"])?;
    // The path of such a URL is all there is of a secret.
    let _ = Secret::new(url.path().trim_start_matches('/'));
    let key = reader.optional(&BACKUP_ALARM_SECRET).and_then(|secret| match SigningKey::parse(&secret) {
        Ok(key) => Some(key),
        Err(error) => {
            reader.problem(BACKUP_ALARM_SECRET.name, error);
            None
        }
    });
    Some(Endpoint { url, token: None, key })
}
