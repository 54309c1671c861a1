//! The steps themselves.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::config::Config;
use super::super::engine::{self, Backup, EngineError, Work};
use super::super::leash::Ended;
use super::super::remote::RemoteError;
use super::super::steps::{Condition, Step, StepState, Steps};
use super::super::target::{Target, is_below, path_fault};
use super::super::tasks::Task;
use super::Counter;
use crate::process::tells_of_a_full_disk;
use crate::state::StateError;
use crate::worker::Run;
use crate::worker::run::Stopped;

/// How long a start or stop command may take.
const COMMAND: Duration = Duration::from_secs(600);
/// How long a cluster may take to be gone after it was stopped.
const GONE: Duration = Duration::from_secs(20);
/// Between two looks at a cluster.
const LOOK: Duration = Duration::from_secs(1);
/// A disk with less left is full for any cluster: a segment of WAL has 16 MiB.
const FULL: u64 = 16 << 20;
/// Tries to write a step down.
const TRIES: u32 = 5;

/// Why a task did not come to its good end.
pub(super) enum Failure {
    /// Somebody ended it; the text, if any, is to be told too.
    Stopped(String),
    /// A step failed.
    Step { step: Step, reason: String },
}

/// Why a step failed.
enum Fault {
    Stopped(String),
    Because(String),
}

impl From<Stopped> for Fault {
    fn from(_: Stopped) -> Self {
        Fault::Stopped(String::new())
    }
}

impl From<RemoteError> for Fault {
    fn from(error: RemoteError) -> Self {
        Fault::Because(error.to_string())
    }
}

impl From<StateError> for Fault {
    fn from(error: StateError) -> Self {
        Fault::Because(format!("{:#}", anyhow::Error::from(error)))
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Ended { gone: true } => Fault::Stopped(String::new()),
            EngineError::Ended { gone: false } => {
                Fault::Stopped("; the tool was not seen to end on the other side: look whether it still runs there".to_owned())
            }
            other => Fault::Because(other.to_string()),
        }
    }
}

/// A cluster's server as its `postmaster.pid` tells it.
struct Postmaster {
    /// `starting`, `ready`, `standby` …
    status: String,
}

pub(super) struct Errand<'e> {
    config: &'e Config,
    run: Run,
    task: &'e Task,
    counter: &'e Counter,
    steps: Mutex<Steps>,
    backup: Mutex<Option<String>>,
}

impl<'e> Errand<'e> {
    pub(super) fn new(config: &'e Config, run: Run, task: &'e Task, counter: &'e Counter) -> Self {
        Errand { config, run, task, counter, steps: Mutex::new(task.steps.clone()), backup: Mutex::default() }
    }

    pub(super) fn steps(&self) -> Steps {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn backup(&self) -> Option<String> {
        self.backup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All steps up to the running target.
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        let target = self.config.mapping.resolve(&self.task.db_instance, Some(&self.task.db_host));
        let target = target.map_err(|refusal| Failure::Step { step: Step::Choose, reason: refusal.to_string() })?;
        let backup = self.step(Step::Choose, self.choose(&target)).await?;
        *self.backup.lock().unwrap_or_else(PoisonError::into_inner) = Some(backup.id.clone());
        let work = Work { task: self.task.id.clone(), target, backup, incremental: self.task.incremental };
        if !self.config.engine.is_physical() {
            self.step(Step::Check, self.check_archive(&work)).await?;
            return self.step(Step::Load, self.restore(&work)).await;
        }
        let (pgdata, wal_dir) = self.step(Step::Check, self.check(&work)).await?;
        self.step(Step::Stop, self.stop(&work.target)).await?;
        self.step(Step::Empty, self.empty(&work, &pgdata, wal_dir.as_deref())).await?;
        self.step(Step::Restore, self.restore(&work)).await?;
        self.step(Step::Start, self.start(&work.target)).await?;
        self.step(Step::Wait, self.wait(&work.target)).await
    }

    /// Records that a step begins, does it, and records how it ended. Nothing begins that is not recorded.
    async fn step<T>(&self, step: Step, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Failure> {
        let failure = |fault| match fault {
            Fault::Stopped(said) => Failure::Stopped(said),
            Fault::Because(reason) => Failure::Step { step, reason },
        };
        self.run.checkpoint().map_err(|_| Failure::Stopped(String::new()))?;
        self.note(|steps, now| steps.begin(step, now)).await.map_err(failure)?;
        self.run.progress(|p| p.phase = step.to_string());
        self.run.info(format!("step `{step}` begins"));
        let result = work.await;
        let state = if result.is_ok() { StepState::Done } else { StepState::Failed };
        // One that was stopped stays begun: whether it did anything is not known.
        if !matches!(result, Err(Fault::Stopped(_))) {
            self.note(|steps, now| steps.end(state, now)).await.map_err(failure)?;
        }
        result.map_err(failure)
    }

    async fn note(&self, change: impl FnOnce(&mut Steps, String)) -> Result<(), Fault> {
        let steps = {
            let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut steps, self.config.tasks.now());
            steps.clone()
        };
        let mut tries = 0;
        loop {
            match self.config.tasks.record(&self.task.id, &steps).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(Fault::Because("somebody else ended the task".to_owned())),
                Err(_) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn choose(&self, target: &Target) -> Result<Backup, Fault> {
        let Task { id, backup_id, .. } = self.task;
        if self.task.incremental && !self.config.engine.is_physical() {
            return Err(Fault::Because("an archive is restored whole: ask without `incremental`".to_owned()));
        }
        let backups = self.run.unless_stopped(self.config.engine.backups(target)).await??;
        let backup = engine::choose(&backups, backup_id.as_deref(), &target.instance)?;
        self.config.tasks.chosen(id, &backup.id, backup.recovery_time.as_deref()).await?;
        let time = backup.recovery_time.as_deref().unwrap_or("an unknown time");
        self.run.info(format!("task {id} restores backup {} of {} ({time}) to {}", backup.id, target.instance, target.host));
        Ok(backup)
    }

    async fn check_archive(&self, work: &Work) -> Result<(), Fault> {
        Ok(self.config.engine.validate(&self.run, work).await?)
    }

    async fn remote(&self, target: &Target, words: &[&str]) -> Result<String, Fault> {
        Ok(self.run.unless_stopped(self.config.ssh.run(&target.host, words)).await??)
    }

    /// The same where an exit code other than 0 is an answer too: none.
    async fn asked(&self, target: &Target, words: &[&str]) -> Result<Option<String>, Fault> {
        match self.run.unless_stopped(self.config.ssh.run(&target.host, words)).await? {
            Ok(output) => Ok(Some(output)),
            Err(RemoteError::Failed { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a directory really is, and that it may be emptied there.
    async fn real(&self, target: &Target, path: &str) -> Result<Option<String>, Fault> {
        let Some(real) = self.asked(target, &["realpath", "-e", "--", path]).await? else { return Ok(None) };
        let real = real.trim_end_matches('\n').to_owned();
        self.may_empty(&real)?;
        if self.asked(target, &["test", "-d", &real]).await?.is_none() {
            return Err(Fault::Because(format!("{path} on {} is no directory", target.host)));
        }
        Ok(Some(real))
    }

    fn may_empty(&self, path: &str) -> Result<(), Fault> {
        let roots = &self.config.roots;
        if path_fault(path).is_some() || !is_below(path, roots) {
            let roots = roots.join(", ");
            return Err(Fault::Because(format!("the directory is really `{path}`, which is not below any of the roots {roots}")));
        }
        Ok(())
    }

    /// Everything that can be wrong; the real places of the two directories.
    async fn check(&self, work: &Work) -> Result<(String, Option<String>), Fault> {
        let target = &work.target;
        let Some(pgdata) = self.real(target, &target.pgdata).await? else {
            return Err(Fault::Because(format!("there is no directory {} on {}", target.pgdata, target.host)));
        };
        let wal_dir = match &target.wal_dir {
            Some(wal_dir) => self.real(target, wal_dir).await?,
            None => None,
        };
        if wal_dir.as_deref().is_some_and(|wal_dir| super::super::target::overlap(wal_dir, &pgdata)) {
            return Err(Fault::Because("data and WAL directory are really the same, or lie in one another".to_owned()));
        }
        for directory in std::iter::once(&pgdata).chain(&wal_dir) {
            self.check_outside(target, directory).await?;
        }
        let version = self.asked(target, &["cat", "--", &format!("{pgdata}/PG_VERSION")]).await?;
        // Each database's own directory has a PG_VERSION, too.
        let control = self.asked(target, &["test", "-e", &format!("{pgdata}/global/pg_control")]).await?;
        match version.as_deref().map(str::trim) {
            Some(version) if version == self.config.pg_version && control.is_some() => {}
            Some(version) if version == self.config.pg_version => {
                self.check_remains(target, &pgdata, "global/pg_control").await?;
            }
            Some(version) => {
                let wanted = &self.config.pg_version;
                return Err(Fault::Because(format!(
                    "{pgdata} on {} holds a cluster of version {version}, not {wanted}: is it the right one?",
                    target.host
                )));
            }
            None => self.check_remains(target, &pgdata, "PG_VERSION").await?,
        }
        if !work.incremental {
            self.check_room(work, &pgdata).await?;
        }
        self.config.engine.validate(&self.run, work).await?;
        Ok((pgdata, wal_dir))
    }

    /// A directory inside of a cluster's is part of that cluster.
    async fn check_outside(&self, target: &Target, directory: &str) -> Result<(), Fault> {
        let above = || std::path::Path::new(directory).ancestors().skip(1);
        let controls: Vec<String> = above().map(|above| above.join("global/pg_control").display().to_string()).collect();
        // Asked in one go: `test -e A -o -e B`.
        let words = controls.iter().flat_map(|control| ["-o", "-e", control.as_str()]).skip(1);
        let words: Vec<&str> = std::iter::once("test").chain(words).collect();
        if self.asked(target, &words).await?.is_none() {
            return Ok(());
        }
        for (above, control) in above().zip(&controls) {
            if self.asked(target, &["test", "-e", control]).await?.is_some() {
                return Err(Fault::Because(format!(
                    "{directory} on {} lies in a cluster's data directory, {}: correct pgdata or wal_dir of the mapping",
                    target.host,
                    above.display()
                )));
            }
        }
        Ok(())
    }

    /// A directory without a version is a target if it is empty, or if it is known to be what a restore of ours left.
    async fn check_remains(&self, target: &Target, pgdata: &str, lacking: &str) -> Result<(), Fault> {
        let any = self.remote(target, &["find", pgdata, "-mindepth", "1", "-maxdepth", "1", "-print", "-quit"]).await?;
        if any.trim().is_empty() {
            return Ok(());
        }
        let before = self.config.tasks.before(self.task).await?;
        let ours = before.is_some_and(|before| Condition::of(&before) == Condition::Incomplete);
        if ours || self.steps().condition() == Condition::Incomplete {
            self.run.warn(format!("{pgdata} holds what an earlier restore left unfinished"));
            return Ok(());
        }
        Err(Fault::Because(format!("{pgdata} on {} is no data directory: it has no {lacking}, and is not empty", target.host)))
    }

    async fn check_room(&self, work: &Work, pgdata: &str) -> Result<(), Fault> {
        let Some(needed) = work.backup.bytes else { return Ok(()) };
        let free = self.free(&work.target, pgdata).await?;
        // A file may go while it is counted; then what du says is on the output all the same, but its code is not 0.
        let there = self.asked(&work.target, &["du", "-skx", "--", pgdata]).await?;
        let there = there.as_deref().and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let (Some(free), Some(there)) = (free, there) else { return Ok(()) };
        let room = free + there * 1024;
        if room < needed {
            return Err(Fault::Because(format!(
                "{} has {room} bytes for {pgdata}, what is there included, and the backup needs {needed}: make room there",
                work.target.host
            )));
        }
        Ok(())
    }

    /// Bytes that are free where a directory is.
    async fn free(&self, target: &Target, directory: &str) -> Result<Option<u64>, Fault> {
        let told = self.remote(target, &["df", "-Pk", "--", directory]).await?;
        let kilobytes = told.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
        Ok(kilobytes.map(|kilobytes| kilobytes * 1024))
    }

    /// The operator's line with the target's names, all of which are plain words.
    fn filled(&self, line: &str, target: &Target) -> String {
        line.replace("{pg_version}", &self.config.pg_version)
            .replace("{pg_ctl_instance}", &target.cluster)
            .replace("{pgdata}", &target.pgdata)
    }

    /// The server that runs in the target's data directory.
    async fn postmaster(&self, target: &Target) -> Result<Option<Postmaster>, Fault> {
        let file = format!("{}/postmaster.pid", target.pgdata);
        let Some(text) = self.asked(target, &["cat", "--", &file]).await? else { return Ok(None) };
        let mut lines = text.lines();
        let pid = lines.next().unwrap_or_default().trim().trim_start_matches('-').to_owned();
        if pid.is_empty() || !pid.chars().all(|c| c.is_ascii_digit()) {
            return Ok(None);
        }
        let status = lines.nth(6).unwrap_or_default().trim().to_owned();
        // The file stays after a crash, and the number may be another program's by now.
        let name = self.asked(target, &["cat", "--", &format!("/proc/{pid}/comm")]).await?;
        Ok(name.filter(|name| name.starts_with("postgres") || name.starts_with("postmaster")).map(|_| Postmaster { status }))
    }

    async fn stop(&self, target: &Target) -> Result<(), Fault> {
        let ran = self.postmaster(target).await?.is_some();
        let line = self.filled(&self.config.stop_command, target);
        let stopped = self.config.ssh.own_line(&target.host, &line, "the stop command", COMMAND);
        let stopped = self.run.unless_stopped(stopped).await?;
        match stopped {
            Ok(_) => {}
            Err(error @ RemoteError::Failed { .. }) if !ran => {
                self.run.warn(format!("the cluster did not run, and {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        let deadline = tokio::time::Instant::now() + GONE;
        while self.postmaster(target).await?.is_some() {
            if tokio::time::Instant::now() >= deadline {
                let reason = format!("the cluster of {} still runs {} s after it was stopped", target.pgdata, GONE.as_secs());
                return Err(Fault::Because(reason));
            }
            self.run.unless_stopped(tokio::time::sleep(LOOK)).await?;
        }
        Ok(())
    }

    async fn empty(&self, work: &Work, pgdata: &str, wal_dir: Option<&str>) -> Result<(), Fault> {
        let whole = (!work.incremental).then_some(pgdata);
        for directory in wal_dir.into_iter().chain(whole) {
            self.may_empty(directory)?;
            self.run.info(format!("emptying {directory} on {}", work.target.host));
            let words = ["find", directory, "-mindepth", "1", "-delete"].map(str::to_owned);
            let stop = self.run.stop().cancelled();
            match self.config.ssh.long(&work.target.host, &words, |_| (), stop).await.map_err(EngineError::from)? {
                Ended::Done => {}
                Ended::Failed(told) => return Err(Fault::Because(told)),
                Ended::LetGo { gone } => return Err(EngineError::Ended { gone }.into()),
            }
        }
        Ok(())
    }

    async fn restore(&self, work: &Work) -> Result<(), Fault> {
        let told = |done, total| {
            self.counter.done.store(done, Ordering::Relaxed);
            self.counter.total.store(total, Ordering::Relaxed);
            self.run.progress(|p| (p.done, p.total) = (done, total));
        };
        match self.config.engine.restore(&self.run, work, &told).await.map_err(Fault::from) {
            Err(Fault::Because(reason)) => Err(Fault::Because(format!("{reason}{}", self.room(&work.target, &reason).await))),
            other => other,
        }
    }

    /// The way out when a disk is full. pgBackRest says no more than that it could not write, so the disk itself is asked.
    async fn room(&self, target: &Target, reason: &str) -> String {
        let said = tells_of_a_full_disk(reason);
        let Target { host, pgdata, wal_dir, database, .. } = target;
        if !self.config.engine.is_physical() {
            let told = format!("; the disk of the server which gets the database `{database}` is full: make room there");
            return if said { told } else { String::new() };
        }
        for directory in std::iter::once(pgdata).chain(wal_dir) {
            if let Ok(Some(free)) = self.free(target, directory).await
                && free < FULL
            {
                return format!("; {directory} on {host} has {free} bytes left: make room there");
            }
        }
        if said { format!("; a disk or a quota on {host} is used up: make room there") } else { String::new() }
    }

    async fn start(&self, target: &Target) -> Result<(), Fault> {
        let line = self.filled(&self.config.start_command, target);
        self.run.unless_stopped(self.config.ssh.own_line(&target.host, &line, "the start command", COMMAND)).await??;
        Ok(())
    }

    /// `ready` is the server's own word for both: it accepts connections, and recovery is over (`standby` would be the first alone).
    async fn wait(&self, target: &Target) -> Result<(), Fault> {
        let deadline = tokio::time::Instant::now() + self.config.start_timeout;
        loop {
            let seen = self.postmaster(target).await?;
            if seen.as_ref().is_some_and(|postmaster| postmaster.status == "ready") {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let limit = self.config.start_timeout.as_secs();
                let state = seen.map_or_else(|| "is not there".to_owned(), |postmaster| format!("says `{}`", postmaster.status));
                return Err(Fault::Because(format!(
                    "the cluster did not accept connections and leave recovery within {limit} s: its server {state}"
                )));
            }
            self.run.unless_stopped(tokio::time::sleep(LOOK)).await?;
        }
    }
}
