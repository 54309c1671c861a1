//! Looking at a queue without changing it (wire format §6.19, §6.20).

use super::job::Job;
use super::scripts::NO_MORE;
use super::{Queue, QueueError, keys, scripts};

/// Jobs read by one script call.
const READ_BATCH: usize = 200;

/// How many jobs are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting to be taken.
    pub waiting: u64,
    /// Being run.
    pub active: u64,
    /// Done.
    pub completed: u64,
    /// Failed for good.
    pub failed: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Waiting for the queue to be resumed.
    pub paused: u64,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting to be taken.
    Waiting,
    /// Being run.
    Active,
    /// Done.
    Completed,
    /// Failed for good.
    Failed,
    /// Waiting for its time.
    Delayed,
    /// Waiting for the queue to be resumed.
    Paused,
    /// In none of these: nothing will ever run it. Only other programs leave jobs so.
    Stuck,
}

impl State {
    /// Bull's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Active => "active",
            State::Completed => "completed",
            State::Failed => "failed",
            State::Delayed => "delayed",
            State::Paused => "paused",
            State::Stuck => "stuck",
        }
    }

    /// Last part of the key that lists its jobs.
    pub(super) fn list(self) -> Option<&'static str> {
        match self {
            State::Waiting => Some("wait"),
            State::Stuck => None,
            other => Some(other.name()),
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Queue {
    /// How many jobs are in each state.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn counts(&self) -> Result<Counts, QueueError> {
        // In one script, so that a job that moves meanwhile is counted once.
        let mut answer = self.run("", &self.call(&scripts::COUNTS, NO_MORE)).await?;
        let mut next = || answer.number().map(|count| u64::try_from(count).unwrap_or(0));
        let (waiting, active, completed, failed, delayed, paused) = (next()?, next()?, next()?, next()?, next()?, next()?);
        Ok(Counts { waiting, active, completed, failed, delayed, paused })
    }

    /// How many jobs that wait have each of these priorities; 0 stands for those without one.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn counts_per_priority(&self, priorities: &[u32]) -> Result<Vec<u64>, QueueError> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.llen(self.keys().of("wait")).llen(self.keys().of("paused")).zcard(self.keys().of("priority"));
        for priority in priorities {
            pipe.zcount(self.keys().of("priority"), *priority, *priority);
        }
        let counted: Vec<u64> = pipe.query_async(&mut self.connection().await?).await?;
        let [wait, paused, prioritised, each @ ..] = &counted[..] else {
            return Err(QueueError::Answer("it is too short".into()));
        };
        let without = (wait + paused).saturating_sub(*prioritised);
        Ok(priorities.iter().zip(each).map(|(priority, count)| if *priority == 0 { without } else { *count }).collect())
    }

    /// Ids in `state`, positions `start` to `end`, both included; `end` -1 means to the last. Ascending is
    /// in the order in which they are taken, became due, or finished.
    async fn ids(&self, state: State, start: isize, end: isize, ascending: bool) -> Result<Vec<Vec<u8>>, QueueError> {
        let Some(list) = state.list() else { return Ok(Vec::new()) };
        let key = self.keys().of(list);
        let mut connection = self.connection().await?;
        let is_list = matches!(state, State::Waiting | State::Active | State::Paused);
        let command = match (is_list, ascending) {
            // The oldest are at the right.
            (true, true) => redis::Cmd::lrange(key, -end.saturating_add(1), -start.saturating_add(1)),
            (true, false) => redis::Cmd::lrange(key, start, end),
            (false, true) => redis::Cmd::zrange(key, start, end),
            (false, false) => redis::Cmd::zrevrange(key, start, end),
        };
        let mut ids: Vec<Vec<u8>> = command.query_async(&mut connection).await?;
        if is_list && ascending {
            ids.reverse();
        }
        Ok(ids)
    }

    /// The jobs of several states, one state after the other, positions `start` to `end` of each. Ids without a job
    /// are left out. An id that is no UTF-8 is shown with replacement characters: such a job cannot be named, but goes with
    /// [`Queue::clean`]. A range with a negative `start` is that of Redis, and only right when descending.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn jobs(&self, states: &[State], start: isize, end: isize, ascending: bool) -> Result<Vec<Job>, QueueError> {
        let mut jobs = Vec::new();
        for state in states {
            let ids = self.ids(*state, start, end, ascending).await?;
            for batch in ids.chunks(READ_BATCH) {
                jobs.extend(self.read(batch).await?);
            }
        }
        Ok(jobs)
    }

    async fn read(&self, ids: &[impl AsRef<[u8]>]) -> Result<Vec<Job>, QueueError> {
        let keys: Vec<Vec<u8>> = ids.iter().map(|id| [self.keys().base().as_bytes(), id.as_ref()].concat()).collect();
        let hashes = self.run("", &self.call(&scripts::READ, &keys)).await?.values();
        let jobs = ids.iter().zip(hashes).filter_map(|(id, hash)| Job::from_fields(&String::from_utf8_lossy(id.as_ref()), hash));
        Ok(jobs.collect())
    }

    /// A job, whatever its state.
    ///
    /// # Errors
    /// [`QueueError::InvalidId`], or Redis's.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, QueueError> {
        keys::check_id(id)?;
        Ok(self.read(&[id]).await?.pop())
    }

    /// Where a job is; nothing when there is no such job.
    ///
    /// # Errors
    /// [`QueueError::InvalidId`], [`QueueError::WrongType`], or Redis's.
    pub async fn state(&self, id: &str) -> Result<Option<State>, QueueError> {
        keys::check_id(id)?;
        let mut call = self.call(&scripts::STATE, &[self.keys().job(id)]);
        call.arg(id);
        match self.run(id, &call).await {
            Ok(answer) => Ok(Some(match answer.code {
                1 => State::Completed,
                2 => State::Failed,
                3 => State::Delayed,
                4 => State::Active,
                5 => State::Waiting,
                6 => State::Paused,
                _ => State::Stuck,
            })),
            Err(QueueError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
