//! Earlier revisions, deleted presets, another key.

use super::{Machine, files};
use crate::support::s3::S3;

fn revisions(s3: &S3) -> usize {
    files(&s3.objects().join("shop/main/base")).iter().filter(|name| name.starts_with("rev-")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn earlier_revisions_come_back_and_are_purged() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.set("DBP_MIGR_CMD", "");
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=one"]);
    for text in ["two", "three"] {
        anna.client("shop").await.execute("insert into t values ($1)", &[&text]).await.unwrap();
        anna.good(&["push-ex", "name=base", &format!("desc={text}")]);
    }
    assert!(anna.bad(&["restore-version", "name=base", "revision=9"]).contains("no revision 9"));
    anna.good(&["restore-version", "name=base", "revision=1"]);
    assert!(anna.bad(&["push-ex", "name=base", "desc=x"]).contains("descends from revision 3"));
    anna.good(&["get"]);
    anna.good(&["select", "base"]);
    assert_eq!(anna.rows().await, ["one"]);
    let versions = anna.good(&["versions", "name=base"]);
    assert!(versions.starts_with("4\t") && versions.contains("revision 1 again: one"), "{versions}");
    assert_eq!(revisions(&s3), 3, "the object is the same");

    assert!(anna.bad(&["purge", "name=base"]).contains("is not deleted"));
    anna.good(&["purge", "name=base", "keep=1"]);
    assert_eq!((revisions(&s3), anna.good(&["versions", "name=base"]).lines().count()), (1, 1));
    anna.good(&["delete", "name=base", "desc=ненужный"]);
    let error = anna.bad(&["get"]);
    assert!(
        error.contains("there are no presets") && error.contains("`base` was deleted by") && error.contains("ненужный"),
        "{error}"
    );
    assert!(anna.good(&["ls", "where=s3"]).is_empty());
    anna.good(&["restore-version", "name=base", "revision=4"]);
    anna.good(&["delete", "name=base", "desc=all the same"]);
    anna.good(&["purge", "name=base"]);
    assert_eq!(revisions(&s3), 0);
    // The name is free; numbers go on, so nobody takes the new one for the old.
    anna.good(&["push-new", "name=base", "desc=new"]);
    assert!(anna.good(&["ls", "where=s3"]).contains("revision 6"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn presets_get_another_key_and_the_old_one_opens_them_no_more() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.set("DBP_MIGR_CMD", "");
    anna.fill(&["one"]).await;
    for name in ["base", "other"] {
        anna.good(&["push-new", &format!("name={name}"), "desc=x"]);
    }
    let old = anna.setting("DBP_KEY_PATH");
    let new = anna.path("new.key").display().to_string();
    anna.set("DBP_KEY_PATH", &new);
    anna.good(&["gen-key"]);
    anna.set("DBP_KEY_PATH", &old);
    let key = anna.good(&["set-lock", "name=other", "who=A", "desc=x"]);
    let error = anna.bad(&["rekey", &format!("to={new}")]);
    assert!(error.contains("1 have the new key") && error.contains("`other`") && error.contains("locked by A"), "{error}");
    anna.good(&["reset-lock", "name=other", &format!("key={key}")]);
    anna.good(&["rekey", &format!("to={new}")]);
    assert!(anna.bad(&["get"]).contains("another key"));
    anna.set("DBP_KEY_PATH", &new);
    anna.good(&["get"]);
    anna.good(&["select", "other"]);
    assert_eq!(anna.rows().await, ["one"]);
    assert!(anna.good(&["versions", "name=base"]).starts_with("2\t"), "once, though it was run twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_directory_and_the_smallest_form_work_as_well() {
    let mut anna = Machine::new("file:///nowhere", None).await;
    let store = format!("file://{}", anna.path("store").display());
    std::fs::create_dir(anna.path("store")).unwrap();
    anna.set("DBP_S3_BACKET", &store);
    anna.set("DBP_COMPRESSION", "xz");
    anna.set("DBP_MIGR_CMD", "");
    anna.good(&["gen-key"]);
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=x"]);
    assert!(std::fs::read_to_string(anna.path("store/shop/main/base/current.json")).unwrap().contains("\"compression\": \"xz\""));
    let key = anna.good(&["set-lock", "name=base", "who=A", "desc=x"]);
    anna.good(&["push-ex", "name=base", "desc=y", &format!("key={key}")]);
    anna.good(&["get"]);
    anna.good(&["select", "base"]);
    assert_eq!(anna.rows().await, ["one"]);
}
