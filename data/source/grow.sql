-- A day later: 400 new rows in each incremental table (the numbers 5001 to 5400), changes and
-- deletions of old rows, a new user and organization. When late.sql holds a transaction open
-- meanwhile, the new ids leave a gap where that transaction's row will be.
--
-- The full copy follows all of it. The incremental copy follows new rows only, as documented: on
-- the target the rows changed and deleted below stay as they were.

\set ON_ERROR_STOP on
begin;

insert into organizations (name, type, "externalId", "createdAt") values ('Organization of today', 'PRO', 'UAI-NEW', timestamptz '2026-06-02 00:00+00');
insert into users ("firstName", "lastName", email, "createdAt", "updatedAt")
values ('New', 'Comer', 'newcomer@example.net', timestamptz '2026-06-02 00:00+00', timestamptz '2026-06-02 00:00+00');
update users set lang = 'es' where id % 60 = 0;
delete from "certification-courses" where id in (3, 5, 8);

\set first 5001
\set last 5400
\ir ../rows.sql

update answers set value = 'changed later' where id in (10, 20, 30);
delete from "knowledge-elements" where id in (11, 22, 33);
select nextval('ticket_number_seq') \g /dev/null

commit;
