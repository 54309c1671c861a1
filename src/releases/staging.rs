//! Files beside a project, then in their places.
//!
//! ```text
//! PROJECT/.bullwork-releases/12/of                  which release 12 it is: numbers begin anew with a new list of releases
//!                               owner               who may put files in place: one claim of a worker
//!                               new/…               what arrived
//!                               old/…               what was replaced, or taken away
//!                               added-files, added-directories   what was not there before
//!                               modes             of directories that have to be writable until all is in place
//! PROJECT/.bullwork-releases/12.back                all of it was brought back
//! ```
//!
//! [`Releases::stage`] changes nothing that the project sees. [`Releases::switch`] renames file by file; it may be cut off at any
//! point and run again, by another worker too. [`Releases::back`] is its reverse.

use std::path::PathBuf;

use super::copy::{Amount, Stage};
use super::ledger::{Release, Server};
use super::manifest::{Changes, Manifest, Survey, Thing};
use super::site::{Look, entries, room};
use super::{Across, ReleaseError, Releases};
use crate::worker::Run;

const SWITCH: &str = include_str!("scripts/switch.sh");
const ROLLBACK: &str = include_str!("scripts/rollback.sh");
/// Room that is wanted beyond the files themselves: directories, second names.
const MARGIN: u64 = 1 << 20;
/// What is sent at once: while the next lot is sent, the one before is proven.
const LOT_BYTES: u64 = 256 << 20;
const LOT_FILES: usize = 20_000;

/// From where files come.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    /// The developers' server.
    Developers(&'a Server),
    /// Beta.
    Beta(&'a Server),
}

/// How files get to a server.
enum Way<'a> {
    /// From this machine.
    Spooled(PathBuf),
    /// From beta, by its own rsync.
    Across(&'a Across, &'a Server),
}

/// What is to be brought to a server.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// The release.
    pub release: i64,
    /// When that was made: no other release with this number was made then.
    pub made_at: &'a str,
    /// The names that the controller listed.
    pub paths: &'a [String],
    /// Whether what listed directories hold too much goes.
    pub removes: bool,
    /// What it holds.
    pub manifest: &'a Manifest,
    /// The server.
    pub server: &'a Server,
}

impl<'a> Delivery<'a> {
    /// What `release` brings to `server`.
    #[must_use]
    pub fn of(release: &'a Release, paths: &'a [String], manifest: &'a Manifest, server: &'a Server) -> Self {
        Delivery { release: release.id, made_at: &release.made_at, paths, removes: release.removes, manifest, server }
    }
}

impl Releases {
    /// What a delivery would change; everything that can be in its way is looked at. With `owner`, the room is made.
    ///
    /// # Errors
    /// When the server cannot be reached, something is in the way, or it has no room.
    pub async fn compare(&self, to: &Delivery<'_>, owner: Option<&str>) -> Result<Changes, ReleaseError> {
        let (server, names) = (to.server, entries(to.manifest));
        let owner = owner.map(|owner| (to.release, to.made_at, owner));
        let survey = match self.survey(server, &server.project, Look::Entries(&names), owner).await {
            Ok(survey) => survey,
            // It is there, and lacks something: which?
            Err(error) if error.was_there() => {
                let lacking = self.probe(server, false).await.unwrap_or_default();
                if lacking.is_empty() {
                    return Err(error);
                }
                return Err(ReleaseError::Refused(format!("{}: {}", server.name, lacking.join("; "))));
            }
            Err(error) => return Err(error),
        };
        let mut changes = survey.changes_to(to.manifest, &server.name)?;
        if to.removes {
            changes.removed = self.too_much(to).await?;
        }
        let needed: u64 = changes.sent().iter().map(|name| size(to.manifest, name)).sum();
        if !changes.sent().is_empty() && needed + MARGIN > survey.free {
            return Err(ReleaseError::Refused(format!(
                "{}: the release needs {needed} bytes, and {} are free in {}",
                server.name, survey.free, server.project
            )));
        }
        Ok(changes)
    }

    /// Files and symlinks in listed directories that the release does not hold.
    async fn too_much(&self, to: &Delivery<'_>) -> Result<Vec<String>, ReleaseError> {
        let directories: Vec<String> =
            to.paths.iter().filter(|path| matches!(to.manifest.0.get(*path), Some(Thing::Directory { .. }))).cloned().collect();
        if directories.is_empty() {
            return Ok(Vec::new());
        }
        let Survey { found, .. } = self.survey(to.server, &to.server.project, Look::Names(&directories), None).await?;
        let extra = found.0.into_iter().filter(|(name, thing)| {
            !to.manifest.0.contains_key(name) && matches!(thing, Thing::File { .. } | Thing::Link { .. })
        });
        Ok(extra.map(|(name, _)| name).collect())
    }

    /// Brings what differs beside the project, and compares it there with the manifest.
    ///
    /// # Errors
    /// When something is in the way, a copy fails, or what arrived is not what it should be.
    pub async fn stage(&self, run: &Run, from: &Source<'_>, to: &Delivery<'_>, owner: &str) -> Result<Changes, ReleaseError> {
        let changes = self.compare(to, Some(owner)).await?;
        run.info(format!("{}: {}", to.server.name, changes.summary()));
        let mut sent = changes.sent();
        // The largest first: they are proven while the many small ones are sent.
        sent.sort_by_key(|name| std::cmp::Reverse(size(to.manifest, name)));
        if sent.is_empty() {
            return Ok(changes);
        }
        let total = u64::try_from(sent.len()).unwrap_or(u64::MAX);
        run.progress(|progress| {
            progress.phase = format!("copying to {}", to.server.name);
            (progress.done, progress.total, progress.bytes) = (0, total, 0);
        });
        let way = match (from, &self.across) {
            (Source::Beta(beta), Some(across)) => Way::Across(across, beta),
            (Source::Beta(beta), None) => Way::Spooled(self.fetch_from_beta(run, to.release, beta, to.manifest).await?),
            (Source::Developers(developers), _) => {
                Way::Spooled(self.fetch_from_developers(run, to.release, developers, &copied(to.manifest)).await?)
            }
        };
        let stage = Stage { server: to.server, release: to.release };
        let mut sent_before = Amount::default();
        let mut unproven: &[String] = &[];
        for lot in lots(to.manifest, &sent) {
            let sending = async {
                match &way {
                    Way::Spooled(spooled) => self.push(run, spooled, &stage, lot, sent_before).await,
                    Way::Across(across, beta) => self.across(run, across, beta, &stage, lot, sent_before).await,
                }
            };
            tokio::try_join!(sending, self.prove(to, unproven))?;
            sent_before.files += lot.len() as u64;
            sent_before.bytes += lot.iter().map(|name| size(to.manifest, name)).sum::<u64>();
            unproven = lot;
        }
        self.prove(to, unproven).await?;
        Ok(changes)
    }

    /// Compares staged files with the manifest.
    async fn prove(&self, to: &Delivery<'_>, names: &[String]) -> Result<(), ReleaseError> {
        if names.is_empty() {
            return Ok(());
        }
        let stage = Stage { server: to.server, release: to.release }.directory();
        let arrived = self.survey(to.server, &stage, Look::Entries(names), None).await?;
        let place = format!("what arrived on {}", to.server.name);
        arrived.matches(to.manifest, Some(names), &place).inspect_err(|_| self.distrust(to.release))?;
        Ok(())
    }

    /// Puts staged files in their places.
    ///
    /// # Errors
    /// When another worker owns the room by now, or a file cannot be put in place; then some are and some are not.
    pub async fn switch(&self, to: &Delivery<'_>, changes: &Changes, owner: &str) -> Result<(), ReleaseError> {
        let mut items = Vec::new();
        let mut add = |item: String| items.extend(item.into_bytes().into_iter().chain([0]));
        for name in &changes.directories {
            let mode = match to.manifest.0.get(name) {
                Some(Thing::Directory { mode }) => *mode,
                _ => 0o755,
            };
            add(format!("d{mode:o} {name}"));
        }
        // By directory, so that one rename program serves many files.
        let mut sent = changes.sent();
        sent.sort_by(|a, b| a.rsplit_once('/').map(|(d, _)| d).cmp(&b.rsplit_once('/').map(|(d, _)| d)));
        sent.into_iter().for_each(|name| add(format!("f{name}")));
        changes.removed.iter().for_each(|name| add(format!("x{name}")));
        self.script(to.server, "putting files in place", SWITCH, &[&to.server.project, &room(to.release), owner], items).await?;
        Ok(())
    }

    /// Brings back what the release replaced on a server, and takes away what it added. With `owner` absent nothing is changed. What
    /// comes back, and what goes.
    ///
    /// # Errors
    /// When nothing is kept, or a file cannot be put back.
    pub async fn back(&self, server: &Server, release: i64, owner: Option<&str>) -> Result<Changes, ReleaseError> {
        let look = if owner.is_none() { "look" } else { "" };
        let made_at = self.ledger.release(release).await?.made_at;
        let arguments = [server.project.as_str(), &room(release), owner.unwrap_or_default(), look, &made_at];
        let answer = self.script(server, "rolling back", ROLLBACK, &arguments, Vec::new()).await?;
        let mut changes = Changes::default();
        for item in answer.split(|byte| *byte == 0).filter(|item| !item.is_empty()) {
            let name = String::from_utf8_lossy(&item[1..]).into_owned();
            if item[0] == b'-' { changes.removed.push(name) } else { changes.replaced.push(name) }
        }
        Ok(changes)
    }
}

/// Names of all that is copied: directories come by themselves.
pub(super) fn copied(manifest: &Manifest) -> Vec<String> {
    let is_copied = |thing: &Thing| matches!(thing, Thing::File { .. } | Thing::Link { .. });
    manifest.0.iter().filter(|(_, thing)| is_copied(thing)).map(|(name, _)| name.clone()).collect()
}

/// Parts of `names`, in their order.
fn lots<'n>(manifest: &Manifest, names: &'n [String]) -> Vec<&'n [String]> {
    let (mut lots, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, name) in names.iter().enumerate() {
        bytes += size(manifest, name);
        if bytes >= LOT_BYTES || at + 1 - begin >= LOT_FILES {
            lots.push(&names[begin..=at]);
            (begin, bytes) = (at + 1, 0);
        }
    }
    if begin < names.len() {
        lots.push(&names[begin..]);
    }
    lots
}

fn size(manifest: &Manifest, name: &str) -> u64 {
    match manifest.0.get(name) {
        Some(Thing::File { size, .. }) => *size,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_hold_every_name_once_and_end_by_bytes_or_files() {
        let file = |size| Thing::File { mode: 0o644, size, sha256: String::new() };
        let named = |sizes: &[u64]| {
            let names: Vec<String> = (0..sizes.len()).map(|n| format!("f{n:06}")).collect();
            (Manifest(names.iter().cloned().zip(sizes.iter().map(|size| file(*size))).collect()), names)
        };
        let lengths = |sizes: &[u64]| {
            let (manifest, names) = named(sizes);
            let lots = lots(&manifest, &names);
            assert_eq!(lots.concat(), names);
            lots.iter().map(|lot| lot.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&[1, 2, 3]), [3]);
        assert_eq!(lengths(&[1, LOT_BYTES, 3]), [2, 1]);
        assert_eq!(lengths(&vec![0; LOT_FILES + 1]), [LOT_FILES, 1]);
    }
}
