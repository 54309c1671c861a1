//! `rekey`: the current revision of each preset becomes a new revision that the new key opens. Nothing is decompressed.
//!
//! A preset that the new key opens already is left alone, so a `rekey` that was killed is simply run again. Earlier revisions stay under
//! the old key; `purge` removes them.

use std::path::Path;

use serde_json::json;

use super::local::Local;
use super::push::upload;
use super::remote::{Known, Revision, now};
use super::sealed::{self, Key};
use super::{Done, PresetError, Presets, journal, lock, pull};
use crate::worker::Run;

impl Presets {
    pub(super) async fn rekey(
        &self,
        run: &Run,
        to: &str,
        include: Option<Vec<&str>>,
        exclude: Option<Vec<&str>>,
        who: &str,
    ) -> Result<Done, PresetError> {
        let (branch, old, new) = (self.branch()?, self.key()?, Key::read(Path::new(to))?);
        if old.id == new.id {
            return Err(PresetError::Refused("both key files hold the same key".to_owned()));
        }
        let local = Local::open(&self.settings)?;
        let _held = local.hold()?;
        local.tidy(&[])?;
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let found = pull::chosen(&branch, branch.existing().await?, include.as_deref(), exclude.as_deref())?;
        failed.extend(found.broken.into_iter().map(|(name, error)| format!("`{name}`: {error}")));
        for (name, known) in found.there {
            if known.current().is_none_or(|current| current.key_id == new.id) {
                continue;
            }
            match self.rekey_one(run, &local, &old, &new, &name, &known, who).await {
                Ok(()) => done.push(name),
                Err(error @ PresetError::Stopped(_)) => return Err(error),
                Err(error) => failed.push(format!("`{name}`: {error}")),
            }
        }
        if !failed.is_empty() {
            return Err(PresetError::Refused(format!("{} have the new key, these have not: {}", done.len(), failed.join("; "))));
        }
        Ok(Done::said(format!("for the new key: {}", done.join(", ")), json!({"rekeyed": done})))
    }

    #[expect(clippy::too_many_arguments, reason = "a step of the command above, apart for its errors")]
    async fn rekey_one(
        &self,
        run: &Run,
        local: &Local,
        old: &Key,
        new: &Key,
        name: &str,
        known: &Known,
        who: &str,
    ) -> Result<(), PresetError> {
        let branch = self.branch()?;
        lock::check(&branch, name, None).await?;
        let Some(current) = known.current() else { return Ok(()) };
        let (sealed, resealed) = (local.files().join(format!("rekey-{name}")), local.files().join(format!("rekeyed-{name}")));
        run.progress(|p| p.phase = format!("rekey {name}"));
        let made = async {
            pull::download(run, &branch, name, current, &sealed).await?;
            let (size, sha256) = sealed::reseal(run, old, new, &sealed, &resealed).await?;
            let number = known.pointer.newest + 1;
            let object = format!("rev-{number}-{}", &sha256[..16]);
            upload(run, &branch, &branch.key(name, &object), &resealed).await?;
            let mut pointer = known.pointer.clone();
            pointer.newest = number;
            pointer.revisions.push(Revision {
                revision: number,
                base: Some(current.revision),
                object,
                size,
                sha256,
                key_id: new.id.clone(),
                at: now(),
                who: who.to_owned(),
                what: format!("revision {} for a new key", current.revision),
                ..current.clone()
            });
            if branch.point(name, &pointer, Some(known)).await?.is_none() {
                return Err(PresetError::Refused("somebody else pushed or locked it at the same moment".to_owned()));
            }
            journal::write(&branch, name, &pointer, None).await
        };
        let made = made.await;
        for file in [&sealed, &resealed] {
            let _ = std::fs::remove_file(file);
        }
        made
    }
}
