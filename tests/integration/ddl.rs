//! Definitions written from the catalogue, beside pg_dump's: the copy of a database, dumped, reads
//! like its source.

mod hard;
mod kinds;
mod left_out;
mod majors;
mod random;

use std::path::Path;
use std::process::Command;

use bullwork::postgres::{Connection, Database};
use bullwork::replication::ddl::{Catalogue, Options, SESSION, Section};

use crate::support::postgres::{Cluster, PASSWORD, programs};

/// A cluster with one database to copy from.
struct Source {
    cluster: Cluster,
    name: String,
}

impl Source {
    /// A database made by `sql`, which may be anything that psql runs.
    async fn of(sql: &str) -> Source {
        let source = Source { cluster: Cluster::start(), name: "source".to_owned() };
        source.cluster.create("source").await;
        source.run("source", sql);
        source
    }

    fn run(&self, database: &str, sql: &str) {
        let file = tempfile::Builder::new().suffix(".sql").tempfile().unwrap();
        std::fs::write(file.path(), sql).unwrap();
        self.cluster.load(database, file.path());
    }

    async fn connect(&self, database: &str) -> Connection {
        Database::parse(&self.cluster.url(database)).unwrap().connect("test").await.unwrap()
    }

    async fn read(&self, options: &Options) -> Catalogue {
        let session = self.connect(&self.name).await;
        session.batch_execute("begin isolation level repeatable read read only").await.unwrap();
        Catalogue::read(&session, options).await.unwrap()
    }

    /// Runs the statements into a new database.
    async fn copy(&self, into: &str, catalogue: &Catalogue) {
        self.cluster.create(into).await;
        let session = self.connect(into).await;
        session.batch_execute(SESSION).await.unwrap();
        for (at, statement) in catalogue.statements().iter().enumerate() {
            assert!(statement.depends_on.iter().all(|d| *d < at), "{statement:?} comes before what it needs");
            if let Err(error) = session.batch_execute(&statement.sql).await {
                panic!("{statement:?}\n{}\n{error:?}", statement.sql);
            }
        }
        let first_after = catalogue.statements().iter().position(|s| s.section == Section::Post);
        let last_before = catalogue.statements().iter().rposition(|s| s.section == Section::Pre);
        assert!(first_after.is_none() || last_before < first_after, "sections are mixed");
    }

    fn dump(&self, database: &str, more: &[&str]) -> String {
        dump(&programs().join("pg_dump"), &self.cluster, database, more)
    }

    /// The copy reads like the source; or like what pg_dump itself makes of the source, because some
    /// expressions come back from the server in another form than they were given.
    fn assert_equal(&self, copy: &str, more: &[&str]) {
        let wanted = self.dump(&self.name, more);
        let found = self.dump(copy, more);
        // Within a circle, pg_dump's order is an accident.
        if found == wanted || entries(&found) == entries(&wanted) {
            return;
        }
        let restored = format!("{copy} restored {}", more.len());
        self.run("postgres", &format!("create database \"{restored}\""));
        self.run(&restored, &wanted);
        let again = self.dump(&restored, more);
        // Each entry reads as in the source or as in its restored dump, and none is missing.
        let (theirs, other, ours) = (entries(&wanted), entries(&again), entries(&found));
        let heads = |entries: &[&str]| {
            let mut heads: Vec<String> = entries.iter().map(|e| e.lines().take(1).collect()).collect();
            heads.sort_unstable();
            heads
        };
        let odd = ours.iter().filter(|e| !theirs.contains(*e) && !other.contains(*e)).count();
        if odd > 0 || heads(&theirs) != heads(&ours) {
            panic!("the copy differs:\n{}", difference(&wanted, &found));
        }
    }
}

fn dump(program: &Path, cluster: &Cluster, database: &str, more: &[&str]) -> String {
    let mut dump = Command::new(program);
    dump.args(["--schema-only", "--no-owner", "-h", "127.0.0.1", "-U", "owner", "-p", &cluster.port.to_string()])
        .args(more)
        .arg(database)
        .env("PGPASSWORD", PASSWORD);
    let output = dump.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict")).collect::<Vec<_>>().join("\n")
}

/// A dump's entries, in the order of their text.
fn entries(dump: &str) -> Vec<&str> {
    let mut entries: Vec<&str> = dump.split("\n\n--\n").map(str::trim).collect();
    entries.sort_unstable();
    entries
}

/// The lines that only one of two texts has, with what stands around the first.
fn difference(wanted: &str, found: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("wanted"), directory.path().join("found"));
    std::fs::write(&a, wanted).unwrap();
    std::fs::write(&b, found).unwrap();
    let output = Command::new("diff").arg("-u").arg(&a).arg(&b).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().take(150).collect::<Vec<_>>().join("\n")
}

/// Copies what `sql` makes as a superuser, and compares with and without privileges.
async fn assert_copied(sql: &str) -> (Source, Catalogue) {
    let source = Source::of(sql).await;
    let catalogue = assert_copy(&source).await;
    (source, catalogue)
}

async fn assert_copy(source: &Source) -> Catalogue {
    let options = Options { superuser: true, privileges: true, ..Options::default() };
    let catalogue = source.read(&options).await;
    source.copy("copy", &catalogue).await;
    source.assert_equal("copy", &["--no-privileges"]);
    source.assert_equal("copy", &[]);
    catalogue
}

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
