//! What a Redis URL says.
//!
//! ```text
//! redis://[[user]:password@]host[:6379][/database]                     one server
//! redis-sentinel://[[user]:password@]host[:26379][,host…]/master[/database]
//! redis-cluster://[[user]:password@]host[:6379][,host…]                some nodes of a cluster
//! ```
//!
//! With `rediss` in front of it everything is encrypted, sentinels too. Parameters: `sslrootcert=/path/ca.pem` trusts
//! that authority instead of the system's (the word of the databases' URLs); `sentinel-user` and `sentinel-password`
//! are for sentinels that want a login of their own. `#insecure` encrypts and believes any certificate. Lettuce's form of
//! a sentinel URL, `…/database#master`, is understood too. Whatever else a URL holds is refused: a parameter that is not
//! understood is one that somebody counts on. A reason ends with the way out.

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates};
use std::time::Duration;
use url::Url;

use crate::redact;

/// How to write the address of one server.
const ONE: &str = "redis://host:6379/0";
/// That of sentinels.
const SENTINELS: &str = "redis-sentinel://host:26379/mymaster/0";
/// That of a cluster.
const CLUSTER: &str = "redis-cluster://host:6379,host:6379";
/// What is behind a `@` is taken for a part of the address, since a character of the login ends it.
const UNFIT_PASSWORD: &str =
    "it cannot be read; if its password holds such characters, write `/` in it as %2F, `?` as %3F, `#` as %23 and `@` as %40";

/// Parameters of every URL but a socket's.
const PARAMETERS: &[&str] = &["sslrootcert", "protocol"];
const SENTINEL_PARAMETERS: &[&str] = &["sentinel-user", "sentinel-password"];
const SOCKET_PARAMETERS: &[&str] = &["db", "user", "pass", "protocol"];

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How the server is found.
#[derive(Clone)]
pub(super) enum Kind {
    /// At the address given, or at the one that it names as a cluster's node.
    Direct,
    /// At one of the addresses given, which are nodes of a cluster, or at the one that it names.
    Cluster,
    /// Sentinels tell where it is.
    Sentinel {
        /// The name that they know it by.
        master: String,
        /// How to log in to them.
        login: RedisConnectionInfo,
    },
}

/// A URL that was read.
#[derive(Clone)]
pub(super) struct Address {
    /// Everything but the place.
    template: ConnectionInfo,
    /// Where to ask, in this order; none for a socket in the file system.
    pub(super) seeds: Vec<Node>,
    pub(super) kind: Kind,
}

impl Address {
    /// Reads a URL; the reason when it cannot be used.
    pub(super) fn parse(text: &str) -> Result<Address, String> {
        let Some((scheme, rest)) = text.split_once("://") else { return Err(format!("it has no scheme; write {ONE}")) };
        let (base, form) = scheme.split_once(['-', '+']).unwrap_or((scheme, ""));
        let is_ours = matches!(base, "redis" | "rediss");
        // Where the address ends, and where its parameters begin.
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let is_cut = is_ours && form != "unix" && !rest[..end].contains('@') && rest[end..].contains('@');
        let read = match form {
            "sentinel" if is_ours => Self::many(base, rest, 26379, Self::sentinels),
            "cluster" if is_ours => Self::many(base, rest, 6379, Self::cluster),
            _ => Self::one(text),
        };
        // An `@` behind that end is a login's, unless it is a parameter's.
        let before_parameters = rest[end..].split(['?', '#']).next().unwrap_or_default();
        match read {
            Ok(_) if is_cut && before_parameters.contains('@') => Err(UNFIT_PASSWORD.to_owned()),
            Err(_) if is_cut => Err(UNFIT_PASSWORD.to_owned()),
            other => other,
        }
    }

    fn one(text: &str) -> Result<Address, String> {
        let url = Url::parse(text).map_err(|e| format!("{e}; write {ONE}"))?;
        let template = template(&url, &[], ONE)?;
        let seeds = match template.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                vec![Node { host: host.clone(), port: *port }]
            }
            _ => Vec::new(),
        };
        Ok(Address { template, seeds, kind: Kind::Direct })
    }

    /// A URL with several hosts; `read` takes out of it what is special, and leaves that of one server.
    fn many(base: &str, rest: &str, port: u16, read: fn(Url) -> Result<(Kind, Url), String>) -> Result<Address, String> {
        let (parameters, example) = if port == 26379 { (SENTINEL_PARAMETERS, SENTINELS) } else { (&[][..], CLUSTER) };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
        let at = if login.is_empty() { "" } else { "@" };
        let mut seeds = Vec::new();
        for host in hosts.split(',') {
            let url = Url::parse(&format!("redis://{host}")).map_err(|e| format!("`{host}` is no host: {e}; write {example}"))?;
            let name =
                url.host_str().filter(|name| !name.is_empty()).ok_or_else(|| format!("a host is empty; write {example}"))?;
            let host = name.trim_matches(['[', ']']).to_owned();
            seeds.push(Node { host, port: url.port().unwrap_or(port) });
        }
        let url = Url::parse(&format!("{base}://{login}{at}{}{tail}", seeds[0])).map_err(|e| format!("{e}; write {example}"))?;
        let (kind, url) = read(url)?;
        Ok(Address { template: template(&url, parameters, example)?, seeds, kind })
    }

    fn cluster(url: Url) -> Result<(Kind, Url), String> {
        match url.path().trim_matches('/') {
            "" | "0" => Ok((Kind::Cluster, url)),
            _ => Err("a cluster has database 0 only: leave the number out".to_owned()),
        }
    }

    fn sentinels(mut url: Url) -> Result<(Kind, Url), String> {
        let parts: Vec<String> = url.path().split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let fragment = url.fragment().filter(|fragment| *fragment != "insecure").map(decoded);
        let (master, database) = match (fragment, &parts[..]) {
            (Some(master), []) => (master, String::new()),
            (Some(master), [database]) => (master, database.clone()),
            (None, [master]) => (master.clone(), String::new()),
            (None, [master, database]) => (master.clone(), database.clone()),
            _ => return Err(format!("it does not name the master as {SENTINELS} does")),
        };
        if url.fragment().is_some_and(|fragment| fragment != "insecure") {
            url.set_fragment(None);
        }
        url.set_path(&database);
        let mut login = RedisConnectionInfo::default();
        for (name, value) in url.query_pairs() {
            match &*name {
                "sentinel-user" => login = login.set_username(&*value),
                "sentinel-password" => {
                    redact::remember(&value);
                    login = login.set_password(&*value);
                }
                _ => {}
            }
        }
        Ok((Kind::Sentinel { master, login }, url))
    }

    /// What stands between `redis` or `rediss` and `://`.
    pub(super) fn form(&self) -> &'static str {
        match self.kind {
            Kind::Direct => "",
            Kind::Cluster => "-cluster",
            Kind::Sentinel { .. } => "-sentinel",
        }
    }

    /// Whether it is to be TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.template.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// How to connect to `node`; to the only place there is without one.
    pub(super) fn at(&self, node: Option<&Node>) -> ConnectionInfo {
        let Some(node) = node else { return self.template.clone() };
        let (host, port) = (node.host.clone(), node.port);
        let place = match self.template.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.template.clone().set_addr(place)
    }

    /// How to connect to a sentinel.
    pub(super) fn sentinel_at(&self, node: &Node, login: &RedisConnectionInfo) -> ConnectionInfo {
        self.at(Some(node)).set_redis_settings(login.clone())
    }
}

/// The settings of one server's URL, with the certificates that it names. It may have `more` parameters; `example` is how to
/// write one.
fn template(url: &Url, more: &[&str], example: &str) -> Result<ConnectionInfo, String> {
    if let Some(password) = url.password() {
        redact::remember(password);
        redact::remember(&decoded(password));
    }
    let info = url.clone().into_connection_info().map_err(|e| format!("{e}; write {example}"))?.set_tcp_settings(tcp());
    let known = if let ConnectionAddr::Unix(_) = info.addr() { SOCKET_PARAMETERS } else { PARAMETERS };
    let known: Vec<&str> = known.iter().chain(more).copied().collect();
    if let Some((unknown, _)) = url.query_pairs().find(|(name, _)| !known.contains(&&**name)) {
        let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        return Err(format!("`{unknown}` is no parameter of such a URL; there are {}", known.join(", ")));
    }
    let root = url.query_pairs().find(|(name, _)| name == "sslrootcert").map(|(_, path)| path.into_owned());
    let ConnectionAddr::TcpTls { .. } = info.addr() else {
        return match root {
            Some(_) => Err("sslrootcert is for rediss:// only: write that, or leave it out".to_owned()),
            None => Ok(info),
        };
    };
    // The driver panics without; whoever embeds us may have chosen another.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root_cert = root
        .map(|path| match std::fs::read(&path) {
            Ok(pem) if pem.windows(11).any(|part| part == b"-----BEGIN ") => Ok(pem),
            Ok(_) => Err(format!("sslrootcert `{path}` holds no certificate in PEM form; name a file with the authority's")),
            Err(error) => Err(format!("reading sslrootcert `{path}`: {error}; name a file with the authority's certificate")),
        })
        .transpose()?;
    let client = redis::Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert });
    Ok(client.map_err(|e| e.to_string())?.get_connection_info().clone())
}

fn decoded(text: &str) -> String {
    // As a value of a form it is decoded the same way, but for the plus sign.
    let form = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// A peer that vanished without a word is noticed within half a minute: by probes when we only read, as a subscriber
/// does, and by the missing receipt when we wrote. Commands are small and wait for their answer, so none is held back to
/// fill a packet.
fn tcp() -> TcpSettings {
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(30));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Option<String>, ConnectionInfo) {
        let address = Address::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let master = match &address.kind {
            Kind::Direct | Kind::Cluster => None,
            Kind::Sentinel { master, .. } => Some(master.clone()),
        };
        (address.seeds.iter().map(ToString::to_string).collect(), master, address.at(address.seeds.first()))
    }

    #[test]
    fn every_form_of_url_is_understood() {
        let (seeds, master, info) = read("redis://ann:p%40ss@example.net:7000/3");
        assert_eq!((seeds, master), (vec!["example.net:7000".to_owned()], None));
        let login = info.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("ann"), Some("p@ss"), 3));
        for text in [
            "redis-sentinel://:p%40ss@a,b:1,[::1]:2/my-master/3",
            "redis+sentinel://:p%40ss@a,b:1,[::1]:2/3#my-master",
            "redis-sentinel://:p%40ss@a,b:1,[::1]:2/my%2Dmaster/3?sentinel-password=other",
        ] {
            let (seeds, master, info) = read(text);
            assert_eq!(seeds, ["a:26379", "b:1", "[::1]:2"], "{text}");
            assert_eq!(master.as_deref(), Some("my-master"), "{text}");
            assert_eq!((info.redis_settings().db(), info.redis_settings().password()), (3, Some("p@ss")), "{text}");
            assert!(matches!(info.addr(), ConnectionAddr::Tcp(host, 26379) if host == "a"), "{text}");
        }
        let (_, master, info) = read("rediss-sentinel://a/m#insecure");
        assert_eq!(master.as_deref(), Some("m"));
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }));
        let (seeds, _, info) = read("rediss-cluster://ann:secret@a,b");
        assert_eq!(seeds, ["a:6379", "b:6379"]);
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        assert_eq!(info.redis_settings().username(), Some("ann"));
    }

    #[test]
    fn a_sentinels_login_is_its_own() {
        let address = Address::parse("redis-sentinel://ann:one@a/m/2?sentinel-user=eve&sentinel-password=two").unwrap();
        let Kind::Sentinel { login, .. } = &address.kind else { panic!("a sentinel URL") };
        let info = address.sentinel_at(&address.seeds[0], login);
        assert_eq!((info.redis_settings().username(), info.redis_settings().password()), (Some("eve"), Some("two")));
        assert_eq!(info.redis_settings().db(), 0, "sentinels have no databases");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("127.0.0.1:6379", "no scheme"),
            ("http://a", "not a redis URL"),
            ("redis://a/x", "database number"),
            ("redis-sentinel://a:26379", "does not name the master"),
            ("redis-sentinel://a,,b/m", "a host is empty"),
            ("redis-cluster://a:port", "invalid port"),
            ("redis://a?sslrootcert=/x", "rediss:// only"),
            ("redis-sentinel://ann:12/word@b/m", "%2F"),
            ("redis-cluster://a/3", "database 0 only"),
            ("redis://a?db=3", "`db` is no parameter"),
            ("rediss://a?sslrootcert=/no/such/file", "reading sslrootcert `/no/such/file`"),
        ] {
            let error = Address::parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
