//! The definitions as one SQL script: written by `pg_dump`, executed in one go.

use std::path::Path;

use tokio_postgres::Transaction;
use tokio_postgres::error::ErrorPosition;

use super::ExportError;
use super::ledger::SCHEMA;
use crate::postgres::client_programs::{DumpError, PgDump, Script};
use crate::postgres::{Connection, Database, PostgresError, explain, server_major};

/// First server version with the setting `transaction_timeout`, which newer tools always write.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

/// The script that makes the definitions of `source` on the server of `writer`. `programs` is the
/// directory of pg_dump; none: it is looked for.
pub(super) async fn definitions(
    source: &Database,
    reader: &Connection,
    writer: &Connection,
    programs: Option<&Path>,
) -> Result<String, ExportError> {
    let program = PgDump::find(programs, server_major(reader).await?).await.map_err(DumpError::from)?;
    // Our own state there is no definition of the warehouse's.
    // Neither is what is being built beside the copy that serves, or served before.
    let what = ["--schema-only".to_owned(), format!("--exclude-schema={SCHEMA}|{SCHEMA}_(new|old*)_*")];
    Ok(script(&program.script(source, &what).await?, server_major(writer).await?))
}

/// The script as a server of version `target` knows its settings.
fn script(dump: &Script, target: u32) -> String {
    let unknown = |line: &str| target < TRANSACTION_TIMEOUT_SINCE && line.starts_with("SET transaction_timeout ");
    let settings: String = dump.settings.split_inclusive('\n').filter(|line| !unknown(line)).collect();
    settings + &dump.definitions
}

/// Executes the script. It changes settings of the session, which is used for nothing else.
pub(super) async fn apply(transaction: &Transaction<'_>, script: &str) -> Result<(), ExportError> {
    transaction.batch_execute(script).await.map_err(|error| {
        let near = match error.as_db_error().and_then(|db| db.position()) {
            Some(ErrorPosition::Original(position)) => format!(" near `{}`", line_at(script, *position)),
            _ => String::new(),
        };
        ExportError::Postgres(PostgresError::Statement {
            doing: format!("making the definitions in the catalogue{near}"),
            reason: explain(&error),
        })
    })
}

/// The line that holds the character `position`, counted from 1.
fn line_at(script: &str, position: u32) -> &str {
    let offset = script.char_indices().nth(position.saturating_sub(1) as usize).map_or(0, |(offset, _)| offset);
    let start = script[..offset].rfind('\n').map_or(0, |at| at + 1);
    script[start..].lines().next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_server_is_not_given_a_setting_that_it_does_not_know() {
        let set = "SET transaction_timeout = 0;\n";
        let dump = Script { settings: format!("SET lock_timeout = 0;\n{set}"), definitions: format!("AS $$\n{set}$$;\n") };
        assert_eq!(script(&dump, 15), format!("SET lock_timeout = 0;\nAS $$\n{set}$$;\n"));
        assert_eq!(script(&dump, 17).matches(set).count(), 2);
    }

    #[test]
    fn the_failing_line_is_shown() {
        assert_eq!(line_at("a\n  é bcd\ne", 7), "é bcd");
        assert_eq!(line_at("a", 100), "a");
    }
}
