-- The demo's production database: a learning platform in small, with every kind of object that
-- has ever broken a replication. Made for an empty database; seed.sql fills it.
-- Everything is synthetic. Works on PostgreSQL 12 and later.

\set ON_ERROR_STOP on
begin;

create schema billing;
comment on schema billing is 'a second schema, so that nobody takes "public" for granted';

-- Used by `answers`, which the demo copies incrementally: the target keeps its own older copy of it.
create type answer_result as enum ('ok', 'ko', 'aband', 'timedout', 'partially');
create type assessment_state as enum ('started', 'completed', 'aborted', 'ended by supervisor');
comment on type answer_result is 'verdict of the corrector';
create domain email_address as text check (value ~ '^[^@[:space:]]+@[^@[:space:]]+$');

-- Positions that only a copy of the sequence itself can carry over.
create sequence ticket_number_seq start 1000 increment 7 maxvalue 9999999 cycle;

create table organizations (
    id serial primary key,
    name text not null,
    type varchar(12) not null check (type in ('SCO', 'SUP', 'PRO')),
    "externalId" varchar(255),
    "parentOrganizationId" integer references organizations (id),
    credit numeric(12, 2) not null default 0,
    "createdAt" timestamptz not null default now()
);
create unique index "organizations_externalId_unique" on organizations (lower("externalId")) where "externalId" is not null;

create table users (
    id serial primary key,
    "firstName" varchar(255) not null,
    "lastName" varchar(255) not null,
    "fullName" text generated always as ("firstName" || ' ' || "lastName") stored,
    email email_address,
    lang char(2) not null default 'fr',
    "lastIp" inet,
    preferences jsonb not null default '{}',
    "isAnonymous" boolean not null default false,
    "createdAt" timestamptz not null default now(),
    "updatedAt" timestamptz not null default now()
);
create unique index users_email_lower on users (lower(email));
create index users_preferences_gin on users using gin (preferences jsonb_path_ops);
create index users_named on users ("lastName", "firstName") where not "isAnonymous";
comment on table users is 'people; one line
per account, "anonymous" ones included';
comment on column users.email is 'lower-cased by the application, it''s unique';

create table "organization-learners" (
    id bigint generated always as identity primary key,
    "userId" integer references users (id),
    "organizationId" integer not null references organizations (id),
    "firstName" text not null,
    "lastName" text not null,
    division text,
    birthdate date,
    "isDisabled" boolean not null default false,
    attributes jsonb
);
create unique index one_active_learner on "organization-learners" ("userId", "organizationId") where not "isDisabled";
comment on table "organization-learners" is 'was called schooling-registrations once';

create table campaigns (
    id serial primary key,
    name text not null,
    code varchar(9) not null unique,
    "organizationId" integer not null references organizations (id),
    "creatorId" integer not null references users (id),
    "targetTubes" text[] not null default '{}',
    grid integer[][],
    "archivedAt" timestamptz
);

create table "campaign-participations" (
    id bigserial primary key,
    "campaignId" integer not null references campaigns (id),
    "organizationLearnerId" bigint not null references "organization-learners" (id),
    status text not null default 'STARTED',
    "masteryRate" numeric(5, 2),
    "sharedAt" timestamptz,
    constraint "one participation at a time" unique ("campaignId", "organizationLearnerId")
);
create index on "campaign-participations" ("organizationLearnerId") include (status);

create table assessments (
    id serial primary key,
    "userId" integer not null references users (id),
    "campaignParticipationId" bigint references "campaign-participations" (id) on delete set null,
    type text not null,
    state assessment_state not null default 'started',
    "stateHistory" assessment_state[],
    "timeLimit" interval,
    "createdAt" timestamptz not null default now()
);
create index assessments_open on assessments ("userId") where state = 'started';

create table answers (
    id bigserial primary key,
    "assessmentId" integer not null,
    "challengeId" varchar(255) not null,
    value text,
    result answer_result,
    "resultDetails" text,
    "timeSpent" integer,
    "createdAt" timestamptz not null default now(),
    constraint answers_assessmentid_foreign foreign key ("assessmentId") references assessments (id)
);
create index answers_assessmentid_index on answers ("assessmentId");
comment on constraint answers_assessmentid_foreign on answers is 'kept by the warehouse too';

-- Names that contain the names of other tables: picking objects by text takes the wrong ones.
create table "answers-corrected" (
    id bigserial primary key,
    "answerId" bigint not null references answers (id),
    corrector text not null default current_user,
    points real,
    "correctedAt" timestamp not null
);
create index answers_corrected_id_index on "answers-corrected" ("answerId", id);

create table "knowledge-elements" (
    id bigint generated by default as identity (start with 1 increment by 1 cache 1) primary key,
    source varchar(20) not null,
    status varchar(20) not null,
    "userId" integer not null references users (id),
    "answerId" bigint references answers (id),
    "skillId" varchar(30) not null,
    "earnedPix" real not null default 0,
    "createdAt" timestamptz not null default now()
);
create index knowledge_elements_userid_index on "knowledge-elements" ("userId");

create table "knowledge-element-snapshots" (
    id serial primary key,
    "userId" integer not null references users (id),
    "snappedAt" timestamptz not null,
    snapshot jsonb not null,
    unique ("userId", "snappedAt")
);

-- Two tables that refer to each other.
create table teams (
    id serial primary key,
    name text not null,
    "captainId" integer
);
create table "team-members" (
    id serial primary key,
    "teamId" integer not null references teams (id) on delete cascade,
    "userId" integer not null references users (id)
);
alter table teams add constraint teams_captain_foreign
    foreign key ("captainId") references "team-members" (id) deferrable initially deferred;

create table sessions (
    id serial primary key,
    "removedLongAgo" text,
    room text not null,
    during tstzrange not null,
    supervisors text[],
    constraint "no two sessions in a room at once" exclude using gist (during with &&) where (room = 'amphitheatre')
);
-- Leaves a hole in the column numbers.
alter table sessions drop column "removedLongAgo";

create table "certification-courses" (
    id serial primary key,
    "sessionId" integer not null,
    "userId" integer not null references users (id),
    level smallint check (level between 0 and 8),
    score double precision,
    "verificationCode" uuid,
    constraint "certification-courses_session" foreign key ("sessionId") references sessions (id)
);
comment on constraint "certification-courses_session" on "certification-courses" is 'a comment on a foreign key; "restored" only with it';

create table tags (
    id serial primary key,
    name text not null unique
);
create table tags_categories (
    id serial primary key,
    label text not null,
    "tagId" integer references tags (id)
);
create table "organization-tags" (
    "organizationId" integer not null references organizations (id),
    "tagId" integer not null references tags (id),
    primary key ("organizationId", "tagId")
);

create table "login-events" (
    id bigint generated always as identity,
    "userId" integer not null,
    "occurredAt" timestamptz not null,
    address inet,
    agent text,
    primary key (id, "occurredAt")
) partition by range ("occurredAt");
create table "login-events_2025" partition of "login-events" for values from ('2025-01-01 00:00+00') to ('2026-01-01 00:00+00');
create table "login-events_2026" partition of "login-events" for values from ('2026-01-01 00:00+00') to ('2027-01-01 00:00+00');
create table "login-events_rest" partition of "login-events" default;
create index "login-events_by_user" on "login-events" ("userId", "occurredAt" desc);

create table "stored-files" (
    id uuid primary key,
    name text not null,
    content bytea not null,
    digest text generated always as (md5(content)) stored,
    mac macaddr,
    bits bit varying(12)
);

-- The demo leaves this one alone (mode `none`); its name is not lower case.
create table "AuditTrail" (
    id bigserial primary key,
    actor text not null,
    action text not null,
    "at" timestamptz not null
);

-- No key, no rows.
create table "feature-toggles" (
    name text,
    enabled boolean,
    rules json
);
comment on table "feature-toggles" is '';

create table "odd  ""name"".with*every?thing's" (
    "select" integer generated by default as identity,
    "a""b" text,
    "with  spaces" text,
    "per%cent" regtype,
    "back\slash" xml,
    "Été" money,
    at point
);
create unique index "odd  index ""of"".it's*own?" on "odd  ""name"".with*every?thing's" ("select");
comment on column "odd  ""name"".with*every?thing's"."a""b" is E'tab\there, backslash \\ there';

create table billing.invoices (
    id bigserial primary key,
    "organizationId" integer not null references public.organizations (id),
    amount numeric not null,
    lines jsonb,
    "issuedOn" date not null
);
create index on billing.invoices ("organizationId");

create statistics users_names (dependencies) on "firstName", "lastName" from users;

-- Same name, different arguments; a bare-name DROP fails on these.
create function learner_label(name text) returns text language sql immutable as $$ select upper(name) $$;
create function learner_label(first text, last text) returns text language sql immutable
    as $$ select initcap(first) || ' ' || upper(last) $$;
comment on function learner_label(text, text) is 'the overloaded one';
create function billing.tax(amount numeric, rate numeric default 0.2) returns numeric language sql immutable
    as $$ select round(amount * rate, 2) $$;
create procedure archive_campaign(code text) language sql
    as $$ update campaigns set "archivedAt" = timestamptz '2026-06-01 00:00+00' where campaigns.code = archive_campaign.code $$;
create aggregate longest(text) (sfunc = text_larger, stype = text);

create function touch_updated_at() returns trigger language plpgsql as $$
begin
    new."updatedAt" := timestamptz '2026-06-01 00:00+00';
    return new;
end
$$;
create trigger touch before update on users for each row execute function touch_updated_at();
comment on trigger touch on users is 'fires on updates only';

-- Views that stand on each other, and one that is stored.
create view "active-learners" as
    select l.id, l."organizationId", learner_label(l."firstName", l."lastName") as label, u.email
    from "organization-learners" l join users u on u.id = l."userId" where not l."isDisabled";
create view learners_per_organization as
    select o.id, o.name, count(a.id) as learners
    from organizations o left join "active-learners" a on a."organizationId" = o.id group by o.id;
comment on view learners_per_organization is 'stands on another view';
create materialized view "answers-per-day" as
    select ("createdAt" at time zone 'UTC')::date as day, result, count(*) as answers from answers group by 1, 2
    with no data;
create unique index "answers-per-day_unique" on "answers-per-day" (day, result);

commit;
