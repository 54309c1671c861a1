//! `db-p` and `bullwork preset`: data on standard output, what happens on standard error and in DBP_LOGFILE.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use indicatif::ProgressBar;
use serde_json::{Map, json};

use super::{print, watch};
use crate::clock::{Clock, to_rfc3339};
use crate::config::{Environment, Reader};
use crate::jobs::preset::PresetKind;
use crate::ops::plain::plain;
use crate::ops::preset::{self, Call};
use crate::presets::PresetError;
use crate::redact::scrub;
use crate::shutdown;
use crate::worker::{JobKind as _, Progress, Record, Run, RunSink};

/// Exit code for arguments that cannot be understood.
const USAGE: u8 = 2;
/// Exit code of `get-lock` when it cannot tell: 1 means that somebody has the lock.
const UNTOLD: u8 = 3;

pub(super) async fn run(environment: &Environment, words: &[String]) -> anyhow::Result<ExitCode> {
    if words.iter().any(|word| matches!(word.as_str(), "-h" | "--help" | "help")) {
        return print(&preset::help());
    }
    let has = |option: &str| words.iter().any(|word| word == option);
    let (queue, wait) = (has("--queue"), has("--wait"));
    let words: Vec<&String> = words.iter().filter(|word| !matches!(word.as_str(), "--queue" | "--wait")).collect();
    let call = match Call::parse(&words) {
        Ok(call) => call,
        Err(error) => return Ok(usage(&error.to_string())),
    };
    if wait && !queue {
        return Ok(usage("--wait needs --queue"));
    }
    if queue {
        if let Some(why) = preset::unfit(&call) {
            return Ok(usage(&why));
        }
        return super::backup::enqueue(environment, PresetKind::NAME, serde_json::to_value(&call)?, wait).await;
    }
    here(environment, &call).await.or_else(|error| Ok(failure(&call, &format!("{error:#}"))))
}

fn failure(call: &Call, told: &str) -> ExitCode {
    eprintln!("db-p: {}", plain(&scrub(told)));
    if call.command == "get-lock" { ExitCode::from(UNTOLD) } else { ExitCode::FAILURE }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("db-p: {}", plain(&scrub(problem)));
    ExitCode::from(USAGE)
}

async fn here(environment: &Environment, call: &Call) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let settings = preset::settings(&reader);
    reader.finish()?;
    let terminal = Arc::new(Terminal::new(settings.log_file.as_deref())?);
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    let fields = Map::from_iter([("job.kind".to_owned(), json!(PresetKind::NAME))]);
    let run = Run::new(fields, quiet, Some(terminal.clone()));
    terminal.note(&format!("{} begins", call.command));
    let result = preset::run(settings, &run, call).await;
    terminal.bar.finish_and_clear();
    match result {
        Ok(done) => {
            terminal.note(&format!("{} is done", call.command));
            if !done.said.is_empty() {
                print(&format!("{}\n", plain(&done.said)))?;
            }
            Ok(if done.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(PresetError::Usage(error)) => Ok(usage(&error.to_string())),
        Err(error) => {
            terminal.note(&format!("{} failed: {error}", call.command));
            Ok(failure(call, &error.to_string()))
        }
    }
}

/// Where a command tells what it does.
struct Terminal {
    bar: ProgressBar,
    log: Option<Mutex<File>>,
}

impl Terminal {
    fn new(log: Option<&std::path::Path>) -> anyhow::Result<Self> {
        let bar = watch::bar();
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let open = |path: &std::path::Path| File::options().append(true).create(true).mode(0o600).open(path);
        let log = log.map(|path| open(path).with_context(|| format!("opening DBP_LOGFILE={}", path.display()))).transpose()?;
        Ok(Terminal { bar, log: log.map(Mutex::new) })
    }

    /// A line of the log file.
    fn note(&self, line: &str) {
        if let Some(log) = &self.log {
            let line = format!("{} {}\n", to_rfc3339(Clock::System.now()), plain(&scrub(line)));
            // A full disk under the log is no reason to stop.
            let _ = log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        }
    }
}

impl RunSink for Terminal {
    fn line(&self, record: &Record) {
        let line = plain(&record.message);
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(&line);
        }
        self.note(&line);
    }

    fn progress(&self, progress: &Progress) {
        if !self.bar.is_hidden() {
            watch::show(&self.bar, progress);
            self.bar.set_message(plain(&watch::told(progress)));
        }
    }
}
