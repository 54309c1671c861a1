//! The consumer that programs use which know nothing of our kinds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{
    ActiveJob, Admission, Backoff, Consumer, ConsumerOptions, Failure, JobOptions, Limiter, NewJob, Queue, State, Taken,
};
use bullwork::redis::Redis;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::redis::RedisServer;

const SOON: Duration = Duration::from_secs(20);

fn queue(server: &RedisServer) -> Queue {
    Queue::new(Redis::new(&server.url()).unwrap(), "bull", "mails", Clock::System)
}

fn options(concurrency: usize) -> ConsumerOptions {
    let second = Duration::from_secs(1);
    ConsumerOptions { concurrency, lock: second, stall_check: second, max_stalled: 3 }
}

async fn add(queue: &Queue, data: Value, attempts: u32) -> String {
    let options = JobOptions { attempts, ..JobOptions::default() };
    queue.add(&NewJob::unnamed(data, options)).await.unwrap().id().to_owned()
}

async fn reaches(queue: &Queue, id: &str, state: State) {
    eventually(&format!("job {id} is {state}"), SOON, async || queue.state(id).await.is_ok_and(|s| s == Some(state))).await;
}

/// Counts the runs of each job, each of which takes `ms` of its data.
type Runs = Arc<Mutex<HashMap<String, usize>>>;

async fn counted(runs: Runs, job: ActiveJob) -> Result<Value, Failure> {
    *runs.lock().unwrap().entry(job.id.clone()).or_default() += 1;
    tokio::time::sleep(Duration::from_millis(job.data["ms"].as_u64().unwrap_or(0))).await;
    Ok(json!({"n": job.data["n"]}))
}

fn consume(queue: &Queue, concurrency: usize, runs: &Runs) -> Consumer {
    let runs = runs.clone();
    Consumer::start(queue, options(concurrency), move |job| counted(runs.clone(), job))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_of_ten_run_every_job_once() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let jobs: Vec<NewJob> = (0..3000).map(|n| NewJob::unnamed(json!({"n": n}), JobOptions::default())).collect();
    queue.add_many(&jobs).await.unwrap();
    let runs = Runs::default();
    let consumers = [consume(&queue, 10, &runs), consume(&self::queue(&server), 10, &runs)];
    eventually("all are completed", SOON, async || queue.counts().await.unwrap().completed == 3000).await;
    for consumer in consumers {
        consumer.stop(SOON).await;
    }
    {
        let runs = runs.lock().unwrap();
        assert!(runs.len() == 3000 && runs.values().all(|n| *n == 1));
    }
    assert_eq!(queue.job("7").await.unwrap().unwrap().return_value, Some(json!({"n": 6})));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_takes_a_job_at_once_and_a_delayed_one_when_it_is_due() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let consumer = consume(&queue, 1, &Runs::default());
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        let id = add(&queue, json!({}), 1).await;
        reaches(&queue, &id, State::Completed).await;
    }
    let later = JobOptions { delay: 700, ..JobOptions::default() };
    let id = queue.add(&NewJob::unnamed(json!({}), later)).await.unwrap().id().to_owned();
    reaches(&queue, &id, State::Completed).await;
    let job = queue.job(&id).await.unwrap().unwrap();
    let waited = job.processed_on.unwrap() - job.timestamp;
    assert!((700..3000).contains(&waited), "it ran {waited} ms after it was added");
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_panics_are_failed_attempts_with_their_reason() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let consumer = Consumer::start(&queue, options(2), move |job| {
        let tries = seen.clone();
        async move {
            match job.data["how"].as_str() {
                Some("panic") => panic!("out of paper"),
                Some("parse") => Ok(json!("x".parse::<i64>()?)),
                Some("second") if tries.fetch_add(1, Ordering::SeqCst) == 0 => Err(Failure::new("not yet")),
                Some("never") => Err(Failure { retry: false, ..Failure::new("no such person") }),
                _ => Ok(json!(null)),
            }
        }
    });
    for (how, attempts, state, reason) in [
        ("panic", 1, State::Failed, Some("the handler panicked: out of paper")),
        ("parse", 1, State::Failed, Some("invalid digit found in string")),
        ("second", 2, State::Completed, Some("not yet")),
        ("never", 5, State::Failed, Some("no such person")),
        ("fine", 1, State::Completed, None),
    ] {
        let backoff = Some(Backoff::fixed(Duration::from_millis(50)));
        let options = JobOptions { attempts, backoff, ..JobOptions::default() };
        let id = queue.add(&NewJob::unnamed(json!({"how": how}), options)).await.unwrap().id().to_owned();
        reaches(&queue, &id, state).await;
        assert_eq!(queue.job(&id).await.unwrap().unwrap().failed_reason.as_deref(), reason, "{how}");
    }
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_for_runs_and_hands_back_those_that_take_too_long() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let (short, long) = (add(&queue, json!({"ms": 400}), 1).await, add(&queue, json!({"ms": 600_000}), 1).await);
    let consumer = consume(&queue, 2, &Runs::default());
    reaches(&queue, &long, State::Active).await;
    reaches(&queue, &short, State::Active).await;
    let waiting = add(&queue, json!({}), 1).await;
    consumer.stop(Duration::from_secs(2)).await;
    assert_eq!(queue.state(&short).await.unwrap(), Some(State::Completed));
    assert_eq!(queue.state(&long).await.unwrap(), Some(State::Waiting));
    assert_eq!(queue.state(&waiting).await.unwrap(), Some(State::Waiting), "nothing new is taken");
    assert_eq!(queue.job(&long).await.unwrap().unwrap().attempts_made, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_never_waits_for_a_blocking_move() {
    let server = RedisServer::start();
    let queue = queue(&server);
    for pause in 0..20 {
        let consumer = consume(&queue, 3, &Runs::default());
        add(&queue, json!({}), 1).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        tokio::time::timeout(Duration::from_secs(3), consumer.stop(SOON)).await.expect("a move blocks for five seconds");
    }
    let counts = queue.counts().await.unwrap();
    assert_eq!(counts.active, 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_consumer_that_vanished_are_run_by_another() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let id = add(&queue, json!({"ms": 600_000}), 1).await;
    let other = self::queue(&server);
    // A runtime that is thrown away takes everything with it, as the end of a process does.
    let doomed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let consumer = consume(&other, 1, &Runs::default());
            reaches(&other, &id, State::Active).await;
            std::mem::forget(consumer);
        });
        runtime.shutdown_background();
        id
    });
    let id = doomed.join().unwrap();
    queue.update_data(&id, &json!({})).await.unwrap();
    let consumer = consume(&queue, 1, &Runs::default());
    reaches(&queue, &id, State::Completed).await;
    assert_eq!(queue.job(&id).await.unwrap().unwrap().stalled_counter, 1);
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_runs_keep_their_jobs_and_one_whose_job_was_taken_over_is_dropped() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let kept = add(&queue, json!({"ms": 3500}), 1).await;
    let lost = add(&queue, json!({"ms": 600_000}), 1).await;
    let runs = Runs::default();
    let consumer = consume(&queue, 2, &runs);
    reaches(&queue, &lost, State::Active).await;
    let mut connection = server.connection().await;
    let key = format!("bull:mails:{lost}:lock");
    let _: () = redis::cmd("SET").arg(key).arg("another run").arg("PX").arg(600_000).query_async(&mut connection).await.unwrap();
    reaches(&queue, &kept, State::Completed).await;
    assert_eq!(runs.lock().unwrap()[&kept], 1, "its lock was renewed three times");
    tokio::time::timeout(Duration::from_secs(5), consumer.stop(SOON)).await.expect("the other run was dropped");
    assert_eq!(queue.state(&lost).await.unwrap(), Some(State::Active), "it is the other's");
}

/// A lane that reports a failure may learn of it after another has begun the retry: the retry's lock is renewed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn retries_that_other_lanes_begin_at_once_keep_their_locks() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let retried = NewJob::unnamed(json!({}), JobOptions { attempts: 2, ..JobOptions::default() });
    let others = (0..500).map(|n| NewJob::unnamed(json!({ "ms": 100 + n }), JobOptions::default()));
    let jobs: Vec<NewJob> = others.chain(vec![retried; 60]).collect();
    queue.add_many(&jobs).await.unwrap();
    let runs = Runs::default();
    let counting = runs.clone();
    let consumer = Consumer::start(&queue, options(560), move |job| {
        let runs = counting.clone();
        async move {
            if let Some(ms) = job.data["ms"].as_u64() {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                return Ok(json!("sent"));
            }
            *runs.lock().unwrap().entry(job.id.clone()).or_default() += 1;
            if job.attempts_made == 0 {
                let n: u64 = job.id.parse().expect("a number");
                tokio::time::sleep(Duration::from_millis(110 + 5 * (n % 60))).await;
                return Err(Failure::new("not yet"));
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(json!("sent"))
        }
    });
    eventually("all are completed", SOON, async || queue.counts().await.unwrap().completed == 560).await;
    consumer.stop(SOON).await;
    let again: Vec<String> = runs.lock().unwrap().iter().filter(|(_, n)| **n != 2).map(|(id, n)| format!("{id}: {n}")).collect();
    assert_eq!(again, Vec::<String>::new(), "each ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_can_be_cancelled_and_one_past_its_time_fails() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let consumer = consume(&queue, 2, &Runs::default());
    let cancelled = add(&queue, json!({"ms": 600_000}), 3).await;
    reaches(&queue, &cancelled, State::Active).await;
    queue.request_cancel(&cancelled, "ann").await.unwrap();
    reaches(&queue, &cancelled, State::Failed).await;
    assert_eq!(queue.job(&cancelled).await.unwrap().unwrap().failed_reason.as_deref(), Some("cancelled by ann"));
    let limited = JobOptions { timeout: Some(100), ..JobOptions::default() };
    let late = queue.add(&NewJob::unnamed(json!({"ms": 600_000}), limited)).await.unwrap().id().to_owned();
    reaches(&queue, &late, State::Failed).await;
    let reason = queue.job(&late).await.unwrap().unwrap().failed_reason;
    assert_eq!(reason.as_deref(), Some("Promise timed out after 100 milliseconds"));
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_under_load_loses_nothing() {
    let mut server = RedisServer::start_durable();
    let queue = queue(&server);
    let jobs: Vec<NewJob> = (0..300).map(|_| NewJob::unnamed(json!({"ms": 20}), JobOptions::default())).collect();
    queue.add_many(&jobs).await.unwrap();
    let consumer = consume(&queue, 4, &Runs::default());
    eventually("some are done", SOON, async || queue.counts().await.unwrap().completed > 50).await;
    server.restart();
    eventually("all are done", SOON, async || queue.counts().await.is_ok_and(|counts| counts.completed == 300)).await;
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.active, counts.failed, counts.delayed), (0, 0, 0, 0), "{counts:?}");
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_and_ids_that_are_no_jobs_give_nothing() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let mut connection = server.connection().await;
    let consumer = consume(&queue, 2, &Runs::default());
    // Under the blocking move's nose: an id without a job, one that names a key, one that is no text.
    for id in [&b"404"[..], b"wait", b"\xff\xfe"] {
        let _: i64 = redis::Cmd::lpush("bull:mails:wait", id).query_async(&mut connection).await.unwrap();
    }
    let id = add(&queue, json!({}), 1).await;
    reaches(&queue, &id, State::Completed).await;
    eventually("active is clean", SOON, async || queue.counts().await.unwrap().active == 0).await;
    queue.pause().await.unwrap();
    let paused = add(&queue, json!({}), 1).await;
    // A producer that ignores the pause.
    let _: i64 = redis::Cmd::lrem("bull:mails:paused", 1, &paused).query_async(&mut connection).await.unwrap();
    let _: i64 = redis::Cmd::lpush("bull:mails:wait", &paused).query_async(&mut connection).await.unwrap();
    reaches(&queue, &paused, State::Paused).await;
    queue.resume().await.unwrap();
    reaches(&queue, &paused, State::Completed).await;
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_asks_redis_less_than_once_a_second() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let calm = ConsumerOptions::default();
    let consumer = Consumer::start(&queue, calm, |_| async { Ok(json!(null)) });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut connection = server.connection().await;
    // What clients send; the commands that scripts call are counted beside them.
    let sent = async |connection: &mut redis::aio::MultiplexedConnection| {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
        let calls = info.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let by_clients = ["evalsha", "eval", "blmove", "ping", "client", "subscribe", "script", "info", "hello", "select"];
            by_clients
                .iter()
                .any(|c| name == *c || name.starts_with(&format!("{c}|")))
                .then_some(rest)?
                .split(',')
                .next()?
                .parse::<u64>()
                .ok()
        });
        calls.sum::<u64>()
    };
    let before = sent(&mut connection).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let commands = sent(&mut connection).await - before - 1;
    assert!((1..=11).contains(&commands), "{commands} commands in 11 s");
    consumer.stop(SOON).await;
}

/// Such a result cut the connection that all share, again and again, and its job stalled.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_redis_does_not_take_is_a_failed_attempt_and_harms_no_other_job() {
    let server = RedisServer::start_with(&["--proto-max-bulk-len", "1mb"]);
    let rights = ["allchannels", "~bull:*", "~bullwork:*", "+@all", "-@admin", "-@dangerous"];
    let needed = ["+client|setname", "+client|id", "+client|unblock"];
    server.command(&[&["ACL", "SETUSER", "ann", "on", ">right-word"], &rights[..], &needed[..]].concat()).await;
    // One may ask for the limit, the other may not.
    let few = format!("redis://ann:right-word@127.0.0.1:{}", server.port);
    for (url, named) in [(server.url(), "proto-max-bulk-len, 1048576 bytes"), (few, "proto-max-bulk-len")] {
        let queue = Queue::new(Redis::new(&url).unwrap(), "bull", "mails", Clock::System);
        let consumer = Consumer::start(&queue, options(2), |job| async move {
            tokio::time::sleep(Duration::from_millis(job.data["ms"].as_u64().unwrap_or(0))).await;
            let size = job.data["size"].as_u64().unwrap_or(0) as usize;
            if job.data["fails"] == json!(true) { Err(Failure::new("x".repeat(size))) } else { Ok(json!("x".repeat(size))) }
        });
        let beside = add(&queue, json!({"ms": 1500}), 1).await;
        reaches(&queue, &beside, State::Active).await;
        let before = connections(&server).await;
        let started = std::time::Instant::now();
        let large = add(&queue, json!({"size": 3_000_000}), 2).await;
        reaches(&queue, &large, State::Failed).await;
        let failing = add(&queue, json!({"size": 3_000_000, "fails": true}), 1).await;
        reaches(&queue, &failing, State::Failed).await;
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        for (id, attempts) in [(&large, 2), (&failing, 1)] {
            let job = queue.job(id).await.unwrap().unwrap();
            let reason = job.failed_reason.unwrap();
            assert!(
                reason.contains("3000") && reason.contains(named) && reason.len() < 5000,
                "{}",
                &reason[..reason.len().min(500)]
            );
            assert_eq!((job.attempts_made, job.stalled_counter), (attempts, 0));
        }
        reaches(&queue, &beside, State::Completed).await;
        let opened = connections(&server).await - before;
        assert!(opened <= 12, "{opened} connections were opened");
        let fits = add(&queue, json!({"size": 500_000}), 1).await;
        reaches(&queue, &fits, State::Completed).await;
        for id in [&beside, &fits] {
            assert_eq!(queue.job(id).await.unwrap().unwrap().attempts_made, 0, "job {id} was not harmed");
        }
        // Neither are callers of everything else.
        let big = json!({"text": "x".repeat(3_000_000)});
        for refused in [
            queue.add(&NewJob::unnamed(big.clone(), JobOptions::default())).await.map(drop),
            queue.update_data(&fits, &big).await,
            queue.set_progress(&fits, &big).await,
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("3000") && error.contains(named), "{error}");
        }
        consumer.stop(SOON).await;
    }
}

/// Connections that were opened so far.
async fn connections(server: &RedisServer) -> u64 {
    let mut connection = server.connection().await;
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("total_connections_received:")?.parse().ok()).expect("it counts them")
}

#[tokio::test(flavor = "multi_thread")]
async fn options_beyond_all_bounds_are_brought_within() {
    let server = RedisServer::start();
    let queue = queue(&server);
    let (none, most) = (Duration::ZERO, Duration::MAX);
    for (concurrency, lock, stall_check) in [(0, none, none), (usize::MAX, most, most)] {
        let options = ConsumerOptions { concurrency, lock, stall_check, max_stalled: 1 };
        let consumer = Consumer::start(&queue, options, |_| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(json!("done"))
        });
        let id = add(&queue, json!({}), 1).await;
        reaches(&queue, &id, State::Completed).await;
        let job = queue.job(&id).await.unwrap().unwrap();
        assert_eq!((job.stalled_counter, job.attempts_made), (0, 0), "{options:?}");
        assert!(matches!(queue.outcome(&id, most).await.unwrap(), Some(bullwork::queue::Outcome::Completed { .. })));
        let commands = commands(&server).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = self::commands(&server).await - commands;
        // Those that scripts call are counted as well.
        assert!(sent < 1000, "{sent} commands in a second by a consumer that has nothing to do");
        consumer.stop(most).await;
    }
    for limiter in [Limiter::new(0, none), Limiter::new(u64::MAX, most)] {
        let limited = queue.with_limiter(limiter.clone());
        let _: redis::Value = server.command(&["DEL", "bull:mails:limiter"]).await;
        let id = add(&limited, json!({}), 1).await;
        let taken = limited.take("t", most, Admission::Any).await.unwrap();
        assert!(matches!(&taken, Taken::Job(job) if job.id == id), "{limiter:?}: {taken:?}");
    }
}

/// Commands that were done so far.
async fn commands(server: &RedisServer) -> u64 {
    let mut connection = server.connection().await;
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.parse().ok()).expect("it counts them")
}

/// What is logged, from now on, by the whole process: each test has one of its own.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn start() -> Logged {
        let logged = Logged::default();
        let writer = logged.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        logged
    }

    async fn tells(&self, wanted: &str) {
        let found = || String::from_utf8_lossy(&self.0.lock().unwrap()).contains(wanted);
        eventually(&format!("`{wanted}` is logged"), SOON, async || found()).await;
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_lost_its_job_tells_where_that_is() {
    let server = RedisServer::start();
    let (queue, logged) = (queue(&server), Logged::start());
    let consumer = consume(&queue, 3, &Runs::default());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(add(&queue, json!({"ms": 600_000}), 1).await);
    }
    for id in &ids {
        reaches(&queue, id, State::Active).await;
    }
    server.command(&["SET", &format!("bull:mails:{}:lock", ids[0]), "another's"]).await;
    logged.tells("job 1 in mails is another worker's now: its run was dropped").await;
    // As bull-repl's `complete`.
    server.command(&["LREM", "bull:mails:active", "0", &ids[1]]).await;
    server.command(&["ZADD", "bull:mails:completed", "1", &ids[1]]).await;
    logged.tells("job 2 in mails is completed already: its run was dropped").await;
    server.command(&["FLUSHALL"]).await;
    logged.tells("job 3 in mails is gone: somebody deleted it; its run was dropped").await;
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_schedule_that_cannot_be_used_is_told_where_its_last_run_is_looked_at() {
    let server = RedisServer::start();
    let (queue, logged) = (queue(&server), Logged::start());
    for (n, (key, repeat)) in [
        ("__default__:::0", json!({"every": 0, "key": "__default__:::0"})),
        ("__default__::::61 * * * *", json!({"cron": "61 * * * *", "key": "__default__::::61 * * * *"})),
        ("__default__:::Mars:0 3 * * *", json!({"cron": "0 3 * * *", "tz": "Mars", "key": "__default__:::Mars:0 3 * * *"})),
    ]
    .into_iter()
    .enumerate()
    {
        server.command(&["ZADD", "bull:mails:repeat", "1", key]).await;
        let other = json!({"repeat": repeat, "prevMillis": 1}).as_object().unwrap().clone();
        let id = format!("repeat:{n}:1");
        let options = JobOptions { job_id: Some(id.clone()), other, ..JobOptions::default() };
        queue.add(&NewJob::unnamed(json!({}), options)).await.unwrap();
        let consumer = consume(&queue, 1, &Runs::default());
        reaches(&queue, &id, State::Completed).await;
        consumer.stop(SOON).await;
        logged.tells(&format!("job {id} is the last run of its schedule: schedule `{key}` will not run again")).await;
        let lines = queue.logs(&id, 0, -1).await.unwrap();
        assert!(lines.len() == 1 && lines[0].contains(key) && lines[0].contains("the schedule cannot be used"), "{lines:?}");
        let standing = queue.schedules().await.unwrap();
        assert!(standing[0].problem.as_deref().is_some_and(|problem| lines[0].contains(problem)), "{standing:?}");
        assert!(queue.remove_schedule(key).await.unwrap());
    }
}
