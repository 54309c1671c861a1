//! Names of archives and of what stands beside them in a store.
//!
//! ```text
//! db/2026-01-02T03:04:05.tar.zst.age                   the archive, never overwritten
//! db/2026-01-02T03:04:05.tar.zst.age.manifest.json     written after it; only this makes it complete
//! db/2026-01-02T03:04:05.tar.zst.age.verified.json     written by a drill that restored it
//! db/baseline.json                                     what the next run compares with
//! ```
//!
//! The time is UTC and of fixed width, so keys sort by time. It is the start of the run, or a second after
//! the archive before when the clock says less than that: order must hold when two archives are made in one
//! second or a clock is set back, because the newest archive is the one whose name sorts last.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, SubsecRound as _, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// `YYYY-MM-DDTHH:MM:SS`
const STAMP: &str = "%Y-%m-%dT%H:%M:%S";
const STAMP_LENGTH: usize = 19;
/// After an archive's name: its manifest.
pub const MANIFEST: &str = ".manifest.json";
/// After an archive's name: proof that it was restored.
pub const VERIFIED: &str = ".verified.json";
/// After the prefix: what the next run compares with.
pub const BASELINE: &str = "baseline.json";

/// How the tar is made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard.
    #[default]
    Zstd,
    /// As the seed did.
    Gzip,
    /// Smallest, at many times the time.
    Xz,
}

impl Compression {
    /// End of a file name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Compression::Zstd => ".tar.zst",
            Compression::Gzip => ".tar.gz",
            Compression::Xz => ".tar.xz",
        }
    }
}

/// How the archive is closed for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sealing {
    /// For age recipients.
    Age,
    /// OpenPGP, through `gpg`.
    Gpg,
    /// Readable by anybody who can read the store.
    Plain,
}

impl Sealing {
    /// End of a file name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Sealing::Age => ".age",
            Sealing::Gpg => ".gpg",
            Sealing::Plain => "",
        }
    }
}

/// An archive's name. Names of one store sort as their times do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// When the run began, in whole seconds.
    pub at: DateTime<Utc>,
    /// How it is made smaller.
    pub compression: Compression,
    /// How it is closed.
    pub sealing: Sealing,
}

impl Name {
    /// A name for an archive begun `now`, later than `last`.
    #[must_use]
    pub fn after(last: Option<Name>, now: DateTime<Utc>, compression: Compression, sealing: Sealing) -> Name {
        let now = now.trunc_subsecs(0);
        let at = last.map_or(now, |last| now.max(last.at + TimeDelta::seconds(1)));
        Name { at, compression, sealing }
    }

    /// The next name in time.
    #[must_use]
    pub fn next(self) -> Name {
        Name { at: self.at + TimeDelta::seconds(1), ..self }
    }

    /// The part that tells the time.
    #[must_use]
    pub fn stamp(&self) -> String {
        self.at.format(STAMP).to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.at.format(STAMP), self.compression.extension(), self.sealing.extension())
    }
}

/// The text is no archive's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no archive's name; they read like 2026-01-02T03:04:05.tar.zst.age")]
pub struct NotAName(String);

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Name, NotAName> {
        let wrong = || NotAName(text.chars().take(100).collect());
        let (stamp, end) = text.split_at_checked(STAMP_LENGTH).ok_or_else(wrong)?;
        let at = NaiveDateTime::parse_from_str(stamp, STAMP).map_err(|_| wrong())?.and_utc();
        // A leap second, which no clock here has.
        if at.timestamp_subsec_nanos() != 0 {
            return Err(wrong());
        }
        for compression in [Compression::Zstd, Compression::Gzip, Compression::Xz] {
            for sealing in [Sealing::Age, Sealing::Gpg, Sealing::Plain] {
                let name = Name { at, compression, sealing };
                // Compared whole: the parser takes times that print otherwise.
                if end.ends_with(sealing.extension()) && name.to_string() == text {
                    return Ok(name);
                }
            }
        }
        Err(wrong())
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn names_read_back_and_others_are_none() {
        for text in [
            "2026-01-02T03:04:05.tar.zst.age",
            "2026-01-02T03:04:05.tar.gz",
            "2026-01-02T03:04:05.tar.gz.gpg",
            "9999-12-31T23:59:59.tar.xz",
        ] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "baseline.json",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05.tar",
            "2026-01-02T03:04:60.tar.gz",
            "2026-02-30T03:04:05.tar.gz",
            "2026-1-02T03:04:005.tar.gz",
            "2026-01-02T03:04:05.tar.gz.age.manifest.json",
            "2026-01-02T03:04:0é.tar.gz",
            "x2026-01-02T03:04:05.tar.gz",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_archives_in_one_second_have_two_names_in_order() {
        let now = at("2026-01-02T03:04:05.678Z");
        let first = Name::after(None, now, Compression::Zstd, Sealing::Age);
        assert_eq!(first.to_string(), "2026-01-02T03:04:05.tar.zst.age");
        let second = Name::after(Some(first), now, Compression::Gzip, Sealing::Gpg);
        assert_eq!(second.to_string(), "2026-01-02T03:04:06.tar.gz.gpg");
        let after_the_clock_was_set_back = Name::after(Some(second), at("2020-01-01T00:00:00Z"), Compression::Zstd, Sealing::Age);
        assert!(after_the_clock_was_set_back.to_string() > second.to_string());
    }
}
