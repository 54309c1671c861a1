//! Releases as the controller handles them: what is wanted is noted in the state store, workers do it.
//!
//! Each verb is one compare-and-set there; the job that follows only wakes a worker, and a worker that missed it looks by itself within a
//! minute.

use anyhow::{Context, bail};

use super::store::Store;
use crate::config::Reader;
use crate::jobs;
use crate::jobs::release::{Payload, ReleaseKind};
use crate::jobs::release_copy::{CopyQueue, ReleaseCopy};
use crate::releases::ledger::{Ledger, Line, Release, Role, Server, Target};
use crate::releases::manifest::Changes;
use crate::releases::site::Look;
use crate::releases::staging::Delivery;
use crate::releases::states::{ReleaseState, ServerState};
use crate::releases::{Releases, settings};
use crate::worker::{JobKind as _, RetryPolicy};

/// What the verbs work with.
#[derive(Debug)]
pub struct Desk {
    /// Servers and releases.
    pub ledger: Ledger,
    /// `None` where no key is configured, which only what looks at servers needs.
    releases: Option<Releases>,
    store: Option<Store>,
    copies: Option<CopyQueue>,
    policy: RetryPolicy,
    actor: String,
}

/// What would change on a server.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The server.
    pub server: String,
    /// What would change there, or why nothing can.
    pub changes: Option<Changes>,
    /// Why not.
    pub problem: Option<String>,
}

/// A release with all that is known of it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The release.
    pub release: Release,
    /// Its servers.
    pub targets: Vec<(Target, Option<Server>)>,
}

impl Status {
    /// Whether some worker has something to do.
    #[must_use]
    pub fn is_worked_at(&self) -> bool {
        let at_work = |server: &Server| {
            server.release == Some(self.release.id) && matches!(server.state, ServerState::Copying | ServerState::Locked)
        };
        self.release.state.is_worked_at() || self.targets.iter().any(|(_, server)| server.as_ref().is_some_and(at_work))
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let Release { id, state, made_at, made_by, removes, backup, problem, rolled_back_at, .. } = &self.release;
        let servers: Vec<_> = self
            .targets
            .iter()
            .map(|(target, server)| {
                let own = server.as_ref().filter(|server| server.release == Some(*id));
                serde_json::json!({"server": target.server, "wave": target.wave, "doneAt": target.done_at,
                    "state": own.map(|server| server.state.word()), "problem": own.and_then(|server| server.problem.clone())})
            })
            .collect();
        serde_json::json!({"release": id, "state": state.word(), "shown": state.shown(), "madeAt": made_at, "madeBy": made_by,
            "delete": removes, "backup": backup, "problem": problem, "rolledBackAt": rolled_back_at, "servers": servers})
    }
}

impl Desk {
    /// Reads the settings; mistakes are noted in `reader`.
    pub fn from_settings(reader: &Reader<'_>) -> Desk {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
        let user = user.unwrap_or_else(|| nix::unistd::getuid().to_string());
        Desk {
            ledger: settings::ledger(reader),
            releases: settings::releases(reader),
            store: Store::from_settings(reader),
            copies: CopyQueue::from_settings(reader),
            policy: RetryPolicy::from_settings(reader),
            actor: format!("{user}@{}", crate::identity::host()),
        }
    }

    fn releases(&self) -> anyhow::Result<&Releases> {
        self.releases.as_ref().context(settings::NOT_CONFIGURED)
    }

    /// Wakes worker 1. What is wanted is noted already, so a Redis that is away only delays it.
    ///
    /// # Errors
    /// When Redis does not take the job.
    pub async fn wake(&self, release: i64) -> anyhow::Result<String> {
        let kind = jobs::named(ReleaseKind::NAME).context("the kind is in the list of all kinds")?;
        let data = serde_json::to_value(Payload { release: Some(release) })?;
        let store = self.store.as_ref().context("reading the configuration")?;
        let later = "it is noted, and a worker takes it up within a minute of Redis' return";
        let id = store.add(kind, &self.policy, data).await.with_context(|| format!("waking a worker ({later})"))?;
        if let (Some(copies), Some(releases)) = (&self.copies, &self.releases) {
            copies.add_what_waits(releases).await.with_context(|| format!("waking workers ({later})"))?;
        }
        Ok(id)
    }

    /// What every server lacks, or those called `names`.
    ///
    /// # Errors
    /// When the state store fails, or a name is unknown; a server that fails is part of the answer.
    pub async fn check(&self, names: &[String]) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let releases = self.releases()?;
        let mut servers = self.ledger.servers().await?;
        for name in names {
            self.ledger.server(name).await?;
        }
        servers.retain(|server| names.is_empty() || names.contains(&server.name));
        Ok(releases.lacking(&servers).await?)
    }

    /// Begins a release; its number.
    ///
    /// # Errors
    /// When another one is unfinished.
    pub async fn beta(&self, paths: &[String], removes: bool) -> anyhow::Result<i64> {
        self.ledger.the(Role::Developers).await?;
        self.ledger.the(Role::Beta).await?;
        Ok(self.ledger.begin(paths, removes, &self.actor).await?)
    }

    /// What [`Desk::beta`] would change on beta.
    ///
    /// # Errors
    /// When a server cannot be looked at, or the release would be refused.
    pub async fn plan_beta(&self, paths: &[String], removes: bool) -> anyhow::Result<Planned> {
        let releases = self.releases()?;
        let (developers, beta) = (self.ledger.the(Role::Developers).await?, self.ledger.the(Role::Beta).await?);
        let survey = releases.survey(&developers, &developers.project, Look::Trees(paths), None).await?;
        let manifest = survey.into_manifest(&developers.name)?;
        let to = Delivery { release: 0, made_at: "", paths, removes, manifest: &manifest, server: &beta };
        let changes = releases.compare(&to, None).await?;
        Ok(Planned { server: beta.name, changes: Some(changes), problem: None })
    }

    /// Wants a release on the business servers. `order`: waves, one after the other; else all at once.
    ///
    /// # Errors
    /// When the release does not stand there, or a name is no business server's.
    pub async fn production(&self, id: i64, only: &[String], order: Option<&str>, backup: Option<&str>) -> anyhow::Result<()> {
        let waves = self.waves(only, order).await?;
        let backup = self.backup_server(&waves, backup).await?;
        Ok(self.ledger.want_production(id, &waves, &backup, &self.actor).await?)
    }

    /// The servers of each wave: `web1, web2+web3` means web1 first, then the other two together.
    async fn waves(&self, only: &[String], order: Option<&str>) -> anyhow::Result<Vec<Vec<String>>> {
        let business: Vec<String> = self
            .ledger
            .servers()
            .await?
            .into_iter()
            .filter(|server| server.role == Role::Business)
            .map(|server| server.name)
            .collect();
        let waves: Vec<Vec<String>> = match order {
            Some(order) => order.split(',').map(|wave| wave.split('+').map(|name| name.trim().to_owned()).collect()).collect(),
            None if only.is_empty() => vec![business.clone()],
            None => vec![only.to_vec()],
        };
        let named: Vec<&String> = waves.iter().flatten().collect();
        for (place, name) in named.iter().enumerate() {
            if !business.contains(name) {
                bail!("`{name}` is no business server; there are: {}", business.join(", "));
            }
            if named[..place].contains(name) {
                bail!("`{name}` is named twice");
            }
        }
        if named.is_empty() {
            bail!("there is no business server: `bullwork release servers add NAME --role business …`");
        }
        let left_out: Vec<&String> = only.iter().filter(|name| !named.contains(name)).collect();
        if let Some(name) = left_out.first() {
            bail!("`{name}` is chosen, but not in the order");
        }
        Ok(waves)
    }

    async fn backup_server(&self, waves: &[Vec<String>], chosen: Option<&str>) -> anyhow::Result<String> {
        if let Some(name) = chosen {
            let server = self.ledger.server(name).await?;
            anyhow::ensure!(server.archive.is_some(), "server `{name}` has no archive: add it with --backup");
            return Ok(server.name);
        }
        for name in waves.iter().flatten() {
            if self.ledger.server(name).await?.archive.is_some() {
                return Ok(name.clone());
            }
        }
        bail!(
            "none of the chosen servers has an archive, and nothing is copied without one: add one with --backup, or name it with --backup-of"
        )
    }

    /// What production would change on each server.
    ///
    /// # Errors
    /// When beta does not have the release; a server that fails is part of the answer.
    pub async fn plan_production(&self, id: i64, only: &[String], order: Option<&str>) -> anyhow::Result<Vec<Planned>> {
        let names = self.waves(only, order).await?.concat();
        self.plan(id, &names).await
    }

    async fn plan(&self, id: i64, names: &[String]) -> anyhow::Result<Vec<Planned>> {
        let releases = self.releases()?;
        let release = self.ledger.release(id).await?;
        let (manifest, paths) = (self.ledger.manifest(id).await?, self.ledger.paths(id).await?);
        let mut planned = Vec::new();
        for name in names {
            let server = self.ledger.server(name).await?;
            let to = Delivery::of(&release, &paths, &manifest, &server);
            planned.push(match releases.compare(&to, None).await {
                Ok(changes) => Planned { server: server.name, changes: Some(changes), problem: None },
                Err(error) => Planned { server: server.name, changes: None, problem: Some(error.to_string()) },
            });
        }
        Ok(planned)
    }

    /// Takes a failed release up again: on beta, from the archive on, or, once that is there, only the servers that failed. What
    /// is done again, in words.
    ///
    /// # Errors
    /// When there is nothing to take up.
    pub async fn retry(&self, id: i64) -> anyhow::Result<String> {
        let release = self.ledger.release(id).await?;
        let state = release.state;
        let said = match state {
            ReleaseState::BetaError => {
                self.take_up(id, state, ReleaseState::BetaCopying).await?;
                "it is copied to beta again".to_owned()
            }
            ReleaseState::ProductionError if release.backup.is_some() => {
                self.ledger.start_copying(id, state, None, &self.actor).await?;
                let left = self.ledger.targets(id).await?.into_iter().filter(|target| target.done_at.is_none());
                format!("only {} again", left.map(|target| target.server).collect::<Vec<_>>().join(", "))
            }
            ReleaseState::ProductionError => {
                self.take_up(id, state, ReleaseState::ProductionRelease).await?;
                "from the archive on".to_owned()
            }
            state if state.is_worked_at() => "it is worked at: a worker is woken, nothing else".to_owned(),
            state => bail!("release {id} is {state}: there is nothing to take up"),
        };
        Ok(said)
    }

    async fn take_up(&self, id: i64, from: ReleaseState, to: ReleaseState) -> anyhow::Result<()> {
        let taken = self.ledger.step(id, from, to, &self.actor, "taken up again", None).await?;
        anyhow::ensure!(taken, "somebody else was faster: see `bullwork release status {id}`");
        Ok(())
    }

    /// What a retry would change.
    ///
    /// # Errors
    /// When there is nothing to take up.
    pub async fn plan_retry(&self, id: i64) -> anyhow::Result<Vec<Planned>> {
        let release = self.ledger.release(id).await?;
        match release.state {
            ReleaseState::BetaError => Ok(vec![self.plan_beta(&self.ledger.paths(id).await?, release.removes).await?]),
            ReleaseState::ProductionError => {
                let left = self.ledger.targets(id).await?.into_iter().filter(|target| target.done_at.is_none());
                self.plan(id, &left.map(|target| target.server).collect::<Vec<_>>()).await
            }
            state => bail!("release {id} is {state}: there is nothing to take up"),
        }
    }

    /// Gives a release up.
    ///
    /// # Errors
    /// When it is worked at, or over.
    pub async fn abandon(&self, id: i64) -> anyhow::Result<()> {
        Ok(self.ledger.abandon(id, &self.actor).await?)
    }

    /// Ends what is being done; where the release stands then.
    ///
    /// # Errors
    /// When nothing is being done.
    pub async fn cancel(&self, id: i64) -> anyhow::Result<ReleaseState> {
        Ok(self.ledger.cancel(id, &self.actor).await?)
    }

    /// Has servers get back what the release replaced; which.
    ///
    /// # Errors
    /// When there is nothing to bring back, a later release is in the way, or a server cannot do it: then none begins.
    pub async fn rollback(&self, id: i64, only: &[String]) -> anyhow::Result<Vec<String>> {
        if self.releases.is_some() {
            let planned = self.plan_rollback(id, only).await?;
            let problems: Vec<&str> = planned.iter().filter_map(|plan| plan.problem.as_deref()).collect();
            anyhow::ensure!(
                problems.is_empty(),
                "nothing was begun: {}; `--only` chooses the servers that can do it",
                problems.join("; ")
            );
        }
        Ok(self.ledger.want_rollback(id, only, &self.actor).await?)
    }

    /// What a rollback would change.
    ///
    /// # Errors
    /// When the release is unknown; a server that fails is part of the answer.
    pub async fn plan_rollback(&self, id: i64, only: &[String]) -> anyhow::Result<Vec<Planned>> {
        let releases = self.releases()?;
        self.ledger.release(id).await?;
        let mut planned = Vec::new();
        for target in self.ledger.targets(id).await? {
            if target.touched_at.is_none() || !(only.is_empty() || only.contains(&target.server)) {
                continue;
            }
            let server = self.ledger.server(&target.server).await?;
            planned.push(match releases.back(&server, id, None).await {
                Ok(changes) => Planned { server: server.name, changes: Some(changes), problem: None },
                Err(error) => Planned { server: server.name, changes: None, problem: Some(error.to_string()) },
            });
        }
        Ok(planned)
    }

    /// Frees a server whose rollback failed.
    ///
    /// # Errors
    /// When it is not in error, or the unfinished release needs it.
    pub async fn free(&self, server: &str) -> anyhow::Result<()> {
        Ok(self.ledger.free(server, &self.actor).await?)
    }

    /// Business servers that a release to production leaves out.
    ///
    /// # Errors
    /// When the state store fails.
    pub async fn left_out(&self, id: i64) -> anyhow::Result<Vec<String>> {
        let targets = self.ledger.targets(id).await?;
        let business = self.ledger.servers().await?.into_iter().filter(|server| server.role == Role::Business);
        let left = business.filter(|server| !targets.iter().any(|target| target.server == server.name));
        Ok(left.map(|server| server.name).collect())
    }

    /// Whether a worker has a job of releases in hand; true where Redis does not tell.
    pub async fn is_taken_up(&self) -> bool {
        let Some(store) = &self.store else { return true };
        for queue in [ReleaseKind::QUEUE, ReleaseCopy::QUEUE] {
            match store.counts(queue).await {
                Ok(counts) if counts.active == 0 => {}
                _ => return true,
            }
        }
        false
    }

    /// Where a release stands: the one with this number, else the newest.
    ///
    /// # Errors
    /// When there is none.
    pub async fn status(&self, id: Option<i64>) -> anyhow::Result<Option<Status>> {
        let release = match id {
            Some(id) => self.ledger.release(id).await?,
            None => match self.ledger.releases().await?.into_iter().next() {
                Some(newest) => newest,
                None => return Ok(None),
            },
        };
        let servers = self.ledger.servers().await?;
        let targets = self.ledger.targets(release.id).await?;
        let with_server = |target: Target| {
            let server = servers.iter().find(|server| server.name == target.server).cloned();
            (target, server)
        };
        Ok(Some(Status { release, targets: targets.into_iter().map(with_server).collect() }))
    }

    /// The journals of a release: of this one, else of the newest.
    ///
    /// # Errors
    /// When there is none.
    pub async fn journal(&self, id: Option<i64>) -> anyhow::Result<Vec<Line>> {
        match self.status(id).await? {
            Some(status) => Ok(self.ledger.journal(status.release.id).await?),
            None => Ok(Vec::new()),
        }
    }
}
