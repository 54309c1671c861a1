//! What becomes of half a copy.

use std::time::Duration;

use bullwork::postgres::Database;
use bullwork::replication::full::{self, Resume, Swap};
use bullwork::worker::Run;
use tokio_util::sync::CancellationToken;

use super::copies::{AWKWARD, assert_same_definitions};
use super::{Lines, World};
use crate::support::eventually;
use crate::support::postgres::Cluster;

const SOURCE: &str = "
create table users (id int primary key, day int not null); create table answers (id int primary key, users int references users, day int not null);
create index answers_day on answers (day); create view v as select day from users; create table last (id int primary key, pad text);
insert into users select i, 1 from generate_series(1, 1000) i; insert into answers select i, i, 1 from generate_series(1, 1000) i;
insert into last values (1, 'x')";

/// Two servers, because writes on the target would count as writes on a source beside it.
async fn two_servers(sql: &str, resume: Resume) -> (World, Cluster) {
    let mut world = World::new().await;
    let warehouse = Cluster::start();
    world.target = warehouse.create("to").await;
    world.config.target = Database::parse(&warehouse.url("to")).unwrap();
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 0, resume });
    // One at a time, the largest first: `last` is the last.
    world.config.jobs = 1;
    world.on_source(sql).await;
    (world, warehouse)
}

/// Runs until every table but `last` is whole and has its indexes, then cuts the run off as a crash would.
async fn cut_off(world: &World, warehouse: &Cluster, whole: i64) {
    let lock = warehouse.client("to").await;
    let block = async {
        eventually("the definitions are staged", Duration::from_secs(20), async || {
            let sql = "select to_regclass('bullwork_new_public.last') is not null";
            lock.query_one(sql, &[]).await.unwrap().get(0)
        })
        .await;
        lock.batch_execute("begin; lock table bullwork_new_public.last in share mode").await.unwrap();
        eventually("the other tables are whole", Duration::from_secs(20), async || {
            let sql = "select count(*) from bullwork.staged_table";
            lock.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == whole
        })
        .await;
    };
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
    tokio::select! {
        result = full::replicate(&run, &world.config) => panic!("it ended by itself: {result:?}"),
        () = block => {}
    }
    let others = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and application_name like 'bullwork%'";
    lock.execute(others, &[]).await.unwrap();
    lock.batch_execute("rollback").await.unwrap();
}

fn copied(lines: &Lines, table: &str) -> bool {
    lines.has(&format!("TABLE DATA {table}: "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_goes_on_when_nobody_wrote_since() {
    let (world, warehouse) = two_servers(SOURCE, Resume::Consistent).await;
    cut_off(&world, &warehouse, 2).await;
    let (summary, lines) = world.run().await;
    assert!(lines.has("2 tables are whole; nobody has written to the source since"), "{:?}", lines.all());
    assert!(copied(&lines, "last") && !copied(&lines, "users") && !copied(&lines, "answers"), "{:?}", lines.all());
    assert_eq!((summary.tables, summary.rows), (3, 2001));
    world.assert_same_rows(&[]).await;
    // Nothing is left of it, and the next night copies everything.
    let (_, lines) = world.run().await;
    assert!(copied(&lines, "users") && !lines.has("going on with"), "{:?}", lines.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_written_since_is_copied_anew_unless_told_otherwise() {
    let (mut world, warehouse) = two_servers(SOURCE, Resume::Consistent).await;
    let next_day = "update users set day = 2; update answers set day = 2; insert into last values (0, 'new')";
    cut_off(&world, &warehouse, 2).await;
    world.on_source(next_day).await;
    let (_, lines) = world.run().await;
    assert!(lines.has("cut off with 2 tables whole, but the source was written since"), "{:?}", lines.all());
    assert!(copied(&lines, "users"), "{:?}", lines.all());
    world.assert_same_rows(&[]).await;

    world.config.swap = world.config.swap.map(|swap| Swap { resume: Resume::Relaxed, ..swap });
    cut_off(&world, &warehouse, 2).await;
    world.on_source("update users set day = 3; update answers set day = 3; insert into last values (-1, 'newer')").await;
    let (_, lines) = world.run().await;
    assert!(lines.has("2 tables are whole; their rows are of that moment"), "{:?}", lines.all());
    let seen = "select max(users.day)::text || ' ' || max(answers.day) || ' ' || (select count(*) from last) from users, answers";
    assert_eq!(world.text(seen).await, "2 2 3");
    assert_eq!(
        world
            .text(
                "select count(*)::text from pg_constraint where contype = 'f' and convalidated and conrelid = 'answers'::regclass"
            )
            .await,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_truncated_or_rewritten_in_mid_run_is_not_taken_for_an_empty_one() {
    let (world, warehouse) = two_servers(SOURCE, Resume::Consistent).await;
    world.run().await;
    for change in ["truncate last", "alter table last alter column id type bigint"] {
        let lock = warehouse.client("to").await;
        let harm = async {
            eventually("the definitions are staged", Duration::from_secs(20), async || {
                let sql = "select to_regclass('bullwork_new_public.users') is not null";
                lock.query_one(sql, &[]).await.unwrap().get(0)
            })
            .await;
            lock.batch_execute("begin; lock table bullwork_new_public.users in share mode").await.unwrap();
            eventually("the table before is whole", Duration::from_secs(20), async || {
                lock.query_one("select count(*) from bullwork.staged_table", &[]).await.unwrap().get::<_, i64>(0) == 1
            })
            .await;
            // Nothing holds a lock on `last` yet: its turn comes after `users`.
            world.on_source(change).await;
            lock.batch_execute("rollback").await.unwrap();
        };
        let ((result, _), ()) = tokio::join!(world.try_run(), harm);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("table `last` was truncated or rewritten on the source"), "{change}: {error}");
        assert!(error.contains("target untouched"), "{error}");
        assert_eq!(world.text("select count(*)::text from last").await, "1");
        world.on_source("insert into last values (7, 'y') on conflict do nothing").await;
        world.run().await;
        world.assert_same_rows(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_definitions_or_settings_start_over() {
    let (mut world, warehouse) = two_servers(SOURCE, Resume::Relaxed).await;
    for change in ["alter table users add column more int default 5", "create index users_day on users (day)"] {
        cut_off(&world, &warehouse, 2).await;
        world.on_source(change).await;
        let (_, lines) = world.run().await;
        assert!(lines.has("but the definitions, the settings or the program changed since"), "{change}: {:?}", lines.all());
        world.assert_same_rows(&[]).await;
    }
    cut_off(&world, &warehouse, 2).await;
    world.in_place();
    let (_, lines) = world.run().await;
    assert!(lines.has("what is replaced in place cannot go on"), "{:?}", lines.all());
    world.assert_same_rows(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_cut_off_again_and_again_ends_with_every_row_and_definition() {
    // Values of `regclass` would have it replaced in place.
    let source = format!("{AWKWARD}; alter table \"text-only\" drop column c");
    let (world, _warehouse) = two_servers(&source, Resume::Relaxed).await;
    let mut resumed = 0;
    // Later and later, so that a slow machine comes to a whole table too.
    for cut in 0..40_u64 {
        let lines = Lines::default();
        let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(std::sync::Arc::new(lines.clone())));
        let after = Duration::from_millis(150 + 61 * cut);
        let ended = tokio::time::timeout(after, full::replicate(&run, &world.config)).await;
        resumed += usize::from(lines.has("going on with the run"));
        if let Ok(ended) = ended {
            ended.unwrap_or_else(|e| panic!("{e:#}"));
            break;
        }
    }
    let (_, lines) = world.run().await;
    resumed += usize::from(lines.has("going on with the run"));
    assert!(resumed > 0, "no run was cut off with a table whole");
    world.assert_same_rows(&[]).await;
    assert_same_definitions(&world).await;
}
