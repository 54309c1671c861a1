//! PostgreSQL: connecting, quoting, and errors that say what to do. Knows nothing of jobs.
//!
//! URLs follow libpq: `sslmode` disable, prefer, require (both without verification, as libpq
//! does), verify-ca and verify-full (both check chain and name), and `sslrootcert`.

pub mod client_programs;
mod copy_out;
pub mod pooler;
pub mod same;
pub mod text_form;
pub mod tls;
mod wire;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{Client, Config};
use tokio_util::sync::CancellationToken;

pub use copy_out::CopyOut;
pub use wire::Piece;

use crate::redact::{self, Secret};
use crate::throttle::Throttle;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A dead peer is noticed after about a minute: `IDLE` + `RETRIES` × `INTERVAL`.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Has the server look every few seconds whether we are still there, so that the session of a
/// killed worker does not finish a long statement, and hold its locks, for nobody. Servers before
/// 14 do not know the setting.
const NOTICE_OUR_END: &str = "select pg_catalog.set_config(name, '5s', false) from pg_catalog.pg_settings
    where name = 'client_connection_check_interval'";

/// What can go wrong between us and a server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The URL cannot be used.
    #[error("{0}")]
    Url(String),
    /// No session with the server.
    #[error("connecting to {database}: {reason}")]
    Connect {
        /// Masked URL.
        database: String,
        /// The server's or the network's words.
        reason: String,
    },
    /// The server refused a statement.
    #[error("{doing}: {reason}")]
    Statement {
        /// What we were doing.
        doing: String,
        /// The server's words with their code.
        reason: String,
    },
}

/// A database that can be connected to. Prints without password.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: tls::Mode,
    shown: String,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl PartialEq for Database {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl Database {
    /// Reads a `postgres://` or `postgresql://` URL. Nothing is connected.
    ///
    /// # Errors
    /// When the text is no such URL, without showing its password.
    pub fn parse(text: &str) -> Result<Self, PostgresError> {
        let text = text.trim();
        let mut url = url::Url::parse(text)
            .map_err(|e| PostgresError::Url(format!("is not a URL ({e}); write postgres://user@host:5432/name")))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(PostgresError::Url(format!("scheme `{}` is not `postgres` or `postgresql`", url.scheme())));
        }
        if let Some(password) = url.password() {
            redact::remember(password);
        }
        // sslmode and sslrootcert are ours: tokio-postgres knows only three of libpq's modes.
        let mut mode = None;
        let mut root = None;
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter_map(|(name, value)| match &*name {
                "sslmode" | "ssl" => {
                    mode = Some(value.into_owned());
                    None
                }
                "sslrootcert" => {
                    root = Some(value.into_owned());
                    None
                }
                _ => Some((name.into_owned(), value.into_owned())),
            })
            .collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        let tls = tls::Mode::parse(mode.as_deref(), root.as_deref()).map_err(PostgresError::Url)?;
        let mut config: Config = url
            .as_str()
            .parse()
            .map_err(|e: tokio_postgres::Error| PostgresError::Url(redact::scrub(&format!("cannot be used: {}", explain(&e)))))?;
        if let Some(password) = config.get_password() {
            redact::remember(&String::from_utf8_lossy(password));
        }
        if config.get_hosts().is_empty() {
            return Err(PostgresError::Url("names no host; write postgres://user@host:5432/name".to_owned()));
        }
        if config.get_dbname().is_none() && config.get_user().is_none() {
            return Err(PostgresError::Url("names no database; write postgres://user@host:5432/name".to_owned()));
        }
        config
            .ssl_mode(tls.wire_mode())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(Duration::from_secs(60))
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES);
        Ok(Database { config, tls, shown: redact::mask_url(text) })
    }

    /// Name of the database; PostgreSQL's default is the user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or_default()
    }

    /// The database called `name` on the same server, for the same role.
    #[must_use]
    pub fn named(&self, name: &str) -> Database {
        let mut config = self.config.clone();
        config.dbname(name);
        let shown = match url::Url::parse(&self.shown) {
            Ok(mut url) => {
                url.set_path(name);
                // The mask is text that an URL would write otherwise.
                url.as_str().replace("%2A%2A%2A", "***")
            }
            Err(_) => format!("{} (database {name})", self.shown),
        };
        Database { config, tls: self.tls.clone(), shown }
    }

    /// Whether the server is on this machine.
    #[must_use]
    pub fn is_here(&self) -> bool {
        use tokio_postgres::config::Host;
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            Host::Unix(_) => true,
        })
    }

    /// Opens a session that shows itself as `bullwork: <purpose>` in `pg_stat_activity`.
    ///
    /// # Errors
    /// When there is no session to be had within 15 s.
    pub async fn connect(&self, purpose: &str) -> Result<Connection, PostgresError> {
        let refused = |reason: String| PostgresError::Connect { database: self.shown.clone(), reason: redact::scrub(&reason) };
        let mut config = self.config.clone();
        config.application_name(format!("bullwork: {purpose}"));
        let tls = self.tls.connector().map_err(refused)?;
        let diversion = self.is_wired().then(Arc::<wire::Diversion>::default);
        let opening = async {
            let (client, (task, closed)) = match &diversion {
                Some(diversion) => {
                    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                    let connector = wire::Connector { tls, mode: self.tls.wire_mode(), diversion: Arc::clone(diversion) };
                    let (client, connection) = config.connect(connector).await?;
                    (client, drive(connection))
                }
                None => {
                    let (client, connection) = config.connect(tls).await?;
                    (client, drive(connection))
                }
            };
            let canceller = Canceller { token: client.cancel_token(), tls: self.tls.clone(), wired: diversion.is_some() };
            let session = Connection { client, closed, task, canceller, diversion, throttle: None };
            // Refused by servers on systems that cannot tell; the session is good without.
            let _ = session.batch_execute(NOTICE_OUR_END).await;
            Ok::<_, tokio_postgres::Error>(session)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT + Duration::from_secs(5), opening).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(refused(explain(&error))),
            Err(_) => Err(refused(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs() + 5))),
        }
    }

    /// Whether sessions go over our own [`wire`]: the driver lets us in below it only where TLS could be.
    fn is_wired(&self) -> bool {
        use tokio_postgres::config::Host;
        let over_tcp = self.config.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_)));
        over_tcp && self.config.get_ssl_negotiation() == SslNegotiation::Postgres
    }

    /// The environment that makes a PostgreSQL client program connect here, so that nothing
    /// secret stands in its arguments. Values are secret as a whole.
    #[must_use]
    pub fn client_environment(&self) -> Vec<(&'static str, Secret)> {
        use tokio_postgres::config::Host;
        let mut vars = Vec::new();
        if let Some(host) = self.config.get_hosts().first() {
            let host = match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            };
            vars.push(("PGHOST", host));
        }
        vars.push(("PGPORT", self.config.get_ports().first().unwrap_or(&5432).to_string()));
        if let Some(user) = self.config.get_user() {
            vars.push(("PGUSER", user.to_owned()));
        }
        vars.push(("PGDATABASE", self.name().to_owned()));
        vars.push(("PGSSLMODE", self.tls.libpq_mode().to_owned()));
        if let Some(root) = self.tls.root_certificate() {
            vars.push(("PGSSLROOTCERT", root.to_owned()));
        }
        vars.push(("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT.as_secs().to_string()));
        let mut vars: Vec<(&'static str, Secret)> = vars.into_iter().map(|(n, v)| (n, Secret::unremembered(v))).collect();
        if let Some(password) = self.config.get_password() {
            vars.push(("PGPASSWORD", Secret::new(String::from_utf8_lossy(password).into_owned())));
        }
        vars
    }
}

/// A session; it ends when this is dropped.
pub struct Connection {
    client: Client,
    closed: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    canceller: Canceller,
    diversion: Option<Arc<wire::Diversion>>,
    throttle: Option<Arc<Throttle>>,
}

/// Moves a session's messages until it ends; the token tells that it has.
fn drive<T>(connection: tokio_postgres::Connection<tokio_postgres::Socket, T>) -> (tokio::task::JoinHandle<()>, CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closed = CancellationToken::new();
    let closing = closed.clone();
    let task = tokio::spawn(async move {
        // The client's own calls report the error; here only the end matters.
        let _ = connection.await;
        closing.cancel();
    });
    (task, closed)
}

/// Asks the server to give up what a session is doing. A closed socket alone does not: the
/// server notices it only when it next reads or writes, which an index build does at its end.
#[derive(Clone)]
pub struct Canceller {
    token: tokio_postgres::CancelToken,
    tls: tls::Mode,
    wired: bool,
}

impl Canceller {
    /// Sends the request; best effort, for the session may be gone.
    pub async fn cancel(&self) {
        let Ok(tls) = self.tls.connector() else { return };
        let asking = async {
            if self.wired {
                let connector = wire::Connector { tls, mode: self.tls.wire_mode(), diversion: Arc::default() };
                self.token.cancel_query(connector).await
            } else {
                self.token.cancel_query(tls).await
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), asking).await;
    }
}

impl Connection {
    /// Cancels what this session does, also after the session was dropped.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Cancelled when the session has ended, from whichever side.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Has what is copied out wait for `throttle`.
    #[must_use]
    pub fn throttled(mut self, throttle: Option<Arc<Throttle>>) -> Self {
        self.throttle = throttle;
        self
    }

    /// Waits while the throttle, if there is one, lets nothing pass: for queries that read much and send little.
    pub async fn stand_back(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.pass(0).await;
        }
    }

    /// For `BEGIN` … through `Client::transaction`, which needs it mutable.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without this a statement that still runs would keep its locks until its end.
        self.task.abort();
    }
}

/// The first part of the server's version, such as 15.
///
/// # Errors
/// When the session is gone.
pub async fn server_major(client: &Client) -> Result<u32, PostgresError> {
    let sql = "select current_setting('server_version_num')::int / 10000";
    let major: i32 = client.query_one(sql, &[]).await.doing(|| "asking for the server's version".to_owned())?.get(0);
    Ok(u32::try_from(major).unwrap_or_default())
}

/// Why `target` cannot be a copy of `source`, where it is a server of an older major: it would refuse definitions, and
/// values, that it does not know.
///
/// # Errors
/// When a session is gone.
pub async fn older_target(source: &Client, target: &Client) -> Result<Option<String>, PostgresError> {
    let (from, to) = (server_major(source).await?, server_major(target).await?);
    let told = || {
        format!(
            "the target runs PostgreSQL {to} and the source {from}: copies go to the same major or a later one; upgrade the target"
        )
    };
    Ok((to < from).then(told))
}

/// `name` quoted as an identifier, whatever it holds.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, both quoted.
#[must_use]
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

/// `text` quoted as a literal that reads the same under every setting of
/// `standard_conforming_strings`.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The server's message with detail, hint and code; or the whole chain of a client-side error.
#[must_use]
pub fn explain(error: &tokio_postgres::Error) -> String {
    let text = match error.as_db_error() {
        Some(db) => {
            let mut text = db.message().to_owned();
            for extra in [db.detail(), db.hint(), db.where_()].into_iter().flatten() {
                text.push_str("; ");
                text.push_str(extra);
            }
            format!("{text} (SQLSTATE {})", db.code().code())
        }
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text.push_str(": ");
                    text.push_str(&inner_text);
                }
                source = inner.source();
            }
            text
        }
    };
    redact::scrub(&text)
}

/// Adds what we were doing to a driver's error.
pub trait Doing<T> {
    /// Turns the error into one that reads `<what>: <the server's words>`.
    ///
    /// # Errors
    /// The same error, told better.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, PostgresError>;
}

impl<T> Doing<T> for Result<T, tokio_postgres::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, PostgresError> {
        self.map_err(|error| PostgresError::Statement { doing: what(), reason: explain(&error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted_whatever_they_hold() {
        assert_eq!(quote_qualified("public", "knowledge-elements"), "\"public\".\"knowledge-elements\"");
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b"), " E'a\\\\b'");
    }

    #[test]
    fn bad_urls_are_told_without_their_password() {
        for (url, wanted) in [
            ("mysql://u:topsecret@h/d", "scheme `mysql`"),
            ("postgres:///", "names no"),
            ("nonsense", "is not a URL"),
            ("postgres://u:topsecret@h/d?sslmode=maybe", "sslmode"),
        ] {
            let text = Database::parse(url).unwrap_err().to_string();
            assert!(text.contains(wanted), "{url}: {text}");
            assert!(!text.contains("topsecret"), "{text}");
        }
    }

    #[test]
    fn another_database_of_the_same_server_has_another_name_only() {
        let database = Database::parse("postgres://me:pass@db.example:6000/shop?sslmode=require").unwrap().named("copy");
        assert_eq!(
            (database.name(), database.to_string().as_str()),
            ("copy", "postgres://me:***@db.example:6000/copy?sslmode=require")
        );
    }

    #[test]
    fn children_connect_by_environment() {
        let database = Database::parse("postgres://me:pass%2Fword@db.example:6000/shop?sslmode=require").unwrap();
        let env: Vec<(&str, String)> =
            database.client_environment().into_iter().map(|(n, v)| (n, v.expose().to_owned())).collect();
        assert!(env.contains(&("PGHOST", "db.example".to_owned())));
        assert!(env.contains(&("PGPORT", "6000".to_owned())));
        assert!(env.contains(&("PGPASSWORD", "pass/word".to_owned())));
        assert!(env.contains(&("PGSSLMODE", "require".to_owned())));
        assert_eq!(format!("{database}"), "postgres://me:***@db.example:6000/shop?sslmode=require");
    }
}
