//! One file: written beside its place, then put there in one step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::super::{Fault, Meta, Removal, Version};

/// Files up to this are read whole for their version: pointers, locks, manifests.
const SMALL: u64 = 1 << 20;
/// How long another process may hold the lock; it does for one comparison and one rename.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where an object's file is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    root: PathBuf,
    pub(super) path: PathBuf,
    name: String,
}

impl Place {
    /// `key` has been checked: it leads nowhere but below `root`.
    pub(super) fn new(root: &Path, key: &str) -> Self {
        let name = key.rsplit('/').next().unwrap_or(key).to_owned();
        Place { root: root.to_owned(), path: root.join(key), name }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.root)
    }

    /// Makes the directory, and has it survive a power cut.
    fn make_directory(&self) -> Result<(), Fault> {
        let wanted = self.directory();
        // The root may itself stand on directories that are not there yet.
        let missing: Vec<&Path> = wanted.ancestors().take_while(|path| !path.is_dir()).collect();
        for path in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(0o700).create(path) {
                Ok(()) => sync_directory(path.parent().unwrap_or(path))?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(error) => return Err(self.fault(&error)),
            }
        }
        Ok(())
    }

    /// Held until dropped.
    fn lock(&self) -> Result<File, Fault> {
        let path = self.root.join(".lock");
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(|e| fault(&e, &path))?;
        let begun = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(fs::TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(Fault::Unreachable(format!(
                        "another process holds {} for longer than {} s",
                        path.display(),
                        PATIENCE.as_secs()
                    )));
                }
                Err(fs::TryLockError::Error(error)) => return Err(fault(&error, &path)),
            }
        }
    }

    /// Tells, among others, that a key and the folder of other ones are the same name.
    fn fault(&self, error: &io::Error) -> Fault {
        let file_as_folder = || self.path.ancestors().skip(1).take_while(|p| *p != self.root).any(Path::is_file);
        if self.path.is_dir() || file_as_folder() {
            return Fault::Refused(
                "an object's key would be the folder of another one, which a directory store cannot hold; use another key"
                    .to_owned(),
            );
        }
        fault(error, &self.path)
    }
}

/// A file under its temporary name; removed when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: Option<File>,
}

impl Temporary {
    pub(super) fn new(place: &Place) -> Result<Self, Fault> {
        place.make_directory()?;
        let path = place.directory().join(format!(".{}.{}.tmp", place.name, uuid::Uuid::new_v4()));
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).map_err(|e| place.fault(&e))?;
        // Tells `tidy` that its writer lives; where locks are not to be had, only its age does.
        let _ = file.try_lock();
        Ok(Temporary { path, file: Some(file) })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| fault(&e, &self.path))
    }

    /// The file itself, for an upload that writes to it bit by bit.
    pub(super) fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// Gives the synced file its name, unless that is taken.
    pub(super) fn create(self, place: &Place) -> Result<(), Fault> {
        if place.path.is_dir() {
            return Err(place.fault(&io::Error::from(ErrorKind::AlreadyExists)));
        }
        match fs::hard_link(&self.path, &place.path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Fault::AlreadyThere),
            // File systems without hard links: everybody who creates there comes through the lock.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                let _lock = place.lock()?;
                if fs::symlink_metadata(&place.path).is_ok() {
                    return Err(Fault::AlreadyThere);
                }
                fs::rename(&self.path, &place.path).map_err(|e| place.fault(&e))?;
            }
            Err(error) => return Err(place.fault(&error)),
        }
        drop(self);
        sync_directory(place.directory())
    }

    /// Gives the synced file the name of one that still is `known`.
    pub(super) fn replace(self, place: &Place, known: &Version) -> Result<(), Fault> {
        let _lock = place.lock()?;
        match open(place) {
            Ok((meta, _)) if meta.version == *known => {}
            Ok(_) | Err(Fault::Missing) => return Err(Fault::Changed),
            Err(fault) => return Err(fault),
        }
        fs::rename(&self.path, &place.path).map_err(|e| place.fault(&e))?;
        sync_directory(place.directory())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a file holds.
pub(super) enum Content {
    Small(Bytes),
    Large(File),
}

/// Opens an object. What was opened stays what it is, also when its name goes to another file.
pub(super) fn open(place: &Place) -> Result<(Meta, Content), Fault> {
    let mut file = match File::open(&place.path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Err(Fault::Missing),
        Err(error) => return Err(fault(&error, &place.path)),
    };
    let found = file.metadata().map_err(|e| fault(&e, &place.path))?;
    if !found.is_file() {
        return Err(Fault::Missing);
    }
    let modified = found.modified().map_err(|e| fault(&e, &place.path))?.into();
    if found.len() > SMALL {
        let version = Version(format!("{}-{}.{:09}-{}", found.ino(), found.mtime(), found.mtime_nsec(), found.len()));
        return Ok((Meta { size: found.len(), version, modified }, Content::Large(file)));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| fault(&e, &place.path))?;
    Ok((Meta { size: bytes.len() as u64, version: version_of_bytes(&bytes), modified }, Content::Small(bytes.into())))
}

/// The version of a file that was just written with these bytes; they are few.
pub(super) fn version_of_bytes(bytes: &[u8]) -> Version {
    Version(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes an object under the lock, so that nobody replaces it in the same moment and believes it is there.
pub(super) fn remove(place: &Place) -> Result<Removal, Fault> {
    match fs::symlink_metadata(&place.path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Ok(Removal::Removed),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Removal::Removed),
        Err(error) => return Err(fault(&error, &place.path)),
    }
    let _lock = place.lock()?;
    match fs::remove_file(&place.path) {
        Ok(()) => sync_directory(place.directory()).map(|()| Removal::Removed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removal::Removed),
        Err(error) => Err(fault(&error, &place.path)),
    }
}

fn sync_directory(path: &Path) -> Result<(), Fault> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|e| fault(&e, path))
}

/// The system's words, with the way out where there is one.
pub(super) fn fault(error: &io::Error, path: &Path) -> Fault {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => Fault::Missing,
        ErrorKind::PermissionDenied => {
            Fault::Refused(format!("{path}: {error}; the user that runs this has to own the directory"))
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Fault::Refused(format!("{path}: {error}; make room there, or send archives elsewhere"))
        }
        ErrorKind::ReadOnlyFilesystem => Fault::Refused(format!("{path}: {error}; mount it for writing")),
        _ => Fault::Unreachable(format!("{path}: {error}")),
    }
}
