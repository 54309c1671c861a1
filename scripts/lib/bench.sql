-- A generated database in the shape of a learning platform: 22 tables, five of which hold most of
-- the bytes. :scale is a number; 1.0 gives about 1 GB with indexes. Every value follows from a row number.

\set ON_ERROR_STOP on
set synchronous_commit = off;
set maintenance_work_mem = '256MB';

create function pg_temp.rows(base numeric) returns integer language sql as $$ select greatest(10, (base * current_setting('bench.scale')::numeric)::integer) $$;
select set_config('bench.scale', :'scale', false) \g /dev/null

create type answer_result as enum ('ok', 'ko', 'aband', 'timedout', 'partially');

create table organizations (id serial, name text not null, type text not null, "externalId" text, credit numeric(12, 2), "createdAt" timestamptz not null);
insert into organizations (name, type, "externalId", credit, "createdAt")
select 'Organization ' || n, (array['SCO', 'SUP', 'PRO'])[n % 3 + 1], 'UAI' || n, n / 4.0, timestamptz '2024-01-01 00:00+00' + n * interval '11 minutes'
from generate_series(1, pg_temp.rows(5000)) n;

create table users (id serial, "firstName" text not null, "lastName" text not null, email text, lang char(2) not null, "lastIp" inet, preferences jsonb not null, "isAnonymous" boolean not null, "createdAt" timestamptz not null, "updatedAt" timestamptz not null);
insert into users ("firstName", "lastName", email, lang, "lastIp", preferences, "isAnonymous", "createdAt", "updatedAt")
select 'First' || n % 5000, 'Last' || n % 70000, 'user' || n || '@example.net', 'fr', ('10.' || n % 256 || '.' || n / 256 % 256 || '.1')::inet,
       jsonb_build_object('theme', n % 3, 'news', n % 2 = 0), n % 11 = 0, timestamptz '2024-01-01 00:00+00' + n * interval '3 minutes', timestamptz '2026-01-01 00:00+00'
from generate_series(1, pg_temp.rows(200000)) n;

create table "organization-learners" (id bigserial, "userId" integer, "organizationId" integer not null, "firstName" text not null, "lastName" text not null, division text, birthdate date, attributes jsonb);
insert into "organization-learners" ("userId", "organizationId", "firstName", "lastName", division, birthdate, attributes)
select n % u.c + 1, n % o.c + 1, 'First' || n % 5000, 'Last' || n % 70000, n % 6 || 'e' || n % 9, date '2008-01-01' + n % 3000, case when n % 4 = 0 then jsonb_build_object('INE', n) end
from generate_series(1, pg_temp.rows(180000)) n, (select count(*)::integer as c from users) u, (select count(*)::integer as c from organizations) o;

create table campaigns (id serial, name text not null, code text not null, "organizationId" integer not null, "targetTubes" text[], "createdAt" timestamptz not null);
insert into campaigns (name, code, "organizationId", "targetTubes", "createdAt")
select 'Campaign ' || n, 'C' || n, n % o.c + 1, array['tube' || n % 90, 'tube' || n % 91], timestamptz '2025-01-01 00:00+00' + n * interval '9 minutes'
from generate_series(1, pg_temp.rows(8000)) n, (select count(*)::integer as c from organizations) o;

create table "campaign-participations" (id bigserial, "campaignId" integer not null, "userId" integer not null, status text not null, "masteryRate" numeric(5, 2), "sharedAt" timestamptz);
insert into "campaign-participations" ("campaignId", "userId", status, "masteryRate", "sharedAt")
select n % c.c + 1, n % u.c + 1, 'SHARED', n % 100 / 100.0, timestamptz '2025-02-01 00:00+00' + n * interval '1 minute'
from generate_series(1, pg_temp.rows(250000)) n, (select count(*)::integer as c from campaigns) c, (select count(*)::integer as c from users) u;

create table assessments (id serial, "userId" integer not null, "participationId" bigint, type text not null, state text not null, "createdAt" timestamptz not null, "updatedAt" timestamptz not null);
insert into assessments ("userId", "participationId", type, state, "createdAt", "updatedAt")
select n % u.c + 1, n % p.c + 1, 'CAMPAIGN', 'completed', timestamptz '2025-01-01 00:00+00' + n * interval '1 minute', timestamptz '2026-01-01 00:00+00'
from generate_series(1, pg_temp.rows(300000)) n, (select count(*)::integer as c from users) u, (select count(*)::integer as c from "campaign-participations") p;

create table answers (id bigserial, "assessmentId" integer not null, "challengeId" text not null, value text, result answer_result, "resultDetails" text, "timeSpent" integer, "createdAt" timestamptz not null);
insert into answers ("assessmentId", "challengeId", value, result, "resultDetails", "timeSpent", "createdAt")
select n % a.c + 1, 'rec' || substr(md5((n % 3000)::text), 1, 14), 'answer ' || md5(n::text), (enum_range(null::answer_result))[n % 5 + 1],
       case when n % 3 = 0 then E'---\nstep: ' || n end, n % 240, timestamptz '2025-01-01 00:00+00' + n * interval '17 seconds'
from generate_series(1, pg_temp.rows(1800000)) n, (select count(*)::integer as c from assessments) a;

create table "knowledge-elements" (id bigserial, source text not null, status text not null, "userId" integer not null, "assessmentId" integer, "answerId" bigint, "skillId" text not null, "earnedPix" real not null, "createdAt" timestamptz not null);
insert into "knowledge-elements" (source, status, "userId", "assessmentId", "answerId", "skillId", "earnedPix", "createdAt")
select case when n % 3 = 0 then 'inferred' else 'direct' end, 'validated', n % u.c + 1, n % s.c + 1, n % a.c + 1, 'skill' || substr(md5((n % 900)::text), 1, 12), n % 9 / 7.0, timestamptz '2025-01-01 00:00+00' + n * interval '13 seconds'
from generate_series(1, pg_temp.rows(2400000)) n, (select count(*)::integer as c from users) u, (select count(*)::integer as c from assessments) s, (select count(*)::integer as c from answers) a;

create table "knowledge-element-snapshots" (id serial, "userId" integer not null, "snappedAt" timestamptz not null, snapshot jsonb not null);
insert into "knowledge-element-snapshots" ("userId", "snappedAt", snapshot)
select n % u.c + 1, timestamptz '2025-01-01 00:00+00' + n * interval '5 minutes',
       (select jsonb_agg(jsonb_build_object('skillId', 'skill' || md5((n + s)::text), 'earnedPix', s / 4.0, 'status', 'validated', 'assessmentId', n * s)) from generate_series(1, 24) s)
from generate_series(1, pg_temp.rows(45000)) n, (select count(*)::integer as c from users) u;

create table "certification-courses" (id serial, "userId" integer not null, "sessionId" integer, score double precision, "verificationCode" uuid, "createdAt" timestamptz not null);
insert into "certification-courses" ("userId", "sessionId", score, "verificationCode", "createdAt")
select n % u.c + 1, n % 500, n / 7.0, md5(n::text)::uuid, timestamptz '2025-06-01 00:00+00' + n * interval '10 minutes'
from generate_series(1, pg_temp.rows(60000)) n, (select count(*)::integer as c from users) u;

create table "stored-files" (id uuid not null, name text not null, content bytea not null);
insert into "stored-files" select md5(n::text)::uuid, 'file' || n, decode(repeat(md5(n::text), 60), 'hex') from generate_series(1, pg_temp.rows(20000)) n;

-- The small ones, of which such a database has many.
select format('create table %1$I (id serial, "userId" integer not null, label text not null, "createdAt" timestamptz not null);
insert into %1$I ("userId", label, "createdAt") select n %% (select count(*) from users)::integer + 1, %1$L || n, timestamptz ''2025-01-01 00:00+00'' + n * interval ''1 hour'' from generate_series(1, pg_temp.rows(%2$s)) n', name, base)
from (values ('badges', 400), ('badge-acquisitions', 60000), ('sessions', 4000), ('memberships', 15000), ('certification-candidates', 40000), ('feedbacks', 25000),
             ('stages', 900), ('tags', 60), ('target-profiles', 1200), ('trainings', 300), ('user-logins', 80000)) t (name, base)
\gexec

alter table users add primary key (id);
alter table organizations add primary key (id);
create unique index users_email on users (lower(email));
create index users_name on users ("lastName", "firstName");
create index users_preferences on users using gin (preferences);
alter table "organization-learners" add primary key (id);
create index on "organization-learners" ("userId");
create index on "organization-learners" ("organizationId", "lastName");
alter table campaigns add primary key (id), add unique (code);
alter table "campaign-participations" add primary key (id);
create index on "campaign-participations" ("campaignId", "userId");
alter table assessments add primary key (id);
create index on assessments ("userId");
create index on assessments ("participationId");
alter table answers add primary key (id);
create index on answers ("assessmentId");
alter table "knowledge-elements" add primary key (id);
create index on "knowledge-elements" ("userId");
create index on "knowledge-elements" ("answerId");
alter table "knowledge-element-snapshots" add primary key (id), add unique ("userId", "snappedAt");
alter table "certification-courses" add primary key (id), add unique ("verificationCode");
alter table "stored-files" add primary key (id);
select format('alter table %1$I add primary key (id), add foreign key ("userId") references users (id)', name)
from unnest(array['badges', 'badge-acquisitions', 'sessions', 'memberships', 'certification-candidates', 'feedbacks', 'stages', 'tags', 'target-profiles', 'trainings', 'user-logins']) name
\gexec
alter table "organization-learners" add foreign key ("userId") references users (id), add foreign key ("organizationId") references organizations (id);
alter table campaigns add foreign key ("organizationId") references organizations (id);
alter table "campaign-participations" add foreign key ("campaignId") references campaigns (id), add foreign key ("userId") references users (id);
alter table assessments add foreign key ("userId") references users (id), add foreign key ("participationId") references "campaign-participations" (id);
alter table answers add foreign key ("assessmentId") references assessments (id);
alter table "knowledge-elements" add foreign key ("userId") references users (id), add foreign key ("answerId") references answers (id);
alter table "knowledge-element-snapshots" add foreign key ("userId") references users (id);
alter table "certification-courses" add foreign key ("userId") references users (id);

vacuum analyze;
