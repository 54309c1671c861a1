//! What is asked of a server: options, bounds, and locks.

use std::time::{Duration, Instant};

use bullwork::storage::settings::{Encryption, Lock};
use bullwork::storage::{Options, Removal, Tidied};
use bytes::Bytes;
use hyper::Method;

use super::{noise, read_from, upload};
use crate::support::s3::{Action, BUCKET, S3};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_objects_carry_encryption_lock_and_checksums_as_told() {
    let server = S3::start().await;
    let options = Options {
        encryption: Some(Encryption::Kms(Some("key-1".to_owned()))),
        lock: Some(Lock { compliance: true, days: 30 }),
        checksums: true,
        ..server.options()
    };
    let store = server.store_with(&options);
    store.create("db/small", Bytes::from_static(b"hello")).await.unwrap();
    let content = noise(6 << 20);
    upload(&*store, "db/large", &content).await.unwrap();
    assert!(read_from(&*store, "db/large", 0).await.unwrap() == content);
    let heard = server.heard();
    let header = |line: &str, name: &str| {
        let request = heard.iter().find(|h| h.line.contains(line)).unwrap_or_else(|| panic!("{line}"));
        request.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    };
    for line in ["PUT /my.bucket/some/prefix/db/small", "POST /my.bucket/some/prefix/db/large?uploads"] {
        assert_eq!(header(line, "x-amz-server-side-encryption").as_deref(), Some("aws:kms"), "{line}");
        assert_eq!(header(line, "x-amz-server-side-encryption-aws-kms-key-id").as_deref(), Some("key-1"));
        assert_eq!(header(line, "x-amz-object-lock-mode").as_deref(), Some("COMPLIANCE"));
        let until = header(line, "x-amz-object-lock-retain-until-date").unwrap();
        let until = chrono::DateTime::parse_from_rfc3339(&until).unwrap();
        let days = (until.to_utc() - chrono::Utc::now()).num_hours();
        assert!((719..=720).contains(&days), "{until}");
    }
    assert_eq!(
        header("PUT /my.bucket/some/prefix/db/small", "x-amz-checksum-sha256").as_deref(),
        Some("LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
    );
    assert_eq!(header("POST /my.bucket/some/prefix/db/large?uploads", "x-amz-checksum-algorithm").as_deref(), Some("SHA256"));
    assert!(header("partNumber=1", "x-amz-checksum-sha256").is_some());
    assert_eq!(header("PUT /my.bucket/some/prefix/db/small", "if-none-match").as_deref(), Some("*"));
    assert_eq!(header("POST /my.bucket/some/prefix/db/large?uploadId", "if-none-match").as_deref(), Some("*"));
}

/// Some servers know neither checksum headers nor trailers: by default no request has any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_no_checksum_is_asked_for_that_an_older_server_does_not_know() {
    let server = S3::start().await;
    upload(&*server.store(), "db/large", &noise(6 << 20)).await.unwrap();
    server.store().create("db/small", Bytes::from_static(b"x")).await.unwrap();
    for heard in server.heard() {
        let names: Vec<&str> = heard.headers.keys().map(|name| name.as_str()).collect();
        assert!(!names.iter().any(|n| n.contains("checksum") || n.contains("trailer")), "{} {names:?}", heard.line);
        assert_ne!(heard.headers.get("x-amz-content-sha256").unwrap(), "UNSIGNED-PAYLOAD", "{}", heard.line);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lock_keeps_is_told_as_kept() {
    let server = S3::start().await;
    let store = server.store();
    for key in ["db/retained", "db/held", "db/free", "db/refused"] {
        store.create(key, Bytes::from_static(b"x")).await.unwrap();
    }
    server.order(Method::HEAD, "/db/retained", 1, Action::Header("x-amz-object-lock-retain-until-date", "2999-01-01T00:00:00Z"));
    server.order(Method::HEAD, "/db/held", 1, Action::Header("x-amz-object-lock-legal-hold", "ON"));
    server.order(Method::HEAD, "/db/free", 1, Action::Header("x-amz-object-lock-retain-until-date", "2020-01-01T00:00:00Z"));
    let refusal = "<Error><Code>AccessDenied</Code><Message>object protected by WORM</Message></Error>".to_owned();
    server.order(Method::DELETE, "/db/refused", 1, Action::Document(403, refusal));
    for (key, word) in [("db/retained", "2999-01-01T00:00:00Z"), ("db/held", "legal hold"), ("db/refused", "WORM")] {
        let Removal::Kept(reason) = store.remove(key).await.unwrap() else { panic!("{key} was removed") };
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(store.remove("db/free").await.unwrap(), Removal::Removed);
    assert_eq!(store.list("db/").await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_a_killed_process_left_open_are_ended() {
    let server = S3::start().await;
    let store = server.store();
    assert!(matches!(store.tidy("db/", Duration::ZERO).await.unwrap(), Tidied::Unlisted(text) if text.contains("lifecycle")));

    // s3s-fs lists no uploads; this is what others answer, of which two pages.
    let mut open = store.upload("db/killed").await.unwrap();
    open.write(noise(6 << 20)).await.unwrap();
    let heard = server.heard();
    let id = heard.iter().find_map(|h| h.line.split("uploadId=").nth(1)).map(|rest| rest.split('&').next().unwrap().to_owned());
    let id = match id {
        Some(id) => id,
        None => {
            let sent = async || server.count("uploadId=") > 0;
            crate::support::eventually("a part is on its way", Duration::from_secs(10), sent).await;
            let heard = server.heard();
            heard.iter().find_map(|h| h.line.split("uploadId=").nth(1)).unwrap().split('&').next().unwrap().to_owned()
        }
    };
    // As a kill would: nobody aborts.
    std::mem::forget(open);
    let page = |key: &str, id: &str, initiated: &str, rest: &str| {
        Action::Document(
            200,
            format!(
                "<ListMultipartUploadsResult><Bucket>{BUCKET}</Bucket>{rest}<Upload><Key>some/prefix/{key}</Key>\
                 <UploadId>{id}</UploadId><Initiated>{initiated}</Initiated></Upload></ListMultipartUploadsResult>"
            ),
        )
    };
    let more = "<IsTruncated>true</IsTruncated><NextKeyMarker>some/prefix/db/killed</NextKeyMarker><NextUploadIdMarker>a</NextUploadIdMarker>";
    server.order(Method::GET, "?uploads", 1, page("db/killed", &id, "2020-01-01T00:00:00.000Z", more));
    let young = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    server.order(Method::GET, "?uploads", 1, page("db/young", "young", &young, "<IsTruncated>false</IsTruncated>"));
    let settled = async || server.open_parts() > 1;
    crate::support::eventually("its part is there", Duration::from_secs(10), settled).await;
    let tidied = store.tidy("db/", Duration::from_secs(3600)).await.unwrap();
    assert_eq!(tidied, Tidied::Ended(vec!["db/killed".to_owned()]));
    assert_eq!(server.open_parts(), 0);
    assert_eq!(server.count("DELETE "), 1);
    assert!(server.heard().iter().any(|h| h.line.contains("key-marker=some")), "the second page was asked for");
}

/// The bound of memory: what was taken from the source but not by the store is at most a part more than those under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_holds_the_source_back() {
    let server = S3::start().await;
    let options = Options { part_size: 64 << 10, concurrency: 2, ..server.options() };
    server.order(Method::PUT, "partNumber=", 6, Action::Delay(Duration::from_millis(150)));
    let store = server.store_with(&options);
    let mut upload = store.upload("db/object").await.unwrap();
    let mut taken = 0_u64;
    for _ in 0..40 {
        upload.write(noise(16 << 10)).await.unwrap();
        taken += 16 << 10;
        // Counting happens a moment after the store has it.
        assert!(taken - upload.sent() <= 4 * (64 << 10), "{taken} taken, {} sent", upload.sent());
    }
    upload.abort().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_kept() {
    let server = S3::start().await;
    let store = server.store_with(&Options { rate: Some(2_000_000), ..server.options() });
    let begun = Instant::now();
    upload(&*store, "db/object", &noise(1_500_000)).await.unwrap();
    // 0.75 s but for the burst; a slow machine only takes longer.
    assert!(begun.elapsed() >= Duration::from_millis(650), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_file_vouches_for_a_server_and_without_it_the_way_out_is_told() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.clone().self_signed(&key).unwrap().pem();
    let server_key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
        )
        .unwrap();
    let server = S3::start_tls(config).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority_pem).unwrap();
    let endpoint = format!("https://127.0.0.1:{}", server.port).parse().unwrap();
    let options = Options { endpoint: Some(endpoint), pause: Duration::from_millis(1), ..server.options() };
    let trusting = server.store_with(&Options { ca_file: Some(file.clone()), ..options.clone() });
    upload(&*trusting, "db/object", &noise(6 << 20)).await.unwrap();
    let error = server.store_with(&options).look("db/object").await.unwrap_err();
    assert!(error.to_string().contains("S3_CA_FILE"), "{error}");
    std::fs::write(&file, "nothing").unwrap();
    let error = bullwork::storage::open("s3://bucket", &Options { ca_file: Some(file), ..options }).unwrap_err();
    assert!(error.to_string().contains("holds no certificate"), "{error}");
}
