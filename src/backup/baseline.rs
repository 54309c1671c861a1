//! What the next run compares with: an object beside the archives, so that another machine can take over.
//!
//! ```text
//!                       state              archive   pending
//! first run             –                  –         –
//! bytes are sent        of the one before  …         manifest and state of this one
//! archive is complete   of this one        this one  –
//! ```
//!
//! Every change is a compare-and-set, so of two runs that got past the lock (two servers, one taking over
//! from the other) one goes on. `pending` is written when all bytes have been sent but the archive does
//! not show yet: a run that dies between that and the end has lost nothing, for the next one finds archive
//! and manifest together and completes what it finds whole.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::name::Name;
use super::reading::Position;
use super::shelf::Shelf;
use super::survey::BusinessRows;
use crate::storage::{Fault, StorageError, Version};

const FORMAT: u32 = 1;

/// The object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// Version of this format.
    pub format: u32,
    /// What the newest archive holds, in short.
    #[serde(default)]
    pub state: Option<State>,
    /// The newest complete archive.
    #[serde(default)]
    pub archive: Option<Name>,
    /// Name of the database whose archives these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// When a run last wrote here.
    pub written_at: DateTime<Utc>,
    /// An archive on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Box<Pending>>,
}

/// What a run found in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where that can be told.
    #[serde(default)]
    pub position: Option<Position>,
    /// Of the definitions.
    pub catalogue: String,
    /// Of the business tables.
    pub tables: BusinessRows,
    /// Which tables those were to be.
    #[serde(default)]
    pub business: String,
    /// What an archive was to be besides: for whom, and with which fixtures. Empty where it was not noted.
    #[serde(default)]
    pub form: String,
}

/// An archive whose bytes have been sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What will stand beside it.
    pub manifest: Manifest,
    /// What will be the state then.
    pub state: State,
}

/// A baseline and which version of the object it was read from.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) baseline: Baseline,
    version: Option<Version>,
    /// Why what is there was not used.
    pub(super) remark: Option<String>,
}

/// Why the baseline was not written.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// Another run wrote it.
    #[error("another run wrote the baseline meanwhile")]
    Raced,
    /// Written by a later version.
    #[error("the baseline in {0} is of a later version; use a newer bullwork")]
    Newer(String),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Held {
    /// Reads it; an empty one when there is none, or none that can be used.
    pub(super) async fn read(shelf: &Shelf) -> Result<Held, BaselineError> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let key = shelf.baseline_key();
        let empty =
            || Baseline { format: FORMAT, state: None, archive: None, database: None, written_at: Utc::now(), pending: None };
        let Some((bytes, meta)) = shelf.read(&key).await? else {
            return Ok(Held { baseline: empty(), version: None, remark: None });
        };
        if serde_json::from_slice::<Versioned>(&bytes).is_ok_and(|v| v.format > FORMAT) {
            return Err(BaselineError::Newer(shelf.shown()));
        }
        let (baseline, remark) = match serde_json::from_slice(&bytes) {
            Ok(baseline) => (baseline, None),
            Err(error) => (empty(), Some(format!("the baseline `{key}` cannot be read ({error}) and is made anew"))),
        };
        Ok(Held { baseline, version: Some(meta.version), remark })
    }

    /// Writes it, unless another run did since it was read.
    pub(super) async fn write(&mut self, shelf: &Shelf) -> Result<(), BaselineError> {
        self.baseline.written_at = Utc::now();
        let body = serde_json::to_vec(&self.baseline).expect("texts and numbers are JSON").into();
        let key = shelf.baseline_key();
        let written = match &self.version {
            None => shelf.store.create(&key, body).await,
            Some(version) => shelf.store.replace(&key, body, version).await,
        };
        match written {
            Ok(version) => {
                self.version = Some(version);
                Ok(())
            }
            Err(StorageError { fault: Fault::AlreadyThere | Fault::Changed, .. }) => Err(BaselineError::Raced),
            Err(error) => Err(error.into()),
        }
    }

    /// Completes an archive whose run died after its bytes were sent; the archive, if that was so.
    pub(super) async fn heal(&mut self, shelf: &Shelf) -> Result<Option<Name>, BaselineError> {
        let Some(pending) = self.baseline.pending.take() else { return Ok(None) };
        let Pending { manifest, state } = *pending;
        // It never showed up, so nothing of it is there. The next write drops the note.
        if !shelf.is_whole(manifest.archive, &manifest.stored).await? {
            return Ok(None);
        }
        self.complete(shelf, &manifest, state).await?;
        Ok(Some(manifest.archive))
    }

    /// Notes an archive whose bytes have been sent.
    pub(super) async fn announce(&mut self, shelf: &Shelf, manifest: &Manifest, state: &State) -> Result<(), BaselineError> {
        self.baseline.pending = Some(Box::new(Pending { manifest: manifest.clone(), state: state.clone() }));
        self.write(shelf).await
    }

    /// Writes the manifest, which makes the archive complete, then advances.
    pub(super) async fn complete(&mut self, shelf: &Shelf, manifest: &Manifest, state: State) -> Result<(), BaselineError> {
        shelf.complete(manifest).await?;
        self.baseline.state = Some(state);
        self.baseline.archive = Some(manifest.archive);
        self.baseline.database = Some(manifest.database.name.clone());
        self.baseline.pending = None;
        self.write(shelf).await
    }
}
