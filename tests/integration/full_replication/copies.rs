//! What arrives on the target.

use super::{World, text};

/// Everything awkward that a source may hold.
pub(super) const AWKWARD: &str = r#"
create schema "Other-Schema";
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
  select concat('sequence ', format('%I.%I', schemaname, sequencename), ' ', coalesce(last_value::text, 'none'), increment_by) from pg_sequences where schemaname <> 'bullwork'
) lines where line !~ 'schooling-registrations|_createdAt_idx'
"#;

#[tokio::test]
async fn everything_of_the_source_arrives_and_a_second_day_changes_nothing() {
    let world = World::new().await;
    world.on_source(AWKWARD).await;
    for day in 1..=3 {
        let (summary, _) = world.run().await;
        assert_eq!(summary.left_out, Vec::<String>::new(), "day {day}");
        assert_eq!(summary.broken, Vec::<String>::new(), "day {day}");
        assert!(world.assert_same_rows(&[]).await > 15);
        let (wanted, found) = (text(&world.source, DEFINITIONS).await, world.text(DEFINITIONS).await);
        let (wanted, found): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), found.lines().collect());
        let missing: Vec<_> = wanted.iter().filter(|l| !found.contains(l)).collect();
        let strange: Vec<_> = found.iter().filter(|l| !wanted.contains(l)).collect();
        assert!(missing.is_empty() && strange.is_empty(), "day {day}: missing {missing:#?}, strange {strange:#?}");
        world.on_source("insert into users (name, mail) values ('grown' || now(), 'x@' || clock_timestamp()); refresh materialized view summary; refresh materialized view above").await;
    }
}
