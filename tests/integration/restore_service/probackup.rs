//! pg_probackup: its command lines, full and incremental, and what people hear.

use serde_json::json;

use super::{Scene, sshd};
use wiremock::matchers::{body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_restore_empties_both_directories_and_leaves_a_running_cluster() {
    let mut scene = Scene::with_clusters().await;
    let chat = MockServer::start().await;
    // main восстановлен в тестовом контуре
    let words = "message=main+%D0%B2%D0%BE%D1%81%D1%81%D1%82%D0%B0%D0%BD%D0%BE%D0%B2%D0%BB%D0%B5%D0%BD+%D0%B2+%D1%82%D0%B5%D1%81\
                 %D1%82%D0%BE%D0%B2%D0%BE%D0%BC+%D0%BA%D0%BE%D0%BD%D1%82%D1%83%D1%80%D0%B5";
    let form = Mock::given(method("POST")).and(path("/we.php")).and(header("content-type", "application/x-www-form-urlencoded"));
    form.and(body_string(words)).respond_with(ResponseTemplate::new(200)).expect(1).mount(&chat).await;
    let hook = Mock::given(method("POST")).and(path("/hook")).and(header("authorization", "Bearer hook-token"));
    hook.respond_with(ResponseTemplate::new(204)).expect(1).mount(&chat).await;
    scene.set("notify_url", json!(format!("{}/we.php", chat.uri())));
    scene.set("webhooks", json!([{"url": format!("{}/hook", chat.uri()), "token": "Bearer hook-token"}]));
    let outside = scene.path("pgdata/other");
    std::fs::write(&outside, "not mine").unwrap();

    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1, db_host=127.0.0.1");
    let task = scene.until(&id, "completed").await;
    assert_eq!(scene.says().await, "restored");
    assert!(!scene.pgdata().join(".hidden").exists() && !scene.path("pgwal/main/.dot").exists());
    assert!(scene.path("pgwal/main").is_dir() && std::fs::read_to_string(&outside).unwrap() == "not mine");

    assert_eq!((&task["backup_id"], &task["recovery_time"]), (&json!("GOOD"), &json!("2026-01-02 03:00:00+03")));
    assert_eq!((&task["canceled"], &task["incremental"], &task["error"]), (&json!(0), &json!(false), &json!(null)));
    assert_eq!(
        (&task["db_instance"], &task["db_host"], &task["target"]),
        (&json!("main1"), &json!("127.0.0.1"), &json!("running"))
    );
    let steps: Vec<_> =
        task["steps"].as_array().unwrap().iter().map(|s| (s["step"].as_str().unwrap(), s["state"].as_str().unwrap())).collect();
    let wanted = ["choose", "check", "stop", "empty", "restore", "start", "wait", "notify"].map(|step| (step, "done"));
    assert_eq!(steps, wanted);
    let times = ["created_at", "started_at", "completed_at"].map(|name| task[name].as_str().unwrap().to_owned());
    assert!(times[0] <= times[1] && times[1] <= times[2] && times[0].ends_with('Z'), "{times:?}");

    // The command line, to the word.
    let dir = scene.directory.path().display();
    let (port, user) = (scene.sshd.port, sshd::user());
    let calls = scene.calls("restore");
    assert_eq!(calls.len(), 1, "{calls:?}");
    let known = [
        "restore".to_owned(),
        "--skip-external-dirs".to_owned(),
        "--progress".to_owned(),
        "-j2".to_owned(),
        "--instance=main1".to_owned(),
        "--no-validate".to_owned(),
        "-B".to_owned(),
        format!("{dir}/backup"),
        "--remote-host=127.0.0.1".to_owned(),
        format!("--remote-port={port}"),
        format!("--remote-user={user}"),
        format!("--pgdata={dir}/pgdata/main1"),
        "--recovery-target-action=promote".to_owned(),
        "--archive-user=probackup".to_owned(),
        "--archive-host=127.0.0.1".to_owned(),
        "--archive-port=22".to_owned(),
        "--recovery-target=immediate".to_owned(),
        format!("--waldir={dir}/pgwal/main"),
        "--backup-id=GOOD".to_owned(),
    ];
    assert_eq!(calls[0][..known.len()], known);
    assert_eq!(calls[0].len(), known.len() + 2);
    assert!(calls[0][known.len()].starts_with("--ssh-options=-o BatchMode=yes"), "{calls:?}");
    assert!(calls[0][known.len() + 1].starts_with("--restore-command="), "{calls:?}");
    assert_eq!(scene.calls("validate").len(), 1);

    let all: Vec<serde_json::Value> = serde_json::from_str(&scene.ask("status")).unwrap();
    assert!(all.len() == 1 && all[0]["id"] == id.as_str() && all[0].get("steps").is_none());
    let shown: serde_json::Value = serde_json::from_str(&scene.ask("show")).unwrap();
    assert_eq!(shown[0]["backups"][1]["id"], "GOOD");
    assert!(scene.log("Logs/bot.log").contains(&id), "{}", scene.log("Logs/bot.log"));
    chat.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_restore_keeps_the_data_directory_and_empties_the_wal_directory() {
    let scene = Scene::with_clusters().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1, backup_id=OLDER, incremental");
    let task = scene.until(&id, "completed").await;
    assert_eq!(scene.says().await, "restored");
    assert_eq!((&task["backup_id"], &task["incremental"]), (&json!("OLDER"), &json!(true)));
    let call = &scene.calls("restore")[0];
    let at = call.iter().position(|word| word == "-I").expect("it is incremental");
    assert_eq!(call[at - 1..=at + 1], ["--backup-id=OLDER", "-I", "CHECKSUM"]);
    assert!(!scene.path("pgwal/main/.dot").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_whose_cluster_does_not_start_is_an_error_and_people_hear_of_it() {
    let mut scene = Scene::with_clusters().await;
    let chat = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(500)).expect(1..).mount(&chat).await;
    scene.set("notify_url", json!(chat.uri()));
    scene.set("start_command", json!("echo no such unit >&2; exit 5"));
    let (_listener, _worker) = (scene.listen(), scene.work());
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("`start` failed") && error.contains("exit code 5: no such unit"), "{error}");
    assert!(error.contains("the target is restored, but its cluster was not seen running"), "{error}");
    assert_eq!(task["target"], "restored");
    crate::support::eventually("the failure is told, though the chat fails too", super::LIMIT, async || {
        chat.received_requests().await.unwrap().iter().any(|request| {
            let form = String::from_utf8_lossy(&request.body).into_owned();
            let fields: Vec<_> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
            let wanted = "main сервер не запустился за отведённое время или не восстановился корректно бэкап";
            fields == [("message".to_owned(), wanted.to_owned())]
        })
    })
    .await;

    // One that starts and never gets ready.
    scene.set("start_command", json!("true"));
    scene.set("start_timeout", json!(2));
    drop((_listener, _worker));
    let (_listener, _worker) = (scene.listen(), scene.work());
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    assert!(task["error"].as_str().unwrap().contains("within 2 s: its server is not there"), "{task}");
}
