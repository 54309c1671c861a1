//! Each transition once, with its after-state and messages.

use std::time::Duration;

use bullwork::queue::{
    Added, Admission, Backoff, Completed, Failed, Failure, JobOptions, Keep, NewJob, QueueError, Renewed, StallCheck, Taken,
};
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};

fn failure(reason: &str) -> Failure {
    Failure { reason: reason.into(), stacktrace: format!("Error: {reason}"), retry: true }
}

#[tokio::test]
async fn an_added_job_is_stored_as_bull_stores_it() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    let added = bench.queue.add(&NewJob::unnamed(json!({"a": "é"}), JobOptions::default())).await.unwrap();
    assert_eq!(added, Added::New("1".into()));
    let hash = bench.hash("1").await;
    assert_eq!(
        json!(hash),
        json!({"name": "__default__", "data": "{\"a\":\"é\"}", "opts": format!("{{\"attempts\":1,\"delay\":0,\"timestamp\":{NOW}}}"),
               "timestamp": NOW.to_string(), "delay": "0", "priority": "0"})
    );
    assert_eq!(bench.list("wait").await, ["1"]);
    assert_eq!(ear.heard().await, [("bull:v:waiting@<token>".to_owned(), "1".to_owned())]);
}

#[tokio::test]
async fn a_custom_id_is_added_once_in_whatever_state_it_is() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    let nightly = NewJob::unnamed(json!({}), JobOptions { job_id: Some("nightly".into()), ..JobOptions::default() });
    assert_eq!(bench.queue.add(&nightly).await.unwrap(), Added::New("nightly".into()));
    let job = bench.take("t").await;
    bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
    ear.heard().await;
    assert_eq!(bench.queue.add(&nightly).await.unwrap(), Added::Duplicate("nightly".into()));
    assert_eq!(bench.places("nightly").await, ["completed"]);
    assert_eq!(ear.heard().await, [("bull:v:duplicated@<token>".to_owned(), "nightly".to_owned())]);
    let counter: String = bench.command(&["GET", "bull:v:id"]).await;
    assert_eq!(counter, "2", "a duplicate counts as well");
}

#[tokio::test]
async fn a_number_taken_by_a_custom_id_is_skipped() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { job_id: Some("2".into()), ..JobOptions::default() }).await;
    assert_eq!(bench.add(JobOptions::default()).await, "3");
    assert_eq!(bench.list("wait").await, ["3", "2"]);
}

#[tokio::test]
async fn ids_and_names_that_collide_with_keys_are_refused_and_nothing_is_written() {
    let mut bench = Bench::start().await;
    for id in ["wait", "id", "meta", "x:lock", "x:logs", "", "a\u{7}b"] {
        let job = NewJob::unnamed(json!({}), JobOptions { job_id: Some(id.into()), ..JobOptions::default() });
        assert!(matches!(bench.queue.add(&job).await, Err(QueueError::InvalidId { .. })), "{id:?}");
    }
    assert!(matches!(
        bench.other("").add(&NewJob::unnamed(json!({}), JobOptions::default())).await,
        Err(QueueError::InvalidName)
    ));
    assert!(bench.dump().await.is_empty());
}

#[tokio::test]
async fn a_taken_job_is_active_and_locked() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    bench.add(JobOptions { priority: 3, ..JobOptions::default() }).await;
    ear.heard().await;
    bench.clock.set(NOW + 5);
    let job = bench.take("token").await;
    assert_eq!((job.id.as_str(), job.name.as_str(), job.priority, job.processed_on), ("1", "n", 3, Some(NOW + 5)));
    assert_eq!(bench.places("1").await, ["active"]);
    assert!(bench.zset("priority").await.is_empty());
    let (token, left): (String, i64) =
        (bench.command(&["GET", "bull:v:1:lock"]).await, bench.command(&["PTTL", "bull:v:1:lock"]).await);
    assert_eq!(token, "token");
    assert!((1..=60_000).contains(&left));
    assert_eq!(bench.queue.take("t", LOCK, Admission::Any).await.unwrap(), Taken::Empty);
    assert_eq!(bench.queue.take("t", LOCK, Admission::Any).await.unwrap(), Taken::Empty);
    assert_eq!(
        ear.heard().await,
        [("bull:v:active@<token>".to_owned(), "1".to_owned()), ("bull:v:drained".to_owned(), String::new())],
        "drained is told once, not at every look"
    );
}

#[tokio::test]
async fn two_sequential_takers_never_hold_two_jobs() {
    let mut bench = Bench::start().await;
    for _ in 0..20 {
        bench.add(JobOptions::default()).await;
    }
    let takers: Vec<_> = (0..4)
        .map(|n| {
            let queue = bench.other("v");
            tokio::spawn(async move {
                let (mut done, token) = (Vec::new(), format!("taker {n}"));
                loop {
                    match queue.take(&token, LOCK, Admission::Sequential).await.unwrap() {
                        Taken::Empty | Taken::Limited(_) => return done,
                        Taken::Busy => tokio::task::yield_now().await,
                        Taken::Job(job) => {
                            assert_eq!(queue.counts().await.unwrap().active, 1);
                            queue.complete(&job, &token, &json!(null), None).await.unwrap();
                            done.push(job.id.parse::<u32>().unwrap());
                        }
                    }
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for taker in takers {
        all.extend(taker.await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (1..=20).collect::<Vec<u32>>());
    assert_eq!(bench.list("active").await, [""; 0]);
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_even_when_a_foreign_writer_pushed_to_wait() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let () = bench.command(&["SET", "bull:v:meta-paused", "1"]).await;
    assert_eq!(bench.queue.take("t", LOCK, Admission::Any).await.unwrap(), Taken::Empty);
    assert_eq!(bench.places("1").await, ["wait"]);
    assert_eq!(bench.add(JobOptions::default()).await, "2");
    assert_eq!(bench.list("paused").await, ["2"]);
}

#[tokio::test]
async fn only_the_owner_renews_and_it_is_told_that_it_lost() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.take("token").await;
    let _: i64 = bench.command(&["SADD", "bull:v:stalled", "1"]).await;
    let _: i64 = bench.command(&["PEXPIRE", "bull:v:1:lock", "1000"]).await;
    assert_eq!(bench.queue.renew("1", "stale", LOCK).await.unwrap(), Renewed::Lost);
    assert_eq!(bench.set("stalled").await, ["1"]);
    assert_eq!(bench.queue.renew("1", "token", LOCK).await.unwrap(), Renewed::Held);
    let left: i64 = bench.command(&["PTTL", "bull:v:1:lock"]).await;
    assert!(left > 50_000);
    assert!(bench.set("stalled").await.is_empty());
}

#[tokio::test]
async fn a_lock_that_ran_out_is_held_again_unless_the_job_was_put_back_meanwhile() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.take("token").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    assert_eq!(bench.queue.renew("1", "token", LOCK).await.unwrap(), Renewed::Held);
    assert!(bench.command::<i64>(&["PTTL", "bull:v:1:lock"]).await > 50_000);
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    // The stalled check puts it back in two passes.
    for _ in 0..2 {
        let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
        bench.queue.recover_stalled(LOCK, 5).await.unwrap();
    }
    assert_eq!(bench.list("wait").await, ["1"]);
    assert_eq!(bench.queue.renew("1", "token", LOCK).await.unwrap(), Renewed::Lost);
}

/// bull-repl's `fail` and `complete` leave the lock: renewed for ever, it barred the job from being retried or removed.
#[tokio::test]
async fn a_job_that_somebody_else_ended_or_deleted_is_not_ours_any_more_and_its_lock_goes() {
    let mut bench = Bench::start().await;
    for (id, set) in [("1", Some("failed")), ("2", Some("completed")), ("3", None)] {
        bench.add(JobOptions::default()).await;
        bench.take("token").await;
        let _: i64 = bench.command(&["LREM", "bull:v:active", "0", id]).await;
        let _: i64 = match set {
            Some(set) => bench.command(&["ZADD", &format!("bull:v:{set}"), "5", id]).await,
            None => bench.command(&["DEL", &format!("bull:v:{id}")]).await,
        };
        assert_eq!(bench.queue.renew(id, "token", LOCK).await.unwrap(), Renewed::Lost, "{set:?}");
        assert!(!bench.exists(&format!("{id}:lock")).await);
    }
    bench.queue.retry("1").await.unwrap();
    assert_eq!(bench.list("wait").await, ["1"]);
}

#[tokio::test]
async fn completing_adds_the_successor_exactly_once() {
    let mut bench = Bench::start().await;
    let next = bench.other("next");
    bench.add(JobOptions::default()).await;
    let job = bench.take("token").await;
    let follow = NewJob::unnamed(json!({"from": "1"}), JobOptions { attempts: 2, ..JobOptions::default() });
    let mut ear = bench.ear().await;
    let done = bench.queue.complete(&job, "token", &json!({"rows": 3}), Some((&next, &follow))).await.unwrap();
    assert_eq!(done, Completed { successor: Some("1".into()) });
    assert_eq!(
        ear.heard().await,
        [
            ("bull:next:waiting@<token>".to_owned(), "1".to_owned()),
            ("bull:v:completed".to_owned(), json!({"jobId": "1", "val": "{\"rows\":3}"}).to_string()),
        ]
    );
    let wait: Vec<String> = bench.command(&["LRANGE", "bull:next:wait", "0", "-1"]).await;
    assert_eq!(wait, ["1"]);
    assert_eq!(bench.places("1").await, ["completed"]);
    assert!(!bench.exists("1:lock").await);

    let before = bench.dump().await;
    let again = bench.queue.complete(&job, "token", &json!(4), Some((&next, &follow))).await;
    assert!(matches!(again, Err(QueueError::LockLost(_))), "{again:?}");
    assert_eq!(bench.dump().await, before);
}

#[tokio::test]
async fn a_successor_that_cannot_be_added_leaves_the_job_active_and_locked() {
    let mut bench = Bench::start().await;
    let next = bench.other("next");
    bench.add(JobOptions::default()).await;
    let job = bench.take("token").await;
    let follow = NewJob::unnamed(json!({}), JobOptions::default());
    for (key, value) in [("bull:next:id", "not a number"), ("bull:next:wait", "a string")] {
        let () = bench.command(&["SET", key, value]).await;
        let before = bench.dump().await;
        assert!(bench.queue.complete(&job, "token", &json!(1), Some((&next, &follow))).await.is_err());
        assert_eq!(bench.dump().await, before);
        let _: i64 = bench.command(&["DEL", key]).await;
    }
    assert_eq!(bench.places("1").await, ["active"]);
    bench.queue.complete(&job, "token", &json!(1), Some((&next, &follow))).await.unwrap();
}

#[tokio::test]
async fn a_stale_token_changes_nothing() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { attempts: 3, ..JobOptions::default() }).await;
    let job = bench.take("first run").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    for locked_by in [None, Some("second run")] {
        if let Some(token) = locked_by {
            let () = bench.command(&["SET", "bull:v:1:lock", token]).await;
        }
        let before = bench.dump().await;
        let lost = |result: Result<(), QueueError>| assert!(matches!(result, Err(QueueError::LockLost(_))), "{result:?}");
        lost(bench.queue.complete(&job, "first run", &json!(1), None).await.map(drop));
        lost(bench.queue.fail(&job, "first run", &failure("x")).await.map(drop));
        lost(bench.queue.hand_back(&job, "first run").await);
        lost(bench.queue.snooze(&job, "first run", LOCK).await);
        assert_eq!(bench.dump().await, before);
    }
}

#[tokio::test]
async fn a_job_that_left_active_cannot_be_settled() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    let _: i64 = bench.command(&["LREM", "bull:v:active", "0", "1"]).await;
    assert!(matches!(bench.queue.complete(&job, "t", &json!(1), None).await, Err(QueueError::NotActive(_))));
    let _: i64 = bench.command(&["DEL", "bull:v:1"]).await;
    assert!(matches!(bench.queue.fail(&job, "t", &failure("x")).await, Err(QueueError::Missing(_))));
    assert!(bench.zset("completed").await.is_empty() && bench.zset("failed").await.is_empty());
}

#[tokio::test]
async fn failed_attempts_wait_longer_each_time_and_then_fail_for_good() {
    let mut bench = Bench::start().await;
    let options =
        JobOptions { attempts: 3, backoff: Some(Backoff::exponential(Duration::from_millis(500))), ..JobOptions::default() };
    bench.add(options).await;
    let mut now = NOW;
    for wait in [500, 1500] {
        let job = bench.take("t").await;
        assert_eq!(bench.queue.fail(&job, "t", &failure("boom")).await.unwrap(), Failed::Delayed { until: now + wait });
        assert_eq!(bench.places("1").await, ["delayed"]);
        assert_eq!(bench.queue.promote_due().await.unwrap(), Some(now + wait + 1));
        now += wait + 1;
        bench.clock.set(now);
        assert_eq!(bench.queue.promote_due().await.unwrap(), None);
        assert_eq!(bench.places("1").await, ["wait"]);
    }
    let job = bench.take("t").await;
    assert_eq!(job.attempts_made, 2);
    assert_eq!(bench.queue.fail(&job, "t", &failure("end")).await.unwrap(), Failed::Final);
    let hash = bench.hash("1").await;
    assert_eq!((hash["attemptsMade"].as_str(), hash["failedReason"].as_str()), ("3", "end"));
    assert_eq!(hash["stacktrace"], r#"["Error: boom","Error: boom","Error: end"]"#);
    assert_eq!(bench.zset("failed").await, ["1".to_owned(), now.to_string()]);
}

#[tokio::test]
async fn only_the_newest_stack_traces_stay_when_a_limit_is_set() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { attempts: 5, stack_trace_limit: Some(2), ..JobOptions::default() }).await;
    for n in 0..4 {
        let job = bench.take("t").await;
        assert_eq!(bench.queue.fail(&job, "t", &failure(&n.to_string())).await.unwrap(), Failed::Requeued);
    }
    assert_eq!(bench.hash("1").await["stacktrace"], r#"["Error: 2","Error: 3"]"#);
}

#[tokio::test]
async fn an_interrupted_job_is_taken_next_with_its_attempt_kept() {
    let mut bench = Bench::start().await;
    for _ in 0..3 {
        bench.add(JobOptions { attempts: 2, ..JobOptions::default() }).await;
    }
    let job = bench.take("t").await;
    let mut ear = bench.ear().await;
    bench.queue.hand_back(&job, "t").await.unwrap();
    assert_eq!(ear.heard().await, [("bull:v:waiting@<token>".to_owned(), "1".to_owned())]);
    assert_eq!(bench.list("wait").await, ["3", "2", "1"]);
    assert!(!bench.exists("1:lock").await);
    let again = bench.take("t").await;
    assert_eq!((again.id.as_str(), again.attempts_made), ("1", 0));
    let () = bench.command(&["SET", "bull:v:meta-paused", "1"]).await;
    bench.queue.hand_back(&again, "t").await.unwrap();
    assert_eq!(bench.places("1").await, ["paused"]);
}

#[tokio::test]
async fn a_snoozed_job_comes_back_with_its_attempt_kept() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    bench.queue.snooze(&job, "t", Duration::from_secs(30)).await.unwrap();
    assert_eq!(bench.places("1").await, ["delayed"]);
    bench.clock.set(NOW + 30_001);
    assert_eq!(bench.queue.promote_due().await.unwrap(), None);
    assert_eq!(bench.take("t").await.attempts_made, 0);
}

#[tokio::test]
async fn a_job_whose_worker_vanished_is_taken_next_within_two_looks() {
    let mut bench = Bench::start().await;
    let interval = Duration::from_secs(30);
    for _ in 0..2 {
        bench.add(JobOptions::default()).await;
    }
    bench.take("t").await;
    let ran =
        |requeued: &[&str]| StallCheck { ran: true, requeued: requeued.iter().map(|s| (*s).into()).collect(), failed: vec![] };
    assert_eq!(bench.queue.recover_stalled(interval, 5).await.unwrap(), ran(&[]));
    assert_eq!(bench.queue.recover_stalled(interval, 5).await.unwrap(), StallCheck::default(), "one look in an interval");
    let _: i64 = bench.command(&["DEL", "bull:v:stalled-check", "bull:v:1:lock"]).await;
    assert_eq!(bench.queue.recover_stalled(interval, 5).await.unwrap(), ran(&["1"]));
    assert_eq!(bench.list("wait").await, ["2", "1"]);
}

#[tokio::test]
async fn completed_jobs_go_as_their_retention_says() {
    let mut bench = Bench::start().await;
    for _ in 0..4 {
        bench.add(JobOptions { remove_on_complete: Keep::Count(2), ..JobOptions::default() }).await;
    }
    for n in 1..=4 {
        bench.clock.set(NOW + n);
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
    }
    assert_eq!(bench.zset("completed").await.iter().step_by(2).collect::<Vec<_>>(), ["3", "4"]);
    assert!(!bench.exists("1").await && !bench.exists("2").await && bench.exists("3").await);
}
