//! Queues in a Redis Cluster: all keys of a prefix with a hash tag are on one node, which is found and followed.

use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Admission, Consumer, ConsumerOptions, Failure, Job, JobOptions, NewJob, Queue, Repeat, State, Taken};
use bullwork::redis::Redis;
use redis::Value;
use serde_json::json;

use crate::support::redis::RedisServer;
use crate::support::redis_group::cluster;
use crate::support::{eventually, free_port};

const SOON: Duration = Duration::from_secs(30);
const LOCK: Duration = Duration::from_secs(30);

fn queue(url: &str, prefix: &str, name: &str) -> Queue {
    Queue::new(Redis::new(url).unwrap(), prefix, name, Clock::System)
}

fn job() -> NewJob {
    NewJob::unnamed(json!({"to": "ann"}), JobOptions::default())
}

async fn add(queue: &Queue, options: JobOptions) -> String {
    queue.add(&NewJob { options, ..job() }).await.unwrap().id().to_owned()
}

async fn take(queue: &Queue, token: &str) -> Job {
    match queue.take(token, LOCK, Admission::Any).await.unwrap() {
        Taken::Job(job) => *job,
        other => panic!("{other:?} instead of a job"),
    }
}

/// Runs everything that a queue can do.
async fn everything_works(queue: &Queue, other: &Queue) {
    queue.add_many(&[job(), job(), job()]).await.unwrap();
    let first = take(queue, "a").await;
    queue.renew(&first.id, "a", LOCK).await.unwrap();
    queue.set_progress(&first.id, &json!(50)).await.unwrap();
    queue.log(&first.id, &["a line".to_owned()]).await.unwrap();
    assert_eq!(queue.logs(&first.id, 0, -1).await.unwrap(), ["a line"]);
    let done = queue.complete(&first, "a", &json!(1), Some((other, &job()))).await.unwrap();
    assert_eq!(other.state(&done.successor.unwrap()).await.unwrap(), Some(State::Waiting), "in another queue");
    let second = take(queue, "b").await;
    queue.request_cancel(&second.id, "ann").await.unwrap();
    queue.fail(&second, "b", &Failure::new("out of paper")).await.unwrap();
    assert_eq!(queue.state(&second.id).await.unwrap(), Some(State::Failed));
    queue.retry(&second.id).await.unwrap();
    let third = take(queue, "c").await;
    let Taken::Job(fourth) = queue.complete_and_take(&third, "c", &json!(1), "d", LOCK).await.unwrap() else {
        panic!("one waits")
    };
    queue.hand_back(&fourth, "d").await.unwrap();
    let fourth = take(queue, "e").await;
    queue.snooze(&fourth, "e", LOCK).await.unwrap();
    queue.promote(&fourth.id).await.unwrap();
    queue.fail(&take(queue, "f").await, "f", &Failure::new("again")).await.unwrap();
    assert_eq!(queue.retry_all_failed().await.unwrap(), 1);
    queue.update_data(&fourth.id, &json!({})).await.unwrap();
    queue.pause().await.unwrap();
    assert!(queue.is_paused().await.unwrap());
    queue.resume().await.unwrap();
    let late = add(queue, JobOptions { delay: 60_000, ..JobOptions::default() }).await;
    let high = add(queue, JobOptions { priority: 1, ..JobOptions::default() }).await;
    assert_eq!(take(queue, "g").await.id, high);
    queue.promote_due().await.unwrap();
    queue.recover_stalled(LOCK, 1).await.unwrap();
    let every = Repeat::every(60_000);
    let slot = every.next_slot(None, Clock::System.now(), bullwork::cron::next_run).unwrap().unwrap();
    queue.arm(&every, "tick", &json!({}), &JobOptions::default(), slot, None).await.unwrap();
    let schedules = queue.schedules().await.unwrap();
    assert_eq!(schedules.len(), 1);
    assert!(queue.remove_schedule(&schedules[0].key).await.unwrap());
    queue.remove(&late).await.unwrap();
    queue.clean(State::Completed, Duration::ZERO, None).await.unwrap();
    assert_eq!(queue.jobs(&[State::Waiting, State::Active], 0, -1, false).await.unwrap().len(), 2);
    queue.empty().await.unwrap();
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.active, counts.delayed), (0, 1, 0), "{counts:?}");
    queue.obliterate(true).await.unwrap();
    other.obliterate(true).await.unwrap();
}

/// A consumer, its events and its blocking connection work.
async fn is_consumed(queue: &Queue) {
    let mut events = queue.events().await.unwrap();
    let consumer = Consumer::start(queue, ConsumerOptions::default(), |_| async { Ok(json!(null)) });
    for _ in 0..3 {
        let id = add(queue, JobOptions::default()).await;
        let heard = async {
            while !matches!(events.next().await, Some(bullwork::queue::Event::Completed { id: done, .. }) if done == id) {}
        };
        tokio::time::timeout(SOON, heard).await.expect("the job is completed");
    }
    consumer.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_works_on_a_node_that_has_all_slots() {
    let nodes = cluster(1).await;
    let url = nodes[0].url();
    everything_works(&queue(&url, "{bull}", "mails"), &queue(&url, "{bull}", "letters")).await;
    is_consumed(&queue(&url, "{bull}", "mails")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_that_has_the_keys_is_found_from_any_other() {
    let nodes = cluster(3).await;
    let gone = format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", free_port(), nodes[0].port);
    for url in nodes.iter().map(RedisServer::url).chain([gone]) {
        let redis = Redis::new(&url).unwrap();
        let [mails, letters] = ["mails", "letters"].map(|name| Queue::new(redis.clone(), "{bull}", name, Clock::System));
        everything_works(&mails, &letters).await;
        is_consumed(&mails).await;
    }
}

#[tokio::test]
async fn a_prefix_without_a_hash_tag_is_refused_with_the_way_out() {
    let nodes = cluster(3).await;
    let queue = queue(&nodes[0].url(), "bull", "mails");
    let error = queue.add(&job()).await.unwrap_err().to_string();
    assert!(error.contains("prefix with a hash tag such as {bull}"), "{error}");
    let numbered = Redis::new(&format!("{}/3", nodes[0].url())).unwrap();
    let error = numbered.connection().await.err().expect("a cluster has one database").to_string();
    assert!(error.contains("a cluster has database 0 only"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_under_load_is_followed_and_no_job_is_lost() {
    let nodes = cluster(3).await;
    let queue = queue(&nodes[0].url(), "{bull}", "mails");
    let all: Vec<NewJob> = (0..300).map(|_| job()).collect();
    queue.add_many(&all).await.unwrap();
    let second = Duration::from_secs(1);
    let options = ConsumerOptions { concurrency: 4, lock: second * 5, stall_check: second, max_stalled: 10 };
    let consumer = Consumer::start(&queue, options, |_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(json!(null))
    });
    eventually("some are done", SOON, async || queue.counts().await.is_ok_and(|counts| counts.completed >= 50)).await;
    move_slot(&nodes, "{bull}").await;
    eventually("all are done", SOON, async || queue.counts().await.is_ok_and(|counts| counts.completed == 300)).await;
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.active, counts.failed, counts.delayed), (0, 0, 0, 0), "{counts:?}");
    consumer.stop(SOON).await;
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Gives the slot of `key` to another node, as `redis-cli --cluster reshard` does.
async fn move_slot(nodes: &[RedisServer], key: &str) {
    let slot = text(&nodes[0].command(&["CLUSTER", "KEYSLOT", key]).await);
    let share = 16384 / nodes.len();
    let owner = (slot.parse::<usize>().unwrap() / share).min(nodes.len() - 1);
    let (from, to) = (&nodes[owner], &nodes[(owner + 1) % nodes.len()]);
    let [from_id, to_id] = [text(&from.command(&["CLUSTER", "MYID"]).await), text(&to.command(&["CLUSTER", "MYID"]).await)];
    to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    let port = to.port.to_string();
    loop {
        let Value::Array(keys) = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "20"]).await else { panic!("a list") };
        if keys.is_empty() {
            break;
        }
        let keys: Vec<String> = keys.iter().map(text).collect();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        from.command(&words.into_iter().chain(keys.iter().map(String::as_str)).collect::<Vec<_>>()).await;
    }
    for node in [to, from] {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_url_is_for_clusters_only() {
    let server = RedisServer::start();
    for hosts in [String::new(), format!(",127.0.0.1:{}", free_port())] {
        let redis = Redis::new(&format!("redis-cluster://127.0.0.1:{}{hosts}", server.port)).unwrap();
        for error in [
            redis.connection().await.err().map(|e| e.to_string()),
            redis.dedicated().await.err().map(|e| e.to_string()),
            redis.subscriber().await.err().map(|e| e.to_string()),
        ] {
            let error = error.unwrap_or_else(|| panic!("{redis:?} was served"));
            assert!(error.contains("it is no cluster: write redis:// instead of redis-cluster://"), "{error}");
        }
    }
    let error = Redis::new("redis-cluster://host/3").expect_err("a cluster has one database").to_string();
    assert!(error.contains("a cluster has database 0 only") && !error.contains("/0"), "{error}");
    Redis::new("redis-cluster://host/0").expect("it has that one");
}
