//! The whole night by real processes: production copied into a warehouse through the queues, with
//! workers killed at every step.
//!
//! `BULLWORK_CHAOS=1` (scripts/chaos) adds kills at random moments to the chosen ones.

mod night;

use std::time::Duration;

use nix::sys::signal::Signal;

use night::{Night, QUEUES};

const WHOLE_NIGHT: Duration = Duration::from_secs(120);

/// Every effect is there once, and no job is in two lists or in none.
async fn assert_whole(night: &Night) {
    night.assert_copied().await;
    night.assert_learning_content().await;
    assert_eq!(night.lcms_and_hooks.notified(), 1, "one notification of one night");
    night.assert_no_job_lost_or_doubled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_in_the_first_queue_fills_the_warehouse_and_notifies() {
    let night = Night::start().await;
    let worker = night.background();
    night.restart("full-replication").await;
    night.ends(&worker, WHOLE_NIGHT).await;
    assert_whole(&night).await;
    for (queue, completed) in QUEUES.iter().zip([1, 1, 1, 1]) {
        let counts = night.queue(queue).counts().await.unwrap();
        assert_eq!((counts.completed, counts.failed, counts.active), (completed, 0, 0), "{queue}");
    }
    // Day two: the source has grown, and everything is there already.
    night.grow().await;
    night.lcms_and_hooks.forget();
    night.restart("full-replication").await;
    night.ends(&worker, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_it_waits_for_the_target_loses_nothing() {
    let night = Night::start().await;
    let holder = night.hold_target_lock().await;
    let worker = night.background();
    night.restart("full-replication").await;
    worker.prints("waiting for the target").await;
    worker.kill();
    drop(holder);
    let next = night.background();
    night.ends(&next, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_copy_loses_nothing() {
    let night = Night::start().await;
    let stopper = night.block_copying().await;
    let worker = night.background();
    night.restart("full-replication").await;
    night.copying_is_blocked().await;
    worker.kill();
    drop(stopper);
    let next = night.background();
    night.ends(&next, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_the_work_and_its_acknowledgement_loses_nothing() {
    let night = Night::start().await;
    let stopper = night.block_copying().await;
    let worker = night.background();
    night.restart("full-replication").await;
    night.copying_is_blocked().await;
    // From here on Redis takes no writes: the copy ends, but the job cannot be completed.
    night.pause_redis_writes(Duration::from_secs(60)).await;
    drop(stopper);
    worker.prints("enrichment.add - Ended").await;
    worker.kill();
    night.resume_redis_writes().await;
    let next = night.background();
    night.ends(&next, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_two_jobs_loses_nothing() {
    let night = Night::start().await;
    let worker = night.workers(&["full-replication"]);
    night.restart("full-replication").await;
    worker.prints("Completed job in Replication queue").await;
    worker.kill();
    let counts = night.queue(QUEUES[1]).counts().await.unwrap();
    assert_eq!(counts.waiting, 1, "the successor came with the completion");
    let next = night.background();
    night.ends(&next, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_mid_copy_hands_the_job_back_in_time_with_its_attempt() {
    let night = Night::start().await;
    let stopper = night.block_copying().await;
    let mut worker = night.background();
    let id = night.restart("full-replication").await;
    night.copying_is_blocked().await;
    let asked = std::time::Instant::now();
    worker.signal(Signal::SIGTERM);
    let status = worker.exits(Duration::from_secs(25)).await;
    assert!(status.success(), "exit {status:?} after {:?}: {}", asked.elapsed(), worker.output());
    let queue = night.queue(QUEUES[0]);
    assert_eq!(queue.state(&id).await.unwrap(), Some(bullwork::queue::State::Waiting));
    let job = queue.job(&id).await.unwrap().unwrap();
    assert_eq!((job.attempts_made, job.stalled_counter), (0, 0));
    assert!(worker.children().is_empty(), "children are gone");
    night.assert_no_session_left().await;
    drop(stopper);
    let next = night.background();
    night.ends(&next, WHOLE_NIGHT).await;
    assert_whole(&night).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backgrounds_at_once_make_one_night() {
    let night = Night::start().await;
    let (one, other) = (night.background(), night.background());
    night.restart("full-replication").await;
    night.ends(&one, WHOLE_NIGHT).await;
    assert_whole(&night).await;
    let starts: usize = [&one, &other].iter().map(|w| w.output().matches("Starting job in Replication queue").count()).sum();
    assert_eq!(starts, 1);
    let repeats = night.queue(QUEUES[0]).schedules().await.unwrap();
    assert_eq!(repeats.len(), 1, "two schedulers, one schedule");
    assert_eq!(night.queue(QUEUES[0]).counts().await.unwrap().delayed, 1, "one run for its slot");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_crash_in_mid_run_cost_an_attempt_and_nothing_else() {
    let mut night = Night::start().await;
    let stopper = night.block_copying().await;
    let worker = night.background();
    let id = night.restart("full-replication").await;
    night.copying_is_blocked().await;
    night.crash_databases();
    drop(stopper);
    worker.prints("Failed job in Replication queue").await;
    night.restart_databases().await;
    night.ends(&worker, WHOLE_NIGHT).await;
    assert_whole(&night).await;
    let job = night.queue(QUEUES[0]).job(&id).await.unwrap().unwrap();
    assert!(job.attempts_made >= 1, "the broken run was an attempt");
    assert!(!job.failed_reason.unwrap().contains("horse"), "no password in the reason");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_in_mid_run_loses_nothing() {
    let mut night = Night::start().await;
    let stopper = night.block_copying().await;
    let worker = night.background();
    let id = night.restart("full-replication").await;
    night.copying_is_blocked().await;
    // As if Redis ended between a look for the stalled and the next renewal, and came back after the lock's time.
    night.mark_stalled(&id).await;
    night.redis.kill();
    worker.prints("renewing the lock of job").await;
    tokio::time::sleep(night::LOCK).await;
    drop(stopper);
    worker.prints("enrichment.add - Ended").await;
    night.redis.restart();
    night.ends(&worker, WHOLE_NIGHT).await;
    assert_whole(&night).await;
    let starts = worker.output().matches("Starting job in Replication queue").count();
    assert_eq!(starts, 1, "the run went on and was settled afterwards: {}", worker.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing() {
    let rounds = if std::env::var_os("BULLWORK_CHAOS").is_some() { 25 } else { 3 };
    let night = Night::start().await;
    night.restart("full-replication").await;
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    for round in 0..rounds {
        let worker = night.background();
        let wait = Duration::from_millis(u64::from(seed.wrapping_mul(2_654_435_761).rotate_left(round) % 4_000));
        tokio::time::sleep(wait).await;
        worker.kill();
    }
    let last = night.background();
    night.ends(&last, WHOLE_NIGHT).await;
    night.assert_copied().await;
    night.assert_learning_content().await;
    night.assert_no_job_lost_or_doubled().await;
    // A worker killed after the call and before its job was completed calls again: at least once.
    assert!(night.lcms_and_hooks.notified() >= 1);
}
