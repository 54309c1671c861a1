//! The source's definitions, by `pg_dump` of a version that knows the source.
//!
//! pg_dump reads in the exported snapshot, so definitions and rows are of one moment.

use super::archive::{self, Entry};
use crate::postgres::Database;
use crate::postgres::client_programs::PgDump;
use crate::replication::settings::TableName;

/// The definitions of everything in `source` as of `snapshot`. Tables in `unreadable` are left
/// out by the program itself, because it would ask for a lock that we have no right to.
pub(super) async fn definitions(
    program: &PgDump,
    source: &Database,
    snapshot: &str,
    unreadable: &[TableName],
) -> anyhow::Result<Vec<Entry>> {
    let mut what = vec!["--schema-only".to_owned(), format!("--snapshot={snapshot}")];
    // A quoted pattern is exact: case, `*`, `?` and `.` are literal.
    what.extend(unreadable.iter().map(|t| format!("--exclude-table={}", t.quoted())));
    Ok(archive::read(&program.archive(source, &what).await?)?)
}
