//! One task from its beginning to its end.
//!
//! Never more than one at a time, or one on each host when the configuration says so: whoever restores holds the turn in the
//! state store, so that a worker that was taken for dead and is not keeps the next one waiting, too. Tools run on a leash, so that none
//! outlives its worker.
//!
//! A run that is stopped without a cancel (the process ends, the job's lock was lost) leaves the task `in_progress`. Whoever
//! takes the job next finds it so, as after SIGKILL, and decides by the record of its steps.

mod errand;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::Config;
use super::steps::{Condition, Step};
use super::tasks::{Status, Task, Tasks, Turn};
use crate::state::StateError;
use crate::worker::run::Stopped;
use crate::worker::{Outcome, Run};
use errand::{Errand, Failure};

/// Between two looks at whether somebody cancelled, and two notes of progress.
const LOOK: Duration = Duration::from_secs(1);
/// How long a task may stay without its promise: its listener is about to write it, or has died.
const PROMISE: Duration = Duration::from_secs(15);
/// Between two tries to get the turn.
const TURN: Duration = Duration::from_millis(500);
/// After this time a job that found no state store runs again.
const WITHOUT_STATE: Duration = Duration::from_secs(15);
/// How long the end of a task is tried to be written.
const WRITING: Duration = Duration::from_secs(60);

/// Performs tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    config: Arc<Config>,
}

/// What the tool told last.
#[derive(Debug, Default)]
struct Counter {
    done: AtomicU64,
    total: AtomicU64,
}

impl Service {
    /// By this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Service { config: Arc::new(config) }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn tasks(&self) -> &Tasks {
        &self.config.tasks
    }

    /// Performs a task, or finishes what is left of it. Without the state store nothing is done: it is tried again later.
    ///
    /// # Errors
    /// When the run is told to stop.
    pub async fn perform(&self, run: &Run, id: &str) -> Result<Outcome> {
        match self.attempt(run, id).await {
            Err(error) if error.is::<StateError>() => {
                run.error(format!("task {id} waits {} s for the state store: {error:#}", WITHOUT_STATE.as_secs()));
                Ok(Outcome::Snooze(WITHOUT_STATE))
            }
            other => other,
        }
    }

    async fn attempt(&self, run: &Run, id: &str) -> Result<Outcome> {
        let Some(promised) = self.promised(run, id).await? else {
            return Ok(Outcome::Refuse(format!("there is no task {id}: it was never accepted, so nothing is done")));
        };
        let turn = self.turn(run, &promised.db_host).await?;
        // Another run may have ended it while we waited.
        let Some(mut task) = self.tasks().get(id).await? else {
            return Ok(Outcome::Refuse(format!("task {id} is gone")));
        };
        let mut error = None;
        match task.status {
            Status::InProgress => match self.left_behind(run, &mut task) {
                Left::GoOn => {}
                Left::Over(status, told) => {
                    self.end(run, &mut task, status, told.as_deref()).await?;
                    error = told;
                }
            },
            Status::Queued if self.tasks().begin(id).await? => task.status = Status::InProgress,
            _ => {}
        }
        if task.status != Status::InProgress {
            return Ok(outcome(&task, error));
        }
        self.go(run, task, turn).await
    }

    /// The task, once it is promised.
    async fn promised(&self, run: &Run, id: &str) -> Result<Option<Task>> {
        let begun = tokio::time::Instant::now();
        loop {
            let task = run.unless_stopped(self.tasks().get(id)).await??;
            match task {
                Some(task) if task.status == Status::Accepting && begun.elapsed() < PROMISE => {
                    run.unless_stopped(tokio::time::sleep(Duration::from_millis(100))).await?;
                }
                Some(task) if task.status == Status::Accepting => {
                    let told = "it was not accepted: the listener died before it could answer";
                    self.tasks().end(id, Status::Accepting, Status::Error, Some(told)).await?;
                }
                other => return Ok(other),
            }
        }
    }

    /// The right to restore there.
    async fn turn(&self, run: &Run, host: &str) -> Result<Turn> {
        let mut told = false;
        loop {
            if let Some(turn) = run.unless_stopped(self.tasks().turn(host, self.config.parallel == 1)).await?? {
                return Ok(turn);
            }
            if !told {
                told = true;
                run.info("waiting for another restore to end");
            }
            run.unless_stopped(tokio::time::sleep(TURN)).await?;
        }
    }

    /// What becomes of a task whose worker did not end it.
    fn left_behind(&self, run: &Run, task: &mut Task) -> Left {
        let condition = Condition::of(task);
        let last = task.steps.0.last().map(|recorded| recorded.step);
        let during = last.map(|step| format!(" during `{step}`")).unwrap_or_default();
        if task.steps.is_done(Step::Wait) || task.steps.is_done(Step::Load) {
            return Left::Over(Status::Completed, None);
        }
        if task.canceled == 1 {
            return Left::Over(Status::Canceled, Some(format!("canceled{during}; {}", condition.told())));
        }
        let physical = self.config.engine.is_physical();
        if condition == Condition::Untouched {
            run.info(format!("an earlier run was interrupted{during}, before it changed anything: the task begins again"));
            return Left::GoOn;
        }
        if self.config.resume && physical {
            run.warn(format!("an earlier run was interrupted{during}: it goes on incrementally"));
            task.incremental = true;
            return Left::GoOn;
        }
        Left::Over(Status::Error, Some(format!("its worker ended{during}; {}", condition.told())))
    }

    /// Runs the steps, under the eyes of whoever may cancel.
    async fn go(&self, run: &Run, mut task: Task, turn: Turn) -> Result<Outcome> {
        let stop = run.stop().child_token();
        let canceled = Arc::new(AtomicBool::new(false));
        let counter = Arc::new(Counter::default());
        let watch = Watch {
            tasks: self.tasks().clone(),
            id: task.id.clone(),
            stop: stop.clone(),
            canceled: canceled.clone(),
            counter: counter.clone(),
        };
        let watcher = AbortOnDropHandle::new(tokio::spawn(watch.keep(turn.lost())));
        let mut errand = Errand::new(&self.config, run.with_stop(stop), &task, &counter);
        let ended = errand.run().await;
        let (steps, backup) = (errand.steps(), errand.backup());
        task.steps = steps;
        task.backup_id = backup.or(task.backup_id);
        drop(watcher);
        let told = match ended {
            Ok(()) => {
                self.tell_success(run, &mut task).await;
                self.end(run, &mut task, Status::Completed, None).await?;
                return Ok(outcome(&task, None));
            }
            Err(Failure::Stopped(said)) if canceled.load(Ordering::Relaxed) => {
                let condition = Condition::of(&task);
                let told = format!("canceled; {}{said}", condition.told());
                self.end(run, &mut task, Status::Canceled, Some(&told)).await?;
                return Ok(outcome(&task, Some(told)));
            }
            Err(Failure::Stopped(_)) => {
                run.warn(format!("task {} is interrupted: {}", task.id, Condition::of(&task).told()));
                return Err(Stopped.into());
            }
            Err(Failure::Step { step, reason }) => format!("`{step}` failed: {reason}; {}", Condition::of(&task).told()),
        };
        self.end(run, &mut task, Status::Error, Some(&told)).await?;
        // Only now: until the end is written nobody else may begin.
        drop(turn);
        Ok(outcome(&task, Some(told)))
    }

    /// People hear of it before the task shows as completed, and may hear twice when we die in between.
    async fn tell_success(&self, run: &Run, task: &mut Task) {
        task.steps.begin(Step::Notify, self.tasks().now());
        let _ = self.tasks().record(&task.id, &task.steps).await;
        let done = Task {
            status: Status::Completed,
            target: Condition::of(task).word().to_owned(),
            completed_at: Some(self.tasks().now()),
            ..self.as_recorded(task).await
        };
        self.config.receivers.tell(run, &self.cluster(task), &done).await;
        task.steps.end(super::steps::StepState::Done, self.tasks().now());
        let _ = self.tasks().record(&task.id, &task.steps).await;
    }

    /// Writes the end of a task, and tells of a bad one. The store is asked again for a while: the target was changed, and who
    /// asked wants to know.
    async fn end(&self, run: &Run, task: &mut Task, status: Status, error: Option<&str>) -> Result<(), StateError> {
        let begun = tokio::time::Instant::now();
        let error = error.map(crate::redact::scrub);
        let written = loop {
            // What the store did not take before may be what tells the target's condition.
            let _ = self.tasks().record(&task.id, &task.steps).await;
            match self.tasks().end(&task.id, Status::InProgress, status, error.as_deref()).await {
                Ok(written) => break written,
                Err(failed) if begun.elapsed() > WRITING => return Err(failed),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        if !written {
            run.warn(format!("task {} was ended by somebody else meanwhile", task.id));
        }
        task.status = status;
        task.error = error;
        task.target = Condition::of(task).word().to_owned();
        if written && status != Status::Completed {
            let ended = Task { target: task.target.clone(), ..self.as_recorded(task).await };
            self.config.receivers.tell(run, &self.cluster(task), &ended).await;
        }
        if let Err(failed) = self.tasks().forget(self.config.history).await {
            run.warn(format!("the history was not shortened: {failed}"));
        }
        Ok(())
    }

    /// The task with the times and the progress that the store has.
    async fn as_recorded(&self, task: &Task) -> Task {
        match self.tasks().get(&task.id).await {
            Ok(Some(recorded)) => Task { steps: task.steps.clone(), ..recorded },
            _ => task.clone(),
        }
    }

    /// Ends a task whose job is gone, if nobody performs it now; tells whether it did.
    ///
    /// # Errors
    /// When the state store does not answer.
    pub async fn bury(&self, run: &Run, id: &str, reason: &str) -> Result<bool, StateError> {
        let begun = async || Ok::<_, StateError>(self.tasks().get(id).await?.filter(|task| task.status == Status::InProgress));
        let Some(task) = begun().await? else { return Ok(false) };
        let Some(_turn) = self.tasks().turn(&task.db_host, self.config.parallel == 1).await? else { return Ok(false) };
        // Another run may have ended it meanwhile.
        let Some(mut task) = begun().await? else { return Ok(false) };
        let condition = Condition::of(&task).told();
        let (status, told) = match (task.steps.is_done(Step::Wait) || task.steps.is_done(Step::Load), task.canceled) {
            (true, _) => (Status::Completed, None),
            (false, 1) => (Status::Canceled, Some(format!("canceled; {condition}"))),
            (false, _) => (Status::Error, Some(format!("{reason}; {condition}"))),
        };
        self.end(run, &mut task, status, told.as_deref()).await?;
        Ok(true)
    }

    /// Tells people of a task that ended before it began.
    pub async fn tell(&self, task: &Task) {
        self.config.receivers.tell(&Run::detached(), &self.cluster(task), task).await;
    }

    /// What people call the target.
    fn cluster(&self, task: &Task) -> String {
        let target = self.config.mapping.resolve(&task.db_instance, Some(&task.db_host));
        target.map_or_else(|_| task.db_instance.clone(), |target| target.cluster)
    }
}

enum Left {
    GoOn,
    Over(Status, Option<String>),
}

fn outcome(task: &Task, error: Option<String>) -> Outcome {
    match task.status {
        Status::Completed => {
            Outcome::Done(json!({"task": task.id, "status": "completed", "backup": task.backup_id, "target": task.target}))
        }
        _ => Outcome::Refuse(error.or(task.error.clone()).unwrap_or_else(|| format!("the task is {}", task.status.word()))),
    }
}

/// Looks at what may end the run from outside, and writes down how far it is.
struct Watch {
    tasks: Tasks,
    id: String,
    stop: CancellationToken,
    canceled: Arc<AtomicBool>,
    counter: Arc<Counter>,
}

impl Watch {
    async fn keep(self, lost: impl Future<Output = ()> + Send) {
        tokio::pin!(lost);
        let mut written = (0, 0);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = &mut lost => {
                    tracing::error!("the turn to restore was lost with its session, so task {} stops", self.id);
                    return self.stop.cancel();
                }
            }
            // A store that does not answer cancels nothing.
            if let Ok(Some(task)) = self.tasks.get(&self.id).await
                && task.canceled == 1
            {
                self.canceled.store(true, Ordering::Relaxed);
                return self.stop.cancel();
            }
            let now = (self.counter.done.load(Ordering::Relaxed), self.counter.total.load(Ordering::Relaxed));
            if now != written {
                written = now;
                let percent = (now.0 * 100).checked_div(now.1).unwrap_or(0);
                let _ = self.tasks.progress(&self.id, &json!({"done": now.0, "total": now.1, "percent": percent})).await;
            }
        }
    }
}
