//! The worker engine on a real Redis (and PostgreSQL where a target is locked), with kinds of job
//! made for the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::config::{Reader, Setting};
use bullwork::postgres::Database;
use bullwork::queue::{Admission, Counts, NewJob, Queue, State, Taken};
use bullwork::redis::Redis;
use bullwork::worker::{self, Consumed, JobContext, JobKind, Kind, Outcome, RetryPolicy, Timing};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::postgres::Cluster;
use crate::support::redis::RedisServer;

const SOON: Duration = Duration::from_secs(20);

/// What the next runs of a [`Chore`] do; shared with the test.
#[derive(Default)]
struct Script {
    runs: AtomicU32,
    at_once: AtomicU32,
    most_at_once: AtomicU32,
    finished: AtomicU32,
}

/// A kind that does what its payload says.
struct Chore {
    script: Arc<Script>,
    target: Option<Database>,
    limit: Option<Duration>,
    side_by_side: Option<usize>,
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Payload {
    /// Runs until told to stop.
    forever: bool,
    /// Does not even stop then.
    stubborn: bool,
    /// Takes this long.
    ms: u64,
    /// Fails this many times.
    failures: u32,
    panic: bool,
    refuse: bool,
    remembered: u32,
}

#[async_trait::async_trait]
impl JobKind for Chore {
    const NAME: &'static str = "chore";
    const QUEUE: &'static str = "Chore queue";
    const SUMMARY: &'static str = "Do as told";
    const SETTINGS: &'static [&'static Setting] = &[];
    type Payload = Payload;

    fn from_settings(_: &Reader<'_>) -> Self {
        Chore { script: Arc::default(), target: None, limit: None, side_by_side: None }
    }

    fn writes_to(&self) -> Option<&Database> {
        self.target.as_ref()
    }

    fn time_limit(&self) -> Option<Duration> {
        self.limit
    }

    fn side_by_side(&self) -> Option<usize> {
        self.side_by_side
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> anyhow::Result<Outcome> {
        let script = &self.script;
        script.runs.fetch_add(1, Ordering::SeqCst);
        let now = script.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        script.most_at_once.fetch_max(now, Ordering::SeqCst);
        let leaving = scopeguard(script.clone());
        ctx.run.info("the chore begins");
        ctx.run.progress(|p| {
            p.phase = "working".to_owned();
            p.rows = 7;
        });
        let payload = &ctx.payload;
        if payload.failures > payload.remembered {
            ctx.remember(&Payload { remembered: payload.remembered + 1, failures: payload.failures, ..Payload::default() })
                .await?;
            anyhow::bail!("failing for the {}. time", payload.remembered + 1);
        }
        assert!(!payload.panic, "the chore panics");
        if payload.refuse {
            return Ok(Outcome::Refuse("there is nothing to do here, ever".to_owned()));
        }
        if payload.stubborn {
            tokio::time::sleep(Duration::from_secs(600)).await;
        } else if payload.forever {
            ctx.run.unless_stopped(std::future::pending::<()>()).await?;
        }
        tokio::time::sleep(Duration::from_millis(payload.ms)).await;
        drop(leaving);
        script.finished.fetch_add(1, Ordering::SeqCst);
        Ok(Outcome::Done(json!({"attempt": ctx.attempt})))
    }
}

/// Counts a run out when it ends, however it ends.
fn scopeguard(script: Arc<Script>) -> impl Drop {
    struct Leaving(Arc<Script>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        }
    }
    Leaving(script)
}

const POLICY: RetryPolicy = RetryPolicy { attempts: 3, base: Duration::from_millis(50), keep_completed: 100, keep_failed: 100 };

pub(crate) struct Worker {
    quiet: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    fn start(bench: &Bench, then: Option<Queue>) -> Worker {
        Worker::timed(bench, then, Duration::from_secs(4))
    }

    fn timed(bench: &Bench, then: Option<Queue>, lock: Duration) -> Worker {
        Worker::at(bench, &bench.redis.url(), then, lock)
    }

    /// One that reaches its Redis at `url`.
    pub(crate) fn at(bench: &Bench, url: &str, then: Option<Queue>, lock: Duration) -> Worker {
        let quiet = CancellationToken::new();
        let kind = Kind::of(Chore {
            script: bench.script.clone(),
            target: bench.target.clone(),
            limit: bench.limit,
            side_by_side: bench.side_by_side,
        });
        // A handle of its own, as another process would have.
        let queue = Queue::new(Redis::new(url).unwrap(), "bull", Chore::QUEUE, Clock::System);
        let timing = Timing { lock, stall_check: lock / 2 };
        let task = tokio::spawn(worker::serve(vec![Consumed { kind, queue, then }], POLICY, timing, quiet.clone()));
        Worker { quiet, task }
    }

    pub(crate) async fn stop(self) {
        self.quiet.cancel();
        tokio::time::timeout(Duration::from_secs(25), self.task).await.expect("the worker stops in time").unwrap();
    }
}

pub(crate) struct Bench {
    pub(crate) redis: RedisServer,
    pub(crate) queue: Queue,
    script: Arc<Script>,
    target: Option<Database>,
    limit: Option<Duration>,
    side_by_side: Option<usize>,
}

impl Bench {
    pub(crate) fn start() -> Bench {
        let redis = RedisServer::start_durable();
        let queue = Queue::new(Redis::new(&redis.url()).unwrap(), "bull", Chore::QUEUE, Clock::System);
        Bench { redis, queue, script: Arc::default(), target: None, limit: None, side_by_side: None }
    }

    pub(crate) async fn add(&self, data: Value) -> String {
        self.queue.add(&NewJob::unnamed(data, POLICY.options())).await.unwrap().id().to_owned()
    }

    pub(crate) async fn counts(&self) -> Counts {
        self.queue.counts().await.unwrap()
    }

    async fn reaches(&self, id: &str, state: State) {
        eventually(&format!("job {id} is {state}"), SOON, async || self.queue.state(id).await.ok().flatten() == Some(state))
            .await;
    }

    fn runs(&self) -> u32 {
        self.script.runs.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_leaves_its_log_and_progress_and_adds_its_successor() {
    let bench = Bench::start();
    let then = Queue::new(Redis::new(&bench.redis.url()).unwrap(), "bull", "Next queue", Clock::System);
    let worker = Worker::start(&bench, Some(then.clone()));
    let id = bench.add(json!({})).await;
    bench.reaches(&id, State::Completed).await;

    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert_eq!(job.return_value, Some(json!({"attempt": 1})));
    assert_eq!(job.progress.unwrap()["phase"], "working");
    let logs = bench.queue.logs(&id, 0, -1).await.unwrap();
    assert!(logs.iter().any(|line| line.ends_with("the chore begins")), "{logs:?}");
    let next = then.jobs(&[State::Waiting], 0, 10, true).await.unwrap();
    assert_eq!(next.len(), 1);
    assert!(worker::chain::follows(&next[0], Chore::QUEUE, &id));
    assert_eq!((next[0].attempts(), &next[0].data), (3, &json!({})));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_wants_it_runs_several_jobs_side_by_side_in_each_process_and_no_more() {
    let mut bench = Bench::start();
    bench.side_by_side = Some(3);
    let worker = Worker::start(&bench, None);
    let mut ids = Vec::new();
    for _ in 0..9 {
        ids.push(bench.add(json!({"ms": 400})).await);
    }
    for id in &ids {
        bench.reaches(id, State::Completed).await;
    }
    let script = &bench.script;
    assert_eq!((script.most_at_once.load(Ordering::SeqCst), script.runs.load(Ordering::SeqCst)), (3, 9));
    let begun = std::time::Instant::now();
    let second = Worker::start(&bench, None);
    for _ in 0..6 {
        bench.add(json!({"ms": 1500})).await;
    }
    eventually("both workers take as many", SOON, async || script.most_at_once.load(Ordering::SeqCst) == 6).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "no lane waits for the next look: {:?}", begun.elapsed());
    worker.stop().await;
    second.stop().await;
    assert_eq!(script.finished.load(Ordering::SeqCst), 15, "a stop waits for every lane");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_progress_are_in_redis_while_the_job_runs() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"forever": true})).await;
    eventually("log and progress show", SOON, async || {
        let logs = bench.queue.logs(&id, 0, -1).await.unwrap();
        let progress = bench.queue.job(&id).await.unwrap().and_then(|job| job.progress);
        !logs.is_empty() && progress.is_some_and(|p| p["rows"] == 7)
    })
    .await;
    assert_eq!(bench.queue.state(&id).await.unwrap(), Some(State::Active));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_runs_again_after_its_back_off_and_remembers_what_it_did() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"failures": 2})).await;
    bench.reaches(&id, State::Completed).await;
    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert_eq!((job.attempts_made, bench.runs()), (2, 3));
    assert_eq!(job.failed_reason.as_deref(), Some("failing for the 2. time"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_tries_left_fails_with_its_reason_and_adds_no_successor() {
    let bench = Bench::start();
    let then = Queue::new(Redis::new(&bench.redis.url()).unwrap(), "bull", "Next queue", Clock::System);
    let worker = Worker::start(&bench, Some(then.clone()));
    let id = bench.add(json!({"failures": 9})).await;
    bench.reaches(&id, State::Failed).await;
    assert_eq!(bench.runs(), 3);
    assert_eq!(then.counts().await.unwrap(), Counts::default());
    let logs = bench.queue.logs(&id, 0, -1).await.unwrap();
    assert!(logs.iter().any(|line| line.contains("failed: failing for the 3. time")), "{logs:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_job_fails_at_once_and_a_panic_ends_the_job_not_the_worker() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let refused = bench.add(json!({"refuse": true})).await;
    bench.reaches(&refused, State::Failed).await;
    assert_eq!(bench.runs(), 1);
    let panicking = bench.add(json!({"panic": true})).await;
    bench.reaches(&panicking, State::Failed).await;
    let reason = bench.queue.job(&panicking).await.unwrap().unwrap().failed_reason.unwrap();
    assert!(reason.contains("the chore panics"), "{reason}");
    let wrong = bench.add(json!({"ms": "many"})).await;
    bench.reaches(&wrong, State::Failed).await;
    let reason = bench.queue.job(&wrong).await.unwrap().unwrap().failed_reason.unwrap();
    assert!(reason.contains("not what a `chore` job takes"), "{reason}");
    let fine = bench.add(json!({})).await;
    bench.reaches(&fine, State::Completed).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_jobs_beyond_the_kept_number_are_removed() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let policy = RetryPolicy { keep_completed: 2, keep_failed: 1, ..POLICY };
    let mut last = String::new();
    for data in [json!({}), json!({"refuse": true}), json!({}), json!({"refuse": true}), json!({})] {
        last = bench.queue.add(&NewJob::unnamed(data, policy.options())).await.unwrap().id().to_owned();
    }
    bench.reaches(&last, State::Completed).await;
    let counts = bench.counts().await;
    assert_eq!((counts.completed, counts.failed), (2, 1));
    assert!(bench.queue.job("1").await.unwrap().is_none() && bench.queue.job("2").await.unwrap().is_none());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_leaves_the_first_ones_living_job_alone() {
    let bench = Bench::start();
    let first = Worker::timed(&bench, None, Duration::from_secs(2));
    let id = bench.add(json!({"ms": 5000})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    // Two stall checks and more pass while the job lives.
    let second = Worker::timed(&bench, None, Duration::from_secs(2));
    bench.reaches(&id, State::Completed).await;
    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert_eq!((bench.runs(), job.attempts_made, job.stalled_counter), (1, 0, 0));
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_run_one_job_of_a_queue_at_a_time() {
    let bench = Bench::start();
    let workers = [Worker::start(&bench, None), Worker::start(&bench, None), Worker::start(&bench, None)];
    for _ in 0..30 {
        bench.add(json!({"ms": 15})).await;
    }
    eventually("all jobs are completed", SOON, async || bench.counts().await.completed == 30).await;
    assert_eq!(bench.script.most_at_once.load(Ordering::SeqCst), 1);
    assert_eq!(bench.runs(), 30);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_job_is_handed_back_with_its_attempt() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"forever": true})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    worker.stop().await;
    assert_eq!(bench.queue.state(&id).await.unwrap(), Some(State::Waiting));
    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert_eq!((job.attempts_made, job.stalled_counter), (0, 0));
    // The next worker takes it at once: no lock is left.
    let next = Worker::start(&bench, None);
    eventually("the job runs again", SOON, async || bench.runs() == 2).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_stop_is_dropped_and_its_job_handed_back_in_time() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"stubborn": true})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    worker.stop().await;
    assert_eq!(bench.queue.state(&id).await.unwrap(), Some(State::Waiting));
    assert_eq!(bench.script.at_once.load(Ordering::SeqCst), 0, "the handler was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_dead_worker_runs_again_once_its_lock_ran_out() {
    let bench = Bench::start();
    let id = bench.add(json!({})).await;
    // Taken as a worker does that dies at once.
    let taken = bench.queue.take("a-dead-worker", Duration::from_secs(1), Admission::Sequential).await.unwrap();
    assert!(matches!(taken, Taken::Job(_)));
    let worker = Worker::timed(&bench, None, Duration::from_secs(2));
    bench.reaches(&id, State::Completed).await;
    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert_eq!((job.attempts_made, job.stalled_counter), (0, 1), "a crash is no attempt");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_worker_each_time_fails_at_the_poison_limit() {
    let bench = Bench::start();
    let id = bench.add(json!({})).await;
    let mut deaths = 0;
    eventually("the job counts as poison", Duration::from_secs(40), async || {
        if let Ok(Taken::Job(_)) = bench.queue.take("dying", Duration::from_millis(40), Admission::Sequential).await {
            deaths += 1;
        }
        let _ = bench.queue.recover_stalled(Duration::from_millis(30), 5).await;
        bench.queue.state(&id).await.unwrap() == Some(State::Failed)
    })
    .await;
    assert_eq!(deaths, 6);
    let reason = bench.queue.job(&id).await.unwrap().unwrap().failed_reason.unwrap();
    assert_eq!(reason, "job stalled more than allowable limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_lock_was_taken_over_stops_and_settles_nothing() {
    let bench = Bench::start();
    let worker = Worker::timed(&bench, None, Duration::from_secs(2));
    let id = bench.add(json!({"forever": true})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    let mut redis = bench.redis.connection().await;
    redis::cmd("SET").arg(format!("bull:Chore queue:{id}:lock")).arg("another-run").query_async::<()>(&mut redis).await.unwrap();
    eventually("the run has stopped", SOON, async || bench.script.at_once.load(Ordering::SeqCst) == 0).await;
    assert_eq!(bench.queue.state(&id).await.unwrap(), Some(State::Active), "the job is the other run's");
    let lock: String = redis::cmd("GET").arg(format!("bull:Chore queue:{id}:lock")).query_async(&mut redis).await.unwrap();
    assert_eq!(lock, "another-run");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_can_be_cancelled() {
    let bench = Bench::start();
    let worker = Worker::timed(&bench, None, Duration::from_secs(2));
    let id = bench.add(json!({"forever": true})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    bench.queue.request_cancel(&id, "the night shift").await.unwrap();
    bench.reaches(&id, State::Failed).await;
    let job = bench.queue.job(&id).await.unwrap().unwrap();
    assert!(job.failed_reason.unwrap().starts_with("cancelled by the night shift"));
    assert_eq!(bench.runs(), 1, "a cancelled job is not tried again");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_time_limit_fails_with_that_reason() {
    let mut bench = Bench::start();
    bench.limit = Some(Duration::from_millis(200));
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"forever": true})).await;
    bench.reaches(&id, State::Failed).await;
    let reason = bench.queue.job(&id).await.unwrap().unwrap().failed_reason.unwrap();
    assert!(reason.contains("not finished within its time limit"), "{reason}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_gives_no_job_until_it_is_resumed() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    bench.queue.pause().await.unwrap();
    let id = bench.add(json!({})).await;
    // A job of another queue state would have run by now: wait for the worker's next look.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.queue.state(&id).await.unwrap(), Some(State::Paused));
    bench.queue.resume().await.unwrap();
    bench.reaches(&id, State::Completed).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_a_redis_restart_and_settles_afterwards() {
    let mut bench = Bench::start();
    let worker = Worker::timed(&bench, None, Duration::from_secs(2));
    let id = bench.add(json!({"ms": 5000})).await;
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    bench.redis.kill();
    // Longer than the lock lives: nobody else could take the job either.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    bench.redis.restart();
    eventually("the job is completed", Duration::from_secs(30), async || {
        bench.queue.state(&id).await.is_ok_and(|state| state == Some(State::Completed))
    })
    .await;
    let again = bench.add(json!({})).await;
    bench.reaches(&again, State::Completed).await;
    assert_eq!(bench.script.most_at_once.load(Ordering::SeqCst), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_write_one_target_exclude_each_other_and_a_lost_target_fails_the_run() {
    let mut bench = Bench::start();
    let cluster = Cluster::start();
    let client = cluster.create("warehouse").await;
    bench.target = Some(Database::parse(&cluster.url("warehouse")).unwrap());
    client.batch_execute("select pg_advisory_lock(x'62756c6c'::int, 1)").await.unwrap();
    let worker = Worker::start(&bench, None);
    let id = bench.add(json!({"forever": true})).await;
    eventually("the job tells that it waits", SOON, async || {
        bench.queue.logs(&id, 0, -1).await.unwrap().iter().any(|line| line.contains("waiting for the target"))
    })
    .await;
    assert_eq!(bench.runs(), 0);
    client.batch_execute("select pg_advisory_unlock_all()").await.unwrap();
    eventually("the job runs", SOON, async || bench.runs() == 1).await;
    client
        .batch_execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'bullwork: target lock'")
        .await
        .unwrap();
    eventually("the run failed and will be tried again", SOON, async || {
        let job = bench.queue.job(&id).await.unwrap().unwrap();
        job.attempts_made >= 1 && job.failed_reason.is_some_and(|r| r.contains("locks the target ended"))
    })
    .await;
    worker.stop().await;
}

/// Regression: a reader that had left its transaction open made a full copy stand still without a word.
#[tokio::test]
async fn a_run_tells_whose_session_it_waits_for_on_the_target() {
    let cluster = Cluster::start();
    let reader = cluster.create("warehouse").await;
    reader.batch_execute("set application_name = 'a dashboard'; create table t ()").await.unwrap();
    reader.batch_execute("begin; select from t").await.unwrap();
    let target = bullwork::postgres::Database::parse(&cluster.url("warehouse")).unwrap();
    let (run, lines) = crate::support::lines::Lines::of_run(CancellationToken::new());
    let lock = bullwork::worker::target_lock::TargetLock::acquire(&target, &run).await.unwrap();
    let ours = target.connect("full replication").await.unwrap();
    let dropping = tokio::spawn(async move { ours.batch_execute("drop table t").await });
    eventually("the wait is told", Duration::from_secs(20), async || lines.holds("waiting for a lock on the target")).await;
    assert!(lines.holds("of owner, \"a dashboard\", idle in transaction, in a transaction for"), "{:?}", lines.messages());
    reader.batch_execute("commit").await.unwrap();
    dropping.await.unwrap().unwrap();
    drop(lock);
    // The lock is given back though the watch shared its session.
    let again = bullwork::worker::target_lock::TargetLock::acquire(&target, &run);
    assert!(tokio::time::timeout(Duration::from_secs(5), again).await.unwrap().is_ok());
}

/// It takes without blocking, so it has no connection that is named for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_listed_while_it_serves_its_queue() {
    let bench = Bench::start();
    let worker = Worker::start(&bench, None);
    let listed = async || bench.queue.workers().await.unwrap().len();
    eventually("it is listed", SOON, async || listed().await == 1).await;
    let id = bench.add(json!({})).await;
    bench.reaches(&id, State::Completed).await;
    assert_eq!(listed().await, 1);
    worker.stop().await;
    eventually("it is not listed any more", SOON, async || listed().await == 0).await;
}
