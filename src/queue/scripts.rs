//! The Lua scripts: one for each transition, so that a job is never seen between two states.
//!
//! Each is `scripts/prelude.lua`, for most `scripts/placing.lua`, and a file of its own. They are run by hash and sent again when
//! the server does not know them (a restart, `SCRIPT FLUSH`).

use std::sync::LazyLock;

use redis::{Script, ScriptInvocation, Value};

use super::{Queue, QueueError};

const NO_SCRIPT: redis::ErrorKind = redis::ErrorKind::Server(redis::ServerErrorKind::NoScript);
/// How often a script is sent to a server that forgets it at once.
const SENDS: u32 = 10;

macro_rules! scripts {
    ($($name:ident = $($file:literal)*;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(include_str!("scripts/prelude.lua"), $(include_str!(concat!("scripts/", $file))),*))
        });)*
    };
}

scripts! {
    ADD = "placing.lua" "add.lua";
    TAKE = "take.lua";
    CLAIM = "claim.lua";
    COMPLETE_AND_TAKE = "complete_and_take.lua";
    RENEW = "renew.lua";
    COMPLETE = "placing.lua" "complete.lua";
    FAIL = "placing.lua" "fail.lua";
    HAND_BACK = "placing.lua" "hand_back.lua";
    SNOOZE = "placing.lua" "snooze.lua";
    PROMOTE_DUE = "placing.lua" "promote_due.lua";
    RECOVER_STALLED = "placing.lua" "recover_stalled.lua";
    PAUSE = "placing.lua" "pause.lua";
    RESUME = "placing.lua" "resume.lua";
    RETRY = "placing.lua" "retry.lua";
    RETRY_FAILED = "placing.lua" "retry_failed.lua";
    PROMOTE = "placing.lua" "promote.lua";
    REMOVE = "placing.lua" "remove.lua";
    CANCEL = "placing.lua" "cancel.lua";
    CLEAN = "placing.lua" "clean.lua";
    OBLITERATE = "placing.lua" "obliterate.lua";
    STATE = "state.lua";
    READ = "read.lua";
    LOG = "log.lua";
    SET_FIELD = "set_field.lua";
    ARM = "placing.lua" "arm.lua";
    REMOVE_SCHEDULE = "placing.lua" "remove_schedule.lua";
}

/// What a script answered, when it did not refuse.
pub(super) struct Answer {
    pub(super) code: i64,
    rest: std::vec::IntoIter<Value>,
}

impl Answer {
    /// The next text of the answer.
    pub(super) fn text(&mut self) -> Result<String, QueueError> {
        self.rest.next().map(|value| text_of(&value)).ok_or_else(|| QueueError::Answer("it is too short".into()))
    }

    /// The next whole number of the answer.
    pub(super) fn number(&mut self) -> Result<i64, QueueError> {
        let text = self.text()?;
        text.parse().map_err(|_| QueueError::Answer(format!("`{text}` is no number")))
    }

    /// All that is left, as it is.
    pub(super) fn values(self) -> impl Iterator<Item = Value> {
        self.rest
    }

    /// All that is left.
    pub(super) fn texts(self) -> Vec<String> {
        self.rest.map(|value| text_of(&value)).collect()
    }
}

/// Text as it is; what is no UTF-8 (no program of Bull's writes such) with replacement characters.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

impl Queue {
    /// `script` with what all of them are given: the queue's keys, its prefix, our publisher's token and the time.
    pub(super) fn call<'s>(&self, script: &'s Script) -> ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for key in self.keys().block() {
            call.key(key);
        }
        call.arg(self.keys().base()).arg(self.publisher()).arg(self.clock().now());
        call
    }

    /// Runs a script; `id` is the job it is about, for the refusals.
    pub(super) async fn run(&self, id: &str, call: &ScriptInvocation<'_>) -> Result<Answer, QueueError> {
        let mut connection = self.connection().await?;
        let mut tries = 0;
        let values: Vec<Value> = loop {
            tries += 1;
            match call.invoke_async(&mut connection).await {
                // Forgotten again between sending the script and running it: it was not run.
                Err(error) if tries < SENDS && error.kind() == NO_SCRIPT => {}
                other => break other?,
            }
        };
        let mut rest = values.into_iter();
        let Some(Value::Int(code)) = rest.next() else {
            return Err(QueueError::Answer("it does not begin with a code".into()));
        };
        let mut answer = Answer { code, rest };
        match code {
            0.. => Ok(answer),
            -1 => Err(QueueError::Missing(id.to_owned())),
            -2 | -6 => Err(QueueError::LockLost(id.to_owned())),
            -3 => Err(QueueError::NotActive(id.to_owned())),
            -4 => Err(QueueError::NotDelayed(id.to_owned())),
            -5 => Err(QueueError::Locked(id.to_owned())),
            -8 => Err(QueueError::ActiveJobs(answer.text()?.parse().unwrap_or(0))),
            -7 => Err(QueueError::NotFinished(id.to_owned())),
            -9 => Err(QueueError::WrongType(answer.text()?)),
            other => Err(QueueError::Answer(format!("code {other}"))),
        }
    }
}
