//! Archives as files of this machine: fetched from a store, and cleaned away.
//!
//! ```text
//! latest.tar.zst.age                what `fetch --latest` writes, in the place of the one before
//! 2026-01-02T03:04:05.tar.zst.age   what `fetch NAME` writes
//! latest                            a link to one of these, if somebody makes it; kept with what it points to
//! .NAME.ID.tmp                      one being written
//! ```
//!
//! A file has its name only when all of it is there, is synced, and is what the manifest tells.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::hex;
use super::manifest::Content;
use super::name::{MANIFEST, Name};
use super::opening::{self, OpenError};
use super::shelf::Shelf;
use crate::config::Setting;
use crate::worker::Run;
use crate::worker::run::Stopped;

/// Where fetched archives are.
pub static BACKUP_LOCAL_DIRECTORY: Setting = Setting::new(
    "BACKUP_LOCAL_DIRECTORY",
    "Directory of fetched archives, which `backup clean` and its schedule clear: every archive goes but `latest` and what it points to. Unset: `fetch` and `clean` take the working directory, and nothing is cleared by schedule.",
);

/// What a fetched newest archive is called, before its extensions.
const LATEST: &str = "latest";
/// Read at a time.
const PIECE: usize = 1 << 20;

/// Why there is no file, or one too many.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The archive cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk is too small.
    #[error("{directory} has {free} bytes free, and the archive has {needed}; make room")]
    Full {
        /// Where.
        directory: String,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// There is nowhere to write to.
    #[error("{0} is no directory; make it first, or name another one by --to")]
    NoDirectory(String),
    /// Another file has the name.
    #[error("{0} is there already and is not this archive; move it away, or name another directory by --to")]
    Taken(String),
    /// The file system refused.
    #[error("{path}: {source}")]
    File {
        /// Which file or directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> LocalError {
    let path = path.display().to_string();
    move |source| LocalError::File { path, source }
}

/// A file that was fetched.
#[derive(Clone, Debug, Serialize)]
pub struct Fetched {
    /// Which archive.
    pub archive: Name,
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Removes a file that did not get its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes an archive into `directory`, under its name or as the latest one.
///
/// # Errors
/// When it cannot be read, is not what its manifest tells, or cannot be written; what was there before is still there.
pub async fn fetch(run: &Run, shelf: &Shelf, archive: Name, directory: &Path, latest: bool) -> Result<Fetched, LocalError> {
    if !directory.is_dir() {
        return Err(LocalError::NoDirectory(directory.display().to_string()));
    }
    let manifest = run.unless_stopped(shelf.manifest(archive)).await?.map_err(OpenError::from)?;
    let needed = manifest.stored.bytes;
    let name = match latest {
        true => format!("{LATEST}{}{}", archive.compression.extension(), archive.sealing.extension()),
        false => archive.to_string(),
    };
    let file = directory.join(&name);
    // What is called latest makes way for the next one; a name stands for one archive.
    if !latest && std::fs::symlink_metadata(&file).is_ok() {
        let content = content(run, &file).await?;
        return match content == manifest.stored {
            true => Ok(Fetched { archive, file, bytes: needed }),
            false => Err(LocalError::Taken(file.display().to_string())),
        };
    }
    let stat = nix::sys::statvfs::statvfs(directory).map_err(|e| at(directory)(e.into()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < needed {
        return Err(LocalError::Full { directory: directory.display().to_string(), free, needed });
    }
    let temporary = Temporary(directory.join(format!(".{name}.{}.tmp", uuid::Uuid::new_v4().simple())));
    let mut stored = run.unless_stopped(opening::stored(shelf, &manifest)).await??;
    let mut out = tokio::fs::OpenOptions::new();
    out.create_new(true).write(true).mode(0o600);
    let mut out = out.open(&temporary.0).await.map_err(at(&temporary.0))?;
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    run.progress(|p| "fetch".clone_into(&mut p.phase));
    loop {
        let read = run.unless_stopped(stored.read_buf(&mut piece)).await?;
        if read.map_err(|e| opening::of_io(e, &manifest))? == 0 {
            break;
        }
        out.write_all(&piece).await.map_err(at(&temporary.0))?;
        run.progress(|p| p.bytes += piece.len() as u64);
        piece.clear();
    }
    out.sync_all().await.map_err(at(&temporary.0))?;
    std::fs::rename(&temporary.0, &file).map_err(at(&file))?;
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))?;
    Ok(Fetched { archive, file, bytes: needed })
}

/// Size and digest of a file.
async fn content(run: &Run, file: &Path) -> Result<Content, LocalError> {
    let mut opened = tokio::fs::File::open(file).await.map_err(at(file))?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    while run.unless_stopped(opened.read_buf(&mut piece)).await?.map_err(at(file))? > 0 {
        digest.update(&piece);
        bytes += piece.len() as u64;
        piece.clear();
    }
    Ok(Content { bytes, sha256: hex(&digest.finalize()) })
}

/// What was cleaned away.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cleaned {
    /// Files that went.
    pub removed: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes every archive in `directory` but `latest` and what it points to. Other files are not touched, nor are archives
/// with a manifest beside them: those are a store's.
///
/// # Errors
/// When the directory cannot be read, or a file not be removed.
pub fn clean(run: &Run, directory: &Path) -> Result<Cleaned, LocalError> {
    let mut archives = Vec::new();
    let mut pointed_to = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(at(&entry.path()))?;
        if kind.is_symlink() && (name == LATEST || name.starts_with("latest.")) {
            // One that points nowhere keeps nothing.
            pointed_to.extend(std::fs::canonicalize(entry.path()));
        }
        if kind.is_file() && name.parse::<Name>().is_ok() && !directory.join(format!("{name}{MANIFEST}")).exists() {
            archives.push((entry.path(), name));
        }
    }
    archives.sort();
    let mut cleaned = Cleaned::default();
    for (path, name) in archives {
        run.checkpoint()?;
        if std::fs::canonicalize(&path).is_ok_and(|path| pointed_to.contains(&path)) {
            continue;
        }
        cleaned.bytes += std::fs::metadata(&path).map_or(0, |found| found.len());
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path)(error)),
        }
        run.info(format!("removed {}", path.display()));
        cleaned.removed.push(name);
    }
    if cleaned.removed.is_empty() {
        run.info(format!("there is nothing to remove in {}", directory.display()));
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_go_and_the_latest_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(directory.path().join(name), "x").unwrap();
        let all = [
            "2026-01-01T00:00:00.tar.gz",
            "2026-01-02T00:00:00.tar.zst.age",
            "2026-01-03T00:00:00.tar.gz.gpg",
            "2026-01-04T00:00:00.tar.xz",
            "2026-01-04T00:00:00.tar.xz.manifest.json",
            "latest.tar.gz",
            "2026-01-05T00:00:00.tar.gz.part",
            "notes.txt",
            ".2026-01-01T00:00:00.tar.gz.0.tmp",
        ];
        all.iter().for_each(|name| file(name));
        std::os::unix::fs::symlink("2026-01-03T00:00:00.tar.gz.gpg", directory.path().join("latest")).unwrap();
        std::fs::create_dir(directory.path().join("2026-01-06T00:00:00.tar.gz")).unwrap();
        let run = Run::detached();
        assert_eq!(clean(&run, directory.path()).unwrap().removed, all[..2]);
        for kept in &all[2..] {
            assert!(directory.path().join(kept).exists(), "{kept}");
        }
        assert!(directory.path().join("2026-01-06T00:00:00.tar.gz").is_dir());
        assert_eq!(clean(&run, directory.path()).unwrap().removed, [""; 0], "nothing to remove is no failure");
        assert!(clean(&run, &directory.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
