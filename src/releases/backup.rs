//! The archive of a business server's project, made before any business server is changed.
//!
//! `/backups/site.tar.gz` means `/backups/site-20260102T030405Z.tar.gz` and a symlink of the plain name to the newest. It is written
//! under another name, synced, and gets its own by a link, which fails where a file is. Killed: a hidden `.part` stays at worst.

use super::ledger::Server;
use super::{ReleaseError, Releases};
use crate::releases::ledger::LedgerError;

const BACKUP: &str = include_str!("scripts/backup.sh");

/// Where a server's archives are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Their directory.
    pub directory: String,
    /// The link to the newest one.
    pub link: String,
    /// What compresses them; empty: nothing does.
    pub squeeze: &'static str,
    stem: String,
    ending: &'static str,
}

impl Place {
    /// Of `/backups/site.tar.gz`.
    #[must_use]
    pub fn of(archive: &str) -> Option<Place> {
        let (directory, link) = archive.rsplit_once('/')?;
        let (ending, squeeze) = super::ledger::ARCHIVES.iter().find(|(ending, _)| link.ends_with(ending))?;
        let stem = link.strip_suffix(ending)?.to_owned();
        let directory = if directory.is_empty() { "/" } else { directory };
        Some(Place { directory: directory.to_owned(), link: link.to_owned(), squeeze, stem, ending })
    }

    /// Name of an archive of that time.
    #[must_use]
    pub fn name(&self, at: chrono::DateTime<chrono::Utc>) -> String {
        format!("{}-{}{}", self.stem, at.format("%Y%m%dT%H%M%S%3fZ"), self.ending)
    }
}

impl Releases {
    /// Archives the project of a server, or of it what `paths` names. A line for the journal: name, size, digest.
    ///
    /// # Errors
    /// When it has no room, or the archive cannot be written whole.
    pub async fn archive(&self, server: &Server, paths: &[String]) -> Result<String, ReleaseError> {
        let Some(place) = server.archive.as_deref().and_then(Place::of) else {
            let name = &server.name;
            return Err(ReleaseError::Refused(format!(
                "server `{name}` has no archive: take it off the list, and add it again with --backup"
            )));
        };
        let lacking = self.probe(server, self.whole_project).await?;
        if !lacking.is_empty() {
            return Err(ReleaseError::Refused(format!("{}: {}", server.name, lacking.join("; "))));
        }
        let name = place.name(chrono::Utc::now());
        let what = if self.whole_project { "project" } else { "paths" };
        let arguments = [server.project.as_str(), &place.directory, &name, &place.link, place.squeeze, what];
        let mut input = Vec::new();
        if !self.whole_project {
            input.extend(self.there(server, paths).await?.iter().flat_map(|path| path.bytes().chain([0])));
        }
        let answer = self.script(server, "archiving the project", BACKUP, &arguments, input).await?;
        let answer = String::from_utf8_lossy(&answer);
        let mut words = answer.split_whitespace();
        let (Some(sha256), Some(bytes), Some(changed)) = (words.next(), words.next(), words.next()) else {
            return Err(LedgerError::Unknown(format!("{} told nothing of its archive", server.name)).into());
        };
        let changed = if changed == "0" { "" } else { "; some files changed as they were read" };
        Ok(format!("archive {}:{}/{name}, {bytes} bytes, sha256 {sha256}{changed}", server.name, place.directory))
    }

    /// Everything that there is of `paths`, directories with what they hold.
    async fn there(&self, server: &Server, paths: &[String]) -> Result<Vec<String>, ReleaseError> {
        let survey = self.survey(server, &server.project, super::site::Look::Names(paths), None).await?;
        Ok(survey.found.0.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;

    use super::*;

    #[test]
    fn archives_have_the_time_in_their_name_and_the_plain_name_is_the_link() {
        let place = Place::of("/backups/site.tar.gz").unwrap();
        assert_eq!((place.directory.as_str(), place.link.as_str(), place.squeeze), ("/backups", "site.tar.gz", "gzip"));
        let at = chrono::Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap();
        assert_eq!(place.name(at), "site-20260102T030405000Z.tar.gz");
        assert_eq!(Place::of("/site.tar").unwrap().directory, "/");
        assert_eq!(Place::of("/site.zip"), None);
    }
}
