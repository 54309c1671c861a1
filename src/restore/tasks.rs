//! Tasks and their history, in the state store.
//!
//! Every change of a task's status is one statement that names the status it comes from, so that of two processes one wins. A task
//! is accepted at the moment when it goes from `accepting` to `queued`; its job in Redis, which has the same id, is only what
//! wakes a worker, and may be lost and added again.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;
use tokio::sync::OnceCell;

use super::steps::{Condition, Steps};
use crate::clock::{Clock, to_rfc3339};
use crate::state::{Lock, Migration, Row, State, StateError, Value};

static MIGRATIONS: &[Migration] = &[Migration {
    name: "restore-tasks",
    statements: &[
        "create table bullwork_restore_task (
            id text primary key, db_instance text not null, db_host text not null, backup_id text, recovery_time text,
            incremental bigint not null, status text not null, target text not null, cancel_requested bigint not null,
            progress text, error text, steps text not null, created_at text not null, started_at text, completed_at text
        )",
        "create index bullwork_restore_task_by_time on bullwork_restore_task (created_at)",
    ],
}];

/// The lock of the one restore at a time; with a host's name behind it, that of the host.
const ONE: &str = "restore";

/// The right to restore on a host, until it is dropped.
#[derive(Debug)]
pub struct Turn(Vec<Lock>);

impl Turn {
    /// Ends when it is lost although nobody dropped it.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let locks: Vec<_> = self.0.iter().map(|lock| Box::pin(lock.lost().cancelled_owned())).collect();
        async { drop(futures_util::future::select_all(locks).await) }
    }
}

macro_rules! all_columns {
    () => {
        "select id, db_instance, db_host, backup_id, recovery_time, incremental, status, target, cancel_requested, progress, error, \
         steps, created_at, started_at, completed_at from bullwork_restore_task"
    };
}

const INSERT: &str = "insert into bullwork_restore_task
    (id, db_instance, db_host, backup_id, incremental, status, target, cancel_requested, steps, created_at)
    values ($1, $2, $3, $4, $5, 'accepting', 'untouched', 0, '[]', $6)";
const DELETE: &str = "delete from bullwork_restore_task where id = $1 and status = 'accepting'";
const GET: &str = concat!(all_columns!(), " where id = $1");
const LIST: &str = concat!(all_columns!(), " where status <> 'accepting' order by created_at, id");
const OPEN: &str = concat!(all_columns!(), " where status in ('accepting', 'queued', 'in_progress') order by created_at, id");
const LAST_OF_TARGET: &str = concat!(
    all_columns!(),
    " where db_instance = $1 and db_host = $2 and id <> $3 and target <> 'untouched' order by created_at desc, id desc limit 1"
);
const ACCEPT: &str = "update bullwork_restore_task set status = 'queued' where id = $1 and status = 'accepting'";
const BEGIN: &str =
    "update bullwork_restore_task set status = 'in_progress', started_at = $2 where id = $1 and status = 'queued'";
const CHOSEN: &str =
    "update bullwork_restore_task set backup_id = $2, recovery_time = $3 where id = $1 and status = 'in_progress'";
const RECORD: &str = "update bullwork_restore_task set steps = $2, target = $3 where id = $1 and status = 'in_progress'";
const PROGRESS: &str = "update bullwork_restore_task set progress = $2 where id = $1 and status = 'in_progress'";
const END: &str = "update bullwork_restore_task set status = $2, error = $3, completed_at = $4 where id = $1 and status = $5";
const ASK_CANCEL: &str = "update bullwork_restore_task set cancel_requested = 1 where id = $1 and status = 'in_progress'";
/// The newest that changed a target stays whatever its age: it says what the target is like.
const FORGET: &str = "delete from bullwork_restore_task where status in ('completed', 'error', 'canceled')
    and id not in (select id from bullwork_restore_task where status in ('completed', 'error', 'canceled')
                   order by created_at desc, id desc limit $1)
    and (target = 'untouched'
         or exists (select 1 from bullwork_restore_task newer where newer.db_instance = bullwork_restore_task.db_instance
                    and newer.db_host = bullwork_restore_task.db_host and newer.target <> 'untouched'
                    and newer.created_at > bullwork_restore_task.created_at))";

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not promised to anybody yet.
    Accepting,
    /// Promised; waits.
    Queued,
    /// Runs.
    InProgress,
    /// Done.
    Completed,
    /// Failed.
    Error,
    /// Ended because somebody asked.
    Canceled,
}

impl Status {
    /// The word in the store and in replies.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Status::Accepting => "accepting",
            Status::Queued => "queued",
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Error => "error",
            Status::Canceled => "canceled",
        }
    }

    fn of(word: &str) -> Status {
        let all = [Status::Accepting, Status::Queued, Status::InProgress, Status::Completed, Status::Canceled];
        all.into_iter().find(|status| status.word() == word).unwrap_or(Status::Error)
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Status::Completed | Status::Error | Status::Canceled)
    }
}

/// What is asked for, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Whose backup.
    pub db_instance: String,
    /// Where to.
    pub db_host: String,
    /// Which one; the newest when there is none.
    pub backup_id: Option<String>,
    /// Whether what is there is kept.
    pub incremental: bool,
}

/// A task. As JSON it is what `status` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its id, and its job's.
    pub id: String,
    /// Whose backup.
    pub db_instance: String,
    /// Where to.
    pub db_host: String,
    /// The backup that was asked for, or chosen.
    pub backup_id: Option<String>,
    /// The time it restores to, in the tool's words.
    pub recovery_time: Option<String>,
    /// Where it is.
    pub status: Status,
    /// When it was asked for.
    pub created_at: String,
    /// When its run began.
    pub started_at: Option<String>,
    /// When it ended.
    pub completed_at: Option<String>,
    /// 1 when somebody cancelled it.
    pub canceled: u8,
    /// Whether what was there is kept.
    pub incremental: bool,
    /// How far it is.
    pub progress: Option<Json>,
    /// Why it failed, and what the target is like.
    pub error: Option<String>,
    /// What the target is like, in a word.
    pub target: String,
    /// What was done.
    #[serde(skip)]
    pub steps: Steps,
}

impl Task {
    fn read(row: &Row) -> Task {
        let status = Status::of(&row.text(6));
        Task {
            id: row.text(0),
            db_instance: row.text(1),
            db_host: row.text(2),
            backup_id: row.optional(3),
            recovery_time: row.optional(4),
            incremental: row.flag(5),
            status,
            target: row.text(7),
            canceled: u8::from(row.flag(8) || status == Status::Canceled),
            progress: row.optional(9).and_then(|text| serde_json::from_str(&text).ok()),
            error: row.optional(10),
            steps: serde_json::from_str(&row.text(11)).unwrap_or_default(),
            created_at: row.text(12),
            started_at: row.optional(13),
            completed_at: row.optional(14),
        }
    }

    /// The same with its steps, for who asks for this one.
    #[must_use]
    pub fn with_steps(&self) -> Json {
        let mut all = serde_json::to_value(self).unwrap_or_default();
        all["steps"] = serde_json::to_value(&self.steps).unwrap_or_default();
        all
    }
}

/// The tasks. Cheap to clone; nothing is opened before it is used.
#[derive(Clone, Debug)]
pub struct Tasks {
    state: State,
    ready: Arc<OnceCell<()>>,
    clock: Clock,
}

impl Tasks {
    /// Those of `state`.
    #[must_use]
    pub fn new(state: State) -> Self {
        Tasks { state, ready: Arc::default(), clock: Clock::System }
    }

    /// Where they are, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        self.state.shown()
    }

    /// The time, as it is written in a task.
    #[must_use]
    pub fn now(&self) -> String {
        to_rfc3339(self.clock.now())
    }

    /// Makes the tables if they are not there.
    ///
    /// # Errors
    /// When the store cannot be used; so do all others here.
    pub async fn ready(&self) -> Result<&State, StateError> {
        self.ready.get_or_try_init(|| self.state.migrate(MIGRATIONS)).await?;
        Ok(&self.state)
    }

    /// Writes a new task down, without promising it.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn insert(&self, id: &str, order: &Order) -> Result<(), StateError> {
        let Order { db_instance, db_host, backup_id, incremental } = order.clone();
        let values: [Value; 6] =
            [id.into(), db_instance.into(), db_host.into(), backup_id.into(), incremental.into(), self.now().into()];
        self.ready().await?.execute(INSERT, values).await.map(drop)
    }

    /// Forgets a task that was not promised.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn withdraw(&self, id: &str) -> Result<(), StateError> {
        self.ready().await?.execute(DELETE, [id.into()]).await.map(drop)
    }

    /// Promises it; `false` when it is not `accepting` any more.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn accept(&self, id: &str) -> Result<bool, StateError> {
        Ok(self.ready().await?.execute(ACCEPT, [id.into()]).await? == 1)
    }

    /// One task.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn get(&self, id: &str) -> Result<Option<Task>, StateError> {
        Ok(self.ready().await?.query(GET, [id.into()]).await?.first().map(Task::read))
    }

    /// All that were promised, oldest first.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn list(&self) -> Result<Vec<Task>, StateError> {
        Ok(self.ready().await?.query(LIST, []).await?.iter().map(Task::read).collect())
    }

    /// Those that are not at their end, oldest first.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn open(&self) -> Result<Vec<Task>, StateError> {
        Ok(self.ready().await?.query(OPEN, []).await?.iter().map(Task::read).collect())
    }

    /// The newest other task that changed the same target; those that were refused after it say nothing of what it left.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn before(&self, task: &Task) -> Result<Option<Task>, StateError> {
        let values: [Value; 3] = [task.db_instance.as_str().into(), task.db_host.as_str().into(), task.id.as_str().into()];
        Ok(self.ready().await?.query(LAST_OF_TARGET, values).await?.first().map(Task::read))
    }

    /// From `queued` to `in_progress`; `false` when it was not queued.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn begin(&self, id: &str) -> Result<bool, StateError> {
        Ok(self.ready().await?.execute(BEGIN, [id.into(), self.now().into()]).await? == 1)
    }

    /// Notes which backup it restores.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn chosen(&self, id: &str, backup: &str, recovery_time: Option<&str>) -> Result<bool, StateError> {
        let values: [Value; 3] = [id.into(), backup.into(), recovery_time.into()];
        Ok(self.ready().await?.execute(CHOSEN, values).await? == 1)
    }

    /// Notes its steps; `false` when somebody ended the task meanwhile.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn record(&self, id: &str, steps: &Steps) -> Result<bool, StateError> {
        let text = serde_json::to_string(steps).unwrap_or_default();
        let values: [Value; 3] = [id.into(), text.into(), steps.condition().word().into()];
        Ok(self.ready().await?.execute(RECORD, values).await? == 1)
    }

    /// Notes how far it is.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn progress(&self, id: &str, progress: &Json) -> Result<(), StateError> {
        self.ready().await?.execute(PROGRESS, [id.into(), progress.to_string().into()]).await.map(drop)
    }

    /// Ends it; `false` when it is not in status `from` any more.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn end(&self, id: &str, from: Status, to: Status, error: Option<&str>) -> Result<bool, StateError> {
        let values: [Value; 5] = [id.into(), to.word().into(), error.into(), self.now().into(), from.word().into()];
        Ok(self.ready().await?.execute(END, values).await? == 1)
    }

    /// Asks the run of a task to end it; `false` when it does not run.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn ask_cancel(&self, id: &str) -> Result<bool, StateError> {
        Ok(self.ready().await?.execute(ASK_CANCEL, [id.into()]).await? == 1)
    }

    /// Forgets ended tasks beyond the newest `kept`.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn forget(&self, kept: u32) -> Result<u64, StateError> {
        self.ready().await?.execute(FORGET, [i64::from(kept).into()]).await
    }

    /// The right to restore on `host`, which one run has at a time; with `alone`, while nobody has it for another host either. That
    /// of the host is always taken, so that workers of different opinions do not meet there.
    ///
    /// # Errors
    /// As [`Tasks::ready`].
    pub async fn turn(&self, host: &str, alone: bool) -> Result<Option<Turn>, StateError> {
        let state = self.ready().await?;
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c.to_ascii_lowercase() } else { '_' };
        let of_host = format!("{ONE}-{}", host.chars().map(plain).collect::<String>());
        let mut locks = Vec::new();
        for name in alone.then_some(ONE).into_iter().chain([of_host.as_str()]) {
            match state.lock(name).await? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        }
        Ok(Some(Turn(locks)))
    }
}

impl Condition {
    /// That of a task, as it was recorded.
    #[must_use]
    pub fn of(task: &Task) -> Condition {
        task.steps.condition()
    }
}
