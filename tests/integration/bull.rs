//! The real Bull 4.16.5 (npm) and the tools that are made for it on the same queues as ours, in both directions.
//!
//! Needs node and the packages, which scripts/test installs where it can; without them each test
//! says so and does nothing, or fails when `BULLWORK_NEEDS_BULL` is set.
//!
//! - `peer`: the real Bull in a process of its own, and ours beside it; both do what a job's data tell
//! - `life` `looks` `sweeps` `repeats` `stalls`: one side does, the other sees
//! - `crowd`: workers of both on one queue, killed again and again
//! - `repl` `board`: npm's bull-repl and bull-board on our queues

mod board;
mod crowd;
mod life;
mod looks;
mod peer;
mod repeats;
mod repl;
mod stalls;
mod sweeps;

use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::queue::State;
use serde_json::json;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::eventually;
use crate::support::redis::RedisServer;
use peer::{Peer, our_queue, packages};

const QUEUE: &str = "Notification queue";

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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_bull_adds_is_run_by_our_worker_and_bull_sees_its_end() {
    let Some(packages) = packages(&["bull"]) else { return };
    let redis = RedisServer::start();
    let receiver = MockServer::start().await;
    Mock::given(path("/fine")).respond_with(ResponseTemplate::new(204)).mount(&receiver).await;
    Mock::given(path("/broken")).respond_with(ResponseTemplate::new(500)).mount(&receiver).await;
    let bull = Peer::start(&packages, &redis, QUEUE, &json!({}));

    let worker = OurWorker(bullwork(&redis, &format!("{}/fine", receiver.uri()), &["worker", "notification"]).spawn().unwrap());
    bull.queue("add", json!([{}, {"attempts": 2, "jobId": "fine"}])).await;
    let seen = bull.queue("finished", json!(["fine"])).await;
    assert_eq!(seen.get("error"), None, "{seen}");
    let logs = bull.queue("getJobLogs", json!(["fine"])).await;
    assert!(logs.to_string().contains("Notification done"), "{logs}");
    drop(worker);

    let _worker =
        OurWorker(bullwork(&redis, &format!("{}/broken", receiver.uri()), &["worker", "notification"]).spawn().unwrap());
    bull.queue("add", json!([{}, {"attempts": 1, "jobId": "broken"}])).await;
    let seen = bull.queue("finished", json!(["broken"])).await;
    assert!(seen["error"].as_str().is_some_and(|message| message.contains("500")), "{seen}");
    let counts = bull.queue("getJobCounts", json!([])).await;
    assert_eq!((&counts["completed"], &counts["failed"]), (&json!(1), &json!(1)), "{counts}");
    let failed = &bull.queue("getFailed", json!([])).await[0];
    assert!(failed["failedReason"].as_str().unwrap().contains("500"), "{failed}");
    assert_eq!(failed["attemptsMade"], 1);
    assert_eq!(failed["stacktrace"].as_array().unwrap().len(), 1, "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_our_restart_adds_is_run_by_bull() {
    let Some(packages) = packages(&["bull"]) else { return };
    let redis = RedisServer::start();
    let bull = Peer::start(&packages, &redis, QUEUE, &json!({}));
    bull.queue("work", json!([1])).await;
    let added = bullwork(&redis, "http://127.0.0.1:1/", &["restart:notification"]).stdout(Stdio::piped()).output().unwrap();
    let id = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    let queue = our_queue(&redis, QUEUE);
    eventually("we see it completed", Duration::from_secs(10), async || {
        queue.state(&id).await.unwrap() == Some(State::Completed)
    })
    .await;
    let job = queue.job(&id).await.unwrap().unwrap();
    assert_eq!(job.return_value, Some(json!({"by": "bull"})));
    let seen = bull.queue("getJob", json!([id])).await;
    assert_eq!(seen["opts"]["backoff"], json!({"type": "exponential", "delay": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_lists_our_schedule_and_its_pending_run() {
    let Some(packages) = packages(&["bull"]) else { return };
    let redis = RedisServer::start();
    let mut command = bullwork(&redis, "http://127.0.0.1:1/", &["scheduler"]);
    command
        .env("SOURCE_DATABASE_URL", "postgres://nobody@127.0.0.1:1/source")
        .env("TARGET_DATABASE_URL", "postgres://nobody@127.0.0.1:1/target")
        .env("SCHEDULE", "10 5 * * *");
    let _scheduler = OurWorker(command.spawn().unwrap());
    let queue = our_queue(&redis, "Replication queue");
    eventually("the schedule is armed", Duration::from_secs(20), async || !queue.schedules().await.unwrap().is_empty()).await;
    let bull = Peer::start(&packages, &redis, "Replication queue", &json!({}));
    let repeatable = &bull.queue("getRepeatableJobs", json!([])).await[0];
    assert_eq!((&repeatable["cron"], &repeatable["tz"]), (&json!("10 5 * * *"), &json!("Europe/Paris")), "{repeatable}");
    let delayed = bull.queue("getDelayed", json!([])).await;
    assert_eq!(delayed.as_array().map(Vec::len), Some(1), "{delayed}");
    assert_eq!(delayed[0]["opts"]["prevMillis"], repeatable["next"], "{delayed}");
}
