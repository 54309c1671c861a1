//! Content that no correct program writes: nothing panics, nothing is done by half.

use std::time::Duration;

use bullwork::queue::{Admission, Failure, JobOptions, NewJob, QueueError, Repeat, State, Taken};
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};
use crate::support::eventually;

const INTERVAL: Duration = Duration::from_secs(30);

#[tokio::test]
async fn ids_without_a_job_are_dropped_and_the_next_job_is_taken() {
    let mut bench = Bench::start().await;
    let id = bench.add(JobOptions::default()).await;
    let ghosts: Vec<String> = (0..2100).map(|n| format!("ghost {n}")).collect();
    let mut push = redis::cmd("RPUSH");
    push.arg("bull:v:wait").arg(&ghosts).arg("a list");
    let _: i64 = push.query_async(&mut bench.connection).await.unwrap();
    let _: i64 = bench.command(&["RPUSH", "bull:v:a list", "x"]).await;
    let _: i64 = bench.command(&["ZADD", "bull:v:priority", "1", "ghost 7"]).await;
    assert_eq!(bench.take("t").await.id, id);
    assert!(bench.list("wait").await.is_empty() && bench.zset("priority").await.is_empty());
    assert!(!bench.exists("ghost 7").await, "no empty job was made of it");
}

#[tokio::test]
async fn ids_without_a_job_are_dropped_when_due() {
    let mut bench = Bench::start().await;
    let _: i64 = bench.command(&["ZADD", "bull:v:delayed", "-5", "ghost", "1", "a list"]).await;
    let _: i64 = bench.command(&["RPUSH", "bull:v:a list", "x"]).await;
    assert_eq!(bench.queue.promote_due().await.unwrap(), None);
    assert!(bench.list("wait").await.is_empty() && bench.zset("delayed").await.is_empty() && !bench.exists("ghost").await);
}

#[tokio::test]
async fn more_due_jobs_than_one_call_moves_are_all_moved() {
    let mut bench = Bench::start().await;
    let mut pipe = redis::pipe();
    for n in 0..2300 {
        pipe.hset(format!("bull:v:{n}"), "opts", "{}").zadd("bull:v:delayed", n, n);
    }
    let _: redis::Value = pipe.query_async(&mut bench.connection).await.unwrap();
    assert_eq!(bench.queue.promote_due().await.unwrap(), None);
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 2300);
}

#[tokio::test]
async fn the_stalled_check_survives_jobs_without_hash_or_options() {
    let mut bench = Bench::start().await;
    for id in ["no opts", "broken opts", "odd opts", "zero"] {
        let _: i64 = bench.command(&["HSET", &format!("bull:v:{id}"), "name", "n", "stalledCounter", "9"]).await;
    }
    let _: i64 = bench.command(&["HSET", "bull:v:broken opts", "opts", "{"]).await;
    let _: i64 = bench.command(&["HSET", "bull:v:odd opts", "opts", r#"{"removeOnFail":["x"]}"#]).await;
    let _: i64 = bench.command(&["HSET", "bull:v:zero", "opts", r#"{"removeOnFail":0}"#]).await;
    let _: i64 = bench.command(&["RPUSH", "bull:v:a list", "x"]).await;
    let _: i64 = bench.command(&["ZADD", "bull:v:failed", "1", "earlier"]).await;
    let _: i64 = bench.command(&["HSET", "bull:v:earlier", "opts", "{}"]).await;
    for id in ["no opts", "broken opts", "odd opts", "zero", "ghost", "a list"] {
        let _: i64 = bench.command(&["LPUSH", "bull:v:active", id]).await;
    }
    bench.queue.recover_stalled(INTERVAL, 5).await.unwrap();
    let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
    let mut found = bench.queue.recover_stalled(INTERVAL, 5).await.unwrap();
    found.failed.sort();
    assert_eq!(
        (found.ran, found.requeued, found.failed),
        (true, vec![], vec!["broken opts".into(), "no opts".into(), "odd opts".into(), "zero".into()])
    );
    assert!(bench.list("active").await.is_empty());
    for id in ["no opts", "broken opts", "odd opts", "earlier"] {
        assert_eq!(bench.places(id).await, ["failed"], "{id}");
    }
    assert!(!bench.exists("zero").await && bench.exists("earlier").await, "removeOnFail 0 takes only its own job");
}

#[tokio::test]
async fn a_key_of_the_wrong_type_is_named_and_nothing_changes() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { attempts: 3, ..JobOptions::default() }).await;
    bench.add(JobOptions { delay: 1, ..JobOptions::default() }).await;
    let job = bench.take("t").await;
    bench.add(JobOptions::default()).await;
    bench.clock.set(NOW + 10);
    let failure = Failure { reason: "x".into(), stacktrace: String::new(), retry: true };
    let new = NewJob::unnamed(json!({}), JobOptions::default());
    for suffix in ["wait", "paused", "active", "delayed", "priority", "completed", "failed", "stalled", "repeat", "id"] {
        let key = format!("bull:v:{suffix}");
        let held: bool = bench.command(&["EXISTS", &key]).await;
        if held {
            let () = bench.command(&["RENAME", &key, "aside"]).await;
        }
        let _: i64 = bench.command(&["HSET", &key, "odd", "1"]).await;
        let before = bench.dump().await;
        let queue = &bench.queue;
        let every = Repeat::every(5);
        let results = [
            ("complete", queue.complete(&job, "t", &json!(1), Some((queue, &new))).await.map(drop)),
            ("fail", queue.fail(&job, "t", &failure).await.map(drop)),
            ("hand back", queue.hand_back(&job, "t").await),
            ("snooze", queue.snooze(&job, "t", LOCK).await),
            ("promote due", queue.promote_due().await.map(drop)),
            ("recover", queue.recover_stalled(INTERVAL, 1).await.map(drop)),
            ("pause", queue.pause().await),
            ("resume", queue.resume().await),
            ("retry", queue.retry("1").await),
            ("promote", queue.promote("2").await),
            ("remove", queue.remove("3").await),
            ("cancel", queue.request_cancel("3", "me").await.map(drop)),
            ("state", queue.state("1").await.map(drop)),
            ("arm", queue.arm(&every, "n", &json!({}), &JobOptions::default(), NOW, None).await.map(drop)),
            ("remove schedule", queue.remove_schedule("n:::5").await.map(drop)),
        ];
        for (name, result) in results {
            assert!(matches!(&result, Err(QueueError::WrongType(k)) if *k == key), "{name} with {suffix}: {result:?}");
        }
        // Those that run for every job look only at the keys that they use.
        if ["wait", "delayed", "priority", "id"].contains(&suffix) {
            let special = JobOptions { delay: i64::from(suffix == "delayed"), priority: 1, ..JobOptions::default() };
            let result = queue.add(&NewJob::unnamed(json!({}), special)).await;
            assert!(matches!(&result, Err(QueueError::WrongType(k)) if *k == key), "add with {suffix}: {result:?}");
        }
        if ["wait", "active"].contains(&suffix) {
            let result = queue.take("u", LOCK, Admission::Any).await;
            assert!(matches!(&result, Err(QueueError::WrongType(k)) if *k == key), "take with {suffix}: {result:?}");
        }
        if ["active", "stalled", "completed"].contains(&suffix) {
            let result = queue.complete_and_take(&job, "t", &json!(1), "u", LOCK).await;
            assert!(matches!(&result, Err(QueueError::WrongType(k)) if *k == key), "complete and take with {suffix}: {result:?}");
        }
        assert_eq!(bench.dump().await, before, "{suffix}");
        let _: i64 = bench.command(&["DEL", &key]).await;
        if held {
            let () = bench.command(&["RENAME", "aside", &key]).await;
        }
    }
    assert_eq!(
        (bench.places("1").await, bench.places("2").await, bench.places("3").await),
        (vec!["active"], vec!["delayed"], vec!["wait"])
    );
}

#[tokio::test]
async fn broken_json_in_a_job_is_flagged_and_the_job_can_be_failed() {
    let mut bench = Bench::start().await;
    let _: i64 =
        bench.command(&["HSET", "bull:v:odd", "data", "{\"a\":", "opts", "nope", "progress", "{", "attemptsMade", "x"]).await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "odd"]).await;
    let job = bench.take("t").await;
    assert!(job.data_error.is_some() && job.raw_data == "{\"a\":");
    bench.queue.fail(&job, "t", &Failure { reason: "x".into(), stacktrace: String::new(), retry: true }).await.unwrap();
    assert_eq!(bench.places("odd").await, ["failed"]);
    let shown = bench.queue.jobs(&[State::Failed], 0, -1, false).await.unwrap();
    assert_eq!((shown.len(), shown[0].failed_reason.as_deref()), (1, Some("x")));
}

#[tokio::test]
async fn reading_skips_what_is_no_job() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let _: i64 = bench.command(&["RPUSH", "bull:v:a list", "x"]).await;
    let _: i64 = bench.command(&["RPUSH", "bull:v:wait", "ghost", "a list"]).await;
    let jobs = bench.queue.jobs(&[State::Waiting, State::Stuck], 0, -1, true).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["1"]);
    assert_eq!(bench.queue.job("ghost").await.unwrap(), None);
    assert_eq!(bench.queue.job("a list").await.unwrap(), None);
    assert_eq!(bench.queue.state("a list").await.unwrap(), None);
}

#[tokio::test]
async fn text_that_is_no_utf8_does_not_stop_a_worker() {
    let mut bench = Bench::start().await;
    let mut set = redis::cmd("HSET");
    set.arg("bull:v:1").arg("data").arg(&b"\"\xff\""[..]).arg("name").arg(&b"\xfe"[..]).arg("opts").arg("{}");
    let _: i64 = set.query_async(&mut bench.connection).await.unwrap();
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "1"]).await;
    let job = bench.take("t").await;
    assert_eq!(job.data, json!("\u{fffd}"));
    bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
}

#[tokio::test]
async fn scripts_are_sent_again_to_a_server_that_forgot_them() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let () = bench.command(&["SCRIPT", "FLUSH"]).await;
    bench.add(JobOptions::default()).await;
    assert_eq!(bench.list("wait").await, ["2", "1"]);
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let mut server = crate::support::redis::RedisServer::start_durable();
    let redis = bullwork::redis::Redis::new(&server.url()).unwrap();
    let queue = bullwork::queue::Queue::new(redis, "bull", "v", bullwork::clock::Clock::manual(NOW));
    queue.add(&NewJob::unnamed(json!({}), JobOptions::default())).await.unwrap();
    server.kill();
    assert!(matches!(queue.counts().await, Err(QueueError::Redis(_))));
    server.restart();
    // It refuses everything while it loads its file.
    let limit = Duration::from_secs(20);
    eventually("the job is there", limit, || async { queue.counts().await.is_ok_and(|counts| counts.waiting == 1) }).await;
    assert!(matches!(queue.take("t", LOCK, Admission::Sequential).await.unwrap(), Taken::Job(_)));
}

#[tokio::test]
async fn a_job_is_completed_though_the_line_behind_it_cannot_be_read() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    let _: i64 = bench.command(&["HSET", "bull:v:wait", "odd", "1"]).await;
    let taken = bench.queue.complete_and_take(&job, "t", &json!(1), "u", LOCK).await.unwrap();
    assert_eq!((taken, bench.places_but_wait("1").await), (Taken::Empty, vec!["completed"]));
}

#[tokio::test]
async fn a_counter_that_is_no_number_is_named_and_nothing_is_added() {
    for rubbish in ["x", "9223372036854775807"] {
        let mut bench = Bench::start().await;
        bench.add(JobOptions::default()).await;
        let job = bench.take("t").await;
        let () = bench.command(&["SET", "bull:v:id", rubbish]).await;
        let before = bench.dump().await;
        let new = NewJob::unnamed(json!({}), JobOptions::default());
        let queue = &bench.queue;
        let results = [
            ("add", queue.add(&new).await.map(drop)),
            ("complete", queue.complete(&job, "t", &json!(1), Some((queue, &new))).await.map(drop)),
            ("arm", queue.arm(&Repeat::every(5), "n", &json!({}), &JobOptions::default(), NOW, None).await.map(drop)),
        ];
        for (name, result) in results {
            assert!(
                matches!(&result, Err(QueueError::WrongType(key)) if key == "bull:v:id"),
                "{name} with {rubbish}: {result:?}"
            );
        }
        assert_eq!(bench.dump().await, before, "{rubbish}");
    }
}
