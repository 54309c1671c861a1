//! The PostgreSQL cluster and the application: stopped, started, emptied, filled, kept.
//!
//! Stopping and starting are the operator's commands, and are never believed: a stopped cluster has no process in its data directory, a
//! started one answers. Whatever a command leaves behind writes into `commands.log`, not into a pipe of ours.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::PresetError;
use super::local::{AloneError, Local};
use super::settings::{DBP_APP_DEF_URL, DBP_PG_START_CMD, DBP_PG_STOP_CMD, DBP_TIME_LIMIT, Mode, Settings, environment};
use crate::postgres::client_programs::PgDump;
use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, server_major};
use crate::process::{Program, tells_of_a_full_disk};
use crate::redact::Secret;
use crate::webhook::{self, Redirects};
use crate::worker::Run;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a stop command that ended may take to show its effect.
const EFFECT: Duration = Duration::from_secs(20);
/// One question to the application.
const QUESTION: Duration = Duration::from_secs(10);

/// What our sessions call themselves, after `bullwork: `.
pub(super) const PURPOSE: &str = "presets";

/// Databases that presets are made of; templates of ours are none.
pub(super) const DATABASES: &str = "select datname::text, datistemplate from pg_database
    where datname not in ('postgres', 'template0', 'template1') order by 1";

/// The cluster.
pub(super) struct Cluster<'a> {
    pub(super) settings: &'a Settings,
    pub(super) run: &'a Run,
    local: &'a Local,
    log: PathBuf,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(settings: &'a Settings, run: &'a Run, local: &'a Local) -> Self {
        Cluster { settings, run, local, log: local.commands_log() }
    }

    pub(super) fn phase(&self, phase: &str) {
        self.run.progress(|p| {
            phase.clone_into(&mut p.phase);
            (p.bytes, p.bytes_total) = (0, 0);
        });
    }

    /// Runs one of the operator's lines.
    async fn shell(
        &self,
        line: &str,
        directory: Option<&Path>,
        environment: Vec<(&'static str, Secret)>,
        what: &str,
    ) -> Result<(), PresetError> {
        let mut program = Program::new("/bin/sh").args(["-c", line]).secret_env(environment);
        if let Some(directory) = directory {
            program = program.within(directory);
        }
        let patience = self.settings.patience;
        match self.run.unless_stopped(tokio::time::timeout(patience, program.logged(&self.log))).await? {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(PresetError::Refused(format!("{what} failed: {error} (all of it: {})", self.log.display()))),
            Err(_) => Err(PresetError::Refused(format!(
                "{what} did not end within {} min ({})",
                patience.as_secs() / 60,
                DBP_TIME_LIMIT.name
            ))),
        }
    }

    /// The server's process, when there is one: the first line of `postmaster.pid`, unless that is of a crash long ago.
    fn postmaster(&self) -> Option<i32> {
        let data = &self.settings.data_directory;
        let pid: i32 = std::fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()?;
        let alive = match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
            Ok(()) => true,
            Err(error) => error == nix::errno::Errno::EPERM,
        };
        // A server works in its data directory; who may not look is careful.
        let elsewhere = match (std::fs::read_link(format!("/proc/{pid}/cwd")), data.canonicalize()) {
            (Ok(found), Ok(data)) => found != data,
            _ => false,
        };
        (alive && !elsewhere).then_some(pid)
    }

    /// Whether its server runs.
    pub(super) fn runs(&self) -> bool {
        self.postmaster().is_some()
    }

    /// Stops it, if it runs.
    pub(super) async fn stop(&self) -> Result<(), PresetError> {
        self.phase("stop PostgreSQL");
        if self.postmaster().is_none() {
            return Ok(());
        }
        self.shell(&self.settings.stop, None, Vec::new(), "DBP_PG_STOP_CMD").await?;
        let begun = Instant::now();
        while let Some(pid) = self.postmaster() {
            if begun.elapsed() > EFFECT {
                return Err(PresetError::Refused(format!(
                    "PostgreSQL still runs (process {pid} in {}) though {} ended well",
                    self.settings.data_directory.display(),
                    DBP_PG_STOP_CMD.name
                )));
            }
            self.run.unless_stopped(tokio::time::sleep(PAUSE)).await?;
        }
        self.run.info("PostgreSQL is stopped");
        Ok(())
    }

    /// Starts it, if it does not run, and waits until it answers.
    pub(super) async fn start(&self) -> Result<(), PresetError> {
        self.phase("start PostgreSQL");
        let running = self.postmaster().is_some();
        if !running {
            self.shell(&self.settings.start, None, Vec::new(), "DBP_PG_START_CMD").await?;
        }
        let begun = Instant::now();
        let session = loop {
            let error = match self.run.unless_stopped(self.session()).await? {
                Ok(session) => break session,
                Err(error) => error,
            };
            // A password that is wrong stays wrong.
            if begun.elapsed() > self.settings.patience || error.to_string().contains("SQLSTATE 28") {
                return Err(PresetError::Refused(format!(
                    "PostgreSQL does not answer though {} ended well: {error}",
                    DBP_PG_START_CMD.name
                )));
            }
            self.run.unless_stopped(tokio::time::sleep(PAUSE)).await?;
        };
        self.check_directory(&session).await?;
        if !running {
            self.run.info("PostgreSQL is started");
        }
        Ok(())
    }

    /// Refuses when there is no data directory, or the server that answers has another one. A killed `select` leaves a whole one: it is
    /// exchanged in one step.
    pub(super) async fn check_place(&self) -> Result<(), PresetError> {
        let data = &self.settings.data_directory;
        if !data.join("PG_VERSION").is_file() {
            return Err(PresetError::Refused(format!(
                "DBP_PG_DATA_DIR={} is no data directory of PostgreSQL: there is no PG_VERSION in it; set it to that of the cluster which {} starts",
                data.display(),
                DBP_PG_START_CMD.name
            )));
        }
        match self.run.unless_stopped(self.session()).await? {
            Ok(session) => self.check_directory(&session).await,
            // It need not run yet; that it does not start is told when it is started.
            Err(_) => Ok(()),
        }
    }

    async fn check_directory(&self, session: &Connection) -> Result<(), PresetError> {
        let sql = "select setting from pg_settings where name = 'data_directory'";
        let found = session.query_opt(sql, &[]).await.doing(|| "asking for the data directory".to_owned())?;
        // Only superusers are told, which `check` asks for.
        let Some(found) = found.map(|row| PathBuf::from(row.get::<_, String>(0))) else { return Ok(()) };
        let said = &self.settings.data_directory;
        let same = found == *said || found.canonicalize().is_ok_and(|found| said.canonicalize().is_ok_and(|said| said == found));
        if same || said.as_os_str().is_empty() {
            return Ok(());
        }
        Err(PresetError::Refused(format!(
            "the server at DBP_PG_HOST and DBP_PG_PORT has its data in {}, not in DBP_PG_DATA_DIR={}; one of them is of another cluster",
            found.display(),
            said.display()
        )))
    }

    /// Stops the application.
    pub(super) async fn stop_app(&self) -> Result<(), PresetError> {
        let Some(line) = &self.settings.app_stop else { return Ok(()) };
        self.phase("stop the application");
        self.shell(line, self.settings.app_directory.as_deref(), Vec::new(), "DBP_APP_STOP").await?;
        self.run.info("the application is stopped");
        Ok(())
    }

    /// Starts the application unless it answers, and waits until it does.
    pub(super) async fn start_app(&self) -> Result<(), PresetError> {
        self.phase("start the application");
        let Some(line) = &self.settings.app_start else { return Ok(()) };
        let limit = self.settings.patience;
        let client = webhook::client(QUESTION, Redirects::Follow).map_err(|e| PresetError::Refused(e.to_string()))?;
        let answers = async || match &self.settings.app_url {
            Some(url) => client.get(url.clone()).send().await.is_ok_and(|answer| !answer.status().is_server_error()),
            None => false,
        };
        if answers().await {
            return Ok(());
        }
        self.shell(line, self.settings.app_directory.as_deref(), Vec::new(), "DBP_APP_START").await?;
        let begun = Instant::now();
        while self.settings.app_url.is_some() && !self.run.unless_stopped(answers()).await? {
            if begun.elapsed() > limit {
                return Err(PresetError::Refused(format!(
                    "the application was started and does not answer at {} within {} min",
                    DBP_APP_DEF_URL.name,
                    limit.as_secs() / 60
                )));
            }
            self.run.unless_stopped(tokio::time::sleep(PAUSE * 4)).await?;
        }
        self.run.info("the application is started");
        Ok(())
    }

    /// A session in `postgres`; in `template1` where a killed command left no `postgres`.
    pub(super) async fn session(&self) -> Result<Connection, PresetError> {
        match self.session_in("postgres").await {
            Err(error) if error.to_string().contains("SQLSTATE 3D000") => Ok(self.session_in("template1").await?),
            other => Ok(other?),
        }
    }

    /// One that may write, also where somebody had databases or roles be read only by default.
    async fn session_in(&self, database: &str) -> Result<Connection, PresetError> {
        let session = self.settings.server()?.named(database).connect(PURPOSE).await?;
        session.batch_execute("set default_transaction_read_only = off").await.doing(|| "beginning a session".to_owned())?;
        Ok(session)
    }

    /// Looks at what can be looked at before anything is changed.
    pub(super) async fn check(&self) -> Result<(), PresetError> {
        let session = self.session().await?;
        let sql = "select rolsuper, (select count(*) from pg_tablespace where oid >= 16384), pg_is_in_recovery()
            from pg_roles where rolname = current_user";
        let row = session.query_one(sql, &[]).await.doing(|| "asking who we are".to_owned())?;
        let refused = |text: &str| Err(PresetError::Refused(text.to_owned()));
        if !row.get::<_, bool>(0) {
            return refused("the role of DBP_PG_USER is no superuser, and presets hold roles and every database");
        }
        if row.get::<_, i64>(1) > 0 {
            return refused("the cluster has tablespaces, which no data directory holds; drop them: presets know none");
        }
        if row.get::<_, bool>(2) {
            return refused("the cluster is a standby, where nothing can be put");
        }
        if server_major(&session).await? < 13 {
            return refused("the cluster's PostgreSQL is older than 13, which presets need");
        }
        self.check_directory(&session).await
    }

    /// Refuses when a dump would leave a database out: `pg_dumpall` passes over those that nobody may connect to, and says nothing.
    pub(super) async fn check_whole(&self) -> Result<(), PresetError> {
        let session = self.session().await?;
        let sql = "select datname::text from pg_database where not datallowconn and datname <> 'template0' order by 1";
        let rows = session.query(sql, &[]).await.doing(|| "listing databases".to_owned())?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).filter(|name: &String| !super::fast::is_ours(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(PresetError::Refused(format!(
            "nobody may connect to `{}`, so a dump would leave that out; run: alter database {} allow_connections true (or drop it)",
            names.join("`, `"),
            quote_identifier(&names[0])
        )))
    }

    /// Ends everybody's sessions and drops every database and role but the ones that a cluster has from the start. With template
    /// databases, those and all roles stay. Safe to be killed in: one of `postgres` and `template1` is always there.
    pub(super) async fn clear(&self) -> Result<(), PresetError> {
        self.phase("clear");
        let session = self.session().await?;
        // Also what a killed command left running: psql and pg_basebackup end with their sessions.
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')";
        session.query_one(sql, &[]).await.doing(|| "ending sessions".to_owned())?;
        let ran = async |session: &Connection, sql: &str| {
            session.batch_execute(sql).await.doing(|| format!("emptying the cluster ({sql})"))
        };
        let fast = self.settings.mode == Mode::Fast;
        for row in session.query(DATABASES, &[]).await.doing(|| "listing databases".to_owned())? {
            let (name, template): (String, bool) = (row.get(0), row.get(1));
            if fast && super::fast::is_ours(&name) {
                continue;
            }
            let name = quote_identifier(&name);
            if template {
                ran(&session, &format!("alter database {name} is_template false")).await?;
            }
            ran(&session, &format!("drop database if exists {name} with (force)")).await?;
        }
        // Created anew, they own nothing that would keep a role.
        let in_template = self.is_in_template(&session).await?;
        let session = if in_template {
            session
        } else {
            self.renew(session, "template1").await?;
            self.session_in("template1").await?
        };
        self.renew(session, "postgres").await?;
        let session = self.session_in("postgres").await?;
        if !fast {
            let sql = "select string_agg(quote_ident(rolname), ', ') from pg_roles
                where oid <> 10 and rolname <> current_user and rolname !~ '^pg_'";
            let roles: Option<String> = session.query_one(sql, &[]).await.doing(|| "listing roles".to_owned())?.get(0);
            if let Some(roles) = roles {
                ran(&session, &format!("drop role {roles}")).await?;
            }
        }
        ran(&session, "alter role current_user reset all").await?;
        Ok(())
    }

    async fn is_in_template(&self, session: &Connection) -> Result<bool, PostgresError> {
        let sql = "select current_database() = 'template1'";
        Ok(session.query_one(sql, &[]).await.doing(|| "asking where we are".to_owned())?.get(0))
    }

    /// Drops the database `name` and makes it from the one that nobody changes.
    async fn renew(&self, session: Connection, name: &str) -> Result<(), PostgresError> {
        let sql = "select datistemplate from pg_database where datname = $1";
        let there = session.query_opt(sql, &[&name]).await.doing(|| "listing databases".to_owned())?;
        let mut statements = Vec::new();
        if there.is_some_and(|row| row.get(0)) {
            statements.push(format!("alter database {name} is_template false"));
        }
        statements.push(format!("drop database if exists {name} with (force)"));
        statements.push(format!("create database {name} template template0 is_template {}", name == "template1"));
        for sql in statements {
            session.batch_execute(&sql).await.doing(|| format!("emptying the cluster ({sql})"))?;
        }
        Ok(())
    }

    /// Runs the operator's migrations, if there are any.
    pub(super) async fn migrate(&self, preset: &str) -> Result<(), PresetError> {
        let Some(line) = &self.settings.migrate else { return Ok(()) };
        self.phase("migrate");
        let server = self.settings.server()?;
        let program = |program: Program| {
            let program = program.args(["/bin/sh", "-c", line]).secret_env(environment(server, preset));
            match &self.settings.migrate_directory {
                Some(directory) => program.within(directory),
                None => program,
            }
        };
        let patience = self.settings.patience;
        match tokio::time::timeout(patience, self.local.alone(self.run, "/bin/sh", program, Some(&self.log))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(AloneError::Stopped(stopped))) => Err(stopped.into()),
            Ok(Err(error)) => {
                Err(PresetError::Refused(format!("DBP_MIGR_CMD failed: {error} (all of it: {})", self.log.display())))
            }
            Err(_) => Err(PresetError::Refused(format!(
                "DBP_MIGR_CMD did not end within {} min ({})",
                patience.as_secs() / 60,
                DBP_TIME_LIMIT.name
            ))),
        }
    }

    /// Copies the running cluster's data directory to `to`, which must not exist, for the owner of the cluster's own.
    pub(super) async fn keep(&self, tools: &PgDump, to: &Path) -> Result<(), PresetError> {
        self.phase("keep");
        let arguments = ["--format=plain", "--wal-method=stream", "--checkpoint=fast", "--no-password"];
        let program =
            tools.beside("pg_basebackup", self.settings.server()?).args(arguments).args(["--pgdata".as_ref(), to.as_os_str()]);
        let made = match self.run.unless_stopped(program.output()).await {
            Ok(Ok(_)) => {
                let (data, to) = (self.settings.data_directory.clone(), to.to_owned());
                let given = tokio::task::spawn_blocking(move || give(&data, &to)).await;
                let given = given.unwrap_or_else(|e| Err(std::io::Error::other(e)));
                given.map_err(|e| PresetError::file("giving the kept data directory to its owner", e))
            }
            Ok(Err(error)) if tells_of_a_full_disk(&error.to_string()) => Err(PresetError::Refused(format!(
                "there is no room for a copy of the cluster at {}, which was removed; make room and pull again ({error})",
                to.display()
            ))),
            Ok(Err(error)) => Err(error.into()),
            Err(stopped) => Err(stopped.into()),
        };
        if made.is_err() {
            // Half a copy is of no use; the next command would remove it too.
            let _ = std::fs::remove_dir_all(to);
        }
        made
    }
}

/// Gives everything below `to` to the owner of `data`, and all its files one time that no other file has: copies are compared by
/// size and time, and file systems write times in steps of some milliseconds.
fn give(data: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let (owner, found) = (std::fs::metadata(data)?, std::fs::metadata(to)?);
    let foreign = (owner.uid(), owner.gid()) != (found.uid(), found.gid());
    let random = u32::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..4].try_into().expect("an UUID has 16 bytes"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(std::io::Error::other)?;
    let time = std::time::UNIX_EPOCH + Duration::new(now.as_secs(), random % 1_000_000_000);
    let mut open = vec![to.to_owned()];
    while let Some(path) = open.pop() {
        if foreign {
            std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
        }
        let kind = std::fs::symlink_metadata(&path)?;
        if kind.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if kind.is_file() {
            std::fs::File::open(&path)?.set_modified(time)?;
        }
    }
    Ok(())
}
