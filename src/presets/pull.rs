//! `pull-and-update-local`: every chosen preset that is missing here or has changed is fetched, applied, migrated and kept.
//!
//! 1. the store is asked, the cluster is looked at · 2. the directories are made · 3. the application is stopped · 4. sealed files are
//!    fetched · 5. each is read whole, which proves key and content · 6. for each: the cluster is emptied, the SQL executed, migrated,
//!    and the result kept · 7. PostgreSQL is stopped
//!
//! A preset that fails at one of these is told, keeps what was ready of it, and the others go on. Killed anywhere: what is fetched and
//! what is kept stays, the rest is done by the next pull. The cluster's own content is used up from step 6 on; `selected.json` says so before.

use std::path::PathBuf;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::cluster::Cluster;
use super::local::{Local, Note};
use super::remote::{Branch, Deleted, Existing, Revision, now};
use super::sealed::{self, Key, Opened};
use super::settings::Mode;
use super::{Done, PresetError, Presets, hex};
use crate::worker::Run;

const PIECE: usize = 256 << 10;

/// Chooses from what there is; a name that is none of it is an error.
pub(super) fn chosen(
    branch: &Branch,
    mut found: Existing,
    include: Option<&[&str]>,
    exclude: Option<&[&str]>,
) -> Result<Existing, PresetError> {
    let names: Vec<&str> =
        found.there.iter().map(|(name, _)| name).chain(found.broken.iter().map(|(name, _)| name)).map(String::as_str).collect();
    if names.is_empty() {
        return Err(PresetError::Refused(format!("there are no presets in {}", branch.shown())));
    }
    let unknown: Vec<&str> = include.iter().flat_map(|l| l.iter()).filter(|name| !names.contains(*name)).copied().collect();
    if !unknown.is_empty() {
        return Err(PresetError::Refused(format!("there is no preset `{}` in {}", unknown.join("`, `"), branch.shown())));
    }
    let wanted = |name: &str| include.is_none_or(|l| l.contains(&name)) && !exclude.is_some_and(|l| l.contains(&name));
    found.there.retain(|(name, _)| wanted(name));
    found.broken.retain(|(name, _)| wanted(name));
    Ok(found)
}

/// A preset that is to be brought up to date.
struct Task {
    name: String,
    revision: Revision,
    file: PathBuf,
}

impl Presets {
    pub(super) async fn pull(
        &self,
        run: &Run,
        include: Option<Vec<&str>>,
        exclude: Option<Vec<&str>>,
    ) -> Result<Done, PresetError> {
        let settings = &self.settings;
        let (branch, key) = (self.branch()?, self.key()?);
        run.progress(|p| "ask the store".clone_into(&mut p.phase));
        let found = run.unless_stopped(branch.existing()).await??;
        let local = Local::open(settings)?;
        for (name, Deleted { at, who, what }) in &found.deleted {
            if local.note(name)?.is_some_and(|note| note.ready > 0) {
                run.warn(format!(
                    "`{name}` was deleted by {who} at {at} ({what}); what is ready of it here stays, and can be selected"
                ));
            }
        }
        let found = chosen(&branch, found, include.as_deref(), exclude.as_deref())?;
        let _held = local.hold()?;
        let cluster = Cluster::new(settings, run, &local);

        let mut failed: Vec<(String, PresetError)> = Vec::new();
        let total = found.broken.len();
        for (name, error) in found.broken {
            tell(run, &mut failed, &name, error)?;
        }
        if found.there.is_empty() && total > 0 {
            // There is nothing to do that anything had to be stopped for.
            return Err(failure(&failed, total, &[]));
        }
        let mut tasks = Vec::new();
        for (name, known) in found.there {
            let Some(revision) = known.current().cloned() else { continue };
            let note = local.note(&name)?.unwrap_or_default();
            let kept = match settings.mode {
                Mode::Cluster => local.directory(&note).is_some_and(|path| path.is_dir()),
                Mode::Fast => !note.templates.is_empty(),
            };
            if note.ready == revision.revision && note.sha256 == revision.sha256 && kept {
                continue;
            }
            let file = local.files().join(format!("{name}@{}", revision.sha256));
            tasks.push(Task { name, revision, file });
        }
        local.tidy(&tasks.iter().map(|task| task.file.clone()).collect::<Vec<_>>())?;
        if !tasks.is_empty() {
            // Before anything is stopped: whether the cluster can be used at all.
            cluster.start().await?;
            cluster.check().await?;
        }
        cluster.stop_app().await?;

        let total = total + tasks.len();
        let mut ready = Vec::new();
        for (n, task) in tasks.into_iter().enumerate() {
            run.progress(|p| (p.done, p.total) = (n as u64, total as u64));
            match self.fetch(run, &cluster, &branch, &key, &task).await {
                Ok(()) => ready.push(task),
                Err(error) => tell(run, &mut failed, &task.name, error)?,
            }
        }
        let mut updated = Vec::new();
        let begun = !ready.is_empty();
        if begun {
            let mut selected = local.selected()?;
            (selected.clean, selected.scratch) = (true, true);
            local.select(&selected)?;
        }
        for (n, task) in ready.iter().enumerate() {
            run.progress(|p| (p.done, p.total) = (n as u64, total as u64));
            match self.renew(&cluster, &local, &key, task).await {
                Ok(()) => updated.push(task.name.clone()),
                Err(error) => tell(run, &mut failed, &task.name, error)?,
            }
        }
        if begun && settings.mode == Mode::Fast {
            // What failed half way is not offered as a database.
            let cleared = cluster.clear().await;
            if failed.is_empty() {
                cleared?;
            }
        }
        local.tidy_snapshots()?;
        local.tidy(
            &ready
                .iter()
                .filter(|task| failed.iter().any(|(name, _)| *name == task.name))
                .map(|task| task.file.clone())
                .collect::<Vec<_>>(),
        )?;
        let stopped = match cluster.stop().await {
            Err(error @ PresetError::Stopped(_)) => return Err(error),
            Err(error) if begun => Err(PresetError::Refused(format!(
                "{error}; updated: {}; the cluster holds what the pull left, which is nobody's preset; stop it, or select a preset",
                if updated.is_empty() { "none".to_owned() } else { updated.join(", ") }
            ))),
            Err(error) => Err(PresetError::Refused(format!("{error}; the cluster holds what it held"))),
            Ok(()) => Ok(()),
        };
        if !failed.is_empty() {
            let failure = failure(&failed, total, &updated);
            return Err(match stopped {
                Err(error) => PresetError::Refused(format!("{failure}; and {error}")),
                Ok(()) => failure,
            });
        }
        stopped?;
        let said =
            if updated.is_empty() { "everything is up to date".to_owned() } else { format!("updated: {}", updated.join(", ")) };
        Ok(Done::said(said, json!({"updated": updated})))
    }

    /// Fetches a revision, unless its file is there, and reads it whole.
    async fn fetch(&self, run: &Run, cluster: &Cluster<'_>, branch: &Branch, key: &Key, task: &Task) -> Result<(), PresetError> {
        let Task { name, revision, file } = task;
        if revision.key_id != key.id {
            return Err(PresetError::Refused(format!(
                "it is encrypted for another key than that in {}",
                self.settings.key_file.display()
            )));
        }
        if !file.exists() {
            cluster.phase(&format!("fetch {name}"));
            let part = file.with_file_name(format!(".{name}.part"));
            download(run, branch, name, revision, &part).await?;
            std::fs::rename(&part, file).map_err(|e| PresetError::file(&format!("writing {}", file.display()), e))?;
            run.info(format!("fetched revision {} of `{name}`", revision.revision));
        }
        cluster.phase(&format!("decrypt {name}"));
        let read = sealed::verify(run, key, file, revision.compression, revision.plain_size).await;
        if read.is_err() {
            // The next pull fetches it anew: it may have been damaged here.
            let _ = std::fs::remove_file(file);
        }
        if read? == revision.plain_size {
            return Ok(());
        }
        Err(PresetError::Refused("it holds fewer bytes than it should".to_owned()))
    }

    /// Applies, migrates and keeps one.
    async fn renew(&self, cluster: &Cluster<'_>, local: &Local, key: &Key, task: &Task) -> Result<(), PresetError> {
        let Task { name, revision, file } = task;
        cluster.start().await?;
        cluster.clear().await?;
        let opened = Opened::begin(key, file, revision.compression, revision.plain_size).await?;
        cluster.replay(revision.dump_version.as_deref(), opened).await?;
        cluster.migrate(name).await?;
        let mut note = Note {
            revision: revision.revision,
            ready: revision.revision,
            sha256: revision.sha256.clone(),
            at: now(),
            ..Note::default()
        };
        match self.settings.mode {
            Mode::Cluster => {
                let directory = format!("{name}@{}-{}", revision.revision, &crate::identity::new_uuid()[..8]);
                cluster.keep(&cluster.tools().await?, &local.snapshots.join(&directory)).await?;
                note.directory = Some(directory);
            }
            Mode::Fast => note.templates = cluster.keep_templates(local, name, revision.revision).await?,
        }
        local.write_note(name, &note)?;
        if self.settings.mode == Mode::Fast {
            cluster.copy_templates(&note).await?;
            cluster.tidy_templates(local).await?;
        } else {
            local.tidy_snapshots()?;
        }
        cluster.run.info(format!("`{name}` is ready at revision {}", revision.revision));
        Ok(())
    }
}

fn tell(run: &Run, failed: &mut Vec<(String, PresetError)>, name: &str, error: PresetError) -> Result<(), PresetError> {
    if matches!(error, PresetError::Stopped(_)) {
        return Err(error);
    }
    run.warn(format!("`{name}` failed: {error}"));
    failed.push((name.to_owned(), error));
    Ok(())
}

/// What is told in the end when some failed.
fn failure(failed: &[(String, PresetError)], total: usize, updated: &[String]) -> PresetError {
    let told: Vec<String> = failed.iter().map(|(name, error)| format!("`{name}`: {error}")).collect();
    PresetError::Refused(format!(
        "{} of {total} presets failed and stay as they were, {} were updated: {}",
        failed.len(),
        updated.len(),
        told.join("; ")
    ))
}

/// Fetches a revision's object into the new file `to`; exactly the bytes that the pointer tells.
pub(super) async fn download(
    run: &Run,
    branch: &Branch,
    name: &str,
    revision: &Revision,
    to: &std::path::Path,
) -> Result<(), PresetError> {
    let doing = |e| PresetError::file(&format!("writing {}", to.display()), e);
    let key = branch.key(name, &revision.object);
    let mut opened = run.unless_stopped(branch.store.open(&key, 0)).await??;
    let mut file =
        tokio::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(to).await.map_err(doing)?;
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    while run
        .unless_stopped(opened.body.read_buf(&mut piece))
        .await?
        .map_err(|e| crate::storage::StorageError::of_reading(e, &key, branch.store.shown()))?
        > 0
    {
        digest.update(&piece);
        size += piece.len() as u64;
        if size > revision.size {
            break;
        }
        file.write_all(&piece).await.map_err(doing)?;
        run.progress(|p| (p.bytes, p.bytes_total) = (size, revision.size));
        piece.clear();
    }
    file.flush().await.map_err(doing)?;
    file.sync_all().await.map_err(doing)?;
    if (size, hex(&digest.finalize())) != (revision.size, revision.sha256.clone()) {
        return Err(PresetError::Refused(format!(
            "`{key}` in {} is not what its pointer tells: its SHA-256 differs",
            branch.store.shown()
        )));
    }
    Ok(())
}
