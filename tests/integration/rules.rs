//! Masking and subsetting: what leaves the source under `REPLICATION_RULES`, and what is refused before.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod appended;
mod leaks;
mod masks;
mod meeting;
mod refusals;
mod subsets;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::postgres::{Database, explain};
use bullwork::replication::full::{self, Config, Enrichment, Refused, Resume, Summary, Swap};
use bullwork::replication::incremental::{Incremental, IncrementalError, Summary as Appended};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::replication::verify::Depth;
use bullwork::worker::{Progress, Record, Run, RunSink};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::postgres::Cluster;

const KEY: &str = "a key for tests, and long enough";

/// Source and target in clusters of their own or in one, and what a run is told.
struct World {
    source_cluster: Cluster,
    target_cluster: Option<Cluster>,
    source: Client,
    target: Client,
    config: Config,
}

impl World {
    async fn new(definitions: &str) -> World {
        World::of(Cluster::start(), None, definitions).await
    }

    async fn of(source_cluster: Cluster, target_cluster: Option<Cluster>, definitions: &str) -> World {
        let source = source_cluster.create("from").await;
        let there = target_cluster.as_ref().unwrap_or(&source_cluster);
        let target = there.create("to").await;
        let config = Config {
            source: Database::parse(&source_cluster.url("from")).unwrap(),
            target: Database::parse(&there.url("to")).unwrap(),
            modes: TableModes::default(),
            foreign_keys: true,
            jobs: 2,
            enrichment: Enrichment::default(),
            rules: Rules::default(),
            kindness: Default::default(),
            swap: Some(Swap { patience: Duration::from_secs(30), generations: 0, resume: Resume::Consistent }),
            target_space: None,
            verify: Depth::Counts,
        };
        let world = World { source_cluster, target_cluster, source, target, config };
        world.on_source(definitions).await;
        world
    }

    fn rules(&mut self, text: &str) {
        self.config.rules = Rules::parse(text, Some(KEY)).unwrap();
    }

    async fn on_source(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
    }

    async fn on_target(&self, sql: &str) {
        self.target.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
    }

    async fn try_full(&self) -> (anyhow::Result<Summary>, Lines) {
        let lines = Lines::default();
        let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(lines.clone())));
        let result =
            tokio::time::timeout(Duration::from_secs(60), full::replicate(&run, &self.config)).await.expect("ends in time");
        (result, lines)
    }

    async fn full(&self) -> (Summary, Lines) {
        let (result, lines) = self.try_full().await;
        (result.unwrap_or_else(|e| panic!("{e:#}\n{}", lines.all().join("\n"))), lines)
    }

    /// A full copy that the rules stop before anything is changed; its words.
    async fn refused(&self) -> String {
        let (result, lines) = self.try_full().await;
        let Err(error) = result else { panic!("it succeeded:\n{}", lines.all().join("\n")) };
        let text = format!("{error:#}");
        assert!(error.is::<Refused>() && text.ends_with("; target untouched"), "{text}");
        assert_eq!(self.text("select count(*)::text from pg_class where oid >= 16384").await, "0", "{text}");
        text
    }

    async fn try_append(&self, tables: &[&str]) -> (Result<Appended, IncrementalError>, Lines) {
        let work = Incremental {
            source: self.config.source.clone(),
            target: self.config.target.clone(),
            modes: TableModes::of(tables.iter().map(|&t| (t, TableMode::Incremental))),
            rules: self.config.rules.clone(),
            kindness: Default::default(),
            first_load: true,
        };
        let lines = Lines::default();
        let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(lines.clone())));
        (work.replicate(&run).await, lines)
    }

    async fn append(&self, tables: &[&str]) -> Appended {
        let (result, lines) = self.try_append(tables).await;
        result.unwrap_or_else(|e| panic!("{e}\n{}", lines.all().join("\n")))
    }

    /// The words of an incremental run that can only end that way.
    async fn append_refused(&self, tables: &[&str]) -> String {
        let error = self.try_append(tables).await.0.expect_err("it is refused");
        assert!(error.is_final(), "{error}");
        error.to_string()
    }

    /// The single text that a query gives on the target.
    async fn text(&self, sql: &str) -> String {
        text(&self.target, sql).await
    }

    /// Asserts that a query gives the same texts on both sides.
    async fn assert_same(&self, sql: &str) {
        assert_eq!(text(&self.source, sql).await, text(&self.target, sql).await, "{sql}");
    }
}

/// The first column of all rows, a line each.
async fn text(client: &Client, sql: &str) -> String {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|e| panic!("{}: {sql}", explain(&e)));
    rows.iter().map(|r| r.get::<_, Option<String>>(0).unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// What a run said.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<Record>>>);

impl Lines {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|r| format!("{} {}", r.message, serde_json::Value::Object(r.fields.clone()))).collect()
    }

    fn has(&self, part: &str) -> bool {
        self.all().iter().any(|line| line.contains(part))
    }
}

impl RunSink for Lines {
    fn line(&self, record: &Record) {
        self.0.lock().unwrap().push(record.clone());
    }

    fn progress(&self, _: &Progress) {}
}
