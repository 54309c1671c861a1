//! The archive engine: a restored database takes the target's place, and the one before is kept.

use serde_json::json;

use super::Scene;
use crate::backup::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_takes_the_place_of_the_targets_database() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("create table later (id int)").await.unwrap();
    let mut scene = Scene::new();
    scene.set("engine", json!("archive"));
    scene.set("db_host_mapping", json!({"shop": {"db_host": "127.0.0.1", "database": "shop_test"}}));
    let server = setup.cluster.url("postgres");
    scene.environment.extend(setup.settings(&[("RESTORE_DATABASE_URL", server.as_str())]));
    let (_listener, _worker) = (scene.listen(), scene.work());
    let shown: serde_json::Value = serde_json::from_str(&scene.ask("show")).unwrap();
    let id = shown[0]["id"].as_str().unwrap().to_owned();
    let first = scene.until(&scene.accepted(&format!("db_instance=shop, backup_id={id}")), "completed").await;
    assert_eq!((&first["backup_id"], &first["target"]), (&json!(id), &json!("running")));
    let count = "select count(*) from pg_class where relname in ('customer', 'later')";
    let tables = async || setup.cluster.client("shop_test").await.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(tables().await, 1);
    // Again: the one before is kept under another name.
    scene.until(&scene.accepted("db_instance=shop"), "completed").await;
    assert_eq!(tables().await, 1);
    let admin = setup.cluster.client("postgres").await;
    let kept = admin.query("select datname::text from pg_database where datname like 'shop_test_before%'", &[]).await.unwrap();
    assert_eq!(kept.len(), 1);
    let task = scene.until(&scene.accepted("db_instance=shop, incremental"), "error").await;
    assert!(task["error"].as_str().unwrap().contains("an archive is restored whole"), "{task}");
}
