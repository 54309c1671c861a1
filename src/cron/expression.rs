//! The text of an expression, read into sets of values.

use chrono::{Datelike, NaiveDate};

use super::CronError;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What a field may hold.
struct Form {
    name: &'static str,
    least: u32,
    most: u32,
    /// Used when the field is left out.
    default: &'static str,
}

const SECOND: Form = Form { name: "second", least: 0, most: 59, default: "0" };
const MINUTE: Form = Form { name: "minute", least: 0, most: 59, default: "*" };
const HOUR: Form = Form { name: "hour", least: 0, most: 23, default: "*" };
const DAY: Form = Form { name: "day of month", least: 1, most: 31, default: "*" };
const MONTH: Form = Form { name: "month", least: 1, most: 12, default: "*" };
const WEEKDAY: Form = Form { name: "day of week", least: 0, most: 7, default: "*" };
const FORMS: [&Form; 6] = [&SECOND, &MINUTE, &HOUR, &DAY, &MONTH, &WEEKDAY];

/// The values of one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set {
    bits: u64,
    /// How many values the list names, repeated ones counted again. Bull tells a restricted field
    /// from an open one by this number, so we do too.
    listed: u32,
}

impl Set {
    fn has(self, value: u32) -> bool {
        value < 64 && self.bits & (1 << value) != 0
    }
}

/// An expression, ready to be matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    second: Set,
    minute: Set,
    hour: Set,
    day: Set,
    last_day: bool,
    month: Set,
    weekday: Set,
    /// Days of the week whose last one in the month matches, 0 = Sunday.
    last_weekday: Set,
    /// `#2`: only in the second week-long stretch of the month.
    occurrence: Option<u32>,
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Expression, CronError> {
        read(text).map_err(|problem| CronError::expression(text, problem))
    }

    /// Whether hours are left open; then the clocks' changes need no care.
    pub(super) fn every_hour(&self) -> bool {
        self.hour.listed == 24
    }

    pub(super) fn second_matches(&self, second: u32) -> bool {
        self.second.has(second)
    }

    pub(super) fn minute_matches(&self, minute: u32) -> bool {
        self.minute.has(minute)
    }

    pub(super) fn hour_matches(&self, hour: u32) -> bool {
        self.hour.has(hour)
    }

    pub(super) fn month_matches(&self, date: NaiveDate) -> bool {
        self.month.has(date.month())
    }

    /// Month and both day fields.
    pub(super) fn day_matches(&self, date: NaiveDate) -> bool {
        let is_last =
            |days_left: u64| date.checked_add_days(chrono::Days::new(days_left)).is_none_or(|d| d.month() != date.month());
        let weekday = date.weekday().num_days_from_sunday();
        let by_day = self.day.has(date.day()) || (self.last_day && is_last(1));
        let by_weekday = self.weekday.has(weekday) || (self.last_weekday.has(weekday) && is_last(7));
        let any_day = self.day.listed >= longest(date.month());
        let any_weekday = self.weekday.listed == 8;
        // Both restricted: either may match. An open field leaves it to the other.
        let matches = match (any_day, any_weekday) {
            (true, true) => true,
            (true, false) => by_weekday,
            (false, true) => by_day,
            (false, false) => by_day || by_weekday,
        };
        matches && self.month_matches(date) && self.occurrence.is_none_or(|nth| (date.day() - 1) / 7 + 1 == nth)
    }
}

fn longest(month: u32) -> u32 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn read(text: &str) -> Result<Expression, String> {
    let text = match text.trim() {
        "@yearly" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other if other.starts_with('@') => {
            return Err("only @yearly, @monthly, @weekly, @daily and @hourly are known".to_owned());
        }
        other => other,
    };
    let given: Vec<&str> = text.split_whitespace().collect();
    let left_out = FORMS
        .len()
        .checked_sub(given.len())
        .ok_or_else(|| format!("it has {} fields; five are usual, six begin with the second", given.len()))?;
    let field = |index: usize| match index.checked_sub(left_out) {
        Some(place) => given[place],
        None => FORMS[index].default,
    };

    let (mut days, mut last_day) = (Vec::new(), false);
    for item in field(3).split(',') {
        if item == "L" { last_day = true } else { days.push(item) }
    }
    let (weekdays, occurrence) = match field(5).split_once('#') {
        None => (field(5), None),
        Some((day, nth)) => (day, Some(occurrence(field(5), day, nth)?)),
    };
    let (mut plain_weekdays, mut last_weekday) = (Vec::new(), Set::default());
    for item in weekdays.split(',') {
        match item.strip_suffix('L') {
            Some(day) if occurrence.is_none() => {
                last_weekday.bits |= 1 << (value(&WEEKDAY, day)? % 7);
                last_weekday.listed += 1;
            }
            _ => plain_weekdays.push(item),
        }
    }

    let mut day = set(&DAY, &days)?;
    day.listed += u32::from(last_day);
    let mut weekday = set(&WEEKDAY, &plain_weekdays)?;
    weekday.listed += last_weekday.listed;
    let month = set(&MONTH, &field(4).split(',').collect::<Vec<_>>())?;
    if month.listed == 1 && day.bits != 0 && day.bits.trailing_zeros() > longest(month.bits.trailing_zeros()) {
        return Err(format!("the only month it names has no day {}", day.bits.trailing_zeros()));
    }
    Ok(Expression {
        second: set(&SECOND, &field(0).split(',').collect::<Vec<_>>())?,
        minute: set(&MINUTE, &field(1).split(',').collect::<Vec<_>>())?,
        hour: set(&HOUR, &field(2).split(',').collect::<Vec<_>>())?,
        day,
        last_day,
        month,
        weekday,
        last_weekday,
        occurrence,
    })
}

/// The `2` of `1#2`.
fn occurrence(field: &str, day: &str, nth: &str) -> Result<u32, String> {
    if field.contains([',', '-', '/']) || day.ends_with('L') {
        return Err(format!("`#` in {} `{field}` goes with one day only, such as `2#2`", WEEKDAY.name));
    }
    number(nth)
        .filter(|nth| (1..=5).contains(nth))
        .ok_or_else(|| format!("after `#` in {} `{field}` must come 1 to 5", WEEKDAY.name))
}

fn set(form: &Form, items: &[&str]) -> Result<Set, String> {
    let mut all = Set::default();
    for item in items {
        let bits = one(form, item)?;
        all.bits |= bits;
        all.listed += bits.count_ones();
    }
    if form.most == WEEKDAY.most && all.has(7) {
        all.bits |= 1;
    }
    Ok(all)
}

/// One item of a list: `*`, `5`, `1-5`, each with or without `/step`.
fn one(form: &Form, item: &str) -> Result<u64, String> {
    let (base, step) = match item.split_once('/') {
        None => (item, None),
        Some((base, step)) => {
            let step = number(step).filter(|step| *step > 0);
            (base, Some(step.ok_or_else(|| format!("the step in {} `{item}` must be a number above 0", form.name))?))
        }
    };
    let open = base == "*" || (base == "?" && (form.most == DAY.most || form.most == WEEKDAY.most));
    let (first, last) = if open {
        (form.least, form.most)
    } else if let Some((first, last)) = base.split_once('-') {
        (value(form, first)?, value(form, last)?)
    } else {
        let only = value(form, base)?;
        match step {
            Some(_) => (only, form.most),
            None if form.most == WEEKDAY.most => return Ok(1 << (only % 7)),
            None => return Ok(1 << only),
        }
    };
    if first > last {
        return Err(format!("the range in {} `{item}` runs backwards", form.name));
    }
    let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
    let mut bits = (first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value);
    if form.most == WEEKDAY.most && last % 7 == 0 {
        // A range up to 7 holds Sunday even when its step passes over it: Bull's library does so.
        bits |= 1;
    }
    Ok(bits)
}

/// A number within the field's limits, or a name.
fn value(form: &Form, text: &str) -> Result<u32, String> {
    let names: &[&str] = match form.most {
        12 => &MONTHS,
        7 => &DAYS,
        _ => &[],
    };
    if let Some(place) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(form.least + u32::try_from(place).unwrap_or(0));
    }
    match number(text) {
        Some(number) if (form.least..=form.most).contains(&number) => Ok(number),
        Some(_) => Err(format!("{} `{text}` is outside {}-{}", form.name, form.least, form.most)),
        None if text.is_empty() => Err(format!("a value is missing in {}", form.name)),
        None => Err(format!("{} `{text}` is not understood", form.name)),
    }
}

/// Digits only; a number too large for anything is the largest one.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u32::MAX))
}
