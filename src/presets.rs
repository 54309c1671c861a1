//! Presets: named states of a whole PostgreSQL cluster, shared by a team through a store, put in place in seconds. The program is `db-p`.
//!
//! Nothing is lost: a revision is never changed; who was first is decided by the store; what a command replaces here stays until what
//! replaces it is complete. What each step leaves when its command is killed stands with it:
//!
//! - [`arguments`]: commands and what they take
//! - [`settings`]: the `DBP_…` variables
//! - [`remote`]: what is stored, and who was first
//! - [`lock`]: who keeps others from pushing
//! - `journal`: the change log
//! - [`sealed`]: a dump on its way, compressed and encrypted
//! - [`local`]: what this machine has
//! - `cluster`: PostgreSQL and the application, stopped, started, emptied, kept
//! - `dump`: a cluster as SQL, and back
//! - `place`: a data directory put into another one's place
//! - `fast`: template databases, switched by renaming
//! - [`checkup`]: whether this machine has what the commands need
//! - `pull`, `push`, `select`, `versions`, `rekey`, `legacy`: the commands

pub mod arguments;
pub mod checkup;
mod cluster;
mod dump;
mod fast;
mod journal;
mod legacy;
pub mod local;
pub mod lock;
mod place;
mod pull;
mod push;
mod rekey;
pub mod remote;
pub mod sealed;
mod select;
pub mod settings;
mod versions;

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::backup::hex;
use crate::backup::squeeze::SqueezeError;
use crate::postgres::PostgresError;
use crate::postgres::client_programs::Unusable;
use crate::process::ProcessError;
use crate::seal::{SealError, age};
use crate::storage::{Fault, StorageError};
use crate::worker::Run;
use crate::worker::run::Stopped;
use arguments::{Call, UsageError};
use local::{AloneError, Local};
use remote::Branch;
use sealed::Key;
use settings::Settings;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// Somebody has to do something about it.
    #[error("{0}")]
    Refused(String),
    /// The call cannot be understood.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The run was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Encryption, or the wrong key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Compression.
    #[error(transparent)]
    Squeeze(#[from] SqueezeError),
    /// A program.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No program that fits.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A file.
    #[error("{doing}: {error}{}", room(error))]
    File {
        /// What we were at.
        doing: String,
        /// The system's words.
        error: std::io::Error,
    },
}

/// The way out where a disk is full.
fn room(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => "; make room there and run the command again",
        _ => "",
    }
}

impl PresetError {
    fn file(doing: &str, error: std::io::Error) -> Self {
        PresetError::File { doing: doing.to_owned(), error }
    }

    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            PresetError::Storage(error) => matches!(error.fault, Fault::Missing | Fault::Key(_) | Fault::Refused(_)),
            PresetError::Stopped(_) => false,
            PresetError::Process(_) | PresetError::Postgres(_) | PresetError::File { .. } => false,
            _ => true,
        }
    }
}

impl From<AloneError> for PresetError {
    fn from(error: AloneError) -> Self {
        match error {
            AloneError::Process(error) => error.into(),
            AloneError::Stopped(error) => error.into(),
        }
    }
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// For people, on standard output; may hold a lock's key, which goes nowhere else.
    pub said: String,
    /// For machines; holds no secret.
    pub value: Value,
    /// Whether the answer is yes, where the command asks something.
    pub good: bool,
}

impl Done {
    fn said(said: impl Into<String>, value: Value) -> Self {
        Done { said: said.into(), value, good: true }
    }
}

/// The commands, on the machine that the settings describe.
#[derive(Clone, Debug)]
pub struct Presets {
    settings: Settings,
}

impl Presets {
    /// Commands for these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Presets { settings }
    }

    fn branch(&self) -> Result<Branch, PresetError> {
        self.settings.store_is_there()?;
        Ok(Branch::new(self.settings.store()?, &self.settings.repo, &self.settings.branch))
    }

    fn key(&self) -> Result<Key, PresetError> {
        Key::read(&self.settings.key_file)
    }

    /// Does what `call` asks for.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub async fn run(&self, run: &Run, call: &Call) -> Result<Done, PresetError> {
        let problems = call.problems();
        if !problems.is_empty() {
            return Err(UsageError(problems).into());
        }
        self.settings.need(&self.needs(call))?;
        let (name, who) = (call.required("name"), call.who());
        match call.command.as_str() {
            "gen-key" => self.gen_key(),
            "init" => self.init(),
            "pull-and-update-local" => self.pull(run, call.list("include"), call.list("exclude")).await,
            "push-new" => self.push_new(run, name, &who, call.required("desc")).await,
            "push-ex" => {
                let any_base = call.value("base").is_some();
                self.push_ex(run, name, &who, call.required("desc"), call.value("key"), any_base).await
            }
            "set-lock" => {
                let key = self.set_lock(name, &who, call.required("desc"), call.value("hours")).await?;
                run.info(format!("`{name}` is locked; its key is on standard output and stored nowhere"));
                Ok(Done::said(key, json!({"locked": name})))
            }
            "get-lock" => match self.get_lock(name).await? {
                Some(lock) => {
                    let value = json!({"who": lock.who, "why": lock.why, "at": lock.at, "until": lock.until});
                    Ok(Done { said: lock.told(), value, good: false })
                }
                None => Ok(Done::said("free", Value::Null)),
            },
            "reset-lock" => {
                self.reset_lock(name, call.value("key"), call.flag("force"), &who).await?;
                Ok(Done::said(format!("`{name}` is unlocked"), json!({"unlocked": name})))
            }
            "select" => self.select(run, name, call.flag("clean")).await,
            "start-app" => self.start_everything(run).await,
            "ls" => self.list(run, call.required("where"), call.flag("short")).await,
            "what-selected" => self.what_selected(),
            "versions" => self.versions(name).await,
            "restore-version" => self.restore_version(name, call.required("revision"), &who, call.value("key")).await,
            "delete" => self.delete(name, &who, call.required("desc"), call.value("key")).await,
            "purge" => self.purge(run, name, call.value("keep"), &who).await,
            "rekey" => self.rekey(run, call.required("to"), call.list("include"), call.list("exclude"), &who).await,
            "import" => {
                let (file, key) = (call.required("file"), call.required("old-key"));
                self.import(run, name, &who, call.required("desc"), file.as_ref(), key.as_ref()).await
            }
            other => Err(PresetError::Refused(format!("there is no command `{other}`"))),
        }
    }

    fn needs(&self, call: &Call) -> Vec<&'static [&'static crate::config::Setting]> {
        use settings::{SERVER, SHARED};
        static KEY: &[&crate::config::Setting] = &[&settings::DBP_KEY_PATH];
        static NAMES: &[&crate::config::Setting] = &[&settings::DBP_REPO, &settings::DBP_BRANCH];
        match call.command.as_str() {
            "gen-key" => vec![KEY],
            "init" | "what-selected" => vec![NAMES],
            "pull-and-update-local" => vec![KEY, SHARED, SERVER],
            "push-new" | "push-ex" | "rekey" | "import" => vec![KEY, SHARED],
            "select" => vec![NAMES, SERVER],
            "start-app" => vec![SERVER],
            "ls" if call.value("where") == Some("local") => vec![NAMES],
            _ => vec![SHARED],
        }
    }

    fn gen_key(&self) -> Result<Done, PresetError> {
        let file = &self.settings.key_file;
        // Its public half would let who has it make presets: it is told to nobody.
        age::keygen(file)?;
        Ok(Done::said(format!("wrote the branch's key to {}; copy it to every machine", file.display()), json!({"key": file})))
    }

    fn init(&self) -> Result<Done, PresetError> {
        let local = Local::open(&self.settings)?;
        let _held = local.hold()?;
        local.forget_selected()?;
        let said =
            format!("the directories {} and {} are there", self.settings.presets.display(), self.settings.snapshots.display());
        Ok(Done::said(said, Value::Null))
    }

    fn what_selected(&self) -> Result<Done, PresetError> {
        let selected = Local::open(&self.settings)?.selected()?;
        let said = match (&selected.name, selected.scratch) {
            (None, false) => "none".to_owned(),
            (None, true) => "none; the cluster holds what pull-and-update-local left".to_owned(),
            (Some(name), false) => format!("{name} (revision {} of {})", selected.revision, selected.of),
            (Some(name), true) => format!(
                "{name} was (revision {} of {}); now the cluster holds what an unfinished select or a pull left",
                selected.revision, selected.of
            ),
        };
        let value = serde_json::to_value(&selected).unwrap_or_default();
        Ok(Done { good: selected.name.is_some() && !selected.scratch, ..Done::said(said, value) })
    }

    async fn list(&self, run: &Run, place: &str, short: bool) -> Result<Done, PresetError> {
        let mut good = true;
        let mut said = String::new();
        let mut value = Vec::new();
        if place == "local" {
            for (name, note) in Local::open(&self.settings)?.notes()? {
                if note.ready == 0 {
                    continue;
                }
                let _ = if short {
                    writeln!(said, "{name}")
                } else {
                    writeln!(said, "{name}\trevision {}\tsince {}", note.ready, note.at)
                };
                value.push(json!({"name": name, "revision": note.ready, "at": note.at}));
            }
        } else {
            let found = self.branch()?.existing().await?;
            good = found.broken.is_empty();
            for (name, error) in &found.broken {
                run.warn(format!("`{name}` cannot be listed: {error}"));
            }
            for (name, known) in found.there {
                let Some(current) = known.current() else { continue };
                let (n, size) = (current.revision, indicatif::HumanBytes(current.size));
                let _ = if short {
                    writeln!(said, "{name}")
                } else {
                    writeln!(said, "{name}\trevision {n}\t{size}\t{} {}: {}", current.at, current.who, current.what)
                };
                value.push(json!({"name": name, "revision": n, "size": current.size, "at": current.at, "who": current.who, "what": current.what}));
            }
        }
        said.truncate(said.trim_end().len());
        Ok(Done { good, ..Done::said(said, Value::Array(value)) })
    }
}
