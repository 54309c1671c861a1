//! Sessions with real servers.

use std::time::Duration;

use bullwork::postgres::same::same_database;
use bullwork::postgres::{Connection, Database};
use tokio_postgres::Client;

use crate::support::eventually;
use crate::support::postgres::Cluster;

async fn open(url: &str) -> Connection {
    Database::parse(url).expect("a valid URL").connect("test").await.expect("the server answers")
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("the query is SQL").get(0)
}

#[tokio::test]
async fn one_database_is_recognized_whatever_its_url_says() {
    let (cluster, elsewhere) = (Cluster::start(), Cluster::start());
    for (cluster, name) in [(&cluster, "warehouse"), (&cluster, "catalogue"), (&elsewhere, "warehouse")] {
        cluster.create(name).await;
    }
    let client = cluster.client("warehouse").await;
    // The least that a role can be: no view to read, no owner of anything.
    client
        .batch_execute("create role weak login password 'weak'; revoke select on pg_catalog.pg_locks from public")
        .await
        .expect("the owner may do that");
    let warehouse = open(&cluster.url("warehouse")).await;
    let weak = open(&format!("postgres://weak:weak@localhost:{}/warehouse", cluster.port)).await;
    for (a, b) in [(&warehouse, &weak), (&weak, &warehouse)] {
        assert!(same_database(a, b).await.expect("both sessions live"));
    }
    for other in [open(&cluster.url("catalogue")).await, open(&elsewhere.url("warehouse")).await] {
        assert!(!same_database(&weak, &other).await.expect("both sessions live"), "of the same name, or of the same server");
        assert!(!same_database(&other, &weak).await.expect("both sessions live"));
    }
    assert_eq!(number(&client, "select count(*) from pg_locks where locktype = 'advisory'").await, 0);
    assert_eq!(number(&client, "select count(*) from pg_stat_activity where state ~ 'in transaction'").await, 0);
}

#[tokio::test]
async fn a_comparison_that_fails_leaves_no_lock_behind() {
    let cluster = Cluster::start();
    let client = cluster.create("warehouse").await;
    let (living, dying) = (open(&cluster.url("warehouse")).await, open(&cluster.url("warehouse")).await);
    let kill =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'bullwork: test' and pid <> $1";
    let kept: i32 = living.query_one("select pg_backend_pid()", &[]).await.expect("it lives").get(0);
    client.execute(kill, &[&kept]).await.expect("the owner may do that");
    dying.closed().cancelled().await;
    let error = same_database(&living, &dying).await.expect_err("one session is gone").to_string();
    assert!(error.contains("comparing the two databases"), "{error}");
    assert_eq!(number(&client, "select count(*) from pg_locks where locktype = 'advisory'").await, 0);
    assert!(same_database(&living, &open(&cluster.url("warehouse")).await).await.expect("both sessions live"));
}

#[tokio::test]
async fn the_server_ends_a_long_statement_of_a_session_that_is_gone() {
    let cluster = Cluster::start();
    let client = cluster.create("warehouse").await;
    let session = open(&cluster.url("warehouse")).await;
    let running = "select count(*) from pg_stat_activity where application_name = 'bullwork: test' and state = 'active'";
    let statement = session.execute("select pg_sleep(600)", &[]);
    let dropped = async {
        eventually("the statement runs", Duration::from_secs(20), || async { number(&client, running).await == 1 }).await;
    };
    tokio::select! {
        _ = statement => panic!("it sleeps for ten minutes"),
        () = dropped => {}
    }
    // As in a process that was killed: nobody asks the server to cancel.
    drop(session);
    eventually("the server notices", Duration::from_secs(20), || async { number(&client, running).await == 0 }).await;
}
