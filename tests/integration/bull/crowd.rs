//! Workers of both sides on one queue, killed again and again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bullwork::queue::{JobOptions, NewJob};
use redis::AsyncCommands;
use serde_json::{Value, json};

use super::peer::{Both, Peer, QUEUE, our_process};
use crate::support::{Server, eventually};

const JOBS: usize = 1200;
const BATCH: usize = 100;
/// Of each worker.
const CONCURRENCY: usize = 5;
/// Of each side.
const KILLS: usize = 4;

/// A few ms each; some fail at first, some are delayed, some have a priority or go to the front.
fn job(n: usize) -> (Value, Value) {
    let mut data = json!({"note": "crowd", "ms": 2 + n % 17, "n": n});
    let options = match n % 10 {
        3 => {
            data["fail"] = json!(1);
            json!({"attempts": 3, "backoff": {"type": "fixed", "delay": 40}})
        }
        5 => json!({"delay": 150}),
        7 => json!({"priority": 1 + n % 3}),
        9 => json!({"lifo": true}),
        _ => json!({}),
    };
    (data, options)
}

/// Adds the next jobs, by either side in turn, and keeps how often each has to run at least.
async fn add_batch(both: &Both, from: usize, least: &mut HashMap<String, u64>) {
    let batch: Vec<(Value, Value)> = (from..from + BATCH).map(job).collect();
    let ids: Vec<String> = if (from / BATCH).is_multiple_of(2) {
        let jobs: Vec<NewJob> =
            batch.iter().map(|(data, options)| NewJob::unnamed(data.clone(), JobOptions::from_json(options))).collect();
        both.ours.add_many(&jobs).await.unwrap().iter().map(|added| added.id().to_owned()).collect()
    } else {
        let jobs: Vec<Value> = batch.iter().map(|(data, options)| json!({"data": data, "opts": options})).collect();
        both.bull.queue("addBulk", json!([jobs])).await.as_array().unwrap().iter().map(super::peer::id_of).collect()
    };
    for (id, (data, _)) in ids.into_iter().zip(batch) {
        least.insert(id, 1 + data["fail"].as_u64().unwrap_or(0));
    }
}

async fn start_bull(both: &Both) -> Peer {
    let peer = both.another_bull();
    peer.queue("work", json!([CONCURRENCY])).await;
    peer
}

fn start_ours(both: &Both) -> Server {
    our_process(&both.redis, CONCURRENCY)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_workers_of_both_sides_killed_again_and_again_every_job_is_done_and_none_is_left_behind() {
    let Some(both) = Both::start().await else { return };
    let mut redis = both.redis.connection().await;
    let mut least = HashMap::new();
    let began = Instant::now();
    add_batch(&both, 0, &mut least).await;
    let (mut bull, mut ours) = (start_bull(&both).await, start_ours(&both));
    // Jobs come as others are done; after each few batches one side loses its worker in the middle of its jobs.
    for round in 1..JOBS / BATCH {
        add_batch(&both, round * BATCH, &mut least).await;
        let wanted = round * BATCH / 2;
        let mut other = both.redis.connection().await;
        eventually("the work goes on", Duration::from_secs(20), async || {
            let done: usize = other.zcard(format!("bull:{QUEUE}:completed")).await.unwrap();
            done >= wanted
        })
        .await;
        if round <= 2 * KILLS {
            if round % 2 == 1 {
                ours.stop();
                ours = start_ours(&both);
            } else {
                bull.kill().await;
                bull = start_bull(&both).await;
            }
        }
    }
    assert_eq!(least.len(), JOBS);
    eventually("all are completed", Duration::from_secs(40), async || both.ours.counts().await.unwrap().completed == JOBS as u64)
        .await;
    println!("{JOBS} jobs and {} kills took {:?}", 2 * KILLS, began.elapsed());

    let counts = both.counts().await;
    let elsewhere = counts.waiting + counts.active + counts.failed + counts.delayed + counts.paused;
    assert_eq!((counts.completed, elsewhere), (JOBS as u64, 0), "{counts:?}");
    let runs: HashMap<String, u64> = redis.hgetall("crowd").await.unwrap();
    let missing: Vec<_> = least.iter().filter(|(id, least)| runs.get(*id).is_none_or(|runs| runs < least)).collect();
    assert!(missing.is_empty(), "completed, but not run often enough: {missing:?}");
    let more: u64 = runs.values().sum::<u64>() - least.values().sum::<u64>();
    assert!((1..=(2 * KILLS * CONCURRENCY) as u64).contains(&more), "{more} runs were broken off by {} kills", 2 * KILLS);
    let completed: Vec<String> = redis.zrange(format!("bull:{QUEUE}:completed"), 0, -1).await.unwrap();
    assert!(completed.iter().all(|id| least.contains_key(id)));
    let done = both.ours.jobs(&[bullwork::queue::State::Completed], 0, -1, true).await.unwrap();
    let by = |side: &str| done.iter().filter(|job| job.return_value == Some(json!({"by": side}))).count();
    assert!(by("ours") > JOBS / 10 && by("bull") > JOBS / 10, "ours did {}, Bull {}", by("ours"), by("bull"));
    assert_eq!(by("ours") + by("bull"), JOBS);
    // Besides the jobs there is nothing but the queue's own keys: no lock, no list, no priority.
    eventually("nothing is left to look after", Duration::from_secs(10), async || {
        let left: bool = redis.exists(format!("bull:{QUEUE}:stalled")).await.unwrap();
        !left
    })
    .await;
    let keys: Vec<String> = redis.keys("bull:*").await.unwrap();
    let rest: Vec<_> = keys
        .iter()
        .filter_map(|key| key.strip_prefix(&format!("bull:{QUEUE}:")))
        .filter(|key| !least.contains_key(*key) && !["id", "completed", "stalled-check"].contains(key))
        .collect();
    assert!(rest.is_empty(), "{rest:?}");
    drop((bull, ours));
}
