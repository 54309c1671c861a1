-- Fills schema.sql: every value follows from a row number, so that each load gives the same rows.

\set ON_ERROR_STOP on
begin;
set local time zone 'UTC';

insert into organizations (name, type, "externalId", "parentOrganizationId", credit, "createdAt")
select 'Organization ' || n, (array['SCO', 'SUP', 'PRO'])[n % 3 + 1], case when n % 4 > 0 then 'UAI' || lpad(n::text, 5, '0') end,
       case when n > 10 then n % 10 + 1 end, n * 10.25, timestamptz '2025-09-01 08:00+00' + n * interval '1 day'
from generate_series(1, 60) n order by n;

insert into users ("firstName", "lastName", email, lang, "lastIp", preferences, "isAnonymous", "createdAt", "updatedAt")
select (array['Zoé', 'Jean-Luc', 'O''Neil', 'Çelik', E'Tab\tName', 'Ана', '美咲'])[n % 7 + 1], 'Name' || n,
       case when n % 11 > 0 then 'user' || n || '@example.net' end, (array['fr', 'en', 'nl'])[n % 3 + 1],
       case when n % 2 = 0 then ('10.0.' || n % 256 || '.' || n * 7 % 256)::inet else ('2001:db8::' || to_hex(n) || '/64')::inet end,
       jsonb_build_object('theme', n % 3, 'tags', jsonb_build_array(n, 'x"y', null), 'text', E'back\\slash\nline'),
       n % 11 = 0, timestamptz '2025-10-01 00:00+00' + n * interval '5 hours', timestamptz '2026-01-01 00:00+00'
from generate_series(1, 300) n order by n;

insert into "organization-learners" ("userId", "organizationId", "firstName", "lastName", division, birthdate, "isDisabled", attributes)
select n % 300 + 1, n % 60 + 1, 'Learner' || n, 'Name' || n, case when n % 6 > 0 then n % 6 || 'ème "' || chr(65 + n % 4) || '"' end,
       date '2010-01-01' + n, n > 300, case when n % 4 = 0 then jsonb_build_object('INE', lpad(n::text, 11, '0')) end
from generate_series(1, 400) n order by n;

insert into campaigns (name, code, "organizationId", "creatorId", "targetTubes", grid, "archivedAt")
select 'Campaign ' || n, 'CODE' || lpad(n::text, 5, '0'), n % 60 + 1, n % 300 + 1,
       case when n % 5 = 0 then '{}' else array['tube' || n, 'a,b', 'quote"', 'back\slash', '', null, '{brace}'] end,
       case when n % 3 = 0 then array[[n, 0], [0, n]] end, case when n % 8 = 0 then timestamptz '2026-02-01 00:00+00' end
from generate_series(1, 40) n order by n;

insert into "campaign-participations" ("campaignId", "organizationLearnerId", status, "masteryRate", "sharedAt")
select n % 40 + 1, n, (array['STARTED', 'TO_SHARE', 'SHARED'])[n % 3 + 1], round(n % 100 / 100.0, 2),
       case when n % 3 = 2 then timestamptz '2026-03-01 00:00+00' + n * interval '1 hour' end
from generate_series(1, 350) n order by n;

insert into assessments ("userId", "campaignParticipationId", type, state, "stateHistory", "timeLimit", "createdAt")
select n % 300 + 1, case when n <= 350 then n end, (array['CAMPAIGN', 'COMPETENCE_EVALUATION', 'CERTIFICATION'])[n % 3 + 1],
       (enum_range(null::assessment_state))[n % 4 + 1],
       case when n % 6 > 0 then (enum_range(null::assessment_state))[1 : n % 4 + 1] end,
       case when n % 2 = 0 then n * interval '1 second' + n % 3 * interval '1 month' end,
       timestamptz '2026-01-01 00:00+00' + n * interval '3 hours'
from generate_series(1, 500) n order by n;

\set first 1
\set last 5000
\ir ../rows.sql

insert into "answers-corrected" ("answerId", corrector, points, "correctedAt")
select n * 25, 'corrector ' || n % 3, case n % 5 when 0 then 'NaN' when 1 then '-Infinity' else n / 3.0 end::real,
       timestamp '2026-04-01 00:00' + n * interval '1 hour'
from generate_series(1, 200) n order by n;

insert into "knowledge-element-snapshots" ("userId", "snappedAt", snapshot)
select n % 300 + 1, timestamptz '2026-05-01 00:00+00' + n * interval '1 day 1 minute',
       (select jsonb_agg(jsonb_build_object('skillId', 'skill' || (n + s) % 41, 'earnedPix', s / 4.0, 'status', E'validated\\"\n')) from generate_series(1, 12) s)
from generate_series(1, 200) n order by n;

insert into teams (name, "captainId") select 'Team ' || n, n * 2 from generate_series(1, 12) n order by n;
insert into "team-members" ("teamId", "userId") select (n + 1) / 2, n from generate_series(1, 24) n order by n;

insert into sessions (room, during, supervisors)
select case when n % 2 = 0 then 'amphitheatre' else 'room ' || n end,
       tstzrange(timestamptz '2026-05-01 08:00+00' + n * interval '1 day', timestamptz '2026-05-01 10:00+00' + n * interval '1 day', '[)'),
       case when n % 3 > 0 then array['Mr. "X"', E'Mrs.\tY'] end
from generate_series(1, 30) n order by n;

insert into "certification-courses" ("sessionId", "userId", level, score, "verificationCode")
select n % 30 + 1, n % 300 + 1, n % 9, n / 7.0, md5('course' || n)::uuid from generate_series(1, 150) n order by n;

insert into tags (name) select 'tag ' || n from generate_series(1, 15) n order by n;
insert into tags_categories (label, "tagId") select 'category ' || n, n from generate_series(1, 15) n order by n;
insert into "organization-tags" select o, (o * 7 + t) % 15 + 1 from generate_series(1, 60) o, generate_series(1, 2) t;

insert into "login-events" ("userId", "occurredAt", address, agent)
select n % 300 + 1, timestamptz '2024-12-15 00:00+00' + n * interval '26 hours', ('192.0.2.' || n % 256)::inet, 'agent/' || n % 5
from generate_series(1, 700) n order by n;

insert into "stored-files" (id, name, content, mac, bits)
select md5('file' || n)::uuid, 'file ' || n || '.bin', decode(md5(n::text) || '00ff5c2e0a0d' || repeat(to_hex(n % 16) || 'a', n * 20), 'hex'),
       ('08:00:2b:00:00:' || lpad(to_hex(n), 2, '0'))::macaddr, (n % 16)::bit(4)::bit varying
from generate_series(1, 25) n order by n;

insert into "AuditTrail" (actor, action, "at")
select 'user' || n, 'signed in', timestamptz '2026-01-01 00:00+00' + n * interval '1 hour' from generate_series(1, 40) n order by n;

insert into "odd  ""name"".with*every?thing's" ("a""b", "with  spaces", "per%cent", "back\slash", "Été", at)
select E'\\N\t' || n, '  ', (array['integer', 'text', 'numeric[]'])[n % 3 + 1]::regtype, ('<a b="' || n || '">é</a>')::xml, n::numeric::money, point(n, -n / 3.0)
from generate_series(1, 20) n order by n;

insert into billing.invoices ("organizationId", amount, lines, "issuedOn")
select n % 60 + 1, n * 1234567890.12345 / 7, jsonb_build_array(jsonb_build_object('quantity', n)), date '2026-01-31' + n
from generate_series(1, 90) n order by n;

select setval('ticket_number_seq', 100003, false), setval('teams_id_seq', 4000) \g /dev/null

refresh materialized view "answers-per-day";

commit;
