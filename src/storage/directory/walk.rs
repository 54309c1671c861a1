//! All files below a directory.

use std::fs::{self, DirEntry, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::{Entry, Fault, key};
use super::file::fault;

/// Every object whose key begins with `prefix`, in the keys' byte order.
pub(super) fn objects(root: &Path, prefix: &str) -> Result<Vec<Entry>, Fault> {
    let mut found = Vec::new();
    each(root, prefix, &mut |key, entry| {
        if !key.starts_with(prefix) || key::check(&key).is_err() {
            return Ok(());
        }
        match entry.metadata().and_then(|meta| Ok((meta.len(), meta.modified()?))) {
            Ok((size, modified)) => found.push(Entry { key, size, modified: modified.into() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fault(&error, &entry.path())),
        }
        Ok(())
    })?;
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// Removes temporary files whose writers are gone.
pub(super) fn tidy(root: &Path, prefix: &str, older_than: Duration) -> Result<Vec<String>, Fault> {
    let mut ended = Vec::new();
    each(root, prefix, &mut |shown, entry| {
        let Some(key) = object_of(&shown).filter(|key| key.starts_with(prefix)) else { return Ok(()) };
        let written = entry.metadata().and_then(|meta| meta.modified());
        let old = written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= older_than));
        if !old {
            return Ok(());
        }
        let path = entry.path();
        // Its writer holds the lock as long as it lives.
        if File::open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Ok(()) => ended.push(key),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fault(&error, &path)),
        }
        Ok(())
    })?;
    ended.sort_unstable();
    Ok(ended)
}

/// The key that `db/.NAME.UUID.tmp` was to become.
fn object_of(temporary: &str) -> Option<String> {
    let (folder, name) = temporary.rsplit_once('/').map_or(("", temporary), |(folder, name)| (folder, name));
    let (name, uuid) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    uuid::Uuid::parse_str(uuid).ok()?;
    let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    key::check(&key).is_ok().then_some(key)
}

/// Calls `with` for each regular file that stands in a folder of `prefix`; links are not followed.
fn each(root: &Path, prefix: &str, with: &mut dyn FnMut(String, &DirEntry) -> Result<(), Fault>) -> Result<(), Fault> {
    let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut open: Vec<(PathBuf, String)> = vec![(root.join(folder), folder.to_owned())];
    while let Some((path, folder)) = open.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // Nothing was ever written there, or the folder went meanwhile.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(fault(&error, &path)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| fault(&e, &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type().map_err(|e| fault(&e, &path))?;
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if kind.is_dir() {
                // A folder's name is not always within the prefix yet: `db/20` begins `db/2026/x`.
                if key.starts_with(prefix) || prefix.starts_with(&key) {
                    open.push((entry.path(), key));
                }
            } else if kind.is_file() {
                with(key, &entry)?;
            }
        }
    }
    Ok(())
}
