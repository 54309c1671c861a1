//! Sessions of a run: their settings, and the source's snapshot, which two of them may share.

use futures_util::future::try_join_all;

use super::IncrementalError;
use super::watermark::SourceState;
use crate::postgres::{Connection, Doing, PostgresError, quote_literal};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// Longest wait for any lock, on either side. Long enough for a reader's transaction to end,
/// short enough that a forgotten session fails the job with a clear reason.
const LOCK_TIMEOUT: &str = "60s";
/// Longest wait of the session that looks ahead: without it the run goes on as well.
const AHEAD_LOCK_TIMEOUT: &str = "2s";
/// Text output that reads the same on every server, and nothing that ends a long transaction.
/// `row_security = off` turns silently filtered rows into an error.
const SOURCE_SESSION: &str = "set search_path = ''; set row_security = off; set statement_timeout = 0; \
     set idle_in_transaction_session_timeout = 0; set datestyle = 'ISO'; set intervalstyle = 'postgres'; \
     set timezone = 'UTC'; set bytea_output = 'hex'; set extra_float_digits = 3; set jit = off; set work_mem = '64MB'";
/// Compiling costs more than it saves: what is large here is read by COPY, and queries of the catalogue are estimated far too high.
/// The target's own `search_path` stays: its triggers may need it. `work_mem` holds the keys of two million rows; and of a
/// table of which one row in a hundred changed, those rows are looked up in a third of the time that reading it takes,
/// which the planner sees only where a page anywhere costs it little more than the next one.
const TARGET_SESSION: &str = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set datestyle = 'ISO'; \
     set intervalstyle = 'postgres'; set timezone = 'UTC'; set jit = off; set work_mem = '64MB'; set random_page_cost = 1.1";

/// Settings of a session with the source.
pub(super) async fn set_up_source(source: &Connection) -> Result<(), PostgresError> {
    set_up(source, SOURCE_SESSION, "source").await
}

/// Settings of a session with the target.
pub(super) async fn set_up_target(target: &Connection) -> Result<(), PostgresError> {
    set_up(target, TARGET_SESSION, "target").await
}

async fn set_up(connection: &Connection, settings: &str, side: &str) -> Result<(), PostgresError> {
    // Asked for, because servers of before 14 and 17 do not know them.
    const LIMITS: &str = "select set_config(name, '0', false) from pg_catalog.pg_settings where name in ('idle_session_timeout', 'transaction_timeout')";
    let all = format!("{settings}; set lock_timeout = '{LOCK_TIMEOUT}'; {LIMITS}");
    connection.batch_execute(&all).await.doing(|| format!("setting up the {side}'s session"))
}

/// Opens the source's transaction. The tables are locked before the snapshot is taken, so that
/// their definitions cannot differ from what the snapshot shows.
pub(super) async fn open_snapshot(source: &Connection, tables: &[TableName]) -> Result<SourceState, IncrementalError> {
    let begin = "begin isolation level repeatable read read only";
    source.batch_execute(begin).await.doing(|| "opening the source's transaction".to_owned())?;
    lock(source, tables).await?;
    Ok(SourceState::read(source).await?)
}

/// Locks the source's tables against changes of form. Sent one behind the other, without waiting for each answer.
async fn lock(source: &Connection, tables: &[TableName]) -> Result<(), PostgresError> {
    let locks = tables.iter().map(|table| async move {
        let lock = format!("lock table {} in access share mode", table.quoted());
        source.batch_execute(&lock).await.doing(|| format!("locking table `{table}` on the source against changes of form"))
    });
    try_join_all(locks).await.map(drop)
}

/// Has a second session join the snapshot of the first one, so that it can look ahead; none where it cannot, which costs time only.
///
/// It takes its locks at once. Later, one might have to wait behind somebody who waits for those of the first session, which
/// waits for what the second one sees: nobody but we could tell that they block each other.
pub(super) async fn join_snapshot(
    run: &Run,
    source: &Connection,
    ahead: Connection,
    tables: &[TableName],
) -> Result<Option<Connection>, PostgresError> {
    let doing = || "sharing the source's snapshot with a second session".to_owned();
    let snapshot: String = source.query_one("select pg_catalog.pg_export_snapshot()", &[]).await.doing(doing)?.get(0);
    let joined = async {
        let join = format!(
            "begin isolation level repeatable read read only; set transaction snapshot {}; set local lock_timeout = '{AHEAD_LOCK_TIMEOUT}'",
            quote_literal(&snapshot)
        );
        ahead.batch_execute(&join).await.doing(doing)?;
        lock(&ahead, tables).await
    };
    match joined.await {
        Ok(()) => Ok(Some(ahead)),
        Err(error) => {
            run.info(format!("one session reads the source, a second one cannot: {error}"));
            Ok(None)
        }
    }
}
