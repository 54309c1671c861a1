//! A developers' server, beta and business servers: an sshd each, on a loopback port, with keys made for the test. They run as the user of
//! the test, who is the only one they let in; what they call their project is a directory of the test's.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bullwork::config::{Environment, Reader};
use bullwork::releases::ledger::{Ledger, NewServer, Release, Role};
use bullwork::releases::states::ReleaseState;
use bullwork::releases::worker1::Stands;
use bullwork::releases::worker2::Worked;
use bullwork::releases::{Releases, settings};
use bullwork::worker::Run;

use crate::support::sshd::{keygen, serve};
use crate::support::{Server, free_port};

pub struct Sshd {
    server: Option<Server>,
    pub port: u16,
}

pub struct Fleet {
    pub directory: tempfile::TempDir,
    pub servers: BTreeMap<String, Sshd>,
    /// Settings beside the usual ones; they win.
    pub more: Vec<(String, String)>,
}

pub fn user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().expect("the user has a name").name
}

fn sshd(directory: &Path, name: &str, port: Option<u16>) -> Sshd {
    if nix::unistd::geteuid().is_root() {
        // Where root's sshd locks its children up; its package's service makes it at each boot.
        std::fs::create_dir_all("/run/sshd").expect("root may make it");
    }
    let log = directory.join(format!("{name}.log"));
    for _ in 0..5 {
        let port = port.unwrap_or_else(free_port);
        if let Some(server) = serve(directory, &log, port, |_| {}) {
            return Sshd { server: Some(server), port };
        }
    }
    panic!("sshd did not start: {}", std::fs::read_to_string(log).unwrap_or_default());
}

impl Fleet {
    /// `dev`, `beta` and business servers `web1` …, on the list, with empty projects and a directory for archives.
    pub async fn start(business: usize) -> Fleet {
        Fleet::with(business, &[]).await
    }

    /// The same with more settings.
    pub async fn with(business: usize, more: &[(&str, &str)]) -> Fleet {
        let directory = tempfile::Builder::new().prefix("bullwork-releases-").tempdir().expect("a temporary directory");
        for name in ["host", "client", "stranger"] {
            keygen(&directory.path().join(name));
        }
        std::fs::copy(directory.path().join("client.pub"), directory.path().join("authorized")).expect("the directory is ours");
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut fleet = Fleet { directory, servers: BTreeMap::new(), more };
        let webs = (1..=business).map(|n| (format!("web{n}"), Role::Business));
        let all: Vec<(String, Role)> =
            [("dev".to_owned(), Role::Developers), ("beta".to_owned(), Role::Beta)].into_iter().chain(webs).collect();
        let mut list = Vec::new();
        for (name, role) in all {
            for place in [fleet.project(&name), fleet.backups(&name)] {
                std::fs::create_dir_all(place).expect("the directory is ours");
            }
            let sshd = sshd(fleet.directory.path(), &name, None);
            list.push(fleet.new_server(&name, role, sshd.port));
            fleet.servers.insert(name, sshd);
        }
        fleet.pin();
        let ledger = fleet.ledger();
        ledger.prepare().await.unwrap();
        ledger.add_servers(&list).await.unwrap();
        fleet
    }

    pub fn new_server(&self, name: &str, role: Role, port: u16) -> NewServer {
        let backup = (role == Role::Business).then(|| self.backups(name).join("site.tar.gz").display().to_string());
        NewServer {
            name: name.to_owned(),
            role,
            host: "127.0.0.1".to_owned(),
            user: user(),
            port,
            project: self.project(name).display().to_string(),
            backup,
        }
    }

    /// Writes the host keys of all servers, and of these ports, to the file of pinned ones.
    pub fn pin_also(&self, ports: &[u16]) {
        let key = std::fs::read_to_string(self.path("host.pub")).unwrap();
        let ports = self.servers.values().map(|server| server.port).chain(ports.iter().copied());
        let lines: String = ports.map(|port| format!("[127.0.0.1]:{port} {key}")).collect();
        std::fs::write(self.path("known_hosts"), lines).unwrap();
    }

    pub fn pin(&self) {
        self.pin_also(&[]);
    }

    pub fn stop(&mut self, name: &str) {
        self.servers.get_mut(name).unwrap().server = None;
    }

    pub fn start_again(&mut self, name: &str) {
        let port = self.servers[name].port;
        self.servers.insert(name.to_owned(), sshd(self.directory.path(), name, Some(port)));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The project directory of a server. Its name is not a plain one.
    pub fn project(&self, server: &str) -> PathBuf {
        self.path(server).join("the site's 'files'")
    }

    pub fn backups(&self, server: &str) -> PathBuf {
        self.path(server).join("backups")
    }

    /// Writes a file of a project.
    pub fn write(&self, server: &str, name: &str, content: impl AsRef<[u8]>) {
        let file = self.project(server).join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    pub fn read(&self, server: &str, name: &str) -> Option<String> {
        std::fs::read(self.project(server).join(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Everything in a project but what releases keep: names with modes and contents, or where symlinks lead.
    pub fn tree(&self, server: &str) -> BTreeMap<String, String> {
        fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
            for entry in std::fs::read_dir(at).unwrap().flatten() {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                if name == ".bullwork-releases" {
                    continue;
                }
                let meta = std::fs::symlink_metadata(&path).unwrap();
                let what = if meta.is_symlink() {
                    format!("-> {}", std::fs::read_link(&path).unwrap().display())
                } else if meta.is_dir() {
                    walk(root, &path, found);
                    "directory".to_owned()
                } else {
                    let time = meta.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
                    let content = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
                    format!("{:o} {time} {content}", meta.permissions().mode() & 0o7777)
                };
                found.insert(name, what);
            }
        }
        let mut found = BTreeMap::new();
        let root = self.project(server);
        walk(&root, &root, &mut found);
        found
    }

    pub fn settings(&self) -> Vec<(String, String)> {
        let file = |name: &str| self.path(name).display().to_string();
        let mut all: Vec<(String, String)> = [
            ("RELEASE_SSH_KEY", file("client")),
            ("RELEASE_KNOWN_HOSTS", file("known_hosts")),
            ("RELEASE_STATE_FILE", file("releases.db")),
            ("RELEASE_SPOOL", file("spool")),
            ("RELEASE_SSH_TIMEOUT", "5".to_owned()),
            ("RELEASE_LEASE_SECONDS", "5".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        all.retain(|(name, _)| !self.more.iter().any(|(other, _)| other == name));
        all.extend(self.more.clone());
        all
    }

    pub fn releases(&self) -> Releases {
        let environment = Environment::of(self.settings());
        let reader = Reader::new(&environment);
        let releases = settings::releases(&reader);
        reader.finish().expect("the configuration is right");
        releases.expect("a key is configured")
    }

    pub fn ledger(&self) -> Ledger {
        self.releases().ledger
    }

    /// Begins a release; its number.
    pub async fn begin(&self, paths: &[&str], removes: bool) -> i64 {
        let paths = bullwork::releases::paths::clean(paths.iter().copied()).unwrap();
        self.ledger().begin(&paths, removes, "tester").await.unwrap()
    }

    /// What worker 1 makes of it.
    pub async fn worker1(&self) -> Stands {
        self.releases().advance(&Run::detached(), "worker-1 test").await.unwrap()
    }

    /// What a worker 2 makes of a server.
    pub async fn worker2(&self, server: &str) -> Worked {
        self.releases().work_at(&Run::detached(), server).await.unwrap()
    }

    /// A release that beta has.
    pub async fn on_beta(&self, paths: &[&str]) -> i64 {
        let id = self.begin(paths, false).await;
        assert_eq!(self.worker1().await, Stands::At(id, ReleaseState::BetaDone));
        id
    }

    /// Wants production on these servers, one wave each string; worker 1 archives the first.
    pub async fn to_production(&self, id: i64, waves: &[&str]) -> Stands {
        let waves: Vec<Vec<String>> = waves.iter().map(|wave| wave.split('+').map(str::to_owned).collect()).collect();
        self.ledger().want_production(id, &waves, &waves[0][0], "tester").await.unwrap();
        self.worker1().await
    }

    pub async fn release(&self, id: i64) -> Release {
        self.ledger().release(id).await.unwrap()
    }

    pub async fn journal(&self, id: i64) -> Vec<String> {
        let lines = self.ledger().journal(id).await.unwrap();
        lines.into_iter().map(|line| format!("{} {} {}", line.server.unwrap_or(line.book), line.actor, line.line)).collect()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.settings())
            .stdin(Stdio::null());
        command
    }

    pub fn bullwork(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }
}

/// Exit code, standard output and standard error.
pub fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
