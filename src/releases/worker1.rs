//! Worker 1: developers to beta, and the archive before production.
//!
//! One of them works at a time, over all processes: it holds a lock in the state store that dies with it. What it does again after
//! it was killed:
//!
//! | killed in | the next one |
//! |---|---|
//! | `beta_copying` | looks at the developers' server anew, and sends what beta lacks |
//! | `production_release` | compares beta with the manifest again |
//! | `production_backup` | makes another archive: one that no journal names may stay beside it |
//! | `production_copying` | adds the jobs of worker 2 that are not there |

use std::time::Duration;

use super::ledger::{Release, Role};
use super::site::{Look, entries};
use super::staging::{Delivery, Source};
use super::states::ReleaseState;
use super::{ReleaseError, Releases};
use crate::worker::Run;

/// Between two looks whether somebody cancelled.
const LOOK: Duration = Duration::from_secs(2);

/// Where a release stands after worker 1 did what it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stands {
    /// No release is unfinished.
    Nowhere,
    /// There.
    At(i64, ReleaseState),
    /// There, after a failure.
    Failed(i64, ReleaseState, String),
}

impl Releases {
    /// Does all that worker 1 can do now.
    ///
    /// # Errors
    /// When the state store fails, or the run is stopped; failures of the release are its state.
    pub async fn advance(&self, run: &Run, actor: &str) -> Result<Stands, ReleaseError> {
        self.tidy().await?;
        loop {
            let Some(release) = self.ledger.unfinished().await? else { return Ok(Stands::Nowhere) };
            let (id, state) = (release.id, release.state);
            match state {
                ReleaseState::BetaCopying | ReleaseState::ProductionRelease | ReleaseState::ProductionBackup => {}
                ReleaseState::ProductionCopying => return Ok(Stands::At(id, self.ledger.settle(id, actor).await?)),
                _ => return Ok(Stands::At(id, state)),
            }
            run.info(format!("release {id}: {state}"));
            run.progress(|progress| progress.phase = state.word().to_owned());
            let work = async {
                match state {
                    ReleaseState::BetaCopying => self.to_beta(run, &release, actor).await,
                    ReleaseState::ProductionRelease => self.check_beta(&release, actor).await,
                    _ => self.archive_first(run, &release, actor).await,
                }
            };
            let worked = tokio::select! {
                worked = run.unless_stopped(work) => worked?,
                // By a cancel; or by the step that the work ends with, seen before its own answer came.
                () = self.moved_on(id, state) => continue,
            };
            match worked {
                Ok(()) => {}
                Err(error) if error.is_of_the_store() => return Err(error),
                Err(ReleaseError::Stopped(stopped)) => return Err(stopped.into()),
                Err(error) => {
                    let (problem, failed) = (error.to_string(), state.failed().unwrap_or(state));
                    if self.ledger.step(id, state, failed, actor, &problem, Some(&problem)).await? {
                        return Ok(Stands::Failed(id, failed, problem));
                    }
                }
            }
        }
    }

    /// Ends when the release does not stand there any more: somebody cancelled it.
    async fn moved_on(&self, id: i64, state: ReleaseState) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.ledger.release(id).await.is_ok_and(|release| release.state != state) {
                return;
            }
        }
    }

    async fn to_beta(&self, run: &Run, release: &Release, actor: &str) -> Result<(), ReleaseError> {
        let (developers, beta) = (self.ledger.the(Role::Developers).await?, self.ledger.the(Role::Beta).await?);
        let paths = self.ledger.paths(release.id).await?;
        let found = self.survey(&developers, &developers.project, Look::Trees(&paths), None).await?;
        let manifest = found.into_manifest(&developers.name)?;
        let to = Delivery::of(release, &paths, &manifest, &beta);
        let changes = self.stage(run, &Source::Developers(&developers), &to, actor).await?;
        self.switch(&to, &changes, actor).await?;
        let (files, bytes) = manifest.extent();
        let line = format!("{files} files, {bytes} bytes; {}", changes.summary());
        self.ledger.beta_done(release.id, &manifest, actor, &line).await?;
        Ok(())
    }

    async fn check_beta(&self, release: &Release, actor: &str) -> Result<(), ReleaseError> {
        let beta = self.ledger.the(Role::Beta).await?;
        let manifest = self.ledger.manifest(release.id).await?;
        let found = self.survey(&beta, &beta.project, Look::Entries(&entries(&manifest)), None).await?;
        found.matches(&manifest, None, &beta.name)?;
        let to = ReleaseState::ProductionBackup;
        self.ledger.step(release.id, release.state, to, actor, "beta is what the manifest tells", None).await?;
        Ok(())
    }

    async fn archive_first(&self, run: &Run, release: &Release, actor: &str) -> Result<(), ReleaseError> {
        let server = release.backup_server.clone().unwrap_or_default();
        let server = self.ledger.server(&server).await?;
        let paths = self.ledger.paths(release.id).await?;
        let early = async {
            self.fetch_early(run, release).await;
            Ok(())
        };
        let (archive, ()) = tokio::try_join!(self.archive(&server, &paths), early)?;
        self.ledger.start_copying(release.id, release.state, Some(&archive), actor).await?;
        Ok(())
    }

    /// Fetches from beta while the archive is made, so that a worker 2 of this machine finds it here.
    async fn fetch_early(&self, run: &Run, release: &Release) {
        if self.across.is_some() {
            return;
        }
        let fetched = async {
            let beta = self.ledger.the(Role::Beta).await?;
            let manifest = self.ledger.manifest(release.id).await?;
            self.fetch_from_beta(run, release.id, &beta, &manifest).await
        };
        if let Err(error) = fetched.await {
            run.warn(format!("the release is not fetched yet, worker 2 will do it: {error}"));
        }
    }
}
