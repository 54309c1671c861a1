//! Several Redis servers that belong together: watched by sentinels, or a cluster.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::redis::RedisServer;
use super::{Server, eventually, free_port};

const LIMIT: Duration = Duration::from_secs(30);

/// A primary with a replica, watched by three sentinels under the name `mymaster`.
pub struct Watched {
    pub primary: RedisServer,
    pub replica: RedisServer,
    /// Their ports.
    pub sentinels: Vec<u16>,
    _servers: Vec<(Server, tempfile::TempDir)>,
}

impl Watched {
    /// All of them, each knowing the others. The sentinels want `password`, if there is one.
    pub async fn start(password: Option<&str>) -> Watched {
        let primary = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
        eventually("the replica has its primary", LIMIT, async || {
            let role = format!("{:?}", replica.command(&["ROLE"]).await);
            role.contains("connected")
        })
        .await;
        let mut watched = Watched { primary, replica, sentinels: Vec::new(), _servers: Vec::new() };
        for _ in 0..3 {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let (port, primary) = (free_port(), watched.primary.port);
            let mut settings = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {primary} 2\n\
                 sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n",
                directory.path().display()
            );
            if let Some(password) = password {
                settings += &format!("requirepass {password}\nsentinel sentinel-pass {password}\n");
            }
            let file = directory.path().join("sentinel.conf");
            std::fs::write(&file, settings).expect("the directory is writable");
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            watched._servers.push((Server::start(command, Signal::SIGKILL), directory));
            watched.sentinels.push(port);
        }
        for port in watched.sentinels.clone() {
            let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
            let client = redis::Client::open(format!("redis://{login}127.0.0.1:{port}")).expect("a valid URL");
            eventually("a sentinel knows the others and the replica", LIMIT, async || {
                let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
                let list = async |connection: &mut redis::aio::MultiplexedConnection, what: &str| {
                    let all: Result<Vec<redis::Value>, _> =
                        redis::cmd("SENTINEL").arg(what).arg("mymaster").query_async(connection).await;
                    all.map_or(0, |all| all.len())
                };
                list(&mut connection, "SENTINELS").await == 2 && list(&mut connection, "REPLICAS").await == 1
            })
            .await;
        }
        watched
    }
}

/// Starts a cluster of `count` nodes, each with its part of the slots.
pub async fn cluster(count: u16) -> Vec<RedisServer> {
    let mut nodes: Vec<(RedisServer, u16)> = Vec::new();
    for number in 0..count {
        let bus = free_port();
        let node = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
        let share = 16384 / u32::from(count);
        let first = share * u32::from(number);
        let last = if number + 1 == count { 16383 } else { first + share - 1 };
        node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
        if let Some((known, known_bus)) = nodes.first() {
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &known.port.to_string(), &known_bus.to_string()]).await;
        }
        nodes.push((node, bus));
    }
    let nodes: Vec<RedisServer> = nodes.into_iter().map(|(node, _)| node).collect();
    for node in &nodes {
        eventually("the nodes agree", LIMIT, async || {
            let mut connection = node.connection().await;
            let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.unwrap();
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_known_nodes:{count}\r"))
        })
        .await;
    }
    nodes
}
