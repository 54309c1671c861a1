//! A server, looked at through its shell: what is in its project directory, what it lacks.

use std::collections::BTreeSet;

use super::ledger::{Role, Server};
use super::manifest::{Manifest, Survey};
use super::paths::{ROOM, parents};
use super::settings::{RELEASE_KNOWN_HOSTS, RELEASE_SSH_KEY};
use super::{Across, ReleaseError, Releases, backup, told};
use crate::ssh::{quote, talk};

const SURVEY: &str = include_str!("scripts/survey.sh");
const PROBE: &str = include_str!("scripts/probe.sh");

/// What is done first at a server.
pub(super) const LOOKING: &str = "looking at the project";

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
    /// `ssh` without a key only says that the server does not take it, and without host keys that the server's is not known.
    pub(super) fn has_its_key(&self, server: &Server) -> Result<(), ReleaseError> {
        let files = [
            (&self.access.key, "the private key", &RELEASE_SSH_KEY),
            (&self.access.known_hosts, "the file of host keys", &RELEASE_KNOWN_HOSTS),
        ];
        for (file, what, setting) in files {
            std::fs::File::open(file).map_err(|error| {
                let (server, file, setting) = (&server.name, file.display(), setting.name);
                ReleaseError::Refused(format!("{server}: {what} {file} ({setting}) cannot be read: {error}"))
            })?;
        }
        Ok(())
    }

    /// What each of `servers` lacks. Where files go from beta by its own key, whether that leads to the business servers too.
    ///
    /// # Errors
    /// When the state store fails; a server that cannot be reached is part of the answer.
    pub async fn lacking(&self, servers: &[Server]) -> Result<Vec<(String, Vec<String>)>, ReleaseError> {
        let known = self.ledger.servers().await?;
        let beta = known.iter().find(|server| server.role == Role::Beta);
        let looks = servers.iter().map(async |server| {
            let mut lacking = self.probe(server, false).await.unwrap_or_else(|error| vec![error.to_string()]);
            if let (Some(Across(across)), Some(beta), Role::Business) = (&self.across, beta, server.role) {
                let line = across.line(&server.host, ["true"]);
                let reached = talk(self.access.command(&beta.host, line.iter().map(String::as_str)), Vec::new()).await;
                lacking.extend(
                    reached
                        .err()
                        .map(|cause| format!("from {} with its own key (RELEASE_BETA_KEY): {}", beta.name, told(&cause))),
                );
            }
            (server.name.clone(), lacking)
        });
        Ok(futures_util::future::join_all(looks).await)
    }

    /// Runs one of our scripts on a server.
    pub(super) async fn script(
        &self,
        server: &Server,
        doing: &'static str,
        script: &str,
        arguments: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, ReleaseError> {
        self.has_its_key(server)?;
        let program = self.access.script(&server.host, script, arguments);
        talk(program, input).await.map_err(|cause| ReleaseError::Remote { server: server.name.clone(), doing, cause })
    }

    /// Looks at what is in `directory` of a server. With `owner`, the room of the release (its number, and when it was made) is made,
    /// and is that owner's from now on.
    ///
    /// # Errors
    /// When the server cannot be reached, or something cannot be read.
    pub async fn survey(
        &self,
        server: &Server,
        directory: &str,
        look: Look<'_>,
        owner: Option<(i64, &str, &str)>,
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
        let (room, made_at, owner) = owner.map(|(release, made_at, owner)| (room(release), made_at, owner)).unwrap_or_default();
        let answer = self.script(server, LOOKING, SURVEY, &[directory, how, what, &room, owner, made_at], list).await?;
        Ok(Survey::read(&answer, &server.name)?)
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
