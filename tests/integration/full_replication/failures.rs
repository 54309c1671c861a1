//! What goes wrong, what is said about it, and how the next run repairs it.

use std::sync::Arc;
use std::time::Duration;

use bullwork::postgres::Database;
use bullwork::replication::full::{self, Refused};
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::Run;
use tokio_util::sync::CancellationToken;

use super::{Lines, World, text};
use crate::support::eventually;
use crate::support::postgres::Cluster;

const LIMIT: Duration = Duration::from_secs(30);

/// Two small tables and one that takes a while.
pub(super) const SLOW: &str = "create table small (id int primary key); insert into small values (1);
    create table tiny (id int primary key, s int references small); insert into tiny values (1, 1);
    create table large (id int primary key, filler text);
    insert into large select g, repeat(md5(g::text), 20) from generate_series(1, 60000) g;
    create index large_filler on large (filler)";

/// The rows of yesterday, to see whether they survived.
const YESTERDAY: &str = "create table small (id int primary key); insert into small values (42)";

#[tokio::test]
async fn a_wrong_password_an_unknown_host_and_a_missing_database_are_told_with_nothing_changed() {
    let mut world = World::new().await;
    world.on_target(YESTERDAY).await;
    let good = world.cluster.url("from");
    for (url, wanted) in [
        (good.replace("correct", "wrong"), "password authentication failed"),
        (good.replace("/from", "/nowhere"), "database \"nowhere\" does not exist"),
        (good.replace(&world.cluster.port.to_string(), "1"), "refused"),
    ] {
        world.config.source = Database::parse(&url).unwrap();
        let error = world.fail().await;
        assert!(error.contains(wanted) && error.ends_with("; target untouched"), "{error}");
        assert!(!error.contains("horse") && error.contains("owner:***@"), "{error}");
    }
    assert_eq!(world.text("select id::text from small").await, "42");
}

#[tokio::test]
async fn a_target_that_is_the_source_is_refused_under_whatever_name() {
    let mut world = World::new().await;
    world.on_source(SLOW).await;
    world.config.target = Database::parse(&world.cluster.url("from").replace("127.0.0.1", "localhost")).unwrap();
    let (result, _) = world.try_run().await;
    let error = result.unwrap_err();
    assert!(error.is::<Refused>());
    let error = format!("{error:#}");
    assert!(error.contains("one database (postgres://owner:***@127.0.0.1") && error.contains("@localhost"), "{error}");
    assert_eq!(text(&world.source, "select count(*)::text from large").await, "60000");
}

#[tokio::test]
async fn an_unknown_table_in_backup_mode_is_refused_with_what_was_perhaps_meant() {
    let mut world = World::new().await;
    world.on_source("create table answers (id int)").await;
    world.on_target("create table own (id int)").await;
    world.config.modes = TableModes::of([("anwsers", TableMode::Incremental), ("own", TableMode::None)]);
    let error = world.fail().await;
    assert_eq!(
        error,
        "BACKUP_MODE names tables that neither source nor target has: `anwsers` (near: `answers`); names are exact; target untouched"
    );
    world.config.modes = TableModes::of([("own", TableMode::None)]);
    world.run().await;
}

#[tokio::test]
async fn a_source_in_recovery_is_refused() {
    let mut world = World::new().await;
    let standby = Cluster::start_standby();
    world.config.source = Database::parse(&standby.url("postgres")).unwrap();
    let error = world.fail().await;
    assert!(error.contains("is in recovery") && error.contains("primary") && error.ends_with("target untouched"), "{error}");
}

#[tokio::test]
async fn rights_that_are_missing_are_told_before_anything_is_changed() {
    let mut world = World::new().await;
    world
        .on_source(
            "create table small (id int); create table secret (id int); create schema second; create table second.x (id int)",
        )
        .await;
    world
        .on_target("create role weak login password 'weakpassword'; create table small (id int); insert into small values (42)")
        .await;
    world.on_source("grant usage on schema public, second to weak; grant select on small, second.x to weak").await;
    let weak = |url: String| Database::parse(&url.replace("owner:correct%20horse%20battery", "weak:weakpassword")).unwrap();
    let strong = world.config.target.clone();

    world.config.target = weak(world.cluster.url("to"));
    let error = world.fail().await;
    assert!(error.contains("does not own what is to be replaced: table public.small"), "{error}");
    world.on_target("alter table small owner to weak").await;
    let error = world.fail().await;
    assert!(error.contains("may not create in schema bullwork, public, second; grant create"), "{error}");

    world.config.target = strong;
    world.config.source = weak(world.cluster.url("from"));
    let error = world.fail().await;
    assert!(error.contains("may not read \"public\".\"secret\" whole; grant select"), "{error}");
    world.config.modes = TableModes::of([("secret", TableMode::None)]);
    assert_eq!(world.text("select id::text from small").await, "42");
    // A table that is kept need not be readable.
    world.run().await;
    assert_eq!(world.text("select count(*)::text from second.x").await, "0");
}

#[tokio::test]
async fn definitions_that_the_target_refuses_leave_it_as_it_was() {
    let world = World::new().await;
    world.on_source("create table small (id int); create table taken (id int); create index taken_name on small (id)").await;
    world.run().await;
    world.on_target("insert into small values (42)").await;
    // The type's name is taken by somebody's composite type, which is a thing of another kind.
    world.on_source("create table \"mine\" (id int)").await;
    world.on_target("create domain mine as int; create table uses (m mine)").await;
    let error = world.fail().await;
    assert!(
        error.contains("type public.mine; rename or drop it") && error.contains("target untouched: generation 2 of "),
        "{error}"
    );
    assert_eq!(world.text("select id::text from small").await, "42");
    assert_eq!(world.text("select state || ' ' || phase from bullwork.replication_state").await, "failed preparing");
}

/// Runs until rows arrive, then does `harm`.
async fn run_into(world: &World, harm: impl AsyncFnOnce()) -> (anyhow::Result<full::Summary>, Lines) {
    let lines = Lines::default();
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(lines.clone())));
    let replication = tokio::time::timeout(Duration::from_secs(90), full::replicate(&run, &world.config));
    let interference = async {
        eventually("rows arrive", LIMIT, || async { lines.progress.lock().unwrap().iter().any(|p| p.rows > 10) }).await;
        harm().await;
    };
    let (result, ()) = tokio::join!(replication, interference);
    (result.expect("ends in time"), lines)
}

#[tokio::test]
async fn a_source_that_breaks_off_leaves_no_part_of_a_table_and_the_next_run_repairs() {
    let mut world = World::new().await;
    world.in_place();
    world.on_source(SLOW).await;
    world.on_target("create table small (id int primary key); create view mine as select * from small").await;
    world.config.jobs = 1;
    let (result, _) = run_into(&world, async || {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'from' and query like 'copy%'";
        eventually("the copy is cut", LIMIT, || async { !world.target.query(sql, &[]).await.unwrap().is_empty() }).await;
    })
    .await;
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains("reading table `large` from the source broke off"), "{error}");
    assert!(error.contains("target incomplete: 0 of 3 tables; the next full replication repairs it"), "{error}");
    assert_eq!(world.text("select count(*)::text from large").await, "0");
    assert_eq!(
        world.text("select concat_ws(' ', state, phase, tables_done, tables_total) from bullwork.replication_state").await,
        "failed loading 0 3"
    );
    let (_, lines) = world.run().await;
    assert!(lines.has("did not succeed (failed, loading): what it left is replaced"), "{:?}", lines.all());
    world.assert_same_rows(&[]).await;
    assert_eq!(world.text("select count(*)::text from mine").await, "1");
    assert_eq!(world.text("select concat_ws(' ', state, phase) from bullwork.replication_state").await, "complete complete");
}

#[tokio::test]
async fn a_target_that_dies_in_mid_run_is_repaired_by_the_next() {
    let mut world = World::new().await;
    world.in_place();
    let mut warehouse = Cluster::start();
    warehouse.create("to").await.batch_execute("create table old (id int); create view own as select * from old").await.unwrap();
    world.config.target = Database::parse(&warehouse.url("to")).unwrap();
    world.on_source(SLOW).await;
    world.on_source("create table old (id int)").await;
    world.config.jobs = 1;
    let (result, _) = run_into(&world, async || warehouse.kill()).await;
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains("`large`") && error.contains("could not be asked how far it is"), "{error}");
    warehouse.restart();
    world.target = warehouse.client("to").await;
    assert_eq!(world.text("select concat_ws(' ', state, phase) from bullwork.replication_state").await, "running loading");
    let (_, lines) = world.run().await;
    assert!(lines.has("did not succeed (running, loading)"), "{:?}", lines.all());
    world.assert_same_rows(&[]).await;
    assert_eq!(world.text("select count(*)::text from own").await, "0");
}

#[tokio::test]
async fn a_stopped_run_ends_at_once_and_leaves_no_session() {
    let mut world = World::new().await;
    world.in_place();
    world.on_source(SLOW).await;
    world.config.jobs = 2;
    let lines = Lines::default();
    let stop = CancellationToken::new();
    let run = Run::new(serde_json::Map::new(), stop.clone(), Some(Arc::new(lines.clone())));
    let waiting = async {
        eventually("rows arrive", LIMIT, || async { lines.progress.lock().unwrap().iter().any(|p| p.rows > 10) }).await;
        stop.cancel();
    };
    let (result, ()) = tokio::join!(tokio::time::timeout(LIMIT, full::replicate(&run, &world.config)), waiting);
    let error = result.expect("ends in time").unwrap_err();
    assert_eq!(error.to_string(), "the run was told to stop");
    assert!(lines.has("target incomplete"), "{:?}", lines.all());
    let left = "select count(*) from pg_stat_activity where application_name like 'bullwork%'";
    eventually("no session is left", LIMIT, || async { world.target.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0 })
        .await;
    world.run().await;
    world.assert_same_rows(&[]).await;
}

#[tokio::test]
async fn a_row_that_the_target_refuses_names_the_table() {
    let mut world = World::new().await;
    world.in_place();
    // The kept domain is stricter than the source's.
    world.on_source("create domain d as int; create table t (x d); insert into t values (1), (2); create table k (x d)").await;
    world.on_target("create domain d as int check (value < 2); create table k (x d)").await;
    world.keep(["k"]);
    let error = world.fail().await;
    assert!(error.contains("writing table `t` on the target") && error.contains("target incomplete: 0 of 1 tables"), "{error}");
    assert_eq!(world.text("select count(*)::text from t").await, "0");
}

#[tokio::test]
async fn a_kept_table_that_needs_a_replaced_one_stops_the_run_before_anything_goes() {
    let mut world = World::new().await;
    world.on_source("create table t (id int); create table k (id int)").await;
    world.on_target("create table t (id int); insert into t values (42); create table k (id int, t t)").await;
    world.keep(["k"]);
    let error = world.fail().await;
    assert!(
        error.contains("table public.k stays on the target and needs table public.t") && error.ends_with("target untouched"),
        "{error}"
    );
    assert_eq!(world.text("select id::text from t").await, "42");
}

#[test]
fn no_client_program_is_needed_and_no_file_is_left() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = Cluster::start();
    runtime.block_on(async {
        cluster
            .create("production")
            .await
            .batch_execute("create table t (id int primary key); insert into t values (1)")
            .await
            .unwrap();
        cluster.create("warehouse").await;
    });
    let directory = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(["run", "full-replication"])
        .env_clear()
        .env("PATH", directory.path())
        .env("SOURCE_DATABASE_URL", cluster.url("production"))
        .env("TARGET_DATABASE_URL", cluster.url("warehouse"))
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

#[tokio::test]
async fn a_full_disk_on_the_target_names_the_table_and_the_next_run_repairs() {
    let mut world = World::new().await;
    world.in_place();
    let warehouse = Cluster::start();
    world.target = warehouse.create("to").await;
    world.config.target = Database::parse(&warehouse.url("to")).unwrap();
    world.on_source(SLOW).await;
    world.on_target(YESTERDAY).await;
    // A limit on the size of files stands in for a full disk: the server cannot extend a table.
    let limit = |bytes: &str| {
        let pid = format!("--pid={}", warehouse.server().pid());
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.args([&pid, &format!("--fsize={bytes}:unlimited")]);
        crate::support::postgres::as_server_user(&mut prlimit);
        assert!(prlimit.status().expect("prlimit (util-linux) is installed").success());
    };
    limit("12000000");
    let error = world.fail().await;
    assert!(error.contains("writing table `large` on the target: could not extend file"), "{error}");
    assert!(
        error.contains("target incomplete: ") && error.contains(" of 3 tables; the next full replication repairs it"),
        "{error}"
    );
    limit("unlimited");
    world.run().await;
    world.assert_same_rows(&[]).await;
}
