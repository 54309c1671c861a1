//! The age format (age-encryption.org/v1), in this process.
//!
//! A stream has a random key of its own, wrapped for each recipient; the body is ChaCha20-Poly1305 in pieces
//! of 64 KiB, the last one marked, so that a stream cut off at any byte is noticed (ADR 0016).
//!
//! Recipients are X25519 (`age1…`), identities theirs (`AGE-SECRET-KEY-1…`), as `age-keygen` writes them. A
//! *key file* is such an identity file: who has it can encrypt ([`Identities::recipients`]) and decrypt.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use ::age::secrecy::ExposeSecret as _;
use ::age::x25519;
use ::age::{DecryptError, Decryptor, Encryptor};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, BufReader, ReadBuf};
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use super::{SealError, Stream};
use crate::redact;

/// Longest key or recipients file; they have a line a key.
const FILE_SIZE: u64 = 1 << 20;
/// A stream that goes on for this long without the end of its header was never encrypted.
const HEADER: u64 = 256 << 10;

/// For whom a stream is encrypted.
#[derive(Clone, Debug)]
pub struct Recipients(Vec<Recipient>);

#[derive(Clone)]
struct Recipient {
    text: String,
    key: x25519::Recipient,
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Recipients {
    /// Reads recipients separated by commas, blanks or lines; `#` begins a comment that goes to its line's end.
    ///
    /// # Errors
    /// When one cannot be used, or there is none.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split([',', ' ', '\t']));
        let mut found: Vec<Recipient> = Vec::new();
        for word in words.map(str::trim).filter(|word| !word.is_empty()) {
            let recipient = Recipient::parse(word)?;
            if !found.iter().any(|known| known.text == recipient.text) {
                found.push(recipient);
            }
        }
        if found.is_empty() {
            return Err(SealError::Recipient {
                recipient: String::new(),
                reason: "none is given; write age1…, as `age-keygen -y` prints it".to_owned(),
            });
        }
        Ok(Recipients(found))
    }

    /// Reads a file with a recipient a line.
    ///
    /// # Errors
    /// When it cannot be read, or a recipient in it cannot be used.
    pub fn from_file(file: &Path) -> Result<Self, SealError> {
        Recipients::parse(&read(file)?)
    }

    /// As they were written.
    #[must_use]
    pub fn shown(&self) -> Vec<String> {
        self.0.iter().map(|recipient| recipient.text.clone()).collect()
    }

    pub(super) fn start(&self) -> Result<Writer, SealError> {
        let unusable = |e: String| SealError::Recipient { recipient: self.shown().join(", "), reason: e };
        let recipients = self.0.iter().map(|recipient| &recipient.key as &dyn ::age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(|e| unusable(e.to_string()))?;
        let sink = Sink::default();
        let writer = encryptor.wrap_output(sink.clone()).map_err(SealError::Source)?;
        Ok(Writer { writer, sink })
    }
}

impl Recipient {
    fn parse(word: &str) -> Result<Self, SealError> {
        let wrong = |recipient: &str, reason: &str| {
            Err(SealError::Recipient { recipient: recipient.to_owned(), reason: reason.to_owned() })
        };
        if word.to_ascii_uppercase().starts_with("AGE-SECRET-KEY") {
            redact::remember(word);
            return wrong(
                "AGE-SECRET-KEY-…",
                "this is the secret key, which belongs nowhere but to who restores; take its public one (age1…)",
            );
        }
        if word.starts_with("ssh-") {
            return wrong(word, "SSH keys are not taken; make an age key (`age-keygen`)");
        }
        match word.parse::<x25519::Recipient>() {
            Ok(key) => Ok(Recipient { text: key.to_string(), key }),
            Err(reason) => wrong(word, &format!("{reason}; write age1…, as `age-keygen -y` prints it")),
        }
    }
}

/// Encrypts.
pub struct Writer {
    writer: ::age::stream::StreamWriter<Sink>,
    sink: Sink,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    pub(in crate::seal) fn write(&mut self, plain: &[u8]) -> Result<Bytes, SealError> {
        self.writer.write_all(plain).map_err(SealError::Source)?;
        Ok(self.sink.take())
    }

    pub(in crate::seal) fn finish(self) -> Result<Bytes, SealError> {
        let sink = self.writer.finish().map_err(SealError::Source)?;
        Ok(sink.take())
    }
}

/// Where the encryptor writes to, and we take from.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<BytesMut>>);

impl Sink {
    fn take(&self) -> Bytes {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).split().freeze()
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Secret keys.
#[derive(Clone)]
pub struct Identities {
    keys: Vec<x25519::Identity>,
    file: String,
}

/// Shows where they come from, and nothing else.
impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({} of {})", self.keys.len(), self.file)
    }
}

impl Identities {
    /// Reads an identity file. One that others can read is told in the log.
    ///
    /// # Errors
    /// When it cannot be read or holds no key.
    pub fn from_file(file: &Path) -> Result<Self, SealError> {
        let wrong = |reason: String| SealError::KeyFile { file: file.display().to_string(), reason };
        let text = read(file)?;
        let mode = std::fs::metadata(file).map_or(0, |found| found.mode());
        if mode & 0o077 != 0 {
            tracing::warn!(
                "Key file {} can be read or written by others than its owner (mode {:o}); run: chmod 600 {}",
                file.display(),
                mode & 0o777,
                file.display()
            );
        }
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            redact::remember(line);
            let number = number + 1;
            keys.push(line.parse::<x25519::Identity>().map_err(|reason| {
                let kind = if line.starts_with("age-encryption.org/") || line.starts_with("-----BEGIN") {
                    "the file is itself encrypted or an SSH key, which is not taken; write the decrypted age key to a file with mode 600"
                } else {
                    reason
                };
                // The line is never quoted: it may be a secret that is only mistyped.
                wrong(format!("line {number} is no AGE-SECRET-KEY-1…: {kind}"))
            })?);
        }
        if keys.is_empty() {
            return Err(wrong("it holds no AGE-SECRET-KEY-1…; make one with `age-keygen`".to_owned()));
        }
        Ok(Identities { keys, file: file.display().to_string() })
    }

    /// Those whom these keys belong to: for encrypting to oneself, as everybody does who shares a key file.
    #[must_use]
    pub fn recipients(&self) -> Recipients {
        let of = |key: &x25519::Identity| Recipient { text: key.to_public().to_string(), key: key.to_public() };
        Recipients(self.keys.iter().map(of).collect())
    }

    pub(super) async fn open(&self, sealed: Stream) -> Result<Stream, SealError> {
        let header_read = Arc::new(AtomicBool::new(false));
        let guarded = Guard { inner: sealed, read: 0, header_read: header_read.clone() };
        let failed = |error| match error {
            DecryptError::NoMatchingKeys => {
                SealError::WrongKey(format!("it is for other recipients than those of {}", self.file))
            }
            DecryptError::Io(error) => of_io(error),
            error => SealError::Damaged(error.to_string()),
        };
        let decryptor =
            Decryptor::new_async_buffered(BufReader::with_capacity(64 << 10, guarded).compat()).await.map_err(failed)?;
        header_read.store(true, Ordering::Relaxed);
        if decryptor.is_scrypt() {
            return Err(SealError::WrongKey("it was encrypted with a passphrase".to_owned()));
        }
        let keys = self.keys.iter().map(|key| key as &dyn ::age::Identity);
        let plain = decryptor.decrypt_async(keys).map_err(failed)?;
        Ok(Box::new(Opened(plain.compat())))
    }
}

/// What went wrong in the source stays what it was; the rest is about the bytes.
fn of_io(error: io::Error) -> SealError {
    match error.kind() {
        io::ErrorKind::InvalidData => SealError::Damaged(error.to_string()),
        io::ErrorKind::UnexpectedEof => SealError::Damaged("it ends too early".to_owned()),
        _ => SealError::Source(error),
    }
}

/// A decrypted stream with our errors.
struct Opened<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Opened<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_read(cx, buf)).map_err(|error| of_io(error).into()))
    }
}

/// Ends a stream that never comes to the end of its header: the parser would hold all of it.
struct Guard {
    inner: Stream,
    read: u64,
    header_read: Arc<AtomicBool>,
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read > HEADER && !self.header_read.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "it has no end of a header")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.read += (buf.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

/// Makes a new key, writes it to `file`, which must not exist, for its owner alone, and returns its public part.
///
/// # Errors
/// When there is such a file, or it cannot be written.
pub fn keygen(file: &Path) -> Result<String, SealError> {
    let wrong = |error: io::Error| SealError::KeyFile {
        file: file.display().to_string(),
        reason: match error.kind() {
            io::ErrorKind::AlreadyExists => "it exists already, and a key is never overwritten; move it away first".to_owned(),
            _ => error.to_string(),
        },
    };
    let key = x25519::Identity::generate();
    let public = key.to_public().to_string();
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(wrong)?;
    let saved = write!(written, "# public key: {public}\n{}\n", key.to_string().expose_secret())
        .and_then(|()| written.sync_all())
        .and_then(|()| match file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        });
    if let Err(error) = saved {
        // Half a key is of no use, and would be in the way of the next try.
        let _ = std::fs::remove_file(file);
        return Err(wrong(error));
    }
    Ok(public)
}

fn read(file: &Path) -> Result<String, SealError> {
    let wrong = |reason: String| SealError::KeyFile { file: file.display().to_string(), reason };
    let found = std::fs::metadata(file).map_err(|e| wrong(e.to_string()))?;
    if !found.is_file() || found.len() > FILE_SIZE {
        return Err(wrong(format!("it is no regular file of at most {FILE_SIZE} bytes")));
    }
    std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))
}
