-- The other half of grow.sql: a transaction that takes an id of `answers` and stays open. Feed it
-- to a session that is kept, run grow.sql and a replication in others, then say `commit` here:
-- the row's id is then below ids that were copied already. The next replication must bring it.

begin;
insert into answers ("assessmentId", "challengeId", value, result, "createdAt")
values (500, 'recLateCommit0000', 'committed after a higher id was copied', 'ok', timestamptz '2026-06-01 00:00+00') returning id;
