//! The steps of a release.

use super::{Book, Ledger, LedgerError, Result, Row, Statement, Value, journal, now, refused, release_state};
use crate::releases::manifest::Manifest;
use crate::releases::states::ReleaseState;

/// A release, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its number.
    pub id: i64,
    /// Where it stands.
    pub state: ReleaseState,
    /// When it was made.
    pub made_at: String,
    /// By whom.
    pub made_by: String,
    /// Whether what a listed directory holds too much is taken away.
    pub removes: bool,
    /// The business server that is archived first.
    pub backup_server: Option<String>,
    /// That archive, once it is there.
    pub backup: Option<String>,
    /// Why it failed.
    pub problem: Option<String>,
    /// When all servers had got back what it replaced.
    pub rolled_back_at: Option<String>,
}

/// A business server of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub server: String,
    /// Those of a lower wave come first.
    pub wave: i64,
    /// When its files may have begun to change.
    pub touched_at: Option<String>,
    /// When it had them all.
    pub done_at: Option<String>,
}

const UNFINISHED: &str = "select id, state, made_at, made_by, removes, backup_server, backup, problem, rolled_back_at from releases where unfinished = 1";
const ONE: &str =
    "select id, state, made_at, made_by, removes, backup_server, backup, problem, rolled_back_at from releases where id = $1";
const NEWEST: &str = "select id, state, made_at, made_by, removes, backup_server, backup, problem, rolled_back_at from releases order by id desc limit 20";
/// A step: nothing changes unless the release stands where it is thought to.
const STEP: &str = "update releases set state = $3, problem = $4, \
                    unfinished = case when $3 in ('completed', 'abandoned') then null else 1 end where id = $1 and state = $2";
/// A server that no other release works with begins to be copied to.
const TO_COPYING: &str = "update release_servers set state = 'copying', release_id = $2, task = 'copy', owner = null, problem = null \
                          where name = $1 and role = 'business' and (state = 'idle' or (state = 'error' and task = 'copy'))";

fn release(row: &Row) -> Result<Release> {
    Ok(Release {
        id: row.integer(0),
        state: release_state(&row.text(1))?,
        made_at: row.text(2),
        made_by: row.text(3),
        removes: row.flag(4),
        backup_server: row.optional(5),
        backup: row.optional(6),
        problem: row.optional(7),
        rolled_back_at: row.optional(8),
    })
}

fn step(id: i64, from: ReleaseState, to: ReleaseState, problem: Option<&str>) -> Statement {
    debug_assert!(from.leads_to(to), "{from} does not lead to {to}");
    Statement::new(STEP, [id.into(), from.word().into(), to.word().into(), problem.map(crate::redact::scrub).into()])
}

impl Ledger {
    /// The release that is not over; there is one at most.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn unfinished(&self) -> Result<Option<Release>> {
        self.state.query(UNFINISHED, []).await?.first().map(release).transpose()
    }

    /// The newest releases, newest first.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn releases(&self) -> Result<Vec<Release>> {
        self.state.query(NEWEST, []).await?.iter().map(release).collect()
    }

    /// The release with this number.
    ///
    /// # Errors
    /// When there is none.
    pub async fn release(&self, id: i64) -> Result<Release> {
        let found = self.state.query(ONE, [id.into()]).await?;
        found.first().map(release).unwrap_or_else(|| {
            refused(format!("there is no release {id}: `bullwork release status` shows the newest, and `--all` lists them"))
        })
    }

    /// Makes a release and begins it: `created`, then `beta_copying`, in one transaction. Its number.
    ///
    /// # Errors
    /// When another one is not over.
    pub async fn begin(&self, paths: &[String], removes: bool, actor: &str) -> Result<i64> {
        const MAKE: &str = "insert into releases (id, unfinished, state, made_at, made_by, removes) \
                            select coalesce(max(id), 0) + 1, 1, 'created', cast($1 as text), cast($2 as text), cast($3 as bigint) \
                            from releases where true on conflict do nothing";
        const PATH: &str =
            "insert into release_paths (release_id, path) select id, cast($1 as text) from releases where unfinished = 1";
        const BEGIN: &str = "update releases set state = 'beta_copying' where unfinished = 1 and state = 'created'";
        const LINE: &str = "insert into release_journal (release_id, number, said_at, actor, book, line) \
                            select id, cast($1 as bigint), cast($2 as text), cast($3 as text), 'beta', cast($4 as text) from releases where unfinished = 1";
        let line = |text: String| Statement::new(LINE, [super::number().into(), now().into(), actor.into(), text.into()]);
        let mut statements = vec![Statement::new(MAKE, [now().into(), actor.into(), removes.into()])];
        statements.push(line(format!("{} with {} paths", ReleaseState::Created, paths.len())));
        statements.extend(paths.iter().map(|path| Statement::new(PATH, [path.as_str().into()])));
        statements.push(Statement::new(BEGIN, []));
        statements.push(line(ReleaseState::BetaCopying.to_string()));
        let made = self.state.all_or_nothing(statements).await?;
        match self.unfinished().await? {
            Some(own) if made => Ok(own.id),
            Some(other) => {
                let (id, state) = (other.id, other.state);
                let way_out = match state {
                    ReleaseState::BetaDone => format!("`bullwork release production {id}`, or `abandon {id}`"),
                    ReleaseState::BetaError | ReleaseState::ProductionError => {
                        format!("`bullwork release retry {id}`, or `abandon {id}`")
                    }
                    _ => format!("wait for its end (`bullwork release status {id} --watch`), or `bullwork release cancel {id}`"),
                };
                refused(format!("release {id} is {state}, and there is one at a time: {way_out}"))
            }
            // It was over in the very moment.
            None => refused("another release was in the way, and is over: try again"),
        }
    }

    /// Takes a step; whether it was there to be taken.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn step(
        &self,
        id: i64,
        from: ReleaseState,
        to: ReleaseState,
        actor: &str,
        line: &str,
        problem: Option<&str>,
    ) -> Result<bool> {
        let line = if line.is_empty() { to.to_string() } else { format!("{to}: {line}") };
        Ok(self.state.all_or_nothing(vec![step(id, from, to, problem), journal(id, &Book::of(to), actor, &line)]).await?)
    }

    /// Beta has it all: `beta_copying` to `beta_done`, with the manifest.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn beta_done(&self, id: i64, manifest: &Manifest, actor: &str, line: &str) -> Result<bool> {
        const KEEP: &str = "insert into release_manifests (release_id, entries) values ($1, $2) \
                            on conflict (release_id) do update set entries = excluded.entries";
        let entries = serde_json::to_string(manifest).map_err(|error| LedgerError::Unknown(error.to_string()))?;
        let statements = vec![
            step(id, ReleaseState::BetaCopying, ReleaseState::BetaDone, None),
            Statement::new(KEEP, [id.into(), entries.into()]),
            journal(id, &Book::Beta, actor, &format!("{}: {line}", ReleaseState::BetaDone)),
        ];
        Ok(self.state.all_or_nothing(statements).await?)
    }

    /// What the release holds.
    ///
    /// # Errors
    /// When beta does not have it yet.
    pub async fn manifest(&self, id: i64) -> Result<Manifest> {
        let rows = self.state.query("select entries from release_manifests where release_id = $1", [id.into()]).await?;
        let Some(row) = rows.first() else { return refused(format!("release {id} has no manifest: beta does not have it yet")) };
        serde_json::from_str(&row.text(0)).map_err(|error| LedgerError::Unknown(error.to_string()))
    }

    /// The names that the controller listed.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn paths(&self, id: i64) -> Result<Vec<String>> {
        let rows = self.state.query("select path from release_paths where release_id = $1 order by path", [id.into()]).await?;
        Ok(rows.iter().map(|row| row.text(0)).collect())
    }

    /// Its business servers, in the order of their waves.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn targets(&self, id: i64) -> Result<Vec<Target>> {
        const TARGETS: &str =
            "select server, wave, touched_at, done_at from release_targets where release_id = $1 order by wave, server";
        let target = |row: &Row| Target {
            server: row.text(0),
            wave: row.integer(1),
            touched_at: row.optional(2),
            done_at: row.optional(3),
        };
        Ok(self.state.query(TARGETS, [id.into()]).await?.iter().map(target).collect())
    }

    /// `beta_done` to `production_release`, with the servers of each wave and the one that is archived.
    ///
    /// # Errors
    /// When the release does not stand there.
    pub async fn want_production(&self, id: i64, waves: &[Vec<String>], backup_server: &str, actor: &str) -> Result<()> {
        const TARGET: &str = "insert into release_targets (release_id, server, wave) values ($1, $2, $3)";
        const BACKUP: &str = "update releases set backup_server = $2 where id = $1";
        let mut statements = vec![
            step(id, ReleaseState::BetaDone, ReleaseState::ProductionRelease, None),
            Statement::new(BACKUP, [id.into(), backup_server.into()]),
        ];
        for (wave, server) in (0_i64..).zip(waves).flat_map(|(wave, servers)| servers.iter().map(move |server| (wave, server))) {
            statements.push(Statement::new(TARGET, [id.into(), server.as_str().into(), wave.into()]));
        }
        let order = waves.iter().map(|wave| wave.join("+")).collect::<Vec<_>>().join(", ");
        let line = format!("{}: to {order}; {backup_server} is archived first", ReleaseState::ProductionRelease);
        statements.push(journal(id, &Book::Production, actor, &line));
        if self.state.all_or_nothing(statements).await? {
            return Ok(());
        }
        let release = self.release(id).await?;
        refused(format!("release {id} is {}: only one that is {} goes to production", release.state, ReleaseState::BetaDone))
    }

    /// `production_backup`, or `production_error` when it is taken up again, to `production_copying`: in the same step all
    /// servers that are not done go from `idle` or `error` to `copying`. A server that works for something else refuses it all.
    ///
    /// # Errors
    /// When a server is in the way, or the release does not stand there.
    pub async fn start_copying(&self, id: i64, from: ReleaseState, backup: Option<&str>, actor: &str) -> Result<()> {
        const BACKUP: &str = "update releases set backup = coalesce($2, backup) where id = $1";
        let servers: Vec<String> =
            self.targets(id).await?.into_iter().filter(|target| target.done_at.is_none()).map(|target| target.server).collect();
        let mut statements =
            vec![step(id, from, ReleaseState::ProductionCopying, None), Statement::new(BACKUP, [id.into(), backup.into()])];
        statements.extend(backup.map(|backup| journal(id, &Book::Production, actor, backup)));
        let line = format!("{}: {}", ReleaseState::ProductionCopying, servers.join(", "));
        statements.push(journal(id, &Book::Production, actor, &line));
        for server in &servers {
            statements.push(Statement::new(TO_COPYING, [server.as_str().into(), id.into()]));
            statements.push(journal(
                id,
                &Book::Server(server),
                actor,
                &crate::releases::states::ServerState::Copying.to_string(),
            ));
        }
        if self.state.all_or_nothing(statements).await? {
            return Ok(());
        }
        let busy: Vec<String> = self
            .servers()
            .await?
            .iter()
            .filter(|server| servers.contains(&server.name) && server.state != crate::releases::states::ServerState::Idle)
            .map(|server| {
                format!(
                    "{} is {} ({} of release {})",
                    server.name,
                    server.state,
                    server.task.clone().unwrap_or_default(),
                    server.release.unwrap_or(0)
                )
            })
            .collect();
        let gone: Vec<&String> = {
            let known = self.servers().await?;
            servers.iter().filter(|name| !known.iter().any(|server| server.name == **name)).collect()
        };
        let why = match (busy.is_empty(), gone.first()) {
            (false, _) => format!(
                "not every server is free: {}; a failed rollback is tried again by `bullwork release rollback`, or given up by \
                 `bullwork release servers free`",
                busy.join(", ")
            ),
            (true, Some(name)) => format!("there is no business server `{name}` any more"),
            (true, None) => format!("it is {}", self.release(id).await?.state),
        };
        refused(format!("release {id} cannot be copied: {why}"))
    }

    /// Gives a release up. Servers that failed in it are free again.
    ///
    /// # Errors
    /// When something works at it, or it is over.
    pub async fn abandon(&self, id: i64, actor: &str) -> Result<()> {
        const FREE: &str = "update release_servers set state = 'idle', problem = null where release_id = $1 and task = 'copy' and state = 'error'";
        let release = self.release(id).await?;
        if release.state.leads_to(ReleaseState::Abandoned)
            && self.step(id, release.state, ReleaseState::Abandoned, actor, "", release.problem.as_deref()).await?
        {
            self.state.execute(FREE, [Value::from(id)]).await?;
            return Ok(());
        }
        refused(match release.state {
            state if state.is_over() => format!("release {id} is {state} already"),
            state => format!("release {id} is {state}: cancel it first (`bullwork release cancel {id}`)"),
        })
    }
}
