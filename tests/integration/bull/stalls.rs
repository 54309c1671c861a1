//! Workers of one side that are killed in the middle of a job, and the other side's check that finds it.

use std::time::Duration;

use bullwork::queue::{Event, State};
use nix::sys::signal::Signal;
use serde_json::json;

use super::peer::{Both, Peer, QUEUE, SIDES, SOON, Side, hasty, our_process, stop};
use crate::support::{Server, eventually};

/// A worker for being killed.
enum Doomed {
    Ours(Server),
    Bull(Box<Peer>),
}

impl Doomed {
    async fn start(both: &Both, side: Side) -> Doomed {
        match side {
            Side::Ours => Doomed::Ours(our_process(&both.redis, 1)),
            Side::Bull => {
                let bull = both.another_bull();
                bull.queue("work", json!([1])).await;
                Doomed::Bull(Box::new(bull))
            }
        }
    }

    fn signal(&self, signal: Signal) {
        match self {
            Doomed::Ours(process) => process.signal(signal),
            Doomed::Bull(peer) => peer.signal(signal),
        }
    }

    async fn kill(self) {
        match self {
            Doomed::Ours(mut process) => process.stop(),
            Doomed::Bull(mut peer) => peer.kill().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_was_killed_is_run_again_by_the_other_side_and_both_are_told() {
    for killed in SIDES {
        let Some(both) = Both::start().await else { return };
        let recoverer = if killed == Side::Ours { Side::Bull } else { Side::Ours };
        both.bull.queue("listen", json!([])).await;
        let mut events = both.ours.events().await.unwrap();
        let doomed = Doomed::start(&both, killed).await;
        let id = both.add(killed, json!({"hang": true, "note": "runs"}), json!({"attempts": 1})).await;
        eventually("it runs", SOON, async || both.noted("runs").await.len() == 1).await;
        doomed.kill().await;
        both.reaches(&id, "active").await;
        both.ours.update_data(&id, &json!({"note": "runs"})).await.unwrap();
        let worker = both.work(recoverer, 1).await;
        both.reaches(&id, "completed").await;
        let job = both.job(&id).await;
        let by = if recoverer == Side::Ours { "ours" } else { "bull" };
        assert_eq!((job.stalled_counter, job.attempts_made, job.return_value), (1, 0, Some(json!({"by": by}))));
        assert_eq!(both.noted("runs").await.len(), 2);
        both.hears(&json!(["stalled", id])).await;
        let told = async { while events.next().await.expect("the connection stays") != (Event::Stalled { id: id.clone() }) {} };
        tokio::time::timeout(SOON, told).await.expect("our listener is told too");
        stop(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_stalled_too_often_is_failed_by_the_other_side() {
    for killed in SIDES {
        let Some(both) = Both::start().await else { return };
        both.bull.queue("listen", json!([])).await;
        let doomed = Doomed::start(&both, killed).await;
        let id = both.add(killed, json!({"hang": true}), json!({"attempts": 5})).await;
        both.reaches(&id, "active").await;
        doomed.kill().await;
        let strict = Peer::start(&both.packages, &both.redis, QUEUE, &hasty(0));
        if killed == Side::Ours {
            strict.queue("work", json!([1])).await;
        }
        eventually("it is failed", SOON, async || {
            if killed == Side::Bull {
                both.ours.recover_stalled(Duration::from_millis(100), 0).await.unwrap();
            }
            both.ours.state(&id).await.unwrap() == Some(State::Failed)
        })
        .await;
        let job = both.job(&id).await;
        assert_eq!(job.failed_reason.as_deref(), Some("job stalled more than allowable limit"), "{killed:?} was killed");
        assert_eq!((job.stalled_counter, both.state(&id).await.as_str()), (1, "failed"));
        both.hears(&json!(["failed", id, "job stalled more than maxStalledCount"])).await;
        assert_eq!((both.counts().await.active, both.counts().await.waiting), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_of_one_side_is_left_alone_by_the_checks_of_the_other() {
    let Some(both) = Both::start().await else { return };
    both.bull.queue("listen", json!([])).await;
    let worker = both.work(Side::Ours, 1).await;
    // More than twice as long as a lock.
    let first = both.add(Side::Ours, json!({"ms": 3500, "note": "runs"}), json!({})).await;
    both.reaches(&first, "active").await;
    both.work(Side::Bull, 1).await;
    let second = both.add(Side::Ours, json!({"ms": 3500, "note": "runs"}), json!({})).await;
    both.reaches(&second, "active").await;
    let by = async |id: &str| {
        both.reaches(id, "completed").await;
        let job = both.job(id).await;
        assert_eq!(job.stalled_counter, 0);
        job.return_value.unwrap()["by"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!((by(&first).await.as_str(), by(&second).await.as_str()), ("ours", "bull"));
    assert_eq!(both.noted("runs").await, [first, second]);
    assert!(!both.heard().await.iter().any(|event| event[0] == "stalled"));
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_too_long_changes_nothing_when_it_comes_back() {
    for late in SIDES {
        let Some(both) = Both::start().await else { return };
        let other = if late == Side::Ours { Side::Bull } else { Side::Ours };
        let doomed = Doomed::start(&both, late).await;
        let id = both.add(late, json!({"ms": 1000, "note": "runs"}), json!({"attempts": 3})).await;
        eventually("it runs", SOON, async || both.noted("runs").await.len() == 1).await;
        doomed.signal(Signal::SIGSTOP);
        let worker = both.work(other, 1).await;
        both.reaches(&id, "completed").await;
        let before = both.job(&id).await;
        let by = if other == Side::Ours { "ours" } else { "bull" };
        assert_eq!((&before.return_value, before.stalled_counter), (&Some(json!({"by": by})), 1));
        stop(worker).await;
        both.bull.queue("pause", json!([true, true])).await;
        doomed.signal(Signal::SIGCONT);
        // It runs one job at a time: when it is done with another, its late run has ended.
        let next = both.add(late, json!({}), json!({})).await;
        both.reaches(&next, "completed").await;
        assert_eq!(both.state(&id).await, "completed");
        let after = both.job(&id).await;
        assert_eq!((&after.return_value, after.finished_on), (&before.return_value, before.finished_on), "{late:?} came back");
        if late == Side::Ours {
            assert_eq!(after, before, "not a trace of the late run");
        }
        let counts = both.counts().await;
        let elsewhere = counts.waiting + counts.active + counts.failed + counts.delayed + counts.paused;
        assert_eq!((counts.completed, elsewhere), (2, 0), "{counts:?}");
        assert_eq!(both.noted("runs").await.len(), 2);
        doomed.kill().await;
    }
}
