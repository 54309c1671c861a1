//! A Redis of its own for a test.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Server, free_port};

pub struct RedisServer {
    server: Option<Server>,
    pub port: u16,
    directory: tempfile::TempDir,
    tls: bool,
}

impl RedisServer {
    fn new() -> RedisServer {
        let directory = tempfile::tempdir().expect("a temporary directory");
        RedisServer { server: None, port: free_port(), directory, tls: false }
    }

    /// An empty server without persistence.
    pub fn start() -> RedisServer {
        Self::start_with(&[])
    }

    /// The same with more options.
    pub fn start_with(options: &[&str]) -> RedisServer {
        let mut redis = Self::new();
        redis.launch(&[&["--save", "", "--appendonly", "no"], options].concat());
        redis
    }

    /// An empty server that keeps every write, so that [`RedisServer::restart`] loses nothing.
    pub fn start_durable() -> RedisServer {
        let mut redis = Self::new();
        redis.launch(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        redis
    }

    /// A server that speaks TLS only, with a certificate for 127.0.0.1.
    pub fn start_with_tls() -> RedisServer {
        let mut redis = Self::new();
        redis.tls = true;
        let root_key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut root = rcgen::CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&root_key).expect("a root can be made").pem();
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|parameters| parameters.signed_by(&key, &rcgen::Issuer::new(root, root_key)))
            .expect("a certificate can be made");
        for (name, text) in [("root.crt", root_pem), ("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
            std::fs::write(redis.file(name), text).expect("the directory is writable");
        }
        redis.launch(&["--save", "", "--appendonly", "no"]);
        redis
    }

    /// A file in the server's directory: `root.crt` is the authority of one that speaks TLS.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("a temporary directory has a plain name").to_owned()
    }

    fn launch(&mut self, options: &[&str]) {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--maxmemory-policy", "noeviction", "--dir"]).arg(self.directory.path());
        if self.tls {
            let [root, certificate, key] = ["root.crt", "server.crt", "server.key"].map(|name| self.file(name));
            command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--tls-ca-cert-file", &root]);
            command.args(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
        } else {
            command.args(["--port", &port]);
        }
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Server::start(command, Signal::SIGKILL);
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if !server.runs() {
                // Another process took the port between asking and listening.
                self.port = free_port();
                return self.launch(options);
            }
            assert!(start.elapsed() < Duration::from_secs(20), "redis-server did not listen within 20 s");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.server = Some(server);
    }

    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts a killed durable server again on the same port.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with more options.
    pub fn restart_with(&mut self, options: &[&str]) {
        self.server = None;
        let durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        self.launch(&[&durable, options].concat());
    }

    pub fn url(&self) -> String {
        format!("redis{}://127.0.0.1:{}", if self.tls { "s" } else { "" }, self.port)
    }

    /// Sends a command; its answer.
    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// A plain connection for looking at keys.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        // The driver's own limit of half a second is too short for a busy machine.
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(20)))
            .set_response_timeout(Some(Duration::from_secs(20)));
        let client = redis::Client::open(self.url()).expect("a valid URL");
        client.get_multiplexed_async_connection_with_config(&patient).await.expect("redis answers")
    }
}
