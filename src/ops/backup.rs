//! Looking at archives: which there are, what one holds, and whether they are young enough.

use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use serde::Serialize;

use crate::backup::choice::Choice;
use crate::backup::freshness::{self, Freshness, Limits};
use crate::backup::local::{self, Fetched, LocalError};
use crate::backup::manifest::{Manifest, Reason};
use crate::backup::name::Name;
use crate::backup::settings;
use crate::backup::shelf::Shelf;
use crate::config::Reader;
use crate::worker::Run;

/// Longest wait for a store that is only looked at.
const LIMIT: Duration = Duration::from_secs(20);

/// An archive as a list shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its name.
    pub archive: Name,
    /// Bytes in the store.
    pub bytes: u64,
    /// When its run began.
    pub started_at: DateTime<Utc>,
    /// Name of the database.
    pub database: String,
    /// Why there had to be one.
    pub reason: Reason,
    /// Business tables that had changed.
    pub changed_tables: Vec<String>,
    /// Whether definitions had.
    pub definitions_changed: bool,
    /// A person's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// When a drill last proved it.
    pub verified_at: Option<DateTime<Utc>>,
}

/// An archive as a person looks at it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// All that is known of it.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// When a drill last proved it.
    pub verified_at: Option<DateTime<Utc>>,
}

/// The store with the archives.
///
/// # Errors
/// When none is configured; what is wrong with the configuration is in `reader`.
pub fn shelf(reader: &Reader<'_>) -> anyhow::Result<Option<Shelf>> {
    anyhow::ensure!(settings::wanted(reader), settings::NO_STORE);
    Ok(settings::shelf(reader))
}

/// The newest `limit` archives, newest first, and what is wrong with those among them that are visibly damaged.
///
/// # Errors
/// When the store fails.
pub async fn list(shelf: &Shelf, limit: usize) -> anyhow::Result<(Vec<Listed>, Vec<String>)> {
    let listing = shelf.listing().await?;
    let newest = listing.archives.iter().rev().take(limit);
    let (mut manifests, mut damaged) = (Vec::new(), Vec::new());
    let mut examined = std::pin::pin!(shelf.examine(newest.cloned()));
    while let Some((shelved, found)) = examined.try_next().await? {
        match found {
            Ok(manifest) => manifests.push(manifest),
            Err(reason) => damaged.push(format!("the archive `{}` is damaged: {reason}", shelved.name)),
        }
    }
    let listed = |manifest: Manifest| Listed {
        verified_at: listing.verified.get(&manifest.archive.to_string()).copied(),
        archive: manifest.archive,
        bytes: manifest.stored.bytes,
        started_at: manifest.started_at,
        database: manifest.database.name,
        reason: manifest.reason,
        changed_tables: manifest.changed_tables,
        definitions_changed: manifest.definitions_changed,
        annotation: manifest.annotation,
    };
    Ok((manifests.into_iter().map(listed).collect(), damaged))
}

/// One archive.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn show(shelf: &Shelf, choice: Choice) -> anyhow::Result<Shown> {
    let archive = choice.find(shelf).await?;
    let manifest = shelf.manifest(archive).await?;
    let verified_at = shelf.listing().await?.verified.get(&archive.to_string()).copied();
    Ok(Shown { manifest, verified_at })
}

/// Writes an archive to a file in `directory`; nothing when there is none at all.
///
/// # Errors
/// When the store or the file system fails, or the archive is damaged.
pub async fn fetch(run: &Run, shelf: &Shelf, choice: Choice, directory: &std::path::Path) -> anyhow::Result<Fetched> {
    let archive = choice.find(shelf).await?;
    let latest = choice == Choice::Latest;
    match local::fetch(run, shelf, archive, directory, latest).await {
        Err(LocalError::Stopped(_)) => anyhow::bail!("it was told to stop; nothing was written"),
        // Its words name archive or file.
        other => Ok(other?),
    }
}

/// Whether archives and drills are young enough.
///
/// # Errors
/// When the store does not answer.
pub async fn freshness(shelf: &Shelf, limits: Limits) -> anyhow::Result<Freshness> {
    let looking = freshness::look(shelf, limits, Utc::now());
    let looked = tokio::time::timeout(LIMIT, looking).await;
    Ok(looked.with_context(|| format!("no answer from {} within {} s", shelf.shown(), LIMIT.as_secs()))??)
}
