//! `push-new` and `push-ex`: what the cluster holds becomes a revision.
//!
//! 1. everything is checked that can be · 2. the dump is written to a sealed file here · 3. the file is stored under a name of its own
//!    · 4. what is about to be decided is noted here · 5. the pointer is made or advanced · 6. log, lock, notes
//!
//! Step 5 decides, by If-None-Match and If-Match. Killed before it: nothing was pushed, and an object that no pointer names is left.
//! Killed after it: the next push of the preset from here sees by its note that it was ours, and does step 6.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::cluster::Cluster;
use super::local::{Local, Note, Pending, Selected};
use super::remote::{Branch, Known, Pointer, Revision, lost, now};
use super::sealed::{self, Key, Made};
use super::{Done, PresetError, Presets, journal, lock};
use crate::backup::name::Compression;
use crate::worker::Run;

const PIECE: usize = 1 << 20;
/// Digits of an object's SHA-256 in its name.
const DIGITS: usize = 16;

/// What is pushed, but for what comes of the dump.
pub(super) struct Push<'a> {
    pub(super) name: &'a str,
    pub(super) who: &'a str,
    pub(super) what: &'a str,
    /// The pointer as it was read; none when there was none.
    pub(super) known: Option<Known>,
    pub(super) compression: Compression,
    pub(super) dump_version: Option<String>,
    pub(super) key_id: String,
    /// Whether it is what the cluster holds, which is then known to be this preset.
    pub(super) of_cluster: bool,
}

impl Presets {
    pub(super) async fn push_new(&self, run: &Run, name: &str, who: &str, what: &str) -> Result<Done, PresetError> {
        let (branch, key, local) = (self.branch()?, self.key()?, Local::open(&self.settings)?);
        let _held = local.hold()?;
        if let Some(done) = self.settle(&branch, &local, name).await? {
            return Ok(done);
        }
        let known = self.absent(&branch, &key, name).await?;
        self.push(run, &branch, &local, &key, Push { name, who, what, known, ..self.form(&key) }).await
    }

    pub(super) async fn push_ex(
        &self,
        run: &Run,
        name: &str,
        who: &str,
        what: &str,
        lock_key: Option<&str>,
        any_base: bool,
    ) -> Result<Done, PresetError> {
        let (branch, key, local) = (self.branch()?, self.key()?, Local::open(&self.settings)?);
        let _held = local.hold()?;
        self.settle(&branch, &local, name).await?;
        let (known, current) = branch.present(name).await?;
        lock::check(&branch, name, lock_key).await?;
        local.check_base(name, &current)?;
        if !any_base {
            local.check_holds(name)?;
        }
        if current.key_id != key.id {
            return Err(PresetError::Refused(format!(
                "`{name}` is encrypted for another key than that in {}; take the branch's key",
                self.settings.key_file.display()
            )));
        }
        let done = self.push(run, &branch, &local, &key, Push { name, who, what, known: Some(known), ..self.form(&key) }).await?;
        if let Some(lock_key) = lock_key {
            lock::release(&branch, name, lock_key).await?;
        }
        Ok(done)
    }

    fn form(&self, key: &Key) -> Push<'static> {
        let compression = self.settings.compression;
        Push {
            name: "",
            who: "",
            what: "",
            known: None,
            compression,
            dump_version: None,
            key_id: key.id.clone(),
            of_cluster: true,
        }
    }

    /// The deleted pointer that a new preset takes the place of; refuses when there is a preset, or the branch has another key.
    pub(super) async fn absent(&self, branch: &Branch, key: &Key, name: &str) -> Result<Option<Known>, PresetError> {
        let known = branch.pointer(name).await?;
        if let Some(current) = known.as_ref().and_then(Known::current) {
            let (revision, who, at) = (current.revision, &current.who, &current.at);
            return Err(PresetError::Refused(format!(
                "`{name}` is in {} already (revision {revision} by {who} at {at}); push-ex makes its next revision",
                branch.shown()
            )));
        }
        let others = branch.existing().await?.there;
        if !others.is_empty() && !others.iter().any(|(_, known)| known.current().is_some_and(|current| current.key_id == key.id))
        {
            return Err(PresetError::Refused(format!(
                "the presets in {} are encrypted for another key than that in {}; take the branch's key",
                branch.shown(),
                self.settings.key_file.display()
            )));
        }
        Ok(known)
    }

    /// What a push from here decided before it was killed is finished; tells it when there was one.
    async fn settle(&self, branch: &Branch, local: &Local, name: &str) -> Result<Option<Done>, PresetError> {
        let Some(pending) = local.pending(name)? else { return Ok(None) };
        let known = branch.pointer(name).await?;
        let ours = known.as_ref().and_then(|known| {
            let revision = known.pointer.revisions.iter().rev().find(|revision| revision.sha256 == pending.sha256)?;
            Some((&known.pointer, revision))
        });
        let done = match ours {
            Some((pointer, revision)) => {
                let still = pending.of_cluster == Some(local.selected()?);
                finish(branch, local, name, pointer, revision, still).await?;
                let said = format!(
                    "revision {} of `{name}` had been stored by a run that was cut off ({}); push-ex stores what came later",
                    revision.revision, revision.at
                );
                Some(Done::said(said, json!({"name": name, "revision": revision.revision})))
            }
            None => None,
        };
        local.write_pending(name, None)?;
        Ok(done)
    }

    async fn push(&self, run: &Run, branch: &Branch, local: &Local, key: &Key, mut push: Push<'_>) -> Result<Done, PresetError> {
        let selected = local.selected()?;
        if selected.scratch {
            return Err(PresetError::Refused(
                "the cluster holds what pull-and-update-local or an unfinished select left, which is nobody's preset; select one first (or `db-p init`, when you filled it yourself)"
                    .to_owned(),
            ));
        }
        let cluster = Cluster::new(&self.settings, run, local);
        cluster.check().await?;
        cluster.check_whole().await?;
        local.tidy(&[])?;
        let tools = cluster.tools().await?;
        push.dump_version = Some(tools.version.clone());
        let file = local.files().join(format!("push-{}", push.name));
        cluster.phase("dump");
        let mut child = cluster.dump(&tools)?;
        let made = sealed::write(run, key, push.compression, &mut child.stdout, &file).await;
        let made = match (made, child.last_words().await.result) {
            // Its own words tell more than the end that is missing.
            (Err(error @ PresetError::Stopped(_)), _) => Err(error),
            (_, Err(error)) => Err(error.into()),
            (made, Ok(())) => made,
        };
        let pushed = match made {
            Ok(made) => self.store(run, branch, local, &push, &file, &made).await,
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_file(&file);
        pushed
    }

    /// Stores a sealed file as the preset's next revision.
    pub(super) async fn store(
        &self,
        run: &Run,
        branch: &Branch,
        local: &Local,
        push: &Push<'_>,
        file: &Path,
        made: &Made,
    ) -> Result<Done, PresetError> {
        let name = push.name;
        let mut pointer = push.known.as_ref().map_or_else(Pointer::default, |known| known.pointer.clone());
        let base = push.known.as_ref().and_then(|known| known.current()).map(|current| current.revision);
        let number = pointer.newest + 1;
        let object = format!("rev-{number}-{}", &made.sha256[..DIGITS]);
        run.progress(|p| {
            "upload".clone_into(&mut p.phase);
            p.bytes = 0;
        });
        upload(run, branch, &branch.key(name, &object), file).await?;
        let revision = Revision {
            revision: number,
            base,
            object: object.clone(),
            size: made.size,
            sha256: made.sha256.clone(),
            plain_size: made.plain,
            compression: push.compression,
            dump_version: push.dump_version.clone(),
            key_id: push.key_id.clone(),
            at: now(),
            who: push.who.to_owned(),
            what: push.what.to_owned(),
        };
        pointer.revisions.push(revision.clone());
        (pointer.newest, pointer.deleted) = (number, None);
        let of_cluster = if push.of_cluster { Some(local.selected()?) } else { None };
        local.write_pending(name, Some(&Pending { sha256: made.sha256.clone(), of_cluster }))?;
        run.checkpoint()?;
        if branch.point(name, &pointer, push.known.as_ref()).await?.is_none() && !self.is_ours(branch, name, made).await? {
            local.write_pending(name, None)?;
            // Nobody names it, and nobody will.
            let _ = branch.store.remove(&branch.key(name, &object)).await;
            return Err(PresetError::Refused(format!(
                "somebody else pushed or locked `{name}` at the same moment; nothing of yours was stored"
            )));
        }
        finish(branch, local, name, &pointer, &revision, push.of_cluster).await?;
        local.write_pending(name, None)?;
        run.info(format!("stored revision {number} of `{name}`, {} bytes", made.size));
        Ok(Done::said(
            format!("stored revision {number} of `{name}`"),
            json!({"name": name, "revision": number, "size": made.size}),
        ))
    }

    /// An answer that got lost on its way: whether the pointer is the one that we wrote all the same.
    async fn is_ours(&self, branch: &Branch, name: &str, made: &Made) -> Result<bool, PresetError> {
        let known = branch.pointer(name).await?;
        Ok(known.is_some_and(|known| known.pointer.revisions.last().is_some_and(|revision| revision.sha256 == made.sha256)))
    }
}

/// Log and notes of a revision that was pushed from here.
async fn finish(
    branch: &Branch,
    local: &Local,
    name: &str,
    pointer: &Pointer,
    revision: &Revision,
    of_cluster: bool,
) -> Result<(), PresetError> {
    journal::write(branch, name, pointer, None).await?;
    let note = local.note(name)?.unwrap_or_default();
    local.write_note(name, &Note { revision: revision.revision, ..note })?;
    if !of_cluster {
        return Ok(());
    }
    local.select(&Selected {
        of: local.of().to_owned(),
        name: Some(name.to_owned()),
        revision: revision.revision,
        clean: true,
        scratch: false,
    })
}

/// Stores a file under a name that nobody else takes.
pub(super) async fn upload(run: &Run, branch: &Branch, key: &str, file: &Path) -> Result<(), PresetError> {
    let doing = |e| PresetError::file(&format!("reading {}", file.display()), e);
    let sent = async {
        let mut source = tokio::fs::File::open(file).await.map_err(doing)?;
        let size = source.metadata().await.map_err(doing)?.len();
        let mut upload = branch.store.upload(key).await?;
        loop {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            if source.read_buf(&mut piece).await.map_err(doing)? == 0 {
                break;
            }
            upload.write(Bytes::from(piece)).await?;
            run.progress(|p| (p.bytes, p.bytes_total) = (upload.sent(), size));
        }
        match upload.finish().await {
            Ok(_) => Ok(()),
            // The name holds the content's digest: an earlier try stored the same bytes.
            Err(error) if lost(&error) => Ok(()),
            Err(error) => Err(PresetError::from(error)),
        }
    };
    run.unless_stopped(sent).await?
}
