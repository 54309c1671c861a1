//! What this machine has of the presets.
//!
//! ```text
//! DBP_PRESETS_DIR/lock                          held (flock) by the one command that changes something here
//! DBP_PRESETS_DIR/work.lock                     held by a copying or migrating child, also when its command was killed
//! DBP_PRESETS_DIR/selected.json                 what the cluster holds
//! DBP_PRESETS_DIR/commands.log                  output of start, stop and migration commands
//! DBP_PRESETS_DIR/REPO/BRANCH/notes/NAME.json   which revision is known, and where it is kept ready
//! DBP_PRESETS_DIR/REPO/BRANCH/pushes/NAME.json  a push that may have been cut off
//! DBP_PRESETS_DIR/REPO/BRANCH/files/            sealed files on their way; no plaintext
//! DBP_PRESETS_DATA_DIR/REPO/BRANCH/NAME@N-ID    a ready data directory, named by its note
//! ```
//!
//! A note is replaced by renaming, after what it names is complete: a command that is killed leaves the earlier state or the later one.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::PresetError;
use super::remote::Revision;
use super::settings::Settings;
use crate::process::{ProcessError, Program};
use crate::worker::Run;
use crate::worker::run::Stopped;

/// Exit code that `flock` is told to end with when the lock is taken; no program of ours has it.
const TAKEN: &str = "175";
const TAKEN_STATUS: &str = "exit code 175";
/// How long the rest of a killed command is waited for.
const ORPHAN: Duration = Duration::from_secs(300);

/// Why a program did not do its work alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum AloneError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What the cluster holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selected {
    /// The project and branch that it belongs to.
    pub of: String,
    /// The preset; none before the first.
    pub name: Option<String>,
    /// Its revision.
    pub revision: u64,
    /// Whether the next `select` puts data in place even when it is of the same preset.
    pub clean: bool,
    /// Whether the cluster holds something unfinished that is nobody's preset.
    pub scratch: bool,
}

/// A database of a preset that is kept as a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its own name.
    pub database: String,
    /// Its name as a template.
    pub template: String,
}

/// What is known of a preset here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Note {
    /// The revision that was fetched or pushed last: what a push may come after.
    pub revision: u64,
    /// The revision that is kept ready.
    pub ready: u64,
    /// SHA-256 of its object.
    pub sha256: String,
    /// Name of the ready data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The ready template databases.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<Template>,
    /// Since when.
    pub at: String,
}

/// A push that is about to be decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// SHA-256 of the object that it stored.
    pub sha256: String,
    /// What the cluster held then, when it is what was pushed: if it holds something else by now, that stays so.
    pub of_cluster: Option<Selected>,
}

/// The directories.
#[derive(Clone, Debug)]
pub(super) struct Local {
    presets: PathBuf,
    folder: PathBuf,
    pub(super) snapshots: PathBuf,
    of: String,
}

/// Held while something is changed here.
pub(super) struct Held(#[expect(dead_code, reason = "it is held")] Flock<fs::File>);

impl Local {
    /// Where they are. Nothing is made.
    pub(super) fn open(settings: &Settings) -> Result<Local, PresetError> {
        let of = format!("{}/{}", settings.repo, settings.branch);
        Ok(Local {
            presets: settings.presets.clone(),
            folder: settings.presets.join(&of),
            snapshots: settings.snapshots.join(&of),
            of,
        })
    }

    /// Makes the directories, for their owner alone, and takes the lock.
    pub(super) fn hold(&self) -> Result<Held, PresetError> {
        for directory in [self.folder.join("notes"), self.folder.join("pushes"), self.files(), self.snapshots.clone()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|e| PresetError::file(&format!("making the directory {}", directory.display()), e))?;
        }
        let path = self.presets.join("lock");
        let file = fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|e| PresetError::file(&format!("opening {}", path.display()), e))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Held(held)),
            Err(_) => Err(PresetError::Refused(format!(
                "another command of db-p is at work here ({} is locked); wait for its end",
                path.display()
            ))),
        }
    }

    /// Where sealed files are on their way.
    pub(super) fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Output of the operator's commands.
    pub(super) fn commands_log(&self) -> PathBuf {
        self.presets.join("commands.log")
    }

    /// A program whose work two must never do at once: it holds a lock of its own, which outlives us when we are killed. `name` is what
    /// it is called in errors.
    pub(super) async fn alone(
        &self,
        run: &Run,
        name: &str,
        program: impl Fn(Program) -> Program,
        log: Option<&Path>,
    ) -> Result<(), AloneError> {
        let lock = self.presets.join("work.lock");
        let begun = Instant::now();
        loop {
            let guarded = Program::new("flock").args(["--nonblock", "--conflict-exit-code", TAKEN]).args([&lock]);
            let guarded = program(guarded);
            let ended = match log {
                Some(log) => run.unless_stopped(guarded.logged(log)).await?,
                None => run.unless_stopped(guarded.output()).await?.map(|_| ()),
            };
            match ended {
                // Ours are excluded by the lock on the presets: this is the rest of a command that was killed.
                Err(ProcessError::Failed { status, .. }) if status == TAKEN_STATUS && begun.elapsed() < ORPHAN => {
                    run.unless_stopped(tokio::time::sleep(Duration::from_millis(200))).await?;
                }
                Err(ProcessError::Failed { status, code, stderr, .. }) => {
                    return Err(ProcessError::Failed { program: name.to_owned(), status, code, stderr }.into());
                }
                other => return Ok(other?),
            }
        }
    }

    /// `REPO/BRANCH`.
    pub(super) fn of(&self) -> &str {
        &self.of
    }

    pub(super) fn selected(&self) -> Result<Selected, PresetError> {
        Ok(read(&self.presets.join("selected.json"))?.unwrap_or_default())
    }

    pub(super) fn select(&self, selected: &Selected) -> Result<(), PresetError> {
        write(&self.presets.join("selected.json"), selected)
    }

    pub(super) fn forget_selected(&self) -> Result<(), PresetError> {
        remove(&self.presets.join("selected.json"))
    }

    pub(super) fn note(&self, name: &str) -> Result<Option<Note>, PresetError> {
        read(&self.folder.join("notes").join(format!("{name}.json")))
    }

    pub(super) fn write_note(&self, name: &str, note: &Note) -> Result<(), PresetError> {
        write(&self.folder.join("notes").join(format!("{name}.json")), note)
    }

    /// All notes, by name.
    pub(super) fn notes(&self) -> Result<Vec<(String, Note)>, PresetError> {
        let directory = self.folder.join("notes");
        let mut names: Vec<String> = match fs::read_dir(&directory) {
            Ok(entries) => {
                entries.flatten().filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(PresetError::file(&format!("reading {}", directory.display()), error)),
        };
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let notes = names.into_iter().map(|name| Ok(self.note(&name)?.map(|note| (name, note))));
        notes.filter_map(Result::transpose).collect()
    }

    pub(super) fn pending(&self, name: &str) -> Result<Option<Pending>, PresetError> {
        read(&self.folder.join("pushes").join(format!("{name}.json")))
    }

    pub(super) fn write_pending(&self, name: &str, pending: Option<&Pending>) -> Result<(), PresetError> {
        let path = self.folder.join("pushes").join(format!("{name}.json"));
        match pending {
            Some(pending) => write(&path, pending),
            None => remove(&path),
        }
    }

    /// The ready data directory that a note names.
    pub(super) fn directory(&self, note: &Note) -> Option<PathBuf> {
        note.directory.as_ref().map(|name| self.snapshots.join(name))
    }

    /// The revision that a push of `name` from here comes after.
    pub(super) fn base(&self, name: &str) -> Result<Option<u64>, PresetError> {
        let selected = self.selected()?;
        if selected.of == self.of && selected.name.as_deref() == Some(name) {
            return Ok(Some(selected.revision));
        }
        Ok(self.note(name)?.map(|note| note.revision))
    }

    /// Refuses unless what is here descends from `current`.
    pub(super) fn check_base(&self, name: &str, current: &Revision) -> Result<(), PresetError> {
        match self.base(name)? {
            Some(base) if base == current.revision => Ok(()),
            Some(base) => Err(PresetError::Refused(format!(
                "what is here descends from revision {base} of `{name}`, and {} pushed revision {} at {} ({}); run pull-and-update-local and select it first",
                current.who, current.revision, current.at, current.what
            ))),
            None => Err(PresetError::Refused(format!(
                "nothing here descends from `{name}`, whose revision {} is stored; run pull-and-update-local first",
                current.revision
            ))),
        }
    }

    /// Refuses when the cluster is known to hold another preset than `name`. What was filled by hand is nobody's, and may become any one's.
    pub(super) fn check_holds(&self, name: &str) -> Result<(), PresetError> {
        let selected = self.selected()?;
        let Some(held) = selected.name.filter(|held| held != name || selected.of != self.of) else { return Ok(()) };
        // What a pull left is refused for itself, whatever had been selected before.
        if selected.scratch {
            return Ok(());
        }
        Err(PresetError::Refused(format!(
            "the cluster holds `{held}` (revision {} of {}), not `{name}` of {}; select {name} first, push-new it under a new name, or say base=any to store it as `{name}` all the same",
            selected.revision, selected.of, self.of
        )))
    }

    /// Removes files that a killed command left on their way, but `kept`.
    pub(super) fn tidy(&self, kept: &[PathBuf]) -> Result<(), PresetError> {
        let directory = self.files();
        let entries = fs::read_dir(&directory).map_err(|e| PresetError::file(&format!("reading {}", directory.display()), e))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path)) {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes ready data directories that no note names.
    pub(super) fn tidy_snapshots(&self) -> Result<(), PresetError> {
        let named: Vec<PathBuf> = self.notes()?.iter().filter_map(|(_, note)| self.directory(note)).collect();
        let directory = &self.snapshots;
        let entries = fs::read_dir(directory).map_err(|e| PresetError::file(&format!("reading {}", directory.display()), e))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !named.contains(path)) {
            // What a killed command's `pg_basebackup` still writes into is removed the next time.
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!("removing {}: {error}", path.display());
            }
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PresetError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PresetError::file(&format!("reading {}", path.display()), error)),
    };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            Err(PresetError::Refused(format!("{} is not what it should be: {error}; remove it and pull again", path.display())))
        }
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), PresetError> {
    let written = || {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    written().map_err(|e| PresetError::file(&format!("writing {}", path.display()), e))
}

fn remove(path: &Path) -> Result<(), PresetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PresetError::file(&format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
