//! Pings for a service that raises an alarm when they stay away, such as healthchecks.
//!
//! What a ping comes to changes nothing about the run: a watchdog that is down must not stop backups. Success is
//! told only when there is an archive, or proof that none is needed.

use std::time::Duration;

use reqwest::Url;
use tokio::task::JoinHandle;

use crate::config::{Reader, Setting};
use crate::redact::{Secret, mask_path, scrub};
use crate::webhook::{self, Redirects, WebhookError};
use crate::worker::Run;

/// After a success.
pub static BACKUP_PING_URL: Setting = Setting::new(
    "BACKUP_PING_URL",
    "URL to GET after each successful backup run, and after each that found nothing changed (healthchecks and its like). Unset: nobody is told.",
)
.secret();
/// At the start.
pub static BACKUP_PING_START_URL: Setting = Setting::new(
    "BACKUP_PING_START_URL",
    "URL to GET when a backup run starts; `none` for no such ping. Unset: BACKUP_PING_URL with /start after its path.",
)
.secret();
/// After a failure.
pub static BACKUP_PING_FAILURE_URL: Setting = Setting::new(
    "BACKUP_PING_FAILURE_URL",
    "URL to POST the reason to when a backup run fails; `none` for no such ping. Unset: BACKUP_PING_URL with /fail after its path.",
)
.secret();

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);
/// One that was lost raises an alarm, so it is sent once more.
const TRIES: u32 = 2;
/// Longest reason that is told.
const REASON: usize = 2_000;

/// Whom to tell.
#[derive(Clone, Default)]
pub struct Watchdog {
    start: Option<Url>,
    success: Option<Url>,
    failure: Option<Url>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.success.as_ref().map_or_else(|| "nobody".to_owned(), |url| mask_path(url.as_str())))
    }
}

/// A ping on its way, which those after it wait for.
pub(super) struct Underway(Option<JoinHandle<()>>);

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Watchdog {
    /// Reads the three settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let success = url(reader, &BACKUP_PING_URL);
        let beside = |setting: &'static Setting, end: &str| {
            if reader.text(setting) == "none" {
                None
            } else if reader.optional(setting).is_some() {
                url(reader, setting)
            } else {
                let mut url = success.clone()?;
                let path = format!("{}{end}", url.path().trim_end_matches('/'));
                url.set_path(&path);
                Some(url)
            }
        };
        let (start, failure) = (beside(&BACKUP_PING_START_URL, "/start"), beside(&BACKUP_PING_FAILURE_URL, "/fail"));
        Watchdog { start, success, failure }
    }

    /// Tells that a run begins, without waiting for an answer.
    pub(super) fn started(&self, run: &Run) -> Underway {
        let (url, run) = (self.start.clone(), run.clone());
        Underway(url.map(|url| tokio::spawn(async move { ping(&run, "start", &url, None).await })))
    }

    /// Tells that there is an archive of what the database holds.
    pub(super) async fn succeeded(&self, run: &Run, mut underway: Underway) {
        after(&mut underway).await;
        if let Some(url) = &self.success {
            ping(run, "success", url, None).await;
        }
    }

    /// Tells that there is none.
    pub(super) async fn failed(&self, run: &Run, mut underway: Underway, reason: &str) {
        after(&mut underway).await;
        if let Some(url) = &self.failure {
            ping(run, "failure", url, Some(scrub(reason).chars().take(REASON).collect())).await;
        }
    }
}

/// In this order, or a late start would look like a run that never ended.
async fn after(underway: &mut Underway) {
    if let Some(task) = underway.0.take() {
        let _ = task.await;
    }
}

fn url(reader: &Reader<'_>, setting: &Setting) -> Option<Url> {
    let url = reader.url(setting, &["https", "http"])?;
    // The path of such a URL is all there is of a secret.
    let _ = Secret::new(url.path().trim_start_matches('/'));
    Some(url)
}

async fn ping(run: &Run, what: &str, url: &Url, body: Option<String>) {
    let mut last = String::new();
    for _ in 0..TRIES {
        match send(url, body.clone()).await {
            Ok(()) => return,
            Err(error) => last = error.to_string(),
        }
    }
    run.warn(format!("the {what} ping to {} failed, which changes nothing about this run: {last}", mask_path(url.as_str())));
}

async fn send(url: &Url, body: Option<String>) -> Result<(), WebhookError> {
    let client = webhook::client(LIMIT, Redirects::Follow)?;
    let request = match body {
        None => client.get(url.clone()),
        Some(body) => client.post(url.clone()).body(body),
    };
    let status = request.send().await.map_err(|e| WebhookError::of(e, LIMIT))?.status();
    if status.is_success() { Ok(()) } else { Err(WebhookError::Status(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(pairs: &[(&str, &str)]) -> [Option<String>; 3] {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let dog = Watchdog::from_settings(&reader);
        reader.finish().unwrap();
        [dog.start, dog.success, dog.failure].map(|url| url.map(String::from))
    }

    #[test]
    fn the_other_urls_follow_from_the_first_unless_they_are_set() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read(&[]), [None, None, None]);
        assert_eq!(
            read(&[("BACKUP_PING_URL", "https://hc.example/abc-def/?x=1")]),
            [
                some("https://hc.example/abc-def/start?x=1"),
                some("https://hc.example/abc-def/?x=1"),
                some("https://hc.example/abc-def/fail?x=1")
            ]
        );
        assert_eq!(
            read(&[
                ("BACKUP_PING_URL", "http://h/a"),
                ("BACKUP_PING_START_URL", "none"),
                ("BACKUP_PING_FAILURE_URL", "http://h/b")
            ]),
            [None, some("http://h/a"), some("http://h/b")]
        );
    }
}
