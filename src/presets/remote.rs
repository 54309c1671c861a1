//! What is stored of a branch's presets, and who was first.
//!
//! ```text
//! REPO/BRANCH/NAME/current.json             the pointer: revisions, newest last; made by If-None-Match, advanced by If-Match
//! REPO/BRANCH/NAME/rev-N-HEX                a dump, compressed and sealed; never changed; HEX begins its SHA-256
//! REPO/BRANCH/NAME/lock.json                who keeps others from pushing
//! REPO/BRANCH/NAME/log.txt                  what happened, newest on top
//! ```
//!
//! A preset exists when its pointer does and does not say `deleted`. Everything else follows from the pointer: an object that it
//! does not name is the rest of a push that was cut off or lost the race, and of no meaning.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::PresetError;
use super::arguments::check_name;
use crate::backup::name::Compression;
use crate::storage::{Fault, StorageError, Store, Version};

/// Longest pointer: some ten thousand revisions.
const POINTER: u64 = 4 << 20;

/// One stored state of a preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Its number, from 1.
    pub revision: u64,
    /// The revision that it came after; none for the first.
    pub base: Option<u64>,
    /// Last part of the key of its object; a restored one has the earlier revision's.
    pub object: String,
    /// Bytes of the object.
    pub size: u64,
    /// SHA-256 of the object.
    pub sha256: String,
    /// Bytes of SQL.
    pub plain_size: u64,
    /// How they were compressed.
    pub compression: Compression,
    /// Version of the `pg_dumpall` that wrote them; none for imported ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_version: Option<String>,
    /// Which key opens it ([`super::sealed::Key::id`]).
    pub key_id: String,
    /// When, UTC.
    pub at: String,
    /// By whom.
    pub who: String,
    /// A person's words.
    pub what: String,
}

/// Why there is no preset any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// When, UTC.
    pub at: String,
    /// By whom.
    pub who: String,
    /// A person's words.
    pub what: String,
}

/// The pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pointer {
    /// Newest last; never empty, but for a purged preset.
    pub revisions: Vec<Revision>,
    /// Number of the newest revision that there ever was.
    pub newest: u64,
    /// Set when it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Deleted>,
    /// The newest lock that was set: setting one changes the pointer, so that a push that began before loses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

/// A pointer as it was read.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it says.
    pub pointer: Pointer,
    /// For replacing it.
    pub version: Version,
}

impl Known {
    /// The current revision of a preset that exists.
    pub fn current(&self) -> Option<&Revision> {
        if self.pointer.deleted.is_some() { None } else { self.pointer.revisions.last() }
    }
}

/// The presets of a branch, each by its name.
#[derive(Debug, Default)]
pub(super) struct Existing {
    pub(super) there: Vec<(String, Known)>,
    pub(super) deleted: Vec<(String, Deleted)>,
    /// Why the pointer cannot be used.
    pub(super) broken: Vec<(String, PresetError)>,
}

/// Whether somebody else was first.
pub(super) fn lost(error: &StorageError) -> bool {
    matches!(error.fault, Fault::AlreadyThere | Fault::Changed)
}

/// The presets of a branch in the store.
#[derive(Clone, Debug)]
pub struct Branch {
    pub(super) store: Arc<dyn Store>,
    prefix: String,
}

impl Branch {
    pub(super) fn new(store: Arc<dyn Store>, repo: &str, branch: &str) -> Self {
        Branch { store, prefix: format!("{repo}/{branch}/") }
    }

    /// For messages.
    pub(super) fn shown(&self) -> String {
        format!("{} of {}", self.prefix.trim_end_matches('/'), self.store.shown())
    }

    /// Key of something of a preset.
    pub(super) fn key(&self, name: &str, leaf: &str) -> String {
        format!("{}{name}/{leaf}", self.prefix)
    }

    /// Names of all presets that ever were, sorted.
    pub(super) async fn names(&self) -> Result<Vec<String>, StorageError> {
        let entries = self.store.list(&self.prefix).await?;
        let name = |key: &str| key.strip_prefix(&self.prefix)?.strip_suffix("/current.json").map(str::to_owned);
        // Names become files here: what somebody else put there under no name of a preset is none.
        Ok(entries.iter().filter_map(|entry| name(&entry.key)).filter(|name| check_name(name).is_ok()).collect())
    }

    /// All presets. One whose pointer cannot be used keeps nobody from the others.
    pub(super) async fn existing(&self) -> Result<Existing, PresetError> {
        let mut found = Existing::default();
        for name in self.names().await? {
            match self.pointer(&name).await {
                Ok(Some(known)) => match &known.pointer.deleted {
                    Some(deleted) => found.deleted.push((name, deleted.clone())),
                    None if known.current().is_some() => found.there.push((name, known)),
                    None => {}
                },
                Ok(None) => {}
                Err(error @ PresetError::Refused(_)) => found.broken.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// A preset's pointer, also of a deleted one.
    pub(super) async fn pointer(&self, name: &str) -> Result<Option<Known>, PresetError> {
        let Some((pointer, version)) = self.json::<Pointer>(name, "current.json").await? else { return Ok(None) };
        // Digests become names of files here.
        let whole = |digest: &str| digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit());
        if !pointer.revisions.iter().all(|revision| whole(&revision.sha256)) {
            return Err(PresetError::Refused(format!(
                "the pointer of `{name}` in {} holds a SHA-256 that is none",
                self.shown()
            )));
        }
        Ok(Some(Known { pointer, version }))
    }

    /// The pointer of one that exists.
    pub(super) async fn present(&self, name: &str) -> Result<(Known, Revision), PresetError> {
        if let Some(known) = self.pointer(name).await?
            && let Some(current) = known.current().cloned()
        {
            return Ok((known, current));
        }
        Err(PresetError::Refused(format!("there is no preset `{name}` in {}", self.shown())))
    }

    /// Makes the pointer, or advances the one that was read; nothing when somebody else was first.
    pub(super) async fn point(
        &self,
        name: &str,
        pointer: &Pointer,
        known: Option<&Known>,
    ) -> Result<Option<Version>, PresetError> {
        self.put(name, "current.json", pointer, known.map(|known| &known.version)).await
    }

    /// A small JSON object.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        leaf: &str,
    ) -> Result<Option<(T, Version)>, PresetError> {
        let key = self.key(name, leaf);
        match self.store.read(&key, POINTER).await {
            Ok((bytes, meta)) => match serde_json::from_slice(&bytes) {
                Ok(value) => Ok(Some((value, meta.version))),
                Err(error) => Err(PresetError::Refused(format!(
                    "`{key}` in {} is not what it should be: {error}; put an earlier version of it back",
                    self.store.shown()
                ))),
            },
            Err(StorageError { fault: Fault::Missing, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one where there was none, or in the place of the version that was read; nothing when somebody else was first.
    pub(super) async fn put<T: Serialize>(
        &self,
        name: &str,
        leaf: &str,
        value: &T,
        known: Option<&Version>,
    ) -> Result<Option<Version>, PresetError> {
        let key = self.key(name, leaf);
        let bytes = Bytes::from(serde_json::to_vec_pretty(value).expect("these structures are JSON"));
        let written = match known {
            None => self.store.create(&key, bytes).await,
            Some(version) => self.store.replace(&key, bytes, version).await,
        };
        match written {
            Ok(version) => Ok(Some(version)),
            Err(error) if lost(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Now, in UTC.
pub(super) fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}
