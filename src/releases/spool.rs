//! What passes through this machine: `SPOOL/RELEASE/developers` and `SPOOL/RELEASE/beta`.
//!
//! Workers of one machine share it: whoever comes first pulls, under a lock on a file, and leaves a mark when it is whole. What it
//! holds is proven where it arrives, against the manifest; when that fails, all of it is compared by its bytes at the next try
//! ([`Releases::distrust`]).

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::ledger::Server;
use super::manifest::Manifest;
use super::staging::copied;
use super::{ReleaseError, Releases};
use crate::worker::Run;

/// Between two looks whether another process is done with it.
const AGAIN: Duration = Duration::from_millis(200);

impl Releases {
    fn place(&self, release: i64) -> PathBuf {
        // Absolute: rsync takes what has a colon before its first slash for a host.
        std::path::absolute(&self.spool).unwrap_or_else(|_| self.spool.clone()).join(release.to_string())
    }

    fn spool_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ReleaseError {
        let path = path.display().to_string();
        move |cause| ReleaseError::Spool { path, cause }
    }

    /// From the developers' server, as it is now.
    ///
    /// # Errors
    /// When rsync or the disk fails.
    pub(super) async fn fetch_from_developers(
        &self,
        run: &Run,
        release: i64,
        server: &Server,
        names: &[String],
    ) -> Result<PathBuf, ReleaseError> {
        let into = self.place(release).join("developers");
        make(&into)?;
        self.pull(run, server, &into, None, self.suspect(release).exists(), names).await?;
        Ok(into)
    }

    /// From beta, once for all workers of this machine.
    ///
    /// # Errors
    /// When rsync or the disk fails.
    pub(super) async fn fetch_from_beta(
        &self,
        run: &Run,
        release: i64,
        beta: &Server,
        manifest: &Manifest,
    ) -> Result<PathBuf, ReleaseError> {
        let (place, mark) = (self.place(release), self.place(release).join("beta.whole"));
        let into = place.join("beta");
        make(&into)?;
        let _held = lock(&place.join("lock")).await?;
        if mark.exists() {
            return Ok(into);
        }
        run.info(format!("fetching the release from {}", beta.name));
        let same = place.join("developers").is_dir().then_some("../developers");
        let suspect = self.suspect(release);
        self.pull(run, beta, &into, same, suspect.exists(), &copied(manifest)).await?;
        let _ = std::fs::remove_file(suspect);
        File::create(&mark).map_err(Self::spool_error(&mark))?;
        Ok(into)
    }

    /// What arrived from the spool was not what it should be: it is fetched again by the next try.
    pub(super) fn distrust(&self, release: i64) {
        let _ = File::create(self.suspect(release));
        let _ = std::fs::remove_file(self.place(release).join("beta.whole"));
    }

    fn suspect(&self, release: i64) -> PathBuf {
        self.place(release).join("suspect")
    }

    /// Removes what belongs to releases that are over.
    ///
    /// # Errors
    /// When the state store cannot be used.
    pub async fn tidy(&self) -> Result<(), ReleaseError> {
        for release in self.ledger.over().await? {
            let place = self.place(release);
            if place.is_dir() {
                let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(place)).await;
            }
        }
        Ok(())
    }
}

fn make(directory: &std::path::Path) -> Result<(), ReleaseError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(Releases::spool_error(directory))
}

/// Waits until no other process has it; dropped with its future.
async fn lock(path: &std::path::Path) -> Result<Flock<File>, ReleaseError> {
    loop {
        let file = File::options().create(true).append(true).open(path).map_err(Releases::spool_error(path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => tokio::time::sleep(AGAIN).await,
            Err((_, error)) => return Err(Releases::spool_error(path)(error.into())),
        }
    }
}
