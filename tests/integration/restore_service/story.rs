//! A story of pg_probackup from its first command on: with the real one where there is one on PATH, else with what stands in for it.
//!
//! Nothing here looks at the stand-in's own records, so that both tell the same.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::{Scene, largest, said, version};
use crate::support::postgres::{Cluster, PASSWORD, as_server_user, programs};

/// The real one, as packages call it.
fn real() -> Option<PathBuf> {
    let names = [format!("pg_probackup-{}", version()), "pg_probackup".to_owned()];
    let places: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let mut found = names.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
    found.find(|program| program.is_file())
}

/// A catalogue with a full backup, made by the tool itself, of a cluster in which table `t` says `restored`; and a running target.
async fn scene() -> Scene {
    let mut scene = Scene::new();
    let tool = match real() {
        Some(tool) => {
            println!("with the real {}", tool.display());
            tool
        }
        None => {
            println!("with the stand-in: there is no pg_probackup on PATH");
            scene.path("pg_probackup")
        }
    };
    scene.set("tool", json!(tool.display().to_string()));
    let source = Cluster::start();
    said(&source.client("postgres").await, "restored").await;
    let (backup, data, port) = (scene.path("backup").display().to_string(), source.data(), source.port.to_string());
    let run = |words: &[&str]| {
        let mut command = Command::new(&tool);
        let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
        command.args(words).args(["-B", &backup]).current_dir(scene.path("backup")).env("PATH", path).env("PGPASSWORD", PASSWORD);
        as_server_user(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["init"]);
    run(&["add-instance", "--instance=main1", "-D", &data.display().to_string()]);
    let server = ["-h", "127.0.0.1", "-p", &port, "-U", "owner", "-d", "postgres"];
    run(&[&["backup", "--instance=main1", "-b", "FULL", "--stream"][..], &server].concat());
    // What comes after the backup is not restored.
    source.client("postgres").await.batch_execute("update t set word = 'too late'").await.unwrap();
    drop(source);
    scene.make_target().await;
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_pg_probackup_is_restored_full_and_incrementally() {
    let scene = scene().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    let shown: Value = serde_json::from_str(&scene.ask("show")).unwrap();
    let backups = shown[0]["backups"].as_array().unwrap();
    assert_eq!((backups.len(), &shown[0]["instance"], &backups[0]["status"]), (1, &json!("main1"), &json!("OK")), "{shown}");
    let (id, time) = (&backups[0]["id"], &backups[0]["recovery-time"]);

    let task = scene.until(&scene.accepted("db_instance=main1, backup_id=NONE1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("has no backup `NONE1`") && error.ends_with("the target is as it was"), "{error}");
    assert_eq!(scene.says().await, "before");

    let task = scene.until(&scene.accepted("db_instance=main1"), "completed").await;
    assert_eq!((&task["backup_id"], &task["recovery_time"], &task["target"]), (id, time, &json!("running")), "{task}");
    assert_eq!(scene.says().await, "restored");
    let client = scene.target().await.unwrap();
    let recovery: bool = client.query_one("select pg_is_in_recovery()", &[]).await.unwrap().get(0);
    assert!(!recovery && !scene.pgdata().join(".hidden").exists() && !scene.path("pgwal/main/.dot").exists());
    let wal = std::fs::canonicalize(scene.pgdata().join("pg_wal")).unwrap();
    assert_eq!(wal, std::fs::canonicalize(scene.path("pgwal/main")).unwrap(), "the WAL lies where it should");

    client.batch_execute("update t set word = 'changed again'; create table junk as select 1").await.unwrap();
    drop(client);
    let named = format!("db_instance=main1, backup_id={}, incremental", id.as_str().unwrap());
    let task = scene.until(&scene.accepted(&named), "completed").await;
    assert_eq!((&task["backup_id"], &task["incremental"]), (id, &json!(true)));
    assert_eq!(scene.says().await, "restored");
    assert!(scene.target().await.unwrap().query("select from junk", &[]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_of_pg_probackup_is_found_out_before_the_target_is_touched() {
    let scene = scene().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    let file = largest(&scene.path("backup/backups"));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("`check` failed: ") && error.contains("is not valid: "), "{error}");
    assert!(error.ends_with("the target is as it was") && task["target"] == "untouched", "{error}");
    assert_eq!(scene.says().await, "before");
    assert!(scene.pgdata().join(".hidden").exists());
}
