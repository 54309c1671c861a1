//! Tells Sentry of failed jobs and panics, when that is switched on.
//!
//! An event holds the queue, the job's id, the attempt and the reason, with the log's last lines as
//! breadcrumbs; every text is masked as in the log ([`crate::redact`]). Nothing here can fail or
//! delay the work: events wait in a short queue for a thread of their own, and what an unreachable
//! receiver does not take is dropped. At exit [`Guard`] waits for the rest, [`FLUSH`] at most.
//!
//! - `transport`: events to the receiver by HTTP

mod transport;

use std::sync::Arc;
use std::time::Duration;

use sentry_core::protocol::{Event, Exception};
use sentry_core::types::Dsn;
use sentry_core::{Breadcrumb, Client, ClientOptions, Hub, Level};

use crate::config::{Reader, Setting};
use crate::redact::{Secret, scrub};

/// Longest wait for the receiver at exit.
pub const FLUSH: Duration = Duration::from_secs(2);

/// Characters kept of one text, as in the reference system.
const LONGEST_VALUE: usize = 1000;

/// Switch.
pub static SENTRY_ENABLED: Setting =
    Setting::new("SENTRY_ENABLED", "Whether failed jobs and panics are reported to Sentry: true or false.").default("false");
/// Receiver.
pub static SENTRY_DSN: Setting =
    Setting::new("SENTRY_DSN", "Sentry project that events go to: https://key@host/project. Needed when SENTRY_ENABLED is true.")
        .secret();
/// Environment told with each event.
pub static SENTRY_ENVIRONMENT: Setting =
    Setting::new("SENTRY_ENVIRONMENT", "Name of the environment in Sentry.").default("development");
/// Log lines sent with each event.
pub static SENTRY_MAX_BREADCRUMBS: Setting =
    Setting::new("SENTRY_MAX_BREADCRUMBS", "Log lines sent along with each event, 0 to 1000.").default("100");
/// Debug output.
pub static SENTRY_DEBUG: Setting =
    Setting::new("SENTRY_DEBUG", "Whether the Sentry client tells on stderr what it does: true or false.").default("false");

/// Every setting of this module.
pub static SETTINGS: &[&Setting] = &[&SENTRY_ENABLED, &SENTRY_DSN, &SENTRY_ENVIRONMENT, &SENTRY_MAX_BREADCRUMBS, &SENTRY_DEBUG];

/// Where and how to report; nothing is reported without a receiver.
#[derive(Clone, Debug, Default)]
pub struct SentrySettings {
    dsn: Option<Receiver>,
    environment: String,
    max_breadcrumbs: usize,
    debug: bool,
}

/// A DSN that does not print.
#[derive(Clone)]
struct Receiver(Dsn);

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl SentrySettings {
    /// Reads the settings; a DSN that is missing or cannot be read is a mistake when reporting is
    /// switched on.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let enabled = reader.flag(&SENTRY_ENABLED);
        let text: Secret = reader.secret(&SENTRY_DSN);
        let dsn = match text.expose().trim().parse::<Dsn>() {
            _ if !enabled => None,
            Ok(dsn) => {
                crate::redact::remember(dsn.public_key());
                Some(Receiver(dsn))
            }
            Err(_) if text.is_empty() => {
                reader.problem(SENTRY_DSN.name, "is not set, but SENTRY_ENABLED is true; write https://key@host/project");
                None
            }
            // The parser's words may hold parts of the value.
            Err(_) => {
                reader.problem(SENTRY_DSN.name, "cannot be read; write https://key@host/project");
                None
            }
        };
        SentrySettings {
            dsn,
            environment: reader.text(&SENTRY_ENVIRONMENT),
            max_breadcrumbs: usize::try_from(reader.integer(&SENTRY_MAX_BREADCRUMBS, 0..=1000)).unwrap_or(usize::MAX),
            debug: reader.flag(&SENTRY_DEBUG),
        }
    }
}

/// Keeps reporting alive; dropped last in `main`.
#[must_use = "reporting ends when the guard is dropped"]
#[derive(Debug)]
pub struct Guard {
    client: Arc<Client>,
}

impl Guard {
    /// Waits for what is still to be sent, [`FLUSH`] at most; `false` when some of it is lost.
    /// Blocks its thread: call it when all else has ended.
    #[expect(clippy::must_use_candidate, reason = "at exit nobody is left to tell")]
    pub fn flush(self) -> bool {
        self.client.close(Some(FLUSH))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nothing is left to wait for after `flush`.
        self.client.close(Some(FLUSH));
    }
}

/// Starts reporting: panics are reported from now on and still logged, and the log's lines become
/// breadcrumbs. Call it after [`crate::logging::init`]. `None`, and nothing happens, when it is off.
pub fn init(settings: &SentrySettings) -> Option<Guard> {
    let dsn = settings.dsn.clone()?.0;
    let mut options = ClientOptions::new()
        .debug(settings.debug)
        .release(concat!("bullwork@", env!("CARGO_PKG_VERSION")))
        .environment(settings.environment.clone())
        .max_breadcrumbs(settings.max_breadcrumbs)
        .server_name(crate::identity::host())
        .default_integrations(false);
    options.dsn = Some(dsn.clone());
    options.transport = Some(Arc::new(transport::Factory(dsn)));
    let client = Arc::new(Client::with_options(options));
    // The main hub, because threads start with a copy of it and runs move between threads.
    Hub::main().bind_client(Some(Arc::clone(&client)));

    crate::logging::listen(Box::new(|level, message, fields| {
        Hub::main().add_breadcrumb(Breadcrumb {
            level: level_of(level),
            category: Some("log".to_owned()),
            message: Some(fitting(message)),
            data: fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            ..Breadcrumb::default()
        });
    }));
    let log = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        capture(Level::Fatal, "panic", &crate::logging::describe(panic), &[]);
        log(panic);
    }));
    Some(Guard { client })
}

/// Reports a job that failed; does nothing when reporting is off.
pub fn capture_failure(queue: &str, job: &str, attempt: u32, reason: &str) {
    let tags = [("queue", queue), ("job.id", job), ("job.attempt", &attempt.to_string())];
    capture(Level::Error, &format!("Failed job in {queue}"), reason, &tags);
}

fn capture(level: Level, kind: &str, text: &str, tags: &[(&str, &str)]) {
    let exception = Exception { ty: fitting(&scrub(kind)), value: Some(fitting(&scrub(text))), ..Exception::default() };
    Hub::main().capture_event(Event {
        level,
        logger: Some("bullwork".to_owned()),
        exception: vec![exception].into(),
        tags: tags.iter().map(|(name, value)| ((*name).to_owned(), fitting(&scrub(value)))).collect(),
        ..Event::default()
    });
}

fn level_of(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

fn fitting(text: &str) -> String {
    text.chars().take(LONGEST_VALUE).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wiremock::matchers::{method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::Environment;

    fn settings(pairs: &[(&str, &str)]) -> Result<SentrySettings, crate::config::ConfigError> {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let settings = SentrySettings::from_settings(&reader);
        reader.finish().map(|()| settings)
    }

    async fn receiver() -> MockServer {
        let server = MockServer::start().await;
        Mock::given(method("POST")).and(path("/api/42/envelope/")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
        server
    }

    /// The exit of a process: off the runtime's threads.
    async fn flush(guard: Guard) -> bool {
        tokio::task::spawn_blocking(move || guard.flush()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn failed_jobs_and_panics_arrive_without_secrets() {
        crate::logging::init(&crate::logging::LogSettings::from_settings(&Reader::new(&Environment::default())));
        let server = receiver().await;
        let dsn = format!("http://publickey@{}/42", server.address());
        let guard = init(&settings(&[("SENTRY_ENABLED", "true"), ("SENTRY_DSN", &dsn), ("SENTRY_ENVIRONMENT", "test")]).unwrap())
            .unwrap();
        let _secret = Secret::new("sentry-secret-value");
        tracing::info!(table_name = "answers", "Table copied with sentry-secret-value");
        capture_failure("Replication queue", "7", 2, "connecting to postgres://u:hunter2@h/d with sentry-secret-value");
        let _ = std::thread::spawn(|| panic!("boom sentry-secret-value")).join();
        assert!(flush(guard).await);

        let requests = server.received_requests().await.unwrap();
        let bodies: Vec<String> = requests.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
        assert_eq!(bodies.len(), 2, "{bodies:?}");
        assert!(bodies[0].contains("Failed job in Replication queue") && bodies[0].contains("\"job.id\":\"7\""), "{}", bodies[0]);
        assert!(bodies[0].contains("\"job.attempt\":\"2\"") && bodies[0].contains("\"environment\":\"test\""), "{}", bodies[0]);
        assert!(bodies[0].contains("Table copied with ***") && bodies[0].contains("\"table_name\":\"answers\""), "{}", bodies[0]);
        assert!(bodies[1].contains("boom ***, at src/sentry.rs"), "{}", bodies[1]);
        assert!(!bodies.concat().contains("sentry-secret-value") && !bodies.concat().contains("hunter2"), "{bodies:?}");
        assert!(requests[0].headers.get("x-sentry-auth").unwrap().to_str().unwrap().contains("sentry_key=publickey"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_sent_when_it_is_off() {
        let server = receiver().await;
        let dsn = format!("http://publickey@{}/42", server.address());
        assert!(init(&settings(&[("SENTRY_DSN", &dsn)]).unwrap()).is_none());
        capture_failure("Replication queue", "7", 1, "reason");
        assert!(server.received_requests().await.unwrap().is_empty());
    }

    /// Twice: one that refuses connections, one that accepts them and never answers.
    #[test]
    fn a_dead_receiver_delays_the_exit_by_two_seconds_at_most() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (address, lost) in [(silent.local_addr().unwrap(), true), (gone, false)] {
            let dsn = format!("http://publickey@{address}/42");
            let guard = init(&settings(&[("SENTRY_ENABLED", "true"), ("SENTRY_DSN", &dsn)]).unwrap()).unwrap();
            for attempt in 0..200 {
                capture_failure("Replication queue", "7", attempt, "reason");
            }
            let start = Instant::now();
            assert_eq!(guard.flush(), !lost);
            assert!(start.elapsed() < FLUSH + Duration::from_millis(500), "{:?}", start.elapsed());
        }
    }

    #[test]
    fn reporting_without_a_usable_receiver_is_a_mistake_that_does_not_show_it() {
        assert!(settings(&[]).is_ok());
        let error = settings(&[("SENTRY_ENABLED", "true")]).unwrap_err().to_string();
        assert!(error.contains("SENTRY_DSN: is not set, but SENTRY_ENABLED is true"), "{error}");
        let error = settings(&[("SENTRY_ENABLED", "true"), ("SENTRY_DSN", "https://very-secret-key")]).unwrap_err().to_string();
        assert!(error.contains("SENTRY_DSN: cannot be read") && !error.contains("very-secret-key"), "{error}");
        let on = settings(&[("SENTRY_ENABLED", "true"), ("SENTRY_DSN", "https://very-secret-key@h/1")]).unwrap();
        assert!(!format!("{on:?}").contains("very-secret-key"));
    }
}
