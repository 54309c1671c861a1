//! The next instant that matches an expression.
//!
//! The search walks forward through real time, by days, then hours, minutes and seconds, and reads
//! the wall clock at each stop. Walking instants rather than wall-clock times is what keeps it
//! strictly increasing through every change of the clocks.

use chrono::{Datelike, Duration, NaiveDateTime, NaiveTime, Timelike};

use super::expression::Expression;
use super::zone::{Seconds, Zone, wall_at};
use crate::clock::Millis;

/// Stops before the search gives up, as in Bull's library: enough for 29 February across 2100,
/// and the end for dates that do not exist.
const MOST_STEPS: usize = 10_000;

pub(super) fn next(expression: &Expression, zone: &Zone, after: Millis) -> Option<Millis> {
    let mut at = after.div_euclid(1000);
    let mut target = Some(at + 1);
    // A slot that the clocks jumped over, moved behind the gap.
    let mut moved: Option<Seconds> = None;
    for _ in 0..MOST_STEPS {
        let to = target?;
        if moved.is_none() && !expression.every_hour() {
            moved = slot_in_gap(expression, zone, at, to)?;
        }
        at = to;
        if let Some(moved) = moved.filter(|moved| *moved <= at) {
            return moved.checked_mul(1000);
        }
        match step(expression, zone, at)? {
            Step::Match => return at.checked_mul(1000),
            Step::To(next) => target = Some(next),
        }
    }
    None
}

enum Step {
    Match,
    To(Seconds),
}

/// Whether `at` matches, and if not, the next instant that may.
fn step(expression: &Expression, zone: &Zone, at: Seconds) -> Option<Step> {
    let wall = zone.wall(at)?;
    let date = wall.date();
    if !expression.day_matches(date) {
        let next_month = !expression.month_matches(date);
        let next = if next_month { date.with_day(1)?.checked_add_months(chrono::Months::new(1))? } else { date.succ_opt()? };
        // Where midnight is repeated, its first pass may lie behind us.
        return Some(Step::To(zone.first_instant(next.and_time(NaiveTime::MIN))?.max(at + 1)));
    }
    let into_hour = i64::from(wall.minute() * 60 + wall.second());
    if !expression.hour_matches(wall.hour()) || (!expression.every_hour() && zone.is_second_pass(at)?) {
        return Some(Step::To(at + 3600 - into_hour));
    }
    if !expression.minute_matches(wall.minute()) {
        return Some(Step::To(at + 60 - i64::from(wall.second())));
    }
    if !expression.second_matches(wall.second()) {
        return Some(Step::To(at + 1));
    }
    Some(Step::Match)
}

/// The first slot among the wall-clock times that are jumped over between two instants, as the
/// instant it would have been without the jump: behind the gap, by its length.
#[expect(clippy::option_option, reason = "the outer one is the end of the calendar")]
fn slot_in_gap(expression: &Expression, zone: &Zone, from: Seconds, to: Seconds) -> Option<Option<Seconds>> {
    let (before, after) = (zone.offset(from)?, zone.offset(to)?);
    if after <= before {
        return Some(None);
    }
    let jump = zone.change(from, to)?;
    let (mut missing, end) = (wall_at(jump, before)?, wall_at(jump, after)?);
    while missing < end {
        if expression.day_matches(missing.date()) && expression.hour_matches(missing.hour()) {
            if expression.minute_matches(missing.minute()) {
                if expression.second_matches(missing.second()) {
                    return Some(Some(missing.and_utc().timestamp() - before));
                }
                missing += Duration::seconds(1);
            } else {
                missing = start_of_next_minute(missing)?;
            }
        } else {
            missing = start_of_next_minute(missing)?;
        }
    }
    Some(None)
}

fn start_of_next_minute(wall: NaiveDateTime) -> Option<NaiveDateTime> {
    wall.with_second(0)?.checked_add_signed(Duration::minutes(1))
}
