//! Debian's pgBackRest, end to end: full, delta, and a damaged repository.

use std::process::Command;

use serde_json::json;

use super::{LIMIT, Scene, base_backup, largest, said};
use crate::support::eventually;
use crate::support::postgres::{Cluster, PASSWORD, as_server_user, give_to_server_user};
use crate::support::small_disk::SmallDisk;

/// A repository with a backup of a cluster in which table `t` says `restored`, changed after it; and the target.
async fn scene() -> (Scene, String) {
    within(Scene::new()).await
}

async fn within(mut scene: Scene) -> (Scene, String) {
    let at = |name: &str| scene.path(name).display().to_string();
    for name in ["repo", "br-log", "br-lock", "br-spool", "socket"] {
        std::fs::create_dir(at(name)).unwrap();
        give_to_server_user(&scene.path(name));
    }
    let conf = at("pgbackrest.conf");
    let archive = format!("archive_command=pgbackrest --config={conf} --stanza=main1 archive-push %p");
    std::fs::write(&conf, "").unwrap();
    let socket = format!("unix_socket_directories={}", at("socket"));
    let source = Cluster::start_with(&["archive_mode=on", &archive, &socket, "wal_level=replica"]);
    let text = format!(
        "[global]\nrepo1-path={}\nlog-path={}\nlock-path={}\nspool-path={}\nstart-fast=y\nlog-level-file=detail\n\
         [main1]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=owner\n",
        at("repo"),
        at("br-log"),
        at("br-lock"),
        at("br-spool"),
        source.data().display(),
        source.port,
        at("socket")
    );
    std::fs::write(&conf, text).unwrap();
    said(&source.client("postgres").await, "restored").await;
    let run = |words: &[&str]| {
        let mut command = Command::new("pgbackrest");
        command.arg(format!("--config={conf}")).arg("--stanza=main1").args(words).env("PGPASSWORD", PASSWORD);
        as_server_user(&mut command);
        let output = command.output().expect("pgbackrest is installed (scripts/test installs it)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    run(&["stanza-create"]);
    run(&["--type=full", "backup"]);
    let info: serde_json::Value = serde_json::from_str(&run(&["--output=json", "info"])).unwrap();
    let label = info[0]["backup"][0]["label"].as_str().unwrap().to_owned();
    // What comes after the backup is not restored.
    source.client("postgres").await.batch_execute("update t set word = 'too late'; select pg_switch_wal()").await.unwrap();
    // The target holds an older life of the same cluster, so that a delta has something to keep.
    base_backup(&source, &scene.pgdata());
    scene.set("engine", json!("pgbackrest"));
    scene.set("tool", json!("pgbackrest"));
    scene.set("pgbackrest_config", json!(conf));
    scene.set("wal_dir", json!(""));
    scene.start_target();
    assert_eq!(scene.says().await, "too late");
    scene
        .target()
        .await
        .unwrap()
        .batch_execute("update t set word = 'before'; create table junk as select generate_series(1, 1000)")
        .await
        .unwrap();
    std::fs::write(scene.pgdata().join(".hidden"), "").unwrap();
    give_to_server_user(&scene.pgdata().join(".hidden"));
    (scene, label)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_and_a_delta_restore_bring_the_backups_moment_back() {
    let (scene, label) = scene().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    let shown: serde_json::Value = serde_json::from_str(&scene.ask("show")).unwrap();
    assert_eq!((&shown[0]["name"], &shown[0]["backup"][0]["label"]), (&json!("main1"), &json!(label)));

    let task = scene.until(&scene.accepted(&format!("db_instance=main1, backup_id={label}")), "completed").await;
    assert_eq!(task["backup_id"], label.as_str());
    assert!(task["progress"].is_null() || task["progress"]["total"] == 10_000, "{task}");
    assert_eq!(scene.says().await, "restored");
    let client = scene.target().await.unwrap();
    let recovery: bool = client.query_one("select pg_is_in_recovery()", &[]).await.unwrap().get(0);
    assert!(!recovery && !scene.pgdata().join(".hidden").exists());

    client.batch_execute("update t set word = 'changed again'; create table junk as select 1").await.unwrap();
    drop(client);
    let task = scene.until(&scene.accepted("db_instance=main1, incremental"), "completed").await;
    assert_eq!((&task["backup_id"], &task["incremental"]), (&json!(label), &json!(true)));
    assert_eq!(scene.says().await, "restored");
    assert!(scene.target().await.unwrap().query("select from junk", &[]).await.is_err());
    let log =
        std::fs::read_dir(scene.path("br-log")).unwrap().flatten().map(|entry| std::fs::read_to_string(entry.path()).unwrap());
    let log = log.collect::<String>();
    assert!(log.contains("--delta") && log.contains("exists and matches backup"), "the second one was no delta");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_repository_is_found_out_before_the_target_is_touched() {
    let (scene, label) = scene().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    let backup = scene.path("repo/backup/main1").join(&label).join("pg_data/base");
    let file = largest(&backup);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("is not valid: `pgbackrest verify` says") && error.ends_with("the target is as it was"), "{error}");
    assert_eq!(scene.says().await, "before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_ends_pgbackrest_on_the_targets_machine() {
    let (mut scene, _) = scene().await;
    slow(&mut scene);
    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1");
    eventually("it restores", LIMIT, async || {
        scene.processes("slow-pgbackrest --config").iter().any(|line| line.contains("--set="))
    })
    .await;
    assert_eq!(scene.ask(&format!("cancel, id={id}")), format!("Task {id} canceled."));
    let task = scene.until(&id, "canceled").await;
    assert!(!task["error"].as_str().unwrap().contains("look whether it still runs"), "{task}");
    assert!(scene.processes("slow-pgbackrest").is_empty(), "{:?}", scene.processes("slow-pgbackrest"));
}

/// Somebody else fills the target's disk while pgBackRest restores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_in_mid_restore_is_told_and_the_next_request_repairs_it() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let mut scene = Scene::new();
    std::fs::remove_dir(scene.path("pgdata")).unwrap();
    std::os::unix::fs::symlink(disk.path(), scene.path("pgdata")).unwrap();
    let pgdata = disk.path().join("main1").display().to_string();
    scene.set("roots", json!([disk.path().display().to_string()]));
    scene.set("db_host_mapping", json!({"main1": {"db_host": "127.0.0.1", "pg_ctl_instance": "main", "pgdata": pgdata}}));
    let (mut scene, _) = within(scene).await;
    let full = scene.path("full-pgbackrest");
    let script = format!(
        "#!/bin/sh\nfor word; do last=$word; done\nif [ \"$last\" = restore ]; then {}; fi\nexec pgbackrest \"$@\"\n",
        disk.filling(8192)
    );
    std::fs::write(&full, script).unwrap();
    std::fs::set_permissions(&full, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.set("tool", json!(full.display().to_string()));
    let (_listener, worker) = (scene.listen(), scene.work());
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    for told in [
        "`restore` failed: ",
        &format!("unable to write '{pgdata}/"),
        &format!("{pgdata} on 127.0.0.1 has "),
        "bytes left: make room there",
        "the target is half-restored and stopped: ask again",
    ] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert_eq!((task["target"].as_str(), scene.says().await.as_str()), (Some("incomplete"), "does not run"));
    // As long as there is no room, that is found out before anything more is done.
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("`check` failed: ") && error.contains("make room there") && error.contains(&pgdata), "{error}");

    disk.make_room();
    drop((_listener, worker));
    scene.set("tool", json!("pgbackrest"));
    let (_listener, _worker) = (scene.listen(), scene.work());
    scene.until(&scene.accepted("db_instance=main1, incremental"), "completed").await;
    assert_eq!(scene.says().await, "restored");
}

/// Regression: it was told as pgBackRest's own end over there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ssh_that_is_killed_is_told_as_what_it_is_and_the_tool_there_ends_with_it() {
    let (mut scene, _) = scene().await;
    slow(&mut scene);
    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1");
    let tool = scene.path("slow-pgbackrest").display().to_string();
    let command = format!("{tool} --config");
    eventually("it restores", LIMIT, async || scene.processes(&command).iter().any(|line| line.contains("--set="))).await;
    let ours = pids(|words| words[0] == "ssh" && words.iter().any(|word| word.contains(&tool) && word.contains("--set=")));
    assert_eq!(ours.len(), 1, "{ours:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(ours[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    let task = scene.until(&id, "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("our own `ssh`, which held") && error.contains("was ended by signal 9"), "{error}");
    assert_eq!(task["target"], "incomplete");
    eventually("the tool has ended there", LIMIT, async || scene.processes("slow-pgbackrest").is_empty()).await;
}

/// Has the tool be slow there, and the real one otherwise.
fn slow(scene: &mut Scene) {
    let slow = scene.path("slow-pgbackrest");
    std::fs::write(
        &slow,
        "#!/bin/sh\nfor word; do last=$word; done\n[ \"$last\" = restore ] && sleep 3601\nexec pgbackrest \"$@\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.set("tool", json!(slow.display().to_string()));
}

/// Processes with such words.
fn pids(wanted: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let pid = |entry: std::fs::DirEntry| {
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<String> = String::from_utf8_lossy(&words).split('\0').map(str::to_owned).collect();
        wanted(&words).then(|| entry.file_name().to_string_lossy().parse().ok()).flatten()
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(pid).collect()
}
