//! Nights from servers of one major to servers of another: full copies that change places, appended and delta tables,
//! checksums, a way back.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod production;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::postgres::{Database, explain};
use bullwork::replication::full::{self, Config, Enrichment, Refused, Resume, Swap};
use bullwork::replication::incremental::Incremental;
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::replication::verify::{self, Depth, Verdict};
use bullwork::worker::{Progress, Record, Run, RunSink};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::postgres::{Cluster, MAJORS, has_majors};

const RULES: &str = r#"
    [tables.people]
    other_columns = "copy"
    [tables.people.columns]
    id = "hash"
    email = "email"
    born = { date_shift = 9 }
    [tables.visits]
    other_columns = "copy"
    columns.person = "hash"
"#;

/// What a run said.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl RunSink for Lines {
    fn line(&self, record: &Record) {
        self.0.lock().unwrap().push(record.message.clone());
    }

    fn progress(&self, _: &Progress) {}
}

impl Lines {
    fn run(&self) -> Run {
        Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(self.clone())))
    }

    fn told(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

struct World {
    _clusters: Vec<Cluster>,
    source: Client,
    target: Client,
    config: Config,
    pair: String,
}

impl World {
    async fn between(from: u32, to: u32) -> World {
        // One server serves both sides of a pair that is one major.
        let mut clusters = vec![Cluster::start_major(from)];
        if from != to {
            clusters.push(Cluster::start_major(to));
        }
        let (here, there) = (&clusters[0], &clusters[clusters.len() - 1]);
        let source = here.create("from").await;
        let target = there.create("to").await;
        for client in [&source, &target] {
            client.batch_execute("set timezone = 'UTC'").await.unwrap();
        }
        let modes = [
            ("log", TableMode::Incremental),
            ("late", TableMode::Incremental),
            ("accounts", TableMode::Delta),
            ("stock", TableMode::Delta),
        ];
        let config = Config {
            source: Database::parse(&here.url("from")).unwrap(),
            target: Database::parse(&there.url("to")).unwrap(),
            modes: TableModes::of(modes),
            foreign_keys: true,
            jobs: 2,
            enrichment: Enrichment::default(),
            rules: Rules::parse(RULES, Some("a key for tests, and long enough")).unwrap(),
            kindness: Default::default(),
            swap: Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent }),
            target_space: None,
            verify: Depth::Checksum,
        };
        World { _clusters: clusters, source, target, config, pair: format!("{from} to {to}") }
    }

    async fn on_source(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {}: {sql}", self.pair, explain(&e)));
    }

    async fn full(&self) -> (anyhow::Result<full::Summary>, Lines) {
        let lines = Lines::default();
        let done = tokio::time::timeout(Duration::from_secs(90), full::replicate(&lines.run(), &self.config)).await;
        (done.expect("ends in time"), lines)
    }

    fn appended(&self) -> Incremental {
        Incremental {
            source: self.config.source.clone(),
            target: self.config.target.clone(),
            modes: self.config.modes.clone(),
            rules: self.config.rules.clone(),
            kindness: Default::default(),
            first_load: true,
        }
    }

    /// The chain of a night; rows appended, updated, deleted.
    async fn night(&self) -> (u64, u64, u64) {
        let (result, lines) = self.full().await;
        result.unwrap_or_else(|e| panic!("{}: {e:#}\n{}", self.pair, lines.told()));
        assert!(!lines.told().contains("left out"), "{}: {}", self.pair, lines.told());
        let lines = Lines::default();
        let summary =
            self.appended().replicate(&lines.run()).await.unwrap_or_else(|e| panic!("{}: {e}\n{}", self.pair, lines.told()));
        (summary.rows, summary.updated, summary.deleted)
    }

    async fn verify(&self, repair: bool) -> verify::Report {
        let config = verify::Config {
            rules: self.config.rules.clone(),
            source: self.config.source.clone(),
            target: self.config.target.clone(),
            modes: self.config.modes.clone(),
            jobs: 2,
            tables: Vec::new(),
            repair,
        };
        verify::verify(&Run::detached(), &config).await.unwrap_or_else(|e| panic!("{}: {e:#}", self.pair))
    }

    /// Both sides read the same, as we see it and as our own query does.
    async fn assert_equal(&self) {
        let report = self.verify(false).await;
        assert!(
            report.tables.len() >= 15 && report.tables.iter().all(|t| t.verdict == Verdict::Equal),
            "{}: {report:#?}",
            self.pair
        );
        let tables = "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                      where c.relkind in ('r', 'p', 'm', 'v') and n.nspname = 'public' order by 1";
        for row in self.source.query(tables, &[]).await.unwrap() {
            let name: String = row.get(0);
            if ["public.people", "public.visits", "public.visitors"].contains(&name.as_str()) {
                continue;
            }
            let sql = format!(
                "select count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' order by t::text)), '') from {name} t"
            );
            let (ours, theirs) = (text(&self.target, &sql).await, text(&self.source, &sql).await);
            assert_eq!(ours, theirs, "{}: {name}", self.pair);
        }
        let masked = "select count(*)::text from people join visits on person = people.id";
        assert_eq!(text(&self.target, masked).await, text(&self.source, masked).await, "{}", self.pair);
        assert_eq!(text(&self.target, "select count(*)::text from people where email !~ 'masked.invalid'").await, "0");
    }
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e))).get(0)
}

/// Two nights with a day between, the way back, and a repair.
async fn assert_nights(from: u32, to: u32) {
    if !has_majors([from, to]) {
        return;
    }
    let world = World::between(from, to).await;
    world.on_source(&production::first_day(from)).await;
    // For sessions to come: no run may end by it, and each lasts about as long.
    if from >= 17 {
        world.on_source("alter database \"from\" set transaction_timeout = '1s'").await;
    }
    assert_eq!(world.night().await, (2150, 0, 0), "{}", world.pair);
    world.assert_equal().await;
    let before = text(&world.target, production::DIGEST).await;

    world.on_source(production::SECOND_DAY).await;
    assert_eq!(world.night().await, (43, 27, 18), "{}", world.pair);
    world.assert_equal().await;
    assert_ne!(text(&world.target, production::DIGEST).await, before);

    // A table by whose masked key others refer to it loses a row's value, and one its row.
    let damage = "update people set email = 'x@masked.invalid' where id = (select min(id) from people); \
                  delete from visits where id = 7; update kinds set t = 'other' where id = 3";
    world.target.batch_execute(damage).await.unwrap();
    let report = world.verify(true).await;
    let repaired: Vec<String> =
        report.tables.iter().filter(|t| t.verdict == Verdict::Repaired).map(|t| t.table.to_string()).collect();
    assert_eq!(repaired, ["kinds", "people", "visits"], "{}: {report:#?}", world.pair);
    assert!(world.verify(false).await.is_good(), "{}", world.pair);

    full::rollback(&Run::detached(), &world.config.target).await.unwrap();
    assert_eq!(text(&world.target, production::DIGEST).await, before, "{}", world.pair);
}

macro_rules! nights {
    ($($name:ident $from:expr, $to:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            assert_nights($from, $to).await;
        }
    )*};
}

nights! {
    nights_from_12_to_13_are_complete 12, 13;
    nights_from_13_to_14_are_complete 13, 14;
    nights_from_14_to_15_are_complete 14, 15;
    nights_from_15_to_16_are_complete 15, 16;
    nights_from_16_to_17_are_complete 16, 17;
    nights_from_17_to_18_are_complete 17, 18;
    nights_from_12_to_18_are_complete 12, 18;
    nights_from_18_to_18_are_complete 18, 18;
}

/// The other pairs, which take minutes.
#[tokio::test]
async fn nights_between_all_majors_are_complete() {
    if std::env::var_os("BULLWORK_CHAOS").is_none() {
        return;
    }
    for from in MAJORS {
        for to in MAJORS.filter(|to| *to >= from) {
            Box::pin(assert_nights(from, to)).await;
        }
    }
}

#[tokio::test]
async fn an_older_target_is_refused_before_anything_is_changed() {
    if !has_majors([13, 14]) {
        return;
    }
    let world = World::between(14, 13).await;
    world.on_source("create table log (id int primary key); insert into log values (1)").await;
    world.target.batch_execute("create table log (id int primary key); create table own (a int)").await.unwrap();
    let (result, _) = world.full().await;
    let error = result.unwrap_err();
    let wanted = "the target runs PostgreSQL 13 and the source 14";
    assert!(error.is::<Refused>() && format!("{error:#}").contains(wanted), "{error:#}");
    let error = world.appended().replicate(&Run::detached()).await.unwrap_err();
    assert!(error.is_final() && error.to_string().contains(wanted), "{error}");
    let planned = full::plan(&Run::detached(), &world.config).await;
    assert!(planned.is_err_and(|e| format!("{e:#}").contains(wanted)));
    let left = "select string_agg(relname, ' ' order by relname) || (select count(*) from log) || to_regnamespace('bullwork') is null from pg_class where relkind = 'r' and oid >= 16384";
    let left = left.replace(" || to_regnamespace('bullwork') is null", "");
    assert_eq!(text(&world.target, &left).await, "log own0");
    assert!(text(&world.target, "select (to_regnamespace('bullwork') is null)::text").await == "true");
}
