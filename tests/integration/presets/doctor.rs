//! What `bullwork doctor` tells of presets.

use std::os::unix::fs::PermissionsExt as _;

use hyper::Method;

use super::{Machine, text};
use crate::support::postgres::programs;
use crate::support::s3::{Action, S3};

/// What it says: the lines about presets, each `grade check seen fix`.
fn doctor(machine: &Machine) -> Vec<String> {
    let mut command = machine.program(env!("CARGO_BIN_EXE_bullwork"));
    let said = text(&command.arg("doctor").env("REDIS_URL", "redis://127.0.0.1:1").output().unwrap().stdout);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    said.lines().map(words).filter(|line| line.split(' ').nth(1) == Some("preset")).collect()
}

fn line(machine: &Machine, grade: &str, check: &str) -> String {
    let lines = doctor(machine);
    let wanted = format!("{grade} preset {check} ");
    lines.iter().find(|line| line.starts_with(&wanted)).unwrap_or_else(|| panic!("no `{wanted}` in {lines:#?}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn doctor_looks_at_key_store_cluster_and_programs() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=x"]);
    let lines = doctor(&anna);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.starts_with("ok preset ")), "{lines:#?}");
    assert!(line(&anna, "ok", "key").contains("is the key of all presets of shop/main"));
    assert!(line(&anna, "ok", "store").contains("1 presets in shop/main of s3://"));
    assert!(line(&anna, "ok", "cluster").contains("its server answers"));
    assert!(line(&anna, "ok", "programs").contains("rsync, flock"));

    // The key: open to others, another branch's, none.
    let key = anna.path("key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(line(&anna, "failed", "key").contains("others can read the key file"));
    std::fs::rename(&key, anna.path("right")).unwrap();
    assert!(line(&anna, "failed", "key").contains("there is no key file"));
    anna.good(&["gen-key"]);
    assert!(line(&anna, "failed", "key").contains("is not the key of `base`"));
    std::fs::rename(anna.path("right"), &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    // The store: it refuses; a pointer in it is no pointer.
    s3.order(Method::GET, "list-type", 1000, Action::Answer(403, "AccessDenied"));
    assert!(line(&anna, "failed", "store").contains("s3:ListBucket"));
    assert!(line(&anna, "ok", "key").contains("mode 600"));
    s3.relent();
    let pointer = s3.objects().join("shop/main/base/current.json");
    let right = std::fs::read(&pointer).unwrap();
    std::fs::write(&pointer, "nonsense").unwrap();
    assert!(line(&anna, "failed", "store").contains("`base`"));
    std::fs::write(&pointer, right).unwrap();

    // The cluster: stopped is as it should be; another one's directory, and no superuser, are not.
    anna.client("postgres").await.batch_execute("create role clerk login password 'clerk-word'").await.unwrap();
    let (data, password) = (anna.setting("DBP_PG_DATA_DIR"), anna.setting("DBP_PG_PASSWORD"));
    anna.set("DBP_PG_USER", "clerk");
    anna.set("DBP_PG_PASSWORD", "clerk-word");
    assert!(line(&anna, "failed", "cluster").contains("is no superuser"));
    anna.set("DBP_PG_PASSWORD", "wrong-word");
    let told = line(&anna, "failed", "cluster");
    assert!(told.contains("password authentication failed") && !told.contains("wrong-word"), "{told}");
    anna.set("DBP_PG_USER", "owner");
    anna.set("DBP_PG_PASSWORD", &password);
    anna.set("DBP_PG_DATA_DIR", &anna.path("elsewhere").display().to_string());
    assert!(line(&anna, "failed", "cluster").contains("is no data directory of PostgreSQL"));
    anna.set("DBP_PG_DATA_DIR", &data);
    anna.stop();
    assert!(line(&anna, "ok", "cluster").contains("its server is stopped"));

    // The programs, and settings that are not there.
    anna.set("PG_BIN", &anna.path("presets").display().to_string());
    assert!(line(&anna, "failed", "programs").contains("no pg_dump in PG_BIN="));
    let bin = anna.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["pg_dump", "psql", "pg_dumpall"] {
        std::os::unix::fs::symlink(programs().join(program), bin.join(program)).unwrap();
    }
    anna.set("PG_BIN", &bin.display().to_string());
    assert!(line(&anna, "failed", "programs").contains("pg_basebackup"));
    anna.set("DBP_PG_STOP_CMD", "");
    assert!(line(&anna, "failed", "cluster").contains("needed and not set: DBP_PG_STOP_CMD"));
    anna.settings.retain(|(name, _)| !["DBP_S3_BACKET", "DBP_REPO"].contains(&name.as_str()));
    assert!(doctor(&anna).is_empty());
}
