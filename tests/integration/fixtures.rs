//! The demo's databases (`data/`) load, are small and quick, and hold what they promise.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::support::postgres::Cluster;

/// Most bytes that `data/` may take in the repository.
const SIZE_LIMIT: u64 = 300_000;
/// Longest load of source and target together; about a second on an idle machine.
const LOAD_LIMIT: Duration = Duration::from_secs(15);

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(file)
}

fn size(path: &Path) -> u64 {
    if path.is_dir() {
        std::fs::read_dir(path).expect("data/ is readable").flatten().map(|entry| size(&entry.path())).sum()
    } else {
        path.metadata().expect("data/ is readable").len()
    }
}

async fn text(client: &Client, query: &str) -> String {
    client
        .query_one(query, &[])
        .await
        .unwrap_or_else(|e| panic!("{query}: {e:?}"))
        .get::<_, Option<String>>(0)
        .unwrap_or_default()
}

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap_or_else(|e| panic!("{table}: {e:?}")).get(0)
}

async fn loaded_source(cluster: &Cluster) -> Client {
    let source = cluster.create("source").await;
    cluster.load("source", &data("source/schema.sql"));
    cluster.load("source", &data("source/seed.sql"));
    source
}

#[test]
fn demo_data_stays_small() {
    let bytes = size(&data(""));
    assert!(bytes < SIZE_LIMIT, "data/ takes {bytes} bytes, more than {SIZE_LIMIT}");
}

#[tokio::test]
async fn source_and_older_target_load_quickly_and_agree_on_the_rows_they_share() {
    let cluster = Cluster::start();
    let start = Instant::now();
    let source = loaded_source(&cluster).await;
    let target = cluster.create("target").await;
    cluster.load("target", &data("target/day0.sql"));
    let took = start.elapsed();
    assert!(took < LOAD_LIMIT, "loading took {took:?}");

    for (table, rows) in [
        ("users", 300),
        ("organizations", 60),
        ("assessments", 500),
        ("answers", 5000),
        ("\"knowledge-elements\"", 5000),
        ("\"knowledge-element-snapshots\"", 200),
        ("\"login-events\"", 700),
        ("only \"login-events\"", 0),
        ("\"feature-toggles\"", 0),
        ("\"odd  \"\"name\"\".with*every?thing's\"", 20),
        ("billing.invoices", 90),
        ("\"AuditTrail\"", 40),
    ] {
        assert_eq!(count(&source, table).await, rows, "rows of {table}");
    }
    for (table, rows) in [
        ("answers", 3000),
        ("\"knowledge-elements\"", 3000),
        ("\"AuditTrail\"", 3),
        ("\"warehouse-notes\"", 2),
        ("analytics_users", 250),
        ("analytics_notes", 2),
        ("\"schooling-registrations\"", 300),
        ("campaigns", 7),
    ] {
        assert_eq!(count(&target, table).await, rows, "rows of {table}");
    }
    for table in ["answers", "\"knowledge-elements\""] {
        let rows = format!("select md5(string_agg(r::text, '|' order by id)) from {table} r where id <= 3000");
        assert_eq!(text(&source, &rows).await, text(&target, &rows).await, "first rows of {table}");
        let shape = format!(
            "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
             from pg_attribute where attrelid = '{table}'::regclass and attnum > 0"
        );
        assert_eq!(text(&source, &shape).await, text(&target, &shape).await, "columns of {table}");
    }
}

#[tokio::test]
async fn source_holds_every_awkward_object_and_value() {
    let cluster = Cluster::start();
    let source = loaded_source(&cluster).await;
    for (what, query) in [
        ("a value that reads as end of data in text COPY", r"from answers where value = '\.'"),
        ("a value that reads as NULL in text COPY", r"from answers where value = '\N'"),
        ("tabs and newlines", r"from answers where value ~ '\t' or value ~ '\n'"),
        ("text beyond ASCII", "from answers where value ~ '東京'"),
        ("a null beside an empty text", "from answers where value = ''"),
        ("a sequence that is ahead of its table", "from teams_id_seq where last_value > (select max(id) from teams)"),
        ("a sequence that was set but not called", "from ticket_number_seq where not is_called and last_value = 100003"),
        ("an identity column", "from pg_attribute where attidentity = 'a'"),
        ("a generated column", "from pg_attribute where attgenerated = 's'"),
        ("a dropped column", "from pg_attribute where attisdropped and attrelid = 'sessions'::regclass"),
        ("a partitioned table", "from pg_class where relkind = 'p'"),
        ("a materialized view with rows", "from \"answers-per-day\""),
        ("a domain", "from pg_type where typtype = 'd' and typname = 'email_address'"),
        ("a comment on a foreign key", "from pg_description d join pg_constraint c on c.oid = d.objoid and c.contype = 'f'"),
        ("an exclusion constraint", "from pg_constraint where contype = 'x'"),
        ("a self-reference", "from pg_constraint where contype = 'f' and conrelid = confrelid"),
        ("an overloaded function", "from pg_proc where proname = 'learner_label' having count(*) = 2"),
        (
            "an aggregate and a procedure",
            "from pg_proc where prokind in ('a', 'p') and pronamespace = 'public'::regnamespace having count(*) = 2",
        ),
        ("a trigger", "from pg_trigger where not tgisinternal"),
        (
            "a GIN index",
            "from pg_index i join pg_class c on c.oid = indexrelid join pg_am a on a.oid = relam where amname = 'gin'",
        ),
        ("a partial index", "from pg_index where indpred is not null"),
        ("an array of a user-defined type", "from assessments where \"stateHistory\" is not null"),
    ] {
        let found: i64 = source
            .query_opt(&format!("select count(*) {query}"), &[])
            .await
            .unwrap_or_else(|e| panic!("{what}: {e:?}"))
            .map_or(0, |row| row.get(0));
        assert!(found > 0, "the source lacks {what}");
    }
    assert_eq!(count(&source, "pg_class where relname = 'schooling-registrations'").await, 0);
}

#[tokio::test]
async fn growth_leaves_a_gap_that_a_late_commit_fills() {
    let cluster = Cluster::start();
    let source = loaded_source(&cluster).await;
    let late = cluster.client("source").await;
    late.batch_execute(&std::fs::read_to_string(data("source/late.sql")).unwrap()).await.unwrap();
    cluster.load("source", &data("source/grow.sql"));

    assert_eq!(text(&source, "select min(id) || ' ' || max(id) from answers where id > 5000").await, "5002 5401");
    late.batch_execute("commit").await.unwrap();
    assert_eq!(text(&source, "select value from answers where id = 5001").await, "committed after a higher id was copied");
    assert_eq!(count(&source, "answers").await, 5401);
    assert_eq!(count(&source, "\"knowledge-elements\"").await, 5397);
    assert_eq!(count(&source, "users where lang = 'es'").await, 5);
}
