//! A pooler that gives each transaction another session.

use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::postgres::{Database, pooler};

use super::World;
use crate::support::postgres::{PASSWORD, as_server_user};
use crate::support::{Server, eventually, free_port};

/// `None`: it is not installed.
async fn pgbouncer(world: &World, mode: &str) -> Option<(Server, String, tempfile::TempDir)> {
    if Command::new("pgbouncer").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("NOT RUN: pgbouncer is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = world.cluster.port;
    let settings = format!(
        "[databases]\n* = host=127.0.0.1 port={server} user=owner password='{PASSWORD}'\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
    );
    std::fs::write(directory.path().join("pgbouncer.ini"), settings).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("pgbouncer");
    command.arg(directory.path().join("pgbouncer.ini")).stdout(Stdio::null()).stderr(Stdio::null());
    as_server_user(&mut command);
    let running = Server::start(command, nix::sys::signal::Signal::SIGTERM);
    eventually("the pooler listens", Duration::from_secs(10), async || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
        .await;
    Some((running, world.cluster.url("from").replace(&server.to_string(), &port.to_string()), directory))
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_on_either_side_and_one_in_session_mode_serves() {
    let mut world = World::new().await;
    world.on_source("create table t (id int primary key); insert into t values (1)").await;
    let Some((_running, url, _directory)) = pgbouncer(&world, "transaction").await else { return };
    let direct = world.config.source.clone();
    world.config.source = Database::parse(&url).unwrap();
    let error = world.fail().await;
    assert!(
        error.contains("a pooler stands there") && error.contains("session mode") && error.contains("target untouched"),
        "{error}"
    );
    let error = pooler::refuse(&Database::parse(&url.replace("/from", "/to")).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("a pooler stands there") && !error.contains("horse"), "{error}");

    let Some((_running, url, _directory)) = pgbouncer(&world, "session").await else { return };
    world.config.source = Database::parse(&url).unwrap();
    pooler::refuse(&world.config.source).await.unwrap();
    world.run().await;
    world.config.source = direct;
    world.assert_same_rows(&[]).await;
}
