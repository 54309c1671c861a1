//! The archives of one database in one store: everything below a prefix of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt as _, stream};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt as _;

use super::hex;
use super::manifest::{Content, Manifest, ManifestError};
use super::name::{BASELINE, MANIFEST, Name};
use super::verified;
use crate::storage::{Entry, Fault, Meta, StorageError, Store, Tidied};

/// Larger objects of ours are none: a manifest has a few hundred bytes for each table.
const LARGEST: u64 = 64 << 20;
/// Manifests that are read at the same time.
const AT_ONCE: usize = 16;
/// Read at a time.
const PIECE: usize = 1 << 20;
/// An upload that began longer ago than this is nobody's any more.
const DEAD: Duration = Duration::from_secs(24 * 3600);

/// Archives and what stands beside them.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// Where.
    pub store: Arc<dyn Store>,
    /// Begins every key.
    pub prefix: String,
}

/// What is wrong with an object of ours.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A manifest that cannot be used.
    #[error("the archive `{archive}`")]
    Manifest {
        /// Whose.
        archive: Name,
        /// Why.
        #[source]
        source: ManifestError,
    },
}

/// An archive in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelved {
    /// Its name.
    pub name: Name,
    /// The object.
    pub entry: Entry,
}

/// What a store holds.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The complete archives, oldest first.
    pub archives: Vec<Shelved>,
    /// When a drill last proved an archive, by its name.
    pub verified: BTreeMap<String, DateTime<Utc>>,
}

impl Shelf {
    /// The key of an archive, or of what stands beside it when `suffix` is [`MANIFEST`] or its like.
    #[must_use]
    pub fn key(&self, name: Name, suffix: &str) -> String {
        format!("{}{name}{suffix}", self.prefix)
    }

    /// The key of the baseline.
    #[must_use]
    pub fn baseline_key(&self) -> String {
        format!("{}{BASELINE}", self.prefix)
    }

    /// Where, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{} ({}…)", self.store.shown(), self.prefix)
    }

    /// The complete archives, oldest first.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn archives(&self) -> Result<Vec<Shelved>, StorageError> {
        Ok(self.complete_among(&self.store.list(&self.prefix).await?))
    }

    /// The same, and when each of them was verified.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn listing(&self) -> Result<Listing, StorageError> {
        let entries = self.store.list(&self.prefix).await?;
        Ok(Listing { archives: self.complete_among(&entries), verified: verified::times(self, &entries) })
    }

    /// The complete ones among all objects, oldest first.
    pub(super) fn complete_among(&self, entries: &[Entry]) -> Vec<Shelved> {
        let complete: BTreeSet<&str> =
            entries.iter().filter_map(|e| e.key.strip_prefix(&self.prefix)?.strip_suffix(MANIFEST)).collect();
        let shelved = |entry: &Entry| {
            let text = entry.key.strip_prefix(&self.prefix)?;
            let name = complete.contains(text).then(|| text.parse().ok()).flatten()?;
            Some(Shelved { name, entry: entry.clone() })
        };
        let mut archives: Vec<Shelved> = entries.iter().filter_map(shelved).collect();
        archives.sort_by_key(|a| a.name.to_string());
        archives
    }

    /// Whether an archive is complete and sound, as far as [`Shelf::examine`] can tell.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn holds(&self, name: Name) -> Result<bool, StorageError> {
        match self.store.look(&self.key(name, "")).await? {
            Some(meta) => Ok(self.judge(name, meta.size).await?.is_ok()),
            None => Ok(false),
        }
    }

    /// The manifests of `archives`, in their order, or what is wrong with those that are visibly damaged: the manifest cannot be
    /// read, or tells another size than the archive has.
    pub fn examine(
        &self,
        archives: impl IntoIterator<Item = Shelved>,
    ) -> impl Stream<Item = Result<(Shelved, Result<Manifest, String>), StorageError>> {
        let judged = move |shelved: Shelved| async move {
            let found = self.judge(shelved.name, shelved.entry.size).await?;
            Ok((shelved, found))
        };
        stream::iter(archives.into_iter().map(judged)).buffered(AT_ONCE)
    }

    async fn judge(&self, name: Name, size: u64) -> Result<Result<Manifest, String>, StorageError> {
        Ok(match self.manifest(name).await {
            Ok(manifest) if manifest.stored.bytes == size => Ok(manifest),
            Ok(manifest) => Err(format!("it has {size} bytes, and its manifest tells {}", manifest.stored.bytes)),
            Err(ShelfError::Manifest { source, .. }) => Err(format!("{:#}", anyhow::Error::new(source))),
            Err(ShelfError::Storage(StorageError { fault: Fault::Missing, .. })) => Err("its manifest is gone".to_owned()),
            Err(ShelfError::Storage(error)) => return Err(error),
        })
    }

    /// The newest of `archives`, oldest first, that is not damaged.
    pub(super) async fn newest_sound(&self, mut archives: Vec<Shelved>) -> Result<Option<Shelved>, StorageError> {
        while let Some(shelved) = archives.pop() {
            if self.judge(shelved.name, shelved.entry.size).await?.is_ok() {
                return Ok(Some(shelved));
            }
        }
        Ok(None)
    }

    /// An archive's manifest.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub async fn manifest(&self, archive: Name) -> Result<Manifest, ShelfError> {
        let (bytes, _) = self.store.read(&self.key(archive, MANIFEST), LARGEST).await?;
        Manifest::parse(&bytes).map_err(|source| ShelfError::Manifest { archive, source })
    }

    /// Marks an archive complete. One that says so already stays as it is.
    pub(super) async fn complete(&self, manifest: &Manifest) -> Result<(), StorageError> {
        match self.store.create(&self.key(manifest.archive, MANIFEST), manifest.to_json().into()).await {
            Err(StorageError { fault: Fault::AlreadyThere, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A small object; nothing when there is none.
    pub(super) async fn read(&self, key: &str) -> Result<Option<(bytes::Bytes, Meta)>, StorageError> {
        match self.store.read(key, LARGEST).await {
            Ok(read) => Ok(Some(read)),
            Err(StorageError { fault: Fault::Missing, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A name that no object has, complete or not.
    pub(super) async fn free(&self, mut name: Name) -> Result<Name, StorageError> {
        while !self.store.list(&format!("{}{}", self.prefix, name.stamp())).await?.is_empty() {
            name = name.next();
        }
        Ok(name)
    }

    /// Whether the object of `archive` is what the manifest says, byte for byte.
    pub(super) async fn is_whole(&self, archive: Name, stored: &Content) -> Result<bool, StorageError> {
        let key = self.key(archive, "");
        match self.store.look(&key).await? {
            Some(meta) if meta.size == stored.bytes => {}
            _ => return Ok(false),
        }
        let mut body = self.store.open(&key, 0).await?.body;
        let mut digest = Sha256::new();
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        while body.read_buf(&mut piece).await.map_err(|e| StorageError::of_reading(e, &key, self.store.shown()))? > 0 {
            digest.update(&piece);
            piece.clear();
        }
        Ok(hex(&digest.finalize()) == stored.sha256)
    }

    /// Copies an archive and its manifest from another shelf, as they are.
    pub(super) async fn copy_from(&self, other: &Shelf, manifest: &Manifest) -> Result<(), StorageError> {
        let key = self.key(manifest.archive, "");
        if !self.is_whole(manifest.archive, &manifest.stored).await? {
            let from = other.key(manifest.archive, "");
            let mut body = other.store.open(&from, 0).await?.body;
            let mut upload = self.store.upload(&key).await?;
            let mut digest = Sha256::new();
            let copied = loop {
                let mut piece = bytes::BytesMut::with_capacity(PIECE);
                match body.read_buf(&mut piece).await {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(StorageError::of_reading(error, &from, other.store.shown())),
                }
                digest.update(&piece);
                if let Err(error) = upload.write(piece.freeze()).await {
                    break Err(error);
                }
            };
            let same = hex(&digest.finalize()) == manifest.stored.sha256;
            match copied {
                Ok(()) if same => upload.finish().await.map(|_| ())?,
                Ok(()) => {
                    let _ = upload.abort().await;
                    let fault = Fault::Corrupt("its bytes are not those that its manifest tells".to_owned());
                    return Err(StorageError { doing: format!("reading `{from}` from {}", other.store.shown()), fault });
                }
                Err(error) => {
                    let _ = upload.abort().await;
                    return Err(error);
                }
            }
        }
        self.complete(manifest).await
    }

    /// Ends uploads that nobody will finish; what was done, for the log.
    pub(super) async fn tidy(&self) -> Result<Option<String>, StorageError> {
        Ok(match self.store.tidy(&self.prefix, DEAD).await? {
            Tidied::Ended(keys) if keys.is_empty() => None,
            Tidied::Ended(keys) => Some(format!("ended {} uploads that were never finished: {}", keys.len(), keys.join(", "))),
            // Said by the store's documentation once, not by every run.
            Tidied::Unlisted(_) => None,
        })
    }
}
