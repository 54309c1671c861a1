//! Definitions only, from the warehouse into a catalogue database.
//!
//! Guarantees: readers of the catalogue see yesterday's definitions until one commit shows them
//! today's; any error of either side leaves yesterday's. What is gone from the source is gone from
//! the catalogue. Nothing but what an earlier export made is ever dropped (`ledger.rs`): when
//! something of somebody else's depends on it, or a table holds rows, the export fails and says so.
//!
//! Needs `pg_dump` of the source server's version or newer, and the right to create schemas in the
//! catalogue. The definitions are in memory once, as SQL text: a few megabytes for thousands of tables.

mod dump;
mod ledger;

use std::path::Path;

use crate::postgres::client_programs::DumpError;
use crate::postgres::same::same_database;
use crate::postgres::{Database, Doing, PostgresError};
use crate::worker::Run;

/// Why the definitions were not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// One database under two URLs.
    #[error("DB_SCHEMA_EXPORTER_DATABASE_TARGET is the warehouse itself; name another database")]
    SameDatabase,
    /// No dump of the definitions.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A table that would be dropped is in use.
    #[error(
        "{} rows, and a catalogue holds definitions only; let DB_SCHEMA_EXPORTER_DATABASE_TARGET name a database of its own, or empty them", .0.join(", ") + if .0.len() == 1 { " holds" } else { " hold" }
    )]
    Rows(Vec<String>),
    /// Somebody else's objects would be dropped.
    #[error("not made by the export, but dependent on what it replaces: {}; drop them or move them to another database", .0.join("; "))]
    Dependents(Vec<String>),
    /// The server of either side.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The run must stop.
    #[error(transparent)]
    Stopped(#[from] crate::worker::run::Stopped),
}

/// What an export did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Tables, views, types, functions and other objects in the catalogue now.
    pub objects: u64,
    /// Those of the last export that are gone.
    pub removed: u64,
}

/// Brings the definitions of `source` into `catalogue`. `programs` is the directory of pg_dump; none:
/// it is looked for.
///
/// # Errors
/// For any of the reasons of [`ExportError`]; the catalogue is as before then.
pub async fn export(
    run: &Run,
    source: &Database,
    catalogue: &Database,
    programs: Option<&Path>,
) -> Result<Exported, ExportError> {
    // Dropping the future kills pg_dump and closes the sessions, which rolls back.
    run.unless_stopped(export_unstopped(run, source, catalogue, programs)).await?
}

async fn export_unstopped(
    run: &Run,
    source: &Database,
    catalogue: &Database,
    programs: Option<&Path>,
) -> Result<Exported, ExportError> {
    let reader = source.connect("schema export").await?;
    let mut writer = catalogue.connect("schema export").await?;
    if same_database(&reader, &writer).await? {
        return Err(ExportError::SameDatabase);
    }
    run.progress(|p| "dump definitions".clone_into(&mut p.phase));
    let source_objects = ledger::objects(&*reader).await?;
    let script = dump::definitions(source, &reader, &writer, programs).await?;
    drop(reader);
    run.progress(|p| {
        "apply definitions".clone_into(&mut p.phase);
        p.bytes = script.len() as u64;
    });
    let transaction = writer.client_mut().transaction().await.doing(|| "beginning the transaction".to_owned())?;
    let earlier = ledger::open(&transaction, source_objects).await?;
    ledger::remove(&transaction, &earlier).await?;
    let before = ledger::objects(&transaction).await?;
    dump::apply(&transaction, &script).await?;
    let after = ledger::objects(&transaction).await?;
    let exported = ledger::close(&transaction, &earlier, &before, after).await?;
    transaction.commit().await.doing(|| "committing the definitions".to_owned())?;
    Ok(exported)
}
