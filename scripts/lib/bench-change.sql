-- What a day does to the database of bench.sql, in every table: 0.1 % of the rows are deleted, 1 % changed, as many added
-- as were deleted; at least one of each. Rows are chosen by a hash of their key, so they lie all over the table.
--
--   :part 'leaving'   before the first night: adds to the tables that others refer to rows that nobody refers to, which
--                     the day can delete
--   :part 'day'       the day; psql prints `DELETE n`, `UPDATE n` and `INSERT 0 n` for each table
--   :part 'updates'   a day on which rows are changed only

\set ON_ERROR_STOP on
set synchronous_commit = off;
-- What is deleted is not referred to: nothing else needs to look.
set session_replication_role = replica;
select :'part' = 'day' as is_day, :'part' = 'updates' as only_updates, :'part' <> 'leaving' as has_updates \gset

create temporary view facts as
select c.oid, c.relname as name, a.attname as column, a.attnum as place, t.typname as type, a.atthasdef as given,
       exists (select from pg_index i where i.indrelid = c.oid and pg_get_indexdef(i.indexrelid) ~ format('USING.*\m%s\M', a.attname)) as indexed,
       exists (select from pg_index i where i.indrelid = c.oid and i.indisunique and pg_get_indexdef(i.indexrelid) ~ format('USING.*\m%s\M', a.attname)) as is_unique
from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_type t on t.oid = a.atttypid
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped;

\if :has_updates
\set QUIET off
\endif

\if :is_day
select format('delete from %1$I where id in (select id from %1$I t where %2$s order by hashtext(id::text) desc limit (select ceil(count(*) * 0.001) from %1$I))', c.relname,
    coalesce((select string_agg(format('not exists (select from %s r where r.%I = t.id)', k.conrelid::regclass, a.attname), ' and ')
              from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1] where k.confrelid = c.oid and k.contype = 'f'), 'true'))
from pg_class c where c.oid in (select oid from facts) order by c.relname
\gexec

\endif

\if :has_updates
-- A column that no index holds.
select distinct on (name) format('update %1$I set %2$I = %3$s where id in (select id from %1$I order by hashtext(id::text) limit (select ceil(count(*) * 0.01) from %1$I))', name, "column",
    case type when 'timestamptz' then format('%I + interval ''1 second''', "column") when 'text' then format('%I || '' again''', "column")
              else format('%I || ''[{"late": true}]''', "column") end)
from facts where not indexed and type in ('timestamptz', 'text', 'jsonb') order by name, type = 'timestamptz' desc, type = 'text' desc, place
\gexec
\endif

\if :only_updates
\quit
\endif

-- Copies of rows, in which a unique value is another one.
select format('insert into %1$I (%2$s) select %3$s from %1$I order by hashtext(id::text) limit (select ceil(count(*) * 0.001) from %1$I)', name,
    string_agg(quote_ident("column"), ', ' order by place),
    string_agg(case when not is_unique then quote_ident("column")
                    when type = 'text' then format('%I || %L', "column", ' ' || :'part')
                    when type = 'uuid' then format('md5(%I::text || %L)::uuid', "column", :'part')
                    when type = 'timestamptz' then format('%I + interval ''1 ms'' * length(%L)', "column", :'part')
                    else quote_ident("column") end, ', ' order by place))
from facts where not given and (:'part' = 'day' or oid in (select confrelid from pg_constraint where contype = 'f'))
group by name order by name
\gexec
