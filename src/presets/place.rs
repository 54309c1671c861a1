//! A data directory put into the place of another one.
//!
//! ```text
//! DATA                    what PostgreSQL runs on
//! DATA.bullwork-spare     what it ran on before: brought to the preset's state while PostgreSQL still runs, then both change names
//! ```
//!
//! The exchange is one system call, so whenever a `select` is killed `DATA` is the old preset or the new one, whole. On file systems
//! that copy in an instant the spare is made anew; elsewhere only files that differ in size or time are copied: a preset's files
//! have a time, to the nanosecond, that no other file has.

use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::PresetError;
use super::local::{AloneError, Local};
use crate::process::{Program, tells_of_a_full_disk};
use crate::worker::Run;

/// The directory beside `data` that it changes places with.
pub(super) fn spare(data: &Path) -> Result<PathBuf, PresetError> {
    let doing = |e| PresetError::file(&format!("looking at DBP_PG_DATA_DIR={}", data.display()), e);
    let data = data.canonicalize().map_err(doing)?;
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    Ok(data.with_file_name(format!("{name}.bullwork-spare")))
}

/// Brings the spare directory to the state of `snapshot`.
pub(super) async fn prepare(run: &Run, local: &Local, snapshot: &Path, spare: &Path) -> Result<(), PresetError> {
    if reflinks(snapshot, spare).await {
        let place = spare.to_owned();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(place)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(PresetError::file(&format!("removing {}", spare.display()), error));
        }
        let copy = |program: Program| program.args(["cp", "-a", "--reflink=always", "-T"]).args([snapshot, spare]);
        local.alone(run, "cp", copy, None).await.map_err(|error| full(error, snapshot, spare))?;
    } else {
        room(snapshot, spare).await?;
        let mut from = snapshot.as_os_str().to_owned();
        from.push("/");
        let copy = |program: Program| {
            program.args(["rsync", "-a", "--delete", "--modify-window=-1", "--"]).args([from.as_os_str(), spare.as_os_str()])
        };
        local.alone(run, "rsync", copy, None).await.map_err(|error| full(error, snapshot, spare))?;
    }
    // What shows after a power cut must be what was copied.
    let place = spare.to_owned();
    let synced = tokio::task::spawn_blocking(move || {
        let directory = std::fs::File::open(&place)?;
        nix::unistd::syncfs(&directory).map_err(std::io::Error::from)
    });
    let synced = synced.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    synced.map_err(|e| PresetError::file(&format!("writing {}", spare.display()), e))
}

/// Refuses when the copy takes more than there is: what is in the spare directory already is written over.
async fn room(snapshot: &Path, spare: &Path) -> Result<(), PresetError> {
    let (from, to) = (snapshot.to_owned(), spare.to_owned());
    let looked = tokio::task::spawn_blocking(move || {
        let needed = bytes_below(&from)?.saturating_sub(bytes_below(&to)?);
        let place = if to.exists() { &to } else { to.parent().unwrap_or(&to) };
        let stat = nix::sys::statvfs::statvfs(place)?;
        Ok::<_, std::io::Error>((needed, stat.blocks_available() * stat.fragment_size()))
    });
    let looked = looked.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    let (needed, free) =
        looked.map_err(|e| PresetError::file(&format!("looking for room for a copy at {}", spare.display()), e))?;
    if needed <= free {
        return Ok(());
    }
    Err(PresetError::Refused(format!(
        "there is no room for a copy at {}: it takes {needed} bytes more, and {free} are free; the cluster is as it was; make room and select again",
        spare.display()
    )))
}

/// What the files below take on disk; nothing where there is no directory.
fn bytes_below(directory: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut bytes, mut open) = (0, vec![directory.to_owned()]);
    while let Some(path) = open.pop() {
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let found = entry.metadata()?;
            if found.is_dir() {
                open.push(entry.path());
            } else {
                bytes += found.blocks() * 512;
            }
        }
    }
    Ok(bytes)
}

/// Half a copy on a full disk is in everybody's way, and is removed.
fn full(error: AloneError, snapshot: &Path, spare: &Path) -> PresetError {
    let text = error.to_string();
    if !tells_of_a_full_disk(&text) {
        return error.into();
    }
    let _ = std::fs::remove_dir_all(spare);
    PresetError::Refused(format!(
        "there is no room for a copy of {} at {}, which was removed; the cluster is as it was; make room and select again ({text})",
        snapshot.display(),
        spare.display()
    ))
}

/// Whether files there share their blocks: tried on one.
async fn reflinks(snapshot: &Path, spare: &Path) -> bool {
    let probe = spare.with_extension("bullwork-probe");
    let copy = Program::new("cp").args(["--reflink=always"]).args([&snapshot.join("PG_VERSION"), &probe]);
    let shares = copy.output().await.is_ok();
    let _ = std::fs::remove_file(&probe);
    shares
}

/// Has both change names.
pub(super) fn exchange(spare: &Path, data: &Path) -> Result<(), PresetError> {
    let target = data.canonicalize().map_err(|e| PresetError::file(&format!("looking at {}", data.display()), e))?;
    let done = renameat2(AT_FDCWD, spare, AT_FDCWD, target.as_path(), RenameFlags::RENAME_EXCHANGE);
    let done = done.map_err(std::io::Error::from);
    let synced = done.and_then(|()| std::fs::File::open(target.parent().unwrap_or(&target))?.sync_all());
    synced.map_err(|e| {
        let hint = "DBP_PG_DATA_DIR must be a directory beside which another one can stand, not a mount point itself";
        PresetError::file(&format!("exchanging {} and {} ({hint})", spare.display(), data.display()), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_change_names_and_only_what_differs_is_copied() {
        let home = tempfile::tempdir().unwrap();
        let (snapshot, data) = (home.path().join("snapshot"), home.path().join("data"));
        for (directory, text) in [(&snapshot, "new"), (&data, "an old one")] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("PG_VERSION"), text).unwrap();
        }
        std::fs::write(data.join("extra"), "").unwrap();
        let presets = home.path().join("presets");
        let environment = crate::config::Environment::of([("DBP_PRESETS_DIR", presets.display().to_string())]);
        let settings = crate::presets::settings::Settings::from_settings(&crate::config::Reader::new(&environment));
        let local = Local::open(&settings).unwrap();
        std::fs::create_dir(&presets).unwrap();
        let read = |directory: &Path| std::fs::read_to_string(directory.join("PG_VERSION")).unwrap();
        for _ in 0..3 {
            let spare = spare(&data).unwrap();
            prepare(&Run::detached(), &local, &snapshot, &spare).await.unwrap();
            exchange(&spare, &data).unwrap();
            assert_eq!(read(&data), "new");
            assert!(!data.join("extra").exists());
            // What the next server writes.
            std::fs::write(data.join("PG_VERSION"), "changed").unwrap();
            std::fs::write(data.join("extra"), "").unwrap();
        }
        assert_eq!(read(&snapshot), "new");
    }
}
