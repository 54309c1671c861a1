//! The real Bull in a process of its own, and ours beside it, told to do the same.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::clock::Clock;
use bullwork::queue::{ActiveJob, Consumer, ConsumerOptions, Counts, Failure, Job, JobOptions, NewJob, Queue, State};
use bullwork::redis::Redis;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Mutex;

use crate::support::redis::RedisServer;
use crate::support::{Server, eventually};

/// The longest that anything here is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// A queue whose name needs care.
pub(crate) const QUEUE: &str = "Jobs: ours & theirs";

/// Where scripts/test installs npm's packages; `None`, and a line that says so, where one that is `wanted` is not.
pub(crate) fn packages(wanted: &[&str]) -> Option<PathBuf> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/bull/node_modules");
    let node =
        Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    let missing: Vec<_> = wanted.iter().filter(|name| !packages.join(name).exists()).collect();
    if node && missing.is_empty() {
        return Some(packages);
    }
    let why = format!("node is there: {node}; of npm's packages are not in {}: {missing:?}", packages.display());
    println!("NOT RUN: {why}; scripts/test installs both where it can");
    assert!(std::env::var_os("BULLWORK_NEEDS_BULL").is_none(), "{why}, though they should be");
    None
}

/// A process with the real Bull in it, which does what it is told (`tests/bull/peer.js`).
pub(crate) struct Peer {
    child: Child,
    line: Mutex<Line>,
}

struct Line {
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    asked: u64,
}

impl Peer {
    /// Opens `queue` with Bull's own options.
    pub(crate) fn start(packages: &std::path::Path, redis: &RedisServer, queue: &str, options: &Value) -> Peer {
        let mut child = tokio::process::Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bull/peer.js"))
            .args([&redis.url(), queue, &options.to_string()])
            .env("NODE_PATH", packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs");
        let input = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Peer { child, line: Mutex::new(Line { input, answers, asked: 0 }) }
    }

    async fn ask(&self, mut request: Value) -> Result<Value, String> {
        let mut line = self.line.lock().await;
        line.asked += 1;
        request["id"] = json!(line.asked);
        line.input.write_all(format!("{request}\n").as_bytes()).await.expect("the peer listens");
        let answer = tokio::time::timeout(SOON, line.answers.next_line());
        let answer = answer.await.unwrap_or_else(|_| panic!("no answer to {request}")).expect("UTF-8");
        let mut answer: Value = serde_json::from_str(&answer.expect("the peer lives")).expect("the peer answers JSON");
        assert_eq!(answer["id"], request["id"], "{answer}");
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }

    /// One of its commands, or a method of its queue.
    pub(crate) async fn queue(&self, what: &str, args: Value) -> Value {
        self.ask(json!({"do": what, "args": args})).await.unwrap_or_else(|error| panic!("{what} {args}: {error}"))
    }

    /// The same when it should fail: the error's message.
    pub(crate) async fn refuses(&self, what: &str, args: Value) -> String {
        self.ask(json!({"do": what, "args": args})).await.expect_err("it succeeds")
    }

    /// A method of a job.
    pub(crate) async fn job(&self, id: &str, what: &str, args: Value) -> Value {
        let request = json!({"do": what, "job": id, "args": args});
        self.ask(request).await.unwrap_or_else(|error| panic!("{what} of job {id}: {error}"))
    }

    /// The same when it may fail.
    pub(crate) async fn try_job(&self, id: &str, what: &str) -> Result<Value, String> {
        self.ask(json!({"do": what, "job": id, "args": []})).await
    }

    /// Sends a signal to its process.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| id.try_into().ok()).expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Ends it as a crash does.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it ran");
    }
}

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Bull,
}

/// Producer and worker, and the reverse.
pub(crate) const DIRECTIONS: [(Side, Side); 2] = [(Side::Bull, Side::Ours), (Side::Ours, Side::Bull)];
pub(crate) const SIDES: [Side; 2] = [Side::Ours, Side::Bull];

/// What runs jobs; ours ends with it, Bull's with its process.
pub(crate) type Worker = Option<Consumer>;

/// The same queue from both sides.
pub(crate) struct Both {
    pub(crate) bull: Peer,
    pub(crate) ours: Queue,
    pub(crate) redis: RedisServer,
    pub(crate) packages: PathBuf,
}

/// How long a job is held without a sign of life, and how often those that nobody holds are looked for: less than usual, or
/// the tests would last minutes.
const LOCK: Duration = Duration::from_millis(1500);
const STALL_CHECK: Duration = Duration::from_millis(500);
/// How many workers may die of a job.
const MAX_STALLED: u32 = 10;

/// The same in Bull's words.
pub(crate) fn hasty(max_stalled: u32) -> Value {
    json!({"settings": {
        "lockDuration": LOCK.as_millis() as u64, "stalledInterval": STALL_CHECK.as_millis() as u64,
        "guardInterval": 500, "maxStalledCount": max_stalled,
    }})
}

pub(crate) fn our_queue(redis: &RedisServer, name: &str) -> Queue {
    Queue::new(Redis::new(&redis.url()).unwrap(), "bull", name, Clock::System)
}

/// What tells the test below that it is to run jobs: the server's address and how many side by side.
const WORKER: &str = "BULLWORK_TEST_WORKER";

/// A worker of ours in a process of its own, for being killed.
pub(crate) fn our_process(redis: &RedisServer, concurrency: usize) -> Server {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    command
        .args(["--exact", "bull::peer::our_worker", "--ignored", "--nocapture"])
        .env(WORKER, format!("{} {concurrency}", redis.port))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Server::start(command, Signal::SIGKILL)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by other tests as a process of its own"]
async fn our_worker() {
    let Ok(told) = std::env::var(WORKER) else { return };
    let (port, concurrency) = told.split_once(' ').expect("two words");
    let queue = Queue::new(Redis::new(&format!("redis://127.0.0.1:{port}")).unwrap(), "bull", QUEUE, Clock::System);
    let _worker = consume(&queue, concurrency.parse().unwrap());
    std::future::pending::<()>().await;
}

/// Runs jobs as the peer does: their data say what is to be done.
pub(crate) fn consume(queue: &Queue, concurrency: usize) -> Consumer {
    let redis = queue.redis().clone();
    let options = ConsumerOptions { concurrency, lock: LOCK, stall_check: STALL_CHECK, max_stalled: MAX_STALLED };
    Consumer::start(queue, options, move |job| work(redis.clone(), job))
}

async fn work(redis: Redis, job: ActiveJob) -> Result<Value, Failure> {
    let told = &job.data;
    if let Some(progress) = told.get("progress") {
        job.progress(progress).await?;
    }
    if let Some(line) = told.get("log").and_then(Value::as_str) {
        job.log(line).await?;
    }
    if let Some(note) = told.get("note").and_then(Value::as_str) {
        let mut pipe = redis::pipe();
        pipe.atomic().rpush(format!("{note}:order"), &job.id).hincr(note, &job.id, 1);
        let _: () = pipe.query_async(&mut redis.connection().await?).await?;
    }
    if let Some(ms) = told.get("ms").and_then(Value::as_u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    if told.get("hang").is_some_and(|hang| *hang == json!(true)) {
        std::future::pending::<()>().await;
    }
    if told.get("fail").and_then(Value::as_u64).unwrap_or(0) > u64::from(job.attempts_made) {
        let reason = format!("boom {}", job.attempts_made + 1);
        return Err(Failure { stacktrace: format!("Error: {reason}\n    at ours"), ..Failure::new(reason) });
    }
    Ok(json!({"by": "ours"}))
}

impl Both {
    /// Nothing where the packages are not installed.
    pub(crate) async fn start() -> Option<Both> {
        Both::start_beside(&["bull"]).await
    }

    /// The same where a test needs more of npm's packages.
    pub(crate) async fn start_beside(wanted: &[&str]) -> Option<Both> {
        let packages = packages(wanted)?;
        let redis = RedisServer::start();
        let bull = Peer::start(&packages, &redis, QUEUE, &hasty(MAX_STALLED));
        bull.queue("isReady", json!([])).await;
        Some(Both { ours: our_queue(&redis, QUEUE), bull, redis, packages })
    }

    /// Another Bull on the same queue.
    pub(crate) fn another_bull(&self) -> Peer {
        Peer::start(&self.packages, &self.redis, QUEUE, &hasty(MAX_STALLED))
    }

    /// Adds an unnamed job with options in Bull's words; its id.
    pub(crate) async fn add(&self, by: Side, data: Value, options: Value) -> String {
        match by {
            Side::Ours => {
                let options = JobOptions::from_json(&options);
                self.ours.add(&NewJob::unnamed(data, options)).await.unwrap().id().to_owned()
            }
            Side::Bull => id_of(&self.bull.queue("add", json!([data, options])).await),
        }
    }

    /// Begins to run jobs.
    pub(crate) async fn work(&self, by: Side, concurrency: usize) -> Worker {
        match by {
            Side::Ours => Some(consume(&self.ours, concurrency)),
            Side::Bull => {
                self.bull.queue("work", json!([concurrency])).await;
                None
            }
        }
    }

    /// Where both say a job is.
    pub(crate) async fn state(&self, id: &str) -> String {
        let ours = self.ours.state(id).await.unwrap();
        let bull = self.bull.job(id, "getState", json!([])).await;
        // It may have moved between the two looks.
        if ours.map(State::name) == bull.as_str() { bull.as_str().unwrap_or_default().to_owned() } else { "moving".to_owned() }
    }

    /// Waits until both say that a job is in `state`.
    pub(crate) async fn reaches(&self, id: &str, state: &str) {
        eventually(&format!("job {id} is {state} for both"), SOON, async || self.state(id).await == state).await;
    }

    /// A job as both see it, once they see the same.
    pub(crate) async fn job(&self, id: &str) -> Job {
        let ours = self.ours.job(id).await.unwrap().expect("there is such a job");
        let bull = self.bull.queue("getJob", json!([id])).await;
        assert_eq!(without_nulls(as_bull_shows(&ours)), without_nulls(bull), "job {id}");
        ours
    }

    /// The counts, once both see the same.
    pub(crate) async fn counts(&self) -> Counts {
        let ours = self.ours.counts().await.unwrap();
        let shown = json!({
            "waiting": ours.waiting, "active": ours.active, "completed": ours.completed, "failed": ours.failed,
            "delayed": ours.delayed, "paused": ours.paused,
        });
        assert_eq!(shown, self.bull.queue("getJobCounts", json!([])).await);
        ours
    }

    /// The ids in a list that handlers wrote.
    pub(crate) async fn noted(&self, note: &str) -> Vec<String> {
        redis::Cmd::lrange(format!("{note}:order"), 0, -1).query_async(&mut self.redis.connection().await).await.unwrap()
    }

    /// What Bull's listeners heard so far.
    pub(crate) async fn heard(&self) -> Vec<Value> {
        self.bull.queue("heard", json!([])).await.as_array().cloned().unwrap_or_default()
    }

    /// Waits until Bull's listeners heard `event`, with whatever Bull adds to what was told.
    pub(crate) async fn hears(&self, event: &Value) {
        eventually(&format!("Bull hears {event}"), SOON, async || self.heard().await.iter().any(|one| is(one, event))).await;
    }
}

/// Ends a worker of ours.
pub(crate) async fn stop(worker: Worker) {
    if let Some(consumer) = worker {
        consumer.stop(SOON).await;
    }
}

/// A job's id as Bull shows it: ids that look like numbers may be numbers.
pub(crate) fn id_of(job: &Value) -> String {
    match &job["id"] {
        Value::String(id) => id.clone(),
        other => other.to_string(),
    }
}

/// Our job in the words of Bull's `toJSON`, which leaves out what is undefined.
fn as_bull_shows(job: &Job) -> Value {
    json!({
        "id": job.id, "name": job.name, "data": job.data, "opts": job.opts, "progress": job.progress.clone().unwrap_or(json!(0)),
        "delay": job.delay, "timestamp": job.timestamp, "attemptsMade": job.attempts_made, "failedReason": job.failed_reason,
        "stacktrace": job.stacktrace, "returnvalue": job.return_value, "debounceId": job.opts["debounce"].get("id"),
        "finishedOn": job.finished_on, "processedOn": job.processed_on,
    })
}

/// Whether a listener was called with `event`, and maybe more.
pub(crate) fn is(heard: &Value, event: &Value) -> bool {
    heard.as_array().zip(event.as_array()).is_some_and(|(heard, event)| heard.starts_with(event))
}

/// Without its members that are null: they mean the same as none.
fn without_nulls(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, member| !member.is_null());
    }
    value
}
