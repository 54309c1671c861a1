//! The verbs as a person uses them, with workers behind a real Redis.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::fleet::{Fleet, told, user};
use crate::support::redis::RedisServer;

fn json(fleet: &Fleet, arguments: &[&str]) -> Value {
    let (code, out, errors) = told(&fleet.bullwork(arguments));
    assert_eq!(code, Some(0), "{arguments:?}: {errors}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_listed_added_imported_and_removed() {
    let fleet = Fleet::start(0).await;
    let import = format!(
        "[[server]]\nname = \"web7\"\nrole = \"business\"\nhost = \"web7.example\"\nuser = \"{}\"\nproject = \"/srv/site\"\nbackup = \"/b/site.tar.zst\"\n",
        user()
    );
    std::fs::write(fleet.path("servers.toml"), &import).unwrap();
    assert_eq!(told(&fleet.bullwork(&["release", "servers", "import", "servers.toml"])).0, Some(0));
    let (code, _, errors) = told(&fleet.bullwork(&["release", "servers", "import", "servers.toml"]));
    assert!(code == Some(1) && errors.contains("there is a server `web7` already"), "{errors}");
    let add = ["release", "servers", "add", "web8", "--role", "business", "--host", "h", "--user", "u", "--project", "relative"];
    let (code, _, errors) = told(&fleet.bullwork(&add));
    assert!(code == Some(1) && errors.contains("must be an absolute path"), "{errors}");
    let (code, _, _) = told(&fleet.bullwork(&["release", "servers", "add", "web8", "--role", "tester"]));
    assert_eq!(code, Some(2), "wrong arguments");
    let list = json(&fleet, &["release", "servers", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 3);
    assert_eq!(list[1]["port"], 22);
    assert_eq!(told(&fleet.bullwork(&["release", "servers", "remove", "web7"])).0, Some(0));
    assert_eq!(json(&fleet, &["release", "servers", "list", "--json"]).as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_begun_shown_brought_to_production_and_rolled_back_by_its_verbs() {
    let redis = RedisServer::start();
    let url = redis.url();
    let fleet = Fleet::with(2, &[("REDIS_URL", &url), ("JOB_LOCK_SECONDS", "5")]).await;
    fleet.write("dev", "a b", "2");
    fleet.write("dev", "d/new", "2");
    fleet.write("beta", "a b", "1");
    std::fs::write(fleet.path("list"), "a b\r\n\nd\n").unwrap();
    let (code, out, errors) = told(&fleet.bullwork(&["release", "beta", "--files", "list", "--dry-run"]));
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(out, "beta: 1 new, 1 replaced, 0 taken away, 1 new directories, 0 the same\n  + d/\n  + d/new\n  ~ a b\n");
    assert_eq!(fleet.read("beta", "d/new"), None, "a dry run copies nothing");
    assert!(!fleet.project("beta").join(".bullwork-releases").exists());
    assert_eq!(fleet.ledger().unfinished().await.unwrap(), None, "and begins nothing");

    let mut worker = fleet.command(&["worker", "release", "release-copy"]).spawn().unwrap();
    let (code, out, errors) = told(&fleet.bullwork(&["release", "beta", "--files", "list", "--wait"]));
    assert!(code == Some(0) && out == "1\n" && errors.contains("beta_done («бета-копирование завершено»)"), "{out}{errors}");
    let (code, _, errors) = told(&fleet.bullwork(&["release", "beta", "other"]));
    assert!(code == Some(1) && errors.contains("there is one at a time"), "{errors}");
    let (_, out, errors) = told(&fleet.bullwork(&["release", "production", "1", "--dry-run"]));
    assert!(out.starts_with("web1: 2 new") && out.contains("web2: 2 new"), "{out}{errors}");
    let (code, _, errors) = told(&fleet.bullwork(&["release", "production", "1", "--only", "web9"]));
    assert!(code == Some(1) && errors.contains("`web9` is no business server; there are: web1, web2"), "{errors}");
    let (code, _, errors) =
        told(&fleet.bullwork(&["release", "production", "1", "--order", "web2,web1", "--backup-of", "web1", "--wait"]));
    assert!(code == Some(0) && errors.contains("completed («завершено»)"), "{errors}");
    let status = json(&fleet, &["release", "status", "--json"]);
    assert_eq!((&status["state"], &status["shown"]), (&"completed".into(), &"завершено".into()));
    assert_eq!((&status["servers"][0]["server"], &status["servers"][1]["server"]), (&"web2".into(), &"web1".into()));
    assert!(status["backup"].as_str().unwrap().starts_with("archive web1:"));
    let (code, _, errors) = told(&fleet.bullwork(&["release", "production", "1"]));
    assert!(code == Some(1) && errors.contains("is completed"), "a completed one is refused: {errors}");
    let (_, table, _) = told(&fleet.bullwork(&["release", "status", "1"]));
    assert!(table.contains("idle («свободен»)"), "{table}");
    let log = json(&fleet, &["release", "log", "1", "--json"]);
    let books: Vec<&str> = log.as_array().unwrap().iter().map(|line| line["book"].as_str().unwrap()).collect();
    assert!(["beta", "production", "server"].iter().all(|book| books.contains(book)), "{books:?}");
    assert!(log[0]["actor"].as_str().unwrap().starts_with(&format!("{}@", user())), "{log}");

    let (code, _, errors) = told(&fleet.bullwork(&["release", "rollback", "1", "--wait"]));
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!((fleet.read("web1", "a b"), fleet.read("web2", "d/new")), (None, None));
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_verbs_say_what_to_set() {
    let mut fleet = Fleet::start(0).await;
    fleet.more.push(("RELEASE_SSH_KEY".to_owned(), String::new()));
    let (code, _, errors) = told(&fleet.bullwork(&["release", "servers", "check"]));
    assert!(code == Some(1) && errors.contains("set RELEASE_SSH_KEY and RELEASE_KNOWN_HOSTS"), "{errors}");
    fleet.more.clear();
    fleet.more.push(("RELEASE_KNOWN_HOSTS".to_owned(), String::new()));
    let (code, _, errors) = told(&fleet.bullwork(&["release", "servers", "list"]));
    assert!(code == Some(1) && errors.contains("RELEASE_KNOWN_HOSTS"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_where_no_worker_is_hears_so_and_still_gets_the_end() {
    let redis = RedisServer::start();
    let url = redis.url();
    let fleet = Fleet::with(1, &[("REDIS_URL", &url)]).await;
    fleet.write("dev", "f", "1");
    let mut waiting = tokio::process::Command::from(fleet.command(&["release", "beta", "f", "--wait"]))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let mut until = async |wanted: &str| {
        let found = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(wanted) {
                    return;
                }
            }
            panic!("it ended without `{wanted}`");
        };
        tokio::time::timeout(Duration::from_secs(120), found).await.unwrap_or_else(|_| panic!("no `{wanted}`"));
    };
    until("no worker has taken it up yet: does `bullwork background`").await;
    let mut worker = fleet.command(&["worker", "release"]).spawn().unwrap();
    until("beta_done («бета-копирование завершено»)").await;
    assert!(waiting.wait().await.unwrap().success());
    worker.kill().unwrap();
    worker.wait().unwrap();
}
