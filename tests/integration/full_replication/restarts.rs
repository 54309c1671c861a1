//! Either server is killed and started again, in mid-copy and around the switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bullwork::postgres::Database;
use bullwork::replication::full::{self, Resume, Summary, Swap};
use bullwork::worker::{Progress, Record, Run, RunSink};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{World, text};
use crate::support::postgres::Cluster;

/// Two tables that say which day they are of, and one that takes a while.
const SOURCE: &str =
    "create table day (day int); insert into day values (1); create table other (day int); insert into other values (1);
    create table large (id int primary key, filler text); create index large_filler on large (filler);
    insert into large select g, repeat(md5(g::text), 20) from generate_series(1, 25000) g";

/// Holds a run where it is to be harmed until that begins, however busy the machine is.
struct Hold {
    moment: &'static str,
    reached: watch::Sender<bool>,
    released: AtomicBool,
}

impl RunSink for Hold {
    fn line(&self, _: &Record) {}

    fn progress(&self, progress: &Progress) {
        let here = if self.moment == "copying" { progress.rows > 10 } else { progress.phase == self.moment };
        if here && !self.released.load(Ordering::Acquire) {
            self.reached.send_replace(true);
            let begun = Instant::now();
            while !self.released.load(Ordering::Acquire) && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Two servers with a copy of the first day.
async fn two_servers() -> (World, Cluster) {
    let mut world = World::new().await;
    let warehouse = Cluster::start();
    world.target = warehouse.create("to").await;
    world.config.target = Database::parse(&warehouse.url("to")).unwrap();
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    world.on_target("create view mine as select day.day as one, other.day as two from day, other").await;
    (world, warehouse)
}

async fn next_day(world: &World, day: u64) {
    world.on_source(&format!("update day set day = {day}; update other set day = {day}")).await;
}

/// A run beside which `harm` is done when it is where `moment` says.
async fn run_into(world: &World, moment: &'static str, harm: impl AsyncFnOnce()) -> anyhow::Result<Summary> {
    let hold = Arc::new(Hold { moment, reached: watch::Sender::new(false), released: AtomicBool::new(false) });
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(hold.clone()));
    let config = world.config.clone();
    // A task of its own: the harm blocks this one.
    let mut running = tokio::spawn(async move { full::replicate(&run, &config).await });
    let mut reached = hold.reached.subscribe();
    tokio::select! {
        biased;
        ended = &mut running => panic!("it ended before {moment}: {ended:?}"),
        there = reached.wait_for(|there| *there) => drop(there.expect("the run tells")),
    }
    hold.released.store(true, Ordering::Release);
    harm().await;
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("ends in time").unwrap()
}

/// One day and one generation, whole.
async fn whole(target: &tokio_postgres::Client) -> (String, String) {
    let sql = "select (select count(*) from large)::text || ' ' || one || ' ' || two || ' ' || day from mine, day";
    let seen = text(target, sql).await;
    let parts: Vec<&str> = seen.split(' ').collect();
    assert_eq!((parts[0], parts[1], parts[1]), ("25000", parts[2], parts[3]), "{seen}");
    (parts[1].to_owned(), text(target, "select id::text from bullwork.generation where serves").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_killed_in_mid_copy_and_around_the_switch_serves_one_whole_generation() {
    let (mut world, mut warehouse) = two_servers().await;
    let mut day = 1;
    let (mut before, mut told) = (whole(&world.target).await, Vec::new());
    for (moment, after) in
        [("copying", 0), ("finishing", 0), ("switching", 0), ("switching", 8), ("switching", 25), ("switching", 60)]
    {
        day += 1;
        next_day(&world, day).await;
        let result = run_into(&world, moment, async || {
            tokio::time::sleep(Duration::from_millis(after)).await;
            tokio::task::block_in_place(|| warehouse.restart());
        })
        .await;
        world.target = warehouse.client("to").await;
        world.config.target = Database::parse(&warehouse.url("to")).unwrap();
        let now = whole(&world.target).await;
        match &result {
            // It was over when the server went.
            Ok(_) => assert_eq!(now.0, day.to_string()),
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains(&format!("generation {} of 20", now.1)), "{moment} {after}: {now:?}: {error}");
                told.push(error);
            }
        }
        if now.1 == before.1 {
            assert_eq!(now.0, before.0, "{moment}");
        } else {
            assert_eq!(now.0, day.to_string(), "{moment}");
        }
        before = now;
    }
    println!("{told:#?}");
    assert!(told.iter().any(|text| text.contains("target untouched: generation")), "{told:?}");
    world.run().await;
    world.assert_same_rows(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stays_away_is_told_with_what_served_when_it_went() {
    let (mut world, mut warehouse) = two_servers().await;
    let generation = whole(&world.target).await.1;
    for (moment, wanted) in [
        ("copying", format!("could not be asked how far it is, but what serves was not touched: generation {generation} of 20")),
        ("switching", format!("could not be asked how far it is: generation {generation} of 20")),
    ] {
        let error = run_into(&world, moment, async || warehouse.kill()).await;
        warehouse.restart();
        world.target = warehouse.client("to").await;
        world.config.target = Database::parse(&warehouse.url("to")).unwrap();
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains(&wanted), "{moment}: {error}");
        assert_eq!(whole(&world.target).await.1, generation);
    }
    world.run().await;
    world.assert_same_rows(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_killed_in_mid_copy_is_told_and_one_that_goes_at_the_switch_does_not_matter() {
    let (mut world, _warehouse) = two_servers().await;
    let before = whole(&world.target).await;
    for moment in ["copying", "switching"] {
        next_day(&world, 2).await;
        let mut source = std::mem::replace(&mut world.cluster, Cluster::start());
        let result = run_into(&world, moment, async || tokio::task::block_in_place(|| source.restart())).await;
        world.cluster = source;
        world.source = world.cluster.client("from").await;
        world.config.source = Database::parse(&world.cluster.url("from")).unwrap();
        if moment == "copying" {
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains(&format!("target untouched: generation {} of 20", before.1)), "{error}");
            assert_eq!(whole(&world.target).await, before);
        } else {
            result.unwrap();
        }
    }
    assert_eq!(whole(&world.target).await.0, "2");
    world.assert_same_rows(&[]).await;
}
