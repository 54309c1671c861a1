//! The fifteen traps of the wire format (§11): what ours does in each, and that the real Bull loses no job through us where
//! both work on one queue.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{
    Admission, Armed, Event, Failed, Failure, JobOptions, NewJob, Queue, QueueError, Renewed, Repeat, State, Taken,
};
use bullwork::redis::Redis;
use serde_json::{Value, json};

use super::bench::{Bench, LOCK, NOW};
use crate::support::redis::RedisServer;

const INTERVAL: Duration = Duration::from_secs(30);
const SLOT: i64 = NOW + 60_000;

async fn recover_twice(bench: &mut Bench, limit: u32) -> (Vec<String>, Vec<String>) {
    bench.queue.recover_stalled(INTERVAL, limit).await.unwrap();
    let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
    let found = bench.queue.recover_stalled(INTERVAL, limit).await.unwrap();
    let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
    (found.requeued, found.failed)
}

/// A queue whose times are the machine's, for sharing with the real Bull.
fn shared() -> (RedisServer, Queue) {
    let server = RedisServer::start();
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "v", Clock::System);
    (server, queue)
}

/// Starts the real Bull; nothing, and a line that says so, where it is not installed.
fn bull(server: &RedisServer, command: &str) -> Option<std::process::Child> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/bull/node_modules");
    if !packages.join("bull").exists() {
        println!("NOT RUN: npm's bull@4.16.5 is not there; scripts/test installs it where it can");
        assert!(std::env::var_os("BULLWORK_NEEDS_BULL").is_none(), "npm's bull@4.16.5 is not in {}", packages.display());
        return None;
    }
    let mut node = Command::new("node");
    node.arg(root.join("tests/bull/traps.js")).args([&server.url(), "v", command]).env("NODE_PATH", packages);
    Some(node.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("node runs"))
}

async fn answer(child: std::process::Child) -> Value {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = tokio::time::timeout(Duration::from_secs(30), waiting).await else {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("bull does not answer within 30 s");
    };
    let output = output.unwrap().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("bull answers JSON")
}

async fn add(queue: &Queue, options: JobOptions) -> String {
    queue.add(&NewJob::unnamed(json!({}), options)).await.unwrap().id().to_owned()
}

async fn take(queue: &Queue, token: &str) -> bullwork::queue::Job {
    match queue.take(token, LOCK, Admission::Any).await.unwrap() {
        Taken::Job(job) => *job,
        other => panic!("{other:?} instead of a job"),
    }
}

/// Trap 1.
#[tokio::test]
async fn t01_a_hash_without_options_is_recovered_and_every_job_of_ours_has_them() {
    let mut bench = Bench::start().await;
    let _: i64 = bench.command(&["HSET", "bull:v:bare", "name", "n"]).await;
    for id in ["bare", "ghost"] {
        let _: i64 = bench.command(&["LPUSH", "bull:v:active", id]).await;
    }
    assert_eq!(recover_twice(&mut bench, 5).await.0, ["bare"]);
    assert_eq!(bench.places("bare").await, ["wait"]);
    bench.add(JobOptions::default()).await;
    let every = Repeat::every(5000);
    let armed = bench.queue.arm(&every, "n", &json!({}), &JobOptions::default(), SLOT, None).await.unwrap();
    let Armed::Added { id: run, .. } = armed else { panic!("it was not armed") };
    for id in ["1", &run] {
        let opts: Value = serde_json::from_str(&bench.hash(id).await["opts"]).unwrap();
        assert!(opts.is_object(), "{id}");
    }
}

/// Traps 1 and 2: the real Bull's stalled check meets jobs that ours left in every way.
#[tokio::test(flavor = "multi_thread")]
async fn t01_bulls_stalled_check_puts_back_whatever_ours_left_active() {
    let (server, queue) = shared();
    let mut connection = server.connection().await;
    for options in [
        JobOptions::default(),
        JobOptions { lifo: true, attempts: 3, ..JobOptions::default() },
        JobOptions { priority: 2, ..JobOptions::default() },
        JobOptions { remove_on_fail: bullwork::queue::Keep::None, ..JobOptions::default() },
        JobOptions { job_id: Some("named".into()), ..JobOptions::default() },
    ] {
        let id = add(&queue, options).await;
        assert_eq!(take(&queue, "gone").await.id, id);
        let _: i64 = redis::Cmd::del(format!("bull:v:{id}:lock")).query_async(&mut connection).await.unwrap();
    }
    let Some(child) = bull(&server, "runFive") else { return };
    let seen = answer(child).await;
    assert_eq!(seen["done"], json!(["1", "2", "3", "4", "named"]), "{seen}");
    assert_eq!((&seen["counts"]["active"], &seen["counts"]["waiting"]), (&json!(0), &json!(0)), "{seen}");
}

/// Trap 2.
#[tokio::test]
async fn t02_a_stalled_failure_with_remove_on_fail_zero_removes_only_its_own_job() {
    let mut bench = Bench::start().await;
    for n in 0..3 {
        bench.add(JobOptions::default()).await;
        let job = bench.take(&n.to_string()).await;
        bench.queue.fail(&job, &n.to_string(), &Failure::new("x")).await.unwrap();
    }
    bench.add(JobOptions::from_json(&json!({"removeOnFail": 0}))).await;
    let opts = json!({"removeOnFail": 0, "attempts": 1}).to_string();
    let _: i64 = bench.command(&["HSET", "bull:v:4", "opts", &opts]).await;
    bench.take("t").await;
    let _: i64 = bench.command(&["DEL", "bull:v:4:lock"]).await;
    assert_eq!(recover_twice(&mut bench, 0).await.1, ["4"]);
    assert!(!bench.exists("4").await);
    for id in ["1", "2", "3"] {
        assert!(bench.exists(id).await && bench.places(id).await == ["failed"], "{id}");
    }
    // Ours never writes the number, so Bull's own check cannot wipe the set for a job of ours.
    let stored = JobOptions { remove_on_fail: bullwork::queue::Keep::None, ..JobOptions::default() }.to_json(NOW);
    assert_eq!(stored["removeOnFail"], json!(true));
}

/// Trap 3.
#[tokio::test]
async fn t03_jobs_pushed_past_a_pause_survive_the_resume_and_the_next_pause() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.queue.pause().await.unwrap();
    for (id, list) in [("foreign", "wait"), ("another", "wait")] {
        let _: i64 = bench.command(&["HSET", &format!("bull:v:{id}"), "opts", "{}"]).await;
        let _: i64 = bench.command(&["LPUSH", &format!("bull:v:{list}"), id]).await;
    }
    bench.queue.pause().await.unwrap();
    bench.queue.resume().await.unwrap();
    let taken: Vec<String> = [bench.take("a").await.id, bench.take("b").await.id, bench.take("c").await.id].into();
    assert_eq!(taken, ["1", "foreign", "another"]);
}

/// Trap 3: everything of ours that pushes looks at Bull's pause, so Bull's resume finds all of it.
#[tokio::test(flavor = "multi_thread")]
async fn t03_no_job_of_ours_is_lost_by_bulls_pause_and_resume() {
    let (server, queue) = shared();
    for id in ["retried", "recovered", "handed back", "due"] {
        let delay = i64::from(id == "due") * 60_000;
        add(&queue, JobOptions { job_id: Some(id.into()), attempts: 2, delay, ..JobOptions::default() }).await;
    }
    let (retried, _, handed) = (take(&queue, "a").await, take(&queue, "b").await, take(&queue, "c").await);
    let mut connection = server.connection().await;
    let _: i64 = redis::Cmd::del("bull:v:recovered:lock").query_async(&mut connection).await.unwrap();
    queue.recover_stalled(Duration::from_millis(1), 5).await.unwrap();
    let Some(child) = bull(&server, "pausedThenRunFive") else { return };
    let waiting = Duration::from_secs(20);
    crate::support::eventually("bull paused", waiting, async || queue.is_paused().await.unwrap()).await;
    add(&queue, JobOptions { job_id: Some("added".into()), ..JobOptions::default() }).await;
    assert_eq!(queue.fail(&retried, "a", &Failure::new("x")).await.unwrap(), Failed::Requeued);
    queue.hand_back(&handed, "c").await.unwrap();
    queue.promote("due").await.unwrap();
    crate::support::eventually("it is put back", waiting, async || {
        queue.recover_stalled(Duration::from_millis(1), 5).await.unwrap();
        queue.state("recovered").await.unwrap() != Some(State::Active)
    })
    .await;
    let seen = answer(child).await;
    assert_eq!(seen["done"], json!(["added", "due", "handed back", "recovered", "retried"]), "{seen}");
}

/// Trap 4.
#[tokio::test]
async fn t04_results_are_told_as_json_in_json_and_reasons_as_plain_text() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    let mut events = bench.queue.events().await.unwrap();
    for _ in 0..2 {
        bench.add(JobOptions::default()).await;
    }
    let (good, bad) = (bench.take("a").await, bench.take("b").await);
    ear.heard().await;
    bench.queue.complete(&good, "a", &json!({"a": "\"é"}), None).await.unwrap();
    bench.queue.fail(&bad, "b", &Failure::new("{not json")).await.unwrap();
    let heard = ear.heard().await;
    let (done, failed): (Value, Value) = (serde_json::from_str(&heard[0].1).unwrap(), serde_json::from_str(&heard[1].1).unwrap());
    assert_eq!(done, json!({"jobId": "1", "val": "{\"a\":\"\\\"é\"}"}));
    assert_eq!(failed, json!({"jobId": "2", "val": "{not json"}));
    assert_eq!(bench.hash("2").await["failedReason"], "{not json");
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let event = events.next().await.expect("the subscription stands");
        if matches!(event, Event::Completed { .. } | Event::Failed { .. }) {
            ends.push(event);
        }
    }
    assert_eq!(
        ends,
        [
            Event::Completed { id: "1".into(), value: Some(json!({"a": "\"é"})) },
            Event::Failed { id: "2".into(), reason: "{not json".into() }
        ]
    );
}

/// Trap 5.
#[tokio::test]
async fn t05_waiting_is_told_with_a_token_and_active_is_understood_without() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    bench.add(JobOptions::default()).await;
    assert_eq!(ear.heard().await, [("bull:v:waiting@<token>".to_owned(), "1".to_owned())]);
    let mut events = bench.queue.events().await.unwrap();
    for (channel, payload) in [("wait", "1"), ("active", "1"), ("waiting@x", "2")] {
        let _: i64 = bench.command(&["PUBLISH", &format!("bull:v:{channel}"), payload]).await;
    }
    assert_eq!(events.next().await, Some(Event::Active { id: "1".into() }));
    assert_eq!(events.next().await, Some(Event::Waiting { id: "2".into() }));
}

async fn arm(queue: &Queue, slot: i64) -> Armed {
    queue.arm(&Repeat::cron("0 3 * * *", Some("UTC")), "n", &json!({}), &JobOptions::default(), slot, None).await.unwrap()
}

/// Trap 6.
#[tokio::test]
async fn t06_emptying_keeps_schedules_alive_and_dead_ones_are_armed_again() {
    let mut bench = Bench::start().await;
    let Armed::Added { id, .. } = arm(&bench.queue, SLOT).await else { panic!("it was not armed") };
    bench.queue.empty().await.unwrap();
    assert_eq!(bench.places(&id).await, ["delayed"]);
    // Promoted early and done; cleaned away; removed and declared again before its slot.
    bench.queue.promote(&id).await.unwrap();
    let job = bench.take("t").await;
    bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Added { id: id.clone(), slot: SLOT });
    bench.clock.set(NOW + 10);
    assert_eq!(bench.queue.clean(State::Delayed, Duration::ZERO, None).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Added { id: id.clone(), slot: SLOT });
    let key = bench.queue.schedules().await.unwrap()[0].key.clone();
    bench.queue.promote(&id).await.unwrap();
    assert!(bench.queue.remove_schedule(&key).await.unwrap());
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Pending { slot: SLOT }, "it waits already");
}

/// Trap 6: what Bull's own `empty()` leaves.
#[tokio::test(flavor = "multi_thread")]
async fn t06_a_schedule_that_bull_emptied_is_armed_again() {
    let (server, queue) = shared();
    let slot = queue.clock().now() + 3_600_000;
    let Armed::Added { id, .. } = arm(&queue, slot).await else { panic!("it was not armed") };
    let Some(child) = bull(&server, "empty") else { return };
    let seen = answer(child).await;
    assert_eq!((&seen["counts"]["delayed"], &seen["repeatables"]), (&json!(0), &json!(1)), "{seen}");
    assert_eq!(queue.state(&id).await.unwrap(), Some(State::Stuck), "its hash is left behind");
    assert_eq!(arm(&queue, slot).await, Armed::Added { id: id.clone(), slot });
    assert_eq!(queue.state(&id).await.unwrap(), Some(State::Delayed));
}

/// Trap 7.
#[tokio::test]
async fn t07_a_schedule_with_an_id_is_changed_in_place_with_its_pending_run() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.clone();
    let every = |ms| Repeat::every(ms);
    let plain = JobOptions::default();
    // Others, which only look alike: another name, another id, a name that goes on with this one's id.
    for (name, id) in [("m", "nightly"), ("n", "weekly"), ("n:nightly", "x"), ("n", "")] {
        let repeat = Repeat { id: Some(id.into()).filter(|id: &String| !id.is_empty()), ..every(9000) };
        queue.arm(&repeat, name, &json!({}), &plain, SLOT, None).await.unwrap();
    }
    let first = queue.set_schedule("nightly", &every(5000), "n", &json!({"v": 1}), &plain, SLOT).await.unwrap();
    let Armed::Added { id, slot: SLOT } = first else { panic!("{first:?}") };

    let options = JobOptions { attempts: 4, priority: 2, ..JobOptions::default() };
    let again = queue.set_schedule("nightly", &every(5000), "n", &json!({"v": 2}), &options, SLOT + 5000).await.unwrap();
    assert_eq!(again, Armed::Pending { slot: SLOT });
    let run = queue.job(&id).await.unwrap().unwrap();
    assert_eq!((run.data.clone(), run.attempts(), run.priority, run.repeat_count()), (json!({"v": 2}), 4, 2, 1));
    assert_eq!((run.prev_millis(), run.timestamp + run.delay, run.repeat_key()), (Some(SLOT), SLOT, Some("n:nightly::5000")));

    let cron = Repeat { end: Some(SLOT * 2), ..Repeat::cron("0 3 * * *", Some("UTC")) };
    for repeat in [&cron, &every(7000)] {
        let changed = queue.set_schedule("nightly", repeat, "n", &json!({}), &plain, SLOT + 7000).await.unwrap();
        assert!(matches!(changed, Armed::Added { slot, .. } if slot == SLOT + 7000));
        let mut keys: Vec<String> = queue.schedules().await.unwrap().into_iter().map(|entry| entry.key).collect();
        keys.sort();
        let mut expected =
            vec!["m:nightly::9000".to_owned(), "n:::9000".into(), "n:nightly:x::9000".into(), "n:weekly::9000".into()];
        expected.push(Repeat { id: Some("nightly".into()), ..repeat.clone() }.key("n"));
        expected.sort();
        assert_eq!(keys, expected);
        assert_eq!(bench.zset("delayed").await.len() / 2, 5, "one run for each");
    }

    // A run that waits already is left as it is.
    bench.clock.set(SLOT + 8000);
    queue.promote_due().await.unwrap();
    let late = queue.set_schedule("nightly", &every(7000), "n", &json!({"v": 3}), &plain, SLOT + 14_000).await.unwrap();
    assert_eq!(late, Armed::Pending { slot: SLOT + 7000 });
    let waiting = queue.jobs(&[State::Waiting], 0, -1, true).await.unwrap();
    assert!(waiting.len() == 5 && waiting.iter().all(|job| job.data == json!({})));
}

/// Trap 8.
#[tokio::test]
async fn t08_priority_and_lifo_survive_retry_delay_and_stall() {
    let mut bench = Bench::start().await;
    // One that is to come back, and what waits meanwhile: 2, 3 and 4.
    for (priority, lifo, expected) in
        [(2, false, ["2", "1", "3", "4"]), (0, true, ["1", "2", "3", "4"]), (0, false, ["2", "3", "4", "1"])]
    {
        for way in ["retry", "retry all", "due", "promoted", "stalled"] {
            let () = bench.command(&["FLUSHALL"]).await;
            bench.clock.set(NOW);
            let delay = i64::from(["due", "promoted"].contains(&way)) * 1000;
            bench.add(JobOptions { priority, lifo, delay, ..JobOptions::default() }).await;
            if delay == 0 {
                let job = bench.take("t").await;
                if way == "stalled" {
                    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
                } else {
                    bench.queue.fail(&job, "t", &Failure::new("x")).await.unwrap();
                }
            }
            for priority in [1, 3, 0] {
                bench.add(JobOptions { priority, ..JobOptions::default() }).await;
            }
            bench.clock.set(NOW + 2000);
            match way {
                "retry" => bench.queue.retry("1").await.unwrap(),
                "retry all" => assert_eq!(bench.queue.retry_all_failed().await.unwrap(), 1),
                "due" => assert_eq!(bench.queue.promote_due().await.unwrap(), None),
                "promoted" => bench.queue.promote("1").await.unwrap(),
                _ => assert_eq!(recover_twice(&mut bench, 5).await.0, ["1"]),
            }
            let indexed: Option<String> = bench.command(&["ZSCORE", "bull:v:priority", "1"]).await;
            assert_eq!(indexed, (priority > 0).then(|| priority.to_string()), "{way}, {priority}");
            let mut taken = Vec::new();
            for n in 0..4 {
                taken.push(bench.take(&n.to_string()).await.id);
            }
            // What stalled without a priority is taken first, as Bull takes it.
            let expected = if way == "stalled" && priority == 0 { ["1", "2", "3", "4"] } else { expected };
            assert_eq!(taken, expected, "{way}, priority {priority}, lifo {lifo}");
        }
    }
}

/// Trap 8: of those with its own priority, what stalled is the first.
#[tokio::test]
async fn t08_a_stalled_job_comes_before_its_equals_and_after_more_urgent_ones() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { priority: 2, ..JobOptions::default() }).await;
    bench.take("t").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    for priority in [2, 1, 2, 3, 1] {
        bench.add(JobOptions { priority, ..JobOptions::default() }).await;
    }
    assert_eq!(recover_twice(&mut bench, 5).await.0, ["1"]);
    let mut taken = Vec::new();
    for n in 0..6 {
        taken.push(bench.take(&n.to_string()).await.id);
    }
    assert_eq!(taken, ["3", "6", "1", "2", "4", "5"]);
}

/// Trap 9.
#[tokio::test]
async fn t09_two_runs_of_one_job_count_one_attempt() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { attempts: 5, ..JobOptions::default() }).await;
    let first = bench.take("first").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    recover_twice(&mut bench, 5).await;
    let second = bench.take("second").await;
    let before = bench.dump().await;
    assert!(matches!(bench.queue.fail(&first, "first", &Failure::new("stale")).await, Err(QueueError::LockLost(_))));
    assert_eq!(bench.dump().await, before, "not even the attempt and its reason");
    bench.queue.fail(&second, "second", &Failure::new("mine")).await.unwrap();
    let hash = bench.hash("1").await;
    assert_eq!((hash["attemptsMade"].as_str(), hash["failedReason"].as_str()), ("1", "mine"));
}

/// Trap 10.
#[tokio::test]
async fn t10_a_stale_run_of_the_same_process_cannot_end_the_second_run() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let stale = bench.take("first run").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    recover_twice(&mut bench, 5).await;
    // The same queue handle, so the same process; only the run's token differs.
    let second = bench.take("second run").await;
    assert!(matches!(bench.queue.complete(&stale, "first run", &json!("stale"), None).await, Err(QueueError::LockLost(_))));
    assert_eq!(bench.queue.renew("1", "first run", LOCK).await.unwrap(), Renewed::Lost);
    bench.queue.complete(&second, "second run", &json!("fresh"), None).await.unwrap();
    assert_eq!(bench.hash("1").await["returnvalue"], "\"fresh\"");
}

/// Traps 9 and 10: a job that the real Bull took over is not touched by our stale run.
#[tokio::test(flavor = "multi_thread")]
async fn t10_a_stale_run_of_ours_does_not_touch_what_bull_took_over() {
    let (server, queue) = shared();
    let mut connection = server.connection().await;
    let mut stale = Vec::new();
    for n in 0..2 {
        let id = add(&queue, JobOptions { attempts: 3, ..JobOptions::default() }).await;
        stale.push((take(&queue, &format!("run {n}")).await, format!("run {n}")));
        let _: i64 = redis::Cmd::del(format!("bull:v:{id}:lock")).query_async(&mut connection).await.unwrap();
    }
    let Some(child) = bull(&server, "runTwo") else { return };
    let seen = answer(child).await;
    assert_eq!(seen["done"], json!(["1", "2"]));
    for (job, token) in stale {
        assert!(queue.fail(&job, &token, &Failure::new("stale")).await.is_err());
        assert!(queue.complete(&job, &token, &json!("stale"), None).await.is_err());
        let stored = queue.job(&job.id).await.unwrap().unwrap();
        assert_eq!((stored.return_value, stored.attempts_made, stored.failed_reason), (Some(json!("bull")), 0, None));
        assert_eq!(queue.state(&job.id).await.unwrap(), Some(State::Completed));
    }
}

/// Trap 11.
#[tokio::test]
async fn t11_ids_that_look_like_numbers_are_texts_but_for_the_low_bits() {
    let mut bench = Bench::start().await;
    for id in ["007", "7", "7.0", "0x7", "1e1"] {
        bench.add(JobOptions { job_id: Some(id.into()), delay: 1000, timestamp: Some(NOW), ..JobOptions::default() }).await;
    }
    for (n, id) in ["007", "7", "7.0", "0x7", "1e1"].iter().enumerate() {
        assert_eq!(bench.queue.state(id).await.unwrap(), Some(State::Delayed), "{id} is a job of its own");
        let score: String = bench.command(&["ZSCORE", "bull:v:delayed", id]).await;
        assert_eq!(score.parse::<i64>().unwrap(), (NOW + 1000) * 4096 + i64::try_from(n).unwrap() + 1, "{id}");
    }
    bench.clock.set(NOW + 2000);
    bench.queue.promote_due().await.unwrap();
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 5);
    for (id, low) in [("007", 7), ("7", 7), ("7.0", 7), ("0x7", 7), ("1e1", 10)] {
        let job = bench.take(id).await;
        bench.queue.snooze(&job, id, Duration::from_secs(1)).await.unwrap();
        let score: String = bench.command(&["ZSCORE", "bull:v:delayed", &job.id]).await;
        assert_eq!((job.id.as_str(), score.parse::<i64>().unwrap() % 4096), (id, low));
    }
}

/// Trap 12.
#[tokio::test]
async fn t12_due_times_are_rounded_up_and_survive_the_year_2039() {
    let mut bench = Bench::start().await;
    let mut events = bench.queue.events().await.unwrap();
    let _: i64 = bench.command(&["PUBLISH", "bull:v:delayed", "1795175401141.0002"]).await;
    assert_eq!(events.next().await, Some(Event::Delayed { until: 1_795_175_401_142 }));
    // Two of the year 2100, a millisecond apart.
    let late = 4_102_444_800_000;
    for n in 0..2 {
        bench.add(JobOptions { delay: late - NOW + n, timestamp: Some(NOW), ..JobOptions::default() }).await;
    }
    let due = bench.queue.promote_due().await.unwrap().unwrap();
    assert!((late..=late + 1).contains(&due), "{due}");
    bench.clock.set(late - 1);
    bench.queue.promote_due().await.unwrap();
    assert!(bench.list("wait").await.is_empty(), "not a millisecond early");
    bench.clock.set(late + 2);
    assert_eq!(bench.queue.promote_due().await.unwrap(), None);
    assert_eq!(bench.list("wait").await, ["2", "1"]);
}

// Trap 13 (a limiter with bounceBack loses jobs) is shown in `queue/limits.rs`:
// `bounce_back_keeps_a_limited_job_at_the_taking_end`.

/// Trap 14.
#[tokio::test]
async fn t14_a_stalled_failure_has_bulls_texts_in_the_hash_and_in_the_event() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.take("t").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    let mut ear = bench.ear().await;
    assert_eq!(recover_twice(&mut bench, 0).await.1, ["1"]);
    assert_eq!(bench.hash("1").await["failedReason"], "job stalled more than allowable limit");
    let told = r#"{"jobId":"1", "val": "job stalled more than maxStalledCount"}"#;
    assert_eq!(ear.heard().await, [("bull:v:failed".to_owned(), told.to_owned())]);
}

/// Trap 15.
#[tokio::test]
async fn t15_nothing_returned_is_stored_and_read_as_null() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    assert_eq!(bench.queue.job("1").await.unwrap().unwrap().return_value, None, "not done yet");
    let job = bench.take("t").await;
    bench.queue.complete(&job, "t", &Value::Null, None).await.unwrap();
    assert_eq!(bench.hash("1").await["returnvalue"], "null");
    assert_eq!(bench.queue.job("1").await.unwrap().unwrap().return_value, Some(Value::Null));
}
