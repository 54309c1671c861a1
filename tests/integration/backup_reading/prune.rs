//! What no rule keeps goes, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bullwork::backup::freshness::{self, Limits};
use bullwork::backup::name::{MANIFEST, Name};
use bullwork::backup::prune::prune;
use bullwork::backup::retention::Rules;
use bullwork::backup::shelf::Shelf;
use bullwork::jobs::backup_prune::{BackupPrune, Payload};
use bullwork::storage::{Entry, Meta, Opened, Removal, StorageError, Store, Tidied, Upload, Version};
use bullwork::worker::Run;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{bullwork, run, text};
use crate::backup::Setup;

/// Archives of these days, made from the only one that there is, which goes.
async fn archives_of(setup: &Setup, days: &[&str]) -> Vec<String> {
    setup.take(&[]).await;
    let manifest = setup.newest().await;
    let folder = setup.store().join("db");
    let file = folder.join(manifest.archive.to_string());
    let mut names = Vec::new();
    for day in days {
        let name: Name = format!("{day}T12:00:00.tar.zst").parse().unwrap();
        let mut copy = manifest.clone();
        copy.archive = name;
        std::fs::copy(&file, folder.join(name.to_string())).unwrap();
        std::fs::write(folder.join(format!("{name}{MANIFEST}")), copy.to_json()).unwrap();
        names.push(name.to_string());
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_file(folder.join(format!("{}{MANIFEST}", manifest.archive))).unwrap();
    std::fs::remove_file(folder.join("baseline.json")).unwrap();
    names
}

#[tokio::test]
async fn a_damaged_archive_takes_no_place_of_a_good_one() {
    let setup = Setup::new().await;
    let names = archives_of(&setup, DAYS).await;
    let folder = setup.store().join("db");
    std::fs::write(folder.join(&names[4]), "").unwrap();
    std::fs::write(folder.join(format!("{}{MANIFEST}", names[5])), "{").unwrap();
    let output = bullwork(&setup, &[], &["backup", "list"]);
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && shown.contains(&names[3]) && !shown.contains(&names[4]), "{shown}{told}");
    assert!(told.contains(&format!("`{}` is damaged: it has 0 bytes, and its manifest tells", names[4])), "{told}");
    assert!(told.contains(&format!("`{}` is damaged: the manifest cannot be read: EOF", names[5])), "{told}");

    let seen = freshness::look(&setup.shelf(), Limits::default(), chrono::Utc::now()).await.unwrap();
    assert_eq!(seen.newest.map(|name| name.to_string()).as_ref(), Some(&names[3]), "no alarm is kept quiet by a damaged one");

    let done = run::<BackupPrune>(&setup, &[("BACKUP_KEEP_LAST", "1")], Payload::default()).await.0.unwrap();
    let store = &done["stores"][0];
    assert_eq!((&store["kept"], &store["removed"]), (&json!([names[3]]), &json!(names[..3])));
    let damaged: Vec<&Value> = store["damaged"].as_array().unwrap().iter().map(|stays| &stays["archive"]).collect();
    assert_eq!(damaged, [&names[4], &names[5]]);
    assert_eq!(listed(&setup).await, names[3..]);
}

const DAYS: &[&str] = &["2026-01-10", "2026-01-20", "2026-02-10", "2026-02-11", "2026-02-12", "2026-02-13"];

async fn listed(setup: &Setup) -> Vec<String> {
    setup.archives().await.iter().map(|shelved| shelved.name.to_string()).collect()
}

#[tokio::test]
async fn only_what_no_rule_keeps_goes_and_a_dry_run_tells_it_before() {
    let setup = Setup::new().await;
    let names = archives_of(&setup, DAYS).await;
    let proof = setup.store().join(format!("db/{}.verified.json", names[2]));
    std::fs::write(&proof, "{}").unwrap();
    let older = setup.store().join(format!("db/{}.verified.2026-02-01T00:00:00.json", names[0]));
    std::fs::write(&older, "{}").unwrap();
    let rules = [("BACKUP_KEEP_DAILY", "2"), ("BACKUP_KEEP_MONTHLY", "2")];
    let gone = json!([names[0], names[3]]);
    let files = setup.files();
    let told = run::<BackupPrune>(&setup, &rules, Payload { dry_run: true }).await.0.unwrap();
    assert_eq!((&told["stores"][0]["removed"], setup.files()), (&gone, files), "a dry run removes nothing");
    let done = run::<BackupPrune>(&setup, &rules, Payload::default()).await.0.unwrap();
    assert_eq!(done["stores"][0]["removed"], gone);
    assert_eq!(listed(&setup).await, [names[1].as_str(), &names[2], &names[4], &names[5]], "the proven one stays too");
    assert!(proof.exists() && !older.exists());
    let again = run::<BackupPrune>(&setup, &rules, Payload::default()).await.0.unwrap();
    assert_eq!(again["stores"][0]["removed"], json!([]));

    let refused = run::<BackupPrune>(&setup, &[], Payload::default()).await.0.unwrap_err();
    assert!(refused.contains("no rule says what stays"), "{refused}");
    let output = bullwork(&setup, &[("BACKUP_KEEP_LAST", "1")], &["backup", "prune"]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("--yes"), "{}", text(&output.stderr));
    let output = bullwork(&setup, &[("BACKUP_KEEP_LAST", "1")], &["backup", "prune", "--yes"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(listed(&setup).await, [names[2].as_str(), &names[5]], "the newest, and the newest proven one");
}

#[tokio::test]
async fn what_a_killed_prune_left_is_not_listed_and_goes_with_the_next_one() {
    let setup = Setup::new().await;
    let names = archives_of(&setup, DAYS).await;
    let folder = setup.store().join("db");
    // Killed between manifest and archive; and one that somebody removed without its manifest.
    std::fs::remove_file(folder.join(format!("{}{MANIFEST}", names[0]))).unwrap();
    std::fs::write(folder.join(format!("{}.verified.json", names[0])), "{}").unwrap();
    std::fs::remove_file(folder.join(&names[1])).unwrap();
    // On its way: younger than all that is complete.
    std::fs::write(folder.join("2026-03-01T00:00:00.tar.zst"), "x").unwrap();
    std::fs::write(folder.join("notes.txt"), "x").unwrap();
    assert_eq!(listed(&setup).await, names[2..]);
    let rules = [("BACKUP_KEEP_LAST", "3")];
    let done = run::<BackupPrune>(&setup, &rules, Payload::default()).await.0.unwrap();
    let mut left: Vec<&str> = done["stores"][0]["leftovers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    left.sort_unstable();
    let expected = [format!("db/{}", names[0]), format!("db/{}.verified.json", names[0]), format!("db/{}{MANIFEST}", names[1])];
    assert_eq!(left, expected);
    assert_eq!(listed(&setup).await, names[3..]);
    for kept in ["2026-03-01T00:00:00.tar.zst", "notes.txt"] {
        assert!(folder.join(kept).exists(), "{kept}");
    }
    // An archive that the next backup run will complete stays.
    setup.take(&[]).await;
    let newest = setup.newest().await;
    let baseline = folder.join("baseline.json");
    let mut note: Value = serde_json::from_slice(&std::fs::read(&baseline).unwrap()).unwrap();
    let mut pending = newest.clone();
    pending.archive = names[3].parse().unwrap();
    note["pending"] = json!({"manifest": pending, "state": note["state"]});
    std::fs::write(&baseline, note.to_string()).unwrap();
    std::fs::remove_file(folder.join(format!("{}{MANIFEST}", names[3]))).unwrap();
    run::<BackupPrune>(&setup, &rules, Payload::default()).await.0.unwrap();
    assert!(folder.join(&names[3]).exists());
}

/// A store that gives up no archive, or no manifest either.
#[derive(Debug)]
struct Locking {
    inner: Arc<dyn Store>,
    manifests_too: bool,
}

#[async_trait]
impl Store for Locking {
    fn shown(&self) -> &str {
        self.inner.shown()
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<Version, StorageError> {
        self.inner.create(key, body).await
    }
    async fn replace(&self, key: &str, body: Bytes, known: &Version) -> Result<Version, StorageError> {
        self.inner.replace(key, body, known).await
    }
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StorageError> {
        self.inner.upload(key).await
    }
    async fn open(&self, key: &str, from: u64) -> Result<Opened, StorageError> {
        self.inner.open(key, from).await
    }
    async fn look(&self, key: &str) -> Result<Option<Meta>, StorageError> {
        self.inner.look(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.inner.list(prefix).await
    }
    async fn remove(&self, key: &str) -> Result<Removal, StorageError> {
        if !key.ends_with(MANIFEST) || self.manifests_too {
            return Ok(Removal::Kept("locked until 2030".to_owned()));
        }
        self.inner.remove(key).await
    }
    async fn tidy(&self, prefix: &str, older_than: Duration) -> Result<Tidied, StorageError> {
        self.inner.tidy(prefix, older_than).await
    }
}

#[tokio::test]
async fn what_the_store_keeps_is_told_and_stays_whole() {
    let setup = Setup::new().await;
    let names = archives_of(&setup, DAYS).await;
    for manifests_too in [false, true] {
        let store = Arc::new(Locking { inner: setup.shelf().store, manifests_too });
        let shelf = Shelf { store, prefix: "db/".to_owned() };
        let rules = Rules { last: 4, ..Rules::default() };
        let pruned = prune(&Run::detached(), &shelf, &rules, false).await.unwrap();
        let locked: Vec<String> = pruned.locked.iter().map(|locked| locked.archive.to_string()).collect();
        assert_eq!((locked.as_slice(), pruned.removed.len()), (&names[..2], 0));
        assert_eq!(pruned.locked[0].reason, "locked until 2030");
        assert_eq!(listed(&setup).await, names, "all are listed as before");
        for name in &names {
            setup.shelf().manifest(name.parse().unwrap()).await.expect("its manifest is back");
        }
    }
}
