//! Delta mode: deletions are found by the sets of keys of both sides, and none is missed or made up.

use super::delta::{done, sync, work};
use super::delta_fire::Dice;
use super::{Pair, number, run};
use bullwork::postgres::Database;
use bullwork::replication::incremental::Incremental;

use crate::support::postgres::Cluster;

/// How many keys the target remembers of table `t`, by the words it keeps; none: it keeps no set.
async fn remembered(pair: &Pair, table: &str) -> Option<i64> {
    let sql = format!(
        "select sum(length(replace((('x' || encode(substring(words from n for 1), 'hex'))::bit(8))::text, '0', '')))::int8
         from bullwork.delta_keys k join bullwork.delta_watermark m using (table_schema, table_name, source_snapshot),
         generate_series(1, length(words)) n where table_name = '{table}'"
    );
    pair.target.query_one(&sql, &[]).await.expect("the query is SQL").get(0)
}

#[tokio::test]
async fn deletions_are_found_in_the_one_scan_and_no_key_travels() {
    let source = Cluster::start_with(&["log_statement=all"]);
    let production = source.create("production").await;
    let mut pair = Pair::new("create table t (id bigint primary key, v text)").await;
    let fill = "create table t (id bigint primary key, v text); insert into t select i, 'v' from generate_series(1, 5000) i";
    production.batch_execute(fill).await.unwrap();
    pair.source = production;
    let work = Incremental { source: Database::parse(&source.url("production")).unwrap(), ..work(&pair, &["t"]) };
    assert_eq!(done(&run(&work).await), (5000, 0, 0));
    assert_eq!(remembered(&pair, "t").await, Some(5000), "the first load leaves a set");
    let statements = |part: &str| source.log().lines().filter(|l| l.contains(part)).count();
    pair.source("delete from t where id % 100 = 7; update t set v = 'w' where id % 100 = 8").await;
    assert_eq!(done(&run(&work).await), (0, 50, 50));
    pair.assert_equal(&["t"]).await;
    assert_eq!(statements("offset 0) t(word, keys, xmin)"), 1, "one scan finds what changed and what is gone: {}", source.log());
    assert_eq!(statements("copy (select \"id\" from"), 0, "{}", source.log());
    assert_eq!(statements("copy (select \"id\", \"v\" from"), 2, "the first load, and the rows that changed: {}", source.log());
    assert_eq!(remembered(&pair, "t").await, Some(4950));
}

#[tokio::test]
async fn keys_at_the_borders_of_words_below_zero_and_of_all_integer_types_are_exact() {
    for kind in ["smallint", "bigint", "number"] {
        let pair = Pair::new(&format!(
            "create domain number as int check (value > -5000); create table t (id {kind} primary key, v int)"
        ))
        .await;
        pair.source("insert into t select i, i from generate_series(-300, 1000) i").await;
        sync(&pair, &["t"]).await.summary();
        let check = async |change: &str, expected: (u64, u64, u64)| {
            pair.source(change).await;
            let ran = sync(&pair, &["t"]).await;
            assert_eq!(done(&ran), expected, "{kind}: {change}: {:?}", ran.messages());
            assert!(!ran.says("full comparison"), "{kind}: {change}: {:?}", ran.messages());
            pair.assert_equal(&["t"]).await;
            let rows = number(&pair.source, "select count(*) from t").await;
            assert_eq!(remembered(&pair, "t").await, Some(rows), "{kind}: {change}");
        };
        check("delete from t where id in (-300, -257, -256, -64, -63, -1, 0, 63, 64, 127, 128, 999, 1000)", (0, 0, 13)).await;
        check("delete from t where id between 192 and 255", (0, 0, 64)).await;
        // As many rows as before: one is gone, another one came.
        check("delete from t where id = 500; insert into t values (500 - 192 - 64, 1)", (1, 0, 1)).await;
        check("update t set id = 200 where id = 600", (1, 0, 1)).await;
        check("update t set id = 201 where id = 200; update t set v = -v where id = 201", (1, 0, 1)).await;
        check("delete from t where id = 300; insert into t values (300, 7)", (0, 1, 0)).await;
        // Beyond both ends of the set that is remembered.
        check("insert into t values (-2000, 1), (3000, 2); delete from t where id = -299", (2, 0, 1)).await;
        check("delete from t where id in (-2000, 3000)", (0, 0, 2)).await;
        check(
            "delete from t where id > -250",
            (0, 0, number(&pair.source, "select count(*) from t where id > -250").await as u64),
        )
        .await;
        check("insert into t values (1, 1)", (1, 0, 0)).await;
    }
}

#[tokio::test]
async fn a_row_of_a_late_commit_does_not_hide_one_that_is_gone() {
    let pair = Pair::new("create table t (id int primary key, v int)").await;
    pair.source("insert into t select i, i from generate_series(1, 200) i where i <> 70").await;
    sync(&pair, &["t"]).await.summary();
    let long = pair.cluster.client("production").await;
    long.batch_execute("begin; insert into t values (70, 70)").await.unwrap();
    // The late row's transaction is older than the snapshots of these nights.
    for id in 1..4 {
        pair.source(&format!("update t set v = 0 where id = {id}")).await;
        assert_eq!(done(&sync(&pair, &["t"]).await), (0, 1, 0));
    }
    long.batch_execute("commit").await.unwrap();
    pair.source("delete from t where id = 71").await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (1, 0, 1), "{:?}", ran.messages());
    assert!(!ran.says("full comparison"));
    pair.assert_equal(&["t"]).await;
}

#[tokio::test]
async fn a_set_is_used_only_where_it_is_the_targets_own() {
    let pair = Pair::new("create table t (id int primary key, v int)").await;
    pair.source("insert into t select i, i from generate_series(1, 500) i").await;
    sync(&pair, &["t"]).await.summary();
    // Of another run, or none at all: the target is asked.
    for (id, change) in [(1, "update bullwork.delta_keys set source_snapshot = '1:1:'"), (2, "drop table bullwork.delta_keys")] {
        pair.target(change).await;
        pair.source(&format!("delete from t where id = {id}; update t set v = 0 where id = 100 + {id}")).await;
        let ran = sync(&pair, &["t"]).await;
        assert_eq!(done(&ran), (0, 1, 1), "{change}: {:?}", ran.messages());
        assert!(!ran.says("full comparison"), "{change}: {:?}", ran.messages());
        assert_eq!(remembered(&pair, "t").await, Some(500 - id), "{change}: it is remembered again");
    }
    // Other keys, and as many: they are not the source's.
    pair.target("update bullwork.delta_keys set first_word = first_word + 1").await;
    pair.source("update t set v = 0 where id = 300").await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("because rows are missing on the target that did not change"), "{:?}", ran.messages());
    assert_eq!(done(&ran), (0, 1, 0));
    pair.assert_equal(&["t"]).await;
    // What is changed by hand is noticed as ever.
    pair.target("delete from t where id = 50; insert into t values (5000, 0)").await;
    pair.source("delete from t where id = 60").await;
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("because somebody else wrote 1 rows"), "{:?}", ran.messages());
    pair.assert_equal(&["t"]).await;
    assert_eq!(remembered(&pair, "t").await, Some(497), "a full comparison leaves a set");
    // Where the target's rows do not tell who wrote them, or a trigger has its own mind, its keys are read each time.
    for own in [
        "create function f() returns trigger language plpgsql as 'begin return new; end';
                 create trigger f before insert on t for each row execute function f()",
        "alter table t add mine text",
    ] {
        pair.target(own).await;
        pair.source("delete from t where id = (select max(id) from t)").await;
        assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
        assert_eq!(remembered(&pair, "t").await, None, "{own}");
        pair.source(
            "delete from t where id = (select max(id) from t); update t set v = v + 1 where id = (select min(id) from t)",
        )
        .await;
        let ran = sync(&pair, &["t"]).await;
        assert_eq!((done(&ran), ran.says("full comparison")), ((0, 1, 1), false), "{own}: {:?}", ran.messages());
    }
    let keys = "select string_agg(id::text, ',' order by id) from t";
    let of = async |client: &tokio_postgres::Client| client.query_one(keys, &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(of(&pair.source).await, of(&pair.target).await);
}

#[tokio::test]
async fn rows_that_stay_because_something_refers_to_them_go_when_nothing_does_any_more() {
    let pair = Pair::new("create table t (id int primary key, v int)").await;
    pair.source("insert into t select i, i from generate_series(1, 100) i").await;
    sync(&pair, &["t"]).await.summary();
    pair.target("create table report (t int references t); insert into report values (5), (70)").await;
    pair.source("delete from t where id in (5, 6, 70)").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.target("delete from report where t = 5").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.source("insert into t values (5, 0); delete from t where id = 90").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (1, 0, 1));
    pair.target("drop table report").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
    pair.assert_equal(&["t"]).await;
}

/// Every kind of key, with everything that can happen to it, night after night.
#[tokio::test]
async fn keys_of_every_kind_follow_random_changes_night_after_night() {
    // The expression makes a key of a number; the second list has keys without a set.
    let kinds = [
        ("dense", "id int primary key", "id", "{}"),
        ("below", "id bigint primary key", "id", "{} - 350"),
        ("tiny", "id smallint primary key", "id", "{}"),
        ("noted", "note text, id bigint not null unique", "id", "{}"),
        ("far", "id bigint primary key", "id", "{}::int8 * 1000000007"),
        ("texts", "id text primary key", "id", "'k' || {}"),
        ("uuids", "id uuid primary key", "id", "md5(({})::text)::uuid"),
        ("pairs", "a int, b text, primary key (a, b)", "a, b", "{} % 20, 'b' || ({}) / 20"),
    ];
    let tables: Vec<String> = kinds.iter().map(|(name, columns, ..)| format!("create table {name} ({columns}, v int)")).collect();
    let pair = Pair::new(&tables.join("; ")).await;
    let names: Vec<&str> = kinds.iter().map(|kind| kind.0).collect();
    let key = |expression: &str, of: &str| expression.replace("{}", of);
    for (name, _, columns, expression) in kinds {
        let keys = key(expression, "i");
        pair.source(&format!("insert into {name} ({columns}, v) select {keys}, i from generate_series(1, 700) i")).await;
    }
    sync(&pair, &names).await.summary();
    let mut dice = Dice(0x5eed_1234_9abc_def1);
    let mut total = [0; 3];
    for night in 0..16 {
        let mut late = Vec::new();
        for (name, _, columns, expression) in kinds {
            for _ in 0..=dice.roll(3) {
                let (a, b, many) = (dice.roll(1100), dice.roll(1100), dice.roll(70));
                let of = |number: &str| format!("select {} from generate_series({a}, {a} + {many}) i", key(expression, number));
                let sql = match dice.roll(8) {
                    0 | 1 => format!("delete from {name} where ({columns}) in ({})", of("i")),
                    2 | 3 => format!(
                        "insert into {name} ({columns}, v) select {}, {b} from generate_series({a}, {a} + {many}) i on conflict do nothing",
                        key(expression, "i")
                    ),
                    4 => format!("update {name} set v = v + 1 where ({columns}) in ({})", of("i")),
                    // A key change, mostly within a word; as many rows as before, and others.
                    5 => format!(
                        "update {name} set ({columns}) = (select {}) where ({columns}) = (select {}) and not exists (select from {name} where ({columns}) = (select {}))",
                        key(expression, &(b ^ 1).to_string()),
                        key(expression, &b.to_string()),
                        key(expression, &(b ^ 1).to_string())
                    ),
                    6 => format!(
                        "delete from {name} where ({columns}) = (select {0}); insert into {name} ({columns}, v) select {1}, 0 on conflict do nothing",
                        key(expression, &a.to_string()),
                        key(expression, &b.to_string())
                    ),
                    _ if dice.roll(8) == 0 => format!("truncate {name}"),
                    _ => format!(
                        "delete from {name} where ({columns}) in ({}); insert into {name} ({columns}, v) select {}, {b} from generate_series({a}, {a} + {many}) i",
                        of("i"),
                        key(expression, "i")
                    ),
                };
                let busy = late.iter().any(|(busy, _)| *busy == name);
                if dice.roll(6) == 0 && !sql.starts_with("truncate") && !busy {
                    let client = pair.cluster.client("production").await;
                    client.batch_execute(&format!("set lock_timeout = '1s'; begin; {sql}")).await.unwrap();
                    late.push((name, client));
                } else if !busy {
                    pair.source(&sql).await;
                }
            }
        }
        let ran = sync(&pair, &names).await;
        let (inserted, updated, deleted) = done(&ran);
        (total[0], total[1], total[2]) = (total[0] + inserted, total[1] + updated, total[2] + deleted);
        // They commit after the night, and belong to the next one.
        for (_, client) in late {
            client.batch_execute(if dice.roll(4) == 0 { "rollback" } else { "commit" }).await.unwrap();
        }
        if night % 3 == 0 {
            sync(&pair, &names).await.summary();
            pair.assert_equal(&names).await;
            for name in ["dense", "below", "tiny", "noted"] {
                let rows = number(&pair.source, &format!("select count(*) from {name}")).await;
                // What is truncated and stays so has no words.
                assert_eq!(remembered(&pair, name).await.unwrap_or_default(), rows, "night {night}: {name}");
            }
            for name in ["texts", "uuids", "pairs"] {
                assert_eq!(remembered(&pair, name).await, None, "{name}");
            }
        }
    }
    sync(&pair, &names).await.summary();
    pair.assert_equal(&names).await;
    assert!(total.iter().all(|n| *n > 500), "{total:?}");
}
