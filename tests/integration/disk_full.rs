//! The target's disk fills up in mid-copy.

use std::process::{Command, Output};

use crate::support::postgres::{Cluster, give_to_server_user};
use crate::support::small_disk::SmallDisk;

fn replicate(cluster: &Cluster, swap: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(["run", "full-replication"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("SOURCE_DATABASE_URL", cluster.url("production"))
        .env("TARGET_DATABASE_URL", cluster.url("warehouse"))
        .env("REPLICATION_SWAP", swap)
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap()
}

#[tokio::test]
async fn a_full_target_disk_is_told_with_the_targets_state_and_the_next_run_repairs_it() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let cluster = Cluster::start();
    let space = disk.path().join("space");
    std::fs::create_dir(&space).unwrap();
    give_to_server_user(&space);
    let admin = cluster.client("postgres").await;
    admin.batch_execute(&format!("create tablespace small location '{}'", space.display())).await.unwrap();
    admin.batch_execute("create database warehouse tablespace small").await.unwrap();
    let source = cluster.create("production").await;
    source
        .batch_execute(
            "create table small (id int primary key); insert into small select generate_series(1, 100);
             create table large (id int primary key, text text);
             insert into large select n, repeat(md5(n::text), 20) from generate_series(1, 60000) n",
        )
        .await
        .unwrap();

    let states = [
        ("on", ["target untouched", "what was there before serves"]),
        ("off", ["target incomplete", "the next full replication repairs it"]),
    ];
    for (swap, state) in states {
        let output = replicate(&cluster, swap);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("No space left on device") && message.contains("large"), "{message}");
        assert!(state.iter().all(|text| message.contains(text)), "{swap}: {message}");
    }

    disk.resize(256);
    let output = replicate(&cluster, "on");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let target = cluster.client("warehouse").await;
    let rows: i64 = target.query_one("select count(*) from large", &[]).await.unwrap().get(0);
    assert_eq!(rows, 60_000);
    // The server must let go of the disk before it goes.
    drop((cluster, target, admin));
}
