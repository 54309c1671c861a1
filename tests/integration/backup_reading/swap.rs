//! A restored database that takes the place of another one.

use bullwork::jobs::restore::Payload;
use serde_json::json;

use super::{bullwork, databases, dump, into, restore, text};
use crate::backup::Setup;
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
    assert!(databases(&setup.cluster).await.contains(&copy["database"].as_str().unwrap().to_owned()), "{copy}");
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
    ] {
        let output = bullwork(&setup, &[], &[&["backup", "restore"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
        assert!(!said.contains("hunter22"), "{said}");
    }
    assert_eq!(databases(&setup.cluster).await, before);
    let output = bullwork(&setup, &[], &["backup", "restore", "--latest", "--into", "copy"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(value["database"], "copy");
}
