//! Which archives stay: the newest ones, and the newest of each hour, day, week, month and year, as many of each as the
//! rules say. A pure function of names, so that a dry run tells the truth.
//!
//! Periods are those that have an archive: `daily = 7` keeps seven, however many days ago the seventh is, so
//! that nothing goes only because nothing was made. They are UTC's; weeks begin on Monday.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};

use super::name::Name;
use crate::config::{Reader, Setting};

/// The newest.
pub static BACKUP_KEEP_LAST: Setting =
    Setting::new("BACKUP_KEEP_LAST", "Newest archives that `backup prune` keeps, whatever the other rules say; 0 to 100000.")
        .default("0");
/// One an hour.
pub static BACKUP_KEEP_HOURLY: Setting = Setting::new(
    "BACKUP_KEEP_HOURLY",
    "Hours of which the newest archive is kept, counted back over hours that have one; 0 to 100000.",
)
.default("0");
/// One a day.
pub static BACKUP_KEEP_DAILY: Setting = Setting::new("BACKUP_KEEP_DAILY", "The same for days (UTC).").default("0");
/// One a week.
pub static BACKUP_KEEP_WEEKLY: Setting = Setting::new("BACKUP_KEEP_WEEKLY", "The same for weeks, from Monday on.").default("0");
/// One a month.
pub static BACKUP_KEEP_MONTHLY: Setting = Setting::new("BACKUP_KEEP_MONTHLY", "The same for months.").default("0");
/// One a year.
pub static BACKUP_KEEP_YEARLY: Setting = Setting::new("BACKUP_KEEP_YEARLY", "The same for years.").default("0");

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The newest.
    pub last: usize,
    /// One an hour.
    pub hourly: usize,
    /// One a day.
    pub daily: usize,
    /// One a week.
    pub weekly: usize,
    /// One a month.
    pub monthly: usize,
    /// One a year.
    pub yearly: usize,
}

/// A number for the period that a moment is in; later periods have higher ones.
type Period = fn(DateTime<Utc>) -> i64;

fn hour(at: DateTime<Utc>) -> i64 {
    day(at) * 24 + i64::from(at.hour())
}

fn day(at: DateTime<Utc>) -> i64 {
    i64::from(at.num_days_from_ce())
}

fn week(at: DateTime<Utc>) -> i64 {
    // The first day of the era was a Monday.
    (day(at) - 1).div_euclid(7)
}

fn month(at: DateTime<Utc>) -> i64 {
    i64::from(at.year()) * 12 + i64::from(at.month0())
}

fn year(at: DateTime<Utc>) -> i64 {
    i64::from(at.year())
}

impl Rules {
    /// Reads the six settings; nothing when all are 0.
    pub fn from_settings(reader: &Reader<'_>) -> Option<Self> {
        let number = |setting| usize::try_from(reader.integer(setting, 0..=100_000)).unwrap_or(usize::MAX);
        let rules = Rules {
            last: number(&BACKUP_KEEP_LAST),
            hourly: number(&BACKUP_KEEP_HOURLY),
            daily: number(&BACKUP_KEEP_DAILY),
            weekly: number(&BACKUP_KEEP_WEEKLY),
            monthly: number(&BACKUP_KEEP_MONTHLY),
            yearly: number(&BACKUP_KEEP_YEARLY),
        };
        (rules != Rules::default()).then_some(rules)
    }

    /// Those of `archives`, in any order, that stay, as names. The newest always does, and so does the newest of `verified`.
    #[must_use]
    pub fn kept(&self, archives: &[Name], verified: &BTreeSet<String>) -> BTreeSet<String> {
        let mut newest_first: Vec<(String, DateTime<Utc>)> = archives.iter().map(|name| (name.to_string(), name.at)).collect();
        newest_first.sort_by(|a, b| b.cmp(a));
        let mut kept: BTreeSet<String> = newest_first.iter().take(self.last.max(1)).map(|(name, _)| name.clone()).collect();
        kept.extend(newest_first.iter().map(|(name, _)| name).find(|name| verified.contains(*name)).cloned());
        let rules: [(usize, Period); 5] =
            [(self.hourly, hour), (self.daily, day), (self.weekly, week), (self.monthly, month), (self.yearly, year)];
        for (number, period) in rules {
            let mut last = None;
            let mut left = number;
            for (name, at) in &newest_first {
                if left == 0 {
                    break;
                }
                if last != Some(period(*at)) {
                    last = Some(period(*at));
                    left -= 1;
                    kept.insert(name.clone());
                }
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::super::name::{Compression, Sealing};
    use super::*;

    fn name(at: DateTime<Utc>) -> Name {
        Name { at, compression: Compression::Zstd, sealing: Sealing::Age }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn periods_begin_where_people_say() {
        for (period, before, after) in [
            (hour as Period, "2026-03-01T09:59:59Z", "2026-03-01T10:00:00Z"),
            (day, "2026-03-01T23:59:59Z", "2026-03-02T00:00:00Z"),
            // A Sunday and a Monday.
            (week, "2026-03-01T23:59:59Z", "2026-03-02T00:00:00Z"),
            (week, "2024-12-29T12:00:00Z", "2024-12-30T12:00:00Z"),
            (month, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            (year, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(period(at(before)) + 1, period(at(after)), "{before}");
        }
        assert_eq!(week(at("2026-03-02T00:00:00Z")), week(at("2026-03-08T23:59:59Z")));
    }

    #[test]
    fn what_was_proven_last_stays_though_no_rule_says_so() {
        let names: Vec<Name> = (1..=9).map(|day| name(at(&format!("2026-01-0{day}T00:00:00Z")))).collect();
        let verified = BTreeSet::from([names[2].to_string(), names[4].to_string()]);
        let kept = Rules { daily: 2, ..Rules::default() }.kept(&names, &verified);
        assert_eq!(kept, BTreeSet::from([names[4].to_string(), names[7].to_string(), names[8].to_string()]));
        assert_eq!(Rules::default().kept(&names, &BTreeSet::new()), BTreeSet::from([names[8].to_string()]));
    }

    /// What the rules mean, said otherwise: by text of the period, from the whole set.
    fn model(rules: &Rules, names: &[Name], verified: &BTreeSet<String>) -> BTreeSet<String> {
        let forms = [
            (rules.hourly, "%Y-%m-%dT%H"),
            (rules.daily, "%Y-%m-%d"),
            (rules.weekly, "%G-%V"),
            (rules.monthly, "%Y-%m"),
            (rules.yearly, "%Y"),
        ];
        let newest = |wanted: &dyn Fn(&Name) -> bool| names.iter().filter(|n| wanted(n)).map(Name::to_string).max();
        let mut kept = BTreeSet::new();
        for name in names {
            let text = name.to_string();
            let younger = names.iter().filter(|other| other.to_string() > text).count();
            let mut stays =
                younger < rules.last || younger == 0 || newest(&|n| verified.contains(&n.to_string())) == Some(text.clone());
            for (number, form) in forms {
                let period = |n: &Name| n.at.format(form).to_string();
                let periods: BTreeSet<String> = names.iter().map(period).collect();
                let rank = periods.iter().rev().position(|p| *p == period(name)).unwrap();
                stays |= rank < number && newest(&|n| period(n) == period(name)) == Some(text.clone());
            }
            if stays {
                kept.insert(text);
            }
        }
        kept
    }

    proptest! {
        #[test]
        fn the_rules_keep_what_they_mean(
            minutes in proptest::collection::btree_set(0_i64..2_000_000, 0..40),
            close in proptest::collection::btree_set(0_i64..9_000, 0..30),
            proven in proptest::collection::vec(any::<proptest::sample::Index>(), 0..3),
            numbers in proptest::array::uniform6(0_usize..6),
        ) {
            let start = at("2022-11-28T00:00:00Z");
            let all: BTreeSet<i64> = minutes.into_iter().chain(close).collect();
            let names: Vec<Name> = all.iter().map(|m| name(start + TimeDelta::minutes(*m))).collect();
            let verified: BTreeSet<String> =
                if names.is_empty() { BTreeSet::new() } else { proven.iter().map(|i| i.get(&names).to_string()).collect() };
            let [last, hourly, daily, weekly, monthly, yearly] = numbers;
            let rules = Rules { last, hourly, daily, weekly, monthly, yearly };
            let kept = rules.kept(&names, &verified);
            prop_assert_eq!(&kept, &model(&rules, &names, &verified));
            if let Some(newest) = names.last() {
                prop_assert!(kept.contains(&newest.to_string()));
            }
            // What stays once stays the next time: pruning twice is pruning once.
            let left: Vec<Name> = names.iter().copied().filter(|n| kept.contains(&n.to_string())).collect();
            prop_assert_eq!(rules.kept(&left, &verified), kept);
        }
    }
}
