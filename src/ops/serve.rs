//! What `background`, `worker` and `scheduler` run, and `run KIND`.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::store::Store;
use crate::config::Reader;
use crate::jobs;
use crate::process::Program;
use crate::schedule::{self, Declared};
use crate::worker::run::Stopped;
use crate::worker::target_lock::TargetLock;
use crate::worker::{self, Consumed, Declaration, Frame, Kind, Outcome, RetryPolicy, Run, RunSink, Timing};

/// Version of the client tools that a PaaS fetches.
pub static PG_CLIENT_VERSION: crate::config::Setting = crate::config::Setting::new(
    "PG_CLIENT_VERSION",
    "Major version of the PostgreSQL client tools that `dbclient-fetcher` fetches at start when NODE_ENV is `production`.",
)
.default("15");

/// What a process consumes and schedules, read and checked.
pub struct Service {
    store: Store,
    kinds: Vec<Kind>,
    policy: RetryPolicy,
    timing: Timing,
    fetch_client: Option<String>,
}

/// Which parts a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Workers and schedules.
    Both,
    /// Workers only.
    Workers,
    /// Schedules only.
    Scheduler,
}

impl Service {
    /// Reads all settings of `declarations`; every mistake is noted in `reader`.
    pub fn from_settings(declarations: &[&'static Declaration], reader: &Reader<'_>) -> Option<Self> {
        let production = reader.text(&crate::config::NODE_ENV) == "production";
        let version = reader.integer(&PG_CLIENT_VERSION, 9..=99);
        Some(Service {
            kinds: jobs::configure(declarations, reader),
            policy: RetryPolicy::from_settings(reader),
            timing: Timing::from_settings(reader),
            fetch_client: production.then(|| version.to_string()),
            store: Store::from_settings(reader)?,
        })
    }

    /// Runs until `quiet`; returns when nothing is left to settle.
    ///
    /// # Errors
    /// When Redis does not answer at the start: a mistake in its URL should be seen at once.
    pub async fn run(self, parts: Parts, quiet: CancellationToken) -> anyhow::Result<()> {
        self.store.check().await?;
        if parts != Parts::Scheduler
            && let Some(version) = &self.fetch_client
        {
            fetch_client_tools(version).await;
        }
        let names: Vec<&str> = self.kinds.iter().map(|kind| kind.name).collect();
        match parts {
            Parts::Both => tracing::info!("scheduler and workers started for {}", names.join(", ")),
            Parts::Workers => tracing::info!("workers started for {}", names.join(", ")),
            Parts::Scheduler => tracing::info!("scheduler started for {}", names.join(", ")),
        }
        let schedules = async {
            if parts != Parts::Workers {
                schedule::keep(self.declared(), self.policy, quiet.clone()).await;
            }
        };
        let workers = async {
            if parts != Parts::Scheduler {
                worker::serve(self.consumed(), self.policy, self.timing, quiet.clone()).await;
            }
        };
        tokio::join!(schedules, workers);
        tracing::info!("stopped");
        Ok(())
    }

    fn declared(&self) -> Vec<Declared> {
        self.kinds.iter().map(|kind| Declared { queue: self.store.queue(kind.queue), schedule: kind.schedule() }).collect()
    }

    fn consumed(&self) -> Vec<Consumed> {
        self.kinds
            .iter()
            .map(|kind| Consumed {
                kind: kind.clone(),
                queue: self.store.queue(kind.queue),
                then: kind.then.and_then(jobs::named).map(|then| self.store.queue(then.queue)),
            })
            .collect()
    }
}

/// Has the platform's tool fetch client programs of `version`; without the tool there is nothing to
/// do, and a failure shows again, with the way out, when `pg_dump` is looked for.
async fn fetch_client_tools(version: &str) {
    // It downloads, so it has to know the way out, and the platform's image that it is for.
    let needed = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "STACK"];
    match Program::new("dbclient-fetcher").args(["pgsql", version]).inheriting(needed).output().await {
        Ok(_) => tracing::info!("fetched PostgreSQL client tools {version}"),
        Err(crate::process::ProcessError::Missing(_)) => {}
        Err(error) => tracing::warn!("PostgreSQL client tools {version} were not fetched: {error}"),
    }
}

/// Runs `kind` here and now, without Redis, on `data`; returns its result. The target's lock is
/// taken as by a worker.
///
/// # Errors
/// When the step fails or is stopped.
pub async fn run_once(
    kind: &Kind,
    data: Value,
    quiet: CancellationToken,
    sink: Option<Arc<dyn RunSink>>,
) -> anyhow::Result<Value> {
    let mut fields = Map::new();
    fields.insert("job.kind".into(), json!(kind.name));
    // Ends with this call, and when the process is told to stop or the target's lock is lost.
    let stop = quiet.child_token();
    let _ends = stop.clone().drop_guard();
    let run = Run::new(fields, stop.clone(), sink);
    let lock = match kind.writes_to() {
        Some(target) => Some(TargetLock::acquire(&target, &run).await?),
        None => None,
    };
    let lost = lock.as_ref().map(TargetLock::lost);
    if let Some(lost) = lost.clone() {
        let stop = stop.clone();
        tokio::spawn(async move {
            lost.cancelled().await;
            stop.cancel();
        });
    }
    let frame = Frame { attempt: 1, attempts: 1, run, memory: None };
    let result = kind.run(data, frame).await;
    if result.as_ref().is_err_and(anyhow::Error::is::<Stopped>)
        && !quiet.is_cancelled()
        && lost.is_some_and(|lost| lost.is_cancelled())
    {
        anyhow::bail!(
            "running {}: the session that keeps other runs from the target was lost, so the run stopped: its server ended, or cannot be reached",
            kind.name
        );
    }
    match result.with_context(|| format!("running {}", kind.name))? {
        Outcome::Done(value) => Ok(value),
        Outcome::Snooze(wait) => Err(anyhow!("{} asks to be run again in {} s", kind.name, wait.as_secs())),
        Outcome::Refuse(reason) => Err(anyhow!(reason)),
    }
}
