//! The definitions as one SQL script: written by `pg_dump`, executed in one go.

use tokio_postgres::error::ErrorPosition;
use tokio_postgres::{Client, Transaction};

use super::ExportError;
use super::ledger::SCHEMA;
use crate::postgres::{Connection, Database, Doing, PostgresError, explain};
use crate::process::{ProcessError, Program};
use crate::redact::Secret;

/// `pg_dump` gives up on a table that is locked longer, in milliseconds.
const LOCK_WAIT: &str = "60000";
/// First server version with the setting `transaction_timeout`, which newer tools always write.
const TRANSACTION_TIMEOUT_SINCE: i32 = 17;

async fn major(client: &Client) -> Result<i32, PostgresError> {
    let number: i32 = client
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .await
        .doing(|| "asking for the server's version".to_owned())?
        .get(0);
    Ok(number)
}

/// The script that makes the definitions of `source` on the server of `writer`.
pub(super) async fn definitions(source: &Database, reader: &Connection, writer: &Connection) -> Result<String, ExportError> {
    let version = major(reader).await?;
    let output = Program::new("pg_dump")
        .args([
            "--schema-only",
            "--no-owner",
            "--no-privileges",
            "--no-password",
            "--encoding=UTF8",
            // Subscriptions hold passwords; none of these says anything about the data.
            "--no-publications",
            "--no-subscriptions",
            "--no-security-labels",
            "--no-tablespaces",
            &format!("--lock-wait-timeout={LOCK_WAIT}"),
            // Our own state there is no definition of the warehouse's.
            &format!("--exclude-schema={SCHEMA}"),
        ])
        .secret_env(source.client_environment())
        .secret_env([("LC_ALL", Secret::unremembered("C"))])
        .output()
        .await
        .map_err(|error| told(error, version))?;
    let text = String::from_utf8(output).map_err(|_| ExportError::Script("is not UTF-8"))?;
    script(&text, major(writer).await?)
}

/// Tells a missing and an old tool apart from other failures; `version` is the source server's.
fn told(error: ProcessError, version: i32) -> ExportError {
    match error {
        ProcessError::Missing(_) => ExportError::NoTool(version),
        ProcessError::Failed { stderr, .. } if stderr.contains("server version mismatch") => ExportError::OldTool(version),
        other => ExportError::Dump(other),
    }
}

/// The dump without what only `psql` understands, for a server of version `target`.
///
/// The only meta-commands are `\restrict <token>` near the start and `\unrestrict <token>` near the
/// end; the token is random, so no function body holds such a line. A dump without the end marker
/// of `pg_dump` was cut off.
fn script(dump: &str, target: i32) -> Result<String, ExportError> {
    let mut out = String::with_capacity(dump.len());
    let mut in_header = true;
    let mut end_of_restriction = None;
    let mut complete = false;
    for line in dump.split_inclusive('\n') {
        let bare = line.trim_end_matches('\n');
        if in_header {
            if let Some(token) = bare.strip_prefix("\\restrict ") {
                end_of_restriction = Some(format!("\\unrestrict {token}"));
                continue;
            }
            if target < TRANSACTION_TIMEOUT_SINCE && bare.starts_with("SET transaction_timeout ") {
                continue;
            }
            in_header = !bare.starts_with("-- Name: ");
        }
        if end_of_restriction.as_deref() == Some(bare) {
            continue;
        }
        complete |= bare == "-- PostgreSQL database dump complete";
        out.push_str(line);
    }
    if complete { Ok(out) } else { Err(ExportError::Script("has no end; it was cut off")) }
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

    const DUMP: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict aB3\n\nSET lock_timeout = 0;\nSET transaction_timeout = 0;\n\n--\n-- Name: f(); Type: FUNCTION\n--\nCREATE FUNCTION f() AS $$\n\\restrict aB3\nSET transaction_timeout = 0;\n\\unrestrict other\n$$;\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aB3\n\n";

    #[test]
    fn only_the_meta_commands_of_the_dump_itself_are_left_out() {
        let text = script(DUMP, 15).unwrap();
        assert_eq!(text.matches("\\restrict aB3").count(), 1, "the one in the function body stays");
        assert!(text.contains("\\unrestrict other") && !text.contains("\\unrestrict aB3"));
        assert_eq!(text.matches("SET transaction_timeout").count(), 1, "an older server does not know the setting");
        assert_eq!(script(DUMP, 17).unwrap().matches("SET transaction_timeout").count(), 2);
    }

    #[test]
    fn a_missing_or_old_tool_is_told_with_the_version_to_install() {
        let text = told(ProcessError::Missing("pg_dump".to_owned()), 17).to_string();
        assert!(text.contains("not installed") && text.contains("apt install postgresql-client-17"), "{text}");
        let failed = |stderr: &str| ProcessError::Failed {
            program: "pg_dump".to_owned(),
            status: "exit code 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let text = told(failed("pg_dump: error: aborting because of server version mismatch"), 18).to_string();
        assert!(text.contains("older than the server") && text.contains("version 18 or newer"), "{text}");
        assert!(told(failed("something else"), 18).to_string().contains("something else"));
    }

    #[test]
    fn a_dump_that_was_cut_off_is_refused() {
        assert!(script(&DUMP[..150], 15).unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn the_failing_line_is_shown() {
        assert_eq!(line_at("a\n  é bcd\ne", 7), "é bcd");
        assert_eq!(line_at("a", 100), "a");
    }
}
