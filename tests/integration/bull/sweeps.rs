//! Pausing and removing many jobs, by one side under the eyes of the other.

use std::time::Duration;

use bullwork::queue::{Repeat, State};
use serde_json::{Value, json};

use super::peer::{Both, QUEUE, SIDES, SOON, Side, id_of, stop};
use crate::support::eventually;

async fn keys(both: &Both) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut both.redis.connection().await).await.unwrap();
    for key in &mut keys {
        *key = key.strip_prefix(&format!("bull:{QUEUE}:")).unwrap_or(key).to_owned();
    }
    keys.sort();
    keys
}

async fn pause(both: &Both, by: Side) {
    match by {
        Side::Ours => both.ours.pause().await.unwrap(),
        Side::Bull => drop(both.bull.queue("pause", json!([])).await),
    }
}

async fn resume(both: &Both, by: Side) {
    match by {
        Side::Ours => both.ours.resume().await.unwrap(),
        Side::Bull => drop(both.bull.queue("resume", json!([])).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_one_side_paused_is_paused_for_both_until_either_resumes_it() {
    for pauser in SIDES {
        for resumer in SIDES {
            let Some(both) = Both::start().await else { return };
            both.bull.queue("listen", json!([])).await;
            let before = both.add(Side::Ours, json!({}), json!({"delay": 300})).await;
            let ours = both.work(Side::Ours, 1).await;
            let running = both.add(Side::Ours, json!({"ms": 1000}), json!({})).await;
            both.reaches(&running, "active").await;
            both.work(Side::Bull, 1).await;
            let waiting = both.add(Side::Bull, json!({"ms": 1000}), json!({})).await;
            both.reaches(&waiting, "active").await;
            pause(&both, pauser).await;
            both.hears(&json!(["paused"])).await;
            assert_eq!((both.ours.is_paused().await.unwrap(), both.bull.queue("isPaused", json!([])).await), (true, json!(true)));
            let added =
                [both.add(Side::Ours, json!({}), json!({})).await, both.add(Side::Bull, json!({}), json!({"priority": 1})).await];
            // What runs ends, what is due joins the line, and nothing is taken by either.
            both.reaches(&running, "completed").await;
            both.reaches(&waiting, "completed").await;
            both.reaches(&before, "paused").await;
            for id in &added {
                assert_eq!(both.state(id).await, "paused");
            }
            assert_eq!((both.counts().await.paused, both.counts().await.waiting), (3, 0));
            resume(&both, resumer).await;
            both.hears(&json!(["resumed"])).await;
            for id in added.iter().chain([&before]) {
                both.reaches(id, "completed").await;
            }
            assert_eq!(
                (both.ours.is_paused().await.unwrap(), both.bull.queue("isPaused", json!([])).await),
                (false, json!(false))
            );
            assert_eq!(both.counts().await.completed, 5);
            stop(ours).await;
        }
    }
}

async fn clean(both: &Both, by: Side, state: State, grace: u64, limit: Option<usize>) -> Vec<String> {
    match by {
        Side::Ours => both.ours.clean(state, Duration::from_millis(grace), limit).await.unwrap(),
        Side::Bull => {
            let word = if state == State::Waiting { "wait" } else { state.name() };
            let removed = both.bull.queue("clean", json!([grace, word, limit.unwrap_or(0)])).await;
            removed.as_array().unwrap().iter().map(|id| id.as_str().unwrap_or_default().to_owned()).collect()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_cleans_finished_waiting_and_delayed_jobs_of_the_other() {
    for (cleaner, adder) in super::peer::DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let worker = both.work(adder, 2).await;
        for n in 0..10 {
            both.add(adder, json!({"fail": n % 2, "log": "x"}), json!({})).await;
        }
        eventually("they ended", SOON, async || {
            let counts = both.ours.counts().await.unwrap();
            (counts.completed, counts.failed) == (5, 5)
        })
        .await;
        // Paused, so that the workers leave what is added now; clean then finds it in its line.
        stop(worker).await;
        pause(&both, adder).await;
        for _ in 0..4 {
            both.add(adder, json!({}), json!({"priority": 2})).await;
            both.add(adder, json!({}), json!({"delay": 600_000})).await;
        }
        // Nothing is as old as that.
        for state in [State::Completed, State::Failed, State::Paused, State::Delayed] {
            assert_eq!(clean(&both, cleaner, state, 600_000, None).await, Vec::<String>::new());
        }
        let newest = |job: bullwork::queue::Job| job.finished_on.unwrap_or(job.timestamp);
        for (state, count) in [(State::Completed, 5), (State::Failed, 5), (State::Paused, 4), (State::Delayed, 4)] {
            let jobs = both.ours.jobs(&[state], 0, -1, true).await.unwrap();
            assert_eq!(jobs.len(), count);
            // Older than one millisecond.
            let last = jobs.into_iter().map(newest).max().unwrap();
            eventually("time passes", SOON, async || both.ours.clock().now() > last + 1).await;
            if state != State::Delayed {
                // Bull's own limited clean of delayed jobs finds none.
                assert_eq!(clean(&both, cleaner, state, 0, Some(2)).await.len(), 2, "{cleaner:?} {state}");
            }
            clean(&both, cleaner, state, 0, None).await;
            assert_eq!(both.ours.jobs(&[state], 0, -1, true).await.unwrap(), [], "{cleaner:?} {state}");
        }
        both.counts().await;
        let left: Vec<String> = keys(&both)
            .await
            .into_iter()
            .filter(|key| !["id", "meta", "meta-paused", "stalled-check"].contains(&key.as_str()))
            .collect();
        assert!(left.is_empty(), "{cleaner:?} leaves {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_empties_what_the_other_added_and_ours_keeps_schedules() {
    for (emptier, adder) in super::peer::DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        for n in 0..5 {
            both.add(adder, json!({}), json!({"priority": n})).await;
            both.add(adder, json!({}), json!({"delay": 600_000})).await;
        }
        let schedule = json!(["tick", {}, {"repeat": {"every": 3_600_000}}]);
        both.bull.queue("add", schedule).await;
        match emptier {
            Side::Ours => assert_eq!(both.ours.empty().await.unwrap().len(), 10),
            Side::Bull => drop(both.bull.queue("empty", json!([])).await),
        }
        let counts = both.counts().await;
        assert_eq!((counts.waiting, counts.delayed), (0, u64::from(emptier == Side::Ours)));
        // Both still name the schedule; only ours left it alive.
        let theirs = both.bull.queue("getRepeatableJobs", json!([])).await;
        assert_eq!((theirs.as_array().unwrap().len(), both.ours.schedules().await.unwrap().len()), (1, 1));
        // A schedule that Bull's `empty` killed lives again when ours arms it.
        let entry = both.ours.schedules().await.unwrap().remove(0);
        let (repeat, options) = (Repeat::every(3_600_000), bullwork::queue::JobOptions::default());
        both.ours.arm(&repeat, "tick", &json!({}), &options, entry.next, None).await.unwrap();
        assert_eq!(both.counts().await.delayed, 1, "after {emptier:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_obliterates_what_the_other_left_unless_a_job_runs() {
    for (obliterator, adder) in super::peer::DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let worker = both.work(adder, 3).await;
        for n in 0..6 {
            both.add(adder, json!({"fail": n % 2, "log": "x", "progress": 1}), json!({"attempts": 1})).await;
            both.add(adder, json!({}), json!({"delay": 600_000})).await;
        }
        eventually("they ended", SOON, async || {
            let counts = both.ours.counts().await.unwrap();
            (counts.completed, counts.failed) == (3, 3)
        })
        .await;
        both.bull.queue("add", json!(["tick", {}, {"repeat": {"cron": "0 3 * * *"}}])).await;
        let running = both.add(adder, json!({"hang": true}), json!({})).await;
        both.reaches(&running, "active").await;
        let before = both.counts().await;
        match obliterator {
            Side::Ours => assert!(both.ours.obliterate(false).await.is_err()),
            Side::Bull => assert!(!both.bull.refuses("obliterate", json!([])).await.is_empty()),
        }
        let after = both.counts().await;
        assert_eq!((after.completed, after.failed, after.delayed, after.active), (3, 3, before.delayed, 1), "{obliterator:?}");
        // Bull pauses before it looks.
        resume(&both, obliterator).await;
        match obliterator {
            Side::Ours => both.ours.obliterate(true).await.unwrap(),
            Side::Bull => drop(both.bull.queue("obliterate", json!([{"force": true}])).await),
        }
        drop(worker);
        let left = keys(&both).await;
        // The worker that lost its job looks for stalled jobs again and again.
        let left: Vec<_> = left.into_iter().filter(|key| key != "stalled-check").collect();
        assert!(left.is_empty(), "{obliterator:?} leaves {left:?}");
        // The queue can be used again at once, from its first id.
        assert_eq!(both.add(obliterator, json!({}), json!({})).await, "1");
        assert_eq!(id_of(&both.bull.queue("getJob", json!(["1"])).await), "1");
        assert_eq!(both.bull.queue("getRepeatableJobs", json!([])).await, Value::Array(Vec::new()));
    }
}
