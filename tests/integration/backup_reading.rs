//! Archives read back: restored, proven, fetched, removed. Real databases and programs.

mod bucket;
mod by_hand;
mod damage;
mod doctor;
mod drill;
mod files;
mod fixtures;
mod gpg;
mod kill;
mod prune;
mod queue;
mod restore;
mod secrets;
mod swap;
mod watch;

use std::process::{Command, Output};
use std::sync::Arc;

use bullwork::config::{Environment, Reader};
use bullwork::jobs::restore::{Payload, RestoreKind};
use bullwork::worker::{JobContext, JobKind, Outcome};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::backup::{Setup, result};
use crate::support::lines::Lines;
use crate::support::postgres::{Cluster, PASSWORD, programs};

/// Settings of a machine that restores to the setup's own server.
fn settings(setup: &Setup, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let server = setup.cluster.url("postgres");
    let mut all = vec![("RESTORE_DATABASE_URL", server.as_str())];
    all.retain(|(name, _)| !more.iter().any(|(n, _)| n == name));
    all.extend(more);
    setup.settings(&all)
}

/// One run of a kind, its result or its error, and its lines.
async fn run<K: JobKind>(setup: &Setup, more: &[(&str, &str)], payload: K::Payload) -> (Result<Value, String>, Arc<Lines>) {
    let environment = Environment::of(settings(setup, more));
    let reader = Reader::new(&environment);
    let kind = K::from_settings(&reader);
    reader.finish().expect("the configuration is right");
    let (run, lines) = Lines::of_run(CancellationToken::new());
    let context = JobContext { payload, attempt: 1, attempts: 1, run, memory: None };
    let outcome = match kind.run(&context).await {
        Ok(Outcome::Done(value)) => Ok(value),
        Ok(Outcome::Refuse(reason)) => Err(reason),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(format!("{error:#}")),
    };
    (outcome, lines)
}

async fn restore(setup: &Setup, more: &[(&str, &str)], payload: Payload) -> Result<Value, String> {
    run::<RestoreKind>(setup, more, payload).await.0
}

fn into(name: &str) -> Payload {
    Payload { into: Some(name.to_owned()), ..Payload::default() }
}

/// The real program with these arguments, in the setup's directory.
fn bullwork(setup: &Setup, more: &[(&str, &str)], arguments: &[&str]) -> Output {
    command(setup, more, arguments).output().expect("the program runs")
}

fn command(setup: &Setup, more: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
    command
        .args(arguments)
        .current_dir(setup.directory.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LOG_LEVEL", "warn")
        .envs(settings(setup, more))
        .stdin(std::process::Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything that `pg_dump` tells of a database, without what differs from run to run.
fn dump(cluster: &Cluster, database: &str, options: &[&str]) -> String {
    let output = Command::new(programs().join("pg_dump"))
        .args(["-h", "127.0.0.1", "-U", "owner", "-p", &cluster.port.to_string(), "-d", database])
        .args(options)
        .env("PGPASSWORD", PASSWORD)
        .output()
        .expect("pg_dump runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Names of the databases that there are.
async fn databases(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.client("postgres").await.query("select datname::text from pg_database order by 1", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// A new private age key, and the settings of who backs up for it.
fn age_key(setup: &Setup, name: &str) -> (String, String) {
    let file = setup.directory.path().join(name);
    let public = bullwork::seal::age::keygen(&file).expect("the directory is ours");
    (public, file.display().to_string())
}

/// Makes an archive for an age key; the settings that open it.
async fn sealed_archive(setup: &Setup) -> String {
    let (public, file) = age_key(setup, "private.key");
    let made = setup.take(&[("BACKUP_AGE_RECIPIENTS", &public), ("BACKUP_PLAIN", "")]).await;
    assert_eq!(result(&made), "archived", "{made}");
    file
}
