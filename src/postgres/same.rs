//! Whether two sessions are with the same database, whatever their URLs say: host names, ports,
//! poolers and tunnels have many spellings.

use super::{Connection, Doing, PostgresError};

/// Advisory locks of one key space (`objsubid` 1) that this database's sessions hold.
const HELD: &str = "SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND (classid::bigint << 32 | objid::bigint) = $1)";

/// Takes an advisory lock with a random key through `a` and looks for it through `b`.
///
/// # Errors
/// When either session fails.
pub async fn same_database(a: &Connection, b: &Connection) -> Result<bool, PostgresError> {
    let comparing = || "comparing the two databases".to_owned();
    // 64 random bits: nobody else holds this key by chance.
    let key = i64::from_ne_bytes(uuid::Uuid::new_v4().into_bytes()[8..].try_into().expect("eight of sixteen bytes"));
    a.execute("SELECT pg_advisory_lock($1)", &[&key]).await.doing(comparing)?;
    let held = b.query_one(HELD, &[&key]).await.doing(comparing);
    a.execute("SELECT pg_advisory_unlock($1)", &[&key]).await.doing(comparing)?;
    Ok(held?.get(0))
}
