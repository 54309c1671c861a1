//! The verbs of the restore service: asking for a restore, looking, cancelling.
//!
//! A task is accepted when three things have happened, in this order: its row is written, its job is in Redis, the row says
//! `queued`. Who dies before the last has promised nothing, and nothing is done; what was promised survives Redis, for
//! [`RestoreDesk::reconcile`] adds jobs that are missing.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::store::{State, Store};
use crate::config::Reader;
use crate::jobs::restore::{self, RestoreKind};
use crate::queue::JobOptions;
use crate::restore::config::{Config, Refusal};
use crate::restore::service::Service;
use crate::restore::tasks::{Order, Status, Task};
use crate::worker::{Declaration, JobKind as _, RetryPolicy, Run};

/// Longest wait for Redis while somebody waits for an answer.
const REDIS: Duration = Duration::from_secs(8);
/// How long a task may be without promise before it counts as left behind.
const LEFT: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// Longest wait for a tool that lists backups.
const LISTING: Duration = Duration::from_secs(60);
/// How long the answer to a cancel waits for the end of the run.
const ENDING: Duration = Duration::from_secs(8);

/// What somebody asks for, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whose backup.
    pub db_instance: String,
    /// Where to, when it is not where the mapping says.
    pub db_host: Option<String>,
    /// Which one.
    pub backup_id: Option<String>,
    /// Whether what is there is kept.
    pub incremental: bool,
}

/// Why nothing was accepted.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// There is no such target.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something that is needed does not answer.
    #[error("{0}")]
    Unavailable(String),
}

/// What became of a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canceled {
    /// It is cancelled, or about to be.
    Yes,
    /// There is no such task.
    Unknown,
    /// It had ended before.
    Ended(Status),
}

/// Where restores are asked for.
#[derive(Clone, Debug)]
pub struct RestoreDesk {
    service: Service,
    store: Store,
    options: JobOptions,
}

impl RestoreDesk {
    /// Reads everything; nothing where there is no restore service, which is noted as a mistake.
    pub fn from_settings(reader: &Reader<'_>) -> Option<Self> {
        let config = Config::from_settings(reader, restore::archives(reader));
        let store = Store::from_settings(reader);
        // A restore that failed is asked for again by whoever knows why it failed.
        let options = JobOptions { attempts: 1, backoff: None, ..RetryPolicy::from_settings(reader).options() };
        Some(RestoreDesk { service: Service::new(config?), store: store?, options })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.service.config()
    }

    fn kind() -> &'static Declaration {
        crate::jobs::named(RestoreKind::NAME).expect("the kind is in the list")
    }

    /// Fails with what to do when Redis or the state store does not answer.
    ///
    /// # Errors
    /// When one does not.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.store.check().await?;
        self.config().tasks.ready().await.context("opening the state store")?;
        Ok(())
    }

    async fn add(&self, id: &str) -> anyhow::Result<()> {
        let options = JobOptions { job_id: Some(id.to_owned()), ..self.options.clone() };
        let adding = self.store.add_with(Self::kind(), options, json!({"task": id}));
        tokio::time::timeout(REDIS, adding).await.map_err(|_| anyhow!("Redis did not answer within {} s", REDIS.as_secs()))??;
        Ok(())
    }

    /// Accepts a restore; its task's id.
    ///
    /// # Errors
    /// When there is no such target, or it cannot be promised; nothing is done then.
    pub async fn accept(&self, wish: Wish) -> Result<String, Denied> {
        let tasks = &self.config().tasks;
        let target = self.config().mapping.resolve(&wish.db_instance, wish.db_host.as_deref())?;
        let Wish { db_instance, backup_id, incremental, .. } = wish;
        let order = Order { db_instance, db_host: target.host, backup_id, incremental };
        let id = crate::identity::new_uuid();
        let unavailable = |error: anyhow::Error| Denied::Unavailable(crate::redact::scrub(&format!("{error:#}")));
        tasks.insert(&id, &order).await.map_err(|error| unavailable(error.into()))?;
        if let Err(error) = self.add(&id).await {
            // The job may be there all the same; without its row it does nothing.
            if let Err(error) = tasks.withdraw(&id).await {
                tracing::warn!("task {id}, which was not accepted, is still written down: {error}");
            }
            return Err(unavailable(error.context("the queue does not take it")));
        }
        match tasks.accept(&id).await {
            Ok(true) => {
                tracing::info!(task = id, "task accepted: {} to {}", order.db_instance, order.db_host);
                Ok(id)
            }
            Ok(false) => Err(Denied::Unavailable("it took too long to write it down".to_owned())),
            Err(error) => Err(unavailable(error.into())),
        }
    }

    /// The catalogue, of one instance or of all.
    ///
    /// # Errors
    /// When the instance is not mapped, or the tool fails.
    pub async fn show(&self, instance: Option<&str>) -> Result<Value, Denied> {
        let config = self.config();
        let targets = match instance {
            Some(instance) => vec![config.mapping.resolve(instance, None)?],
            None => config.mapping.targets(),
        };
        let listed = tokio::time::timeout(LISTING, config.engine.catalogue(&targets)).await;
        let listed = listed.map_err(|_| Denied::Unavailable(format!("no answer within {} s", LISTING.as_secs())))?;
        listed.map_err(|error| Denied::Unavailable(crate::redact::scrub(&error.to_string())))
    }

    /// All tasks, oldest first.
    ///
    /// # Errors
    /// When the state store does not answer.
    pub async fn status(&self) -> anyhow::Result<Vec<Task>> {
        Ok(self.config().tasks.list().await?)
    }

    /// One task.
    ///
    /// # Errors
    /// When the state store does not answer.
    pub async fn task(&self, id: &str) -> anyhow::Result<Option<Task>> {
        Ok(self.config().tasks.get(id).await?.filter(|task| task.status != Status::Accepting))
    }

    /// Cancels a task. One that waits ends at once; the run of one that runs is told, and some seconds are given to it.
    ///
    /// # Errors
    /// When the state store does not answer.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<Canceled> {
        let tasks = &self.config().tasks;
        let begun = tokio::time::Instant::now();
        loop {
            let Some(task) = self.task(id).await? else { return Ok(Canceled::Unknown) };
            match task.status {
                Status::Queued => {
                    if tasks
                        .end(id, Status::Queued, Status::Canceled, Some("canceled before it began; the target is as it was"))
                        .await?
                    {
                        // Its job does nothing without it; that it is out of the line is a courtesy.
                        let removing = self.store.remove(RestoreKind::QUEUE, id);
                        let _ = tokio::time::timeout(Duration::from_secs(2), removing).await;
                        if let Some(ended) = self.task(id).await? {
                            self.service.tell(&ended).await;
                        }
                        return Ok(Canceled::Yes);
                    }
                }
                Status::InProgress => {
                    if tasks.ask_cancel(id).await? {
                        while begun.elapsed() < ENDING {
                            tokio::time::sleep(Duration::from_millis(200)).await;
                            if self.task(id).await?.is_none_or(|task| task.status.is_end()) {
                                break;
                            }
                        }
                        return Ok(Canceled::Yes);
                    }
                }
                ended => return Ok(Canceled::Ended(ended)),
            }
        }
    }

    /// Brings tasks and jobs together again: adds jobs that are missing, forgets what was never promised, and ends what nobody
    /// performs any more.
    ///
    /// # Errors
    /// When Redis or the state store does not answer; what is left is done the next time.
    pub async fn reconcile(&self) -> anyhow::Result<()> {
        let tasks = &self.config().tasks;
        for task in tasks.open().await? {
            let job = self.store.queue(RestoreKind::QUEUE).state(&task.id).await?;
            let over = matches!(job, None | Some(State::Completed | State::Failed));
            match task.status {
                Status::Accepting => {
                    let age = task.created_at.parse::<DateTime<Utc>>().map(|at| Utc::now() - at);
                    if age.is_ok_and(|age| age > LEFT) {
                        let told = "it was not accepted: the listener died before it could answer";
                        tasks.end(&task.id, Status::Accepting, Status::Error, Some(told)).await?;
                    }
                }
                Status::Queued if job.is_none() => {
                    tracing::warn!("task {} had lost its job; it is added again", task.id);
                    self.add(&task.id).await?;
                }
                Status::Queued if over => {
                    let reason = self.store.queue(RestoreKind::QUEUE).job(&task.id).await?.and_then(|job| job.failed_reason);
                    let reason = reason.unwrap_or_else(|| "no reason is given".to_owned());
                    let told = format!("its job ended before it began: {reason}; the target is as it was");
                    if tasks.end(&task.id, Status::Queued, Status::Error, Some(&told)).await? {
                        tracing::warn!("task {}: {told}", task.id);
                        if let Some(ended) = self.task(&task.id).await? {
                            self.service.tell(&ended).await;
                        }
                    }
                }
                Status::InProgress if over => {
                    let reason = "its job ended without an end of the task";
                    if self.service.bury(&Run::detached(), &task.id, reason).await? {
                        tracing::warn!("task {}: {reason}", task.id);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
