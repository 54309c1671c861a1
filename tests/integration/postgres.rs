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

/// What the driver itself makes of the same COPY.
async fn copied_by_the_driver(client: &Client, statement: &str) -> (Vec<u8>, u64) {
    use futures_util::TryStreamExt;
    let rows = client.copy_out(statement).await.expect("the COPY begins");
    let gathered = rows.try_fold((Vec::new(), 0), |(mut bytes, messages), row| async move {
        bytes.extend_from_slice(&row);
        Ok((bytes, messages + 1))
    });
    gathered.await.expect("the COPY ends")
}

async fn copied_in_pieces(session: &mut Connection, statement: &str) -> (Vec<u8>, u64) {
    let (mut bytes, mut messages) = (Vec::new(), 0);
    let mut copy = session.copy_out_in_pieces(statement).await.expect("the COPY begins");
    while let Some(piece) = copy.next().await.expect("the COPY goes on") {
        assert!(piece.bytes.len() < 1024 * 1024, "a piece is small, whatever a row is: {}", piece.bytes.len());
        bytes.extend_from_slice(&piece.bytes);
        messages += piece.messages;
    }
    (bytes, messages)
}

#[tokio::test]
async fn a_copy_in_pieces_is_byte_for_byte_what_the_driver_gets() {
    let cluster = Cluster::start();
    let client = cluster.client("postgres").await;
    let mut session = open(&cluster.url("postgres")).await;
    for query in [
        "select where false",
        "select 1 where false",
        "select from generate_series(1, 3)",
        "select n, repeat('x', n % 3000), null from generate_series(1, 20000) n",
        "select repeat(md5(n::text), 300000) from generate_series(1, 4) n",
        "select n from generate_series(1, 200000) n",
    ] {
        for form in ["text", "binary"] {
            let statement = format!("copy ({query}) to stdout (format {form})");
            let got = copied_in_pieces(&mut session, &statement).await;
            assert!(
                got == copied_by_the_driver(&client, &statement).await,
                "{statement}: {} bytes, {} messages",
                got.0.len(),
                got.1
            );
        }
    }
    assert_eq!(number(&session, "select 7::bigint").await, 7);
}

#[tokio::test]
async fn a_copy_that_breaks_or_is_left_early_leaves_the_session_usable() {
    let cluster = Cluster::start();
    let mut session = open(&cluster.url("postgres")).await;

    let error = session.copy_out_in_pieces("copy nonsense to stdout").await.err().expect("there is no such table");
    assert!(error.to_string().contains("db error"), "{error}");

    let statement = "copy (select 1 / (100000 - n), repeat('x', 100) from generate_series(1, 200000) n) to stdout";
    let mut copy = session.copy_out_in_pieces(statement).await.expect("the COPY begins");
    let mut messages = 0;
    let error = loop {
        match copy.next().await {
            Ok(Some(piece)) => messages += piece.messages,
            Ok(None) => panic!("a broken COPY must not look whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("22012"), "{error}");
    assert_eq!(messages, 99_999, "everything sent before the error is handed on");
    drop(copy);

    let mut copy =
        session.copy_out_in_pieces("copy (select n from generate_series(1, 300000) n) to stdout").await.expect("it begins");
    assert!(copy.next().await.expect("the COPY goes on").is_some());
    drop(copy);
    assert_eq!(number(&session, "select 7::bigint").await, 7);
    let (_, messages) = copied_in_pieces(&mut session, "copy (select n from generate_series(1, 1000) n) to stdout").await;
    assert_eq!(messages, 1000);
}

#[tokio::test]
async fn a_copy_whose_server_dies_is_an_error_and_never_an_end() {
    let mut cluster = Cluster::start();
    let mut session = open(&cluster.url("postgres")).await;
    let statement = "copy (select n, repeat('x', 1000) from generate_series(1, 100000000) n) to stdout";
    let mut copy = session.copy_out_in_pieces(statement).await.expect("the COPY begins");
    assert!(copy.next().await.expect("the COPY goes on").is_some());
    cluster.kill();
    let end = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match copy.next().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    });
    assert!(end.await.expect("it is noticed at once").is_err());
}

#[tokio::test]
async fn tls_is_agreed_on_as_libpq_does_in_every_mode() {
    let ((tls, root), plain) = (Cluster::start_with_tls(), Cluster::start());
    let root = root.to_str().expect("a path in UTF-8");
    let encrypted = "select count(*) from pg_stat_ssl where pid = pg_backend_pid() and ssl";
    for (options, expected) in [
        ("sslmode=disable".to_owned(), 0),
        ("sslmode=prefer".to_owned(), 1),
        ("sslmode=require".to_owned(), 1),
        (format!("sslmode=verify-full&sslrootcert={root}"), 1),
        (format!("sslmode=verify-full&sslrootcert={root}&channel_binding=require"), 1),
    ] {
        let mut session = open(&format!("{}?{options}", tls.url("postgres"))).await;
        assert_eq!(number(&session, encrypted).await, expected, "{options}");
        let (_, messages) = copied_in_pieces(&mut session, "copy (select n from generate_series(1, 100000) n) to stdout").await;
        assert_eq!(messages, 100_000, "{options}");
        let (canceller, sleeping) = (session.canceller(), session.batch_execute("select pg_sleep(60)"));
        let cancelling = async {
            let client = tls.client("postgres").await;
            let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
            eventually("the session sleeps", Duration::from_secs(20), async || number(&client, asleep).await == 1).await;
            canceller.cancel().await;
        };
        let (slept, ()) = tokio::join!(sleeping, cancelling);
        assert!(slept.is_err(), "{options}: cancelling goes the same way");
    }
    assert_eq!(number(&*open(&format!("{}?sslmode=prefer", plain.url("postgres"))).await, encrypted).await, 0);
    for (url, wanted) in [
        (format!("{}?sslmode=require", plain.url("postgres")), "does not support TLS"),
        (format!("{}?sslmode=verify-full", tls.url("postgres")), "certificate"),
        (
            format!("{}?sslmode=verify-full&sslrootcert={root}", tls.url("postgres").replace("127.0.0.1", "localhost")),
            "certificate",
        ),
    ] {
        let error = Database::parse(&url).expect("a valid URL").connect("test").await.err().expect("refused").to_string();
        assert!(error.contains(wanted), "{url}: {error}");
    }
}
