//! Our slots are those of Bull 4 with cron-parser 4.9: every recorded case is run here. Differences
//! that are wanted are named one by one, with the reason; ADR 0002 tells them to people.

use bullwork::cron::{check, next_every, next_run};
use chrono::DateTime;
use proptest::prelude::*;
use serde_json::Value;

const CRON_VECTORS: &str = include_str!("../vectors/cron-vectors.json");
const BULL_VECTORS: &str = include_str!("../vectors/bull-vectors.json");

/// Recorded cases that say nothing about slots: the queue answers for them.
const NOT_ABOUT_SLOTS: &[(&str, &str)] = &[
    ("cron + endDate already past: nothing is created", "the queue compares end dates before it asks for a slot"),
    ("every + cron: error", "the queue refuses the two together"),
    ("every as a string: string concatenation, broken schedule", "a fault of Bull: periods are numbers here"),
];

fn millis(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).expect("vectors hold RFC 3339 times").timestamp_millis()
}

fn iso(ms: Option<i64>) -> String {
    ms.and_then(DateTime::from_timestamp_millis)
        .map_or_else(|| "never".to_owned(), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

#[test]
fn chained_slots_are_those_of_cron_parser() {
    let vectors: Value = serde_json::from_str(CRON_VECTORS).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 124);
    let mut wrong = Vec::new();
    for case in cases {
        let (pattern, zone) = (case["pattern"].as_str().unwrap(), case["tz"].as_str());
        let mut after = millis(case["from"].as_str().unwrap());
        if case["error"] == Value::Bool(true) {
            if next_run(pattern, zone, after).is_ok() {
                wrong.push(format!("{pattern}: accepted, but Bull refuses it"));
            }
            continue;
        }
        for (index, expected) in case["next"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).enumerate() {
            let got = next_run(pattern, zone, after);
            if got != Ok(Some(millis(expected))) {
                wrong.push(format!("{pattern} in {zone:?}, run {index}: {got:?} is not {expected}"));
                break;
            }
            after = millis(expected);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The slots of one recorded chain: each run is taken `late_ms` after its slot.
fn compare_chain(case: &Value, wrong: &mut Vec<String>) {
    let title = case["title"].as_str().expect("a recorded case has it");
    let repeat = &case["repeat"];
    let late = case["late_ms"].as_i64().expect("a recorded case has it");
    let mut now = case["now"].as_i64().expect("a recorded case has it");
    let start = repeat["startDate"].as_str().map_or(i64::MIN, millis);
    let slot = |base: i64| match repeat["cron"].as_str() {
        Some(cron) => next_run(cron, repeat["tz"].as_str(), base.max(start)),
        None => Ok(next_every(repeat["every"].as_i64().expect("a number"), base)),
    };
    if case["error"].is_string() {
        if slot(now).is_ok() {
            wrong.push(format!("{title}: accepted, but Bull refuses it"));
        }
        return;
    }
    for expected in case["next"].as_array().expect("a recorded case has it") {
        let expected = expected["millis"].as_i64().expect("a recorded case has it");
        match slot(now) {
            Ok(Some(got)) if got == expected => now = got + late,
            got => {
                wrong.push(format!("{title}: after {} {got:?} is not {}", iso(Some(now)), iso(Some(expected))));
                return;
            }
        }
    }
}

fn compare_section(section: &str, cases: usize) {
    let vectors: Value = serde_json::from_str(BULL_VECTORS).expect("a recorded case has it");
    let recorded = vectors[section].as_array().expect("a recorded case has it");
    assert_eq!(recorded.len(), cases);
    let mut wrong = Vec::new();
    for case in recorded {
        if !NOT_ABOUT_SLOTS.iter().any(|(title, _)| case["title"] == *title) {
            compare_chain(case, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs one of the tests below again in a process with another time zone: it is read once.
fn again_with_tz(test: &str, zone: &str) {
    let output = std::process::Command::new(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", &format!("cron::{test}"), "--ignored"])
        .env("TZ", zone)
        .output()
        .expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn repeated_jobs_get_the_slots_bull_gives_them() {
    again_with_tz("in_utc", "UTC");
}

#[test]
fn without_a_time_zone_that_of_the_process_counts() {
    again_with_tz("in_paris", "Europe/Paris");
}

#[test]
#[ignore = "run by repeated_jobs_get_the_slots_bull_gives_them with TZ set"]
fn in_utc() {
    compare_section("repeat", 74);
}

#[test]
#[ignore = "run by without_a_time_zone_that_of_the_process_counts with TZ set"]
fn in_paris() {
    compare_section("repeat_without_tz_in_a_process_with_TZ_Europe_Paris", 14);
}

/// Differences that are wanted (ADR 0002): a fixed hour is not lost where the clocks jump over
/// midnight (Cairo) or by half an hour (Lord Howe), and does not run twice there either.
#[test]
fn a_nightly_slot_survives_every_kind_of_gap() {
    for (expression, zone, after, ours) in [
        // cron-parser skips the whole of 24 April.
        ("0 0 * * *", "Africa/Cairo", "2026-04-22T22:00:00Z", "2026-04-23T22:00:00.000Z"),
        ("30 0 * * *", "Africa/Cairo", "2026-04-22T22:30:00Z", "2026-04-23T22:30:00.000Z"),
        ("0 0 24 4 *", "Africa/Cairo", "2026-04-01T00:00:00Z", "2026-04-23T22:00:00.000Z"),
        // 02:00 to 02:30 is missing; cron-parser skips the day.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T15:45:00Z", "2026-10-03T15:45:00.000Z"),
        // 01:30 to 02:00 comes twice; cron-parser runs twice.
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T14:45:00Z", "2026-04-05T15:15:00.000Z"),
    ] {
        assert_eq!(iso(next_run(expression, Some(zone), millis(after)).unwrap()), ours, "{expression} in {zone}");
    }
}

/// Differences that are wanted: texts that cron-parser takes by mistake.
#[test]
fn texts_without_a_meaning_are_refused() {
    for (expression, problem) in [
        ("1-5-7 * * * *", "minute `5-7` is not understood"),
        ("0 0 LL * *", "day of month `LL` is not understood"),
        ("0 0 * * L", "a value is missing in day of week"),
        ("0 0 * * 1L#2", "`#` in day of week `1L#2` goes with one day only"),
        ("0 0 * 1feb *", "month `1feb` is not understood"),
    ] {
        let error = check(expression, Some("UTC")).unwrap_err().to_string();
        assert!(error.contains(problem), "{expression}: {error}");
    }
}

#[test]
fn an_error_names_the_expression_what_is_wrong_and_a_good_one() {
    for (expression, zone, message) in [
        (
            "60 * * * *",
            "UTC",
            "cron expression `60 * * * *`: minute `60` is outside 0-59; for example `10 5 * * *` is every day at 05:10",
        ),
        (
            "0 22-2 * * *",
            "UTC",
            "cron expression `0 22-2 * * *`: the range in hour `22-2` runs backwards; for example `10 5 * * *` is every day at 05:10",
        ),
        ("* * * * *", "Mars/Base", "time zone `Mars/Base` is unknown; write an IANA name such as `Europe/Paris` or `UTC`"),
        ("", "UTC", "cron expression ``: it is empty; for example `10 5 * * *` is every day at 05:10"),
    ] {
        assert_eq!(check(expression, Some(zone)).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_date_that_does_not_exist_ends_the_search_and_is_refused_in_a_schedule() {
    for expression in ["0 0 31 4,6 *", "0 0 31 2,2 *", "0 0 20 * 1#2"] {
        let found = next_run(expression, Some("Europe/Paris"), 1_768_471_623_250);
        if expression.contains('#') {
            assert!(found.unwrap().is_some(), "{expression}");
        } else {
            assert_eq!(found, Ok(None), "{expression}");
            let error = check(expression, Some("Europe/Paris")).unwrap_err().to_string();
            assert!(error.contains("it never fires"), "{error}");
        }
    }
    assert!(check("0 0 29 2 *", None).is_ok());
}

#[test]
fn zones_are_known_in_any_case_and_by_offset() {
    let at = |zone| iso(next_run("0 5 * * *", Some(zone), 1_768_471_623_250).unwrap());
    assert_eq!(at("europe/paris"), "2026-01-16T04:00:00.000Z");
    assert_eq!(at("UTC+2"), "2026-01-16T03:00:00.000Z");
    assert_eq!(at("utc-03:30"), "2026-01-16T08:30:00.000Z");
}

#[test]
fn periods_are_aligned_on_the_epoch() {
    assert_eq!(next_every(5_000, 4_999), Some(5_000));
    assert_eq!(next_every(5_000, 5_000), Some(10_000));
    assert_eq!(next_every(5_000, -1), Some(0));
    assert_eq!(next_every(0, 1), None);
    assert_eq!(next_every(-5, 1), None);
    assert_eq!(next_every(i64::MAX, i64::MAX), None);
}

/// An expression that is mostly well-formed.
fn expressions() -> impl Strategy<Value = String> {
    let minutes = prop_oneof![Just("*".to_owned()), Just("*/15".to_owned()), (0..60u32).prop_map(|m| m.to_string())];
    let hours =
        prop_oneof![Just("*".to_owned()), Just("*/2".to_owned()), Just("1-3".to_owned()), (0..24u32).prop_map(|h| h.to_string())];
    let days = prop_oneof![Just("*".to_owned()), Just("L".to_owned()), (1..32u32).prop_map(|d| d.to_string())];
    let weekdays =
        prop_oneof![Just("*".to_owned()), Just("5L".to_owned()), Just("2#2".to_owned()), (0..8u32).prop_map(|d| d.to_string())];
    (minutes, hours, days, weekdays).prop_map(|(m, h, d, w)| format!("{m} {h} {d} * {w}"))
}

const ZONES: [&str; 8] = [
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Africa/Cairo",
    "America/Havana",
    "America/St_Johns",
    "Pacific/Apia",
];

proptest! {
    #[test]
    fn slots_only_go_forward(expression in expressions(), zone in 0..ZONES.len(), after in 0i64..2_200_000_000_000, later in 0i64..90_000_000) {
        let next = |after| next_run(&expression, Some(ZONES[zone]), after).unwrap();
        if let Some(first) = next(after) {
            prop_assert!(first > after);
            prop_assert_eq!(first % 1000, 0);
            // Asking later never gives an earlier slot.
            if let Some(second) = next(after + later) {
                prop_assert!(second >= first, "{} then {}", first, second);
            }
        }
    }

    #[test]
    fn no_text_and_no_time_panics(expression in "\\PC{0,24}", zone in "\\PC{0,8}", after in any::<i64>()) {
        let _ = next_run(&expression, Some(&zone), after);
        let _ = next_run(&expression, Some("Europe/Paris"), after);
        let _ = check(&expression, Some("UTC"));
    }

    #[test]
    fn no_mixture_of_cron_signs_panics(expression in "[0-9*/,?L#@ a-dj-n-]{0,20}", after in any::<i64>()) {
        let _ = next_run(&expression, Some("Africa/Casablanca"), after);
    }

    #[test]
    fn periods_only_go_forward(every in any::<i64>(), after in any::<i64>()) {
        if let Some(next) = next_every(every, after) {
            prop_assert!(next > after && next % every == 0);
            prop_assert!(i128::from(next) - i128::from(every) <= i128::from(after));
        }
    }
}
