//! What is left out by choice, what cannot be copied, and what goes with it.

use bullwork::postgres::Database;
use bullwork::replication::ddl::{Catalogue, Cause, Chosen, DdlError, Kind, Options, Refusal, SESSION, Statement};
use bullwork::replication::settings::TableName;

use super::Source;

fn made(catalogue: &Catalogue) -> Vec<String> {
    let mut names: Vec<String> = catalogue
        .statements()
        .iter()
        .filter(|s| matches!(s.kind, Kind::Table | Kind::View | Kind::Sequence | Kind::Function | Kind::MaterializedView))
        .map(|s| s.name.clone())
        .collect();
    names.sort();
    names
}

fn refused(catalogue: &Catalogue) -> Vec<String> {
    catalogue.refusals().iter().map(|Refusal { kind, name, cause, .. }| format!("{kind:?} {name}: {cause:?}")).collect()
}

fn of_kind(catalogue: &Catalogue, kind: Kind) -> Vec<&Statement> {
    catalogue.statements().iter().filter(|s| s.kind == kind).collect()
}

const RELATED: &str = "
    create table wanted (id serial primary key, n int);
    create table unwanted (id serial primary key, w int references wanted, n int unique, p int);
    create sequence shared owned by unwanted.p; alter table wanted add m int default nextval('shared');
    alter table wanted add foreign key (n) references unwanted (n);
    create index on unwanted (p); comment on column unwanted.p is 'p';
    create view over as select * from unwanted; create view above as select * from over; create view beside as select * from wanted;
    create materialized view stored as select * from above;
    create function of_it() returns setof unwanted language sql as 'select * from unwanted';
    create table parts (a int) partition by range (a); create table part partition of parts for values from (0) to (3);
    create index on parts (a);";

#[tokio::test]
async fn a_table_that_is_left_out_takes_along_what_needs_it_and_this_is_told() {
    let source = Source::of(RELATED).await;
    let without = ["unwanted", "part"].map(|t| Chosen::Name(TableName::public(t))).to_vec();
    let catalogue = source.read(&Options { without, ..Options::default() }).await;
    assert_eq!(made(&catalogue), ["beside", "parts", "wanted", "wanted_id_seq"]);
    assert_eq!(
        refused(&catalogue),
        [
            "Function of_it(): Needs",
            "Default wanted m: Needs",
            "View above: Needs",
            "View over: Needs",
            "MaterializedView stored: Needs",
            "Refresh stored: Needs",
            "ForeignKey wanted wanted_n_fkey: Needs",
            "ForeignKeyValidation wanted wanted_n_fkey: Needs",
        ]
    );
    assert!(
        catalogue.refusals().iter().any(|r| r.reason.contains("View public.over, which is not copied")),
        "{:?}",
        catalogue.refusals()
    );
    assert!(!catalogue.tables().iter().any(|t| t.name.name == "unwanted" || t.name.name == "part"));
    source.copy("copy", &catalogue).await;
}

#[tokio::test]
async fn a_kept_table_is_not_made_but_what_needs_it_is() {
    let source = Source::of(RELATED).await;
    let all = source.read(&Options::default()).await;
    let oid = all.tables().iter().find(|t| t.name.name == "unwanted").unwrap().oid;
    let catalogue = source.read(&Options { kept: vec![Chosen::Oid(oid)], ..Options::default() }).await;
    assert_eq!(made(&catalogue), ["above", "beside", "of_it()", "over", "part", "parts", "stored", "wanted", "wanted_id_seq"]);
    assert_eq!(refused(&catalogue), Vec::<String>::new());
    assert_eq!(of_kind(&catalogue, Kind::Comment).len(), 0);
    assert_eq!(of_kind(&catalogue, Kind::ForeignKey).len(), 1, "the other table's key is made, its own is not");
    // The target has it: the rest runs.
    source.run("postgres", "create database copy2");
    source.run("copy2", "create table unwanted (id int primary key, w int, n int unique, p int); create sequence shared");
    let session = source.connect("copy2").await;
    session.batch_execute(SESSION).await.unwrap();
    for statement in catalogue.statements() {
        session.batch_execute(&statement.sql).await.unwrap_or_else(|e| panic!("{}: {e:?}", statement.sql));
    }
}

#[tokio::test]
async fn a_schema_that_is_left_out_takes_along_what_needs_it() {
    let source = Source::of(
        "create schema gone; create type gone.mood as enum ('a'); create table gone.t (a int); comment on table gone.t is 'x'; create function gone.f() returns int language sql as 'select 1';
         create table t (a int, m gone.mood); create table u (a int default gone.f(), b int check (b > gone.f())); create view v as select * from u; create index on u ((a + 1)); grant select on gone.t to public;",
    )
    .await;
    let options = Options { without_schemas: vec!["gone".to_owned()], privileges: true, ..Options::default() };
    let catalogue = source.read(&options).await;
    assert_eq!(made(&catalogue), ["u", "v"]);
    assert_eq!(
        refused(&catalogue),
        ["Table t: Needs", "Default u a: Needs", "Check u u_check: Needs"].map(|s| s.replace("u_check", "u_b_check"))
    );
    source.copy("copy", &catalogue).await;
}

const FORBIDDEN: &str = r#"
    create extension postgres_fdw;
    create server far foreign data wrapper postgres_fdw options (host 'h'); create user mapping for public server far options (password 'topsecret');
    create foreign table distant (a int) server far; create view over_distant as select * from distant; comment on foreign table distant is 'far';
    create function hook() returns event_trigger language plpgsql as 'begin end'; create event trigger watch on ddl_command_end execute function hook();
    create publication pub for all tables; create table t (a int primary key, b point default null);
    create function in_c(int) returns int language internal immutable as 'int4abs'; create table u (a int default in_c(1), check (in_c(a) > 0)); create index on u (in_c(a)); create view v as select in_c(a) from u;
    create function quiet(int) returns boolean language sql immutable leakproof parallel safe as 'select true'; create index on t (quiet(a));
    create function loud() returns int language sql set log_statement = 'all' as 'select 1';
    create operator class down for type int using btree as operator 1 >, operator 2 >=, operator 3 =, operator 4 <=, operator 5 <, function 1 btint4cmp(int, int);
    create table w (a int); create index w_down on w (a down);
    create cast (int as point) without function;
    create text search template tem (lexize = dsimple_lexize); create text search dictionary of_tem (template = tem);
    select lo_create(0);
    create subscription sub connection 'host=nowhere' publication x with (connect = false);
    create role plain login password 'plain'; alter database source owner to plain;
"#;

#[tokio::test]
async fn what_needs_a_superuser_or_holds_secrets_is_refused_with_what_needs_it_and_the_rest_is_made_by_a_plain_role() {
    let sql = FORBIDDEN.replace(
        "create cast (int as point) without function;",
        "create type mood as enum ('a'); create domain moods as mood; create cast (bigint as mood) with inout;",
    );
    let source = Source::of(&sql).await;
    let catalogue = source.read(&Options::default()).await;
    let told = refused(&catalogue);
    for wanted in [
        "ForeignServer far: Secret",
        "UserMapping far for public: Secret",
        "ForeignTable distant: Secret",
        "View over_distant: Needs",
        "EventTrigger watch: Superuser",
        "Publication pub: Superuser",
        "Subscription sub: Secret",
        "Function in_c(integer): Superuser",
        "Default u a: Needs",
        "Check u u_a_check: Needs",
        "Index u u_in_c_idx: Needs",
        "View v: Needs",
        "Function quiet(integer): Property",
        "Function loud(): Superuser",
        "OperatorClass down using btree: Superuser",
        "Index w w_down: Needs",
        "TextSearchTemplate tem: Superuser",
        "TextSearchDictionary of_tem: Needs",
        "LargeObject 1 large objects: Secret",
    ] {
        assert!(told.iter().any(|t| t == wanted), "{wanted} in {told:#?}");
    }
    assert_eq!(catalogue.refusals().iter().filter(|r| r.kind == Kind::OperatorFamily).count(), 1);
    let shown = format!("{:?} {:?}", catalogue.statements(), catalogue.refusals());
    assert!(!shown.contains("topsecret") && !shown.contains("nowhere"), "no secret is read");
    assert!(!of_kind(&catalogue, Kind::Function).iter().any(|s| s.sql.contains("LEAKPROOF")));
    assert_eq!(catalogue.tables().iter().map(|t| t.name.name.as_str()).collect::<Vec<_>>(), ["t", "u", "w"]);

    // A plain role can run all that is left, but for the extension, which is not a trusted one.
    source.run("postgres", "create database copy owner plain");
    source.run("copy", "create extension postgres_fdw; alter schema public owner to plain");
    let url = source.cluster.url("copy");
    let at = url.find('@').unwrap();
    let session = Database::parse(&format!("postgres://plain:plain{}", &url[at..])).unwrap().connect("test").await.unwrap();
    session.batch_execute(SESSION).await.unwrap();
    for statement in catalogue.statements() {
        session.batch_execute(&statement.sql).await.unwrap_or_else(|e| panic!("{}: {e:?}", statement.sql));
    }
}

#[tokio::test]
async fn to_a_superuser_fewer_things_are_refused() {
    let source = Source::of(&FORBIDDEN.replace("create cast (int as point) without function;", "")).await;
    let catalogue = source.read(&Options { superuser: true, ..Options::default() }).await;
    let causes = |cause| catalogue.refusals().iter().filter(|r| r.cause == cause).map(|r| r.name.as_str()).collect::<Vec<_>>();
    assert_eq!(causes(Cause::Superuser), ["watch", "pub"]);
    assert_eq!(causes(Cause::Needs), ["over_distant"]);
    source.copy("copy", &catalogue).await;
}

#[tokio::test]
async fn rows_that_extensions_say_are_the_users_are_among_the_tables() {
    let source = Source::of("").await;
    source.run(
        "source",
        "create extension hstore; create table settings (k text, own boolean); create table plain (a int); insert into plain values (1);
         alter extension hstore add table settings;
         update pg_extension set extconfig = array['settings'::regclass::oid], extcondition = array['where own'] where extname = 'hstore';",
    );
    let catalogue = source.read(&Options::default()).await;
    let told: Vec<_> = catalogue.tables().iter().map(|t| (t.name.name.as_str(), t.kind, t.condition.as_deref())).collect();
    use bullwork::replication::ddl::TableKind::{Extension, Table};
    assert_eq!(told, [("plain", Table, None), ("settings", Extension, Some("where own"))]);
    assert_eq!(of_kind(&catalogue, Kind::Table).len(), 1, "the extension makes its own");
}

#[tokio::test]
async fn roles_that_may_be_missing_are_told() {
    let source = Source::of(
        "create role reader; create table t (a int); grant select on t to reader, public; create policy p on t to reader using (true);
         alter default privileges grant select on tables to reader;",
    )
    .await;
    let catalogue = source.read(&Options { privileges: true, ..Options::default() }).await;
    let roles = |kind| of_kind(&catalogue, kind).iter().map(|s| s.roles.join(",")).collect::<Vec<_>>();
    assert_eq!(roles(Kind::Grant), ["reader", ""]);
    assert_eq!(roles(Kind::Policy), ["reader"]);
    assert_eq!(roles(Kind::DefaultPrivileges), ["owner,reader"]);
    let silent = source.read(&Options::default()).await;
    assert_eq!(of_kind(&silent, Kind::Grant).len() + of_kind(&silent, Kind::DefaultPrivileges).len(), 0);
}

/// What a role that may only read sees is what the owner sees, but for what it may not read.
#[tokio::test]
async fn a_role_that_owns_nothing_reads_the_same_statements() {
    let source = Source::of(
        &[super::kinds::EVERYTHING, super::kinds::TANGLED, "create role looker login password 'look' in role pg_read_all_data;"]
            .concat(),
    )
    .await;
    let options = Options { privileges: true, superuser: true, ..Options::default() };
    let owners = source.read(&options).await;
    let url = source.cluster.url("source");
    let at = url.find('@').unwrap();
    let session = Database::parse(&format!("postgres://looker:look{}", &url[at..])).unwrap().connect("test").await.unwrap();
    session.batch_execute("begin isolation level repeatable read read only").await.unwrap();
    let lookers = Catalogue::read(&session, &options).await.unwrap();
    assert_eq!(lookers.statements(), owners.statements());
    assert_eq!(lookers.refusals(), owners.refusals());
    // Row-level security would hide rows from it.
    let hidden: Vec<_> = lookers.tables().iter().filter(|t| !t.readable).map(|t| t.name.name.as_str()).collect();
    assert_eq!(hidden, ["kid"]);

    source.run("source", "create table private (a int); create sequence private_seq; revoke pg_read_all_data from looker");
    session.batch_execute("commit; begin isolation level repeatable read read only").await.unwrap();
    let lookers = Catalogue::read(&session, &options).await.unwrap();
    assert!(lookers.tables().iter().any(|t| t.name.name == "private" && !t.readable));
    let positions =
        |c: &Catalogue| c.refusals().iter().filter(|r| r.kind == Kind::SequenceValue && r.cause == Cause::Property).count();
    assert_eq!(positions(&lookers), of_kind(&lookers, Kind::Sequence).len() + 1, "plain ones, and that of the identity column");
}

#[tokio::test]
async fn reading_outside_a_transaction_is_refused() {
    let source = Source::of("").await;
    let session = source.connect("source").await;
    let refused = Catalogue::read(&session, &Options::default()).await.unwrap_err();
    assert!(matches!(refused, DdlError::NoTransaction), "{refused}");
}

/// What is read is of the transaction's moment, and its settings end with it.
#[tokio::test]
async fn the_catalogue_is_read_as_of_the_snapshot() {
    let source = Source::of("create table before (a int)").await;
    let session = source.connect("source").await;
    session.batch_execute("begin isolation level repeatable read read only; select 1").await.unwrap();
    source.run("source", "create table after (a int)");
    let catalogue = Catalogue::read(&session, &Options::default()).await.unwrap();
    assert_eq!(made(&catalogue), ["before"]);
    session.batch_execute("commit").await.unwrap();
    let path: String = session.query_one("show search_path", &[]).await.unwrap().get(0);
    assert_eq!(path, "\"$user\", public");
}
