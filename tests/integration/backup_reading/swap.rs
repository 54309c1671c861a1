//! A restored database that takes the place of another one.

use bullwork::jobs::restore::Payload;
use serde_json::json;

use super::{bullwork, databases, restore, text};
use crate::backup::Setup;

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

#[tokio::test]
async fn a_hook_that_fails_keeps_both_databases_as_they_are() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("delete from \"order\"").await.unwrap();
    let payload = || Payload { swap: true, end_sessions: true, request: Some("one".to_owned()), ..Payload::default() };
    let error = restore(&setup, &[("RESTORE_HOOK", "echo not today >&2; exit 3")], payload()).await.unwrap_err();
    assert!(error.contains("but RESTORE_HOOK failed") && error.contains("exit code 3: not today"), "{error}");
    let name = format!("shop_{}", setup.newest().await.archive.at.format("%Y%m%d_%H%M%S"));
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
        (vec!["--at", "yesterday"], 1, "neither"),
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
