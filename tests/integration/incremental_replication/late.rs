//! Rows that commit late, snapshots, holes, broken streams.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::postgres::Cluster;

use super::{Pair, number, run, run_until};

const TABLE: &str = "create table t (id serial primary key, v text)";

#[tokio::test]
async fn a_row_that_commits_after_a_higher_id_was_copied_is_picked_up() {
    let pair = Pair::new(TABLE).await;
    pair.source("insert into t (v) values ('early')").await;
    let late = pair.cluster.client("production").await;
    late.batch_execute("begin; insert into t (v) values ('late')").await.unwrap();
    pair.source("insert into t (v) values ('higher')").await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 2);
    late.batch_execute("commit").await.unwrap();
    let ran = pair.run(&["t"]).await;
    assert_eq!(ran.summary().rows, 1);
    assert!(ran.says("t late rows: 1 of "), "{:?}", ran.messages());
    assert_eq!(ran.fields("Total of t")["total_records_replicated"], 1);
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn a_late_subtransaction_is_picked_up_and_a_rolled_back_gap_stays_a_gap() {
    let pair = Pair::new(TABLE).await;
    let late = pair.cluster.client("production").await;
    late.batch_execute(
        "begin; insert into t (v) values ('top'); savepoint a; insert into t (v) values ('rolled back'); rollback to a;
         savepoint b; insert into t (v) values ('in a subtransaction'); release b",
    )
    .await
    .unwrap();
    let never = pair.cluster.client("production").await;
    never.batch_execute("begin; insert into t (v) values ('never')").await.unwrap();
    pair.source("insert into t (v) values ('higher')").await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 1);
    late.batch_execute("savepoint c; insert into t (v) values ('after the run')").await.unwrap();
    late.batch_execute("commit").await.unwrap();
    never.batch_execute("rollback").await.unwrap();
    assert_eq!(pair.run(&["t"]).await.summary().rows, 3);
    pair.assert_equal(&["t"]).await;
    assert_eq!(number(&pair.target, "select count(*) from t").await, 4);
}

#[tokio::test]
async fn an_id_reserved_before_the_run_and_used_by_a_later_transaction_is_picked_up() {
    let pair = Pair::new(TABLE).await;
    pair.source("select setval('t_id_seq', 100); insert into t (v) values ('after a reserved block')").await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 1);
    // As a sequence with CACHE or a hi-lo allocator does: the transaction began after the run.
    pair.source("insert into t (id, v) select i, 'from the block' from generate_series(1, 100) i").await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 100);
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn transactions_across_two_runs_are_picked_up_once_they_commit() {
    let pair = Pair::new(TABLE).await;
    let long = pair.cluster.client("production").await;
    long.batch_execute("begin; insert into t (v) values ('spans two runs')").await.unwrap();
    for i in 0..3 {
        pair.source(&format!("insert into t (v) values ('night {i}')")).await;
        assert_eq!(pair.run(&["t"]).await.summary().rows, 1);
    }
    long.batch_execute("commit").await.unwrap();
    assert_eq!(pair.run(&["t"]).await.summary().rows, 1);
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn the_first_run_heals_holes_that_another_system_left() {
    let pair = Pair::new(TABLE).await;
    pair.source("insert into t (v) select 'v' || i from generate_series(1, 30000) i").await;
    pair.target("insert into t (id, v) select i, 'v' || i from generate_series(1, 29000) i where i % 2 = 0 or i < 100").await;
    let ran = pair.run(&["t"]).await;
    assert!(ran.says("t healing pass: every key that may be on the target is compared, because no earlier run left a snapshot"));
    pair.assert_equal(&["t"]).await;
    // A target that lost its newest rows, and one whose table was made again, are not trusted.
    pair.target("delete from t where id > 20000 or id = 5").await;
    assert!(pair.run(&["t"]).await.says("below the one it had"));
    pair.assert_equal(&["t"]).await;
    pair.target("create table u as table t; drop table t; alter table u rename to t; delete from t where id = 77").await;
    assert!(pair.run(&["t"]).await.says("the target's table was replaced"));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn another_source_or_one_that_went_back_in_time_leads_to_a_healing_pass() {
    let pair = Pair::new(TABLE).await;
    pair.source("insert into t (v) values ('a'), ('b'), ('c')").await;
    pair.run(&["t"]).await.summary();
    let heals = async |change: &str, reason: &str| {
        pair.target(&format!("delete from t where id = 2; update bullwork.incremental_watermark set {change}")).await;
        let ran = pair.run(&["t"]).await;
        assert!(ran.says(reason), "{reason}: {:?}", ran.messages());
        pair.assert_equal(&["t"]).await;
    };
    heals("source_identity = '1/1/1'", "read another source").await;
    heals("source_snapshot = '99999999999:99999999999:'", "ahead of the source").await;
    heals("source_snapshot = 'gibberish'", "cannot be read").await;
    heals("key_columns = '{v}'", "another one now").await;
}

#[tokio::test]
async fn late_rows_are_found_across_the_wrap_around_of_transaction_numbers() {
    let mut pair = Pair::new(TABLE).await;
    pair.source("insert into t (v) values ('old')").await;
    pair.run(&["t"]).await.summary();
    pair.cluster.spend_transactions(4_294_967_000).await;
    pair.source = pair.cluster.client("production").await;
    pair.target = pair.cluster.client("warehouse").await;
    assert!(pair.run(&["t"]).await.says("two billion transactions old"));
    let late = pair.cluster.client("production").await;
    late.batch_execute("begin; insert into t (v) values ('before the wrap, late')").await.unwrap();
    pair.source("insert into t (v) values ('higher')").await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 1);
    for _ in 0..1000 {
        pair.source("select txid_current()").await;
    }
    late.batch_execute("savepoint s; insert into t (v) values ('after the wrap, late'); commit").await.unwrap();
    pair.source("insert into t (v) values ('after')").await;
    let ran = pair.run(&["t"]).await;
    assert!(!ran.says("healing"), "{:?}", ran.messages());
    assert_eq!(ran.summary().rows, 3);
    pair.assert_equal(&["t"]).await;
    assert!(number(&pair.source, "select txid_current()").await > 1 << 32, "the numbers did wrap around");
}

#[tokio::test]
async fn all_tables_are_copied_from_one_snapshot() {
    let pair =
        Pair::new("create table debit (id serial primary key, n int); create table credit (id serial primary key, n int)").await;
    let writer = pair.cluster.client("production").await;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            writer
                .batch_execute("begin; insert into debit (n) values (1); insert into credit (n) values (1); commit")
                .await
                .unwrap();
        }
    });
    for _ in 0..15 {
        let ran = pair.run(&["credit", "debit"]).await;
        ran.summary();
        let sql = "select (select count(*) from debit) - (select count(*) from credit)";
        assert_eq!(number(&pair.target, sql).await, 0);
    }
    stop.cancel();
    writing.await.unwrap();
    assert!(number(&pair.target, "select count(*) from debit").await > 0);
}

/// A source and a target in clusters of their own; the target takes its time for each row.
async fn slow_pair() -> (Cluster, Pair) {
    let source = Cluster::start();
    let sql = "create table first (id int primary key); create table t (id int primary key, pad text);";
    let production = source.create("production").await;
    production.batch_execute(sql).await.expect("the statement is SQL");
    production
        .batch_execute(
            "insert into first select generate_series(1, 10);
             insert into t select i, repeat(md5(i::text), 200) from generate_series(1, 6000) i",
        )
        .await
        .expect("the statement is SQL");
    let target = Cluster::start();
    let warehouse = target.create("warehouse").await;
    warehouse.batch_execute(sql).await.expect("the statement is SQL");
    warehouse
        .batch_execute(
            "insert into first values (1); insert into t values (1, repeat(md5('1'), 200));
             create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.001); return new; end $$;
             create trigger slow before insert on t for each row execute function slow()",
        )
        .await
        .expect("the statement is SQL");
    (source, Pair { cluster: target, source: production, target: warehouse })
}

/// Waits until rows of `t` arrive on the target.
async fn in_mid_stream(pair: &Pair) {
    eventually("the copy of `t` is under way", Duration::from_secs(30), async || {
        let sql = "select count(*) from pg_stat_progress_copy p where p.relid = 't'::regclass and tuples_processed > 100";
        number(&pair.target, sql).await == 1
    })
    .await;
}

#[tokio::test]
async fn a_source_that_dies_in_mid_stream_leaves_nothing_behind_and_the_next_run_completes() {
    let (mut source, mut pair) = slow_pair().await;
    let mut work = pair.work(&["first", "t"]);
    work.source = bullwork::postgres::Database::parse(&source.url("production")).unwrap();
    let untouched = async |pair: &Pair| {
        // Rows on their way to the slow target are read before the end of the stream is.
        eventually("the run's session on the target is gone", Duration::from_secs(60), async || {
            let sql = "select count(*) from pg_stat_activity where application_name like 'bullwork: %'";
            number(&pair.target, sql).await == 0
        })
        .await;
        assert_eq!(number(&pair.target, "select count(*) from first").await, 1);
        assert_eq!(number(&pair.target, "select count(*) from t").await, 1);
        assert_eq!(number(&pair.target, "select count(*) from bullwork.incremental_watermark").await, 0);
    };

    // The session is ended by an administrator.
    let (ran, ()) = tokio::join!(run(&work), async {
        in_mid_stream(&pair).await;
        pair.source
            .batch_execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'bullwork: %'")
            .await
            .unwrap();
    });
    assert!(ran.error().contains("copying table `t`: reading from the source"), "{}", ran.error());
    untouched(&pair).await;

    // The whole server dies.
    let (ran, ()) = tokio::join!(run(&work), async {
        in_mid_stream(&pair).await;
        source.kill();
    });
    assert!(ran.error().contains("copying table `t`"), "{}", ran.error());
    untouched(&pair).await;

    // The run is told to stop.
    source.restart();
    pair.source = source.client("production").await;
    let stop = CancellationToken::new();
    let (ran, ()) = tokio::join!(run_until(&work, stop.clone()), async {
        in_mid_stream(&pair).await;
        stop.cancel();
    });
    assert_eq!(ran.error(), "the run was told to stop");
    untouched(&pair).await;

    // The target's session is ended.
    let (ran, ()) = tokio::join!(run(&work), async {
        in_mid_stream(&pair).await;
        pair.target
            .batch_execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'bullwork: %'")
            .await
            .unwrap();
    });
    assert!(ran.error().contains("copying table `t`: writing to the target"), "{}", ran.error());
    untouched(&pair).await;

    pair.target("drop trigger slow on t").await;
    assert_eq!(run(&work).await.summary().rows, 9 + 5_999);
    pair.assert_equal(&["first", "t"]).await;
}
