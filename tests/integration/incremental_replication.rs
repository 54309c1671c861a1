//! Incremental replication between two real databases (contract §4).

mod delta;
mod delta_fire;
mod delta_full;
mod delta_keys;
mod delta_sets;
mod fire;
mod late;
mod shape;

use std::sync::{Arc, Mutex};

use bullwork::postgres::Database;
use bullwork::replication::incremental::{Incremental, IncrementalError, Summary};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::{Progress, Record, Run, RunSink};
use serde_json::Value;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::postgres::Cluster;

/// Keeps what a run says.
#[derive(Default)]
struct Kept {
    lines: Mutex<Vec<Record>>,
    progress: Mutex<Progress>,
}

impl RunSink for Kept {
    fn line(&self, record: &Record) {
        self.lines.lock().expect("no test panics while it logs").push(record.clone());
    }

    fn progress(&self, progress: &Progress) {
        *self.progress.lock().expect("no test panics while it logs") = progress.clone();
    }
}

/// How a run ended and what it said.
struct Ran {
    result: Result<Summary, IncrementalError>,
    kept: Arc<Kept>,
}

impl Ran {
    #[track_caller]
    fn summary(&self) -> Summary {
        *self.result.as_ref().expect("the run succeeds")
    }

    #[track_caller]
    fn error(&self) -> String {
        self.result.as_ref().expect_err("the run fails").to_string()
    }

    fn messages(&self) -> Vec<String> {
        self.kept.lines.lock().expect("no test panics while it logs").iter().map(|r| r.message.clone()).collect()
    }

    #[track_caller]
    fn fields(&self, start: &str) -> Value {
        let lines = self.kept.lines.lock().expect("no test panics while it logs");
        let line = lines.iter().find(|r| r.message.starts_with(start));
        Value::Object(line.unwrap_or_else(|| panic!("no line `{start}…`: {:?}", self.messages())).fields.clone())
    }

    fn says(&self, part: &str) -> bool {
        self.messages().iter().any(|m| m.contains(part))
    }
}

/// A source and a target database; in one cluster, because that starts faster.
struct Pair {
    cluster: Cluster,
    source: Client,
    target: Client,
}

impl Pair {
    async fn new(both: &str) -> Pair {
        let cluster = Cluster::start();
        let (source, target) = (cluster.create("production").await, cluster.create("warehouse").await);
        source.batch_execute(both).await.expect("the definitions are SQL");
        target.batch_execute(both).await.expect("the definitions are SQL");
        Pair { cluster, source, target }
    }

    fn work(&self, tables: &[&str]) -> Incremental {
        Incremental {
            source: Database::parse(&self.cluster.url("production")).expect("a valid URL"),
            target: Database::parse(&self.cluster.url("warehouse")).expect("a valid URL"),
            modes: TableModes::of(tables.iter().map(|&t| (t, TableMode::Incremental))),
            rules: Rules::default(),
            kindness: Default::default(),
            first_load: true,
        }
    }

    async fn run(&self, tables: &[&str]) -> Ran {
        run(&self.work(tables)).await
    }

    async fn source(&self, sql: &str) {
        self.source.batch_execute(sql).await.expect("the statement is SQL");
    }

    async fn target(&self, sql: &str) {
        self.target.batch_execute(sql).await.expect("the statement is SQL");
    }

    /// Asserts that both sides hold the same rows, whatever the order of rows and columns.
    #[track_caller]
    fn assert_equal<'a>(&'a self, tables: &'a [&'a str]) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for table in tables {
                let (source, target) = (rows(&self.source, table).await, rows(&self.target, table).await);
                let missing: Vec<_> = source.iter().filter(|r| target.binary_search(r).is_err()).take(5).collect();
                assert!(
                    source == target,
                    "{caller}: {table}: {} rows on the source, {} on the target, missing: {missing:?}",
                    source.len(),
                    target.len()
                );
            }
        }
    }
}

async fn run(work: &Incremental) -> Ran {
    run_until(work, CancellationToken::new()).await
}

async fn run_until(work: &Incremental, stop: CancellationToken) -> Ran {
    let kept = Arc::new(Kept::default());
    let sink: Arc<dyn RunSink> = kept.clone();
    let result = work.replicate(&Run::new(serde_json::Map::new(), stop, Some(sink))).await;
    Ran { result, kept }
}

async fn rows(client: &Client, table: &str) -> Vec<String> {
    let sql = format!("select to_jsonb(t)::text from {table} t");
    let mut rows: Vec<String> = client.query(&sql, &[]).await.expect("the table exists").iter().map(|r| r.get(0)).collect();
    rows.sort();
    rows
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("the query is SQL").get(0)
}
