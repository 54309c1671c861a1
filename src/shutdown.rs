//! Stopping in an orderly way.
//!
//! Two stages (ADR 0004): at the first SIGTERM or SIGINT the process goes *quiet*: it takes no
//! more jobs and asks the running one to stop. What has not stopped by itself is handed back
//! before [`DEADLINE`], because platforms send SIGKILL about 30 s after SIGTERM.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// From the signal to the exit, at most.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// Cancelled once the process was asked to stop.
pub type Quiet = CancellationToken;

/// Returns a token that is cancelled at the first SIGTERM, SIGINT or SIGHUP; a second
/// signal ends the process at once with the exit code a shell expects (128 + number).
///
/// # Errors
/// When the operating system refuses to install a handler.
pub fn on_signals() -> std::io::Result<Quiet> {
    let quiet = Quiet::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let token = quiet.clone();
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let (name, number) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 15),
                _ = interrupt.recv() => ("SIGINT", 2),
                _ = hangup.recv() => ("SIGHUP", 1),
            };
            tracing::info!("Received signal {name}.");
            if asked {
                // Crash-only: what SIGKILL would leave is healed by the lock's expiry.
                std::process::exit(128 + number);
            }
            asked = true;
            token.cancel();
        }
    });
    Ok(quiet)
}
