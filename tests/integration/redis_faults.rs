//! A worker whose Redis, or whose way to it, breaks: it goes on by itself when that is over, loses no job,
//! and does not hammer meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bullwork::queue::State;
use serde_json::json;

use crate::support::eventually;
use crate::support::proxy::{Mode, Proxy};
use crate::worker::{Bench, Worker};

/// From the end of the fault to the last job's end. A command that was on its way when the fault
/// began is given up after 10 s.
const RECOVERY: Duration = Duration::from_secs(40);

/// A worker that reaches its Redis through a proxy.
async fn start(jobs: usize) -> (Bench, Proxy, Worker, Vec<String>) {
    let bench = Bench::start();
    let proxy = Proxy::start(bench.redis.port).await;
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(bench.add(json!({"ms": 150})).await);
    }
    let worker = Worker::at(&bench, &format!("redis://127.0.0.1:{}", proxy.port), None, Duration::from_secs(4));
    (bench, proxy, worker, ids)
}

/// All jobs end as completed, each in one place only.
async fn all_complete(bench: &Bench, ids: &[String]) {
    let count = ids.len() as u64;
    eventually("all jobs are completed", RECOVERY, async || bench.counts().await.completed == count).await;
    let counts = bench.counts().await;
    assert_eq!((counts.waiting, counts.active, counts.failed, counts.delayed), (0, 0, 0, 0), "{counts:?}");
    for id in ids {
        assert_eq!(bench.queue.state(id).await.unwrap(), Some(State::Completed), "job {id}");
    }
}

async fn command(bench: &Bench, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let _: redis::Value =
        command.query_async(&mut bench.redis.connection().await).await.unwrap_or_else(|e| panic!("{words:?}: {e}"));
}

async fn some_are_done(bench: &Bench, count: u64) {
    eventually("some jobs are completed", RECOVERY, async || bench.counts().await.completed >= count).await;
}

#[tokio::test]
async fn connections_cut_again_and_again_lose_no_job() {
    let (bench, proxy, worker, ids) = start(15).await;
    for done in 1..=5 {
        some_are_done(&bench, done).await;
        proxy.cut_once().await;
    }
    all_complete(&bench, &ids).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_redis_that_refuses_connections_is_not_hammered_and_is_found_again() {
    let (bench, proxy, worker, ids) = start(5).await;
    some_are_done(&bench, 1).await;
    proxy.set(Mode::Cut);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = proxy.accepted();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let tries = proxy.accepted() - before;
    assert!((1..=60).contains(&tries), "{tries} connections were tried in 6 s");
    proxy.set(Mode::Forward);
    all_complete(&bench, &ids).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_black_hole_is_noticed_and_left() {
    let (bench, proxy, worker, ids) = start(6).await;
    some_are_done(&bench, 1).await;
    proxy.set(Mode::BlackHole);
    tokio::time::sleep(Duration::from_secs(8)).await;
    proxy.set(Mode::Forward);
    all_complete(&bench, &ids).await;
    worker.stop().await;
}

#[tokio::test]
async fn slow_replies_only_slow_it_down() {
    let (bench, proxy, worker, ids) = start(5).await;
    proxy.set(Mode::Slow(Duration::from_millis(250)));
    all_complete(&bench, &ids).await;
    worker.stop().await;
    for id in &ids {
        assert_eq!(bench.queue.job(id).await.unwrap().unwrap().stalled_counter, 0, "its lock was renewed in time");
    }
}

#[tokio::test]
async fn scripts_flushed_all_the_time_are_sent_again() {
    let (bench, _proxy, worker, ids) = start(8).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, mut connection) = (stop.clone(), bench.redis.connection().await);
    let flusher = tokio::spawn(async move {
        while !done.load(Ordering::SeqCst) {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    all_complete(&bench, &ids).await;
    stop.store(true, Ordering::SeqCst);
    flusher.await.unwrap();
    worker.stop().await;
}

#[tokio::test]
async fn a_redis_that_became_a_replica_is_served_again_after_its_promotion() {
    let (bench, _proxy, worker, ids) = start(6).await;
    some_are_done(&bench, 1).await;
    // A port that nobody listens on: the data stays, writes are refused with READONLY.
    command(&bench, &["REPLICAOF", "127.0.0.1", "1"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let during = bench.counts().await;
    assert!(during.completed < ids.len() as u64, "{during:?}");
    command(&bench, &["REPLICAOF", "NO", "ONE"]).await;
    all_complete(&bench, &ids).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_redis_without_memory_loses_no_job() {
    let (bench, _proxy, worker, ids) = start(6).await;
    some_are_done(&bench, 1).await;
    command(&bench, &["CONFIG", "SET", "maxmemory", "1"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    command(&bench, &["CONFIG", "SET", "maxmemory", "0"]).await;
    all_complete(&bench, &ids).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_redis_that_loads_its_data_for_seconds_is_waited_for() {
    let (mut bench, _proxy, worker, ids) = start(8).await;
    some_are_done(&bench, 1).await;
    // While it loads, a server looks at its clients after every 1024 commands of the append-only file.
    let mut fill = redis::pipe();
    for n in 0..5000 {
        fill.set(format!("other:{n}"), n).ignore();
    }
    let () = fill.query_async(&mut bench.redis.connection().await).await.unwrap();
    bench.redis.restart_with(&["--key-load-delay", "1000"]);
    eventually("it says that it loads", RECOVERY, async || {
        bench.queue.counts().await.is_err_and(|error| error.to_string().to_lowercase().contains("loading"))
    })
    .await;
    eventually("it has loaded", RECOVERY, async || bench.queue.counts().await.is_ok()).await;
    all_complete(&bench, &ids).await;
    worker.stop().await;
}
