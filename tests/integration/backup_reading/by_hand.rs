//! The README's lines restore an archive with the usual programs alone.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{dump, sealed_archive, text};
use crate::backup::Setup;
use crate::seal::gpg::Home;
use crate::support::postgres::{PASSWORD, programs};

/// The lines of the README that open an archive, for the file `archive`; with what follows `# or:` instead of what it is
/// an alternative to where `or` says so.
fn lines(archive: &str, or: bool) -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let after = readme.split_once("\nage -d -i ").expect("the README shows how").1;
    let block = format!("age -d -i {}", after.split_once("```").expect("the block ends").0);
    let line = |line: &str| match line.split_once("# or: ") {
        Some((_, other)) if or => other.replace("2026-….tar.gz.gpg", archive),
        Some((usual, _)) => usual.replace("2026-….tar.zst.age", archive),
        None => line.to_owned(),
    };
    block.lines().map(|l| line(l) + "\n").collect()
}

fn restored_by(setup: &Setup, lines: &str, directory: &Path, more: &[(&str, &str)]) {
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", lines])
        .current_dir(directory)
        .env_clear()
        .envs([("PATH", path.as_str()), ("PGHOST", "127.0.0.1"), ("PGUSER", "owner"), ("PGPASSWORD", PASSWORD)])
        .env("PGPORT", setup.cluster.port.to_string())
        .envs(more.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{lines}\n{}", text(&output.stderr));
    assert!(dump(&setup.cluster, "copy", &[]) == dump(&setup.cluster, "shop", &[]), "the copy is another database");
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.join("auth.json")).unwrap()).unwrap();
    assert_eq!((fixture.as_array().unwrap().len(), &fixture[0]["model"]), (100, &json!("auth.user")));
}

fn fetched(setup: &Setup, file: &Path) -> String {
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::copy(file, setup.directory.path().join(&name)).unwrap();
    name
}

const FIXTURES: (&str, &str) = ("BACKUP_FIXTURES", r#"{"auth":{"customer":"auth.user"}}"#);

#[tokio::test]
async fn the_lines_for_age_do() {
    if !Command::new("age").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: age is not installed");
        return;
    }
    let setup = Setup::new().await;
    let public = bullwork::seal::age::keygen(&setup.directory.path().join("backup.key")).unwrap();
    setup.take(&[("BACKUP_AGE_RECIPIENTS", &public), ("BACKUP_PLAIN", ""), FIXTURES]).await;
    let name = fetched(&setup, &setup.newest_file().await);
    restored_by(&setup, &lines(&name, false), setup.directory.path(), &[]);
}

#[tokio::test]
async fn the_lines_for_openpgp_do() {
    let Some(home) = Home::new() else { return };
    let setup = Setup::new().await;
    home.key("backup@example.invalid");
    let ring = home.path().display().to_string();
    let settings = [
        ("BACKUPS_GPG_RECIPIENT", "backup@example.invalid"),
        ("BACKUP_PLAIN", ""),
        ("BACKUP_COMPRESSION", "gzip"),
        ("GNUPGHOME", &ring),
        FIXTURES,
    ];
    let output = super::bullwork(&setup, &settings, &["backup", "now"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let name = fetched(&setup, &setup.newest_file().await);
    restored_by(&setup, &lines(&name, true), setup.directory.path(), &[("GNUPGHOME", &ring)]);
}

#[tokio::test]
async fn without_the_key_the_same_lines_restore_nothing() {
    if !Command::new("age").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: age is not installed");
        return;
    }
    let setup = Setup::new().await;
    sealed_archive(&setup).await;
    bullwork::seal::age::keygen(&setup.directory.path().join("backup.key")).unwrap();
    let name = fetched(&setup, &setup.newest_file().await);
    let first = lines(&name, false).lines().next().unwrap().to_owned();
    let output =
        Command::new("bash").args(["-c", &format!("set -o pipefail; {first}")]).current_dir(setup.directory.path()).output();
    assert!(!output.unwrap().status.success());
}
