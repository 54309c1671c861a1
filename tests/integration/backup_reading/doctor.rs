//! `bullwork doctor` tries the stores, and `/metrics` tells how old their archives are.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use hyper::Method;
use nix::sys::signal::Signal;

use super::{age_key, bullwork, command, sealed_archive, text};
use crate::backup::Setup;
use crate::support::s3::{ACCESS_KEY, Action, BUCKET, S3, SECRET_KEY};
use crate::support::{Server, eventually, free_port};

/// The finding about `check`, with what doctor says to do about it.
fn finding(setup: &Setup, more: &[(&str, &str)], check: &str) -> String {
    let settings = [more, &[("REDIS_URL", "redis://127.0.0.1:1")]].concat();
    let output = text(&bullwork(setup, &settings, &["doctor"]).stdout);
    let about = |line: &&str| {
        let rest = line.trim_start().split_once(' ').map(|(_grade, rest)| rest.trim_start());
        rest.is_some_and(|rest| rest.starts_with(&format!("{check} ")))
    };
    output.lines().find(about).unwrap_or_else(|| panic!("no `{check}` in {output}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_store_is_tried_and_what_is_missing_is_said() {
    let (setup, s3) = (Setup::new().await, S3::start().await);
    let (store, endpoint) = (format!("s3://{BUCKET}/some/prefix"), format!("http://127.0.0.1:{}", s3.port));
    let settings = [
        ("BACKUP_SECOND_STORE", store.as_str()),
        ("S3_ENDPOINT", endpoint.as_str()),
        ("S3_ACCESS_KEY", ACCESS_KEY),
        ("S3_SECRET_KEY", SECRET_KEY),
    ];
    let ask = |more: &[(&str, &str)], check: &str| finding(&setup, &[&settings[..], more].concat(), check);
    for check in ["store", "second store"] {
        let found = ask(&[], check);
        assert!(found.contains("ok") && found.contains("creates objects, never overwrites them"), "{found}");
    }
    assert!(s3.store().list("").await.unwrap().is_empty(), "nothing of it stays");
    assert!(setup.files().iter().all(|file| file.ends_with("lock")), "{:?}", setup.files());

    s3.order(Method::DELETE, "bullwork-probe", 100, Action::Answer(403, "AccessDenied"));
    let found = ask(&[], "second store");
    assert!(found.contains("ok") && found.contains("may not remove"), "{found}");
    let found = ask(&[("BACKUP_KEEP_LAST", "3")], "second store");
    assert!(found.contains("warning") && found.contains("s3:DeleteObject"), "{found}");
    s3.relent();
    s3.order(Method::PUT, "bullwork-probe", 100, Action::Answer(403, "AccessDenied"));
    let found = ask(&[], "second store");
    assert!(found.contains("failed") && found.contains("s3:PutObject"), "{found}");
    let found = ask(&[("DATABASE_URL", "")], "second store");
    assert!(found.contains("warning") && found.contains("can be read, not written to"), "{found}");
    s3.relent();
    s3.order(Method::GET, "list-type", 100, Action::Answer(403, "AccessDenied"));
    let found = ask(&[], "second store");
    assert!(found.contains("failed") && found.contains("s3:ListBucket"), "{found}");
    s3.relent();

    let wrong = ask(&[("S3_SECRET_KEY", "another-secret-key-0123456789")], "second store");
    assert!(wrong.contains("failed") && !wrong.contains("another-secret"), "{wrong}");
    let before = s3.count("bullwork-probe");
    let locked = ask(&[("S3_OBJECT_LOCK_MODE", "GOVERNANCE"), ("S3_OBJECT_LOCK_DAYS", "1")], "second store");
    assert!(locked.contains("ok") && locked.contains("nothing was written"), "{locked}");
    assert_eq!(s3.count("bullwork-probe"), before);
    // A file where the directory should be.
    let file = setup.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let found = ask(&[("BACKUP_STORE", &format!("file://{}", file.display()))], "store");
    assert!(found.contains("failed"), "{found}");
}

#[tokio::test]
async fn a_machine_for_archives_alone_needs_no_replication_and_no_redis() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    std::fs::write(setup.directory.path().join(".env"), "BACKUP_PREFIX=db/\n").unwrap();
    let examine = |more: &[(&str, &str)]| {
        let output = bullwork(&setup, more, &["doctor"]);
        (output.status.code(), text(&output.stdout))
    };
    let line = |told: &str, check: &str| {
        let about = |line: &&str| line.trim_start().split_once(' ').is_some_and(|(_, rest)| rest.trim_start().starts_with(check));
        told.lines().find(about).unwrap_or_else(|| panic!("no `{check}` in {told}")).trim_start().to_owned()
    };
    // The Redis that is asked for nothing is told by default settings alone; one may run on this machine.
    let (code, told) = examine(&[]);
    assert_eq!(code, Some(0), "{told}");
    for check in ["replication", "backup source", "backup pg_dump", "restore server", "psql", "store"] {
        assert!(line(&told, check).starts_with("ok"), "{check}: {told}");
    }
    for check in ["recipients", "archive key", "settings file"] {
        assert!(line(&told, check).starts_with("warning"), "{check}: {told}");
    }
    assert!(!told.contains("source rights") && !told.contains("u{a}"), "{told}");

    let nowhere = setup.directory.path().display().to_string();
    let (code, told) = examine(&[
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("PG_BIN", &nowhere),
        ("RESTORE_DATABASE_URL", "postgres://u@127.0.0.1:1/postgres"),
        ("BACKUP_DRILL_DATABASE_URL", &setup.cluster.url("nowhere")),
        ("BACKUPS_GPG_RECIPIENT", "nobody@example.org"),
        ("BACKUP_PLAIN", ""),
    ]);
    assert_eq!(code, Some(1), "{told}");
    for check in ["Redis ", "backup pg_dump", "recipients", "restore server", "drill server", "psql"] {
        assert!(line(&told, check).starts_with("failed"), "{check}: {told}");
    }
}

#[tokio::test]
async fn the_private_key_is_held_against_the_newest_archive() {
    let setup = Setup::new().await;
    let ask = |file: &str, check: &str| finding(&setup, &[("RESTORE_AGE_KEY_FILE", file)], check);
    let (_, other) = age_key(&setup, "other.key");
    let found = ask(&other, "archive key");
    assert!(found.contains("ok") && found.contains("no archive for age yet"), "{found}");
    let key = sealed_archive(&setup).await;
    let archive = setup.newest().await.archive.to_string();
    let found = ask(&key, "archive key");
    assert!(found.contains("ok") && found.contains(&format!("{archive}, is encrypted for it")), "{found}");
    let found = ask(&key, "psql");
    assert!(found.contains("ok") && found.contains("which reads what pg_dump"), "{found}");
    for (file, wanted) in
        [(other.as_str(), "and RESTORE_AGE_KEY_FILE holds age1"), ("", "needs it"), ("/nowhere.key", "/nowhere.key")]
    {
        let found = ask(file, "archive key");
        assert!(found.contains("failed") && found.contains(wanted) && !found.contains("SECRET"), "{found}");
    }
}

#[tokio::test]
async fn a_role_that_could_not_restore_the_newest_archive_is_told() {
    let setup = Setup::new().await;
    let password = crate::support::postgres::PASSWORD;
    setup.shop.batch_execute(&format!("create role clerk login createdb password '{password}'")).await.unwrap();
    let server = setup.cluster.url("postgres").replace("owner:", "clerk:");
    let ask = || finding(&setup, &[("RESTORE_DATABASE_URL", &server)], "restore server");
    let found = ask();
    assert!(found.contains("ok"), "there is no archive yet: {found}");
    setup.take(&[]).await;
    let found = ask();
    assert!(found.contains("failed") && found.contains("belongs to the roles `owner`, of which it is no member"), "{found}");
    setup.shop.batch_execute("grant owner to clerk").await.unwrap();
    let found = ask();
    assert!(found.contains("ok") && !found.contains("owner`"), "{found}");
}

#[tokio::test]
async fn metrics_tell_how_old_archives_and_drills_are() {
    let setup = Setup::new().await;
    let port = free_port();
    let settings = [("PORT", port.to_string()), ("BACKUP_MAX_AGE", "2".to_owned()), ("BACKUP_DRILL_MAX_AGE", "48".to_owned())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    setup.take(&[]).await;
    let archive = setup.newest_file().await;
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 3600);
    std::fs::File::options().write(true).open(&archive).unwrap().set_modified(old).unwrap();
    let _web = Server::start(command(&setup, &settings, &["web"]), Signal::SIGTERM);
    let mut answer = String::new();
    eventually("it answers", Duration::from_secs(60), async || {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        true
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"), "{answer}");
    let at = old.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for line in [
        "bullwork_backup_store_up 1".to_owned(),
        "bullwork_backup_max_age_seconds{of=\"archive\"} 7200".to_owned(),
        format!("bullwork_backup_newest_timestamp_seconds{{of=\"archive\"}} {at}"),
        "bullwork_backup_overdue{of=\"archive\"} 1".to_owned(),
        "bullwork_backup_overdue{of=\"drill\"} 1".to_owned(),
    ] {
        assert!(answer.lines().any(|known| known == line), "{line} in {answer}");
    }
    assert!(!answer.contains("newest_timestamp_seconds{of=\"drill\"}"), "{answer}");
}
