//! What is not what it should be touches no cluster.

use super::{Machine, files, whole};
use crate::support::s3::S3;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn another_key_and_every_altered_byte_are_noticed_before_any_sql() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=one"]);
    let boris = Machine::sharing(&s3, None).await;
    boris.fill(&["of Boris"]).await;
    let before = whole(&boris);
    // The key of another branch: nothing is read with it, and nothing made that others could not read.
    for words in [vec!["get"], vec!["push-new", "name=mine", "desc=x"]] {
        let error = boris.bad(&words);
        assert!(error.contains("another key"), "{words:?}: {error}");
        boris.start_if_stopped();
        assert_eq!(whole(&boris), before);
    }
    std::fs::copy(anna.path("key"), boris.path("key")).unwrap();

    let directory = s3.objects().join("shop/main/base");
    let name = files(&directory).into_iter().find(|name| name.starts_with("rev-")).unwrap();
    let good = std::fs::read(directory.join(&name)).unwrap();
    let pointer = std::fs::read_to_string(directory.join("current.json")).unwrap();
    let digest = |bytes: &[u8]| {
        use sha2::Digest as _;
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let last = good.len() - 1;
    for at in [30, good.len() / 2, last] {
        for told in [false, true] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(directory.join(&name), &bad).unwrap();
            if told {
                // Whoever can write to the store can write the pointer too, but has no key.
                std::fs::write(directory.join("current.json"), pointer.replace(&digest(&good), &digest(&bad))).unwrap();
            }
            let error = boris.bad(&["get"]);
            assert!(error.contains("1 of 1 presets failed"), "{error}");
            assert!(
                error.contains(if told { "damaged" } else { "SHA-256 differs" }) || error.contains("opens it"),
                "{at}: {error}"
            );
            std::fs::write(directory.join("current.json"), &pointer).unwrap();
        }
    }
    // Cut off between two pieces, with a pointer that agrees.
    let cut = &good[..good.len() - 20];
    std::fs::write(directory.join(&name), cut).unwrap();
    let agrees = pointer
        .replace(&digest(&good), &digest(cut))
        .replace(&format!("\"size\": {}", good.len()), &format!("\"size\": {}", cut.len()));
    std::fs::write(directory.join("current.json"), agrees).unwrap();
    assert!(boris.bad(&["get"]).contains("damaged"));
    boris.start_if_stopped();
    assert_eq!(whole(&boris), before, "no statement was executed");
    std::fs::write(directory.join("current.json"), &pointer).unwrap();
    std::fs::write(directory.join(&name), &good).unwrap();
    boris.good(&["get"]);
    boris.good(&["select", "base"]);
    assert_eq!(boris.rows().await, ["one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn names_and_digests_in_the_store_lead_to_no_file_elsewhere() {
    let mut anna = Machine::new("file:///nowhere", None).await;
    let store = format!("file://{}", anna.path("store").display());
    std::fs::create_dir(anna.path("store")).unwrap();
    anna.set("DBP_S3_BACKET", &store);
    anna.good(&["gen-key"]);
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=one"]);
    let directory = anna.path("store/shop/main");
    let pointer = std::fs::read_to_string(directory.join("base/current.json")).unwrap();
    std::fs::create_dir_all(directory.join("a/b")).unwrap();
    std::fs::write(directory.join("a/b/current.json"), &pointer).unwrap();
    assert_eq!(anna.good(&["ls", "where=s3", "short"]), "base");
    let value: serde_json::Value = serde_json::from_str(&pointer).unwrap();
    let digest = value["revisions"][0]["sha256"].as_str().unwrap();
    std::fs::write(directory.join("base/current.json"), pointer.replace(digest, "/../../../../evil")).unwrap();
    assert!(anna.bad(&["get"]).contains("SHA-256 that is none"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_broken_pointer_is_told_by_name_and_keeps_nobody_from_the_others() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    for name in ["broken", "other"] {
        anna.good(&["push-new", &format!("name={name}"), "desc=x"]);
    }
    std::fs::write(s3.objects().join("shop/main/broken/current.json"), "{").unwrap();
    let listed = anna.db_p(&["ls", "where=s3", "short"]);
    assert_eq!((listed.status.code(), super::text(&listed.stdout).trim()), (Some(1), "other"));
    assert!(super::text(&listed.stderr).contains("`broken`"), "{}", super::text(&listed.stderr));
    let error = anna.bad(&["get"]);
    assert!(error.contains("1 of 2 presets failed") && error.contains("`broken`") && error.contains("1 were updated"), "{error}");
    // Who does not ask for it hears nothing of it.
    anna.good(&["get", "exclude=broken"]);
    anna.good(&["get", "include=other"]);
    anna.steps();
    assert!(anna.bad(&["get", "include=broken"]).contains("`broken`") && anna.steps().is_empty(), "nothing was stopped for it");
    anna.good(&["select", "other"]);
    assert_eq!(anna.rows().await, ["one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_database_is_left_out_and_one_that_is_read_only_is_applied() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    let client = anna.client("postgres").await;
    client.batch_execute("create database closed").await.unwrap();
    anna.client("closed").await.batch_execute("create table kept (x int); insert into kept values (7)").await.unwrap();
    client.batch_execute("alter database closed allow_connections false").await.unwrap();
    let error = anna.bad(&["push-new", "name=base", "desc=x"]);
    assert!(error.contains("`closed`") && error.contains("allow_connections true"), "{error}");
    client.batch_execute("alter database closed allow_connections true").await.unwrap();
    for name in ["closed", "postgres"] {
        client.batch_execute(&format!("alter database {name} set default_transaction_read_only = on")).await.unwrap();
    }
    anna.good(&["push-new", "name=base", "desc=x"]);
    anna.good(&["get"]);
    anna.good(&["select", "base"]);
    let closed = anna.client("closed").await;
    assert_eq!(closed.query_one("select x from kept", &[]).await.unwrap().get::<_, i32>(0), 7);
    let row = closed.query_one("select current_setting('default_transaction_read_only')", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "on", "the setting is the preset's");
}

impl Machine {
    pub fn start_if_stopped(&self) {
        if !self.runs() {
            self.start();
        }
    }
}
