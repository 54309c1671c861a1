//! Finds the server to connect to, each time a connection is opened.
//!
//! - *One server*: at its address, until it says that a key has moved.
//! - *Cluster*: all keys of a prefix with a hash tag are on one node. Whatever node is asked first tells which
//!   (`MOVED`): the next connection goes there, and when that one is gone, to the nodes of the URL again. A URL that says
//!   so is for clusters only: the first server is asked whether it belongs to one.
//! - *Sentinel*: the sentinels are asked in turn, the one that answered last first. What they say is believed
//!   when the server agrees (`ROLE`): during a failover they may still name the old one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::{Client, ErrorKind, RedisConnectionInfo, RedisResult, ServerErrorKind, Value};

use super::address::{Address, Kind, Node};
use super::{COMMAND_TIMEOUT, RedisError, connection};
use crate::redact;

/// What a server that belongs to no cluster says when it is asked about that.
const NO_CLUSTER: &str = "cluster support disabled";

/// For one server out of several: a failover must not wait for those that are gone.
const ONE_OF_MANY: Duration = Duration::from_secs(2);

pub(super) struct Route {
    address: Address,
    /// The node that owns our keys, or the sentinel that answered last.
    known: Mutex<Option<Node>>,
    /// Whether a node of the cluster that is meant said that it is one.
    is_cluster: AtomicBool,
}

impl Route {
    pub(super) fn new(address: Address) -> Route {
        Route { address, known: Mutex::default(), is_cluster: AtomicBool::new(false) }
    }

    fn known(&self) -> Option<Node> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, node: Option<Node>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// The known one first, then those of the URL.
    fn candidates(&self) -> Vec<Node> {
        let known = self.known();
        let others = self.address.seeds.iter().filter(|node| Some(*node) != known.as_ref()).cloned();
        known.iter().cloned().chain(others).collect()
    }

    /// Notes where the keys are: `place` is `SLOT HOST:PORT` of a `MOVED`.
    pub(super) fn moved(&self, place: &str) {
        let Some((host, port)) = place.split_whitespace().nth(1).and_then(|node| node.rsplit_once(':')) else { return };
        let Ok(port) = port.parse() else { return };
        let here = || self.candidates().first().map(|node| node.host.clone());
        // A node that does not know its own address means the one that it was asked at.
        let Some(host) = (if host.is_empty() { here() } else { Some(host.trim_matches(['[', ']']).to_owned()) }) else { return };
        self.remember(Some(Node { host, port }));
    }

    /// What `open` makes of the server's address; the reasons when no server is to be had.
    pub(super) async fn connect<T, F>(&self, open: impl Fn(Client) -> F + Send + Sync) -> Result<T, String>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        if let Kind::Sentinel { master, login } = &self.address.kind {
            let node = self.master(master, login).await?;
            return self.attempt(Some(&node), ONE_OF_MANY * 2, &open).await.map_err(|reason| format!("{node}: {reason}"));
        }
        let candidates = self.candidates();
        match &candidates[..] {
            [] => self.attempt(None, COMMAND_TIMEOUT, &open).await,
            [node] => self.reach(node, COMMAND_TIMEOUT, &open).await,
            nodes => {
                let mut reasons = Vec::new();
                for node in nodes {
                    match self.reach(node, ONE_OF_MANY, &open).await {
                        Ok(opened) => return Ok(opened),
                        Err(reason) => reasons.push(format!("{node}: {reason}")),
                    }
                    // Whoever owns the keys now is told by the next node.
                    self.remember(None);
                }
                Err(reasons.join("; "))
            }
        }
    }

    /// As [`Route::attempt`], once it is known that there is a cluster where one is meant.
    async fn reach<T, F>(&self, node: &Node, limit: Duration, open: &(impl Fn(Client) -> F + Send + Sync)) -> Result<T, String>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        if matches!(self.address.kind, Kind::Cluster) && !self.is_cluster.load(Ordering::Relaxed) {
            let ask = |client: Client| async move {
                let config = connection::config(Some(limit));
                let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                match redis::cmd("CLUSTER").arg("INFO").query_async::<Value>(&mut connection).await {
                    Err(error) if error.to_string().contains(NO_CLUSTER) => Ok(false),
                    // A user may not be allowed to ask.
                    _ => Ok(true),
                }
            };
            if !self.attempt(Some(node), limit, &ask).await? {
                let s = if self.address.is_encrypted() { "s" } else { "" };
                return Err(format!("it is no cluster: write redis{s}:// instead of redis{s}-cluster://"));
            }
            self.is_cluster.store(true, Ordering::Relaxed);
        }
        self.attempt(Some(node), limit, open).await
    }

    async fn attempt<T, F>(
        &self,
        node: Option<&Node>,
        limit: Duration,
        open: &(impl Fn(Client) -> F + Send + Sync),
    ) -> Result<T, String>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        let client = Client::open(self.address.at(node)).map_err(|e| e.to_string())?;
        within(limit, open(client)).await.map_err(|reason| self.hinted(reason))
    }

    /// `reason` with what to try when one side speaks TLS and the other does not, in the words of the URL's own form.
    pub(super) fn hinted(&self, reason: String) -> String {
        let form = self.address.form();
        let (plain, secure) = (format!("redis{form}://"), format!("rediss{form}://"));
        let says = |parts: &[&str]| parts.iter().any(|part| reason.contains(part));
        match self.address.is_encrypted() {
            true if says(&["InvalidContentType", "corrupt message"]) => {
                format!("{reason} (it does not speak TLS: write {plain} instead of {secure})")
            }
            // A Redis without TLS takes the greeting for the beginning of a long command.
            true if reason.starts_with("no answer") => {
                format!("{reason} (if it does not speak TLS, write {plain} instead of {secure})")
            }
            false if says(&["broken pipe", "unexpected end of file", "reset by peer"]) => {
                format!("{reason} (if it speaks TLS only, write {secure} instead of {plain})")
            }
            _ => reason,
        }
    }

    /// Where the master is, as a sentinel and the server itself say.
    async fn master(&self, name: &str, login: &RedisConnectionInfo) -> Result<Node, String> {
        let mut reasons = Vec::new();
        for sentinel in self.candidates() {
            match self.ask(&sentinel, name, login).await {
                Ok(master) => match self.role(&master).await {
                    Ok(()) => {
                        self.remember(Some(sentinel));
                        return Ok(master);
                    }
                    Err(reason) => reasons.push(format!("sentinel {sentinel} names {master}: {reason}")),
                },
                Err(reason) => reasons.push(format!("sentinel {sentinel}: {reason}")),
            }
        }
        Err(reasons.join("; "))
    }

    async fn ask(&self, sentinel: &Node, name: &str, login: &RedisConnectionInfo) -> Result<Node, String> {
        let client = Client::open(self.address.sentinel_at(sentinel, login)).map_err(|e| e.to_string())?;
        let asking = async {
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&connection::config(Some(ONE_OF_MANY))).await?;
            redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(name).query_async(&mut connection).await
        };
        match within(ONE_OF_MANY, asking).await {
            Ok(Some((host, port))) => Ok(Node { host, port }),
            Ok(None) => Err(format!("it knows no master `{name}`; write the name in the URL as SENTINEL MASTERS shows it")),
            Err(reason) if ["NOAUTH", "AuthenticationFailed", "WRONGPASS"].iter().any(|part| reason.contains(part)) => {
                let reason = reason.split(" (").next().unwrap_or(&reason);
                Err(format!("{reason}; sentinels have a login of their own: add ?sentinel-user=NAME&sentinel-password=PASSWORD"))
            }
            Err(reason) if reason.to_lowercase().contains("unknown command") => {
                let s = if self.address.is_encrypted() { "s" } else { "" };
                Err(format!(
                    "it is no sentinel: name the sentinels and their port, 26379 as a rule, or write redis{s}:// and the server's address"
                ))
            }
            Err(reason) => Err(self.hinted(reason)),
        }
    }

    /// Whether it is a master.
    async fn role(&self, node: &Node) -> Result<(), String> {
        let open = |client: Client| async move {
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&connection::config(Some(ONE_OF_MANY))).await?;
            match redis::cmd("ROLE").query_async::<Vec<Value>>(&mut connection).await {
                Ok(role) => Ok(matches!(role.first(), Some(Value::BulkString(role)) if role != b"master")),
                // A user may not be allowed to ask.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => Ok(false),
                Err(error) => Err(error),
            }
        };
        match self.attempt(Some(node), ONE_OF_MANY, &open).await {
            Ok(false) => Ok(()),
            Ok(true) => Err("it is a replica; the failover is not over yet".to_owned()),
            Err(reason) => Err(reason),
        }
    }
}

async fn within<T>(limit: Duration, doing: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match tokio::time::timeout(limit, doing).await {
        Ok(Err(error)) if !error.is_timeout() => Err(explain(&error)),
        Ok(Ok(done)) => Ok(done),
        _ => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// What an error means, and the way out where we know one.
pub(super) fn explain(error: &redis::RedisError) -> String {
    let text = redact::scrub(&error.to_string());
    let has = |part: &str| text.contains(part);
    let hint = if has("WRONGPASS") || error.kind() == ErrorKind::AuthenticationFailed {
        "user or password is wrong: correct them in the URL"
    } else if has("NOAUTH") || has("Authentication required") {
        "it wants a password: put user and password into the URL"
    } else if has("SELECT is not allowed in cluster mode") {
        "a cluster has database 0 only: leave the number out of the URL"
    } else if has("DB index is out of range") {
        "the database number in the URL is too high; Redis has 16 unless told otherwise"
    } else if ["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"].into_iter().any(has) {
        "nobody we trust vouches for its certificate: name the CA's file with ?sslrootcert=/path/ca.pem"
    } else if has("certificate not valid for name") || has("NotValidForName") {
        "its certificate is for another name: use a host name that it holds"
    } else if error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot) {
        "in a Redis Cluster all keys of the queues must share a slot: use a prefix with a hash tag such as {bull}"
    } else {
        return text;
    };
    format!("{text} ({hint})")
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        RedisError::Command(explain(&error))
    }
}
