//! One writer at a time for each target database, over all kinds and processes.
//!
//! A PostgreSQL session-level advisory lock in the target itself: it dies with its session, so a
//! crashed process never blocks the next one, and a stalled process that wakes up late still
//! holds it, so the run that replaced it waits instead of writing beside it (ADR 0003).

mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::run::{Run, Stopped};
use crate::postgres::{Connection, Database, Doing, PostgresError, pooler};

/// The lock's key: `bull` in ASCII, then 1. Advisory locks are per database, so one key serves all.
const KEY: (i32, i32) = (0x6275_6c6c, 1);
/// How often a lock that another run holds is asked for again.
const RETRY: Duration = Duration::from_millis(500);

const TRY: &str = "select pg_try_advisory_lock($1, $2)";
/// Who holds the lock, for the log line; needs no rights beyond the catalogue's.
const HOLDER: &str = "select coalesce(a.application_name, ''), l.pid from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
                      where l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database()) \
                      and l.classid::int8 = $1 and l.objid::int8 = $2 and l.granted limit 1";

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum TargetLockError {
    /// The target cannot be reached or refused the statement.
    #[error("locking the target")]
    Postgres(#[from] PostgresError),
    /// The run was told to stop while it waited.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The held lock; given back when dropped.
pub struct TargetLock {
    session: Arc<Connection>,
    /// Looks for what the run waits for.
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for TargetLock {
    fn drop(&mut self) {
        // It shares the session, which holds the lock.
        self.watch.abort();
    }
}

impl TargetLock {
    /// Waits until no other run writes `target`.
    ///
    /// # Errors
    /// When the target cannot be asked or stands behind a pooler that would not keep the lock, or the run is told to stop first.
    pub async fn acquire(target: &Database, run: &Run) -> Result<Self, TargetLockError> {
        let session = run.unless_stopped(target.connect("target lock")).await??;
        run.unless_stopped(pooler::second(target, &session, "what is there")).await??;
        // The session idles for the whole run; a server's idle limit must not end it.
        run.unless_stopped(session.batch_execute("set statement_timeout = 0; set lock_timeout = 0"))
            .await?
            .doing(|| "setting time limits".to_owned())?;
        let mut told = false;
        loop {
            let row = run
                .unless_stopped(session.query_one(TRY, &[&KEY.0, &KEY.1]))
                .await?
                .doing(|| "asking for the lock".to_owned())?;
            if row.get(0) {
                let session = Arc::new(session);
                let watch = tokio::spawn(waiting::tell(Arc::clone(&session), run.clone()));
                return Ok(TargetLock { session, watch });
            }
            if !told {
                told = true;
                let holder = run
                    .unless_stopped(session.query_opt(HOLDER, &[&i64::from(KEY.0), &i64::from(KEY.1)]))
                    .await?
                    .doing(|| "asking who holds the lock".to_owned())?
                    .map_or_else(String::new, |row| {
                        format!(" (server process {}, \"{}\")", row.get::<_, i32>(1), row.get::<_, &str>(0))
                    });
                run.info(format!("waiting for the target: another run writes to it{holder}"));
            }
            run.unless_stopped(tokio::time::sleep(RETRY)).await?;
        }
    }

    /// Cancelled when the session, and the lock with it, is gone.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.session.closed()
    }
}
