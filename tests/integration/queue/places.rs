//! Whatever is done in whatever order, a job is in exactly one place.

use std::collections::BTreeMap;
use std::time::Duration;

use bullwork::queue::{Admission, Failure, Job, JobOptions, Queue, Taken};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};

/// One thing that a producer, worker or operator does; `n` chooses the job.
#[derive(Clone, Copy, Debug)]
enum Act {
    Add {
        delay: i64,
        priority: u32,
        lifo: bool,
    },
    Take {
        sequential: bool,
    },
    Complete(usize),
    Fail(usize),
    HandBack(usize),
    Snooze(usize),
    /// The worker dies: its lock is gone, the job is still active.
    Die(usize),
    Recover,
    PromoteDue,
    Promote(usize),
    Retry(usize),
    RetryAll,
    Remove(usize),
    Cancel(usize),
    Pause,
    Resume,
    Later(i64),
}

fn act() -> impl Strategy<Value = Act> {
    let n = 0_usize..8;
    prop_oneof![
        4 => (0_i64..3, 0_u32..3, any::<bool>()).prop_map(|(d, priority, lifo)| Act::Add { delay: d * 500, priority, lifo }),
        6 => any::<bool>().prop_map(|sequential| Act::Take { sequential }),
        2 => n.clone().prop_map(Act::Complete),
        3 => n.clone().prop_map(Act::Fail),
        1 => n.clone().prop_map(Act::HandBack),
        1 => n.clone().prop_map(Act::Snooze),
        2 => n.clone().prop_map(Act::Die),
        3 => Just(Act::Recover),
        2 => Just(Act::PromoteDue),
        1 => n.clone().prop_map(Act::Promote),
        2 => n.clone().prop_map(Act::Retry),
        1 => Just(Act::RetryAll),
        1 => n.clone().prop_map(Act::Remove),
        1 => n.prop_map(Act::Cancel),
        1 => Just(Act::Pause),
        2 => Just(Act::Resume),
        2 => (1_i64..2000).prop_map(Act::Later),
    ]
}

/// Does one thing. A refusal is a fine answer: what counts is what Redis holds then.
async fn perform(bench: &mut Bench, runs: &mut Vec<(Job, String)>, now: &mut i64, step: usize, act: Act) {
    let queue: Queue = bench.queue.clone();
    let id = |n: usize| (n + 1).to_string();
    match act {
        Act::Add { delay, priority, lifo } => {
            bench.add(JobOptions { delay, priority, lifo, attempts: 3, ..JobOptions::default() }).await;
        }
        Act::Take { sequential } => {
            let admission = if sequential { Admission::Sequential } else { Admission::Any };
            let token = format!("run {step}");
            if let Taken::Job(job) = queue.take(&token, LOCK, admission).await.expect("redis answers") {
                runs.push((*job, token));
            }
        }
        Act::Die(n) => {
            let _: i64 = bench.command(&["DEL", &format!("bull:v:{}:lock", id(n))]).await;
        }
        Act::Recover => {
            let _: i64 = bench.command(&["DEL", "bull:v:stalled-check"]).await;
            queue.recover_stalled(Duration::from_secs(30), 2).await.expect("redis answers");
        }
        Act::Complete(n) | Act::Fail(n) | Act::HandBack(n) | Act::Snooze(n) => {
            // Runs are never forgotten, so ended and stale ones try again.
            let Some((job, token)) = runs.get(n % runs.len().max(1)) else { return };
            let failure = Failure { reason: "x".into(), stacktrace: String::new(), retry: true };
            let _ = match act {
                Act::Complete(_) => queue.complete(job, token, &json!(1), None).await.map(drop),
                Act::Fail(_) => queue.fail(job, token, &failure).await.map(drop),
                Act::HandBack(_) => queue.hand_back(job, token).await,
                _ => queue.snooze(job, token, Duration::from_millis(300)).await,
            };
        }
        Act::PromoteDue => drop(queue.promote_due().await.expect("redis answers")),
        Act::Promote(n) => drop(queue.promote(&id(n)).await),
        Act::Retry(n) => drop(queue.retry(&id(n)).await),
        Act::RetryAll => drop(queue.retry_all_failed().await.expect("redis answers")),
        Act::Remove(n) => drop(queue.remove(&id(n)).await),
        Act::Cancel(n) => drop(queue.request_cancel(&id(n), "me").await),
        Act::Pause => queue.pause().await.expect("redis answers"),
        Act::Resume => queue.resume().await.expect("redis answers"),
        Act::Later(ms) => {
            *now += ms;
            bench.clock.set(*now);
        }
    }
}

async fn check(bench: &mut Bench) -> Result<(), String> {
    let keys: Vec<String> = bench.command(&["KEYS", "bull:v:[0-9]*"]).await;
    let jobs: Vec<String> =
        keys.iter().filter_map(|key| key.strip_prefix("bull:v:")).filter(|id| !id.contains(':')).map(str::to_owned).collect();
    let mut held = BTreeMap::new();
    for id in &jobs {
        let places = bench.places(id).await;
        if places.len() != 1 {
            return Err(format!("job {id} is in {places:?}"));
        }
        held.insert(id.clone(), places[0]);
    }
    let counts = bench.queue.counts().await.expect("redis answers");
    let listed = counts.waiting + counts.active + counts.completed + counts.failed + counts.delayed + counts.paused;
    if listed != jobs.len() as u64 {
        return Err(format!("{listed} ids are listed, {} jobs exist: {held:?}", jobs.len()));
    }
    for key in keys.iter().filter_map(|key| key.strip_prefix("bull:v:")?.strip_suffix(":lock")) {
        if held.get(key) != Some(&"active") {
            return Err(format!("job {key} is locked, but {:?}", held.get(key)));
        }
    }
    let paused = bench.queue.is_paused().await.expect("redis answers");
    if paused && counts.waiting > 0 || !paused && counts.paused > 0 {
        return Err(format!("paused is {paused}, but {counts:?}"));
    }
    Ok(())
}

#[test]
fn a_job_is_in_exactly_one_place_whatever_is_done() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bench = runtime.block_on(Bench::start());
    let bench = std::cell::RefCell::new(bench);
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() });
    runner
        .run(&prop::collection::vec(act(), 1..80), |acts| {
            let mut bench = bench.borrow_mut();
            runtime.block_on(async {
                let () = bench.command(&["FLUSHALL"]).await;
                let (mut runs, mut now) = (Vec::new(), NOW);
                bench.clock.set(now);
                for (step, act) in acts.into_iter().enumerate() {
                    perform(&mut bench, &mut runs, &mut now, step, act).await;
                    check(&mut bench).await.map_err(|why| TestCaseError::fail(format!("after {act:?}: {why}")))?;
                }
                Ok(())
            })
        })
        .expect("no sequence breaks it");
}
