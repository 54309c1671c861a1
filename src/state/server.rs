//! State in a PostgreSQL database.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::{Migration, Row, StateError, Statement, Value};
use crate::postgres::{Connection, Database, Doing as _, PostgresError};

/// A lock's first number: `stat` in ASCII. Two numbers, as for the lock of a target, but never the same pair.
const KEY: i32 = 0x7374_6174;
/// No statement here is a long one.
const LIMITS: &str = "set statement_timeout = '20s'; set lock_timeout = '15s'";
const APPLIED: &str = "create table if not exists bullwork_migration (name text primary key, applied_at text not null)";

pub(super) struct Server {
    database: Database,
    /// Kept between statements; another one when it broke.
    session: Mutex<Option<Arc<Connection>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.database.fmt(f)
    }
}

/// A session that holds a lock.
pub(super) struct Session(Connection);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a session with a lock")
    }
}

impl Session {
    pub(super) fn closed(&self) -> CancellationToken {
        self.0.closed()
    }
}

impl Server {
    pub(super) fn new(database: Database) -> Self {
        Server { database, session: Mutex::default() }
    }

    pub(super) fn shown(&self) -> String {
        self.database.to_string()
    }

    async fn session(&self) -> Result<Arc<Connection>, PostgresError> {
        let mut session = self.session.lock().await;
        if let Some(open) = session.as_ref().filter(|open| !open.closed().is_cancelled()) {
            return Ok(open.clone());
        }
        let open = self.database.connect("state").await?;
        open.batch_execute(LIMITS).await.doing(|| "setting time limits".to_owned())?;
        let open = Arc::new(open);
        *session = Some(open.clone());
        Ok(open)
    }

    pub(super) async fn migrate(&self, migration: Migration) -> Result<(), StateError> {
        // A session of its own: what is begun and not ended is rolled back with it.
        let session = self.database.connect("state migration").await?;
        let doing = |what: &'static str| move || what.to_owned();
        session.batch_execute(LIMITS).await.doing(doing("setting time limits"))?;
        session.batch_execute("begin").await.doing(doing("beginning"))?;
        // One at a time: `create table if not exists` alone is no protection against another one.
        session
            .execute("select pg_advisory_xact_lock($1, 0)", &[&KEY])
            .await
            .doing(doing("waiting for another process's migration"))?;
        session.batch_execute(APPLIED).await.doing(doing("making the list of migrations"))?;
        let now = crate::clock::to_rfc3339(crate::clock::Clock::System.now());
        let new = "insert into bullwork_migration (name, applied_at) values ($1, $2) on conflict do nothing";
        let new = session.execute(new, &[&migration.name, &now]).await.doing(doing("noting the migration"))?;
        if new > 0 {
            for statement in migration.statements {
                session.batch_execute(statement).await.doing(|| format!("running `{statement}`"))?;
            }
        }
        session.batch_execute("commit").await.doing(doing("committing"))?;
        Ok(())
    }

    pub(super) async fn query(&self, statement: Statement) -> Result<Vec<Row>, StateError> {
        let session = self.session().await?;
        let rows = session.query(statement.sql, &parameters(&statement.values)).await.doing(|| "reading state".to_owned())?;
        Ok(rows.iter().map(read).collect())
    }

    pub(super) async fn execute(&self, statement: Statement) -> Result<u64, StateError> {
        let session = self.session().await?;
        Ok(session.execute(statement.sql, &parameters(&statement.values)).await.doing(|| "changing state".to_owned())?)
    }

    pub(super) async fn all_or_nothing(&self, statements: Vec<Statement>) -> Result<bool, StateError> {
        // A session of its own: others' statements must not fall into the transaction, and a future that is dropped in its middle
        // must leave nothing open.
        let session = self.database.connect("state").await?;
        session.batch_execute(LIMITS).await.doing(|| "setting time limits".to_owned())?;
        session.batch_execute("begin").await.doing(|| "beginning".to_owned())?;
        for statement in &statements {
            let changed =
                session.execute(statement.sql, &parameters(&statement.values)).await.doing(|| "changing state".to_owned())?;
            if changed == 0 {
                session.batch_execute("rollback").await.doing(|| "rolling back".to_owned())?;
                return Ok(false);
            }
        }
        session.batch_execute("commit").await.doing(|| "committing".to_owned())?;
        Ok(true)
    }

    pub(super) async fn lock(&self, name: &str) -> Result<Option<Session>, StateError> {
        let session = self.database.connect("state lock").await?;
        // It idles for as long as it holds the lock; servers before 14 have no such limit, and do not know the setting.
        let _ = session.batch_execute("set idle_session_timeout = 0").await;
        let digest = Sha256::digest(name);
        // 0 is the migrations'.
        let second = i32::from_be_bytes([digest[0] & 0x7f, digest[1], digest[2], digest[3] | 1]);
        let row = session
            .query_one("select pg_try_advisory_lock($1, $2)", &[&KEY, &second])
            .await
            .doing(|| format!("asking for the lock `{name}`"))?;
        Ok(row.get::<_, bool>(0).then_some(Session(session)))
    }
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

fn read(row: &tokio_postgres::Row) -> Row {
    use tokio_postgres::types::Type;
    let value = |(place, column): (usize, &tokio_postgres::Column)| match *column.type_() {
        Type::INT8 => row.get::<_, Option<i64>>(place).into(),
        Type::INT4 => row.get::<_, Option<i32>>(place).map(i64::from).into(),
        Type::TEXT => row.get::<_, Option<String>>(place).into(),
        // Whoever writes a statement sees it in its first test.
        ref other => unreachable!("state is text and bigint, not {other}"),
    };
    Row(row.columns().iter().enumerate().map(value).collect())
}
