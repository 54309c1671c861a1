//! Workers that meet what no correct program writes, and then still run the good job behind it: the sequential worker and
//! the library's consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Consumer, ConsumerOptions, JobOptions, NewJob, Queue, Repeat, State};
use bullwork::redis::Redis;
use bullwork::schedule::{self, Schedule};
use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::queue::hostile_large::hundred_megabytes;
use crate::queue::poison;
use crate::support::eventually;
use crate::support::redis::RedisServer;
use crate::worker::{Bench, Worker};

const LONG: Duration = Duration::from_secs(60);
const LOCK: Duration = Duration::from_secs(2);

/// A library consumer on its own handle of `queue`; a run of a job with data that is no JSON is never begun.
fn consumer(server: &RedisServer, queue: &Queue, runs: &Arc<AtomicUsize>) -> Consumer {
    let own = Queue::new(Redis::new(&server.url()).unwrap(), queue.prefix(), queue.name(), Clock::System);
    let second = Duration::from_secs(1);
    let options = ConsumerOptions { concurrency: 2, lock: second, stall_check: second, max_stalled: 1 };
    let runs = runs.clone();
    Consumer::start(&own, options, move |job| {
        runs.fetch_add(1, Ordering::SeqCst);
        async move {
            job.log("began").await?;
            job.progress(&json!({"phase": 1})).await?;
            Ok(job.data.clone())
        }
    })
}

fn base(queue: &Queue) -> String {
    format!("{}:{}:", queue.prefix(), queue.name())
}

async fn add(queue: &Queue, id: &str) {
    let options = JobOptions { job_id: Some(id.into()), ..JobOptions::default() };
    queue.add(&NewJob::unnamed(json!({}), options)).await.unwrap();
}

async fn completes(queue: &Queue, id: &str) {
    eventually(&format!("job {id} is completed"), LONG, async || {
        queue.state(id).await.is_ok_and(|state| state == Some(State::Completed))
    })
    .await;
}

/// One job of each shape, a good one behind; every one of them has ended, or was removed as its options say.
async fn all_poisons_end(queue: &Queue, connection: &mut MultiplexedConnection, start: impl AsyncFnOnce()) {
    let mut ids = Vec::new();
    for poison in poison::all() {
        poison.plant(connection, &base(queue)).await;
        ids.push(poison.id);
    }
    add(queue, "good").await;
    start().await;
    completes(queue, "good").await;
    for id in ids {
        let shown: String = id.chars().take(40).collect();
        eventually(&format!("job {shown:?} ends"), LONG, async || {
            matches!(queue.state(&id).await.unwrap(), None | Some(State::Completed | State::Failed | State::Delayed))
        })
        .await;
    }
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.active), (0, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ends_jobs_of_every_wrong_shape_and_runs_the_good_one_behind() {
    let server = RedisServer::start();
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "v", Clock::System);
    let runs = Arc::default();
    let mut consumers = Vec::new();
    all_poisons_end(&queue, &mut server.connection().await, async || consumers.push(consumer(&server, &queue, &runs))).await;
    // Under the nose of its blocking move as well.
    let mut connection = server.connection().await;
    for (n, id) in [&b"a\nb"[..], b"ghost", b"wait", b"\xff\xfe", b"x:lock", b""].into_iter().enumerate() {
        if ![&b"ghost"[..], b"wait"].contains(&id) {
            let key = [b"bull:v:", id].concat();
            let _: i64 = redis::Cmd::hset(key, "opts", "{}").query_async(&mut connection).await.unwrap();
        }
        let _: i64 = redis::Cmd::lpush("bull:v:wait", id).query_async(&mut connection).await.unwrap();
        let good = format!("good {n}");
        add(&queue, &good).await;
        completes(&queue, &good).await;
    }
    eventually("active is clean", LONG, async || queue.counts().await.unwrap().active == 0).await;
    for consumer in consumers {
        consumer.stop(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sequential_worker_ends_jobs_of_every_wrong_shape_and_runs_the_good_one_behind() {
    let bench = Bench::start();
    let mut workers = Vec::new();
    let mut connection = bench.redis.connection().await;
    all_poisons_end(&bench.queue, &mut connection, async || workers.push(Worker::at(&bench, &bench.redis.url(), None, LOCK)))
        .await;
    for (n, id) in ["ghost", "wait", "x:lock", ""].into_iter().enumerate() {
        let _: i64 = redis::Cmd::lpush(format!("{}wait", base(&bench.queue)), id).query_async(&mut connection).await.unwrap();
        let good = format!("good {n}");
        add(&bench.queue, &good).await;
        completes(&bench.queue, &good).await;
    }
    for worker in workers {
        worker.stop().await;
    }
}

/// What stands in `active` blocks a sequential queue until the stalled check has dropped it.
#[tokio::test(flavor = "multi_thread")]
async fn ids_left_in_active_block_the_sequential_worker_only_until_the_stalled_check() {
    let bench = Bench::start();
    let mut connection = bench.redis.connection().await;
    let base = base(&bench.queue);
    let key = |suffix: &str| format!("{base}{suffix}");
    // No job, another key's name, a list, jobs locked for ever by a text and by something else, and a check that never ends.
    let _: i64 = redis::Cmd::rpush(key("a list"), "x").query_async(&mut connection).await.unwrap();
    let _: () = redis::Cmd::set(key("locked:lock"), "somebody").query_async(&mut connection).await.unwrap();
    let _: i64 = redis::Cmd::rpush(key("odd:lock"), "x").query_async(&mut connection).await.unwrap();
    let _: () = redis::Cmd::set(key("stalled-check"), "1").query_async(&mut connection).await.unwrap();
    for id in ["locked", "odd"] {
        let _: i64 = redis::Cmd::hset(key(id), "data", "{}").query_async(&mut connection).await.unwrap();
    }
    for id in ["ghost", "wait", "a list", "locked", "odd"] {
        let _: i64 = redis::Cmd::lpush(key("active"), id).query_async(&mut connection).await.unwrap();
    }
    add(&bench.queue, "good").await;
    let worker = Worker::at(&bench, &bench.redis.url(), None, LOCK);
    for id in ["locked", "odd", "good"] {
        completes(&bench.queue, id).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_hundred_megabytes_is_run_by_a_consumer_and_by_the_sequential_worker() {
    let bench = Bench::start();
    let big = NewJob::unnamed(hundred_megabytes(), JobOptions::default());
    let id = bench.queue.add(&big).await.unwrap().id().to_owned();
    let worker = Worker::at(&bench, &bench.redis.url(), None, LOCK);
    completes(&bench.queue, &id).await;
    worker.stop().await;
    let id = bench.queue.add(&big).await.unwrap().id().to_owned();
    add(&bench.queue, "good").await;
    let consumer = Consumer::start(&bench.queue, ConsumerOptions::default(), |job| async move {
        job.progress(&json!(1)).await?;
        Ok(json!(job.raw_data.len()))
    });
    completes(&bench.queue, &id).await;
    completes(&bench.queue, "good").await;
    consumer.stop(LONG).await;
}

/// Replaces a key by one of another type until the worker has met it several times.
async fn meets_wrong_types(server: &RedisServer, queue: &Queue, suffix: &str) {
    let mut connection = server.connection().await;
    let key = format!("{}{suffix}", base(queue));
    let _: () = redis::cmd("SET").arg(&key).arg("odd").query_async(&mut connection).await.unwrap();
    let looks = async || {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut server.connection().await).await.unwrap();
        let calls =
            info.lines().filter_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse::<u64>().ok());
        calls.sum::<u64>()
    };
    let before = looks().await;
    eventually("the worker looked", LONG, async || looks().await >= before + 4).await;
    let _: i64 = redis::Cmd::del(&key).query_async(&mut connection).await.unwrap();
    let id = format!("good after {suffix}");
    add(queue, &id).await;
    completes(queue, &id).await;
}

const SUFFIXES: &[&str] =
    &["wait", "paused", "active", "delayed", "priority", "completed", "failed", "stalled", "repeat", "stalled-check"];

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_when_keys_of_the_wrong_type_are_gone() {
    let met = SUFFIXES.iter().map(async |suffix| {
        let server = RedisServer::start();
        let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "v", Clock::System);
        let consumer = consumer(&server, &queue, &Arc::default());
        meets_wrong_types(&server, &queue, suffix).await;
        consumer.stop(LONG).await;
    });
    futures_util::future::join_all(met).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sequential_worker_goes_on_when_keys_of_the_wrong_type_are_gone() {
    let met = SUFFIXES.iter().map(async |suffix| {
        let bench = Bench::start();
        let worker = Worker::at(&bench, &bench.redis.url(), None, LOCK);
        meets_wrong_types(&bench.redis, &bench.queue, suffix).await;
        worker.stop().await;
    });
    futures_util::future::join_all(met).await;
}

#[tokio::test]
async fn a_run_whose_slot_is_no_time_is_neither_late_nor_an_end() {
    let server = RedisServer::start();
    let now = 1_795_176_000_000;
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "v", Clock::manual(now));
    let schedule = Schedule { cron: "* * * * *".into(), time_zone: "UTC".into(), skip_overlap: true, skip_missed: true };
    for slot in ["-1e300", "1e300", "-9223372036854775808", "\"x\"", "null", "{}"] {
        let mut connection = server.connection().await;
        let key = Repeat::cron("* * * * *", Some("UTC")).key("n");
        let repeat = json!({"key": key, "cron": "* * * * *", "tz": "UTC"});
        let opts = format!(r#"{{"repeat":{repeat},"prevMillis":{slot}}}"#);
        let _: redis::Value = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
        let _: i64 = redis::Cmd::zadd("bull:v:repeat", &key, 1).query_async(&mut connection).await.unwrap();
        let _: i64 = redis::Cmd::hset("bull:v:1", "opts", opts).query_async(&mut connection).await.unwrap();
        let job = queue.job("1").await.unwrap().unwrap();
        schedule::reason_to_skip(&queue, Some(&schedule), &job).await.unwrap();
        schedule::arm_next(&queue, &job).await.unwrap();
        schedule::reconcile(&schedule::Declared { queue: queue.clone(), schedule: Some(schedule.clone()) }, &POLICY)
            .await
            .unwrap();
    }
}

const POLICY: bullwork::worker::RetryPolicy =
    bullwork::worker::RetryPolicy { attempts: 1, base: Duration::ZERO, keep_completed: 1, keep_failed: 1 };
