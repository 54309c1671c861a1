//! The command line: reads arguments and settings, calls `ops`, prints. Data goes to stdout,
//! messages to stderr; the exit code is 0 for success, 1 for a failure, 2 for wrong arguments.

mod backup;
mod listen;
mod plan;
mod preset;
mod release;
mod verify;
mod watch;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::config::{ConfigError, Environment, Reader};
use crate::logging::LogSettings;
use crate::ops::metrics::Metrics;
use crate::ops::plain::{one_line, plain};
use crate::ops::serve::{Parts, Service};
use crate::ops::store::Store;
use crate::ops::{self, doctor::Grade};
use crate::redact::scrub;
use crate::sentry::SentrySettings;
use crate::worker::{Declaration, RetryPolicy};
use crate::{jobs, logging, repl, sentry, shutdown, web};

/// PostgreSQL chores as jobs in Bull-compatible Redis queues.
#[derive(Parser, Debug)]
#[command(name = "bullwork", version, about, after_help = after_help(), subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// Inspect and operate Bull queues; reads commands from a terminal or a pipe.
///
/// `help` lists the commands, `completed --help` tells about one. Redis is the one of REDIS_URL, from the
/// environment or .env, unless `connect` names another.
#[derive(Parser, Debug)]
#[command(name = "bull-repl", version, about, long_about)]
struct ReplCli {}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run the scheduler and one worker for each queue
    Background,
    /// Run only these kinds' workers (all of them when none is named)
    Worker {
        /// Kinds of job
        kinds: Vec<String>,
    },
    /// Run only the schedules
    Scheduler,
    /// Enqueue one job with the standard options; also written `restart:KIND`
    Restart(Restart),
    /// Run a step here and now, without Redis
    Run {
        /// Kind of job
        kind: String,
        /// The job's data as a JSON object
        #[arg(long, value_name = "JSON", default_value = "{}")]
        data: String,
    },
    /// Inspect and operate queues; reads commands from a terminal or a pipe
    Repl,
    /// Serve /healthz and /metrics on $PORT
    Web,
    /// Take requests for restores of clusters over TCP; the worker of `restore` performs them
    Listen(listen::Listen),
    /// Tell how long a replication took, from its logs
    ParseLogs {
        /// Log file, in this program's JSON lines or the platform's text
        file: PathBuf,
        /// Day to look at, YYYY-MM-DD
        date: String,
    },
    /// Tell about settings
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Operate the copies in the target
    #[command(subcommand)]
    Replication(ReplicationVerb),
    /// Archive the database in a store
    #[command(subcommand)]
    Backup(backup::BackupVerb),
    /// Share and select states of a whole cluster; the same as the program `db-p` (`preset --help`)
    #[command(disable_help_flag = true)]
    Preset {
        /// Command and key=value arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Copy releases from the developers' server to beta and to the business servers
    #[command(subcommand)]
    Release(release::ReleaseVerb),
    /// Check configuration, Redis, both databases and client tools; a fix for each finding
    Doctor,
}

#[derive(Args, Debug)]
struct Restart {
    /// Kind of job
    kind: String,
    /// Follow the job to its end and exit with its result
    #[arg(long)]
    wait: bool,
    /// Follow the jobs that come after it too
    #[arg(long, requires = "wait")]
    chain: bool,
}

#[derive(Subcommand, Debug)]
enum ConfigVerb {
    /// Print a .env file with every setting, its meaning and its default
    Sample,
    /// Print every value and where it comes from
    Show,
}

#[derive(Subcommand, Debug)]
enum ReplicationVerb {
    /// Show what a full replication would do; nothing is changed
    Plan {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring back the copy that served before the present one
    Rollback,
    /// Compare source and target as they are now, by checksum; exit code 1 when a table differs
    Verify {
        /// Only these tables, named as in BACKUP_MODE
        tables: Vec<String>,
        /// Copy the key ranges that differ
        #[arg(long)]
        repair: bool,
    },
}

fn after_help() -> String {
    let mut text = String::from("Kinds of job:\n");
    for kind in jobs::ALL {
        let then = kind.then.map(|then| format!("; then {then}")).unwrap_or_default();
        text.push_str(&format!("  {:<30} {}{then}\n", kind.name, kind.summary));
    }
    text.push_str("\nSettings come from the environment and .env; `bullwork config sample` lists them.");
    text
}

/// `restart:KIND` is how the reference system spells `restart KIND`.
fn spelled_out(arguments: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<_> = arguments.collect();
    if let Some(kind) = arguments.get(1).and_then(|a| a.to_str()).and_then(|a| a.strip_prefix("restart:")).map(str::to_owned) {
        arguments.splice(1..2, ["restart".into(), kind.into()]);
    }
    arguments
}

/// What `bullwork` does.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(spelled_out(std::env::args_os()));
    within_runtime(run(cli.verb))
}

/// What `bull-repl` does.
#[must_use]
pub fn repl_main() -> ExitCode {
    let ReplCli {} = ReplCli::parse();
    within_runtime(async { repl::run(&Environment::load(Path::new("."))).await })
}

/// What `db-p` does.
#[must_use]
pub fn preset_main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    within_runtime(async move { preset::run(&Environment::load(Path::new(".")), &words).await })
}

fn within_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    // The one TLS provider of the whole program (design §3.13); a second call would be a mistake.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bullwork: failed to start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(work).unwrap_or_else(|error| {
        eprintln!("bullwork: {}", plain(&scrub(&format!("{error:#}"))));
        ExitCode::FAILURE
    });
    // Blocking threads (a resolver, a line editor) must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let environment = Environment::load(Path::new("."));
    match verb {
        Verb::Background => serve(&environment, &[], Parts::Both).await,
        Verb::Worker { kinds } => serve(&environment, &kinds, Parts::Workers).await,
        Verb::Scheduler => serve(&environment, &[], Parts::Scheduler).await,
        Verb::Restart(restart) => enqueue(&environment, restart).await,
        Verb::Run { kind, data } => run_here(&environment, &kind, &data).await,
        Verb::Repl => repl::run(&environment).await,
        Verb::Web => serve_web(&environment).await,
        Verb::Listen(listen) => listen::run(&environment, &listen).await,
        Verb::ParseLogs { file, date } => parse_logs(&file, &date),
        Verb::Config(ConfigVerb::Sample) => print(&ops::reference::sample()),
        Verb::Config(ConfigVerb::Show) => show_config(&environment),
        Verb::Replication(ReplicationVerb::Plan { json }) => plan::plan(&environment, json).await,
        Verb::Replication(ReplicationVerb::Rollback) => rollback(&environment).await,
        Verb::Replication(ReplicationVerb::Verify { tables, repair }) => verify::verify(&environment, tables, repair).await,
        Verb::Backup(verb) => backup::run(&environment, verb).await,
        Verb::Preset { words } => preset::run(&environment, &words).await,
        Verb::Release(verb) => release::run(&environment, verb).await,
        Verb::Doctor => doctor(&environment).await,
    }
}

/// Prints data; a reader that went away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        other => {
            other.context("writing to standard output")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn start_logging(reader: &Reader<'_>) -> Option<sentry::Guard> {
    logging::init(&LogSettings::from_settings(reader));
    sentry::init(&SentrySettings::from_settings(reader))
}

async fn serve(environment: &Environment, kinds: &[String], parts: Parts) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let declarations = jobs::select(kinds, &reader)?;
    let tracker = start_logging(&reader);
    let service = Service::from_settings(&declarations, &reader);
    reader.finish()?;
    let service = service.context("reading the configuration")?;
    for hint in ops::check::unknown(environment) {
        tracing::warn!("{hint}");
    }
    let left_out: Vec<&str> = match kinds {
        [] => jobs::ALL.iter().map(|kind| kind.name).filter(|name| !declarations.iter().any(|kind| kind.name == *name)).collect(),
        _ => Vec::new(),
    };
    if !left_out.is_empty() {
        tracing::info!("this machine is not set up for {}; `worker KIND` tells what is missing", left_out.join(", "));
    }
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    // Past the deadline the platform kills us anyway: better to leave by ourselves, with the
    // reason in the log and the jobs' locks left to expire.
    let deadline = async {
        quiet.cancelled().await;
        tokio::time::sleep(shutdown::DEADLINE).await;
    };
    let result = tokio::select! {
        result = service.run(parts, quiet.clone()) => result.map(|()| ExitCode::SUCCESS),
        () = deadline => {
            tracing::error!("not everything stopped within {} s; jobs that still run are taken again when their locks expire", shutdown::DEADLINE.as_secs());
            Ok(ExitCode::FAILURE)
        }
    };
    if let Some(tracker) = tracker {
        tracker.flush();
    }
    result
}

async fn serve_web(environment: &Environment) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let _tracker = start_logging(&reader);
    let (address, metrics) = (web::address(&reader), Metrics::from_settings(&reader));
    reader.finish()?;
    web::serve(address, metrics, shutdown::on_signals().context("installing signal handlers")?).await?;
    Ok(ExitCode::SUCCESS)
}

fn declaration(name: &str) -> Result<&'static Declaration, jobs::UnknownKind> {
    jobs::named(name).ok_or_else(|| jobs::UnknownKind(name.to_owned()))
}

async fn enqueue(environment: &Environment, restart: Restart) -> anyhow::Result<ExitCode> {
    let kind = declaration(&restart.kind)?;
    let reader = Reader::new(environment);
    let (store, policy) = (Store::from_settings(&reader), RetryPolicy::from_settings(&reader));
    reader.finish()?;
    let store = store.context("reading the configuration")?;
    store.check().await?;
    let id = store.restart(kind, &policy).await.context("adding the job")?;
    added(&store, kind, &id, restart.wait, restart.chain).await
}

/// Tells a job that was added, and follows it when asked.
async fn added(store: &Store, kind: &'static Declaration, id: &str, wait: bool, chain: bool) -> anyhow::Result<ExitCode> {
    eprintln!("added job {id} to `{}`", kind.queue);
    if !wait {
        println!("{id}");
        return Ok(ExitCode::SUCCESS);
    }
    let result = {
        let mut watcher = watch::Terminal::new();
        ops::follow::follow(store, kind, id, chain, &mut watcher).await?
    };
    print(&format!("{result}\n"))
}

async fn run_here(environment: &Environment, kind: &str, data: &str) -> anyhow::Result<ExitCode> {
    let declaration = declaration(kind)?;
    let data: Value = serde_json::from_str(data).context("--data is not JSON")?;
    let result = once(environment, declaration, data).await?;
    eprintln!("{} is done: {result}", declaration.name);
    Ok(ExitCode::SUCCESS)
}

/// Runs a job here and now.
async fn once(environment: &Environment, declaration: &'static Declaration, data: Value) -> anyhow::Result<Value> {
    let reader = Reader::new(environment);
    let _tracker = start_logging(&reader);
    let kind = declaration.build(&reader);
    reader.finish()?;
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    ops::serve::run_once(&kind, data, quiet, None).await
}

async fn rollback(environment: &Environment) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let _tracker = start_logging(&reader);
    let target = ops::replication::target(&reader);
    reader.finish()?;
    let target = target.context("reading the configuration")?;
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    print(&format!("{}\n", ops::replication::rollback(&target, quiet).await?))
}

fn parse_logs(file: &Path, date: &str) -> anyhow::Result<ExitCode> {
    let log = std::fs::File::open(file).with_context(|| format!("opening `{}`", file.display()))?;
    let report =
        ops::parse_logs::run(std::io::BufReader::new(log), date).with_context(|| format!("reading `{}`", file.display()))?;
    print(&report.to_string())
}

/// Every value, then what is wrong with those that somebody wrote.
fn show_config(environment: &Environment) -> anyhow::Result<ExitCode> {
    print(&format!("{}\n", ops::reference::show(environment)))?;
    for hint in ops::check::unknown(environment) {
        eprintln!("bullwork: {hint}");
    }
    match ops::check::bad_values(environment) {
        problems if problems.is_empty() => Ok(ExitCode::SUCCESS),
        problems => Err(ConfigError(problems).into()),
    }
}

async fn doctor(environment: &Environment) -> anyhow::Result<ExitCode> {
    let mut examination = std::pin::pin!(ops::doctor::examine(environment));
    let findings = tokio::select! {
        findings = &mut examination => findings,
        () = tokio::time::sleep(std::time::Duration::from_secs(2)) => {
            eprintln!("waiting for the servers; one that does not answer is given up after 20 s");
            examination.await
        }
    };
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["", "check", "seen", "what to do"]);
    for finding in &findings {
        table.add_row([
            &finding.grade.to_string(),
            finding.check,
            &one_line(&scrub(&finding.seen)),
            &one_line(&scrub(&finding.fix)),
        ]);
    }
    print(&format!("{table}\n"))?;
    let count = |grade| findings.iter().filter(|f| f.grade == grade).count();
    let (failed, skipped) = (count(Grade::Bad), count(Grade::Skipped));
    if failed == 0 {
        eprintln!("no check failed");
        return Ok(ExitCode::SUCCESS);
    }
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} could not be made") };
    eprintln!("{failed} of {} checks failed{skipped}", findings.len());
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn restart_is_understood_in_both_spellings() {
        for words in [vec!["bullwork", "restart:notification", "--wait"], vec!["bullwork", "restart", "notification", "--wait"]] {
            let cli = Cli::try_parse_from(spelled_out(words.into_iter().map(Into::into))).unwrap();
            assert!(matches!(cli.verb, Verb::Restart(Restart { kind, wait: true, chain: false }) if kind == "notification"));
        }
    }
}
