//! Reading an archive as one stream: store → stored digest → key → decompression → tar → members.
//!
//! Memory is bounded, and nothing lies on a disk. What [`Opening::next`] gives before its end is not proven yet: the last
//! bytes may tell that all was damaged. So an archive is read twice when something is done with it: once for
//! [`verify`], which looks at every byte, and once more for the work, which becomes final only after the end
//! was reached again (ADR 0019).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::hex;
use super::keys::{Keys, NoKey};
use super::manifest::{Content, Manifest, Member};
use super::shelf::{Shelf, ShelfError};
use super::unsqueeze::{self, Pieces};
use super::untar::{self, Unlike, Untar};
use crate::seal::{SealError, Stream};
use crate::storage::{Fault, StorageError};
use crate::worker::Run;
use crate::worker::run::Stopped;

pub(super) use untar::Event;

/// Read at a time where nobody else decides.
const PIECE: usize = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its manifest.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// There is no key for it.
    #[error(transparent)]
    NoKey(#[from] NoKey),
    /// The key is another one, or the program for it fails.
    #[error("opening the archive")]
    Seal(#[source] SealError),
    /// It is not what its manifest tells.
    #[error("the archive `{archive}` is damaged: {reason}")]
    Damaged {
        /// Which.
        archive: String,
        /// What was found.
        reason: String,
    },
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl OpenError {
    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            OpenError::Storage(error) | OpenError::Shelf(ShelfError::Storage(error)) => {
                matches!(error.fault, Fault::Missing | Fault::Key(_) | Fault::Refused(_))
            }
            OpenError::Seal(error) => matches!(error, SealError::WrongKey(_) | SealError::KeyFile { .. } | SealError::Damaged(_)),
            OpenError::Shelf(ShelfError::Manifest { .. }) | OpenError::NoKey(_) | OpenError::Damaged { .. } => true,
            OpenError::Stopped(_) => false,
        }
    }
}

/// The stored bytes do not have the digest that they should have.
#[derive(Debug, thiserror::Error)]
#[error("the SHA-256 of its stored bytes is not the one that the manifest tells")]
struct OtherDigest;

/// Passes bytes on, and ends only where they are those that the manifest tells.
struct Checked {
    inner: Stream,
    expected: Content,
    digest: Option<Sha256>,
    read: Arc<AtomicU64>,
}

impl AsyncRead for Checked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if new.is_empty() {
            let Some(digest) = self.digest.take() else { return Poll::Ready(Ok(())) };
            let same =
                self.read.load(Ordering::Relaxed) == self.expected.bytes && hex(&digest.finalize()) == self.expected.sha256;
            return Poll::Ready(if same { Ok(()) } else { Err(io::Error::other(OtherDigest)) });
        }
        self.read.fetch_add(new.len() as u64, Ordering::Relaxed);
        if let Some(digest) = &mut self.digest {
            digest.update(new);
        }
        Poll::Ready(Ok(()))
    }
}

/// An archive being read.
pub(super) struct Opening<'m> {
    manifest: &'m Manifest,
    pieces: Pieces,
    /// Nothing after the end.
    tar: Option<Untar>,
    read: Arc<AtomicU64>,
}

/// The stored bytes, which end only where they are right.
pub(super) async fn stored(shelf: &Shelf, manifest: &Manifest) -> Result<Stream, OpenError> {
    counted(shelf, manifest, &Arc::default()).await
}

/// The same, with how much of it was read.
async fn counted(shelf: &Shelf, manifest: &Manifest, read: &Arc<AtomicU64>) -> Result<Stream, OpenError> {
    let opened = shelf.store.open(&shelf.key(manifest.archive, ""), 0).await?;
    if opened.meta.size != manifest.stored.bytes {
        let reason = format!("it has {} bytes where its manifest tells {}", opened.meta.size, manifest.stored.bytes);
        return Err(OpenError::Damaged { archive: manifest.archive.to_string(), reason });
    }
    let (expected, read) = (manifest.stored.clone(), Arc::clone(read));
    Ok(Box::new(Checked { inner: opened.body, expected, digest: Some(Sha256::new()), read }))
}

impl<'m> Opening<'m> {
    /// Begins to read. A key that does not fit is noticed here with age, and at the first piece with gpg.
    pub(super) async fn begin(shelf: &Shelf, manifest: &'m Manifest, keys: &Keys) -> Result<Opening<'m>, OpenError> {
        let opener = keys.opener(manifest.archive.sealing)?;
        let read = Arc::new(AtomicU64::new(0));
        let stored = counted(shelf, manifest, &read).await?;
        let plain = match opener {
            None => stored,
            Some(opener) => match opener.open(stored).await {
                Ok(plain) => plain,
                Err(error) => return Err(of_seal(error, manifest)),
            },
        };
        let pieces = unsqueeze::start(manifest.archive.compression, plain, manifest.plain.bytes);
        Ok(Opening { manifest, pieces, tar: Some(Untar::new(manifest)), read })
    }

    /// The next thing; nothing after the end of an archive that is whole.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, OpenError> {
        let damaged = |Unlike(reason)| OpenError::Damaged { archive: self.manifest.archive.to_string(), reason };
        loop {
            let Some(tar) = &mut self.tar else { return Ok(None) };
            if let Some(event) = tar.next().map_err(damaged)? {
                return Ok(Some(event));
            }
            match self.pieces.next().await {
                Ok(Some(piece)) => tar.feed(&piece),
                Ok(None) => {
                    if let Some(tar) = self.tar.take() {
                        tar.finish().map_err(damaged)?;
                    }
                }
                Err(error) => return Err(of_io(error, self.manifest)),
            }
        }
    }

    /// The member with this number.
    pub(super) fn member(&self, number: usize) -> &'m Member {
        &self.manifest.members[number]
    }

    /// Stored bytes read so far.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

fn of_seal(error: SealError, manifest: &Manifest) -> OpenError {
    match error {
        SealError::Source(error) => of_io(error, manifest),
        error => OpenError::Seal(error),
    }
}

/// What came through readers, as what it was.
pub(super) fn of_io(error: io::Error, manifest: &Manifest) -> OpenError {
    let error = match error.downcast::<StorageError>() {
        Ok(StorageError { fault: Fault::Corrupt(reason), .. }) => {
            return OpenError::Damaged { archive: manifest.archive.to_string(), reason };
        }
        Ok(error) => return OpenError::Storage(error),
        Err(error) => error,
    };
    match error.downcast::<SealError>() {
        Ok(error) => of_seal(error, manifest),
        // The decompressor's words, or ours.
        Err(error) => OpenError::Damaged { archive: manifest.archive.to_string(), reason: error.to_string() },
    }
}

/// How much of an archive was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// Every byte of every member.
    Whole,
    /// The stored bytes only, for want of a key.
    Stored,
}

/// Reads the whole archive, and fails unless it is what its manifest tells. Without a key for it only the stored bytes
/// are looked at, when `sealed_too` allows that.
pub(super) async fn verify(
    run: &Run,
    shelf: &Shelf,
    manifest: &Manifest,
    keys: &Keys,
    sealed_too: bool,
) -> Result<Verified, OpenError> {
    run.progress(|p| {
        "verify".clone_into(&mut p.phase);
        p.bytes = 0;
    });
    match read_through(run, shelf, manifest, keys).await {
        Ok(()) => Ok(Verified::Whole),
        Err(OpenError::NoKey(_)) if sealed_too => {
            read_stored(run, shelf, manifest).await?;
            Ok(Verified::Stored)
        }
        Err(error @ OpenError::Seal(SealError::WrongKey(_))) => {
            // One that is damaged where it begins looks like somebody else's.
            read_stored(run, shelf, manifest).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

async fn read_through(run: &Run, shelf: &Shelf, manifest: &Manifest, keys: &Keys) -> Result<(), OpenError> {
    let mut opening = run.unless_stopped(Opening::begin(shelf, manifest, keys)).await??;
    while run.unless_stopped(opening.next()).await??.is_some() {
        run.progress(|p| p.bytes = opening.read());
    }
    Ok(())
}

/// Reads the stored bytes, and fails unless they are those that the manifest tells.
async fn read_stored(run: &Run, shelf: &Shelf, manifest: &Manifest) -> Result<(), OpenError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut stored = counted(shelf, manifest, &read).await?;
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    while run.unless_stopped(stored.read_buf(&mut piece)).await?.map_err(|e| of_io(e, manifest))? > 0 {
        piece.clear();
        run.progress(|p| p.bytes = read.load(Ordering::Relaxed));
    }
    Ok(())
}
