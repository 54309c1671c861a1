//! A real SSH server on a loopback port, with keys made for the test. It runs as the user that owns the database servers, and lets
//! nobody else in.

use std::path::{Path, PathBuf};
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

/// Makes a key without passphrase.
pub fn keygen(file: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(file).status();
    assert!(made.expect("ssh-keygen is installed (scripts/test installs it)").success());
}

/// A server with the key `host` of the directory, which lets in those of `authorized`; nothing when it does not come up, as when
/// another process has taken the port. `set_up` says as whom it runs.
pub fn serve(directory: &Path, log: &Path, port: u16, set_up: impl FnOnce(&mut Command)) -> Option<Server> {
    let file = |name: &str| directory.join(name);
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
        "PermitRootLogin=prohibit-password".to_owned(),
        "MaxStartups=100".to_owned(),
    ];
    let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|program| Path::new(program).exists());
    let mut command = Command::new(program.expect("an sshd is installed (scripts/test installs it)"));
    command.args(["-D", "-e", "-f", "/dev/null"]).args(options.iter().flat_map(|option| ["-o", option]));
    let log = std::fs::File::create(log).expect("the log can be made");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    set_up(&mut command);
    let mut server = Server::start(command, Signal::SIGTERM);
    let start = Instant::now();
    while server.runs() && start.elapsed() < Duration::from_secs(20) {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

impl Sshd {
    pub fn start() -> Sshd {
        let directory = tempfile::Builder::new().prefix("bullwork-ssh-").tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        for name in ["host", "client", "stranger"] {
            keygen(&file(name));
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
            if let Some(server) = serve(directory.path(), &file("log"), port, as_server_user) {
                return Sshd { _server: server, port, directory };
            }
            port = free_port();
        }
        panic!("sshd did not start: {}", std::fs::read_to_string(file("log")).unwrap_or_default());
    }

    /// `client` (which is let in), `stranger` (which is not), `known_hosts`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
