//! Two at once, and a run as a job.

use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::jobs::backup::Payload;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Setup, result};
use crate::support::redis::RedisServer;
use crate::support::{Server, eventually};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn second_of_two_runs_is_skipped_and_says_who_is_at_it() {
    let setup = Setup::new().await;
    let bin = setup.slow_pg_dump();
    let slow = setup.kind(&[("PG_BIN", &bin.display().to_string())]);
    let second = async {
        eventually("pg_dump waits", SOON, async || bin.join("waiting").exists()).await;
        let value = setup.take(&[]).await;
        std::fs::write(bin.join("go"), "").unwrap();
        value
    };
    let ((first, _), second) = tokio::join!(setup.run_with(&slow, Payload::default(), CancellationToken::new()), second);
    assert!(format!("{first:?}").contains("archived"), "{first:?}");
    assert_eq!(result(&second), "skipped");
    assert!(second["reason"].as_str().unwrap().contains("bullwork: backup"), "{second}");
    assert_eq!(setup.archives().await.len(), 1);
    // Another database of the server is nobody else's business.
    assert_eq!(result(&setup.take(&[]).await), "unchanged");
}

/// Two servers that take over from each other do not see each other's locks; the baseline decides then.
#[tokio::test]
async fn of_two_runs_past_the_lock_one_goes_on() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("update customer set name = 'x' where id = 1").await.unwrap();
    let bin = setup.slow_pg_dump();
    let slow = setup.kind(&[("PG_BIN", &bin.display().to_string())]);
    let meddling = async {
        eventually("pg_dump waits", SOON, async || bin.join("waiting").exists()).await;
        let mut other = setup.baseline().unwrap();
        other.written_at += chrono::TimeDelta::seconds(1);
        std::fs::write(setup.store().join("db/baseline.json"), serde_json::to_vec(&other).unwrap()).unwrap();
        std::fs::write(bin.join("go"), "").unwrap();
    };
    let ((outcome, _), ()) = tokio::join!(setup.run_with(&slow, Payload::default(), CancellationToken::new()), meddling);
    assert!(format!("{outcome:?}").contains("skipped"), "{outcome:?}");
    assert_eq!(setup.archives().await.len(), 1, "{:?}", setup.files());
    assert_eq!(result(&setup.take(&[]).await), "archived");
}

fn bullwork(setup: &Setup, redis: &RedisServer, more: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
    command
        .args(arguments)
        .current_dir(setup.directory.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("REDIS_URL", redis.url())
        .envs(setup.settings(more))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn value(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[tokio::test]
async fn jobs_of_the_queue_are_run_by_workers_and_can_be_cancelled() {
    let setup = Setup::new().await;
    let redis = RedisServer::start();
    let bin = setup.slow_pg_dump();
    let slow = [("PG_BIN", bin.display().to_string())];
    let slow: Vec<(&str, &str)> = slow.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut worker = bullwork(&setup, &redis, &slow, &["worker", "backup"]);
    worker.stdout(Stdio::null());
    let _worker = Server::start(worker, Signal::SIGTERM);

    let add = bullwork(&setup, &redis, &[], &["backup", "now", "--queue"]).output().unwrap();
    let id = String::from_utf8(add.stdout).unwrap().trim().to_owned();
    assert!(add.status.success() && !id.is_empty());
    eventually("pg_dump waits", SOON, async || bin.join("waiting").exists()).await;
    let store =
        bullwork::ops::store::Store::from_settings(&bullwork::config::Reader::new(&bullwork::config::Environment::of([(
            "REDIS_URL",
            redis.url(),
        )])))
        .unwrap();
    eventually("the job tells how far it is", SOON, async || {
        let progress = store.job("Backup queue", &id).await.unwrap().0.progress.unwrap_or_default();
        progress["phase"] == "dump" && progress["bytes"].as_u64() > Some(0)
    })
    .await;
    store.cancel("Backup queue", &id, "a test").await.unwrap();
    eventually("the job fails", SOON, async || {
        store.job("Backup queue", &id).await.unwrap().1 == Some(bullwork::queue::State::Failed)
    })
    .await;
    assert!(setup.archives().await.is_empty() && setup.baseline().is_none(), "{:?}", setup.files());

    std::fs::write(bin.join("go"), "").unwrap();
    let arguments = ["backup", "now", "--queue", "--wait", "--annotation", "on demand"];
    let output = bullwork(&setup, &redis, &[], &arguments).output().unwrap();
    assert!(output.status.success());
    let value = value(&output);
    assert_eq!(value["result"], json!("archived"), "{value}");
    assert_eq!(setup.newest().await.annotation.as_deref(), Some("on demand"));
}

#[test]
fn without_a_store_backup_now_says_what_to_set() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_bullwork")).args(["backup", "now"]).env_clear().current_dir("/").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("BACKUP_STORE"), "{message}");
}
