//! The same into a bucket: killed where a directory is too fast, and with a server that has bad days.

use std::time::{Duration, Instant};

use bullwork::backup::shelf::Shelf;
use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt as _;

use super::{Setup, kill::start, result};
use crate::support::eventually;
use crate::support::s3::{ACCESS_KEY, Action, BUCKET, S3, SECRET_KEY};

const SOON: Duration = Duration::from_secs(60);
/// A request for an archive, and for nothing beside it.
const ARCHIVE: &str = "tar.zst?";
const NEVER: Duration = Duration::from_secs(3600);

/// A bucket for a setup's archives.
struct Bucket {
    server: S3,
    settings: Vec<(&'static str, String)>,
}

impl Bucket {
    async fn new() -> Bucket {
        let server = S3::start().await;
        let settings = vec![
            ("BACKUP_STORE", format!("s3://{BUCKET}/some/prefix")),
            ("S3_ENDPOINT", format!("http://127.0.0.1:{}", server.port)),
            ("S3_ACCESS_KEY", ACCESS_KEY.to_owned()),
            ("S3_SECRET_KEY", SECRET_KEY.to_owned()),
            ("S3_PART_SIZE", "5".to_owned()),
            ("S3_TIMEOUT", "20".to_owned()),
        ];
        Bucket { server, settings }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(n, v)| (*n, v.as_str())).collect()
    }

    fn shelf(&self) -> Shelf {
        Shelf { store: self.server.store(), prefix: "db/".to_owned() }
    }

    /// How many archives are listed; each of them is whole.
    async fn listed(&self) -> usize {
        let archives = self.shelf().archives().await.unwrap();
        for shelved in &archives {
            let manifest = self.shelf().manifest(shelved.name).await.unwrap();
            let mut bytes = Vec::new();
            self.shelf().store.open(&shelved.entry.key, 0).await.unwrap().body.read_to_end(&mut bytes).await.unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!((bytes.len() as u64, digest), (manifest.stored.bytes, manifest.stored.sha256), "{}", shelved.name);
        }
        archives.len()
    }

    /// How many archives there are, listed or not.
    async fn there(&self) -> usize {
        let entries = self.shelf().store.list("db/").await.unwrap();
        entries.iter().filter(|e| !e.key.ends_with(".json")).count()
    }
}

/// About this many bytes that no compressor makes smaller, so that an archive has several parts.
async fn fill(setup: &Setup, megabytes: u32) {
    let sql = format!(
        "create table filler as select n, decode(string_agg(md5(n::text || m), ''), 'hex') as noise
         from generate_series(1, {megabytes} * 64) n, generate_series(1, 1024) m group by n"
    );
    setup.shop.batch_execute(&sql).await.unwrap();
}

/// Starts a run and kills it while the server holds back a request.
async fn killed_at(setup: &Setup, bucket: &Bucket, method: &Method, holds: &str, passed: usize) {
    let stops_at = format!("{method} /");
    let seen = |s: &S3| s.heard().iter().filter(|h| h.line.starts_with(&stops_at) && h.line.contains(holds)).count();
    let before = seen(&bucket.server) + passed;
    if passed > 0 {
        bucket.server.order(method.clone(), holds, passed, Action::Header("x-passed", "yes"));
    }
    bucket.server.order(method.clone(), holds, 1, Action::Delay(NEVER));
    let mut child = start(setup, &bucket.settings());
    eventually(holds, SOON, async || seen(&bucket.server) > before).await;
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

/// The next run's result, once the killed program's session is gone.
async fn next_run(setup: &Setup, bucket: &Bucket) -> String {
    let begun = Instant::now();
    loop {
        let value = setup.take(&bucket.settings()).await;
        if result(&value) != "skipped" {
            return result(&value).to_owned();
        }
        assert!(begun.elapsed() < SOON, "{value}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn kill_at_each_request_is_healed_by_the_next_run() {
    let setup = Setup::new().await;
    let bucket = Bucket::new().await;
    setup.take(&bucket.settings()).await;
    // What is held back, after how many of its kind; archives that are there, and listed, after the kill; what the
    // next run says: an archive that had been stored is completed, not made again.
    for (number, (holds, passed, there, listed, said)) in [
        (ARCHIVE, 0, 0, 0, "archived"),
        (".manifest.json", 0, 1, 0, "unchanged"),
        // The first one is the note.
        ("baseline.json", 1, 1, 1, "unchanged"),
        ("baseline.json", 0, 0, 0, "archived"),
    ]
    .into_iter()
    .enumerate()
    {
        setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
        killed_at(&setup, &bucket, &Method::PUT, holds, passed).await;
        let before = number + 1;
        assert_eq!((bucket.there().await, bucket.listed().await), (before + there, before + listed), "{holds}");
        assert_eq!(next_run(&setup, &bucket).await, said, "{holds}");
        assert_eq!((bucket.there().await, bucket.listed().await), (before + 1, before + 1), "{holds}");
    }
}

#[tokio::test]
async fn kill_between_two_parts_leaves_nothing_that_shows() {
    let setup = Setup::new().await;
    fill(&setup, 6).await;
    let bucket = Bucket::new().await;
    killed_at(&setup, &bucket, &Method::PUT, "partNumber=1", 0).await;
    assert_eq!((bucket.there().await, bucket.listed().await), (0, 0));
    assert_eq!(next_run(&setup, &bucket).await, "archived");
    assert_eq!((bucket.there().await, bucket.listed().await), (1, 1));
    assert!(bucket.server.count("partNumber=2") > 0, "the archive has several parts");
}

#[tokio::test]
async fn a_server_with_bad_moments_gets_the_archive_all_the_same() {
    let setup = Setup::new().await;
    let bucket = Bucket::new().await;
    for (number, (holds, action)) in [
        (ARCHIVE, Action::Answer(500, "InternalError")),
        (ARCHIVE, Action::CutBefore),
        (ARCHIVE, Action::Answer(503, "SlowDown")),
        (ARCHIVE, Action::CutAfter),
        (ARCHIVE, Action::Delay(Duration::from_millis(500))),
        ("baseline.json", Action::CutAfter),
        (".manifest.json", Action::CutAfter),
    ]
    .into_iter()
    .enumerate()
    {
        bucket.server.order(Method::PUT, holds, 1, action.clone());
        setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
        let value = setup.take(&bucket.settings()).await;
        assert_eq!(result(&value), "archived", "{holds} {action:?}: {value}");
        assert_eq!((bucket.there().await, bucket.listed().await), (number + 1, number + 1), "{holds} {action:?}");
        assert_eq!(result(&setup.take(&bucket.settings()).await), "unchanged", "{holds} {action:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_fails_the_run_and_the_next_one_tries_again() {
    let setup = Setup::new().await;
    let bucket = Bucket::new().await;
    for (holds, action, wanted) in [
        (ARCHIVE, Action::Answer(403, "AccessDenied"), "403"),
        (ARCHIVE, Action::Answer(500, "InternalError"), "500"),
        (".manifest.json", Action::Answer(403, "AccessDenied"), "manifest.json"),
    ] {
        bucket.server.order(Method::PUT, holds, 1_000, action.clone());
        let error = setup.fails(&bucket.settings()).await;
        assert!(error.contains(wanted) && !error.contains(SECRET_KEY), "{holds} {action:?}: {error}");
        assert_eq!(bucket.listed().await, 0, "{holds} {action:?}");
        bucket.server.relent();
    }
    // The last one had been stored whole: it is completed, not made again.
    assert_eq!(result(&setup.take(&bucket.settings()).await), "unchanged");
    assert_eq!((bucket.there().await, bucket.listed().await), (1, 1));

    // A server that says it stored something else is not believed; what is there decides in the next run.
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    bucket.server.order(Method::PUT, ARCHIVE, 1_000, Action::Header("etag", "\"00000000000000000000000000000000\""));
    let error = setup.fails(&bucket.settings()).await;
    assert_eq!(bucket.listed().await, 1, "{error}");
    bucket.server.relent();
    setup.take(&bucket.settings()).await;
    assert_eq!((bucket.there().await, bucket.listed().await), (2, 2));
}

#[tokio::test]
async fn a_second_store_may_be_a_bucket_while_the_first_is_a_directory() {
    let setup = Setup::new().await;
    let bucket = Bucket::new().await;
    let mut settings = bucket.settings();
    settings.retain(|(name, _)| *name != "BACKUP_STORE");
    let address = format!("s3://{BUCKET}/some/prefix");
    settings.push(("BACKUP_SECOND_STORE", &address));
    bucket.server.order(Method::PUT, "tar.zst", 1_000, Action::Answer(403, "AccessDenied"));
    let error = setup.fails(&settings).await;
    assert!(error.contains("did not reach") && error.contains(BUCKET), "{error}");
    assert_eq!(setup.archives().await.len(), 1);
    bucket.server.relent();
    assert_eq!(result(&setup.take(&settings).await), "unchanged");
    assert_eq!(bucket.listed().await, 1);
}

#[tokio::test]
async fn the_second_store_may_be_another_server_with_a_key_of_its_own() {
    const SECOND_SECRET: &str = "second-secret-key-0123456789";
    let setup = Setup::new().await;
    let (bucket, second) = (Bucket::new().await, S3::start_for("second-access-key", SECOND_SECRET).await);
    let endpoint = format!("http://127.0.0.1:{}", second.port);
    let mut settings = bucket.settings();
    let address = format!("s3://{BUCKET}/some/prefix");
    settings.extend([("BACKUP_SECOND_STORE", address.as_str()), ("BACKUP_SECOND_S3_ENDPOINT", &endpoint)]);
    let error = setup.fails(&settings).await;
    assert!(error.contains("did not reach"), "the first server's key is no key there: {error}");
    settings.extend([("BACKUP_SECOND_S3_ACCESS_KEY", "second-access-key"), ("BACKUP_SECOND_S3_SECRET_KEY", SECOND_SECRET)]);
    assert_eq!(result(&setup.take(&settings).await), "unchanged", "the copy is made up for");
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    setup.take(&settings).await;
    let mut options = second.options();
    (options.access_key, options.secret_key) = ("second-access-key".to_owned(), bullwork::redact::Secret::new(SECOND_SECRET));
    let copies = Shelf { store: second.store_with(&options), prefix: "db/".to_owned() };
    let names = |archives: Vec<bullwork::backup::shelf::Shelved>| archives.into_iter().map(|a| a.name).collect::<Vec<_>>();
    assert_eq!(bucket.listed().await, 2);
    assert_eq!(names(copies.archives().await.unwrap()), names(bucket.shelf().archives().await.unwrap()));
}
