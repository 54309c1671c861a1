//! The proof that an archive restores: it is restored into a scratch database and compared with its manifest.
//!
//! It needs a machine with the private key, and a server that scratch databases may be made on. Every table is counted; of
//! business tables, and of large objects where all tables are business, every value is compared, by the fingerprint that the
//! source's had; definitions are compared by their digest. The proof is put beside the archive only when all of that agrees. The scratch database is
//! dropped however the drill ends; one whose run was killed goes with the next drill.

use std::collections::BTreeMap;

use chrono::Utc;
use serde::Serialize;

use super::landing::DatabaseName;
use super::manifest::{self, Manifest};
use super::name::Name;
use super::opening::{self, OpenError};
use super::pattern::Business;
use super::reading::{self, Begun, Reading};
use super::restore::{Request, Restore, RestoreError, major};
use super::schema;
use super::survey::{self, BusinessRows};
use super::verified::Verified;
use crate::postgres::{Database, Doing, PostgresError, quote_identifier};
use crate::storage::StorageError;
use crate::worker::Run;
use crate::worker::run::Stopped;

/// What scratch databases are called.
const SCRATCH: &str = "bullwork_drill";
/// Those that a killed drill left: nobody is connected, and they are not of this moment.
const ABANDONED: &str = "select datname::text from pg_database d where datname like 'bullwork\\_drill\\_%' \
    and shobj_description(oid, 'pg_database') like 'bullwork: %' \
    and not exists (select from pg_stat_activity a where a.datid = d.oid)";
/// Differences that a message names.
const TOLD: usize = 8;

/// Why an archive is not proven.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// It does not restore.
    #[error("the archive does not restore")]
    Restore(#[from] RestoreError),
    /// It cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It restores to something else.
    #[error("the restored archive {archive} is not what its manifest tells: {differences}")]
    Differs {
        /// Which.
        archive: Name,
        /// What.
        differences: String,
    },
    /// The server.
    #[error("comparing the restored archive")]
    Postgres(#[from] PostgresError),
    /// The proof was not stored.
    #[error("the archive is proven, but the proof was not stored")]
    Proof(#[source] StorageError),
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DrillError {
    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            DrillError::Restore(error) => error.is_final(),
            DrillError::Open(error) => error.is_final(),
            DrillError::Differs { .. } => true,
            DrillError::Postgres(_) | DrillError::Proof(_) | DrillError::Stopped(_) => false,
        }
    }

    /// Whether it only says that the run was told to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        match self {
            DrillError::Restore(error) => error.is_stopped(),
            DrillError::Open(OpenError::Stopped(_)) | DrillError::Stopped(_) => true,
            _ => false,
        }
    }
}

/// How much was looked at without a restore.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Looked {
    /// Which archive.
    pub archive: Name,
    /// Bytes in the store, each of which was read.
    pub bytes: u64,
    /// Whether it was opened and each member compared; without a key only the stored bytes were.
    pub opened: bool,
}

impl Restore {
    /// Reads a whole archive and compares it with its manifest, without a database.
    ///
    /// # Errors
    /// When it is not what the manifest tells, or cannot be read.
    pub async fn verify(&self, run: &Run, archive: Name) -> Result<Looked, DrillError> {
        look(run, &self.shelf, &self.keys, archive).await
    }

    /// Restores an archive into a scratch database, compares, and stores the proof.
    ///
    /// # Errors
    /// When the archive is not proven; nothing is stored then.
    pub async fn drill(&self, run: &Run, archive: Name) -> Result<Verified, DrillError> {
        let begun = std::time::Instant::now();
        let manifest = run.unless_stopped(self.shelf.manifest(archive)).await?.map_err(OpenError::from)?;
        self.sweep(run).await?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let scratch = DatabaseName::derived(SCRATCH, &id);
        let request = Request { id, into: Some(scratch.to_string()), ..Request::default() };
        let plain = Restore { hook: None, ..self.clone() };
        let database = self.server.named(scratch.as_str());
        plain.restore(run, archive, &request).await?;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let compared = run.unless_stopped(compare(run, &database, &manifest)).await;
        if let Err(error) = drop_scratch(&self.server, scratch.as_str()).await {
            run.warn(format!("the scratch database `{scratch}` was not dropped; the next drill does it: {error}"));
        }
        let Compared { differences, fingerprints, large_objects, definitions, server_version } = compared??;
        if !differences.is_empty() {
            let more = differences.len().saturating_sub(TOLD);
            let mut told = differences[..differences.len().min(TOLD)].join("; ");
            if more > 0 {
                told.push_str(&format!("; and {more} more"));
            }
            return Err(DrillError::Differs { archive, differences: told });
        }
        let proof = Verified {
            format: Verified::FORMAT,
            archive,
            verified_at: Utc::now(),
            stored_sha256: manifest.stored.sha256.clone(),
            tables: manifest.tables.len() as u64,
            rows: manifest.tables.iter().map(|table| table.rows).sum(),
            fingerprints,
            large_objects,
            definitions,
            server_version,
            bullwork: env!("CARGO_PKG_VERSION").to_owned(),
            milliseconds,
        };
        proof.write(&self.shelf).await.map_err(DrillError::Proof)?;
        run.info(format!("{archive} is proven: {} tables, {} rows", proof.tables, proof.rows));
        Ok(proof)
    }

    /// Drops what killed drills left.
    async fn sweep(&self, run: &Run) -> Result<(), PostgresError> {
        let session = run.unless_stopped(self.server.connect("drill")).await;
        // A stop is noticed by whoever comes next.
        let Ok(session) = session else { return Ok(()) };
        let session = session?;
        for row in session.query(ABANDONED, &[]).await.doing(|| "looking for scratch databases".to_owned())? {
            let name: &str = row.get(0);
            match session.batch_execute(&format!("drop database if exists {}", quote_identifier(name))).await {
                Ok(()) => run.info(format!("dropped the scratch database `{name}`, which an earlier drill had left")),
                Err(error) => {
                    run.warn(format!("the scratch database `{name}` was not dropped: {}", crate::postgres::explain(&error)));
                }
            }
        }
        Ok(())
    }
}

/// Reads a whole archive; without a key its stored bytes.
///
/// # Errors
/// When it is not what the manifest tells, or cannot be read.
pub async fn look(run: &Run, shelf: &super::shelf::Shelf, keys: &super::keys::Keys, archive: Name) -> Result<Looked, DrillError> {
    let manifest = run.unless_stopped(shelf.manifest(archive)).await?.map_err(OpenError::from)?;
    let opened = opening::verify(run, shelf, &manifest, keys, true).await? == opening::Verified::Whole;
    if !opened {
        run.warn(format!("only the stored bytes of {archive} were compared, for RESTORE_AGE_KEY_FILE is not set"));
    }
    Ok(Looked { archive, bytes: manifest.stored.bytes, opened })
}

async fn drop_scratch(server: &Database, name: &str) -> Result<(), PostgresError> {
    let session = server.connect("drill").await?;
    let doing = || format!("dropping database `{name}`");
    session.batch_execute(&format!("drop database if exists {}", quote_identifier(name))).await.doing(doing)
}

/// What came of comparing.
struct Compared {
    differences: Vec<String>,
    fingerprints: u64,
    large_objects: u64,
    definitions: bool,
    server_version: String,
}

/// Compares the restored database with what the manifest tells of the source.
async fn compare(run: &Run, database: &Database, manifest: &Manifest) -> Result<Compared, PostgresError> {
    run.progress(|p| {
        "compare".clone_into(&mut p.phase);
        (p.done, p.total) = (0, manifest.tables.len() as u64);
    });
    let reading = match reading::begin(database).await? {
        Begun::Reading(reading) => *reading,
        Begun::Busy(who) => {
            return Err(PostgresError::Statement { doing: "reading the scratch database".to_owned(), reason: who });
        }
    };
    let expected: BTreeMap<String, &manifest::Table> = manifest.tables.iter().map(|table| (shown(table), table)).collect();
    let tables = survey::tables(&reading, &Business::everything()).await?;
    let mut seen = BusinessRows::new();
    for table in &tables {
        let name = table.name.to_string();
        if expected.get(&name).is_some_and(|table| table.fingerprint.is_some()) {
            seen.insert(name, table.look(&reading.session).await?);
        }
        run.progress(|p| p.done += 1);
    }
    let found = survey::inventory(&reading.session, &tables, &seen).await?;
    let found: BTreeMap<String, &manifest::Table> = found.iter().map(|table| (shown(table), table)).collect();
    let mut differences = Vec::new();
    let mut fingerprints = 0;
    for (name, wanted) in &expected {
        match found.get(name) {
            None => differences.push(format!("table `{name}` is missing")),
            Some(table) if table.rows != wanted.rows => {
                differences.push(format!("table `{name}` has {} rows instead of {}", table.rows, wanted.rows));
            }
            Some(table) => match (&table.fingerprint, &wanted.fingerprint) {
                (Some(found), Some(wanted)) if found == wanted => fingerprints += 1,
                // Old servers cannot make the newer form.
                (Some(found), Some(wanted)) if form(found) != form(wanted) => {
                    run.warn(format!(
                        "the values of `{name}` were not compared: their fingerprint is of another form ({})",
                        form(wanted)
                    ));
                }
                (Some(_), Some(_)) => differences.push(format!("the values of table `{name}` differ")),
                _ => {}
            },
        }
    }
    for (name, table) in &found {
        // A standby's archive has only the definitions of unlogged ones.
        let expected = expected.contains_key(name) || (manifest.database.standby && table.rows == 0);
        if !expected {
            differences.push(format!("table `{name}` is one too many"));
        }
    }
    let large_objects = large_objects(run, &reading, manifest, &mut differences).await?;
    let definitions = definitions(run, &reading, manifest, &mut differences).await?;
    let server_version = reading.origin.server_version.clone();
    Ok(Compared { differences, fingerprints, large_objects, definitions, server_version })
}

/// Compares the large objects; how many of them byte by byte.
async fn large_objects(
    run: &Run,
    reading: &Reading,
    manifest: &Manifest,
    differences: &mut Vec<String>,
) -> Result<u64, PostgresError> {
    let Some(wanted) = &manifest.large_objects else { return Ok(0) };
    let found = survey::large_objects(&reading.session, wanted.fingerprint.is_some()).await?;
    if found.objects != wanted.objects {
        differences.push(format!("there are {} large objects instead of {}", found.objects, wanted.objects));
        return Ok(0);
    }
    match (&found.fingerprint, &wanted.fingerprint) {
        (Some(found), Some(wanted)) if found != wanted => differences.push("the large objects differ".to_owned()),
        (Some(_), Some(_)) => return Ok(wanted.objects),
        (None, Some(_)) => run.warn(
            "the large objects were only counted: the role may not read pg_largeobject on the drill's server (a superuser may)",
        ),
        (_, None) => {}
    }
    Ok(0)
}

/// Compares the definitions, where both servers write them alike.
async fn definitions(
    run: &Run,
    reading: &Reading,
    manifest: &Manifest,
    differences: &mut Vec<String>,
) -> Result<bool, PostgresError> {
    let (here, there) = (reading.major(), major(&manifest.database.server_version));
    if here != there {
        run.warn(format!("definitions were not compared: the source is PostgreSQL {there}, the scratch database {here}"));
        return Ok(false);
    }
    if schema::definitions(&reading.session).await? != manifest.schema_sha256 {
        differences
            .push("definitions differ (`pg_dump --schema-only` of the source and of a restored copy tell which)".to_owned());
    }
    Ok(true)
}

fn form(fingerprint: &str) -> &str {
    fingerprint.split(':').next().unwrap_or_default()
}

fn shown(table: &manifest::Table) -> String {
    crate::replication::settings::TableName { schema: table.schema.clone(), name: table.name.clone() }.to_string()
}
