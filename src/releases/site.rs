//! A server, looked at through its shell: what is in its project directory, what it lacks.

use std::collections::BTreeSet;

use super::ledger::Server;
use super::manifest::{Manifest, Survey};
use super::paths::{ROOM, parents};
use super::{ReleaseError, Releases, backup};
use crate::ssh::{quote, talk};

const SURVEY: &str = include_str!("scripts/survey.sh");
const PROBE: &str = include_str!("scripts/probe.sh");

/// What a survey looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look<'a> {
    /// These names and all below them, with digests.
    Trees(&'a [String]),
    /// The same, names only.
    Names(&'a [String]),
    /// Each entry by itself, with digests.
    Entries(&'a [String]),
}

/// Directory of a release's own in a project directory, relative to that.
#[must_use]
pub fn room(release: i64) -> String {
    format!("{ROOM}/{release}")
}

impl Releases {
    /// Runs one of our scripts on a server.
    pub(super) async fn script(
        &self,
        server: &Server,
        doing: &'static str,
        script: &str,
        arguments: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, ReleaseError> {
        let program = self.access.script(&server.host, script, arguments);
        talk(program, input).await.map_err(|cause| ReleaseError::Remote { server: server.name.clone(), doing, cause })
    }

    /// Looks at what is in `directory` of a server. With `owner`, the room of the release is made, and is that owner's from now on.
    ///
    /// # Errors
    /// When the server cannot be reached, or something cannot be read.
    pub async fn survey(
        &self,
        server: &Server,
        directory: &str,
        look: Look<'_>,
        owner: Option<(i64, &str)>,
    ) -> Result<Survey, ReleaseError> {
        let (how, what, names) = match look {
            Look::Trees(names) => ("tree", "digests", names),
            Look::Names(names) => ("tree", "names", names),
            Look::Entries(names) => ("entries", "digests", names),
        };
        let above: BTreeSet<&str> = names.iter().flat_map(|name| parents(name)).collect();
        let mut list = Vec::new();
        for (mark, name) in above.into_iter().map(|name| ('=', name)).chain(names.iter().map(|name| ('+', name.as_str()))) {
            list.extend(mark.to_string().bytes().chain(name.bytes()).chain([0]));
        }
        let (room, owner) = owner.map(|(release, owner)| (room(release), owner)).unwrap_or_default();
        let answer = self.script(server, "looking at the project", SURVEY, &[directory, how, what, &room, owner], list).await?;
        Ok(Survey::read(&answer)?)
    }

    /// Everything that a server lacks; with `room`, whether its archive fits too.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn probe(&self, server: &Server, room: bool) -> Result<Vec<String>, ReleaseError> {
        let place = server.archive.as_deref().and_then(backup::Place::of);
        let (directory, program, link) =
            place.as_ref().map(|p| (p.directory.as_str(), p.squeeze, p.link.as_str())).unwrap_or_default();
        let arguments = [server.project.as_str(), directory, program, if room { "room" } else { "" }, link];
        let answer = self.script(server, "looking at the server", PROBE, &arguments, Vec::new()).await?;
        Ok(String::from_utf8_lossy(&answer).lines().map(str::to_owned).collect())
    }

    /// Runs a line of the operator's in the project directory.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn hook(&self, server: &Server, release: i64, doing: &'static str, line: &str) -> Result<(), ReleaseError> {
        let script = format!(
            "cd -- {} || exit 1; RELEASE_ID={release} RELEASE_SERVER={} sh -c {}",
            quote(&server.project),
            quote(&server.name),
            quote(line)
        );
        self.script(server, doing, &script, &[], Vec::new()).await.map(drop)
    }
}

/// The names of a manifest, each by itself.
#[must_use]
pub fn entries(manifest: &Manifest) -> Vec<String> {
    manifest.0.keys().cloned().collect()
}
