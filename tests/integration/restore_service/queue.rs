//! Tasks and their jobs: one at a time, in order; without Redis; and whatever is lost on the way.

use std::time::Duration;

use serde_json::{Value, json};

use super::{LIMIT, Scene};
use crate::support::eventually;
use crate::support::postgres::{Cluster, give_to_server_user};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_one_after_the_other_in_their_order_whatever_is_restarted() {
    let mut scene = Scene::with_clusters().await;
    let state = Cluster::start();
    state.create("state").await;
    scene.environment.push(("STATE_DATABASE_URL".to_owned(), state.url("state")));
    let listener = scene.listen();
    let tasks: Vec<String> = (0..3).map(|_| scene.accepted("db_instance=main1")).collect();
    drop(listener);
    let _listener = scene.listen();
    for id in &tasks {
        assert_eq!(scene.task(id)["status"], "queued");
    }
    // Two workers, one restore.
    let _workers = (scene.work(), scene.work());
    let mut before = String::new();
    for id in &tasks {
        let task = scene.until(id, "completed").await;
        let begun = task["started_at"].as_str().unwrap().to_owned();
        assert!(begun >= before, "{id} began at {begun}, before {before}");
        before = task["completed_at"].as_str().unwrap().to_owned();
    }
    assert!(!scene.path("tasks.db").exists(), "the tasks are in PostgreSQL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_nothing_is_accepted_and_what_redis_lost_is_added_again() {
    let mut scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    let id = scene.accepted("db_instance=main1");
    // A Redis that forgets everything.
    let mut connection = scene.redis.connection().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    scene.redis.kill();
    let answer = scene.ask("db_instance=main1");
    assert!(answer.starts_with("Error: the queue does not take it"), "{answer}");
    let all: Vec<Value> = serde_json::from_str(&scene.ask("status")).unwrap();
    assert_eq!(all.iter().map(|task| task["id"].clone()).collect::<Vec<_>>(), [json!(id)]);
    scene.redis.restart();
    let _worker = scene.work();
    scene.until(&id, "completed").await;
    assert_eq!(scene.calls("restore").len(), 1, "what was not accepted was not done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_without_its_task_does_nothing_and_a_task_whose_job_failed_is_an_error() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    let store = bullwork::ops::store::Store::at(&scene.redis.url(), "bull").unwrap();
    let kind = bullwork::jobs::named("restore").unwrap();
    let stranger = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let options = bullwork::queue::JobOptions { job_id: Some(stranger.to_owned()), ..Default::default() };
    store.add_with(kind, options, json!({"task": stranger})).await.unwrap();
    // The operator's own cancel of a job.
    let id = scene.accepted("db_instance=main1");
    store.cancel("Restore queue", &id, "an operator").await.unwrap();
    let task = scene.until(&id, "error").await;
    assert!(task["error"].as_str().unwrap().contains("cancelled by an operator; the target is as it was"), "{task}");
    let _worker = scene.work();
    eventually("the stranger's job ends", LIMIT, async || {
        let (job, state) = store.job("Restore queue", stranger).await.unwrap();
        state == Some(bullwork::ops::store::State::Failed) && job.failed_reason.unwrap_or_default().contains("there is no task")
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(scene.calls("restore").is_empty() && scene.says().await == "before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_parallel_hosts_are_restored_side_by_side_and_each_by_one_at_a_time() {
    let mut scene = Scene::with_clusters().await;
    // The same machine by another name.
    let known = scene.sshd.file("known_hosts");
    let lines = std::fs::read_to_string(&known).unwrap();
    std::fs::write(&known, format!("{lines}{}", lines.replace("127.0.0.1", "localhost"))).unwrap();
    for name in ["pgdata/other", "pgwal/other"] {
        std::fs::create_dir(scene.path(name)).unwrap();
        give_to_server_user(&scene.path(name));
    }
    let other = json!({"db_host": "localhost", "pg_ctl_instance": "other", "pgdata": scene.path("pgdata/other")});
    scene.config["db_host_mapping"]["other"] = other;
    let catalogue = scene.log("backup/catalogue.json");
    let mut instances: Vec<Value> = serde_json::from_str(&catalogue).unwrap();
    instances.push(
        json!({"instance": "other", "backups": [{"id": "GOOD", "status": "OK", "recovery-time": "2026-01-02 03:00:00+03"}]}),
    );
    std::fs::write(scene.path("backup/catalogue.json"), json!(instances).to_string()).unwrap();
    scene.set("parallel", json!(2));
    scene.mode("slow-validate");

    let _listener = scene.listen();
    let first = scene.accepted("db_instance=main1");
    let second = scene.accepted("db_instance=main1");
    let elsewhere = scene.accepted("db_instance=other");
    // One has both places, so the other's task for the same host must wait in the third.
    let _workers = (scene.work(), scene.work());
    let begun = std::time::Instant::now();
    while scene.calls("validate").len() < 2 {
        let (all, log) = (scene.ask("status"), scene.log("worker.log"));
        assert!(begun.elapsed() < LIMIT, "both hosts are restored: {all}\n{log}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(scene.task(&elsewhere)["status"], "in_progress");
    // Two that are taken at the same moment may change places.
    let status = |id: &str| scene.task(id)["status"].as_str().unwrap().to_owned();
    let (first, second) = if status(&first) == "in_progress" { (first, second) } else { (second, first) };
    assert_eq!((status(&first).as_str(), status(&second).as_str()), ("in_progress", "queued"));
    assert_eq!(scene.ask(&format!("cancel, id={first}")), format!("Task {first} canceled."));
    scene.until(&first, "canceled").await;
    scene.until(&second, "in_progress").await;
    assert_eq!(scene.task(&elsewhere)["status"], "in_progress");
    for id in [&second, &elsewhere] {
        scene.ask(&format!("cancel, id={id}"));
        scene.until(id, "canceled").await;
    }
    assert_eq!(scene.says().await, "before");
}
