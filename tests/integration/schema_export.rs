//! The schema export between two real databases.

use std::time::Duration;

use bullwork::config::{Environment, Reader};
use bullwork::jobs::schema_export::{Payload, SchemaExport};
use bullwork::worker::{JobContext, JobKind, Outcome, Record};
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::lines::Lines;
use crate::support::postgres::{Cluster, programs};

/// A schema with what makes exports fail: mixed case, cycles, functions in defaults, types used by
/// functions and tables, views that need a primary key, partitions, comments.
const WAREHOUSE: &str = r#"
create schema "Other Schema";
create type mood as enum ('good', 'bad');
create type pair as (a int, b mood);
create domain positive as int check (value > 0);
create type span as range (subtype = int);
create function next_code() returns text language sql as $$ select 'x' $$;
create function f(mood) returns int language sql as $$ select 1 $$;
create function f(int, text) returns int language plpgsql as $$ begin /*
\restrict looks like a meta-command
*/ return 2; end $$;
create aggregate total(int) (sfunc = int4pl, stype = int, initcond = '0');
create procedure p() language sql as $$ select 1 $$;
create table "knowledge-elements" (id serial primary key, "createdAt" timestamptz default now(), state mood not null default 'good', code text default next_code());
create table b (id int generated always as identity primary key, n positive);
create table a (id bigint primary key, b int references b);
alter table b add a bigint references a;
create function of_row(a) returns text language sql as $$ select 'cycle' $$;
alter table a add computed text generated always as (id::text || 'x') stored;
create table parts (id int, at date) partition by range (at);
create table parts_1 partition of parts for values from ('2024-01-01') to ('2025-01-01');
create table "Other Schema"."t""able" (x int[], y jsonb, m mood[]);
create index "partial-index" on "knowledge-elements" ("createdAt") where state = 'good';
create view grouped as select id, "createdAt", count(*) from "knowledge-elements" group by id;
create view stacked as select id from grouped;
create materialized view mat as select id from a;
create unique index on mat (id);
create sequence odd start 41 increment 7;
create statistics stat on id, state from "knowledge-elements";
create function trig() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger t before insert on a for each row execute function trig();
comment on table a is 'it''s \ commented';
comment on column a.id is 'key';
comment on schema "Other Schema" is 'other';
create role somebody;
grant select on a to somebody;
insert into a values (1, null);
insert into "knowledge-elements" default values;
create schema bullwork;
create table bullwork.watermark (x int);
"#;

struct Setup {
    cluster: Cluster,
    warehouse: Client,
    catalogue: Client,
}

impl Setup {
    async fn new() -> Setup {
        let cluster = Cluster::start();
        let warehouse = cluster.create("warehouse").await;
        let catalogue = cluster.create("catalogue").await;
        warehouse.batch_execute(WAREHOUSE).await.expect("the schema is right");
        Setup { cluster, warehouse, catalogue }
    }

    fn kind(&self, more: &[(&str, &str)]) -> SchemaExport {
        let mut pairs: Vec<(String, String)> = vec![
            ("DB_SCHEMA_EXPORTER_ENABLED".into(), "true".into()),
            ("DB_SCHEMA_EXPORTER_DATABASE_TARGET".into(), self.cluster.url("catalogue")),
            ("DATABASE_URL".into(), self.cluster.url("warehouse")),
        ];
        pairs.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        let environment = Environment::of(pairs);
        let reader = Reader::new(&environment);
        let kind = SchemaExport::from_settings(&reader);
        reader.finish().expect("the configuration is right");
        kind
    }

    async fn run_with(&self, kind: &SchemaExport, stop: CancellationToken) -> (Result<Outcome, String>, Vec<Record>) {
        let (run, lines) = Lines::of_run(stop);
        let context = JobContext { payload: Payload::default(), attempt: 1, attempts: 1, run, memory: None };
        let result = kind.run(&context).await.map_err(|e| format!("{e:#}"));
        (result, lines.records())
    }

    async fn run(&self) -> Result<Outcome, String> {
        self.run_with(&self.kind(&[]), CancellationToken::new()).await.0
    }

    async fn exports(&self) -> Value {
        match self.run().await.expect("the export succeeds") {
            Outcome::Done(value) => value,
            other => panic!("{other:?}"),
        }
    }
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

/// Every column, constraint, index, function, type and comment outside our own schema, as text.
async fn definitions(client: &Client) -> String {
    one(
        client,
        "select string_agg(t, E'\\n' order by t) from (
            select format('column %s.%s.%s %s %s', n.nspname, relname, attname, format_type(atttypid, atttypmod), attnotnull)
            from pg_attribute join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
            where attnum > 0 and not attisdropped and n.nspname !~ '^(pg_|information|bullwork)'
            union all select format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(c.oid)) from pg_constraint c
            where c.oid >= 16384 and connamespace <> coalesce(to_regnamespace('bullwork'), 0)
            union all select 'view ' || viewname || definition from pg_views where schemaname !~ '^(pg_|information)'
            union all select indexdef from pg_indexes where schemaname !~ '^(pg_|bullwork)'
            union all select format('%s %s', p.oid::regprocedure, prosrc) from pg_proc p where p.oid >= 16384
            union all select format('enum %s %s', enumtypid::regtype, enumlabel) from pg_enum
            union all select format('trigger %s', pg_get_triggerdef(t.oid)) from pg_trigger t where not tgisinternal
            union all select format('sequence %s %s %s', sequencename, start_value, increment_by) from pg_sequences
            union all select format('comment %s %s', objsubid, description) from pg_description where objoid >= 16384
                and description not like '%may drop%'
        ) as x(t)",
    )
    .await
}

#[tokio::test]
async fn all_definitions_and_comments_arrive_without_rows_owners_and_grants() {
    let setup = Setup::new().await;
    let (result, records) = setup.run_with(&setup.kind(&[]), CancellationToken::new()).await;
    let Outcome::Done(value) = result.unwrap() else { panic!() };
    assert!(value["objects"].as_u64().unwrap() > 15 && value["removed"] == json!(0), "{value}");
    assert_eq!(definitions(&setup.catalogue).await, definitions(&setup.warehouse).await);
    assert_eq!(one::<i64>(&setup.catalogue, "select count(*) from a").await, 0);
    assert!(!one::<bool>(&setup.catalogue, "select has_table_privilege('somebody', 'a', 'select')").await);
    assert!(
        one::<bool>(&setup.catalogue, "select to_regclass('bullwork.watermark') is null").await,
        "our own state is not exported"
    );
    let lines: Vec<(&str, &Value)> = records.iter().map(|r| (r.message.as_str(), &r.fields["event"])).collect();
    let event = json!("db-schema-exporter");
    assert_eq!(lines, [("Data Catalog enrichment starting", &event), ("Data Catalog enrichment ended successfully", &event)]);
}

#[tokio::test]
async fn the_second_day_follows_every_change_and_removes_what_is_gone() {
    let setup = Setup::new().await;
    setup.exports().await;
    assert_eq!(setup.exports().await["removed"], json!(0), "a day without changes");
    setup
        .warehouse
        .batch_execute(
            "drop view stacked; drop function f(mood); drop schema \"Other Schema\" cascade; drop materialized view mat;
             alter table a add more text; create table fresh (id int primary key); alter type mood add value 'fair';
             alter table b drop column n; drop domain positive",
        )
        .await
        .unwrap();
    let value = setup.exports().await;
    assert_eq!(value["removed"], json!(6), "{value}");
    assert_eq!(definitions(&setup.catalogue).await, definitions(&setup.warehouse).await);
}

#[tokio::test]
async fn a_target_error_fails_the_job_and_the_catalogue_keeps_yesterdays() {
    let setup = Setup::new().await;
    setup.exports().await;
    let yesterday = definitions(&setup.catalogue).await;
    // The catalogue's owner has made a table of the name that the warehouse uses from today on.
    setup.catalogue.batch_execute("create table taken (theirs int)").await.unwrap();
    setup.warehouse.batch_execute("create table taken (id int); drop view stacked").await.unwrap();
    let (result, records) = setup.run_with(&setup.kind(&[]), CancellationToken::new()).await;
    let error = result.unwrap_err();
    assert!(error.contains("making the definitions in the catalogue") && error.contains("\"taken\" already exists"), "{error}");
    assert!(!records.iter().any(|r| r.message.contains("successfully")));
    setup.catalogue.batch_execute("drop table taken").await.unwrap();
    assert_eq!(definitions(&setup.catalogue).await, yesterday);
}

#[tokio::test]
async fn what_others_made_in_the_catalogue_is_never_dropped() {
    let setup = Setup::new().await;
    setup.exports().await;
    setup.catalogue.batch_execute("create table notes (t text); insert into notes values ('theirs')").await.unwrap();
    setup.exports().await;
    assert_eq!(one::<String>(&setup.catalogue, "select t from notes").await, "theirs");

    for (theirs, named) in [
        ("create view mine as select id from a", "rule _RETURN on view mine on"),
        ("alter table notes add feeling mood", "column feeling of table notes on type mood"),
        ("alter table notes add a bigint references a", "on table notes on"),
        ("create table \"Other Schema\".mine (x int)", "table \"Other Schema\".mine on schema Other Schema"),
    ] {
        setup.catalogue.batch_execute(&format!("begin; {theirs}; commit")).await.unwrap();
        let before = definitions(&setup.catalogue).await;
        let error = setup.run().await.unwrap_err();
        assert!(error.contains("not made by the export") && error.contains(named), "{theirs}: {error}");
        assert_eq!(definitions(&setup.catalogue).await, before, "{theirs}");
        setup
            .catalogue
            .batch_execute("drop view if exists mine; alter table notes drop column if exists feeling, drop column if exists a; drop table if exists \"Other Schema\".mine")
            .await
            .unwrap();
    }
    setup.exports().await;
}

#[tokio::test]
async fn a_catalogue_that_the_reference_filled_is_taken_over() {
    let setup = Setup::new().await;
    setup.exports().await;
    // As the reference left it: the objects, an older shape of one, and no list of ours.
    setup.catalogue.batch_execute("drop schema bullwork cascade; alter table a drop column computed").await.unwrap();
    setup.exports().await;
    assert_eq!(definitions(&setup.catalogue).await, definitions(&setup.warehouse).await);
}

#[tokio::test]
async fn a_database_with_rows_in_it_is_never_emptied_by_a_wrong_url() {
    let setup = Setup::new().await;
    let production = setup.cluster.create("production").await;
    production
        .batch_execute("create table a (id bigint primary key); insert into a values (7); create table b (x int)")
        .await
        .unwrap();
    let kind = setup.kind(&[("DB_SCHEMA_EXPORTER_DATABASE_TARGET", &setup.cluster.url("production"))]);
    let error = setup.run_with(&kind, CancellationToken::new()).await.0.unwrap_err();
    assert!(error.contains("public.a holds rows") && error.contains("a database of its own"), "{error}");
    assert_eq!(one::<i64>(&production, "select id from a").await, 7);
    assert!(one::<bool>(&production, "select to_regclass('b') is not null and to_regnamespace('bullwork') is null").await);
}

#[tokio::test]
async fn the_warehouse_itself_is_refused_under_any_url() {
    let setup = Setup::new().await;
    let disguised = setup.cluster.url("warehouse").replace("127.0.0.1", "localhost");
    let kind = setup.kind(&[("DB_SCHEMA_EXPORTER_DATABASE_TARGET", &disguised)]);
    let before = definitions(&setup.warehouse).await;
    let (result, _) = setup.run_with(&kind, CancellationToken::new()).await;
    let Outcome::Refuse(reason) = result.unwrap() else { panic!("trying again would not help") };
    assert!(reason.contains("is the warehouse itself"), "{reason}");
    assert_eq!(definitions(&setup.warehouse).await, before);
}

#[tokio::test]
async fn production_is_never_the_catalogue() {
    let setup = Setup::new().await;
    let production = setup.cluster.url("catalogue").replace("127.0.0.1", "localhost");
    let kind = setup.kind(&[("SOURCE_DATABASE_URL", &production)]);
    let (result, _) = setup.run_with(&kind, CancellationToken::new()).await;
    let Outcome::Refuse(reason) = result.unwrap() else { panic!("trying again would not help") };
    assert!(reason.contains("DB_SCHEMA_EXPORTER_DATABASE_TARGET and SOURCE_DATABASE_URL are one database"), "{reason}");
    let made: i64 = one(
        &setup.catalogue,
        "select count(*) from pg_class where relnamespace::regnamespace::text !~ '^(pg_|information_schema)'",
    )
    .await;
    assert_eq!(made, 0);
}

#[tokio::test]
async fn readers_of_the_catalogue_never_miss_a_table() {
    let setup = Setup::new().await;
    setup.exports().await;
    let reader = setup.cluster.client("catalogue").await;
    let stop = CancellationToken::new();
    let watching = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut seen = Vec::new();
            while !stop.is_cancelled() {
                seen.push(one::<i64>(&reader, "select count(*) from pg_tables where schemaname = 'public'").await);
            }
            seen
        }
    });
    for _ in 0..4 {
        setup.exports().await;
    }
    stop.cancel();
    let seen = watching.await.unwrap();
    assert!(seen.len() > 4 && seen.iter().all(|n| *n == seen[0]), "{seen:?}");
}

#[tokio::test]
async fn definitions_are_read_by_the_pg_dump_of_pg_bin() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::new().await;
    setup.exports().await;
    let before = definitions(&setup.catalogue).await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let error = async || setup.run_with(&setup.kind(&[("PG_BIN", place)]), CancellationToken::new()).await.0.unwrap_err();
    let missing = error().await;
    assert!(missing.contains(&format!("no pg_dump in PG_BIN={place}")) && missing.contains("postgresql-client-"), "{missing}");
    let program = directory.path().join("pg_dump");
    std::fs::write(&program, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let old = error().await;
    assert!(old.contains("pg_dump 9.6.24") && old.contains("older than") && old.contains("or set PG_BIN"), "{old}");
    assert_eq!(definitions(&setup.catalogue).await, before);
    let real = programs();
    let kind = setup.kind(&[("PG_BIN", real.to_str().unwrap())]);
    assert!(matches!(setup.run_with(&kind, CancellationToken::new()).await.0, Ok(Outcome::Done(_))));
}

#[tokio::test]
async fn not_enabled_it_succeeds_in_silence() {
    let environment = Environment::of([("DB_SCHEMA_EXPORTER_ENABLED", "True")]);
    let reader = Reader::new(&environment);
    let kind = SchemaExport::from_settings(&reader);
    reader.finish().expect("nothing else is needed");
    let (run, lines) = Lines::of_run(CancellationToken::new());
    let context = JobContext { payload: Payload::default(), attempt: 1, attempts: 1, run, memory: None };
    assert!(matches!(kind.run(&context).await.unwrap(), Outcome::Done(_)));
    assert!(lines.records().is_empty());
}

#[tokio::test]
async fn a_wrong_password_is_told_without_showing_it_and_changes_nothing() {
    let setup = Setup::new().await;
    setup.exports().await;
    let before = definitions(&setup.catalogue).await;
    let url = format!("postgres://owner:not-the-password@127.0.0.1:{}/warehouse", setup.cluster.port);
    let error = setup.run_with(&setup.kind(&[("DATABASE_URL", &url)]), CancellationToken::new()).await.0.unwrap_err();
    assert!(error.contains("password authentication failed") && !error.contains("not-the-password"), "{error}");
    assert_eq!(definitions(&setup.catalogue).await, before);
}

#[tokio::test]
async fn a_stopped_export_leaves_no_session_and_no_tool_behind() {
    let setup = Setup::new().await;
    setup.exports().await;
    let before = definitions(&setup.catalogue).await;
    // A reader of the catalogue holds the export up at its first drop.
    let mut blocker = setup.cluster.client("catalogue").await;
    let blocking = blocker.transaction().await.unwrap();
    blocking.batch_execute("select * from a").await.unwrap();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let waits =
        "select count(*) from pg_stat_activity where application_name = 'bullwork: schema export' and wait_event_type = 'Lock'";
    let watcher = async {
        eventually("the export waits", Duration::from_secs(20), || async { one::<i64>(&setup.warehouse, waits).await == 1 })
            .await;
        stopping.cancel();
    };
    let kind = setup.kind(&[]);
    let (outcome, ()) = tokio::join!(setup.run_with(&kind, stop), watcher);
    assert!(outcome.0.unwrap_err().contains("told to stop"));
    blocking.rollback().await.unwrap();
    let sessions = "select count(*) from pg_stat_activity where application_name ~ '^(bullwork|pg_dump)'";
    eventually("the sessions end", Duration::from_secs(20), || async { one::<i64>(&setup.warehouse, sessions).await == 0 }).await;
    assert_eq!(definitions(&setup.catalogue).await, before);
}
