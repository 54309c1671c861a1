//! What became of a write whose answer was lost or is wrong.

use std::time::Duration;

use bullwork::storage::{Fault, Options};
use bytes::Bytes;
use hyper::Method;

use super::{noise, read_from, upload};
use crate::support::s3::{Action, S3};

const OTHER_MD5: &str = "\"00000000000000000000000000000000\"";

/// The object that stands in the way of the second try is the first one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_recognized() {
    let server = S3::start().await;
    let store = server.store();
    server.order(Method::PUT, "/db/small", 1, Action::CutAfter);
    let version = store.create("db/small", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(server.count("PUT "), 2);
    assert_eq!(store.look("db/small").await.unwrap().unwrap().version, version);

    server.order(Method::PUT, "/db/small", 2, Action::CutAfter);
    let version = store.replace("db/small", Bytes::from_static(b"2"), &version).await.unwrap();
    assert_eq!(store.read("db/small", 9).await.unwrap().0, "2");
    assert_eq!(store.look("db/small").await.unwrap().unwrap().version, version);

    // Not one answer, but it was done.
    server.order(Method::PUT, "/db/last", 5, Action::CutAfter);
    store.create("db/last", Bytes::from_static(b"3")).await.unwrap();

    let content = noise(12 << 20);
    server.order(Method::POST, "?uploadId=", 1, Action::CutAfter);
    let stored = upload(&*store, "db/large", &content).await.unwrap();
    assert_eq!(store.look("db/large").await.unwrap().unwrap().version, stored.version);
    assert!(read_from(&*store, "db/large", 0).await.unwrap() == content);
    assert_eq!(server.open_parts(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_cut_before_somebody_else_won_is_lost() {
    let server = S3::start().await;
    let store = server.store_with(&Options { pause: Duration::from_secs(3), ..server.options() });
    server.order(Method::PUT, "/db/lock", 1, Action::CutBefore);
    let ours = tokio::spawn({
        let store = store.clone();
        async move { store.create("db/lock", Bytes::from_static(b"ours")).await }
    });
    let tried = async || server.count("PUT ") == 1;
    crate::support::eventually("our first try was cut", Duration::from_secs(10), tried).await;
    let theirs = server.store().create("db/lock", Bytes::from_static(b"theirs")).await.unwrap();
    let error = ours.await.unwrap().unwrap_err();
    assert!(matches!(error.fault, Fault::AlreadyThere), "{error}");

    server.order(Method::PUT, "/db/lock", 1, Action::CutBefore);
    let known = theirs.clone();
    let ours = tokio::spawn(async move { store.replace("db/lock", Bytes::from_static(b"ours"), &known).await });
    let tried = async || server.count("PUT ") == 4;
    crate::support::eventually("our first try was cut", Duration::from_secs(10), tried).await;
    server.store().replace("db/lock", Bytes::from_static(b"theirs again"), &theirs).await.unwrap();
    let error = ours.await.unwrap().unwrap_err();
    assert!(matches!(error.fault, Fault::Changed), "{error}");
    assert_eq!(server.store().read("db/lock", 99).await.unwrap().0, "theirs again");
}

/// The request may have taken effect, and the store cannot be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_found_out_is_called_unknown() {
    let server = S3::start().await;
    server.order(Method::PUT, "/db/small", 9, Action::CutAfter);
    server.order(Method::HEAD, "/db/small", 9, Action::Answer(503, ""));
    let error = server.store().create("db/small", Bytes::from_static(b"1")).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unknown(_)) && error.may_pass(), "{error}");
    // And that nothing was done is found out where it can be.
    server.order(Method::PUT, "/db/other", 9, Action::CutBefore);
    let error = server.store().create("db/other", Bytes::from_static(b"1")).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unreachable(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_arrived_wrong_is_sent_again() {
    let server = S3::start().await;
    server.order(Method::PUT, "partNumber=2&", 2, Action::Header("etag", OTHER_MD5));
    server.order(Method::PUT, "partNumber=1&", 1, Action::Answer(400, "BadDigest"));
    let content = noise(12 << 20);
    upload(&*server.store(), "db/object", &content).await.unwrap();
    assert_eq!((server.count("partNumber=1&"), server.count("partNumber=2&")), (2, 3));
    assert!(read_from(&*server.store(), "db/object", 0).await.unwrap() == content);

    server.order(Method::PUT, "partNumber=2&", 99, Action::Header("etag", OTHER_MD5));
    let error = upload(&*server.store(), "db/wrong", &content).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Corrupt(_)) && error.to_string().contains("S3_CHECKSUM=always"), "{error}");
    assert!(server.store().look("db/wrong").await.unwrap().is_none());
    assert_eq!(server.open_parts(), 0);
}

/// A whole object with another checksum or size than was sent must not be taken for an archive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_not_what_was_sent_is_taken_back() {
    let server = S3::start().await;
    let store = server.store();
    server.order(Method::PUT, "/db/small", 1, Action::Header("etag", OTHER_MD5));
    let error = store.create("db/small", Bytes::from_static(b"1")).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Corrupt(_)) && error.to_string().contains("removed again"), "{error}");

    server.order(Method::HEAD, "/db/large", 1, Action::Answer(404, ""));
    server.order(Method::HEAD, "/db/large", 1, Action::Header("etag", "\"00000000000000000000000000000000-3\""));
    let error = upload(&*store, "db/large", &noise(12 << 20)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Corrupt(_)) && error.to_string().contains("removed again"), "{error}");
    assert!(store.list("").await.unwrap().is_empty());
}

/// Good practice: a machine that may write archives and read none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_only_write_is_enough_for_uploads() {
    let server = S3::start().await;
    server.order(Method::HEAD, "/db/", 99, Action::Answer(403, ""));
    let store = server.store();
    upload(&*store, "db/large", &noise(12 << 20)).await.unwrap();
    upload(&*store, "db/small", &noise(12)).await.unwrap();
    let error = upload(&*store, "db/small", &noise(12)).await.unwrap_err();
    assert!(matches!(error.fault, Fault::AlreadyThere), "{error}");
    let error = store.look("db/small").await.unwrap_err();
    assert!(error.to_string().contains("s3:GetObject"), "{error}");
}
