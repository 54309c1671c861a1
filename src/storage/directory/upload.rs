//! A file of any size, written bit by bit.

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::super::{Fault, StorageError, Stored, Upload};
use super::file::{self, Place, Temporary, fault};

/// A file that has no name of its own yet.
#[derive(Debug)]
pub(super) struct FileUpload {
    place: Place,
    temporary: Temporary,
    file: Option<File>,
    doing: String,
    digest: Sha256,
    size: u64,
}

impl FileUpload {
    pub(super) fn new((mut temporary, place): (Temporary, Place), doing: String) -> Self {
        let file = temporary.take_file().map(File::from_std);
        FileUpload { place, temporary, file, doing, digest: Sha256::new(), size: 0 }
    }

    fn failed(&self, fault: Fault) -> StorageError {
        StorageError { doing: self.doing.clone(), fault }
    }
}

#[async_trait]
impl Upload for FileUpload {
    async fn write(&mut self, piece: Bytes) -> Result<(), StorageError> {
        self.digest.update(&piece);
        self.size += piece.len() as u64;
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(&piece).await;
        written.map_err(|e| self.failed(fault(&e, &self.place.path)))
    }

    fn sent(&self) -> u64 {
        self.size
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored, StorageError> {
        let mut held = None;
        if let Some(mut file) = self.file.take() {
            // A write that the system took later fails here.
            let synced = async {
                file.flush().await?;
                file.sync_all().await
            };
            synced.await.map_err(|e| self.failed(fault(&e, &self.place.path)))?;
            // Its lock tells `tidy` that we live until it has its name.
            held = Some(file);
        }
        let FileUpload { place, temporary, doing, digest, size, .. } = *self;
        let placed = tokio::task::spawn_blocking(move || {
            temporary.create(&place)?;
            drop(held);
            let (meta, _) = file::open(&place)?;
            if meta.size == size {
                Ok(meta)
            } else {
                Err(Fault::Corrupt(format!("{size} bytes were written, the file has {}", meta.size)))
            }
        });
        let placed = placed.await.unwrap_or_else(|e| Err(Fault::Unknown(format!("the work was broken off: {e}"))));
        let meta = placed.map_err(|fault| StorageError { doing, fault })?;
        Ok(Stored { size, sha256: digest.finalize().into(), version: meta.version })
    }

    async fn abort(self: Box<Self>) -> Result<(), StorageError> {
        // Dropping removes the temporary file.
        Ok(())
    }
}
