//! A whole deployment for a test: Redis, production, warehouse, learning-content API, webhook
//! receiver, and `bullwork` processes of their own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bullwork::clock::Clock;
use bullwork::queue::{Queue, State};
use bullwork::redis::Redis;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::eventually;
use crate::support::postgres::Cluster;
use crate::support::redis::RedisServer;

pub const QUEUES: [&str; 4] =
    ["Replication queue", "Incremental replication queue", "Learning Content replication queue", "Notification queue"];

const MODES: &str = r#"{"answers":"incremental","knowledge-elements":"incremental","AuditTrail":"none"}"#;
pub const LOCK: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_secs(60);

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(file)
}

/// The learning-content API and the webhook receiver.
pub struct Services {
    server: MockServer,
    calls_before: Mutex<usize>,
}

impl Services {
    async fn start() -> Services {
        let server = MockServer::start().await;
        let body = std::fs::read(data("lcms/airtable.json")).unwrap();
        Mock::given(method("GET"))
            .and(path("/databases/airtable"))
            .respond_with(ResponseTemplate::new(200).set_body_raw(body, "application/json"))
            .mount(&server)
            .await;
        Mock::given(method("POST")).and(path("/hook")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
        Services { server, calls_before: Mutex::new(0) }
    }

    fn calls(&self) -> usize {
        let requests =
            futures_util::future::FutureExt::now_or_never(self.server.received_requests()).flatten().unwrap_or_default();
        requests.iter().filter(|request| request.url.path() == "/hook").count()
    }

    /// Webhook calls since the start or [`Services::forget`].
    pub fn notified(&self) -> usize {
        self.calls() - *self.calls_before.lock().unwrap()
    }

    pub fn forget(&self) {
        *self.calls_before.lock().unwrap() = self.calls();
    }
}

pub struct Night {
    pub redis: RedisServer,
    cluster: Cluster,
    pub source: Client,
    pub target: Client,
    pub lcms_and_hooks: Services,
    directory: tempfile::TempDir,
}

impl Night {
    /// The demo's production and the warehouse as an older night left it.
    pub async fn start() -> Night {
        let redis = RedisServer::start_durable();
        let cluster = Cluster::start();
        let source = cluster.create("production").await;
        cluster.load("production", &data("source/schema.sql"));
        cluster.load("production", &data("source/seed.sql"));
        let target = cluster.create("warehouse").await;
        cluster.load("warehouse", &data("target/day0.sql"));
        Night { redis, cluster, source, target, lcms_and_hooks: Services::start().await, directory: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bullwork"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SOURCE_DATABASE_URL", self.cluster.url("production"))
            .env("TARGET_DATABASE_URL", self.cluster.url("warehouse"))
            .env("REDIS_URL", self.redis.url())
            .env("BACKUP_MODE", MODES)
            .env("LCMS_API_URL", self.lcms_and_hooks.server.uri())
            .env("LCMS_API_KEY", "the-learning-key")
            .env("NOTIFICATIONS", format!(r#"[{{"url":"{}/hook"}}]"#, self.lcms_and_hooks.server.uri()))
            .env("EXPONENTIAL_RETRY_DELAY", "100")
            // Far away, so that no scheduled run mixes with the test's own.
            .env("SCHEDULE", "0 3 1 1 *")
            .env("JOB_LOCK_SECONDS", LOCK.as_secs().to_string())
            .env("LOG_FORMAT", "text")
            .stdin(Stdio::null());
        command
    }

    pub fn background(&self) -> Worker {
        Worker::start(self.command(&["background"]))
    }

    pub fn workers(&self, kinds: &[&str]) -> Worker {
        Worker::start(self.command(&[&["worker"], kinds].concat()))
    }

    /// Enqueues a job by the command line; returns its id.
    pub async fn restart(&self, kind: &str) -> String {
        let output = self.command(&[&format!("restart:{kind}")]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn queue(&self, name: &str) -> Queue {
        Queue::new(Redis::new(&self.redis.url()).unwrap(), "bull", name, Clock::System)
    }

    /// Waits until nothing waits, runs or is about to be tried again, in any queue of the chain.
    pub async fn ends(&self, worker: &Worker, limit: Duration) {
        let scheduled = 1;
        let start = Instant::now();
        let mut quiet_since = None;
        while start.elapsed() < limit {
            let mut busy = 0;
            for name in QUEUES {
                let counts = self.queue(name).counts().await.unwrap();
                let pending = if name == QUEUES[0] { counts.delayed.saturating_sub(scheduled) } else { counts.delayed };
                busy += counts.waiting + counts.active + pending;
            }
            if busy == 0 {
                // Completing adds the successor in one script, so a look at four queues in the chain's
                // order could only miss a job that moves on between the looks: look twice.
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(200) {
                    return;
                }
            } else {
                quiet_since = None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the night did not end within {limit:?}: {}", worker.output());
    }

    pub async fn grow(&self) {
        self.cluster.load("production", &data("source/grow.sql"));
    }

    /// Holds the target's advisory lock until the client is dropped.
    pub async fn hold_target_lock(&self) -> Client {
        let client = self.cluster.client("warehouse").await;
        client.batch_execute("select pg_advisory_lock(x'62756c6c'::int, 1)").await.unwrap();
        client
    }

    /// Stops the copy of one source table in its middle until the client is dropped.
    pub async fn block_copying(&self) -> Client {
        let client = self.cluster.client("warehouse").await;
        // Indexes are built as tables land, so an event trigger that stops the first CREATE INDEX stops
        // the run while some tables are loaded, some are not and keys are missing.
        client
            .batch_execute(
                "create schema brake;
                 create function brake.pull() returns event_trigger language plpgsql as $$
                 begin
                   perform pg_advisory_xact_lock_shared(4711);
                 end $$;
                 create event trigger brake on ddl_command_start when tag in ('CREATE INDEX') execute function brake.pull();
                 select pg_advisory_lock(4711)",
            )
            .await
            .unwrap();
        client
    }

    pub fn crash_databases(&mut self) {
        self.cluster.kill();
    }

    pub async fn restart_databases(&mut self) {
        self.cluster.restart();
        self.source = self.cluster.client("production").await;
        self.target = self.cluster.client("warehouse").await;
    }

    pub async fn copying_is_blocked(&self) {
        eventually("the copy stands at the brake", STEP, async || {
            let waiting: i64 = self
                .target
                .query_one("select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and not granted", &[])
                .await
                .unwrap()
                .get(0);
            waiting > 0
        })
        .await;
    }

    /// Counts a job of the first queue among those whose worker may be dead.
    pub async fn mark_stalled(&self, id: &str) {
        let mut redis = self.redis.connection().await;
        let key = format!("bull:{}:stalled", QUEUES[0]);
        redis::cmd("SADD").arg(key).arg(id).query_async::<()>(&mut redis).await.unwrap();
    }

    pub async fn pause_redis_writes(&self, time: Duration) {
        let mut redis = self.redis.connection().await;
        redis::cmd("CLIENT")
            .arg("PAUSE")
            .arg(time.as_millis().to_string())
            .arg("WRITE")
            .query_async::<()>(&mut redis)
            .await
            .unwrap();
    }

    pub async fn resume_redis_writes(&self) {
        let mut redis = self.redis.connection().await;
        redis::cmd("CLIENT").arg("UNPAUSE").query_async::<()>(&mut redis).await.unwrap();
    }

    /// Every replicated and incremental table holds on the target what it holds on the source.
    pub async fn assert_copied(&self) {
        let tables = self
            .source
            .query(
                "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
                 and c.relname <> 'AuditTrail' order by 1",
                &[],
            )
            .await
            .unwrap();
        assert!(tables.len() > 15);
        // What incremental tables do not follow, by contract: rows changed or deleted afterwards.
        for row in tables {
            let table: String = row.get(0);
            let incremental = matches!(table.as_str(), "answers" | "\"knowledge-elements\"");
            let digest = if incremental {
                format!(
                    "select count(*), md5(coalesce(string_agg(id::text, ',' order by id), '')) from {table} where id not in (11, 22, 33)"
                )
            } else {
                format!("select count(*), md5(coalesce(string_agg(t::text, E'\\n' order by t::text), '')) from {table} t")
            };
            let read = async |client: &Client| {
                let row = client.query_one(&digest, &[]).await.unwrap_or_else(|e| panic!("{table}: {e:?}"));
                (row.get::<_, i64>(0), row.get::<_, String>(1))
            };
            assert_eq!(read(&self.source).await, read(&self.target).await, "{table}");
        }
        let invalid: Option<String> = self
            .target
            .query_one("select string_agg(conname, ', ') from pg_constraint where not convalidated", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(invalid, None, "keys that were waiting for the incremental rows are validated");
        let own: i64 = self.target.query_one("select count(*) from \"warehouse-notes\"", &[]).await.unwrap().get(0);
        let kept: i64 = self.target.query_one("select count(*) from \"AuditTrail\"", &[]).await.unwrap().get(0);
        assert_eq!((own, kept), (2, 3), "the warehouse's own rows");
    }

    pub async fn assert_learning_content(&self) {
        for (table, rows) in [("areas", 2_i64), ("competences", 6), ("challenges", 7), ("tutorials", 3)] {
            let found: i64 = self.target.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0);
            assert_eq!(found, rows, "{table}");
        }
    }

    /// Every job hash stands in exactly one list, and nothing is left locked.
    pub async fn assert_no_job_lost_or_doubled(&self) {
        let mut redis = self.redis.connection().await;
        for name in QUEUES {
            let queue = self.queue(name);
            let mut seen = Vec::new();
            for state in [State::Waiting, State::Paused, State::Active, State::Delayed, State::Completed, State::Failed] {
                seen.extend(queue.jobs(&[state], 0, 1000, true).await.unwrap().into_iter().map(|job| job.id));
            }
            let all = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all, "a job of {name} is in two lists");
            let keys: Vec<String> = redis::cmd("KEYS").arg(format!("bull:{name}:*")).query_async(&mut redis).await.unwrap();
            for key in keys {
                let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await.unwrap();
                let id = key.trim_start_matches(&format!("bull:{name}:")).to_owned();
                if kind == "hash" && id != "meta" {
                    assert!(seen.contains(&id), "job {id} of {name} is in no list");
                }
                assert!(!key.ends_with(":lock"), "{key} is left");
            }
        }
    }

    /// No session of ours is left at either database.
    pub async fn assert_no_session_left(&self) {
        eventually("all sessions have ended", Duration::from_secs(10), async || {
            let left: i64 = self
                .target
                .query_one("select count(*) from pg_stat_activity where application_name like 'bullwork%'", &[])
                .await
                .unwrap()
                .get(0);
            left == 0
        })
        .await;
    }
}

/// A `bullwork` process; killed when dropped.
pub struct Worker {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Worker {
    fn start(mut command: Command) -> Worker {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let output = output.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut all = output.lock().unwrap();
                    all.push_str(&line);
                    all.push('\n');
                }
            });
        }
        Worker { child, output }
    }

    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits for a line that holds `text`.
    pub async fn prints(&self, text: &str) {
        let start = Instant::now();
        while !self.output().contains(text) {
            assert!(start.elapsed() < STEP, "`{text}` was not printed: {}", self.output());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub async fn exits(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < limit, "still running after {limit:?}: {}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Processes whose parent is this one.
    pub fn children(&self) -> Vec<String> {
        let parent = self.child.id().to_string();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(parent.as_str()))
            .collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
