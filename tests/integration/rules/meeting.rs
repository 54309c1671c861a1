//! Rules together with what else there is: copies that were cut off, delta tables, verification.

use std::sync::Arc;
use std::time::Duration;

use bullwork::replication::full::{self, Resume, Swap};
use bullwork::replication::incremental::{Incremental, Summary};
use bullwork::replication::rules::Rules;
use bullwork::replication::settings::{TableMode, TableModes};
use bullwork::replication::verify::{self, Depth, Verdict};
use bullwork::worker::Run;
use tokio_util::sync::CancellationToken;

use super::{Lines, World};
use crate::support::eventually;

const PEOPLE: &str = "create table people (id int primary key, name text, city text); \
    insert into people select g, 'Person ' || g, case when g % 10 = 0 then 'nowhere' else 'Berlin' end from generate_series(1, 500) g; \
    create table last (id int primary key)";
const RULES: &str =
    "[tables.people]\nwhere = \"city <> 'nowhere'\"\n[tables.people.columns]\nid = 'keep'\nname = 'hash'\ncity = 'keep'";
const MASKED: &str = "[tables.people.columns]\nid = 'keep'\nname = 'hash'\ncity = 'keep'";

fn run(lines: &Lines) -> Run {
    Run::new(serde_json::Map::new(), CancellationToken::new(), Some(Arc::new(lines.clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_staged_without_rules_are_not_taken_over_by_a_run_with_some() {
    let mut world = World::new(PEOPLE).await;
    world.config.jobs = 1;
    world.config.swap = Some(Swap { patience: Duration::from_secs(20), generations: 0, resume: Resume::Relaxed });
    let lock = world.source_cluster.client("to").await;
    let cut = async {
        eventually("the definitions are staged", Duration::from_secs(20), async || {
            let sql = "select to_regclass('bullwork_new_public.last') is not null";
            lock.query_one(sql, &[]).await.unwrap().get(0)
        })
        .await;
        lock.batch_execute("begin; lock table bullwork_new_public.last in share mode").await.unwrap();
        eventually("the other table is whole", Duration::from_secs(20), async || {
            lock.query_one("select count(*) from bullwork.staged_table", &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
    };
    let lines = Lines::default();
    let run = run(&lines);
    tokio::select! {
        ended = full::replicate(&run, &world.config) => panic!("it ended by itself: {ended:?}"),
        () = cut => {}
    }
    let others = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and application_name like 'bullwork%'";
    lock.execute(others, &[]).await.unwrap();
    lock.batch_execute("rollback").await.unwrap();
    world.rules(RULES);
    let (_, lines) = world.full().await;
    assert!(lines.has("starting over"), "{:?}", lines.all());
    assert_eq!(world.text("select count(*) || ' ' || count(*) filter (where name like 'Person%') from people").await, "450 0");
}

async fn delta(world: &World) -> (Summary, Lines) {
    let work = Incremental {
        source: world.config.source.clone(),
        target: world.config.target.clone(),
        modes: TableModes::of([("people", TableMode::Delta)]),
        rules: world.config.rules.clone(),
        kindness: Default::default(),
        first_load: true,
    };
    let lines = Lines::default();
    let result = work.replicate(&run(&lines)).await;
    (result.unwrap_or_else(|e| panic!("{e}\n{}", lines.all().join("\n"))), lines)
}

#[tokio::test]
async fn delta_tables_are_masked_in_every_course_and_follow_other_rules() {
    let mut world = World::new(PEOPLE).await;
    world.rules(MASKED);
    let originals =
        "select count(*) filter (where name like 'Person%')::text || ' ' || count(*) || ' ' || count(distinct name) from people";
    assert_eq!(delta(&world).await.0.rows, 500, "first load");
    world.on_source("update people set name = 'Person again ' || id where id <= 5; delete from people where id = 6; insert into people values (501, 'Person new', 'Rome')").await;
    let (summary, lines) = delta(&world).await;
    assert_eq!((summary.rows, summary.updated, summary.deleted), (1, 5, 1), "{:?}", lines.all());
    assert_eq!(world.text(originals).await, "0 500 500");
    let (_, lines) = delta(&world).await;
    assert!(lines.has("people is unchanged: 500 rows"), "{:?}", lines.all());

    // Rows that a condition leaves out go, whoever changed; it is looked at every night.
    world.rules(RULES);
    let (summary, lines) = delta(&world).await;
    assert!(lines.has("because the rules are others now"), "{:?}", lines.all());
    assert_eq!((summary.rows, summary.updated, summary.deleted), (0, 0, 50));
    let (_, lines) = delta(&world).await;
    assert!(lines.has("its rows are chosen by a condition"), "{:?}", lines.all());
    assert_eq!(world.text(originals).await, "0 450 450");

    // Without rules the values come back, and with them they go again: no row is left under the others.
    let rules = std::mem::take(&mut world.config.rules);
    assert_eq!(delta(&world).await.0.updated, 450);
    world.config.rules = rules;
    assert_eq!(delta(&world).await.0.updated, 450);
    assert_eq!(world.text(originals).await, "0 450 450");
}

#[tokio::test]
async fn masked_and_subset_tables_are_verified_and_repaired_as_masked() {
    let mut world = World::new(PEOPLE).await;
    world.rules(RULES);
    world.config.verify = Depth::Checksum;
    let (_, lines) = world.full().await;
    assert!(lines.has("checksums of 2 tables are equal"), "{:?}", lines.all());
    let mut config = verify::Config {
        source: world.config.source.clone(),
        target: world.config.target.clone(),
        modes: TableModes::default(),
        jobs: 2,
        rules: world.config.rules.clone(),
        tables: vec!["people".to_owned()],
        repair: false,
    };
    let verdict = async |config: &verify::Config| {
        verify::verify(&run(&Lines::default()), config).await.unwrap().tables.first().unwrap().verdict
    };
    assert_eq!(verdict(&config).await, Verdict::Equal);
    world.on_target("update people set name = 'Person 7' where id = 7; delete from people where id = 8").await;
    assert_eq!(verdict(&config).await, Verdict::Differs);
    config.repair = true;
    assert_eq!(verdict(&config).await, Verdict::Repaired);
    config.repair = false;
    assert_eq!(verdict(&config).await, Verdict::Equal);
    assert_eq!(world.text("select count(*) || ' ' || count(*) filter (where name like 'Person%') from people").await, "450 0");
    // Under no rules the copy is not the source.
    config.rules = Rules::default();
    assert_eq!(verdict(&config).await, Verdict::Differs);
}

#[tokio::test]
async fn a_table_by_whose_masked_key_others_refer_to_it_is_repaired_row_by_row() {
    let mut world = World::new(
        "create table people (id int primary key, name text); insert into people select i, 'n' || i from generate_series(1, 5000) i;
         create table visits (id int primary key, person int references people, of_code uuid); create table codes (code uuid primary key, n int);
         insert into codes select md5(i::text)::uuid, i from generate_series(1, 100) i; alter table visits add foreign key (of_code) references codes;
         insert into visits select i, i, md5((1 + i % 100)::text)::uuid from generate_series(1, 3000) i",
    )
    .await;
    world.rules(
        "[tables.people.columns]\nid = \"hash\"\nname = \"hash\"\n[tables.visits]\nother_columns = \"copy\"\ncolumns.person = \"hash\"\n\
         columns.of_code = \"hash\"\n[tables.codes]\nother_columns = \"copy\"\ncolumns.code = \"hash\"",
    );
    world.full().await;
    let mut config = verify::Config {
        source: world.config.source.clone(),
        target: world.config.target.clone(),
        modes: TableModes::default(),
        jobs: 1,
        rules: world.config.rules.clone(),
        tables: Vec::new(),
        repair: true,
    };
    // A value, a row that nobody refers to, one too many, and one that a visit refers to.
    let damage = "update people set name = 'x' where id = (select min(id) from people);
         delete from people where id = (select min(id) from people p where not exists (select from visits where person = p.id));
         insert into people values (2147483647, 'more'); update codes set n = -1 where n = 5; delete from visits where id = 9;";
    world.on_target(damage).await;
    let report = verify::verify(&run(&Lines::default()), &config).await.unwrap();
    assert!(report.tables.iter().all(|t| t.verdict == Verdict::Repaired), "{report:#?}");
    let note = &report.tables.iter().find(|t| t.table.name == "people").unwrap().note;
    assert!(note.contains("of which 3 were changed"), "{note}");
    config.repair = false;
    let report = verify::verify(&run(&Lines::default()), &config).await.unwrap();
    assert!(report.tables.iter().all(|t| t.verdict == Verdict::Equal), "{report:#?}");
}
