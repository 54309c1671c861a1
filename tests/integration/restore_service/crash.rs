//! Workers and listeners that die.

use bullwork::restore::tasks::{Order, Tasks};
use bullwork::state::State;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{LIMIT, Scene};
use crate::support::eventually;
use crate::support::postgres::Cluster;

/// Kills the worker in the middle of a restore, and sees that nothing goes on without it.
async fn cut_off(scene: &Scene) -> String {
    scene.mode("slow");
    let mut worker = scene.work();
    let id = scene.accepted("db_instance=main1");
    scene.until_restoring().await;
    worker.signal(Signal::SIGKILL);
    worker.stop();
    for name in ["pg_probackup", "agent-3600"] {
        eventually("nothing of it runs any more", LIMIT, async || scene.processes(name).is_empty()).await;
    }
    assert_eq!(scene.task(&id)["status"], "in_progress");
    scene.no_mode("slow");
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_leaves_no_tool_behind_and_its_task_becomes_an_error_that_tells_the_condition() {
    let scene = Scene::with_clusters().await;
    let listener = scene.listen();
    let id = cut_off(&scene).await;
    // The listener's death changes nothing either.
    drop(listener);
    let _listener = scene.listen();
    let _worker = scene.work();
    let task = scene.until(&id, "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("its worker ended during `restore`; the target is half-restored and stopped"), "{error}");
    assert_eq!(task["target"], "incomplete");
    assert_eq!(scene.calls("restore").len(), 1);
    let again = scene.accepted("db_instance=main1");
    scene.until(&again, "completed").await;
    assert_eq!(scene.says().await, "restored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_resume_the_next_worker_goes_on_incrementally() {
    let mut scene = Scene::with_clusters().await;
    scene.set("resume", json!(true));
    let _listener = scene.listen();
    let id = cut_off(&scene).await;
    let _worker = scene.work();
    scene.until(&id, "completed").await;
    assert_eq!(scene.says().await, "restored");
    let calls = scene.calls("restore");
    assert!(
        calls.len() == 2 && calls[1].contains(&"CHECKSUM".to_owned()) && !calls[0].contains(&"CHECKSUM".to_owned()),
        "{calls:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_stop_ends_the_tool_and_leaves_the_same_record() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    scene.mode("slow");
    let mut worker = scene.work();
    let id = scene.accepted("db_instance=main1");
    scene.until_restoring().await;
    worker.signal(Signal::SIGTERM);
    let mut left = true;
    eventually("the worker ends", LIMIT, async || {
        left = worker.runs();
        !left
    })
    .await;
    assert!(scene.processes("pg_probackup").is_empty() && scene.processes("agent-3600").is_empty());
    scene.no_mode("slow");
    let _worker = scene.work();
    let task = scene.until(&id, "error").await;
    assert_eq!(task["target"], "incomplete", "{task}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_worker_died_before_anything_was_changed_begins_again() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    scene.mode("slow-validate");
    let mut worker = scene.work();
    let id = scene.accepted("db_instance=main1");
    eventually("it validates", LIMIT, async || scene.path("backup/validating").exists()).await;
    worker.signal(Signal::SIGKILL);
    worker.stop();
    assert_eq!((scene.task(&id)["target"].as_str(), scene.says().await.as_str()), (Some("untouched"), "before"));
    scene.no_mode("slow-validate");
    let _worker = scene.work();
    let task = scene.until(&id, "completed").await;
    let chosen = task["steps"].as_array().unwrap().iter().filter(|step| step["step"] == "choose").count();
    assert_eq!((chosen, scene.says().await.as_str()), (2, "restored"), "{task}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_fails_in_the_middle_tells_why_and_what_is_left() {
    let scene = Scene::with_clusters().await;
    let (_listener, _worker) = (scene.listen(), scene.work());
    scene.mode("fail-restore");
    let task = scene.until(&scene.accepted("db_instance=main1"), "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("pg_probackup restore` ended with exit code 1") && error.contains("Input/output error"), "{error}");
    assert!(error.ends_with("with `incremental` to keep what is there already") && task["target"] == "incomplete", "{error}");
}

/// A listener that died after the job was added, and before it promised anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_promised_is_not_done() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    let tasks = Tasks::new(State::in_file(&scene.path("tasks.db")));
    let id = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let order = Order { db_instance: "main1".to_owned(), db_host: "127.0.0.1".to_owned(), ..Order::default() };
    tasks.insert(id, &order).await.unwrap();
    assert_eq!(scene.ask("status"), "[]");
    let store = bullwork::ops::store::Store::at(&scene.redis.url(), "bull").unwrap();
    let options = bullwork::queue::JobOptions { job_id: Some(id.to_owned()), ..Default::default() };
    store.add_with(bullwork::jobs::named("restore").unwrap(), options, json!({"task": id})).await.unwrap();
    let _worker = scene.work();
    eventually("the worker gives it up", LIMIT, async || scene.ask(&format!("status, id={id}")).contains("it was not accepted"))
        .await;
    assert!(scene.calls("restore").is_empty() && scene.says().await == "before");
    assert!(!tasks.accept(id).await.unwrap(), "it cannot be promised any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stands_still_keeps_its_turn_and_ends_its_tool_when_it_wakes_up() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    scene.mode("slow");
    let sleeper = scene.work();
    let id = scene.accepted("db_instance=main1");
    scene.until_restoring().await;
    sleeper.signal(Signal::SIGSTOP);
    let _next = scene.work();
    // The job's lock runs out, and the next one takes it; but the turn is still the sleeper's.
    eventually("the next one waits for the turn", LIMIT, async || {
        scene.log("worker.log").contains("waiting for another restore to end")
    })
    .await;
    assert_eq!(scene.task(&id)["status"], "in_progress");
    assert!(!scene.processes("pg_probackup").is_empty());
    sleeper.signal(Signal::SIGCONT);
    let task = scene.until(&id, "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("the target is half-restored and stopped"), "{error}");
    eventually("its tool has ended", LIMIT, async || scene.processes("pg_probackup").is_empty()).await;
    assert_eq!(scene.calls("restore").len(), 1, "nobody restored beside it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_store_that_goes_away_in_the_middle_ends_the_restore_and_its_record_is_true() {
    let mut scene = Scene::with_clusters().await;
    let mut state = Cluster::start();
    state.create("state").await;
    scene.environment.push(("STATE_DATABASE_URL".to_owned(), state.url("state")));
    let _listener = scene.listen();
    scene.mode("slow");
    let _worker = scene.work();
    let id = scene.accepted("db_instance=main1");
    scene.until_restoring().await;
    state.kill();
    // Without its turn nobody may restore.
    eventually("the tool has ended", LIMIT, async || scene.processes("pg_probackup").is_empty()).await;
    let answer = scene.ask("db_instance=main1");
    assert!(answer.starts_with("Error: "), "{answer}");
    scene.no_mode("slow");
    state.restart();
    let task = scene.until(&id, "error").await;
    assert_eq!(task["target"], "incomplete", "{task}");
    let again = scene.accepted("db_instance=main1");
    scene.until(&again, "completed").await;
    assert_eq!(scene.says().await, "restored");
}
