//! The life of a job that one side adds and the other runs: each test once in either direction.

use bullwork::queue::{JobOptions, NewJob};
use serde_json::{Value, json};

use super::peer::{Both, DIRECTIONS, SIDES, SOON, Side, id_of, stop};
use crate::support::eventually;

fn boom(times: u32, attempts: u32, backoff: &Value) -> (Value, Value) {
    (json!({"fail": times}), json!({"attempts": attempts, "backoff": backoff}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_added_by_one_side_is_run_by_the_other_and_looks_the_same_to_both() {
    for (adder, runner) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let data = json!({"text": "naïve ✓ \u{1F980} \"quoted\" \\", "progress": {"step": 3}, "log": "a line\nand more", "list": [1, null, 2.5]});
        let options =
            json!({"jobId": "custom: 1", "removeOnFail": 5, "timeout": 30000, "stackTraceLimit": 2, "own": {"kept": true}});
        let id = both.add(adder, data.clone(), options).await;
        assert_eq!((id.as_str(), both.state(&id).await.as_str()), ("custom: 1", "waiting"), "{adder:?}");
        let waiting = both.job(&id).await;
        assert_eq!((&waiting.data, &waiting.opts["own"]), (&data, &json!({"kept": true})));
        let worker = both.work(runner, 1).await;
        both.reaches(&id, "completed").await;
        let done = both.job(&id).await;
        let by = if runner == Side::Ours { "ours" } else { "bull" };
        assert_eq!(done.return_value, Some(json!({"by": by})));
        assert_eq!((done.progress, done.attempts_made), (Some(json!({"step": 3})), 0));
        let logs = json!({"logs": ["a line\nand more"], "count": 1});
        assert_eq!(both.bull.queue("getJobLogs", json!([id])).await, logs);
        assert_eq!(both.ours.logs(&id, 0, -1).await.unwrap(), ["a line\nand more"]);
        assert_eq!(both.counts().await.completed, 1);
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_waits_for_a_result_gets_it_from_the_other_side() {
    for (adder, runner) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let worker = both.work(runner, 1).await;
        let (fine, broken) = (json!({"ms": 50}), json!({"ms": 50, "fail": 1}));
        let (fine, broken) = (both.add(adder, fine, json!({})).await, both.add(adder, broken, json!({})).await);
        let by = if runner == Side::Ours { "ours" } else { "bull" };
        assert_eq!(both.bull.queue("finished", json!([fine])).await, json!({"result": {"by": by}}));
        assert_eq!(both.bull.queue("finished", json!([broken])).await, json!({"error": "boom 1"}));
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_is_repeated_after_its_back_off_by_whichever_side_runs_it() {
    for (adder, runner) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let mut all = Vec::new();
        // Number of tries that fail, tries, wait, shortest time from the first to the last try.
        for (fails, attempts, backoff, least) in [
            (2, 3, json!({"type": "fixed", "delay": 200}), 400),
            (2, 3, json!(150), 300),
            (2, 3, json!({"type": "exponential", "delay": 100}), 100 + 300),
            (3, 4, Value::Null, 0),
        ] {
            let (data, mut options) = boom(fails, attempts, &backoff);
            if backoff.is_null() {
                options = json!({"attempts": attempts});
            }
            all.push((both.add(adder, data, options).await, fails, least));
        }
        let worker = both.work(runner, 2).await;
        for (id, fails, least) in all {
            both.reaches(&id, "completed").await;
            let job = both.job(&id).await;
            assert_eq!((job.attempts_made, job.stacktrace.len()), (fails, fails as usize), "job {id} run by {runner:?}");
            assert_eq!(job.failed_reason, Some(format!("boom {fails}")));
            let took = job.finished_on.unwrap() - job.timestamp;
            assert!((least..least + 5000).contains(&took), "job {id} run by {runner:?} took {took} ms instead of {least}");
        }
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_failed_on_one_side_is_counted_by_the_other() {
    for (first, second) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let other = both.another_bull();
        let (data, options) = boom(2, 3, &json!({"type": "fixed", "delay": 1500}));
        let id = both.add(first, data, options).await;
        let worker = both.work(first, 1).await;
        both.reaches(&id, "delayed").await;
        assert_eq!(both.job(&id).await.attempts_made, 1);
        // The first side takes nothing more.
        stop(worker).await;
        both.bull.queue("pause", json!([true, true])).await;
        let worker = match second {
            Side::Ours => both.work(second, 1).await,
            Side::Bull => {
                other.queue("work", json!([1])).await;
                None
            }
        };
        both.reaches(&id, "completed").await;
        let job = both.job(&id).await;
        assert_eq!((job.attempts_made, job.failed_reason.as_deref()), (2, Some("boom 2")));
        let texts: Vec<_> = job.stacktrace.iter().map(|trace| trace.lines().next().unwrap_or_default()).collect();
        assert_eq!(texts, ["Error: boom 1", "Error: boom 2"]);
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_for_good_is_retried_by_hand_from_either_side() {
    for (adder, runner) in DIRECTIONS {
        for retrier in SIDES {
            let Some(both) = Both::start().await else { return };
            let worker = both.work(runner, 1).await;
            let mut ids = Vec::new();
            for _ in 0..3 {
                ids.push(both.add(adder, json!({"fail": 2}), json!({"attempts": 2})).await);
            }
            for id in &ids {
                both.reaches(id, "failed").await;
                let failed = both.job(id).await;
                assert_eq!((failed.attempts_made, failed.failed_reason.as_deref()), (2, Some("boom 2")), "{runner:?}");
            }
            match retrier {
                Side::Ours => both.ours.retry(&ids[0]).await.unwrap(),
                Side::Bull => drop(both.bull.job(&ids[0], "retry", json!([])).await),
            }
            both.reaches(&ids[0], "completed").await;
            let retried = both.job(&ids[0]).await;
            assert!(retried.retried_on.is_some() && retried.failed_reason.is_none(), "{retried:?}");
            assert_eq!((retried.attempts_made, retried.stacktrace.len()), (2, 2));
            match retrier {
                Side::Ours => assert_eq!(both.ours.retry_all_failed().await.unwrap(), 2),
                Side::Bull => drop(both.bull.queue("retryJobs", json!([])).await),
            }
            both.reaches(&ids[1], "completed").await;
            both.reaches(&ids[2], "completed").await;
            assert_eq!((both.counts().await.completed, both.counts().await.failed), (3, 0));
            stop(worker).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_job_is_run_when_it_is_due_or_at_once_when_either_side_promotes_it() {
    for (adder, runner) in DIRECTIONS {
        for promoter in SIDES {
            let Some(both) = Both::start().await else { return };
            let worker = both.work(runner, 1).await;
            let due = both.add(adder, json!({}), json!({"delay": 700})).await;
            let far = both.add(adder, json!({}), json!({"delay": 600_000})).await;
            assert_eq!((both.state(&far).await.as_str(), both.job(&far).await.delay), ("delayed", 600_000));
            both.reaches(&due, "completed").await;
            let job = both.job(&due).await;
            let waited = job.processed_on.unwrap() - job.timestamp;
            assert!((700..5000).contains(&waited), "{runner:?} ran it {waited} ms after {adder:?} added it");
            match promoter {
                Side::Ours => both.ours.promote(&far).await.unwrap(),
                Side::Bull => drop(both.bull.job(&far, "promote", json!([])).await),
            }
            both.reaches(&far, "completed").await;
            assert_eq!(both.job(&far).await.delay, 0);
            stop(worker).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_both_sides_stand_in_one_line_by_priority_and_age_with_lifo_first() {
    for runner in SIDES {
        let Some(both) = Both::start().await else { return };
        let jobs = [
            ("first", json!({})),
            ("low", json!({"priority": 9})),
            ("second", json!({})),
            ("high", json!({"priority": 1})),
            ("middle", json!({"priority": 5})),
            ("low too", json!({"priority": 9})),
            ("high too", json!({"priority": 1})),
            ("third", json!({})),
            ("middle too", json!({"priority": 5})),
            ("lifo", json!({"lifo": true})),
            ("lifo too", json!({"lifo": true})),
        ];
        for (n, (name, options)) in jobs.iter().enumerate() {
            let mut options = options.clone();
            options["jobId"] = json!(name);
            // In turn, and the reverse for the other runner.
            let adder = if (n % 2 == 0) == (runner == Side::Ours) { Side::Ours } else { Side::Bull };
            both.add(adder, json!({"note": "line"}), options).await;
        }
        let worker = both.work(runner, 1).await;
        eventually("all are done", SOON, async || both.ours.counts().await.unwrap().completed == 11).await;
        let expected =
            ["lifo too", "lifo", "high", "high too", "middle", "middle too", "low", "low too", "first", "second", "third"];
        assert_eq!(both.noted("line").await, expected, "run by {runner:?}");
        let left: usize = redis::Cmd::zcard(format!("bull:{}:priority", super::peer::QUEUE))
            .query_async(&mut both.redis.connection().await)
            .await
            .unwrap();
        assert_eq!(left, 0, "no priority is left behind");
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_added_in_bulk_by_one_side_are_run_in_order_by_the_other() {
    for (adder, runner) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let ids: Vec<String> = match adder {
            Side::Ours => {
                let jobs: Vec<NewJob> = (0..300)
                    .map(|n| NewJob {
                        name: format!("n{}", n % 3),
                        data: json!({"note": "bulk", "n": n}),
                        options: JobOptions::default(),
                    })
                    .collect();
                both.ours.add_many(&jobs).await.unwrap().iter().map(|added| added.id().to_owned()).collect()
            }
            Side::Bull => {
                let jobs: Vec<Value> = (0..300)
                    .map(|n| json!({"name": format!("n{}", n % 3), "data": {"note": "bulk", "n": n}, "opts": {}}))
                    .collect();
                both.bull.queue("addBulk", json!([jobs])).await.as_array().unwrap().iter().map(id_of).collect()
            }
        };
        assert_eq!(both.counts().await.waiting, 300);
        let worker = both.work(runner, 1).await;
        eventually("all are done", SOON, async || both.ours.counts().await.unwrap().completed == 300).await;
        assert_eq!(both.noted("bulk").await, ids, "run by {runner:?}");
        let last = both.job(&ids[299]).await;
        assert_eq!((last.name.as_str(), &last.data["n"]), ("n2", &json!(299)));
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_id_or_debounce_that_one_side_used_holds_against_the_other() {
    for (holder, other) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let listening = both.bull.queue("listen", json!([])).await;
        assert!(listening.is_null());
        let debounced = || json!({"debounce": {"id": "user 7"}});
        let first = both.add(holder, json!({"n": 1}), debounced()).await;
        assert_eq!(both.add(other, json!({"n": 2}), debounced()).await, first, "{other:?} is told who holds it");
        both.hears(&json!(["debounced", first])).await;
        both.add(holder, json!({"n": 1}), json!({"jobId": "j"})).await;
        assert_eq!(both.add(other, json!({"n": 2}), json!({"jobId": "j"})).await, "j");
        both.hears(&json!(["duplicated", "j"])).await;
        assert_eq!((both.counts().await.waiting, both.job("j").await.data["n"].clone()), (2, json!(1)));
        // Done by the other side, the debounce is over; the id is not.
        let worker = both.work(other, 1).await;
        both.reaches(&first, "completed").await;
        both.reaches("j", "completed").await;
        let again = both.add(other, json!({"n": 3}), debounced()).await;
        assert_ne!(again, first);
        both.reaches(&again, "completed").await;
        assert_eq!(both.add(holder, json!({"n": 3}), json!({"jobId": "j"})).await, "j");
        assert_eq!(both.job("j").await.data["n"], 1);

        // One that runs out by itself.
        let short = json!({"debounce": {"id": "short", "ttl": 300}, "delay": 600_000});
        let first = both.add(holder, json!({}), short.clone()).await;
        assert_eq!(both.add(other, json!({}), short.clone()).await, first);
        eventually("the debounce ran out", SOON, async || both.add(other, json!({}), short.clone()).await != first).await;
        stop(worker).await;
    }
}
