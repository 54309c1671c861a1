//! The Lua scripts: one for each transition, so that a job is never seen between two states.
//!
//! Each is `scripts/prelude.lua`, parts that it shares with others, and a file of its own. They are run by hash and sent again when
//! the server does not know them (a restart, `SCRIPT FLUSH`).

use std::sync::LazyLock;

use redis::{Arg, ToRedisArgs, Value};

use super::{Queue, QueueError};

const NO_SCRIPT: redis::ErrorKind = redis::ErrorKind::Server(redis::ServerErrorKind::NoScript);
/// How often a script is sent to a server that forgets it at once.
const SENDS: u32 = 10;

/// Text of a script, and how many of the queue's keys it is given first, in the order of `keys::BLOCK`.
pub(super) struct Script {
    text: redis::Script,
    block: usize,
}

macro_rules! scripts {
    ($($name:ident $block:literal $($file:literal)*;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script {
            text: redis::Script::new(concat!(include_str!("scripts/prelude.lua"), $(include_str!(concat!("scripts/", $file))),*)),
            block: $block,
        });)*
    };
}

scripts! {
    TAKE 6 "running.lua" "take.lua";
    CLAIM 6 "running.lua" "claim.lua";
    COMPLETE_AND_TAKE 6 "running.lua" "finishing.lua" "complete_and_take.lua";
    TAKE_LIMITED 11 "running.lua" "finishing.lua" "placing.lua" "settling.lua" "take_limited.lua";
    RENEW 6 "renew.lua";
    READ 6 "read.lua";
    COUNTS 11 "placing.lua" "counts.lua";
    LOG 6 "log.lua";
    SET_FIELD 6 "set_field.lua";
    ADD 9 "placing.lua" "add.lua";
    COMPLETE 11 "finishing.lua" "placing.lua" "settling.lua" "complete.lua";
    FAIL 11 "finishing.lua" "placing.lua" "settling.lua" "fail.lua";
    HAND_BACK 11 "finishing.lua" "placing.lua" "settling.lua" "hand_back.lua";
    SNOOZE 11 "finishing.lua" "placing.lua" "settling.lua" "snooze.lua";
    PROMOTE_DUE 11 "finishing.lua" "placing.lua" "settling.lua" "promote_due.lua";
    RECOVER_STALLED 11 "finishing.lua" "placing.lua" "settling.lua" "recover_stalled.lua";
    PAUSE 11 "finishing.lua" "placing.lua" "settling.lua" "pause.lua";
    RESUME 11 "finishing.lua" "placing.lua" "settling.lua" "resume.lua";
    RETRY 11 "finishing.lua" "placing.lua" "settling.lua" "retry.lua";
    RETRY_FAILED 11 "finishing.lua" "placing.lua" "settling.lua" "retry_failed.lua";
    PROMOTE 11 "finishing.lua" "placing.lua" "settling.lua" "promote.lua";
    REMOVE 11 "finishing.lua" "placing.lua" "settling.lua" "remove.lua";
    CANCEL 11 "finishing.lua" "placing.lua" "settling.lua" "cancel.lua";
    CLEAN 11 "finishing.lua" "placing.lua" "settling.lua" "clean.lua";
    OBLITERATE 11 "finishing.lua" "placing.lua" "settling.lua" "obliterate.lua";
    STATE 11 "finishing.lua" "placing.lua" "settling.lua" "state.lua";
    ARM 11 "finishing.lua" "placing.lua" "settling.lua" "arm.lua";
    REMOVE_SCHEDULE 11 "finishing.lua" "placing.lua" "settling.lua" "remove_schedule.lua";
}

/// For scripts that are given no keys but the queue's.
pub(super) const NO_MORE: &[&str] = &[];

/// A script with its keys and arguments.
pub(super) struct Call {
    script: &'static Script,
    command: redis::Cmd,
}

impl Call {
    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }
}

/// What a refusal that needs no more words means for the job `id`; nothing when `code` is none.
pub(super) fn refused(code: i64, id: &str) -> Option<QueueError> {
    Some(match code {
        0.. => return None,
        -1 => QueueError::Missing(id.to_owned()),
        -2 | -6 => QueueError::LockLost(id.to_owned()),
        -3 => QueueError::NotActive(id.to_owned()),
        -4 => QueueError::NotDelayed(id.to_owned()),
        -5 => QueueError::Locked(id.to_owned()),
        -7 => QueueError::NotFinished(id.to_owned()),
        other => QueueError::Answer(format!("code {other}")),
    })
}

/// What a script answered, when it did not refuse.
pub(super) struct Answer {
    pub(super) code: i64,
    rest: std::vec::IntoIter<Value>,
}

impl Answer {
    pub(super) fn of(value: Value) -> Result<Answer, QueueError> {
        let mut rest = match value {
            Value::Array(values) => values.into_iter(),
            _ => Vec::new().into_iter(),
        };
        match rest.next() {
            Some(Value::Int(code)) => Ok(Answer { code, rest }),
            _ => Err(QueueError::Answer("it does not begin with a code".into())),
        }
    }

    /// The answer, unless it is a refusal; `id` is the job it is about.
    pub(super) fn accepted(mut self, id: &str) -> Result<Answer, QueueError> {
        Err(match self.code {
            -8 => QueueError::ActiveJobs(self.text()?.parse().unwrap_or(0)),
            -9 => QueueError::WrongType(self.text()?),
            code => match refused(code, id) {
                Some(error) => error,
                None => return Ok(self),
            },
        })
    }

    /// The next text of the answer.
    pub(super) fn text(&mut self) -> Result<String, QueueError> {
        self.rest.next().map(text_of).ok_or_else(|| QueueError::Answer("it is too short".into()))
    }

    /// The next text of the answer as it is.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, QueueError> {
        match self.rest.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(other) => Ok(text_of(other).into_bytes()),
            None => Err(QueueError::Answer("it is too short".into())),
        }
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
        self.rest.map(text_of).collect()
    }
}

/// Text as it is; what is no UTF-8 (no program of Bull's writes such) with replacement characters.
pub(super) fn text_of(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => {
            String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
        }
        Value::SimpleString(text) => text,
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

impl Queue {
    /// `script` with what all of them are given, the queue's keys, its prefix, our publisher's token and the time, and with
    /// `more` keys.
    pub(super) fn call(&self, script: &'static Script, more: &[impl AsRef<[u8]>]) -> Call {
        let mut command = redis::Cmd::with_capacity(40, 2048);
        command.arg("EVALSHA").arg(script.text.get_hash()).arg(script.block + more.len());
        for key in &self.keys().block()[..script.block] {
            command.arg(key);
        }
        for key in more {
            command.arg(key.as_ref());
        }
        command.arg(self.keys().base()).arg(self.publisher()).arg(self.clock().now());
        Call { script, command }
    }

    /// Runs a script; `id` is the job it is about, for the refusals.
    pub(super) async fn run(&self, id: &str, call: &Call) -> Result<Answer, QueueError> {
        let mut connection = self.connection().await?;
        let pieces = call.command.args_iter().filter_map(|piece| match piece {
            Arg::Simple(piece) => Some(piece),
            _ => None,
        });
        self.redis().check_pieces(pieces).await?;
        let mut tries = 0;
        let values: Vec<Value> = loop {
            tries += 1;
            match call.command.query_async(&mut connection).await {
                // Not known yet, or forgotten again between sending the script and running it: it was not run.
                Err(error) if tries < SENDS && error.kind() == NO_SCRIPT => {
                    call.script.text.load_async(&mut connection).await?;
                }
                other => break other?,
            }
        };
        Answer::of(Value::Array(values))?.accepted(id)
    }
}
