//! Restoring an archive: into a new database, one that is there, or in the place of one.
//!
//! Everything that can be checked is checked before anything is made: archive, key, programs, server, rights, room,
//! names. Then the archive is read whole and compared with its manifest; only after that a statement runs. What an
//! interruption leaves, step by step:
//!
//! ```text
//! check, verify   nothing
//! create          an empty database that is marked as ours; the next run of the request uses it
//! SQL, fixtures   the same: one transaction, which ends only after the archive was read to its end once more
//! hook            a restored database under its own name; the next run of the request goes on with the hook
//! switch          both names changed, or none
//! ```
//!
//! A run that fails drops the database that it made; one that is killed cannot, and its name tells what it is.

use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use serde::Serialize;

use super::choice::ChoiceError;
use super::fixture::Group;
use super::keys::Keys;
use super::landing::{self, Condition, DatabaseName, Landing, LandingError};
use super::loading::{self, LoadError};
use super::manifest::{Manifest, MemberKind};
use super::name::Name;
use super::opening::{self, Event, OpenError, Opening};
use super::psql::{self, Feeding, PsqlError};
use super::shelf::{Shelf, ShelfError};
use super::stages::Stages;
use super::survey;
use crate::postgres::client_programs::{Psql, Unusable};
use crate::postgres::{Database, PostgresError};
use crate::process::{ProcessError, Program};
use crate::redact::Secret;
use crate::worker::Run;
use crate::worker::run::Stopped;

/// How long dropping a database may take when the run is told to stop.
const CLEAN_UP: Duration = Duration::from_secs(8);
/// Time in names of databases.
const STAMP: &str = "%Y%m%d_%H%M%S";

/// Where archives come from and where they go to.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Where they come from.
    pub shelf: Shelf,
    /// What opens them.
    pub keys: Keys,
    /// The server; its database is only for connecting.
    pub server: Database,
    /// Directory of psql; none: it is looked for.
    pub programs: Option<PathBuf>,
    /// Which fields of fixtures are which columns.
    pub groups: Vec<Group>,
    /// Shell line to run on the restored database.
    pub hook: Option<String>,
}

/// What a person asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The same over all runs of one request.
    pub id: String,
    /// Name of the database; derived from the archive's when there is none.
    pub into: Option<String>,
    /// Whether that one may hold something.
    pub into_nonempty: bool,
    /// Groups of fixtures instead of the SQL.
    pub fixtures: Vec<String>,
    /// Whether `into` is a database that the restored one takes the place of.
    pub swap: bool,
    /// Whether sessions that are in the way of that may be ended.
    pub end_sessions: bool,
}

impl Request {
    /// What can be wrong with it, whatever the server is; and whatever the archive is, where that is not known yet.
    ///
    /// # Errors
    /// When no run could do this.
    pub fn check(&self, manifest: Option<&Manifest>) -> Result<(), RestoreError> {
        if !self.fixtures.is_empty() && (self.into.is_none() || self.swap) {
            let rule = "fixtures go into tables that are there: name their database by --into, without --swap";
            return Err(RestoreError::Request(rule.to_owned()));
        }
        let source = manifest.map(|manifest| manifest.database.name.as_str());
        self.into.as_deref().map(|name| DatabaseName::parse(name, source)).transpose()?;
        if let Some(manifest) = manifest {
            loading::check_groups(manifest, &self.fixtures)?;
        }
        Ok(())
    }

    /// What tells databases of one request from those of another.
    fn short_id(&self) -> String {
        self.id.chars().filter(char::is_ascii_alphanumeric).take(6).collect()
    }
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was restored.
    pub archive: Name,
    /// Where it is.
    pub database: String,
    /// The name of the database that was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_as: Option<String>,
    /// The groups of fixtures; none where it was the SQL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<String>,
    /// Rows of the fixtures that were loaded; or of all tables, counted in the restored database, and nothing where that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Whether the hook ran.
    pub hook: bool,
    /// Whether an earlier run of the request had restored it already.
    pub resumed: bool,
    /// Milliseconds in all.
    pub milliseconds: u64,
}

/// Why nothing was restored, or not all that was asked for was done.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such archive.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// Its manifest.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// It cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server or the database.
    #[error(transparent)]
    Landing(#[from] LandingError),
    /// psql.
    #[error(transparent)]
    Psql(#[from] PsqlError),
    /// The fixtures.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Request(String),
    /// The archive was restored; the hook failed.
    #[error("the archive is restored as `{database}`, but RESTORE_HOOK failed, so nothing was done after it")]
    Hook {
        /// Where it is.
        database: String,
        /// Why.
        #[source]
        source: ProcessError,
    },
    /// The archive was restored, and did not take its place.
    #[error("the archive is restored as `{database}`, but did not take the place of `{live}`, which serves as before")]
    Swap {
        /// Where it is.
        database: String,
        /// Whose place.
        live: String,
        /// Why.
        #[source]
        source: LandingError,
    },
    /// Something is left.
    #[error(
        "database `{database}`, which the run had made, could not be dropped ({reason}) and is left; the run failed for another reason"
    )]
    Left {
        /// Its name.
        database: String,
        /// Why it is left.
        reason: String,
        /// What failed before.
        #[source]
        source: Box<RestoreError>,
    },
    /// Told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<Unusable> for RestoreError {
    fn from(error: Unusable) -> Self {
        RestoreError::Psql(error.into())
    }
}

impl From<PostgresError> for RestoreError {
    fn from(error: PostgresError) -> Self {
        RestoreError::Landing(error.into())
    }
}

impl RestoreError {
    /// Whether trying again is of no use until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            RestoreError::Choice(error) => !matches!(error, ChoiceError::Storage(_)),
            RestoreError::Shelf(ShelfError::Manifest { .. }) | RestoreError::Request(_) => true,
            RestoreError::Shelf(ShelfError::Storage(error)) => !error.may_pass(),
            RestoreError::Open(error) => error.is_final(),
            RestoreError::Landing(error) => !matches!(error, LandingError::Postgres(_) | LandingError::Busy(_)),
            // An error of the server in the middle of the SQL is there again the next time.
            RestoreError::Psql(error) => matches!(error, PsqlError::Unusable(_) | PsqlError::Failed(ProcessError::Failed { .. })),
            RestoreError::Load(error) => error.is_final(),
            RestoreError::Swap { source, .. } => !matches!(source, LandingError::Postgres(_)),
            RestoreError::Left { source, .. } => source.is_final(),
            RestoreError::Hook { .. } | RestoreError::Stopped(_) => false,
        }
    }

    /// Whether it only says that the run was told to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self, RestoreError::Stopped(_) | RestoreError::Open(OpenError::Stopped(_)))
    }
}

/// What is done with an archive, once everything was looked at.
struct Plan<'p> {
    manifest: &'p Manifest,
    request: &'p Request,
    landing: Landing<'p>,
    psql: Option<Psql>,
    /// Where the rows go.
    fresh: DatabaseName,
    /// Whose place it takes then.
    live: Option<DatabaseName>,
    condition: Condition,
}

impl Restore {
    /// Restores `archive`.
    ///
    /// # Errors
    /// When it was not restored, or not all that was asked for was done; the message tells what there is then.
    pub async fn restore(&self, run: &Run, archive: Name, request: &Request) -> Result<Report, RestoreError> {
        let mut stages = Stages::start();
        run.progress(|p| "check".clone_into(&mut p.phase));
        let manifest = run.unless_stopped(self.shelf.manifest(archive)).await??;
        let plan = run.unless_stopped(self.plan(&manifest, request)).await??;
        stages.end(run, "check");
        let done = matches!(plan.condition, Condition::Restored);
        let mut rows = None;
        if done {
            run.info(format!("an earlier run of this request had restored {archive} as `{}`", plan.fresh));
        } else {
            opening::verify(run, &self.shelf, &manifest, &self.keys, false).await?;
            stages.end(run, "verify");
            rows = self.land(run, &plan).await?;
            stages.end(run, "restore");
        }
        if rows.is_none() {
            rows = run.unless_stopped(count(run, &plan)).await?;
            stages.end(run, "count");
        }
        let hook = self.hook(run, &plan).await?;
        let (database, kept_as) = self.take_place(run, &plan).await?;
        run.info(format!(
            "restored {archive} as database `{database}`{}",
            kept_as.as_ref().map(|kept| format!("; the one before is `{kept}` now")).unwrap_or_default()
        ));
        Ok(Report {
            archive,
            database,
            kept_as,
            fixtures: request.fixtures.clone(),
            rows,
            hook,
            resumed: done,
            milliseconds: stages.total(),
        })
    }

    /// Looks at everything that can be wrong; nothing is changed.
    async fn plan<'p>(&'p self, manifest: &'p Manifest, request: &'p Request) -> Result<Plan<'p>, RestoreError> {
        request.check(Some(manifest))?;
        let with_fixtures = !request.fixtures.is_empty();
        let source = manifest.database.name.as_str();
        let stamp = manifest.archive.at.format(STAMP).to_string();
        let named = request.into.as_deref().map(|name| DatabaseName::parse(name, Some(source))).transpose()?;
        // Not the name that a restore without a switch takes, whose database may be there.
        let aside = |live: &DatabaseName| DatabaseName::derived(live.as_str(), &format!("{stamp}_{}", request.short_id()));
        let (fresh, live) = match (named, request.swap) {
            (Some(live), true) => (aside(&live), Some(live)),
            (None, true) => {
                let live = DatabaseName::parse(source, Some(source))?;
                (aside(&live), Some(live))
            }
            (Some(name), false) => (name, None),
            (None, false) => (DatabaseName::derived(source, &stamp), None),
        };
        // A key that is missing is told at once, not after an hour.
        self.keys.opener(manifest.archive.sealing).map_err(OpenError::from)?;
        let psql = if with_fixtures { None } else { Some(psql::find(self.programs.as_deref(), manifest).await?) };
        let landing = Landing::connect(&self.server, live.as_ref()).await?;
        landing.claim(&fresh).await?;
        let archive = manifest.archive.to_string();
        let mut condition = landing.look(&fresh, &archive, &request.id).await?;
        if let Some(live) = &live {
            if landing.look(live, &archive, &request.id).await? == Condition::Restored {
                // The switch was the last thing of a run that was killed.
                return Ok(Plan {
                    manifest,
                    request,
                    landing,
                    psql,
                    fresh: live.clone(),
                    live: None,
                    condition: Condition::Restored,
                });
            }
            landing.check_right()?;
            landing.check_owner(live).await?;
            if !request.end_sessions {
                landing.check_idle(live).await?;
            }
        }
        if condition != Condition::Restored {
            let needed = if with_fixtures { 0 } else { major(&manifest.database.server_version) };
            landing.check(needed, if with_fixtures { 0 } else { manifest.plain.bytes })?;
            if !with_fixtures {
                if condition == Condition::Absent {
                    landing.check_right()?;
                }
                landing.check_roles(&manifest.roles).await?;
                if let Some(demands) = &manifest.demands {
                    landing.check_demands(demands, condition == Condition::Absent).await?;
                }
            }
            match condition {
                Condition::Absent if with_fixtures => {
                    let text =
                        format!("there is no database `{fresh}`, and fixtures go into tables that are there; make them first");
                    return Err(RestoreError::Request(text));
                }
                Condition::Absent => {}
                _ if with_fixtures => condition = Condition::Foreign,
                _ if request.into_nonempty && !request.swap => {}
                _ => landing.check_empty(&fresh, &archive).await?,
            }
        }
        Ok(Plan { manifest, request, landing, psql, fresh, live, condition })
    }

    /// Brings the rows, and tells how many where they go one by one; what fails leaves no database that was made for it.
    async fn land(&self, run: &Run, plan: &Plan<'_>) -> Result<Option<u64>, RestoreError> {
        let Plan { manifest, landing, fresh, condition, request, .. } = plan;
        let ours = matches!(condition, Condition::Absent | Condition::Begun);
        if *condition == Condition::Absent {
            landing.create(fresh, &manifest.database.encoding, &request.id).await?;
            run.info(format!("made database `{fresh}`"));
        }
        let filled = async {
            match &plan.psql {
                Some(psql) => self.fill(run, plan, psql, ours).await.map(|()| None),
                None => self.load(run, plan).await.map(Some),
            }
        };
        let error = match run.unless_stopped(filled).await {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => error,
            Err(stopped) => stopped.into(),
        };
        if !ours {
            return Err(error);
        }
        let reason = match tokio::time::timeout(CLEAN_UP, landing.drop_begun(fresh)).await {
            Ok(Ok(())) => return Err(error),
            Ok(Err(reason)) => reason.to_string(),
            Err(_) => format!("not within {} s", CLEAN_UP.as_secs()),
        };
        if error.is_stopped() {
            // The next run of the request finds it.
            run.warn(format!("database `{fresh}`, which is empty, was not dropped: {reason}"));
            return Err(error);
        }
        Err(RestoreError::Left { database: fresh.to_string(), reason, source: Box::new(error) })
    }

    /// The whole database, by SQL.
    async fn fill(&self, run: &Run, plan: &Plan<'_>, psql: &Psql, ours: bool) -> Result<(), RestoreError> {
        run.progress(|p| {
            "restore".clone_into(&mut p.phase);
            p.bytes = 0;
        });
        let Plan { manifest, landing, fresh, request, .. } = plan;
        let mut opening = Opening::begin(&self.shelf, manifest, &self.keys).await?;
        let mut feeding = Feeding::begin(psql, &landing.database(fresh)).await?;
        let memberships = match &manifest.demands {
            Some(demands) => landing.memberships(demands).await?,
            None => String::new(),
        };
        let mut wanted = false;
        while let Some(event) = opening.next().await? {
            match event {
                Event::Begin(member) => {
                    wanted = matches!(opening.member(member).kind, MemberKind::Roles | MemberKind::Sql);
                    feeding.begin_script();
                }
                Event::Bytes(bytes) if wanted => feeding.write_script(&bytes).await?,
                Event::End(member) if wanted => {
                    feeding.end_script().await?;
                    if opening.member(member).kind == MemberKind::Roles {
                        feeding.write(memberships.as_bytes()).await?;
                    }
                }
                Event::Bytes(_) | Event::End(_) => {}
            }
            run.progress(|p| p.bytes = opening.read());
        }
        if ours {
            let mark = landing::restored_mark(&manifest.archive.to_string(), &request.id);
            feeding.write(format!("\n;\n{}", landing::comment(fresh, &mark)).as_bytes()).await?;
        }
        // Only here, where the archive was read to its end and was what its manifest tells.
        feeding.commit().await?;
        let session = landing.database(fresh).connect("restore").await?;
        if let Err(error) = session.batch_execute("set statement_timeout = 0; analyze").await {
            run.warn(format!("the planner knows nothing about `{fresh}` yet: {}", crate::postgres::explain(&error)));
        }
        Ok(())
    }

    /// Chosen groups, as rows.
    async fn load(&self, run: &Run, plan: &Plan<'_>) -> Result<u64, RestoreError> {
        run.progress(|p| {
            "fixtures".clone_into(&mut p.phase);
            (p.bytes, p.rows) = (0, 0);
        });
        let Plan { manifest, landing, fresh, request, .. } = plan;
        let opening = Opening::begin(&self.shelf, manifest, &self.keys).await?;
        let session = landing.database(fresh).connect("restore").await?;
        Ok(loading::load(run, session, opening, manifest, request, &self.groups).await?)
    }

    /// What the operator wants done with each restored database, before it takes anybody's place.
    async fn hook(&self, run: &Run, plan: &Plan<'_>) -> Result<bool, RestoreError> {
        let Some(line) = &self.hook else { return Ok(false) };
        run.progress(|p| "hook".clone_into(&mut p.phase));
        let mut stages = Stages::start();
        let database = plan.landing.database(&plan.fresh);
        let program = Program::new("/bin/sh").args(["-c", line]).secret_env(database.client_environment()).secret_env([
            ("RESTORED_DATABASE", Secret::unremembered(plan.fresh.as_str())),
            ("RESTORED_ARCHIVE", Secret::unremembered(plan.manifest.archive.to_string())),
            ("RESTORED_FROM", Secret::unremembered(plan.manifest.database.name.clone())),
        ]);
        let ended = run.unless_stopped(program.output()).await.inspect_err(|_| {
            run.warn(format!("the archive is restored as `{}`, and RESTORE_HOOK was interrupted; it may run twice", plan.fresh));
        })?;
        match ended {
            Ok(_) => {
                stages.end(run, "hook");
                Ok(true)
            }
            Err(source) => Err(RestoreError::Hook { database: plan.fresh.to_string(), source }),
        }
    }

    /// The name that it has in the end, and that of the one before.
    async fn take_place(&self, run: &Run, plan: &Plan<'_>) -> Result<(String, Option<String>), RestoreError> {
        let Some(live) = &plan.live else { return Ok((plan.fresh.to_string(), None)) };
        run.progress(|p| "switch".clone_into(&mut p.phase));
        // Two may change places within a second.
        let aside = format!("before_{}_{}", Utc::now().format(STAMP), plan.request.short_id());
        let kept = DatabaseName::derived(live.as_str(), &aside);
        let mark = landing::restored_mark(&plan.manifest.archive.to_string(), &plan.request.id);
        let swapped = async {
            plan.landing.take_over(run, &plan.fresh, live, &mark).await?;
            plan.landing.swap(run, &plan.fresh, live, &kept, plan.request.end_sessions).await
        };
        match run.unless_stopped(swapped).await? {
            Ok(there) => Ok((live.to_string(), there.then(|| kept.to_string()))),
            Err(source) => Err(RestoreError::Swap { database: plan.fresh.to_string(), live: live.to_string(), source }),
        }
    }
}

/// Counts the rows of the restored tables. Where that fails they are there all the same.
async fn count(run: &Run, plan: &Plan<'_>) -> Option<u64> {
    run.progress(|p| "count".clone_into(&mut p.phase));
    match survey::count_all(&plan.landing.database(&plan.fresh), &plan.manifest.tables).await {
        Ok(rows) => Some(rows),
        Err(error) => {
            run.warn(format!("the rows of `{}` were not counted: {error}", plan.fresh));
            None
        }
    }
}

/// The first number of a version.
pub(super) fn major(version: &str) -> u32 {
    version.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or_default()
}
