//! Whether two sessions are with the same database, whatever their URLs say: host names, ports,
//! poolers and tunnels have many spellings, and a clone has its origin's system identifier.

use super::{Connection, Doing, PostgresError};

/// Advisory locks are of one database of one server, and anybody may ask for one: no view must be
/// readable, and servers of any two versions compare.
const LOCK: &str = "select pg_catalog.pg_advisory_xact_lock($1)";
const HELD: &str = "select not pg_catalog.pg_try_advisory_xact_lock($1)";

/// Takes an advisory lock with a random key through `a` and finds it taken through `b`. Neither
/// may be in a transaction; the lock is `a`'s transaction's, so it is given back however this ends,
/// and a pooler cannot hand `a`'s server process to `b` meanwhile.
///
/// # Errors
/// When either session fails.
pub async fn same_database(a: &Connection, b: &Connection) -> Result<bool, PostgresError> {
    let comparing = || "comparing the two databases".to_owned();
    // 62 random bits: nobody else holds this key by chance.
    let key = i64::from_ne_bytes(uuid::Uuid::new_v4().into_bytes()[8..].try_into().expect("eight of sixteen bytes"));
    let compare = async {
        a.execute(LOCK, &[&key]).await?;
        b.query_one(HELD, &[&key]).await?.try_get(0)
    };
    a.batch_execute("begin").await.doing(comparing)?;
    let held = compare.await;
    let ended = a.batch_execute("rollback").await;
    let held = held.doing(comparing)?;
    ended.doing(comparing)?;
    Ok(held)
}
