//! The connection, or the process, ends between any two statements of a switch, of what comes before and after it, and of a rollback.
//!
//! Every cut is made twice: the server never hears of the statement, or does it and its answer is lost. Always some
//! of them, and those around the commit; all of them with `BULLWORK_CHAOS=1`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::postgres::Database;
use bullwork::replication::full::{self, Resume, Swap};
use bullwork::worker::{Progress, Record, Run, RunSink};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::swap::{LOOK, SOURCE, assert_one_day, next_day};
use super::{Lines, World, text};
use crate::support::eventually;
use crate::support::guillotine::{Edge, Guillotine};

/// More statements than there are.
const NEVER: usize = 1_000_000;

fn all_of_them() -> bool {
    std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1")
}

/// Has the cut made so many statements behind the moment at which copies may change places.
struct Executioner {
    guillotine: Arc<Guillotine>,
    cut: (usize, Edge),
    armed: AtomicBool,
    /// Statements that were left when the other generation served.
    left: Mutex<Option<usize>>,
    lines: Lines,
}

impl RunSink for Executioner {
    fn line(&self, record: &Record) {
        if record.message.contains("serves; the switch took") || record.message.ends_with("serves again") {
            *self.left.lock().unwrap() = self.guillotine.left();
        }
        self.lines.line(record);
    }

    fn progress(&self, progress: &Progress) {
        if progress.phase == "switching" && !self.armed.swap(true, Ordering::Relaxed) {
            self.guillotine.arm(self.cut.0, self.cut.1);
        }
    }
}

/// A target that is reached through a guillotine, with things of somebody's own.
struct Scaffold {
    world: World,
    guillotine: Arc<Guillotine>,
    /// Statements of a whole switch, and those until the new generation serves.
    statements: (usize, usize),
}

impl Scaffold {
    async fn build(generations: u32) -> Scaffold {
        let mut world = World::new().await;
        world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations, resume: Resume::Consistent });
        world.config.jobs = 1;
        world.on_source(SOURCE).await;
        world.run().await;
        world
            .on_target(
                "create schema mart; create view mine as select max(day) as day from a; \
                 create materialized view mart.filled as select max(day) as day from second.b; \
                 create table kept (a int references a); insert into kept values (1)",
            )
            .await;
        let guillotine = Arc::new(Guillotine::start(world.cluster.port).await);
        let port = world.cluster.port.to_string();
        let url = format!("{}?sslmode=disable", world.cluster.url("to").replace(&port, &guillotine.port.to_string()));
        world.config.target = Database::parse(&url).unwrap();
        Scaffold { world, guillotine, statements: (0, 0) }
    }

    fn watched(&self, cut: (usize, Edge)) -> (Run, Arc<Executioner>) {
        let executioner = Arc::new(Executioner {
            guillotine: self.guillotine.clone(),
            cut,
            armed: AtomicBool::new(false),
            left: Mutex::new(None),
            lines: Lines::default(),
        });
        (Run::new(serde_json::Map::new(), CancellationToken::new(), Some(executioner.clone())), executioner)
    }

    /// A run that is cut there; what it came to.
    async fn run(&self, cut: (usize, Edge)) -> (Result<(), String>, Arc<Executioner>) {
        let (run, executioner) = self.watched(cut);
        let running = full::replicate(&run, &self.world.config);
        let result = tokio::time::timeout(Duration::from_secs(60), running).await.expect("ends in time");
        (result.map(|_| ()).map_err(|e| format!("{e:#}")), executioner)
    }

    /// Everything is there, of one day, and nobody's view or key is missing. The day, and which generation serves.
    async fn whole(&self) -> (String, i64) {
        let look: &Client = &self.world.target;
        let seen = text(look, LOOK).await;
        assert_one_day(&seen);
        let day = seen.split(' ').nth(1).unwrap().to_owned();
        for own in ["select day::text from mine", "select day::text from mart.filled", "select max(one)::text from v"] {
            assert_eq!(text(look, own).await, day, "{own}");
        }
        let keys = "select count(*)::text from pg_constraint where contype = 'f' and conrelid = 'kept'::regclass and confrelid = 'a'::regclass";
        assert_eq!(text(look, keys).await, "1", "the kept table's key");
        let serving = look.query_one("select id from bullwork.generation where serves", &[]).await.unwrap().get(0);
        (day, serving)
    }

    /// No session of before the cut does anything any more.
    async fn settled(&self) {
        let busy = "select count(*) from pg_stat_activity where datname = 'to' and application_name like 'bullwork%'";
        eventually("the server has noticed the cut", Duration::from_secs(20), async || {
            self.world.target.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
}

/// Which statements are cut: all; or some, and those around the commit.
fn chosen(all: usize, commit: usize) -> Vec<(usize, Edge)> {
    let both = |n| [(n, Edge::Before), (n, Edge::After)];
    if all_of_them() {
        return (0..all).flat_map(both).collect();
    }
    let spread = (0..commit).step_by(13).map(|n| (n, if n % 2 == 0 { Edge::Before } else { Edge::After }));
    let near = (commit - 1..(commit + 2).min(all)).flat_map(both);
    spread.chain(near).chain(both(all - 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_cut_between_any_two_statements_leaves_one_whole_generation_and_says_which() {
    let mut scaffold = Scaffold::build(1).await;
    let mut day = 2;
    next_day(&scaffold.world, day).await;
    let (result, executioner) = scaffold.run((NEVER, Edge::Before)).await;
    result.unwrap();
    let committed = executioner.left.lock().unwrap().expect("it switched");
    scaffold.statements = (NEVER - scaffold.guillotine.left().unwrap(), NEVER - committed);
    scaffold.guillotine.disarm();
    println!("{} statements, the {}th commits", scaffold.statements.0, scaffold.statements.1);
    let (mut serves_day, mut serving) = scaffold.whole().await;
    let (mut kept, mut went) = (0, 0);
    for cut in chosen(scaffold.statements.0, scaffold.statements.1 - 1) {
        day += 1;
        next_day(&scaffold.world, day).await;
        let cuts = scaffold.guillotine.cuts();
        let (result, executioner) = scaffold.run(cut).await;
        let was_cut = scaffold.guillotine.cuts() > cuts;
        scaffold.guillotine.disarm();
        scaffold.settled().await;
        let (now, serves) = scaffold.whole().await;
        if serves == serving {
            assert_eq!(now, serves_day, "{cut:?}");
            kept += 1;
        } else {
            assert_eq!(now, day.to_string(), "{cut:?}");
            went += 1;
        }
        match result {
            Ok(()) => assert!(!was_cut, "{cut:?}: it did not notice: {:?}", executioner.lines.all()),
            Err(error) => {
                assert!(error.contains(&format!("generation {serves} of 20")) && error.contains(" serves"), "{cut:?}: {error}");
            }
        }
        (serves_day, serving) = (now, serves);
    }
    println!("{kept} cuts kept the copy before, {went} came behind the commit");
    assert!(kept > 3 && went > 0, "{kept} {went}");
    let (result, _) = scaffold.run((NEVER, Edge::Before)).await;
    result.unwrap();
    scaffold.world.assert_same_rows(&[]).await;
    scaffold.whole().await;
    let left = "select count(*)::text from pg_namespace where nspname like 'bullwork\\_new\\_%'";
    assert_eq!(scaffold.world.text(left).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_cut_between_any_two_statements_has_happened_or_has_not() {
    let scaffold = Scaffold::build(1).await;
    next_day(&scaffold.world, 2).await;
    let (result, _) = scaffold.run((NEVER, Edge::Before)).await;
    result.unwrap();
    // Made since, so that the rollback has to make them on the other tables.
    let newer = "create view newer as select max(day) as day from second.b; create schema own; \
                 create materialized view own.newest as select day from newer; create index on own.newest (day)";
    scaffold.world.on_target(newer).await;
    scaffold.guillotine.arm(NEVER, Edge::Before);
    let (run, executioner) = scaffold.watched((NEVER, Edge::Before));
    full::rollback(&run, &scaffold.world.config.target).await.unwrap();
    let all = NEVER - scaffold.guillotine.left().unwrap();
    let committed = NEVER - executioner.left.lock().unwrap().expect("it changed places");
    scaffold.guillotine.disarm();
    println!("{all} statements, the {committed}th commits");
    let (mut serves_day, mut serving) = scaffold.whole().await;
    let (mut stayed, mut changed) = (0, 0);
    for cut in chosen(all, committed - 1) {
        scaffold.guillotine.arm(cut.0, cut.1);
        let result = tokio::time::timeout(Duration::from_secs(30), full::rollback(&run, &scaffold.world.config.target)).await;
        scaffold.guillotine.disarm();
        scaffold.settled().await;
        let (day, serves) = scaffold.whole().await;
        for own in ["select day::text from newer", "select day::text from own.newest"] {
            assert_eq!(scaffold.world.text(own).await, day, "{cut:?}: {own}");
        }
        assert_eq!(day == serves_day, serves == serving, "{cut:?}");
        let told = match result.expect("ends in time") {
            Ok(told) => told,
            Err(error) => format!("{error:#}"),
        };
        // Before it has read which generations there are it can only say what it was doing.
        let begun = told.contains("generation ") || cut.0 < 12 && serves == serving;
        assert!(begun, "{cut:?}: {told}");
        if told.contains("generation ") {
            assert!(told.starts_with(&format!("generation {serves} of 20")) && told.contains(" serves"), "{cut:?}: {told}");
        }
        if serves == serving {
            stayed += 1;
        } else {
            changed += 1;
        }
        (serves_day, serving) = (day, serves);
    }
    println!("{stayed} cuts came before the commit, {changed} behind it");
    assert!(stayed > 3 && changed > 0, "{stayed} {changed}");
    full::rollback(&run, &scaffold.world.config.target).await.unwrap();
    // Every key is validated again by the next night at the latest.
    let (result, _) = scaffold.run((NEVER, Edge::Before)).await;
    result.unwrap();
    scaffold.world.assert_same_rows(&[]).await;
    let keys = "select bool_and(convalidated)::text from pg_constraint where contype = 'f'";
    assert_eq!(scaffold.world.text(keys).await, "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_others_are_there_at_every_moment_of_a_rollback() {
    let scaffold = Scaffold::build(1).await;
    next_day(&scaffold.world, 2).await;
    scaffold.run((NEVER, Edge::Before)).await.0.unwrap();
    scaffold.guillotine.disarm();
    scaffold.world.on_target("create view newer as select max(day) as day from second.b").await;
    let (reader, stop) = (scaffold.world.cluster.client("to").await, Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let reading = tokio::spawn(async move {
        let mut looks = 0;
        while !stopped.load(Ordering::Relaxed) {
            let sql = "select newer.day = mine.day from newer, mine";
            let row = reader.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{e:?}"));
            assert!(row.get::<_, bool>(0), "two generations in one statement");
            looks += 1;
        }
        looks
    });
    for _ in 0..6 {
        full::rollback(&Run::detached(), &scaffold.world.config.target).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reading.await.expect("the reader never failed") > 20);
}
