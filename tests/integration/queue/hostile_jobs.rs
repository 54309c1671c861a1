//! Jobs of every wrong shape: each operation does all of its work on them, or refuses by name.

use std::time::Duration;

use bullwork::queue::{Admission, CancelOutcome, Failed, Failure, JobOptions, State, Taken};
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};
use super::poison::{self, Poison};

const BASE: &str = "bull:v:";
const INTERVAL: Duration = Duration::from_secs(30);

async fn places(bench: &mut Bench, poison: &Poison) -> Vec<&'static str> {
    bench.places(&poison.id).await
}

/// Empties the server and puts the job into a list or set.
async fn put(bench: &mut Bench, poison: &Poison, place: &str) {
    let () = bench.command(&["FLUSHALL"]).await;
    bench.clock.set(NOW);
    poison.write(&mut bench.connection, BASE).await;
    let key = format!("{BASE}{place}");
    if ["wait", "paused", "active"].contains(&place) {
        let _: i64 = bench.command(&["LPUSH", &key, &poison.id]).await;
    } else {
        let _: i64 = bench.command(&["ZADD", &key, "1", &poison.id]).await;
    }
}

#[tokio::test]
async fn a_job_of_any_shape_is_taken_told_about_put_off_handed_back_and_completed() {
    let mut bench = Bench::start().await;
    for poison in poison::all() {
        let (name, id) = (&poison.name, &poison.id);
        put(&mut bench, &poison, "wait").await;
        let queue = bench.queue.clone();
        let job = bench.take("a").await;
        assert_eq!((&job.id, queue.state(id).await.unwrap()), (id, Some(State::Active)), "{name}");
        queue.set_progress(id, &json!(1)).await.unwrap();
        assert_eq!(queue.log(id, &["line".into()]).await.unwrap(), 1, "{name}");
        queue.renew(id, "a", LOCK).await.unwrap();
        queue.snooze(&job, "a", LOCK).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(places(&mut bench, &poison).await, ["delayed"], "{name}");
        queue.promote(id).await.unwrap();
        let job = bench.take("b").await;
        queue.hand_back(&job, "b").await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(places(&mut bench, &poison).await, ["wait"], "{name}");
        let job = bench.take("c").await;
        queue.update_data(id, &json!({"mended": true})).await.unwrap();
        queue.complete(&job, "c", &json!({"ok": 1}), None).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let left = places(&mut bench, &poison).await;
        let kept = bench.exists(id).await;
        assert_eq!(left, if kept { vec!["completed"] } else { vec![] }, "{name}");
        assert!(bench.list("active").await.is_empty() && !bench.exists(&format!("{id}:lock")).await, "{name}");
    }
}

#[tokio::test]
async fn a_job_of_any_shape_fails_is_retried_cancelled_and_removed() {
    let mut bench = Bench::start().await;
    for poison in poison::all() {
        let (name, id) = (&poison.name, &poison.id);
        put(&mut bench, &poison, "wait").await;
        let queue = bench.queue.clone();
        let job = bench.take("a").await;
        let failure = Failure { reason: "x".into(), stacktrace: "Error: x".into(), retry: true };
        let failed = queue.fail(&job, "a", &failure).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let place = match failed {
            Failed::Final if bench.exists(id).await => vec!["failed"],
            Failed::Final => continue,
            Failed::Delayed { .. } => vec!["delayed"],
            Failed::Requeued => vec!["wait"],
        };
        assert_eq!(places(&mut bench, &poison).await, place, "{name}");
        put(&mut bench, &poison, "failed").await;
        queue.retry(id).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(places(&mut bench, &poison).await, ["wait"], "{name}");
        assert_eq!(queue.request_cancel(id, "me").await.unwrap(), CancelOutcome::Cancelled, "{name}");
        put(&mut bench, &poison, "failed").await;
        assert_eq!(queue.retry_all_failed().await.unwrap(), 1, "{name}");
        queue.remove(id).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!bench.exists(id).await && places(&mut bench, &poison).await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_job_of_any_shape_is_promoted_recovered_shown_and_cleaned() {
    let mut bench = Bench::start().await;
    for poison in poison::all() {
        let (name, id) = (&poison.name, &poison.id);
        put(&mut bench, &poison, "delayed").await;
        let queue = bench.queue.clone();
        assert_eq!(queue.promote_due().await.unwrap(), None, "{name}");
        assert_eq!(places(&mut bench, &poison).await, ["wait"], "{name}");
        for state in [State::Waiting, State::Completed, State::Failed, State::Delayed, State::Paused] {
            let place = if state == State::Waiting { "wait" } else { state.name() };
            put(&mut bench, &poison, place).await;
            let shown = queue.jobs(&[state], 0, -1, true).await.unwrap();
            assert_eq!(shown.iter().map(|job| &job.id).collect::<Vec<_>>(), [id], "{name}");
            assert_eq!(queue.job(id).await.unwrap().as_ref(), shown.first(), "{name}");
            bench.clock.set(i64::MAX / 2);
            let cleaned = queue.clean(state, Duration::ZERO, None).await.unwrap();
            // Only a time that lies ahead keeps a job; that of an end or begin that nobody can read does not.
            if cleaned.is_empty() {
                queue.remove(id).await.unwrap();
            }
            assert!(!bench.exists(id).await && places(&mut bench, &poison).await.is_empty(), "{state} {name}");
        }
        for place in ["wait", "paused", "delayed"] {
            put(&mut bench, &poison, place).await;
            // What looks like the run of a schedule stays.
            let gone = usize::from(!id.starts_with("repeat:"));
            assert_eq!(queue.empty().await.unwrap().len(), gone, "{place} {name}");
        }
        put(&mut bench, &poison, "active").await;
        queue.recover_stalled(INTERVAL, 3).await.unwrap();
        let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
        let found = queue.recover_stalled(INTERVAL, 3).await.unwrap();
        assert_eq!(found.requeued.len() + found.failed.len(), 1, "{name}");
        let counter: Option<String> = bench.command(&["HGET", &format!("{BASE}{id}"), "stalledCounter"]).await;
        assert!(counter.is_none_or(|n| n.parse::<f64>().is_ok_and(|n| n >= 1.0)), "{name}");
        let kept = bench.exists(id).await;
        let place = if found.failed.is_empty() { "wait" } else { "failed" };
        assert_eq!(places(&mut bench, &poison).await, if kept { vec![place] } else { vec![] }, "{name}");
        queue.obliterate(true).await.unwrap();
        assert!(bench.dump().await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_retention_that_is_a_fraction_takes_only_its_own_job() {
    let mut bench = Bench::start().await;
    for keep in [json!(0.5), json!(0), json!({"count": 0.5})] {
        let () = bench.command(&["FLUSHALL"]).await;
        let _: i64 = bench.command(&["HSET", "bull:v:earlier", "opts", "{}"]).await;
        for set in ["failed", "completed"] {
            let _: i64 = bench.command(&["ZADD", &format!("bull:v:{set}"), "1", "earlier"]).await;
        }
        let opts = json!({"removeOnFail": keep, "removeOnComplete": keep}).to_string();
        let _: i64 = bench.command(&["HSET", "bull:v:1", "opts", &opts]).await;
        let _: i64 = bench.command(&["LPUSH", "bull:v:active", "1"]).await;
        let _: i64 = bench.command(&["SADD", "bull:v:stalled", "1"]).await;
        assert_eq!(bench.queue.recover_stalled(INTERVAL, 0).await.unwrap().failed, ["1"], "{keep}");
        let _: i64 = bench.command(&["HSET", "bull:v:2", "opts", &opts]).await;
        let _: i64 = bench.command(&["LPUSH", "bull:v:wait", "2"]).await;
        let job = bench.take("t").await;
        bench.queue.complete(&job, "t", &json!(1), None).await.unwrap();
        assert_eq!(bench.places("earlier").await, ["completed", "failed"], "{keep}");
        assert!(bench.exists("earlier").await && !bench.exists("1").await && !bench.exists("2").await, "{keep}");
    }
}

#[tokio::test]
async fn a_job_whose_stall_counter_is_rubbish_still_reaches_the_limit() {
    let mut bench = Bench::start().await;
    for counter in ["nan", "-1e300", "-inf", "x", ""] {
        let () = bench.command(&["FLUSHALL"]).await;
        bench.add(JobOptions::default()).await;
        let _: i64 = bench.command(&["HSET", "bull:v:1", "stalledCounter", counter]).await;
        for stall in 0..3 {
            bench.take("t").await;
            let _: i64 = bench.command(&["DEL", "bull:v:1:lock", "bull:v:stalled-check"]).await;
            bench.queue.recover_stalled(INTERVAL, 2).await.unwrap();
            let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
            let found = bench.queue.recover_stalled(INTERVAL, 2).await.unwrap();
            assert_eq!((found.requeued.len(), found.failed.len()), if stall < 2 { (1, 0) } else { (0, 1) }, "`{counter}`");
        }
    }
}

#[tokio::test]
async fn a_job_whose_id_is_no_utf8_is_listed_with_the_others() {
    let mut bench = Bench::start().await;
    let id = &b"odd \xff"[..];
    let () = redis::pipe()
        .hset(&b"bull:v:odd \xff"[..], "opts", "{}")
        .ignore()
        .rpush("bull:v:wait", id)
        .ignore()
        .query_async(&mut bench.connection)
        .await
        .unwrap();
    assert_eq!(bench.queue.take("t", LOCK, Admission::Any).await.unwrap(), Taken::Empty);
    bench.add(JobOptions::default()).await;
    let job = bench.take("t").await;
    bench.queue.fail(&job, "t", &Failure::new("out of paper")).await.unwrap();
    let listed = bench.queue.jobs(&[State::Failed], 0, -1, false).await.unwrap();
    assert_eq!((listed.len() as u64, bench.queue.counts().await.unwrap().failed), (2, 2));
    let odd = listed.iter().find(|job| job.id == "odd \u{fffd}").expect("it is shown with a replacement character");
    assert!(odd.failed_reason.as_deref().is_some_and(|reason| reason.contains("no UTF-8")));
    // Nothing can name it, but what goes by state reaches it.
    bench.clock.set(NOW + 60_000);
    assert_eq!(bench.queue.clean(State::Failed, Duration::ZERO, None).await.unwrap().len(), 2);
}
