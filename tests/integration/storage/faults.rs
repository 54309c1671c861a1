//! A server, or a network, that fails: what passes is tried again, what does not is told at once, with the way out.

use std::time::{Duration, Instant};

use bullwork::storage::{Fault, Options, StorageError};
use bytes::Bytes;
use hyper::Method;
use tokio::io::AsyncReadExt;

use super::{noise, read_from, upload};
use crate::support::proxy::{Mode, Proxy};
use crate::support::s3::{Action, BUCKET, S3, SECRET_KEY};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_an_upload_survives_errors_and_cuts() {
    let server = S3::start().await;
    server.order(Method::POST, "?uploads", 1, Action::Answer(503, "SlowDown"));
    server.order(Method::PUT, "partNumber=1&", 2, Action::Answer(500, "InternalError"));
    server.order(Method::PUT, "partNumber=2&", 2, Action::CutBefore);
    server.order(Method::PUT, "partNumber=3&", 1, Action::CutAfter);
    server.order(Method::PUT, "partNumber=3&", 1, Action::Answer(400, "RequestTimeout"));
    server.order(Method::POST, "?uploadId=", 2, Action::Answer(503, ""));
    server.order(Method::HEAD, "/db/object", 1, Action::Answer(500, ""));
    let content = noise(12 << 20);
    let store = server.store();
    upload(&*store, "db/object", &content).await.unwrap();
    assert!(read_from(&*store, "db/object", 0).await.unwrap() == content);
    assert_eq!(server.open_parts(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_never_succeeds_ends_and_leaves_nothing() {
    let server = S3::start().await;
    server.order(Method::PUT, "partNumber=2&", 99, Action::Answer(500, "InternalError"));
    let error = upload(&*server.store(), "db/object", &noise(22 << 20)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)) && error.may_pass(), "{error}");
    assert!(error.to_string().contains("500 InternalError") && error.to_string().contains("5 times"), "{error}");
    assert_eq!(server.count("partNumber=2&"), 5);
    let gone = async || server.open_parts() == 0;
    crate::support::eventually("the upload is aborted", Duration::from_secs(10), gone).await;
    assert!(server.store().look("db/object").await.unwrap().is_none());
}

/// What each refusal has to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_not_repeated_and_tell_the_way_out() {
    let lock = Options { lock: Some(bullwork::storage::settings::Lock { compliance: true, days: 1 }), ..Options::default() };
    let plain = Options::default();
    let cases: [(&Options, u16, &'static str, &[&str]); 11] = [
        (&plain, 403, "AccessDenied", &["s3:PutObject", BUCKET]),
        (&lock, 403, "AccessDenied", &["s3:PutObject, s3:PutObjectRetention"]),
        (&lock, 400, "InvalidRequest", &["S3_OBJECT_LOCK_MODE"]),
        (&plain, 403, "SignatureDoesNotMatch", &["S3_SECRET_KEY"]),
        (&plain, 403, "InvalidAccessKeyId", &["S3_ACCESS_KEY"]),
        (&plain, 403, "RequestTimeTooSkewed", &["clock"]),
        (&plain, 400, "ExpiredToken", &["S3_SESSION_TOKEN"]),
        (&plain, 404, "NoSuchBucket", &["no bucket `my.bucket`", "S3_ENDPOINT", "us-east-1"]),
        (&plain, 301, "PermanentRedirect", &["S3_REGION"]),
        (&plain, 501, "NotImplemented", &["If-None-Match"]),
        (&plain, 507, "XMinioStorageFull", &["make room"]),
    ];
    for (options, status, code, words) in cases {
        let server = S3::start().await;
        let options = Options { lock: options.lock, ..server.options() };
        let repeated = status == 507;
        server.order(Method::PUT, "/db/object", 9, Action::Answer(status, code));
        let error = server.store_with(&options).create("db/object", Bytes::from_static(b"x")).await.unwrap_err();
        let text = error.to_string();
        for word in words.iter().chain(&["creating `db/object` in s3://my.bucket/some/prefix/", code]) {
            assert!(text.contains(word), "{code}: {word} in {text}");
        }
        assert_eq!(matches!(error.fault, Fault::Refused(_)), !repeated, "{text}");
        assert_eq!(server.count("PUT "), if repeated { 5 } else { 1 }, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_buckets_and_servers_are_told_without_the_secret() {
    let server = S3::start().await;
    let wrong = Options { secret_key: bullwork::redact::Secret::new("another-secret-of-mine"), ..server.options() };
    let error = server.store_with(&wrong).create("x", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(error.to_string().contains("SignatureDoesNotMatch") && error.to_string().contains("S3_SECRET_KEY"), "{error}");

    let nobody = Options { access_key: "nobody".to_owned(), ..server.options() };
    let error = server.store_with(&nobody).list("").await.unwrap_err();
    assert!(matches!(error.fault, Fault::Refused(_)), "{error}");

    let elsewhere = bullwork::storage::open("s3://other-bucket", &server.options()).unwrap();
    let error = elsewhere.list("").await.unwrap_err();
    assert!(error.to_string().contains("there is no bucket `other-bucket`"), "{error}");

    let closed = server.options_at(crate::support::free_port());
    let store = server.store_with(&closed);
    let error = store.look("x").await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)) && error.to_string().contains("refused"), "{error}");
    for text in [format!("{error:?} {error} {store:?}"), format!("{:?}", server.options())] {
        assert!(!text.contains(SECRET_KEY) && !text.contains("another-secret"), "{text}");
    }

    let none = Options { secret_key: bullwork::redact::Secret::default(), ..server.options() };
    let error = bullwork::storage::open("s3://bucket", &none).unwrap_err();
    assert!(error.to_string().contains("S3_SECRET_KEY is not set"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_the_server_tells_is_told() {
    let server = S3::start().await;
    server.order(Method::GET, "list-type=2", 1, Action::Elsewhere("eu-west-3"));
    let error = server.store().list("").await.unwrap_err();
    assert!(error.to_string().contains("set S3_REGION=eu-west-3 (now us-east-1)"), "{error}");
}

/// An answer that does not come ends the request; a server that never answers ends the operation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_silent_is_given_up_in_bounded_time() {
    let server = S3::start().await;
    let hasty = || Options { timeout: Duration::from_millis(300), ..server.options() };
    server.order(Method::HEAD, "/db/x", 9, Action::Delay(Duration::from_secs(60)));
    let begun = Instant::now();
    let error = server.store_with(&hasty()).look("db/x").await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    // In the middle of an upload the network goes, and nobody is told.
    let proxy = Proxy::start(server.port).await;
    let options = Options { timeout: Duration::from_millis(300), part_size: 64 << 10, ..server.options_at(proxy.port) };
    let store = server.store_with(&options);
    let mut upload = store.upload("db/y").await.unwrap();
    upload.write(noise(70_000)).await.unwrap();
    proxy.set(Mode::BlackHole);
    let begun = Instant::now();
    let error: StorageError = loop {
        if let Err(error) = upload.write(noise(64 << 10)).await {
            break error;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it takes bytes for ever");
    };
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop(upload);
    assert!(server.store().list("").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_where_it_was_cut() {
    let server = S3::start().await;
    let store = server.store();
    let content = noise(3 << 20);
    upload(&*store, "db/object", &content).await.unwrap();
    server.order(Method::GET, "/db/object", 1, Action::Truncate(1_000_000));
    server.order(Method::GET, "/db/object", 1, Action::Answer(503, "SlowDown"));
    server.order(Method::GET, "/db/object", 1, Action::CutBefore);
    server.order(Method::GET, "/db/object", 1, Action::Truncate(500_000));
    assert!(read_from(&*store, "db/object", 17).await.unwrap() == content[17..]);
    let ranges: Vec<String> =
        server.heard().iter().filter_map(|h| Some(h.headers.get("range")?.to_str().ok()?.to_owned())).collect();
    assert_eq!(ranges.first().unwrap(), "bytes=17-");
    assert_eq!(ranges.last().unwrap(), "bytes=1500017-");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_through_a_cut_network_is_whole() {
    let server = S3::start().await;
    let content = noise(8 << 20);
    upload(&*server.store(), "db/object", &content).await.unwrap();
    let proxy = Proxy::start(server.port).await;
    proxy.set(Mode::Slow(Duration::from_millis(2)));
    let store = server.store_with(&server.options_at(proxy.port));
    let mut opened = store.open("db/object", 0).await.unwrap();
    let mut bytes = vec![0; 1 << 20];
    opened.body.read_exact(&mut bytes).await.unwrap();
    proxy.cut_once().await;
    opened.body.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
    assert!(proxy.accepted() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_replaced_while_it_is_read_is_never_mixed() {
    let server = S3::start().await;
    // Time enough to replace it between the cut and the next try.
    let store = server.store_with(&Options { pause: Duration::from_secs(4), ..server.options() });
    let version = upload(&*store, "db/object", &noise(1 << 20)).await.unwrap().version;
    server.order(Method::GET, "/db/object", 1, Action::Truncate(600_000));
    let mut opened = store.open("db/object", 0).await.unwrap();
    server.store().replace("db/object", noise((1 << 20) + 1).slice(1..), &version).await.unwrap();
    let error = opened.body.read_to_end(&mut Vec::new()).await.unwrap_err();
    let error = StorageError::of_reading(error, "db/object", store.shown());
    assert!(matches!(error.fault, Fault::Changed), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_with_the_wrong_bytes_is_noticed() {
    let server = S3::start().await;
    let store = server.store();
    upload(&*store, "db/object", &noise(3 << 20)).await.unwrap();
    // An object that shrank on the way: every answer ends early.
    server.order(Method::GET, "/db/object", 99, Action::Truncate(0));
    let error = read_from(&*store, "db/object", 0).await.unwrap_err();
    let error = StorageError::of_reading(error, "db/object", store.shown());
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("after 0 of 3145728 bytes"), "{error}");
}
