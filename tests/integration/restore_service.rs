//! The restore service, whole: a real listener and a real worker, a real sshd, real clusters, real pgBackRest. Debian lacks
//! pg_probackup, so a stand-in behaves as the real one is known to, and its arguments are looked at.

mod archive;
mod cancel;
mod checks;
mod crash;
mod hostile;
mod pgbackrest;
mod probackup;
mod queue;
mod story;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use crate::support::postgres::{Cluster, PASSWORD, as_server_user, give_to_server_user, open_for_all, programs};
use crate::support::redis::RedisServer;
use crate::support::sshd::{self, Sshd};
use crate::support::{Server, free_port};

/// Longest wait for a task's end.
const LIMIT: Duration = Duration::from_secs(90);
/// What stands in for pg_probackup.
const STAND_IN: &str = include_str!("restore_service/pg_probackup.sh");

/// A service with one target, `main1`, whose cluster is a real one.
struct Scene {
    redis: RedisServer,
    sshd: Sshd,
    directory: tempfile::TempDir,
    port: u16,
    /// Of the target's cluster.
    pg_port: u16,
    config: Map<String, Value>,
    environment: Vec<(String, String)>,
}

impl Scene {
    /// With pg_probackup, and no cluster at the target yet.
    fn new() -> Scene {
        let directory = tempfile::Builder::new().prefix("bullwork-restore-").tempdir().expect("a temporary directory");
        open_for_all(directory.path());
        let at = |name: &str| directory.path().join(name).display().to_string();
        for name in ["pgdata", "pgwal", "pgwal/main", "backup", "log"] {
            std::fs::create_dir(at(name)).unwrap();
            give_to_server_user(Path::new(&at(name)));
        }
        std::fs::write(at("pg_probackup"), STAND_IN).unwrap();
        std::fs::set_permissions(at("pg_probackup"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (sshd, port, pg_port) = (Sshd::start(), free_port(), free_port());
        let bin = programs().display().to_string();
        let config = json!({
            "host": "127.0.0.1", "port": port, "archive_host": "127.0.0.1",
            "log_dir": "Logs", "log_file": "bot.log", "db_file": "tasks.db",
            "ssh_key": sshd.file("client").display().to_string(), "known_hosts": sshd.file("known_hosts").display().to_string(),
            "ssh_port": sshd.port, "ssh_user": sshd::user(), "pg_version": version(), "backup_dir": at("backup"),
            "tool": at("pg_probackup"), "wal_dir": format!("{}/{{pg_ctl_instance}}", at("pgwal")), "roots": [at("pgdata"), at("pgwal")],
            "stop_command": format!("{bin}/pg_ctl -D {{pgdata}} -m fast -w stop"),
            "start_command": format!(
                "{bin}/pg_ctl -D {{pgdata}} -l {}/pg.log -W -o '-p {pg_port} -k \"\" -c listen_addresses=127.0.0.1 -c fsync=off' start",
                at("log")
            ),
            "start_timeout": 60,
            "db_host_mapping": {"main1": {"db_host": "127.0.0.1", "pg_ctl_instance": "main", "pgdata": format!("{}/main1", at("pgdata"))}}
        });
        let Value::Object(config) = config else { unreachable!("it is an object") };
        let environment = vec![("JOB_LOCK_SECONDS".to_owned(), "2".to_owned())];
        Scene { redis: RedisServer::start_durable(), sshd, directory, port, pg_port, config, environment }
    }

    /// The same with a catalogue: a backup `GOOD` of a cluster in which table `t` says `restored`; and with a running target, where
    /// it says `before`.
    async fn with_clusters() -> Scene {
        let scene = Scene::new();
        scene.make_backup().await;
        scene.make_target().await;
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn pgdata(&self) -> PathBuf {
        self.path("pgdata/main1")
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config.insert(key.to_owned(), value);
    }

    /// Has the stand-in do something special.
    fn mode(&self, name: &str) {
        std::fs::write(self.path("backup").join(name), "").unwrap();
    }

    fn no_mode(&self, name: &str) {
        std::fs::remove_file(self.path("backup").join(name)).unwrap();
    }

    async fn make_backup(&self) {
        let source = Cluster::start();
        said(&source.client("postgres").await, "restored").await;
        base_backup(&source, &self.path("backup/data"));
        let catalogue = json!([{"instance": "main1", "backups": [
            {"id": "OLDER", "status": "OK", "recovery-time": "2026-01-01 09:00:00+03"},
            {"id": "GOOD", "status": "OK", "recovery-time": "2026-01-02 03:00:00+03", "data-bytes": 1000},
            {"id": "ABORTED", "status": "ERROR"},
            {"id": "ROTTEN", "status": "OK", "recovery-time": "2025-12-01 03:00:00Z"}
        ]}]);
        std::fs::write(self.path("backup/catalogue.json"), catalogue.to_string()).unwrap();
        self.mode("invalid-ROTTEN");
    }

    async fn make_target(&self) {
        let before = Cluster::start();
        said(&before.client("postgres").await, "before").await;
        base_backup(&before, &self.pgdata());
        drop(before);
        self.start_target();
        assert_eq!(self.says().await, "before");
        for file in ["pgdata/main1/.hidden", "pgwal/main/000000010000000000000001", "pgwal/main/.dot"] {
            std::fs::write(self.path(file), "left over").unwrap();
            give_to_server_user(&self.path(file));
        }
    }

    fn start_target(&self) {
        let mut start = Command::new(programs().join("pg_ctl"));
        start.arg("-D").arg(self.pgdata()).arg("-l").arg(self.path("log/pg.log")).args(["-w", "-o"]);
        start.arg(format!("-p {} -k \"\" -c listen_addresses=127.0.0.1 -c fsync=off", self.pg_port)).arg("start");
        as_server_user(&mut start);
        start.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(start.status().unwrap().success(), "{}", std::fs::read_to_string(self.path("log/pg.log")).unwrap_or_default());
    }

    /// What table `t` of the target says.
    async fn says(&self) -> String {
        match self.target().await {
            Some(client) => client.query_one("select word from t", &[]).await.map_or_else(|e| e.to_string(), |row| row.get(0)),
            None => "does not run".to_owned(),
        }
    }

    async fn target(&self) -> Option<tokio_postgres::Client> {
        let url = format!("postgres://owner:{}@127.0.0.1:{}/postgres", PASSWORD.replace(' ', "%20"), self.pg_port);
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let config = self.path("config.json");
        // Whole or not at all: one that was started before may be reading it.
        let new = self.path("config.json.new");
        std::fs::write(&new, Value::Object(self.config.clone()).to_string()).unwrap();
        std::fs::rename(&new, &config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("REDIS_URL", self.redis.url())
            .env("PROBACKUP_CONFIG", &config)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Starts the listener and waits until it listens.
    fn listen(&self) -> Server {
        let log = std::fs::File::create(self.path("listener.log")).unwrap();
        let mut command = self.command(&["listen"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = Server::start(command, Signal::SIGTERM);
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(server.runs() && start.elapsed() < Duration::from_secs(20), "{}", self.log("listener.log"));
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn work(&self) -> Server {
        let log = std::fs::File::options().create(true).append(true).open(self.path("worker.log")).unwrap();
        let mut command = self.command(&["worker", "restore"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Server::start(command, Signal::SIGTERM)
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Asks as `echo … | nc` does; the answer without its newline.
    fn ask(&self, text: &str) -> String {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("the listener listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.strip_suffix('\n').expect("an answer ends with a newline").to_owned()
    }

    /// Asks for a restore that must be accepted; the task's id.
    fn accepted(&self, text: &str) -> String {
        let answer = self.ask(text);
        let id = answer.strip_prefix("Task accepted with ID: ").unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(id.len(), 36, "{answer}");
        id.to_owned()
    }

    fn task(&self, id: &str) -> Value {
        let answer = self.ask(&format!("status, id={id}"));
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"))
    }

    /// Waits until the task has `status`; fails when it ends otherwise.
    async fn until(&self, id: &str, status: &str) -> Value {
        let start = Instant::now();
        loop {
            let task = self.task(id);
            if task["status"] == status {
                return task;
            }
            let ended = ["completed", "error", "canceled"].iter().any(|end| task["status"] == *end);
            let late = start.elapsed() > LIMIT;
            assert!(!ended && !late, "not {status}: {task}\n{}\n{}", self.log("worker.log"), self.log("log/pg.log"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the stand-in restores, slowly.
    async fn until_restoring(&self) {
        crate::support::eventually("the stand-in copies", LIMIT, async || self.path("backup/copying").exists()).await;
    }

    /// The argument vectors of the stand-in's calls of `verb`.
    fn calls(&self, verb: &str) -> Vec<Vec<String>> {
        let log = self.log("backup/calls");
        let calls = log.split_terminator("\n\n").map(|call| call.lines().map(str::to_owned).collect::<Vec<_>>());
        calls.filter(|call| call.first().is_some_and(|first| first == verb)).collect()
    }

    /// Processes whose command line holds something below this scene, of programs called `name`.
    fn processes(&self, name: &str) -> Vec<String> {
        let here = self.directory.path().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&here) && line.contains(name) {
                found.push(line);
            }
        }
        found
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Its server was started over SSH, so nothing else ends it.
        let Ok(pid) = std::fs::read_to_string(self.pgdata().join("postmaster.pid")) else { return };
        let Some(pid) = pid.lines().next().and_then(|pid| pid.parse().ok()).map(nix::unistd::Pid::from_raw) else { return };
        let _ = nix::sys::signal::kill(pid, Signal::SIGQUIT);
        let start = Instant::now();
        while nix::sys::signal::kill(pid, None).is_ok() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn version() -> String {
    let path = programs();
    path.parent().and_then(Path::file_name).expect("…/15/bin").to_string_lossy().into_owned()
}

async fn said(client: &tokio_postgres::Client, word: &str) {
    client.batch_execute(&format!("create table t as select '{word}'::text as word; checkpoint")).await.unwrap();
}

fn base_backup(source: &Cluster, to: &Path) {
    let mut backup = Command::new(programs().join("pg_basebackup"));
    backup.args([
        "-h",
        "127.0.0.1",
        "-U",
        "owner",
        "-c",
        "fast",
        "-X",
        "fetch",
        "--no-sync",
        "-p",
        &source.port.to_string(),
        "-D",
    ]);
    backup.arg(to).env("PGPASSWORD", PASSWORD);
    as_server_user(&mut backup);
    let output = backup.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The largest file below a directory.
fn largest(directory: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            match entry.metadata().unwrap() {
                meta if meta.is_dir() => directories.push(entry.path()),
                meta => files.push((meta.len(), entry.path())),
            }
        }
    }
    files.into_iter().max().expect("a backup has files").1
}
