//! Delta mode: what changes on the source changes on the target, and nothing else does.

use std::time::Duration;

use bullwork::config::{Environment, Reader};
use bullwork::jobs::incremental_replication::IncrementalReplication;
use bullwork::postgres::Database;
use bullwork::replication::incremental::Incremental;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::{JobContext, JobKind, Outcome, Run};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Pair, Ran, number, run, run_until};
use crate::support::eventually;
use crate::support::postgres::Cluster;

/// What to do with `tables` in mode `delta`.
pub(super) fn work(pair: &Pair, tables: &[&str]) -> Incremental {
    Incremental { modes: TableModes::of(tables.iter().map(|&t| (t, TableMode::Delta))), ..pair.work(&[]) }
}

pub(super) async fn sync(pair: &Pair, tables: &[&str]) -> Ran {
    run(&work(pair, tables)).await
}

/// Rows inserted, updated, deleted.
#[track_caller]
pub(super) fn done(ran: &Ran) -> (u64, u64, u64) {
    let summary = ran.result.as_ref().unwrap_or_else(|e| panic!("the run fails: {e}"));
    (summary.rows, summary.updated, summary.deleted)
}

#[tokio::test]
async fn inserts_updates_deletes_and_key_changes_are_followed_and_told() {
    let pair = Pair::new("create table t (id int primary key, v text, n numeric, j json)").await;
    pair.source("insert into t select i, 'v' || i, i, '{\"a\": 1}' from generate_series(1, 1000) i").await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (1000, 0, 0));
    assert!(ran.says("t table is empty on the target: first full load"));

    pair.source(
        "insert into t values (2000, 'new', null, null); update t set v = 'changed', j = '[null]' where id <= 5; update t set v = null where id = 6;
         update t set n = 7.00 where id = 7; delete from t where id between 11 and 13; update t set id = -id where id = 20;
         update t set v = v where id = 30",
    )
    .await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (2, 7, 4), "{:?}", ran.messages());
    pair.assert_equal(&["t"]).await;
    assert!(ran.says("t changes: 10 of 998 rows are not older than the last run, 4 are gone"), "{:?}", ran.messages());
    let fields = ran.fields("Total of t replicated: 2 inserted, 7 updated, 4 deleted");
    assert_eq!(fields, json!({ "rows_inserted": 2, "rows_updated": 7, "rows_deleted": 4, "table_name": "t" }));
    let progress = ran.kept.progress.lock().unwrap().clone();
    assert_eq!((progress.done, progress.total), (1, 1));
    assert_eq!(number(&pair.target, "select count(*) from t where n::text = '7.00'").await, 1, "equal is not the same");

    pair.source("truncate t; insert into t values (1, 'again', 1, null)").await;
    sync(&pair, &["t"]).await.summary();
    pair.assert_equal(&["t"]).await;
    pair.source("delete from t").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    // What the last run left empty may be empty, even where that is an error otherwise.
    pair.source("insert into t values (3, 'back', 1, null)").await;
    let strict = Incremental { first_load: false, ..work(&pair, &["t"]) };
    assert_eq!(done(&run(&strict).await), (1, 0, 0));
    pair.target("delete from t").await;
    assert_eq!(run(&strict).await.error(), "t table must not be empty on target database");
}

#[tokio::test]
async fn the_job_takes_the_mode_from_the_settings_and_tells_all_three_numbers() {
    let pair = Pair::new("create table t (id int primary key, v int); create table a (id int primary key)").await;
    pair.source("insert into t values (1, 1), (2, 2), (3, 3); insert into a values (1)").await;
    let environment = Environment::of([
        ("SOURCE_DATABASE_URL", pair.cluster.url("production").as_str()),
        ("DATABASE_URL", pair.cluster.url("warehouse").as_str()),
        ("BACKUP_MODE", r#"{"t":"delta","a":"incremental"}"#),
    ]);
    let reader = Reader::new(&environment);
    let kind = IncrementalReplication::from_settings(&reader);
    reader.finish().unwrap();
    let run = async || {
        let ctx = JobContext { payload: Default::default(), attempt: 1, attempts: 1, run: Run::detached(), memory: None };
        kind.run(&ctx).await.unwrap()
    };
    assert_eq!(run().await, Outcome::Done(json!({ "tables": 2, "rows": 4, "updated": 0, "deleted": 0 })));
    pair.source("update t set v = 5 where id < 3; delete from t where id = 3; insert into a values (2)").await;
    assert_eq!(run().await, Outcome::Done(json!({ "tables": 2, "rows": 1, "updated": 2, "deleted": 1 })));
    pair.assert_equal(&["t", "a"]).await;
}

#[tokio::test]
async fn an_unchanged_table_costs_one_scan_of_the_source_and_nothing_is_written() {
    let source = Cluster::start_with(&["log_statement=all"]);
    let production = source.create("production").await;
    let mut pair = Pair::new("create table t (id int primary key, v text)").await;
    production
        .batch_execute("create table t (id int primary key, v text); insert into t select i, 'v' from generate_series(1, 500) i")
        .await
        .unwrap();
    pair.source = production;
    let work = Incremental { source: Database::parse(&source.url("production")).unwrap(), ..work(&pair, &["t"]) };
    assert_eq!(done(&run(&work).await), (500, 0, 0));
    // The lowest and the highest key come from the index.
    let of_t = |l: &&str| l.contains("from only \"public\".\"t\"") && !l.contains("select min(\"id\")");
    let scans = || source.log().lines().filter(of_t).count();
    let before = scans();
    let state = "select string_agg(x, ',') from (select xmin || '/' || ctid::text as x from t
        union all select xmin || '/' || ctid::text || replicated_at::text from bullwork.delta_watermark) y";
    let written: String = pair.target.query_one(state, &[]).await.unwrap().get(0);
    let next = "select txid_snapshot_xmax(txid_current_snapshot())";
    let transactions = number(&pair.target, next).await;
    let ran = run(&work).await;
    assert_eq!(done(&ran), (0, 0, 0));
    assert!(ran.says("t is unchanged: 500 rows on both sides"), "{:?}", ran.messages());
    assert_eq!(scans() - before, 1, "{}", source.log());
    assert_eq!(pair.target.query_one(state, &[]).await.unwrap().get::<_, String>(0), written);
    // One number goes to the comparison of the two databases at most.
    assert!(number(&pair.target, next).await <= transactions + 1, "the run's transaction on the target wrote something");

    // Rows that come again without a difference are not written either.
    pair.source("update t set v = v").await;
    let rows = "select string_agg(xmin || '/' || ctid::text, ',') from t";
    let written: String = pair.target.query_one(rows, &[]).await.unwrap().get(0);
    assert_eq!(done(&run(&work).await), (0, 0, 0));
    assert_eq!(pair.target.query_one(rows, &[]).await.unwrap().get::<_, String>(0), written);
    // Without anything gone no keys are asked for.
    let before = scans();
    pair.source("insert into t values (1000, 'new')").await;
    assert_eq!(done(&run(&work).await), (1, 0, 0));
    assert_eq!(scans() - before, 2, "one look, one copy of what changed");
}

#[tokio::test]
async fn transactions_that_were_open_during_runs_are_followed_once_they_commit() {
    let pair = Pair::new("create table t (id int primary key, v int)").await;
    pair.source("insert into t select i, 0 from generate_series(1, 10) i").await;
    sync(&pair, &["t"]).await.summary();
    let long = pair.cluster.client("production").await;
    long.batch_execute(
        "begin; update t set v = 1 where id = 1; savepoint a; insert into t values (11, 11); release a;
         delete from t where id = 2; savepoint b; update t set v = 9 where id = 3; rollback to b",
    )
    .await
    .unwrap();
    for night in 0..3 {
        pair.source(&format!("update t set v = v + 1 where id = 5; insert into t values (100 + {night}, 0)")).await;
        assert_eq!(done(&sync(&pair, &["t"]).await), (1, 1, 0));
    }
    long.batch_execute("update t set v = 2 where id = 4; commit").await.unwrap();
    assert_eq!(done(&sync(&pair, &["t"]).await), (1, 2, 1));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn composite_text_and_case_insensitive_keys_and_hostile_names_are_followed() {
    let name = "a.b \"q\" 'x'; --";
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    let both = format!(
        "create extension citext; create schema \"s \"\"x\";
         create table \"s \"\"x\".{quoted} (\"k \"\"1\" text, k2 int, \"col $1\" text[], primary key (k2, \"k \"\"1\"));
         create table c (name citext primary key, v int); create table only_key (id uuid primary key);
         create table u (note text, number bigint not null unique)"
    );
    let pair = Pair::new(&both).await;
    let table = format!("\"s \"\"x\".{quoted}");
    pair.source(&format!(
        "insert into {table} select 'k' || i % 7, i, array['a,b', null] from generate_series(1, 300) i;
         insert into c values ('Ada', 1), ('Alan', 2); insert into only_key select gen_random_uuid() from generate_series(1, 50);
         insert into u select 'n', i from generate_series(1, 40) i"
    ))
    .await;
    let tables = [&format!("s \"x.{name}"), "c", "only_key", "u"];
    assert_eq!(done(&sync(&pair, &tables).await), (392, 0, 0));
    pair.source(&format!(
        "update {table} set \"col $1\" = '{{}}' where k2 = 5; delete from {table} where k2 = 6; update {table} set k2 = 1000 where k2 = 7;
         update c set name = 'ADA' where v = 1; delete from only_key where ctid = '(0,1)'; insert into only_key values (gen_random_uuid());
         update u set note = 'm' where number = 3; delete from u where number = 4"
    ))
    .await;
    assert_eq!(done(&sync(&pair, &tables).await), (2, 3, 4));
    pair.assert_equal(&[&table, "c", "only_key", "u"]).await;
}

#[tokio::test]
async fn tables_without_key_are_followed_as_whole_rows() {
    let pair = Pair::new("create table t (a int, b json)").await;
    pair.source(
        "insert into t select i % 10, null from generate_series(1, 100) i; insert into t values (null, '{}'), (null, '{}')",
    )
    .await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (102, 0, 0));
    assert!(sync(&pair, &["t"]).await.says("t is unchanged"));
    pair.source("delete from t where ctid in (select min(ctid) from t where a = 3); update t set b = '[1]' where a is null; insert into t values (3, '0')").await;
    let untouched = "select count(distinct xmin::text) from t where a <> 3";
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("because it changed and has no key that tells its rows apart"), "{:?}", ran.messages());
    assert_eq!(done(&ran), (3, 0, 3));
    assert_eq!(number(&pair.target, untouched).await, 1, "equal rows were left alone");
    pair.assert_equal(&["t"]).await;
    pair.source("delete from t where ctid in (select min(ctid) from t where a = 3)").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn rows_move_between_partitions_and_partitions_come_and_go() {
    let pair = Pair::new("select").await;
    pair.source(
        "create table p (id bigint not null, day int not null, v text, primary key (id, day)) partition by range (day);
         create table p1 partition of p for values from (0) to (10); create table p2 partition of p for values from (10) to (20);
         insert into p select i, i % 20, 'v' from generate_series(1, 100) i",
    )
    .await;
    assert_eq!(done(&sync(&pair, &["p"]).await), (100, 0, 0));
    pair.source("update p set day = 15 where id = 1; update p set v = 'w' where id = 2; delete from p where id = 3").await;
    assert_eq!(done(&sync(&pair, &["p"]).await), (1, 1, 2));
    pair.assert_equal(&["p", "p1", "p2"]).await;
    // Old rows that come with a partition are as new as any.
    pair.source("create table p3 (like p including all); insert into p3 select i, 25, 'old' from generate_series(1, 50) i").await;
    sync(&pair, &["p"]).await.summary();
    pair.source("alter table p attach partition p3 for values from (20) to (30); alter table p detach partition p1").await;
    let ran = sync(&pair, &["p"]).await;
    assert!(ran.says("its partitions changed"), "{:?}", ran.messages());
    pair.assert_equal(&["p", "p2", "p3"]).await;
    assert!(sync(&pair, &["p"]).await.says("p is unchanged"));
}

#[tokio::test]
async fn rows_of_inheriting_tables_are_not_the_tables_own() {
    let pair = Pair::new("create table t (id int primary key, v int); create table child () inherits (t)").await;
    pair.source("insert into t values (1, 1), (2, 2); insert into child values (3, 3)").await;
    pair.target("insert into child values (9, 9)").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (2, 0, 0));
    pair.source("update t set v = 5; delete from only t where id = 2").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 1, 1));
    assert_eq!(number(&pair.target, "select sum(v)::int8 from t").await, 5 + 9);
    assert!(sync(&pair, &["t"]).await.says("t is unchanged: 1 rows"));
}

#[tokio::test]
async fn a_source_that_dies_between_two_tables_leaves_the_target_as_it_was() {
    let pair = Pair::new("create table a (id int primary key, v text); create table t (id int primary key, v text)").await;
    pair.source("insert into a values (1, 'a'); insert into t select i, 'v' from generate_series(1, 100) i").await;
    sync(&pair, &["a", "t"]).await.summary();
    pair.source("update a set v = 'b'; update t set v = 'w'; delete from t where id = 1").await;
    // Another writer holds the run up when the changes of the first table are there already.
    let writer = pair.cluster.client("warehouse").await;
    writer.batch_execute("begin; lock table t in row exclusive mode").await.unwrap();
    let work = work(&pair, &["a", "t"]);
    let (ran, ()) = tokio::join!(run(&work), async {
        eventually("the run waits for the writer", Duration::from_secs(20), async || {
            number(&pair.target, "select count(*) from pg_locks where relation = 't'::regclass and not granted").await == 1
        })
        .await;
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
            where application_name like 'bullwork: incremental%' and datname = 'production'";
        pair.target(sql).await;
        writer.batch_execute("rollback").await.unwrap();
    });
    assert!(ran.error().contains("copying the changes of table `t`: reading from the source"), "{}", ran.error());
    assert_eq!(number(&pair.target, "select count(*) from a where v = 'a'").await, 1);
    assert_eq!(number(&pair.target, "select count(*) from t where v = 'v'").await, 100);
    assert_eq!(done(&sync(&pair, &["a", "t"]).await), (0, 100, 1));
    pair.assert_equal(&["a", "t"]).await;
}

/// Ends the run's session on one side, or the run, while the changes are on their way.
#[tokio::test]
async fn a_run_that_dies_leaves_the_target_as_it_was() {
    let pair = Pair::new("create table a (id int primary key, v text); create table t (id int primary key, v text)").await;
    let fill = "insert into a values (1, 'a'); insert into t select i, repeat('x', 100) from generate_series(1, 700) i";
    pair.source(fill).await;
    sync(&pair, &["a", "t"]).await.summary();
    pair.target(
        "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.002); return new; end $$;
         create trigger slow before update on t for each row execute function slow()",
    )
    .await;
    pair.source("update a set v = 'b'; update t set v = v || 'y'; delete from t where id > 690").await;
    let before = super::rows(&pair.target, "t").await;
    let kill = |database: &str| {
        format!(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where application_name like 'bullwork: incremental%' and datname = '{database}'"
        )
    };
    for way in ["warehouse", "production", "stop"] {
        let stop = CancellationToken::new();
        let work = work(&pair, &["a", "t"]);
        let (ran, ()) = tokio::join!(run_until(&work, stop.clone()), async {
            eventually("the changes are being applied", Duration::from_secs(20), async || {
                let sql = "select count(*) from pg_stat_activity where datname = 'warehouse' and wait_event = 'PgSleep'";
                number(&pair.target, sql).await == 1
            })
            .await;
            if way == "stop" {
                stop.cancel();
            } else {
                pair.target(&kill(way)).await;
            }
        });
        if way == "production" {
            // All of it was on the target already: the source is not needed any more.
            ran.summary();
            pair.assert_equal(&["a", "t"]).await;
            pair.source("update a set v = 'c'; update t set v = v || 'z'").await;
            continue;
        }
        ran.error();
        eventually("the session is gone", Duration::from_secs(20), async || {
            number(&pair.target, "select count(*) from pg_stat_activity where application_name like 'bullwork: %'").await == 0
        })
        .await;
        if way == "warehouse" {
            assert_eq!(super::rows(&pair.target, "t").await, before);
            assert_eq!(number(&pair.target, "select count(*) from a where v = 'a'").await, 1);
        } else {
            assert_eq!(number(&pair.target, "select count(*) from a where v = 'b'").await, 1);
        }
    }
    pair.target("drop trigger slow on t").await;
    sync(&pair, &["a", "t"]).await.summary();
    pair.assert_equal(&["a", "t"]).await;
}
