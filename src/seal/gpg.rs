//! OpenPGP by the installed `gpg`.
//!
//! Arguments hold names of keys and files only. What `gpg` did is read from its status lines, not guessed
//! from texts, which are translated and change. The key is looked up first, and then named by
//! fingerprint: an unusable, expired, revoked or missing one, or a name that fits several, is an error before
//! a byte is produced. Such a key is trusted because the configuration names it, so the web of trust is not asked.

mod key;
mod reader;
mod writer;

use std::path::PathBuf;

use super::{SealError, Stream};
use crate::process::Program;
pub use writer::Writer;

/// Longest time without a byte moving in either direction.
const STUCK: std::time::Duration = std::time::Duration::from_secs(300);
/// What status lines begin with.
const STATUS: &str = "[GNUPG:] ";

/// The key that streams are encrypted for.
#[derive(Clone, Debug)]
pub struct Recipient {
    name: String,
    home: Option<PathBuf>,
}

impl Recipient {
    /// `name` as gpg takes it: a fingerprint best of all, or a key id or mail address that only one key has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Recipient { name: name.to_owned(), home: None }
    }

    /// With keys from `home` instead of `GNUPGHOME` or `~/.gnupg`.
    #[must_use]
    pub fn home(mut self, home: PathBuf) -> Self {
        self.home = Some(home);
        self
    }

    /// As it was written.
    #[must_use]
    pub fn shown(&self) -> String {
        self.name.clone()
    }

    /// Finds the one usable key.
    ///
    /// # Errors
    /// When there is none, or several, or gpg is not installed.
    pub async fn fingerprint(&self) -> Result<String, SealError> {
        key::find(&self.name, self.home.as_deref()).await
    }

    pub(super) async fn start(&self) -> Result<Writer, SealError> {
        let fingerprint = self.fingerprint().await?;
        Writer::start(&fingerprint, self.home.as_deref())
    }
}

/// The secret keys of the installed `gpg`.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// Its directory instead of `GNUPGHOME` or `~/.gnupg`.
    pub home: Option<PathBuf>,
    /// File that holds the secret key's passphrase on its first line.
    pub passphrase_file: Option<PathBuf>,
}

impl Keyring {
    pub(super) fn open(&self, sealed: Stream) -> Result<Stream, SealError> {
        reader::open(self, sealed)
    }
}

/// `gpg` that asks nobody anything.
fn program(home: Option<&std::path::Path>) -> Program {
    let program = Program::new("gpg").inheriting(["GNUPGHOME"]).args(["--batch", "--no-tty", "--status-fd", "2"]);
    match home {
        Some(home) => program.args([std::ffi::OsStr::new("--homedir"), home.as_os_str()]),
        None => program,
    }
}
