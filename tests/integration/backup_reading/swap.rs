//! A restored database that takes the place of another one.

use bullwork::jobs::restore::Payload;
use serde_json::json;

use super::{bullwork, databases, dump, into, restore, text};
use crate::backup::{Setup, result};
use crate::support::postgres::Cluster;

async fn customers(setup: &Setup, database: &str) -> i64 {
    setup.cluster.client(database).await.query_one("select count(*) from customer", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_restored_database_takes_the_place_and_the_old_one_is_kept() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("delete from \"order\"; delete from customer").await.unwrap();
    let before = databases(&setup.cluster).await;
    let swap = || Payload { swap: true, ..Payload::default() };
    // The setup's own session is in the way.
    let error = restore(&setup, &[], swap()).await.unwrap_err();
    assert!(error.contains("sessions are connected to `shop`") && error.contains("--end-sessions"), "{error}");
    assert_eq!(databases(&setup.cluster).await, before, "that was known before anything was made");

    // RESTORE_DATABASE_URL itself names the database that is replaced.
    let server = setup.cluster.url("shop");
    let payload = Payload { end_sessions: true, request: Some("one".to_owned()), ..swap() };
    let value = restore(&setup, &[("RESTORE_DATABASE_URL", &server)], payload.clone()).await.unwrap();
    assert_eq!(value["database"], "shop");
    let kept = value["keptAs"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("shop_before_"), "{kept}");
    assert_eq!((customers(&setup, "shop").await, customers(&setup, &kept).await), (100, 0));
    assert!(setup.shop.batch_execute("select 1").await.is_err(), "its session was ended");

    // A run that was killed after the switch is run again.
    let again = restore(&setup, &[], payload).await.unwrap();
    assert_eq!((&again["resumed"], &again["database"]), (&json!(true), &json!("shop")));
    assert_eq!(databases(&setup.cluster).await.len(), before.len() + 1);
}

/// What a database has besides what is in it, in the words of `pg_dumpall`.
fn properties(setup: &Setup, database: &str) -> String {
    // The comment that tells where it is from is there too, and differs.
    let all = dump(&setup.cluster, database, &["--create", "-s"]);
    let begins = ["ALTER DATABASE", "ALTER ROLE", "GRANT", "REVOKE"];
    let lines = all.lines().filter(|line| begins.iter().any(|begin| line.starts_with(begin)) && line.contains("DATABASE"));
    let mut lines: Vec<&str> = lines.collect();
    // Their order is that of the catalogue's rows.
    lines.sort_unstable();
    lines.join("\n")
}

#[tokio::test]
async fn owner_rights_settings_and_comment_are_those_of_the_one_before() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    for statement in [
        "create role clerk",
        "create role \"o'ne\"",
        "alter database shop owner to clerk",
        "alter database shop connection limit 77",
        "revoke connect on database shop from public",
        "grant connect, temp on database shop to \"o'ne\" with grant option",
        "alter database shop set search_path = \"$user\", public, \"x;y\"",
        "alter database shop set work_mem = '7MB'",
        "alter database shop set \"app.tenant\" = 'it''s \\ \"one\"'",
        "alter role \"o'ne\" in database shop set timezone = 'Asia/Tokyo'",
        "comment on database shop is E'the shop''s\\nown words'",
    ] {
        setup.shop.batch_execute(statement).await.unwrap();
    }
    let before = properties(&setup, "shop");
    for part in ["OWNER TO clerk", "CONNECTION LIMIT = 77", "'x;y'", "Asia/Tokyo", "WITH GRANT OPTION", "REVOKE"] {
        assert!(before.contains(part), "{part} is part of the test: {before}");
    }
    let swap =
        |request: &str| Payload { swap: true, end_sessions: true, request: Some(request.to_owned()), ..Payload::default() };
    for request in ["one", "two"] {
        restore(&setup, &[], swap(request)).await.unwrap();
        assert_eq!(properties(&setup, "shop"), before, "{request}");
        let comment = "select shobj_description(oid, 'pg_database') from pg_database where datname = 'shop'";
        let comment: String = setup.cluster.client("postgres").await.query_one(comment, &[]).await.unwrap().get(0);
        let (ours, theirs) = comment.split_once('\n').unwrap();
        assert!(ours.starts_with("bullwork: restored from") && ours.contains(request), "{ours}");
        assert_eq!(theirs, "the shop's\nown words");
        // A run that was killed after the switch knows its database still.
        assert_eq!(restore(&setup, &[], swap(request)).await.unwrap()["resumed"], json!(true));
    }
}

/// As PostgreSQL takes it, and as an address writes it.
const ODD: (&str, &str) = ("Mein \"Shöp\" d'été =x", "Mein%20%22Sh%C3%B6p%22%20d'%C3%A9t%C3%A9%20=x");

#[tokio::test]
async fn a_database_of_any_name_is_restored_under_its_own_and_takes_its_place() {
    let setup = Setup::new().await;
    let (name, written) = ODD;
    let create = format!("create database \"{}\"", name.replace('"', "\"\""));
    setup.shop.batch_execute(&create).await.unwrap();
    let odd = setup.cluster.client(written).await;
    odd.batch_execute("create table customer (id int); insert into customer values (1), (2)").await.unwrap();
    let source = setup.cluster.url(written);
    let settings = [("DATABASE_URL", source.as_str())];
    setup.take(&settings).await;
    assert_eq!(setup.newest().await.database.name, name);
    odd.batch_execute("delete from customer").await.unwrap();

    let payload = Payload { swap: true, end_sessions: true, ..Payload::default() };
    let value = restore(&setup, &settings, payload).await.unwrap();
    assert_eq!((&value["database"], &value["rows"]), (&json!(name), &json!(2)), "{value}");
    let kept = value["keptAs"].as_str().unwrap();
    assert!(kept.starts_with("Mein__Sh_p__d__t") && kept.contains("_before_"), "{value}");
    assert_eq!((customers(&setup, written).await, customers(&setup, kept).await), (2, 0));

    // By its name too, where there is none yet; no other name is taken that is not plain.
    let other = Cluster::start();
    let server = other.url("postgres");
    let more = [settings[0], ("RESTORE_DATABASE_URL", server.as_str())];
    for arguments in [vec!["--into", "Mein Shop"], vec!["--into", "Mein Shop", "--queue"], vec!["--into", "Mein Shop", "--swap"]]
    {
        let output = bullwork(&setup, &more, &[&["backup", "restore"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("the very name of the database"), "{arguments:?}: {said}");
    }
    let hook = ("RESTORE_HOOK", "psql -X -q -v ON_ERROR_STOP=1 -c 'insert into customer values (3)'");
    let output = bullwork(&setup, &[&more[..], &[hook]].concat(), &["backup", "restore", "--into", name]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(databases(&other).await.contains(&name.to_owned()), "{:?}", databases(&other).await);
    let rows = other.client(written).await.query_one("select count(*) from customer", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 3, "the hook ran in it");
}

#[tokio::test]
async fn the_first_backup_after_a_switch_says_why_there_is_one() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let switch = async || {
        let payload = Payload { swap: true, end_sessions: true, ..Payload::default() };
        restore(&setup, &[], payload).await.unwrap();
    };
    switch().await;
    let value = setup.take(&[]).await;
    assert_eq!((result(&value), &value["definitionsChanged"]), ("archived", &json!(false)), "{value}");
    let reason = value["reason"].as_str().unwrap();
    assert!(reason.starts_with("the database took the place of the newest archive's"), "{reason}");
    assert_eq!(result(&setup.take(&[]).await), "unchanged");

    switch().await;
    let shop = setup.cluster.client("shop").await;
    shop.batch_execute("alter table customer add more int; update \"order\" set total = 0 where id = 1").await.unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(value["definitionsChanged"], json!(true), "{value}");
    let reason = value["reason"].as_str().unwrap();
    assert!(reason.starts_with("changed: customer, order; definitions too; the database took"), "{reason}");
}

#[tokio::test]
async fn what_another_role_owns_is_told_before_anything_is_made() {
    let setup = Setup::new().await;
    setup.shop.batch_execute("create role app; alter table customer owner to app").await.unwrap();
    setup.take(&[]).await;
    let password = crate::support::postgres::PASSWORD;
    let clerk = format!("create role clerk login createdb password '{password}'");
    setup.shop.batch_execute(&clerk).await.unwrap();
    let server = setup.cluster.url("postgres").replace("owner:", "clerk:");
    let settings = [("RESTORE_DATABASE_URL", server.as_str())];
    let before = databases(&setup.cluster).await;
    let payload = Payload { swap: true, end_sessions: true, ..Payload::default() };
    let error = restore(&setup, &settings, payload).await.unwrap_err();
    assert!(error.contains("`shop` belongs to the role `owner`") && error.contains("grant it `owner`"), "{error}");

    let other = Cluster::start();
    other.client("postgres").await.batch_execute(&clerk).await.unwrap();
    let server = other.url("postgres").replace("owner:", "clerk:");
    let error = restore(&setup, &[("RESTORE_DATABASE_URL", &server)], into("copy")).await.unwrap_err();
    assert!(error.contains("lacks the roles app") && error.contains("CREATEROLE"), "{error}");
    assert_eq!(databases(&setup.cluster).await, before);
    assert!(!databases(&other).await.contains(&"copy".to_owned()));
}

#[tokio::test]
async fn a_copy_made_before_is_in_no_ones_way() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let copy = restore(&setup, &[], Payload::default()).await.unwrap();
    let payload = Payload { swap: true, end_sessions: true, ..Payload::default() };
    let value = restore(&setup, &[], payload).await.unwrap();
    assert_eq!(value["database"], "shop");
    let copy = copy["database"].as_str().unwrap().to_owned();
    assert!(databases(&setup.cluster).await.contains(&copy));
    // But in that of the next one.
    let error = restore(&setup, &[], Payload::default()).await.unwrap_err();
    assert!(error.contains(&format!("`{copy}` is there already, restored from this very archive")), "{error}");
}

#[tokio::test]
async fn a_hook_that_fails_keeps_both_databases_as_they_are() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("delete from \"order\"").await.unwrap();
    let payload = || Payload { swap: true, end_sessions: true, request: Some("one".to_owned()), ..Payload::default() };
    let error = restore(&setup, &[("RESTORE_HOOK", "echo not today >&2; exit 3")], payload()).await.unwrap_err();
    assert!(error.contains("but RESTORE_HOOK failed") && error.contains("exit code 3: not today"), "{error}");
    let name = format!("shop_{}_one", setup.newest().await.archive.at.format("%Y%m%d_%H%M%S"));
    assert!(error.contains(&format!("is restored as `{name}`")), "{error}");
    let orders = "select count(*) from \"order\"";
    assert_eq!(setup.shop.query_one(orders, &[]).await.unwrap().get::<_, i64>(0), 0, "the live one serves");

    let hook = "psql -X -q -v ON_ERROR_STOP=1 -c \"insert into session_log (id) values (4711)\" && test $RESTORED_FROM = shop && test -n $RESTORED_ARCHIVE";
    let value = restore(&setup, &[("RESTORE_HOOK", hook)], payload()).await.unwrap();
    assert_eq!((&value["resumed"], &value["hook"], &value["database"]), (&json!(true), &json!(true), &json!("shop")));
    let shop = setup.cluster.client("shop").await;
    assert_eq!(shop.query_one(orders, &[]).await.unwrap().get::<_, i64>(0), 500);
    assert_eq!(shop.query_one("select id from session_log", &[]).await.unwrap().get::<_, i32>(0), 4711);
}

#[tokio::test]
async fn replacing_is_confirmed_and_passwords_are_no_arguments() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let before = databases(&setup.cluster).await;
    for (arguments, code, wanted) in [
        (vec!["--swap"], 1, "--yes"),
        (vec!["--into", "shop", "--into-nonempty"], 1, "--yes"),
        (vec!["--into", "postgres://u:hunter22@127.0.0.1/shop"], 1, "RESTORE_DATABASE_URL"),
        (vec!["--swap", "--into-nonempty", "--into", "x"], 2, "cannot be used with"),
        (vec!["--fixtures", "auth"], 2, "--into"),
        (vec!["--at", "yesterday"], 1, "is no time; write 2026-01-02"),
        (vec!["--into", "my shop", "--queue"], 1, "cannot be a database's name"),
        (vec!["2026.tar"], 1, "no archive's name"),
        // What every run would refuse is not left to a worker.
        (vec!["2001-01-01T00:00:00.tar.gz", "--queue"], 1, "no complete archive 2001-01-01T00:00:00.tar.gz"),
        (vec!["--into", "copy", "--fixtures", "auth", "--queue"], 1, "no fixtures of group `auth`"),
    ] {
        let output = bullwork(&setup, &[], &[&["backup", "restore"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
        assert!(!said.contains("hunter22"), "{said}");
    }
    let long = "x".repeat(2001);
    for (arguments, wanted) in [
        (vec!["now", "--queue", "--annotation", &long], "more than 2000 characters"),
        (vec!["drill", "--at", "2001-01-01", "--queue"], "no archive as old as 2001-01-01T23:59:59Z; the oldest one is 20"),
        (vec!["verify", "2001-01-01T00:00:00.tar.gz", "--queue"], "no complete archive 2001"),
    ] {
        let output = bullwork(&setup, &[], &[&["backup"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(wanted), "{arguments:?}: {said}");
    }
    assert_eq!(databases(&setup.cluster).await, before);
    let output = bullwork(&setup, &[], &["backup", "restore", "--latest", "--into", "copy"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(value["database"], "copy");
}
