//! Poolers that give each transaction another server process, such as PgBouncer in transaction mode.
//!
//! What a replication is made of does not survive there: a snapshot that is shared between sessions, settings of a
//! session, prepared statements (PgBouncer before 1.21), and the lock that keeps two runs apart, which would stay behind with a
//! server process that nobody owns.

use super::{Connection, Database, Doing, PostgresError};

async fn server_process(session: &Connection) -> Result<Option<String>, tokio_postgres::Error> {
    // The simple protocol, because nothing else is sure to work through a pooler.
    let answer = session.simple_query("select pg_backend_pid()").await?;
    Ok(answer.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Refuses a database that is reached through such a pooler.
///
/// # Errors
/// When it is one, or the server cannot be reached.
pub async fn refuse(database: &Database) -> Result<(), PostgresError> {
    let resting = database.connect("what is there").await?;
    second(database, &resting, "what is there").await.map(drop)
}

/// Opens a second session beside `resting`, which is in no transaction, and refuses such a pooler.
///
/// The one asks for its server process and rests; the second one, in a transaction, asks too. The same answer means that
/// they share it. A pooler that has several to give may give another one: then this finds nothing, and statements fail.
///
/// # Errors
/// When it is one, or the server cannot be reached.
pub async fn second(database: &Database, resting: &Connection, purpose: &str) -> Result<Connection, PostgresError> {
    let doing = || format!("asking {database} what it is");
    let first = server_process(resting).await.doing(doing)?;
    let second = database.connect(purpose).await?;
    second.batch_execute("begin").await.doing(doing)?;
    let shared = server_process(&second).await.doing(doing)? == first;
    second.batch_execute("rollback").await.doing(doing)?;
    if !shared {
        return Ok(second);
    }
    Err(PostgresError::Connect {
        database: database.to_string(),
        reason: "a pooler stands there that gives each transaction another session (PgBouncer in transaction mode?); \
                 replications need sessions of their own; write the server's own address, or that of a pool in session mode"
            .to_owned(),
    })
}
