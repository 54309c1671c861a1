//! Repeatable jobs: Bull's keys, ids and options, and what happens to schedules that died.

use bullwork::queue::{Added, Armed, JobOptions, NewJob, Queue, QueueError, Repeat};
use serde_json::{Value, json};

use super::bench::{Bench, NOW, number, text, vectors};

/// When Bull's `startDate` and `endDate` are meant.
fn time(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => Some(chrono::DateTime::parse_from_rfc3339(text).expect("a date").timestamp_millis()),
        other => other.as_i64(),
    }
}

fn repeat_of(given: &Value) -> Repeat {
    let member = |name: &str| given.get(name).cloned().unwrap_or_default();
    Repeat {
        cron: member("cron").as_str().map(str::to_owned),
        every: member("every").as_u64(),
        time_zone: member("tz").as_str().map(str::to_owned),
        start: time(&member("startDate")),
        end: time(&member("endDate")),
        limit: member("limit").as_u64(),
        count: member("count").as_u64().unwrap_or(0),
        id: None,
    }
}

fn with_times(mut opts: Value) -> Value {
    for name in ["startDate", "endDate"] {
        if let Some(ms) = opts["repeat"].get(name).and_then(time) {
            opts["repeat"][name] = json!(ms);
        }
    }
    opts
}

#[tokio::test]
async fn runs_have_bulls_ids_keys_slots_and_options() {
    let mut bench = Bench::start().await;
    let mut compared = 0;
    for case in vectors()["repeat"].as_array().unwrap() {
        let title = text(&case["title"]);
        let given = &case["repeat"];
        let mistake = given.get("every").is_some_and(Value::is_string) || given.get("cron") == Some(&json!(""));
        if case.get("first_opts_json").is_none() || mistake {
            continue;
        }
        compared += 1;
        let () = bench.command(&["FLUSHALL"]).await;
        let (now, name, late) = (number(&case["now"]), text(&case["name"]), number(&case["late_ms"]));
        bench.clock.set(now);
        let options = JobOptions::from_json(&case["other_opts"]);
        let repeat = repeat_of(given);
        let slots = case["next"].as_array().unwrap();

        // The dialect is `cron`'s business, so the vectors themselves say the next match.
        let matched = |slot: &Value| {
            let slot = slot["millis"].as_i64();
            move |_: &str, _: Option<&str>, after: i64| -> Result<Option<i64>, String> {
                assert!(slot.is_none_or(|slot| slot > after));
                Ok(slot)
            }
        };
        let first = repeat.next_slot(None, now, matched(&slots[0])).unwrap().expect("it has a run");
        assert_eq!(first, number(&slots[0]["millis"]), "{title}");
        let armed = bench.queue.arm(&repeat, &name, &json!({"a": 1}), &options, first, None).await.unwrap();
        let id = text(&case["first_job_id"]);
        assert_eq!(armed, Armed::Added { id: id.clone(), slot: first }, "{title}");
        assert!(id.contains(&text(&case["md5"])));
        assert_eq!(bench.zset("repeat").await, [text(&case["repeat_key"]), first.to_string()], "{title}");
        assert_eq!(bench.zset("delayed").await, [id.clone(), text(&case["first_delayed_score"])], "{title}");
        let hash = bench.hash(&id).await;
        assert_eq!(hash["delay"], text(&case["first_delay_field"]), "{title}");
        let expected: Value = serde_json::from_str(&text(&case["first_opts_json"])).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&hash["opts"]).unwrap(), with_times(expected), "{title}");

        let mut now = first + late;
        for slot in &slots[1..] {
            bench.clock.set(now);
            bench.queue.promote_due().await.unwrap();
            let job = bench.take("t").await;
            let repeat = Repeat::of(&job).expect("it is a run");
            let next = repeat.next_slot(job.prev_millis(), now, matched(slot)).unwrap().expect("there is another run");
            assert_eq!(next, number(&slot["millis"]), "{title}");
            let armed = bench.queue.next_of(&job, next).await.unwrap();
            assert_eq!(armed, Armed::Added { id: text(&slot["id"]), slot: next }, "{title}");
            let following = bench.queue.job(&text(&slot["id"])).await.unwrap().unwrap();
            assert_eq!(json!(following.repeat_count()), slot["count"], "{title}");
            assert_eq!((&following.data, following.repeat_key()), (&job.data, job.repeat_key()));
            bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
            now = next + late;
        }
        assert_eq!(json!(bench.zset("repeat").await), case["repeat_zset_at_end"], "{title}");
        if case.get("stops_after").is_some() {
            bench.clock.set(now);
            bench.queue.promote_due().await.unwrap();
            let job = bench.take("t").await;
            let far = |_: &str, _: Option<&str>, _: i64| Ok::<_, String>(Some(i64::MAX));
            let last = Repeat::of(&job).unwrap().next_slot(job.prev_millis(), now, far).unwrap();
            assert_eq!(last, None, "{title}");
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn schedules_that_bull_refuses_are_refused() {
    let none = |_: &str, _: Option<&str>, _: i64| Ok::<Option<i64>, String>(None);
    let both = Repeat { every: Some(5000), ..Repeat::cron("* * * * *", None) };
    assert!(both.next_slot(None, NOW, none).is_err());
    assert!(Repeat::default().next_slot(None, NOW, none).is_err());
    assert!(Repeat::cron("", None).next_slot(None, NOW, none).is_err());
    assert!(Repeat::every(0).next_slot(None, NOW, none).is_err());
    let bad = |_: &str, _: Option<&str>, _: i64| Err::<Option<i64>, _>("minute 60");
    let error = Repeat::cron("60 * * * *", None).next_slot(None, NOW, bad).unwrap_err();
    assert!(error.to_string().contains("minute 60"));
    assert_eq!(Repeat { end: Some(NOW - 1), ..Repeat::every(5000) }.next_slot(None, NOW, none).unwrap(), None);
}

const SLOT: i64 = NOW + 60_000;

async fn arm(queue: &Queue, slot: i64) -> Armed {
    let repeat = Repeat::cron("0 3 * * *", Some("Europe/Paris"));
    queue.arm(&repeat, "nightly", &json!({}), &JobOptions::default(), slot, None).await.expect("redis answers")
}

#[tokio::test]
async fn a_schedule_armed_by_many_has_one_run() {
    let mut bench = Bench::start().await;
    let armers: Vec<_> = (0..8)
        .map(|_| {
            let queue = bench.other("v");
            tokio::spawn(async move { arm(&queue, SLOT).await })
        })
        .collect();
    let mut added = 0;
    for armer in armers {
        match armer.await.unwrap() {
            Armed::Added { .. } => added += 1,
            other => assert_eq!(other, Armed::Pending { slot: SLOT }),
        }
    }
    assert_eq!((added, bench.zset("delayed").await.len()), (1, 2));
    // One whose clock is a moment ahead computes the slot after.
    assert_eq!(arm(&bench.queue, SLOT + 86_400_000).await, Armed::Pending { slot: SLOT });
    assert_eq!(bench.zset("delayed").await.len(), 2);
}

#[tokio::test]
async fn a_missed_run_stays_pending_when_the_schedule_is_armed_again() {
    let bench = Bench::start().await;
    arm(&bench.queue, SLOT).await;
    bench.clock.set(SLOT + 3_600_000);
    assert_eq!(arm(&bench.queue, SLOT + 86_400_000).await, Armed::Pending { slot: SLOT });
    bench.queue.promote_due().await.unwrap();
    let job = bench.take("t").await;
    assert_eq!(job.prev_millis(), Some(SLOT));
    assert_eq!(arm(&bench.queue, SLOT + 86_400_000).await, Armed::Pending { slot: SLOT }, "while it runs as well");
}

#[tokio::test]
async fn a_dead_schedule_comes_back_when_it_is_armed() {
    let mut bench = Bench::start().await;
    let Armed::Added { id, .. } = arm(&bench.queue, SLOT).await else { panic!("it was not armed") };

    // Bull's `empty()`: the run is in no list, its hash stays.
    let _: i64 = bench.command(&["DEL", "bull:v:delayed"]).await;
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Added { id: id.clone(), slot: SLOT });
    assert_eq!(bench.places(&id).await, ["delayed"]);

    // The pending run was removed.
    bench.queue.remove(&id).await.unwrap();
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Added { id: id.clone(), slot: SLOT });

    // It was promoted and is finished, the schedule was removed and declared again.
    bench.queue.promote(&id).await.unwrap();
    let job = bench.take("t").await;
    bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
    let key = bench.queue.schedules().await.unwrap()[0].key.clone();
    assert!(bench.queue.remove_schedule(&key).await.unwrap());
    assert_eq!(arm(&bench.queue, SLOT).await, Armed::Added { id: id.clone(), slot: SLOT });
    assert_eq!(bench.places(&id).await, ["delayed"]);
}

#[tokio::test]
async fn a_removed_schedule_takes_its_pending_run_along_and_makes_no_other() {
    let mut bench = Bench::start().await;
    let Armed::Added { id, .. } = arm(&bench.queue, SLOT).await else { panic!("it was not armed") };
    let other = Repeat::every(5000);
    bench.queue.arm(&other, "a:b", &json!({}), &JobOptions::default(), SLOT, None).await.unwrap();
    let keys: Vec<String> = bench.queue.schedules().await.unwrap().into_iter().map(|s| s.key).collect();
    assert_eq!(keys, ["nightly:::Europe/Paris:0 3 * * *", "a:b:::5000"]);

    assert!(bench.queue.remove_schedule(&keys[0]).await.unwrap());
    assert!(!bench.queue.remove_schedule(&keys[0]).await.unwrap());
    assert!(!bench.exists(&id).await);
    assert_eq!(bench.zset("delayed").await.len(), 2, "the other schedule's run");

    // Removed while its run is active.
    bench.clock.set(SLOT + 1);
    bench.queue.promote_due().await.unwrap();
    let job = bench.take("t").await;
    assert!(bench.queue.remove_schedule(&keys[1]).await.unwrap());
    assert_eq!(bench.queue.next_of(&job, SLOT + 5000).await.unwrap(), Armed::Removed);
    assert!(bench.zset("delayed").await.is_empty() && bench.zset("repeat").await.is_empty());
    bench.queue.complete(&job, "t", &json!(null), None).await.unwrap();
}

#[tokio::test]
async fn a_run_taken_twice_has_one_successor() {
    let mut bench = Bench::start().await;
    arm(&bench.queue, SLOT).await;
    bench.clock.set(SLOT + 1);
    bench.queue.promote_due().await.unwrap();
    let job = bench.take("t").await;
    let next = SLOT + 86_400_000;
    assert!(matches!(bench.queue.next_of(&job, next).await.unwrap(), Armed::Added { .. }));
    assert_eq!(bench.queue.next_of(&job, next).await.unwrap(), Armed::Pending { slot: next });
    assert_eq!(bench.zset("delayed").await.len(), 2);
}

#[tokio::test]
async fn a_job_that_is_no_run_has_no_successor() {
    let mut bench = Bench::start().await;
    let odd = JobOptions { other: json!({"repeat": "daily"}).as_object().unwrap().clone(), ..JobOptions::default() };
    assert!(matches!(bench.queue.add(&NewJob::unnamed(json!({}), odd)).await.unwrap(), Added::New(_)));
    let job = bench.take("t").await;
    assert_eq!(bench.queue.next_of(&job, SLOT).await.unwrap(), Armed::Removed);
    assert!(bench.zset("delayed").await.is_empty());
}

#[tokio::test]
async fn schedules_that_cannot_run_are_refused_before_anything_is_written() {
    let mut bench = Bench::start().await;
    let before = bench.dump().await;
    let (data, options) = (json!({}), JobOptions::default());
    for (repeat, part) in [
        (Repeat::default(), "neither `cron` nor a positive `every`"),
        (Repeat::every(0), "neither `cron` nor a positive `every`"),
        (Repeat::every(u64::MAX), "`every` is more than"),
        (Repeat { every: Some(5000), ..Repeat::cron("* * * * *", None) }, "both `cron` and `every`"),
        (Repeat::cron("", None), "neither `cron` nor a positive `every`"),
        (Repeat::cron("61 * * * *", None), "61"),
        (Repeat::cron("0 0 30 2 *", None), "30"),
        (Repeat::cron("0 3 * * *", Some("Europe/Parris")), "Europe/Parris"),
        (Repeat { limit: Some(0), ..Repeat::every(5000) }, "`limit` is 0"),
    ] {
        for refused in [
            bench.queue.arm(&repeat, "n", &data, &options, SLOT, None).await,
            bench.queue.set_schedule("nightly", &repeat, "n", &data, &options, SLOT).await,
        ] {
            let Err(QueueError::InvalidSchedule(reason)) = refused else { panic!("{repeat:?}: {refused:?}") };
            assert!(reason.contains(part), "{repeat:?}: {reason}");
        }
    }
    assert_eq!(bench.dump().await, before);
}
