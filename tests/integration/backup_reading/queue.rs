//! Every kind as a job: added by a person, run by a worker, its result in Redis; and no secret there.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{age_key, bullwork, command, databases, dump, text};
use crate::backup::Setup;
use crate::support::Server;
use crate::support::postgres::PASSWORD;
use crate::support::redis::RedisServer;

/// Everything that Redis holds, as text.
async fn contents(redis: &RedisServer) -> String {
    let words = |value: redis::Value| redis::from_redis_value::<Vec<String>>(value).expect("names are texts");
    let mut all = String::new();
    for key in words(redis.command(&["KEYS", "*"]).await) {
        let kind = redis::from_redis_value::<String>(redis.command(&["TYPE", &key]).await).expect("a type has a name");
        let value = match kind.as_str() {
            "hash" => redis.command(&["HGETALL", &key]).await,
            "list" => redis.command(&["LRANGE", &key, "0", "-1"]).await,
            "zset" => redis.command(&["ZRANGE", &key, "0", "-1"]).await,
            "set" => redis.command(&["SMEMBERS", &key]).await,
            "stream" => redis.command(&["XRANGE", &key, "-", "+"]).await,
            "string" => redis.command(&["GET", &key]).await,
            other => panic!("{key} is a {other}"),
        };
        all.push_str(&format!("{key} {value:?}\n"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_runs_through_its_queue_and_redis_holds_no_secret() {
    let setup = Setup::new().await;
    let redis = RedisServer::start();
    let (public, key) = age_key(&setup, "private.key");
    let local = setup.directory.path().join("local");
    std::fs::create_dir(&local).unwrap();
    let (url, local_text) = (redis.url(), local.display().to_string());
    let settings = [
        ("REDIS_URL", url.as_str()),
        ("BACKUP_AGE_RECIPIENTS", public.as_str()),
        ("BACKUP_PLAIN", ""),
        ("RESTORE_AGE_KEY_FILE", key.as_str()),
        ("BACKUP_KEEP_LAST", "1"),
        ("BACKUP_LOCAL_DIRECTORY", local_text.as_str()),
        ("BACKUP_MAX_AGE", "1"),
        ("BACKUP_DRILL_MAX_AGE", "1"),
        ("BACKUP_PING_URL", "http://127.0.0.1:9/secret-path-of-ours"),
        ("RESTORE_HOOK", "test -n \"$PGPASSWORD\""),
    ];
    let kinds = ["backup", "restore", "backup-drill", "backup-prune", "backup-clean", "backup-watch"];
    let mut worker = command(&setup, &settings, &[&["worker"], &kinds[..]].concat());
    worker.stdout(Stdio::null()).stderr(Stdio::null());
    let _worker = Server::start(worker, Signal::SIGTERM);
    let run = |arguments: &[&str]| {
        let output = bullwork(&setup, &settings, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok()).unwrap_or_default()
    };

    let first = run(&["backup", "now", "--queue", "--wait"]);
    assert_eq!(first["result"], "archived", "{first}");
    run(&["backup", "fetch", first["archive"].as_str().unwrap()]);
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    let second = run(&["backup", "now", "--queue", "--wait"]);
    assert_eq!((&second["result"], &second["changedTables"]), (&json!("archived"), &json!(["customer"])));
    let restored = run(&["backup", "restore", "--into", "copy", "--queue", "--wait"]);
    assert_eq!((&restored["database"], &restored["archive"]), (&json!("copy"), &second["archive"]));
    assert!(dump(&setup.cluster, "copy", &[]) == dump(&setup.cluster, "shop", &[]));
    let looked = run(&["backup", "verify", "--queue", "--wait"]);
    assert_eq!(looked["opened"], true, "{looked}");
    let proof = run(&["backup", "drill", "--queue", "--wait"]);
    assert_eq!(proof["archive"], second["archive"], "{proof}");
    let told = run(&["backup", "prune", "--dry-run", "--queue", "--wait"]);
    assert_eq!(setup.archives().await.len(), 2, "{told}");
    let pruned = run(&["backup", "prune", "--yes", "--queue", "--wait"]);
    assert_eq!(pruned["stores"][0]["removed"], json!([first["archive"]]), "{pruned}");
    run(&["restart:backup-clean", "--wait"]);
    assert_eq!(std::fs::read_dir(&local).unwrap().count(), 0, "the fetched archive was no latest one");
    run(&["restart:backup-watch", "--wait"]);
    assert!(!databases(&setup.cluster).await.iter().any(|name| name.starts_with("bullwork_drill")));

    // One that fails says why, and leaves nothing.
    let before = databases(&setup.cluster).await;
    let output = bullwork(&setup, &settings, &["backup", "restore", "--into", "shop", "--queue", "--wait"]);
    assert!(!output.status.success() && text(&output.stderr).contains("--into-nonempty"), "{}", text(&output.stderr));
    assert_eq!(databases(&setup.cluster).await, before);

    let held = contents(&redis).await;
    for queue in
        ["Backup queue", "Restore queue", "Backup drill queue", "Backup prune queue", "Backup clean queue", "Backup watch queue"]
    {
        assert!(held.contains(&format!("bull:{queue}:completed")), "{queue} in {held}");
    }
    assert!(held.contains("one more") || held.contains("customer"), "what Redis holds is read as text");
    let private = std::fs::read_to_string(&key).unwrap();
    let private = private.lines().find(|line| line.starts_with("AGE-SECRET")).unwrap();
    for secret in [PASSWORD, "correct%20horse", "secret-path-of-ours", private] {
        assert!(!held.contains(secret), "{secret} in Redis");
    }
}
