//! The target's machine, over SSH.
//!
//! `ssh` joins its arguments with blanks and gives them to the login shell there, so a command is words here, each quoted for that
//! shell; only the operator's own start and stop commands go as lines. Nobody is asked anything (`BatchMode`), and a host
//! whose key is not known is no target (`StrictHostKeyChecking=yes`): a restore must not go to whoever answers.

use std::path::PathBuf;
use std::time::Duration;

use super::leash::{self, Ended};
use crate::process::{ProcessError, Program};
use crate::ssh::{explained, quote};

/// Longest wait for a short command.
const PATIENCE: Duration = Duration::from_secs(120);
/// What `ssh` exits with when it is the connection that failed.
const NO_CONNECTION: &str = "exit code 255";

/// How to get to targets.
#[derive(Clone, Debug)]
pub struct Ssh {
    /// The program.
    pub program: String,
    /// Port there.
    pub port: u16,
    /// User there.
    pub user: String,
    /// Private key; none: those that ssh finds by itself.
    pub key: Option<PathBuf>,
    /// Known host keys; none: the user's own file.
    pub known_hosts: Option<PathBuf>,
}

/// Why a command there did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// No connection.
    #[error("{host} cannot be reached over SSH: {reason}")]
    Unreachable {
        /// Which.
        host: String,
        /// The words of ssh.
        reason: String,
    },
    /// It failed there.
    #[error("`{command}` on {host} ended with {status}: {reason}")]
    Failed {
        /// Where.
        host: String,
        /// Its first words.
        command: String,
        /// `exit code 1` or the like.
        status: String,
        /// Its last lines.
        reason: String,
    },
    /// Our own ssh was killed: nobody knows how it went there.
    #[error(
        "our own `ssh` for `{command}` on {host} was ended by {status}, by somebody on this machine or because memory ran out; ask again"
    )]
    Cut {
        /// Where.
        host: String,
        /// Its first words.
        command: String,
        /// `signal 9` or the like.
        status: String,
    },
    /// Too slow.
    #[error("`{command}` on {host} did not end within {} s", .limit.as_secs())]
    Late {
        /// Where.
        host: String,
        /// Its first words.
        command: String,
        /// The limit.
        limit: Duration,
    },
}

impl Ssh {
    /// Options of `ssh` that come before the host; also what a backup tool's own ssh is given.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["-o".to_owned(), "BatchMode=yes".to_owned()];
        let mut put = |option: String| options.extend(["-o".to_owned(), option]);
        put("StrictHostKeyChecking=yes".to_owned());
        if let Some(file) = &self.known_hosts {
            put(format!("UserKnownHostsFile={}", file.display()));
            put("GlobalKnownHostsFile=/dev/null".to_owned());
        }
        put("ConnectTimeout=10".to_owned());
        put("ServerAliveInterval=15".to_owned());
        put("ServerAliveCountMax=4".to_owned());
        if let Some(key) = &self.key {
            put("IdentitiesOnly=yes".to_owned());
            options.extend(["-i".to_owned(), key.display().to_string()]);
        }
        options
    }

    fn program(&self, host: &str, line: &str) -> Program {
        let mut arguments = vec!["-T".to_owned()];
        arguments.extend(self.options());
        arguments.extend(["-o", "ClearAllForwardings=yes", "-o", "ControlPath=none"].map(str::to_owned));
        arguments.extend(["-p".to_owned(), self.port.to_string(), "-l".to_owned(), self.user.clone(), "--".to_owned()]);
        arguments.extend([host.to_owned(), line.to_owned()]);
        Program::new(&self.program).args(arguments).inheriting(["SSH_AUTH_SOCK"])
    }

    /// Runs a command there; its output.
    ///
    /// # Errors
    /// When the host cannot be reached, or the command fails or takes longer than two minutes.
    pub async fn run(&self, host: &str, words: &[&str]) -> Result<String, RemoteError> {
        let line = words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        self.line(host, &line, words.first().copied().unwrap_or_default(), PATIENCE).await
    }

    /// Runs the operator's own line there. Whatever it writes is told when it fails.
    ///
    /// # Errors
    /// As [`Ssh::run`], with a limit of one's own.
    pub async fn own_line(&self, host: &str, line: &str, shown: &str, limit: Duration) -> Result<(), RemoteError> {
        // `systemctl` and others tell on their standard output why they failed; in one stream the lines keep their order.
        self.line(host, &format!("exec 1>&2\n{line}"), shown, limit).await.map(drop)
    }

    async fn line(&self, host: &str, line: &str, shown: &str, limit: Duration) -> Result<String, RemoteError> {
        let output = tokio::time::timeout(limit, self.program(host, line).output()).await;
        let Ok(output) = output else {
            return Err(RemoteError::Late { host: host.to_owned(), command: shown.to_owned(), limit });
        };
        match output {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            // A program that is killed over there has ssh exit with a code; a signal is always ssh's own.
            Err(ProcessError::Failed { status, code: None, .. }) => {
                Err(RemoteError::Cut { host: host.to_owned(), command: shown.to_owned(), status })
            }
            Err(ProcessError::Failed { status, stderr, .. }) if status == NO_CONNECTION => {
                let reason = match explained(&stderr) {
                    Some(meaning) => format!("{meaning} ({stderr})"),
                    None => stderr,
                };
                Err(RemoteError::Unreachable { host: host.to_owned(), reason })
            }
            Err(ProcessError::Failed { status, stderr, .. }) => {
                Err(RemoteError::Failed { host: host.to_owned(), command: shown.to_owned(), status, reason: stderr })
            }
            Err(other) => Err(RemoteError::Unreachable { host: host.to_owned(), reason: other.to_string() }),
        }
    }

    /// Runs a long command there on a [`leash`].
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub async fn long(
        &self,
        host: &str,
        words: &[String],
        line: impl FnMut(&str),
        stop: impl Future<Output = ()>,
    ) -> Result<Ended, ProcessError> {
        let quoted = leash::words(words).iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        let shown = format!("{} on {host}", words.first().map_or("", String::as_str));
        leash::run(self.program(host, &quoted), &shown, line, stop).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Regression: a killed ssh passed for a command that had failed over there, and so for an answer: "no server runs".
    #[tokio::test]
    async fn an_ssh_that_is_killed_is_no_answer_of_the_other_side() {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("ssh");
        std::fs::write(&program, "#!/bin/sh\nkill -KILL $$\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.display().to_string();
        let ssh = Ssh { program, port: 22, user: "postgres".to_owned(), key: None, known_hosts: None };
        let error = ssh.run("S-DB1", &["cat", "--", "postmaster.pid"]).await.unwrap_err();
        assert!(matches!(error, RemoteError::Cut { .. }), "{error:?}");
        assert!(error.to_string().contains("our own `ssh` for `cat` on S-DB1 was ended by signal 9"), "{error}");
        let ended = ssh.long("S-DB1", &["pgbackrest".to_owned()], |_| (), std::future::pending()).await.unwrap();
        let Ended::Failed(told) = ended else { panic!("{ended:?}") };
        assert!(told.contains("which held `pgbackrest on S-DB1`, was ended by signal 9"), "{told}");
    }
}
