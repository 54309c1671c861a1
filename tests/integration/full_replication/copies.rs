//! What arrives on the target.

use super::{World, text};

/// Everything awkward that a source may hold.
pub(super) const AWKWARD: &str = r#"
create extension citext;
create extension pg_trgm;
create schema "Other-Schema";
create operator === (leftarg = int, rightarg = int, function = int4eq);
create collation "my C" from "C";
create text search configuration plain (copy = pg_catalog.simple);
create type mood as enum ('sad', 'ok', 'so"so', 'happy');
create domain email as text check (value ~ '@');
create domain moods as mood[];
create type pair as (a int, b text);
create type span as range (subtype = int8);
create function double(int) returns int language sql immutable as 'select $1 * 2';
create function double(text) returns text language sql immutable as 'select $1 || $1';
create function later(n int) returns bigint language sql stable begin atomic select 1::bigint; end;
create procedure nothing() language plpgsql as $$ begin null; end $$;
create aggregate total(int) (sfunc = int4pl, stype = int, initcond = '0');
create aggregate everything(*) (sfunc = int8inc, stype = int8, initcond = '0');
create function mood_rank(mood) returns int language sql immutable as $$ select array_position(enum_range(null::public.mood), $1) $$;
create cast (mood as int) with function mood_rank(mood);
create sequence odd start 7 increment 5;
select nextval('odd'), nextval('odd');
create sequence untouched start 100;

create table users (id bigint generated always as identity primary key, name text not null, "createdAt" timestamptz not null default now(),
  mood mood default 'ok', mail email, parent bigint references users, doubled int generated always as (3 * 2) stored);
insert into users (name, "createdAt", mood, mail, parent)
  select E'u\t\\N\n' || g, '2024-01-01'::timestamptz + g * interval '1 hour', (array['sad','ok','so"so','happy'])[1 + g % 4]::mood, 'a@b' || g,
         case when g > 10 then g - 10 end from generate_series(1, 300) g;
create table "organization-learners" (id serial primary key, "userId" bigint references users(id), label varchar(20));
insert into "organization-learners" ("userId", label) select g, 'é' || g from generate_series(1, 100) g;
create table "UpperCase" (id int primary key, x text);
insert into "UpperCase" values (1, 'a'), (2, null);
create table "we""ird.na*me" (id int, "co""l*" text, constraint "pk of it" primary key (id));
insert into "we""ird.na*me" values (1, '\.'), (2, E'\\\\');
create table "Other-Schema".notes (id uuid primary key, body jsonb, raw bytea, net inet, every interval, day date, price numeric(12,4), xs int[][], t time);
insert into "Other-Schema".notes select md5(g::text)::uuid, jsonb_build_object('k', g, 'long', repeat('x', g * 30)), decode(md5(g::text), 'hex'),
  ('10.0.0.' || g)::inet, g * interval '1 day 2 s', date '2020-01-01' + g, g / 7.0, array[[g, g], [1, null]], '10:00' from generate_series(1, 200) g;
create table "text-only" (id int primary key, moods mood[], dm moods, p pair, c regclass, ps pair[], s span);
insert into "text-only" values (1, '{sad,"so\"so"}', '{ok}', '(1,"x, y")', 'users', array['(1,a)'::pair], '[1,5)'), (2, null, null, null, null, null, null);
create table folded (id citext primary key, many citext[], c text collate "my C");
insert into folded values ('Aa', '{x,Y}', 'c'), ('b', null, null);
create index folded_c on folded using gin (c gin_trgm_ops);
create table empty (id int);
create table nothing ();
insert into nothing default values;
insert into nothing default values;
create table measured (at date not null, v int, primary key (at, v)) partition by range (at);
create table measured_2023 partition of measured for values from ('2023-01-01') to ('2024-01-01');
create table "measured-rest" partition of measured default;
create index measured_v on measured (v);
insert into measured select date '2023-06-01' + g, g from generate_series(1, 400) g;
create table animal (id int primary key, name text);
create table dog (bark text) inherits (animal);
insert into animal values (1, 'cat');
insert into dog values (2, 'rex', 'wuff');
create table a (id int primary key, b int);
create table b (id int primary key, a int references a deferrable initially deferred);
insert into a values (1, 1); insert into b values (1, 1);
alter table a add constraint a_b foreign key (b) references b;
comment on constraint a_b on a is 'cyclic';
comment on table users is 'people''s "table"';
comment on column users.name is E'a\\b';
comment on type mood is 'a mood';
comment on function double(int) is 'twice';
comment on index measured_v is 'partitioned index';

create unique index users_mail on users (lower(mail::text)) where mood <> 'sad';
create index "Other-Schema-notes" on "Other-Schema".notes using gin (body jsonb_path_ops) with (fastupdate = off);
create unique index users_name on users (name) include (mood);
alter table users cluster on users_name;
alter table users replica identity using index users_name;
alter table "UpperCase" add constraint upper_unique unique (x) deferrable;
create table booked (during int4range, exclude using gist (during with &&));
insert into booked values ('[1,3)'), ('[3,9)');
create statistics users_stats (dependencies) on name, mood from users;
create view lower_view as select id, double(id::int) as twice, mood from users;
create view "upper-view" as select * from lower_view where twice > 10;
create view grouped as select u.id, u.name, count(*) from users u join "organization-learners" o on o."userId" = u.id group by u.id;
create materialized view summary as select mood, count(*) as n from users group by mood;
create unique index summary_mood on summary (mood);
create materialized view above as select sum(n) as n from summary;
create materialized view never as select 1 as x with no data;
create function touched() returns trigger language plpgsql as $$ begin new.name := new.name || '!'; return new; end $$;
create trigger touch before insert or update on users for each row execute function touched();
create rule quiet as on delete to "UpperCase" do instead nothing;
alter table "UpperCase" enable row level security;
create policy everyone on "UpperCase" using (id > 0);
comment on trigger touch on users is 'trigger';
"#;

/// What the definitions of a database are, in words that do not name oids.
const DEFINITIONS: &str = r#"
select string_agg(line, E'\n' order by line) from (
  select concat('column ', a.attrelid::regclass, '.', a.attname, ' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated
        , coalesce(pg_get_expr(d.adbin, d.adrelid), ''), coalesce(col_description(a.attrelid, a.attnum), '')) as line
    from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where c.relkind in ('r','p','v','m') and c.oid >= 16384 and a.attnum > 0 and not a.attisdropped and c.relnamespace not in (select oid from pg_namespace where nspname = 'bullwork')
  union all
  select concat('relation ', c.oid::regclass, c.relkind, c.relreplident, c.relrowsecurity, coalesce(obj_description(c.oid, 'pg_class'), ''))
    from pg_class c where c.relkind in ('r','p','v','m','S','i','I') and c.oid >= 16384 and c.relnamespace not in (select oid from pg_namespace where nspname in ('bullwork', 'pg_toast'))
  union all
  select concat('index ', pg_get_indexdef(indexrelid), indisclustered, indisvalid) from pg_index where indexrelid >= 16384 and indrelid not in (select oid from pg_class where relnamespace in (select oid from pg_namespace where nspname in ('bullwork', 'pg_toast')))
  union all
  select concat('constraint ', conname, ' ', coalesce(conrelid::regclass::text, ''), pg_get_constraintdef(oid), convalidated, coalesce(obj_description(oid, 'pg_constraint'), ''))
    from pg_constraint where oid >= 16384 and connamespace not in (select oid from pg_namespace where nspname = 'bullwork')
  union all
  select concat('view ', c.oid::regclass, pg_get_viewdef(c.oid), c.relispopulated) from pg_class c where relkind in ('v','m') and oid >= 16384
  union all
  select concat('function ', p.oid::regprocedure, p.prosrc, coalesce(obj_description(p.oid, 'pg_proc'), '')) from pg_proc p where oid >= 16384
  union all
  select concat('trigger ', pg_get_triggerdef(oid), coalesce(obj_description(oid, 'pg_trigger'), '')) from pg_trigger where not tgisinternal and oid >= 16384
  union all
  select concat('rule ', pg_get_ruledef(oid)) from pg_rewrite where rulename <> '_RETURN' and oid >= 16384
  union all
  select concat('policy ', polname, pg_get_expr(polqual, polrelid)) from pg_policy
  union all
  select concat('statistics ', pg_get_statisticsobjdef(oid)) from pg_statistic_ext
  union all
  select concat('enum ', enumtypid::regtype, ' ', enumlabel, row_number() over (partition by enumtypid order by enumsortorder)) from pg_enum
  union all
  select concat('type ', oid::regtype, typtype, coalesce(obj_description(oid, 'pg_type'), '')) from pg_type where typtype in ('e','d','r') and oid >= 16384
  union all
  select concat('cast ', castsource::regtype, casttarget::regtype, castfunc::regprocedure) from pg_cast where oid >= 16384 and castfunc::regprocedure::text !~ 'citext'
  union all
  select concat('operator ', oprname, oprcode) from pg_operator where oid >= 16384
  union all
  select concat('collation ', collname) from pg_collation where oid >= 16384
  union all
  select concat('configuration ', cfgname) from pg_ts_config where oid >= 16384
  union all
  select concat('extension ', extname) from pg_extension
  union all
  select concat('sequence ', format('%I.%I', schemaname, sequencename), ' ', coalesce(last_value::text, 'none'), increment_by) from pg_sequences where schemaname <> 'bullwork'
) lines where line !~ 'schooling-registrations|_createdAt_idx'
"#;

pub(super) async fn assert_same_definitions(world: &World) {
    let (wanted, found) = (text(&world.source, DEFINITIONS).await, world.text(DEFINITIONS).await);
    let (wanted, found): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), found.lines().collect());
    let missing: Vec<_> = wanted.iter().filter(|l| !found.contains(l)).collect();
    let strange: Vec<_> = found.iter().filter(|l| !wanted.contains(l)).collect();
    assert!(missing.is_empty() && strange.is_empty(), "missing {missing:#?}, strange {strange:#?}");
}

#[tokio::test]
async fn everything_of_the_source_arrives_and_a_second_day_changes_nothing() {
    let world = World::new().await;
    world.on_source(AWKWARD).await;
    for day in 1..=3 {
        let (summary, _) = world.run().await;
        assert_eq!(summary.left_out, Vec::<String>::new(), "day {day}");
        assert_eq!(summary.broken, Vec::<String>::new(), "day {day}");
        assert!(world.assert_same_rows(&[]).await > 15);
        assert_same_definitions(&world).await;
        world.on_source("insert into users (name, mail) values ('grown' || now(), 'x@' || clock_timestamp()); refresh materialized view summary; refresh materialized view above").await;
    }
}

#[tokio::test]
async fn ordinary_roles_suffice_on_both_sides() {
    let mut world = World::new().await;
    world.on_source(AWKWARD).await;
    world
        .on_target("create role reader login password 'reader-password'; create role writer login password 'writer-password'; alter database \"to\" owner to writer; create schema \"Other-Schema\" authorization writer")
        .await;
    world.on_source("grant pg_read_all_data to reader").await;
    let login = |url: String, role: &str| {
        bullwork::postgres::Database::parse(&url.replace("owner:correct%20horse%20battery", &format!("{role}:{role}-password")))
            .unwrap()
    };
    world.config.source = login(world.cluster.url("from"), "reader");
    world.config.target = login(world.cluster.url("to"), "writer");
    // Row-level security would hide rows from an ordinary reader; then the run fails rather than copy a part.
    let error = world.fail().await;
    assert!(error.contains("may not read \"public\".\"UpperCase\" whole") && error.ends_with("target untouched"), "{error}");
    world.on_source("alter table \"UpperCase\" disable row level security").await;
    for _ in 0..2 {
        let (summary, _) = world.run().await;
        assert_eq!((summary.left_out, summary.broken), (vec![], vec![]));
        world.assert_same_rows(&[]).await;
    }
}

#[tokio::test]
async fn all_tables_are_of_one_moment_while_the_source_is_written() {
    let world = World::new().await;
    world.on_source("create table a (id int, n int); create table b (id int, n int); insert into a select g, 100 from generate_series(1, 2000) g; insert into b select g, 0 from generate_series(1, 2000) g").await;
    let writer = world.cluster.client("from").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = async {
        let mut id = 0;
        while !stop.is_cancelled() {
            id = id % 2000 + 1;
            let sql = format!("begin; update a set n = n - 1 where id = {id}; update b set n = n + 1 where id = {id}; commit");
            writer.batch_execute(&sql).await.unwrap();
        }
    };
    let running = async {
        for _ in 0..3 {
            world.run().await;
            let sum = "select (select sum(n) from a) + (select sum(n) from b)";
            assert_eq!(world.text(&format!("select ({sum})::text")).await, "200000");
        }
        stop.cancel();
    };
    tokio::join!(writing, running);
}

#[tokio::test]
async fn the_contracts_lines_come_in_order_and_items_carry_fields() {
    let mut world = World::new().await;
    world
        .on_source(
            "create table users (id int primary key, \"createdAt\" timestamptz); insert into users select g, now() from generate_series(1, 7) g;
             create table answers (id serial primary key, \"challengeId\" text, u int references users); create index some_index on answers (u);
             create table \"knowledge-elements\" (\"createdAt\" timestamptz); create table \"knowledge-element-snapshots\" (\"snappedAt\" timestamptz);
             create table \"organization-learners\" (id int)",
        )
        .await;
    let (summary, lines) = world.run().await;
    let wanted = [
        "Start import and enrichment",
        "Import data from API database",
        "Start create Backup",
        "End create Backup",
        "Start drop Objects AndRestoreBackup",
        "End drop Objects AndRestoreBackup",
        "Start restore Backup",
        "Start restore",
        "Restore done",
        "End restore Backup",
        "Start create view",
        "CREATE VIEW \"schooling-registrations\" IF TABLE NOT EXISTS - Started",
        "CREATE VIEW \"schooling-registrations\" IF TABLE NOT EXISTS - Ended",
        "End create view",
        "Enrich imported data",
        "enrichment.add - Started",
        "CREATE INDEX \"knowledge-elements_createdAt_idx\" - Started",
        "CREATE INDEX \"knowledge-elements_createdAt_idx\" - Ended",
        "CREATE INDEX \"knowledge-element-snapshots_snappedAt_idx\" - Started",
        "CREATE INDEX \"knowledge-element-snapshots_snappedAt_idx\" - Ended",
        "CREATE INDEX \"answers_challengeId_idx\" - Started",
        "CREATE INDEX \"answers_challengeId_idx\" - Ended",
        "CREATE INDEX \"users_createdAt_idx\" - Started",
        "CREATE INDEX \"users_createdAt_idx\" - Ended",
        "enrichment.add - Ended",
    ];
    let said: Vec<String> = lines.all().into_iter().filter(|l| wanted.contains(&l.as_str())).collect();
    assert_eq!(said, wanted);
    let records = lines.records.lock().unwrap().clone();
    let item = |kind: &str, name: &str| {
        let found = records.iter().find(|r| r.fields.get("item_kind").is_some_and(|k| k == kind) && r.fields["item"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}")).fields.clone()
    };
    let data = item("TABLE DATA", "users");
    assert_eq!(data["rows"], 7);
    assert!(data["bytes"].as_u64().unwrap() > 0 && data["duration_ms"].is_u64());
    for (kind, name) in [
        ("INDEX", "answers some_index"),
        ("CONSTRAINT", "answers answers_pkey"),
        ("FK CONSTRAINT", "answers answers_u_fkey"),
        ("SEQUENCE", "1 sequences"),
    ] {
        assert!(item(kind, name)["duration_ms"].is_u64());
    }
    assert_eq!((summary.tables, summary.rows), (5, 7));
    let last = lines.progress.lock().unwrap().last().unwrap().clone();
    assert_eq!((last.done, last.total, last.rows), (5, 5, 7));
    assert_eq!(
        world.text("select pg_get_indexdef('\"users_createdAt_idx\"'::regclass)").await,
        "CREATE INDEX \"users_createdAt_idx\" ON public.users USING btree ((((\"createdAt\" AT TIME ZONE 'UTC+1'::text))::date) DESC)"
    );
    let analysed =
        "select count(*)::text from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace and reltuples >= 0";
    assert_eq!(world.text(analysed).await, "5", "every table has statistics");

    // The source has an index of that name, and a table of the view's name; one table is kept.
    world.on_source("create index \"users_createdAt_idx\" on users (id); create table \"schooling-registrations\" (x int)").await;
    world.keep(["answers"]);
    let (_, lines) = world.run().await;
    assert!(lines.has("no index \"users_createdAt_idx\": something of that name exists already"), "{:?}", lines.all());
    assert!(lines.has("no index \"answers_challengeId_idx\": table `answers` is kept"), "{:?}", lines.all());
    assert!(lines.has("no view `schooling-registrations`: schema `public` has something of that name"), "{:?}", lines.all());
    assert_eq!(world.text("select relkind::text from pg_class where relname = 'schooling-registrations'").await, "r");
    // And back.
    world
        .on_source(
            "drop table \"schooling-registrations\"; drop table \"knowledge-elements\"; drop table \"organization-learners\"",
        )
        .await;
    let (_, lines) = world.run().await;
    assert!(
        lines.has("no index \"knowledge-elements_createdAt_idx\": table `knowledge-elements` does not exist"),
        "{:?}",
        lines.all()
    );
    assert!(lines.has("no view `schooling-registrations`: table `organization-learners` does not exist"), "{:?}", lines.all());
    assert_eq!(world.text("select count(*)::text from pg_class where relname = 'schooling-registrations'").await, "0");
}

#[tokio::test]
async fn what_another_system_left_is_replaced_by_name() {
    let world = World::new().await;
    world.on_source(AWKWARD).await;
    // The same objects, older, with a compatibility view, in a warehouse that we never wrote to.
    world.on_target(AWKWARD).await;
    world.on_target("create view \"schooling-registrations\" as select * from \"organization-learners\"; delete from users where id > 290; create view own as select id from users").await;
    world.on_source("alter table \"organization-learners\" add column more text default 'm'").await;
    for _ in 0..2 {
        let (summary, lines) = world.run().await;
        assert_eq!((summary.left_out, summary.broken), (vec![], vec![]));
        world.assert_same_rows(&[]).await;
        assert!(lines.has("CREATE VIEW \"schooling-registrations\" IF TABLE NOT EXISTS - Ended"));
        assert_eq!(world.text("select more from \"schooling-registrations\" limit 1").await, "m");
        assert_eq!(world.text("select count(*)::text from own").await, "300");
    }
}
