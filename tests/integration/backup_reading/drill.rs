//! Archives are proven, and those that are not what their manifest tells are not.

use bullwork::backup::name::MANIFEST;
use bullwork::jobs::backup_drill::{BackupDrill, Payload};
use serde_json::{Value, json};

use super::{age_key, bullwork, databases, run, sealed_archive, text};
use crate::backup::Setup;

async fn drill(setup: &Setup, more: &[(&str, &str)]) -> Result<Value, String> {
    run::<BackupDrill>(setup, more, Payload::default()).await.0
}

fn proofs(setup: &Setup) -> Vec<String> {
    setup.files().into_iter().filter(|file| file.contains(".verified.")).collect()
}

#[tokio::test]
async fn a_drill_restores_compares_and_stores_the_proof() {
    let setup = Setup::new().await;
    setup
        .shop
        .batch_execute(
            "create table part (id int, at date) partition by range (at);
             create table part_1 partition of part for values from ('2026-01-01') to ('2027-01-01');
             insert into part values (1, '2026-05-05'); create table odd (j json, n numeric); insert into odd values ('{\"a\":1}', 1.0);
             create table \"Odd.name\" (id int)",
        )
        .await
        .unwrap();
    let key = sealed_archive(&setup).await;
    let before = databases(&setup.cluster).await;
    let key = [("RESTORE_AGE_KEY_FILE", key.as_str())];
    let proof = drill(&setup, &key).await.unwrap();
    let manifest = setup.newest().await;
    assert_eq!(
        (&proof["archive"], &proof["tables"], &proof["rows"]),
        (&json!(manifest.archive.to_string()), &json!(6), &json!(602))
    );
    assert_eq!((&proof["fingerprints"], &proof["definitions"]), (&json!(5), &json!(true)), "all but the excluded table");
    assert_eq!(databases(&setup.cluster).await, before, "the scratch database is dropped");
    assert_eq!(proofs(&setup), [format!("db/{}.verified.json", manifest.archive)]);
    let stored: Value = serde_json::from_slice(&std::fs::read(setup.store().join(&proofs(&setup)[0])).unwrap()).unwrap();
    assert_eq!(stored, proof);
    // A later one stands beside it, and the first is not changed.
    drill(&setup, &key).await.unwrap();
    assert_eq!(proofs(&setup).len(), 2, "{:?}", proofs(&setup));
    let again: Value =
        serde_json::from_slice(&std::fs::read(setup.store().join(format!("db/{}.verified.json", manifest.archive))).unwrap())
            .unwrap();
    assert_eq!(again, stored);
    let listed: Value = serde_json::from_slice(&bullwork(&setup, &[], &["backup", "list", "--json"]).stdout).unwrap();
    assert!(listed[0]["verifiedAt"].is_string(), "{listed}");
    assert!(text(&bullwork(&setup, &[], &["backup", "show"]).stdout).contains("Odd.name"));
}

#[tokio::test]
async fn a_manifest_that_lies_is_found_out() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let archive = setup.newest().await.archive;
    let file = setup.store().join(format!("db/{archive}{MANIFEST}"));
    let honest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let before = databases(&setup.cluster).await;
    for (pointer, value, wanted) in [
        ("/tables/0/rows", json!(101), "table `customer` has 100 rows instead of 101"),
        ("/tables/0/fingerprint", json!("record:1:2"), "the values of table `customer` differ"),
        ("/tables/2/rows", json!(1), "table `session_log` has 0 rows instead of 1"),
        ("/tables/1/name", json!("orders"), "table `orders` is missing; table `order` is one too many"),
        ("/schemaSha256", json!("0".repeat(64)), "definitions differ"),
    ] {
        let mut lie = honest.clone();
        *lie.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&file, lie.to_string()).unwrap();
        let error = drill(&setup, &[]).await.unwrap_err();
        assert!(error.contains(wanted), "{pointer}: {error}");
        assert_eq!((databases(&setup.cluster).await, proofs(&setup)), (before.clone(), vec![]), "{pointer}");
    }
    std::fs::write(&file, honest.to_string()).unwrap();
    drill(&setup, &[]).await.expect("the honest one is proven");
}

#[tokio::test]
async fn without_a_key_the_stored_bytes_are_verified_and_nothing_is_proven() {
    let setup = Setup::new().await;
    let key = sealed_archive(&setup).await;
    let (_, other) = age_key(&setup, "other.key");
    let verify = |more: &[(&str, &str)]| {
        let output = bullwork(&setup, more, &["backup", "verify"]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, errors) = verify(&[("RESTORE_DATABASE_URL", "")]);
    assert_eq!(code, Some(0), "{errors}");
    let looked: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(looked["opened"], json!(false));
    let (code, out, errors) = verify(&[("RESTORE_AGE_KEY_FILE", &key), ("RESTORE_DATABASE_URL", "")]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(serde_json::from_str::<Value>(out.lines().last().unwrap()).unwrap()["opened"], json!(true));
    let (code, _, errors) = verify(&[("RESTORE_AGE_KEY_FILE", &other)]);
    assert!(code == Some(1) && errors.contains("none of the given keys opens it"), "{errors}");
    assert!(proofs(&setup).is_empty());

    let file = setup.newest_file().await;
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let (code, _, errors) = verify(&[]);
    assert!(code == Some(1) && errors.contains("is damaged"), "{errors}");
    let error = drill(&setup, &[("RESTORE_DATABASE_URL", "")]).await.unwrap_err();
    assert!(error.contains("BACKUP_DRILL_DATABASE_URL"), "{error}");
}

#[tokio::test]
async fn what_a_killed_drill_left_goes_with_the_next_one() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let before = databases(&setup.cluster).await;
    let admin = setup.cluster.client("postgres").await;
    for sql in [
        "create database bullwork_drill_0123",
        "comment on database bullwork_drill_0123 is 'bullwork: being restored (request 0123)'",
        "create database bullwork_drill_mine",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    drill(&setup, &[]).await.unwrap();
    let mut after = databases(&setup.cluster).await;
    after.retain(|name| name != "bullwork_drill_mine");
    assert_eq!(after, before, "only what says that it is ours");
    assert!(databases(&setup.cluster).await.contains(&"bullwork_drill_mine".to_owned()));
}

/// What PostgreSQL shows otherwise after a restore than before, and what a copy stores otherwise.
#[tokio::test]
async fn a_copy_that_only_looks_different_is_proven() {
    let setup = Setup::new().await;
    setup
        .shop
        .batch_execute(
            "create table kind (kind varchar check (kind in ('a', 'it''s', 'b]')));
             create index on kind (kind) where kind not in ('a', 'b');
             create view some_kinds as select * from kind where kind in ('a', 'c');
             create domain short as varchar check (value in ('x', 'y'));
             create table parent (id int primary key, at date);
             create table heir (own text) inherits (parent);
             alter table parent add later text default 'later';
             insert into heir values (1, '2026-01-01', 'mine', 'then');
             create table dropped (a int, b text, c int); alter table dropped drop b; insert into dropped values (1, 2)",
        )
        .await
        .unwrap();
    setup.take(&[]).await;
    let proof = drill(&setup, &[]).await.unwrap();
    assert_eq!((&proof["definitions"], &proof["tables"]), (&json!(true), &json!(7)), "{proof}");
}

#[tokio::test]
async fn large_objects_are_compared_byte_by_byte() {
    let setup = Setup::new().await;
    let all = [("BACKUP_EXCLUDE_TABLES", "")];
    // One is empty, one has holes, which a restore fills with zeros.
    setup
        .shop
        .batch_execute(
            "select lo_create(70001), lo_from_bytea(70002, '\\xdeadbeef'), lo_create(70003);
             select lo_put(70003, 3, 'near'), lo_put(70003, 100000, 'far');
             create role keeper; alter large object 70002 owner to keeper",
        )
        .await
        .unwrap();
    setup.take(&all).await;
    let proof = drill(&setup, &all).await.unwrap();
    assert_eq!(proof["largeObjects"], json!(3), "{proof}");
    for stored in proofs(&setup) {
        std::fs::remove_file(setup.store().join(stored)).unwrap();
    }
    let archive = setup.newest().await.archive;
    let file = setup.store().join(format!("db/{archive}{MANIFEST}"));
    let honest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (pointer, value, wanted) in [
        ("/largeObjects/objects", json!(4), "there are 3 large objects instead of 4"),
        ("/largeObjects/fingerprint", json!("text:1:2"), "the large objects differ"),
    ] {
        let mut lie = honest.clone();
        *lie.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&file, lie.to_string()).unwrap();
        let error = drill(&setup, &all).await.unwrap_err();
        assert!(error.contains(wanted) && proofs(&setup).is_empty(), "{pointer}: {error}");
    }
    // An archive of a version that did not look at them is proven without them.
    let mut older = honest;
    older.as_object_mut().unwrap().remove("largeObjects");
    std::fs::write(&file, older.to_string()).unwrap();
    assert_eq!(drill(&setup, &all).await.unwrap()["largeObjects"], json!(0));
}
