//! Programs that end when we do, here and on the target's machine.
//!
//! A worker that is killed can stop nobody, and a restore that goes on for nobody would meet the next one in the same directory. So
//! a long-running program is held by its guard's standard input: a fixed script of POSIX shell waits for both the program and the end
//! of that input, and ends the program's whole process group at the latter: SIGTERM, SIGKILL three seconds later. The input
//! ends when we let go, when our process ends in whatever way, and, over SSH, when the connection does.
//!
//! The program's words are the script's parameters, never part of its text. What it writes to stderr comes with its output, in
//! its order; the exit code is the program's.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::process::{ProcessError, Program};
use crate::redact::scrub;

/// The script. A background command's group is its own after `setsid`; nothing of the group is left behind, whatever ended.
pub const SCRIPT: &str = r#"exec 3<&0 </dev/null
setsid "$@" 2>&1 3<&- &
child=$!
(while read -r line <&3; do :; done; kill -TERM "-$child"; sleep 3; kill -KILL "-$child") >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$child"
code=$?
kill "$watch" 2>/dev/null
kill -KILL "-$child" 2>/dev/null
exit "$code""#;

/// How long the guard may take to end the group once its input has ended: SIGTERM, three seconds, SIGKILL, and the way back.
const LETTING_GO: Duration = Duration::from_secs(7);
/// Lines that an error tells.
const TAIL: usize = 12;
/// Longer lines are cut: they are only shown and searched.
const LONGEST_LINE: u64 = 64 << 10;

/// The words that run `words` on a leash.
#[must_use]
pub fn words(words: &[String]) -> Vec<String> {
    let guard = ["sh", "-c", SCRIPT, "bullwork"].map(str::to_owned);
    guard.into_iter().chain(words.iter().cloned()).collect()
}

/// How a program on a leash ended.
#[derive(Debug)]
pub enum Ended {
    /// With 0.
    Done,
    /// Otherwise; the text names program, status and its last lines.
    Failed(String),
    /// We let go. `gone` tells whether its end was seen.
    LetGo {
        /// Whether its group is known to have ended.
        gone: bool,
    },
}

/// Runs `program`, whose words are those of [`words`] (or of `ssh` with them), and hands each line to `line`; ends it when `stop` does.
///
/// # Errors
/// When it cannot be started or read.
pub async fn run(
    program: Program,
    shown: &str,
    mut line: impl FnMut(&str),
    stop: impl Future<Output = ()>,
) -> Result<Ended, ProcessError> {
    let mut running = program.start(true, None)?;
    let mut output = BufReader::new(&mut running.stdout);
    let mut tail = std::collections::VecDeque::new();
    let mut read = async || {
        loop {
            let mut bytes = Vec::new();
            let mut limited = tokio::io::AsyncReadExt::take(&mut output, LONGEST_LINE);
            // An output that breaks off is an end like any other: the status tells more.
            if !matches!(limited.read_until(b'\n', &mut bytes).await, Ok(1..)) {
                return;
            }
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end();
            if !text.is_empty() {
                line(text);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(scrub(text));
            }
        }
    };
    let stopped = tokio::select! {
        () = read() => false,
        () = stop => true,
    };
    if stopped {
        drop(running.stdin.take());
        let gone = tokio::time::timeout(LETTING_GO, read()).await.is_ok();
        if gone {
            let _ = tokio::time::timeout(Duration::from_secs(1), running.last_words()).await;
        }
        return Ok(Ended::LetGo { gone });
    }
    let end = running.end().await;
    Ok(match end.result {
        Ok(()) => Ended::Done,
        Err(ProcessError::Failed { program, status, code, stderr }) => {
            // What ssh itself says is on its own stderr.
            let own = (stderr != "nothing on stderr").then_some(stderr);
            let lines: Vec<String> = tail.into_iter().chain(own).collect();
            let said = if lines.is_empty() { "it said nothing".to_owned() } else { lines.join(" | ") };
            Ended::Failed(match code {
                Some(_) => format!("`{shown}` ended with {status}: {said}"),
                // The guard gives on as a code what the tool ends with, so a signal is that of the guard, or of ssh.
                None => format!(
                    "our own `{program}`, which held `{shown}`, was ended by {status}, by somebody on this machine or because memory \
                     ran out; what it held ends with it: {said}"
                ),
            })
        }
        Err(other) => return Err(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leashed(script: &str) -> Program {
        let words = words(&["sh", "-c", script].map(str::to_owned));
        Program::new("/bin/sh").args(&words[1..])
    }

    fn is_running(words: &str) -> bool {
        let words: Vec<u8> = words.split(' ').flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|c| c == words))
    }

    #[tokio::test]
    async fn lines_of_both_outputs_arrive_in_order_and_the_code_is_the_programs() {
        let mut lines = Vec::new();
        let ended = run(
            leashed("echo one; echo two >&2; echo three; exit 7"),
            "it",
            |l| lines.push(l.to_owned()),
            std::future::pending(),
        );
        let ended = ended.await.unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert!(matches!(&ended, Ended::Failed(text) if text == "`it` ended with exit code 7: one | two | three"), "{ended:?}");
        let ended = run(leashed("true"), "it", |_| (), std::future::pending()).await.unwrap();
        assert!(matches!(ended, Ended::Done));
    }

    #[tokio::test]
    async fn letting_go_ends_the_whole_group_even_one_that_does_not_want_to() {
        let marker = format!("32{:05}", std::process::id() % 100_000);
        let script = format!("trap '' TERM; sleep {marker} & echo up; sleep {marker}");
        let (up, told) = tokio::sync::oneshot::channel();
        let mut up = Some(up);
        let stop = async {
            let _ = told.await;
        };
        let ended = run(
            leashed(&script),
            "it",
            |_| {
                let _ = up.take().map(|up| up.send(()));
            },
            stop,
        )
        .await
        .unwrap();
        assert!(matches!(ended, Ended::LetGo { gone: true }), "{ended:?}");
        assert!(!is_running(&format!("sleep {marker}")), "a program outlived its leash");
    }
}
