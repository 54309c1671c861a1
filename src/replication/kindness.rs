//! Leaves production room: a limit of bytes a second, a limit of tables read at once, and standing back while the
//! source is busy.
//!
//! While it stands back nothing is read, but the snapshot stays, which keeps the source from cleaning up; so
//! that ends after [`PATIENCE`], which is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::{REPLICATION_BUSY_QUERY, REPLICATION_BUSY_SESSIONS, REPLICATION_MAX_RATE, REPLICATION_SOURCE_CONNECTIONS};
use crate::config::{Reader, Setting};
use crate::postgres::{Connection, Database, Doing, PostgresError};
use crate::throttle::Throttle;
use crate::worker::Run;

/// How often the source is asked whether it is busy.
const ASK: Duration = Duration::from_secs(1);
/// Longest time that a run stands back, in all.
pub const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Sessions of others that are at work. Those of a pooler's clients count once, as its servers do.
const ACTIVE: &str = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active' \
                      and backend_type = 'client backend' and pid <> pg_backend_pid() and application_name not like 'bullwork: %'";

/// When the source counts as busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Busy {
    /// When this query says true.
    Query(String),
    /// When more sessions of others than this are at work.
    Sessions(u64),
}

/// How the source is spared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kindness {
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Sessions that read tables at once.
    pub connections: Option<usize>,
    /// When to stand back.
    pub busy: Option<Busy>,
}

/// A setting that may be unset, or a whole number from 1 to `most`.
pub fn whole_number(reader: &Reader<'_>, setting: &'static Setting, most: u64) -> Option<u64> {
    let text = reader.optional(setting)?;
    match text.trim().parse::<u64>() {
        Ok(number) if (1..=most).contains(&number) => Some(number),
        _ => {
            reader.problem(setting.name, format!("`{text}` is no whole number from 1 to {most}"));
            None
        }
    }
}

impl Kindness {
    /// Reads the settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let query = reader.optional(&REPLICATION_BUSY_QUERY);
        let sessions = whole_number(reader, &REPLICATION_BUSY_SESSIONS, 100_000);
        if query.is_some() && sessions.is_some() {
            reader.problem(
                REPLICATION_BUSY_QUERY.name,
                format!("and {} are both set; keep one of the two", REPLICATION_BUSY_SESSIONS.name),
            );
        }
        Kindness {
            rate: whole_number(reader, &REPLICATION_MAX_RATE, 1_000_000).map(|megabytes| megabytes * 1_000_000),
            connections: whole_number(reader, &REPLICATION_SOURCE_CONNECTIONS, 32).and_then(|n| usize::try_from(n).ok()),
            busy: query.map(Busy::Query).or(sessions.map(Busy::Sessions)),
        }
    }

    /// What the sessions that read share.
    #[must_use]
    pub fn throttle(&self) -> Option<Arc<Throttle>> {
        (self.rate.is_some() || self.busy.is_some()).then(|| Arc::new(Throttle::new(self.rate)))
    }

    /// Watches the source and holds the throttle while it is busy; never ends by itself. Losing sight of the source is
    /// no reason to fail: who reads will notice by himself.
    ///
    /// # Errors
    /// When the query cannot be used, before anything is held.
    pub async fn watch(&self, run: &Run, source: &Database, throttle: &Throttle) -> Result<(), PostgresError> {
        let Some(busy) = &self.busy else { return std::future::pending().await };
        let mut session = Some(source.connect("is the source busy").await?);
        let mut stood = Duration::ZERO;
        let mut since: Option<Instant> = None;
        let mut first = true;
        loop {
            if session.is_none() {
                session = source.connect("is the source busy").await.ok();
            }
            let answer = match &session {
                Some(session) => busy.ask(session).await,
                None => Ok(false),
            };
            let is_busy = match answer {
                Ok(is_busy) => is_busy,
                Err(error) if first => return Err(error),
                Err(_) => {
                    session = None;
                    false
                }
            };
            first = false;
            match since {
                None if is_busy && stood < PATIENCE => {
                    run.info("the source is busy: standing back");
                    throttle.hold(true);
                    since = Some(Instant::now());
                }
                Some(start) if !is_busy => {
                    stood += start.elapsed();
                    run.info(format!("the source has room again: going on after {} s", start.elapsed().as_secs()));
                    throttle.hold(false);
                    since = None;
                }
                Some(start) if stood + start.elapsed() > PATIENCE => {
                    run.warn(format!(
                        "the source is still busy, but a run stands back for {} minutes in all at most, because its snapshot keeps the source from cleaning up: going on",
                        PATIENCE.as_secs() / 60
                    ));
                    throttle.hold(false);
                    stood = PATIENCE;
                    since = None;
                }
                _ => {}
            }
            tokio::time::sleep(ASK).await;
        }
    }
}

impl Busy {
    async fn ask(&self, session: &Connection) -> Result<bool, PostgresError> {
        match self {
            Busy::Sessions(most) => {
                let doing = || "counting the sessions that are at work on the source".to_owned();
                let count: i64 = session.query_one(ACTIVE, &[]).await.doing(doing)?.get(0);
                Ok(u64::try_from(count).unwrap_or(0) > *most)
            }
            Busy::Query(sql) => {
                let unusable = |reason: String| PostgresError::Statement {
                    doing: format!("asking the source by {} whether it is busy", REPLICATION_BUSY_QUERY.name),
                    reason,
                };
                // Nothing is ever written to the source, whatever the query says.
                let begin = "begin transaction read only";
                session.batch_execute(begin).await.map_err(|error| unusable(crate::postgres::explain(&error)))?;
                let row = session.query_opt(sql.as_str(), &[]).await;
                let _ = session.batch_execute("rollback").await;
                let row = row.map_err(|error| unusable(crate::postgres::explain(&error)))?;
                let answer = row.map(|row| row.try_get::<_, Option<bool>>(0));
                match answer {
                    None => Ok(false),
                    Some(Ok(answer)) => Ok(answer.unwrap_or(false)),
                    Some(Err(_)) => Err(unusable(
                        "its first column is no boolean; write for example select count(*) > 10 from ...".to_owned(),
                    )),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(settings: &[(&str, &str)]) -> Result<Kindness, String> {
        let environment = Environment::of(settings.iter().copied());
        let reader = Reader::new(&environment);
        let kindness = Kindness::from_settings(&reader);
        reader.finish().map_err(|e| e.to_string()).map(|_| kindness)
    }

    #[test]
    fn nothing_is_limited_by_default() {
        let kindness = read(&[]).unwrap();
        assert_eq!(kindness, Kindness::default());
        assert!(kindness.throttle().is_none());
    }

    #[test]
    fn limits_are_read_and_mistakes_named() {
        let all = [("REPLICATION_MAX_RATE", "20"), ("REPLICATION_SOURCE_CONNECTIONS", "2"), ("REPLICATION_BUSY_SESSIONS", "8")];
        let kindness = read(&all).unwrap();
        assert_eq!((kindness.rate, kindness.connections), (Some(20_000_000), Some(2)));
        assert_eq!(kindness.busy, Some(Busy::Sessions(8)));
        for name in ["REPLICATION_MAX_RATE", "REPLICATION_SOURCE_CONNECTIONS", "REPLICATION_BUSY_SESSIONS"] {
            for value in ["0", "-1", "many", "1.5"] {
                let error = read(&[(name, value)]).unwrap_err();
                assert!(error.contains(name) && error.contains("whole number from 1 to"), "{error}");
            }
        }
        let both = read(&[("REPLICATION_BUSY_SESSIONS", "8"), ("REPLICATION_BUSY_QUERY", "select true")]).unwrap_err();
        assert!(both.contains("keep one of the two"), "{both}");
    }
}
