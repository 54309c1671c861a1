//! A child whose output is read, and whose input is written, as it runs.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio_util::task::AbortOnDropHandle;

use super::{Group, ProcessError, Program, Tail};

/// How long its stderr is read on after it ended: something that it started may hold it open.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Marked lines that are kept.
const MARKED_LINES: usize = 256;

/// A running child; killed with all that it started when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    group: Group,
    /// Its input; close it by taking it.
    pub stdin: Option<ChildStdin>,
    /// Its output.
    pub stdout: ChildStdout,
    stderr: AbortOnDropHandle<(String, Vec<String>)>,
}

/// How a child ended.
#[derive(Debug)]
pub struct End {
    /// An error unless it exited with 0.
    pub result: Result<(), ProcessError>,
    /// The lines of its stderr that began with the mark given to [`Program::start`], without it.
    pub marked: Vec<String>,
}

impl Program {
    /// Starts it. Lines of its stderr that begin with `mark` are kept apart from those for people; with `fed` its
    /// input is written by us, else it has none.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self, fed: bool, mark: Option<&'static str>) -> Result<Running, ProcessError> {
        if fed {
            self.command.stdin(Stdio::piped());
        }
        let mut group = Group::new(self.command.spawn().map_err(|e| ProcessError::io(&e, &self.name))?);
        let stdin = group.child.stdin.take();
        let stdout = group.child.stdout.take().expect("stdout was piped by `new`");
        let stderr = group.child.stderr.take().expect("stderr was piped by `new`");
        let stderr = AbortOnDropHandle::new(tokio::spawn(listen(stderr, mark)));
        Ok(Running { name: self.name, group, stdin, stdout, stderr })
    }
}

impl Running {
    /// Closes its input and waits until it ends; its output should have been read to the end before.
    pub async fn end(mut self) -> End {
        self.last_words().await
    }

    /// The same, where it has to stay where it is.
    pub async fn last_words(&mut self) -> End {
        drop(self.stdin.take());
        let status = self.group.child.wait().await;
        self.group.disarm();
        let silent = || ("stderr was not closed".to_owned(), Vec::new());
        let (tail, marked) =
            tokio::time::timeout(LAST_WORDS, &mut self.stderr).await.ok().and_then(Result::ok).unwrap_or_else(silent);
        let result = match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(ProcessError::failed(self.name.clone(), status, tail)),
            Err(error) => Err(ProcessError::io(&error, &self.name)),
        };
        End { result, marked }
    }
}

async fn listen(stderr: ChildStderr, mark: Option<&'static str>) -> (String, Vec<String>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    let (mut tail, mut marked) = (Tail::default(), Vec::new());
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        match mark.and_then(|mark| line.strip_prefix(mark)) {
            Some(rest) if marked.len() < MARKED_LINES => marked.push(rest.trim().to_owned()),
            Some(_) => {}
            None => tail.push(line.trim_end()),
        }
    }
    (tail.text(), marked)
}
