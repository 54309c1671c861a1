//! Wall-clock time in a zone, and back to an instant.
//!
//! A zone is used through one question only, its offset at an instant; everything about gaps and
//! repeated hours is worked out from that, so it is the same for named zones, fixed offsets and the
//! machine's own.

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone};

use super::CronError;

/// Seconds since 1970-01-01T00:00:00Z.
pub(super) type Seconds = i64;

/// Further than any zone's offset, and closer than two changes of one ever were.
const DAY: Seconds = 86_400;

pub(super) enum Zone {
    Named(chrono_tz::Tz),
    /// `UTC+2`, which Node's zone names allow.
    Fixed(Seconds),
    Local,
}

impl Zone {
    pub(super) fn named(name: Option<&str>) -> Result<Zone, CronError> {
        // Bull treats an empty text like none.
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Zone::Local) };
        // Names differ in case between systems; Node does not mind either.
        let known = chrono_tz::TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(name));
        match known {
            Some(zone) => Ok(Zone::Named(*zone)),
            None => fixed(name).map(Zone::Fixed).ok_or_else(|| CronError::Zone(super::shortened(name))),
        }
    }

    /// Seconds that wall clocks are ahead of UTC at `at`; `None` outside the calendar's range.
    pub(super) fn offset(&self, at: Seconds) -> Option<Seconds> {
        let utc = DateTime::from_timestamp(at, 0)?.naive_utc();
        let seconds = match self {
            Zone::Named(zone) => zone.offset_from_utc_datetime(&utc).fix().local_minus_utc(),
            Zone::Fixed(seconds) => return Some(*seconds),
            Zone::Local => chrono::Local.offset_from_utc_datetime(&utc).fix().local_minus_utc(),
        };
        Some(seconds.into())
    }

    /// What wall clocks show at `at`.
    pub(super) fn wall(&self, at: Seconds) -> Option<NaiveDateTime> {
        wall_at(at, self.offset(at)?)
    }

    /// The first instant at which wall clocks show `wall` or, where they jump over it, the instant
    /// of that jump.
    pub(super) fn first_instant(&self, wall: NaiveDateTime) -> Option<Seconds> {
        let reading = wall.and_utc().timestamp();
        let (before, after) = (self.offset(reading - DAY)?, self.offset(reading + DAY)?);
        for offset in [before.max(after), before.min(after)] {
            if self.offset(reading - offset)? == offset {
                return Some(reading - offset);
            }
        }
        self.change(reading - after, reading - before)
    }

    /// The first instant after `from`, `to` at the latest, at which the offset is no longer that of
    /// `from`; both must be close enough to hold one change at most.
    pub(super) fn change(&self, from: Seconds, to: Seconds) -> Option<Seconds> {
        let old = self.offset(from)?;
        let (mut same, mut changed) = (from, to);
        while changed - same > 1 {
            let middle = same + (changed - same) / 2;
            if self.offset(middle)? == old { same = middle } else { changed = middle }
        }
        Some(changed)
    }

    /// Whether `at` lies in the second pass of a repeated stretch of wall-clock time.
    pub(super) fn is_second_pass(&self, at: Seconds) -> Option<bool> {
        let (before, now) = (self.offset(at - DAY)?, self.offset(at)?);
        // The same reading under the old offset was `before - now` seconds ago.
        Some(before > now && self.offset(at - (before - now))? == before)
    }
}

pub(super) fn wall_at(at: Seconds, offset: Seconds) -> Option<NaiveDateTime> {
    Some(DateTime::from_timestamp(at.checked_add(offset)?, 0)?.naive_utc())
}

/// `UTC`, `UTC+5`, `utc-03:30`.
fn fixed(name: &str) -> Option<Seconds> {
    let sign_on = name.get(..3).filter(|utc| utc.eq_ignore_ascii_case("utc")).and_then(|_| name.get(3..))?;
    let (sign, rest) = match sign_on.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "00"));
    let digits = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
        (lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<i64>().ok()).flatten()
    };
    Some(sign * (digits(hours, 1..=2)? * 3600 + digits(minutes, 2..=2)? * 60))
}
