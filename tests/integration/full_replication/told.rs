//! What an operator is told: which copy is compared after a rollback, that the target is incomplete though this run changed nothing,
//! and names that hold line ends.

use std::process::{Command, Output};
use std::time::Duration;

use bullwork::replication::full::{self, Resume, Swap};
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::replication::verify;
use bullwork::worker::Run;

use super::World;
use super::failures::SLOW;
use super::verify::comparison;

#[tokio::test]
async fn after_a_rollback_verify_says_which_copy_it_compares() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world
        .on_source("create table t (id int primary key, day int); insert into t select i, 1 from generate_series(1, 10) i")
        .await;
    world.run().await;
    world.on_source("update t set day = 2 where id < 4").await;
    world.run().await;
    let run = Run::detached();
    let report = verify::verify(&run, &comparison(&world)).await.unwrap();
    assert!(report.is_good() && report.remarks.is_empty(), "{report:?}");
    full::rollback(&run, &world.config.target).await.unwrap();
    let report = verify::verify(&run, &comparison(&world)).await.unwrap();
    let first = &report.remarks[0];
    assert!(
        first.starts_with("generation 2 of ") && first.contains("brought back") && first.contains("another rollback"),
        "{first}"
    );
    // The rows that were changed after the copy that serves, not after the last run.
    assert_eq!(report.tables[0].note, "3 rows of the source are newer than the copy");
    assert!(report.remarks[1].contains("which was switched in at 20"), "{report:?}");
    full::rollback(&run, &world.config.target).await.unwrap();
    let report = verify::verify(&run, &comparison(&world)).await.unwrap();
    assert!(report.is_good() && report.remarks.is_empty(), "{report:?}");
}

#[tokio::test]
async fn a_run_that_changes_nothing_after_one_that_was_cut_off_in_place_says_what_the_target_lacks() {
    let mut world = World::new().await;
    world.on_source(SLOW).await;
    world.run().await;
    world.in_place();
    // As after the end of the process: the row says what it said when the run was cut off.
    world.on_source("alter table large add constraint odd check (length(filler) > 0)").await;
    world.on_target("create function refuse() returns event_trigger language plpgsql as $$ begin if tg_tag = 'CREATE INDEX' then raise 'no index today'; end if; end $$; \
                     create event trigger refuse on ddl_command_start execute function refuse()").await;
    let error = world.fail().await;
    assert!(error.contains("target incomplete: "), "{error}");
    world.on_target("drop event trigger refuse; update bullwork.replication_state set state = 'running', ended_at = null").await;

    let lacking = "this run changed nothing, but the target is incomplete: what was there before serves, and lacks rows since";
    world.config.modes = TableModes::of([("nowhere", TableMode::None)]);
    let error = world.fail().await;
    assert!(error.contains(lacking) && !error.contains("untouched"), "{error}");
    world.config.modes = TableModes::default();
    // Beside it fails as well, once before and once behind the first change.
    world.config.swap = Some(Swap { patience: Duration::from_secs(1), generations: 1, resume: Resume::Consistent });
    world.on_target("create schema bullwork_new_public").await;
    let error = world.fail().await;
    assert!(error.contains(lacking) && !error.contains("untouched"), "{error}");
    world.on_target("drop schema bullwork_new_public").await;
    world.on_target("begin; select * from small").await;
    let error = world.fail().await;
    assert!(error.contains("readers held replaced tables") && !error.contains("untouched"), "{error}");
    assert!(
        error.contains("this run changed nothing, but the target is incomplete") && error.contains("lacks rows since"),
        "{error}"
    );
    world.on_target("rollback").await;
    world.run().await;
    world.assert_same_rows(&[]).await;
    // What was not whole is kept for nobody.
    assert_eq!(world.text("select count(*)::text from bullwork.generation").await, "1");
    let report = verify::verify(&Run::detached(), &comparison(&world)).await.unwrap();
    assert!(report.is_good(), "{report:?}");
}

fn bullwork(world: &World, verbs: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(verbs)
        .env_clear()
        .env("SOURCE_DATABASE_URL", world.cluster.url("from"))
        .env("TARGET_DATABASE_URL", world.cluster.url("to"))
        .env("LOG_FORMAT", "text")
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{output:?}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_line_ends_break_no_table_and_no_line() {
    let world = World::new().await;
    let forged = "10:00:00  INFO all is well";
    world
        .on_source(&format!(
            "create table \"a\n{forged}\" (id int primary key, \"c\n{forged}\" text); create table \"tab\ttab\r\" (id int); \
             create view \"v\n{forged}\" as select * from \"a\n{forged}\"; insert into \"a\n{forged}\" values (1, 'x')"
        ))
        .await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let whole = |output: &str| {
        let broken = output.lines().find(|line| line.starts_with("10:00:00") || line.contains('\r'));
        assert_eq!(broken, None, "{output}");
    };
    let plan = bullwork(&world, &["replication", "plan"]);
    whole(&text(&plan.stdout));
    let rows = text(&plan.stdout);
    assert_eq!(rows.lines().filter(|line| line.contains(" full ")).count(), 2, "{rows}");
    assert!(rows.contains(r"a\u{a}10:00:00  INFO all is well") && rows.contains(r"tab\u{9}tab\u{d}"), "{rows}");

    let run = bullwork(&world, &["run", "full-replication"]);
    assert!(run.status.success(), "{run:?}");
    let log = text(&run.stdout);
    whole(&log);
    let begins = |line: &str| line.len() > 8 && line.as_bytes()[2] == b':' && line.as_bytes()[5] == b':';
    assert!(log.lines().all(|line| begins(line) || line.starts_with("               ")), "{log}");

    world.on_target(&format!("delete from \"a\n{forged}\"; drop table \"tab\ttab\r\"")).await;
    let verified = bullwork(&world, &["replication", "verify"]);
    let rows = text(&verified.stdout);
    whole(&rows);
    whole(&text(&verified.stderr));
    assert_eq!(verified.status.code(), Some(1), "{rows}");
    assert_eq!(rows.lines().count(), 3, "{rows}");
    assert!(rows.contains(r"a\u{a}10:00:00") && rows.contains("differs") && rows.contains("absent"), "{rows}");
}
