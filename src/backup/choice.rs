//! Which archive is meant: the newest, one by its name, or the newest one of a moment.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::shelf::{Shelf, Shelved};
use crate::storage::StorageError;

/// As a moment is written.
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";

/// Which one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The newest by name, whatever the clock says.
    #[default]
    Latest,
    /// This one.
    Named(Name),
    /// The newest that is not younger than this.
    At(DateTime<Utc>),
}

/// The words name no archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither `latest`, nor an archive's name (2026-01-02T03:04:05.tar.zst.age), nor a time in UTC (@2026-01-02T03:04:05Z, @2026-01-02)"
)]
pub struct NotAChoice(String);

/// The words tell no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no time; write 2026-01-02, 2026-01-02T03:04 or 2026-01-02T03:04:05 in UTC, or with a zone (2026-01-02T03:04+02:00)"
)]
pub struct NotATime(String);

/// There is no such archive.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The store holds none at all.
    #[error("there is no complete archive in {0}")]
    Empty(String),
    /// Not this one.
    #[error("{store} has no complete archive {choice}; `bullwork backup list` shows those that there are")]
    Missing {
        /// Where it was looked for.
        store: String,
        /// What was asked for.
        choice: Choice,
    },
    /// All of them are younger.
    #[error("{store} has no archive as old as {at}; the oldest one is {oldest}")]
    Younger {
        /// Where it was looked for.
        store: String,
        /// What was asked for.
        at: String,
        /// The first one that there is.
        oldest: Name,
    },
}

/// The end of a day counts as the day.
fn moment(text: &str) -> Option<DateTime<Utc>> {
    // `Z` is a zone by name only in RFC 3339, which wants seconds.
    let zoned = text.strip_suffix(['Z', 'z']).map_or_else(|| text.to_owned(), |time| format!("{time}+00:00"));
    for form in ["%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M%:z", "%Y-%m-%d %H:%M%:z"] {
        if let Ok(at) = DateTime::parse_from_str(&zoned, form) {
            return Some(at.to_utc());
        }
    }
    for form in ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
        if let Ok(at) = NaiveDateTime::parse_from_str(text, form) {
            return Some(at.and_utc());
        }
    }
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.succ_opt()?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc() - TimeDelta::seconds(1))
}

impl Choice {
    /// The newest archive of a moment: `2026-01-02T03:04[:05]` in UTC or with a zone, or `2026-01-02` (to its end).
    ///
    /// # Errors
    /// When the text is no time.
    pub fn at(text: &str) -> Result<Choice, NotATime> {
        moment(text.trim()).map(Choice::At).ok_or_else(|| NotATime(text.chars().take(100).collect()))
    }

    /// The one that is meant among `archives`, which are in order.
    #[must_use]
    pub fn among<'a>(&self, archives: &'a [Shelved]) -> Option<&'a Shelved> {
        match self {
            Choice::Latest => archives.last(),
            Choice::Named(name) => archives.iter().find(|shelved| shelved.name == *name),
            Choice::At(at) => archives.iter().rev().find(|shelved| shelved.name.at <= *at),
        }
    }

    /// Finds it in `shelf`.
    ///
    /// # Errors
    /// When there is none, or the store cannot be asked.
    pub async fn find(&self, shelf: &Shelf) -> Result<Name, ChoiceError> {
        let archives = shelf.archives().await?;
        let store = shelf.shown();
        match (self.among(&archives), archives.first(), self) {
            (Some(shelved), _, _) => Ok(shelved.name),
            (None, None, _) => Err(ChoiceError::Empty(store)),
            (None, Some(oldest), Choice::At(at)) => {
                Err(ChoiceError::Younger { store, at: at.format(TIME).to_string(), oldest: oldest.name })
            }
            (None, Some(_), _) => Err(ChoiceError::Missing { store, choice: *self }),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Latest => f.write_str("latest"),
            Choice::Named(name) => write!(f, "{name}"),
            Choice::At(at) => write!(f, "@{}", at.format(TIME)),
        }
    }
}

impl FromStr for Choice {
    type Err = NotAChoice;

    fn from_str(text: &str) -> Result<Choice, NotAChoice> {
        let wrong = || NotAChoice(text.chars().take(100).collect());
        match text {
            "" | "latest" => Ok(Choice::Latest),
            _ => match text.strip_prefix('@') {
                Some(at) => Choice::at(at).map_err(|_| wrong()),
                None => text.parse().map(Choice::Named).map_err(|_| wrong()),
            },
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Choice, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Entry;

    fn shelved(name: &str) -> Shelved {
        let entry = Entry { key: format!("db/{name}"), size: 1, modified: Utc::now() };
        Shelved { name: name.parse().unwrap(), entry }
    }

    #[test]
    fn a_choice_reads_back_as_it_was_written() {
        for text in ["latest", "2026-01-02T03:04:05.tar.gz.gpg", "@2026-01-02T03:04:05Z"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["newest", "2026-01-02", "@yesterday", "2026-01-02T03:04:05.zip"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_newest_of_a_moment_is_not_younger_than_it() {
        let names = ["2026-01-01T10:00:00.tar.gz", "2026-01-02T10:00:00.tar.zst.age", "2999-01-01T00:00:00.tar.gz"];
        let archives: Vec<Shelved> = names.iter().map(|name| shelved(name)).collect();
        let found = |choice: &str| choice.parse::<Choice>().unwrap().among(&archives).map(|s| s.name.to_string());
        assert_eq!(found("latest").as_deref(), Some(names[2]), "a date in the future is newest too");
        assert_eq!(found("@2026-01-02").as_deref(), Some(names[1]), "a day ends with its last second");
        assert_eq!(found("@2026-01-02T09:59:59Z").as_deref(), Some(names[0]));
        assert_eq!(found("@2026-01-02T12:00:00+02:00").as_deref(), Some(names[1]));
        assert_eq!(found("@2026-01-02T12:00+02:00").as_deref(), Some(names[1]), "seconds may be missing");
        assert_eq!(found("@2026-01-02 09:59Z").as_deref(), Some(names[0]));
        assert_eq!(found("@2025-12-31 23:59"), None);
        assert_eq!(found(names[0]).as_deref(), Some(names[0]));
        assert_eq!(found("2026-01-01T10:00:00.tar.zst"), None);
    }
}
