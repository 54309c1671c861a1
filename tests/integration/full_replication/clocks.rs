//! The clocks of the target and of ours jump back and forth while copies are built and change places.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::Command;

use super::World;
use super::swap::{LOOK, SOURCE, assert_one_day, next_day};
use super::text;
use crate::support::postgres::Cluster;

/// The library that changes the time of a process, where it is installed.
fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    found.into_iter().find(|path| path.exists())
}

/// A process whose clock follows the file. Its monotonic clock goes on, as it does on a machine whose clock is set.
fn environment(library: &Path, file: &Path) -> Vec<(String, String)> {
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn set(file: &Path, offset: &str) {
    // At once: a half-written file would be no time at all.
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{offset}\n")).unwrap();
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::rename(&new, file).unwrap();
}

async fn bullwork(world: &World, warehouse: &Cluster, clock: &[(String, String)], verbs: &[&str]) -> (bool, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(verbs)
        .env_clear()
        .envs(clock.iter().map(|(name, value)| (name, value)))
        .env("SOURCE_DATABASE_URL", world.cluster.url("from"))
        .env("TARGET_DATABASE_URL", warehouse.url("to"))
        .env("LOG_FORMAT", "text")
        .current_dir(std::env::temp_dir())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), child).await.expect("ends in time").unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_back_and_forth_change_nothing_but_the_times_that_are_told() {
    let Some(library) = library() else {
        println!("NOT RUN: libfaketime is not installed (Debian: libfaketime)");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (theirs, ours) = (directory.path().join("theirs"), directory.path().join("ours"));
    set(&theirs, "+0");
    set(&ours, "+0");
    let mut world = World::new().await;
    let warehouse = Cluster::start_in(environment(&library, &theirs), &[]);
    world.target = warehouse.create("to").await;
    world.on_source(SOURCE).await;
    let clock = environment(&library, &ours);
    let (good, told) = bullwork(&world, &warehouse, &clock, &["run", "full-replication"]).await;
    assert!(good, "{told}");

    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, files) = (stop.clone(), (theirs.clone(), ours.clone()));
    let jumping = tokio::spawn(async move {
        let offsets = ["+400d", "-30d", "+0", "-400d", "+1d", "-1h"];
        for turn in 0.. {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            set(&files.0, offsets[turn % offsets.len()]);
            set(&files.1, offsets[(turn + 2) % offsets.len()]);
            tokio::time::sleep(Duration::from_millis(70)).await;
        }
    });
    let (reader, stopped) = (warehouse.client("to").await, stop.clone());
    let reading = tokio::spawn(async move {
        let mut looks = 0;
        while !stopped.load(Ordering::Relaxed) {
            let seen: String = reader.query_one(LOOK, &[]).await.unwrap_or_else(|e| panic!("{e:?}")).get(0);
            assert_one_day(&seen);
            looks += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        looks
    });
    let serving = async |day: i32| {
        let sql = "select id::text || ' ' || (select max(day) from a) from bullwork.generation where serves";
        let seen = text(&world.target, sql).await;
        let (generation, seen_day) = seen.split_once(' ').unwrap();
        assert_eq!(seen_day, day.to_string());
        generation.parse::<i64>().unwrap()
    };
    let nights = if std::env::var_os("BULLWORK_CHAOS").is_some_and(|v| v == "1") { 20 } else { 4 };
    let mut before = serving(1).await;
    for day in 2..2 + nights {
        next_day(&world, day).await;
        let (good, told) = bullwork(&world, &warehouse, &clock, &["run", "full-replication"]).await;
        assert!(good, "{told}");
        let now = serving(day).await;
        assert!(now > before, "the younger generation serves, whatever its time: {told}");
        // The one before comes back, and none that only seems younger; then the newest again.
        for expected in [(day - 1, before), (day, now)] {
            let (good, told) = bullwork(&world, &warehouse, &clock, &["replication", "rollback"]).await;
            assert!(good, "{told}");
            assert_eq!(serving(expected.0).await, expected.1, "{told}");
        }
        before = now;
    }
    let (good, told) = bullwork(&world, &warehouse, &clock, &["replication", "verify"]).await;
    assert!(good, "{told}");
    stop.store(true, Ordering::Relaxed);
    jumping.await.unwrap();
    assert!(reading.await.expect("the reader never failed") > 50);
    world.assert_same_rows(&[]).await;
}
