//! What only a directory can meet.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bullwork::storage::{self, Fault, Options, Tidied};
use bytes::Bytes;

use super::{noise, read_from, upload};

fn open(directory: &std::path::Path) -> std::sync::Arc<dyn storage::Store> {
    storage::open(&format!("file://{}", directory.display()), &Options::default()).unwrap()
}

#[tokio::test]
async fn files_are_for_their_owner_alone_and_named_as_their_keys() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/b");
    let store = open(&root);
    upload(&*store, "db/2026-01-31T00:00:00.tar.zst", &noise(10)).await.unwrap();
    store.create("db/m.json", Bytes::from_static(b"{}")).await.unwrap();
    let mode = |path: &str| std::fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("db"), mode("db/m.json"), mode("db/2026-01-31T00:00:00.tar.zst")), (0o700, 0o600, 0o600));
    assert_eq!(std::fs::read(root.join("db/m.json")).unwrap(), b"{}");
}

#[tokio::test]
async fn a_key_is_no_folder_of_another_one_and_that_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.create("a/b", Bytes::new()).await.unwrap();
    for key in ["a", "a/b/c"] {
        let created = store.create(key, Bytes::new()).await.unwrap_err();
        assert!(matches!(created.fault, Fault::Refused(_)) && created.to_string().contains("folder"), "{created}");
        assert!(store.look(key).await.unwrap().is_none());
        store.remove(key).await.unwrap();
    }
    assert_eq!(store.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_tidied_and_a_living_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut living = store.upload("db/living").await.unwrap();
    living.write(noise(10)).await.unwrap();
    let killed = directory.path().join(format!("db/.killed.tar.zst.{}.tmp", uuid::Uuid::new_v4()));
    std::fs::write(&killed, "half").unwrap();
    let foreign = directory.path().join("db/.others.tmp");
    std::fs::write(&foreign, "not ours").unwrap();
    assert_eq!(store.tidy("", Duration::from_secs(3600)).await.unwrap(), Tidied::Ended(vec![]), "it may yet go on");
    assert_eq!(store.tidy("elsewhere/", Duration::ZERO).await.unwrap(), Tidied::Ended(vec![]));
    assert_eq!(store.tidy("db/", Duration::ZERO).await.unwrap(), Tidied::Ended(vec!["db/killed.tar.zst".to_owned()]));
    assert!(!killed.exists() && foreign.exists());
    living.finish().await.unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_reader_keeps_the_version_that_it_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let old = noise(3 << 20);
    let version = upload(&*store, "big", &old).await.unwrap().version;
    let mut opened = store.open("big", 0).await.unwrap();
    store.replace("big", Bytes::from_static(b"new"), &version).await.unwrap();
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut opened.body, &mut bytes).await.unwrap();
    assert!(bytes == old);
    assert_eq!(read_from(&*store, "big", 0).await.unwrap(), b"new");
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_read_is_no_whole_object() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    upload(&*store, "big", &noise(3 << 20)).await.unwrap();
    let mut opened = store.open("big", 0).await.unwrap();
    std::fs::OpenOptions::new().write(true).open(directory.path().join("big")).unwrap().set_len(2 << 20).unwrap();
    let error = tokio::io::AsyncReadExt::read_to_end(&mut opened.body, &mut Vec::new()).await.unwrap_err();
    let error = storage::StorageError::of_reading(error, "big", store.shown());
    assert!(matches!(error.fault, Fault::Corrupt(_)), "{error}");
}

/// A lock that another process keeps must not stop us for ever, and tells who stands in the way.
#[tokio::test]
async fn a_lock_that_is_held_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let version = store.create("pointer", Bytes::from_static(b"1")).await.unwrap();
    let held = std::fs::File::create(directory.path().join(".lock")).unwrap();
    held.lock().unwrap();
    let replacing = tokio::spawn(async move { store.replace("pointer", Bytes::from_static(b"2"), &version).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!replacing.is_finished());
    drop(held);
    replacing.await.unwrap().unwrap();
}
