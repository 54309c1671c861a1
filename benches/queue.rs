//! What benches/bull.js does with npm's Bull, done by ours: `queue_bench REDIS_URL QUEUE MODE [NUMBER]...`. Prints one JSON line.
//!
//! Two modes more: `paced`, the producer of both sides' `pickup`, and `large`, what a long line costs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use bullwork::clock::Clock;
use bullwork::queue::{Admission, Consumer, ConsumerOptions, JobOptions, NewJob, Queue, State, Taken};
use bullwork::redis::Redis;
use futures_util::StreamExt;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use tokio::sync::Notify;

fn job(n: usize) -> NewJob {
    NewJob::unnamed(json!({"userId": n, "kind": "welcome", "at": 1_795_175_398_596_u64}), JobOptions::default())
}

/// Seconds of the clock that never jumps and is the same for every process.
fn monotonic() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("every system has it");
    now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9
}

/// Processor seconds of this process.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("every system tells");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Value> {
    let (begun, used) = (Instant::now(), cpu());
    work.await?;
    Ok(json!({"seconds": begun.elapsed().as_secs_f64(), "cpu": cpu() - used}))
}

fn megabytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0 / f64::from(1 << 20)
}

async fn pipelined(queue: &Queue, count: usize, flight: usize) -> anyhow::Result<()> {
    let adds = futures_util::stream::iter(0..count).map(|n| async move { queue.add(&job(n)).await });
    let mut adds = adds.buffer_unordered(flight);
    while let Some(added) = adds.next().await {
        added?;
    }
    Ok(())
}

async fn bulk(queue: &Queue, count: usize, size: usize) -> anyhow::Result<()> {
    for from in (0..count).step_by(size) {
        let jobs: Vec<NewJob> = (from..count.min(from + size)).map(job).collect();
        queue.add_many(&jobs).await?;
    }
    Ok(())
}

async fn process(queue: &Queue, count: usize, concurrency: usize) -> anyhow::Result<()> {
    let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, told) = (done.clone(), all.clone());
    let options = ConsumerOptions { concurrency, ..ConsumerOptions::default() };
    let consumer = Consumer::start(queue, options, move |_| {
        if counted.fetch_add(1, Ordering::Relaxed) + 1 == count {
            told.notify_one();
        }
        async { Ok(Value::Null) }
    });
    all.notified().await;
    consumer.stop(Duration::from_secs(10)).await;
    Ok(())
}

async fn pickup(queue: &Queue, count: usize) -> anyhow::Result<Value> {
    let (waits, all) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let (kept, told) = (waits.clone(), all.clone());
    let consumer = Consumer::start(queue, ConsumerOptions::default(), move |job| {
        let wait = (monotonic() - job.data["at"].as_f64().unwrap_or(0.0)) * 1e3;
        let mut waits = kept.lock().expect("no panics");
        waits.push(wait);
        if waits.len() == count {
            told.notify_one();
        }
        async { Ok(Value::Null) }
    });
    println!("{}", json!({"ready": true}));
    all.notified().await;
    consumer.stop(Duration::from_secs(10)).await;
    let mut waits = waits.lock().expect("no panics").clone();
    waits.sort_by(f64::total_cmp);
    Ok(json!({"p50": waits[count / 2], "p99": waits[count * 99 / 100]}))
}

async fn idle(queue: &Queue, seconds: usize) -> anyhow::Result<Value> {
    let consumer = Consumer::start(queue, ConsumerOptions::default(), |_| async { Ok(Value::Null) });
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{}", json!({"ready": true}));
    let mut used = timed(async {
        tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
        Ok(())
    })
    .await?;
    used["megabytes"] = json!(megabytes());
    consumer.stop(Duration::from_secs(10)).await;
    Ok(used)
}

/// Microseconds of each operation on a line of `length`.
async fn cost_at(queue: &Queue, length: usize) -> anyhow::Result<Value> {
    const TIMES: usize = 200;
    bulk(queue, length, 1000).await?;
    let lock = Duration::from_secs(30);
    let mut costs = serde_json::Map::new();
    let micros = |begun: Instant| json!((begun.elapsed().as_secs_f64() * 1e6 / TIMES as f64).round());
    let begun = Instant::now();
    for n in 0..TIMES {
        queue.add(&job(n)).await?;
    }
    costs.insert("add".into(), micros(begun));
    let begun = Instant::now();
    for _ in 0..TIMES {
        if let Taken::Job(job) = queue.take("bench", lock, Admission::Any).await? {
            queue.complete(&job, "bench", &Value::Null, None).await?;
        }
    }
    costs.insert("take and complete".into(), micros(begun));
    let begun = Instant::now();
    for _ in 0..TIMES {
        queue.counts().await?;
    }
    costs.insert("counts".into(), micros(begun));
    let begun = Instant::now();
    for _ in 0..TIMES {
        queue.jobs(&[State::Waiting], 0, 99, true).await?;
    }
    costs.insert("page of 100".into(), micros(begun));
    let begun = Instant::now();
    for n in 0..TIMES {
        let urgent = JobOptions { priority: 1 + n as u32 % 3, ..JobOptions::default() };
        queue.add(&NewJob::unnamed(json!({}), urgent)).await?;
    }
    costs.insert("add with priority".into(), micros(begun));
    queue.obliterate(true).await?;
    Ok(Value::Object(costs))
}

// One thread, as node has: what wakes other threads up is not the queue's cost.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, name, mode, numbers @ ..] = &arguments[..] else { anyhow::bail!("queue_bench REDIS_URL QUEUE MODE [NUMBER]...") };
    let number =
        |at: usize| numbers.get(at).and_then(|n| n.parse::<usize>().ok()).with_context(|| format!("{mode} needs more numbers"));
    let queue = Queue::new(Redis::new(url)?, "bull", name, Clock::System);
    queue.counts().await?;
    let answer = match mode.as_str() {
        "one_by_one" => {
            let count = number(0)?;
            timed(pipelined(&queue, count, 1)).await?
        }
        "pipelined" => timed(pipelined(&queue, number(0)?, number(1)?)).await?,
        "bulk" => timed(bulk(&queue, number(0)?, number(1)?)).await?,
        "process" => timed(process(&queue, number(0)?, number(1)?)).await?,
        "pickup" => pickup(&queue, number(0)?).await?,
        "idle" => idle(&queue, number(0)?).await?,
        "paced" => {
            for _ in 0..number(0)? {
                tokio::time::sleep(Duration::from_millis(20)).await;
                queue.add(&NewJob::unnamed(json!({"at": monotonic()}), JobOptions::default())).await?;
            }
            json!({})
        }
        "large" => json!({"1000": cost_at(&queue, 1000).await?, "1000000": cost_at(&queue, 1_000_000).await?}),
        other => anyhow::bail!("unknown mode {other}"),
    };
    println!("{answer}");
    Ok(())
}
