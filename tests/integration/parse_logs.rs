//! `parse-logs` prints the reference's report from both log formats, and says what is missing.

use bullwork::ops::parse_logs::{ParseLogsError, run};

const REFERENCE: &str = include_str!("../../data/logs/replication.log");
const REFERENCE_REPORT: &str = include_str!("../../data/logs/replication.expected.txt");
const OURS: &str = include_str!("../../data/logs/bullwork.log");
const OUR_REPORT: &str = include_str!("../../data/logs/bullwork.expected.txt");

fn report(log: &str, date: &str) -> String {
    run(log.as_bytes(), date).expect("a report").to_string()
}

fn failure(log: &str, date: &str) -> String {
    run(log.as_bytes(), date).expect_err("no report").to_string()
}

fn line(time: &str, text: &str) -> String {
    format!("2026-03-14 {time}.000000 +0000 {text}\n")
}

#[test]
fn the_reference_format_gives_the_reference_report() {
    assert_eq!(report(REFERENCE, "2026-03-14"), REFERENCE_REPORT);
}

#[test]
fn our_json_lines_give_the_same_report() {
    assert_eq!(report(OURS, "2026-03-14"), OUR_REPORT);
}

/// Regression against the reference: it rounded the seconds alone, so 59.8 s became `60s`.
#[test]
fn sixty_seconds_never_appear() {
    for (log, date) in [(REFERENCE, "2026-03-14"), (REFERENCE, "2026-03-13"), (OURS, "2026-03-14")] {
        let text = report(log, date);
        assert!(!text.contains(" 60s") && !text.contains(" 60min"), "{text}");
    }
}

#[test]
fn our_lines_behind_a_platform_prefix_are_read_as_well() {
    let prefixed: String = OURS
        .lines()
        .map(|json| {
            let time = json.split("\"time\": \"").nth(1).unwrap();
            format!("{} {}000 +0000 [background-1] {json}\n", &time[..10], &time[11..23])
        })
        .collect();
    assert_eq!(report(&prefixed, "2026-03-14"), OUR_REPORT);
}

/// Regression against the reference: a type error.
#[test]
fn a_missing_marker_is_named() {
    let start = line("05:00:00", "Start create Backup");
    let restore = line("05:10:00", "Start restore");
    let other = line("05:20:00", "nothing of interest");
    assert!(failure(&other, "2026-03-14").contains("no line with `Start create Backup`"));
    assert!(failure(&format!("{start}{other}"), "2026-03-14").contains("no line with `Start restore`"));
    assert!(failure(&format!("{start}{restore}{other}"), "2026-03-14").contains("no line with `Restore done`"));
    let text = failure(REFERENCE, "2026-03-15");
    assert_eq!(
        text,
        "the log of 2026-03-15 has no line with `Start restore`: the replication did not get beyond reading the source"
    );
}

#[test]
fn a_day_or_a_date_that_is_not_there_is_told() {
    let text = failure(REFERENCE, "2026-04-01");
    assert_eq!(text, "the log has no line of 2026-04-01; its lines are from 2026-03-13 to 2026-03-15");
    assert!(failure("no times here\n", "2026-04-01").contains("no line with a time at all"));
    assert!(failure("", "2026-04-01").contains("no line with a time at all"));
    for date in ["14/03/2026", "2026-3-14", "2026-02-30", ""] {
        assert!(matches!(run(REFERENCE.as_bytes(), date), Err(ParseLogsError::Date(_))), "{date}");
    }
}

/// Regression against the reference: it mixed the runs of a day, and so the items of a run that
/// failed with those of the run that repeated it.
#[test]
fn several_runs_of_a_day_are_reported_one_by_one() {
    let first = [
        line("05:00:00", "Start create Backup"),
        line("05:10:00", "Start restore"),
        line("05:11:00", "pg_restore: launching item 1 TABLE DATA answers"),
        line("05:12:00", "pg_restore: error: connection lost"),
    ];
    let second = [
        line("06:00:00", "Start create Backup"),
        line("06:10:00", "Start restore"),
        line("06:11:00", "pg_restore: launching item 1 TABLE DATA answers"),
        line("06:12:00", "pg_restore: finished item 1 TABLE DATA answers"),
        line("06:20:00", "Restore done"),
        line("06:30:00", "Import and enrichment done"),
    ];
    assert_eq!(
        report(&(first.concat() + &second.concat()), "2026-03-14"),
        "Réplication 1 sur 2, commencée à 05:00:00
Inachevée : aucune ligne « Restore done »

Réplication 2 sur 2, commencée à 06:00:00
Durée de création du backup: 0h 10min 0s
Durée de réplication: 0h 10min 0s
Durée de l'enrichissement: 0h 10min 0s
Durée totale: 0h 30min 0s
FK CONSTRAINT total duration : 0h 0min 0s
CONSTRAINT total duration : 0h 0min 0s
INDEX total duration : 0h 0min 0s
SEQUENCE total duration : 0h 0min 0s
TABLE DATA total duration : 0h 1min 0s
\tTABLE DATA answers : 0h 1min 0s
"
    );
}

/// Regression: the first run's enrichment went on until the second began.
#[test]
fn a_finished_run_ends_with_its_last_line_whatever_follows_that_day() {
    let night = |hour: u32| {
        [
            line(&format!("{hour:02}:00:00"), "Start import and enrichment"),
            line(&format!("{hour:02}:00:00"), "Start create Backup"),
            line(&format!("{hour:02}:10:00"), "Start restore"),
            line(&format!("{hour:02}:20:00"), "Restore done"),
        ]
        .concat()
    };
    let done = line("05:21:00", "Import and enrichment done");
    let noon = line("12:00:00", "Data Catalog enrichment starting");
    let told = report(&(night(5) + &done + &noon), "2026-03-14");
    assert!(told.contains("enrichissement: 0h 1min 0s"), "{told}");
    let told = report(&(night(5) + &done + &noon + &night(15)), "2026-03-14");
    assert!(told.contains("enrichissement: 0h 1min 0s") && told.contains("enrichissement: 0h 0min 0s"), "{told}");
    // The first one was never done: it ends before the next, whose first line is not its own.
    let told = report(&(night(5) + &line("05:30:00", "failed") + &night(15)), "2026-03-14");
    assert!(told.contains("enrichissement: 0h 10min 0s") && told.contains("enrichissement: 0h 0min 0s"), "{told}");
}

#[test]
fn bytes_that_are_no_text_and_broken_lines_are_passed_over() {
    let mut log = line("05:00:00", "Start create Backup").into_bytes();
    log.extend_from_slice(b"2026-03-14 05:00:01.000000 +0000 \xff\xfe {broken\n2026-03-14 not a time\n{\"msg\":3,\"time\":[]}\n");
    log.extend(line("05:10:00", "Start restore").bytes());
    log.extend(line("05:10:00", "launching item x INDEX a").bytes());
    log.extend(line("05:10:00", "finished item 99999999999999999999999 INDEX a").bytes());
    log.extend(line("05:20:00", "Restore done").bytes());
    assert!(run(log.as_slice(), "2026-03-14").unwrap().to_string().contains("Durée totale: 0h 20min 0s"));
}
