//! Settings: where they come from, how they are read, and how mistakes are told.
//!
//! Every setting is declared once as a [`Setting`] next to its user. `sample.env`,
//! `config show`, the documentation and the error messages all come from that declaration.
//! A [`Reader`] collects every problem, so that one message names them all.
//!
//! Sources, first wins: the process environment, then a `.env` file in the working directory.

mod env_file;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use crate::redact::{self, Secret};

/// One setting, declared beside the code that uses it.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// Older or foreign names that are accepted too, read in order when `name` is unset.
    pub aliases: &'static [&'static str],
    /// The value when nothing is set; `None` means that the setting has no value then.
    pub default: Option<&'static str>,
    /// What it does, with unit and form; one or more sentences.
    pub about: &'static str,
    /// Whether the value must never be shown.
    pub secret: bool,
}

impl Setting {
    /// A setting without default, alias or secrecy.
    #[must_use]
    pub const fn new(name: &'static str, about: &'static str) -> Self {
        Setting { name, aliases: &[], default: None, about, secret: false }
    }

    /// With a default value, written as in the environment.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    /// With other accepted names.
    #[must_use]
    pub const fn aliases(mut self, names: &'static [&'static str]) -> Self {
        self.aliases = names;
        self
    }

    /// Never shown; URLs are shown without password either way.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The process environment.
    Environment,
    /// The `.env` file.
    File,
    /// The declared default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Environment => "environment",
            Origin::File => ".env",
            Origin::Default => "default",
        })
    }
}

/// The variables that settings are read from.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    values: BTreeMap<String, (String, Origin)>,
    problems: Vec<Problem>,
    file_mode: Option<u32>,
}

impl Environment {
    /// The process environment, completed by `.env` in `directory` when that file exists.
    /// A `.env` that cannot be read or parsed is a problem like any other setting's.
    #[must_use]
    pub fn load(directory: &Path) -> Self {
        let mut environment = Environment::default();
        let path = directory.join(".env");
        environment.file_mode = std::fs::metadata(&path).ok().map(|found| found.permissions().mode());
        let file = env_file::read(&path);
        environment.values.extend(file.values.into_iter().map(|(name, value)| (name, (value, Origin::File))));
        environment.problems.extend(
            file.problems.into_iter().map(|message| Problem { setting: ".env".to_owned(), message: redact::scrub(&message) }),
        );
        for (name, value) in std::env::vars_os() {
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                environment.values.insert(name, (value, Origin::Environment));
            }
        }
        environment
    }

    /// An environment of just these variables; for tests and programs that embed Bullwork.
    pub fn of<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Environment {
            values: pairs.into_iter().map(|(n, v)| (n.into(), (v.into(), Origin::Environment))).collect(),
            ..Environment::default()
        }
    }

    /// Who may open `.env`, as `chmod` counts; nothing where there is none.
    #[must_use]
    pub fn file_mode(&self) -> Option<u32> {
        self.file_mode
    }

    /// Every variable's name and origin, whether it is a setting or not.
    pub fn names(&self) -> impl Iterator<Item = (&str, Origin)> {
        self.values.iter().map(|(name, (_, origin))| (name.as_str(), *origin))
    }

    /// The variable's text, wherever it came from; empty texts count as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&str, Origin)> {
        self.values.get(name).filter(|(value, _)| !value.is_empty()).map(|(value, origin)| (value.as_str(), *origin))
    }

    /// The setting's text under its name or an alias, else its default.
    #[must_use]
    pub fn lookup(&self, setting: &Setting) -> Option<(&str, Origin)> {
        std::iter::once(setting.name)
            .chain(setting.aliases.iter().copied())
            .find_map(|name| self.get(name))
            .or(setting.default.map(|value| (value, Origin::Default)))
    }
}

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable's name.
    pub setting: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All mistakes found, in one message.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem{}:\n{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, list(.0))]
pub struct ConfigError(pub Vec<Problem>);

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("  {}: {}", p.setting, p.message)).collect::<Vec<_>>().join("\n")
}

/// Reads settings and collects what is wrong with them.
///
/// Every method returns a usable value even after a mistake, so that reading goes on and one
/// error can name everything; [`Reader::finish`] is where a mistake stops the program.
#[derive(Debug)]
pub struct Reader<'e> {
    environment: &'e Environment,
    problems: Mutex<Vec<Problem>>,
}

impl<'e> Reader<'e> {
    /// A reader over `environment`.
    #[must_use]
    pub fn new(environment: &'e Environment) -> Self {
        Reader { environment, problems: Mutex::new(environment.problems.clone()) }
    }

    /// The environment itself.
    #[must_use]
    pub fn environment(&self) -> &'e Environment {
        self.environment
    }

    /// Notes a mistake; the same one is told once.
    pub fn problem(&self, setting: &str, message: impl Into<String>) {
        let problem = Problem { setting: setting.to_owned(), message: redact::scrub(&message.into()) };
        let mut problems = self.problems.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// The text, or `None` when nothing is set and there is no default.
    pub fn optional(&self, setting: &Setting) -> Option<String> {
        self.environment.lookup(setting).map(|(value, _)| value.to_owned())
    }

    /// The text; empty when nothing is set.
    pub fn text(&self, setting: &Setting) -> String {
        self.optional(setting).unwrap_or_default()
    }

    /// A secret; empty when nothing is set.
    pub fn secret(&self, setting: &Setting) -> Secret {
        Secret::new(self.text(setting))
    }

    /// A whole number within `range`.
    pub fn integer(&self, setting: &Setting, range: std::ops::RangeInclusive<u64>) -> u64 {
        let text = self.text(setting);
        match text.trim().parse::<u64>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.problem(setting.name, format!("`{text}` is not a whole number from {} to {}", range.start(), range.end()));
                setting.default.and_then(|d| d.parse().ok()).unwrap_or(*range.start())
            }
        }
    }

    /// A duration given in whole milliseconds.
    pub fn milliseconds(&self, setting: &Setting, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.integer(setting, range))
    }

    /// A duration given in whole seconds.
    pub fn seconds(&self, setting: &Setting, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.integer(setting, range))
    }

    /// A duration given in whole minutes.
    pub fn minutes(&self, setting: &Setting, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.integer(setting, range) * 60)
    }

    /// `true` or `false`; anything else is a mistake.
    pub fn flag(&self, setting: &Setting) -> bool {
        match self.text(setting).as_str() {
            "true" => true,
            "false" | "" => false,
            other => {
                self.problem(setting.name, format!("`{other}` is neither `true` nor `false`"));
                false
            }
        }
    }

    /// An URL with one of `schemes`; `None` when nothing is set.
    pub fn url(&self, setting: &Setting, schemes: &[&str]) -> Option<url::Url> {
        let text = self.optional(setting)?;
        match url::Url::parse(text.trim()) {
            Ok(url) if schemes.contains(&url.scheme()) => {
                if let Some(password) = url.password() {
                    redact::remember(password);
                }
                Some(url)
            }
            Ok(url) => {
                self.problem(setting.name, format!("scheme `{}` is not one of: {}", url.scheme(), schemes.join(", ")));
                None
            }
            Err(error) => {
                self.problem(
                    setting.name,
                    format!("is not a URL ({error}); write {}://user@host:port/name", schemes.first().unwrap_or(&"scheme")),
                );
                None
            }
        }
    }

    /// JSON of the wanted shape; `shape` tells people what that is.
    pub fn json<T: serde::de::DeserializeOwned + Default>(&self, setting: &Setting, shape: &str) -> T {
        match serde_json::from_str(&self.text(setting)) {
            Ok(value) => value,
            Err(error) => {
                let mut problem = format!("should be a JSON value: {shape}");
                // What is well-formed but of another shape is quoted by the parser.
                if !(setting.secret && error.is_data()) {
                    problem.push_str(&format!(" ({})", json_reason(&error)));
                }
                // A JSON text without quotes says nothing by itself to somebody who wrote some.
                let quotes_lost = self.environment.lookup(setting).is_some_and(|(text, origin)| {
                    origin == Origin::File && text.starts_with(['{', '[']) && !text.contains('"') && text.len() > 2
                });
                if quotes_lost {
                    problem.push_str("; a .env file takes quotes away: put '…' around the whole value");
                }
                self.problem(setting.name, problem);
                T::default()
            }
        }
    }

    /// The error that names every mistake, if there was one.
    ///
    /// # Errors
    /// When anything was noted with [`Reader::problem`].
    pub fn finish(self) -> Result<(), ConfigError> {
        let problems = self.problems.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }
}

/// The parser's words, without a place that says nothing.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) if error.column() == 0 => reason.to_owned(),
        Some((reason, _)) if error.line() == 1 => format!("{reason} at column {}", error.column()),
        _ => text,
    }
}

/// Name of this deployment in the logs and in the `client` header of outgoing requests.
pub static APP: Setting =
    Setting::new("APP", "Name of this deployment in the logs and in the `client` header of HTTP requests.").default("bullwork");
/// The queue store.
pub static REDIS_URL: Setting = Setting::new(
    "REDIS_URL",
    "Redis that holds the queues: redis://[user:password@]host:port[/database]; with sentinels \
     redis-sentinel://[user:password@]host:26379,host:26379/master[/database]; a cluster redis-cluster://host:port,host:port \
     (and a QUEUE_PREFIX such as {bull}). With rediss instead of redis for TLS; ?sslrootcert=FILE names the CA.",
)
.default("redis://127.0.0.1:6379");
/// Prefix of every queue key.
pub static QUEUE_PREFIX: Setting =
    Setting::new("QUEUE_PREFIX", "Prefix of every queue key in Redis; Bull's own default is `bull`.").default("bull");
/// Tries of each job.
pub static MAX_RETRY_COUNT: Setting =
    Setting::new("MAX_RETRY_COUNT", "Tries of each job before it counts as failed, 1 to 1000.").default("10");
/// Base of the exponential back-off.
pub static EXPONENTIAL_RETRY_DELAY: Setting = Setting::new(
    "EXPONENTIAL_RETRY_DELAY",
    "Base of the wait between tries, in milliseconds: before try n+1 it is (2^n - 1) times this.",
)
.default("1000");
/// Completed jobs that stay in each queue.
pub static KEEP_COMPLETED_JOBS: Setting =
    Setting::new("KEEP_COMPLETED_JOBS", "Completed jobs kept in each queue, newest first; older ones are removed.")
        .default("100");
/// Failed jobs that stay in each queue.
pub static KEEP_FAILED_JOBS: Setting =
    Setting::new("KEEP_FAILED_JOBS", "Failed jobs kept in each queue, newest first; older ones are removed.").default("1000");
/// `production` fetches PostgreSQL client tools at start; `test` logs nothing but fatal errors.
pub static NODE_ENV: Setting = Setting::new(
    "NODE_ENV",
    "`production` fetches the PostgreSQL client tools at start when `dbclient-fetcher` is on PATH; `test` logs errors only.",
);
/// `json`, `text`, or by the kind of standard output.
pub static LOG_FORMAT: Setting =
    Setting::new("LOG_FORMAT", "`json` (bunyan lines), `text` (for people), or `auto`: text on a terminal, else json.")
        .default("auto");
/// Lowest level that is logged.
pub static LOG_LEVEL: Setting =
    Setting::new("LOG_LEVEL", "Lowest level that is logged: error, warn, info, debug or trace.").default("info");

/// Accepted for compatibility with the reference system, where they are read and used nowhere.
pub const IGNORED: &[&str] = &["RETRIES_TIMEOUT_MINUTES", "MIN_TIMEOUT", "MAX_TIMEOUT", "SENTRY_MAX_VALUE_LENGTH"];

/// The settings of the plain layer and of the queue store.
pub static COMMON: &[&Setting] = &[
    &APP,
    &REDIS_URL,
    &QUEUE_PREFIX,
    &MAX_RETRY_COUNT,
    &EXPONENTIAL_RETRY_DELAY,
    &KEEP_COMPLETED_JOBS,
    &KEEP_FAILED_JOBS,
    &NODE_ENV,
    &LOG_FORMAT,
    &LOG_LEVEL,
];
