//! Backups: an archive leaves for a store if and only if business data changed.
//!
//! A run opens one snapshot and asks, from cheap to dear, whether what it shows differs from the newest
//! archive: no transaction since ([`reading`]), equal definitions and equal rows of the business tables
//! ([`schema`], [`survey`]). If it does, everything that is archived is read in that same snapshot.
//!
//! What an interruption leaves, step by step; every time the next run goes on by itself:
//!
//! ```text
//! compare     nothing
//! stream      nothing that shows; open uploads end with the run, or after a day
//! announced   nothing that shows; the baseline's note is dropped
//! finished    an archive without manifest, which no verb lists; completed from the baseline's note
//! manifest    a complete archive; the baseline advances from its note
//! baseline    (done) the second store gets its copy
//! ```
//!
//! - [`name`]: names of archives and of what stands beside them
//! - [`manifest`]: what an archive holds, and the mark that it is complete
//! - [`shelf`]: the archives of one database in one store
//! - [`baseline`]: what the next run compares with
//! - `archive`: making one: [`dump`] and [`fixture`] → [`tar`] → [`squeeze`] → seal → store
//! - [`watchdog`]: who is told of a run
//! - [`settings`]: all of it, configured
//!
//! The other way, on a machine with the private key:
//!
//! - [`choice`]: which archive is meant, and [`keys`]: what opens it
//! - [`opening`]: reading one: store → key → decompression → tar → members
//! - [`restore`]: into a database ([`landing`]) by SQL ([`psql`]) or fixtures ([`loading`])
//! - [`drill`]: the proof that it restores, kept as [`verified`]
//! - [`retention`]: which archives stay, and [`prune`]: removing the others
//! - [`local`]: archives as files here
//! - [`freshness`]: whether there is a young one
//! - [`destination`]: where to, configured

mod archive;
pub mod baseline;
pub mod choice;
mod columns;
pub(crate) mod demands;
pub mod destination;
pub mod drill;
pub mod dump;
pub mod fixture;
pub mod freshness;
pub mod keys;
pub mod landing;
pub mod loading;
pub mod local;
pub mod manifest;
pub mod name;
pub mod opening;
pub mod pattern;
mod properties;
pub mod prune;
pub mod psql;
pub mod reading;
mod report;
pub mod restore;
pub mod retention;
mod roles;
mod rows;
pub mod schema;
pub mod settings;
pub mod shelf;
pub mod squeeze;
mod stages;
pub mod survey;
mod table_shape;
pub mod tar;
mod unlocked;
pub(crate) mod unsqueeze;
mod untar;
pub mod verified;
pub mod watchdog;

use std::path::PathBuf;

use chrono::Utc;
use serde_json::json;

use crate::postgres::{Database, PostgresError};
use crate::replication::settings::TableName;
use crate::seal::{Seal, SealError};
use crate::storage::StorageError;
use crate::worker::Run;
use crate::worker::run::Stopped;

pub use report::{Ending, Report};

use archive::{Made, Task};
use baseline::{BaselineError, Held, State};
use dump::DumpError;
use fixture::{FixtureError, Group};
use manifest::Reason;
use name::{Compression, Name, Sealing};
use pattern::Business;
use reading::{Begun, Reading};
use shelf::{Shelf, ShelfError};
use squeeze::SqueezeError;
use stages::Stages;
use watchdog::Watchdog;

/// Why there is an archive though nothing is seen to differ.
const OTHER_DATABASE: &str =
    "the database took the place of the newest archive's (restored, or on another server), and not all can be compared with that";

/// What is backed up, and how.
#[derive(Clone, Debug)]
pub struct Backup {
    /// The database.
    pub source: Database,
    /// Where archives go.
    pub shelf: Shelf,
    /// Where they go too.
    pub second: Option<Shelf>,
    /// Which tables count.
    pub business: Business,
    /// Which are fixtures too.
    pub groups: Vec<Group>,
    /// How archives are made smaller.
    pub compression: Compression,
    /// And how much.
    pub level: u32,
    /// Who can open them; none: everybody, because somebody chose so.
    pub seal: Option<Seal>,
    /// Directory of pg_dump; none: it is looked for.
    pub programs: Option<PathBuf>,
    /// Whom to tell.
    pub watchdog: Watchdog,
}

/// What a person asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// An archive even if nothing changed.
    pub force: bool,
    /// Words to be kept with it.
    pub annotation: Option<String>,
}

/// Why there is no archive, or not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The source.
    #[error("reading the database")]
    Postgres(#[from] PostgresError),
    /// A store.
    #[error("storing the archive")]
    Storage(#[from] StorageError),
    /// What a store holds.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// The baseline.
    #[error("keeping the baseline")]
    Baseline(#[from] BaselineError),
    /// `pg_dump`.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A fixture.
    #[error("making the fixtures")]
    Fixture(#[from] FixtureError),
    /// Encryption.
    #[error("encrypting the archive")]
    Seal(#[from] SealError),
    /// Compression.
    #[error(transparent)]
    Squeeze(#[from] SqueezeError),
    /// The archive is in the first store, and not in the second.
    #[error("the archive {archive} is in {first}, but its copy did not reach {second}; the next run copies it again")]
    Second {
        /// Which.
        archive: Name,
        /// Where it is.
        first: String,
        /// Where it is not.
        second: String,
        /// Why.
        #[source]
        source: Box<BackupError>,
    },
    /// The configuration names nothing that could change.
    #[error(
        "BACKUP_TABLES and BACKUP_EXCLUDE_TABLES leave no table of the database as a business table, so no change would ever be noticed"
    )]
    NoBusiness,
    /// Archives of two databases would be taken for each other's.
    #[error(
        "the archives in {place} are of database `{theirs}`, and this is `{ours}`; give each database a BACKUP_PREFIX of its own"
    )]
    OtherDatabase {
        /// Store and prefix.
        place: String,
        /// Whose archives are there.
        theirs: String,
        /// What is to be backed up.
        ours: String,
    },
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl BackupError {
    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            BackupError::NoBusiness
                | BackupError::OtherDatabase { .. }
                | BackupError::Fixture(FixtureError::Unknown { .. } | FixtureError::UnknownColumn { .. })
                | BackupError::Baseline(BaselineError::Newer(_))
        )
    }

    /// Whether it only says that another part of the stream failed.
    fn is_given_up(&self) -> bool {
        matches!(
            self,
            BackupError::Squeeze(SqueezeError::GivenUp)
                | BackupError::Dump(DumpError::Squeeze(SqueezeError::GivenUp))
                | BackupError::Fixture(FixtureError::Squeeze(SqueezeError::GivenUp))
        )
    }
}

/// What the comparison came to.
enum Decision {
    Unchanged { reason: &'static str, refreshed: Option<State> },
    Archive { tables: Vec<survey::Table>, state: State, reason: Reason, told: String, changed: Vec<String>, definitions: bool },
}

impl Backup {
    /// How archives are closed.
    #[must_use]
    pub fn sealing(&self) -> Sealing {
        match &self.seal {
            Some(Seal::Age(_)) => Sealing::Age,
            Some(Seal::Gpg(_)) => Sealing::Gpg,
            None => Sealing::Plain,
        }
    }

    /// What archives are besides what the database holds, in words, for comparing.
    fn form(&self) -> String {
        let groups: Vec<String> = self.groups.iter().map(Group::told).collect();
        let recipients = self.seal.as_ref().map(Seal::recipients).unwrap_or_default();
        format!("for {} with {}", recipients.join(", "), groups.join("; "))
    }

    /// Who can open archives; nobody is named where everybody can.
    ///
    /// # Errors
    /// When nothing could be encrypted for them.
    pub async fn recipients(&self) -> Result<Vec<String>, SealError> {
        match &self.seal {
            Some(seal) => {
                seal.check().await?;
                Ok(seal.recipients())
            }
            None => Ok(Vec::new()),
        }
    }

    /// One run: an archive if there has to be one. Tells the watchdog.
    ///
    /// # Errors
    /// When there should be an archive, or a copy of it in the second store, and is none. What was archived before
    /// is as it was.
    pub async fn take(&self, run: &Run, request: &Request) -> Result<Report, BackupError> {
        let mut stages = Stages::start();
        run.progress(|p| "snapshot".clone_into(&mut p.phase));
        let begun = run.unless_stopped(reading::begin(&self.source)).await?;
        let reading = match begun {
            Ok(Begun::Reading(reading)) => *reading,
            Ok(Begun::Busy(who)) => {
                run.info(format!("skipped: {who}"));
                return Ok(Report::new(Ending::Skipped, who, None));
            }
            Err(error) => {
                self.watchdog.failed(run, self.watchdog.started(run), &error.to_string()).await;
                return Err(error.into());
            }
        };
        stages.end(run, "snapshot");
        let underway = self.watchdog.started(run);
        let result = self.work(run, request, reading, &mut stages).await;
        match result {
            Ok(mut report) => {
                report.milliseconds = stages.total();
                report.stages = stages.laps.iter().map(|(stage, ms)| ((*stage).to_owned(), json!(ms))).collect();
                if report.result != Ending::Skipped {
                    self.watchdog.succeeded(run, underway).await;
                }
                Ok(report)
            }
            // Neither success nor failure: the job is handed back, or somebody cancelled it.
            Err(error @ BackupError::Stopped(_)) => Err(error),
            Err(error) => {
                let mut reason = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(inner) = source {
                    reason.push_str(&format!(": {inner}"));
                    source = inner.source();
                }
                self.watchdog.failed(run, underway, &reason).await;
                Err(error)
            }
        }
    }

    async fn work(&self, run: &Run, request: &Request, reading: Reading, stages: &mut Stages) -> Result<Report, BackupError> {
        let started_at = Utc::now();
        let mut held = run.unless_stopped(Held::read(&self.shelf)).await??;
        if let Some(remark) = held.remark.take() {
            run.warn(remark);
        }
        // Reads the archive back, which may take long; dropped in the middle it is as if it had not begun.
        match run.unless_stopped(held.heal(&self.shelf)).await? {
            Ok(Some(archive)) => {
                run.info(format!("completed the archive {archive}, which an earlier run had uploaded when it ended"));
            }
            Ok(None) => {}
            Err(BaselineError::Raced) => return Ok(raced(run)),
            Err(error) => return Err(error.into()),
        }
        if let Some(theirs) = held.baseline.database.as_ref().filter(|theirs| **theirs != reading.origin.name) {
            let place = self.shelf.shown();
            return Err(BackupError::OtherDatabase { place, theirs: theirs.clone(), ours: reading.origin.name.clone() });
        }
        let decision = run.unless_stopped(self.decide(run, request, &reading, &held)).await??;
        stages.end(run, "compare");
        let report = match decision {
            Decision::Unchanged { reason, refreshed } => {
                if let Some(state) = refreshed {
                    self.refresh(run, &mut held, state).await;
                }
                run.info(format!("digests match: nothing to archive, for {reason}"));
                Report::new(Ending::Unchanged, reason, held.baseline.archive)
            }
            Decision::Archive { tables, state, reason, told, changed, definitions } => {
                run.info(format!("an archive is made: {told}"));
                let annotation = request.annotation.clone();
                let task = Task {
                    reading: &reading,
                    tables: &tables,
                    state,
                    reason,
                    changed,
                    definitions_changed: definitions,
                    annotation,
                    started_at,
                };
                match archive::make(self, run, task, &mut held, stages).await? {
                    Made::Raced => return Ok(raced(run)),
                    Made::Complete(manifest) => {
                        run.info_with(
                            format!("archived {}: {} bytes uploaded", manifest.archive, manifest.stored.bytes),
                            json!({"archive": manifest.archive.to_string(), "bytes": manifest.stored.bytes}),
                        );
                        Report::archived(*manifest, told)
                    }
                }
            }
        };
        // The snapshot holds back the source's housekeeping; copying may take long and needs none.
        drop(reading);
        if let (Some(second), Some(archive)) = (&self.second, report.archive) {
            self.copy_to(second, archive, run, stages).await?;
        }
        Ok(report)
    }

    async fn decide(&self, run: &Run, request: &Request, reading: &Reading, held: &Held) -> Result<Decision, BackupError> {
        let before = &held.baseline;
        let there = match before.archive {
            Some(archive) => self.shelf.holds(archive).await?,
            None => false,
        };
        let known = before.state.as_ref().filter(|_| there);
        let (business, form) = (self.business.told(), self.form());
        // What was not noted, by an earlier version, is taken for the same.
        let other_form = known.is_some_and(|state| !state.form.is_empty() && state.form != form);
        if let Some(state) = known
            && !request.force
            && !other_form
            && state.business == business
            && reading.position.is_some()
            && state.position == reading.position
        {
            return Ok(Decision::Unchanged { reason: "there was no transaction since the last run", refreshed: None });
        }
        if let Some(degraded) = &reading.degraded {
            run.info(degraded.clone());
        }
        let tables = survey::tables(reading, &self.business).await?;
        if !tables.is_empty() && !tables.iter().any(|table| table.business) && !self.business.is_everything() {
            return Err(BackupError::NoBusiness);
        }
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        for pattern in self.business.idle(&names) {
            run.warn(format!("`{pattern}` of BACKUP_TABLES or BACKUP_EXCLUDE_TABLES names no table"));
        }
        let catalogue = schema::catalogue(&reading.session).await?;
        let (seen, comparable) = survey::look(run, &reading.session, &tables, &self.business).await?;
        let state = State { position: reading.position.clone(), catalogue, tables: seen, business, form };
        let archive = |state, reason, told: String, changed, definitions| {
            Ok(Decision::Archive { tables, state, reason, told, changed, definitions })
        };
        let Some(known) = known else {
            let told = match before.archive {
                None if self.shelf.archives().await?.is_empty() => "there is none yet".to_owned(),
                None => "what the newest one held is not known any more: the baseline is lost".to_owned(),
                Some(gone) => format!("the newest one, {gone}, is not in the store any more, or not whole"),
            };
            return archive(state, Reason::First, told, Vec::new(), false);
        };
        let changed = survey::differences(&known.tables, &state.tables);
        let mut definitions = known.catalogue != state.catalogue;
        let mut other_database = false;
        if definitions && let Some(archive) = before.archive {
            // Objects of another database have other numbers, so the catalogue differs whether anything was defined otherwise or
            // not. The text tells, but not all: rights, owners and comments are not in it. So it decides what is said, never
            // that nothing changed.
            let manifest = self.shelf.manifest(archive).await?;
            other_database = reading.origin.is_other_than(&manifest.database);
            if other_database {
                let alike = restore::major(&manifest.database.server_version) == reading.major();
                definitions = alike && schema::definitions(&reading.session).await? != manifest.schema_sha256;
            }
        }
        if request.force {
            return archive(state, Reason::Forced, "somebody asked for it".to_owned(), changed, definitions);
        }
        if !changed.is_empty() || definitions || other_database {
            let mut told = Vec::new();
            if !changed.is_empty() {
                told.push(format!("changed: {}", changed.join(", ")));
            }
            if definitions {
                told.push(if changed.is_empty() { "definitions changed" } else { "definitions too" }.to_owned());
            }
            if other_database {
                told.push(OTHER_DATABASE.to_owned());
            }
            return archive(state, Reason::Changed, told.join("; "), changed, definitions);
        }
        if other_form {
            let told = "archives are for others than the newest one, or have other fixtures".to_owned();
            return archive(state, Reason::Changed, told, changed, definitions);
        }
        if !comparable {
            let told =
                "there are large objects that the role may not read, and a transaction since the newest archive".to_owned();
            return archive(state, Reason::Changed, told, changed, definitions);
        }
        let noted = (&state.position, &state.business, &state.form) == (&known.position, &known.business, &known.form);
        let refreshed = (state.position.is_some() && !noted).then_some(state);
        Ok(Decision::Unchanged { reason: "definitions and business tables are those of the newest archive", refreshed })
    }

    /// Lets the next run see at once that there was no transaction since this one.
    async fn refresh(&self, run: &Run, held: &mut Held, state: State) {
        held.baseline.state = Some(state);
        // What was proven stays proven; only the next comparison is dearer.
        match held.write(&self.shelf).await {
            Ok(()) => {}
            Err(BaselineError::Raced) => run.info("another run wrote the baseline meanwhile"),
            Err(error) => run.warn(format!("the baseline was not refreshed: {error}")),
        }
    }

    /// Sees to it that the second store has the newest archive.
    async fn copy_to(&self, second: &Shelf, archive: Name, run: &Run, stages: &mut Stages) -> Result<(), BackupError> {
        let copying = async {
            if second.holds(archive).await? {
                return Ok(());
            }
            run.progress(|p| "copy to the second store".clone_into(&mut p.phase));
            let manifest = self.shelf.manifest(archive).await?;
            second.copy_from(&self.shelf, &manifest).await?;
            run.info(format!("copied {archive} to {}", second.shown()));
            stages.end(run, "copy to the second store");
            Ok(())
        };
        run.unless_stopped(copying).await?.map_err(|source: BackupError| BackupError::Second {
            archive,
            first: self.shelf.shown(),
            second: second.shown(),
            source: Box::new(source),
        })
    }
}

/// Past the lock, on another server, somebody else was faster.
fn raced(run: &Run) -> Report {
    let reason = "another run wrote the baseline at the same time";
    run.info(format!("skipped: {reason}"));
    Report::new(Ending::Skipped, reason, None)
}

/// Bytes as people compare digests.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
