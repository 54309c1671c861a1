//! What spares the source.

use std::time::{Duration, Instant};

use bullwork::replication::kindness::{Busy, Kindness};

use super::World;
use crate::support::eventually;

const SOURCE: &str = "create table t (id int primary key, pad text); insert into t select i, repeat(md5(i::text), 10) from generate_series(1, 10000) i;
create table u (id int primary key, pad text); insert into u select * from t; create table busy (yes boolean); insert into busy values (true)";

#[tokio::test]
async fn no_more_bytes_a_second_are_read_than_allowed() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    // About 6.8 MB at 4 MB a second; it cannot be faster, and a slow machine only makes it slower.
    world.config.kindness = Kindness { rate: Some(4_000_000), ..Kindness::default() };
    let start = Instant::now();
    let (summary, _) = world.run().await;
    let least = Duration::from_secs_f64(summary.bytes as f64 / 4_000_000.0) - Duration::from_millis(100);
    assert!(summary.bytes > 6_000_000 && start.elapsed() > least, "{} bytes in {:?}", summary.bytes, start.elapsed());
    world.assert_same_rows(&[]).await;
}

#[tokio::test]
async fn no_more_tables_are_read_at_once_than_allowed_and_the_snapshot_is_given_back_with_the_last() {
    let mut world = World::new().await;
    let tables: Vec<String> =
        (0..8).map(|i| format!("create table t{i} as select * from generate_series(1, 20000) id")).collect();
    world.on_source(&tables.join("; ")).await;
    world.config.jobs = 4;
    world.config.kindness = Kindness { connections: Some(1), rate: Some(3_000_000), ..Kindness::default() };
    let watcher = world.cluster.client("from").await;
    let watch = async {
        let sql = "select count(*) filter (where query ilike 'copy%'), count(*) from pg_stat_activity \
                   where datname = 'from' and application_name = 'bullwork: full replication'";
        let mut most = (0, 0);
        loop {
            let row = watcher.query_one(sql, &[]).await.unwrap();
            most = (most.0.max(row.get::<_, i64>(0)), most.1.max(row.get::<_, i64>(1)));
            if most.0 > 0 && row.get::<_, i64>(1) == 0 {
                return most;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (_, most) = tokio::join!(world.run(), tokio::time::timeout(Duration::from_secs(60), watch));
    assert_eq!(most.unwrap(), (1, 2), "one that reads, and the one that holds the snapshot");
    world.assert_same_rows(&[]).await;
}

#[tokio::test]
async fn while_the_source_is_busy_nothing_is_read() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.config.kindness = Kindness { busy: Some(Busy::Query("select yes from busy".to_owned())), ..Kindness::default() };
    let other = world.cluster.client("from").await;
    let relax = async {
        eventually("the run waits", Duration::from_secs(20), async || {
            let sql = "select count(*) from pg_stat_activity where datname = 'from' and application_name = 'bullwork: is the source busy'";
            other.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let done = world.text("select tables_done::text || phase from bullwork.replication_state").await;
        other.batch_execute("update busy set yes = false").await.unwrap();
        done
    };
    let ((_, lines), before) = tokio::join!(world.run(), relax);
    assert_eq!(before, "0staging", "nothing was read while it was busy");
    assert!(lines.has("the source is busy: standing back") && lines.has("going on after"), "{:?}", lines.all());
    world.assert_same_rows(&["public.busy"]).await;
}

#[tokio::test]
async fn sessions_of_others_that_are_at_work_count_and_ours_do_not() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.config.kindness = Kindness { busy: Some(Busy::Sessions(1)), ..Kindness::default() };
    let (one, two) = (world.cluster.client("from").await, world.cluster.client("from").await);
    let sleep = "select pg_sleep(2.5)";
    let (_, lines) = tokio::join!(async { tokio::join!(one.batch_execute(sleep), two.batch_execute(sleep)) }, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.run().await.1
    });
    assert!(lines.has("the source is busy: standing back") && lines.has("going on after"), "{:?}", lines.all());
    let (_, lines) = world.run().await;
    assert!(!lines.has("standing back"), "{:?}", lines.all());
}

#[tokio::test]
async fn a_query_that_would_write_to_the_source_is_refused() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    let query = "with d as (delete from t returning 1) select false from d limit 1";
    world.config.kindness = Kindness { busy: Some(Busy::Query(query.to_owned())), ..Kindness::default() };
    let error = world.fail().await;
    assert!(error.contains("REPLICATION_BUSY_QUERY") && error.contains("read-only transaction"), "{error}");
    let left: i64 = world.source.query_one("select count(*) from t", &[]).await.unwrap().get(0);
    assert_eq!(left, 10_000);
}

#[tokio::test]
async fn a_query_that_says_nothing_useful_is_told_and_nothing_is_changed() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    for (query, wanted) in
        [("select nosuch", "column \"nosuch\" does not exist"), ("select 5", "no boolean"), ("select 'x'::text", "no boolean")]
    {
        world.config.kindness = Kindness { busy: Some(Busy::Query(query.to_owned())), ..Kindness::default() };
        let error = world.fail().await;
        assert!(
            error.contains("REPLICATION_BUSY_QUERY") && error.contains(wanted) && error.contains("target untouched"),
            "{error}"
        );
    }
}
