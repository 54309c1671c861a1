//! Whatever several clients do in whatever order, and wherever one of them dies: a job is in exactly one place, only the run
//! that holds its lock settles it, and the queue holds what the model says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bullwork::queue::{
    Added, Admission, Armed, Backoff, CancelOutcome, Debounce, Failed, Failure, Job, JobOptions, Keep, Limiter, NewJob, Queue,
    QueueError, Renewed, Repeat, State, Taken,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::bench::{Bench, LOCK, NOW};
use super::model::{Model, Place, Refusal};

const INTERVAL: Duration = Duration::from_secs(30);
const STALLS: u32 = 2;
const BACKOFF: u64 = 300;
const EVERY: u64 = 700;
/// Runs in the time of the rate limit.
const MOST: u64 = 3;
/// Redis's own clock goes on: what expires there must not do so by itself.
const LONG: Duration = Duration::from_secs(3600);

/// One thing that a producer, worker or operator does; `n` chooses the job or the run.
#[derive(Clone, Debug)]
enum Act {
    Add(Box<JobOptions>, usize),
    Take {
        sequential: bool,
    },
    /// As a worker with a rate limit.
    TakeLimited {
        sequential: bool,
        grouped: bool,
    },
    /// The time of all rate limits is over.
    LimitsEnd,
    /// The time of a debounce is over.
    DebounceEnds(u8),
    /// A blocking move whose client dies before it claims the job.
    MoveAndDie,
    Complete(usize),
    CompleteAndTake(usize),
    Fail(usize, bool),
    HandBack(usize),
    Snooze(usize),
    Renew(usize),
    /// The lock runs out: its worker died, or stood still.
    Expire(usize),
    Recover,
    PromoteDue,
    Promote(usize),
    Retry(usize),
    RetryAll,
    Remove(usize),
    Cancel(usize),
    Tell(usize),
    Clean(usize),
    Empty,
    Obliterate {
        force: bool,
    },
    Arm,
    NextOf(usize),
    RemoveSchedule,
    Pause,
    Resume,
    Later(i64),
}

fn options() -> impl Strategy<Value = JobOptions> {
    let keep = prop_oneof![
        4 => Just(Keep::All),
        1 => Just(Keep::None),
        1 => (1_u64..3).prop_map(Keep::Count),
        1 => (0_u64..3, prop::option::of(1_u64..3)).prop_map(|(seconds, count)| Keep::Age { seconds, count }),
    ];
    let debounce = prop::option::weighted(
        0.3,
        (0_u8..3, any::<bool>()).prop_map(|(n, either)| Debounce {
            id: format!("d{n}"),
            // One that its job holds, one that its time holds, and one that is asked for as either.
            ttl: (n == 1 || n == 2 && either).then_some(LONG.as_millis() as u64),
        }),
    );
    let order = (0_i64..3, 0_u32..3, any::<bool>(), 1_u32..4, any::<bool>());
    (order, keep.clone(), keep, debounce).prop_map(|((delay, priority, lifo, attempts, waits), complete, fail, debounce)| {
        JobOptions {
            delay: delay * 500,
            priority,
            lifo,
            attempts,
            backoff: waits.then(|| Backoff::fixed(Duration::from_millis(BACKOFF))),
            remove_on_complete: complete,
            remove_on_fail: fail,
            debounce,
            ..JobOptions::default()
        }
    })
}

fn act() -> impl Strategy<Value = Act> {
    let n = 0_usize..12;
    prop_oneof![
        8 => (options(), 1_usize..4).prop_map(|(options, many)| Act::Add(Box::new(options), many)),
        10 => any::<bool>().prop_map(|sequential| Act::Take { sequential }),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(sequential, grouped)| Act::TakeLimited { sequential, grouped }),
        1 => Just(Act::LimitsEnd),
        1 => (0_u8..3).prop_map(Act::DebounceEnds),
        3 => Just(Act::MoveAndDie),
        4 => n.clone().prop_map(Act::Complete),
        4 => n.clone().prop_map(Act::CompleteAndTake),
        6 => (n.clone(), any::<bool>()).prop_map(|(n, retry)| Act::Fail(n, retry)),
        2 => n.clone().prop_map(Act::HandBack),
        2 => n.clone().prop_map(Act::Snooze),
        3 => n.clone().prop_map(Act::Renew),
        4 => n.clone().prop_map(Act::Expire),
        5 => Just(Act::Recover),
        4 => Just(Act::PromoteDue),
        2 => n.clone().prop_map(Act::Promote),
        3 => n.clone().prop_map(Act::Retry),
        1 => Just(Act::RetryAll),
        2 => n.clone().prop_map(Act::Remove),
        2 => n.clone().prop_map(Act::Cancel),
        1 => n.clone().prop_map(Act::Tell),
        2 => n.clone().prop_map(Act::Clean),
        1 => Just(Act::Empty),
        1 => any::<bool>().prop_map(|force| Act::Obliterate { force }),
        3 => Just(Act::Arm),
        2 => n.prop_map(Act::NextOf),
        1 => Just(Act::RemoveSchedule),
        2 => Just(Act::Pause),
        3 => Just(Act::Resume),
        4 => (1_i64..2000).prop_map(Act::Later),
    ]
}

/// Panics unless Redis refused what the model refuses.
fn agree<T>(result: Result<T, QueueError>, expected: Result<(), Refusal>) -> Option<T> {
    let refusal = match &result {
        Ok(_) => None,
        Err(QueueError::Missing(_)) => Some(Refusal::Missing),
        Err(QueueError::LockLost(_)) => Some(Refusal::LockLost),
        Err(QueueError::Locked(_)) => Some(Refusal::Locked),
        Err(QueueError::NotDelayed(_)) => Some(Refusal::NotDelayed),
        Err(QueueError::NotFinished(_)) => Some(Refusal::NotFinished),
        Err(QueueError::ActiveJobs(_)) => Some(Refusal::ActiveJobs),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(refusal, expected.err());
    result.ok()
}

/// Clients on one queue, their runs, and the model of it all.
struct World {
    bench: Bench,
    clients: Vec<Queue>,
    /// Runs are never forgotten, so ended and stale ones try again.
    runs: Vec<(Job, String)>,
    model: Model,
    step: usize,
    /// Beginning of the ids of the schedule's runs.
    run_ids: String,
}

impl World {
    fn id(&self, n: usize) -> String {
        let known = self.model.jobs.len();
        self.model.jobs.keys().nth(n % (known + 1)).cloned().unwrap_or_else(|| "nobody".to_owned())
    }

    fn run(&self, n: usize) -> Option<(Job, String)> {
        self.runs.iter().rev().nth(n % self.runs.len().max(1)).cloned()
    }

    fn taken(&mut self, taken: Taken, token: String, sequential: bool) {
        let waiting = self.model.in_place(Place::Wait);
        match taken {
            Taken::Limited(_) => panic!("there is no limit"),
            Taken::Empty => assert!(waiting.is_empty(), "{waiting:?} are not taken"),
            Taken::Busy => assert!(sequential && !waiting.is_empty() && !self.model.in_place(Place::Active).is_empty()),
            Taken::Job(job) => {
                assert!(!sequential || self.model.in_place(Place::Active).is_empty());
                self.model.take(&job.id, Some(&token));
                assert_eq!(job.attempts_made, self.model.jobs[&job.id].attempts_made);
                self.runs.push((*job, token));
            }
        }
    }

    async fn take_limited(&mut self, queue: &Queue, sequential: bool, grouped: bool) {
        let (max, group_key) = if grouped { (1, Some("customer".to_owned())) } else { (MOST, None) };
        let limiter = Limiter { group_key, ..Limiter::new(max, LONG) };
        let admission = if sequential { Admission::Sequential } else { Admission::Any };
        let token = format!("run {}", self.step);
        let taken = queue.with_limiter(limiter).take(&token, LOCK, admission).await.unwrap();
        if grouped {
            // When those that were put off come back is the limit's own affair (limits.rs); that they are there is ours.
            for id in self.model.in_place(Place::Wait) {
                let score: Option<f64> = self.bench.command(&["ZSCORE", "bull:v:delayed", &id]).await;
                if let Some(score) = score {
                    self.model.put_off_to(&id, score as i64);
                }
            }
        }
        let waiting = self.model.in_place(Place::Wait);
        match taken {
            Taken::Limited(left) => {
                assert!(!grouped && self.model.begun >= MOST && !waiting.is_empty() && left <= LONG * 2, "{left:?}");
            }
            Taken::Job(_) if !grouped => {
                assert!(self.model.begun < MOST);
                self.model.begun += 1;
                self.taken(taken, token, sequential);
            }
            taken => self.taken(taken, token, sequential),
        }
    }

    async fn settle(&mut self, queue: &Queue, act: &Act, n: usize) {
        let Some((job, token)) = self.run(n) else { return };
        let id = job.id.as_str();
        let expected = self.model.owns(id, &token);
        match act {
            Act::Complete(_) => {
                if agree(queue.complete(&job, &token, &json!(1), None).await, expected).is_some() {
                    self.model.finish(id, Place::Completed);
                }
            }
            Act::CompleteAndTake(_) => {
                let next = format!("run {}", self.step);
                if let Some(taken) = agree(queue.complete_and_take(&job, &token, &json!(1), &next, LOCK).await, expected) {
                    self.model.finish(id, Place::Completed);
                    self.taken(taken, next, false);
                }
            }
            Act::Fail(_, retry) => {
                let failure = Failure { reason: "x".into(), stacktrace: String::new(), retry: *retry };
                let Some(failed) = agree(queue.fail(&job, &token, &failure).await, expected) else { return };
                let held = self.model.jobs.get_mut(id).expect("it is held");
                held.attempts_made = job.attempts_made + 1;
                let last = !retry || held.cancel || held.attempts_made >= held.options.attempts;
                match (last, held.options.backoff.is_some()) {
                    (true, _) => self.model.finish(id, Place::Failed),
                    (false, true) => self.model.put_off(id, BACKOFF.try_into().unwrap()),
                    (false, false) => self.model.put_in_line(id),
                }
                assert_eq!(failed == Failed::Final, last, "{failed:?}");
            }
            Act::HandBack(_) => {
                if agree(queue.hand_back(&job, &token).await, expected).is_some() {
                    self.model.put_in_line(id);
                }
            }
            _ => {
                if agree(queue.snooze(&job, &token, Duration::from_millis(BACKOFF)).await, expected).is_some() {
                    self.model.put_off(id, BACKOFF.try_into().unwrap());
                }
            }
        }
    }

    /// The next slot of the schedule, and what arming it must do, in the model.
    fn arm(&mut self, slot: i64) -> (bool, i64) {
        self.model.schedule = Some(slot);
        let id = format!("{}{slot}", self.run_ids);
        if self.model.is_pending(&id) {
            return (false, slot);
        }
        self.model.remove(&id);
        let options = JobOptions { delay: (slot - self.model.now).max(0), attempts: 1, ..JobOptions::default() };
        self.model.add(Some(&id), &options).expect("it has no debounce");
        (true, slot)
    }

    async fn schedule(&mut self, queue: &Queue, act: &Act) {
        let every = Repeat::every(EVERY);
        let none = |_: &str, _: Option<&str>, _: i64| Ok::<_, String>(None);
        let next = every.next_slot(None, self.model.now, none).unwrap().unwrap();
        let (armed, expected) = match act {
            Act::Arm => {
                let armed = queue.arm(&every, "tick", &json!({}), &JobOptions::default(), next, None).await.unwrap();
                if let Armed::Added { id, slot } = &armed {
                    self.run_ids = id.strip_suffix(&slot.to_string()).expect("it ends so").to_owned();
                }
                let standing = self.model.schedule.filter(|slot| self.model.is_pending(&format!("{}{slot}", self.run_ids)));
                (armed, standing.map_or_else(|| self.arm(next), |slot| (false, slot)))
            }
            Act::NextOf(n) => {
                let runs: Vec<Job> =
                    self.runs.iter().filter(|(job, _)| job.repeat_key().is_some()).map(|(job, _)| job.clone()).collect();
                let Some(run) = runs.get(n % runs.len().max(1)) else { return };
                let slot = every.next_slot(run.prev_millis(), self.model.now, none).unwrap().unwrap();
                let armed = queue.next_of(run, slot).await.unwrap();
                if self.model.schedule.is_none() {
                    assert_eq!(armed, Armed::Removed);
                    return;
                }
                (armed, self.arm(slot))
            }
            _ => {
                let stood = queue.remove_schedule(&every.key("tick")).await.unwrap();
                assert_eq!(stood, self.model.schedule.take().is_some());
                self.model.jobs.retain(|id, job| !(id.starts_with("repeat:") && job.place == Place::Delayed));
                return;
            }
        };
        let seen = match armed {
            Armed::Added { slot, .. } => (true, slot),
            Armed::Pending { slot } => (false, slot),
            Armed::Removed => panic!("the schedule stands"),
        };
        assert_eq!(seen, expected);
    }

    async fn operate(&mut self, queue: &Queue, act: &Act) {
        match act {
            Act::Promote(n) => {
                let id = self.id(*n);
                let expected = match self.model.jobs.get(&id).map(|job| job.place) {
                    None => Err(Refusal::Missing),
                    Some(Place::Delayed) => Ok(()),
                    Some(_) => Err(Refusal::NotDelayed),
                };
                if agree(queue.promote(&id).await, expected).is_some() {
                    self.model.put_in_line(&id);
                }
            }
            Act::Retry(n) => {
                let id = self.id(*n);
                let expected = self.model.retry(&id);
                if agree(queue.retry(&id).await, expected).is_some() {
                    self.model.jobs.get_mut(&id).expect("it is there").cancel = false;
                }
            }
            Act::RetryAll => {
                let failed = self.model.in_place(Place::Failed);
                assert_eq!(queue.retry_all_failed().await.unwrap(), failed.len() as u64);
                failed.iter().for_each(|id| self.model.retry(id).expect("it failed"));
            }
            Act::Remove(n) => {
                let id = self.id(*n);
                let expected = match self.model.jobs.get(&id) {
                    None => Err(Refusal::Missing),
                    Some(job) if job.lock.is_some() => Err(Refusal::Locked),
                    Some(_) => Ok(()),
                };
                if agree(queue.remove(&id).await, expected).is_some() {
                    self.model.remove(&id);
                }
            }
            Act::Cancel(n) => {
                let id = self.id(*n);
                let place = self.model.jobs.get(&id).map(|job| job.place);
                let outcome = agree(queue.request_cancel(&id, "me").await, place.map(drop).ok_or(Refusal::Missing));
                match place {
                    None => {}
                    Some(Place::Completed | Place::Failed) => assert_eq!(outcome, Some(CancelOutcome::AlreadyFinished)),
                    Some(Place::Active) => {
                        assert_eq!(outcome, Some(CancelOutcome::Requested));
                        self.model.jobs.get_mut(&id).expect("it is there").cancel = true;
                    }
                    Some(_) => {
                        assert_eq!(outcome, Some(CancelOutcome::Cancelled));
                        self.model.finish(&id, Place::Failed);
                    }
                }
            }
            Act::Tell(n) => {
                let id = self.id(*n);
                let expected = if self.model.jobs.contains_key(&id) { Ok(()) } else { Err(Refusal::Missing) };
                agree(queue.set_progress(&id, &json!(5)).await, expected);
                agree(queue.update_data(&id, &json!({"n": n})).await, expected);
                agree(queue.log(&id, &["line".into()]).await, expected);
            }
            Act::Clean(n) => {
                let places = [
                    (Place::Wait, State::Waiting),
                    (Place::Paused, State::Paused),
                    (Place::Active, State::Active),
                    (Place::Delayed, State::Delayed),
                    (Place::Completed, State::Completed),
                    (Place::Failed, State::Failed),
                ];
                let (place, state) = places[n % 6];
                let removed = queue.clean(state, Duration::from_millis(500), None).await.unwrap();
                let before = self.model.now - 500;
                assert_eq!(removed.into_iter().collect::<BTreeSet<_>>(), self.model.clean(place, Some(before), false));
            }
            Act::Empty => {
                let removed: BTreeSet<String> = queue.empty().await.unwrap().into_iter().collect();
                let places = [Place::Wait, Place::Paused, Place::Delayed];
                let expected: BTreeSet<String> =
                    places.into_iter().flat_map(|place| self.model.clean(place, None, true)).collect();
                assert_eq!(removed, expected);
            }
            Act::Obliterate { force } => {
                let refused = !force && !self.model.in_place(Place::Active).is_empty();
                let expected = if refused { Err(Refusal::ActiveJobs) } else { Ok(()) };
                if agree(queue.obliterate(*force).await, expected).is_some() {
                    self.model.obliterate();
                }
            }
            _ => self.schedule(queue, act).await,
        }
    }

    async fn perform(&mut self, act: &Act) {
        self.step += 1;
        let queue = self.clients[self.step % self.clients.len()].clone();
        match act {
            Act::Add(options, many) => {
                let jobs = vec![NewJob::unnamed(json!({}), (**options).clone()); *many];
                let added =
                    if *many == 1 { vec![queue.add(&jobs[0]).await.unwrap()] } else { queue.add_many(&jobs).await.unwrap() };
                for added in added {
                    let expected = self.model.add(None, options).map_or_else(Added::Debounced, Added::New);
                    assert_eq!(added, expected);
                }
            }
            Act::Take { sequential } => {
                let admission = if *sequential { Admission::Sequential } else { Admission::Any };
                let token = format!("run {}", self.step);
                let taken = queue.take(&token, LOCK, admission).await.unwrap();
                self.taken(taken, token, *sequential);
            }
            Act::TakeLimited { sequential, grouped } => self.take_limited(&queue, *sequential, *grouped).await,
            Act::LimitsEnd => {
                for key in self.bench.command::<Vec<String>>(&["KEYS", "bull:v:limiter*"]).await {
                    if self.bench.command::<String>(&["TYPE", &key]).await == "string" {
                        let _: i64 = self.bench.command(&["DEL", &key]).await;
                    }
                }
                self.model.begun = 0;
            }
            Act::DebounceEnds(n) => {
                let name = format!("d{n}");
                let _: i64 = self.bench.command(&["DEL", &format!("bull:v:de:{name}")]).await;
                self.model.debounces.remove(&name);
            }
            Act::MoveAndDie => {
                let moved: Option<String> = self.bench.command(&["LMOVE", "bull:v:wait", "bull:v:active", "RIGHT", "LEFT"]).await;
                assert_eq!(moved.is_none(), self.model.in_place(Place::Wait).is_empty());
                if let Some(id) = moved {
                    self.model.take(&id, None);
                    // A priority entry stays behind, as with Bull; it goes with the next take.
                }
            }
            Act::Complete(n) | Act::CompleteAndTake(n) | Act::Fail(n, _) | Act::HandBack(n) | Act::Snooze(n) => {
                self.settle(&queue, act, *n).await;
            }
            Act::Renew(n) => {
                let Some((job, token)) = self.run(*n) else { return };
                let renewed = queue.renew(&job.id, &token, LOCK).await.unwrap();
                let held = self.model.renew(&job.id, &token);
                let expected = match self.model.jobs.get(&job.id) {
                    Some(job) if held && job.cancel => Renewed::HeldButCancelRequested("me".into()),
                    _ if held => Renewed::Held,
                    _ => Renewed::Lost,
                };
                assert_eq!(renewed, expected);
            }
            Act::Expire(n) => {
                let id = self.id(*n);
                let _: i64 = self.bench.command(&["DEL", &format!("bull:v:{id}:lock")]).await;
                if let Some(job) = self.model.jobs.get_mut(&id) {
                    job.lock = None;
                }
            }
            Act::Recover => {
                let _: i64 = self.bench.command(&["DEL", "bull:v:stalled-check"]).await;
                let found = queue.recover_stalled(INTERVAL, STALLS).await.unwrap();
                let seen = (found.requeued.into_iter().collect(), found.failed.into_iter().collect());
                assert_eq!(seen, self.model.recover(STALLS));
            }
            Act::PromoteDue => assert_eq!(queue.promote_due().await.unwrap(), self.model.promote_due()),
            Act::Pause | Act::Resume => {
                let paused = matches!(act, Act::Pause);
                if paused {
                    queue.pause().await.unwrap();
                } else {
                    queue.resume().await.unwrap();
                }
                self.model.set_paused(paused);
            }
            Act::Later(ms) => {
                self.model.now += ms;
                self.bench.clock.set(self.model.now);
            }
            _ => self.operate(&queue, act).await,
        }
    }

    /// What Redis holds is what the model says.
    async fn check(&mut self) {
        let bench = &mut self.bench;
        for (place, key) in [(Place::Wait, "wait"), (Place::Paused, "paused"), (Place::Active, "active")] {
            let mut ids = bench.list(key).await;
            ids.sort();
            assert_eq!(ids, self.model.in_place(place), "{key}");
        }
        for (place, key) in [(Place::Delayed, "delayed"), (Place::Completed, "completed"), (Place::Failed, "failed")] {
            let mut ids: Vec<String> = bench.command(&["ZRANGE", &format!("bull:v:{key}"), "0", "-1"]).await;
            ids.sort();
            assert_eq!(ids, self.model.in_place(place), "{key}");
        }
        let keys: Vec<String> = bench.command(&["KEYS", "bull:v:*"]).await;
        let (mut jobs, mut locks, mut debounces) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        for key in keys.iter().filter_map(|key| key.strip_prefix("bull:v:")) {
            if let Some(id) = key.strip_suffix(":lock") {
                let token: String = bench.command(&["GET", &format!("bull:v:{key}")]).await;
                locks.insert(id.to_owned(), token);
            } else if let Some(name) = key.strip_prefix("de:") {
                let holder: String = bench.command(&["GET", &format!("bull:v:{key}")]).await;
                debounces.insert(name.to_owned(), holder);
            } else if key.starts_with(|c: char| c.is_ascii_digit()) && !key.contains(':')
                || key.starts_with("repeat:") && !key.ends_with(":logs")
            {
                jobs.insert(key.to_owned());
            }
        }
        assert_eq!(jobs, self.model.jobs.keys().cloned().collect());
        let holders = self.model.debounces.iter().map(|(name, (holder, _))| (name.clone(), holder.clone()));
        assert_eq!(debounces, holders.collect());
        let held = self.model.jobs.iter().filter_map(|(id, job)| Some((id.clone(), job.lock.clone()?)));
        assert_eq!(locks, held.collect());
        assert!(
            self.model.jobs.values().all(|job| job.lock.is_none() || job.place == Place::Active),
            "only active jobs are locked"
        );
        let counts = self.clients[0].counts().await.unwrap();
        let listed = counts.waiting + counts.active + counts.completed + counts.failed + counts.delayed + counts.paused;
        assert_eq!(listed, self.model.jobs.len() as u64);
        let schedules: Vec<i64> = self.clients[0].schedules().await.unwrap().iter().map(|entry| entry.next).collect();
        assert_eq!(schedules, self.model.schedule.into_iter().collect::<Vec<_>>());
    }

    /// When every worker is gone, nothing stays active or locked.
    async fn end(&mut self) {
        for n in 0..self.model.jobs.len() {
            self.perform(&Act::Expire(n)).await;
        }
        for _ in 0..2 {
            self.perform(&Act::Recover).await;
        }
        self.check().await;
        assert!(self.model.in_place(Place::Active).is_empty(), "nothing is held for ever");
    }
}

#[test]
fn a_queue_holds_what_the_model_says_whatever_several_clients_do_and_wherever_one_dies() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bench = runtime.block_on(Bench::start());
    let clients = (0..3).map(|_| bench.other("v")).collect();
    let world = World { bench, clients, runs: Vec::new(), model: Model::default(), step: 0, run_ids: String::new() };
    let world = std::cell::RefCell::new(world);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(32);
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    runner
        .run(&prop::collection::vec(act(), 1..120), |acts| {
            let mut world = world.borrow_mut();
            let world = &mut *world;
            runtime.block_on(async {
                let () = world.bench.command(&["FLUSHALL"]).await;
                (world.runs, world.model) = (Vec::new(), Model { now: NOW, ..Model::default() });
                world.bench.clock.set(NOW);
                for act in acts {
                    world.perform(&act).await;
                    world.check().await;
                }
                world.end().await;
            });
            Ok(())
        })
        .expect("no sequence breaks it");
}
