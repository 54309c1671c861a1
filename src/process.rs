//! Child processes: no shell, nothing secret in arguments, and no child outlives its run.
//!
//! A child inherits only what programs need to run here at all ([`INHERITED`]): our environment holds
//! the secrets of every part, and whoever may read a child's, or what it dumps, would have them too.
//!
//! A child leads a process group of its own. When the future that waits for it is dropped or
//! the run is stopped, the whole group gets SIGTERM, then SIGKILL after [`GRACE`].
//!
//! [`Program::output`] waits for all of it; [`Program::start`] is for what is too much to hold.

mod running;

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::redact::{Secret, scrub};

pub use running::{End, Running};

/// From SIGTERM to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(3);
/// Variables that a child inherits, and every `LC_…`.
const INHERITED: [&str; 9] =
    ["PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Lines of stderr kept for the error message.
const STDERR_LINES: usize = 12;
/// Bytes of a log that are looked at for those lines.
const LOG_TAIL: u64 = 8 << 10;

/// Why a child did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not there.
    #[error("`{0}` is not installed or not on PATH")]
    Missing(String),
    /// It could not be started, or its output not be read.
    #[error("running `{program}`: {reason}")]
    Io {
        /// The program.
        program: String,
        /// The system's words.
        reason: String,
    },
    /// It ran and failed.
    #[error("`{program}` ended with {status}: {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// `exit code 1` or `signal 9`.
        status: String,
        /// The exit code; none after a signal.
        code: Option<i32>,
        /// Its last lines on stderr, secrets masked.
        stderr: String,
    },
}

/// A program to run.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Command,
}

impl Program {
    /// `name` is looked up on PATH unless it holds a slash.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(name);
        command.env_clear().envs(
            std::env::vars_os()
                .filter(|(name, _)| name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"))),
        );
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        Program { name: name.to_owned(), command }
    }

    /// Adds arguments; never secrets, which any user of the machine can read there.
    #[must_use]
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds environment variables, where secrets belong.
    #[must_use]
    pub fn secret_env(mut self, vars: impl IntoIterator<Item = (&'static str, Secret)>) -> Self {
        for (name, value) in vars {
            self.command.env(name, value.expose());
        }
        self
    }

    /// Lets it inherit these variables too, when they are set.
    #[must_use]
    pub fn inheriting<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> Self {
        for name in names {
            if let Some(value) = std::env::var_os(name) {
                self.command.env(name, value);
            }
        }
        self
    }

    /// Has it work in `directory`.
    #[must_use]
    pub fn within(mut self, directory: &std::path::Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it to its end with its output appended to the file `log`: for commands that leave a server behind, which would
    /// keep a pipe open, or write into one that nobody reads any more. What they left behind goes on.
    ///
    /// # Errors
    /// When it cannot be started, the file not be opened, or it does not exit with 0; the error tells its last lines.
    pub async fn logged(mut self, log: &std::path::Path) -> Result<(), ProcessError> {
        use std::io::{Read as _, Seek as _};
        use std::os::unix::fs::OpenOptionsExt as _;
        let io = ProcessError::io;
        let told = |error: &std::io::Error| ProcessError::Io { program: log.display().to_string(), reason: error.to_string() };
        let mut file =
            std::fs::File::options().read(true).append(true).create(true).mode(0o600).open(log).map_err(|e| told(&e))?;
        let before = file.metadata().map_err(|e| told(&e))?.len();
        self.command.stdout(file.try_clone().map_err(|e| told(&e))?).stderr(file.try_clone().map_err(|e| told(&e))?);
        let mut group = Group::new(self.command.spawn().map_err(|e| io(&e, &self.name))?);
        let status = group.child.wait().await.map_err(|e| io(&e, &self.name))?;
        group.disarm();
        if status.success() {
            return Ok(());
        }
        let end = file.metadata().map_or(before, |found| found.len());
        let mut text = Vec::new();
        let from = before.max(end.saturating_sub(LOG_TAIL));
        let _ = file.seek(std::io::SeekFrom::Start(from)).and_then(|_| file.take(LOG_TAIL).read_to_end(&mut text));
        let mut tail = Tail::default();
        String::from_utf8_lossy(&text).lines().for_each(|line| tail.push(line));
        Err(ProcessError::failed(self.name, status, tail.text()))
    }

    /// Runs it to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// When it cannot be started, cannot be read, or does not exit with 0.
    pub async fn output(mut self) -> Result<Vec<u8>, ProcessError> {
        let io = ProcessError::io;
        let mut group = Group::new(self.command.spawn().map_err(|e| io(&e, &self.name))?);
        let mut stdout = group.child.stdout.take().expect("stdout was piped above");
        let stderr = group.child.stderr.take().expect("stderr was piped above");
        let mut out = Vec::new();
        let (read, tail) = tokio::join!(stdout.read_to_end(&mut out), tail_of(stderr));
        read.map_err(|e| io(&e, &self.name))?;
        let status = group.child.wait().await.map_err(|e| io(&e, &self.name))?;
        group.disarm();
        if status.success() { Ok(out) } else { Err(ProcessError::failed(self.name, status, tail)) }
    }
}

impl ProcessError {
    /// The exit code of a program that ran and failed.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            ProcessError::Failed { code, .. } => *code,
            _ => None,
        }
    }

    fn io(error: &std::io::Error, program: &str) -> Self {
        if error.kind() == std::io::ErrorKind::NotFound {
            ProcessError::Missing(program.to_owned())
        } else {
            ProcessError::Io { program: program.to_owned(), reason: error.to_string() }
        }
    }

    fn failed(program: String, end: ExitStatus, stderr: String) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = match (end.code(), end.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        ProcessError::Failed { program, status, code: end.code(), stderr }
    }
}

/// Whether a program's last words say that a disk is full, or a quota used up.
#[must_use]
pub fn tells_of_a_full_disk(words: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|told| words.contains(told))
}

async fn tail_of(stderr: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut lines = BufReader::new(stderr).lines();
    let mut tail = Tail::default();
    while let Ok(Some(line)) = lines.next_line().await {
        tail.push(&line);
    }
    tail.text()
}

/// The last lines of a child's stderr.
#[derive(Debug, Default)]
struct Tail(std::collections::VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == STDERR_LINES {
            self.0.pop_front();
        }
        self.0.push_back(scrub(line));
    }

    fn text(self) -> String {
        if self.0.is_empty() { "nothing on stderr".to_owned() } else { Vec::from(self.0).join(" | ") }
    }
}

/// A child and all that it started; killed as one when dropped early.
#[derive(Debug)]
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    fn new(child: Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Group { child, leader }
    }

    fn disarm(&mut self) {
        self.leader = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // The group may be gone already; then there is nothing to stop.
            let _ = killpg(leader, Signal::SIGTERM);
            std::thread::spawn(move || {
                std::thread::sleep(GRACE);
                let _ = killpg(leader, Signal::SIGKILL);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_child_tells_its_code_and_last_words() {
        let error = Program::new("sh").args(["-c", "echo dying >&2; exit 3"]).output().await.unwrap_err().to_string();
        assert_eq!(error, "`sh` ended with exit code 3: dying");
        let error = Program::new("no-such-program-here").output().await.unwrap_err().to_string();
        assert_eq!(error, "`no-such-program-here` is not installed or not on PATH");
    }

    /// Regression: pg_dump had the other database's URL, the keys and the tokens in its environment. The
    /// test runner's own variables stand for them here.
    #[tokio::test]
    async fn a_child_inherits_nothing_but_what_programs_need() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something to inherit");
        let given = [("PGHOST", Secret::unremembered("db"))];
        let out = Program::new("env").secret_env(given).inheriting(["CARGO_PKG_NAME"]).output().await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        assert!(names.contains(&"PATH") && names.contains(&"PGHOST") && names.contains(&"CARGO_PKG_NAME"), "{names:?}");
        names.retain(|name| !INHERITED.contains(name) && !name.starts_with("LC_"));
        names.sort_unstable();
        assert_eq!(names, ["CARGO_PKG_NAME", "PGHOST"]);
    }

    #[tokio::test]
    async fn dropping_the_wait_kills_the_whole_group() {
        let marker = format!("31{:05}", std::process::id() % 100_000);
        let script = format!("sleep {marker} & sleep {marker}");
        let _ = tokio::time::timeout(Duration::from_millis(300), Program::new("sh").args(["-c", &script]).output()).await;
        for _ in 0..50 {
            let left = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                std::fs::read(entry.path().join("cmdline")).is_ok_and(|c| c == format!("sleep\0{marker}\0").into_bytes())
            });
            if !left {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("a child outlived its run");
    }
}
