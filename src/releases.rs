//! Releases: files from the developers' server to beta, and from beta to the business servers, which are archived first.
//!
//! What is guaranteed, and when it is looked at:
//!
//! - one release at a time; each step is a compare-and-set in the [`ledger`], whoever takes it
//! - nothing is copied before everything was looked at: names, symlinks, room, what is in the way ([`manifest`])
//! - business servers get what beta has, byte by byte as the manifest tells, never what the developers changed since
//! - no file of any business server is touched before the archive of the chosen one is on its disk ([`mod@backup`])
//! - files arrive beside the project, are compared with the manifest, and change places by one rename each; what they replace is kept
//!   ([`staging`]), and comes back by a rollback
//!
//! A process that is killed leaves the state as it was. Worker 1 ([`worker1`]) begins its step anew, worker 2 ([`worker2`]) takes a server
//! over when the lease has run out; what arrived already is not sent again.

pub mod backup;
pub mod copy;
pub mod ledger;
pub mod manifest;
pub mod paths;
pub mod settings;
pub mod site;
pub mod spool;
pub mod staging;
pub mod states;
pub mod worker1;
pub mod worker2;

use std::path::PathBuf;
use std::time::Duration;

use crate::process::ProcessError;
use crate::ssh::{Access, explained};
use crate::worker::Stopped;

use ledger::{Ledger, LedgerError};
use manifest::ManifestError;

/// Why something of a release was not done.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A program on a server.
    #[error("{server}: {doing}: {}", told(.cause))]
    Remote {
        /// Where.
        server: String,
        /// What it was to do.
        doing: &'static str,
        /// How it ended.
        cause: ProcessError,
    },
    /// rsync.
    #[error("{server}: copying {way}: {}", copy::told(.cause))]
    Copy {
        /// To or from where.
        server: String,
        /// Which way.
        way: &'static str,
        /// How it ended.
        cause: ProcessError,
    },
    /// What was found is not what it should be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The state store, or it refuses.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// This machine's disk.
    #[error("the spool {path}: {cause}")]
    Spool {
        /// Where.
        path: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// It may not be done; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The server is not ours any more.
    #[error("another worker has taken `{0}` over, or it was cancelled")]
    Lost(String),
    /// The run was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl ReleaseError {
    /// Whether a server was reached, and something failed there.
    fn was_there(&self) -> bool {
        matches!(self, ReleaseError::Remote { cause, .. } if cause.code().is_some_and(|code| code != crate::ssh::NO_CONNECTION))
    }

    /// Whether it is about the state store rather than about a release: to be tried again.
    #[must_use]
    pub fn is_of_the_store(&self) -> bool {
        matches!(self, ReleaseError::Ledger(LedgerError::State(_)))
    }
}

/// What `ssh` and the program behind it meant.
fn told(error: &ProcessError) -> String {
    match error {
        ProcessError::Failed { code: Some(crate::ssh::NO_CONNECTION), stderr, .. } => {
            let meaning = explained(stderr).unwrap_or("no connection");
            format!("{meaning} ({stderr})")
        }
        ProcessError::Failed { stderr, status, .. } => format!("{stderr} ({status})"),
        other => other.to_string(),
    }
}

/// Beta's own key, when rsync runs there.
#[derive(Clone, Debug)]
pub struct Across(pub Access);

/// The operator's own lines.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Before files change places.
    pub before: Option<String>,
    /// After.
    pub after: Option<String>,
}

/// What works at releases. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Releases {
    /// Servers and releases.
    pub ledger: Ledger,
    /// How to get to the servers.
    pub access: Access,
    /// Through which releases pass.
    pub spool: PathBuf,
    /// Without data.
    pub io_timeout: Duration,
    /// When rsync runs on beta.
    pub across: Option<Across>,
    /// Of a worker 2 on a server.
    pub lease: Duration,
    /// Whether the whole project is archived.
    pub whole_project: bool,
    /// Whether owner and group are kept.
    pub ownership: bool,
    /// The operator's own lines.
    pub hooks: Hooks,
}
