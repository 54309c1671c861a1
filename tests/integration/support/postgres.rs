//! A PostgreSQL cluster of its own for a test.
//!
//! `initdb` runs once a day and user; each cluster is a copy of that template, which takes a
//! fraction of the time. PostgreSQL refuses to run as root, so root runs it as `postgres`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio_postgres::{Client, NoTls};

use super::{Server, free_port};

pub const PASSWORD: &str = "correct horse battery";

pub struct Cluster {
    server: Option<Server>,
    pub port: u16,
    directory: tempfile::TempDir,
    /// Of the server; the client programs are always those of [`programs`].
    bin: PathBuf,
    /// Of the server's process.
    environment: Vec<(String, String)>,
}

/// Directory of the newest installed server's programs.
pub fn programs() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_string_lossy().parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").exists().then_some((major, bin))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, bin)| bin).expect("PostgreSQL is installed (scripts/test installs it)")
}

/// Majors that copies go between.
pub const MAJORS: std::ops::RangeInclusive<u32> = 12..=18;

/// Where scripts/test installs servers of other majors and the newest pg_dump.
fn majors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/majors")
}

/// Directory of the programs of a server of `major`: the system's, or one that scripts/test installed.
fn programs_of(major: u32) -> PathBuf {
    let system = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    if system.join("initdb").exists() { system } else { majors().join(format!("{major}/bin")) }
}

/// The pg_dump that reads servers of all [`MAJORS`].
pub fn newest_pg_dump() -> PathBuf {
    majors().join("client/bin/pg_dump")
}

/// Whether servers of all these majors, and a pg_dump that reads them, are there and may be run; if not, a line says so.
pub fn has_majors(wanted: impl IntoIterator<Item = u32>) -> bool {
    let servers = wanted.into_iter().map(|major| programs_of(major).join("postgres"));
    let missing = servers.chain([newest_pg_dump()]).find_map(|program| {
        let Ok(path) = program.canonicalize() else { return Some(format!("{} is not there", program.display())) };
        let open = |directory: &&Path| {
            std::fs::metadata(directory).is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o001 != 0)
        };
        let closed = path.ancestors().skip(1).find(|directory| !open(directory))?;
        nix::unistd::geteuid().is_root().then(|| format!("the user `postgres` may not pass through {}", closed.display()))
    });
    let Some(why) = missing else { return true };
    println!("NOT RUN: {why}; scripts/test installs servers of all majors where it can");
    assert!(std::env::var_os("BULLWORK_NEEDS_MAJORS").is_none(), "{why}, though it should be");
    false
}

/// Has `command` run as the user that owns the servers.
pub fn as_server_user(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("the user `postgres` exists");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
}

/// Lets the server user pass through a directory.
pub fn open_for_all(directory: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(directory, mode).expect("it is ours");
}

pub fn give_to_server_user(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("the user `postgres` exists");
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("root may chown");
    }
}

fn run(mut command: Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The data directory that clusters are copied from; made once by whoever comes first.
fn template(bin: &Path) -> PathBuf {
    let which = if bin == programs() { String::new() } else { bin.display().to_string().replace('/', "-") };
    let root = std::env::temp_dir().join(format!("bullwork-test-template-{}{which}", nix::unistd::geteuid()));
    std::fs::create_dir_all(&root).expect("the temporary directory is writable");
    give_to_server_user(&root);
    let data = root.join("data");
    let lock = std::fs::File::create(root.join("lock")).expect("the lock file can be made");
    let _held =
        nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e).expect("the lock is granted");
    if !data.join("ready").exists() {
        let _ = std::fs::remove_dir_all(&data);
        let password = root.join("password");
        std::fs::write(&password, PASSWORD).expect("the password file can be written");
        give_to_server_user(&password);
        let mut initdb = Command::new(bin.join("initdb"));
        initdb
            .arg("-D")
            .arg(&data)
            .args(["-U", "owner", "-A", "scram-sha-256", "--no-sync", "--wal-segsize=1", "-E", "UTF8", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", password.display()));
        as_server_user(&mut initdb);
        run(initdb);
        std::fs::write(data.join("ready"), "").expect("the marker can be written");
    }
    data
}

/// Makes the data directory of a fresh cluster at `to`, which nobody runs; its superuser is `owner`.
pub fn data_directory(to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("-R").arg(template(&programs())).arg(to);
    as_server_user(&mut copy);
    run(copy);
}

impl Cluster {
    /// A fresh cluster with an empty database `postgres`, owned by the superuser `owner`.
    pub fn start() -> Cluster {
        Cluster::start_with(&[])
    }

    /// The same with settings, each `name=value`.
    pub fn start_with(settings: &[&str]) -> Cluster {
        Cluster::start_from(programs(), Vec::new(), settings)
    }

    /// A fresh cluster of a major that is there ([`has_majors`]).
    pub fn start_major(major: u32) -> Cluster {
        Cluster::start_from(programs_of(major), Vec::new(), &[])
    }

    /// The same with variables of the server's environment.
    pub fn start_in(environment: Vec<(String, String)>, settings: &[&str]) -> Cluster {
        Cluster::start_from(programs(), environment, settings)
    }

    fn start_from(bin: PathBuf, environment: Vec<(String, String)>, settings: &[&str]) -> Cluster {
        let directory = tempfile::Builder::new().prefix("bullwork-pg-").tempdir().expect("a temporary directory");
        give_to_server_user(directory.path());
        let mut copy = Command::new("cp");
        copy.arg("-R").arg(template(&bin)).arg(directory.path().join("data"));
        as_server_user(&mut copy);
        run(copy);
        let mut cluster = Cluster { server: None, port: free_port(), directory, bin, environment };
        cluster.launch(settings);
        cluster
    }

    /// A fresh cluster that believes to be a standby: in recovery for as long as it runs.
    pub fn start_standby() -> Cluster {
        let mut cluster = Cluster::start();
        if let Some(mut server) = cluster.server.take() {
            // A smart shutdown leaves what a standby can start from.
            server.signal(Signal::SIGTERM);
            while server.runs() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let signal = cluster.data().join("standby.signal");
        std::fs::write(&signal, "").expect("the data directory is writable");
        give_to_server_user(&signal);
        cluster.launch(&["hot_standby=on"]);
        cluster
    }

    /// A fresh cluster that speaks TLS with a certificate for 127.0.0.1, and the file of the root
    /// that vouches for it.
    pub fn start_with_tls() -> (Cluster, PathBuf) {
        let mut cluster = Cluster::start();
        cluster.stop_in_order();
        let authority_key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = authority.self_signed(&authority_key).expect("a root can be made");
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|parameters| parameters.signed_by(&key, &issuer))
            .expect("a certificate can be made");
        for (name, text) in [("server.crt", server.pem()), ("server.key", key.serialize_pem())] {
            let file = cluster.data().join(name);
            std::fs::write(&file, text).expect("the data directory is writable");
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
            give_to_server_user(&file);
        }
        let file = cluster.directory.path().join("root.crt");
        std::fs::write(&file, root.pem()).expect("the directory is writable");
        cluster.launch(&["ssl=on"]);
        (cluster, file)
    }

    fn launch(&mut self, settings: &[&str]) {
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-k", ""]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "max_connections=60",
            "shared_buffers=32MB",
        ]
        .iter()
        .chain(settings)
        {
            command.arg("-c").arg(setting);
        }
        let log = std::fs::File::create(self.directory.path().join("log")).expect("the log can be made");
        command.stdout(Stdio::null()).stderr(log);
        as_server_user(&mut command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // SIGQUIT is PostgreSQL's immediate shutdown.
        let mut server = Server::start(command, Signal::SIGQUIT);
        let start = Instant::now();
        loop {
            let mut ready = Command::new(programs().join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if !server.runs() {
                assert!(self.log().contains("Address already in use"), "postgres ended at once: {}", self.log());
                // Another process took the port between asking and listening.
                self.port = free_port();
                return self.launch(settings);
            }
            if ready.status().is_ok_and(|s| s.success()) {
                self.server = Some(server);
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "postgres did not start within 60 s: {}", self.log());
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again on the same port, as after a crash.
    pub fn restart(&mut self) {
        self.server = None;
        self.launch(&[]);
    }

    /// Uses up transaction numbers until `next` is the next one, as years of work would: in hops
    /// short enough that old rows can be frozen behind each.
    pub async fn spend_transactions(&mut self, next: u32) {
        const HOP: u32 = 1_400_000_000;
        let sql = "update pg_database set datallowconn = true";
        self.client("postgres").await.batch_execute(sql).await.expect("the superuser may");
        let mut at = 0;
        while at < next {
            at = next.min(at.saturating_add(HOP));
            self.stop_in_order();
            let mut reset = Command::new(programs().join("pg_resetwal"));
            reset.args(["-x", &at.to_string(), "-D"]).arg(self.data()).stdout(Stdio::null());
            as_server_user(&mut reset);
            run(reset);
            // The commit log's page for these numbers, which only a running server would have made.
            let segment = self.data().join("pg_xact").join(format!("{:04X}", at / (8192 * 4 * 32)));
            if !segment.exists() {
                std::fs::write(&segment, vec![0_u8; 8192 * 32]).expect("the data directory is writable");
                give_to_server_user(&segment);
            }
            self.launch(&[]);
            let mut freeze = Command::new(programs().join("vacuumdb"));
            freeze.args(["-a", "-q", "--freeze", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "owner"]);
            freeze.env("PGPASSWORD", PASSWORD);
            run(freeze);
        }
    }

    fn stop_in_order(&mut self) {
        self.server().signal(Signal::SIGINT);
        let start = Instant::now();
        while self.server.as_mut().is_some_and(Server::runs) {
            assert!(start.elapsed() < Duration::from_secs(60), "postgres did not stop within 60 s: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.server = None;
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the server runs")
    }

    /// URL of `database` for the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://owner:{}@127.0.0.1:{}/{database}", PASSWORD.replace(' ', "%20"), self.port)
    }

    /// A session with `database` that lives as long as the client.
    pub async fn client(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), NoTls).await.expect("the server accepts");
        tokio::spawn(connection);
        client
    }

    /// Makes an empty database and returns a session with it.
    pub async fn create(&self, database: &str) -> Client {
        self.client("postgres").await.batch_execute(&format!("create database \"{database}\"")).await.expect("the name is free");
        self.client(database).await
    }

    /// Runs a SQL file (psql meta-commands and COPY data included) in `database`.
    pub fn load(&self, database: &str, file: &Path) {
        let mut psql = Command::new(programs().join("psql"));
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "owner",
            "-d",
            database,
            "-f",
        ])
        .arg(file)
        .env("PGPASSWORD", PASSWORD)
        .stdout(Stdio::null());
        run(psql);
    }
}
