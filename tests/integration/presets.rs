//! Presets, by the real `db-p` on real clusters, shared through an S3 server in this process.

mod commands;
mod damage;
mod doctor;
mod failures;
mod fast;
mod kill;
mod legacy;
mod locks;
mod queue;
mod races;
mod story;
mod versions;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tokio_postgres::{Client, NoTls};

use crate::support::free_port;
use crate::support::postgres::{PASSWORD, as_server_user, data_directory, give_to_server_user, programs};
use crate::support::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};

/// A developer's machine: a cluster, an application, `db-p`.
pub struct Machine {
    home: tempfile::TempDir,
    pub port: u16,
    settings: Vec<(String, String)>,
}

impl Machine {
    /// One whose cluster runs and is empty.
    pub async fn new(store: &str, s3: Option<&S3>) -> Machine {
        let home = tempfile::Builder::new().prefix("bullwork-preset-").tempdir().unwrap();
        give_to_server_user(home.path());
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Machine { port: free_port(), settings: Vec::new(), home };
        data_directory(&machine.path("data"));
        let conf = machine.path("data/postgresql.conf");
        let mut text = std::fs::read_to_string(&conf).unwrap();
        text.push_str(&format!(
            "\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nshared_buffers = 32MB\n\
             full_page_writes = off\nmax_connections = 30\n",
            machine.port
        ));
        std::fs::write(&conf, text).unwrap();
        let mut machine = machine;
        let ctl = machine.ctl();
        let steps = machine.path("steps").display().to_string();
        let settings = [
            ("DBP_S3_BACKET", store.to_owned()),
            ("DBP_REPO", "shop".to_owned()),
            ("DBP_BRANCH", "main".to_owned()),
            ("DBP_KEY_PATH", machine.path("key").display().to_string()),
            ("DBP_PG_DATA_DIR", machine.path("data").display().to_string()),
            ("DBP_PG_START_CMD", format!("echo pg-start >>{steps}; {ctl} -l {}/pg.log start", machine.home.path().display())),
            ("DBP_PG_STOP_CMD", format!("echo pg-stop >>{steps}; {ctl} -m fast stop")),
            ("DBP_PG_PASSWORD", PASSWORD.to_owned()),
            ("DBP_PG_PORT", machine.port.to_string()),
            ("DBP_PG_USER", "owner".to_owned()),
            ("DBP_APP_START", format!("echo app-start >>{steps}")),
            ("DBP_APP_STOP", format!("echo app-stop >>{steps}")),
            (
                "DBP_MIGR_CMD",
                format!("echo migrate $DBP_PRESET >>{steps}; psql -X -q -d shop -c \"insert into t values ('migrated')\""),
            ),
            ("DBP_PRESETS_DIR", machine.path("presets").display().to_string()),
            ("DBP_PRESETS_DATA_DIR", machine.path("ready").display().to_string()),
            ("DBP_LOGFILE", machine.path("db-p.log").display().to_string()),
        ];
        machine.settings.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        if let Some(s3) = s3 {
            machine.set("S3_ENDPOINT", &format!("http://127.0.0.1:{}", s3.port));
            machine.set("S3_ACCESS_KEY", ACCESS_KEY);
            machine.set("S3_SECRET_KEY", SECRET_KEY);
        }
        machine.start();
        machine
    }

    /// One that shares through `s3`; the first one makes the key that the others copy.
    pub async fn sharing(s3: &S3, other: Option<&Machine>) -> Machine {
        let machine = Machine::new(&format!("s3://{BUCKET}/some/prefix"), Some(s3)).await;
        match other {
            None => assert!(machine.good(&["gen-key"]).contains("wrote the branch's key")),
            Some(other) => std::fs::copy(other.path("key"), machine.path("key")).map(drop).unwrap(),
        }
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `pg_ctl` for its cluster, as the user that may run it.
    fn ctl(&self) -> String {
        let program = programs().join("pg_ctl").display().to_string();
        let user =
            if nix::unistd::geteuid().is_root() { "setpriv --reuid postgres --regid postgres --clear-groups -- " } else { "" };
        format!("cd / && {user}{program} -s -w -D {}", self.path("data").display())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    pub fn setting(&self, name: &str) -> String {
        self.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// Starts the cluster, as somebody would who does not use `db-p`.
    pub fn start(&self) {
        let line = format!("{} -l {}/pg.log start", self.ctl(), self.home.path().display());
        let status = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(self.path("pg.log")).unwrap_or_default());
    }

    pub fn stop(&self) {
        let line = format!("{} -m immediate stop", self.ctl());
        let _ = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    pub fn runs(&self) -> bool {
        self.path("data/postmaster.pid").exists()
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_db-p"));
        command.args(words);
        command
    }

    /// Some program in its place and with its settings.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
        command
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", path)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub fn db_p(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a command that succeeds says.
    pub fn good(&self, words: &[&str]) -> String {
        let output = self.db_p(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// Why a command is refused.
    pub fn bad(&self, words: &[&str]) -> String {
        let output = self.db_p(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stderr)
    }

    pub async fn client(&self, database: &str) -> Client {
        let url = format!("postgres://owner:{}@127.0.0.1:{}/{database}", PASSWORD.replace(' ', "%20"), self.port);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("the cluster runs");
        tokio::spawn(connection);
        client
    }

    /// Has the cluster hold a database `shop` with one table and these rows, owned by a role of its own.
    pub async fn fill(&self, rows: &[&str]) {
        let client = self.client("postgres").await;
        let there = client.query_opt("select 1 from pg_roles where rolname = 'seller'", &[]).await.unwrap();
        if there.is_none() {
            client.batch_execute("create role seller login password 'of the seller'").await.unwrap();
        }
        client.batch_execute("drop database if exists shop with (force)").await.unwrap();
        client.batch_execute("create database shop owner seller").await.unwrap();
        let shop = self.client("shop").await;
        shop.batch_execute("create table t (x text); alter table t owner to seller").await.unwrap();
        for row in rows {
            shop.execute("insert into t values ($1)", &[row]).await.unwrap();
        }
    }

    /// The rows of that table, in their order.
    pub async fn rows(&self) -> Vec<String> {
        let rows = self.client("shop").await.query("select x from t order by ctid", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What the commands of start, stop and migration wrote since the last look.
    pub fn steps(&self) -> Vec<String> {
        let file = self.path("steps");
        let steps = std::fs::read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(&file);
        steps.lines().map(str::to_owned).collect()
    }

    /// A directory whose programs stand before those of PostgreSQL and the system: `program` makes the file `at-PROGRAM` and waits for
    /// `go-PROGRAM` before it does its work.
    pub fn hold(&mut self, program: &str) {
        let real =
            [programs().join(program), PathBuf::from("/usr/bin").join(program)].into_iter().find(|path| path.exists()).unwrap();
        let bin = self.path("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for other in ["pg_dump", "pg_dumpall", "psql", "pg_basebackup"] {
            let link = bin.join(other);
            if !link.exists() {
                std::os::unix::fs::symlink(programs().join(other), link).unwrap();
            }
        }
        let _ = std::fs::remove_file(bin.join(program));
        script(&bin.join(program), &self.home.path().display().to_string(), &real.display().to_string());
        self.set("PG_BIN", &bin.display().to_string());
        self.set("PATH", &format!("{}:{}:{}", bin.display(), programs().display(), std::env::var("PATH").unwrap_or_default()));
    }

    /// Undoes it.
    pub fn let_go(&mut self) {
        let _ = std::fs::remove_dir_all(self.path("bin"));
        self.settings.retain(|(name, _)| name != "PG_BIN" && name != "PATH");
    }
}

/// `--version` is answered at once: it is how the programs are found.
fn script(file: &Path, home: &str, real: &str) {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let text = format!(
        "#!/bin/bash\n[ \"$1\" = --version ] && exec {real} \"$@\"\ntouch {home}/at-{name}\n\
         for n in $(seq 600); do [ -e {home}/go-{name} ] && break; [ -d {home} ] || exit 1; sleep 0.05; done\nexec {real} \"$@\"\n"
    );
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything that `pg_dumpall` tells of a cluster.
fn whole(machine: &Machine) -> String {
    let mut command = Command::new(programs().join("pg_dumpall"));
    command.args(["-h", "127.0.0.1", "-U", "owner", "-p", &machine.port.to_string()]).env("PGPASSWORD", PASSWORD);
    as_server_user(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Files below `directory`, sorted.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(directory).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}
