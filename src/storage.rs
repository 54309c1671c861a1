//! Object storage: a bucket of an S3-compatible server, or a directory.
//!
//! One trait, [`Store`], with what correctness needs and no more: an object is *created* where there is
//! none, or *replaced* where it still is the version that was read. Both are decided by the store itself,
//! so two processes, on two machines, have one winner. There is no plain overwriting.
//!
//! - An object is visible whole or not at all: [`Upload::finish`] makes it appear, everything before leaves
//!   nothing that [`Store::look`] or [`Store::list`] shows. What a killed process leaves behind all the same
//!   (open multipart uploads, temporary files) is found by [`Store::tidy`].
//! - Nothing is called stored that the store has not confirmed, by size and, where it tells one, checksum.
//! - Memory is bounded: an upload holds [`Options::part_size`] times one more than [`Options::concurrency`],
//!   a download a few network buffers.
//! - Every request has an end; what may pass by itself (a cut connection, 5xx, no answer) is tried again
//!   here, with growing pauses, so callers need not.
//!
//! - [`key`]: which names an object may have
//! - [`settings`]: the `S3_…` variables
//! - [`directory`] and [`s3`]: the two stores

pub mod directory;
mod error;
pub mod key;
mod probe;
pub mod s3;
pub mod settings;
mod whole;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use tokio::io::{AsyncRead, AsyncReadExt};

pub use error::{Fault, StorageError};
pub use probe::{Probed, probe};
pub use settings::Options;

/// Which content an object had when it was looked at. Only good for comparing, and for
/// [`Store::replace`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub(crate) String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object as the store describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes.
    pub size: u64,
    /// Its content's version.
    pub version: Version,
    /// When it was written, by the store's clock.
    pub modified: DateTime<Utc>,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key, below the store's own prefix.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: DateTime<Utc>,
}

/// An object being read. Of an object that is replaced meanwhile the rest is an error, never another
/// version's bytes; so is an end before `meta.size`.
pub struct Opened {
    /// What is being read.
    pub meta: Meta,
    /// Its bytes, from the position that was asked for.
    pub body: Box<dyn AsyncRead + Send + Unpin>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// What an upload became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes sent, which the store confirmed.
    pub size: u64,
    /// SHA-256 of what was sent.
    pub sha256: [u8; 32],
    /// The new object's version.
    pub version: Version,
}

/// What became of an object that was to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or was not there.
    Removed,
    /// The store keeps it, for this reason (object lock).
    Kept(String),
}

/// What [`Store::tidy`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tidied {
    /// Keys of the uploads that were begun, never finished, and are gone now.
    Ended(Vec<String>),
    /// The store does not tell which uploads are open; what to do instead.
    Unlisted(String),
}

/// An object being written. Dropping it is as good as [`Upload::abort`], but nobody hears whether that
/// succeeded.
#[async_trait]
pub trait Upload: Send + fmt::Debug {
    /// Takes the next bytes; waits while the store is slower than the source.
    async fn write(&mut self, piece: Bytes) -> Result<(), StorageError>;
    /// Bytes that the store has taken so far, for showing progress.
    fn sent(&self) -> u64;
    /// Makes the object appear, unless there is one by now: [`Fault::AlreadyThere`]. Returns once the store
    /// confirmed it; after an error nothing of this upload is visible, but see [`Fault::Unknown`].
    async fn finish(self: Box<Self>) -> Result<Stored, StorageError>;
    /// Leaves nothing.
    async fn abort(self: Box<Self>) -> Result<(), StorageError>;
}

/// Where objects are. Keys are checked by [`key::check`] and stand below the store's own prefix.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Its address for messages; holds no secret.
    fn shown(&self) -> &str;
    /// Writes a small object where there is none; else [`Fault::AlreadyThere`].
    async fn create(&self, key: &str, body: Bytes) -> Result<Version, StorageError>;
    /// Writes a small object in the place of the version `known`; else [`Fault::Changed`].
    async fn replace(&self, key: &str, body: Bytes, known: &Version) -> Result<Version, StorageError>;
    /// Begins an object of any size. That there is one already is told by [`Upload::finish`], or here.
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StorageError>;
    /// Reads from byte `from` on; [`Fault::Missing`] when there is no such object.
    async fn open(&self, key: &str, from: u64) -> Result<Opened, StorageError>;
    /// What is there.
    async fn look(&self, key: &str) -> Result<Option<Meta>, StorageError>;
    /// Every object whose key begins with `prefix` (any text, not only whole folders), by key in byte order.
    /// About 150 bytes of memory each.
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError>;
    /// Removes an object; one that is not there counts as removed. Nothing stands between looking at an
    /// object and removing it: what others may replace meanwhile is better replaced by a mark.
    async fn remove(&self, key: &str) -> Result<Removal, StorageError>;
    /// Ends uploads below `prefix` that began longer ago than `older_than` and were never finished.
    async fn tidy(&self, prefix: &str, older_than: Duration) -> Result<Tidied, StorageError>;

    /// Reads a whole object of at most `limit` bytes.
    async fn read(&self, key: &str, limit: u64) -> Result<(Bytes, Meta), StorageError> {
        let Opened { meta, body } = self.open(key, 0).await?;
        let failed = |fault| StorageError { doing: format!("reading `{key}` from {}", self.shown()), fault };
        if meta.size > limit {
            return Err(failed(Fault::Refused(format!(
                "it has {} bytes, more than the {limit} that such an object may have",
                meta.size
            ))));
        }
        let mut bytes = BytesMut::with_capacity(usize::try_from(meta.size).unwrap_or(0));
        let mut body = body.take(limit);
        while body.read_buf(&mut bytes).await.map_err(|e| StorageError::of_reading(e, key, self.shown()))? > 0 {}
        Ok((bytes.freeze(), meta))
    }
}

/// A store by its address: `s3://bucket/prefix`, `file:///directory`.
///
/// Nothing is asked of the store yet.
///
/// # Errors
/// When the address is none of these, or TLS cannot be set up.
pub fn open(address: &str, options: &Options) -> Result<Arc<dyn Store>, StorageError> {
    match settings::Place::parse(address) {
        Ok(settings::Place::Directory(path)) => Ok(Arc::new(directory::Directory::new(path))),
        Ok(settings::Place::Bucket { bucket, prefix }) => Ok(Arc::new(s3::Bucket::new(bucket, prefix, options)?)),
        Err(fault) => Err(StorageError {
            doing: format!("opening the store `{}`", crate::redact::mask_url(address)),
            fault: Fault::Refused(fault),
        }),
    }
}
