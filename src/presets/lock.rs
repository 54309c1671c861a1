//! Who keeps others from pushing a preset.
//!
//! ```text
//! lock.json   {"id": …, "lock": {"who", "why", "at", "until", "keyHash"}}    locked
//!             {"id": …, "lock": null}                                         free
//! ```
//!
//! The object is made by If-None-Match and changed by If-Match, so one of two lockers wins; freeing writes a mark, because no store
//! removes conditionally. Then the pointer is touched: a push that began before the lock finds it changed, and is refused. A locker
//! that is killed between the two has a lock that nobody has the key of, as after its output was lost: `reset-lock … force` ends it,
//! and so does its time limit. The key has 128 bits; only its SHA-256 is stored.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::local::Local;
use super::remote::{Branch, now};
use super::{PresetError, Presets, hex, journal};
use crate::storage::Version;

const LEAF: &str = "lock.json";

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    /// Whose it is.
    pub who: String,
    /// What for.
    pub why: String,
    /// Since when, UTC.
    pub at: String,
    /// Until when, UTC; no limit when none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    key_hash: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// New with every change, so that no two contents are alike.
    id: String,
    lock: Option<Lock>,
}

impl Lock {
    fn holds(&self) -> bool {
        self.until.is_none_or(|until| until > Utc::now())
    }

    /// Whether this is its key.
    fn opens(&self, key: &str) -> bool {
        hash(key) == self.key_hash
    }

    /// `who`, when and why, in one line.
    #[must_use]
    pub fn told(&self) -> String {
        let until = self.until.map(|until| format!(", until {}", until.format("%Y-%m-%dT%H:%M:%SZ"))).unwrap_or_default();
        format!("locked by {} since {}{until}: {}", self.who, self.at, self.why)
    }
}

fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.to_ascii_lowercase().as_bytes()))
}

async fn read(branch: &Branch, name: &str) -> Result<(Option<Lock>, Option<Version>), PresetError> {
    Ok(match branch.json::<State>(name, LEAF).await? {
        Some((state, version)) => (state.lock.filter(Lock::holds), Some(version)),
        None => (None, None),
    })
}

/// Refuses unless the preset is free or the key is its lock's.
pub(super) async fn check(branch: &Branch, name: &str, key: Option<&str>) -> Result<(), PresetError> {
    match read(branch, name).await?.0 {
        Some(lock) if !key.is_some_and(|key| lock.opens(key)) => {
            let why = if key.is_some() { "the key is another one's" } else { "give its key= when it is yours" };
            Err(PresetError::Refused(format!("`{name}` is {}; {why}", lock.told())))
        }
        _ => Ok(()),
    }
}

/// Ends the lock that this key opens.
pub(super) async fn release(branch: &Branch, name: &str, key: &str) -> Result<(), PresetError> {
    let (Some(lock), version) = read(branch, name).await? else { return Ok(()) };
    if lock.opens(key) {
        free(branch, name, version.as_ref()).await?;
    }
    Ok(())
}

async fn free(branch: &Branch, name: &str, version: Option<&Version>) -> Result<bool, PresetError> {
    let state = State { id: crate::identity::new_uuid(), lock: None };
    Ok(branch.put(name, LEAF, &state, version).await?.is_some())
}

impl Presets {
    /// Locks a preset; returns the key, which is stored nowhere.
    pub(super) async fn set_lock(&self, name: &str, who: &str, why: &str, hours: Option<&str>) -> Result<String, PresetError> {
        let branch = self.branch()?;
        let (known, current) = branch.present(name).await?;
        Local::open(&self.settings)?.check_base(name, &current)?;
        let (lock, version) = read(&branch, name).await?;
        if let Some(lock) = lock {
            return Err(PresetError::Refused(format!("`{name}` is {}", lock.told())));
        }
        let key = uuid::Uuid::new_v4().simple().to_string();
        let id = crate::identity::new_uuid();
        let hours = hours.and_then(|hours| hours.parse::<i64>().ok());
        let lock = Lock {
            who: who.to_owned(),
            why: why.to_owned(),
            at: now(),
            until: hours.and_then(|hours| Utc::now().checked_add_signed(TimeDelta::hours(hours))),
            key_hash: hash(&key),
        };
        let told = lock.told();
        let Some(version) = branch.put(name, LEAF, &State { id: id.clone(), lock: Some(lock) }, version.as_ref()).await? else {
            let lock = read(&branch, name).await?.0;
            let who = lock.map_or_else(|| "somebody else was at its lock".to_owned(), |lock| lock.told());
            return Err(PresetError::Refused(format!("`{name}` was not locked: {who}")));
        };
        let mut pointer = known.pointer.clone();
        pointer.lock = Some(id);
        if branch.point(name, &pointer, Some(&known)).await?.is_none() {
            free(&branch, name, Some(&version)).await?;
            return Err(PresetError::Refused(format!(
                "`{name}` was pushed to at the same moment, and is not locked; pull first"
            )));
        }
        journal::note(&branch, name, who, &told).await?;
        Ok(key)
    }

    /// The lock of a preset that exists.
    pub(super) async fn get_lock(&self, name: &str) -> Result<Option<Lock>, PresetError> {
        let branch = self.branch()?;
        branch.present(name).await?;
        Ok(read(&branch, name).await?.0)
    }

    /// Unlocks a preset.
    pub(super) async fn reset_lock(&self, name: &str, key: Option<&str>, force: bool, who: &str) -> Result<(), PresetError> {
        let branch = self.branch()?;
        branch.present(name).await?;
        let (lock, version) = read(&branch, name).await?;
        let Some(lock) = lock else { return Err(PresetError::Refused(format!("`{name}` is not locked"))) };
        if !force && !key.is_some_and(|key| lock.opens(key)) {
            return Err(PresetError::Refused(format!("`{name}` is {}; the key is another one's", lock.told())));
        }
        // What takes a lock from somebody is told before it is done: nobody shall wonder where it went.
        if force {
            journal::note(&branch, name, who, &format!("unlocked by force; it was {}", lock.told())).await?;
        }
        if !free(&branch, name, version.as_ref()).await? {
            return Err(PresetError::Refused(format!("the lock of `{name}` was changed meanwhile; look at it again")));
        }
        if !force {
            journal::note(&branch, name, who, "unlocked").await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_at_its_time_and_opens_for_its_key() {
        let mut lock =
            Lock { who: "Анна".to_owned(), why: "миграция".to_owned(), at: now(), until: None, key_hash: hash("0a") };
        assert!(lock.holds() && lock.opens("0A") && !lock.opens("0b"));
        lock.until = Some(Utc::now() - TimeDelta::seconds(1));
        assert!(!lock.holds());
        assert!(!serde_json::to_string(&lock).unwrap().contains("\"0a\""));
        assert!(lock.told().contains("locked by Анна") && lock.told().contains("миграция"));
    }
}
