//! Old archives, as other programs made them.

use std::process::{Command, Stdio};

use super::{Machine, text, whole};
use crate::support::s3::S3;

fn made(line: &str, machine: &Machine) -> bool {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", line])
        .current_dir(machine.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !output.status.success() {
        println!("NOT RUN: {line}: {}", text(&output.stderr));
    }
    output.status.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn old_archives_become_presets_and_are_only_read() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.set("DBP_MIGR_CMD", "");
    anna.fill(&["старый"]).await;
    let before = whole(&anna);
    // As pg_dumpall writes it without --if-exists, with the drops that the seed's archives have.
    let mut dump = Command::new(crate::support::postgres::programs().join("pg_dumpall"));
    dump.args(["--clean", "-h", "127.0.0.1", "-U", "owner", "-p", &anna.port.to_string()]);
    let sql = dump.env("PGPASSWORD", crate::support::postgres::PASSWORD).output().unwrap().stdout;
    std::fs::write(anna.path("dump.sql"), sql).unwrap();
    if !made("openssl version && xz --version", &anna) {
        return;
    }
    let openssl = "openssl enc -aes-256-cbc -pbkdf2 -pass file:password -out salted.enc";
    let raw = "head -c 32 /dev/urandom >raw.key && head -c 16 /dev/urandom >raw.enc && \
        xz -1 <dump.sql | openssl enc -aes-256-cbc -K $(od -An -v -tx1 raw.key | tr -d ' \\n') -iv $(od -An -v -tx1 raw.enc | tr -d ' \\n') >>raw.enc";
    assert!(made(
        &format!(
            "echo secret-of-old >password && zstd -q -c dump.sql >dump.zst && {openssl} <dump.zst || (xz -1 <dump.sql | {openssl})"
        ),
        &anna
    ));
    assert!(made(raw, &anna));
    let bytes = std::fs::read(anna.path("raw.enc")).unwrap();
    for (name, file, key) in [("salted", "salted.enc", "password"), ("raw", "raw.enc", "raw.key")] {
        anna.good(&["import", &format!("name={name}"), "desc=old", &format!("file={file}"), &format!("old-key={key}")]);
    }
    assert!(std::fs::read(anna.path("raw.enc")).unwrap() == bytes);
    assert_eq!(anna.db_p(&["what-selected"]).status.code(), Some(1), "the cluster holds none of them");
    // Another key, a cut, an altered byte: CBC tells nothing, so what is inside has to.
    std::fs::write(anna.path("other.key"), [7; 32]).unwrap();
    std::fs::write(anna.path("cut.enc"), &bytes[..bytes.len() - 16]).unwrap();
    let mut altered = bytes.clone();
    altered[bytes.len() / 2] ^= 1;
    std::fs::write(anna.path("altered.enc"), altered).unwrap();
    for (file, key) in [("raw.enc", "other.key"), ("cut.enc", "raw.key"), ("altered.enc", "raw.key"), ("dump.sql", "raw.key")] {
        let error = anna.bad(&["import", "name=bad", "desc=old", &format!("file={file}"), &format!("old-key={key}")]);
        assert!(error.contains("cannot be read as an old archive") || error.contains("no end"), "{file}: {error}");
    }
    let boris = Machine::sharing(&s3, Some(&anna)).await;
    let mut boris = boris;
    boris.set("DBP_MIGR_CMD", "");
    boris.good(&["get"]);
    assert_eq!(boris.good(&["ls", "where=local", "short"]), "raw\nsalted");
    for name in ["raw", "salted"] {
        boris.good(&["select", name]);
        assert_eq!(whole(&boris), before, "{name}");
    }
}
