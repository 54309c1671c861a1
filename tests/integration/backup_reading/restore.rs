//! Into a new database, an empty one, one that holds something.

use bullwork::backup::name::MANIFEST;
use bullwork::jobs::restore::Payload;
use serde_json::json;

use super::{age_key, bullwork, databases, dump, into, restore, run, sealed_archive, text};
use crate::backup::Setup;
use crate::support::postgres::{Cluster, has_majors};

/// What dumps and restores find hard.
const HARD: &str = r#"
create role "shop's app"; alter table customer owner to "shop's app"; grant select on "order" to "shop's app";
create schema "Über"; create type "Über".mood as enum ('good', 'bad');
create table "Über"."t\x" (a "Über".mood[], b bytea, j jsonb, r int4range, x text default E'a\n\\.\nb');
insert into "Über"."t\x" values ('{good,bad}', '\x00ff', '{"a": [1, null]}', '[1,5)', E'tab\t\\N line\nend \\.');
create table part (id int, at date) partition by range (at);
create table part_1 partition of part for values from ('2026-01-01') to ('2027-01-01');
insert into part values (1, '2026-05-05');
create materialized view totals as select customer_id, sum(total) from "order" group by 1;
select lo_from_bytea(0, '\xdeadbeef'); select nextval('customer_id_seq') from generate_series(1, 7);
"#;

#[tokio::test]
async fn newest_archive_becomes_a_new_database_that_is_equal() {
    let setup = Setup::new().await;
    setup.shop.batch_execute(HARD).await.unwrap();
    let (public, key) = age_key(&setup, "key");
    for (compression, sealed) in [("zstd", true), ("gzip", false), ("xz", true)] {
        setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
        let recipients = if sealed { public.as_str() } else { "" };
        let plain = if sealed { "" } else { "true" };
        setup.take(&[("BACKUP_AGE_RECIPIENTS", recipients), ("BACKUP_PLAIN", plain), ("BACKUP_COMPRESSION", compression)]).await;
        let before = dump(&setup.cluster, "shop", &[]);
        let archive = setup.newest().await.archive;
        let (value, lines) =
            run::<bullwork::jobs::restore::RestoreKind>(&setup, &[("RESTORE_AGE_KEY_FILE", &key)], Payload::default()).await;
        let value = value.unwrap();
        let name = value["database"].as_str().unwrap();
        assert_eq!(name, format!("shop_{}", archive.at.format("%Y%m%d_%H%M%S")));
        assert_eq!((&value["archive"], &value["hook"]), (&json!(archive.to_string()), &json!(false)));
        assert!(lines.holds(&format!("as database `{name}`")), "{:?}", lines.messages());
        assert!(dump(&setup.cluster, name, &[]) == before, "{compression}");
        assert_eq!(dump(&setup.cluster, name, &["-s"]), dump(&setup.cluster, "shop", &["-s"]));
    }
}

#[tokio::test]
async fn roles_that_another_server_lacks_are_made_there() {
    let setup = Setup::new().await;
    setup.shop.batch_execute("create role app login; alter table customer owner to app").await.unwrap();
    setup.take(&[]).await;
    let other = Cluster::start();
    let server = other.url("postgres");
    let value = restore(&setup, &[("RESTORE_DATABASE_URL", &server)], into("copy")).await.unwrap();
    assert_eq!(value["database"], "copy");
    assert!(dump(&other, "copy", &[]) == dump(&setup.cluster, "shop", &[]));
}

#[tokio::test]
async fn an_earlier_archive_is_found_by_name_and_by_time() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let first = setup.newest().await.archive;
    setup.shop.batch_execute("insert into customer (name) values ('late')").await.unwrap();
    setup.take(&[]).await;
    let count = async |database: &str| -> i64 {
        setup.cluster.client(database).await.query_one("select count(*) from customer", &[]).await.unwrap().get(0)
    };
    for (choice, name, rows) in [
        (first.to_string(), "by_name", 100),
        (format!("@{}Z", first.stamp()), "by_time", 100),
        ("latest".to_owned(), "newest", 101),
    ] {
        let payload = Payload { archive: choice.parse().unwrap(), ..into(name) };
        restore(&setup, &[], payload).await.unwrap();
        assert_eq!(count(name).await, rows, "{choice}");
    }
    let gone = Payload { archive: "2001-01-01T00:00:00.tar.gz".parse().unwrap(), ..into("never") };
    let error = restore(&setup, &[], gone).await.unwrap_err();
    assert!(error.contains("no complete archive 2001-01-01T00:00:00.tar.gz") && error.contains("backup list"), "{error}");
    assert!(!databases(&setup.cluster).await.contains(&"never".to_owned()));
}

#[tokio::test]
async fn a_database_that_holds_something_is_left_alone_unless_told() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let copy = setup.cluster.create("copy").await;
    restore(&setup, &[], into("copy")).await.expect("an empty one may be restored into");
    let before = dump(&setup.cluster, "copy", &[]);
    assert!(before == dump(&setup.cluster, "shop", &[]));
    let error = restore(&setup, &[], into("copy")).await.unwrap_err();
    assert!(error.contains("is not empty (table or view") && error.contains("--into-nonempty"), "{error}");

    let forced = |name| Payload { into_nonempty: true, ..into(name) };
    let error = restore(&setup, &[], forced("copy")).await.unwrap_err();
    assert!(error.contains("already exists"), "{error}");
    assert!(dump(&setup.cluster, "copy", &[]) == before, "nothing was changed");

    // The clash is late: much had been made before.
    copy.batch_execute(
        "drop table \"order\" cascade; drop table customer cascade; drop function total_of; drop table session_log",
    )
    .await
    .unwrap();
    copy.batch_execute("create table session_log (id int)").await.unwrap();
    let error = restore(&setup, &[], forced("copy")).await.unwrap_err();
    assert!(error.contains("\"session_log\" already exists") && error.contains("left nothing behind"), "{error}");
    let tables = "select string_agg(relname, ',') from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(copy.query_one(tables, &[]).await.unwrap().get::<_, &str>(0), "session_log");
    copy.batch_execute("drop table session_log; create table other (id int); insert into other values (7)").await.unwrap();
    restore(&setup, &[], forced("copy")).await.expect("what is there is in nobody's way");
    assert_eq!(copy.query_one("select id from other", &[]).await.unwrap().get::<_, i32>(0), 7);
    assert_eq!(copy.query_one("select count(*) from \"order\"", &[]).await.unwrap().get::<_, i64>(0), 500);
}

#[tokio::test]
async fn an_error_in_the_middle_leaves_no_database() {
    let setup = Setup::new().await;
    // A function that finds its table by the session's search path: the dump restores the rows, and fails at the index.
    setup
        .shop
        .batch_execute(
            "create function newest(int) returns int language plpgsql immutable as $$ begin return (select max(id) from customer) + $1; end $$;
             create index on \"order\" (newest(id))",
        )
        .await
        .unwrap();
    setup.take(&[]).await;
    let before = databases(&setup.cluster).await;
    let error = restore(&setup, &[], into("copy")).await.unwrap_err();
    assert!(error.contains("\"customer\" does not exist") && error.contains("psql"), "{error}");
    assert_eq!(databases(&setup.cluster).await, before);
    let output = bullwork(&setup, &[], &["backup", "restore"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(databases(&setup.cluster).await, before);
}

#[tokio::test]
async fn what_can_be_checked_is_checked_before_anything_is_made() {
    let setup = Setup::new().await;
    let key = sealed_archive(&setup).await;
    let before = databases(&setup.cluster).await;
    setup.cluster.client("postgres").await.batch_execute("create role weak login password 'weak-password'").await.unwrap();
    let weak = format!("postgres://weak:weak-password@127.0.0.1:{}/postgres", setup.cluster.port);
    let standby = Cluster::start_standby();
    let standby = standby.url("postgres");
    let (_, other) = age_key(&setup, "other.key");
    let empty = setup.directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.display().to_string();
    let right = ("RESTORE_AGE_KEY_FILE", key.as_str());
    for (more, payload, wanted) in [
        (vec![], into("copy"), "RESTORE_AGE_KEY_FILE is not set"),
        (vec![("RESTORE_AGE_KEY_FILE", other.as_str())], into("copy"), "none of the given keys opens it"),
        (vec![right, ("RESTORE_DATABASE_URL", weak.as_str())], into("copy"), "may not make databases"),
        (vec![right, ("RESTORE_DATABASE_URL", standby.as_str())], into("copy"), "is a standby"),
        (vec![right, ("RESTORE_DATABASE_URL", "")], into("copy"), "RESTORE_DATABASE_URL"),
        (vec![right, ("PG_BIN", empty.as_str())], into("copy"), "no psql in PG_BIN"),
        (vec![right], into("a name"), "cannot be a database's name"),
        (vec![right], into("postgres://u:hunter22@h/d"), "belongs into RESTORE_DATABASE_URL"),
        (vec![right], Payload { fixtures: vec!["auth".into()], ..into("shop") }, "has no fixtures of group `auth`"),
    ] {
        let error = restore(&setup, &more, payload).await.unwrap_err();
        assert!(error.contains(wanted) && !error.contains("hunter22"), "{wanted}: {error}");
        assert_eq!(databases(&setup.cluster).await, before, "{wanted}");
    }
    restore(&setup, &[right], into("copy")).await.expect("with the key it restores");
}

/// A database of its own on the setup's server, archived below a prefix of its own.
async fn archived(setup: &Setup, name: &str, sql: &str) -> Vec<(String, String)> {
    setup.cluster.create(name).await.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let settings = vec![
        ("DATABASE_URL".to_owned(), setup.cluster.url(name)),
        ("BACKUP_PREFIX".to_owned(), format!("{name}/")),
        ("BACKUP_EXCLUDE_TABLES".to_owned(), String::new()),
    ];
    setup.take(&borrowed(&settings)).await;
    settings
}

fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[tokio::test]
async fn what_the_role_may_not_make_is_told_before_the_archive_is_read() {
    let setup = Setup::new().await;
    setup.shop.batch_execute("create role app; create role clerk").await.unwrap();
    let other = Cluster::start();
    let password = crate::support::postgres::PASSWORD;
    let clerk = format!("create role clerk login createdb createrole password '{password}'; create role there");
    other.client("postgres").await.batch_execute(&clerk).await.unwrap();
    let server = other.url("postgres").replace("owner:", "clerk:");
    let before = databases(&other).await;
    for (name, sql, wanted) in [
        (
            "owned",
            "create table t (); create role there; alter table t owner to there",
            "some of it belongs to the roles `there`, of which it is no member",
        ),
        ("guest", "create table t (); alter table t owner to app", "`app` in schema `public` need the schema's owner"),
        (
            "closed",
            "create schema s authorization clerk; create table s.t (); alter table s.t owner to app",
            "`app` in schema `s`",
        ),
        ("untrusted", "create extension pg_buffercache", "the extensions `pg_buffercache` need a superuser"),
        (
            "triggered",
            "create function f() returns event_trigger language plpgsql as 'begin end'; alter function f() owner to clerk;
             create event trigger watch on ddl_command_end execute function f()",
            "only a superuser makes: event trigger watch",
        ),
        (
            "granted",
            "create table t (); alter table t owner to clerk; grant select on t to app with grant option; set role app;
             grant select on t to public; reset role",
            "only a superuser makes: grants on public.t by app, who is not its owner",
        ),
    ] {
        let mut settings = archived(&setup, name, sql).await;
        settings.push(("RESTORE_DATABASE_URL".to_owned(), server.clone()));
        // Had it been read, that would be told.
        let store = setup.store().join(name);
        let file = std::fs::read_dir(&store).unwrap().flatten().map(|entry| entry.path());
        let file = file.into_iter().find(|path| path.to_string_lossy().ends_with(".tar.zst")).unwrap();
        let good = std::fs::read(&file).unwrap();
        let mut bytes = good.clone();
        bytes[20] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let error = restore(&setup, &borrowed(&settings), into("copy")).await.unwrap_err();
        assert!(error.contains(wanted) && error.contains("cannot restore this archive"), "{name}: {error}");
        assert!(!error.contains("damaged"), "{name}: {error}");
        assert_eq!(databases(&other).await, before, "{name}");
        // A superuser may.
        std::fs::write(&file, good).unwrap();
        settings.last_mut().unwrap().1 = other.url("postgres");
        restore(&setup, &borrowed(&settings), into(&format!("{name}_copy"))).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let drop = format!("drop database {name}_copy");
        other.client("postgres").await.batch_execute(&drop).await.unwrap();
    }
}

#[tokio::test]
async fn a_role_that_makes_roles_restores_what_they_own() {
    let setup = Setup::new().await;
    let sql = "create role app; create role \"o'ther\"; create schema sales authorization app; create table sales.t (id serial primary key);
        insert into sales.t select from generate_series(1, 3); alter table sales.t owner to app;
        create function sales.f() returns int language sql as 'select 1'; alter function sales.f() owner to app;
        grant usage on schema sales to \"o'ther\"; grant select on sales.t to \"o'ther\"";
    let settings = archived(&setup, "small", sql).await;
    let majors = if has_majors([14, 16]) { vec![14, 16] } else { Vec::new() };
    for other in [Cluster::start()].into_iter().chain(majors.into_iter().map(Cluster::start_major)) {
        let version = "select current_setting('server_version_num')::int / 10000";
        let major: i32 = other.client("postgres").await.query_one(version, &[]).await.unwrap().get(0);
        let password = crate::support::postgres::PASSWORD;
        let clerk = format!("create role clerk login createdb createrole password '{password}'");
        other.client("postgres").await.batch_execute(&clerk).await.unwrap();
        let server = other.url("postgres").replace("owner:", "clerk:");
        let settings = [&borrowed(&settings)[..], &[("RESTORE_DATABASE_URL", server.as_str())]].concat();
        let restored = restore(&setup, &settings, into("copy")).await;
        if major < 15 {
            assert!(restored.unwrap_err().contains("restore to a server that is not older"));
            continue;
        }
        assert_eq!(restored.unwrap_or_else(|e| panic!("{major}: {e}"))["rows"], json!(3));
        let copy = other.client("copy").await;
        let owners = "select tableowner || ' ' || has_table_privilege('o''ther', 'sales.t', 'select') from pg_tables where tablename = 't'";
        assert_eq!(copy.query_one(owners, &[]).await.unwrap().get::<_, &str>(0), "app true", "{major}");
    }
}

#[tokio::test]
async fn rows_are_counted_and_not_quoted() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let file = setup.newest_file().await;
    let manifest = file.with_file_name(format!("{}{MANIFEST}", file.file_name().unwrap().display()));
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    json["tables"][0]["rows"] = json!(12_345);
    std::fs::write(&manifest, json.to_string()).unwrap();
    let payload = || Payload { request: Some("one".to_owned()), ..into("copy") };
    assert_eq!(restore(&setup, &[], payload()).await.unwrap()["rows"], json!(600), "100 customers, 500 orders");
    setup.cluster.client("copy").await.batch_execute("insert into session_log values (1)").await.unwrap();
    let again = restore(&setup, &[], payload()).await.unwrap();
    assert_eq!((&again["resumed"], &again["rows"]), (&json!(true), &json!(601)));
}
