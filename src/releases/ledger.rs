//! What is known of servers and releases, in the state store: it outlives Redis and every process.
//!
//! ```text
//! release_servers   name, role, how to get there, project, archive; state, release and task, owner and lease, problem
//! releases          id, state, `unfinished`: 1 until it is over, and unique, so that there is never a second one
//! release_paths     the names of a release, each once
//! release_manifests what it holds, to the byte, once beta has it
//! release_targets   its business servers: their wave, when their files were touched, when they were done
//! release_journal   who did what when: the book of beta, of production, of each server
//! ```
//!
//! Every step is one transaction: a compare-and-set of the state, and its line in the journal. Two that want the same step meet in
//! the database, and one of them is told no. [`releasing`] has the steps of releases, [`leases`] those of servers, [`servers`]
//! their list.

mod leases;
mod releasing;
mod servers;

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::to_rfc3339;
use crate::config::Reader;
use crate::releases::states::{ReleaseState, ServerState};
use crate::state::{Migration, Row, State, StateError, Statement, Value};

pub use leases::{Claim, Claimed};
pub use releasing::{Release, Target};
pub use servers::{ARCHIVES, NewServer, Role, Server};

/// The tables.
const MIGRATIONS: &[Migration] = &[Migration {
    name: "releases-1",
    statements: &[
        "create table release_servers (name text primary key, role text not null, only_one text unique, address text not null, \
         login text not null, port bigint not null, project text not null, archive text, state text not null, release_id bigint, \
         task text, owner text, lease_until bigint, claims bigint not null, problem text)",
        "create table releases (id bigint primary key, unfinished bigint unique, state text not null, made_at text not null, \
         made_by text not null, removes bigint not null, backup_server text, backup text, problem text, rolled_back_at text)",
        "create table release_paths (release_id bigint not null, path text not null, primary key (release_id, path))",
        "create table release_manifests (release_id bigint primary key, entries text not null)",
        "create table release_targets (release_id bigint not null, server text not null, wave bigint not null, touched_at text, \
         done_at text, primary key (release_id, server))",
        "create table release_journal (release_id bigint not null, number bigint not null, said_at text not null, actor text not null, \
         book text not null, server text, line text not null)",
        "create index release_journal_of on release_journal (release_id, number)",
    ],
}];

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The state store.
    #[error(transparent)]
    State(#[from] StateError),
    /// It may not be done now; the text says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// What is stored cannot be read.
    #[error("the state store holds what this program does not know: {0}")]
    Unknown(String),
}

/// Answers of the ledger.
pub type Result<T> = std::result::Result<T, LedgerError>;

pub(super) fn refused<T>(reason: impl Into<String>) -> Result<T> {
    Err(LedgerError::Refused(reason.into()))
}

/// Which of a release's journals a line is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Book<'a> {
    /// Of beta.
    Beta,
    /// Of production.
    Production,
    /// Of a server.
    Server(&'a str),
}

impl Book<'_> {
    fn values(&self) -> (Value, Value) {
        match self {
            Book::Beta => ("beta".into(), Value::Null),
            Book::Production => ("production".into(), Value::Null),
            Book::Server(name) => ("server".into(), (*name).into()),
        }
    }

    /// The one that tells of a step to `state`.
    #[must_use]
    pub fn of(state: ReleaseState) -> Book<'static> {
        match state {
            ReleaseState::Created | ReleaseState::BetaCopying | ReleaseState::BetaError | ReleaseState::BetaDone => Book::Beta,
            _ => Book::Production,
        }
    }
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Line {
    /// Of this release.
    pub release: i64,
    /// When.
    pub at: String,
    /// Who.
    pub actor: String,
    /// `beta`, `production` or `server`.
    pub book: String,
    /// Which server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// What.
    pub line: String,
}

/// Servers and releases. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    state: State,
}

impl Ledger {
    /// In the state database, else in `file`.
    pub fn from_settings(reader: &Reader<'_>, file: &Path) -> Self {
        Ledger::of(State::from_settings(reader, file))
    }

    /// In this store.
    #[must_use]
    pub fn of(state: State) -> Self {
        Ledger { state }
    }

    /// Makes the tables where they are not there yet.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn prepare(&self) -> Result<()> {
        Ok(self.state.migrate(MIGRATIONS).await?)
    }

    /// Held by worker 1 while it works: one at a time, over all processes.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn worker1(&self) -> Result<Option<crate::state::Lock>> {
        Ok(self.state.lock("release").await?)
    }

    /// Writes a line that goes with no step.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn note(&self, release: i64, book: &Book<'_>, actor: &str, line: &str) -> Result<()> {
        self.state.all_or_nothing(vec![journal(release, book, actor, line)]).await?;
        Ok(())
    }

    /// The journals of a release in the order of time.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn journal(&self, release: i64) -> Result<Vec<Line>> {
        const LINES: &str =
            "select release_id, said_at, actor, book, server, line from release_journal where release_id = $1 order by number";
        let rows = self.state.query(LINES, [release.into()]).await?;
        let line = |row: &Row| Line {
            release: row.integer(0),
            at: row.text(1),
            actor: row.text(2),
            book: row.text(3),
            server: row.optional(4),
            line: row.text(5),
        };
        Ok(rows.iter().map(line).collect())
    }
}

fn now() -> String {
    to_rfc3339(millis())
}

fn millis() -> i64 {
    crate::clock::Clock::System.now()
}

/// Orders the lines of a journal: microseconds, never the same twice in one process.
fn number() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = chrono::Utc::now().timestamp_micros();
    let next = |last: i64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_default();
    now.max(last + 1)
}

fn journal(release: i64, book: &Book<'_>, actor: &str, line: &str) -> Statement {
    const LINE: &str = "insert into release_journal (release_id, number, said_at, actor, book, server, line) values ($1, $2, $3, $4, $5, $6, $7)";
    let (book, server) = book.values();
    let line = crate::redact::scrub(line);
    Statement::new(LINE, [release.into(), number().into(), now().into(), actor.into(), book, server, line.into()])
}

fn release_state(word: &str) -> Result<ReleaseState> {
    word.parse().map_err(LedgerError::Unknown)
}

fn server_state(word: &str) -> Result<ServerState> {
    word.parse().map_err(LedgerError::Unknown)
}
