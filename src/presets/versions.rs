//! Earlier revisions: listed, made current again, removed; and presets deleted.
//!
//! All of these advance the pointer by If-Match. Deleting writes a mark; `purge` first takes revisions out of the pointer, then removes
//! objects that it does not name: killed in between, the next `purge` removes them.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::remote::{Branch, Deleted, Known, Pointer, Revision, now};
use super::{Done, PresetError, Presets, journal, lock};
use crate::storage::Removal;
use crate::worker::Run;

/// An object that no pointer names may belong to a push under way for so long.
const UNDER_WAY: Duration = Duration::from_secs(24 * 3600);

async fn advance(branch: &Branch, name: &str, pointer: &Pointer, known: &Known) -> Result<(), PresetError> {
    if branch.point(name, pointer, Some(known)).await?.is_none() {
        return Err(PresetError::Refused(format!("somebody else changed `{name}` at the same moment; look at it again")));
    }
    journal::write(branch, name, pointer, None).await
}

impl Presets {
    pub(super) async fn versions(&self, name: &str) -> Result<Done, PresetError> {
        let branch = self.branch()?;
        let missing = || PresetError::Refused(format!("there is no preset `{name}` in {}", branch.shown()));
        let known = branch.pointer(name).await?.ok_or_else(missing)?;
        let mut said = String::new();
        for Revision { revision, size, at, who, what, .. } in known.pointer.revisions.iter().rev() {
            let _ = writeln!(said, "{revision}\t{}\t{at}\t{who}: {what}", indicatif::HumanBytes(*size));
        }
        if let Some(Deleted { at, who, what }) = &known.pointer.deleted {
            let _ = writeln!(said, "deleted\t\t{at}\t{who}: {what}");
        }
        said.truncate(said.trim_end().len());
        let value = serde_json::to_value(&known.pointer.revisions).unwrap_or_default();
        Ok(Done::said(said, value))
    }

    pub(super) async fn restore_version(
        &self,
        name: &str,
        revision: &str,
        who: &str,
        key: Option<&str>,
    ) -> Result<Done, PresetError> {
        let branch = self.branch()?;
        let missing =
            || PresetError::Refused(format!("`{name}` has no revision {revision} (`db-p versions name={name}` lists them)"));
        let known = branch.pointer(name).await?.ok_or_else(missing)?;
        lock::check(&branch, name, key).await?;
        let earlier = known.pointer.revisions.iter().find(|r| r.revision.to_string() == revision).ok_or_else(missing)?;
        let mut pointer = known.pointer.clone();
        pointer.newest += 1;
        pointer.deleted = None;
        pointer.revisions.push(Revision {
            revision: pointer.newest,
            base: known.current().map(|current| current.revision),
            at: now(),
            who: who.to_owned(),
            what: format!("revision {revision} again: {}", earlier.what),
            ..earlier.clone()
        });
        advance(&branch, name, &pointer, &known).await?;
        let said = format!("revision {} of `{name}` is revision {revision} again", pointer.newest);
        Ok(Done::said(said, json!({"name": name, "revision": pointer.newest})))
    }

    pub(super) async fn delete(&self, name: &str, who: &str, what: &str, key: Option<&str>) -> Result<Done, PresetError> {
        let branch = self.branch()?;
        let (known, _) = branch.present(name).await?;
        lock::check(&branch, name, key).await?;
        let mut pointer = known.pointer.clone();
        pointer.deleted = Some(Deleted { at: now(), who: who.to_owned(), what: what.to_owned() });
        advance(&branch, name, &pointer, &known).await?;
        let said = format!("`{name}` is deleted; restore-version brings it back until it is purged");
        Ok(Done::said(said, json!({"deleted": name})))
    }

    pub(super) async fn purge(&self, run: &Run, name: &str, keep: Option<&str>, who: &str) -> Result<Done, PresetError> {
        let branch = self.branch()?;
        let missing = || PresetError::Refused(format!("there is no preset `{name}` in {}", branch.shown()));
        let known = branch.pointer(name).await?.ok_or_else(missing)?;
        let keep = match (keep.and_then(|keep| keep.parse::<usize>().ok()), &known.pointer.deleted) {
            (None, None) => {
                return Err(PresetError::Refused(format!(
                    "`{name}` is not deleted; say keep=N to remove all but its newest N revisions"
                )));
            }
            (keep, Some(_)) => keep.unwrap_or(0),
            (Some(keep), None) => keep,
        };
        let mut pointer = known.pointer.clone();
        let surplus = pointer.revisions.len().saturating_sub(keep);
        let dropped: Vec<String> = pointer.revisions.drain(..surplus).map(|revision| revision.object).collect();
        if surplus > 0 {
            advance(&branch, name, &pointer, &known).await?;
        }
        let beginning = branch.key(name, "rev-");
        let old = chrono::Utc::now() - UNDER_WAY;
        let mut removed = 0;
        for entry in branch.store.list(&beginning).await? {
            let object = entry.key.rsplit('/').next().unwrap_or_default();
            let named = pointer.revisions.iter().any(|revision| revision.object == object);
            if named || !(entry.modified < old || dropped.iter().any(|dropped| dropped == object)) {
                continue;
            }
            match branch.store.remove(&entry.key).await? {
                Removal::Removed => removed += 1,
                Removal::Kept(why) => run.warn(format!("`{}` stays: {why}", entry.key)),
            }
        }
        // Uploads of killed pushes; a store that does not list them has a rule for them.
        branch.store.tidy(&beginning, UNDER_WAY).await?;
        if surplus + removed > 0 {
            journal::note(&branch, name, who, &format!("purged {surplus} revisions, {removed} objects")).await?;
        }
        Ok(Done::said(
            format!("removed {surplus} revisions and {removed} objects of `{name}`"),
            json!({"revisions": surplus, "objects": removed}),
        ))
    }
}
