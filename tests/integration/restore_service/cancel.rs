//! Cancelling: what ends on both sides, and what is told of the target.

use serde_json::json;

use super::{LIMIT, Scene};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_a_running_restore_ends_it_on_both_sides_and_tells_what_is_left() {
    let scene = Scene::with_clusters().await;
    scene.mode("slow");
    let (_listener, _worker) = (scene.listen(), scene.work());
    let id = scene.accepted("db_instance=main1");
    scene.until_restoring().await;
    eventually("progress is told", LIMIT, async || scene.task(&id)["progress"]["done"].as_u64().is_some_and(|done| done > 0))
        .await;
    assert!(!scene.processes("agent-3600").is_empty(), "there is an agent on the other side");
    assert_eq!(scene.ask(&format!("cancel, id={id}")), format!("Task {id} canceled."));
    let task = scene.until(&id, "canceled").await;
    assert_eq!((&task["canceled"], &task["target"]), (&json!(1), &json!("incomplete")));
    assert!(task["error"].as_str().unwrap().contains("half-restored and stopped"), "{task}");
    for name in ["pg_probackup", "agent-3600"] {
        eventually("nothing of it runs any more", LIMIT, async || scene.processes(name).is_empty()).await;
    }
    assert_eq!(scene.says().await, "does not run");
    assert_eq!(scene.ask(&format!("cancel, id={id}")), format!("Task {id} is already canceled."));

    // What is left is no data directory any more, and a target all the same.
    scene.no_mode("slow");
    let again = scene.accepted("db_instance=main1, incremental");
    scene.until(&again, "completed").await;
    assert_eq!(scene.says().await, "restored");
    assert_eq!(scene.ask(&format!("cancel, id={again}")), format!("Task {again} is already completed."));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_task_is_cancelled_at_once_and_never_runs() {
    let scene = Scene::with_clusters().await;
    let _listener = scene.listen();
    let (first, second) = (scene.accepted("db_instance=main1"), scene.accepted("db_instance=main1"));
    assert_eq!(scene.ask(&format!("cancel, id={first}")), format!("Task {first} canceled."));
    assert_eq!(scene.task(&first)["status"], "canceled");
    let unknown = "0f8fad5b-d9cb-469f-a165-70867728950e";
    assert_eq!(scene.ask(&format!("cancel, id={unknown}")), format!("Task {unknown} not found."));
    assert_eq!(scene.ask(&format!("status, id={unknown}")), format!("Task {unknown} not found."));
    assert_eq!(scene.ask("cancel, id=7"), "Invalid cancel format");
    let _worker = scene.work();
    scene.until(&second, "completed").await;
    assert_eq!(scene.calls("restore").len(), 1);
    assert_eq!(scene.task(&first)["status"], "canceled");
}
