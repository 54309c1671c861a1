//! Adding and removing many jobs at once.

use std::time::Duration;

use bullwork::queue::{Added, Debounce, JobOptions, Keep, NewJob, QueueError, State};
use serde_json::json;

use super::bench::{Bench, NOW};

fn job(n: usize) -> NewJob {
    NewJob::unnamed(json!({"n": n}), JobOptions { attempts: 1, ..JobOptions::default() })
}

fn debounced(id: &str, ttl: Option<u64>) -> JobOptions {
    JobOptions { debounce: Some(Debounce { id: id.into(), ttl }), ..JobOptions::default() }
}

#[tokio::test]
async fn many_jobs_are_added_in_their_order_whatever_their_number_and_size() {
    let mut bench = Bench::start().await;
    let mut jobs: Vec<NewJob> = (1..=2500).map(job).collect();
    jobs[7].data = json!("x".repeat(20 << 20));
    let added = bench.queue.add_many(&jobs).await.unwrap();
    let ids: Vec<String> = (1..=2500).map(|n| n.to_string()).collect();
    assert_eq!(added.iter().map(|a| a.id().to_owned()).collect::<Vec<_>>(), ids);
    let mut waiting = bench.list("wait").await;
    waiting.reverse();
    assert_eq!(waiting, ids, "the first is taken first");
    assert_eq!(bench.take("run").await.data, json!({"n": 1}));
    assert!(bench.queue.add_many(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_bad_job_among_many_is_refused_before_any_is_added() {
    let mut bench = Bench::start().await;
    let mut jobs: Vec<NewJob> = (1..=1500).map(job).collect();
    jobs[1499].options.job_id = Some("wait".into());
    let error = bench.queue.add_many(&jobs).await.unwrap_err();
    assert!(matches!(error, QueueError::InvalidId { .. }), "{error}");
    assert!(bench.dump().await.is_empty());
}

#[tokio::test]
async fn a_debounced_job_is_added_once_until_it_ends() {
    let mut bench = Bench::start().await;
    let first = bench.queue.add(&NewJob::unnamed(json!({}), debounced("user 7", None))).await.unwrap();
    assert_eq!(first, Added::New("1".into()));
    assert_eq!(bench.hash("1").await["deid"], "user 7");
    let mut ear = bench.ear().await;
    let second = bench.queue.add(&NewJob::unnamed(json!({}), debounced("user 7", None))).await.unwrap();
    assert_eq!(second, Added::Debounced("1".into()));
    assert_eq!(ear.heard().await, [("bull:v:debounced@<token>".to_owned(), "1".to_owned())]);
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 1);
    let taken = bench.take("run").await;
    assert_eq!(bench.queue.add(&NewJob::unnamed(json!({}), debounced("user 7", None))).await.unwrap().id(), "1");
    bench.queue.complete(&taken, "run", &json!(null), None).await.unwrap();
    let third = bench.queue.add(&NewJob::unnamed(json!({}), debounced("user 7", None))).await.unwrap();
    assert!(matches!(third, Added::New(_)), "{third:?}");
    bench.queue.remove(third.id()).await.unwrap();
    assert!(!bench.exists("de:user 7").await);
}

#[tokio::test]
async fn a_debounce_with_a_time_lasts_that_long_whatever_becomes_of_its_job() {
    let mut bench = Bench::start().await;
    bench.add(debounced("x", Some(100_000))).await;
    let left: i64 = bench.command(&["PTTL", "bull:v:de:x"]).await;
    assert!((1..=100_000).contains(&left), "{left}");
    let taken = bench.take("run").await;
    bench.queue.complete(&taken, "run", &json!(null), None).await.unwrap();
    assert_eq!(bench.add(debounced("x", Some(100_000))).await, "1");
    let _: i64 = bench.command(&["DEL", "bull:v:de:x"]).await;
    assert_ne!(bench.add(debounced("x", Some(100_000))).await, "1");
}

#[tokio::test]
async fn a_debounce_key_that_is_no_text_debounces_nothing() {
    let mut bench = Bench::start().await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:de:x", "1"]).await;
    assert_eq!(bench.add(debounced("x", None)).await, "1");
    assert_eq!(bench.queue.counts().await.unwrap().waiting, 1);
}

#[tokio::test]
async fn cleaning_removes_what_is_old_enough_oldest_first() {
    let mut bench = Bench::start().await;
    for n in 0..5 {
        bench.clock.set(NOW + n * 1000);
        bench.add(JobOptions { attempts: 1, ..JobOptions::default() }).await;
        let job = bench.take("run").await;
        bench.queue.complete(&job, "run", &json!(n), None).await.unwrap();
        bench.queue.log(&job.id, &["line".into()]).await.unwrap();
    }
    bench.clock.set(NOW + 4000);
    let queue = bench.queue.clone();
    assert_eq!(queue.clean(State::Completed, Duration::from_millis(1000), Some(2)).await.unwrap(), ["1", "2"]);
    assert_eq!(queue.clean(State::Completed, Duration::from_millis(1000), None).await.unwrap(), ["3"], "strictly older");
    assert!(queue.clean(State::Failed, Duration::ZERO, None).await.unwrap().is_empty());
    assert!(!bench.exists("1").await && !bench.exists("1:logs").await && bench.exists("4").await);
}

#[tokio::test]
async fn cleaning_reaches_every_state_and_never_a_job_that_runs() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.clone();
    for n in 0..2500_i64 {
        let delay = if n % 2 == 0 { 3_600_000 } else { 0 };
        bench.add(JobOptions { delay, ..JobOptions::default() }).await;
    }
    bench.clock.set(NOW + 10);
    let recent = bench.add(JobOptions::default()).await;
    let recent_delayed = bench.add(JobOptions { delay: 5, ..JobOptions::default() }).await;
    let running = bench.take("run").await;
    let stuck = bench.take("gone").await;
    let _: i64 = bench.command(&["DEL", &format!("bull:v:{}:lock", stuck.id)]).await;
    bench.clock.set(NOW + 20);
    let grace = Duration::from_millis(15);
    assert_eq!(queue.clean(State::Delayed, grace, Some(1100)).await.unwrap().len(), 1100);
    assert_eq!(queue.clean(State::Delayed, grace, None).await.unwrap().len(), 150);
    assert_eq!(queue.clean(State::Waiting, grace, Some(3)).await.unwrap(), ["6", "8", "10"]);
    assert_eq!(queue.clean(State::Waiting, grace, None).await.unwrap().len(), 1245);
    assert_eq!(bench.list("wait").await, [recent]);
    assert_eq!(queue.jobs(&[State::Delayed], 0, -1, true).await.unwrap()[0].id, recent_delayed);
    bench.clock.set(NOW + 100_000);
    assert_eq!(queue.clean(State::Active, Duration::ZERO, None).await.unwrap(), [stuck.id], "it has no lock");
    assert_eq!(bench.list("active").await, [running.id]);
}

#[tokio::test]
async fn emptying_leaves_pauses_schedules_running_and_finished_jobs() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.clone();
    let done = bench.add(JobOptions::default()).await;
    let job = bench.take("run").await;
    queue.complete(&job, "run", &json!(1), None).await.unwrap();
    for n in 0..30 {
        bench.add(JobOptions { delay: n % 3, priority: u32::try_from(n % 2).unwrap(), ..JobOptions::default() }).await;
    }
    let running = bench.take("run 2").await;
    queue.pause().await.unwrap();
    let repeat = bullwork::queue::Repeat::cron("0 0 * * *", Some("UTC"));
    queue.arm(&repeat, "nightly", &json!({}), &JobOptions::default(), NOW + 50_000, None).await.unwrap();
    assert_eq!(queue.empty().await.unwrap().len(), 29);
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.paused, counts.delayed, counts.active, counts.completed), (0, 0, 1, 1, 1));
    assert!(queue.is_paused().await.unwrap());
    assert!(bench.exists(&done).await && bench.exists(&running.id).await && bench.zset("priority").await.is_empty());
}

#[tokio::test]
async fn an_obliterated_queue_leaves_no_key_and_others_alone() {
    let mut bench = Bench::start().await;
    let other = bench.other("v2");
    other.add(&job(1)).await.unwrap();
    let before = bench.dump().await;
    let queue = bench.queue.clone();
    queue.add_many(&(0..2100).map(job).collect::<Vec<_>>()).await.unwrap();
    bench.add(debounced("x", None)).await;
    bench.add(JobOptions { delay: 1000, priority: 3, ..JobOptions::default() }).await;
    queue
        .arm(
            &bullwork::queue::Repeat::cron("0 0 * * *", Some("UTC")),
            "n",
            &json!({}),
            &JobOptions::default(),
            NOW + 50_000,
            None,
        )
        .await
        .unwrap();
    let finished = bench.take("a").await;
    queue.complete(&finished, "a", &json!(1), None).await.unwrap();
    let running = bench.take("b").await;
    queue.log(&running.id, &["line".into()]).await.unwrap();
    queue.request_cancel(&running.id, "me").await.unwrap();
    let refused = queue.obliterate(false).await.unwrap_err();
    assert!(matches!(refused, QueueError::ActiveJobs(1)), "{refused}");
    assert!(!queue.is_paused().await.unwrap(), "refused means nothing changed");
    queue.obliterate(true).await.unwrap();
    assert_eq!(bench.dump().await, before);
    queue.complete(&running, "b", &json!(1), None).await.unwrap_err();
    assert_eq!(bench.dump().await, before, "a run that ends late writes nothing");
}

#[tokio::test]
async fn a_queue_with_keys_of_wrong_types_can_be_obliterated() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    for key in ["active", "completed", "delayed", "stalled", "meta", "repeat"] {
        let _: String = bench.command(&["SET", &format!("bull:v:{key}"), "junk"]).await;
    }
    bench.queue.obliterate(false).await.unwrap();
    assert!(bench.dump().await.is_empty());
}

#[tokio::test]
async fn retention_that_comes_late_thins_out_a_thousand_jobs_at_a_time() {
    let mut bench = Bench::start().await;
    let mut pipe = redis::pipe();
    for n in 0..2500 {
        pipe.hset(format!("bull:v:old {n}"), "opts", "{}").zadd("bull:v:completed", format!("old {n}"), n);
    }
    let _: redis::Value = pipe.query_async(&mut bench.connection).await.unwrap();
    for left in [1501, 502, 5, 5] {
        bench.add(JobOptions { remove_on_complete: Keep::Count(5), ..JobOptions::default() }).await;
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
        assert_eq!(bench.queue.counts().await.unwrap().completed, left);
    }
    assert!(!bench.exists("old 2498").await && bench.exists("old 2499").await && bench.exists("1").await);
}

#[tokio::test]
async fn priorities_hold_among_more_jobs_than_are_moved_one_by_one() {
    let bench = Bench::start().await;
    let with = |priority| NewJob::unnamed(json!({}), JobOptions { priority, ..JobOptions::default() });
    let jobs: Vec<NewJob> = (0..3000).map(|n| with([0, 1, 2][n % 3])).collect();
    bench.queue.add_many(&jobs).await.unwrap();
    // One has 999 others ahead of it, one 1001, one 2002.
    let mut expected: Vec<u32> = Vec::new();
    for (class, late) in [(1, 3001_u64), (2, 3002), (2, 3003), (0, 3004)] {
        bench.queue.add(&with(class)).await.unwrap();
        assert_eq!(bench.queue.counts().await.unwrap().waiting, late);
    }
    for (class, late) in [(1, vec![3001]), (2, vec![3002, 3003]), (0, vec![3004])] {
        expected.extend((0..3000).filter(|n| [0, 1, 2][n % 3] == class).map(|n| n as u32 + 1));
        expected.extend(late);
    }
    let taken = bench.queue.jobs(&[State::Waiting], 0, -1, true).await.unwrap();
    assert_eq!(taken.iter().map(|job| job.id.parse::<u32>().unwrap()).collect::<Vec<_>>(), expected);
}
