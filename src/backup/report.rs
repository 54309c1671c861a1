//! What a run that did not fail came to: the result of its job.

use serde::Serialize;
use serde_json::{Map, Value};

use super::manifest::Manifest;
use super::name::Name;

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The newest archive holds what the database holds.
    Unchanged,
    /// There is a new one, which does.
    Archived,
    /// Another run is at it.
    Skipped,
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// In a word.
    pub result: Ending,
    /// And why.
    pub reason: String,
    /// The newest archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<Name>,
    /// Business tables that differed.
    pub changed_tables: Vec<String>,
    /// Whether definitions differed.
    pub definitions_changed: bool,
    /// Bytes uploaded.
    pub bytes: u64,
    /// Bytes before they were made smaller.
    pub plain_bytes: u64,
    /// Groups without a fixture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub empty_groups: Vec<String>,
    /// Milliseconds of each stage.
    pub stages: Map<String, Value>,
    /// Milliseconds in all.
    pub milliseconds: u64,
}

impl Report {
    pub(super) fn new(result: Ending, reason: impl Into<String>, archive: Option<Name>) -> Self {
        Report {
            result,
            reason: reason.into(),
            archive,
            changed_tables: Vec::new(),
            definitions_changed: false,
            bytes: 0,
            plain_bytes: 0,
            empty_groups: Vec::new(),
            stages: Map::new(),
            milliseconds: 0,
        }
    }

    pub(super) fn archived(manifest: Manifest, reason: String) -> Self {
        Report {
            changed_tables: manifest.changed_tables,
            definitions_changed: manifest.definitions_changed,
            bytes: manifest.stored.bytes,
            plain_bytes: manifest.plain.bytes,
            empty_groups: manifest.empty_groups,
            ..Report::new(Ending::Archived, reason, Some(manifest.archive))
        }
    }
}
