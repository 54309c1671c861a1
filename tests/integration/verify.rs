//! Checksums find every difference, and repair copies little.

mod repair;
mod values;

use bullwork::postgres::{Database, explain};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::replication::verify::{self, Compared, Config, Report, Verdict};
use bullwork::worker::Run;
use tokio_postgres::Client;

use crate::support::postgres::Cluster;

/// Two databases of one cluster that hold the same.
struct Pair {
    cluster: Cluster,
    source: Client,
    target: Client,
    config: Config,
}

impl Pair {
    async fn new(both: &str) -> Pair {
        let cluster = Cluster::start();
        let (source, target) = (cluster.create("from").await, cluster.create("to").await);
        let config = Config {
            rules: Rules::default(),
            source: Database::parse(&cluster.url("from")).unwrap(),
            target: Database::parse(&cluster.url("to")).unwrap(),
            modes: TableModes::default(),
            jobs: 2,
            tables: Vec::new(),
            repair: false,
        };
        let pair = Pair { cluster, source, target, config };
        pair.on_source(both).await;
        pair.on_target(both).await;
        pair
    }

    async fn on_source(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
    }

    async fn on_target(&self, sql: &str) {
        self.target.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
    }

    async fn try_verify(&self) -> anyhow::Result<Report> {
        verify::verify(&Run::detached(), &self.config).await
    }

    async fn verify(&self) -> Report {
        self.try_verify().await.unwrap_or_else(|e| panic!("{e:#}"))
    }

    async fn repair(&mut self) -> Report {
        self.config.repair = true;
        let report = self.verify().await;
        self.config.repair = false;
        report
    }

    async fn text(&self, sql: &str) -> String {
        let row = self.target.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }
}

fn of<'r>(report: &'r Report, table: &str) -> &'r Compared {
    let found = report.tables.iter().find(|t| t.table.to_string() == table);
    found.unwrap_or_else(|| panic!("no table {table}: {report:?}"))
}

#[track_caller]
fn assert_all(report: &Report, verdict: Verdict) {
    assert!(!report.tables.is_empty() && report.tables.iter().all(|t| t.verdict == verdict), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_waits_for_its_turn_prints_a_table_and_says_by_its_exit_code_what_it_found() {
    let pair = Pair::new("create table \"na\u{1b}me\" (id int primary key, x text); insert into \"na\u{1b}me\" values (1, 'secret value'), (2, 'b'); create table same (id int primary key)").await;
    let directory = tempfile::tempdir().unwrap();
    let command = async |arguments: &'static [&'static str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bullwork"));
        command.args(["replication", "verify"]).args(arguments).current_dir(directory.path()).env_clear();
        command.env("SOURCE_DATABASE_URL", pair.cluster.url("from")).env("TARGET_DATABASE_URL", pair.cluster.url("to"));
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, said) = command(&[]).await;
    assert_eq!(code, Some(0), "{table}{said}");
    pair.on_target("update \"na\u{1b}me\" set x = 'other value' where id = 1").await;
    let (code, table, said) = command(&[]).await;
    assert_eq!(code, Some(1), "{table}{said}");
    let line = |name: &str| table.lines().find(|l| l.contains(name)).unwrap_or_else(|| panic!("{table}")).to_owned();
    assert!(line("u{1b}").contains("differs"), "{table}");
    assert!(line("same").contains("equal") && line("u{1b}").split_whitespace().filter(|w| *w == "2").count() == 2, "{table}");
    assert!(said.contains("the source was read as it is now") && said.contains("--repair"), "{said}");
    assert!(!format!("{table}{said}").contains("value"), "no row is shown: {table}{said}");
    assert_eq!(command(&["same"]).await.0, Some(0));

    // A replication writes to the target.
    pair.on_target("select pg_advisory_lock(x'62756c6c'::int, 1)").await;
    let release = async {
        let waiting = "select count(*)::text from pg_stat_activity where application_name = 'bullwork: target lock' \
                       and state = 'idle' and query like '%advisory%'";
        crate::support::eventually("the command waits", std::time::Duration::from_secs(5), async || {
            pair.text(waiting).await == "1"
        })
        .await;
        assert_eq!(pair.text("select x from \"na\u{1b}me\" where id = 1").await, "other value");
        pair.on_target("select pg_advisory_unlock(x'62756c6c'::int, 1)").await;
    };
    let ((code, table, said), ()) = tokio::join!(command(&["--repair"]), release);
    assert_eq!(code, Some(0), "{table}{said}");
    assert!(table.contains("repaired") && said.contains("waiting for the target"), "{table}{said}");
    assert_eq!(pair.text("select x from \"na\u{1b}me\" where id = 1").await, "secret value");
}
