//! A real SSH server on a loopback port, with keys made for the test. It runs as the user that owns the database servers, and lets
//! nobody else in.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::postgres::{as_server_user, give_to_server_user};
use super::{Server, free_port};

pub struct Sshd {
    _server: Server,
    pub port: u16,
    directory: tempfile::TempDir,
}

/// The user that logs in.
pub fn user() -> String {
    if nix::unistd::geteuid().is_root() {
        return "postgres".to_owned();
    }
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.expect("the user has a name").name
}

impl Sshd {
    pub fn start() -> Sshd {
        let directory = tempfile::Builder::new().prefix("bullwork-ssh-").tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        for name in ["host", "client", "stranger"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(file(name)).status();
            assert!(made.expect("ssh-keygen is installed (scripts/test installs it)").success());
        }
        std::fs::copy(file("client.pub"), file("authorized")).expect("the directory is ours");
        for name in ["host", "authorized"] {
            give_to_server_user(&file(name));
        }
        super::postgres::open_for_all(directory.path());
        let mut port = free_port();
        for _ in 0..5 {
            let key = std::fs::read_to_string(file("host.pub")).expect("the key was made");
            std::fs::write(file("known_hosts"), format!("[127.0.0.1]:{port} {key}")).expect("the directory is ours");
            let options = [
                format!("Port={port}"),
                "ListenAddress=127.0.0.1".to_owned(),
                format!("HostKey={}", file("host").display()),
                format!("AuthorizedKeysFile={}", file("authorized").display()),
                "PidFile=none".to_owned(),
                "UsePAM=no".to_owned(),
                "StrictModes=no".to_owned(),
                "PasswordAuthentication=no".to_owned(),
                "KbdInteractiveAuthentication=no".to_owned(),
                "MaxStartups=100".to_owned(),
            ];
            let mut command = Command::new("/usr/sbin/sshd");
            command.args(["-D", "-e", "-f", "/dev/null"]).args(options.iter().flat_map(|option| ["-o", option]));
            let log = std::fs::File::create(file("log")).expect("the log can be made");
            command.stdout(Stdio::null()).stderr(log);
            as_server_user(&mut command);
            let mut server = Server::start(command, Signal::SIGTERM);
            let start = Instant::now();
            while server.runs() && start.elapsed() < Duration::from_secs(20) {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Sshd { _server: server, port, directory };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // Another process may have taken the port between asking and listening.
            port = free_port();
        }
        panic!("sshd did not start: {}", std::fs::read_to_string(file("log")).unwrap_or_default());
    }

    /// `client` (which is let in), `stranger` (which is not), `known_hosts`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
