//! Delta mode where every row is compared: why, and that readers do not notice.

use std::time::Duration;

use bullwork::replication::full::{self, Config, Enrichment};
use bullwork::worker::Run;
use tokio_util::sync::CancellationToken;

use super::delta::{done, sync, work};
use super::{Pair, number};

const TABLE: &str = "create table t (id int primary key, v text)";

#[tokio::test]
async fn what_the_stored_snapshot_does_not_answer_for_leads_to_a_full_comparison() {
    let pair = Pair::new(TABLE).await;
    pair.source("insert into t select i, 'v' || i from generate_series(1, 100) i").await;
    // Rows of another system: the same, another one, one too many, one missing.
    pair.target("insert into t select i, 'v' || i from generate_series(1, 99) i; update t set v = 'x' where id = 5; insert into t values (500, '')")
        .await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("t full comparison: every row is copied and compared, because no earlier run left a snapshot"));
    assert_eq!(done(&ran), (1, 1, 1));
    pair.assert_equal(&["t"]).await;

    // Damage that only a full comparison finds, each time with another reason for one.
    let heals = async |pair: &Pair, change: &str, reason: &str| {
        pair.target(change).await;
        let ran = sync(pair, &["t"]).await;
        ran.summary();
        assert!(
            ran.says(&format!("t full comparison: every row is copied and compared, because {reason}")),
            "{reason}: {:?}",
            ran.messages()
        );
        pair.assert_equal(&["t"]).await;
        let again = sync(pair, &["t"]).await;
        assert!(again.says("t is unchanged"), "{reason}: {:?}", again.messages());
    };
    let mark = |change: &str| format!("update t set v = 'damage' where id = 2; update bullwork.delta_watermark set {change}");
    heals(&pair, &mark("source_identity = '1/1/1'"), "the last run read another source").await;
    heals(&pair, &mark("source_snapshot = '99999999999:99999999999:'"), "the stored snapshot is ahead of the source").await;
    heals(&pair, &mark("source_snapshot = 'gibberish'"), "the stored snapshot cannot be read").await;
    heals(&pair, &mark("key_columns = '{v}'"), "the key is another one now").await;
    heals(&pair, &mark("source_oid = 1"), "the source's table was replaced").await;
    heals(&pair, &mark("source_labels = ''"), "the labels of an enum changed").await;
    heals(&pair, "delete from t where id = 7", "the target's table has 99 rows, but the last run left 100").await;
    heals(&pair, "update t set v = 'by hand' where id = 8", "somebody else wrote 1 rows").await;
    heals(&pair, "delete from t where id = 7; insert into t values (700, 'by hand')", "somebody else wrote 1 rows").await;
    heals(
        &pair,
        "create table u as table t; drop table t; alter table u rename to t; update t set v = 'x' where id = 77",
        "the target's table was replaced",
    )
    .await;
    // Without a unique index a key may have come to occur twice.
    heals(&pair, "insert into t select * from t where id < 4", "the target's table has 103 rows").await;

    pair.source("alter table t alter column v type varchar(50)").await;
    assert!(sync(&pair, &["t"]).await.says("because the type of column `v` changed from text to character varying(50)"));
    pair.source("vacuum full t").await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("because the source's table was rewritten or truncated"), "{:?}", ran.messages());
    assert_eq!(done(&ran), (0, 0, 0));
    pair.source("create table s (id int primary key, v varchar(50)); insert into s values (1, 'old row of another table')").await;
    sync(&pair, &["t"]).await.summary();
    pair.source("drop table t; alter table s rename to t").await;
    assert!(sync(&pair, &["t"]).await.says("because the source's table was replaced"));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn labels_of_enums_that_change_are_followed_although_no_row_is_written() {
    let pair = Pair::new(
        "create type mood as enum ('glad', 'sad'); create type size as enum ('small', 'large'); create domain size_or_none as size;
         create table t (id int primary key, mood mood, moods mood[]); create table u (id int primary key, size size_or_none)",
    )
    .await;
    pair.source(
        "insert into t select i, case when i <= 30 then 'glad'::mood else 'sad' end, '{sad}' from generate_series(1, 100) i;
         insert into u select i, 'small' from generate_series(1, 10) i",
    )
    .await;
    sync(&pair, &["t", "u"]).await.summary();
    pair.target("alter type mood add value 'happy'; alter type size add value 'tiny'").await;
    assert!(sync(&pair, &["t", "u"]).await.says("t is unchanged"));
    for (change, table, updated) in
        [("alter type mood rename value 'glad' to 'happy'", "t", 30), ("alter type size rename value 'small' to 'tiny'", "u", 10)]
    {
        pair.source(change).await;
        let ran = sync(&pair, &["t", "u"]).await;
        let wanted = format!("{table} full comparison: every row is copied and compared, because the labels of an enum changed");
        assert!(ran.says(&wanted), "{:?}", ran.messages());
        assert_eq!(done(&ran), (0, updated, 0));
        pair.assert_equal(&["t", "u"]).await;
    }
}

#[tokio::test]
async fn a_snapshot_from_two_billion_transactions_ago_is_not_trusted_and_old_rows_stay_old() {
    let mut pair = Pair::new(TABLE).await;
    pair.source("insert into t select i, 'v' from generate_series(1, 50) i").await;
    sync(&pair, &["t"]).await.summary();
    pair.cluster.spend_transactions(2_600_000_000).await;
    pair.source = pair.cluster.client("production").await;
    pair.target = pair.cluster.client("warehouse").await;
    pair.target("update t set v = 'damage' where id = 2").await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("two billion transactions old"), "{:?}", ran.messages());
    pair.assert_equal(&["t"]).await;
    pair.source("update t set v = 'w' where id = 3").await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("t changes: 1 of 50 rows are not older"), "{:?}", ran.messages());
    assert_eq!(done(&ran), (0, 1, 0));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn new_columns_appear_with_the_values_of_all_rows_and_dropped_ones_go() {
    let pair = Pair::new("create table t (id int primary key, a text, b text, c text not null)").await;
    pair.source("insert into t select i, 'a', 'b', 'c' from generate_series(1, 100) i").await;
    sync(&pair, &["t"]).await.summary();
    pair.target("alter table t add column mine text default 'own'; create view v as select id, c from t").await;
    pair.source(
        "alter table t add column constant int default 5, add column volatile float default random(), add column empty text;
         alter table t drop column b, drop column c; alter table t add column twice int generated always as (id * 2) stored;
         update t set a = 'changed' where id = 3",
    )
    .await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (0, 100, 0), "{:?}", ran.messages());
    assert!(ran.says("because column `constant` is new"), "{:?}", ran.messages());
    assert!(ran.says("t: column `b` is gone from the source and was dropped"), "{:?}", ran.messages());
    assert!(
        ran.says("t: column `c` is gone from the source but stays: ") && ran.says("view v depends on"),
        "{:?}",
        ran.messages()
    );
    let columns = "select string_agg(attname, ',' order by attname) from pg_attribute
        where attrelid = 't'::regclass and attnum > 0 and not attisdropped";
    let there: String = pair.target.query_one(columns, &[]).await.unwrap().get(0);
    assert_eq!(there, "a,c,constant,empty,id,mine,twice,volatile");
    let copied = "select md5(string_agg(row(id, a, constant, volatile, empty, twice)::text, ';' order by id)) from t";
    let both = async |pair: &Pair| {
        let source: String = pair.source.query_one(copied, &[]).await.unwrap().get(0);
        let target: String = pair.target.query_one(copied, &[]).await.unwrap().get(0);
        assert_eq!(source, target);
    };
    both(&pair).await;
    // Somebody's own column is neither dropped nor emptied, and writing to it is no damage.
    pair.target("update t set mine = 'noted' where id < 10").await;
    pair.source("update t set a = 'again' where id < 5; insert into t (id) values (1000); delete from t where id = 50").await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (1, 4, 1), "{:?}", ran.messages());
    assert_eq!(number(&pair.target, "select count(*) from t where mine = 'noted'").await, 9);
    both(&pair).await;
}

#[tokio::test]
async fn generated_columns_of_the_target_are_left_alone() {
    let pair = Pair::new("create table t (id int primary key, a int, twice int generated always as (a * 2) stored)").await;
    pair.source("insert into t (id, a) select i, i from generate_series(1, 100) i").await;
    sync(&pair, &["t"]).await.summary();
    pair.source("update t set a = 7 where id < 4; insert into t (id, a) values (200, 1)").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (1, 3, 0));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn a_changed_type_is_taken_over_or_converted_and_told() {
    let pair = Pair::new("create table t (id int primary key, n int, code int, seen text)").await;
    pair.source("insert into t select i, i, i, i::text from generate_series(1, 50) i").await;
    sync(&pair, &["t"]).await.summary();
    pair.target("create view v as select seen from t").await;
    pair.source(
        "alter table t alter column n type bigint; alter table t alter column code type text using 'c' || code;
         alter table t alter column seen type int using seen::int; alter table t alter column id type bigint",
    )
    .await;
    let ran = sync(&pair, &["t"]).await;
    ran.summary();
    assert!(ran.says("t: the type of column `n` was changed from integer to bigint, as on the source"), "{:?}", ran.messages());
    assert!(ran.says("t: column `seen` is integer on the source now but stays text on the target"), "{:?}", ran.messages());
    assert!(ran.says("t full comparison: every row is copied and compared, because the type of column `id` changed"));
    let types = "select string_agg(format_type(atttypid, atttypmod), ',' order by attnum) from pg_attribute
        where attrelid = 't'::regclass and attnum > 0";
    assert_eq!(pair.target.query_one(types, &[]).await.unwrap().get::<_, String>(0), "bigint,bigint,text,text");
    let rows = "select md5(string_agg(t::text, ';' order by id)) from t";
    let (source, target) = (pair.source.query_one(rows, &[]).await.unwrap(), pair.target.query_one(rows, &[]).await.unwrap());
    assert_eq!(source.get::<_, String>(0), target.get::<_, String>(0));
    assert!(sync(&pair, &["t"]).await.says("t is unchanged"));
}

#[tokio::test]
async fn an_absent_table_is_made_and_another_mode_before_leads_to_a_full_comparison() {
    let pair = Pair::new("select").await;
    pair.source(
        "create table t (id int generated always as identity primary key, v text unique); insert into t (v) values ('a'), ('b')",
    )
    .await;
    assert_eq!(pair.run(&["t"]).await.summary().rows, 2);
    pair.source("update t set v = 'changed' where id = 1").await;
    pair.run(&["t"]).await.summary();
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("no earlier run left a snapshot"));
    assert_eq!(done(&ran), (0, 1, 0));
    // Rows that were appended meanwhile are not what the last delta run left.
    pair.source("insert into t (v) values ('c')").await;
    pair.run(&["t"]).await.summary();
    pair.source("delete from t where id = 2").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.assert_equal(&["t"]).await;

    pair.target("drop table t").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (2, 0, 0));
    pair.assert_equal(&["t"]).await;
    assert_eq!(number(&pair.target, "select count(*) from pg_indexes where tablename = 't'").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_find_the_table_whole_and_open_while_every_row_is_compared() {
    for both in ["create table t (id int primary key, v int)", "create table t (id int, v int)"] {
        let pair = Pair::new(both).await;
        pair.source("insert into t select i, 1 from generate_series(1, 5000) i").await;
        sync(&pair, &["t"]).await.summary();
        let reader = pair.cluster.client("warehouse").await;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let reading = tokio::spawn(async move {
            reader.batch_execute("set lock_timeout = '200ms'").await.unwrap();
            let mut reads = 0;
            while !stopped.is_cancelled() {
                let row = reader.query_one("select count(*), count(distinct v) from t", &[]).await.unwrap();
                assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5000, 1), "a half-done state was seen");
                reads += 1;
            }
            reads
        });
        for night in 2..6 {
            pair.source(&format!(
                "update t set v = {night}; delete from t where id = {night}; insert into t values ({night} + 10000, {night})"
            ))
            .await;
            pair.target("delete from bullwork.delta_watermark").await;
            assert!(sync(&pair, &["t"]).await.says("t full comparison"));
        }
        stop.cancel();
        let reads = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap().unwrap();
        assert!(reads > 4, "{reads} reads");
        pair.assert_equal(&["t"]).await;
    }
}

#[tokio::test]
async fn the_full_copy_keeps_delta_tables_and_the_next_step_brings_them_up_to_date() {
    let pair = Pair::new("create table t (id int primary key, v text)").await;
    pair.source("insert into t values (1, 'a'), (2, 'b'); create table copied (id int primary key, t int references t); insert into copied values (1, 1)")
        .await;
    let delta = work(&pair, &["t"]);
    let config = Config {
        rules: bullwork::replication::rules::Rules::default(),
        target_space: None,
        verify: bullwork::replication::verify::Depth::Counts,
        source: delta.source.clone(),
        target: delta.target.clone(),
        modes: delta.modes.clone(),
        foreign_keys: true,
        jobs: 2,
        enrichment: Enrichment::shipped(),
        kindness: Default::default(),
        swap: Some(full::Swap { patience: Duration::from_secs(20), generations: 0, resume: full::Resume::Consistent }),
    };
    let oid = "select 't'::regclass::oid::int8";
    let before = number(&pair.target, oid).await;
    full::replicate(&Run::detached(), &config).await.unwrap();
    assert_eq!(number(&pair.target, "select count(*) from t").await, 0, "kept as it was");
    assert_eq!(done(&sync(&pair, &["t"]).await), (2, 0, 0));
    // A row that the copied table refers to goes once a copy does not refer to it any more.
    pair.source(
        "update copied set t = 2; delete from t where id = 1; insert into t values (3, 'c'); insert into copied values (2, 3)",
    )
    .await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (1, 0, 0));
    full::replicate(&Run::detached(), &config).await.unwrap();
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.assert_equal(&["t", "copied"]).await;
    assert_eq!(number(&pair.target, oid).await, before);
    let keys =
        "select count(*) from pg_constraint where contype = 'f' and convalidated and connamespace = 'public'::regnamespace";
    assert_eq!(number(&pair.target, keys).await, 1);
}
