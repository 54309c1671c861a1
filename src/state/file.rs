//! State in a SQLite file.
//!
//! Processes of one machine may share it: a writer waits for another up to [`PATIENCE`]. A file that is removed or replaced under us is
//! noticed at the next statement, which fails, as all after it do.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, TransactionBehavior, params_from_iter};

use super::{Migration, Row, StateError, Statement, Value};

/// How long a statement waits for another process's.
const PATIENCE: Duration = Duration::from_secs(10);
/// The way out when the file is another one: what is in memory of the old one must not be mixed with it.
const RESTART: &str = "restart this process to go on with what stands there";
const APPLIED: &str = "create table if not exists bullwork_migration (name text primary key, applied_at text not null)";

#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    open: Arc<Mutex<Option<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    connection: Connection,
    /// Device and inode: which file it is, whatever stands under its name by now.
    identity: (u64, u64),
}

impl File {
    pub(super) fn new(path: PathBuf) -> Self {
        File { path, open: Arc::default() }
    }

    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// Runs `work` on the open file, off the runtime's threads: a disk may be slow.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let (path, open, shown) = (self.path.clone(), self.open.clone(), self.shown());
        let refused = move |reason: String| StateError::File { file: shown.clone(), reason };
        let of_task = refused.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.is_none() {
                if let Some(directory) = path.parent() {
                    fs::create_dir_all(directory).map_err(|error| refused(error.to_string()))?;
                }
                let connection = connect(&path).map_err(|error| refused(error.to_string()))?;
                let identity = identity(&path).map_err(|error| refused(error.to_string()))?;
                *open = Some(Opened { connection, identity });
            }
            let opened = open.as_mut().expect("it was opened above");
            // A removed file takes everything that is written, and nobody finds it again.
            let still_there = || match identity(&path) {
                Ok(found) if found == opened.identity => Ok(()),
                Ok(_) => Err(refused(format!("it was replaced by another file while it was in use; {RESTART}"))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(refused(format!("it was removed or renamed while it was in use; put it back as it was, or {RESTART}")))
                }
                Err(error) => Err(refused(error.to_string())),
            };
            still_there()?;
            let done = work(&mut opened.connection).map_err(|error| refused(error.to_string()))?;
            still_there()?;
            Ok(done)
        });
        done.await.map_err(|error| of_task(error.to_string()))?
    }

    pub(super) async fn migrate(&self, migration: Migration) -> Result<(), StateError> {
        self.with(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(APPLIED, [])?;
            let now = crate::clock::to_rfc3339(crate::clock::Clock::System.now());
            let new = "insert into bullwork_migration (name, applied_at) values (?1, ?2) on conflict do nothing";
            if transaction.execute(new, [migration.name, &now])? > 0 {
                for statement in migration.statements {
                    transaction.execute_batch(statement)?;
                }
            }
            transaction.commit()
        })
        .await
    }

    pub(super) async fn query(&self, statement: Statement) -> Result<Vec<Row>, StateError> {
        self.with(move |connection| {
            let mut prepared = connection.prepare(&numbered(statement.sql))?;
            let columns = prepared.column_count();
            let rows = prepared.query_map(params_from_iter(&statement.values), |row| {
                (0..columns)
                    .map(|place| row.get_ref(place).map(|value| read(&value)))
                    .collect::<rusqlite::Result<Vec<_>>>()
                    .map(Row)
            })?;
            rows.collect()
        })
        .await
    }

    pub(super) async fn execute(&self, statement: Statement) -> Result<u64, StateError> {
        self.with(move |connection| {
            let changed = connection.execute(&numbered(statement.sql), params_from_iter(&statement.values))?;
            Ok(changed as u64)
        })
        .await
    }

    pub(super) async fn all_or_nothing(&self, statements: Vec<Statement>) -> Result<bool, StateError> {
        self.with(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for Statement { sql, values } in statements {
                if transaction.execute(&numbered(sql), params_from_iter(&values))? == 0 {
                    // Dropped: rolled back.
                    return Ok(false);
                }
            }
            transaction.commit().map(|()| true)
        })
        .await
    }

    /// A lock on a file beside it: the system frees it when its holder ends, however that is.
    pub(super) async fn lock(&self, name: &str) -> Result<Option<Flock<fs::File>>, StateError> {
        let path = PathBuf::from(format!("{}.{name}.lock", self.path.display()));
        let shown = path.display().to_string();
        let refused = move |reason: String| StateError::File { file: shown.clone(), reason };
        let of_task = refused.clone();
        let taken = tokio::task::spawn_blocking(move || {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(|error| refused(error.to_string()))?;
            }
            let file = fs::File::options().create(true).append(true).open(&path).map_err(|error| refused(error.to_string()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => Ok(Some(held)),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
                Err((_, error)) => Err(refused(error.to_string())),
            }
        });
        taken.await.map_err(|error| of_task(error.to_string()))?
    }
}

fn identity(path: &std::path::Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn connect(path: &std::path::Path) -> rusqlite::Result<Connection> {
    // What is in it is nobody else's business; SQLite gives its other files the mode of this one.
    use std::os::unix::fs::OpenOptionsExt as _;
    let _ = fs::File::options().create_new(true).write(true).mode(0o600).open(path);
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    // Readers of one process do not wait for a writer of another; what is committed is on the disk.
    // Of two who open a new file at once, SQLite lets none wait for the other here.
    let begun = std::time::Instant::now();
    while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
        let busy = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy);
        if !busy || begun.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

/// SQLite takes `$1` for a name; `?1` is a place.
fn numbered(sql: &str) -> String {
    sql.replace('$', "?")
}

fn read(value: &rusqlite::types::ValueRef<'_>) -> Value {
    use rusqlite::types::ValueRef;
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(*number),
        ValueRef::Real(number) => Value::Text(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
    }
}
