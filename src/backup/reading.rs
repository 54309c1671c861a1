//! The session that a run reads the source with: one transaction, one snapshot, one lock.
//!
//! The lock is the transaction's own (an advisory one, for the database), so it is free again the moment this
//! process or its connection dies, and no pooler can leave it behind. Nothing is ever written.

use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;

use super::manifest::Origin;
use crate::postgres::{Connection, Database, Doing, PostgresError, explain};

/// The lock's key: `bull` in ASCII, then 2 (1 is for those who write a database).
const KEY: (i32, i32) = (0x6275_6c6c, 2);

/// First server version whose rows can be hashed whole.
pub(super) const ROW_HASH_SINCE: i32 = 140_000;
/// First server version that calls it `pg_current_snapshot`.
const CURRENT_SNAPSHOT_SINCE: i32 = 130_000;

const SERVER: &str = "select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), \
    d.oid, d.datname::text, pg_encoding_to_char(d.encoding)::text, pg_postmaster_start_time()::text \
    from pg_database d where d.datname = current_database()";
const SYSTEM: &str = "select system_identifier::text from pg_control_system()";
/// Values print the same whatever the role's and the database's settings are; what row-level security would
/// hide is an error instead. Nothing here takes the snapshot, which the first query after it does.
const BEGIN: &str = "begin isolation level repeatable read read only;
    set local search_path = '';
    set local datestyle = 'ISO, MDY';
    set local intervalstyle = 'postgres';
    set local timezone = 'UTC';
    set local extra_float_digits = 3;
    set local bytea_output = 'hex';
    set local lc_monetary = 'C';
    set local xmloption = 'content';
    set local row_security = off;
    set local statement_timeout = 0;
    set local lock_timeout = '60s';
    set local idle_in_transaction_session_timeout = 0;";
/// Servers before 17 do not know the setting.
const NO_LIMIT: &str = "select set_config(name, '0', true) from pg_settings where name = 'transaction_timeout'";
const TRY: &str = "select pg_try_advisory_xact_lock($1, $2)";
const HOLDER: &str = "select coalesce(a.application_name, ''), l.pid from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
    where l.locktype = 'advisory' and l.database = $3 and l.classid::int8 = $1 and l.objid::int8 = $2 and l.granted limit 1";
/// The timeline too: after a recovery to an earlier point the same snapshot is reached by other transactions.
const TIMELINE: &str = "select case when pg_is_in_recovery() then null \
    else substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) end";

/// Which transactions a snapshot sees, of which server. Equal ones see equal rows.
///
/// The server's start is part of it: a crash may lose the last transactions (`synchronous_commit = off`), whose
/// numbers are then given out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// `pg_current_snapshot()`
    pub snapshot: String,
    /// Of the server's data directory.
    pub system_identifier: String,
    /// Of the database.
    pub database_oid: u32,
    /// Of the write-ahead log.
    pub timeline: String,
    /// When the server started.
    pub server_started: String,
}

/// An open snapshot.
pub(super) struct Reading {
    pub(super) session: Connection,
    pub(super) origin: Origin,
    /// `server_version_num`
    pub(super) version: i32,
    /// Where it can be told; [`Reading::degraded`] says why not.
    pub(super) position: Option<Position>,
    pub(super) degraded: Option<String>,
}

/// What [`begin`] comes to.
pub(super) enum Begun {
    Reading(Box<Reading>),
    /// Another run reads this database; who it is.
    Busy(String),
}

/// Opens the snapshot, unless another run has one open.
pub(super) async fn begin(source: &Database) -> Result<Begun, PostgresError> {
    let session = source.connect("backup").await?;
    let asking = || "asking the server what it is".to_owned();
    let server = session.query_one(SERVER, &[]).await.doing(asking)?;
    let (version, standby, oid): (i32, bool, u32) = (server.get(0), server.get(2), server.get(3));
    let mut degraded = None;
    let system_identifier: Option<String> = match session.query_one(SYSTEM, &[]).await {
        Ok(row) => Some(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            degraded = Some(format!(
                "the role may not call pg_control_system() ({}), so every run compares rows; grant execute on it to the role",
                explain(&error)
            ));
            None
        }
        Err(error) => return Err(error).doing(asking),
    };
    let beginning = || "beginning the snapshot".to_owned();
    session.batch_execute(BEGIN).await.doing(beginning)?;
    let locked: bool = session.query_one(TRY, &[&KEY.0, &KEY.1]).await.doing(|| "asking for the lock".to_owned())?.get(0);
    if !locked {
        let holder = session
            .query_opt(HOLDER, &[&i64::from(KEY.0), &i64::from(KEY.1), &oid])
            .await
            .doing(|| "asking who holds the lock".to_owned())?
            .map_or_else(String::new, |row| format!(" (server process {}, \"{}\")", row.get::<_, i32>(1), row.get::<_, &str>(0)));
        return Ok(Begun::Busy(format!("another run is making a backup of this database{holder}")));
    }
    session.query(NO_LIMIT, &[]).await.doing(beginning)?;
    let function = if version >= CURRENT_SNAPSHOT_SINCE { "pg_current_snapshot" } else { "txid_current_snapshot" };
    let snapshot: String = session.query_one(&format!("select {function}()::text"), &[]).await.doing(beginning)?.get(0);
    let timeline: Option<String> = session.query_one(TIMELINE, &[]).await.doing(beginning)?.get(0);
    if standby {
        // There the text names no transactions that are under way, so two different snapshots may read alike.
        degraded = Some("the source is a standby, whose snapshots cannot be compared, so every run compares rows".to_owned());
    }
    let position = match (&system_identifier, timeline) {
        (Some(system_identifier), Some(timeline)) if !standby => Some(Position {
            snapshot: snapshot.clone(),
            system_identifier: system_identifier.clone(),
            database_oid: oid,
            timeline,
            server_started: server.get(6),
        }),
        _ => None,
    };
    let origin = Origin {
        name: server.get(4),
        oid,
        system_identifier,
        server_version: server.get(1),
        encoding: server.get(5),
        standby,
        snapshot,
    };
    Ok(Begun::Reading(Box::new(Reading { session, origin, version, position, degraded })))
}

impl Reading {
    /// Lets others read in this snapshot, for as long as it is open.
    pub(super) async fn export(&self) -> Result<String, PostgresError> {
        let row =
            self.session.query_one("select pg_export_snapshot()", &[]).await.doing(|| "exporting the snapshot".to_owned())?;
        Ok(row.get(0))
    }

    /// The major version, for choosing client programs.
    pub(super) fn major(&self) -> u32 {
        u32::try_from(self.version / 10_000).unwrap_or_default()
    }
}
