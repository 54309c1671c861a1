//! What a queue must hold after each operation: told by what was asked, never by what Redis answered.

use std::collections::{BTreeMap, BTreeSet};

use bullwork::queue::{JobOptions, Keep};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Wait,
    Paused,
    Active,
    Delayed,
    Completed,
    Failed,
}

/// Why a call must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    LockLost,
    Locked,
    NotDelayed,
    NotFinished,
    ActiveJobs,
}

#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) place: Place,
    /// Token in its lock.
    pub(super) lock: Option<String>,
    pub(super) attempts_made: u32,
    pub(super) options: JobOptions,
    pub(super) cancel: bool,
    /// Was active at the last stalled check and gave no sign since.
    suspect: bool,
    stalls: u32,
    score: i64,
    timestamp: i64,
    processed_on: Option<i64>,
    finished_on: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now: i64,
    pub(super) paused: bool,
    pub(super) counter: i64,
    pub(super) jobs: BTreeMap<String, Job>,
    /// Who holds which, and whether it is held for a time, whatever becomes of the job.
    pub(super) debounces: BTreeMap<String, (String, bool)>,
    /// Runs in the time of the rate limit.
    pub(super) begun: u64,
    /// Next slot of the one schedule.
    pub(super) schedule: Option<i64>,
}

impl Model {
    fn line(&self) -> Place {
        if self.paused { Place::Paused } else { Place::Wait }
    }

    pub(super) fn in_place(&self, place: Place) -> Vec<String> {
        self.jobs.iter().filter(|(_, job)| job.place == place).map(|(id, _)| id.clone()).collect()
    }

    fn low_bits(id: &str) -> i64 {
        id.parse::<i64>().unwrap_or(0) % 4096
    }

    /// The id of the new job; or, in `Err`, of the job that holds its debounce.
    pub(super) fn add(&mut self, custom: Option<&str>, options: &JobOptions) -> Result<String, String> {
        self.counter += 1;
        let id = custom.map_or_else(|| self.counter.to_string(), str::to_owned);
        if let Some(debounce) = &options.debounce {
            if let Some((holder, _)) = self.debounces.get(&debounce.id) {
                return Err(holder.clone());
            }
            self.debounces.insert(debounce.id.clone(), (id.clone(), debounce.ttl.is_some()));
        }
        let place = if options.delay > 0 { Place::Delayed } else { self.line() };
        let score = (self.now + options.delay) * 4096 + self.counter % 4096;
        let job = Job {
            place,
            lock: None,
            attempts_made: 0,
            options: options.clone(),
            cancel: false,
            suspect: false,
            stalls: 0,
            score,
            timestamp: self.now,
            processed_on: None,
            finished_on: None,
        };
        self.jobs.insert(id.clone(), job);
        Ok(id)
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.jobs.remove(id);
        self.debounces.retain(|_, (holder, _)| holder != id);
    }

    fn job(&mut self, id: &str) -> &mut Job {
        self.jobs.get_mut(id).expect("the model has it")
    }

    pub(super) fn take(&mut self, id: &str, token: Option<&str>) {
        let now = self.now;
        let job = self.job(id);
        assert_eq!(job.place, Place::Wait, "{id} was taken");
        job.place = Place::Active;
        if let Some(token) = token {
            job.lock = Some(token.to_owned());
            job.processed_on = Some(now);
        }
    }

    /// Whether the run may settle the job.
    pub(super) fn owns(&self, id: &str, token: &str) -> Result<(), Refusal> {
        match self.jobs.get(id) {
            None => Err(Refusal::Missing),
            Some(job) if job.lock.as_deref() == Some(token) => Ok(()),
            Some(_) => Err(Refusal::LockLost),
        }
    }

    fn leave_active(&mut self, id: &str) -> &mut Job {
        let job = self.job(id);
        (job.lock, job.suspect) = (None, false);
        job
    }

    pub(super) fn put_in_line(&mut self, id: &str) {
        let line = self.line();
        self.leave_active(id).place = line;
    }

    pub(super) fn put_off(&mut self, id: &str, wait: i64) {
        self.put_off_to(id, (self.now + wait) * 4096 + Self::low_bits(id));
    }

    pub(super) fn put_off_to(&mut self, id: &str, score: i64) {
        let job = self.leave_active(id);
        (job.place, job.score) = (Place::Delayed, score);
    }

    pub(super) fn finish(&mut self, id: &str, place: Place) {
        self.debounces.retain(|_, (holder, timed)| *timed || holder != id);
        let now = self.now;
        let job = self.leave_active(id);
        let keep = if place == Place::Failed { job.options.remove_on_fail } else { job.options.remove_on_complete };
        (job.place, job.finished_on, job.cancel) = (place, Some(now), false);
        let mut finished: BTreeSet<(i64, String)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.place == place)
            .map(|(id, job)| (job.finished_on.expect("it is finished"), id.clone()))
            .collect();
        let (most, age) = match keep {
            Keep::All => return,
            Keep::None => {
                self.jobs.remove(id);
                return;
            }
            Keep::Count(count) => (Some(count), None),
            Keep::Age { seconds, count } => (count, Some(i64::try_from(seconds).expect("small"))),
        };
        let old: Vec<_> = finished.iter().filter(|(at, _)| age.is_some_and(|age| *at <= now - age * 1000)).cloned().collect();
        for entry in old {
            finished.remove(&entry);
            self.jobs.remove(&entry.1);
        }
        while most.is_some_and(|most| finished.len() as u64 > most) {
            let (_, id) = finished.pop_first().expect("more than none");
            self.jobs.remove(&id);
        }
    }

    pub(super) fn renew(&mut self, id: &str, token: &str) -> bool {
        let Some(job) = self.jobs.get_mut(id) else { return false };
        let free = job.lock.is_none() && job.place == Place::Active;
        if free || job.lock.as_deref() == Some(token) {
            (job.lock, job.suspect) = (Some(token.to_owned()), false);
            return true;
        }
        false
    }

    /// Ids that come back and ids that fail.
    pub(super) fn recover(&mut self, limit: u32) -> (BTreeSet<String>, BTreeSet<String>) {
        let lost = |job: &Job| job.place == Place::Active && job.suspect && job.lock.is_none();
        let stalled: Vec<String> = self.jobs.iter().filter(|(_, job)| lost(job)).map(|(id, _)| id.clone()).collect();
        let (mut requeued, mut failed) = (BTreeSet::new(), BTreeSet::new());
        for id in stalled {
            let job = self.job(&id);
            job.stalls += 1;
            if job.stalls > limit {
                let cancel = job.cancel;
                self.finish(&id, Place::Failed);
                // An order outlives the stall; it ends by its time.
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.cancel = cancel;
                }
                failed.insert(id);
            } else {
                self.put_in_line(&id);
                requeued.insert(id);
            }
        }
        for job in self.jobs.values_mut().filter(|job| job.place == Place::Active) {
            job.suspect = true;
        }
        (requeued, failed)
    }

    /// When the next job is due.
    pub(super) fn promote_due(&mut self) -> Option<i64> {
        for id in self.in_place(Place::Delayed) {
            if self.jobs[&id].score <= self.now * 4096 {
                self.put_in_line(&id);
            }
        }
        let lowest = self.jobs.values().filter(|job| job.place == Place::Delayed).map(|job| job.score).min();
        lowest.map(|score| (score + 4095) / 4096)
    }

    pub(super) fn retry(&mut self, id: &str) -> Result<(), Refusal> {
        let job = self.jobs.get_mut(id).ok_or(Refusal::Missing)?;
        if !matches!(job.place, Place::Completed | Place::Failed) {
            return Err(if job.lock.is_some() { Refusal::Locked } else { Refusal::NotFinished });
        }
        (job.finished_on, job.processed_on) = (None, None);
        self.put_in_line(id);
        Ok(())
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        let line = self.line();
        for job in self.jobs.values_mut().filter(|job| matches!(job.place, Place::Wait | Place::Paused)) {
            job.place = line;
        }
    }

    /// Ids that cleaning `place` removes.
    pub(super) fn clean(&mut self, place: Place, before: Option<i64>, keep_schedules: bool) -> BTreeSet<String> {
        let old = |id: &String, job: &Job| {
            let time = job.finished_on.or(job.processed_on).unwrap_or(job.timestamp);
            job.place == place
                && job.lock.is_none()
                && before.is_none_or(|before| time < before)
                && !(keep_schedules && id.starts_with("repeat:"))
        };
        let gone: BTreeSet<String> = self.jobs.iter().filter(|(id, job)| old(id, job)).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            if matches!(place, Place::Completed | Place::Failed) {
                // Its debounce ended with the job, or has a time of its own.
                self.jobs.remove(id);
            } else {
                self.remove(id);
            }
        }
        gone
    }

    /// Deletes everything but what is held for a time by a job that is gone already.
    pub(super) fn obliterate(&mut self) {
        self.debounces.retain(|_, (holder, _)| !self.jobs.contains_key(holder));
        *self = Model { now: self.now, debounces: std::mem::take(&mut self.debounces), ..Model::default() };
    }

    /// Whether a run waits for its time or its end.
    pub(super) fn is_pending(&self, id: &str) -> bool {
        self.jobs.get(id).is_some_and(|job| !matches!(job.place, Place::Completed | Place::Failed))
    }
}
