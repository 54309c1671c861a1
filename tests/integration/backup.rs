//! The backup kind on real databases, with `pg_dump`, into a directory.

mod changes;
mod collect;
mod failures;
mod kill;
mod overlap;
mod s3;
mod watchdog;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bullwork::backup::baseline::Baseline;
use bullwork::backup::manifest::Manifest;
use bullwork::backup::shelf::{Shelf, Shelved};
use bullwork::config::{Environment, Reader};
use bullwork::jobs::backup::{BackupKind, Payload};
use bullwork::storage::{self, Options};
use bullwork::worker::{JobContext, JobKind, Outcome};
use serde_json::Value;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::lines::Lines;
use crate::support::postgres::{Cluster, PASSWORD, programs};

/// Two tables with a key between them, one that is nobody's business, and what dumps find hard.
const SHOP: &str = r#"
create table customer (id serial primary key, name text not null, note varchar(40));
create table "order" (id int primary key, customer_id int not null references customer, total numeric(12,2), placed timestamptz);
create table session_log (id int, at timestamptz default now());
create view "big orders" as select * from "order" where total > 100;
create function total_of(int) returns numeric language sql as $$ select sum(total) from public."order" where customer_id = $1 $$;
insert into customer (name, note) select 'name ' || n, 'note ' || n % 7 from generate_series(1, 100) n;
insert into "order" select n, n % 100 + 1, n * 1.5, '2026-01-01 00:00Z'::timestamptz + n * interval '1 hour' from generate_series(1, 500) n;
"#;

/// A database, and a directory for its archives.
pub(crate) struct Setup {
    pub(crate) cluster: Cluster,
    pub(crate) shop: Client,
    pub(crate) directory: tempfile::TempDir,
}

impl Setup {
    pub(crate) async fn new() -> Setup {
        // Its transactions would come between two runs that are to find none.
        Setup::with(Cluster::start_with(&["autovacuum=off"])).await
    }

    pub(crate) async fn with(cluster: Cluster) -> Setup {
        let shop = cluster.create("shop").await;
        shop.batch_execute(SHOP).await.expect("the schema is right");
        Setup { cluster, shop, directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// The settings of every run; those of `more` win.
    pub(crate) fn settings(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut pairs = vec![
            ("DATABASE_URL".to_owned(), self.cluster.url("shop")),
            ("BACKUP_STORE".to_owned(), format!("file://{}", self.store().display())),
            ("BACKUP_EXCLUDE_TABLES".to_owned(), "session_log".to_owned()),
            ("BACKUP_PLAIN".to_owned(), "true".to_owned()),
            ("PG_BIN".to_owned(), programs().display().to_string()),
        ];
        pairs.retain(|(name, _)| !more.iter().any(|(n, _)| n == name));
        pairs.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        pairs
    }

    pub(crate) fn kind(&self, more: &[(&str, &str)]) -> BackupKind {
        let environment = Environment::of(self.settings(more));
        let reader = Reader::new(&environment);
        let kind = BackupKind::from_settings(&reader);
        reader.finish().expect("the configuration is right");
        kind
    }

    /// One run, its result or its error, and its lines.
    pub(crate) async fn run_with(
        &self,
        kind: &BackupKind,
        payload: Payload,
        stop: CancellationToken,
    ) -> (Result<Outcome, String>, Arc<Lines>) {
        let (run, lines) = Lines::of_run(stop);
        let context = JobContext { payload, attempt: 1, attempts: 1, run, memory: None };
        (kind.run(&context).await.map_err(|e| format!("{e:#}")), lines)
    }

    /// One run that does not fail.
    pub(crate) async fn take(&self, more: &[(&str, &str)]) -> Value {
        match self.run_with(&self.kind(more), Payload::default(), CancellationToken::new()).await.0 {
            Ok(Outcome::Done(value)) => value,
            other => panic!("{other:?}"),
        }
    }

    /// One run that fails.
    pub(crate) async fn fails(&self, more: &[(&str, &str)]) -> String {
        match self.run_with(&self.kind(more), Payload::default(), CancellationToken::new()).await.0 {
            Err(error) => error,
            Ok(Outcome::Refuse(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn shelf(&self) -> Shelf {
        shelf_at(&self.store())
    }

    /// The complete archives.
    pub(crate) async fn archives(&self) -> Vec<Shelved> {
        self.shelf().archives().await.expect("the store is there")
    }

    /// The manifest of the newest archive.
    pub(crate) async fn newest(&self) -> Manifest {
        let archives = self.archives().await;
        let newest = archives.last().expect("there is an archive");
        self.shelf().manifest(newest.name).await.expect("it has a manifest")
    }

    pub(crate) fn baseline(&self) -> Option<Baseline> {
        let bytes = std::fs::read(self.store().join("db/baseline.json")).ok()?;
        Some(serde_json::from_slice(&bytes).expect("the baseline is one"))
    }

    /// The file of the newest archive.
    pub(crate) async fn newest_file(&self) -> PathBuf {
        self.store().join("db").join(self.newest().await.archive.to_string())
    }

    /// Every file in the store, hidden ones too.
    pub(crate) fn files(&self) -> Vec<String> {
        files(&self.store())
    }

    /// A `pg_dump` that stops before its end until the file `go` appears beside it, and the directory that holds it.
    pub(crate) fn slow_pg_dump(&self) -> PathBuf {
        self.false_pg_dump(&format!(
            "{} \"$@\"; touch {dir}/waiting; while [ -d {dir} ] && [ ! -e {dir}/go ]; do sleep 0.05; done",
            programs().join("pg_dump").display(),
            dir = self.directory.path().join("bin").display()
        ))
    }

    /// A `pg_dump` that does what `script` says instead of dumping.
    pub(crate) fn false_pg_dump(&self, script: &str) -> PathBuf {
        let bin = self.directory.path().join("bin");
        std::fs::create_dir_all(&bin).expect("the directory is ours");
        let version = format!("[ \"$1\" = --version ] && exec {} --version", programs().join("pg_dump").display());
        std::fs::write(bin.join("pg_dump"), format!("#!/bin/sh\n{version}\n{script}\n")).expect("the directory is ours");
        std::fs::set_permissions(bin.join("pg_dump"), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        bin
    }
}

pub(crate) fn shelf_at(directory: &Path) -> Shelf {
    let store =
        storage::open(&format!("file://{}", directory.display()), &Options::default()).expect("a directory can be a store");
    Shelf { store, prefix: "db/".to_owned() }
}

pub(crate) fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.push(path.strip_prefix(directory).expect("found below it").display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// The joined parts of a member, unpacked as a person would.
pub(crate) fn unpack(archive: &Path, program: &str, member: &str) -> Vec<u8> {
    let script = format!("{program} -dc < \"$0\" | tar -xO --wildcards '{member}.*'");
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).arg(archive).output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs SQL in `database` with psql, as the README says.
pub(crate) fn psql(cluster: &Cluster, database: &str, sql: &[u8], options: &[&str]) {
    use std::io::Write as _;
    let mut child = Command::new(programs().join("psql"))
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "owner",
            "-d",
            database,
            "-p",
            &cluster.port.to_string(),
        ])
        .args(options)
        .env("PGPASSWORD", PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql runs");
    child.stdin.take().expect("it is piped").write_all(sql).expect("psql reads");
    assert!(child.wait().expect("psql ends").success());
}

pub(crate) fn result(value: &Value) -> &str {
    value["result"].as_str().expect("each run has a result")
}

/// Whether a process runs whose command line holds `mark`.
pub(crate) fn runs(mark: &str) -> bool {
    std::fs::read_dir("/proc")
        .expect("there is /proc")
        .flatten()
        .any(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark)))
}
