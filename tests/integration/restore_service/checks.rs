//! What is found out before anything is touched.

use serde_json::{Value, json};

use super::{Scene, give_to_server_user};

/// The task fails for `reason` in step `step`, and the target serves as before.
async fn refused(scene: &Scene, request: &str, step: &str, reason: &str) -> Value {
    let task = scene.until(&scene.accepted(request), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains(&format!("`{step}` failed: ")) && error.contains(reason), "{error}");
    assert!(error.ends_with("the target is as it was"), "{error}");
    assert_eq!(task["target"], "untouched");
    assert_eq!(scene.says().await, "before");
    assert!(scene.pgdata().join(".hidden").exists());
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_not_there_or_no_good_changes_nothing() {
    let scene = Scene::with_clusters().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    refused(&scene, "db_instance=main1, backup_id=NONE", "choose", "has no backup `NONE`").await;
    refused(&scene, "db_instance=main1, backup_id=ABORTED", "choose", "its status is ERROR").await;
    refused(&scene, "db_instance=main1, backup_id=ROTTEN", "check", "Backup ROTTEN data files are corrupted").await;
    assert!(scene.calls("restore").is_empty());
    std::fs::write(scene.path("backup/catalogue.json"), "not json").unwrap();
    refused(&scene, "db_instance=main1", "choose", "wrote something else than JSON").await;
    let huge = json!([{"instance": "main1", "backups": [
        {"id": "HUGE", "status": "OK", "recovery-time": "2026-01-01 09:00:00+03", "data-bytes": 1_u64 << 60}
    ]}]);
    std::fs::write(scene.path("backup/catalogue.json"), huge.to_string()).unwrap();
    refused(&scene, "db_instance=main1", "check", "and the backup needs 1152921504606846976").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_not_what_it_should_be_is_left_alone() {
    let mut scene = Scene::with_clusters().await;
    let (pgdata, elsewhere) = (scene.path("pgdata"), scene.path("elsewhere"));
    // A directory full of somebody's files, and one that only seems to be below the root.
    std::fs::create_dir_all(pgdata.join("files")).unwrap();
    std::fs::write(pgdata.join("files/precious"), "data").unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("PG_VERSION"), super::version()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, pgdata.join("link")).unwrap();
    std::fs::create_dir(pgdata.join("old")).unwrap();
    std::fs::write(pgdata.join("old/PG_VERSION"), "9.6\n").unwrap();
    for name in ["files", "files/precious", "old", "old/PG_VERSION"] {
        give_to_server_user(&pgdata.join(name));
    }
    let target = |host: &str, name: &str| json!({"db_host": host, "pg_ctl_instance": "main", "pgdata": pgdata.join(name).display().to_string()});
    let mut mapping = scene.config["db_host_mapping"].clone();
    for (instance, host, name) in [
        ("files", "127.0.0.1", "files"),
        ("link", "127.0.0.1", "link"),
        ("old", "127.0.0.1", "old"),
        ("none", "127.0.0.1", "none"),
        // A database's directory, which has a PG_VERSION of its own.
        ("inside", "127.0.0.1", "main1/base/1"),
        // Reachable, with a host key that nobody knows by this name; and not reachable.
        ("stranger", "localhost", "main1"),
        ("away", "127.0.0.77", "main1"),
    ] {
        mapping[instance] = target(host, name);
    }
    scene.set("db_host_mapping", mapping);
    let catalogue = scene.log("backup/catalogue.json").replace("\"instance\":\"main1\",", "");
    std::fs::write(scene.path("backup/catalogue.json"), catalogue).unwrap();
    let (_listener, _worker) = (scene.listen(), scene.work());
    refused(&scene, "db_instance=files", "check", "is no data directory: it has no PG_VERSION, and is not empty").await;
    refused(&scene, "db_instance=link", "check", "which is not below any of the roots").await;
    refused(&scene, "db_instance=old", "check", "holds a cluster of version 9.6").await;
    refused(&scene, "db_instance=inside", "check", "lies in a cluster's data directory").await;
    assert_eq!(scene.says().await, "before");
    refused(&scene, "db_instance=none", "check", "there is no directory").await;
    refused(&scene, "db_instance=stranger", "check", "Host key verification failed").await;
    refused(&scene, "db_instance=away", "check", "127.0.0.77 cannot be reached over SSH").await;
    assert_eq!(std::fs::read_to_string(pgdata.join("files/precious")).unwrap(), "data");
    assert!(elsewhere.join("PG_VERSION").exists() && scene.calls("restore").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_let_in_and_a_stop_that_fails_end_the_task() {
    let mut scene = Scene::with_clusters().await;
    scene.set("ssh_key", json!(scene.sshd.file("stranger").display().to_string()));
    let (listener, worker) = (scene.listen(), scene.work());
    refused(&scene, "db_instance=main1", "check", "Permission denied").await;
    drop((listener, worker));
    scene.set("ssh_key", json!(scene.sshd.file("client").display().to_string()));
    scene.set("stop_command", json!("echo the unit is masked; echo sorry >&2; exit 3"));
    let (_listener, _worker) = (scene.listen(), scene.work());
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(
        error.contains("`stop` failed")
            && error.contains("exit code 3: the unit is masked | sorry")
            && error.contains("its cluster may be stopped"),
        "{error}"
    );
    assert_eq!((task["target"].as_str(), scene.says().await.as_str()), (Some("stopped"), "before"));
    assert!(scene.pgdata().join(".hidden").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_only_says_so_is_found_out() {
    let mut scene = Scene::with_clusters().await;
    scene.set("stop_command", json!("true"));
    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1");
    let task = scene.until(&id, "error").await;
    assert!(task["error"].as_str().unwrap().contains("still runs 20 s after it was stopped"), "{task}");
    assert_eq!(scene.says().await, "before");
}
