//! Full replication between two real databases of one throw-away cluster.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod clocks;
mod copies;
mod cuts;
mod failures;
mod keeps;
mod kindness;
mod plan;
mod pooler;
mod readers;
mod restarts;
mod resume;
mod starving;
mod swap;
mod told;
mod verify;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::postgres::Database;
use bullwork::replication::full::{self, Config, Enrichment, Resume, Summary, Swap};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::{Progress, Record, Run, RunSink};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::postgres::Cluster;

/// Source and target, and a run's settings.
struct World {
    cluster: Cluster,
    source: Client,
    target: Client,
    config: Config,
}

impl World {
    async fn new() -> World {
        World::with(&[]).await
    }

    async fn with(settings: &[&str]) -> World {
        let cluster = Cluster::start_with(settings);
        let source = cluster.create("from").await;
        let target = cluster.create("to").await;
        let config = Config {
            source: Database::parse(&cluster.url("from")).unwrap(),
            target: Database::parse(&cluster.url("to")).unwrap(),
            modes: TableModes::default(),
            foreign_keys: true,
            jobs: 3,
            enrichment: Enrichment::shipped(),
            rules: Rules::default(),
            kindness: Default::default(),
            swap: Some(Swap { patience: Duration::from_secs(30), generations: 0, resume: Resume::Consistent }),
            target_space: None,
            verify: bullwork::replication::verify::Depth::Counts,
        };
        World { cluster, source, target, config }
    }

    /// As on a target that has no room for two copies.
    fn in_place(&mut self) {
        self.config.swap = None;
    }

    fn keep<'a>(&mut self, tables: impl IntoIterator<Item = &'a str>) {
        self.config.modes = TableModes::of(tables.into_iter().map(|t| (t, TableMode::Incremental)));
    }

    async fn on_source(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", bullwork::postgres::explain(&e)));
    }

    async fn on_target(&self, sql: &str) {
        self.target.batch_execute(sql).await.unwrap_or_else(|e| panic!("{}: {sql}", bullwork::postgres::explain(&e)));
    }

    async fn try_run(&self) -> (anyhow::Result<Summary>, Lines) {
        let lines = Lines::default();
        let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(lines.clone())));
        // Readers that never rest share the cores with the long tests' runs.
        let limit = Duration::from_secs(if std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1") { 300 } else { 90 });
        let ending = tokio::time::timeout(limit, full::replicate(&run, &self.config)).await;
        let result = ending.unwrap_or_else(|_| panic!("the run did not end in time:\n{}", lines.all().join("\n")));
        (result, lines)
    }

    /// A run that must succeed.
    async fn run(&self) -> (Summary, Lines) {
        let (result, lines) = self.try_run().await;
        (result.unwrap_or_else(|e| panic!("{e:#}\n{}", lines.all().join("\n"))), lines)
    }

    /// A run that must fail; its words.
    async fn fail(&self) -> String {
        let (result, lines) = self.try_run().await;
        match result {
            Ok(_) => panic!("it succeeded:\n{}", lines.all().join("\n")),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Every table's rows are the same on both sides, byte for byte. Returns how many tables.
    async fn assert_same_rows(&self, except: &[&str]) -> usize {
        let wanted = fingerprints(&self.source).await;
        let found = fingerprints(&self.target).await;
        let mut compared = 0;
        for (table, print) in &wanted {
            if except.contains(&table.as_str()) {
                continue;
            }
            assert_eq!(found.iter().find(|(t, _)| t == table).map(|(_, p)| p), Some(print), "table {table}");
            compared += 1;
        }
        compared
    }

    async fn text(&self, sql: &str) -> String {
        text(&self.target, sql).await
    }
}

/// The single text that a query gives; empty for NULL or no row.
async fn text(client: &Client, sql: &str) -> String {
    let row = client.query_opt(sql, &[]).await.unwrap_or_else(|e| panic!("{}: {sql}", bullwork::postgres::explain(&e)));
    row.and_then(|r| r.get::<_, Option<String>>(0)).unwrap_or_default()
}

/// Tables with a hash of their rows as ordered text.
async fn fingerprints(client: &Client) -> Vec<(String, String)> {
    let tables = "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                  where c.relkind in ('r', 'p', 'm') and c.relispopulated and c.oid >= 16384 and n.nspname not in ('bullwork', 'pg_toast') order by 1";
    let mut prints = Vec::new();
    for row in client.query(tables, &[]).await.unwrap() {
        let name: String = row.get(0);
        let sql =
            format!("select count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' order by t::text)), '') from {name} t");
        prints.push((name, text(client, &sql).await));
    }
    prints
}

/// What a run said.
#[derive(Clone, Default)]
struct Lines {
    records: Arc<Mutex<Vec<Record>>>,
    progress: Arc<Mutex<Vec<Progress>>>,
}

impl Lines {
    fn all(&self) -> Vec<String> {
        self.records.lock().unwrap().iter().map(|r| r.message.clone()).collect()
    }

    fn has(&self, part: &str) -> bool {
        self.all().iter().any(|line| line.contains(part))
    }
}

impl RunSink for Lines {
    fn line(&self, record: &Record) {
        self.records.lock().unwrap().push(record.clone());
    }

    fn progress(&self, progress: &Progress) {
        self.progress.lock().unwrap().push(progress.clone());
    }
}
