//! Readers that come without a pause, in whatever order they name what they read, keep no switch from happening.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bullwork::replication::full::{self, Resume, Swap};
use bullwork::worker::Run;

use super::World;
use super::swap::{SOURCE, connect, next_day};

/// A table before a view of it.
const TABLE_FIRST: &str = "select (select max(day) from public.a) = (select max(one) from public.v) and \
                           (select count(*) from second.b) = 500";
/// A view before its table.
const VIEW_FIRST: &str = "select (select max(one) from public.v) = (select max(day) from public.a)";
/// Tables against the order of their names.
const BACKWARDS: &str = "select (select max(day) from second.b) = (select max(day) from public.a)";

/// Sessions that read without a pause until they are told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    async fn start(world: &World, statements: &[&'static str]) -> Crowd {
        let mut crowd = Crowd { stop: Arc::default(), looks: Arc::default(), longest: Arc::default(), tasks: Vec::new() };
        for statement in statements {
            let (client, statement) = (connect(world).await, *statement);
            let (stop, looks, longest) = (crowd.stop.clone(), crowd.looks.clone(), crowd.longest.clone());
            crowd.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let row = client.query_one(statement, &[]).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
                    assert!(row.get::<_, bool>(0), "two generations in one statement: {statement}");
                    looks.fetch_add(1, Ordering::Relaxed);
                    longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
            }));
        }
        crowd
    }

    /// Ends them; how many statements there were, and what the longest took.
    async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no reader failed");
        }
        (self.looks.load(Ordering::Relaxed), self.longest.load(Ordering::Relaxed))
    }
}

async fn switches_under(statements: &[&'static str]) {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(60), generations: 1, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    let crowd = Crowd::start(&world, statements).await;
    for day in 2..4 {
        next_day(&world, day).await;
        let (_, lines) = world.run().await;
        assert!(lines.has("serves; the switch took"), "{:?}", lines.all());
        println!("{:?}", lines.all().iter().filter(|line| line.contains("the switch")).collect::<Vec<_>>());
    }
    let run = Run::detached();
    for _ in 0..2 {
        full::rollback(&run, &world.config.target).await.unwrap();
    }
    let (looks, longest) = crowd.end().await;
    println!("{looks} statements, the longest took {longest} ms");
    assert!(looks > 50, "the readers read all the while");
    assert_eq!(world.text("select max(day)::text from a").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_name_tables_before_their_view_are_no_obstacle() {
    switches_under(&[TABLE_FIRST, TABLE_FIRST, TABLE_FIRST]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_name_tables_against_the_order_of_names_are_no_obstacle() {
    switches_under(&[BACKWARDS, BACKWARDS, BACKWARDS]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_opposite_orders_at_once_are_no_obstacle() {
    switches_under(&[TABLE_FIRST, VIEW_FIRST, BACKWARDS]).await;
}
