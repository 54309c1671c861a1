//! Readers of every sort look all the while, during full runs of which some are killed at random moments.
//!
//! A few runs always; ten of each sort, and reports that hold their locks longer, with `BULLWORK_CHAOS=1`.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bullwork::replication::full::{self, Resume, Swap};
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::Run;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::World;
use super::swap::{LOOK, SOURCE, assert_one_day, connect, next_day};

fn at_length() -> bool {
    std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1")
}

/// Numbers that nobody foresees, from a seed that is told.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        println!("seed {seed}");
        Chance(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What is read, each by a statement that is true as long as nothing is missing, empty or of two generations.
const TABLES: &[&str] = &[
    "select count(*) = 500 and min(day) = max(day) from public.a",
    "select count(*) = 500 and min(day) = max(day) and min(n) = max(day) + 1 from second.b",
    "select count(*) = (select max(day) from public.a) from public.growing",
    "select count(*) = 200 and min(day) = max(day) and min(day) = (select max(day) from second.b) from public.parts",
    "select count(*) = 100 and min(day) = (select min(day) from public.a) from public.parts_1",
    "select (select day from public.filled) = (select max(day) from public.a)",
    "select count(*) = 500 and min(one) = max(one) and min(other) = max(one) from public.v",
    "select count(*) = 500 and min(one) = max(other) from analysts.mine",
    "select (select n from analysts.counted) = 500 and (select max(day) from analysts.counted) = (select max(day) from public.a)",
    "select count(*) = 2 from public.kept",
    "select count(*) = 1 from public.kept_view",
];

/// More of the source than days.
const MORE: &str = "
create table parts (id int, day int not null) partition by range (id); create table parts_1 partition of parts for values from (0) to (100);
create table parts_2 partition of parts for values from (100) to (1000); insert into parts select i, 1 from generate_series(0, 199) i;
create materialized view filled as select max(day) as day from a; create table kept (id int primary key, w text)";

const WITH_EXTENSIONS: &str = "create extension citext; create extension pg_trgm; create table words (w citext primary key); \
                               insert into words values ('Word'); create index words_trgm on words using gin ((w::text) gin_trgm_ops)";

struct Readers {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

async fn is_true(client: &Client, sql: &str) {
    let row = client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    assert_eq!(row.get::<_, Option<bool>>(0), Some(true), "{sql}");
}

impl Readers {
    fn spawn<W: Future<Output = ()> + Send + 'static>(&mut self, work: impl FnOnce(Arc<AtomicBool>, Arc<AtomicU64>) -> W) {
        self.tasks.push(tokio::spawn(work(self.stop.clone(), self.looks.clone())));
    }

    /// One of each sort.
    async fn start(world: &World, tables: Vec<&'static str>) -> Readers {
        let mut readers = Readers { stop: Arc::default(), looks: Arc::default(), tasks: Vec::new() };
        let (client, all) = (connect(world).await, tables.clone());
        readers.spawn(async move |stop, looks| {
            // READ COMMITTED, each statement by itself.
            while !stop.load(Ordering::Relaxed) {
                for sql in &all {
                    is_true(&client, sql).await;
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (client, all) = (connect(world).await, tables.clone());
        readers.spawn(async move |stop, looks| {
            let mut prepared = Vec::new();
            for sql in &all {
                prepared.push(client.prepare(sql).await.unwrap());
            }
            while !stop.load(Ordering::Relaxed) {
                for (sql, statement) in all.iter().zip(&prepared) {
                    let row = client.query_one(statement, &[]).await.unwrap_or_else(|e| panic!("prepared {sql}: {e:?}"));
                    assert_eq!(row.get::<_, Option<bool>>(0), Some(true), "prepared {sql}");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (client, all) = (connect(world).await, tables.clone());
        readers.spawn(async move |stop, looks| {
            // The snapshot is there before the switch, the names are looked up behind it.
            for turn in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                client.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
                tokio::time::sleep(Duration::from_millis(turn * 37 % 900)).await;
                is_true(&client, all[turn as usize % all.len()]).await;
                client.batch_execute("commit").await.unwrap();
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (client, hold) = (connect(world).await, Duration::from_millis(if at_length() { 15_000 } else { 1200 }));
        readers.spawn(async move |stop, looks| {
            // A report that holds a lock on everything, and lets the switch pass between two.
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute("begin isolation level repeatable read").await.unwrap();
                let before: String = client.query_one(LOOK, &[]).await.unwrap().get(0);
                for sql in &tables {
                    is_true(&client, sql).await;
                }
                tokio::time::sleep(hold).await;
                let after: String = client.query_one(LOOK, &[]).await.unwrap().get(0);
                assert_eq!(before, after, "the tables changed under a report that holds them");
                assert_one_day(&after);
                client.batch_execute("commit").await.unwrap();
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        });
        readers
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no reader failed");
        }
        self.looks.load(Ordering::Relaxed)
    }
}

async fn nights(extensions: bool, runs: u64) {
    let mut chance = Chance::new();
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(120), generations: 1, resume: Resume::Consistent });
    world.config.modes = TableModes::of([("kept", TableMode::Incremental)]);
    if extensions {
        // In `public` of both, where the tables are.
        world.on_target("create extension citext; create extension pg_trgm").await;
        world.on_source(WITH_EXTENSIONS).await;
    }
    world.on_source(&format!("{SOURCE} {MORE}; insert into growing (day) values (1)")).await;
    world.on_target("create table kept (id int primary key, w text); insert into kept values (1, 'x'), (2, 'y')").await;
    world.run().await;
    world
        .on_target(
            "create schema analysts; create view analysts.mine as select one, other from public.v where one > 0; \
             create materialized view analysts.counted as select count(*) as n, max(day) as day from public.a; \
             create view kept_view as select w from kept where id = 1",
        )
        .await;
    let mut tables = TABLES.to_vec();
    if extensions {
        tables.push("select count(*) = 1 from public.words where w = 'wOrD' and w::text like '%or%'");
    }
    let readers = Readers::start(&world, tables).await;
    let (mut killed, mut served) = (0, 0);
    for round in 0..runs {
        let day = i32::try_from(round).unwrap() + 2;
        world.on_source("update parts set day = day + 1").await;
        next_day(&world, day).await;
        world.on_source("refresh materialized view filled").await;
        if round % 2 == 1 {
            let after = Duration::from_millis(30 + chance.below(1500));
            let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
            let running = full::replicate(&run, &world.config);
            if chance.below(2) == 0 {
                // The process ends: whatever it was doing is dropped.
                killed += usize::from(tokio::time::timeout(after, running).await.is_err());
            } else {
                let admin = world.cluster.client("postgres").await;
                let end = async {
                    tokio::time::sleep(after).await;
                    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'bullwork: full replication'";
                    admin.query(sql, &[]).await.unwrap();
                };
                let (result, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(90), running), end);
                if let Err(error) = result.expect("ends in time") {
                    let error = format!("{error:#}");
                    assert!(error.contains(" of 20") && error.contains(" serves"), "{error}");
                    killed += 1;
                }
            }
        } else {
            let (summary, lines) = world.run().await;
            assert!(lines.has("serves; the switch took"), "{:?}", lines.all());
            assert_eq!((summary.left_out, summary.broken), (vec![], vec![]), "{:?}", lines.all());
            world.assert_same_rows(&["public.kept", "kept"]).await;
            served += 1;
        }
    }
    world.run().await;
    let looks = readers.end().await;
    println!("{served} runs were switched in and {killed} killed, under {looks} looks");
    assert!(looks > 200, "the readers looked all the while: {looks}");
    world.assert_same_rows(&["public.kept", "kept"]).await;
    assert_eq!(world.text("select count(*)::text from bullwork.generation where serves").await, "1");
}

fn runs() -> u64 {
    if at_length() { 10 } else { 4 }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_notice_nothing_of_runs_that_end_or_are_killed_with_extensions_among_the_tables() {
    nights(true, runs()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_notice_nothing_of_runs_that_end_or_are_killed_without_extensions() {
    nights(false, runs()).await;
}
