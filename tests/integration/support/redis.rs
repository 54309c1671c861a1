//! A Redis of its own for a test.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Server, free_port};

pub struct RedisServer {
    server: Option<Server>,
    pub port: u16,
    directory: tempfile::TempDir,
}

impl RedisServer {
    /// An empty server without persistence.
    pub fn start() -> RedisServer {
        let mut redis =
            RedisServer { server: None, port: free_port(), directory: tempfile::tempdir().expect("a temporary directory") };
        redis.launch(&["--save", "", "--appendonly", "no"]);
        redis
    }

    /// An empty server that keeps every write, so that [`RedisServer::restart`] loses nothing.
    pub fn start_durable() -> RedisServer {
        let mut redis =
            RedisServer { server: None, port: free_port(), directory: tempfile::tempdir().expect("a temporary directory") };
        redis.launch(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        redis
    }

    fn launch(&mut self, options: &[&str]) {
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--maxmemory-policy", "noeviction", "--dir"])
            .arg(self.directory.path())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
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
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A plain connection for looking at keys.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url()).expect("a valid URL").get_multiplexed_async_connection().await.expect("redis answers")
    }
}
