//! A directory as a store: one file an object, named as its key.
//!
//! ```text
//! ROOT/.lock                             held (flock) while a file is replaced or removed
//! ROOT/db/2026-01-31T00:00:00.tar.zst    an object
//! ROOT/db/.NAME.UUID.tmp                 one being written; locked (flock) as long as its writer lives
//! ```
//!
//! A file is written under its temporary name, synced, and linked to its own name, which fails where there is
//! one: a name that shows is a whole object, also after a power cut (the directory is synced too). Files
//! and directories are made for their owner alone.
//!
//! The version of a small file is its content's SHA-256; of a larger one, which nobody replaces, its inode,
//! time and size. Replacing compares and renames under the lock, so it decides between processes of one
//! machine; over a network file system it does where that passes flock on (NFS 4 does).
//!
//! A key cannot be another one's folder here, though it can in S3.

mod file;
mod upload;
mod walk;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncSeekExt;

use super::{Entry, Fault, Meta, Opened, Removal, StorageError, Store, Tidied, Upload, Version, key, whole};
use file::{Temporary, fault};

/// A directory as a store.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    shown: String,
}

impl Directory {
    /// A store below `root`, which is made when something is written.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        let shown = format!("file://{}", root.display());
        Directory { root, shown }
    }

    /// Runs `work` where it may block, with the object's path.
    async fn blocking<T: Send + 'static>(
        &self,
        doing: &str,
        key: &str,
        work: impl FnOnce(&file::Place) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StorageError> {
        let failed = |fault| StorageError { doing: format!("{doing} `{}` in {}", key.escape_default(), self.shown), fault };
        key::check(key).map_err(|e| failed(Fault::Key(e)))?;
        let place = file::Place::new(&self.root, key);
        match tokio::task::spawn_blocking(move || work(&place)).await {
            Ok(result) => result.map_err(failed),
            Err(error) => Err(failed(Fault::Unknown(format!("the work was broken off: {error}")))),
        }
    }

    async fn walk<T: Send + 'static>(
        &self,
        doing: &str,
        prefix: &str,
        work: impl FnOnce(&std::path::Path, &str) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StorageError> {
        let failed = |fault| StorageError { doing: format!("{doing} `{}` in {}", prefix.escape_default(), self.shown), fault };
        key::check_prefix(prefix).map_err(|e| failed(Fault::Key(e)))?;
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        match tokio::task::spawn_blocking(move || work(&root, &prefix)).await {
            Ok(result) => result.map_err(failed),
            Err(error) => Err(failed(Fault::Unknown(format!("the work was broken off: {error}")))),
        }
    }
}

#[async_trait]
impl Store for Directory {
    fn shown(&self) -> &str {
        &self.shown
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Version, StorageError> {
        self.blocking("creating", key, move |place| {
            let mut temporary = Temporary::new(place)?;
            temporary.write(&body)?;
            temporary.create(place)?;
            Ok(file::version_of_bytes(&body))
        })
        .await
    }

    async fn replace(&self, key: &str, body: Bytes, known: &Version) -> Result<Version, StorageError> {
        let known = known.clone();
        self.blocking("replacing", key, move |place| {
            let mut temporary = Temporary::new(place)?;
            temporary.write(&body)?;
            temporary.replace(place, &known)?;
            Ok(file::version_of_bytes(&body))
        })
        .await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StorageError> {
        let temporary = self.blocking("creating", key, |place| Temporary::new(place).map(|t| (t, place.clone()))).await?;
        Ok(Box::new(upload::FileUpload::new(temporary, format!("creating `{key}` in {}", self.shown))))
    }

    async fn open(&self, key: &str, from: u64) -> Result<Opened, StorageError> {
        let (meta, content) = self.blocking("reading", key, file::open).await?;
        let failed = |fault| StorageError { doing: format!("reading `{key}` from {}", self.shown), fault };
        let left =
            meta.size.checked_sub(from).ok_or_else(|| failed(Fault::Refused(format!("it has {} bytes only", meta.size))))?;
        let body: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match content {
            file::Content::Small(bytes) => {
                Box::new(std::io::Cursor::new(bytes.slice(usize::try_from(from).unwrap_or(usize::MAX)..)))
            }
            file::Content::Large(file) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(std::io::SeekFrom::Start(from)).await.map_err(|e| failed(fault(&e, &self.root.join(key))))?;
                Box::new(file)
            }
        };
        Ok(Opened { meta, body: Box::new(whole::Whole::new(body, left, format!("reading `{key}` from {}", self.shown))) })
    }

    async fn look(&self, key: &str) -> Result<Option<Meta>, StorageError> {
        match self.blocking("looking at", key, file::open).await {
            Ok((meta, _)) => Ok(Some(meta)),
            Err(StorageError { fault: Fault::Missing, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.walk("listing", prefix, walk::objects).await
    }

    async fn remove(&self, key: &str) -> Result<Removal, StorageError> {
        self.blocking("removing", key, file::remove).await
    }

    async fn tidy(&self, prefix: &str, older_than: Duration) -> Result<Tidied, StorageError> {
        self.walk("tidying", prefix, move |root, prefix| walk::tidy(root, prefix, older_than).map(Tidied::Ended)).await
    }
}
