//! Proof that an archive was restored and was what its manifest tells: an object beside it, created and never changed.
//!
//! ```text
//! NAME.verified.json                        the first drill of the archive
//! NAME.verified.2026-01-02T03:04:05.json    a later one
//! ```
//!
//! A list shows when a drill was by the time at which the store got the object, so that nothing has to be read.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::name::{Name, VERIFIED};
use super::shelf::Shelf;
use crate::storage::{Entry, Fault, StorageError};

/// The version that is written.
const FORMAT: u32 = 1;
/// What stands between an archive's name and the time of a later drill.
const LATER: &str = ".verified.";

/// The object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Version of this format.
    pub format: u32,
    /// Whose proof it is.
    pub archive: Name,
    /// When all had been compared.
    pub verified_at: DateTime<Utc>,
    /// Of the archive's stored bytes.
    pub stored_sha256: String,
    /// Tables whose rows were counted.
    pub tables: u64,
    /// Rows in all.
    pub rows: u64,
    /// Tables whose every value was compared.
    pub fingerprints: u64,
    /// Large objects whose every byte was compared.
    #[serde(default)]
    pub large_objects: u64,
    /// Whether the definitions were compared; they are not on a server of another major version.
    pub definitions: bool,
    /// The server that it was restored to.
    pub server_version: String,
    /// Ours.
    pub bullwork: String,
    /// How long restoring took.
    pub milliseconds: u64,
}

impl Verified {
    /// Version of this format.
    pub const FORMAT: u32 = FORMAT;

    /// Puts it beside the archive.
    pub(super) async fn write(&self, shelf: &Shelf) -> Result<(), StorageError> {
        let body = bytes::Bytes::from(serde_json::to_vec_pretty(self).expect("texts and numbers are JSON"));
        let later = format!("{LATER}{}.json", self.verified_at.format("%Y-%m-%dT%H:%M:%S"));
        for suffix in [VERIFIED, &later] {
            match shelf.store.create(&shelf.key(self.archive, suffix), body.clone()).await {
                Ok(_) => return Ok(()),
                Err(StorageError { fault: Fault::AlreadyThere, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Two drills in one second have proven the same.
        Ok(())
    }
}

/// The archive whose proof an object is, by its key below the prefix.
pub(super) fn of(text: &str) -> Option<Name> {
    let (name, rest) = text.split_once(LATER)?;
    (rest == "json" || rest.ends_with(".json")).then(|| name.parse().ok()).flatten()
}

/// When archives were verified last, by their names.
pub(super) fn times(shelf: &Shelf, entries: &[Entry]) -> BTreeMap<String, DateTime<Utc>> {
    let mut times: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
    for entry in entries {
        if let Some(name) = entry.key.strip_prefix(&shelf.prefix).and_then(of) {
            let at = times.entry(name.to_string()).or_insert(entry.modified);
            *at = entry.modified.max(*at);
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proofs_of_archives_are_proofs() {
        let name = "2026-01-02T03:04:05.tar.zst.age";
        for suffix in [".verified.json", ".verified.2026-02-01T00:00:00.json"] {
            assert_eq!(of(&format!("{name}{suffix}")).unwrap().to_string(), name);
        }
        for text in [name, "x.verified.json", "2026-01-02T03:04:05.tar.zst.age.manifest.json", "baseline.json"] {
            assert!(of(text).is_none(), "{text}");
        }
    }
}
