//! Content of a size that nobody meant: a hundred megabytes in one job, a million ids in one list.

use std::time::{Duration, Instant};

use bullwork::queue::{Failed, Failure, JobOptions, NewJob, State};
use serde_json::{Value, json};

use super::bench::{Bench, NOW};

const INTERVAL: Duration = Duration::from_secs(30);
/// Redis serves nobody else during a script.
const LONGEST_SCRIPT: Duration = Duration::from_secs(5);

/// A hundred megabytes of text in a thousand parts, as JSON.
pub(crate) fn hundred_megabytes() -> Value {
    json!({"parts": vec!["x".repeat(100_000); 1000]})
}

/// Puts a million ids without a job into a key by `command`: `LPUSH` or `SADD`, or `ZADD` with equal scores.
async fn million(bench: &mut Bench, command: &str, key: &str) {
    let script = "for n = 1, 1000000, 100 do local ids = {} for i = n, n + 99 do
        if ARGV[1] == 'ZADD' then table.insert(ids, 1) end table.insert(ids, 'ghost ' .. i) end
        redis.call(ARGV[1], KEYS[1], unpack(ids)) end";
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(bench.server.url()).expect("a valid URL");
    let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await.expect("redis answers");
    let mut eval = redis::cmd("EVAL");
    eval.arg(script).arg(1).arg(format!("bull:v:{key}")).arg(command);
    let _: redis::Value = eval.query_async(&mut connection).await.expect("it is put there");
}

#[tokio::test]
async fn a_job_of_a_hundred_megabytes_is_added_shown_failed_retried_and_completed() {
    let mut bench = Bench::start().await;
    let data = hundred_megabytes();
    let options = JobOptions { attempts: 2, ..JobOptions::default() };
    let id = bench.queue.add(&NewJob::unnamed(data.clone(), options)).await.unwrap().id().to_owned();
    let shown = bench.queue.jobs(&[State::Waiting], 0, -1, true).await.unwrap();
    assert!(shown[0].data == data && shown[0].raw_data.len() > 100_000_000);
    let job = bench.take("a").await;
    let failure = Failure { reason: "y".repeat(10 << 20), stacktrace: "z".repeat(10 << 20), retry: true };
    assert_eq!(bench.queue.fail(&job, "a", &failure).await.unwrap(), Failed::Requeued);
    let job = bench.take("b").await;
    assert_eq!((job.attempts_made, job.stacktrace[0].len()), (1, 10 << 20));
    bench.queue.log(&id, &["l".repeat(10 << 20)]).await.unwrap();
    bench.queue.complete(&job, "b", &json!("r".repeat(10 << 20)), None).await.unwrap();
    assert_eq!(bench.places(&id).await, ["completed"]);
    bench.clock.set(NOW + 10);
    assert_eq!(bench.queue.clean(State::Completed, Duration::ZERO, None).await.unwrap(), [id]);
    assert_eq!(bench.dump().await.keys().collect::<Vec<_>>(), ["bull:v:id"]);
}

#[tokio::test]
async fn a_million_ids_without_a_job_hold_up_no_job() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { job_id: Some("good".into()), ..JobOptions::default() }).await;
    let _: i64 = bench.command(&["DEL", "bull:v:wait"]).await;
    million(&mut bench, "LPUSH", "wait").await;
    million(&mut bench, "ZADD", "priority").await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "good"]).await;
    bench.queue.pause().await.unwrap();
    bench.queue.resume().await.unwrap();
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 1_000_001);
    assert_eq!(bench.take("t").await.id, "good");
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 0);
    assert!(bench.zset("priority").await.is_empty());
}

#[tokio::test]
async fn a_million_ids_without_a_job_are_no_longer_due() {
    let mut bench = Bench::start().await;
    million(&mut bench, "ZADD", "delayed").await;
    bench.add(JobOptions { delay: 1, ..JobOptions::default() }).await;
    bench.clock.set(NOW + 10);
    assert_eq!(bench.queue.promote_due().await.unwrap(), None);
    assert_eq!(bench.list("wait").await, ["1"]);
}

#[tokio::test]
async fn a_million_ids_in_active_leave_it_check_by_check_and_block_redis_only_shortly() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    bench.take("t").await;
    let _: i64 = bench.command(&["DEL", "bull:v:1:lock"]).await;
    million(&mut bench, "LPUSH", "active").await;
    million(&mut bench, "SADD", "stalled").await;
    let mut requeued = Vec::new();
    let mut left = 1_000_001;
    for _ in 0..4 {
        let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
        let began = Instant::now();
        requeued.extend(bench.queue.recover_stalled(INTERVAL, 5).await.unwrap().requeued);
        assert!(began.elapsed() < LONGEST_SCRIPT, "{:?}", began.elapsed());
        let active = bench.queue.counts().await.unwrap().active;
        assert!(active <= left, "{active}");
        left = active;
    }
    assert_eq!((requeued, bench.list("wait").await), (vec!["1".to_owned()], vec!["1".to_owned()]));
    assert!(left <= 980_001, "every check takes ten thousand: {left}");
}

#[tokio::test]
async fn a_million_ids_without_a_job_are_counted_shown_by_page_retried_and_emptied() {
    let mut bench = Bench::start().await;
    for (command, key) in [("ZADD", "failed"), ("LPUSH", "wait"), ("ZADD", "completed")] {
        million(&mut bench, command, key).await;
    }
    let counts = bench.queue.counts().await.unwrap();
    assert_eq!((counts.failed, counts.waiting, counts.completed), (1_000_000, 1_000_000, 1_000_000));
    let states = [State::Failed, State::Waiting, State::Completed];
    assert!(bench.queue.jobs(&states, 500_000, 500_200, true).await.unwrap().is_empty());
    assert_eq!(bench.queue.retry_all_failed().await.unwrap(), 0);
    assert_eq!(bench.queue.empty().await.unwrap().len(), 1_000_000);
    let limit = Some(5000);
    assert_eq!(bench.queue.clean(State::Completed, Duration::ZERO, limit).await.unwrap().len(), 5000);
    bench.queue.obliterate(false).await.unwrap();
    assert!(bench.dump().await.is_empty());
}
