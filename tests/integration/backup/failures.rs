//! What must not become an archive.

use bullwork::jobs::backup::Payload;
use tokio_util::sync::CancellationToken;

use super::{Setup, files, programs, result, shelf_at};
use crate::support::eventually;
use crate::support::postgres::PASSWORD;

#[tokio::test]
async fn a_dump_that_fails_or_is_cut_off_is_a_failure_and_the_next_run_tries_again() {
    let setup = Setup::new().await;
    let real = programs().join("pg_dump").display().to_string();
    for (script, wanted) in [
        (format!("{real} \"$@\" | head -c 3000; echo 'disk on fire' >&2; exit 3"), "disk on fire"),
        (format!("{real} \"$@\" | head -c 3000"), "cut off"),
        (format!("{real} \"$@\" | head -c 3000; kill -9 $$"), "signal 9"),
        ("exit 0".to_owned(), "cut off"),
    ] {
        let bin = setup.false_pg_dump(&script).display().to_string();
        let error = setup.fails(&[("PG_BIN", &bin)]).await;
        assert!(error.contains(wanted), "{wanted} in {error}");
        assert!(setup.archives().await.is_empty() && setup.baseline().is_none(), "{:?}", setup.files());
        assert_eq!(setup.files().iter().filter(|f| !f.ends_with("lock")).count(), 0, "{:?}", setup.files());
    }
    assert_eq!(result(&setup.take(&[]).await), "archived");
}

#[tokio::test]
async fn a_failed_run_does_not_advance_the_baseline() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    setup.shop.batch_execute("update customer set name = 'x' where id = 1").await.unwrap();
    let bin = setup.false_pg_dump("exit 1").display().to_string();
    let before = setup.baseline();
    setup.fails(&[("PG_BIN", &bin)]).await;
    assert_eq!(setup.baseline(), before);
    // Nothing was written since, and there is an archive to be made all the same.
    let value = setup.take(&[]).await;
    assert_eq!((result(&value), value["changedTables"][0].as_str()), ("archived", Some("customer")));
}

#[tokio::test]
async fn an_old_pg_dump_is_told_with_the_way_out() {
    let setup = Setup::new().await;
    let bin = setup.directory.path().join("old");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("pg_dump"), "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n").unwrap();
    std::fs::set_permissions(bin.join("pg_dump"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = setup.fails(&[("PG_BIN", &bin.display().to_string())]).await;
    assert!(error.contains("9.6.1") && error.contains("PG_BIN"), "{error}");
}

#[tokio::test]
async fn a_cancelled_run_leaves_nothing_that_shows() {
    let setup = Setup::new().await;
    let bin = setup.slow_pg_dump();
    let kind = setup.kind(&[("PG_BIN", &bin.display().to_string())]);
    let stop = CancellationToken::new();
    let stopping = async {
        eventually("pg_dump waits", std::time::Duration::from_secs(60), async || bin.join("waiting").exists()).await;
        stop.cancel();
    };
    let ((outcome, _), ()) = tokio::join!(setup.run_with(&kind, Payload::default(), stop.clone()), stopping);
    assert!(outcome.unwrap_err().contains("told to stop"));
    assert_eq!(setup.files().iter().filter(|f| !f.ends_with("lock")).count(), 0, "{:?}", setup.files());
    assert_eq!(result(&setup.take(&[]).await), "archived", "the lock is free again");
}

#[tokio::test]
async fn second_store_gets_every_archive_and_what_it_missed() {
    let setup = Setup::new().await;
    let second = setup.directory.path().join("second");
    let address = format!("file://{}", second.display());
    let settings = [("BACKUP_SECOND_STORE", address.as_str())];
    let both = async |what: &str| {
        let name = setup.newest().await.archive;
        assert_eq!(shelf_at(&second).archives().await.unwrap().last().map(|a| a.name), Some(name), "{what}");
        let (first, copy) = (setup.store().join(format!("db/{name}")), second.join(format!("db/{name}")));
        assert!(std::fs::read(first).unwrap() == std::fs::read(copy).unwrap(), "{what}");
    };
    setup.take(&settings).await;
    both("both at once").await;

    // A file where the directory should be: nothing can be stored there.
    std::fs::remove_dir_all(&second).unwrap();
    std::fs::write(&second, "").unwrap();
    setup.shop.batch_execute("update customer set name = 'x' where id = 1").await.unwrap();
    let error = setup.fails(&settings).await;
    assert!(error.contains("did not reach") && error.contains("second"), "{error}");
    assert_eq!(setup.archives().await.len(), 2, "the first store has it all the same");
    assert!(setup.fails(&settings).await.contains("did not reach"), "it is not forgotten");

    std::fs::remove_file(&second).unwrap();
    let value = setup.take(&settings).await;
    assert_eq!(result(&value), "unchanged");
    both("copied later").await;
    let before = files(&second);
    setup.take(&settings).await;
    assert_eq!(files(&second), before);
}

#[tokio::test]
async fn a_baseline_that_cannot_be_read_is_made_anew_and_a_later_format_is_left_alone() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let file = setup.store().join("db/baseline.json");
    std::fs::write(&file, "{ half").unwrap();
    let (outcome, lines) = setup.run_with(&setup.kind(&[]), Payload::default(), CancellationToken::new()).await;
    assert!(format!("{outcome:?}").contains("archived") && lines.holds("cannot be read"), "{outcome:?}");
    assert_eq!(setup.archives().await.len(), 2);
    std::fs::write(&file, r#"{"format": 99}"#).unwrap();
    let error = setup.fails(&[]).await;
    assert!(error.contains("newer bullwork"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), r#"{"format": 99}"#);
}

/// Everything that a run leaves or shows: arguments and environment of its children, objects, lines, errors.
#[tokio::test]
async fn no_secret_is_in_arguments_objects_lines_or_errors() {
    let setup = Setup::new().await;
    let dir = setup.directory.path().display().to_string();
    let bin = setup.false_pg_dump(&format!(
        "tr '\\0' '\\n' < /proc/$$/cmdline > {dir}/arguments; env > {dir}/environment; exec {} \"$@\"",
        programs().join("pg_dump").display()
    ));
    let kind =
        setup.kind(&[("PG_BIN", &bin.display().to_string()), ("BACKUP_PING_URL", "http://127.0.0.1:9/secret-path-of-ours")]);
    let (outcome, lines) = setup.run_with(&kind, Payload::default(), CancellationToken::new()).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let arguments = std::fs::read_to_string(setup.directory.path().join("arguments")).unwrap();
    assert!(
        arguments.contains("--snapshot=") && !arguments.contains(PASSWORD) && !arguments.contains("postgres://"),
        "{arguments}"
    );
    let environment = std::fs::read_to_string(setup.directory.path().join("environment")).unwrap();
    assert!(environment.contains(&format!("PGPASSWORD={PASSWORD}")) && !environment.contains("secret-path"), "{environment}");
    let mut shown = format!("{outcome:?}{:?}", lines.records());
    for file in setup.files().iter().filter(|f| f.ends_with(".json")) {
        shown.push_str(&std::fs::read_to_string(setup.store().join(file)).unwrap());
    }
    shown.push_str(&setup.fails(&[("DATABASE_URL", &setup.cluster.url("nowhere"))]).await);
    for secret in [PASSWORD, "correct%20horse", "secret-path-of-ours"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
