//! The target's disk fills up in mid-copy.
//!
//! A small file system is mounted for it, which takes root; others see a line that says so.

use std::process::{Command, Output, Stdio};

use crate::support::postgres::Cluster;

/// A file system of a few megabytes in memory; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(SmallDisk(directory))
    }

    fn resize(&self, megabytes: u32) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,size={megabytes}m")]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

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
    let Some(disk) = SmallDisk::mount(24) else {
        println!("NOT RUN: mounting a small file system takes root");
        return;
    };
    let cluster = Cluster::start();
    let space = disk.0.path().join("space");
    std::fs::create_dir(&space).unwrap();
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(&space, Some(user.uid), Some(user.gid)).unwrap();
        std::os::unix::fs::chown(disk.0.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
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
