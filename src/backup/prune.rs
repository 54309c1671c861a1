//! Removing the archives that no rule keeps.
//!
//! The manifest goes first: it is what makes an archive complete, so a prune that is killed leaves an object that no verb
//! lists, and never a listed archive without its bytes. The next prune removes such leftovers. What a store keeps by an object
//! lock stays whole: its manifest is put back.
//!
//! A damaged archive counts for nothing: what a rule keeps must be of use, so none takes the place of a good one. Nor is it removed,
//! since somebody may want to see what is left of it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use serde::Serialize;

use super::baseline::Baseline;
use super::name::{MANIFEST, Name};
use super::retention::Rules;
use super::shelf::{Shelf, Shelved};
use super::verified;
use crate::storage::{Entry, Removal, StorageError};
use crate::worker::Run;
use crate::worker::run::Stopped;

/// What was removed from one store, or would be.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The store.
    pub store: String,
    /// Whether nothing was really removed.
    pub dry_run: bool,
    /// Archives that stay by the rules.
    pub kept: Vec<Name>,
    /// Archives that went.
    pub removed: Vec<Name>,
    /// Archives that should go, and the store keeps, with its reason.
    pub locked: Vec<Stays>,
    /// Archives that are visibly damaged, and why. They stay, and no rule counts them.
    pub damaged: Vec<Stays>,
    /// Objects that belonged to no complete archive, and went.
    pub leftovers: Vec<String>,
    /// Bytes of the archives that went.
    pub bytes: u64,
}

/// An archive that stays, whatever the rules say.
#[derive(Clone, Debug, Serialize)]
pub struct Stays {
    /// Which.
    pub archive: Name,
    /// Why.
    pub reason: String,
}

/// Why not all was removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Removes what `rules` do not keep. Of all sound archives the newest stays, and the newest proven one.
///
/// # Errors
/// When the store fails; what was removed before is gone, and the next prune goes on.
pub async fn prune(run: &Run, shelf: &Shelf, rules: &Rules, dry_run: bool) -> Result<Pruned, PruneError> {
    let entries = run.unless_stopped(shelf.store.list(&shelf.prefix)).await??;
    let (archives, damaged) = examined(run, shelf, shelf.complete_among(&entries)).await?;
    let names: Vec<Name> = archives.iter().map(|shelved| shelved.name).collect();
    let proven: BTreeSet<String> = verified::times(shelf, &entries).into_keys().collect();
    let kept = rules.kept(&names, &proven);
    let mut pruned = Pruned { store: shelf.shown(), dry_run, damaged, ..Pruned::default() };
    let (stay, go): (Vec<Shelved>, Vec<Shelved>) =
        archives.into_iter().partition(|shelved| kept.contains(&shelved.name.to_string()));
    pruned.kept = stay.iter().map(|shelved| shelved.name).collect();
    run.progress(|p| {
        "prune".clone_into(&mut p.phase);
        (p.done, p.total) = (0, go.len() as u64);
    });
    for Shelved { name, entry } in go {
        run.checkpoint()?;
        if !dry_run && let Some(reason) = remove(shelf, name, &entries).await? {
            run.warn(format!("the store keeps {name}: {reason}"));
            pruned.locked.push(Stays { archive: name, reason });
            continue;
        }
        run.info(format!("{} {name}, {} bytes", if dry_run { "would remove" } else { "removed" }, entry.size));
        pruned.removed.push(name);
        pruned.bytes += entry.size;
        run.progress(|p| p.done += 1);
    }
    if let Some(newest) = pruned.kept.last().copied() {
        for key in leftovers(run, shelf, &entries, newest).await? {
            run.checkpoint()?;
            if !dry_run && let Removal::Kept(reason) = shelf.store.remove(&key).await? {
                run.warn(format!("the store keeps `{key}`, which belongs to no archive: {reason}"));
                continue;
            }
            run.info(format!(
                "{} `{key}`, which belongs to no complete archive",
                if dry_run { "would remove" } else { "removed" }
            ));
            pruned.leftovers.push(key);
        }
    }
    Ok(pruned)
}

/// The sound ones, and those that are not.
async fn examined(run: &Run, shelf: &Shelf, archives: Vec<Shelved>) -> Result<(Vec<Shelved>, Vec<Stays>), PruneError> {
    let (mut sound, mut damaged) = (Vec::new(), Vec::new());
    let mut examined = std::pin::pin!(shelf.examine(archives));
    while let Some(examined) = run.unless_stopped(examined.next()).await? {
        match examined? {
            (shelved, Ok(_)) => sound.push(shelved),
            (Shelved { name, .. }, Err(reason)) => {
                run.warn(format!("{name} is damaged, so it counts for no rule, and stays: {reason}"));
                damaged.push(Stays { archive: name, reason });
            }
        }
    }
    Ok((sound, damaged))
}

/// Removes an archive and all that stands beside it; why the store keeps it, if it does.
async fn remove(shelf: &Shelf, name: Name, entries: &[Entry]) -> Result<Option<String>, StorageError> {
    let mark = shelf.key(name, MANIFEST);
    let Some((manifest, _)) = shelf.read(&mark).await? else { return Ok(None) };
    if let Removal::Kept(reason) = shelf.store.remove(&mark).await? {
        return Ok(Some(reason));
    }
    match shelf.store.remove(&shelf.key(name, "")).await {
        Ok(Removal::Removed) => {}
        // It is all there, so it has to be listed.
        Ok(Removal::Kept(reason)) => {
            shelf.store.create(&mark, manifest).await?;
            return Ok(Some(reason));
        }
        Err(error) => {
            let _ = shelf.store.create(&mark, manifest).await;
            return Err(error);
        }
    }
    let text = name.to_string();
    for entry in entries {
        let proof = entry.key.strip_prefix(&shelf.prefix).and_then(verified::of);
        if proof.is_some_and(|of| of.to_string() == text) {
            // One that is kept proves nothing any more, and does no harm.
            shelf.store.remove(&entry.key).await?;
        }
    }
    Ok(None)
}

/// Objects of archives that are not complete and never will be: older than the newest complete one, and not on their way.
async fn leftovers(run: &Run, shelf: &Shelf, entries: &[Entry], newest: Name) -> Result<Vec<String>, StorageError> {
    let pending = match shelf.read(&shelf.baseline_key()).await? {
        None => None,
        Some((bytes, _)) => match serde_json::from_slice::<Baseline>(&bytes) {
            Ok(baseline) => baseline.pending.map(|pending| pending.manifest.archive),
            Err(error) => {
                run.warn(format!("leftovers stay, because the baseline cannot be read: {error}"));
                return Ok(Vec::new());
            }
        },
    };
    // Which of its two parts an archive has.
    let mut parts: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for entry in entries {
        let Some(text) = entry.key.strip_prefix(&shelf.prefix) else { continue };
        if let Some(name) = text.strip_suffix(MANIFEST) {
            parts.entry(name).or_default().1 = true;
        } else if text.parse::<Name>().is_ok() {
            parts.entry(text).or_default().0 = true;
        }
    }
    let whole = |name: &str| parts.get(name) == Some(&(true, true));
    let mut found = Vec::new();
    for entry in entries {
        let Some(text) = entry.key.strip_prefix(&shelf.prefix) else { continue };
        let name = text.strip_suffix(MANIFEST).unwrap_or(text).parse::<Name>().ok().or_else(|| verified::of(text));
        if let Some(name) = name
            && !whole(&name.to_string())
            && name.to_string() < newest.to_string()
            && Some(name) != pending
        {
            found.push(entry.key.clone());
        }
    }
    Ok(found)
}
