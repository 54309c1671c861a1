//! Schedules against a real Redis.

use std::time::Duration;

use bullwork::clock::{Clock, Millis};
use bullwork::queue::{Admission, Job, Queue, State, Taken};
use bullwork::redis::Redis;
use bullwork::schedule::{self, Declared, Schedule};
use bullwork::worker::RetryPolicy;
use serde_json::json;

use crate::support::redis::RedisServer;

const POLICY: RetryPolicy = RetryPolicy { attempts: 4, base: Duration::from_secs(1), keep_completed: 10, keep_failed: 10 };
/// 2026-11-20T12:00:00Z.
const NOON: Millis = 1_795_176_000_000;
const HOUR: Millis = 3_600_000;
/// The next 05:10 in Paris after [`NOON`], which is 04:10Z.
const NEXT_MORNING: Millis = NOON + 16 * HOUR + 10 * 60_000;

fn queue(redis: &RedisServer, clock: &Clock) -> Queue {
    Queue::new(Redis::new(&redis.url()).unwrap(), "bull", "Replication queue", clock.clone())
}

fn nightly(cron: &str) -> Schedule {
    Schedule { cron: cron.to_owned(), time_zone: "Europe/Paris".to_owned(), skip_overlap: false, skip_missed: false }
}

async fn reconcile(queue: &Queue, schedule: Option<Schedule>) {
    schedule::reconcile(&Declared { queue: queue.clone(), schedule }, &POLICY).await.unwrap();
}

async fn delayed(queue: &Queue) -> Vec<Job> {
    queue.jobs(&[State::Delayed], 0, 100, true).await.unwrap()
}

async fn take(queue: &Queue) -> Option<Job> {
    queue.promote_due().await.unwrap();
    match queue.take("token", Duration::from_secs(60), Admission::Sequential).await.unwrap() {
        Taken::Job(job) => Some(*job),
        _ => None,
    }
}

#[tokio::test]
async fn the_declared_schedule_is_armed_once_however_many_schedulers_start() {
    let redis = RedisServer::start();
    let clock = Clock::manual(NOON);
    let (one, other) = (queue(&redis, &clock), queue(&redis, &clock));
    for _ in 0..10 {
        tokio::join!(reconcile(&one, Some(nightly("10 5 * * *"))), reconcile(&other, Some(nightly("10 5 * * *"))));
    }
    let runs = delayed(&one).await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].prev_millis(), Some(NEXT_MORNING));
    assert_eq!(runs[0].repeat_key(), Some("__default__:::Europe/Paris:10 5 * * *"));
    assert_eq!(runs[0].attempts(), 4);
}

#[tokio::test]
async fn a_changed_schedule_replaces_the_old_one() {
    let redis = RedisServer::start();
    let queue = queue(&redis, &Clock::manual(NOON));
    reconcile(&queue, Some(nightly("10 5 * * *"))).await;
    reconcile(&queue, Some(nightly("30 6 * * *"))).await;
    let entries = queue.schedules().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].key, "__default__:::Europe/Paris:30 6 * * *");
    let runs = delayed(&queue).await;
    assert_eq!(runs.len(), 1, "the old schedule's run is gone");
    assert_eq!(runs[0].prev_millis(), Some(NEXT_MORNING + 80 * 60_000));
    reconcile(&queue, None).await;
    assert!(
        queue.schedules().await.unwrap().is_empty() && delayed(&queue).await.is_empty(),
        "a schedule that is switched off is removed"
    );
}

#[tokio::test]
async fn taking_a_run_arms_the_next_slot_and_a_slot_runs_once() {
    let redis = RedisServer::start();
    let clock = Clock::manual(NOON);
    let queue = queue(&redis, &clock);
    reconcile(&queue, Some(nightly("10 5 * * *"))).await;
    for night in 0..3 {
        clock.set(NEXT_MORNING + night * 24 * HOUR + 50);
        let job = take(&queue).await.expect("the run is due");
        assert_eq!(job.prev_millis(), Some(NEXT_MORNING + night * 24 * HOUR));
        schedule::arm_next(&queue, &job).await.unwrap();
        schedule::arm_next(&queue, &job).await.unwrap();
        reconcile(&queue, Some(nightly("10 5 * * *"))).await;
        queue.complete(&job, "token", &json!(null), None).await.unwrap();
        assert!(take(&queue).await.is_none(), "the slot has run already");
        assert_eq!(delayed(&queue).await.len(), 1);
    }
}

#[tokio::test]
async fn a_run_missed_while_nothing_was_up_runs_once_late_or_is_skipped() {
    for skip_missed in [false, true] {
        let redis = RedisServer::start();
        let clock = Clock::manual(NOON);
        let queue = queue(&redis, &clock);
        let schedule = Schedule { skip_missed, ..nightly("10 5 * * *") };
        reconcile(&queue, Some(schedule.clone())).await;
        // Down for three nights.
        clock.set(NEXT_MORNING + 3 * 24 * HOUR - 5 * HOUR);
        reconcile(&queue, Some(schedule.clone())).await;
        let job = take(&queue).await.expect("the missed run is there");
        schedule::arm_next(&queue, &job).await.unwrap();
        let reason = schedule::reason_to_skip(&queue, Some(&schedule), &job).await.unwrap();
        assert_eq!(reason.is_some(), skip_missed);
        queue.complete(&job, "token", &json!(null), None).await.unwrap();
        assert!(take(&queue).await.is_none(), "three missed nights make one run");
        assert_eq!(delayed(&queue).await[0].prev_millis(), Some(NEXT_MORNING + 3 * 24 * HOUR));
    }
}

#[tokio::test]
async fn a_run_due_while_the_previous_one_runs_is_queued_or_skipped() {
    for skip_overlap in [false, true] {
        let redis = RedisServer::start();
        let clock = Clock::manual(NOON);
        let queue = queue(&redis, &clock);
        let schedule = Schedule { skip_overlap, ..nightly("10 5 * * *") };
        reconcile(&queue, Some(schedule.clone())).await;
        clock.set(NEXT_MORNING + 10);
        let long = take(&queue).await.expect("the run is due");
        schedule::arm_next(&queue, &long).await.unwrap();
        clock.set(NEXT_MORNING + 25 * HOUR);
        assert!(take(&queue).await.is_none(), "one at a time");
        queue.complete(&long, "token", &json!(null), None).await.unwrap();
        let second = take(&queue).await.expect("the overlapped run waits");
        let reason = schedule::reason_to_skip(&queue, Some(&schedule), &second).await.unwrap();
        assert_eq!(reason.is_some(), skip_overlap, "{reason:?}");
    }
}

#[tokio::test]
async fn a_dead_schedule_is_armed_again() {
    let redis = RedisServer::start();
    let queue = queue(&redis, &Clock::manual(NOON));
    reconcile(&queue, Some(nightly("10 5 * * *"))).await;
    let mut connection = redis.connection().await;
    // What Bull's `empty()` leaves: the schedule is listed, its run's hash is there, and nothing is delayed.
    redis::cmd("DEL").arg("bull:Replication queue:delayed").query_async::<()>(&mut connection).await.unwrap();
    reconcile(&queue, Some(nightly("10 5 * * *"))).await;
    assert_eq!(delayed(&queue).await.len(), 1);
}
