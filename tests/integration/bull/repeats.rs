//! Schedules that one side makes and the other keeps going.

use bullwork::cron;
use bullwork::queue::{Armed, JobOptions, Repeat};
use serde_json::{Value, json};

use super::peer::{Both, DIRECTIONS, SIDES, SOON, Side, stop};
use crate::support::eventually;

/// Every second, and every half.
fn schedules() -> [Repeat; 2] {
    [Repeat::cron("* * * * * *", Some("Europe/Paris")), Repeat::every(500)]
}

async fn arm(both: &Both, by: Side, repeat: &Repeat) {
    let data = json!({"note": "runs"});
    match by {
        Side::Ours => {
            let slot = repeat.next_slot(None, both.ours.clock().now(), cron::next_run).unwrap().unwrap();
            let armed = both.ours.arm(repeat, "tick", &data, &JobOptions::default(), slot, None).await.unwrap();
            assert!(matches!(armed, Armed::Added { .. }), "{armed:?}");
        }
        Side::Bull => {
            let mut stored = match &repeat.cron {
                Some(cron) => json!({"cron": cron, "tz": repeat.time_zone}),
                None => json!({"every": repeat.every}),
            };
            if let Some(limit) = repeat.limit {
                stored["limit"] = json!(limit);
            }
            both.bull.queue("add", json!(["tick", data, {"repeat": stored}])).await;
        }
    }
}

/// Slots of the runs that were run, in the order in which they were.
async fn slots(both: &Both) -> Vec<i64> {
    let runs = both.noted("runs").await;
    runs.iter()
        .map(|id| id.rsplit(':').next().and_then(|slot| slot.parse().ok()).expect("a run's id ends with its slot"))
        .collect()
}

/// Both name the same schedules with the same next slots; the number of them.
async fn listed(both: &Both) -> usize {
    let mut count = 0;
    eventually("both list the same schedules", SOON, async || {
        let theirs = both.bull.queue("getRepeatableJobs", json!([])).await;
        let theirs: Vec<(String, i64)> = theirs
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["key"].as_str().unwrap_or_default().to_owned(), one["next"].as_i64().unwrap_or_default()))
            .collect();
        let ours: Vec<(String, i64)> = both.ours.schedules().await.unwrap().into_iter().map(|one| (one.key, one.next)).collect();
        count = ours.len();
        ours == theirs
    })
    .await;
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_made_by_one_side_is_kept_going_by_the_other_and_removed_by_either() {
    for (maker, runner) in DIRECTIONS {
        for (remover, repeat) in SIDES.into_iter().zip(schedules()) {
            let Some(both) = Both::start().await else { return };
            arm(&both, maker, &repeat).await;
            // Bull's own side may move a run that is due before anybody works.
            let counts = both.ours.counts().await.unwrap();
            assert_eq!((listed(&both).await, counts.delayed + counts.waiting), (1, 1));
            let worker = both.work(runner, 2).await;
            eventually("three runs", SOON, async || slots(&both).await.len() >= 3).await;
            assert_eq!(listed(&both).await, 1);
            let key = both.ours.schedules().await.unwrap().remove(0).key;
            assert_eq!(key, repeat.key("tick"));
            match remover {
                Side::Ours => assert!(both.ours.remove_schedule(&key).await.unwrap()),
                Side::Bull => drop(both.bull.queue("removeRepeatableByKey", json!([key])).await),
            }
            assert_eq!(listed(&both).await, 0);
            eventually("nothing is pending", SOON, async || {
                let counts = both.ours.counts().await.unwrap();
                counts.delayed + counts.waiting + counts.active == 0
            })
            .await;
            let ran = slots(&both).await;
            let step = repeat.every.unwrap_or(1000) as i64;
            assert!(ran.windows(2).all(|pair| pair[1] > pair[0]), "{runner:?} ran {ran:?}");
            assert!(ran.iter().all(|slot| slot % step == 0), "{runner:?} ran {ran:?}");
            // More than one slot later there is still nothing.
            let last = both.ours.clock().now();
            eventually("another slot passed", SOON, async || both.ours.clock().now() > last + step + 300).await;
            assert_eq!((slots(&both).await.len(), both.counts().await.delayed), (ran.len(), 0));
            stop(worker).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_both_arm_and_run_has_each_slot_once() {
    let Some(both) = Both::start().await else { return };
    let repeat = Repeat::every(200);
    arm(&both, Side::Ours, &repeat).await;
    arm(&both, Side::Bull, &repeat).await;
    assert_eq!(listed(&both).await, 1);
    let worker = both.work(Side::Ours, 2).await;
    both.work(Side::Bull, 2).await;
    eventually("fifteen runs", SOON, async || slots(&both).await.len() >= 15).await;
    assert!(both.ours.remove_schedule(&repeat.key("tick")).await.unwrap());
    let ran = slots(&both).await;
    assert!(ran.windows(2).all(|pair| pair[1] > pair[0]), "{ran:?}");
    let done = both.ours.jobs(&[bullwork::queue::State::Completed], 0, -1, true).await.unwrap();
    let by = |side: &str| done.iter().filter(|job| job.return_value == Some(json!({"by": side}))).count();
    assert!(by("ours") > 0 && by("bull") > 0, "ours ran {}, Bull {}", by("ours"), by("bull"));
    // Each run counts on from the one before, whoever ran that; on a busy machine the two may arm different slots, each as the first.
    let counts: Vec<u64> = done.iter().map(|job| job.repeat_count()).collect();
    assert!(counts.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair == [1, 1]), "{counts:?}");
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_runs_that_one_side_set_is_kept_by_the_other() {
    for (maker, runner) in DIRECTIONS {
        let Some(both) = Both::start().await else { return };
        let repeat = Repeat { limit: Some(3), ..Repeat::every(200) };
        arm(&both, maker, &repeat).await;
        let worker = both.work(runner, 1).await;
        eventually("three runs", SOON, async || both.ours.counts().await.unwrap().completed == 3).await;
        let now = both.ours.clock().now();
        eventually("three more slots passed", SOON, async || both.ours.clock().now() > now + 600).await;
        let counts = both.counts().await;
        assert_eq!((counts.completed, counts.delayed, counts.waiting), (3, 0, 0), "{runner:?}");
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_name_and_space_schedules_alike() {
    let Some(both) = Both::start().await else { return };
    let end = 4_000_000_000_000;
    let all = [
        (Repeat::cron("0 3 * * *", Some("Europe/Paris")), json!({"cron": "0 3 * * *", "tz": "Europe/Paris"})),
        (Repeat::cron("15 10 * * 1-5", Some("America/New_York")), json!({"cron": "15 10 * * 1-5", "tz": "America/New_York"})),
        (
            Repeat { end: Some(end), ..Repeat::cron("0 0 L * *", Some("UTC")) },
            json!({"cron": "0 0 L * *", "tz": "UTC", "endDate": end}),
        ),
        (Repeat { id: Some("mine".into()), ..Repeat::every(86_400_000) }, json!({"every": 86_400_000, "jobId": "mine"})),
        (Repeat { limit: Some(9), ..Repeat::every(3_600_000) }, json!({"every": 3_600_000, "limit": 9})),
    ];
    for (ours, theirs) in &all {
        let mut options = json!({"repeat": theirs});
        if let Some(id) = theirs.get("jobId") {
            options["jobId"] = id.clone();
        }
        let job = both.bull.queue("add", json!(["tick", {}, options])).await;
        let slot = ours.next_slot(None, both.ours.clock().now(), cron::next_run).unwrap().unwrap();
        let armed = both.ours.arm(ours, "tick", &json!({}), &JobOptions::default(), slot, None).await.unwrap();
        // The same run: it is there already.
        assert!(matches!(armed, Armed::Pending { .. }), "{armed:?} beside {job}");
        assert_eq!(json!(ours.key("tick")), job["opts"]["repeat"]["key"]);
    }
    assert_eq!((listed(&both).await, both.counts().await.delayed), (5, 5));
    let entries = both.ours.schedules().await.unwrap();
    for entry in entries {
        let theirs: Value = both.bull.queue("getRepeatableJobs", json!([])).await;
        let theirs = theirs.as_array().unwrap().iter().find(|one| one["key"] == entry.key).cloned().unwrap();
        assert_eq!(
            (json!(entry.name), json!(entry.cron), json!(entry.id)),
            (theirs["name"].clone(), theirs["cron"].clone(), theirs["id"].clone())
        );
    }
}
