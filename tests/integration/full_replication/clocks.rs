//! The clocks of the target and of ours jump back and forth while copies are built and change places.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::process::Command;

use super::World;
use super::swap::{LOOK, SOURCE, assert_one_day, next_day};
use super::text;
use crate::support::postgres::Cluster;

const DAY: i64 = 24 * 60 * 60;

/// Builds the library that shifts the clock of a process. Where Rust programs are linked, there is a C compiler.
async fn library(directory: &Path) -> PathBuf {
    let library = directory.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/support/clock.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output().await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// The clock of some processes. Their monotonic clock goes on, as it does on a machine whose clock is set.
struct Clock {
    file: File,
    environment: Vec<(String, String)>,
}

impl Clock {
    fn new(library: &Path, path: &Path) -> Clock {
        let file = OpenOptions::new().write(true).create_new(true).open(path).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
        let environment = [("LD_PRELOAD", library), ("CLOCK_OFFSET_FILE", path)];
        let clock =
            Clock { file, environment: environment.map(|(name, value)| (name.to_owned(), value.display().to_string())).to_vec() };
        clock.set(0);
        clock
    }

    /// That many seconds before or after the true time. In place: the processes have the file mapped.
    fn set(&self, offset: i64) {
        self.file.write_all_at(&offset.to_ne_bytes(), 0).unwrap();
    }
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
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let library = library(directory.path()).await;
    let theirs = Clock::new(&library, &directory.path().join("theirs"));
    let ours = Clock::new(&library, &directory.path().join("ours"));
    let mut world = World::new().await;
    let warehouse = Cluster::start_in(theirs.environment.clone(), &[]);
    world.target = warehouse.create("to").await;
    world.on_source(SOURCE).await;
    let clock = ours.environment.clone();
    let (good, told) = bullwork(&world, &warehouse, &clock, &["run", "full-replication"]).await;
    assert!(good, "{told}");

    // A clock that does not follow would prove nothing.
    const AHEAD: &str = "select (now() - interval '399 days' > to_timestamp($1::float8))::text";
    theirs.set(400 * DAY);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let ahead: String = world.target.query_one(AHEAD, &[&now]).await.unwrap().get(0);
    assert_eq!(ahead, "true", "the server's clock follows the file");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let jumping = tokio::spawn(async move {
        let offsets = [400 * DAY, -30 * DAY, 0, -400 * DAY, DAY, -DAY / 24];
        for turn in 0.. {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            theirs.set(offsets[turn % offsets.len()]);
            ours.set(offsets[(turn + 2) % offsets.len()]);
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
