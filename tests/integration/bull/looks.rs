//! What both sides see of a queue, and what each tells the other.

use std::collections::HashMap;

use bullwork::queue::{Event, State};
use serde_json::{Value, json};

use super::peer::{Both, DIRECTIONS, SIDES, SOON, Side, Worker, consume, id_of, is, our_queue, stop};
use crate::support::eventually;

const STATES: [State; 6] = [State::Waiting, State::Active, State::Completed, State::Failed, State::Delayed, State::Paused];

/// Fills every state with jobs of both sides; the workers that hold the active ones.
async fn fill(both: &Both) -> Vec<Worker> {
    for (n, by) in [Side::Ours, Side::Bull, Side::Bull, Side::Ours].into_iter().enumerate() {
        both.add(by, json!({"n": n}), json!({})).await;
        both.add(by, json!({"fail": 1}), json!({})).await;
    }
    let mut workers = vec![both.work(Side::Ours, 1).await, both.work(Side::Bull, 1).await];
    eventually("all of them ended", SOON, async || {
        let counts = both.ours.counts().await.unwrap();
        (counts.completed, counts.failed) == (4, 4)
    })
    .await;
    workers.push(Some(consume(&both.ours, 1)));
    for by in SIDES {
        both.add(by, json!({"hang": true}), json!({})).await;
    }
    eventually("two are active", SOON, async || both.ours.counts().await.unwrap().active == 2).await;
    for by in SIDES {
        both.add(by, json!({"hang": true}), json!({})).await;
        both.add(by, json!({}), json!({"delay": 600_000, "priority": 3})).await;
        both.add(by, json!({}), json!({"delay": 300_000})).await;
    }
    // Three workers: one more is active.
    eventually("three are active", SOON, async || both.ours.counts().await.unwrap().active == 3).await;
    for n in 0..5 {
        both.add(if n % 2 == 0 { Side::Ours } else { Side::Bull }, json!({"n": n}), json!({"priority": n % 3})).await;
    }
    workers
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_lists_pages_and_states_are_the_same_to_both() {
    let Some(both) = Both::start().await else { return };
    let workers = fill(&both).await;
    for paused in [false, true] {
        if paused {
            both.ours.pause().await.unwrap();
        }
        let counts = both.counts().await;
        assert_eq!((counts.active, counts.completed, counts.failed, counts.delayed), (3, 4, 4, 4));
        assert_eq!(counts.waiting + counts.paused, 6);
        assert_eq!(both.bull.queue("count", json!([])).await, counts.waiting + counts.paused + counts.delayed);
        for state in STATES {
            let word = state.name();
            for (start, end) in [(0, -1), (0, 1), (1, 2), (3, 50), (50, 60)] {
                for ascending in [true, false] {
                    let ours: Vec<String> =
                        both.ours.jobs(&[state], start, end, ascending).await.unwrap().into_iter().map(|job| job.id).collect();
                    let theirs = both.bull.queue("getJobs", json!([[word], start, end, ascending])).await;
                    let theirs: Vec<String> = theirs.as_array().unwrap().iter().map(id_of).collect();
                    assert_eq!(ours, theirs, "{word} {start} to {end}, ascending: {ascending}");
                }
            }
            for job in both.ours.jobs(&[state], 0, -1, true).await.unwrap() {
                assert_eq!(both.state(&job.id).await, word);
                both.job(&job.id).await;
            }
        }
    }
    let all = both.ours.jobs(&STATES, 0, -1, false).await.unwrap();
    let theirs = both.bull.queue("getJobs", json!([STATES.map(State::name), 0, -1, false])).await;
    assert_eq!(all.len(), 21);
    assert_eq!(
        all.into_iter().map(|job| job.id).collect::<Vec<_>>(),
        theirs.as_array().unwrap().iter().map(id_of).collect::<Vec<_>>()
    );
    assert_eq!(both.bull.queue("getJob", json!(["none"])).await, Value::Null);
    assert_eq!(both.ours.job("none").await.unwrap(), None);
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_lists_our_consumer_among_the_workers_while_it_runs() {
    let Some(both) = Both::start().await else { return };
    let names = async || {
        let workers = both.bull.queue("getWorkers", json!([])).await;
        workers
            .as_array()
            .unwrap()
            .iter()
            .map(|worker| worker["name"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(names().await.is_empty());
    // Of another queue.
    let stranger = consume(&our_queue(&both.redis, "another"), 1);
    let worker = both.work(Side::Ours, 3).await;
    eventually("ours is listed", SOON, async || names().await.len() == 1).await;
    let ours = names().await;
    both.work(Side::Bull, 3).await;
    eventually("Bull's is listed beside it", SOON, async || names().await.len() == 2).await;
    let both_names = names().await;
    assert!(both_names.iter().all(|name| *name == ours[0]), "{both_names:?}");
    stop(worker).await;
    eventually("ours is gone", SOON, async || names().await.len() == 1).await;
    stop(Some(stranger)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulls_listeners_hear_everything_that_ours_does() {
    let Some(both) = Both::start().await else { return };
    both.bull.queue("listen", json!([])).await;
    let fine = both.add(Side::Ours, json!({"progress": {"step": [1]}}), json!({})).await;
    let broken = both.add(Side::Ours, json!({"fail": 2}), json!({"attempts": 2})).await;
    both.add(Side::Ours, json!({}), json!({"jobId": fine})).await;
    both.ours.pause().await.unwrap();
    both.ours.resume().await.unwrap();
    let worker = both.work(Side::Ours, 1).await;
    for event in [
        json!(["waiting", fine]),
        json!(["duplicated", fine]),
        json!(["paused"]),
        json!(["resumed"]),
        json!(["active", fine]),
        json!(["progress", fine, {"step": [1]}]),
        json!(["completed", fine, r#"{"by":"ours"}"#]),
        json!(["failed", broken, "boom 2"]),
        json!(["drained"]),
    ] {
        both.hears(&event).await;
    }
    both.ours.retry(&broken).await.unwrap();
    both.reaches(&broken, "completed").await;
    let heard = both.heard().await;
    let times = |event: Value| heard.iter().filter(|one| is(one, &event)).count();
    assert_eq!(times(json!(["waiting", broken])), 2, "added, and retried by hand: {heard:?}");
    assert_eq!(times(json!(["failed", broken, "boom 2"])), 1, "only for good: {heard:?}");
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_events_tell_everything_that_bull_does() {
    let Some(both) = Both::start().await else { return };
    let mut events = both.ours.events().await.unwrap();
    let fine = both.add(Side::Bull, json!({"progress": {"step": [1]}, "ms": 300}), json!({})).await;
    both.add(Side::Bull, json!({}), json!({"jobId": fine})).await;
    let held = both.add(Side::Bull, json!({}), json!({"debounce": {"id": "d"}, "jobId": "held"})).await;
    both.add(Side::Bull, json!({}), json!({"debounce": {"id": "d"}})).await;
    let broken = both.add(Side::Bull, json!({"fail": 2}), json!({"attempts": 2})).await;
    both.bull.queue("pause", json!([])).await;
    both.bull.queue("resume", json!([])).await;
    both.bull.queue("add", json!([{}, {"delay": 1000, "timestamp": 4_000_000_000_000_i64}])).await;
    both.work(Side::Bull, 1).await;
    let id = |id: &str| id.to_owned();
    let expected = [
        Event::Waiting { id: id(&fine) },
        Event::Duplicated { id: id(&fine) },
        Event::Waiting { id: id(&held) },
        Event::Debounced { id: id(&held) },
        Event::Waiting { id: id(&broken) },
        Event::Paused,
        Event::Resumed,
        Event::Delayed { until: 4_000_000_001_000 },
        Event::Active { id: id(&fine) },
        Event::Progress { id: id(&fine), progress: json!({"step": [1]}) },
        Event::Completed { id: id(&fine), value: Some(json!({"by": "bull"})) },
        Event::Active { id: id(&held) },
        Event::Completed { id: id(&held), value: Some(json!({"by": "bull"})) },
        Event::Active { id: id(&broken) },
        Event::Active { id: id(&broken) },
        Event::Failed { id: id(&broken), reason: "boom 2".into() },
        Event::Drained,
    ];
    let mut heard = Vec::new();
    while heard.last() != Some(&Event::Drained) {
        let event = tokio::time::timeout(SOON, events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("it went quiet after {heard:?}")).expect("the connection stays");
        // Bull tells again and again when the next delayed job is due, with its place among those of the same millisecond.
        if !(matches!(event, Event::Delayed { .. }) && heard.iter().any(|one| matches!(one, Event::Delayed { .. }))) {
            heard.push(event);
        }
    }
    assert_eq!(heard, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_logs_and_new_data_of_one_side_are_read_by_the_other() {
    let Some(both) = Both::start().await else { return };
    for (adder, changer) in DIRECTIONS {
        let id = both.add(adder, json!({"old": 1}), json!({"delay": 600_000})).await;
        for progress in [json!(42), json!(99.5), json!("half"), json!({"step": {"of": [1, 2]}})] {
            match changer {
                Side::Ours => both.ours.set_progress(&id, &progress).await.unwrap(),
                Side::Bull => drop(both.bull.job(&id, "progress", json!([progress])).await),
            }
            assert_eq!(both.job(&id).await.progress, Some(progress), "{changer:?}");
        }
        let lines = ["one", "zwei ✓", "three\nof two"];
        for line in lines {
            match changer {
                Side::Ours => drop(both.ours.log(&id, &[line.to_owned()]).await.unwrap()),
                Side::Bull => drop(both.bull.job(&id, "log", json!([line])).await),
            }
        }
        assert_eq!(both.ours.logs(&id, 0, -1).await.unwrap(), lines);
        assert_eq!(both.bull.queue("getJobLogs", json!([id])).await, json!({"logs": lines, "count": 3}));
        assert_eq!(both.bull.queue("getJobLogs", json!([id, 1, 1])).await["logs"], json!([lines[1]]));
        let data = json!({"new": ["ü", null, {"deep": true}]});
        match changer {
            Side::Ours => both.ours.update_data(&id, &data).await.unwrap(),
            Side::Bull => drop(both.bull.job(&id, "update", json!([data])).await),
        }
        assert_eq!(both.job(&id).await.data, data, "{changer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_job_is_gone_for_both_whatever_its_state_and_an_active_one_stays() {
    for remover in SIDES {
        let Some(both) = Both::start().await else { return };
        let workers = fill(&both).await;
        let mut kept = HashMap::new();
        for state in STATES {
            for job in both.ours.jobs(&[state], 0, -1, true).await.unwrap() {
                let removed = match remover {
                    Side::Ours => both.ours.remove(&job.id).await.map_err(|error| error.to_string()),
                    Side::Bull => both.bull.try_job(&job.id, "remove").await.map(drop),
                };
                assert_eq!(removed.is_err(), state == State::Active, "{remover:?} removes a job that is {state}: {removed:?}");
                if removed.is_err() {
                    kept.insert(job.id, state);
                }
            }
        }
        assert_eq!((kept.len(), both.counts().await.active), (3, 3));
        // What stays is the queue's own, and what belongs to the active jobs.
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut both.redis.connection().await).await.unwrap();
        let rest: Vec<String> = keys
            .iter()
            .map(|key| key.strip_prefix(&format!("bull:{}:", super::peer::QUEUE)).unwrap_or(key).to_owned())
            .filter(|key| !kept.contains_key(key.trim_end_matches(":lock")))
            .filter(|key| !["id", "active", "stalled", "stalled-check", "meta"].contains(&key.as_str()))
            .collect();
        assert!(rest.is_empty(), "{remover:?} leaves {rest:?}");
        drop(workers);
    }
}
