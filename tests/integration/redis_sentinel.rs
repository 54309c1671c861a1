//! A consumer whose Redis is found through sentinels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{Consumer, ConsumerOptions, JobOptions, NewJob, Queue};
use bullwork::redis::Redis;
use redis::Value;
use serde_json::json;

use crate::support::proxy::Proxy;
use crate::support::redis_group::Watched;
use crate::support::{eventually, free_port};

/// Sentinels need a second to miss the primary, and some to agree.
const FAILOVER: Duration = Duration::from_secs(40);

/// The jobs of a consumer, and how often each ran.
struct Load {
    queue: Queue,
    consumer: Consumer,
    runs: Arc<Mutex<HashMap<String, u32>>>,
    ids: Vec<String>,
    sentinels: Proxy,
}

impl Load {
    /// A consumer that reaches the first sentinel through a proxy, and is busy. Its jobs are on the replica as well.
    async fn start(watched: &Watched, jobs: usize) -> Load {
        let sentinels = Proxy::start(watched.sentinels[0]).await;
        let others = watched.sentinels[1..].iter().map(|port| format!(",127.0.0.1:{port}")).collect::<String>();
        let url = format!("redis-sentinel://127.0.0.1:{}{others}/mymaster/2", sentinels.port);
        let queue = Queue::new(Redis::new(&url).unwrap(), "bull", "mails", Clock::System);
        let new: Vec<NewJob> = (0..jobs).map(|_| NewJob::unnamed(json!({}), JobOptions::default())).collect();
        let ids = queue.add_many(&new).await.unwrap().iter().map(|added| added.id().to_owned()).collect();
        let replicated = watched.primary.command(&["WAIT", "1", "5000"]).await;
        assert_eq!(replicated, Value::Int(1), "Redis replicates later than it answers");
        let runs = Arc::new(Mutex::new(HashMap::new()));
        let counting = runs.clone();
        let lock = Duration::from_secs(3);
        let options = ConsumerOptions { concurrency: 4, lock, stall_check: Duration::from_secs(1), max_stalled: 10 };
        let consumer = Consumer::start(&queue, options, move |job| {
            *counting.lock().unwrap().entry(job.id.clone()).or_insert(0) += 1;
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(json!(null))
            }
        });
        let load = Load { queue, consumer, runs, ids, sentinels };
        eventually("some jobs are done", FAILOVER, async || load.completed().await >= 50).await;
        load
    }

    async fn completed(&self) -> u64 {
        self.queue.counts().await.map_or(0, |counts| counts.completed)
    }

    /// Everything is done, nothing is left, and few questions were asked.
    async fn end(self) {
        let count = self.ids.len() as u64;
        eventually("all jobs are completed", FAILOVER, async || self.completed().await == count).await;
        let counts = self.queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.active, counts.failed, counts.delayed), (0, 0, 0, 0), "{counts:?}");
        assert!(self.ids.iter().all(|id| self.runs.lock().unwrap().contains_key(id)), "each job ran");
        let questions = self.sentinels.accepted();
        assert!((2..=150).contains(&questions), "the sentinel was asked {questions} times");
        self.consumer.stop(FAILOVER).await;
    }
}

fn is_master(role: &Value) -> bool {
    matches!(role, Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"master".to_vec())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_replaced_and_no_job_is_lost() {
    let mut watched = Watched::start(None).await;
    let load = Load::start(&watched, 400).await;
    watched.primary.kill();
    load.end().await;
    assert!(is_master(&watched.replica.command(&["ROLE"]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_failover_is_followed_while_the_old_primary_lives() {
    let watched = Watched::start(None).await;
    let load = Load::start(&watched, 400).await;
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", watched.sentinels[1])).unwrap();
    let mut sentinel = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("SENTINEL").arg("FAILOVER").arg("mymaster").query_async(&mut sentinel).await.unwrap();
    load.end().await;
    assert!(is_master(&watched.replica.command(&["ROLE"]).await));
    // It ends all its connections when it changes its role.
    let role = async || -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(watched.primary.url())?;
        redis::cmd("ROLE").query_async(&mut client.get_multiplexed_async_connection().await?).await
    };
    eventually("the old one is a replica", FAILOVER, async || role().await.is_ok_and(|role| !is_master(&role))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_asked_in_turn_with_their_own_password_and_what_is_wrong_is_named() {
    let watched = Watched::start(Some("sentinel-word")).await;
    let (gone, live) = (free_port(), watched.sentinels[0]);
    let open = async |rest: &str| {
        let redis = Redis::new(&format!("redis-sentinel://127.0.0.1:{gone},127.0.0.1:{live}{rest}")).unwrap();
        let said = redis.connection().await.map(drop).map_err(|error| error.to_string());
        assert!(!format!("{said:?}").contains("-word"), "{said:?}");
        said
    };
    open("/mymaster?sentinel-password=sentinel-word").await.unwrap();
    let error = open("/mymaster").await.unwrap_err();
    assert!(error.contains(&format!("sentinel 127.0.0.1:{gone}:")) && error.contains("?sentinel-user="), "{error}");
    let error = open("/mymaster?sentinel-password=wrong-word").await.unwrap_err();
    assert!(error.contains("sentinels have a login of their own"), "{error}");
    let error = open("/other?sentinel-password=sentinel-word").await.unwrap_err();
    assert!(error.contains("it knows no master `other`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_that_names_a_replica_is_not_believed() {
    let watched = Watched::start(None).await;
    let stale = redis::Client::open(format!("redis://127.0.0.1:{}", watched.sentinels[0])).unwrap();
    let mut sentinel = stale.get_multiplexed_async_connection().await.unwrap();
    for words in [vec!["REMOVE", "mymaster"], vec!["MONITOR", "mymaster", "127.0.0.1", &watched.replica.port.to_string(), "9"]] {
        let _: () = redis::cmd("SENTINEL").arg(words).query_async(&mut sentinel).await.unwrap();
    }
    let [stale, right, ..] = watched.sentinels[..] else { panic!("there are three") };
    let alone = Redis::new(&format!("redis-sentinel://127.0.0.1:{stale}/mymaster")).unwrap();
    let error = alone.connection().await.err().expect("only a replica is named").to_string();
    assert!(error.contains("it is a replica"), "{error}");
    let both = Redis::new(&format!("redis-sentinel://127.0.0.1:{stale},127.0.0.1:{right}/mymaster")).unwrap();
    let mut connection = both.connection().await.unwrap();
    let _: () = redis::cmd("SET").arg("a").arg(1).query_async(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_became_a_replica_is_left_although_its_connections_live() {
    let watched = Watched::start(None).await;
    let redis = Redis::new(&format!("redis-sentinel://127.0.0.1:{}/mymaster", watched.sentinels[0])).unwrap();
    let write = async || {
        let mut connection = redis.connection().await.unwrap();
        redis::cmd("SET").arg("a").arg(1).query_async::<()>(&mut connection).await
    };
    write().await.unwrap();
    // Sentinels would close the connections of the old one: the roles are exchanged by hand.
    let port = watched.replica.port.to_string();
    for sentinel in &watched.sentinels {
        let client = redis::Client::open(format!("redis://127.0.0.1:{sentinel}")).unwrap();
        let mut sentinel = client.get_multiplexed_async_connection().await.unwrap();
        for words in [vec!["REMOVE", "mymaster"], vec!["MONITOR", "mymaster", "127.0.0.1", &port, "9"]] {
            let _: () = redis::cmd("SENTINEL").arg(words).query_async(&mut sentinel).await.unwrap();
        }
    }
    watched.replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    watched.primary.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let error = write().await.unwrap_err();
    assert_eq!(error.code(), Some("READONLY"));
    write().await.expect("the sentinel was asked again");
}
