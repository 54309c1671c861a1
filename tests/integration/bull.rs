//! The real Bull 4.16.5 (npm) on the same queues as ours, in both directions.
//!
//! Needs node and the package, which scripts/test installs where it can; without them each test
//! says so and does nothing.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Queue, State};
use bullwork::redis::Redis;
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::eventually;
use crate::support::redis::RedisServer;

const QUEUE: &str = "Notification queue";

/// Where scripts/test installs the package; `None`, and a line that says so, where it is not.
fn packages() -> Option<PathBuf> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/bull/node_modules");
    let node =
        Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if node && packages.join("bull").exists() {
        return Some(packages);
    }
    println!("NOT RUN: node or npm's bull@4.16.5 is not there; scripts/test installs both where it can");
    assert!(
        std::env::var_os("BULLWORK_NEEDS_BULL").is_none(),
        "node or npm's bull@4.16.5 is not in {}, though it should be",
        packages.display()
    );
    None
}

fn peer(packages: &PathBuf, redis: &RedisServer, command: &str) -> std::process::Child {
    Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bull/peer.js"))
        .args([&redis.url(), QUEUE, command])
        .env("NODE_PATH", packages)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("node runs")
}

async fn answer(child: std::process::Child) -> Value {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("the peer answers JSON")
}

struct OurWorker(std::process::Child);

impl Drop for OurWorker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bullwork(redis: &RedisServer, hook: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
    command
        .args(arguments)
        .env_clear()
        .current_dir(std::env::temp_dir())
        .env("REDIS_URL", redis.url())
        .env("NOTIFICATIONS", format!(r#"[{{"url":"{hook}"}}]"#))
        .env("EXPONENTIAL_RETRY_DELAY", "1")
        .env("MAX_RETRY_COUNT", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn our_queue(redis: &RedisServer, name: &str) -> Queue {
    Queue::new(Redis::new(&redis.url()).unwrap(), "bull", name, Clock::System)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_bull_adds_is_run_by_our_worker_and_bull_sees_its_end() {
    let Some(packages) = packages() else { return };
    let redis = RedisServer::start();
    let receiver = MockServer::start().await;
    Mock::given(path("/fine")).respond_with(ResponseTemplate::new(204)).mount(&receiver).await;
    Mock::given(path("/broken")).respond_with(ResponseTemplate::new(500)).mount(&receiver).await;

    let worker = OurWorker(bullwork(&redis, &format!("{}/fine", receiver.uri()), &["worker", "notification"]).spawn().unwrap());
    let seen = answer(peer(&packages, &redis, "addAndAwait")).await;
    assert!(seen["logs"].to_string().contains("Notification done"), "{seen}");
    drop(worker);

    let _worker =
        OurWorker(bullwork(&redis, &format!("{}/broken", receiver.uri()), &["worker", "notification"]).spawn().unwrap());
    let seen = answer(peer(&packages, &redis, "addAndAwaitFailure")).await;
    assert_eq!(seen["failed"], true, "{seen}");
    assert!(seen["message"].as_str().unwrap().contains("500"), "{seen}");
    let looked = answer(peer(&packages, &redis, "look")).await;
    assert_eq!((&looked["counts"]["completed"], &looked["counts"]["failed"]), (&json!(1), &json!(1)), "{looked}");
    assert!(looked["failed"][0]["reason"].as_str().unwrap().contains("500"), "{looked}");
    assert_eq!(looked["failed"][0]["attemptsMade"], 1);
    assert_eq!(looked["failed"][0]["stacktrace"].as_array().unwrap().len(), 1, "{looked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_our_restart_adds_is_run_by_bull() {
    let Some(packages) = packages() else { return };
    let redis = RedisServer::start();
    let bull = peer(&packages, &redis, "processOne");
    let added = bullwork(&redis, "http://127.0.0.1:1/", &["restart:notification"]).stdout(Stdio::piped()).output().unwrap();
    let id = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    let seen = answer(bull).await;
    assert_eq!((&seen["id"], &seen["result"]["by"]), (&json!(id), &json!("bull")), "{seen}");
    assert_eq!(seen["opts"]["backoff"], json!({"type": "exponential", "delay": 1}));
    let queue = our_queue(&redis, QUEUE);
    eventually("we see it completed", Duration::from_secs(10), async || {
        queue.state(&id).await.unwrap() == Some(State::Completed)
    })
    .await;
    let job = queue.job(&id).await.unwrap().unwrap();
    assert_eq!((job.return_value, job.progress), (Some(json!({"by": "bull"})), Some(json!(42))));
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_lists_our_schedule_and_its_pending_run() {
    let Some(packages) = packages() else { return };
    let redis = RedisServer::start();
    let mut command = bullwork(&redis, "http://127.0.0.1:1/", &["scheduler"]);
    command
        .env("SOURCE_DATABASE_URL", "postgres://nobody@127.0.0.1:1/source")
        .env("TARGET_DATABASE_URL", "postgres://nobody@127.0.0.1:1/target")
        .env("SCHEDULE", "10 5 * * *");
    let _scheduler = OurWorker(command.spawn().unwrap());
    let queue = our_queue(&redis, "Replication queue");
    eventually("the schedule is armed", Duration::from_secs(20), async || !queue.schedules().await.unwrap().is_empty()).await;
    let child = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bull/peer.js"))
        .args([&redis.url(), "Replication queue", "look"])
        .env("NODE_PATH", &packages)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let looked = answer(child).await;
    let repeatable = &looked["repeatables"][0];
    assert_eq!((&repeatable["cron"], &repeatable["tz"]), (&json!("10 5 * * *"), &json!("Europe/Paris")), "{looked}");
    assert_eq!(looked["delayed"][0]["opts"]["prevMillis"], repeatable["next"], "{looked}");
    assert_eq!(looked["counts"]["delayed"], 1);
}
