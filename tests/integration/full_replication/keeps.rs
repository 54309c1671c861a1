//! What a full replication must not touch, and what it must make again.

use bullwork::replication::settings::{TableMode, TableModes};

use super::{World, fingerprints, text};

/// Rows, columns, indexes, keys, triggers and privileges of one table, in words.
async fn portrait(world: &World, table: &str) -> String {
    let sql = format!(
        "select concat_ws(E'\\n', '{table}'::regclass::oid::text,
           (select count(*) || md5(coalesce(string_agg(t::text, ',' order by t::text), '')) from {table} t),
           (select string_agg(concat(attname, atttypid::regtype, attnotnull), ',' order by attnum) from pg_attribute where attrelid = '{table}'::regclass and attnum > 0),
           (select string_agg(pg_get_indexdef(indexrelid), ',' order by indexrelid) from pg_index where indrelid = '{table}'::regclass),
           (select string_agg(conname || pg_get_constraintdef(oid), ',' order by conname) from pg_constraint where conrelid = '{table}'::regclass),
           (select string_agg(pg_get_triggerdef(oid), ',' order by oid) from pg_trigger where tgrelid = '{table}'::regclass and not tgisinternal),
           (select relacl::text from pg_class where oid = '{table}'::regclass), obj_description('{table}'::regclass, 'pg_class'))"
    );
    world.text(&sql).await
}

#[tokio::test]
async fn kept_tables_keep_rows_indexes_keys_enums_sequences_and_views() {
    let mut world = World::new().await;
    let common = "create type mood as enum ('sad', 'happy');
        create function double(int) returns int language sql immutable as 'select $1 * 2';
        create table users (id int primary key, name text);
        create table answers (id serial primary key, mood mood, \"user\" int references users, value int default double(4), check (double(id) > 0));
        create index answers_mine on answers (double(value));
        insert into users values (1, 'a'); insert into answers (mood, \"user\") values ('sad', 1);
        create view moods as select mood, count(*) from answers group by mood;";
    world.on_source(common).await;
    world.on_target(common).await;
    world
        .on_source(
            "alter type mood add value 'so so' after 'sad'; alter type mood add value 'first' before 'sad'; insert into users values (2, 'b');",
        )
        .await;
    world.on_source("insert into answers (mood, \"user\") values ('so so', 2); create table other (m mood default 'so so'); insert into other values ('happy')").await;
    world.on_source("create or replace function double(int) returns int language sql immutable as 'select $1 + $1'").await;
    world
        .on_target(
            "insert into answers (mood, \"user\") values ('happy', 1), ('sad', 1); create view mine as select id from answers;
             create function audit() returns trigger language plpgsql as 'begin return new; end';
             create trigger mine after insert on answers for each row execute function audit();
             grant select on answers to public; comment on table answers is 'kept'",
        )
        .await;
    world.keep(["answers"]);
    let before = portrait(&world, "answers").await;
    for day in 1..=3 {
        let (summary, lines) = world.run().await;
        assert_eq!(summary.broken, Vec::<String>::new());
        assert_eq!(portrait(&world, "answers").await, before, "day {day}");
        assert_eq!(world.text("select count(*)::text from mine").await, "3");
        assert_eq!(world.text("select count(*)::text from moods").await, "2");
        assert_eq!(lines.has("added label `so so`"), day == 1);
        assert_eq!(world.text("select enum_range(null::mood)::text").await, "{first,sad,\"so so\",happy}");
        assert_eq!(world.text("select prosrc from pg_proc where proname = 'double'").await, "select $1 + $1");
        assert_eq!(world.assert_same_rows(&["public.answers"]).await, 2);
    }
    world.on_target("insert into answers (mood, \"user\") values ('first', 2)").await;
    let error = world.target.batch_execute("insert into answers (mood, \"user\") values ('first', 99)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23503", "the kept table's own key is back");
}

#[tokio::test]
async fn a_kept_tables_key_that_no_longer_holds_comes_back_unvalidated_until_it_holds() {
    let mut world = World::new().await;
    world.on_source("create table users (id int primary key); insert into users values (1); create table answers (id int)").await;
    world.on_target("create table users (id int primary key); insert into users values (1), (2); create table answers (id int, u int references users); insert into answers values (1, 2)").await;
    world.keep(["answers"]);
    for foreign_keys in [true, false] {
        world.config.foreign_keys = foreign_keys;
        let (summary, lines) = world.run().await;
        assert!(lines.has("violates foreign key constraint"), "{:?}", lines.all());
        assert_eq!(summary.broken.len(), 1, "{:?}", summary.broken);
        assert_eq!(
            world.text("select conname || convalidated from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace").await,
            "answers_u_fkeyfalse"
        );
    }
    world.on_source("insert into users values (2)").await;
    let (summary, _) = world.run().await;
    assert!(summary.broken.is_empty(), "{:?}", summary.broken);
    assert_eq!(
        world
            .text(
                "select conname || convalidated from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace"
            )
            .await,
        "answers_u_fkeytrue"
    );
}

#[tokio::test]
async fn excluded_tables_are_not_created_and_what_needs_them_is_told() {
    let mut world = World::new().await;
    world
        .on_source(
            "create table answers (id serial primary key); create table \"answers-corrected\" (id int primary key, a int references answers);
             create index answers_corrected_id_index on \"answers-corrected\" (a);
             create table tags (id serial primary key); create table tags_categories (id serial primary key, \"x  y\" int);
             create index \"two  spaces\" on tags_categories (\"x  y\");
             insert into answers default values; insert into \"answers-corrected\" values (1, 1); insert into tags_categories default values;
             create view over_answers as select id from answers; create view over_view as select id from over_answers;
             create function counted() returns bigint language sql stable begin atomic select count(*) from answers; end;
             comment on view over_answers is 'gone too';",
        )
        .await;
    world.keep(["answers", "tags"]);
    for _ in 0..2 {
        let (summary, lines) = world.run().await;
        let mut left_out = summary.left_out.clone();
        left_out.sort();
        assert_eq!(
            left_out,
            [
                "foreign key answers-corrected answers-corrected_a_fkey",
                "function counted()",
                "view over_answers",
                "view over_view"
            ]
        );
        assert!(lines.has("left out view over_answers: needs table `answers`"), "{:?}", lines.all());
        let relations = "select string_agg(relname, ' ' order by relname) from pg_class where oid >= 16384 and relnamespace = 'public'::regnamespace";
        assert_eq!(
            world.text(relations).await,
            "answers-corrected answers-corrected_pkey answers_corrected_id_index tags_categories tags_categories_id_seq tags_categories_pkey two  spaces"
        );
    }
}

#[tokio::test]
async fn names_are_exact_however_they_look() {
    let mut world = World::new().await;
    world
        .on_source(
            r#"create table "UpperCase" (id int); create table uppercase (id int); create table "a*" (id int); create table abc (id int);
               create schema "s.t"; create table "s.t".x (id int); create table "we""ird.na*me" (id int); create table "weird" (id int);
               create schema other; create table other.abc (id int);
               insert into "UpperCase" values (1); insert into uppercase values (1); insert into "a*" values (1); insert into abc values (1);
               insert into "s.t".x values (1); insert into "we""ird.na*me" values (1); insert into "weird" values (1); insert into other.abc values (1)"#,
        )
        .await;
    world.keep(["UpperCase", "a*", "s.t.x", "we\"ird.na*me", "other.abc"]);
    world.run().await;
    let tables: Vec<String> = fingerprints(&world.target).await.into_iter().map(|(t, _)| t).collect();
    assert_eq!(tables, ["public.abc", "public.uppercase", "public.weird"]);
}

#[tokio::test]
async fn views_of_other_people_survive_with_comments_grants_and_indexes() {
    let world = World::new().await;
    world.on_source("create table users (id int primary key, name text); insert into users values (1, 'a')").await;
    world.run().await;
    world
        .on_target(
            r#"create role reader; create role "odd Role";
               create view "my View" ("Id", who) with (security_barrier = true) as select id, name from users;
               create view upper_view as select "Id" from "my View";
               create materialized view stored as select count(*) as n from "my View"; create unique index stored_n on stored (n);
               create materialized view hollow as select id from users with no data;
               create function names() returns setof users language sql stable as 'select * from public.users';
               create function counted() returns bigint language sql stable begin atomic select count(*) from users; end;
               revoke execute on function counted() from public; grant execute on function counted() to reader;
               comment on view "my View" is 'it''s mine'; comment on column "my View".who is 'who'; comment on function counted() is 'counts';
               grant select on "my View" to reader with grant option; grant select ("Id") on upper_view to "odd Role";
               grant select, insert on users to reader; alter view upper_view owner to reader;
               create table own (u int references users, note text); insert into own values (1, 'x');"#,
        )
        .await;
    let everything = "select string_agg(s, E'\\n' order by s) from (
        select concat(c.oid::regclass, c.relkind, case when relkind in ('v','m') then pg_get_viewdef(c.oid) end, c.reloptions, c.relacl, c.relispopulated,
                      c.relowner::regrole, obj_description(c.oid, 'pg_class'), (select string_agg(attname || coalesce(attacl::text, ''), ',' order by attnum) from pg_attribute where attrelid = c.oid and attnum > 0)) as s
          from pg_class c where relnamespace = 'public'::regnamespace
        union all select concat(p.oid::regprocedure, pg_get_functiondef(p.oid), p.proacl, obj_description(p.oid, 'pg_proc')) from pg_proc p where pronamespace = 'public'::regnamespace
        union all select concat(conname, pg_get_constraintdef(oid), convalidated) from pg_constraint where connamespace = 'public'::regnamespace) x";
    let before = world.text(everything).await;
    assert!(before.contains("odd Role"));
    world.on_source("insert into users values (2, 'b')").await;
    for _ in 0..2 {
        let (summary, lines) = world.run().await;
        assert_eq!(summary.broken, Vec::<String>::new());
        assert_eq!(world.text(everything).await, before);
        assert!(lines.has("made view public.upper_view again"), "{:?}", lines.all());
        assert!(lines.has("left alone, for the source does not have them: table public.own"), "{:?}", lines.all());
        assert_eq!(world.text("select n::text from stored").await, "2");
        assert_eq!(world.text("select count(*)::text from names()").await, "2");
        assert_eq!(world.text("select count(*)::text from bullwork.saved_object").await, "0");
    }
}

#[tokio::test]
async fn indexes_of_other_people_survive_and_the_sources_dropped_ones_do_not() {
    let world = World::new().await;
    world
        .on_source("create table users (id int primary key, a int, b int, \"createdAt\" timestamptz); create index by_a on users (a); create materialized view m as select a from users; create index m_a on m (a)")
        .await;
    world.run().await;
    world.on_target("create index \"my Index\" on users (b) where a > 0; create index mine_too on m ((a + 1))").await;
    world.on_source("drop index by_a").await;
    let indexes = "select string_agg(indexname::text, ', ' order by indexname) from pg_indexes where schemaname = 'public'";
    for _ in 0..2 {
        let (summary, _) = world.run().await;
        assert!(summary.broken.is_empty(), "{:?}", summary.broken);
        assert_eq!(world.text(indexes).await, "m_a, mine_too, my Index, users_createdAt_idx, users_pkey");
    }
    assert_eq!(world.text("select count(*)::text from bullwork.saved_object").await, "0");
}

#[tokio::test]
async fn a_view_that_no_longer_fits_is_told_and_comes_back_when_it_fits_again() {
    let world = World::new().await;
    world.on_source("create table users (id int primary key, name text)").await;
    world.run().await;
    world.on_target("create view lower_v as select name from users; create view upper_v as select * from lower_v; create view fine as select id from users").await;
    world.on_source("alter table users rename column name to label").await;
    for _ in 0..2 {
        let (summary, lines) = world.run().await;
        assert_eq!(summary.broken.len(), 2, "{:?}", summary.broken);
        assert!(lines.has("could not make view public.lower_v: column users.name does not exist"), "{:?}", lines.all());
        assert_eq!(world.text("select string_agg(viewname::text, ' ') from pg_views where schemaname = 'public'").await, "fine");
    }
    world.on_source("alter table users rename column label to name").await;
    let (summary, _) = world.run().await;
    assert!(summary.broken.is_empty());
    assert_eq!(
        world.text("select string_agg(viewname::text, ' ' order by viewname) from pg_views where schemaname = 'public'").await,
        "fine lower_v upper_v"
    );
}

#[tokio::test]
async fn what_the_source_dropped_goes_and_what_was_never_ours_stays() {
    let world = World::new().await;
    world
        .on_source("create table a (id int); create table b (id int); create view v as select * from b; create type t as enum ('x'); create function f() returns int language sql as 'select 1'; create sequence s;")
        .await;
    world.on_target("create table a_friend (id int); insert into a_friend values (7); create function g() returns int language sql as 'select 1'").await;
    world.run().await;
    world.on_source("drop view v; drop table b; drop type t; drop function f(); drop sequence s;").await;
    let (_, lines) = world.run().await;
    assert!(
        lines.has("gone from the source, so dropped: sequence public.s, table public.b, type public.t, view public.v"),
        "{:?}",
        lines.all()
    );
    assert_eq!(world.text("select string_agg(relname::text, ' ' order by 1) from (select relname from pg_class where relnamespace = 'public'::regnamespace order by 1) x").await, "a a_friend");
    assert_eq!(
        world.text("select string_agg(proname::text, ' ') from pg_proc where pronamespace = 'public'::regnamespace").await,
        "g"
    );
    assert_eq!(world.text("select id::text from a_friend").await, "7");
}

#[tokio::test]
async fn functions_may_change_in_any_way() {
    let world = World::new().await;
    world
        .on_source("create schema other; create function other.f(int) returns int language sql as 'select 1'; create function f(a int) returns int language sql as 'select 1'; create table t (id int default f(1), x int default other.f(1))")
        .await;
    world.run().await;
    world.on_target("create extension pg_trgm; create table mine (id int default f(2))").await;
    world
        .on_source("alter table t alter id drop default; drop function f(int); create function f(b int, c int default 3) returns text language sql as 'select 2::text'; create or replace function other.f(int) returns int language sql as 'select 5'")
        .await;
    world.run().await;
    assert_eq!(world.text("select other.f(1)::text").await, "5");
    assert_eq!(world.text("select public.f(1, 2)").await, "2");
    // Somebody's default needs the old one, so it stays.
    assert_eq!(
        world.text("select count(*)::text from pg_proc where proname = 'f' and pronamespace = 'public'::regnamespace").await,
        "2"
    );
    assert_eq!(world.text("select count(*)::text from pg_extension where extname = 'pg_trgm'").await, "1");
    // Its result type changes: nobody needs it, so it is dropped and made.
    world
        .on_source(
            "drop table t; drop function other.f(int); create function other.f(int) returns text language sql as 'select ''t'''",
        )
        .await;
    let (summary, _) = world.run().await;
    assert!(summary.left_out.is_empty(), "{:?}", summary.left_out);
    assert_eq!(world.text("select other.f(1)").await, "t");
}

#[tokio::test]
async fn a_partitioned_table_is_kept_with_its_partitions() {
    let mut world = World::new().await;
    let common = "create table m (at date not null, v int) partition by range (at); create table m1 partition of m for values from ('2020-01-01') to ('2021-01-01');
                  create index on m (v); create table u (id int primary key)";
    world.on_source(common).await;
    world.on_target(common).await;
    world.on_target("create table m2 partition of m for values from ('2021-01-01') to ('2022-01-01'); insert into m values ('2020-02-02', 1), ('2021-02-02', 2)").await;
    world.on_source("insert into m values ('2020-03-03', 9); insert into u values (1)").await;
    world.keep(["m"]);
    world.run().await;
    assert_eq!(world.text("select string_agg(v::text, ' ' order by v) from m").await, "1 2");
    world.config.modes = TableModes::of([("m1", TableMode::None)]);
    let error = world.fail().await;
    assert!(
        error.contains("`m1`, which is a part of table `m`") && error.contains("target untouched: generation 2 of "),
        "{error}"
    );
}

#[tokio::test]
async fn foreign_keys_are_absent_when_off_with_all_rows_there_and_a_comment_on_one_does_no_harm() {
    let mut world = World::new().await;
    world
        .on_source("create table p (id int primary key); create table c (id int, p int constraint c_p references p); insert into p values (1); insert into c values (1, 1), (2, 1); comment on constraint c_p on c is 'told'")
        .await;
    world.config.foreign_keys = false;
    for _ in 0..2 {
        let (summary, _) = world.run().await;
        assert!(summary.left_out.is_empty() && summary.broken.is_empty());
        assert_eq!(
            world
                .text("select count(*)::text from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace")
                .await,
            "0"
        );
        assert_eq!(world.text("select count(*)::text from c").await, "2");
    }
    world.config.foreign_keys = true;
    world.run().await;
    assert_eq!(
        world.text("select obj_description(oid) || convalidated from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace").await,
        "toldtrue"
    );
}

#[tokio::test]
async fn the_first_night_over_the_demo_warehouse_keeps_what_is_its_own() {
    let mut world = World::new().await;
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    for (database, file) in [("from", "source/schema.sql"), ("from", "source/seed.sql"), ("to", "target/day0.sql")] {
        world.cluster.load(database, &data.join(file));
    }
    world.config.modes = TableModes::of([
        ("answers", TableMode::Incremental),
        ("knowledge-elements", TableMode::Incremental),
        ("AuditTrail", TableMode::None),
    ]);
    let kept = ["answers", "\"knowledge-elements\"", "\"AuditTrail\"", "\"warehouse-notes\""];
    let mut before = Vec::new();
    for table in kept {
        before.push(portrait(&world, table).await);
    }
    for day in 1..=2 {
        let (summary, lines) = world.run().await;
        assert_eq!(summary.left_out, Vec::<String>::new(), "{:#?}", lines.all());
        for (table, before) in kept.iter().zip(&before) {
            assert_eq!(&portrait(&world, table).await, before, "{table} on day {day}");
        }
        world
            .assert_same_rows(&[
                "public.answers",
                "public.\"knowledge-elements\"",
                "public.\"AuditTrail\"",
                "public.\"answers-per-day\"",
            ])
            .await;
        for view in [
            "analytics_users",
            "analytics_signups",
            "analytics_notes",
            "\"answers by result\"",
            "\"schooling-registrations\"",
            "\"answers-per-day\"",
        ] {
            assert_ne!(world.text(&format!("select count(*)::text from {view}")).await, "0", "{view}");
        }
        assert_eq!(
            world.text("select count(*)::text from \"schooling-registrations\"").await,
            text(&world.source, "select count(*)::text from \"organization-learners\"").await
        );
        assert_eq!(world.text("select obj_description('analytics_users'::regclass)").await, "used by the monthly report");
        // Rows that the incremental copy has not brought yet: the key is there, unvalidated.
        assert_eq!(
            world.text("select convalidated::text from pg_constraint where conname like 'answers-corrected%fkey'").await,
            "false"
        );
        assert!(lines.has("CREATE INDEX \"users_createdAt_idx\" - Ended"));
    }
}

#[tokio::test]
async fn what_does_not_fit_a_kept_table_is_left_out_and_the_rest_arrives() {
    let mut world = World::new().await;
    world
        .on_source(
            "create table answers (id int primary key, fresh text); create table t (id int primary key, answer int references answers);
             insert into answers values (1, 'x'); insert into t values (1, 1); create view over_id as select id from answers;
             create view over_fresh as select fresh from answers; create view over_view as select * from over_fresh;
             create materialized view stored as select count(*) as n from answers;",
        )
        .await;
    // An older kept table: no column `fresh`, no key to point to.
    world.on_target("create table answers (id int); insert into answers values (7), (8)").await;
    world.keep(["answers"]);
    for _ in 0..2 {
        let (mut summary, lines) = world.run().await;
        summary.left_out.sort();
        assert_eq!(summary.left_out, ["view over_fresh", "view over_view"]);
        assert_eq!(summary.broken, ["t t_answer_fkey"]);
        assert!(lines.has("left out view over_fresh: column answers.fresh does not exist"), "{:?}", lines.all());
        assert_eq!(world.text("select count(*)::text from over_id").await, "2");
        assert_eq!(world.text("select n::text from stored").await, "2");
        assert_eq!(world.assert_same_rows(&["public.answers", "public.stored"]).await, 1);
    }
}
