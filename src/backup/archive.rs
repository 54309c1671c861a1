//! Making one archive: dump, fixtures → tar → smaller → closed → stores, as one stream.
//!
//! Nothing lies on a disk, and memory is bounded: each stage holds a few pieces and waits for the next one. Until
//! the store has the last byte nothing shows there; whatever ends the stream early ends the uploads too.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::baseline::{BaselineError, Held, State};
use super::dump::{self, Dump};
use super::fixture::{self, Fixture};
use super::manifest::{Content, FORMAT, Manifest, Member, MemberKind, Packing, Reason, Tools};
use super::name::Name;
use super::reading::Reading;
use super::squeeze::{self, Squeezed};
use super::stages::Stages;
use super::survey::{self, Table};
use super::tar::{PART, Tar};
use super::{Backup, BackupError, demands, hex, roles, schema};
use crate::seal::Sealer;
use crate::storage::{Fault, StorageError, Upload};
use crate::worker::Run;

/// How long giving up an upload may take: a run that is told to stop has little time.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Why and of what.
pub(super) struct Task<'t> {
    pub(super) reading: &'t Reading,
    pub(super) tables: &'t [Table],
    pub(super) state: State,
    pub(super) reason: Reason,
    pub(super) changed: Vec<String>,
    pub(super) definitions_changed: bool,
    pub(super) annotation: Option<String>,
    pub(super) started_at: DateTime<Utc>,
}

/// How it ended, when it did not fail.
pub(super) enum Made {
    /// Complete in the first store.
    Complete(Box<Manifest>),
    /// Another run was faster.
    Raced,
}

/// What went into the tar.
struct Collected {
    members: Vec<Member>,
    plain: Content,
    empty_groups: Vec<String>,
}

/// Uploads of the same bytes.
struct Uploads {
    first: Option<Box<dyn Upload>>,
    /// Lost when it fails: the archive is copied from the first store then.
    second: Option<Box<dyn Upload>>,
}

impl Uploads {
    async fn abort(&mut self, run: &Run) {
        for upload in [self.first.take(), self.second.take()].into_iter().flatten() {
            match tokio::time::timeout(GIVE_UP, upload.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => run.warn(format!("an upload was not given up in order; a later run does it: {error}")),
                Err(_) => run.warn(format!("an upload was not given up within {} s; a later run does it", GIVE_UP.as_secs())),
            }
        }
    }
}

/// Makes the archive and its manifest, and advances the baseline.
pub(super) async fn make(
    backup: &Backup,
    run: &Run,
    task: Task<'_>,
    held: &mut Held,
    stages: &mut Stages,
) -> Result<Made, BackupError> {
    let mut prepared = run.unless_stopped(prepare(backup, run, &task, held)).await??;
    let sealer = prepared.sealer.take();
    stages.end(run, "prepare");
    let key = backup.shelf.key(prepared.name, "");
    let mut uploads = Uploads { first: Some(backup.shelf.store.upload(&key).await?), second: None };
    if let Some(second) = &backup.second {
        match second.store.upload(&second.key(prepared.name, "")).await {
            Ok(upload) => uploads.second = Some(upload),
            Err(error) => run.warn(format!("the archive goes to the first store only for now: {error}")),
        }
    }
    let streamed = run.unless_stopped(stream(backup, run, &task, &prepared, sealer, &mut uploads)).await;
    let (collected, stored) = match streamed {
        Ok(Ok(streamed)) => streamed,
        Ok(Err(error)) => {
            uploads.abort(run).await;
            return Err(error);
        }
        Err(stopped) => {
            uploads.abort(run).await;
            return Err(stopped.into());
        }
    };
    stages.end(run, "collect and upload");
    let manifest = manifest(backup, &task, prepared, collected, stored);
    let made = finish(backup, run, manifest, task.state, held, &mut uploads).await;
    // What is left of them belongs to no archive.
    uploads.abort(run).await;
    stages.end(run, "confirm");
    made
}

/// Everything that can be wrong before the first byte is sent.
struct Prepared {
    name: Name,
    dump: Dump,
    fixtures: Vec<Fixture>,
    tables: Vec<super::manifest::Table>,
    large_objects: super::manifest::LargeObjects,
    schema_sha256: String,
    roles: Vec<String>,
    demands: super::manifest::Demands,
    sealer: Option<Sealer>,
}

async fn prepare(backup: &Backup, run: &Run, task: &Task<'_>, held: &Held) -> Result<Prepared, BackupError> {
    run.progress(|p| "prepare".clone_into(&mut p.phase));
    let client = &task.reading.session;
    let sealer = match &backup.seal {
        Some(seal) => Some(seal.start().await?),
        None => None,
    };
    let snapshot = task.reading.export().await?;
    let dump = Dump::prepare(backup.programs.as_deref(), task.reading, &snapshot).await?;
    let fixtures = fixture::prepare(client, &backup.groups).await?;
    let tables = survey::inventory(client, task.tables, &task.state.tables).await?;
    let large_objects = survey::large_objects_seen(client, &task.state.tables).await?;
    let wanted = Name::after(held.baseline.archive, task.started_at, backup.compression, backup.sealing());
    if wanted.at > task.started_at + Duration::from_secs(60) {
        run.warn(format!(
            "the newest archive is of {}, later than the clock here says: is one of the clocks wrong? The new one is called {wanted}",
            held.baseline.archive.map(|name| name.stamp()).unwrap_or_default()
        ));
    }
    let name = backup.shelf.free(wanted).await?;
    if let Some(done) = backup.shelf.tidy().await? {
        run.info(done);
    }
    let schema_sha256 = schema::definitions(client).await?;
    let (roles, demands) = (roles::names(client).await?, demands::of(client).await?);
    Ok(Prepared { name, dump, fixtures, tables, large_objects, schema_sha256, roles, demands, sealer })
}

async fn stream(
    backup: &Backup,
    run: &Run,
    task: &Task<'_>,
    prepared: &Prepared,
    sealer: Option<Sealer>,
    uploads: &mut Uploads,
) -> Result<(Collected, Content), BackupError> {
    let (feed, squeezed) = squeeze::start(backup.compression, backup.level);
    let seconds = u64::try_from(task.started_at.timestamp()).unwrap_or_default();
    let collecting = async {
        match collect(backup, run, task, prepared, Tar::new(feed, seconds)).await {
            // The other side gave up, and tells why.
            Err(error) if error.is_given_up() => std::future::pending().await,
            collected => collected,
        }
    };
    tokio::try_join!(collecting, send(run, squeezed, sealer, uploads))
}

async fn collect(
    backup: &Backup,
    run: &Run,
    task: &Task<'_>,
    prepared: &Prepared,
    mut tar: Tar,
) -> Result<Collected, BackupError> {
    tar.add("README", MemberKind::Readme, &readme(prepared)).await?;
    tar.add("roles.sql", MemberKind::Roles, &roles::script(&prepared.roles)).await?;

    run.progress(|p| "dump".clone_into(&mut p.phase));
    let mut stages = Stages::start();
    let mut member = tar.open(dump::MEMBER.to_owned(), MemberKind::Sql);
    prepared.dump.write(run, &backup.source, &mut member, 0).await?;
    let mut bytes = member.bytes();
    member.close().await?;
    command(run, &prepared.dump.text(), stages.end_quietly(), bytes);

    run.progress(|p| "fixtures".clone_into(&mut p.phase));
    let mut empty_groups = Vec::new();
    for fixture in &prepared.fixtures {
        if fixture.write(run, &task.reading.session, &mut tar, bytes).await? {
            let written = tar.last_bytes();
            bytes += written;
            command(run, &format!("fixture {}", fixture.group), stages.end_quietly(), written);
        } else {
            run.warn(format!("group `{}` has no rows and is left out", fixture.group));
            empty_groups.push(fixture.group.clone());
        }
    }
    run.progress(|p| "upload".clone_into(&mut p.phase));
    let (members, plain) = tar.close().await?;
    Ok(Collected { members, plain, empty_groups })
}

/// What was run, how long it took and how much came of it.
fn command(run: &Run, text: &str, milliseconds: u64, bytes: u64) {
    run.info_with(
        format!("{text}: {milliseconds} ms, {bytes} bytes"),
        json!({"command": text, "duration_ms": milliseconds, "bytes": bytes}),
    );
}

/// For a person who has nothing but the archive.
fn readme(prepared: &Prepared) -> String {
    format!(
        "This tar holds a PostgreSQL database as SQL, cut into parts, and perhaps some of its tables as JSON.\n\n\
         Restore the database into a new, empty one, with psql of pg_dump's version ({}) or newer:\n\n\
         \x20   createdb copy\n\
         \x20   tar -xOf archive.tar --wildcards 'roles.sql.*' | psql -X -d copy\n\
         \x20   tar -xOf archive.tar --wildcards 'database.sql.*' | psql -X -1 -v ON_ERROR_STOP=1 -d copy\n\n\
         `roles.sql` makes the roles that the database refers to and the server lacks, unable to log in.\n\
         A JSON fixture for Django's loaddata: tar -xOf archive.tar --wildcards 'fixtures/NAME.json.*' > NAME.json\n",
        prepared.dump.version()
    )
}

async fn send(
    run: &Run,
    mut squeezed: Squeezed,
    mut sealer: Option<Sealer>,
    uploads: &mut Uploads,
) -> Result<Content, BackupError> {
    let mut digest = Sha256::new();
    let mut bytes = 0;
    loop {
        let piece = squeezed.next().await?;
        let end = piece.is_none();
        let sealed = match (piece, &mut sealer) {
            (Some(piece), None) => piece,
            (Some(piece), Some(sealer)) => sealer.write(&piece).await?,
            (None, sealer) => match sealer.take() {
                Some(sealer) => sealer.finish().await?,
                None => bytes::Bytes::new(),
            },
        };
        if !sealed.is_empty() {
            digest.update(&sealed);
            bytes += sealed.len() as u64;
            if let Some(second) = &mut uploads.second
                && let Err(error) = second.write(sealed.clone()).await
            {
                run.warn(format!("the second store is left behind, and gets a copy of the archive from the first one: {error}"));
                if let Some(upload) = uploads.second.take() {
                    let _ = tokio::time::timeout(GIVE_UP, upload.abort()).await;
                }
            }
            uploads.first.as_mut().expect("it is there until it is finished").write(sealed).await?;
        }
        if end {
            return Ok(Content { bytes, sha256: hex(&digest.finalize()) });
        }
    }
}

fn manifest(backup: &Backup, task: &Task<'_>, prepared: Prepared, collected: Collected, stored: Content) -> Manifest {
    Manifest {
        format: FORMAT,
        archive: prepared.name,
        started_at: task.started_at,
        finished_at: Utc::now(),
        annotation: task.annotation.clone(),
        reason: task.reason,
        changed_tables: task.changed.clone(),
        definitions_changed: task.definitions_changed,
        database: task.reading.origin.clone(),
        tools: Tools { bullwork: env!("CARGO_PKG_VERSION").to_owned(), pg_dump: prepared.dump.version().to_owned() },
        packing: Packing {
            compression: backup.compression,
            level: backup.level,
            sealing: backup.sealing(),
            recipients: backup.seal.as_ref().map(crate::seal::Seal::recipients).unwrap_or_default(),
            part_bytes: PART as u64,
        },
        members: collected.members,
        empty_groups: collected.empty_groups,
        tables: prepared.tables,
        large_objects: Some(prepared.large_objects),
        schema_sha256: prepared.schema_sha256,
        roles: prepared.roles,
        demands: Some(prepared.demands),
        plain: collected.plain,
        stored,
    }
}

/// From the last byte sent to the advanced baseline. Each step may be the last one of this process; the next run
/// goes on from the announcement.
async fn finish(
    backup: &Backup,
    run: &Run,
    manifest: Manifest,
    state: State,
    held: &mut Held,
    uploads: &mut Uploads,
) -> Result<Made, BackupError> {
    run.progress(|p| "confirm".clone_into(&mut p.phase));
    // Nothing shows yet, so a run that is told to stop can still leave without a trace.
    run.checkpoint()?;
    match held.announce(&backup.shelf, &manifest, &state).await {
        Err(BaselineError::Raced) => return Ok(Made::Raced),
        other => other?,
    }
    let first = uploads.first.take().expect("it is finished once");
    let confirmed = first.finish().await?;
    if confirmed.size != manifest.stored.bytes || hex(&confirmed.sha256) != manifest.stored.sha256 {
        let told = format!("the store has {} bytes where {} were sent", confirmed.size, manifest.stored.bytes);
        return Err(StorageError { doing: format!("confirming `{}`", manifest.archive), fault: Fault::Corrupt(told) }.into());
    }
    match held.complete(&backup.shelf, &manifest, state).await {
        Ok(()) => {}
        // The archive is complete all the same; the other run's baseline is younger than ours.
        Err(BaselineError::Raced) => run.warn("another run wrote the baseline meanwhile; the next run compares with that one"),
        Err(error) => return Err(error.into()),
    }
    if let (Some(second), Some(shelf)) = (uploads.second.take(), &backup.second) {
        let finished = async {
            second.finish().await?;
            shelf.complete(&manifest).await
        };
        if let Err(error) = finished.await {
            run.warn(format!("the second store is left behind, and gets a copy of the archive from the first one: {error}"));
        }
    }
    Ok(Made::Complete(Box::new(manifest)))
}
