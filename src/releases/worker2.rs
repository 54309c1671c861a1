//! Worker 2: one business server, from beta, by one worker at a time.
//!
//! It claims the server, renews the lease on a task of its own, and stops at once when it is lost. Killed: the lease runs out, and
//! whoever claims the server next sends what is not there yet; files that are in place are found to be the same.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ledger::{Claim, Claimed, Role, Server};
use super::site::LOOKING;
use super::staging::{Delivery, Source};
use super::states::ReleaseState;
use super::{ReleaseError, Releases};
use crate::worker::Run;

/// How the work at a server ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worked {
    /// There was nothing to do.
    Nothing,
    /// Somebody else is at it, for so many milliseconds at least.
    Busy(i64),
    /// It is done; where the release stands now.
    Done(String, ReleaseState),
    /// It failed; where the release stands now.
    Failed(String, ReleaseState),
}

impl Releases {
    /// Does what is to be done on a server.
    ///
    /// # Errors
    /// When the state store fails, or the run is stopped; failures of the server are its state.
    pub async fn work_at(&self, run: &Run, name: &str) -> Result<Worked, ReleaseError> {
        let claim = match self.ledger.claim(name, &owner(), self.lease).await? {
            Claimed::Ours(claim) => claim,
            Claimed::Busy(ms) => return Ok(Worked::Busy(ms)),
            Claimed::Nothing => return Ok(Worked::Nothing),
        };
        let lost = CancellationToken::new();
        let heartbeat = AbortOnDropHandle::new(tokio::spawn(self.clone().beat(claim.clone(), lost.clone())));
        let worked = tokio::select! {
            biased;
            () = lost.cancelled() => Err(ReleaseError::Lost(name.to_owned())),
            worked = run.unless_stopped(self.serve(run, &claim)) => worked.unwrap_or_else(|stopped| Err(stopped.into())),
        };
        drop(heartbeat);
        let (kept, result) = match worked {
            Ok(line) => (self.ledger.finish(&claim, Ok(&line)).await?, Ok(line)),
            Err(error @ (ReleaseError::Stopped(_) | ReleaseError::Lost(_))) => {
                self.ledger.give_back(&claim).await?;
                return Err(error);
            }
            Err(error) if error.is_of_the_store() => return Err(error),
            Err(error) => {
                let problem = error.to_string();
                (self.ledger.finish(&claim, Err(&problem)).await?, Err(problem))
            }
        };
        if !kept {
            return Err(ReleaseError::Lost(name.to_owned()));
        }
        let stands = if claim.task == "rollback" {
            self.ledger.settle_rollback(claim.release, &claim.owner).await?;
            self.ledger.release(claim.release).await?.state
        } else {
            self.ledger.settle(claim.release, &claim.owner).await?
        };
        Ok(match result {
            Ok(line) => Worked::Done(line, stands),
            Err(problem) => Worked::Failed(problem, stands),
        })
    }

    /// Renews the lease until it is lost.
    async fn beat(self, claim: Claim, lost: CancellationToken) {
        let mut held_until = tokio::time::Instant::now() + self.lease;
        loop {
            tokio::time::sleep(self.lease / 4).await;
            let asked = tokio::time::Instant::now();
            match self.ledger.renew(&claim, self.lease).await {
                Ok(true) => held_until = asked + self.lease,
                Ok(false) => return lost.cancel(),
                // Nobody answers: it is ours for as long as the lease lasts.
                Err(_) if tokio::time::Instant::now() < held_until => {}
                Err(_) => return lost.cancel(),
            }
        }
    }

    async fn serve(&self, run: &Run, claim: &Claim) -> Result<String, ReleaseError> {
        let server = self.ledger.server(&claim.server).await?;
        run.info(format!("release {}: {} of {}", claim.release, claim.task, server.name));
        self.has_its_key(&server)?;
        let joined = self.access.join(&server.host).await;
        let joined = joined.map_err(|cause| ReleaseError::Remote { server: server.name.clone(), doing: LOOKING, cause })?;
        let Some((access, joined)) = joined else { return self.serve_at(run, claim, &server).await };
        let served = Releases { access, ..self.clone() }.serve_at(run, claim, &server).await;
        if served.is_ok() {
            joined.end().await;
        }
        // Else it is cut: where nobody answers any more, its end would be waited for.
        served
    }

    async fn serve_at(&self, run: &Run, claim: &Claim, server: &Server) -> Result<String, ReleaseError> {
        if claim.task == "rollback" {
            let back = self.back(server, claim.release, Some(&claim.owner)).await?;
            return Ok(format!("rolled back: {} files are back, {} are gone", back.replaced.len(), back.removed.len()));
        }
        self.copy_to(run, claim, server).await
    }

    async fn copy_to(&self, run: &Run, claim: &Claim, server: &Server) -> Result<String, ReleaseError> {
        let beta = self.ledger.the(Role::Beta).await?;
        let release = self.ledger.release(claim.release).await?;
        let (manifest, paths) = (self.ledger.manifest(release.id).await?, self.ledger.paths(release.id).await?);
        let to = Delivery::of(&release, &paths, &manifest, server);
        let changes = self.stage(run, &Source::Beta(&beta), &to, &claim.owner).await?;
        if let Some(line) = &self.hooks.before {
            self.hook(server, release.id, "the hook before the switch", line).await?;
        }
        if !self.ledger.touch(claim, self.lease).await? {
            return Err(ReleaseError::Lost(server.name.clone()));
        }
        self.switch(&to, &changes, &claim.owner).await?;
        if let Some(line) = &self.hooks.after {
            self.hook(server, release.id, "the files are in place, but the hook after the switch", line).await?;
        }
        Ok(changes.summary())
    }
}

/// Another one for each claim.
fn owner() -> String {
    static CLAIMS: AtomicU64 = AtomicU64::new(1);
    let token = crate::identity::new_uuid();
    let (host, process) = (crate::identity::host(), std::process::id());
    format!("{host}-{process}-{}-{}", CLAIMS.fetch_add(1, Ordering::Relaxed), token.split('-').next().unwrap_or_default())
}
