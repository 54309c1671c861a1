//! Whether the newest archive and the newest proof are young enough. Who makes backups cannot tell that they stopped; this
//! looks at the store alone, from any machine.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::name::Name;
use super::shelf::Shelf;
use super::verified;
use crate::config::{Reader, Setting};
use crate::storage::StorageError;

/// How old the newest archive may be.
pub static BACKUP_MAX_AGE: Setting = Setting::new(
    "BACKUP_MAX_AGE",
    "Hours after which the newest archive is too old, 1 to 87600: `doctor` fails, and backup-watch raises an alarm. A database that does not change makes no archives, so choose more than its longest quiet time. Unset: no limit.",
);
/// How old the newest proof may be.
pub static BACKUP_DRILL_MAX_AGE: Setting = Setting::new(
    "BACKUP_DRILL_MAX_AGE",
    "Hours after which the newest drill that proved an archive is too old, 1 to 87600; as BACKUP_MAX_AGE. Unset: no limit.",
);

/// How old things may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The newest archive.
    pub archive: Option<Duration>,
    /// The newest proof.
    pub drill: Option<Duration>,
}

/// How old they are.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// The newest complete archive that is not damaged.
    pub newest: Option<Name>,
    /// When the store got it.
    pub stored_at: Option<DateTime<Utc>>,
    /// The archive that was proven last.
    pub proven: Option<String>,
    /// When.
    pub proven_at: Option<DateTime<Utc>>,
    /// Whether the newest archive is too old, or there is none; never without a limit.
    pub archive_overdue: bool,
    /// The same for the newest proof.
    pub drill_overdue: bool,
    /// What is too old; one fragment for each.
    pub alarms: Vec<String>,
}

impl Limits {
    /// Reads both settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let hours = |setting: &Setting| {
            let hours = reader.optional(setting).map(|_| reader.integer(setting, 1..=87_600));
            hours.map(|hours| Duration::from_secs(hours * 3600))
        };
        Limits { archive: hours(&BACKUP_MAX_AGE), drill: hours(&BACKUP_DRILL_MAX_AGE) }
    }

    /// Whether there is one.
    #[must_use]
    pub fn any(&self) -> bool {
        self.archive.is_some() || self.drill.is_some()
    }
}

/// Asks the store.
///
/// # Errors
/// When it does not answer.
pub async fn look(shelf: &Shelf, limits: Limits, now: DateTime<Utc>) -> Result<Freshness, StorageError> {
    let entries = shelf.store.list(&shelf.prefix).await?;
    let newest = shelf.newest_sound(shelf.complete_among(&entries)).await?;
    let proven = verified::times(shelf, &entries).into_iter().max_by_key(|(_, at)| *at);
    // A name may be of the future where a clock was wrong; the store's clock is asked.
    let stored_at = newest.as_ref().map(|shelved| shelved.entry.modified);
    let proven_at = proven.as_ref().map(|(_, at)| *at);
    let mut alarms = Vec::new();
    let mut overdue = |what: &str, limit: Option<Duration>, at: Option<DateTime<Utc>>| {
        let Some(limit) = limit else { return false };
        let before = alarms.len();
        let hours = limit.as_secs() / 3600;
        match at.map(|at| (now - at).to_std().unwrap_or_default()) {
            None => alarms.push(format!("there is no {what} in {}", shelf.shown())),
            Some(age) if age > limit => alarms.push(format!(
                "the newest {what} in {} is {} hours old, and may be {hours}",
                shelf.shown(),
                age.as_secs() / 3600
            )),
            Some(_) => {}
        }
        alarms.len() > before
    };
    let archive_overdue = overdue("archive", limits.archive, stored_at);
    let drill_overdue = overdue("drill that proved an archive", limits.drill, proven_at);
    Ok(Freshness {
        newest: newest.map(|shelved| shelved.name),
        stored_at,
        proven: proven.map(|(name, _)| name),
        proven_at,
        archive_overdue,
        drill_overdue,
        alarms,
    })
}
