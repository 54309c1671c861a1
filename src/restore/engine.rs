//! What a backup tool does for us. One trait for all of them; how a task goes is the same whichever it is.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::remote::RemoteError;
use super::target::Target;
use crate::process::ProcessError;
use crate::worker::Run;

/// A backup as its tool lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: String,
    /// When it restores to, in the tool's words.
    pub recovery_time: Option<String>,
    /// Whether it is whole, as far as the tool knows.
    pub usable: bool,
    /// The tool's word for its state.
    pub state: String,
    /// Bytes that it takes at least when restored, if that is known.
    pub bytes: Option<u64>,
}

/// Why the tool did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No backup to restore.
    #[error("{0}")]
    NoBackup(String),
    /// The backup is no good.
    #[error("{0}")]
    Invalid(String),
    /// The tool failed.
    #[error("{0}")]
    Tool(String),
    /// It cannot be run here.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The target's machine.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// We ended it.
    #[error("it was ended{}", if *.gone { "" } else { ", and was not seen to end: look whether it still runs" })]
    Ended {
        /// Whether its end was seen.
        gone: bool,
    },
}

/// What is to be restored.
#[derive(Clone, Debug)]
pub struct Work {
    /// The task's id.
    pub task: String,
    /// Where.
    pub target: Target,
    /// Which backup.
    pub backup: Backup,
    /// Whether what is there is kept.
    pub incremental: bool,
}

/// How far the tool is: files, percents or whatever it counts.
pub type Told<'t> = &'t (dyn Fn(u64, u64) + Send + Sync);

/// A backup tool.
#[async_trait::async_trait]
pub trait Engine: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Whether it restores whole clusters, which are stopped, emptied and started around it; else it does all by itself.
    fn is_physical(&self) -> bool {
        true
    }

    /// Everything that there is, as the tool tells it; of one target, or of all.
    async fn catalogue(&self, targets: &[Target]) -> Result<Value, EngineError>;

    /// The backups of a target.
    async fn backups(&self, target: &Target) -> Result<Vec<Backup>, EngineError>;

    /// Looks whether the backup is what it should be. Nothing is changed.
    async fn validate(&self, run: &Run, work: &Work) -> Result<(), EngineError>;

    /// Restores it. When the run is told to stop, the tool and all that it started are ended before this returns.
    async fn restore(&self, run: &Run, work: &Work, told: Told<'_>) -> Result<(), EngineError>;
}

/// A time as the tools write it, with any form of offset; UTC where there is none.
#[must_use]
pub fn instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim().replacen('T', " ", 1);
    let zoned = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f %#z"];
    let zoned = zoned.iter().find_map(|form| DateTime::parse_from_str(&text, form).ok());
    let plain = || chrono::NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f").ok();
    zoned.map(|time| time.to_utc()).or_else(|| plain().map(|time| time.and_utc()))
}

/// The backup that is meant: the one with this id, else the usable one that restores to the latest time.
///
/// # Errors
/// When there is none; the text tells why.
pub fn choose(backups: &[Backup], wanted: Option<&str>, instance: &str) -> Result<Backup, EngineError> {
    let newest = || {
        let dated = backups.iter().filter(|backup| backup.usable);
        let dated = dated.filter_map(|backup| Some((instant(backup.recovery_time.as_deref()?)?, backup)));
        dated.max_by_key(|(time, _)| *time).map(|(_, backup)| backup)
    };
    match wanted {
        Some(id) => match backups.iter().find(|backup| backup.id == id) {
            Some(backup) if backup.usable => Ok(backup.clone()),
            Some(backup) => Err(EngineError::Invalid(format!(
                "backup `{id}` of `{instance}` cannot be restored: its status is {}",
                backup.state
            ))),
            None => Err(EngineError::NoBackup(format!("`{instance}` has no backup `{id}`; `show` lists those that there are"))),
        },
        None => newest().cloned().ok_or_else(|| {
            let there = backups.len();
            EngineError::NoBackup(format!(
                "`{instance}` has no backup that could be restored ({there} are listed; `show` tells more)"
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(id: &str, state: &str, time: Option<&str>) -> Backup {
        let usable = matches!(state, "OK" | "DONE");
        Backup { id: id.to_owned(), recovery_time: time.map(str::to_owned), usable, state: state.to_owned(), bytes: None }
    }

    #[test]
    fn times_are_read_with_any_form_of_offset() {
        let noon = "2026-03-01T12:00:00Z".parse::<DateTime<Utc>>().unwrap();
        for text in [
            "2026-03-01 15:00:00+03",
            "2026-03-01 15:00:00+03:00",
            "2026-03-01 15:00:00+0300",
            "2026-03-01 07:30:00-0430",
            "2026-03-01 12:00:00Z",
            "2026-03-01T12:00:00+00",
            "2026-03-01 12:00:00",
            "2026-03-01 15:00:00 +03",
        ] {
            assert_eq!(instant(text), Some(noon), "{text}");
        }
        assert!(instant("2026-03-01 15:00:00.123456+03").unwrap() > noon);
        assert_eq!(instant("yesterday"), None);
    }

    #[test]
    fn the_newest_usable_backup_is_the_one_that_restores_to_the_latest_time() {
        let all = [
            backup("OLD", "OK", Some("2026-03-01 10:00:00+03")),
            // Later on the clock, earlier in time.
            backup("EAST", "OK", Some("2026-03-01 16:00:00+11")),
            backup("NEW", "DONE", Some("2026-03-01 06:00:00-05")),
            backup("BROKEN", "ERROR", Some("2026-03-02 10:00:00+03")),
            backup("CORRUPT", "CORRUPT", Some("2026-03-02 11:00:00+03")),
            backup("ABORTED", "OK", None),
        ];
        assert_eq!(choose(&all, None, "main1").unwrap().id, "NEW");
        assert_eq!(choose(&all, Some("OLD"), "main1").unwrap().id, "OLD");
        // Without a time it can be asked for by its id.
        assert_eq!(choose(&all, Some("ABORTED"), "main1").unwrap().id, "ABORTED");
        let error = |wanted| choose(&all, wanted, "main1").unwrap_err().to_string();
        assert!(error(Some("NONE")).contains("has no backup `NONE`"));
        assert!(error(Some("BROKEN")).contains("its status is ERROR"));
        assert!(
            choose(&all[3..], None, "main1").unwrap_err().to_string().contains("no backup that could be restored (3 are listed")
        );
    }
}
