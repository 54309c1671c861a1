//! State that outlives Redis: rows in SQL, in a SQLite file by default, in PostgreSQL where [`STATE_DATABASE_URL`] names one.
//! Knows nothing of jobs.
//!
//! One dialect for both: columns are `text` and `bigint`, parameters `$1`, `$2` …, and times texts in ISO 8601. What has returned
//! is on the disk: SQLite runs with `synchronous = full`, and PostgreSQL as its server is set. Nothing is opened before the first
//! statement, so that a process that needs no state makes no file.
//!
//! - [`Migration`]: what a user's tables are, each applied once
//! - [`State::query`], [`State::execute`]: one statement, atomic by itself; a compare-and-set is an `update … where` that
//!   tells how many rows it changed
//! - [`State::all_or_nothing`]: several statements, of which each must find its row
//! - [`State::lock`]: one holder at a time over all processes, which dies with its holder

mod file;
mod server;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use value::{Row, Value};

use crate::config::{Reader, Setting};
use crate::postgres::{Database, PostgresError};

/// Where state is kept when not in a file.
pub static STATE_DATABASE_URL: Setting = Setting::new(
    "STATE_DATABASE_URL",
    "PostgreSQL database that keeps what must outlive Redis (releases, tasks of the restore service, and the history of both): postgres://user:password@host:5432/name. Unset: SQLite files (RELEASE_STATE_FILE; db_file of the restore service's configuration), which serve processes of one machine.",
);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be used.
    #[error("the state file {file}: {reason}")]
    File {
        /// Which.
        file: String,
        /// The library's or the system's words.
        reason: String,
    },
    /// The server cannot be used.
    #[error("the state database")]
    Server(#[from] PostgresError),
    /// A migration failed.
    #[error("preparing the state (`{name}`)")]
    Migration {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<StateError>,
    },
}

/// A change to the tables; applied once, in the order of its list, each in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Never changes.
    pub name: &'static str,
    /// Statements that both sorts of database understand.
    pub statements: &'static [&'static str],
}

/// A statement with its values.
#[derive(Clone, Debug)]
pub struct Statement {
    sql: &'static str,
    values: Vec<Value>,
}

impl Statement {
    /// `sql` with `$1` …, and its values.
    pub fn new(sql: &'static str, values: impl IntoIterator<Item = Value>) -> Self {
        Statement { sql, values: values.into_iter().collect() }
    }
}

/// The state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    File(Arc<file::File>),
    Server(Arc<server::Server>),
}

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    lost: CancellationToken,
    _held: Held,
}

/// What holds it; only its end counts.
#[derive(Debug)]
enum Held {
    File(#[expect(dead_code, reason = "closing it frees the lock")] nix::fcntl::Flock<std::fs::File>),
    Session(#[expect(dead_code, reason = "ending it frees the lock")] Box<server::Session>),
}

impl Lock {
    /// Cancelled when it is not held any more although nobody dropped it: its session ended.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl State {
    /// In the database of [`STATE_DATABASE_URL`], else in `file`; a mistake is noted in `reader`.
    pub fn from_settings(reader: &Reader<'_>, file: &Path) -> Self {
        match reader.optional(&STATE_DATABASE_URL).map(|url| Database::parse(&url)) {
            Some(Ok(database)) => State::in_database(database),
            Some(Err(error)) => {
                reader.problem(STATE_DATABASE_URL.name, error.to_string());
                State::in_file(file)
            }
            None => State::in_file(file),
        }
    }

    /// In a SQLite file, which is made with its directory when it is first used.
    #[must_use]
    pub fn in_file(file: &Path) -> Self {
        State { place: Place::File(Arc::new(file::File::new(PathBuf::from(file)))) }
    }

    /// In a PostgreSQL database.
    #[must_use]
    pub fn in_database(database: Database) -> Self {
        State { place: Place::Server(Arc::new(server::Server::new(database))) }
    }

    /// Where it is, without password.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.place {
            Place::File(file) => file.shown(),
            Place::Server(server) => server.shown(),
        }
    }

    /// Applies those of `migrations` that are not applied yet.
    ///
    /// # Errors
    /// When one fails; those before it stay.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<(), StateError> {
        for migration in migrations {
            let applied = match &self.place {
                Place::File(file) => file.migrate(*migration).await,
                Place::Server(server) => server.migrate(*migration).await,
            };
            applied.map_err(|error| StateError::Migration { name: migration.name, source: Box::new(error) })?;
        }
        Ok(())
    }

    /// The rows of a statement.
    ///
    /// # Errors
    /// When the database cannot be asked or refuses.
    pub async fn query(&self, sql: &'static str, values: impl IntoIterator<Item = Value>) -> Result<Vec<Row>, StateError> {
        let statement = Statement::new(sql, values);
        match &self.place {
            Place::File(file) => file.query(statement).await,
            Place::Server(server) => server.query(statement).await,
        }
    }

    /// How many rows a statement changed.
    ///
    /// # Errors
    /// When the database cannot be asked or refuses; the change may have happened when the connection broke.
    pub async fn execute(&self, sql: &'static str, values: impl IntoIterator<Item = Value>) -> Result<u64, StateError> {
        let statement = Statement::new(sql, values);
        match &self.place {
            Place::File(file) => file.execute(statement).await,
            Place::Server(server) => server.execute(statement).await,
        }
    }

    /// Runs all of them in one transaction if each changes at least one row, else none; tells which.
    ///
    /// # Errors
    /// When the database cannot be asked or refuses.
    pub async fn all_or_nothing(&self, statements: Vec<Statement>) -> Result<bool, StateError> {
        match &self.place {
            Place::File(file) => file.all_or_nothing(statements).await,
            Place::Server(server) => server.all_or_nothing(statements).await,
        }
    }

    /// Takes the lock called `name` if nobody holds it: letters, digits, `.`, `_`, `-`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn lock(&self, name: &str) -> Result<Option<Lock>, StateError> {
        match &self.place {
            Place::File(file) => {
                let held = file.lock(name).await?;
                Ok(held.map(|held| Lock { lost: CancellationToken::new(), _held: Held::File(held) }))
            }
            Place::Server(server) => {
                let session = server.lock(name).await?;
                Ok(session.map(|session| Lock { lost: session.closed(), _held: Held::Session(Box::new(session)) }))
            }
        }
    }
}
