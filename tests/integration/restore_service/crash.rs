//! Workers and listeners that die.

use bullwork::postgres::Database;
use bullwork::restore::steps::{Step, StepState, Steps};
use bullwork::restore::tasks::{Order, Status, Tasks};
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

/// Kills the worker while `step` is under way, and asks once more after the next worker has told what is left.
async fn killed_during(step: &str, setting: &str, line: &str, told: &str) {
    let mut scene = Scene::with_clusters().await;
    let right = scene.config[setting].clone();
    scene.set(
        setting,
        json!(line.replace("{right}", right.as_str().unwrap()).replace("{log}", &scene.path("log").display().to_string())),
    );
    let listener = scene.listen();
    let mut worker = scene.work();
    let id = scene.accepted("db_instance=main1");
    eventually("the step is under way", LIMIT, async || {
        let last = scene.task(&id)["steps"].as_array().and_then(|steps| steps.last().cloned()).unwrap_or_default();
        last["step"] == step && last["state"] == "begun" && (scene.path("log/at").exists() || step == "wait")
    })
    .await;
    worker.signal(Signal::SIGKILL);
    worker.stop();
    std::fs::write(scene.path("log/go"), "").unwrap();
    drop(listener);
    scene.set(setting, right);
    let _listener = scene.listen();
    let _worker = scene.work();
    let task = scene.until(&id, "error").await;
    let error = task["error"].as_str().unwrap();
    assert!(error.contains(&format!("its worker ended during `{step}`; {told}")), "{error}");
    let again = scene.accepted("db_instance=main1");
    scene.until(&again, "completed").await;
    assert_eq!(scene.says().await, "restored");
}

const HELD: &str = "touch {log}/at; while [ ! -e {log}/go ]; do sleep 0.1; done; {right}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_the_cluster_is_stopped_leaves_its_data() {
    killed_during("stop", "stop_command", HELD, "the target's data are as they were, but its cluster may be stopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_the_cluster_is_started_leaves_a_restored_one() {
    killed_during("start", "start_command", HELD, "the target is restored, but its cluster was not seen running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_it_waits_for_the_cluster_leaves_a_restored_one() {
    killed_during("wait", "start_command", "true", "the target is restored, but its cluster was not seen running").await;
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

/// Regression: the listener went on writing into a file that nobody could find any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_file_that_is_removed_or_replaced_is_told_and_nothing_is_accepted_into_it() {
    let scene = Scene::with_clusters().await;
    let mut listener = scene.listen();
    let id = scene.accepted("db_instance=main1");
    let files = ["tasks.db", "tasks.db-wal", "tasks.db-shm"];
    let rename = |from: &str, to: &str| {
        for file in files {
            let _ = std::fs::rename(scene.path(&format!("{from}{file}")), scene.path(&format!("{to}{file}")));
        }
    };
    rename("", "away-");
    for request in ["status", "db_instance=main1", &format!("cancel, id={id}")] {
        let answer = scene.ask(request);
        assert!(answer.starts_with("Error: ") && answer.contains("tasks.db: it was removed or renamed"), "{request}: {answer}");
    }
    assert!(!scene.path("tasks.db").exists(), "nothing new stands there");
    std::fs::write(scene.path("tasks.db"), "").unwrap();
    let answer = scene.ask("db_instance=main1");
    assert!(answer.contains("it was replaced by another file") && answer.contains("restart this process"), "{answer}");
    assert!(scene.log("Logs/bot.log").contains("it was removed or renamed"), "{}", scene.log("Logs/bot.log"));
    // Put back, it serves on, and so does a process that begins anew.
    rename("away-", "");
    assert_eq!(scene.task(&id)["status"], "queued");
    listener.stop();
    let _listener = scene.listen();
    let _worker = scene.work();
    scene.until(&id, "completed").await;
    assert_eq!(scene.calls("restore").len(), 1, "what was refused was not done");
}

/// Regression: a request that was refused hid what a restore before it had left, so that no further one was let there.
#[tokio::test]
async fn what_a_restore_left_is_remembered_whatever_is_refused_after_it() {
    let (cluster, directory) = (Cluster::start(), tempfile::tempdir().unwrap());
    cluster.create("state").await;
    let database = Database::parse(&cluster.url("state")).unwrap();
    for state in [State::in_file(&directory.path().join("tasks.db")), State::in_database(database)] {
        let tasks = Tasks::new(state);
        let order = Order { db_instance: "main1".to_owned(), db_host: "S-DB1".to_owned(), ..Order::default() };
        let end = async |id: &str, step, how| {
            tasks.insert(id, &order).await.unwrap();
            assert!(tasks.accept(id).await.unwrap() && tasks.begin(id).await.unwrap());
            let mut steps = Steps::default();
            steps.begin(step, tasks.now());
            steps.end(how, tasks.now());
            assert!(tasks.record(id, &steps).await.unwrap());
            assert!(tasks.end(id, Status::InProgress, Status::Error, Some("it failed")).await.unwrap());
        };
        let left = async || tasks.list().await.unwrap().into_iter().map(|task| task.id).collect::<Vec<_>>();
        end("a-broken", Step::Restore, StepState::Failed).await;
        for id in ["b-refused", "c-refused", "d-refused"] {
            end(id, Step::Check, StepState::Failed).await;
        }
        let last = tasks.get("d-refused").await.unwrap().unwrap();
        assert_eq!(tasks.before(&last).await.unwrap().unwrap().id, "a-broken");
        tasks.forget(1).await.unwrap();
        assert_eq!(left().await, ["a-broken", "d-refused"]);
        end("e-whole", Step::Restore, StepState::Done).await;
        tasks.forget(1).await.unwrap();
        assert_eq!(left().await, ["e-whole"]);
    }
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
