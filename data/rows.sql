-- Rows of the two tables that the demo copies incrementally, numbers :first to :last. The source
-- (seed.sql, grow.sql) and the target's older state (day0.sql) both come from here, so that they
-- agree row by row. Every value depends on its number only.

insert into answers ("assessmentId", "challengeId", value, result, "resultDetails", "timeSpent", "createdAt")
select ((n - 1) / 10) % 500 + 1,
       'rec' || substr(md5('challenge' || n % 97), 1, 14),
       (array[
           'plain', E'tab\there', E'line\nbreak', E'carriage\rreturn', E'back\\slash', E'\\N', E'\\.', E'a\n\\.\nb',
           '"double" and ''single''', 'ça, où – 東京 🙂 שלום', '', null, '{"json": [1, null]}', E'\u0001 control', '%s $1 ;--'
       ])[n % 15 + 1],
       case when n > 3000 and n % 50 = 0 then 'timedout'
            when n % 17 = 0 then null
            else (array['ok', 'ko', 'aband', 'partially'])[n % 4 + 1] end::answer_result,
       case when n % 3 = 0 then '---' || E'\n' || 'step: ' || n end,
       nullif(n % 240, 0),
       timestamptz '2026-01-01 00:00:00.000001+00' + n * interval '17 minutes 3 seconds'
from generate_series(:first, :last) n order by n;

insert into "knowledge-elements" (source, status, "userId", "answerId", "skillId", "earnedPix", "createdAt")
select case when n % 3 = 0 then 'inferred' else 'direct' end,
       (array['validated', 'invalidated', 'reset'])[n % 3 + 1],
       n % 300 + 1,
       case when n % 5 > 0 then (n - 1) % 5000 + 1 end,
       'skill' || n % 41,
       (n % 9) / 7.0,
       timestamptz '2026-01-01 00:00+00' + n * interval '19 minutes'
from generate_series(:first, :last) n order by n;
