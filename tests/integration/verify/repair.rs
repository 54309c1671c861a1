//! What differs is brought over, little else, and nobody sees it happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bullwork::replication::incremental::Incremental;
use bullwork::worker::Run;

use super::{Pair, Report, TableMode, TableModes, Verdict, assert_all, of};
use crate::support::eventually;

/// Numbers of a note, such as `3 of 64 ranges copied: 4689 rows, of which 3 were changed`.
fn numbers(report: &Report, table: &str) -> Vec<u64> {
    let note = &of(report, table).note;
    note.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_table_few_ranges_are_copied_while_readers_look() {
    let mut pair = Pair::new(
        "create table t (id bigint primary key, x text not null, n int); insert into t select g * 3, md5(g::text), g from generate_series(1, 100000) g",
    )
    .await;
    pair.on_target(
        "update t set x = 'changed' where id = 3000; delete from t where id = 150000; insert into t values (299999, 'more', 1)",
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let (reader, stopped) = (pair.cluster.client("to").await, stop.clone());
    let reading = tokio::spawn(async move {
        let mut looks = 0;
        while !stopped.load(Ordering::Relaxed) {
            let sql = "select count(*), count(*) filter (where x = 'changed'), count(*) filter (where x = 'more') from t";
            let row = reader.query_one(sql, &[]).await.unwrap();
            let seen: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            assert!([(100_000, 1, 1), (100_000, 0, 0)].contains(&seen), "half of a repair: {seen:?}");
            looks += 1;
        }
        looks
    });
    let report = pair.repair().await;
    stop.store(true, Ordering::Relaxed);
    assert!(reading.await.unwrap() > 1);
    assert_all(&report, Verdict::Repaired);
    let [ranges, compared, copied, changed] = numbers(&report, "t")[..] else { panic!("{report:?}") };
    assert_eq!((ranges, changed), (3, 3), "{report:?}");
    assert!((3..=130).contains(&compared) && copied < 6000, "{report:?}");
    assert_all(&pair.verify().await, Verdict::Equal);
    assert_eq!(
        pair.text("select count(*)::text from t where xmin::text::bigint > (select min(xmin::text::bigint) from t)").await,
        "2"
    );
}

#[tokio::test]
async fn a_table_that_is_empty_on_one_side_is_made_equal() {
    let mut pair =
        Pair::new("create table gone (id int primary key, x text); create table new (a text, b int, primary key (a, b))").await;
    pair.on_target("insert into gone select g, 'x' from generate_series(1, 30000) g").await;
    pair.on_source("insert into new select g % 7 || 'é''', g from generate_series(1, 30000) g").await;
    assert_all(&pair.repair().await, Verdict::Repaired);
    assert_all(&pair.verify().await, Verdict::Equal);
}

#[tokio::test]
async fn keys_of_every_sort_are_repaired_and_what_else_the_table_has_stays() {
    let mut pair = Pair::new(
        "create extension citext; create type mood as enum ('sad', 'happy', 'ok'); create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create schema \"S 1\";
         create table words (w citext primary key, n int); insert into words select 'Wört' || g, g from generate_series(1, 5000) g;
         create table folds (w text collate folded primary key, n int); insert into folds select 'Wort' || g, g from generate_series(1, 3000) g;
         create table pairs (m mood, at timestamptz, v numeric, primary key (m, at)); insert into pairs select (array['sad','happy','ok'])[1 + g % 3]::mood, '2026-01-01'::timestamptz + g * interval '1 h', g / 7.0 from generate_series(1, 9000) g;
         create table \"S 1\".\"we\"\"ird.t\" (\"I'd\" uuid primary key, \"select\" text); insert into \"S 1\".\"we\"\"ird.t\" select md5(g::text)::uuid, g from generate_series(1, 3000) g;
         create table ids (id int generated always as identity primary key, other int unique, twice int generated always as (other * 2) stored); insert into ids (other) select g from generate_series(1, 100) g;
         create table parts (id int not null, v text, primary key (id)) partition by range (id); create table parts_1 partition of parts for values from (0) to (500); create table parts_2 partition of parts default; insert into parts select g, 'v' from generate_series(1, 900) g;
         create function touch() returns trigger language plpgsql as $$ begin new.n := -1; return new; end $$;
         create trigger touch before insert or update on words for each row execute function touch(); alter table words enable always trigger touch;
         create trigger asleep before insert or update on words for each row execute function touch(); alter table words disable trigger asleep; update words set n = 5",
    )
    .await;
    pair.on_target("alter table words disable trigger touch; update words set n = 0 where w = 'wört7'; update words set w = 'WÖRT8' where w = 'Wört8'; delete from words where w = 'wört9'; alter table words enable always trigger touch").await;
    pair.on_target("update folds set w = 'WORT8' where w = 'wort8'; delete from folds where w = 'wort9'").await;
    pair.on_target("delete from pairs where m = 'happy' and v > 1200; insert into pairs values ('sad', 'infinity', 1); update pairs set v = v + 1 where at = '2026-01-03 05:00+00'").await;
    pair.on_target("update \"S 1\".\"we\"\"ird.t\" set \"select\" = null where \"select\" = '77'").await;
    // Values that two rows exchanged, both ways unique.
    pair.on_target("update ids set other = -1 where id = 1; update ids set other = 1 where id = 2; update ids set other = 2 where id = 1; delete from ids where id = 50").await;
    pair.on_target("update parts set v = 'w' where id = 600").await;
    let report = pair.repair().await;
    assert!(report.is_good(), "{report:#?}");
    for table in ["words", "folds", "pairs", "S 1.we\"ird.t", "ids", "parts_2"] {
        assert_eq!(of(&report, table).verdict, Verdict::Repaired, "{table}");
    }
    assert_eq!(of(&report, "parts_1").verdict, Verdict::Equal);
    assert_eq!(numbers(&report, "words")[3], 3, "{report:?}");
    assert_all(&pair.verify().await, Verdict::Equal);
    let triggers = "select string_agg(tgname || tgenabled::text, ' ' order by tgname) from pg_trigger where not tgisinternal";
    assert_eq!(pair.text(triggers).await, "asleepD touchA");
    assert_eq!(pair.text("select twice::text from ids where id = 50").await, "100");
}

#[tokio::test]
async fn a_table_without_key_is_replaced_whole() {
    let mut pair = Pair::new("create table t (x int, y text); insert into t select g % 10, 'y' from generate_series(1, 5000) g; create table none (); insert into none default values").await;
    pair.on_target("insert into t values (1, 'y'); delete from t where ctid = '(0,3)'; insert into none default values").await;
    let report = pair.repair().await;
    assert_all(&report, Verdict::Repaired);
    assert!(of(&report, "t").note.contains("replaced whole") && of(&report, "t").note.contains("5000 rows"), "{report:?}");
    assert_all(&pair.verify().await, Verdict::Equal);
}

#[tokio::test]
async fn foreign_keys_are_kept_in_plain_words() {
    let both = "create table parent (id int primary key, x text); create table a_child (id int primary key, p int references parent);
         insert into parent select g, 'x' from generate_series(1, 10) g; insert into a_child select g, g from generate_series(1, 10) g;";
    let mut pair = Pair::new(both).await;
    // A child needs a parent that is missing, and stands before it in the order.
    pair.on_target("delete from a_child where p = 3; delete from parent where id = 3").await;
    assert_all(&pair.repair().await, Verdict::Repaired);
    // A parent is too many, and so is its child.
    pair.on_target("insert into parent values (11, 'x'); insert into a_child values (11, 11)").await;
    assert_all(&pair.repair().await, Verdict::Repaired);
    // The child is the target's own.
    pair.on_target(
        "insert into parent values (12, 'x'); create table own (p int references parent); insert into own values (12)",
    )
    .await;
    let report = pair.repair().await;
    assert_eq!(of(&report, "parent").verdict, Verdict::Differs);
    assert!(of(&report, "parent").note.contains("do not fit together"), "{report:?}");
    // It would even go with the parent.
    pair.on_target("drop table own; create table own (p int references parent on delete cascade); insert into own values (12)")
        .await;
    let report = pair.repair().await;
    assert!(of(&report, "parent").note.contains("referred to by public.own"), "{report:?}");
    assert_eq!(pair.text("select count(*)::text from own join parent on id = p").await, "1");
}

#[tokio::test]
async fn a_table_that_could_only_be_replaced_whole_is_left_alone_while_others_refer_to_it() {
    let mut pair = Pair::new(
        "create table parent (id int not null, x text); insert into parent select g, 'x' from generate_series(1, 10) g",
    )
    .await;
    let own =
        "alter table parent add primary key (id); create table own (p int references parent); insert into own values (null)";
    pair.on_target(&format!("update parent set x = 'other' where id = 3; {own}")).await;
    let places = "select string_agg(ctid::text || x, ' ' order by ctid) from parent";
    // A row that refers to none is in nobody's way.
    assert_all(&pair.repair().await, Verdict::Repaired);
    pair.on_target("insert into own values (5); update parent set x = 'other' where id = 3").await;
    let before = pair.text(places).await;
    let report = pair.repair().await;
    assert_eq!(of(&report, "parent").verdict, Verdict::Differs);
    assert!(
        of(&report, "parent").note.contains("no common key") && of(&report, "parent").note.contains("public.own"),
        "{report:?}"
    );
    assert_eq!(pair.text(places).await, before, "nothing was tried");
    // With the key on both sides only what differs is touched.
    pair.on_source("alter table parent add primary key (id)").await;
    assert_all(&pair.repair().await, Verdict::Repaired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_leaves_the_table_as_it_was() {
    let mut pair =
        Pair::new("create table t (id int primary key, x text); insert into t select g, 'x' from generate_series(1, 9000) g")
            .await;
    pair.on_target("update t set x = 'other' where id in (5, 8000); create trigger own before update on t for each row execute function suppress_redundant_updates_trigger()").await;
    pair.config.repair = true;
    let (holder, watcher) = (pair.cluster.client("to").await, pair.cluster.client("postgres").await);
    holder.batch_execute("begin; select * from t where id = 5 for update").await.unwrap();
    let before = "select md5(string_agg(ctid::text || t::text, ',' order by id)) from t";
    let was = pair.text(before).await;
    let kill = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = 'to' and wait_event_type = 'Lock' and query like 'update%'";
        eventually("the repair waits for a row", Duration::from_secs(8), async || {
            watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'to' and wait_event_type = 'Lock'";
        watcher.batch_execute(kill).await.unwrap();
    };
    let (result, ()) = tokio::join!(pair.try_verify(), kill);
    assert!(result.is_err() || !result.unwrap().is_good());
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(pair.text(before).await, was);
    assert_eq!(pair.text("select tgenabled::text from pg_trigger where tgname = 'own'").await, "O");
    assert_all(&pair.repair().await, Verdict::Repaired);
    assert_all(&pair.verify().await, Verdict::Equal);
}

#[tokio::test]
async fn of_an_incremental_table_missing_keys_are_found_and_left_to_its_next_run() {
    let mut pair =
        Pair::new("create table t (id int primary key, x text); insert into t select g, 'x' from generate_series(1, 3000) g")
            .await;
    pair.config.modes = TableModes::of([("t", TableMode::Incremental)]);
    let next_run = Incremental {
        rules: bullwork::replication::rules::Rules::default(),
        source: pair.config.source.clone(),
        target: pair.config.target.clone(),
        modes: pair.config.modes.clone(),
        kindness: Default::default(),
        first_load: true,
    };
    next_run.replicate(&Run::detached()).await.unwrap();
    // Above the watermark, below it but since the run, changed, deleted: no fault of the copy.
    pair.on_source(
        "insert into t values (3001, 'new'), (-5, 'late'); update t set x = 'changed' where id = 1; delete from t where id = 2",
    )
    .await;
    let report = pair.verify().await;
    assert_eq!((of(&report, "t").verdict, of(&report, "t").rows), (Verdict::Equal, (Some(3000), Some(3000))), "{report:?}");
    pair.on_target("delete from t where id in (7, 8)").await;
    let report = pair.verify().await;
    assert_eq!(of(&report, "t").verdict, Verdict::Differs);
    assert!(of(&report, "t").note.contains("lacks 2 keys"), "{report:?}");
    // A run by itself looks only at what is new.
    let has = "select string_agg(id::text, ' ' order by id) from t where id in (-5, 7, 8, 3001)";
    next_run.replicate(&Run::detached()).await.unwrap();
    assert_eq!(pair.text(has).await, "-5 3001");
    let report = pair.repair().await;
    assert!(of(&report, "t").note.contains("the next incremental run"), "{report:?}");
    next_run.replicate(&Run::detached()).await.unwrap();
    assert_eq!(pair.text(has).await, "-5 7 8 3001");
    assert_all(&pair.verify().await, Verdict::Equal);
}
