//! Keys, lists and sets that no correct program leaves: nothing is blocked by them for ever.

use std::time::Duration;

use bullwork::queue::{Admission, Armed, Debounce, JobOptions, NewJob, QueueError, Renewed, Repeat, State, Taken};
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};

const INTERVAL: Duration = Duration::from_secs(30);

async fn recover_twice(bench: &mut Bench) -> Vec<String> {
    bench.queue.recover_stalled(INTERVAL, 5).await.unwrap();
    let _: i64 = bench.command(&["PEXPIRE", "bull:v:stalled-check", "0"]).await;
    bench.queue.recover_stalled(INTERVAL, 5).await.unwrap().requeued
}

#[tokio::test]
async fn a_counter_that_is_no_number_or_at_its_end_is_named_and_nothing_is_done_by_half() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.clone();
    bench.add(JobOptions::default()).await;
    let every = Repeat::every(5000);
    for counter in ["nope", "", "1.5", " 7", "007", "9223372036854775807", "99999999999999999999"] {
        let () = bench.command(&["SET", "bull:v:id", counter]).await;
        let before = bench.dump().await;
        let many: Vec<NewJob> = (0..3).map(|_| NewJob::unnamed(json!({}), JobOptions::default())).collect();
        let named = NewJob::unnamed(json!({}), JobOptions { job_id: Some("x".into()), ..JobOptions::default() });
        for result in [
            queue.add(&many[0]).await.map(drop),
            queue.add_many(&many).await.map(drop),
            queue.add(&named).await.map(drop),
            queue.arm(&every, "n", &json!({}), &JobOptions::default(), NOW, None).await.map(drop),
        ] {
            assert!(matches!(&result, Err(QueueError::WrongType(key)) if key == "bull:v:id"), "`{counter}`: {result:?}");
        }
        assert_eq!(bench.dump().await, before, "`{counter}`");
    }
    // Enough for one, not for all of them.
    let () = bench.command(&["SET", "bull:v:id", "9223372036854775806"]).await;
    let before = bench.dump().await;
    let many: Vec<NewJob> = (0..3).map(|_| NewJob::unnamed(json!({}), JobOptions::default())).collect();
    assert!(matches!(queue.add_many(&many).await, Err(QueueError::WrongType(key)) if key == "bull:v:id"));
    assert_eq!(bench.dump().await, before);
    // What is there already is run all the same.
    let job = bench.take("t").await;
    queue.complete(&job, "t", &json!(null), None).await.unwrap();
    for counter in ["0", "-5", "9007199254740993"] {
        let () = bench.command(&["SET", "bull:v:id", counter]).await;
        let id = bench.add(JobOptions::default()).await;
        assert_eq!(bench.places(&id).await, ["wait"], "`{counter}`");
    }
}

#[tokio::test]
async fn a_lock_that_never_expires_or_is_no_text_does_not_hold_a_job_for_ever() {
    let mut bench = Bench::start().await;
    for plant in
        [&["SET", "bull:v:1:lock", "somebody"][..], &["RPUSH", "bull:v:1:lock", "x"], &["HSET", "bull:v:1:lock", "x", "y"]]
    {
        let () = bench.command(&["FLUSHALL"]).await;
        bench.add(JobOptions::default()).await;
        let _: Option<String> = bench.command(&["RPOPLPUSH", "bull:v:wait", "bull:v:active"]).await;
        let _: redis::Value = bench.command(plant).await;
        assert_eq!(recover_twice(&mut bench).await, ["1"], "{plant:?}");
        assert!(!bench.exists("1:lock").await);
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_whose_lock_became_something_else_renews_and_ends_it() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    for plant in [&["RPUSH", "bull:v:1:lock", "x"][..], &["RPUSH", "bullwork:cancel:bull:v:1", "x"]] {
        let _: i64 = bench.command(&["DEL", plant[1]]).await;
        let _: i64 = bench.command(plant).await;
        assert_eq!(bench.queue.renew("1", "t", LOCK).await.unwrap(), Renewed::Held, "{plant:?}");
    }
    bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
    assert_eq!(bench.places("1").await, ["completed"]);
}

#[tokio::test]
async fn a_stalled_check_that_never_expires_does_not_stop_the_recovery() {
    let mut bench = Bench::start().await;
    for plant in [&["SET", "bull:v:stalled-check", "1"][..], &["RPUSH", "bull:v:stalled-check", "x"]] {
        let () = bench.command(&["FLUSHALL"]).await;
        bench.add(JobOptions::default()).await;
        bench.take("t").await;
        let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
        let _: redis::Value = bench.command(plant).await;
        assert_eq!(recover_twice(&mut bench).await, ["1"], "{plant:?}");
    }
}

#[tokio::test]
async fn an_id_that_is_twice_in_active_comes_back_once() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.take("t").await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:active", "1", "1"]).await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    assert_eq!(recover_twice(&mut bench).await, ["1"]);
    assert_eq!(bench.places("1").await, ["wait"]);
}

#[tokio::test]
async fn scores_without_end_are_due_at_once_or_never() {
    let mut bench = Bench::start().await;
    for id in ["1", "2", "3"] {
        bench.add(JobOptions { delay: 60_000, ..JobOptions::default() }).await;
        let score = ["-inf", "inf", "1e308"][id.parse::<usize>().unwrap() - 1];
        let _: i64 = bench.command(&["ZADD", "bull:v:delayed", score, id]).await;
    }
    assert!(bench.queue.promote_due().await.unwrap().is_some_and(|due| due > NOW));
    assert_eq!(bench.list("wait").await, ["1"]);
    assert_eq!(bench.queue.jobs(&[State::Delayed], 0, -1, true).await.unwrap().len(), 2);
    bench.queue.promote("2").await.unwrap();
    assert_eq!(bench.queue.clean(State::Delayed, Duration::ZERO, None).await.unwrap().len(), 0, "just added");
    bench.queue.remove("3").await.unwrap();
    for (set, score) in [("completed", "inf"), ("failed", "-inf")] {
        let _: i64 = bench.command(&["ZADD", &format!("bull:v:{set}"), score, "odd"]).await;
        let _: i64 = bench.command(&["HSET", "bull:v:odd", "opts", "{}"]).await;
        bench.queue.retry("odd").await.unwrap();
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
        bench.queue.remove(&job.id).await.unwrap();
    }
}

#[tokio::test]
async fn priorities_without_end_order_the_line_all_the_same() {
    let mut bench = Bench::start().await;
    for (member, score) in [("ghost", "-inf"), ("phantom", "inf"), ("other", "-7")] {
        let _: i64 = bench.command(&["ZADD", "bull:v:priority", score, member]).await;
    }
    for priority in [2, 1, 0, 2] {
        bench.add(JobOptions { priority, ..JobOptions::default() }).await;
    }
    let mut taken = Vec::new();
    for n in 0..4 {
        taken.push(bench.take(&n.to_string()).await.id);
    }
    assert_eq!(taken, ["2", "1", "4", "3"]);
}

#[tokio::test]
async fn schedules_that_are_rubbish_are_listed_and_can_be_armed_and_removed() {
    let mut bench = Bench::start().await;
    let giant = "k".repeat(1 << 20);
    let keys = ["", ":", "::::::::", "a:b:x:y:z", "n:::", "n:::99999999999999999999", giant.as_str(), "n\0\n:::5"];
    for (n, key) in keys.iter().enumerate() {
        let score = ["inf", "-inf", "1e308", "0", "-1", "0.5", "7", "8"][n];
        let _: i64 = bench.command(&["ZADD", "bull:v:repeat", score, key]).await;
    }
    let mut odd = redis::cmd("ZADD");
    odd.arg("bull:v:repeat").arg("9").arg(&b"\xff\xfe:::5"[..]);
    let _: i64 = odd.query_async(&mut bench.connection).await.unwrap();
    assert_eq!(bench.queue.schedules().await.unwrap().len(), keys.len() + 1);
    // The pending run of a schedule whose score is no time is not found, so it is armed again.
    let every = Repeat::every(5000);
    for score in ["inf", "-inf", "0.5", "1e300"] {
        let _: i64 = bench.command(&["ZADD", "bull:v:repeat", score, "n:::5000"]).await;
        let armed = bench.queue.arm(&every, "n", &json!({}), &JobOptions::default(), NOW + 5000, None).await.unwrap();
        assert!(!matches!(armed, Armed::Removed), "{score}: {armed:?}");
        assert_eq!(bench.zset("delayed").await.len(), 2, "{score}");
    }
    for key in keys.iter().chain(&["n:::5000"]) {
        assert!(bench.queue.remove_schedule(key).await.unwrap(), "{}", &key[..key.len().min(20)]);
    }
    assert!(bench.zset("delayed").await.is_empty());
}

#[tokio::test]
async fn the_place_of_a_run_taken_by_something_else_is_named() {
    let mut bench = Bench::start().await;
    let every = Repeat::every(5000);
    let arm = async |bench: &Bench| bench.queue.arm(&every, "n", &json!({}), &JobOptions::default(), NOW + 5000, None).await;
    let Armed::Added { id, .. } = arm(&bench).await.unwrap() else { panic!("it was not armed") };
    let key = format!("bull:v:{id}");
    let _: i64 = bench.command(&["DEL", &key, "bull:v:delayed"]).await;
    let _: i64 = bench.command(&["RPUSH", &key, "x"]).await;
    let before = bench.dump().await;
    assert!(matches!(arm(&bench).await, Err(QueueError::WrongType(named)) if named == key));
    assert_eq!(bench.dump().await, before);
}

#[tokio::test]
async fn a_debounce_of_no_time_or_of_all_time_is_no_error() {
    let mut bench = Bench::start().await;
    for (n, ttl) in [0, u64::MAX].into_iter().enumerate() {
        let options = JobOptions { debounce: Some(Debounce { id: n.to_string(), ttl: Some(ttl) }), ..JobOptions::default() };
        let jobs = [NewJob::unnamed(json!({}), options.clone()), NewJob::unnamed(json!({}), options)];
        let added = bench.queue.add_many(&jobs).await.unwrap();
        assert_eq!(added[0].id(), added[1].id());
    }
    assert_eq!(bench.list("wait").await.len(), 2);
}

#[tokio::test]
async fn messages_that_are_no_events_end_no_subscription() {
    let mut bench = Bench::start().await;
    let mut events = bench.queue.events().await.unwrap();
    let channels = ["waiting@", "waiting@x", "active", "delayed", "completed", "failed", "progress", "stalled@", "duplicated@x"];
    for channel in channels {
        for payload in [&b"\xff\xfe"[..], b"", b"{", b"NaN", b"1e999", b"-1e300", b"[]", b"{\"jobId\":{}}", &[b'['; 100_000]] {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(format!("bull:v:{channel}")).arg(payload);
            let _: i64 = publish.query_async(&mut bench.connection).await.unwrap();
        }
    }
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(&b"bull:v:waiting@\xff"[..]).arg("x");
    let _: i64 = publish.query_async(&mut bench.connection).await.unwrap();
    let _: i64 = bench.command(&["PUBLISH", "bull:v:paused", "paused"]).await;
    let paused = async { while events.next().await.expect("the subscription stands") != bullwork::queue::Event::Paused {} };
    tokio::time::timeout(Duration::from_secs(10), paused).await.unwrap();
}

#[tokio::test]
async fn an_id_that_is_no_text_blocks_neither_the_line_nor_the_recovery() {
    let mut bench = Bench::start().await;
    let odd = &b"\xff\xfe"[..];
    let _: i64 = redis::Cmd::hset(&b"bull:v:\xff\xfe"[..], "opts", "{}").query_async(&mut bench.connection).await.unwrap();
    let _: i64 = redis::Cmd::lpush("bull:v:wait", odd).query_async(&mut bench.connection).await.unwrap();
    bench.add(JobOptions::default()).await;
    // Nobody could name it to end it, so it is failed at once.
    assert_eq!(bench.queue.take("t", LOCK, Admission::Sequential).await.unwrap(), Taken::Empty);
    let failed: Vec<Vec<u8>> = redis::Cmd::zrange("bull:v:failed", 0, -1).query_async(&mut bench.connection).await.unwrap();
    assert_eq!((failed, bench.list("active").await), (vec![odd.to_vec()], vec![]));
    assert_eq!(bench.take("t").await.id, "1");
}
