//! The copy is built beside the one that serves, and both change places at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bullwork::replication::full::{self, Resume, Swap};
use bullwork::worker::Run;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::World;
use super::copies::{AWKWARD, assert_same_definitions};
use crate::support::eventually;

/// Three tables that say which day they are of, in two schemas, with a type, a function, a view and a foreign key.
pub(super) const SOURCE: &str = "
create schema second; create type mood as enum ('good', 'bad');
create table a (id int primary key, day int not null, m mood default 'good');
create function later(int) returns int immutable language sql as 'select $1 + 1';
create table second.b (id int primary key, a int references a, day int not null, n int generated always as (later(day)) stored);
create index b_later on second.b (later(id));
create view v as select a.day as one, b.day as other from a join second.b b on b.a = a.id;
create table growing (id serial primary key, day int);
comment on table a is 'told'; comment on index second.b_later is 'told too';
insert into a select i, 1 from generate_series(1, 500) i; insert into second.b select i, i, 1 from generate_series(1, 500) i;";

pub(super) async fn next_day(world: &World, day: i32) {
    world
        .on_source(&format!(
            "update second.b set day = {day}; update a set day = {day}; insert into growing (day) values ({day})"
        ))
        .await;
}

pub(super) async fn connect(world: &World) -> Client {
    world.cluster.client("to").await
}

/// What a reader sees in one statement; it must be of one day, and whole.
pub(super) const LOOK: &str = "select count(*)::text || ' ' || min(a.day) || ' ' || max(a.day) || ' ' || min(b.day) || ' ' || max(b.day) \
                    from public.a join second.b b on b.a = a.id";

pub(super) fn assert_one_day(seen: &str) {
    let parts: Vec<&str> = seen.split(' ').collect();
    assert_eq!((parts[0], parts[1]), ("500", parts[2]), "{seen}");
    assert_eq!((parts[1], parts[3]), (parts[4], parts[4]), "two days in one statement: {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_every_sort_see_one_whole_generation_in_each_statement() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(60), generations: 1, resume: Resume::Consistent });
    world.on_source(&format!("create extension citext; create extension pg_trgm; {SOURCE} create table words (w citext primary key); insert into words values ('Word'); create index words_trgm on words using gin ((w::text) gin_trgm_ops);")).await;
    world.on_target("create extension citext; create extension pg_trgm; create schema analysts; create table public.kept (id int primary key, w citext); insert into kept values (1, 'X')").await;
    world.run().await;
    world.on_target("create view analysts.mine as select one, other from public.v where one > 0; create view kept_view as select * from kept").await;

    let stop = Arc::new(AtomicBool::new(false));
    let looks = Arc::new(AtomicU64::new(0));
    let longest = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for sort in ["plain", "prepared", "repeatable read", "view", "own view", "kept"] {
        let (client, stop, looks, longest) = (connect(&world).await, stop.clone(), looks.clone(), longest.clone());
        readers.push(tokio::spawn(async move {
            let prepared = client.prepare(LOOK).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let text = |row: tokio_postgres::Row| row.get::<_, String>(0);
                match sort {
                    "plain" => assert_one_day(&text(client.query_one(LOOK, &[]).await.unwrap())),
                    "prepared" => assert_one_day(&text(client.query_one(&prepared, &[]).await.unwrap())),
                    "repeatable read" => {
                        // The snapshot is older than what it is used on.
                        client.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        assert_one_day(&text(client.query_one(LOOK, &[]).await.unwrap()));
                        client.batch_execute("commit").await.unwrap();
                    }
                    "kept" => {
                        let seen = client.query_one("select string_agg(w::text, ',') from kept_view where w = 'x'", &[]).await.unwrap();
                        assert_eq!(text(seen), "X");
                    }
                    view => {
                        let name = if view == "view" { "public.v" } else { "analysts.mine" };
                        let sql = format!("select count(*)::text || ' ' || min(one) || ' ' || max(one) || ' ' || min(other) || ' ' || max(other) from {name}");
                        assert_one_day(&text(client.query_one(&sql, &[]).await.unwrap()));
                    }
                }
                looks.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
        }));
    }
    for day in 2..6 {
        next_day(&world, day).await;
        let (summary, lines) = world.run().await;
        assert!(summary.broken.is_empty() && summary.left_out.is_empty(), "{summary:?}");
        assert!(lines.has("serves; the switch took"), "{:?}", lines.all());
        world.assert_same_rows(&[]).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("no reader failed");
    }
    assert!(looks.load(Ordering::Relaxed) > 100, "the readers looked all the while");
    println!("longest look {} ms of {}", longest.load(Ordering::Relaxed), looks.load(Ordering::Relaxed));
    assert_eq!(world.text("select obj_description('second.b_later'::regclass)").await, "told too");
    assert_eq!(world.text("select n::text from second.b limit 1").await, "6");
    assert_eq!(world.text("select string_agg(w::text, ' ') from words where w = 'WORD'").await, "Word");
    assert_eq!(world.text("select nextval('growing_id_seq')::text").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_waits_for_a_reader_that_holds_a_table_and_nobody_waits_behind_it() {
    let world = World::new().await;
    world.on_source(SOURCE).await;
    world.run().await;
    next_day(&world, 2).await;
    let report = connect(&world).await;
    report.batch_execute("begin; select * from a limit 1").await.unwrap();
    let other = connect(&world).await;
    let run = async { world.run().await };
    let watch = async {
        let mut longest = Duration::ZERO;
        let built = "select to_regclass('bullwork_new_second.b_later') is not null";
        eventually("the copy is built", Duration::from_secs(60), async || other.query_one(built, &[]).await.unwrap().get(0))
            .await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let look = Instant::now();
            let row = other.query_one("select max(day) from public.a", &[]).await.unwrap();
            longest = longest.max(look.elapsed());
            assert_eq!(row.get::<_, i32>(0), 1, "the old copy serves while a report holds it");
        }
        let row = report.query_one("select max(day) from a", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 1);
        report.batch_execute("commit").await.unwrap();
        longest
    };
    let ((_, lines), longest) = tokio::join!(run, watch);
    assert!(lines.has("the switch waits for readers: server process"), "{:?}", lines.all());
    assert!(longest < Duration::from_secs(1), "a reader waited {longest:?}");
    assert_eq!(world.text("select max(day)::text from a").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_end_cost_the_run_and_the_copy_before_serves() {
    let mut world = World::new().await;
    world.on_source(SOURCE).await;
    world.run().await;
    next_day(&world, 2).await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(1), generations: 0, resume: Resume::Consistent });
    let report = connect(&world).await;
    report.batch_execute("begin; select * from second.b limit 1").await.unwrap();
    let error = world.fail().await;
    assert!(error.contains("readers held replaced tables for 1 s") && error.contains("generation 2 of "), "{error}");
    assert_eq!(world.text("select max(day)::text from a").await, "1");
    report.batch_execute("commit").await.unwrap();
    let (_, lines) = world.run().await;
    assert!(lines.has("starting over: "), "{:?}", lines.all());
    assert!(lines.has("removed what an earlier run had begun to build"), "{:?}", lines.all());
    assert_eq!(world.text("select max(day)::text from a").await, "2");
    let schemas = "select string_agg(nspname::text, ' ') from pg_namespace where nspname like 'bullwork\\_%'";
    assert_eq!(world.text(schemas).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_at_any_moment_leaves_the_copy_before_whole() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    let mut day = 1;
    for after in [0, 60, 120, 180, 240, 300, 400, 500] {
        day += 1;
        next_day(&world, day).await;
        let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
        // Dropped in the middle of whatever it does, as by a crash: the sessions end.
        let _ = tokio::time::timeout(Duration::from_millis(after), full::replicate(&run, &world.config)).await;
        let seen = world.text(LOOK).await;
        assert_one_day(&seen);
    }
    let (_, _) = world.run().await;
    world.assert_same_rows(&[]).await;
    let serving = "select count(*)::text from bullwork.generation where serves";
    assert_eq!(world.text(serving).await, "1");
}

#[tokio::test]
async fn an_earlier_copy_comes_back_and_goes_again_with_everybodys_views_and_keys() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 2, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    world.on_target("create table kept (a int references a); insert into kept values (1); create view mine as select day from a where id = 1; create role analyst; grant select on a to analyst").await;
    for day in 2..4 {
        next_day(&world, day).await;
        world.run().await;
    }
    world.on_target("create view newer as select max(day) as day from second.b").await;
    let target = bullwork::postgres::Database::parse(&world.cluster.url("to")).unwrap();
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
    for (expected, told) in [("2", "generation 3 of "), ("3", "generation 4 of ")] {
        let text = full::rollback(&run, &target).await.unwrap();
        assert!(text.starts_with(told), "{text}");
        for sql in [
            "select max(day)::text from a",
            "select day::text from mine",
            "select day::text from newer",
            "select max(one)::text from v",
        ] {
            assert_eq!(world.text(sql).await, expected, "{sql}");
        }
        let keys = "select count(*)::text from pg_constraint where contype = 'f' and convalidated and conrelid = 'kept'::regclass \
                    and confrelid = 'a'::regclass";
        assert_eq!(world.text(keys).await, "1");
        assert_eq!(world.text("select has_table_privilege('analyst', 'a', 'select')::text").await, "true");
    }
    // A night goes on from whichever copy serves.
    next_day(&world, 4).await;
    world.run().await;
    world.assert_same_rows(&[]).await;
    assert_eq!(world.text("select day::text from newer").await, "4");
    let generations = "select count(*)::text || ' ' || count(*) filter (where serves) from bullwork.generation";
    assert_eq!(world.text(generations).await, "3 1");
    world.on_target("drop role if exists nobody").await;
}

#[tokio::test]
async fn awkward_objects_change_places_night_after_night() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    // Values of `regclass` would have it replaced in place.
    world.on_source(AWKWARD).await;
    world.on_source("alter table \"text-only\" drop column c").await;
    for day in 1..=3 {
        let (summary, lines) = world.run().await;
        assert_eq!((summary.left_out, summary.broken), (vec![], vec![]), "day {day}");
        assert!(lines.has(&format!("generation {} serves", day + 1)), "{:?}", lines.all());
        world.assert_same_rows(&[]).await;
    }
    let target = bullwork::postgres::Database::parse(&world.cluster.url("to")).unwrap();
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
    full::rollback(&run, &target).await.unwrap();
    world.config.swap = world.config.swap.map(|swap| Swap { generations: 0, ..swap });
    world.run().await;
    world.assert_same_rows(&[]).await;
    assert_same_definitions(&world).await;
}

#[tokio::test]
async fn the_night_after_a_rollback_keeps_what_is_somebodys_own() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    world.run().await;
    let own = "create schema mart; create view own_view as select * from a; create view mart.other as select day from second.b; \
               create materialized view mart.filled as select count(*) as n from a; create function own_function(a) returns int language sql as 'select $1.day'";
    world.on_target(own).await;
    world.run().await;
    let target = bullwork::postgres::Database::parse(&world.cluster.url("to")).unwrap();
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
    for times in [1, 2] {
        for _ in 0..times {
            full::rollback(&run, &target).await.unwrap();
        }
        next_day(&world, times + 1).await;
        let (_, lines) = world.run().await;
        assert!(!lines.has("gone from the source, so dropped"), "{:?}", lines.all());
        let seen = "select max(day)::text || (select max(day) from mart.other) || (select n from mart.filled) || max(own_function(a)) from own_view a";
        let wanted = format!("{0}{0}500{0}", times + 1);
        assert_eq!(world.text(&seen.replace("own_function(a)", "day")).await, wanted);
        assert_eq!(world.text("select max(own_function(a))::text from a").await, (times + 1).to_string());
    }
    // What the source drops goes all the same, after a rollback too.
    world.on_source("drop view v").await;
    full::rollback(&run, &target).await.unwrap();
    world.run().await;
    assert_eq!(world.text("select to_regclass('v')::text").await, "");
}

/// Its definition may be needed by the generation after the next one.
#[tokio::test]
async fn a_view_that_fits_one_generation_alone_outlives_rollbacks() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source("create table t (a int, b int); insert into t values (1, 2)").await;
    world.run().await;
    world.on_target("create view own_v as select a, b from t; create materialized view own_mv as select b from t").await;
    world.on_source("alter table t drop column b").await;
    let (summary, _) = world.run().await;
    assert_eq!(summary.broken.len(), 2, "{summary:?}");
    let target = bullwork::postgres::Database::parse(&world.cluster.url("to")).unwrap();
    for fits in [true, false] {
        full::rollback(&Run::detached(), &target).await.unwrap();
        assert_eq!(world.text("select to_regclass('own_v')::text").await, if fits { "own_v" } else { "" });
    }
    let (summary, _) = world.run().await;
    assert_eq!(summary.broken.len(), 2, "both are told still: {summary:?}");
    world.on_source("alter table t add column b int default 3").await;
    let (summary, _) = world.run().await;
    assert_eq!(summary.broken, [""; 0]);
    assert_eq!(world.text("select a || ' ' || v.b || ' ' || m.b from own_v v, own_mv m").await, "1 3 3");
}

#[tokio::test]
async fn row_security_of_the_target_stays_or_nothing_is_replaced() {
    for in_place in [false, true] {
        let mut world = World::new().await;
        world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
        if in_place {
            world.in_place();
        }
        world
            .on_source(
                "create table c (id int primary key, tenant int); create table tenants (tenant int, who text); \
                 create table own (id int); alter table own enable row level security; create policy p on own using (id = 1); \
                 insert into c select i, i % 2 from generate_series(1, 10) i; insert into tenants values (1, 'analyst'); insert into own values (1), (2)",
            )
            .await;
        world.run().await;
        world
            .on_target(
                "create role analyst; grant select on c, tenants, own to analyst; alter table c enable row level security; \
                 create policy \"my own\" on c for select to analyst using (tenant in (select t.tenant from tenants t where who = current_user)); \
                 create policy narrow on c as restrictive using (id > 2)",
            )
            .await;
        let seen = "set role analyst; select (select count(*) from c) || ' ' || (select count(*) from own)";
        let look = async || {
            let client = connect(&world).await;
            let (role, query) = seen.split_once(';').unwrap();
            client.batch_execute(role).await.unwrap();
            client.query_one(query, &[]).await.unwrap().get::<_, String>(0)
        };
        for _ in 0..2 {
            let (_, lines) = world.run().await;
            assert!(lines.has("table `c` keeps the row security"), "{:?}", lines.all());
            assert_eq!(look().await, "4 1", "in place: {in_place}");
        }
        world.on_source("alter table c rename tenant to belongs_to").await;
        let error = world.fail().await;
        assert!(error.contains("table `c` of the target has row security") && error.contains("tenant"), "{error}");
        assert_eq!(look().await, "4 1", "the copy before serves");
        world.on_target("drop policy \"my own\" on c").await;
        world.run().await;
    }
}

#[tokio::test]
async fn what_the_target_added_to_a_table_and_loses_is_told_by_name() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world
        .on_source(
            "create table t (a int, b int, constraint of_source check (a > 0)); comment on table t is 'of the source'; create table u (a int); \
             create function f() returns trigger language plpgsql as 'begin return new; end'; \
             create trigger of_source before insert on t for each row execute function f()",
        )
        .await;
    world.run().await;
    let (_, lines) = world.run().await;
    assert!(!lines.has("not on the new copy"), "{:?}", lines.all());
    world
        .on_target(
            "create trigger mine before insert on t for each row execute function f(); alter table t add constraint small check (a < 9); \
             create rule quiet as on delete to u do instead nothing; create statistics together on a, b from t; comment on table u is 'mine'; \
             create publication everybody for table t",
        )
        .await;
    let (_, lines) = world.run().await;
    let told = "not on the new copy, for the source does not have it: check constraint small of public.t, comment on public.u, \
                public.t in publication everybody, rule quiet of public.u, statistics together of public.t, trigger mine of public.t";
    assert!(lines.has(told), "{:?}", lines.all());
    let (_, lines) = world.run().await;
    assert!(!lines.has("not on the new copy"), "{:?}", lines.all());
}

#[tokio::test]
async fn a_copy_is_not_taken_for_the_origin_of_what_never_was_one() {
    let mut world = World::new().await;
    world.on_source("create table t (a int); insert into t values (1)").await;
    world.run().await;
    let other = world.cluster.create("precious").await;
    other.batch_execute("create table t (a text); insert into t values ('precious')").await.unwrap();
    world.config.source = world.config.target.clone();
    world.config.target = bullwork::postgres::Database::parse(&world.cluster.url("precious")).unwrap();
    let error = world.fail().await;
    assert!(error.contains("confused?") && error.contains("create schema bullwork"), "{error}");
    assert_eq!(other.query_one("select a from t", &[]).await.unwrap().get::<_, String>(0), "precious");
    other.batch_execute("create schema bullwork").await.unwrap();
    world.run().await;
}

#[tokio::test]
async fn a_function_that_changes_to_a_type_of_the_new_copy_changes_with_the_switch() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source("create function f() returns int language sql as 'select 1'; create table t (id int)").await;
    world.run().await;
    world.on_source("drop function f(); create type fresh as enum ('new'); create function f() returns fresh language sql as $$select 'new'::fresh$$").await;
    let (summary, lines) = world.run().await;
    assert_eq!((summary.left_out, world.text("select f()::text").await), (vec![], "new".to_owned()), "{:?}", lines.all());
    assert!(!lines.has("left out function"), "{:?}", lines.all());
}

#[tokio::test]
async fn base_types_and_statistics_beside_other_tables_change_places_night_after_night() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world
        .on_source(
            "create schema kinds; create type kinds.whole; \
             create function kinds.whole_in(cstring) returns kinds.whole language internal immutable strict as 'int4in'; \
             create function kinds.whole_out(kinds.whole) returns cstring language internal immutable strict as 'int4out'; \
             create type kinds.whole (input = kinds.whole_in, output = kinds.whole_out, like = int4); \
             create schema figures; create table t (id int primary key, a int, b int, c kinds.whole, d kinds.whole[]); \
             create statistics figures.a_b on a, b from t; \
             insert into t select n, n % 7, n % 7, n::text::kinds.whole, null from generate_series(1, 100) n",
        )
        .await;
    for day in 1..=3 {
        let (summary, lines) = world.run().await;
        assert_eq!((summary.left_out, summary.broken), (vec![], vec![]), "day {day}");
        assert!(lines.has(&format!("generation {} serves", day + 1)), "{:?}", lines.all());
        assert_eq!(world.text("select sum(c::text::int)::text from t").await, "5050");
    }
    // Kept generations would be compared as well.
    world.config.swap = world.config.swap.map(|swap| Swap { generations: 0, ..swap });
    world.run().await;
    assert_same_definitions(&world).await;
}

#[tokio::test]
async fn schemas_that_only_look_like_ours_are_somebodys_own() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 0, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.on_source("create schema bullwork_new_here; create table bullwork_new_here.t (id int); create table bullwork_new_public (id int)").await;
    world.on_target("create schema bullwork_new_x; create table bullwork_new_x.precious as select 1 as a; create schema bullwork_old1_x; create table bullwork_old1_x.precious as select 1 as a").await;
    for _ in 0..3 {
        let (summary, _) = world.run().await;
        assert_eq!(summary.left_out, ["schema bullwork_new_here"]);
    }
    assert_eq!(world.text("select count(*)::text from bullwork_new_x.precious, bullwork_old1_x.precious").await, "1");
    world.on_target("create schema bullwork_new_second; create table bullwork_new_second.precious as select 1 as a").await;
    let error = world.fail().await;
    assert!(error.contains("a schema `bullwork_new_second` that no run of ours made") && error.contains("rename it"), "{error}");
    assert_eq!(world.text("select count(*)::text from bullwork_new_second.precious").await, "1");
    world.on_target("alter schema bullwork_new_second rename to elsewhere").await;
    world.run().await;
}

#[tokio::test]
async fn generations_of_schemas_with_odd_names_go_in_their_time() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 0, resume: Resume::Consistent });
    world.on_source("create schema \"q\"\"q\"; create table \"q\"\"q\".a (id int primary key, d text default 'x', check (d <> 'y')); create schema \"p%_\\\"; create table \"p%_\\\".b (id int primary key)").await;
    for _ in 0..3 {
        let (_, lines) = world.run().await;
        assert!(!lines.has("is kept, because"), "{:?}", lines.all());
    }
    let left = "select string_agg(nspname::text, ' ') from pg_namespace where starts_with(nspname, 'bullwork_')";
    assert_eq!(world.text(left).await, "");
}

#[tokio::test]
async fn a_target_without_an_earlier_copy_says_so() {
    let world = World::new().await;
    let target = bullwork::postgres::Database::parse(&world.cluster.url("to")).unwrap();
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), None);
    let error = full::rollback(&run, &target).await.unwrap_err().to_string();
    assert!(error.contains("no full replication has run there"), "{error}");
    world.on_source(SOURCE).await;
    world.run().await;
    let error = full::rollback(&run, &target).await.unwrap_err().to_string();
    assert!(error.contains("no earlier generation; REPLICATION_GENERATIONS"), "{error}");
}

#[tokio::test]
async fn a_generation_that_somebody_needs_is_kept_and_told() {
    let mut world = World::new().await;
    world.config.swap = Some(Swap { patience: Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source(SOURCE).await;
    world.run().await;
    next_day(&world, 2).await;
    world.run().await;
    let old = world.text("select stand_in from bullwork.generation_schema where real = 'public'").await;
    world.on_target(&format!("create view history as select max(day) as day from {old}.a")).await;
    next_day(&world, 3).await;
    let (_, lines) = world.run().await;
    assert!(lines.has("is kept, because other objects need it: public.history"), "{:?}", lines.all());
    assert_eq!(world.text("select day::text from history").await, "1");
    world.on_target("drop view history").await;
    world.run().await;
    assert_eq!(world.text("select count(*)::text from bullwork.generation").await, "2");
}

#[tokio::test]
async fn others_objects_and_values_that_name_objects_are_replaced_in_place_and_told() {
    let world = World::new().await;
    world.on_source("create table a (id int); insert into a values (1)").await;
    world.run().await;
    world.on_source("create table named (t regclass); insert into named values ('a')").await;
    let (_, lines) = world.run().await;
    assert!(lines.has("replacing in place, not beside the copy that serves: table `named` has a column"), "{:?}", lines.all());
    assert_eq!(world.text("select t::text from named where t = 'a'::regclass").await, "a");
    eventually("nothing is left of earlier copies", Duration::from_secs(1), async || {
        world.text("select count(*)::text from bullwork.generation").await == "0"
    })
    .await;
}
