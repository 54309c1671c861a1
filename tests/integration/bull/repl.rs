//! npm's bull-repl 0.29 on our queues: it is given a file of commands, as its users do for scripts.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use bullwork::queue::Event;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::peer::{Both, QUEUE, SOON, Side, consume, stop};
use crate::support::eventually;

/// What each command printed, in order.
async fn repl(both: &Both, commands: &[&str]) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("commands");
    std::fs::write(&file, commands.join("\n")).unwrap();
    let mut child = Command::new("node")
        .arg(both.packages.join("bull-repl/index.js"))
        .args(["connect", &format!("'{QUEUE}'"), "--host", "127.0.0.1", "--port", &both.redis.port.to_string()])
        .arg("--execFile")
        .arg(&file)
        // It keeps its connections and history there.
        .env("TMPDIR", place.path())
        .env("HOME", place.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node runs");
    let mut input = child.stdin.take().expect("it is piped");
    // `log` asks, and has no option that answers.
    let yes = tokio::spawn(async move {
        while input.write_all(b"y\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await.expect("it ends").unwrap();
    yes.abort();
    let text = plain(&String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // Each command is shown before what it prints.
    let mut rest = text.as_str();
    let mut printed = Vec::new();
    for (n, command) in commands.iter().enumerate() {
        let (before, after) = rest.split_once(&format!("{command}\n")).unwrap_or_else(|| panic!("no {command} in {text}"));
        if n > 0 {
            printed.push(before.to_owned());
        }
        rest = after;
    }
    printed.push(rest.to_owned());
    printed
}

/// Without what colours and moves the cursor.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').get(1..).unwrap_or_default()
    })
}

/// The table of counts.
fn stats(printed: &str) -> HashMap<String, u64> {
    let cells = |line: &str| line.split('│').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    printed.lines().map(cells).filter_map(|cells| Some((cells.get(1)?.clone(), cells.get(2)?.parse().ok()?))).collect()
}

fn assert_shows(printed: &str, parts: &[&str]) {
    for part in parts {
        assert!(printed.contains(part), "no {part} in {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_repl_shows_our_jobs_of_every_state() {
    let Some(both) = Both::start_beside(&["bull", "bull-repl"]).await else { return };
    let worker = consume(&both.ours, 1);
    let done = both.add(Side::Ours, json!({"log": "all is well", "progress": 70}), json!({"jobId": "done"})).await;
    let failed = both.add(Side::Ours, json!({"fail": 2}), json!({"attempts": 2, "jobId": "broken"})).await;
    both.reaches(&done, "completed").await;
    both.reaches(&failed, "failed").await;
    let active = both.add(Side::Ours, json!({"hang": true}), json!({"jobId": "running"})).await;
    both.reaches(&active, "active").await;
    both.add(Side::Ours, json!({"to": "Ann"}), json!({"jobId": "waits"})).await;
    both.add(Side::Ours, json!({"to": "Zoë"}), json!({"jobId": "first", "priority": 1})).await;
    both.add(Side::Ours, json!({}), json!({"jobId": "later", "delay": 600_000})).await;
    let commands = ["stats", "waiting", "active", "completed", "failed", "delayed", "get done", "logs done"];
    let printed = repl(&both, &commands).await;
    let counts = stats(&printed[0]);
    for (state, count) in [("waiting", 2), ("active", 1), ("completed", 1), ("failed", 1), ("delayed", 1), ("paused", 0)] {
        assert_eq!(counts.get(state), Some(&count), "{state} in {}", printed[0]);
    }
    assert_shows(&printed[1], &["id: 'waits'", "id: 'first'", "to: 'Ann'", "to: 'Zoë'", "count: 2"]);
    assert!(printed[1].find("'first'") < printed[1].find("'waits'"), "{}", printed[1]);
    assert_shows(&printed[2], &["id: 'running'", "hang: true", "count: 1"]);
    assert_shows(&printed[3], &["id: 'done'", "returnValue: { by: 'ours' }", "progress: 70", "attemptsMade: 0", "count: 1"]);
    assert_shows(&printed[4], &["id: 'broken'", "failedReason: 'boom 2'", "'Error: boom 1", "attemptsMade: 2", "count: 1"]);
    assert_shows(&printed[5], &["id: 'later'", "delay: 600000", "count: 1"]);
    assert_shows(&printed[6], &["id: 'done'", "count: 1"]);
    assert_shows(&printed[7], &["Count of job logs: 1", "all is well"]);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bull_repl_does_to_our_jobs_is_what_ours_sees() {
    let Some(both) = Both::start_beside(&["bull", "bull-repl"]).await else { return };
    let mut events = both.ours.events().await.unwrap();
    let printed = repl(
        &both,
        &[
            r#"add '{"x": 1}' --name mail --jobId 77 --attempts 4 -y"#,
            r#"add '{"x": 2}' --lifo true -y"#,
            r#"add '{"x": 3}' --priority 2 --jobId high -y"#,
            r#"add '{"x": 4}' --delay 600000 --jobId later -y"#,
            r#"add '{"x": 5}' --repeat '{"cron":"0 3 * * *","tz":"Europe/Paris"}' --name nightly -y"#,
            "log 77 'a word'",
            "pause -y",
        ],
    )
    .await;
    assert_shows(&printed[0], &["Job with name 'mail', id '77' added"]);
    let job = both.job("77").await;
    assert_eq!((job.name.as_str(), &job.data, job.attempts(), job.lifo()), ("mail", &json!({"x": 1}), 4, false));
    // The option is text there.
    let lifo = both.job("2").await;
    assert_eq!((lifo.lifo(), &lifo.opts["lifo"]), (true, &json!("true")));
    assert_eq!((both.job("high").await.priority, both.job("later").await.delay), (2, 600_000));
    assert_eq!(both.ours.logs("77", 0, -1).await.unwrap(), ["a word"]);
    let schedule = both.ours.schedules().await.unwrap().remove(0);
    assert_eq!(schedule.key, "nightly:::Europe/Paris:0 3 * * *");
    assert!(both.ours.is_paused().await.unwrap());
    let counts = both.counts().await;
    assert_eq!((counts.paused, counts.delayed), (3, 2));
    let paused = async { while events.next().await.expect("the connection stays") != Event::Paused {} };
    tokio::time::timeout(SOON, paused).await.expect("we hear of it");

    repl(&both, &["resume -y", "promote later -y", "rm 77 -y", "stats"]).await;
    assert!(!both.ours.is_paused().await.unwrap());
    assert_eq!((both.ours.job("77").await.unwrap(), both.state("later").await), (None, "waiting".to_owned()));
    let worker = Some(consume(&both.ours, 1));
    for id in ["2", "high", "later"] {
        both.reaches(id, "completed").await;
    }
    for id in ["one", "two"] {
        both.add(Side::Ours, json!({"fail": 1}), json!({"jobId": id})).await;
        both.reaches(id, "failed").await;
    }
    both.add(Side::Ours, json!({"fail": 1}), json!({"jobId": "three"})).await;
    both.reaches("three", "failed").await;
    repl(&both, &["retry one -y"]).await;
    both.reaches("one", "completed").await;
    repl(&both, &["retry-failed -y"]).await;
    for id in ["two", "three"] {
        both.reaches(id, "completed").await;
    }
    stop(worker).await;

    let last = both.ours.clock().now();
    eventually("all are older than a second", SOON, async || both.ours.clock().now() > last + 1100).await;
    let newest = both.add(Side::Ours, json!({}), json!({"delay": 600_000})).await;
    repl(&both, &["clean 1s -y"]).await;
    let counts = both.counts().await;
    assert_eq!((counts.completed, counts.delayed), (0, 2), "its default is the completed ones");
    both.job(&newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bull_repl_ends_jobs_that_ours_runs_and_our_run_is_dropped() {
    let Some(both) = Both::start_beside(&["bull", "bull-repl"]).await else { return };
    let worker = consume(&both.ours, 2);
    for id in ["to fail", "to complete"] {
        both.add(Side::Ours, json!({"hang": true}), json!({"jobId": id})).await;
        both.reaches(id, "active").await;
    }
    repl(&both, &["fail 'to fail' 'it takes too long' -y", r#"complete 'to complete' '{"by": "hand"}' -y"#]).await;
    both.reaches("to fail", "failed").await;
    both.reaches("to complete", "completed").await;
    assert_eq!(both.job("to fail").await.failed_reason.as_deref(), Some("it takes too long"));
    assert_eq!(both.job("to complete").await.return_value, Some(json!({"by": "hand"})));
    // Both slots are free again, and what was stored stays.
    for id in ["next", "next too"] {
        both.add(Side::Ours, json!({"ms": 10}), json!({"jobId": id})).await;
        both.reaches(id, "completed").await;
    }
    tokio::time::timeout(Duration::from_secs(5), worker.stop(SOON)).await.expect("no run of ours goes on");
    assert_eq!((both.state("to fail").await.as_str(), both.state("to complete").await.as_str()), ("failed", "completed"));
    assert_eq!(both.counts().await.active, 0);
}
