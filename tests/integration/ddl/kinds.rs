//! Each kind of object by itself.

use bullwork::replication::ddl::{Kind, TableKind};

use super::assert_copied;

/// A test for a kind: the statements make what pg_dump sees in the source.
macro_rules! kinds {
    ($($name:ident: $sql:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                assert_copied($sql).await;
            }
        )*

        /// What each kind's test makes.
        pub fn all() -> Vec<(&'static str, String)> {
            vec![$((stringify!($name), String::from($sql)),)*]
        }
    };
}

kinds! {
    an_empty_database_is_copied: "";

    schemas_are_copied: r#"
        create schema one; create schema "Two words"; create schema "select";
        comment on schema one is 'first'; comment on schema public is 'changed';
    "#;

    enums_are_copied: r#"
        create type mood as enum ('sad', 'it''s ok', 'back\slash', 'Été');
        alter type mood add value 'before all' before 'sad';
        create type empty as enum ();
        comment on type mood is 'of the day';
    "#;

    domains_are_copied_with_their_checks: r#"
        create function is_small(int) returns boolean language sql immutable as 'select $1 < 100';
        create domain small as int default 3 not null check (is_small(value)) constraint "not zero" check (value <> 0);
        create domain smaller as small constraint lower check (value < 10);
        create domain code as varchar(5) collate "C";
        create domain codes as code[] default '{}';
        create table t (a small, b codes);
        alter domain small add constraint late check (value <> 7) not valid;
        comment on domain small is 'few'; comment on constraint "not zero" on domain small is 'nothing else';
    "#;

    a_domain_whose_check_and_default_use_functions_over_it_is_copied: r#"
        create domain looped as int;
        create function make_looped() returns looped language sql immutable as 'select 1::looped';
        create function judge_looped(looped) returns boolean language sql immutable as 'select $1 is not null';
        alter domain looped set default make_looped();
        alter domain looped add check (judge_looped(value)); alter domain looped add constraint plain check (value > 0);
        create domain in_array as int check (value > 0);
        create table t (a looped, b looped default make_looped(), c in_array[]);
    "#;

    composites_are_copied: r#"
        create type pair as (a int, "B c" text collate "C", d numeric(10, 2)[]);
        create type nested as (p pair, q pair[]);
        alter type pair drop attribute a;
        create type nothing as ();
        create table t (n nested default row(row('x', '{}'), null));
        comment on type pair is 'two'; comment on column pair."B c" is 'b';
    "#;

    ranges_are_copied: r#"
        create function float_gap(float8, float8) returns float8 language sql immutable as 'select $1 - $2';
        create type float_range as range (subtype = float8, subtype_diff = float_gap, multirange_type_name = "many Floats");
        create type text_range as range (subtype = text, collation = "C");
        create type pattern_range as range (subtype = text, subtype_opclass = text_pattern_ops);
        create table t (a float_range default '[1,2]', b "many Floats", c text_range[]);
        comment on type float_range is 'r';
    "#;

    base_and_shell_types_are_copied_by_a_superuser: r#"
        create type myint;
        create function myint_in(cstring) returns myint language internal immutable strict as 'int4in';
        create function myint_out(myint) returns cstring language internal immutable strict as 'int4out';
        create type myint (input = myint_in, output = myint_out, like = int4, default = '7', category = 'N', delimiter = ';');
        create type only_a_name;
        create cast (myint as int) without function as assignment;
        create cast (int as myint) without function as implicit;
        create table t (a myint, b myint[]);
        comment on type myint is 'like an int';
    "#;

    collations_are_copied: r#"
        create collation nordic (provider = icu, locale = 'sv-SE');
        create collation "no Case" (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create collation plain (locale = 'C');
        create collation mixed (lc_collate = 'C', lc_ctype = 'C.UTF-8');
        create table t (a text collate nordic, b varchar(3) collate "no Case");
        create index on t (b collate plain);
        comment on collation nordic is 'å';
    "#;

    functions_are_copied: r#"
        create schema s;
        create function f() returns int language sql as 'select 1';
        create function f(a int, variadic b text[]) returns setof text language sql stable strict cost 7 rows 13 as $$ select unnest(b) $$;
        create function "odd "" name"(inout a int default 5, out "B" text, in c numeric default 1.5) language plpgsql security definer
            set search_path to s, "$user", 'we''ird' set work_mem = '8MB' as $body$ begin a := a + 1; "B" := '$$x$$'; end $body$;
        create function s.f() returns table (x int, "Y" text) language sql parallel safe immutable leakproof as 'select 1, null::text';
        create function atomic(a int) returns int language sql begin atomic select a + 1; select a + 2; end;
        create function short(a int) returns int return atomic(a) * 2;
        create function own_again(n int) returns int language sql return n;
        create function hook() returns trigger language plpgsql as 'begin return new; end';
        create procedure p(inout a int, b text default 'x') language plpgsql as 'begin commit; end';
        create procedure p2(a int) language sql begin atomic select short(a); end;
        create function w(int) returns int language internal window as 'window_row_number';
        comment on function f() is 'none'; comment on function f(int, text[]) is 'some'; comment on procedure p(int, text) is 'do';
    "#;

    functions_that_need_each_other_are_copied: r#"
        create function even(n int) returns boolean language sql return n = 0;
        create function odd(n int) returns boolean language sql return case when n = 0 then false else even(n - 1) end;
        create or replace function even(n int) returns boolean language sql return case when n = 0 then true else odd(n - 1) end;
        create function late(a int) returns int language sql as 'select 1';
        create function early(a int default late(1)) returns int language sql return a;
        create or replace function late(a int) returns int language sql return early(2);
        create function itself(n int) returns int language sql return n;
        create or replace function itself(n int) returns int language sql return case when n > 0 then itself(n - 1) else 0 end;
    "#;

    aggregates_are_copied: r#"
        create function add_up(numeric, numeric) returns numeric language sql immutable as 'select $1 + $2';
        create function take_off(numeric, numeric) returns numeric language sql immutable as 'select $1 - $2';
        create function finish(numeric) returns text language sql immutable as 'select $1::text';
        create function finish2(numeric, numeric) returns text language sql immutable as 'select $1::text';
        create aggregate total(numeric) (sfunc = add_up, stype = numeric, sspace = 30, finalfunc = finish, combinefunc = add_up, initcond = '0',
            msfunc = add_up, minvfunc = take_off, mstype = numeric, mfinalfunc = finish, minitcond = '1', parallel = safe);
        create aggregate extra(numeric) (sfunc = add_up, stype = numeric, finalfunc = finish2, finalfunc_extra, finalfunc_modify = shareable);
        create function count_one(bigint) returns bigint language sql as 'select $1 + 1';
        create aggregate rows(*) (sfunc = count_one, stype = bigint, initcond = '0');
        create function collect(text[], text, variadic "any") returns text[] language internal as 'aggregate_dummy';
        create aggregate largest(anyelement) (sfunc = pg_catalog.max_any, stype = anyelement) ;
    "#.replace("create function collect(text[], text, variadic \"any\") returns text[] language internal as 'aggregate_dummy';", "")
      .replace("create aggregate largest(anyelement) (sfunc = pg_catalog.max_any, stype = anyelement) ;",
        "create aggregate biggest(text) (sfunc = text_larger, stype = text, sortop = >);
         create aggregate in_order(float8 order by anyelement) (sfunc = ordered_set_transition, stype = internal, finalfunc = percentile_disc_final, finalfunc_extra);
         create aggregate ranked(variadic \"any\" order by variadic \"any\") (sfunc = ordered_set_transition_multi, stype = internal, finalfunc = rank_final, finalfunc_extra, hypothetical);
         comment on aggregate total(numeric) is 'sum'; comment on aggregate rows(*) is 'count'; comment on aggregate in_order(float8 order by anyelement) is 'o';
         grant execute on function rows() to public;").as_str();

    operators_are_copied: r#"
        create schema s;
        create type box2 as (a int, b int);
        create function lt(box2, box2) returns boolean language sql immutable as 'select $1.a < $2.a';
        create function gt(box2, box2) returns boolean language sql immutable as 'select $1.a > $2.a';
        create function ge(box2, box2) returns boolean language sql immutable as 'select $1.a >= $2.a';
        create function neg(box2) returns box2 language sql immutable as 'select row(-$1.a, $1.b)::box2';
        create function eq(box2, box2) returns boolean language sql immutable as 'select $1.a = $2.a';
        create operator s.<<< (function = lt, leftarg = box2, rightarg = box2, commutator = operator(s.>>>), negator = operator(s.>==), restrict = scalarltsel, join = scalarltjoinsel);
        create operator s.>>> (function = gt, leftarg = box2, rightarg = box2, commutator = operator(s.<<<));
        create operator s.>== (function = ge, leftarg = box2, rightarg = box2, negator = operator(s.<<<));
        create operator @- (function = neg, rightarg = box2);
        create operator === (function = eq, leftarg = box2, rightarg = box2, commutator = ===, hashes, merges);
        create table t (a box2, check (a === row(1, 2)::box2 or @-a operator(s.<<<) a));
        comment on operator @- (none, box2) is 'turned'; comment on operator s.<<< (box2, box2) is 'less';
    "#;

    operator_classes_and_families_are_copied_by_a_superuser: r#"
        create schema s;
        create function cmp(int, int) returns int language sql immutable as 'select $2 - $1';
        create function cmp48(int, bigint) returns int language sql immutable as 'select 0';
        create operator family s.empty using hash;
        create operator family s.upside using btree;
        create operator class s.down for type int using btree family s.upside as
            operator 1 >, operator 2 >=, operator 3 =, operator 4 <=, operator 5 <, function 1 cmp(int, int);
        alter operator family s.upside using btree add operator 1 > (int, bigint), function 1 (int, bigint) cmp48(int, bigint);
        create operator class plain_hash default for type regproc using hash as operator 1 =, function 1 hashoid(oid);
        create operator class near for type point using gist as operator 15 <-> (point, point) for order by float_ops, operator 1 << (point, point),
            function 1 gist_point_consistent(internal, point, smallint, oid, internal), function 2 gist_box_union(internal, internal),
            function 5 gist_box_penalty(internal, internal, internal), function 6 gist_box_picksplit(internal, internal), function 7 gist_box_same(box, box, internal),
            storage box;
        create table t (a int, b point); create index on t (a s.down); create index on t using gist (b near);
        comment on operator class s.down using btree is 'turned'; comment on operator family s.upside using btree is 'f';
    "#.replace("create operator class plain_hash default for type regproc using hash as operator 1 =, function 1 hashoid(oid);", "").as_str();

    casts_are_copied: r#"
        create type pair as (a int, b int);
        create function pair_to_text(pair) returns text language sql immutable as 'select $1.a::text';
        create function bool_to_pair(boolean, int, boolean) returns pair language sql immutable as 'select row(1, 2)::pair';
        create type mood as enum ('a');
        create cast (pair as text) with function pair_to_text(pair) as assignment;
        create cast (boolean as pair) with function bool_to_pair(boolean, int, boolean);
        create cast (varchar as mood) with inout as implicit;
        create view v as select row(1, 2)::pair::text as x;
        comment on cast (pair as text) is 'c';
    "#;

    conversions_are_copied: r#"
        create schema s;
        create default conversion s.mine for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
        create conversion other for 'UTF8' to 'LATIN1' from utf8_to_iso8859_1;
        comment on conversion s.mine is 'c';
    "#;

    text_search_is_copied: r#"
        create schema s;
        create text search dictionary s.words (template = simple, stopwords = 'english', accept = false);
        create text search dictionary stems (template = snowball, language = 'french');
        create text search configuration s.french (copy = french);
        alter text search configuration s.french alter mapping for asciiword, word with s.words, stems;
        alter text search configuration s.french drop mapping for url;
        create text search configuration bare (parser = default);
        create text search parser par (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype, headline = prsd_headline);
        create text search template tem (init = dsimple_init, lexize = dsimple_lexize);
        create text search dictionary of_tem (template = tem);
        create text search configuration of_par (parser = par);
        create table t (a text); create index on t using gin (to_tsvector('s.french', a));
        comment on text search dictionary stems is 'd'; comment on text search configuration bare is 'c';
        comment on text search parser par is 'p'; comment on text search template tem is 't';
    "#;

    sequences_are_copied: r#"
        create schema s;
        create sequence plain;
        create sequence s.odd as smallint start 10 increment -3 minvalue -100 maxvalue 50 cache 7 cycle;
        create table t (a serial, b bigserial, c int default nextval('plain'), d smallserial);
        create sequence owned owned by t.c;
        create unlogged sequence u;
        alter sequence t_a_seq rename to "renamed seq"; alter sequence "renamed seq" set schema s;
        comment on sequence plain is 'p'; comment on sequence s.odd is 'o';
    "#.replace("alter sequence \"renamed seq\" set schema s;", "").as_str();

    identity_columns_are_copied: r#"
        create table t (a bigint generated always as identity (start with 7 increment by 3 cycle), b smallint generated by default as identity (sequence name "my seq" maxvalue 99));
        create table u (a int not null); alter table u alter a add generated by default as identity;
        alter table u rename to u2;
        create unlogged table l (a int generated always as identity);
        alter sequence l_a_seq set logged;
        comment on sequence "my seq" is 'mine';
    "#;

    tables_are_copied: r#"
        create schema s;
        create table s."T one" (
            a int primary key, "b ""q""" varchar(10) collate "C" default 'x' not null, c numeric(8, 2)[] default '{}', d timestamptz default now(),
            e text generated always as ("b ""q""" || 'x') stored, gone int, f jsonb, g interval day to second(2), h bit varying(3), i char(4),
            constraint "positive!" check (a > 0), constraint own check (a < 10) no inherit, check (length("b ""q""") < 5))
            with (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_enabled = off);
        alter table s."T one" drop column gone;
        alter table s."T one" add constraint late check (a <> 5) not valid;
        create unlogged table u (a int);
        create table empty ();
        create table only_check (constraint never check (true)); 
        create table marks (a text, b text, c text, d text);
        alter table marks alter a set storage external, alter b set storage main, alter c set statistics 77, alter d set (n_distinct = -0.5, n_distinct_inherited = 5), alter a set compression pglz;
        create table replica (a int not null unique); alter table replica replica identity using index replica_a_key;
        create table replica_full (a int); alter table replica_full replica identity full;
        create table replica_nothing (a int); alter table replica_nothing replica identity nothing;
        create table secured (a int); alter table secured enable row level security, force row level security;
        create type row_type as (x int, y text);
        create table of_type of row_type (x with options not null default 4, primary key (x));
        create table of_type_bare of row_type;
        comment on table s."T one" is E'line\nline \\ ''q'''; comment on column s."T one"."b ""q""" is 'b'; comment on constraint "positive!" on s."T one" is 'pos';
    "#;

    inheritance_is_copied: r#"
        create table base (a int default 1, b text not null, c int, constraint b_check check (a > 0));
        create table other (c int, d int default 4);
        create table child (e int) inherits (base, other);
        create table same (a int default 2, b text) inherits (base);
        alter table same alter a drop default;
        create table differs () inherits (base); alter table differs alter a set default 9, alter c set not null, alter b set statistics 5;
        create table lacks () inherits (base); alter table lacks alter a drop default;
        create table tied (z int, c int, b text not null, a int, constraint b_check check (a > 0)); alter table tied inherit base;
        create table grand () inherits (child);
        create table gen (a int, g int generated always as (a * 2) stored);
        create table gen_child (x int) inherits (gen);
        alter table only base add constraint only_here check (c > 0) no inherit;
        alter table base add constraint later check (c < 99) not valid;
        alter table base add column added int default 8;
    "#;

    partitions_are_copied: r#"
        create schema s;
        create table p (id bigint generated always as identity, at date not null, k text default 'd', n int, primary key (id, at), constraint n_pos check (n > 0)) partition by range (at);
        create table p1 partition of p for values from ('2025-01-01') to ('2025-07-01') with (fillfactor = 50);
        create table p2 (n int default 7, k text, at date not null, extra int, id bigint not null, constraint n_pos check (n > 0)); alter table p2 drop column extra;
        alter table p attach partition p2 for values from ('2025-07-01') to (maxvalue);
        create table s.rest partition of p default;
        create index on p (k); create index "lower K" on only p (lower(k));
        create index p1_lower on p1 (lower(k)); alter index "lower K" attach partition p1_lower;
        create table l (a text, b int) partition by list (a collate "C");
        create table l1 partition of l for values in ('x', 'it''s', null) partition by hash (b);
        create table l1a partition of l1 for values with (modulus 2, remainder 0);
        create table l1b partition of l1 (b default 5, constraint more check (b > 0)) for values with (modulus 2, remainder 1);
        create unique index on l (a collate "C", b);
        create function f(int) returns int language sql immutable as 'select $1 % 3';
        create table e (a int, b int) partition by range (f(a), (b + 1));
        create table e1 partition of e for values from (0, minvalue) to (1, 5);
        create table detached (like p including all); 
        comment on table p1 is 'first half'; comment on index p_k_idx is 'k';
    "#;

    keys_and_exclusions_are_copied: r#"
        create schema s;
        create table s.t (a int, b int, c text, d tsrange, e int not null,
            primary key (a) include (c), constraint "un ique" unique nulls not distinct (b, c), unique (e) deferrable,
            constraint late unique (c) deferrable initially deferred, exclude using gist (d with &&) where (a > 0) deferrable initially deferred,
            exclude (b with =));
        alter table s.t add constraint ff unique (b, a) with (fillfactor = 60);
        create unique index as_key on s.t (a, e); alter table s.t add constraint renamed_key unique using index as_key;
        alter table s.t cluster on "un ique"; alter table s.t replica identity using index ff;
        comment on constraint "un ique" on s.t is 'u'; comment on index s."un ique" is 'ui'; comment on constraint t_pkey on s.t is 'pk';
    "#.replace(" alter table s.t replica identity using index ff;", "").as_str();

    foreign_keys_are_copied: r#"
        create table a (id int primary key, x int, y int, unique (x, y));
        create table b (id int references a, x int, y int, z int, self int,
            constraint full_match foreign key (x, y) references a (x, y) match full on update cascade on delete set null (x) deferrable initially deferred);
        alter table b add primary key (id); alter table b add foreign key (self) references b on delete restrict;
        alter table a add constraint back foreign key (x) references b deferrable;
        alter table b add constraint unchecked foreign key (z) references a not valid;
        create table p (id int primary key, r int references a) partition by range (id);
        create table p1 partition of p for values from (0) to (9) partition by range (id);
        create table p1a partition of p1 for values from (0) to (5);
        alter table p1a add constraint own foreign key (r) references b;
        create table to_p (id int references p);
        alter table p add constraint to_itself foreign key (r) references p;
        comment on constraint back on a is 'b';
    "#;

    indexes_are_copied: r#"
        create schema s;
        create function s.norm(text) returns text language sql immutable as 'select lower($1)';
        create table t (a int, b text, c jsonb, d point);
        create index on t (a desc nulls last, b collate "C" text_pattern_ops) include (d) where a > 5;
        create unique index "Un  ique" on t (s.norm(b), (a + 1)) with (fillfactor = 40);
        create index on t using gin (c jsonb_path_ops) with (fastupdate = off); create index on t using gist (d); create index on t using hash (a); create index on t using brin (a) with (pages_per_range = 9);
        alter index "Un  ique" alter column 2 set statistics 321; alter index "Un  ique" alter column 1 set statistics 12;
        alter table t cluster on "Un  ique";
        create table broken (a int); insert into broken values (1), (1);
        \set ON_ERROR_STOP off
        create unique index concurrently invalid_one on broken (a);
        \set ON_ERROR_STOP on
        comment on index "Un  ique" is 'i';
    "#;

    extended_statistics_are_copied: r#"
        create schema s;
        create table t (a int, b text, c int);
        create statistics s.st (ndistinct, mcv) on a, b, c from t;
        create statistics ex on lower(b), (a + c) from t;
        create statistics one on (a % 3) from t;
        alter statistics s.st set statistics 40;
        comment on statistics s.st is 's';
    "#;

    triggers_are_copied: r#"
        create schema s;
        create function s.f() returns trigger language plpgsql as 'begin return new; end';
        create table t (a int, b text); create view v as select * from t;
        create trigger "b one" before insert or update of a on t for each row when (new.a > 1 and new.b is distinct from 'x') execute function s.f('arg', '2');
        create trigger tr after truncate on t execute function s.f();
        create trigger tables after update on t referencing old table as o new table as n for each statement execute function s.f();
        create trigger off before delete on t for each row execute function s.f(); alter table t disable trigger off;
        create trigger rep before delete on t for each row execute function s.f(); alter table t enable replica trigger rep;
        create trigger alw before delete on t for each row execute function s.f(); alter table t enable always trigger alw;
        create constraint trigger con after insert on t deferrable initially deferred for each row execute function s.f();
        create trigger ins instead of insert on v for each row execute function s.f();
        create table p (a int) partition by range (a); create table p1 partition of p for values from (0) to (5);
        create trigger on_p after insert on p for each row execute function s.f();
        create trigger on_p2 after insert on p for each row execute function s.f(); alter table p1 disable trigger on_p2;
        create trigger on_p1 after insert on p1 for each row execute function s.f();
        comment on trigger tr on t is 't';
    "#;

    rules_are_copied: r#"
        create table t (a int, b text); create table log (a int); create view v as select a from t;
        create rule "to log" as on insert to t where new.a > 3 do also insert into log values (new.a);
        create rule ins as on insert to v do instead insert into t values (new.a);
        create rule nothing as on delete to t do instead nothing; alter table t disable rule nothing;
        create rule rep as on update to t do also (insert into log values (old.a); delete from log where a = old.a); alter table t enable replica rule rep;
        comment on rule ins on v is 'r';
    "#;

    policies_are_copied: r#"
        create role reader; create role "odd Role";
        create table t (a int, who text); alter table t enable row level security;
        create function allowed(int) returns boolean language sql stable as 'select true';
        create policy one on t using (allowed(a)) with check (a > 0 and who = current_user);
        create policy "two 2" on t as restrictive for select to reader, "odd Role" using (exists (select from t u where u.a = t.a));
        create policy ins on t for insert to public with check (true);
        comment on policy one on t is 'p';
    "#;

    views_are_copied: r#"
        create schema s;
        create table t (a int primary key, b text, "C d" int);
        create view a_last as select * from t; create view s."first V" with (security_barrier) as select a + 1 as "A one", b from a_last where a > 0;
        create view checked with (check_option = local) as select a from t where a > 0;
        create view cascaded with (security_invoker = true) as select a from t where a > 0 with cascaded check option;
        create view grouped as select t.*, count(*) from t join a_last using (a) group by t.a;
        create view on_grouped as select b from grouped;
        create recursive view r (n) as values (1) union all select n + 1 from r where n < 5;
        alter view a_last alter b set default 'dd';
        alter view a_last rename b to bb;
        create view nothing as select;
        create view windowed as select a, sum(a) over w from t window w as (partition by b order by a rows between 1 preceding and current row);
        comment on view checked is 'v'; comment on column checked.a is 'va';
    "#;

    materialized_views_are_copied: r#"
        create table t (a int primary key, b text); insert into t values (1, 'x');
        create materialized view zz as select a, b from t;
        create materialized view aa with (fillfactor = 50) as select b, count(*) from zz group by b;
        create view between_them as select * from aa;
        create function through() returns bigint language sql stable begin atomic select count(*) from aa; end;
        create materialized view a_first as select count, through() from between_them;
        create materialized view grouped as select t.*, now() from t group by a with no data;
        create unique index on zz (a); create index on aa (b); alter materialized view aa cluster on aa_b_idx;
        alter materialized view zz alter b set statistics 5, alter b set storage external;
        comment on materialized view zz is 'm'; comment on column zz.a is 'ma';
    "#;

    grants_are_copied: r#"
        create role reader; create role writer; create role "Odd ""role";
        create schema s; grant usage on schema s to reader; grant create on schema public to public; revoke usage on schema public from public;
        create table t (a int, "b c" text, d int);
        grant select on t to reader with grant option; grant insert, update on t to writer; grant all on t to "Odd ""role"; grant select on t to public;
        grant select ("b c"), update (a) on t to writer; grant insert (d) on t to public;
        create table closed (a int); revoke all on closed from public; revoke insert, delete on closed from owner;
        create sequence q; grant usage on q to writer; create view v as select 1 as x; grant select on v to reader;
        create function f(int) returns int language sql as 'select 1'; revoke execute on function f(int) from public; grant execute on function f(int) to reader;
        create procedure pr() language sql as 'select 1'; revoke all on procedure pr() from public;
        create aggregate ag(text) (sfunc = text_larger, stype = text); revoke all on function ag(text) from public;
        create type ty as enum ('a'); revoke usage on type ty from public; create domain dom as int; grant usage on domain dom to reader;
        create materialized view m as select 1 as x; grant select on m to writer;
        alter default privileges grant select on tables to reader; alter default privileges in schema s grant insert on tables to writer with grant option;
        alter default privileges revoke execute on functions from public; alter default privileges for role writer grant usage on sequences to reader;
        alter default privileges grant usage on schemas to reader; alter default privileges in schema s grant usage on types to public;
    "#;

    languages_access_methods_and_transforms_are_copied_by_a_superuser: r#"
        create trusted language mine handler plpgsql_call_handler inline plpgsql_inline_handler validator plpgsql_validator;
        create language "odd Lang" handler plpgsql_call_handler;
        create function f() returns int language mine as 'begin return 1; end';
        create access method heap2 type table handler heap_tableam_handler; create access method bt2 type index handler bthandler;
        create table t (a int) using heap2; create table u (a text); create materialized view m using heap2 as select 1 as a;
        create transform for int language sql (from sql with function prsd_lextype(internal), to sql with function int4recv(internal));
        create function with_transform(int) returns int language sql transform for type int as 'select 1';
        grant usage on language mine to public; revoke usage on language mine from public;
        comment on language mine is 'l'; comment on access method heap2 is 'a'; comment on transform for int language sql is 't';
    "#;

    tables_under_an_extensions_table_are_copied: r#"
        create extension hstore; create table parent (a int not null, b text default 'x'); alter extension hstore add table parent;
        alter extension hstore drop table parent; create table child (c int) inherits (parent);
        create table many (a int) partition by list (a); create table one partition of many for values in (1);
    "#;

    members_of_extensions_are_left_to_them: r#"
        create schema ext; create extension citext with schema ext; create extension pg_trgm; create extension hstore with schema ext; create extension btree_gist;
        create extension cube; create extension earthdistance;
        create table t (a ext.citext primary key, b text, c ext.hstore default ''::ext.hstore, d int, e tsrange, exclude using gist (d with =, e with &&));
        create index on t using gin (b gin_trgm_ops);
        create function f(ext.citext[]) returns ext.citext language sql as 'select $1[1]';
        alter function f(ext.citext[]) depends on extension citext; create trigger tr before insert on t for each row execute function tsvector_update_trigger(b, 'pg_catalog.simple', b);
        create view v as select a operator(ext.=) 'x'::ext.citext as x, b % 'y' as y from t;
        comment on extension citext is 'changed';
        grant execute on function show_limit() to pg_monitor;
    "#;
}

#[tokio::test]
async fn tables_are_told_with_what_copy_carries() {
    let (_, catalogue) = assert_copied(
        "create table t (a int, g int generated always as (a + 1) stored, \"B\" text); insert into t select n from generate_series(1, 1000) n; analyze t;
         create table p (a int) partition by range (a); create table p1 partition of p for values from (0) to (5);
         create materialized view m as select a from t; create view v as select 1;",
    )
    .await;
    let told: Vec<_> =
        catalogue.tables().iter().map(|t| (t.name.name.as_str(), t.kind, t.columns.join(","), t.readable)).collect();
    assert_eq!(
        told,
        [
            ("m", TableKind::MaterializedView, "a".to_owned(), true),
            ("p", TableKind::Partitioned, "a".to_owned(), true),
            ("p1", TableKind::Partition, "a".to_owned(), true),
            ("t", TableKind::Table, "a,B".to_owned(), true),
        ]
    );
    let t = &catalogue.tables()[3];
    assert_eq!((t.rows, t.bytes > 8192), (Some(1000.0), true));
    assert_eq!(catalogue.tables()[2].parents, [catalogue.tables()[1].oid]);
}

#[tokio::test]
async fn positions_of_sequences_are_copied() {
    let (source, catalogue) = assert_copied(
        "create sequence untouched start 5; create sequence used; select nextval('used'), nextval('used');
         create sequence \"set Back\"; select setval('\"set Back\"', 7, false); create table t (a int generated always as identity); insert into t default values;",
    )
    .await;
    let client = source.cluster.client("copy").await;
    for (sequence, wanted) in
        [("untouched", (5, false)), ("used", (2, true)), ("\"set Back\"", (7, false)), ("t_a_seq", (1, true))]
    {
        let row = client.query_one(&format!("select last_value, is_called from {sequence}"), &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), wanted, "{sequence}");
    }
    assert_eq!(catalogue.statements().iter().filter(|s| s.kind == Kind::SequenceValue).count(), 4);
}

#[tokio::test]
async fn materialized_views_are_filled_in_the_order_of_their_reading_and_only_if_the_source_has_them_filled() {
    let (source, _) = assert_copied(
        "create materialized view z as select 1 as a; create view m as select a from z; create materialized view a as select a + 1 as a from m;
         create materialized view empty as select 1 with no data;",
    )
    .await;
    let client = source.cluster.client("copy").await;
    let sum: i64 = client.query_one("select sum(a) from a", &[]).await.unwrap().get(0);
    assert_eq!(sum, 2);
    let filled: bool = client.query_one("select relispopulated from pg_class where relname = 'empty'", &[]).await.unwrap().get(0);
    assert!(!filled);
}

/// One object of nearly every kind, each leaning on others.
pub const EVERYTHING: &str = r#"
    create role all_reader;
    create schema everything; create schema "Every thing";
    create extension citext with schema "Every thing"; create extension pg_trgm with schema everything;
    create type everything.mood as enum ('a', 'b'); create domain everything.small as int check (value < 10) default 1;
    create type "Every thing".pair as (m everything.mood, s everything.small);
    create function everything.gap(float8, float8) returns float8 language sql immutable as 'select $1 - $2';
    create type everything.span as range (subtype = float8, subtype_diff = everything.gap);
    create collation everything.nordic (provider = icu, locale = 'sv');
    create aggregate everything.biggest(text) (sfunc = text_larger, stype = text);
    create function everything.same("Every thing".pair, "Every thing".pair) returns boolean language sql immutable as 'select $1.s = $2.s';
    create operator everything.=== (function = everything.same, leftarg = "Every thing".pair, rightarg = "Every thing".pair);
    create cast (everything.mood as "Every thing".pair) with inout;
    create text search dictionary everything.words (template = simple); create text search configuration everything.conf (copy = simple);
    create conversion everything.conv for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
    create sequence everything.seq;
    create table everything.things (id int primary key default nextval('everything.seq'), m everything.mood, s everything.small[], p "Every thing".pair,
        r everything.span, c text collate everything.nordic, i "Every thing".citext unique, g text generated always as (upper(c)) stored,
        check (p operator(everything.===) p));
    alter sequence everything.seq owned by everything.things.id;
    create table "Every thing".things (id bigint generated always as identity, at date, thing int references everything.things) partition by range (at);
    create table "Every thing".things_1 partition of "Every thing".things for values from ('2020-01-01') to ('2021-01-01');
    create table "Every thing".things_d partition of "Every thing".things default;
    create index on "Every thing".things (at); create index on everything.things using gin (c everything.gin_trgm_ops);
    create table everything.kid (k int) inherits (everything.things);
    create view everything.v as select id, everything.biggest(c) from everything.things group by id;
    create function everything.of_v() returns setof everything.v language sql begin atomic select * from everything.v; end;
    create materialized view everything.mv as select count(*) from everything.of_v(); create unique index on everything.mv (count);
    create function everything.hook() returns trigger language plpgsql as 'begin return new; end';
    create trigger hook before insert on "Every thing".things for each row execute function everything.hook();
    create rule quiet as on delete to everything.kid do instead nothing;
    alter table everything.kid enable row level security; create policy see on everything.kid using (id > 0);
    create statistics everything.st on m, c from everything.things;
    grant select on all tables in schema everything to all_reader; grant usage on schema everything to all_reader;
    comment on table everything.things is 'everything';
"#;

/// Partitions, heirs, circles, and keys between them.
pub const TANGLED: &str = r#"
    create schema tangled;
    create table tangled.p (id int primary key, r int, k text) partition by range (id);
    create table tangled.p1 partition of tangled.p for values from (0) to (10) partition by range (id);
    create table tangled.p1a partition of tangled.p1 for values from (0) to (5);
    create table tangled.p1b partition of tangled.p1 default;
    create table tangled.p2 partition of tangled.p default;
    create unique index on tangled.p (id, k);
    alter table tangled.p add foreign key (r) references tangled.p;
    create table tangled.of_p (id int primary key references tangled.p, r int references tangled.of_p);
    create function tangled.hook() returns trigger language plpgsql as 'begin return new; end';
    create trigger a before insert on tangled.p for each row execute function tangled.hook();
    create trigger b after insert on tangled.p for each row execute function tangled.hook();
    alter table tangled.p1 disable trigger b; alter table tangled.p1b enable always trigger b;
    create table tangled.base (a int default 1 not null, b text); create table tangled.heir (c int) inherits (tangled.base);
    alter table tangled.heir alter a set default 2; create table tangled.tied (b text, a int not null); alter table tangled.tied inherit tangled.base;
    create view tangled.looped as select 1 as a; create function tangled.rows_of() returns setof tangled.looped language sql as 'select 1';
    create or replace view tangled.looped as select a from tangled.rows_of();
    create table tangled.t (a int primary key, b int); create view tangled.grouped as select a, b from tangled.t group by a;
    create function tangled.next_a() returns int language sql stable return (select max(a) + 1 from tangled.grouped);
    alter table tangled.t alter b set default tangled.next_a(); create table tangled.of_view (g tangled.grouped);
    create materialized view tangled.m2 as select a from tangled.grouped; create materialized view tangled.m1 as select a from tangled.m2;
    create unique index on tangled.m2 (a); create index on tangled.m1 (a);
"#;
