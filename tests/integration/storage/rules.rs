//! Rules that every store keeps.

use std::sync::Arc;

use bullwork::storage::{self, Fault, Options, Removal, Store};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{noise, read_from, upload};
use crate::support::s3::S3;

/// A store, and another process's view of it.
pub(super) struct Place {
    pub(super) store: Arc<dyn Store>,
    pub(super) other: Arc<dyn Store>,
    server: Option<S3>,
    directory: tempfile::TempDir,
}

impl Place {
    fn directory() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("file://{}/backups", directory.path().display());
        let open = || storage::open(&address, &Options::default()).unwrap();
        Place { store: open(), other: open(), server: None, directory }
    }

    async fn bucket() -> Place {
        let server = S3::start().await;
        Place { store: server.store(), other: server.store(), server: Some(server), directory: tempfile::tempdir().unwrap() }
    }

    /// Where its objects are files.
    fn root(&self) -> std::path::PathBuf {
        self.server.as_ref().map_or_else(|| self.directory.path().join("backups"), S3::objects)
    }

    /// Whatever half an upload leaves.
    fn left_behind(&self) -> usize {
        let temporary = std::fs::read_dir(self.root().join("db"))
            .map_or(0, |entries| entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count());
        temporary + self.server.as_ref().map_or(0, S3::open_parts)
    }
}

macro_rules! on_each_store {
    ($($rule:ident)*) => {
        mod in_a_directory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() { super::$rule(super::Place::directory()).await; })*
        }
        mod in_a_bucket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() { super::$rule(super::Place::bucket().await).await; })*
        }
    };
}

on_each_store! {
    what_is_created_is_read_back_and_never_overwritten
    replacing_needs_the_version_that_is_there
    of_24_creators_one_wins
    counters_that_race_lose_no_step
    uploads_of_any_size_are_read_back
    an_upload_shows_nothing_before_it_is_finished
    an_upload_to_a_name_that_was_taken_meanwhile_loses
    aborted_and_dropped_uploads_leave_nothing
    lists_are_by_prefix_in_order_and_whole
    names_that_lead_elsewhere_are_refused_by_everything
    what_is_removed_is_gone_and_may_be_removed_again
    a_small_object_is_read_within_a_limit
    a_probe_passes_and_leaves_nothing
}

async fn what_is_created_is_read_back_and_never_overwritten(place: Place) {
    let store = place.store;
    assert!(store.look("db/a.json").await.unwrap().is_none());
    assert!(matches!(store.open("db/a.json", 0).await.unwrap_err().fault, Fault::Missing));
    let version = store.create("db/a.json", Bytes::from_static(b"first")).await.unwrap();
    let meta = store.look("db/a.json").await.unwrap().unwrap();
    assert_eq!((meta.size, &meta.version), (5, &version));
    assert!((chrono::Utc::now() - meta.modified).num_seconds().abs() < 60);
    let error = place.other.create("db/a.json", Bytes::from_static(b"second")).await.unwrap_err();
    assert!(matches!(error.fault, Fault::AlreadyThere), "{error}");
    assert!(error.to_string().contains("db/a.json") && error.to_string().contains(store.shown()), "{error}");
    let (bytes, read) = place.other.read("db/a.json", 100).await.unwrap();
    assert_eq!((&bytes[..], read.version), (&b"first"[..], version));
    // Read from the middle, to the end, and beyond it.
    assert_eq!(read_from(&*store, "db/a.json", 3).await.unwrap(), b"st");
    assert_eq!(read_from(&*store, "db/a.json", 5).await.unwrap(), b"");
    assert!(matches!(store.open("db/a.json", 6).await.unwrap_err().fault, Fault::Refused(_)));
    // An empty object is one too.
    store.create("db/empty", Bytes::new()).await.unwrap();
    assert_eq!(store.look("db/empty").await.unwrap().unwrap().size, 0);
    assert_eq!(read_from(&*store, "db/empty", 0).await.unwrap(), b"");
}

async fn replacing_needs_the_version_that_is_there(place: Place) {
    let store = place.store;
    let first = store.create("pointer", Bytes::from_static(b"1")).await.unwrap();
    let second = store.replace("pointer", Bytes::from_static(b"2"), &first).await.unwrap();
    assert_ne!(first, second);
    let error = place.other.replace("pointer", Bytes::from_static(b"3"), &first).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Changed), "{error}");
    let (bytes, meta) = store.read("pointer", 9).await.unwrap();
    assert_eq!((&bytes[..], &meta.version), (&b"2"[..], &second));
    let third = place.other.replace("pointer", Bytes::from_static(b"3"), &meta.version).await.unwrap();
    assert_eq!(store.look("pointer").await.unwrap().unwrap().version, third);
    assert_eq!(store.remove("pointer").await.unwrap(), Removal::Removed);
    let error = store.replace("pointer", Bytes::from_static(b"4"), &third).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Changed), "{error}");
    assert!(store.look("pointer").await.unwrap().is_none());
}

async fn of_24_creators_one_wins(place: Place) {
    for round in 0..5 {
        let key = format!("db/lock-{round}");
        let tries = (0..24).map(|n| {
            let (store, key) = (if n % 2 == 0 { place.store.clone() } else { place.other.clone() }, key.clone());
            tokio::spawn(async move { (n, store.create(&key, Bytes::from(format!("creator {n}"))).await) })
        });
        let mut winners = Vec::new();
        for answer in futures_util::future::join_all(tries).await {
            match answer.unwrap() {
                (n, Ok(_)) => winners.push(n),
                (_, Err(error)) => assert!(matches!(error.fault, Fault::AlreadyThere), "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let (bytes, _) = place.store.read(&key, 100).await.unwrap();
        assert_eq!(bytes, format!("creator {}", winners[0]));
    }
    assert_eq!(place.store.list("db/").await.unwrap().len(), 5);
}

async fn counters_that_race_lose_no_step(place: Place) {
    place.store.create("count", Bytes::from_static(b"0")).await.unwrap();
    let counters = (0..24).map(|n| {
        let store = if n % 2 == 0 { place.store.clone() } else { place.other.clone() };
        tokio::spawn(async move {
            for _ in 0..1000 {
                let (bytes, meta) = store.read("count", 100).await.unwrap();
                let count: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                match store.replace("count", Bytes::from((count + 1).to_string()), &meta.version).await {
                    Ok(_) => return,
                    Err(error) => assert!(matches!(error.fault, Fault::Changed), "{error}"),
                }
            }
            panic!("a counter never had its turn");
        })
    });
    for counter in futures_util::future::join_all(counters).await {
        counter.unwrap();
    }
    assert_eq!(place.store.read("count", 100).await.unwrap().0, "24");
}

async fn uploads_of_any_size_are_read_back(place: Place) {
    const PART: usize = 5 << 20;
    for (n, size) in [0, 1, PART, PART + 1, 2 * PART + 17].into_iter().enumerate() {
        let content = noise(size);
        let key = format!("db/object-{n}");
        let stored = upload(&*place.store, &key, &content).await.unwrap();
        assert_eq!((stored.size, stored.sha256), (size as u64, Sha256::digest(&content).into()));
        let meta = place.other.look(&key).await.unwrap().unwrap();
        assert_eq!((meta.size, meta.version), (size as u64, stored.version));
        assert!(read_from(&*place.other, &key, 0).await.unwrap() == content, "{size}");
        let middle = size / 3 * 2;
        assert!(read_from(&*place.other, &key, middle as u64).await.unwrap() == content[middle..], "{size}");
    }
}

async fn an_upload_shows_nothing_before_it_is_finished(place: Place) {
    let content = noise(11 << 20);
    let mut upload = place.store.upload("db/big").await.unwrap();
    for piece in content.chunks(1 << 20) {
        upload.write(content.slice_ref(piece)).await.unwrap();
        assert!(place.other.look("db/big").await.unwrap().is_none());
        assert!(place.other.list("").await.unwrap().is_empty());
        assert!(upload.sent() <= 11 << 20);
    }
    assert!(place.left_behind() > 0, "it is somewhere");
    upload.finish().await.unwrap();
    assert_eq!(place.other.list("").await.unwrap().len(), 1);
    assert!(read_from(&*place.other, "db/big", 0).await.unwrap() == content);
    assert_eq!(place.left_behind(), 0);
}

async fn an_upload_to_a_name_that_was_taken_meanwhile_loses(place: Place) {
    for size in [10, 11 << 20] {
        let key = format!("db/taken-{size}");
        let mut upload = place.store.upload(&key).await.unwrap();
        upload.write(noise(size)).await.unwrap();
        place.other.create(&key, Bytes::from_static(b"theirs")).await.unwrap();
        let error = upload.finish().await.unwrap_err();
        assert!(matches!(error.fault, Fault::AlreadyThere), "{error}");
        assert_eq!(place.store.read(&key, 100).await.unwrap().0, "theirs");
        // Told at once where it is known at once.
        if let Ok(upload) = place.store.upload(&key).await {
            assert!(matches!(upload.finish().await.unwrap_err().fault, Fault::AlreadyThere));
        }
        assert_eq!(place.left_behind(), 0);
    }
}

async fn aborted_and_dropped_uploads_leave_nothing(place: Place) {
    for dropped in [false, true] {
        let mut upload = place.store.upload("db/half").await.unwrap();
        upload.write(noise(12 << 20)).await.unwrap();
        if dropped {
            drop(upload);
        } else {
            upload.abort().await.unwrap();
        }
        let gone = async || place.left_behind() == 0;
        crate::support::eventually("nothing is left", std::time::Duration::from_secs(20), gone).await;
        assert!(place.store.list("").await.unwrap().is_empty());
    }
    upload(&*place.store, "db/half", &noise(10)).await.unwrap();
}

async fn lists_are_by_prefix_in_order_and_whole(place: Place) {
    assert!(place.store.list("").await.unwrap().is_empty());
    for key in ["b", "db/2026-01-02", "db/2026-01-01/x", "db2/x", "d"] {
        place.store.create(key, Bytes::from(key)).await.unwrap();
    }
    let keys = async |prefix: &str| place.other.list(prefix).await.unwrap().into_iter().map(|e| e.key).collect::<Vec<_>>();
    assert_eq!(keys("").await, ["b", "d", "db/2026-01-01/x", "db/2026-01-02", "db2/x"]);
    assert_eq!(keys("db/").await, ["db/2026-01-01/x", "db/2026-01-02"]);
    assert_eq!(keys("db/2026-01-0").await, ["db/2026-01-01/x", "db/2026-01-02"]);
    assert_eq!(keys("db/2026-01-02").await, ["db/2026-01-02"]);
    assert_eq!(keys("d").await, ["d", "db/2026-01-01/x", "db/2026-01-02", "db2/x"]);
    assert!(keys("nothing/").await.is_empty());
    // More than a page, written as the store's own files; names of others are passed over.
    std::fs::create_dir(place.root().join("many")).unwrap();
    for n in 0..2345 {
        std::fs::write(place.root().join(format!("many/{n:05}")), "x").unwrap();
    }
    std::fs::write(place.root().join("many/not one of ours"), "x").unwrap();
    let many = place.other.list("many/").await.unwrap();
    assert_eq!(many.len(), 2345);
    assert!(many.is_sorted_by(|a, b| a.key < b.key) && many.iter().all(|entry| entry.size == 1));
}

async fn names_that_lead_elsewhere_are_refused_by_everything(place: Place) {
    let store = &place.store;
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".lock", "a/.b", "a\nb", "a\0b", "a b", "a/"] {
        let version = store.create("fine", Bytes::new()).await.unwrap();
        let errors = [
            store.create(key, Bytes::new()).await.err(),
            store.replace(key, Bytes::new(), &version).await.err(),
            store.upload(key).await.err(),
            store.open(key, 0).await.err(),
            store.look(key).await.err(),
            store.remove(key).await.err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("{key:?} was taken"));
            assert!(matches!(error.fault, Fault::Key(_)), "{error}");
            assert!(!error.to_string().contains(['\n', '\0']), "{error}");
        }
        store.remove("fine").await.unwrap();
    }
    for prefix in ["/", "../", "a/../", "a//"] {
        assert!(matches!(store.list(prefix).await.unwrap_err().fault, Fault::Key(_)));
        assert!(matches!(store.tidy(prefix, std::time::Duration::ZERO).await.unwrap_err().fault, Fault::Key(_)));
    }
    assert!(store.list("").await.unwrap().is_empty());
}

async fn what_is_removed_is_gone_and_may_be_removed_again(place: Place) {
    assert_eq!(place.store.remove("db/x").await.unwrap(), Removal::Removed);
    place.store.create("db/x", Bytes::from_static(b"1")).await.unwrap();
    place.store.create("db/y", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(place.other.remove("db/x").await.unwrap(), Removal::Removed);
    assert_eq!(place.other.remove("db/x").await.unwrap(), Removal::Removed);
    assert!(place.store.look("db/x").await.unwrap().is_none());
    assert_eq!(place.store.list("").await.unwrap().len(), 1);
    place.store.create("db/x", Bytes::from_static(b"2")).await.unwrap();
}

async fn a_small_object_is_read_within_a_limit(place: Place) {
    place.store.create("pointer", noise(1000)).await.unwrap();
    assert_eq!(place.store.read("pointer", 1000).await.unwrap().0, noise(1000));
    let error = place.store.read("pointer", 999).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Refused(_)) && error.to_string().contains("1000"), "{error}");
}

async fn a_probe_passes_and_leaves_nothing(place: Place) {
    assert!(matches!(storage::probe(&*place.store).await, Ok(storage::Probed::Everything)));
    assert!(place.other.list("").await.unwrap().is_empty());
}

/// As a server that does not know preconditions: it overwrites.
#[derive(Debug)]
struct Careless(Arc<dyn Store>);

#[async_trait::async_trait]
impl Store for Careless {
    fn shown(&self) -> &str {
        self.0.shown()
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<storage::Version, storage::StorageError> {
        self.0.remove(key).await?;
        self.0.create(key, body).await
    }
    async fn replace(&self, key: &str, body: Bytes, _: &storage::Version) -> Result<storage::Version, storage::StorageError> {
        self.create(key, body).await
    }
    async fn upload(&self, key: &str) -> Result<Box<dyn storage::Upload>, storage::StorageError> {
        self.0.upload(key).await
    }
    async fn open(&self, key: &str, from: u64) -> Result<storage::Opened, storage::StorageError> {
        self.0.open(key, from).await
    }
    async fn look(&self, key: &str) -> Result<Option<storage::Meta>, storage::StorageError> {
        self.0.look(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<storage::Entry>, storage::StorageError> {
        self.0.list(prefix).await
    }
    async fn remove(&self, key: &str) -> Result<Removal, storage::StorageError> {
        self.0.remove(key).await
    }
    async fn tidy(&self, prefix: &str, older_than: std::time::Duration) -> Result<storage::Tidied, storage::StorageError> {
        self.0.tidy(prefix, older_than).await
    }
}

#[tokio::test]
async fn a_store_that_overwrites_is_found_out() {
    let place = Place::directory();
    let error = storage::probe(&Careless(place.store.clone())).await.unwrap_err();
    assert!(error.to_string().contains("ignores If-None-Match"), "{error}");
    assert!(place.store.list("").await.unwrap().is_empty());
}
