//! Archives and drills that are too old raise an alarm.

use bullwork::jobs::backup_watch::{BackupWatch, Payload};
use serde_json::{Value, json};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::{bullwork, run, text};
use crate::backup::Setup;

#[tokio::test]
async fn too_old_archives_and_drills_raise_an_alarm_until_all_is_well() {
    let setup = Setup::new().await;
    let receiver = MockServer::start().await;
    Mock::given(method("POST")).and(path("/alarm-path")).respond_with(ResponseTemplate::new(204)).mount(&receiver).await;
    let url = format!("{}/alarm-path", receiver.uri());
    let settings =
        [("BACKUP_MAX_AGE", "2"), ("BACKUP_DRILL_MAX_AGE", "48"), ("BACKUP_ALARM_URL", url.as_str()), ("APP", "the-shop")];
    let watch = async || run::<BackupWatch>(&setup, &settings, Payload {}).await.0;

    let error = watch().await.unwrap_err();
    assert!(error.contains("there is no archive in") && error.contains("there is no drill that proved an archive in"), "{error}");
    setup.take(&[]).await;
    assert!(!watch().await.unwrap_err().contains("no archive in"));
    let archive = setup.newest().await.archive;
    let proof = setup.store().join(format!("db/{archive}.verified.json"));
    std::fs::write(&proof, "{}").unwrap();
    let seen = watch().await.expect("all is young enough");
    assert_eq!((&seen["newest"], &seen["proven"]), (&json!(archive.to_string()), &json!(archive.to_string())));
    assert_eq!(receiver.received_requests().await.unwrap().len(), 2);

    let old = |file: &std::path::Path, hours: u64| {
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600 + 60);
        std::fs::File::options().write(true).open(file).unwrap().set_modified(at).unwrap();
    };
    old(&setup.newest_file().await, 3);
    let error = watch().await.unwrap_err();
    assert!(error.contains("the newest archive in") && error.contains("is 3 hours old, and may be 2"), "{error}");
    old(&proof, 49);
    let error = watch().await.unwrap_err();
    assert!(error.contains("is 49 hours old, and may be 48"), "{error}");
    let last: Value = serde_json::from_slice(&receiver.received_requests().await.unwrap().last().unwrap().body).unwrap();
    assert_eq!((&last["event"], &last["app"]), (&json!("backup.overdue"), &json!("the-shop")));
    assert_eq!(last["alarms"].as_array().unwrap().len(), 2, "{last}");

    let doctor = bullwork(&setup, &[("BACKUP_MAX_AGE", "2"), ("REDIS_URL", "redis://127.0.0.1:1")], &["doctor"]);
    let out = text(&doctor.stdout);
    let line = out.lines().find(|line| line.contains("backups")).unwrap_or_default();
    assert!(line.contains("failed") && !doctor.status.success(), "{out}");
    let doctor = bullwork(&setup, &[("BACKUP_MAX_AGE", "20"), ("REDIS_URL", "redis://127.0.0.1:1")], &["doctor"]);
    let out = text(&doctor.stdout);
    assert!(out.lines().any(|line| line.contains("backups") && line.trim_start().starts_with("ok")), "{out}");
}
