//! The real program, killed in the middle of a restore.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bullwork::jobs::restore::Payload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{command, databases, dump, into, restore};
use crate::backup::Setup;
use crate::support::eventually;
use crate::support::postgres::programs;

const SOON: Duration = Duration::from_secs(60);

/// A `psql` that gets its input's first bytes, and the rest, or its end, only when the file `go` is there.
fn slow_psql(setup: &Setup) -> std::path::PathBuf {
    let bin = setup.directory.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let real = programs().join("psql").display().to_string();
    let dir = bin.display().to_string();
    let script = format!(
        "#!/bin/bash\n[ \"$1\" = --version ] && exec {real} --version\n\
         ( head -c 2000000; touch {dir}/waiting; while [ -d {dir} ] && [ ! -e {dir}/go ]; do sleep 0.05; done; cat ) | {real} \"$@\"\n"
    );
    std::fs::write(bin.join("psql"), script).unwrap();
    std::fs::set_permissions(bin.join("psql"), std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

async fn sessions(setup: &Setup, database: &str) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = $1";
    setup.cluster.client("postgres").await.query_one(sql, &[&database]).await.unwrap().get(0)
}

#[tokio::test]
async fn kill_in_the_middle_of_the_sql_commits_nothing_and_the_next_run_restores() {
    let setup = Setup::new().await;
    let sql = "create table large as select n, md5(n::text) || md5((-n)::text) as t from generate_series(1, 60000) n";
    setup.shop.batch_execute(sql).await.unwrap();
    setup.take(&[]).await;
    let bin = slow_psql(&setup);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for file in ["go", "waiting"] {
            let _ = std::fs::remove_file(bin.join(file));
        }
        let mut child =
            command(&setup, &[("PG_BIN", &bin.display().to_string())], &["backup", "restore", "--into", "copy"]).spawn().unwrap();
        eventually("half of the SQL has arrived", SOON, async || bin.join("waiting").exists()).await;
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert!(!child.wait().unwrap().success());
        // Now psql sees the end of its input, in the middle of a table's rows.
        std::fs::write(bin.join("go"), "").unwrap();
        eventually("psql is gone", SOON, async || sessions(&setup, "copy").await == 0).await;
        if signal == Signal::SIGTERM {
            assert!(!databases(&setup.cluster).await.contains(&"copy".to_owned()), "a run that is told to stop cleans up");
            continue;
        }
        let copy = setup.cluster.client("copy").await;
        let rows = copy.query("select relname::text from pg_class where oid >= 16384 and relkind = 'r'", &[]).await.unwrap();
        assert!(rows.is_empty(), "half a database was committed: {} tables", rows.len());
    }
    // What a killed run leaves, again, and then a run that takes over.
    let _ = std::fs::remove_file(bin.join("waiting"));
    let _ = std::fs::remove_file(bin.join("go"));
    let mut child =
        command(&setup, &[("PG_BIN", &bin.display().to_string())], &["backup", "restore", "--into", "copy"]).spawn().unwrap();
    eventually("half of the SQL has arrived", SOON, async || bin.join("waiting").exists()).await;
    // It lives: its empty database is nobody else's.
    let busy = restore(&setup, &[], into("copy")).await.unwrap_err();
    assert!(busy.contains("another run restores into database `copy`"), "{busy}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    std::fs::write(bin.join("go"), "").unwrap();
    restore(&setup, &[], into("copy")).await.expect("the empty database of the killed run is used");
    assert!(dump(&setup.cluster, "copy", &[]) == dump(&setup.cluster, "shop", &[]));
}

#[tokio::test]
async fn a_run_that_takes_over_knows_what_its_request_had_restored() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let hook = format!("echo x >> {}/hooked", setup.directory.path().display());
    let request = |id: &str| Payload { request: Some(id.to_owned()), ..Payload::default() };
    let first = restore(&setup, &[("RESTORE_HOOK", &hook)], request("one")).await.unwrap();
    assert_eq!(first["resumed"], json!(false));
    let again = restore(&setup, &[("RESTORE_HOOK", &hook)], request("one")).await.unwrap();
    assert_eq!((&again["resumed"], &again["database"]), (&json!(true), &first["database"]));
    assert_eq!(std::fs::read_to_string(setup.directory.path().join("hooked")).unwrap(), "x\nx\n");
    let other = restore(&setup, &[], request("two")).await.unwrap_err();
    assert!(other.contains("is there already"), "{other}");
}
