//! The archive engine: a restored database takes the target's place, and the one before is kept.

use serde_json::json;

use super::Scene;
use crate::backup::Setup;
use crate::support::postgres::give_to_server_user;
use crate::support::small_disk::SmallDisk;

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

/// The new database does not fit beside the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_finds_the_disk_full_leaves_the_targets_database_as_it_was() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let setup = Setup::new().await;
    let space = disk.path().join("space");
    std::fs::create_dir(&space).unwrap();
    give_to_server_user(&space);
    let admin = setup.cluster.client("postgres").await;
    admin.batch_execute(&format!("create tablespace small location '{}'", space.display())).await.unwrap();
    // Databases that are made anew are copies of it, and lie where it lies.
    admin.batch_execute("alter database template0 set tablespace small").await.unwrap();
    setup.take(&[]).await;
    let mut scene = Scene::new();
    scene.set("engine", json!("archive"));
    scene.set("db_host_mapping", json!({"shop": {"db_host": "127.0.0.1", "database": "shop_test"}}));
    let server = setup.cluster.url("postgres");
    scene.environment.extend(setup.settings(&[("RESTORE_DATABASE_URL", server.as_str())]));
    let (_listener, _worker) = (scene.listen(), scene.work());
    scene.until(&scene.accepted("db_instance=shop"), "completed").await;
    let customers = async || {
        let client = setup.cluster.client("shop_test").await;
        client.query_one("select count(*) from customer", &[]).await.unwrap().get::<_, i64>(0)
    };
    assert_eq!(customers().await, 100);
    let large = "insert into customer (name) select repeat(md5(n::text), 30) from generate_series(1, 60000) n";
    setup.shop.batch_execute(large).await.unwrap();
    setup.take(&[]).await;
    let databases = async || admin.query_one("select count(*) from pg_database", &[]).await.unwrap().get::<_, i64>(0);
    let before = databases().await;

    let task = scene.until(&scene.accepted("db_instance=shop"), "error").await;
    let error = task["error"].as_str().unwrap();
    for told in [
        "`load` failed: ",
        "No space left on device",
        "the disk of the server which gets the database `shop_test` is full: make room there",
        "the target is as it was",
    ] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert_eq!((task["target"].as_str(), customers().await, databases().await), (Some("untouched"), 100, before));
    disk.resize(512);
    scene.until(&scene.accepted("db_instance=shop"), "completed").await;
    assert_eq!(customers().await, 60_100);
    // The server must let go of the disk before it goes.
    drop((admin, setup));
}
