//! Workers and listeners that die.

use nix::sys::signal::Signal;
use serde_json::json;

use super::{LIMIT, Scene};
use crate::support::eventually;

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
