//! Encrypting and decrypting streams, for keys that this machine need not have.
//!
//! [`Seal`] says for whom, [`Sealer`] takes plaintext and gives ciphertext as it goes, [`Opener`] does the
//! reverse for who holds a key. Memory is bounded by tens of kilobytes whatever the stream's length.
//!
//! - What [`Sealer::finish`] has not ended is no sealed stream: dropping a sealer, or losing its last bytes,
//!   makes something that every opener refuses.
//! - A reader from [`Opener::open`] ends without error only after the last byte was authenticated. It gives
//!   authenticated pieces before that (age), or bytes that are only vouched for at the end (OpenPGP), so
//!   what is done with them has to be undone when an error comes: a transaction, a file that is not kept.
//! - Who is to read it is checked before the first byte is produced; a recipient that cannot be used is an
//!   error, and never left out.
//!
//! - [`age`]: the age format, in this process, for one or several recipients
//! - [`gpg`]: OpenPGP, by the installed `gpg`

pub mod age;
pub mod gpg;

use std::fmt;

use bytes::Bytes;
use tokio::io::AsyncRead;

use crate::process::ProcessError;

/// Bytes on their way.
pub type Stream = Box<dyn AsyncRead + Send + Unpin>;

/// Why something was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A recipient that nothing can be encrypted for.
    #[error("recipient `{recipient}` cannot be used: {reason}")]
    Recipient {
        /// As it was written.
        recipient: String,
        /// And what to do.
        reason: String,
    },
    /// A key that cannot be read.
    #[error("key file {file}: {reason}")]
    KeyFile {
        /// Its path.
        file: String,
        /// And what to do.
        reason: String,
    },
    /// None of our keys is one that it was encrypted for.
    #[error("none of the given keys opens it: {0}")]
    WrongKey(String),
    /// What was read is not what was written.
    #[error("it is damaged, cut off, or was never encrypted like this: {0}")]
    Damaged(String),
    /// The program failed.
    #[error(transparent)]
    Program(#[from] ProcessError),
    /// The program does not go on.
    #[error("`gpg` did nothing for {0} s")]
    Stuck(u64),
    /// The stream to read from failed.
    #[error("{0}")]
    Source(#[source] std::io::Error),
}

impl SealError {
    /// What a reader from [`Opener::open`] failed with.
    #[must_use]
    pub fn of_reading(error: std::io::Error) -> Self {
        error.downcast::<SealError>().unwrap_or_else(SealError::Source)
    }
}

/// For readers, whose errors are of this type.
impl From<SealError> for std::io::Error {
    fn from(error: SealError) -> Self {
        match error {
            // The source's own error stays what it was.
            SealError::Source(error) => error,
            error => std::io::Error::other(error),
        }
    }
}

/// For whom to encrypt, and how.
#[derive(Clone, Debug)]
pub enum Seal {
    /// For age recipients.
    Age(age::Recipients),
    /// For one OpenPGP key.
    Gpg(gpg::Recipient),
}

impl Seal {
    /// What such a file's name ends with, without the dot.
    #[must_use]
    pub fn extension(&self) -> &'static str {
        match self {
            Seal::Age(_) => "age",
            Seal::Gpg(_) => "gpg",
        }
    }

    /// Who will be able to read it; public, for manifests.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        match self {
            Seal::Age(recipients) => recipients.shown(),
            Seal::Gpg(recipient) => vec![recipient.shown()],
        }
    }

    /// Whether it can be done at all, for who wants to know before there is something to encrypt.
    ///
    /// # Errors
    /// When a recipient cannot be used, or the program is missing.
    pub async fn check(&self) -> Result<(), SealError> {
        match self {
            // Recipients were checked when they were read.
            Seal::Age(_) => Ok(()),
            Seal::Gpg(recipient) => recipient.fingerprint().await.map(|_| ()),
        }
    }

    /// Begins to encrypt one stream, with a key of its own.
    ///
    /// # Errors
    /// When a recipient cannot be used, or the program does not start.
    pub async fn start(&self) -> Result<Sealer, SealError> {
        Ok(Sealer(match self {
            Seal::Age(recipients) => Inner::Age(recipients.start()?),
            Seal::Gpg(recipient) => Inner::Gpg(recipient.start().await?),
        }))
    }
}

/// Takes plaintext, gives ciphertext.
#[derive(Debug)]
pub struct Sealer(Inner);

#[derive(Debug)]
enum Inner {
    Age(age::Writer),
    Gpg(gpg::Writer),
}

impl Sealer {
    /// Takes the next plaintext and returns the ciphertext that is ready by now, which may be none.
    ///
    /// # Errors
    /// When the program fails.
    pub async fn write(&mut self, plain: &[u8]) -> Result<Bytes, SealError> {
        match &mut self.0 {
            Inner::Age(writer) => writer.write(plain),
            Inner::Gpg(writer) => writer.write(plain).await,
        }
    }

    /// Ends the stream and returns the rest of the ciphertext.
    ///
    /// # Errors
    /// When the program fails.
    pub async fn finish(self) -> Result<Bytes, SealError> {
        match self.0 {
            Inner::Age(writer) => writer.finish(),
            Inner::Gpg(writer) => writer.finish().await,
        }
    }
}

/// Holds keys.
#[derive(Clone, Debug)]
pub enum Opener {
    /// age identities.
    Age(age::Identities),
    /// The keys that the installed `gpg` has.
    Gpg(gpg::Keyring),
}

impl Opener {
    /// Decrypts `sealed`; returns once a key fits. See the module on what the reader's bytes are worth
    /// before its end.
    ///
    /// # Errors
    /// [`SealError::WrongKey`], [`SealError::Damaged`], or the source's own; with `gpg` they come from the reader instead.
    pub async fn open(&self, sealed: Stream) -> Result<Stream, SealError> {
        match self {
            Opener::Age(identities) => identities.open(sealed).await,
            Opener::Gpg(keyring) => keyring.open(sealed),
        }
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.extension(), self.recipients().join(", "))
    }
}
