//! What operators do by hand.

use bullwork::queue::{Admission, CancelOutcome, Failed, Failure, JobOptions, QueueError, Renewed, State, Taken};
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};

fn failure() -> Failure {
    Failure { reason: "bad".into(), stacktrace: String::new(), retry: true }
}

#[tokio::test]
async fn pausing_stops_taking_and_resuming_goes_on_in_order() {
    let mut bench = Bench::start().await;
    let mut ear = bench.ear().await;
    bench.add(JobOptions::default()).await;
    bench.queue.pause().await.unwrap();
    bench.add(JobOptions::default()).await;
    assert!(bench.queue.is_paused().await.unwrap());
    assert_eq!(bench.list("paused").await, ["2", "1"]);
    assert_eq!(bench.hash("meta").await["paused"], "1");
    let flag: String = bench.command(&["GET", "bull:v:meta-paused"]).await;
    assert_eq!(flag, "1");
    assert_eq!(bench.queue.take("t", LOCK, Admission::Any).await.unwrap(), Taken::Empty);
    assert_eq!(bench.queue.state("1").await.unwrap(), Some(State::Paused));
    bench.queue.resume().await.unwrap();
    assert!(!bench.queue.is_paused().await.unwrap());
    assert!(!bench.exists("meta-paused").await && !bench.exists("paused").await && !bench.exists("meta").await);
    assert_eq!(bench.list("wait").await, ["2", "1"]);
    let heard: Vec<String> = ear.heard().await.into_iter().map(|(channel, _)| channel).collect();
    assert_eq!(heard, ["bull:v:waiting@<token>", "bull:v:paused", "bull:v:waiting@<token>", "bull:v:resumed"]);
}

#[tokio::test]
async fn pausing_and_resuming_twice_loses_no_job() {
    let mut bench = Bench::start().await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:paused", "p1", "p2"]).await;
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "w1", "w2"]).await;
    bench.queue.pause().await.unwrap();
    assert_eq!(bench.list("paused").await, ["w2", "w1", "p2", "p1"]);
    // A foreign writer that ignores the pause.
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "x"]).await;
    bench.queue.pause().await.unwrap();
    assert_eq!(bench.list("paused").await, ["x", "w2", "w1", "p2", "p1"]);
    let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "y"]).await;
    bench.queue.resume().await.unwrap();
    assert_eq!(bench.list("wait").await, ["y", "x", "w2", "w1", "p2", "p1"]);
    bench.queue.resume().await.unwrap();
    assert_eq!(bench.list("wait").await.len(), 6);
}

#[tokio::test]
async fn only_finished_jobs_are_retried() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    assert!(matches!(bench.queue.retry("1").await, Err(QueueError::NotFinished(_))));
    assert!(matches!(bench.queue.retry("2").await, Err(QueueError::Missing(_))));
    assert!(matches!(bench.queue.retry("meta").await, Err(QueueError::InvalidId { .. })));
    let job = bench.take("t").await;
    assert!(matches!(bench.queue.retry("1").await, Err(QueueError::Locked(_))));
    bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
    bench.queue.retry("1").await.unwrap();
    assert_eq!(bench.places("1").await, ["wait"]);
    assert_eq!(bench.take("t").await.retried_on, Some(NOW));
}

#[tokio::test]
async fn retrying_all_failed_jobs_ends_and_drops_ids_without_a_job() {
    let mut bench = Bench::start().await;
    let mut pipe = redis::pipe();
    for n in 0..2500 {
        pipe.hset(format!("bull:v:{n}"), "opts", "{}").zadd("bull:v:failed", n, n);
    }
    pipe.del("bull:v:7");
    let _: redis::Value = pipe.query_async(&mut bench.connection).await.unwrap();
    assert_eq!(bench.queue.retry_all_failed().await.unwrap(), 2499);
    let counts = bench.queue.counts().await.unwrap();
    assert_eq!((counts.failed, counts.waiting), (0, 2499));
    assert_eq!(bench.list("wait").await.last().unwrap(), "0", "the oldest is taken first");
}

#[tokio::test]
async fn only_delayed_jobs_are_promoted() {
    let mut bench = Bench::start().await;
    let id = bench.add(JobOptions { delay: 60_000, ..JobOptions::default() }).await;
    let mut ear = bench.ear().await;
    bench.queue.promote(&id).await.unwrap();
    assert_eq!(ear.heard().await, [("bull:v:waiting@<token>".to_owned(), "1".to_owned())]);
    assert_eq!((bench.places(&id).await, bench.hash(&id).await["delay"].as_str()), (vec!["wait"], "0"));
    assert!(matches!(bench.queue.promote(&id).await, Err(QueueError::NotDelayed(_))));
    assert!(matches!(bench.queue.promote("9").await, Err(QueueError::Missing(_))));
}

#[tokio::test]
async fn a_removed_job_leaves_no_trace_unless_it_runs() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { priority: 2, ..JobOptions::default() }).await;
    bench.queue.log("1", &["line".into()]).await.unwrap();
    bench.queue.remove("1").await.unwrap();
    assert_eq!(bench.dump().await.into_keys().collect::<Vec<_>>(), ["bull:v:id"]);
    assert!(matches!(bench.queue.remove("1").await, Err(QueueError::Missing(_))));

    let id = bench.add(JobOptions::default()).await;
    bench.take("t").await;
    assert!(matches!(bench.queue.remove(&id).await, Err(QueueError::Locked(_))));
    let () = bench.command(&["SET", "bull:v:wait", "not a list"]).await;
    let _: i64 = bench.command(&["DEL", &format!("bull:v:{id}:lock")]).await;
    assert!(matches!(bench.queue.remove(&id).await, Err(QueueError::WrongType(key)) if key == "bull:v:wait"));
    for reserved in ["wait", "meta", "id"] {
        assert!(matches!(bench.queue.remove(reserved).await, Err(QueueError::InvalidId { .. })));
    }
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { priority: 1, ..JobOptions::default() }).await;
    bench.add(JobOptions { delay: 1000, ..JobOptions::default() }).await;
    let mut ear = bench.ear().await;
    for id in ["1", "2"] {
        assert_eq!(bench.queue.request_cancel(id, "anna").await.unwrap(), CancelOutcome::Cancelled);
        assert_eq!(bench.places(id).await, ["failed"]);
        assert_eq!(bench.queue.job(id).await.unwrap().unwrap().failed_reason.as_deref(), Some("cancelled by anna"));
        let told = json!({"jobId": id, "val": "cancelled by anna"}).to_string();
        assert_eq!(ear.heard().await, [("bull:v:failed".to_owned(), told)]);
    }
    assert!(bench.zset("priority").await.is_empty());
    assert_eq!(bench.queue.request_cancel("1", "anna").await.unwrap(), CancelOutcome::AlreadyFinished);
    assert!(matches!(bench.queue.request_cancel("3", "anna").await, Err(QueueError::Missing(_))));
}

#[tokio::test]
async fn a_running_job_is_told_to_cancel_and_is_not_tried_again() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions { attempts: 5, ..JobOptions::default() }).await;
    let job = bench.take("t").await;
    assert_eq!(bench.queue.request_cancel("1", "anna").await.unwrap(), CancelOutcome::Requested);
    assert_eq!(bench.queue.renew("1", "t", LOCK).await.unwrap(), Renewed::HeldButCancelRequested("anna".into()));
    let life: i64 = bench.command(&["PTTL", "bullwork:cancel:bull:v:1"]).await;
    assert!(life > 0, "the order does not stay for ever");
    assert_eq!(bench.queue.fail(&job, "t", &failure()).await.unwrap(), Failed::Final);
    assert_eq!(bench.places("1").await, ["failed"]);

    bench.queue.retry("1").await.unwrap();
    bench.take("t").await;
    assert_eq!(bench.queue.renew("1", "t", LOCK).await.unwrap(), Renewed::Held, "the order ended with the run");
}

#[tokio::test]
async fn log_lines_progress_and_data_need_the_job() {
    let mut bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let mut ear = bench.ear().await;
    assert_eq!(bench.queue.log("1", &["a".into(), "b".into()]).await.unwrap(), 2);
    assert_eq!(bench.queue.log("1", &["c".into()]).await.unwrap(), 3);
    assert_eq!(bench.queue.logs("1", 0, -1).await.unwrap(), ["a", "b", "c"]);
    assert_eq!(bench.queue.logs("1", -1, -1).await.unwrap(), ["c"]);
    bench.queue.set_progress("1", &json!({"done": 3})).await.unwrap();
    bench.queue.update_data("1", &json!({"x": 1})).await.unwrap();
    let told = json!({"jobId": "1", "progress": {"done": 3}}).to_string();
    assert_eq!(ear.heard().await, [("bull:v:progress".to_owned(), told)]);
    let job = bench.queue.job("1").await.unwrap().unwrap();
    assert_eq!((job.progress, job.data), (Some(json!({"done": 3})), json!({"x": 1})));

    let before = bench.dump().await;
    assert!(matches!(bench.queue.log("2", &["a".into()]).await, Err(QueueError::Missing(_))));
    assert!(matches!(bench.queue.set_progress("2", &json!(1)).await, Err(QueueError::Missing(_))));
    assert!(matches!(bench.queue.update_data("2", &json!(1)).await, Err(QueueError::Missing(_))));
    assert_eq!(bench.dump().await, before);
}

#[tokio::test]
async fn only_the_newest_ten_thousand_log_lines_stay() {
    let bench = Bench::start().await;
    bench.add(JobOptions::default()).await;
    let lines: Vec<String> = (0..10_500).map(|n| n.to_string()).collect();
    assert_eq!(bench.queue.log("1", &lines).await.unwrap(), 10_000);
    assert_eq!(bench.queue.logs("1", 0, 0).await.unwrap(), ["500"]);
}

#[tokio::test]
async fn each_state_is_told_by_name() {
    let mut bench = Bench::start().await;
    let id = bench.add(JobOptions { delay: 1000, ..JobOptions::default() }).await;
    let mut seen = Vec::new();
    seen.push(bench.queue.state(&id).await.unwrap());
    bench.queue.promote(&id).await.unwrap();
    seen.push(bench.queue.state(&id).await.unwrap());
    let job = bench.take("t").await;
    seen.push(bench.queue.state(&id).await.unwrap());
    bench.queue.fail(&job, "t", &failure()).await.unwrap();
    seen.push(bench.queue.state(&id).await.unwrap());
    let _: i64 = bench.command(&["DEL", "bull:v:failed"]).await;
    seen.push(bench.queue.state(&id).await.unwrap());
    seen.push(bench.queue.state("9").await.unwrap());
    let names: Vec<_> = seen.iter().map(|state| state.map_or("none", State::name)).collect();
    assert_eq!(names, ["delayed", "waiting", "active", "failed", "stuck", "none"]);
}

#[tokio::test]
async fn a_queue_that_is_not_obliterated_tells_how_many_jobs_run() {
    let bench = Bench::start().await;
    for (token, words) in [("a", "a job of the queue is being run;"), ("b", "2 jobs of the queue are being run;")] {
        bench.add(JobOptions::default()).await;
        bench.take(token).await;
        let error = bench.queue.obliterate(false).await.unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}
