//! Objects that need each other, names that need quotes, and everything at once.

use bullwork::postgres::Database;
use bullwork::replication::ddl::{Catalogue, Kind, Options};
use std::path::{Path, PathBuf};

use super::{Source, assert_copied, assert_copy, file};
use crate::support::guillotine::{Edge, Guillotine};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

#[tokio::test]
async fn the_demos_database_is_copied() {
    let source = Source::of(&file("data/source/schema.sql")).await;
    source.cluster.load("source", &data("source/seed.sql"));
    assert_copy(&source).await;
}

#[tokio::test]
async fn the_demos_older_target_is_copied() {
    let source = Source::of("").await;
    source.cluster.load("source", &data("target/day0.sql"));
    assert_copy(&source).await;
}

#[tokio::test]
async fn a_view_and_a_function_over_its_rows_are_copied() {
    let (_, catalogue) = assert_copied(
        "create view looped as select 1 as a, 'x'::varchar(4) collate \"C\" as \"B b\";
         create function rows_of() returns setof looped language sql as 'select * from looped';
         create or replace view looped as select a, \"B b\" from rows_of();
         create view above as select * from looped; comment on view looped is 'v';
         create view selfish as select 1 as a; create function of_row(selfish) returns int language sql as 'select 1';
         create or replace view selfish as select of_row(null::selfish) as a;",
    )
    .await;
    assert_eq!(catalogue.statements().iter().filter(|s| s.kind == Kind::ShellView).count(), 2);
}

#[tokio::test]
async fn tables_whose_defaults_checks_and_generated_columns_use_functions_over_them_are_copied() {
    assert_copied(
        "create table t (a int, b int default 1);
         create function next_a() returns int language sql stable return (select max(a) + 1 from t);
         create function fits(t) returns boolean language sql immutable as 'select true';
         create function is_free(int) returns boolean language sql stable begin atomic select not exists (select from t where a = $1); end;
         create function twice(int) returns int language sql immutable begin atomic select $1 * 2 from t limit 1; end;
         alter table t alter a set default next_a(), alter b set default next_a() + 1;
         alter table t add check (fits(t)), add constraint free check (is_free(b));
         alter table t add column g int generated always as (twice(b)) stored;
         create index on t (twice(a)); comment on constraint free on t is 'c';",
    )
    .await;
}

#[tokio::test]
async fn what_needs_a_key_before_the_rows_is_copied() {
    assert_copied(
        "create table t (a int primary key, b text);
         create view grouped as select a, b from t group by a;
         create function of_grouped() returns setof grouped language sql as 'select * from grouped';
         create function one_of() returns int language sql return (select b::int from t group by a limit 1);
         create table needs_view (g grouped, n int default one_of());
         create table needs_many (g grouped[], primary key (g));
         create materialized view stored as select a, b from t group by a;
         create function takes(stored) returns int language sql immutable as 'select 1';
         create table needs_stored (s stored, c int check (takes(null) > c));
         create view last_one as select (g).a from needs_view;",
    )
    .await;
}

#[tokio::test]
async fn names_that_need_quotes_are_copied() {
    assert_copied(
        r#"create schema "S ""q"" ü"; create schema "select";
        create table "S ""q"" ü"."T'a b\l$e" ("a.b" int primary key, "c""d" text default 'x''y\z', "Ünï" int references "S ""q"" ü"."T'a b\l$e", "%I" serial, "user" int check ("user" > 0));
        create table "select"."T'a b\l$e" ("a.b" int generated always as identity, "from" int[] not null, unique ("a.b", "from"));
        create index "i ""x"" on y" on "S ""q"" ü"."T'a b\l$e" (lower("c""d")) where "a.b" > 0;
        create type "select"."enum" as enum ('a,b', '"', E'new\nline');
        create domain "select"."a on b" as int constraint "c on d" check (value > 0);
        create function "select"."f.g"("A" "select"."enum", "b c" int default 3) returns "S ""q"" ü"."T'a b\l$e" language sql as $_$ select null::"S ""q"" ü"."T'a b\l$e" $_$;
        create view "select"."V" as select "a.b" as "x y", "c""d" as "select" from "S ""q"" ü"."T'a b\l$e";
        create materialized view "select"."M""v" as select 1 as "1";
        create function "t r"() returns trigger language plpgsql as 'begin return new; end';
        create trigger "t ""r" before update of "c""d" on "S ""q"" ü"."T'a b\l$e" for each row execute function "t r"('a''b', E'c\\d');
        create rule "r u" as on delete to "select"."V" do instead nothing;
        create policy "p o" on "select"."T'a b\l$e" using ("from" is not null);
        create statistics "st at" on "a.b", "Ünï" from "S ""q"" ü"."T'a b\l$e";
        create sequence "se q"; create collation "co l" from "C"; create operator "S ""q"" ü".+! (function = int4pl, leftarg = int, rightarg = int);
        comment on table "S ""q"" ü"."T'a b\l$e" is 'it''s \ "q"'; comment on column "S ""q"" ü"."T'a b\l$e"."c""d" is E'\\';
        comment on constraint "c on d" on domain "select"."a on b" is 'd'; comment on index "S ""q"" ü"."i ""x"" on y" is 'i';
        comment on trigger "t ""r" on "S ""q"" ü"."T'a b\l$e" is 't'; comment on function "select"."f.g"("select"."enum", int) is 'f';
        comment on statistics "st at" is 's'; comment on policy "p o" on "select"."T'a b\l$e" is 'p'; comment on type "select"."enum" is 'e';
        create role "R o""l'e"; grant select ("c""d") on "S ""q"" ü"."T'a b\l$e" to "R o""l'e"; grant all on schema "select" to "R o""l'e";
        grant execute on function "select"."f.g"("select"."enum", int) to "R o""l'e"; grant usage on sequence "se q" to "R o""l'e"; grant usage on type "select"."a on b" to "R o""l'e";
        create table "p a" ("k K" int) partition by list ("k K"); create table "select"."p ""1" partition of "p a" for values in (1); create index on "p a" ("k K");"#,
    )
    .await;
}

/// The same objects as are made by `ODD` in another order, so with other oids.
const EVEN: &str = "
    create type mood as enum ('sad', 'glad');
    create function label(int) returns text language sql immutable return 'l' || $1;
    create sequence numbers;
    create table a (id int primary key default nextval('numbers'), m mood default 'sad', t text default label(1), b_id int, constraint long check (length(t) < 9));
    create table b (id int primary key, a_id int references a);
    alter table a add constraint a_b foreign key (b_id) references b;
    create view v as select id, m, label(id) as l from a;
    create view w as select v.id, b.a_id from v join b on b.a_id = v.id;
    create index a_t on a (t); create index b_a on b (a_id);
    alter sequence numbers owned by a.id;";

const ODD: &str = "
    create table b (a_id int, id int); alter table b drop column a_id, drop column id; alter table b add id int, add a_id int;
    create view w as select 1 as id, 2 as a_id; create view v as select 3 as id;
    create table a (id int, m text, t text, b_id int);
    create index a_t on a (t); create index b_a on b (a_id);
    create function label(int) returns text language sql immutable as 'select null::text';
    create type mood as enum ('glad'); alter type mood add value 'sad' before 'glad';
    alter table a add primary key (id); alter table b add primary key (id);
    alter table a alter m type mood using null; alter table a alter t set default label(1);
    alter table a add constraint long check (length(t) < 9);
    create or replace function label(int) returns text language sql immutable return 'l' || $1;
    alter table a add constraint a_b foreign key (b_id) references b; alter table b add foreign key (a_id) references a;
    create sequence numbers; alter table a alter id set default nextval('numbers');
    drop view w; drop view v; alter table a alter m set default 'sad';
    create view v as select id, m, label(id) as l from a;
    create view w as select v.id, b.a_id from v join b on b.a_id = v.id;
    alter sequence numbers owned by a.id;";

#[tokio::test]
async fn the_order_of_making_does_not_show_in_the_statements() {
    let (_, even) = assert_copied(EVEN).await;
    let (_, odd) = assert_copied(ODD).await;
    let told = |c: &bullwork::replication::ddl::Catalogue| c.statements().iter().map(|s| s.sql.clone()).collect::<Vec<_>>();
    assert_eq!(told(&even), told(&odd));
}

/// A copy of a copy has other oids and gives the same statements.
#[tokio::test]
async fn everything_together_is_copied_and_its_copy_too() {
    let all: String = [super::kinds::EVERYTHING, &file("data/source/schema.sql"), EVEN].concat();
    let mut source = Source::of(&all).await;
    let first = assert_copy(&source).await;
    source.name = "copy".to_owned();
    let options = Options { superuser: true, privileges: true, ..Options::default() };
    let second = source.read(&options).await;
    source.copy("copy of copy", &second).await;
    source.assert_equal("copy of copy", &[]);
    let told = |c: &bullwork::replication::ddl::Catalogue| c.statements().iter().map(|s| s.sql.clone()).collect::<Vec<_>>();
    assert_eq!(first.refusals(), [], "nothing is refused to a superuser here");
    assert_eq!(told(&first).len(), told(&second).len());
}

/// Statements that reading a catalogue takes.
async fn statements(source: &Source, tables: usize) -> usize {
    const MANY: usize = 1_000_000;
    let guillotine = Guillotine::start(source.cluster.port).await;
    let (own, its) = (format!(":{}/", source.cluster.port), format!(":{}/", guillotine.port));
    let url = format!("{}?sslmode=disable", source.cluster.url(&source.name).replace(&own, &its));
    let session = Database::parse(&url).unwrap().connect("test").await.unwrap();
    session.batch_execute("begin isolation level repeatable read read only").await.unwrap();
    guillotine.arm(MANY, Edge::Before);
    let catalogue = Catalogue::read(&session, &Options::default()).await.unwrap();
    assert_eq!(catalogue.statements().iter().filter(|s| s.kind == Kind::Table).count(), tables);
    MANY - guillotine.left().expect("nothing was cut")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tables_are_read_with_as_many_statements_as_one() {
    let one = Source::of("create table t (id int primary key); create view v as select id from t").await;
    let source = Source::of(
        "select format('create table t%s (id bigserial primary key, a int references t%s, b text not null default %L, c timestamptz, d jsonb, e int check (e > 0), unique (a, b)); create index on t%s (c); comment on column t%s.c is %L',
           n, greatest(n - 1, 1), 'x', n, n, 'when') from generate_series(1, 1000) n \\gexec
         select format('create view v%s as select a.id, b.b from t%s a join t%s b on a.id = b.id', n, n, n) from generate_series(1, 300) n \\gexec
         analyze;",
    )
    .await;
    let (few, many) = (statements(&one, 1).await, statements(&source, 1000).await);
    assert!(few > 10 && many <= few + 5, "{many} statements instead of {few}");
}
