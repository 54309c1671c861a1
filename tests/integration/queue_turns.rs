//! Runs that end at the same time are settled, and followed, in one step: what is told of each must be its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{ActiveJob, Consumer, ConsumerOptions, Debounce, Failure, JobOptions, Keep, NewJob, Queue, State};
use bullwork::redis::Redis;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::eventually;
use crate::support::redis::RedisServer;

const SOON: Duration = Duration::from_secs(20);

/// A consumer whose jobs with `together` in their data all end when they are let go.
struct Together {
    server: RedisServer,
    queue: Queue,
    gate: watch::Sender<bool>,
    runs: Arc<Mutex<HashMap<String, usize>>>,
}

impl Together {
    fn start() -> Together {
        let server = RedisServer::start();
        let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "mails", Clock::System);
        Together { server, queue, gate: watch::channel(false).0, runs: Arc::default() }
    }

    async fn add(&self, data: Value, options: JobOptions) -> String {
        self.queue.add(&NewJob::unnamed(data, options)).await.unwrap().id().to_owned()
    }

    fn consume(&self, options: ConsumerOptions) -> Consumer {
        let (gate, runs) = (self.gate.subscribe(), self.runs.clone());
        Consumer::start(&self.queue, options, move |job| Self::handle(gate.clone(), runs.clone(), job))
    }

    async fn handle(
        mut gate: watch::Receiver<bool>,
        runs: Arc<Mutex<HashMap<String, usize>>>,
        job: ActiveJob,
    ) -> Result<Value, Failure> {
        *runs.lock().unwrap().entry(job.id.clone()).or_default() += 1;
        if job.data["together"] == json!(true) {
            gate.wait_for(|open| *open).await?;
        }
        Ok(json!({"of": job.id}))
    }

    async fn all_run(&self, count: usize) {
        eventually("all are being run", SOON, async || self.runs.lock().unwrap().len() >= count).await;
    }

    async fn state(&self, id: &str) -> Option<State> {
        self.queue.state(id).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_those_that_end_together_ends_in_its_own_way() {
    let world = Together::start();
    let with = |keep: Keep| JobOptions { remove_on_complete: keep, ..JobOptions::default() };
    let debounced = JobOptions { debounce: Some(Debounce { id: "d".into(), ttl: None }), ..JobOptions::default() };
    let together = json!({"together": true});
    let mut ids = Vec::new();
    for options in [JobOptions::default(), with(Keep::None), debounced.clone(), with(Keep::All), with(Keep::All), with(Keep::All)]
    {
        ids.push(world.add(together.clone(), options).await);
    }
    let [kept, gone, held, stolen, deleted, taken_out] = &ids[..] else { unreachable!() };
    let consumer = world.consume(ConsumerOptions { concurrency: 6, ..ConsumerOptions::default() });
    world.all_run(6).await;
    let mut after = Vec::new();
    for _ in 0..5 {
        after.push(world.add(json!({}), JobOptions::default()).await);
    }
    world.server.command(&["SET", &format!("bull:mails:{stolen}:lock"), "another's"]).await;
    world.server.command(&["DEL", &format!("bull:mails:{deleted}")]).await;
    world.server.command(&["LREM", "bull:mails:active", "0", taken_out]).await;
    world.gate.send_replace(true);

    for id in &after {
        eventually("those that waited are done", SOON, async || world.state(id).await == Some(State::Completed)).await;
    }
    for id in [kept, held] {
        eventually("it is done", SOON, async || world.state(id).await == Some(State::Completed)).await;
        let job = world.queue.job(id).await.unwrap().unwrap();
        assert_eq!(job.return_value, Some(json!({"of": id})), "the result is its own");
    }
    eventually("it is gone", SOON, async || world.queue.job(gone).await.unwrap().is_none()).await;
    assert_eq!(world.state(stolen).await, Some(State::Active), "it is another run's");
    for id in [stolen, taken_out] {
        let job = world.queue.job(id).await.unwrap().unwrap();
        assert_eq!((job.return_value, job.finished_on), (None, None), "{id} was not this run's any more");
    }
    assert!(world.queue.job(deleted).await.unwrap().is_none());
    assert_eq!(world.queue.counts().await.unwrap().completed, 7);
    let again = world.add(json!({}), debounced).await;
    assert_ne!(&again, held, "the debounce ended with its job");
    consumer.stop(SOON).await;
    assert!(world.runs.lock().unwrap().values().all(|n| *n == 1), "{:?}", world.runs.lock().unwrap());
    let locks: Vec<String> =
        redis::cmd("KEYS").arg("bull:mails:*:lock").query_async(&mut world.server.connection().await).await.unwrap();
    let others = [format!("bull:mails:{stolen}:lock"), format!("bull:mails:{deleted}:lock")];
    assert!(locks.iter().all(|lock| others.contains(lock)), "{locks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_refused_leaves_all_its_jobs_where_they_were() {
    let world = Together::start();
    let second = Duration::from_secs(1);
    for _ in 0..6 {
        world.add(json!({"together": true}), JobOptions::default()).await;
    }
    let consumer = world.consume(ConsumerOptions { concurrency: 6, lock: second, stall_check: second, max_stalled: 9 });
    world.all_run(6).await;
    world.server.command(&["SET", "bull:mails:completed", "no set"]).await;
    world.gate.send_replace(true);
    let mut connection = world.server.connection().await;
    for _ in 0..20 {
        let places: i64 = redis::cmd("EVAL")
            .arg("return redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2])")
            .arg(&["2", "bull:mails:active", "bull:mails:wait"])
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(places, 6);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.server.command(&["DEL", "bull:mails:completed"]).await;
    eventually("all are done", SOON, async || world.queue.counts().await.unwrap().completed == 6).await;
    consumer.stop(SOON).await;
}

/// Calls of scripts so far.
async fn calls(server: &RedisServer) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut server.connection().await).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_busy_consumer_needs_few_calls() {
    let world = Together::start();
    let jobs: Vec<NewJob> = (0..2000).map(|_| NewJob::unnamed(json!({}), JobOptions::default())).collect();
    world.queue.add_many(&jobs).await.unwrap();
    let before = calls(&world.server).await;
    let consumer = world.consume(ConsumerOptions { concurrency: 50, ..ConsumerOptions::default() });
    eventually("all are done", SOON, async || world.queue.counts().await.unwrap().completed == 2000).await;
    let needed = calls(&world.server).await - before;
    assert!(needed < 1000, "{needed} calls for 2000 jobs");
    consumer.stop(SOON).await;
    assert!(world.runs.lock().unwrap().values().all(|n| *n == 1));
}
