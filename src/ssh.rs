//! Programs on other machines, by OpenSSH's `ssh`.
//!
//! Nothing is asked and nothing is trusted on first sight: batch mode, public keys only, host keys pinned in a file of ours, no
//! configuration of the user's, no agent. `ssh` hands a line to the remote user's shell, whatever it is given: so each word is
//! quoted for it ([`quote`]), and what may be long or odd, such as names of files, goes through standard input.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;

use crate::process::{ProcessError, Program, Running};

/// Exit code of `ssh` when it could not get there; remote programs seldom end with it.
pub const NO_CONNECTION: i32 = 255;
/// Between two signs of life on an open connection; three that are missed end it.
const ALIVE: Duration = Duration::from_secs(15);
/// Longest path of a socket that `ssh` can make: those of the system have 108 bytes, and it appends 17 until it listens.
const LONGEST_SOCKET: usize = 90;

/// A machine, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address.
    pub address: String,
    /// Who logs in.
    pub user: String,
    /// Port of its SSH server.
    pub port: u16,
}

impl Host {
    /// What is wrong with it: no part of it may be taken for an option or for more than one word.
    ///
    /// # Errors
    /// The part, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let plain = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || (c == ':' && more.contains(':')))
                && text.len() <= 253
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !plain(&self.address, "._-:") {
            return Err(format!("`{}` is no host: write a name or an address", self.address));
        }
        if !plain(&self.user, "._-") {
            return Err(format!("`{}` is no user: letters, digits, `.`, `_` and `-`", self.user));
        }
        Ok(())
    }

    /// `user@address` as rsync takes it before a colon.
    #[must_use]
    pub fn for_rsync(&self) -> String {
        if self.address.contains(':') { format!("{}@[{}]", self.user, self.address) } else { self.to_string() }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.user, self.address)
    }
}

/// How one gets in: a private key, the pinned host keys, patience.
#[derive(Clone, Debug)]
pub struct Access {
    /// File with the private key.
    pub key: PathBuf,
    /// File with the host keys.
    pub known_hosts: PathBuf,
    /// For the connection to stand.
    pub timeout: Duration,
    /// The connection that programs at its host go through ([`Access::join`]); those at other hosts make their own.
    pub through: Option<Through>,
}

/// Where a connection to a host that stands is to be found.
#[derive(Clone, Debug)]
pub struct Through {
    host: Host,
    socket: PathBuf,
}

/// A connection that stands, for programs to go through. Dropped, it is cut, and so are they.
#[derive(Debug)]
pub struct Joined {
    running: Running,
    socket: PathBuf,
}

impl Joined {
    /// Ends it in peace.
    pub async fn end(mut self) {
        drop(self.running.stdin.take());
        let _ = self.running.last_words().await;
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // One that was killed leaves it behind.
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Access {
    /// Makes a connection for what follows at `host`, and the access through it: a handshake each costs more than most of it. Nothing
    /// when there is no place for its socket.
    ///
    /// # Errors
    /// When the host cannot be reached.
    pub async fn join(&self, host: &Host) -> Result<Option<(Access, Joined)>, ProcessError> {
        let token = crate::identity::new_uuid();
        let socket = std::env::temp_dir().join(format!("bullwork-{}.ssh", &token[..13]));
        if socket.as_os_str().len() > LONGEST_SOCKET || socket.to_str().is_none_or(|path| path.contains(['%', '"', '\\', ' '])) {
            return Ok(None);
        }
        // A place that cannot be written to is found out here: what `ssh` says of it sounds like the network.
        if std::fs::File::create_new(&socket).and_then(|_| std::fs::remove_file(&socket)).is_err() {
            return Ok(None);
        }
        let master = Program::new("ssh")
            .args(["-M".to_owned(), "-S".to_owned(), socket.display().to_string()])
            .args(&self.line(host, ["sh", "-c", "echo; exec cat >/dev/null"])[1..]);
        let mut joined = Joined { running: master.start(true, None)?, socket };
        // It stays as long as we hold its input: killed, we let go.
        if !matches!(joined.running.stdout.read(&mut [0; 1]).await, Ok(1)) {
            joined.running.last_words().await.result?;
            return Ok(None);
        }
        let through = Through { host: host.clone(), socket: joined.socket.clone() };
        Ok(Some((Access { through: Some(through), ..self.clone() }, joined)))
    }

    /// The words of an `ssh` to a host, without its name.
    fn words(&self, host: &Host) -> Vec<String> {
        let file = |path: &Path| path.display().to_string();
        let mut words = vec!["-F".to_owned(), "/dev/null".to_owned(), "-T".to_owned(), "-i".to_owned(), file(&self.key)];
        for option in [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "PreferredAuthentications=publickey".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            // The option holds a list of files, and blanks part them.
            format!("UserKnownHostsFile=\"{}\"", file(&self.known_hosts)),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            // Processors have instructions for it: a third of the time of the first choice otherwise.
            "Ciphers=^aes128-gcm@openssh.com".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("ConnectTimeout={}", self.timeout.as_secs().max(1)),
            format!("ServerAliveInterval={}", ALIVE.as_secs()),
            "ServerAliveCountMax=3".to_owned(),
        ] {
            words.push("-o".to_owned());
            words.push(option);
        }
        if let Some(through) = self.through.as_ref().filter(|through| through.host == *host) {
            words.extend(["-S".to_owned(), file(&through.socket)]);
        }
        words.extend(["-p".to_owned(), host.port.to_string()]);
        words
    }

    /// A program on `host`, each word as it stands.
    #[must_use]
    pub fn command<'w>(&self, host: &Host, words: impl IntoIterator<Item = &'w str>) -> Program {
        Program::new("ssh").args(&self.line(host, words)[1..])
    }

    /// The same as words, from `ssh` on.
    #[must_use]
    pub fn line<'w>(&self, host: &Host, words: impl IntoIterator<Item = &'w str>) -> Vec<String> {
        let line: Vec<String> = words.into_iter().map(quote).collect();
        let target = ["-l".to_owned(), host.user.clone(), "--".to_owned(), host.address.clone(), line.join(" ")];
        std::iter::once("ssh".to_owned()).chain(self.words(host)).chain(target).collect()
    }

    /// A script for `sh` on `host` with its arguments; what it reads is free for data.
    #[must_use]
    pub fn script(&self, host: &Host, script: &str, arguments: &[&str]) -> Program {
        self.command(host, ["sh", "-c", script, "bullwork"].into_iter().chain(arguments.iter().copied()))
    }

    /// What rsync is told by `--rsh`: it takes such a text apart at blanks, and knows quotes.
    #[must_use]
    pub fn for_rsync(&self, host: &Host) -> String {
        let quoted = |word: &String| format!("'{}'", word.replace('\'', "''"));
        std::iter::once("ssh".to_owned()).chain(self.words(host).iter().map(quoted)).collect::<Vec<_>>().join(" ")
    }
}

/// `word` as the shell takes it for one word that means itself.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | ',' | '+' | '@' | '%');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Feeds a program and reads all that it writes.
///
/// # Errors
/// When it cannot be started, or fails.
pub async fn talk(program: Program, input: Vec<u8>) -> Result<Vec<u8>, ProcessError> {
    let mut running = program.start(true, None)?;
    let mut output = Vec::new();
    // What cannot be read is told by how the program ends.
    let (_, _) = tokio::join!(feed(running.stdin.take(), input), running.stdout.read_to_end(&mut output));
    running.end().await.result.map(|()| output)
}

/// Writes `input` and closes it. A program that ends early says why by itself.
pub async fn feed(stdin: Option<ChildStdin>, input: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&input).await;
        let _ = stdin.shutdown().await;
    }
}

/// What `ssh` meant, for the errors that people meet.
#[must_use]
pub fn explained(stderr: &str) -> Option<&'static str> {
    [
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED",
            "its host key is not the pinned one: somebody may stand between, or it was set up anew",
        ),
        // The first lines of that warning may be cut off.
        (
            "has changed and you have requested strict checking",
            "its host key is not the pinned one: somebody may stand between, or it was set up anew",
        ),
        ("UNPROTECTED PRIVATE KEY", "the private key's file may be read by others: chmod 600"),
        ("Host key verification failed", "its host key is not pinned: compare it, then add it to the known-hosts file"),
        ("No ED25519 host key is known", "its host key is not pinned: compare it, then add it to the known-hosts file"),
        ("Permission denied (publickey", "it does not take our key: add the public key to authorized_keys there"),
        ("Permission denied", "it refused"),
        ("Connection refused", "nothing listens there"),
        ("Could not resolve hostname", "its name is not known"),
        ("timed out", "no answer in time"),
        ("not responding", "no answer in time"),
        ("Connection closed", "the connection was cut"),
        ("Connection reset", "the connection was cut"),
        ("Broken pipe", "the connection was cut"),
    ]
    .into_iter()
    .find_map(|(mark, meaning)| stderr.contains(mark).then_some(meaning))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn access() -> Access {
        Access { key: "/k e'y".into(), known_hosts: "/known hosts".into(), timeout: Duration::from_secs(7), through: None }
    }

    #[test]
    fn plain_words_stay_and_others_are_quoted() {
        assert_eq!(quote("/var/lib/postgresql/15/main"), "/var/lib/postgresql/15/main");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's; rm -rf /"), r"'it'\''s; rm -rf /'");
        // In front of a command it would be an assignment.
        assert_eq!(quote("A=b"), "'A=b'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The remote shell is a shell like ours: it gives back exactly the words.
        #[test]
        fn a_shell_reads_every_word_back(words in proptest::collection::vec("[^\0]{0,20}", 1..5)) {
            let line = format!("printf '%s\\0' {}", words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "));
            let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            let wanted: Vec<u8> = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(output.stdout, wanted);
        }
    }

    #[tokio::test]
    async fn a_program_that_writes_while_it_is_fed_does_not_hang() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(talk(Program::new("cat"), input.clone()).await.unwrap(), input);
        assert!(talk(Program::new("sh").args(["-c", "exit 3"]), input).await.is_err());
    }

    #[test]
    fn nothing_passes_for_an_option() {
        let host = |address: &str, user: &str| Host { address: address.to_owned(), user: user.to_owned(), port: 22 };
        for (address, user) in
            [("-oProxyCommand=x", "me"), ("h", "-l"), ("a b", "me"), ("", "me"), ("h", ""), ("h;x", "me"), ("h", "a@b")]
        {
            assert!(host(address, user).check().is_err(), "{address} {user}");
        }
        for (address, user) in [("web-1.example.org", "deploy"), ("127.0.0.1", "_d"), ("::1", "me.too")] {
            host(address, user).check().unwrap();
        }
        assert_eq!(host("::1", "me").for_rsync(), "me@[::1]");
        assert!(
            access().for_rsync(&host("::1", "me")).starts_with("ssh '-F' '/dev/null' '-T' '-i' '/k e''y' '-o' 'BatchMode=yes'")
        );
    }
}
