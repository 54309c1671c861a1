//! Throw-away servers for tests: started on free ports, gone when the test ends, however it ends.

pub mod guillotine;
pub mod lines;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod redis_group;
pub mod s3;
pub mod small_disk;
pub mod sshd;

use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A port nobody listens on at the moment of asking.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Polls `done` every 20 ms; panics with `what` after `limit`.
pub async fn eventually(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < limit {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within {limit:?}: {what}");
}

/// A server process that is killed when the test ends, even if the test itself is killed.
pub struct Server {
    child: Child,
    stop: nix::sys::signal::Signal,
}

impl Server {
    /// Starts `command`; `stop` is the signal that ends it fastest.
    #[allow(unsafe_code, reason = "a death signal can only be set between fork and exec")]
    pub fn start(mut command: Command, stop: nix::sys::signal::Signal) -> Server {
        use std::os::unix::process::CommandExt;
        // SAFETY: prctl is async-signal-safe and touches only the child.
        unsafe {
            command.pre_exec(move || nix::sys::prctl::set_pdeathsig(stop).map_err(std::io::Error::from));
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        Server { child, stop }
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().try_into().expect("a pid fits"))
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal` to it.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("the server runs");
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self) {
        let _ = nix::sys::signal::kill(self.pid(), self.stop);
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
