//! Archives of [`crate::backup`] as an engine: a restored database takes the place of the target's, which is kept under another name.
//!
//! Nothing is stopped or emptied: until the switch the database before serves, and a run that fails leaves it.

use serde_json::Value;

use super::engine::{Backup, Engine, EngineError, Told, Work};
use super::target::Target;
use crate::backup::choice::Choice;
use crate::backup::name::Name;
use crate::backup::restore::{Request, Restore};
use crate::worker::Run;

/// The archives of one store.
#[derive(Debug)]
pub struct Archives {
    /// How they are restored.
    pub restore: Restore,
}

/// An archive's name as an id: ids are plain words, and hold no colon.
fn id(name: Name) -> String {
    name.to_string().replace(':', ".")
}

impl Archives {
    async fn named(&self, wanted: &str) -> Result<Name, EngineError> {
        let there = self.restore.shelf.archives().await.map_err(|error| EngineError::Tool(error.to_string()))?;
        let found = there.into_iter().find(|shelved| id(shelved.name) == wanted);
        found
            .map(|shelved| shelved.name)
            .ok_or_else(|| EngineError::NoBackup(format!("the store has no archive `{wanted}` any more")))
    }
}

#[async_trait::async_trait]
impl Engine for Archives {
    fn name(&self) -> &'static str {
        "archive"
    }

    fn is_physical(&self) -> bool {
        false
    }

    async fn catalogue(&self, targets: &[Target]) -> Result<Value, EngineError> {
        let Some(target) = targets.first() else { return Ok(Value::Array(Vec::new())) };
        let backups = self.backups(target).await?;
        let told =
            |backup: &Backup| serde_json::json!({"id": backup.id, "status": backup.state, "recovery-time": backup.recovery_time});
        Ok(Value::Array(backups.iter().map(told).collect()))
    }

    async fn backups(&self, _: &Target) -> Result<Vec<Backup>, EngineError> {
        let there = self.restore.shelf.archives().await.map_err(|error| EngineError::Tool(error.to_string()))?;
        let backup = |name: Name| Backup {
            id: id(name),
            recovery_time: Some(name.at.format("%Y-%m-%d %H:%M:%S+00").to_string()),
            usable: true,
            state: "OK".to_owned(),
            bytes: None,
        };
        Ok(there.into_iter().map(|shelved| backup(shelved.name)).collect())
    }

    /// What can be told without reading it whole, which the restore does before its first statement.
    async fn validate(&self, _: &Run, work: &Work) -> Result<(), EngineError> {
        let archive = self.named(&work.backup.id).await?;
        Choice::Named(archive).find(&self.restore.shelf).await.map_err(|error| EngineError::NoBackup(error.to_string()))?;
        let manifest = self.restore.shelf.manifest(archive).await;
        manifest.map(drop).map_err(|error| EngineError::Invalid(format!("{:#}", anyhow::Error::from(error))))
    }

    async fn restore(&self, run: &Run, work: &Work, _: Told<'_>) -> Result<(), EngineError> {
        let archive = self.named(&work.backup.id).await?;
        let request = Request {
            id: work.task.clone(),
            into: Some(work.target.database.clone()),
            swap: true,
            end_sessions: true,
            ..Request::default()
        };
        match self.restore.restore(run, archive, &request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_stopped() => Err(EngineError::Ended { gone: true }),
            Err(error) => Err(EngineError::Tool(format!("{:#}", anyhow::Error::from(error)))),
        }
    }
}
