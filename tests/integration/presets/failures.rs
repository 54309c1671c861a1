//! Presets that fail alone, full disks, servers that neither stop nor start, applications that do not answer.

use std::process::{Command, Stdio};

use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::Machine;
use crate::support::s3::S3;
use crate::support::small_disk::SmallDisk;

/// Two presets in a store, and a machine that has neither.
pub(super) async fn two(s3: &S3) -> (Machine, Machine) {
    let anna = Machine::sharing(s3, None).await;
    for name in ["one", "two"] {
        anna.fill(&[name]).await;
        anna.good(&["push-new", &format!("name={name}"), "desc=x"]);
    }
    let boris = Machine::sharing(s3, Some(&anna)).await;
    (anna, boris)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_preset_that_fails_keeps_what_was_ready_and_the_others_go_on() {
    let s3 = S3::start().await;
    let (anna, mut boris) = two(&s3).await;
    boris.good(&["get"]);
    // Both change; the migration of one of them fails.
    anna.good(&["get"]);
    for name in ["one", "two"] {
        anna.good(&["select", name]);
        anna.fill(&["changed", name]).await;
        anna.good(&["push-ex", &format!("name={name}"), "desc=changed"]);
    }
    let migration = boris.setting("DBP_MIGR_CMD");
    boris.set("DBP_MIGR_CMD", "if [ $DBP_PRESET = one ]; then echo 'no such column' >&2; exit 3; fi");
    let error = boris.bad(&["get"]);
    assert!(
        error.contains("1 of 2 presets failed") && error.contains("1 were updated") && error.contains("no such column"),
        "{error}"
    );
    assert!(!boris.runs());
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["one", "migrated"], "as it was");
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["changed", "two"]);
    // What failed is tried again, the other one is not.
    boris.set("DBP_MIGR_CMD", &migration);
    boris.steps();
    boris.good(&["get"]);
    // The cluster ran since the select.
    assert_eq!(boris.steps(), ["app-stop", "migrate one", "pg-stop"]);
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["changed", "one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn sql_that_fails_stops_at_its_first_error() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    // A foreign key that its rows do not keep can be made only by force, and is refused when it is made anew.
    let shop = anna.client("shop").await;
    shop.batch_execute(
        "create table p (id int primary key); create table c (p int references p); \
         set session_replication_role = replica; insert into c values (1)",
    )
    .await
    .unwrap();
    anna.good(&["push-new", "name=broken", "desc=x"]);
    let boris = Machine::sharing(&s3, Some(&anna)).await;
    let error = boris.bad(&["get"]);
    assert!(error.contains("`broken`") && error.contains("violates foreign key constraint"), "{error}");
    assert!(boris.good(&["ls", "where=local"]).is_empty());
    assert!(boris.bad(&["select", "broken"]).contains("not ready here"));
    boris.start_if_stopped();
    let error = boris.bad(&["push-new", "name=scratch", "desc=x"]);
    assert!(error.contains("nobody's preset"), "what a failed pull left is not pushed: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn servers_that_do_not_stop_or_start_are_told_and_lose_nothing() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    let (start, stop) = (boris.setting("DBP_PG_START_CMD"), boris.setting("DBP_PG_STOP_CMD"));

    boris.set("DBP_PG_STOP_CMD", "echo 'no rights to stop' >&2; exit 4");
    let error = boris.bad(&["select", "two"]);
    assert!(error.contains("DBP_PG_STOP_CMD failed") && error.contains("no rights to stop"), "{error}");
    assert_eq!(boris.rows().await, ["one", "migrated"], "the old one still runs");
    assert_eq!(boris.good(&["what-selected"]), "one (revision 1 of shop/main)");

    // Already stopped is stopped.
    boris.set("DBP_PG_STOP_CMD", &stop);
    boris.stop();
    boris.set("DBP_PG_STOP_CMD", "exit 1");
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated"]);

    boris.set("DBP_PG_STOP_CMD", &stop);
    boris.set("DBP_PG_START_CMD", "echo 'no such unit' >&2; exit 5");
    let error = boris.bad(&["select", "one"]);
    assert!(error.contains("`one` is in place, but DBP_PG_START_CMD failed") && error.contains("no such unit"), "{error}");
    boris.start();
    assert!(boris.bad(&["push-new", "name=x", "desc=x"]).contains("nobody's preset"));
    boris.set("DBP_PG_START_CMD", &start);
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_stop_command_that_lies_is_noticed() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    let stop = boris.setting("DBP_PG_STOP_CMD");
    boris.set("DBP_PG_STOP_CMD", "exit 4");
    let error = boris.bad(&["get"]);
    // By then the cluster was emptied.
    assert!(error.contains("updated: one, two; the cluster holds what the pull left"), "{error}");
    assert!(!error.contains("nothing was changed"), "{error}");
    boris.set("DBP_PG_STOP_CMD", &stop);
    boris.good(&["select", "one"]);
    boris.set("DBP_PG_STOP_CMD", "true");
    let error = boris.bad(&["select", "two"]);
    assert!(error.contains("still runs") && error.contains("nothing was changed"), "{error}");
    assert_eq!(boris.rows().await, ["one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_the_cluster_holds_is_not_pushed_over_another_preset() {
    let s3 = S3::start().await;
    let (anna, boris) = two(&s3).await;
    // It was pushed as `two` last.
    let error = anna.bad(&["push-ex", "name=one", "desc=x"]);
    assert!(error.contains("holds `two`") && error.contains("not `one`") && error.contains("select one first"), "{error}");
    anna.good(&["push-ex", "name=two", "desc=x"]);
    boris.good(&["get"]);
    boris.start();
    assert!(boris.bad(&["push-ex", "name=one", "desc=x"]).contains("nobody's preset"));
    boris.good(&["select", "two"]);
    assert!(boris.bad(&["push-ex", "name=one", "desc=x"]).contains("holds `two`"));
    boris.good(&["push-new", "name=three", "desc=x"]);
    boris.good(&["push-ex", "name=three", "desc=x"]);
    assert!(boris.bad(&["push-ex", "name=two", "desc=x"]).contains("holds `three`"));
    boris.good(&["push-ex", "name=one", "desc=x", "base=any"]);
    boris.good(&["push-ex", "name=one", "desc=x"]);
    // What was filled by hand is nobody's.
    boris.good(&["init"]);
    boris.good(&["push-ex", "name=three", "desc=x"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_data_directory_that_is_none_or_of_another_server_is_refused() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    let (data, other) = (boris.setting("DBP_PG_DATA_DIR"), boris.path("other").display().to_string());
    boris.set("DBP_PG_DATA_DIR", &other);
    let error = boris.bad(&["select", "two"]);
    assert!(error.contains(&other) && error.contains("no data directory"), "{error}");
    assert!(!boris.path("other").exists());
    std::fs::create_dir(boris.path("other")).unwrap();
    std::fs::write(boris.path("other/PG_VERSION"), "x").unwrap();
    for name in ["one", "two"] {
        let error = boris.bad(&["select", name]);
        assert!(error.contains(&format!("has its data in {data}")) && error.contains(&other), "{error}");
        assert_eq!(std::fs::read_dir(boris.path("other")).unwrap().count(), 1, "nothing was put there");
    }
    // The server that the start command starts is noticed only then.
    boris.stop();
    let error = boris.bad(&["select", "two"]);
    assert!(error.contains("`two` is in place, but") && error.contains(&format!("has its data in {data}")), "{error}");
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    boris.set("DBP_PG_DATA_DIR", &data);
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_copy_that_would_find_no_room_is_not_begun() {
    let s3 = S3::start().await;
    let (_anna, boris) = two(&s3).await;
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    let spare = boris.path("data.bullwork-spare");
    std::fs::remove_dir_all(&spare).unwrap();
    std::fs::create_dir(&spare).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&spare).stderr(Stdio::null()).status();
    if mounted.is_ok_and(|status| status.success()) {
        let error = boris.bad(&["select", "two"]);
        let _ = Command::new("umount").arg("--lazy").arg(&spare).status();
        assert!(error.contains("no room") && error.contains("are free; the cluster is as it was; make room"), "{error}");
    } else {
        println!("NOT RUN: mounting a small file system takes root");
    }
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated"]);
}

/// The disk of the cluster is filled by somebody else while rsync copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_disk_that_fills_up_during_a_select_is_told_and_the_cluster_serves_as_before() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    boris.good(&["get"]);
    let data = disk.path().join("data");
    let moved = Command::new("cp").args(["-a", "-T"]).args([boris.path("data"), data.clone()]).status();
    assert!(moved.unwrap().success());
    std::fs::remove_dir_all(boris.path("data")).unwrap();
    std::os::unix::fs::symlink(&data, boris.path("data")).unwrap();
    boris.good(&["select", "one"]);
    boris.hold("rsync");
    let script = format!("#!/bin/bash\n{}\nexec /usr/bin/rsync \"$@\"\n", disk.filling(4096));
    std::fs::write(boris.path("bin/rsync"), script).unwrap();
    // The spare one is as large as the copy; what differs must not fit.
    std::fs::remove_dir_all(disk.path().join("data.bullwork-spare")).unwrap();
    boris.steps();
    let error = boris.bad(&["select", "two"]);
    let spare = disk.path().join("data.bullwork-spare").display().to_string();
    for told in [
        "No space left on device",
        "there is no room for a copy",
        &spare,
        "the cluster is as it was",
        "make room and select again",
    ] {
        assert!(error.contains(told), "{told}: {error}");
    }
    assert!(!std::path::Path::new(&spare).exists() && boris.steps().is_empty());
    assert_eq!(boris.good(&["what-selected"]), "one (revision 1 of shop/main)");
    boris.let_go();
    disk.make_room();
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated"]);
}

/// What is ready lies on a disk of its own, which is full when the next one is to be kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_disk_that_is_full_when_a_preset_is_kept_is_told_and_the_earlier_one_stays() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let s3 = S3::start().await;
    let (anna, mut boris) = two(&s3).await;
    boris.set("DBP_PRESETS_DATA_DIR", &disk.path().join("ready").display().to_string());
    boris.good(&["get"]);
    anna.good(&["get"]);
    anna.good(&["select", "one"]);
    anna.fill(&["changed"]).await;
    anna.good(&["push-ex", "name=one", "desc=changed"]);
    disk.fill(4096);
    let error = boris.bad(&["get"]);
    let ready = disk.path().join("ready/shop/main/one@2-").display().to_string();
    for told in
        ["`one`: there is no room for a copy of the cluster", &ready, "No space left on device", "make room and pull again"]
    {
        assert!(error.contains(told), "{told}: {error}");
    }
    let kept = std::fs::read_dir(disk.path().join("ready/shop/main")).unwrap().count();
    assert_eq!(kept, 2, "half a copy is of no use");
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    disk.make_room();
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["changed", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_application_is_waited_for_until_it_answers() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    let app = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(503)).up_to_n_times(3).mount(&app).await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(404)).mount(&app).await;
    boris.set("DBP_APP_DEF_URL", &app.uri());
    boris.good(&["get"]);
    boris.steps();
    boris.good(&["select", "one"]);
    assert_eq!(boris.steps(), ["app-stop", "pg-start", "app-start"]);
    assert!(app.received_requests().await.unwrap().len() >= 4);
    // It answers: it is not started once more.
    boris.good(&["start-app"]);
    assert!(boris.steps().is_empty());
    boris.set("DBP_APP_DEF_URL", "http://127.0.0.1:1/");
    boris.set("DBP_APP_START", "echo 'port is taken' >&2; exit 1");
    let error = boris.bad(&["select", "two"]);
    assert!(error.contains("`two` is in place, but DBP_APP_START failed") && error.contains("port is taken"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_full_disk_is_told_and_leaves_what_was_ready() {
    let s3 = S3::start().await;
    let (anna, boris) = two(&s3).await;
    boris.good(&["get"]);
    anna.good(&["get"]);
    anna.good(&["select", "one"]);
    anna.client("shop")
        .await
        .batch_execute("insert into t select string_agg(md5(n::text), '') from generate_series(1, 200000) n")
        .await
        .unwrap();
    anna.good(&["push-ex", "name=one", "desc=large"]);
    let files = boris.path("presets/shop/main/files");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&files).stderr(Stdio::null()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("NOT RUN: mounting a small file system takes root");
        return;
    }
    let error = boris.bad(&["get"]);
    let _ = Command::new("umount").arg("--lazy").arg(&files).status();
    let file = files.display().to_string();
    for told in ["`one`: writing ", &file, "No space left on device", "make room there and run the command again"] {
        assert!(error.contains(told), "{told}: {error}");
    }
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await.len(), 4);
}
