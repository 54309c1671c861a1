//! What a run would do, shown before it does it.

use bullwork::replication::full::{self, Plan};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::worker::Run;
use tokio_util::sync::CancellationToken;

use super::World;

const SOURCE: &str = "
create table users (id int primary key, name text); insert into users select i, repeat('x', 100) from generate_series(1, 20000) i; analyze users;
create table answers (id int primary key, users int references users); create view over_answers as select * from answers;
create view over_view as select id from over_answers; create table audit (id int); insert into audit select generate_series(1, 1000);
create function tell() returns event_trigger language plpgsql as 'begin end'; create event trigger told on ddl_command_end execute function tell();";

async fn plan(world: &World) -> anyhow::Result<Plan> {
    full::plan(&Run::new(serde_json::Map::new(), CancellationToken::new(), None), &world.config).await
}

#[tokio::test]
async fn the_plan_names_modes_sizes_times_and_what_follows_and_changes_nothing() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.config.modes = TableModes::of([("answers", TableMode::None), ("audit", TableMode::Incremental)]);
    world.config.rules =
        Rules::parse("[tables.users]\nwhere = 'id > 5'\n[tables.users.columns]\nid = 'keep'\nname = 'null'", None).unwrap();
    let before = world.text("select string_agg(oid::text, ' ' order by oid) from pg_class").await;
    let drawn = plan(&world).await.unwrap();
    assert_eq!(world.text("select string_agg(oid::text, ' ' order by oid) from pg_class").await, before, "nothing is made");

    let modes: Vec<(&str, &str)> = drawn.tables.iter().map(|t| (t.table.as_str(), t.mode)).collect();
    assert_eq!(modes, [("users", "full"), ("answers", "none"), ("audit", "incremental")]);
    let users = &drawn.tables[0];
    assert_eq!(users.rows, Some(20_000));
    assert!(users.bytes.unwrap() > 2_000_000 && users.seconds.unwrap() > 0.0, "{users:?}");
    assert_eq!(users.note, "1 columns masked, rows chosen by a condition");
    assert!(drawn.tables[2].bytes.unwrap() > 0, "{:?}", drawn.tables[2]);
    let left_out: Vec<&str> = drawn.left_out.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(left_out, ["event trigger told", "view over_answers", "view over_view"]);
    assert!(drawn.left_out[1].1.contains("needs table `answers`"), "{:?}", drawn.left_out);
    assert!(!drawn.measured && drawn.in_place_because.is_none() && drawn.room.needed > 2_000_000);
    let text = drawn.to_string();
    assert!(
        text.contains("guessed: no run was measured yet") && text.contains("kept: answers (none), audit (incremental)"),
        "{text}"
    );

    // The run says the same, and later plans know how fast it was.
    let (_, lines) = world.run().await;
    // Free space changes by itself.
    let (same, _) = text.split_once(" needed").unwrap();
    assert!(lines.has(same), "{text}\n{:?}", lines.all());
    world.on_target("update bullwork.last_copy set bytes = 1000000000, ms = 1000000").await;
    world.on_source("drop view over_view; drop table audit").await;
    world.config.modes = TableModes::of([("answers", TableMode::None)]);
    let drawn = plan(&world).await.unwrap();
    assert!(drawn.measured && drawn.seconds > 2.0, "a megabyte a second: {drawn:?}");
}

#[tokio::test]
async fn a_target_without_room_for_two_copies_is_replaced_in_place_and_told() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.run().await;
    world.config.target_space = Some(1_000_000);
    let drawn = plan(&world).await.unwrap();
    let reason = drawn.in_place_because.clone().unwrap();
    assert!(reason.contains("no room for two copies") && !drawn.room.suffices(), "{reason}");
    let (_, lines) = world.run().await;
    assert!(lines.has("replacing in place, not beside the copy that serves: the target has no room"), "{:?}", lines.all());
    assert_eq!(world.text("select count(*)::text from bullwork.generation where serves").await, "0");
    world.config.target_space = Some(100_000_000_000);
    assert_eq!(plan(&world).await.unwrap().in_place_because, None);
}

#[tokio::test]
async fn ordinary_roles_see_the_plan() {
    let mut world = World::new().await;
    world
        .on_source(
            "create table t (id int primary key); create role clerk login password 'clerk-word'; grant select on t to clerk",
        )
        .await;
    world.on_target("grant create on database \"to\" to clerk; grant all on schema public to clerk").await;
    let as_clerk = |database: &str| {
        let mut url = url::Url::parse(&world.cluster.url(database)).unwrap();
        url.set_username("clerk").unwrap();
        url.set_password(Some("clerk-word")).unwrap();
        bullwork::postgres::Database::parse(url.as_str()).unwrap()
    };
    (world.config.source, world.config.target) = (as_clerk("from"), as_clerk("to"));
    assert_eq!(plan(&world).await.unwrap().room.free, None, "it is not theirs to know");
    world.run().await;
    assert_eq!(plan(&world).await.unwrap().tables.len(), 1);
}

#[tokio::test]
async fn a_plan_is_refused_for_what_a_run_is_refused_for() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.config.modes = TableModes::of([("nosuch", TableMode::None)]);
    assert!(plan(&world).await.unwrap_err().to_string().contains("neither source nor target has: `nosuch`"));
    world.config.modes = TableModes::default();
    world.config.target = world.config.source.clone();
    assert!(plan(&world).await.unwrap_err().to_string().contains("one database"));
}

#[tokio::test]
async fn the_command_prints_a_table_or_json() {
    let world = World::new().await;
    world.on_source(SOURCE).await;
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_bullwork"))
            .args(["replication", "plan"])
            .args(arguments)
            .env_clear()
            .env("SOURCE_DATABASE_URL", world.cluster.url("from"))
            .env("TARGET_DATABASE_URL", world.cluster.url("to"))
            .current_dir(std::env::temp_dir())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&[]);
    assert!(text.contains("users") && text.contains("20000") && text.contains("left out event trigger told"), "{text}");
    assert!(text.contains("plan: 3 tables"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(json["tables"].as_array().unwrap().len(), 3);
}
