//! rsync over ssh: names through its standard input, progress from its output, exit codes in words.
//!
//! It is told each file and symlink by name, so it copies nothing that the manifest does not hold. Modes, times and symlinks are kept.
//! A file that was cut off in its middle is kept aside, and the next try goes on from there.

use std::path::Path;

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;

use super::ledger::Server;
use super::site::room;
use super::{Across, ReleaseError, Releases};
use crate::process::{ProcessError, Program};
use crate::ssh::{explained, feed};
use crate::worker::Run;

/// A stage is empty, or holds what an earlier try left: that is not believed for its size and time.
const ANEW: &str = "--ignore-times";

/// What rsync means by an exit code.
const CODES: &[(i32, &str)] = &[
    (1, "rsync was called wrongly"),
    (2, "the two rsyncs do not understand each other: one is too old"),
    (3, "files cannot be chosen as asked"),
    (5, "the protocol could not be begun: does the login shell there print something?"),
    (6, "the log cannot be written"),
    (10, "the network failed"),
    (11, "a disk failed, or is full"),
    (12, "the connection was cut, or the other side ended"),
    (13, "programs could not talk to each other"),
    (20, "it was told to stop"),
    (22, "there is not enough memory"),
    (23, "some files were not copied"),
    (24, "some files vanished while they were copied"),
    (30, "no data came in time"),
    (35, "no connection in time"),
    (127, "rsync is not installed there"),
    (255, "no connection by ssh"),
];

/// Where files arrive on a server: beside the project.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// The server.
    pub server: &'a Server,
    /// The release.
    pub release: i64,
}

impl Stage<'_> {
    /// The directory there.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}/{}/new", self.server.project.trim_end_matches('/'), room(self.release))
    }

    fn for_rsync(&self) -> String {
        format!("{}:{}/", self.server.host.for_rsync(), self.directory())
    }
}

/// What was copied before, so that progress tells the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Files and symlinks.
    pub files: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// How rsync ended, in words.
#[must_use]
pub fn told(error: &ProcessError) -> String {
    let ProcessError::Failed { code: Some(code), stderr, .. } = error else { return error.to_string() };
    let meaning = CODES.iter().find(|(known, _)| known == code).map_or("it failed", |(_, meaning)| meaning);
    let cause = if stderr.contains("No space left") { ": the disk is full" } else { "" };
    let reason = explained(stderr).map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{meaning}{cause}{reason} (rsync's exit code {code}: {stderr})")
}

impl Releases {
    fn words(&self) -> Vec<String> {
        let mut words = [
            "--links",
            "--perms",
            "--times",
            "--relative",
            "--no-implied-dirs",
            "--from0",
            "--files-from=-",
            // Names on the other side pass no shell.
            "-s",
            "--partial-dir=.bullwork-partial",
            "--info=progress2",
            "--no-human-readable",
            "--outbuf=L",
        ]
        .map(str::to_owned)
        .to_vec();
        words.push(format!("--timeout={}", self.io_timeout.as_secs()));
        if self.ownership {
            words.extend(["--owner", "--group", "--numeric-ids"].map(str::to_owned));
        }
        words
    }

    /// From a server's project into a directory here; what `same` has already is not sent. With `suspect`, what is here is compared
    /// by its bytes rather than by size and time.
    ///
    /// # Errors
    /// When rsync fails.
    pub async fn pull(
        &self,
        run: &Run,
        server: &Server,
        into: &Path,
        same: Option<&str>,
        suspect: bool,
        names: &[String],
    ) -> Result<(), ReleaseError> {
        let mut words = self.words();
        words.extend(same.map(|directory| format!("--link-dest={directory}")));
        words.extend(suspect.then(|| "--checksum".to_owned()));
        words.push(format!("--rsh={}", self.access.for_rsync(&server.host)));
        words.push(format!("{}:{}/", server.host.for_rsync(), server.project.trim_end_matches('/')));
        words.push(format!("{}/", into.display()));
        let from = |cause| ReleaseError::Copy { server: server.name.clone(), way: "from it", cause };
        progress(run, Program::new("rsync").args(words), names, Amount::default()).await.map_err(from)
    }

    /// From a directory here beside a server's project.
    ///
    /// # Errors
    /// When rsync fails.
    pub async fn push(
        &self,
        run: &Run,
        from: &Path,
        to: &Stage<'_>,
        names: &[String],
        before: Amount,
    ) -> Result<(), ReleaseError> {
        let mut words = self.words();
        words.push(ANEW.to_owned());
        words.push(format!("--rsh={}", self.access.for_rsync(&to.server.host)));
        words.push(format!("{}/", from.display()));
        words.push(to.for_rsync());
        let failed = |cause| ReleaseError::Copy { server: to.server.name.clone(), way: "to it", cause };
        progress(run, Program::new("rsync").args(words), names, before).await.map_err(failed)
    }

    /// From beta beside another server's project, by an rsync on beta.
    ///
    /// # Errors
    /// When rsync fails.
    pub async fn across(
        &self,
        run: &Run,
        across: &Across,
        beta: &Server,
        to: &Stage<'_>,
        names: &[String],
        before: Amount,
    ) -> Result<(), ReleaseError> {
        let mut words = vec!["rsync".to_owned()];
        words.extend(self.words());
        words.push(ANEW.to_owned());
        words.push(format!("--rsh={}", across.0.for_rsync(&to.server.host)));
        words.push(format!("{}/", beta.project.trim_end_matches('/')));
        words.push(to.for_rsync());
        let program = self.access.command(&beta.host, words.iter().map(String::as_str));
        let failed = |cause| ReleaseError::Copy { server: to.server.name.clone(), way: "to it from beta", cause };
        progress(run, program, names, before).await.map_err(failed)
    }
}

async fn progress(run: &Run, program: Program, names: &[String], before: Amount) -> Result<(), ProcessError> {
    // In a list, what begins with `#` or `;` is a comment to rsync, NUL or not.
    let list = names.iter().flat_map(|name| b"./".iter().copied().chain(name.bytes()).chain([0])).collect();
    let mut running = program.start(true, None)?;
    tokio::join!(feed(running.stdin.take(), list), follow(run, &mut running.stdout, before));
    running.end().await.result
}

/// `  1048576  50%    1.00MB/s    0:00:00 (xfr#1, to-chk=1/3)`, again and again on one line.
async fn follow(run: &Run, stdout: &mut ChildStdout, before: Amount) {
    let (mut piece, mut line) = (vec![0; 8192], Vec::new());
    while let Ok(count @ 1..) = stdout.read(&mut piece).await {
        for byte in &piece[..count] {
            if matches!(byte, b'\r' | b'\n') {
                if let Some((bytes, files)) = std::str::from_utf8(&line).ok().and_then(numbers) {
                    run.progress(|progress| {
                        progress.bytes = before.bytes + bytes;
                        progress.done = files.map_or(progress.done, |files| before.files + files);
                    });
                }
                line.clear();
            } else if line.len() < 4096 {
                line.push(*byte);
            }
        }
    }
}

fn numbers(line: &str) -> Option<(u64, Option<u64>)> {
    let mut words = line.split_whitespace();
    let bytes = words.next()?.replace(',', "").parse().ok()?;
    words.next()?.strip_suffix('%')?;
    let files = line.split_once("(xfr#").and_then(|(_, rest)| rest.split([',', ')']).next()?.parse().ok());
    Some((bytes, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_files_and_bytes() {
        assert_eq!(numbers("        1048576  50%    1.00MB/s    0:00:00 (xfr#12, to-chk=1/3)"), Some((1_048_576, Some(12))));
        assert_eq!(numbers("     32,768   0%    0.00kB/s    0:00:00"), Some((32_768, None)));
        assert_eq!(numbers("rsync: something"), None);
    }

    #[test]
    fn exit_codes_are_told_in_words() {
        let failed = |code, stderr: &str| ProcessError::Failed {
            program: "rsync".to_owned(),
            status: format!("exit code {code}"),
            code: Some(code),
            stderr: stderr.to_owned(),
        };
        assert!(told(&failed(30, "io timeout")).starts_with("no data came in time (rsync's exit code 30: "));
        assert!(
            told(&failed(11, "write failed: No space left on device (28)"))
                .starts_with("a disk failed, or is full: the disk is full")
        );
        assert!(told(&failed(255, "Host key verification failed.")).contains("its host key is not pinned"));
    }
}
