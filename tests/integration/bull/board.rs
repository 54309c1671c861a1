//! npm's bull-board 5 on our queues: its own handlers answer what its pages ask for.

use serde_json::{Value, json};

use super::peer::{Both, QUEUE, SIDES, SOON, Side, consume, stop};
use crate::support::eventually;

/// A request of bull-board's page; its status and body.
async fn ask(both: &Both, method: &str, route: &str, params: Value, more: Value) -> (u64, Value) {
    let args = json!([method, format!("/api/{route}"), params, more["query"], more["body"]]);
    let mut answer = both.bull.queue("board", args).await;
    (answer["status"].as_u64().unwrap_or_default(), answer["body"].take())
}

/// The page of the queue's jobs in `status`.
async fn page(both: &Both, status: &str, number: u32) -> Value {
    let query = json!({"query": {"activeQueue": QUEUE, "status": status, "page": number, "jobsPerPage": 3}});
    let (code, mut body) = ask(both, "get", "queues", json!({}), query).await;
    assert_eq!(code, 200, "{body}");
    body["queues"][0].take()
}

fn ids(page: &Value) -> Vec<&str> {
    page["jobs"].as_array().expect("a list").iter().map(|job| job["id"].as_str().unwrap_or_default()).collect()
}

/// Presses a button: it is answered without an error.
async fn press(both: &Both, method: &str, route: &str, params: Value, body: Value) -> Value {
    let (code, body) = ask(both, method, route, params, json!({"body": body})).await;
    assert!((200..300).contains(&code), "{route}: {code} {body}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_board_shows_our_jobs_of_every_state_with_their_fields_and_logs() {
    let Some(both) = Both::start_beside(&["bull", "@bull-board/api"]).await else { return };
    let worker = consume(&both.ours, 1);
    for n in 0..5 {
        both.add(Side::Ours, json!({"n": n}), json!({"jobId": format!("done {n}")})).await;
    }
    both.add(Side::Ours, json!({"fail": 2, "log": "once", "progress": 30}), json!({"attempts": 2, "jobId": "broken"})).await;
    both.reaches("broken", "failed").await;
    both.add(Side::Ours, json!({"hang": true}), json!({"jobId": "running"})).await;
    both.reaches("running", "active").await;
    both.add(Side::Ours, json!({"deep": {"list": [1]}}), json!({"jobId": "waits"})).await;
    both.add(Side::Ours, json!({}), json!({"jobId": "later", "delay": 600_000})).await;
    for (status, number, expected) in [
        ("completed", 1, vec!["done 4", "done 3", "done 2"]),
        ("completed", 2, vec!["done 1", "done 0"]),
        ("failed", 1, vec!["broken"]),
        ("active", 1, vec!["running"]),
        ("waiting", 1, vec!["waits"]),
        ("delayed", 1, vec!["later"]),
        ("paused", 1, vec![]),
        ("latest", 1, vec!["running", "waits", "done 4", "done 3", "done 2", "broken", "later"]),
    ] {
        let page = page(&both, status, number).await;
        assert_eq!(ids(&page), expected, "{status}");
        assert_eq!(page["counts"], json!({"waiting": 1, "active": 1, "completed": 5, "failed": 1, "delayed": 1, "paused": 0}));
        assert_eq!(page["isPaused"], false);
    }
    let (code, shown) = ask(&both, "get", "queues/:queueName/:jobId", json!({"jobId": "broken"}), json!({})).await;
    let job = &shown["job"];
    assert_eq!(
        (code, &shown["status"], &job["failedReason"], &job["isFailed"]),
        (200, &json!("failed"), &json!("boom 2"), &json!(true))
    );
    // It counts the attempt that comes.
    assert_eq!(
        (&job["attempts"], &job["progress"], job["stacktrace"].as_array().map(Vec::len)),
        (&json!(3), &json!(30), Some(2))
    );
    let ours = both.job("broken").await;
    assert_eq!((&job["finishedOn"], &job["processedOn"]), (&json!(ours.finished_on), &json!(ours.processed_on)));
    let (_, shown) = ask(&both, "get", "queues/:queueName/:jobId", json!({"jobId": "done 1"}), json!({})).await;
    assert_eq!((&shown["job"]["returnValue"], &shown["job"]["isFailed"]), (&json!({"by": "ours"}), &json!(false)));
    let (_, logs) = ask(&both, "get", "queues/:queueName/:jobId/logs", json!({"jobId": "broken"}), json!({})).await;
    assert_eq!(logs, json!(["once", "once"]));
    let (_, stats) = ask(&both, "get", "redis/stats", json!({}), json!({})).await;
    assert_eq!(stats["port"], both.redis.port, "{stats}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bull_board_does_to_our_jobs_is_what_ours_sees() {
    let Some(both) = Both::start_beside(&["bull", "@bull-board/api"]).await else { return };
    press(&both, "put", "queues/:queueName/pause", json!({}), json!({})).await;
    assert!(both.ours.is_paused().await.unwrap());
    let added = json!({"name": "mail", "data": {"to": "Ann"}, "options": {"jobId": "mail", "attempts": 2, "backoff": 50}});
    let answer = press(&both, "post", "queues/:queueName/add", json!({}), added).await;
    assert_eq!(answer["job"]["id"], "mail");
    both.add(Side::Ours, json!({"note": "runs", "old": true}), json!({"jobId": "changed"})).await;
    both.add(Side::Ours, json!({}), json!({"jobId": "unwanted"})).await;
    for id in ["later", "later too", "last"] {
        both.add(Side::Ours, json!({}), json!({"jobId": id, "delay": 600_000})).await;
    }
    let mail = both.job("mail").await;
    assert_eq!((mail.name.as_str(), &mail.data, mail.attempts(), mail.backoff(1)), ("mail", &json!({"to": "Ann"}), 2, 50));
    let changed = json!({"jobData": {"note": "runs", "new": ["ü"]}});
    press(&both, "patch", "queues/:queueName/:jobId/update-data", json!({"jobId": "changed"}), changed).await;
    assert_eq!(both.job("changed").await.data, json!({"note": "runs", "new": ["ü"]}));
    press(&both, "put", "queues/:queueName/:jobId/clean", json!({"jobId": "unwanted"}), json!({})).await;
    assert_eq!(both.ours.job("unwanted").await.unwrap(), None);
    press(&both, "put", "queues/:queueName/:jobId/promote", json!({"jobId": "later"}), json!({})).await;
    assert_eq!((both.state("later").await.as_str(), both.state("last").await.as_str()), ("paused", "delayed"));
    press(&both, "put", "queues/:queueName/promote", json!({}), json!({})).await;
    assert_eq!((both.counts().await.paused, both.counts().await.delayed), (5, 0));
    press(&both, "put", "queues/:queueName/resume", json!({}), json!({})).await;
    assert!(!both.ours.is_paused().await.unwrap());
    let worker = Some(consume(&both.ours, 1));
    for id in ["mail", "changed", "later", "later too", "last"] {
        both.reaches(id, "completed").await;
    }

    for id in ["one", "two", "three"] {
        both.add(Side::Ours, json!({"fail": 1}), json!({"jobId": id})).await;
        both.reaches(id, "failed").await;
    }
    let one = json!({"jobId": "one", "queueStatus": "failed"});
    press(&both, "put", "queues/:queueName/:jobId/retry/:queueStatus", one, json!({})).await;
    both.reaches("one", "completed").await;
    press(&both, "put", "queues/:queueName/retry/:queueStatus", json!({"queueStatus": "failed"}), json!({})).await;
    both.reaches("two", "completed").await;
    both.reaches("three", "completed").await;
    stop(worker).await;

    // It cleans what is older than five seconds.
    let last = both.job("three").await.finished_on.unwrap();
    eventually("all are older", SOON, async || both.ours.clock().now() > last + 5001).await;
    press(&both, "put", "queues/:queueName/clean/:queueStatus", json!({"queueStatus": "completed"}), json!({})).await;
    assert_eq!(both.counts().await.completed, 0);
    both.add(Side::Ours, json!({}), json!({})).await;
    press(&both, "put", "queues/:queueName/empty", json!({}), json!({})).await;
    assert_eq!(both.counts().await.waiting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_board_shows_a_schedules_pending_run_whoever_armed_it() {
    use bullwork::queue::{JobOptions, Repeat};
    for side in SIDES {
        let Some(both) = Both::start_beside(&["bull", "@bull-board/api"]).await else { return };
        let repeat = Repeat::cron("10 5 * * *", Some("Europe/Paris"));
        match side {
            Side::Ours => {
                let slot = repeat.next_slot(None, both.ours.clock().now(), bullwork::cron::next_run).unwrap().unwrap();
                both.ours.arm(&repeat, "nightly", &json!({"n": 1}), &JobOptions::default(), slot, None).await.map(drop).unwrap();
            }
            Side::Bull => {
                let body = json!({
                    "name": "nightly", "data": {"n": 1}, "options": {"repeat": {"cron": "10 5 * * *", "tz": "Europe/Paris"}},
                });
                press(&both, "post", "queues/:queueName/add", json!({}), body).await;
            }
        }
        let shown = page(&both, "delayed", 1).await;
        let job = &shown["jobs"][0];
        let entry = both.ours.schedules().await.unwrap().remove(0);
        // What it recognizes the armed run of a schedule by.
        assert_eq!(
            (&job["opts"]["repeat"]["key"], &job["opts"]["prevMillis"]),
            (&json!(entry.key), &json!(entry.next)),
            "{side:?}"
        );
        assert_eq!((&job["name"], &job["data"], &shown["counts"]["delayed"]), (&json!("nightly"), &json!({"n": 1}), &json!(1)));
        assert_eq!(entry.key, repeat.key("nightly"));
    }
}
