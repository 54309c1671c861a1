//! The same from a bucket of an S3 server.

use bullwork::jobs::backup_drill::{self, BackupDrill};
use bullwork::jobs::backup_prune::{self, BackupPrune};
use hyper::Method;
use serde_json::json;

use super::{age_key, bullwork, databases, dump, into, restore, run, text};
use crate::backup::Setup;
use crate::support::s3::{ACCESS_KEY, Action, BUCKET, S3, SECRET_KEY};

// The program is waited for while the server, in this process, answers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn archives_in_a_bucket_are_restored_proven_fetched_and_pruned() {
    let (setup, s3) = (Setup::new().await, S3::start().await);
    let (public, key) = age_key(&setup, "key");
    let (store, endpoint) = (format!("s3://{BUCKET}/some/prefix"), format!("http://127.0.0.1:{}", s3.port));
    let settings = [
        ("BACKUP_STORE", store.as_str()),
        ("S3_ENDPOINT", endpoint.as_str()),
        ("S3_ACCESS_KEY", ACCESS_KEY),
        ("S3_SECRET_KEY", SECRET_KEY),
        ("BACKUP_AGE_RECIPIENTS", public.as_str()),
        ("BACKUP_PLAIN", ""),
        ("RESTORE_AGE_KEY_FILE", key.as_str()),
        ("BACKUP_KEEP_LAST", "1"),
    ];
    setup.take(&settings).await;
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    setup.take(&settings).await;
    restore(&setup, &settings, into("copy")).await.unwrap();
    assert!(dump(&setup.cluster, "copy", &[]) == dump(&setup.cluster, "shop", &[]));
    let proof = run::<BackupDrill>(&setup, &settings, backup_drill::Payload::default()).await.0.unwrap();

    let output = bullwork(&setup, &settings, &["backup", "fetch", "--latest"]);
    assert_eq!(text(&output.stdout).trim(), "./latest.tar.zst.age", "{}", text(&output.stderr));
    let listed: serde_json::Value =
        serde_json::from_slice(&bullwork(&setup, &settings, &["backup", "list", "--json"]).stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["archive"]), (2, &proof["archive"]));
    assert!(listed[0]["verifiedAt"].is_string() && listed[1]["verifiedAt"].is_null(), "{listed}");

    let pruned = run::<BackupPrune>(&setup, &settings, backup_prune::Payload::default()).await.0.unwrap();
    assert_eq!(pruned["stores"][0]["removed"], json!([listed[1]["archive"]]));

    // Answers break off; the download goes on where it was.
    s3.order(Method::GET, ".tar.zst.age", 4, Action::Truncate(3000));
    restore(&setup, &settings, into("broken_off")).await.unwrap();
    assert!(dump(&setup.cluster, "broken_off", &[]) == dump(&setup.cluster, "shop", &[]));
    s3.relent();
    let before = databases(&setup.cluster).await;
    s3.order(Method::GET, ".tar.zst.age", 100, Action::Answer(403, "AccessDenied"));
    let error = restore(&setup, &settings, into("never")).await.unwrap_err();
    assert!(error.contains("AccessDenied") || error.contains("403"), "{error}");
    assert_eq!(databases(&setup.cluster).await, before);
}
