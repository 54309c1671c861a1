//! Tells others that the night's replication is complete: one POST for each configured URL.
//!
//! Guarantees: every URL is tried, in order, whatever happens to those before it, and each try
//! ends within `NOTIFICATION_TIMEOUT`. A URL that answered within 2xx is noted in the job's data at
//! once, so a later try calls only the others. At least once: a crash between the answer and the
//! note calls that URL again, with the same `webhook-id` when the body is signed.
//!
//! One after the other rather than at once: the reference called them in order, and receivers
//! that depend on each other may rely on it. With n dead receivers a try takes n × the time limit.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::{self, Clock};
use crate::config::{APP, Reader, Setting};
use crate::redact::Secret;
use crate::webhook::{self, Endpoint, Message, Redirects, signature::SigningKey};
use crate::worker::{JobContext, JobKind, Outcome};

/// Whom to notify.
pub static NOTIFICATIONS: Setting = Setting::new(
    "NOTIFICATIONS",
    "JSON array of receivers to POST to when the night's replication is complete: {\"url\":\"https://…\",\"token\":\"sent verbatim as Authorization\",\"secret\":\"whsec_… signs a report body\"}; token and secret are optional.",
)
.default("[]")
.secret();
/// The older form.
pub static NOTIFICATION_URLS: Setting =
    Setting::new("NOTIFICATION_URLS", "JSON array of URLs, the older form of NOTIFICATIONS; both may be set.")
        .default("[]")
        .secret();
/// For receivers without a secret of their own.
pub static NOTIFICATION_SECRET: Setting = Setting::new(
    "NOTIFICATION_SECRET",
    "Signing secret (whsec_<base64>) for receivers of NOTIFICATIONS that name none. With a secret the body is a report with a Standard Webhooks signature, otherwise `{}`.",
)
.secret();
/// Limit for each POST.
pub static NOTIFICATION_TIMEOUT: Setting =
    Setting::new("NOTIFICATION_TIMEOUT", "Longest wait for one receiver's answer, in seconds, 1 to 600.").default("30");

/// What the job remembers from try to try.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payload {
    /// Receivers that have answered within 2xx, by the SHA-256 of their URL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub delivered: Vec<String>,
    /// Identity of the message, the same over all tries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// When the first try began, which is when the replication was complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// Notifies the configured receivers.
#[derive(Debug)]
pub struct Notification {
    app: String,
    endpoints: Vec<Endpoint>,
    time_limit: Duration,
    clock: Clock,
}

/// An element of either setting.
#[derive(Debug, Default)]
struct Entry {
    url: String,
    token: Option<String>,
    secret: Option<String>,
}

impl Entry {
    /// Reads one by hand: the parser's messages would quote values, which may be secret. Members that
    /// are not known are mistakes, because a misspelt `token` would leave the receiver without one.
    fn read(value: &Value) -> Result<Entry, String> {
        let members = match value {
            Value::String(url) => return Ok(Entry { url: url.clone(), ..Entry::default() }),
            Value::Object(members) => members,
            _ => return Err("is neither an object nor a URL".to_owned()),
        };
        let mut entry = Entry::default();
        for (name, value) in members {
            let text = match value {
                Value::String(text) => Some(text.clone()),
                Value::Null if name != "url" => None,
                _ => return Err(format!("has a `{name}` that is no text")),
            };
            match name.as_str() {
                "url" => entry.url = text.unwrap_or_default(),
                "token" => entry.token = text,
                "secret" => entry.secret = text,
                _ => return Err(format!("has a member `{name}`, which is not known; there are url, token and secret")),
            }
        }
        Ok(entry)
    }
}

#[async_trait::async_trait]
impl JobKind for Notification {
    const NAME: &'static str = "notification";
    const QUEUE: &'static str = "Notification queue";
    const SUMMARY: &'static str = "Tell the configured URLs that the replication is complete";
    const SETTINGS: &'static [&'static Setting] =
        &[&NOTIFICATIONS, &NOTIFICATION_URLS, &NOTIFICATION_SECRET, &NOTIFICATION_TIMEOUT];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        super::replicates(reader)
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        Notification {
            app: reader.text(&APP),
            endpoints: endpoints(reader),
            time_limit: reader.seconds(&NOTIFICATION_TIMEOUT, 1..=600),
            clock: Clock::System,
        }
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let run = &ctx.run;
        run.info("Start notification");
        let mut payload = ctx.payload.clone();
        let id = payload.message_id.get_or_insert_with(|| format!("msg_{}", uuid::Uuid::new_v4().simple())).clone();
        let finished_at = payload.finished_at.get_or_insert_with(|| clock::to_rfc3339(self.clock.now())).clone();
        if payload != ctx.payload && !self.endpoints.is_empty() {
            ctx.remember(&payload).await.context("noting the message's identity")?;
        }
        let report = json!({"event": "replication.completed", "app": self.app, "finished_at": finished_at}).to_string();
        let client = webhook::client(self.time_limit, Redirects::KeepRequest)?;
        run.progress(|p| {
            "notify".clone_into(&mut p.phase);
            p.total = self.endpoints.len() as u64;
        });
        let mut failures = Vec::new();
        let names = names(&self.endpoints);
        for ((endpoint, fingerprint), shown) in self.endpoints.iter().zip(fingerprints(&self.endpoints)).zip(&names) {
            if payload.delivered.contains(&fingerprint) {
                run.info(format!("Already notified by an earlier try: {shown}"));
                run.progress(|p| p.done += 1);
                continue;
            }
            run.info(format!("Notify {shown}"));
            let body = if endpoint.key.is_some() { report.clone() } else { "{}".to_owned() };
            let start = Instant::now();
            let sent = webhook::post(&client, self.time_limit, endpoint, Message { id: id.clone(), body });
            match run.unless_stopped(sent).await? {
                Ok(status) => {
                    run.info_with(
                        format!("Notified {shown}: {status}"),
                        json!({"url": shown, "status": status.as_u16(), "duration_ms": millis(start)}),
                    );
                    payload.delivered.push(fingerprint);
                    ctx.remember(&payload).await.with_context(|| format!("noting that {shown} was notified"))?;
                    run.progress(|p| p.done += 1);
                }
                Err(error) => {
                    run.error(format!("Error on POST request to {shown}"));
                    run.warn(format!("Not notified {shown}: {error}"));
                    failures.push(format!("{shown}: {error}"));
                }
            }
        }
        if !failures.is_empty() {
            bail!("{} of {} URLs could not be notified: {}", failures.len(), self.endpoints.len(), failures.join("; "));
        }
        if self.endpoints.is_empty() {
            run.info("NOTIFICATIONS is empty: nobody is notified");
        }
        run.info("Notification done");
        run.info("Import and enrichment done");
        Ok(Outcome::Done(json!({"notified": self.endpoints.len()})))
    }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// How each endpoint is called in logs; those that look the same without their secrets get their place too.
fn names(endpoints: &[Endpoint]) -> Vec<String> {
    let shown: Vec<String> = endpoints.iter().map(Endpoint::shown).collect();
    let twice = |name: &String| shown.iter().filter(|other| *other == name).count() > 1;
    shown
        .iter()
        .enumerate()
        .map(|(place, name)| if twice(name) { format!("{name} (receiver {})", place + 1) } else { name.clone() })
        .collect()
}

/// Names each endpoint in the job's data without showing its URL there: SHA-256 of the URL, and
/// its number among those with the same URL (they may differ in their tokens).
fn fingerprints(endpoints: &[Endpoint]) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    endpoints
        .iter()
        .map(|endpoint| {
            let hash: String = Sha256::digest(endpoint.url.as_str()).iter().take(16).map(|b| format!("{b:02x}")).collect();
            let number = seen.iter().filter(|h| **h == hash).count();
            seen.push(hash.clone());
            if number == 0 { hash } else { format!("{hash}.{number}") }
        })
        .collect()
}

/// The receivers of both settings, `NOTIFICATIONS` first. A URL of the older setting that the newer
/// one names too is not called twice.
fn endpoints(reader: &Reader<'_>) -> Vec<Endpoint> {
    let shared = reader.optional(&NOTIFICATION_SECRET).and_then(|text| key(reader, &NOTIFICATION_SECRET, &text));
    let mut found: Vec<Endpoint> = Vec::new();
    for (setting, shape) in [
        (&NOTIFICATIONS, "an array such as [{\"url\":\"https://example.org/hook\",\"token\":\"…\"}]"),
        (&NOTIFICATION_URLS, "an array such as [\"https://example.org/hook\"]"),
    ] {
        let entries: Vec<Value> = reader.json(setting, shape);
        for (number, entry) in entries.iter().enumerate() {
            let Entry { url, token, secret } = match Entry::read(entry) {
                Ok(entry) => entry,
                Err(problem) => {
                    reader.problem(setting.name, format!("entry {} {problem}", number + 1));
                    continue;
                }
            };
            let url = match Url::parse(url.trim()) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => url,
                // The text itself may be secret, so its place must do.
                _ => {
                    reader.problem(setting.name, format!("entry {} has no usable `url`; write https://host/path", number + 1));
                    continue;
                }
            };
            if let Some(password) = url.password() {
                crate::redact::remember(password);
            }
            let key = secret.and_then(|text| key(reader, setting, &text)).or_else(|| shared.clone());
            let endpoint = Endpoint { url, token: token.map(Secret::new), key };
            if let Err(error) = endpoint.check() {
                reader.problem(setting.name, format!("entry {}: {error}", number + 1));
                continue;
            }
            let twice = found.iter().any(|other| {
                other.url == endpoint.url
                    && (setting.name == NOTIFICATION_URLS.name || (other.token == endpoint.token && other.key == endpoint.key))
            });
            if !twice {
                found.push(endpoint);
            }
        }
    }
    found
}

fn key(reader: &Reader<'_>, setting: &Setting, text: &str) -> Option<SigningKey> {
    SigningKey::parse(text).map_err(|problem| reader.problem(setting.name, problem)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(pairs: &[(&str, &str)]) -> (Notification, Result<(), crate::config::ConfigError>) {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let kind = Notification::from_settings(&reader);
        (kind, reader.finish())
    }

    #[test]
    fn both_settings_are_read_in_order_and_nobody_is_called_twice() {
        let (kind, result) = read(&[
            (
                "NOTIFICATIONS",
                r#"[{"url":"https://a/x","token":""},{"url":"https://a/x","token":"t"},{"url":"https://a/x","token":"t"}]"#,
            ),
            ("NOTIFICATION_URLS", r#"["https://b/","https://a/x","https://b/"]"#),
        ]);
        result.unwrap();
        let urls: Vec<&str> = kind.endpoints.iter().map(|e| e.url.as_str()).collect();
        assert_eq!(urls, ["https://a/x", "https://a/x", "https://b/"]);
        assert_eq!(kind.endpoints[0].token.as_ref().map(|t| t.expose()), Some(""));
        assert!(kind.endpoints[2].token.is_none());
        let prints = fingerprints(&kind.endpoints);
        assert_eq!(prints[1], format!("{}.1", prints[0]));
    }

    #[test]
    fn receivers_are_told_apart_without_their_secret_paths() {
        let (kind, result) = read(&[("NOTIFICATIONS", r#"["https://a/x/LEAK1","https://a/x/LEAK2","https://b/"]"#)]);
        result.unwrap();
        assert_eq!(names(&kind.endpoints), ["https://a/x/*** (receiver 1)", "https://a/x/*** (receiver 2)", "https://b/"]);
    }

    #[test]
    fn malformed_receivers_are_named_without_their_secrets() {
        for (name, text, wanted) in [
            ("NOTIFICATIONS", "{", "NOTIFICATIONS: should be a JSON value"),
            ("NOTIFICATIONS", r#""https://abc-secret""#, "NOTIFICATIONS: should be a JSON value"),
            ("NOTIFICATIONS", r#"[{"token":"abc-secret"}]"#, "entry 1 has no usable `url`"),
            ("NOTIFICATIONS", r#"[{"url":"http://h/","tok":"abc-secret"}]"#, "entry 1 has a member `tok`, which is not known"),
            ("NOTIFICATIONS", r#"[{"url":"http://h/","token":["abc-secret"]}]"#, "entry 1 has a `token` that is no text"),
            ("NOTIFICATIONS", "[3]", "entry 1 is neither an object nor a URL"),
            ("NOTIFICATION_SECRET", "abc-secret", "write whsec_ and the key in base64"),
            ("NOTIFICATION_URLS", "https://abc-secret", "NOTIFICATION_URLS: should be a JSON value"),
            ("NOTIFICATIONS", r#"["abc-secret"]"#, "entry 1 has no usable `url`"),
            ("NOTIFICATIONS", r#"[{"url":"ftp://abc-secret"}]"#, "entry 1 has no usable `url`"),
            ("NOTIFICATIONS", "[{\"url\":\"http://h/\",\"token\":\"abc-secret\\n\"}]", "the token holds a character"),
            ("NOTIFICATIONS", r#"[{"url":"http://h/","secret":"whsec_abc-secret"}]"#, "not base64"),
            ("NOTIFICATION_TIMEOUT", "0", "from 1 to 600"),
        ] {
            let text = read(&[(name, text)]).1.unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
            assert!(!text.contains("abc-secret"), "{text}");
        }
    }
}
