//! A [`Consumer`] whose Redis, or whose way to it, breaks: it goes on by itself when that is over, loses no job, and does
//! not hammer meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{
    Admission, Armed, Consumer, ConsumerOptions, Failure, JobOptions, NewJob, Queue, Renewed, Repeat, State, Taken,
};
use bullwork::redis::Redis;
use serde_json::json;

use crate::support::eventually;
use crate::support::proxy::{Mode, Proxy};
use crate::support::redis::RedisServer;

/// From the end of a fault to the end of the last job.
const RECOVERY: Duration = Duration::from_secs(10);
/// The same when commands were on their way into a black hole: they are given up after 10 s, a blocking move after 15.
const SLOW_RECOVERY: Duration = Duration::from_secs(25);
/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(4);
/// Commands that four lanes, a feeder, a keeper and a maintainer may send in that time to a server that refuses them: the
/// lanes ask twice a second each. A busy loop sends thousands.
const CALM: u64 = 150;

/// A consumer of four lanes that reaches its Redis through a proxy.
struct Faulty {
    server: RedisServer,
    proxy: Proxy,
    /// On a way of its own.
    queue: Queue,
    consumer: Consumer,
    runs: Arc<Mutex<HashMap<String, u32>>>,
    ids: Vec<String>,
}

impl Faulty {
    /// Some of the jobs, of 50 ms each, are done.
    async fn start(jobs: usize) -> Faulty {
        let server = RedisServer::start_durable();
        let proxy = Proxy::start(server.port).await;
        let of = |url: &str| Queue::new(Redis::new(url).unwrap(), "bull", "mails", Clock::System);
        let queue = of(&server.url());
        let new: Vec<NewJob> = (0..jobs).map(|_| NewJob::unnamed(json!({}), JobOptions::default())).collect();
        let ids = queue.add_many(&new).await.unwrap().iter().map(|added| added.id().to_owned()).collect();
        let runs = Arc::new(Mutex::new(HashMap::new()));
        let counting = runs.clone();
        let second = Duration::from_secs(1);
        let options = ConsumerOptions { concurrency: 4, lock: second * 2, stall_check: second, max_stalled: 10 };
        let consumer = Consumer::start(&of(&format!("redis://127.0.0.1:{}", proxy.port)), options, move |job| {
            *counting.lock().unwrap().entry(job.id.clone()).or_insert(0) += 1;
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(json!(null))
            }
        });
        let faulty = Faulty { server, proxy, queue, consumer, runs, ids };
        faulty.reaches(5).await;
        faulty
    }

    async fn reaches(&self, completed: u64) {
        eventually("some jobs are done", RECOVERY, async || self.completed().await >= completed).await;
    }

    async fn completed(&self) -> u64 {
        self.queue.counts().await.map_or(0, |counts| counts.completed)
    }

    /// There is still something to do.
    async fn recovers(self, limit: Duration) -> RedisServer {
        assert!(self.completed().await < self.ids.len() as u64, "the fault came too late to matter");
        self.ends(limit).await
    }

    /// All jobs end as completed within `limit`, each ran, and new ones are, now and later.
    async fn ends(self, limit: Duration) -> RedisServer {
        eventually("all jobs are completed", limit, async || self.completed().await == self.ids.len() as u64).await;
        let counts = self.queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.active, counts.failed, counts.delayed), (0, 0, 0, 0), "{counts:?}");
        assert!(self.ids.iter().all(|id| self.runs.lock().unwrap().contains_key(id)), "each job ran");
        let late = JobOptions { delay: 500, ..JobOptions::default() };
        for options in [JobOptions::default(), late] {
            let id = self.queue.add(&NewJob::unnamed(json!({}), options)).await.unwrap().id().to_owned();
            eventually("a new job runs", limit, async || self.runs.lock().unwrap().contains_key(&id)).await;
        }
        self.consumer.stop(RECOVERY).await;
        self.server
    }

    /// Commands that clients sent, refused ones too.
    async fn commands(&self) -> u64 {
        let mut connection = self.server.connection().await;
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
        let number = |rest: &str, name: &str| {
            rest.split(',').find_map(|part| part.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or_default()
        };
        // Not what scripts call.
        let sent = ["evalsha", "eval", "blmove", "ping", "hello", "subscribe", "script|load", "client|setinfo", "client|id"];
        let of = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            sent.contains(&name).then(|| number(rest, "calls=") + number(rest, "rejected_calls="))
        };
        info.lines().filter_map(of).sum()
    }

    /// Waits for the time of a fault, in which few commands are sent.
    async fn stays_calm(&self) {
        // What was on its way comes first.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = self.commands().await;
        tokio::time::sleep(FAULT).await;
        let sent = self.commands().await - before;
        assert!((1..=CALM).contains(&sent), "{sent} commands in {FAULT:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_outlives_a_killed_redis_that_comes_back_with_its_data() {
    let mut faulty = Faulty::start(150).await;
    for completed in [20, 40] {
        faulty.reaches(completed).await;
        faulty.server.kill();
        tokio::time::sleep(Duration::from_secs(1)).await;
        faulty.server.restart();
    }
    faulty.recovers(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_outlives_connections_that_are_cut_again_and_again() {
    let faulty = Faulty::start(400).await;
    for round in 1..=8 {
        faulty.reaches(round * 15).await;
        faulty.proxy.cut_once().await;
    }
    faulty.recovers(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_does_not_hammer_a_redis_that_refuses_connections() {
    let faulty = Faulty::start(100).await;
    faulty.proxy.set(Mode::Cut);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = faulty.proxy.accepted();
    tokio::time::sleep(FAULT).await;
    let tries = faulty.proxy.accepted() - before;
    assert!((1..=40).contains(&tries), "{tries} connections were tried in {FAULT:?}");
    faulty.proxy.set(Mode::Forward);
    faulty.recovers(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_leaves_a_black_hole() {
    let faulty = Faulty::start(100).await;
    let before = faulty.proxy.accepted();
    faulty.proxy.set(Mode::BlackHole);
    tokio::time::sleep(Duration::from_secs(12)).await;
    let tries = faulty.proxy.accepted() - before;
    assert!(tries <= 10, "{tries} connections were tried in 12 s");
    faulty.proxy.set(Mode::Forward);
    faulty.recovers(SLOW_RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_leaves_a_black_hole() {
    let faulty = Faulty::start(5).await;
    faulty.proxy.set(Mode::BlackHole);
    let id = faulty.queue.add(&NewJob::unnamed(json!({}), JobOptions::default())).await.unwrap().id().to_owned();
    // The move that waits on the server gets it, and tells nobody.
    tokio::time::sleep(Duration::from_secs(2)).await;
    faulty.proxy.set(Mode::Forward);
    eventually("the job runs", SLOW_RECOVERY, async || faulty.runs.lock().unwrap().contains_key(&id)).await;
    eventually("it is completed", RECOVERY, async || faulty.completed().await == 6).await;
    faulty.consumer.stop(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_waits_for_a_redis_that_loads_its_data() {
    let mut faulty = Faulty::start(100).await;
    // While it loads, a server looks at its clients after every 1024 commands of the append-only file.
    let mut fill = redis::pipe();
    for n in 0..5000 {
        fill.set(format!("other:{n}"), n).ignore();
    }
    let () = fill.query_async(&mut faulty.server.connection().await).await.unwrap();
    faulty.server.restart_with(&["--key-load-delay", "500"]);
    let mut loading = false;
    eventually("it has loaded", RECOVERY, async || match faulty.queue.counts().await {
        Ok(_) => true,
        Err(error) => {
            loading |= error.to_string().to_lowercase().contains("loading");
            false
        }
    })
    .await;
    assert!(loading, "it said that it loads");
    faulty.recovers(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_stays_calm_before_a_replica_and_goes_on_after_its_promotion() {
    let faulty = Faulty::start(100).await;
    // A port that nobody listens on: the data stays, writes are refused with READONLY.
    faulty.server.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    faulty.stays_calm().await;
    faulty.server.command(&["REPLICAOF", "NO", "ONE"]).await;
    faulty.recovers(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_stays_calm_before_a_redis_without_memory_and_goes_on_after() {
    let faulty = Faulty::start(100).await;
    faulty.server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = faulty.queue.add(&NewJob::unnamed(json!({}), JobOptions::default())).await.unwrap_err().to_string();
    assert!(error.contains("maxmemory"), "{error}");
    // Jobs are completed all the same, since that begins with giving memory back, and the next one is taken with it.
    faulty.stays_calm().await;
    faulty.server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    faulty.ends(RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_sends_its_scripts_again_to_a_redis_that_forgets_them() {
    let faulty = Faulty::start(150).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, mut connection) = (stop.clone(), faulty.server.connection().await);
    let flusher = tokio::spawn(async move {
        while !done.load(Ordering::SeqCst) {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let _server = faulty.recovers(RECOVERY).await;
    stop.store(true, Ordering::SeqCst);
    flusher.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_replies_only_slow_a_consumer_down() {
    let faulty = Faulty::start(40).await;
    faulty.proxy.set(Mode::Slow(Duration::from_millis(200)));
    let runs = faulty.runs.clone();
    faulty.recovers(SLOW_RECOVERY).await;
    assert!(runs.lock().unwrap().values().all(|count| *count == 1), "locks were renewed in time");
}

/// Renewals wrote the lock anew, which is refused without memory: the lock ran out, and the job was run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_three_locks_is_completed_once_by_a_redis_without_memory() {
    let server = RedisServer::start();
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "mails", Clock::System);
    let job = |n: u64| NewJob::unnamed(json!({ "n": n }), JobOptions { attempts: n as u32, ..JobOptions::default() });
    queue.add_many(&[job(1), job(2)]).await.unwrap();
    let (lock, runs) = (Duration::from_secs(1), Arc::new(Mutex::new(HashMap::new())));
    let options = ConsumerOptions { concurrency: 2, lock, stall_check: lock, max_stalled: 10 };
    let counting = runs.clone();
    let consumer = Consumer::start(&queue, options, move |job| {
        *counting.lock().unwrap().entry(job.id.clone()).or_insert(0) += 1;
        async move {
            tokio::time::sleep(lock * 3).await;
            if job.attempts() == 2 && job.attempts_made == 0 { Err(Failure::new("not yet")) } else { Ok(json!("sent")) }
        }
    });
    let active = async || queue.counts().await.unwrap().active == 2;
    eventually("both are run", RECOVERY, active).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let done = |id: &'static str| {
        let queue = queue.clone();
        async move || queue.state(id).await.unwrap() == Some(State::Completed)
    };
    eventually("the first is completed", RECOVERY, done("1")).await;
    // It may be running again: whoever completes the first may take it in the same step.
    let tried = async || queue.job("2").await.unwrap().is_some_and(|job| job.attempts_made >= 1);
    eventually("the second was tried once", RECOVERY, tried).await;
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually("the second is completed", RECOVERY, done("2")).await;
    consumer.stop(RECOVERY).await;
    assert_eq!(*runs.lock().unwrap(), HashMap::from([("1".to_owned(), 1), ("2".to_owned(), 2)]));
    for id in ["1", "2"] {
        assert_eq!(queue.job(id).await.unwrap().unwrap().stalled_counter, 0, "job {id} kept its lock");
    }
}

#[tokio::test]
async fn runs_end_in_every_way_without_memory_and_a_lock_that_ran_out_comes_back() {
    let server = RedisServer::start();
    let queue = Queue::new(Redis::new(&server.url()).unwrap(), "bull", "mails", Clock::System);
    let next = Queue::new(queue.redis().clone(), "bull", "letters", Clock::System);
    let lock = Duration::from_secs(30);
    let job = NewJob::unnamed(json!({}), JobOptions { attempts: 2, ..JobOptions::default() });
    queue.add_many(&vec![job.clone(); 6]).await.unwrap();
    let mut jobs = Vec::new();
    for token in ["a", "b", "c", "d", "e", "f"] {
        let Taken::Job(job) = queue.take(token, lock, Admission::Any).await.unwrap() else { panic!("six wait") };
        jobs.push(job);
    }
    let (tick, every) = (Queue::new(queue.redis().clone(), "bull", "tick", Clock::System), Repeat::every(60_000));
    tick.arm(&every, "tick", &json!({}), &JobOptions::default(), Clock::System.now() - 1, None).await.unwrap();
    let Taken::Job(run) = tick.take("a", lock, Admission::Any).await.unwrap() else { panic!("its time has come") };
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for (job, token) in jobs.iter().zip(["a", "b", "c", "d", "e", "f"]) {
        assert_eq!(queue.renew(&job.id, token, lock).await.unwrap(), Renewed::Held);
    }
    server.command(&["DEL", "bull:mails:1:lock"]).await;
    assert_eq!(queue.renew("1", "a", lock).await.unwrap(), Renewed::Held, "nobody took it meanwhile");
    queue.complete(&jobs[0], "a", &json!(1), None).await.unwrap();
    let completed = queue.complete(&jobs[1], "b", &json!(1), Some((&next, &job))).await.unwrap();
    assert_eq!(next.state(&completed.successor.unwrap()).await.unwrap(), Some(State::Waiting));
    queue.fail(&jobs[2], "c", &Failure { retry: false, ..Failure::new("out of paper") }).await.unwrap();
    queue.hand_back(&jobs[3], "d").await.unwrap();
    queue.snooze(&jobs[4], "e", lock).await.unwrap();
    queue.with_metrics(10).complete(&jobs[5], "f", &json!(1), None).await.unwrap();
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.completed, counts.failed, counts.waiting, counts.delayed, counts.active), (3, 1, 1, 1, 0), "{counts:?}");
    let slot = Clock::System.now() + 60_000;
    assert_eq!(
        tick.next_of(&run, slot).await.unwrap(),
        Armed::Added { id: format!("{}{slot}", &run.id[..run.id.len() - 13]), slot }
    );
    assert!(tick.arm(&every, "other", &json!({}), &JobOptions::default(), slot, None).await.is_err(), "a new one takes memory");
}
