//! Rate limits, metrics, priorities counted, jobs removed by pattern, outcomes waited for, workers listed.

use std::time::Duration;

use bullwork::queue::{
    Admission, Consumer, ConsumerOptions, Failure, Job, JobOptions, Keep, Limiter, Metrics, NewJob, Outcome, Presence, Queue,
    QueueError, State, Taken,
};
use serde_json::{Value, json};

use super::bench::{Bench, LOCK, NOW};
use crate::support::eventually;

fn group_limiter(max: u64, bounce_back: bool) -> Limiter {
    Limiter { group_key: Some("customer.id".into()), bounce_back, ..Limiter::new(max, Duration::from_secs(60)) }
}

async fn add(queue: &Queue, data: Value) -> String {
    queue.add(&NewJob::unnamed(data, JobOptions::default())).await.unwrap().id().to_owned()
}

async fn take(queue: &Queue) -> Taken {
    queue.take("t", LOCK, Admission::Any).await.unwrap()
}

fn job(taken: Taken) -> Job {
    match taken {
        Taken::Job(job) => *job,
        other => panic!("{other:?} instead of a job"),
    }
}

#[tokio::test]
async fn the_limit_leaves_jobs_in_their_place_until_its_time_has_passed() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_limiter(Limiter::new(2, Duration::from_secs(60)));
    for n in 0..4 {
        add(&queue, json!({ "n": n })).await;
    }
    assert_eq!((job(take(&queue).await).id, job(take(&queue).await).id), ("1".into(), "2".into()));
    let Taken::Limited(left) = take(&queue).await else { panic!("a third run began") };
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
    assert_eq!((bench.list("wait").await, bench.zset("delayed").await), (vec!["4".into(), "3".into()], vec![]));
    let counter: String = bench.command(&["GET", "bull:v:limiter"]).await;
    assert_eq!(counter, "2");
    // An urgent job comes first all the same.
    let urgent = JobOptions { priority: 1, ..JobOptions::default() };
    let urgent = queue.add(&NewJob::unnamed(json!({}), urgent)).await.unwrap().id().to_owned();
    let _: i64 = bench.command(&["PEXPIRE", "bull:v:limiter", "1"]).await;
    eventually(
        "the time has passed",
        Duration::from_secs(5),
        async || matches!(take(&queue).await, Taken::Job(job) if job.id == urgent),
    )
    .await;
    // A worker that knows of no limit pays no heed.
    assert_eq!(bench.take("t").await.id, "3");
}

#[tokio::test]
async fn a_limiter_that_has_no_expiry_or_is_no_number_holds_up_nothing() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_limiter(Limiter::new(1, Duration::from_secs(60)));
    for stuck in ["7", "rubbish"] {
        let () = bench.command(&["SET", "bull:v:limiter", stuck]).await;
        let id = add(&queue, json!({})).await;
        assert_eq!(job(take(&queue).await).id, id);
        let left: i64 = bench.command(&["PTTL", "bull:v:limiter"]).await;
        assert!(left > 0, "{stuck}");
    }
    let _: i64 = bench.command(&["DEL", "bull:v:limiter"]).await;
    let _: i64 = bench.command(&["RPUSH", "bull:v:limiter", "x"]).await;
    add(&queue, json!({})).await;
    let refused = queue.take("t", LOCK, Admission::Any).await;
    assert!(matches!(&refused, Err(QueueError::WrongType(key)) if key == "bull:v:limiter"), "{refused:?}");
    assert_eq!(bench.list("wait").await, ["3"]);
}

#[tokio::test]
async fn a_group_that_reached_its_limit_lets_the_others_pass_and_loses_nothing() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_limiter(group_limiter(1, false));
    let mut ids = Vec::new();
    for customer in ["a", "a", "a", "b"] {
        ids.push(add(&queue, json!({"customer": {"id": customer}})).await);
    }
    assert!(ids[0].ends_with(":a") && ids[3].ends_with(":b"), "{ids:?}");
    assert_eq!(bench.queue.job(&ids[0]).await.unwrap().unwrap().opts["jobId"], json!(ids[0]));
    assert_eq!(job(take(&queue).await).id, ids[0]);
    assert_eq!(job(take(&queue).await).id, ids[3], "two jobs of a are put off for it");
    assert_eq!(take(&queue).await, Taken::Empty);
    for id in &ids[1..3] {
        assert_eq!(bench.places(id).await, ["delayed"]);
    }
    let mut limited = ids[1..3].to_vec();
    limited.sort();
    assert_eq!(bench.set("limiter:a:limited").await, limited);
    assert_eq!(bench.hash("limiter:index").await[&ids[1]], "bull:v:limiter:a:limited");
    // The second waits until the time is over, the third for its turn after that.
    let scores = bench.zset("delayed").await;
    let due = |n: usize| scores[n].parse::<f64>().unwrap() / 4096.0 - NOW as f64;
    assert!(due(1) > 50_000.0 && due(1) <= 60_001.0, "{scores:?}");
    assert!(due(3) > 110_000.0 && due(3) <= 126_001.0, "{scores:?}");

    // One is removed, the other one's time comes.
    queue.remove(&ids[2]).await.unwrap();
    assert_eq!(bench.set("limiter:a:limited").await, ids[1..2]);
    bench.clock.set(NOW + 61_000);
    let _: i64 = bench.command(&["DEL", "bull:v:limiter:a"]).await;
    queue.promote_due().await.unwrap();
    assert_eq!(job(take(&queue).await).id, ids[1]);
    assert!(!bench.exists("limiter:a:limited").await && !bench.exists("limiter:index").await, "nothing is left of it");
}

#[tokio::test]
async fn jobs_that_wait_for_a_limit_no_more_hold_up_nobody() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_limiter(group_limiter(1, false));
    let data = json!({"customer": {"id": 7}});
    let (first, second) = (add(&queue, data.clone()).await, add(&queue, data.clone()).await);
    assert_eq!(job(take(&queue).await).id, first);
    assert_eq!(take(&queue).await, Taken::Empty);
    // A worker without the limiter runs it and leaves its name in the set.
    bench.queue.promote(&second).await.unwrap();
    assert_eq!(bench.take("u").await.id, second);
    assert_eq!(bench.set("limiter:7:limited").await, [second]);
    let _: i64 = bench.command(&["DEL", "bull:v:limiter:7"]).await;
    let third = add(&queue, data).await;
    assert_eq!(job(take(&queue).await).id, third);
    assert!(!bench.exists("limiter:7:limited").await && !bench.exists("limiter:index").await);
}

/// Trap 13 of the wire format: Bull's own bounceBack loses such jobs.
#[tokio::test]
async fn bounce_back_keeps_a_limited_job_at_the_taking_end() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_limiter(group_limiter(1, true));
    let mut ids = Vec::new();
    for customer in ["a", "a", "b"] {
        ids.push(add(&queue, json!({"customer": {"id": customer}})).await);
    }
    assert_eq!(job(take(&queue).await).id, ids[0]);
    for _ in 0..3 {
        assert!(matches!(take(&queue).await, Taken::Limited(_)));
    }
    assert_eq!(bench.list("wait").await, [ids[2].clone(), ids[1].clone()]);
    assert!(bench.zset("delayed").await.is_empty());
}

#[tokio::test]
async fn a_consumer_keeps_the_limit_and_runs_every_job_once() {
    let bench = Bench::start().await;
    let plain = Queue::new(bench.queue.redis().clone(), "bull", "limited", bullwork::clock::Clock::System);
    let queue = plain.with_limiter(Limiter::new(3, Duration::from_millis(300)));
    for n in 0..9 {
        add(&queue, json!({ "n": n })).await;
    }
    let (told, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let consumer = Consumer::start(&queue, ConsumerOptions { concurrency: 4, ..ConsumerOptions::default() }, move |job| {
        let _ = told.send((job.data["n"].as_i64().unwrap(), std::time::Instant::now()));
        async { Ok(Value::Null) }
    });
    let mut begun = Vec::new();
    for _ in 0..9 {
        begun.push(tokio::time::timeout(Duration::from_secs(20), runs.recv()).await.expect("all run").unwrap());
    }
    consumer.stop(Duration::from_secs(5)).await;
    assert_eq!(begun.iter().map(|run| run.0).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    for (early, late) in begun.iter().zip(&begun[3..]) {
        assert!(late.1 - early.1 > Duration::from_millis(250), "four runs began within the time: {begun:?}");
    }
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.completed, counts.waiting + counts.active + counts.delayed), (9, 0));
}

/// Wire format §6.18, by hand: minute 0 has two ends, minute 1 none, minute 3 one.
#[tokio::test]
async fn ends_are_counted_in_their_minute() {
    let mut bench = Bench::start().await;
    let queue = bench.queue.with_metrics(3);
    let minute = |n: i64| NOW - NOW.rem_euclid(60_000) + n * 60_000;
    for at in [minute(0) + 1, minute(0) + 59_999, minute(3), minute(3) + 5, minute(4), minute(9)] {
        bench.clock.set(at);
        add(&queue, json!({})).await;
        let job = job(take(&queue).await);
        let next = queue.complete_and_take(&job, "t", &json!(1), "u", LOCK).await.unwrap();
        assert_eq!(next, Taken::Empty);
    }
    let metrics = queue.metrics(State::Completed, 10).await.unwrap();
    assert_eq!(metrics, Metrics { count: 6, last: Some(minute(9)), points: vec![0, 0, 1] });
    assert_eq!(queue.metrics(State::Failed, 10).await.unwrap(), Metrics::default());
    add(&queue, json!({})).await;
    let last = job(take(&queue).await);
    queue.fail(&last, "t", &Failure::new("x")).await.unwrap();
    assert_eq!(queue.metrics(State::Failed, 10).await.unwrap().count, 1);
    // A queue without metrics, and one whose keys hold something else, end their jobs all the same.
    for key in ["bull:v:metrics:completed", "bull:v:metrics:completed:data"] {
        let _: i64 = bench.command(&["DEL", key]).await;
        let () = bench.command(&["SET", key, "odd"]).await;
        add(&queue, json!({})).await;
        let job = job(take(&queue).await);
        queue.complete(&job, "t", &json!(1), None).await.unwrap();
    }
    assert_eq!(queue.counts().await.unwrap().completed, 8);
}

#[tokio::test]
async fn waiting_jobs_are_counted_by_priority_paused_or_not() {
    let bench = Bench::start().await;
    for priority in [0, 0, 0, 1, 2, 2] {
        bench.add(JobOptions { priority, ..JobOptions::default() }).await;
    }
    assert_eq!(bench.queue.counts_per_priority(&[0, 1, 2, 3]).await.unwrap(), [3, 1, 2, 0]);
    bench.queue.pause().await.unwrap();
    assert_eq!(bench.queue.counts_per_priority(&[2, 0]).await.unwrap(), [2, 3]);
}

#[tokio::test]
async fn jobs_are_removed_by_pattern_but_for_those_that_run_and_the_queues_own_keys() {
    let mut bench = Bench::start().await;
    for id in ["mail-1", "mail-2", "mail-3", "call-1"] {
        bench.add(JobOptions { job_id: Some(id.into()), ..JobOptions::default() }).await;
    }
    let running = bench.take("t").await.id;
    bench.queue.pause().await.unwrap();
    let mut removed = bench.queue.remove_matching("mail-*").await.unwrap();
    removed.sort();
    assert_eq!((running.as_str(), removed), ("mail-1", vec!["mail-2".into(), "mail-3".into()]));
    assert_eq!(bench.queue.remove_matching("*").await.unwrap(), ["call-1"]);
    assert!(bench.exists("meta").await && bench.queue.is_paused().await.unwrap(), "no key of the queue itself is a job");
    assert_eq!(bench.places("mail-1").await, ["active"]);
}

#[tokio::test]
async fn an_outcome_is_told_whether_it_was_there_before_or_comes_later() {
    let bench = Bench::start().await;
    let limit = Duration::from_secs(20);
    let queue = Queue::new(bench.queue.redis().clone(), "bull", "v", bullwork::clock::Clock::System);
    let consumer = Consumer::start(&queue, ConsumerOptions::default(), |job| async move {
        match job.data["fail"].as_str() {
            Some(reason) => Err(Failure { retry: false, ..Failure::new(reason) }),
            None => Ok(json!({"doubled": job.data["n"].as_i64().unwrap_or(0) * 2})),
        }
    });
    let done = Outcome::Completed { value: json!({"doubled": 42}) };
    let gone = JobOptions { remove_on_complete: Keep::None, ..JobOptions::default() };
    let (_, outcome) = queue.add_and_wait(&NewJob::unnamed(json!({"n": 21}), gone), limit).await.unwrap();
    assert_eq!(outcome, Some(done.clone()), "though the job is removed as it ends");
    let id = add(&queue, json!({"n": 21})).await;
    assert_eq!(queue.outcome(&id, limit).await.unwrap(), Some(done.clone()));
    assert_eq!(queue.outcome(&id, Duration::ZERO).await.unwrap(), Some(done), "it is there by now");
    let failing = NewJob::unnamed(json!({"fail": "no stamps"}), JobOptions::default());
    let (_, outcome) = queue.add_and_wait(&failing, limit).await.unwrap();
    assert_eq!(outcome, Some(Outcome::Failed { reason: "no stamps".into() }));
    assert!(matches!(queue.outcome("nobody", limit).await, Err(QueueError::Missing(_))));
    consumer.stop(limit).await;
    let id = add(&queue, json!({})).await;
    assert_eq!(queue.outcome(&id, Duration::from_millis(200)).await.unwrap(), None, "nobody runs it");
}

#[tokio::test]
async fn an_outcome_is_found_though_its_message_was_missed() {
    let mut bench = Bench::start().await;
    let id = bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    let (queue, wanted) = (bench.queue.clone(), id.clone());
    let waiting = tokio::spawn(async move { queue.outcome(&wanted, Duration::from_secs(30)).await });
    eventually("it listens", Duration::from_secs(5), async || {
        let mut connection = bench.connection.clone();
        let heard: (String, i64) =
            redis::cmd("PUBSUB").arg("NUMSUB").arg("bull:v:completed").query_async(&mut connection).await.unwrap();
        heard.1 == 1
    })
    .await;
    let _: i64 = bench.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    bench.queue.complete(&job, "t", &json!("late"), None).await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it is found").unwrap();
    assert_eq!(outcome.unwrap(), Some(Outcome::Completed { value: json!("late") }));
}

#[tokio::test]
async fn workers_are_listed_by_their_whole_queue_name() {
    let bench = Bench::start().await;
    let limit = Duration::from_secs(10);
    let (queue, longer) = (bench.other("mai"), bench.other("mails"));
    let consumer = Consumer::start(&queue, ConsumerOptions::default(), |_| async { Ok(Value::Null) });
    eventually("the consumer is listed", limit, async || queue.workers().await.unwrap().len() == 1).await;
    let mut presence = Presence::new(&longer);
    presence.renew().await.unwrap();
    presence.renew().await.unwrap();
    assert_eq!((queue.workers().await.unwrap().len(), longer.workers().await.unwrap().len()), (1, 1));
    drop(presence);
    consumer.stop(limit).await;
    eventually("both are gone", limit, async || {
        queue.workers().await.unwrap().is_empty() && longer.workers().await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_outcome_that_never_comes_is_told_soon_after_its_job_was_removed() {
    let bench = Bench::start().await;
    let id = bench.add(JobOptions::default()).await;
    let (queue, wanted) = (bench.queue.clone(), id.clone());
    let waiting = tokio::spawn(async move { queue.outcome(&wanted, Duration::from_secs(30)).await });
    eventually("it listens", Duration::from_secs(5), async || {
        let mut connection = bench.connection.clone();
        let heard: (String, i64) =
            redis::cmd("PUBSUB").arg("NUMSUB").arg("bull:v:completed").query_async(&mut connection).await.unwrap();
        heard.1 == 1
    })
    .await;
    bench.queue.remove(&id).await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_millis(3500), waiting).await.expect("it is told").unwrap();
    assert!(matches!(&outcome, Err(QueueError::Missing(missing)) if *missing == id), "{outcome:?}");
}
