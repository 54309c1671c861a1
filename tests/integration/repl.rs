//! The REPL as a script: commands from a pipe.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use bullwork::clock::Clock;
use bullwork::queue::{NewJob, Queue};
use bullwork::redis::Redis;
use bullwork::worker::RetryPolicy;
use serde_json::json;

use crate::support::redis::RedisServer;

fn repl(program: &str, arguments: &[&str], variables: &[(&str, &str)], script: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn filled(redis: &RedisServer) -> Queue {
    let policy = RetryPolicy { attempts: 1, base: std::time::Duration::ZERO, keep_completed: 9, keep_failed: 9 };
    let queue = Queue::new(Redis::new(&redis.url()).unwrap(), "bull", "Replication queue", Clock::System);
    for _ in 0..2 {
        queue.add(&NewJob::unnamed(json!({}), policy.options())).await.unwrap();
    }
    let mut later = policy.options();
    later.delay = 3_600_000;
    queue.add(&NewJob::unnamed(json!({"later": true}), later)).await.unwrap();
    queue
}

#[tokio::test]
async fn stats_and_lists_show_the_queue_and_verbs_operate_it() {
    let redis = RedisServer::start();
    let queue = filled(&redis).await;
    let script = format!(
        "connect \"Replication queue\" -p {}\nstats\nwaiting\ndelayed\nget 3\npause\nstats\nresume\npromote 3\nrm 2\n# a comment\n\nlogs 1\nexit\nstats\n",
        redis.port
    );
    for (program, arguments) in [(env!("CARGO_BIN_EXE_bull-repl"), vec![]), (env!("CARGO_BIN_EXE_bullwork"), vec!["repl"])] {
        let output = repl(program, &arguments, &[], &script);
        let shown = text(&output);
        if program.ends_with("bull-repl") {
            assert!(output.status.success(), "{shown}");
            for wanted in [
                "waiting",
                "active",
                "completed",
                "failed",
                "delayed",
                "paused",
                "{\"later\":true}",
                "is paused",
                "is resumed",
                "removed job 2",
            ] {
                assert!(shown.contains(wanted), "`{wanted}` is missing: {shown}");
            }
            let counts = queue.counts().await.unwrap();
            assert_eq!((counts.waiting, counts.delayed, counts.paused), (2, 0, 0));
        } else {
            // The second time job 3 is not delayed any more: the script stops there.
            assert_eq!(output.status.code(), Some(1));
            assert!(shown.contains("line 9: ") && shown.contains("is not delayed"), "{shown}");
        }
    }
}

#[tokio::test]
async fn mistakes_are_told_and_end_a_script() {
    let redis = RedisServer::start();
    let url = redis.url();
    for (script, wanted) in [
        ("stats\n", "not connected"),
        ("frobnicate\n", "frobnicate"),
        ("connect \"Replication queue\"\nget 99\n", "no job `99`"),
        ("connect \"Replication queue\"\nretry 99\n", "no job `99`"),
        ("connect \"Replication queue\nstats\n", "not closed"),
        ("connect x -h 127.0.0.1 -p 1 --password topsecret1\n", "127.0.0.1:1"),
    ] {
        let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[("REDIS_URL", &url)], script);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(1), "{script}: {shown}");
        assert!(shown.contains(wanted) && !shown.contains("topsecret1"), "{script}: {shown}");
    }
    let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[("REDIS_URL", &url)], "help\nconnect --help\ncompleted --help\n");
    assert!(output.status.success() && text(&output).contains("stats"), "{}", text(&output));
    assert!(text(&output).contains("--password") && text(&output).contains("--start"), "{}", text(&output));
    let long = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[], &format!("{}\n", "x".repeat(1_000_000)));
    assert!(text(&long).contains("a line of 1000000 bytes") && text(&long).len() < 1000, "{}", text(&long).len());
    let address = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[], "connect q -h 127.0.0.1 -p 1\n");
    assert!(text(&address).contains("correct the address") && !text(&address).contains("REDIS_URL"), "{}", text(&address));
}

#[test]
fn the_program_tells_what_it_is_and_refuses_what_it_does_not_know() {
    let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &["--help"], &[], "");
    assert!(output.status.success() && text(&output).contains("REDIS_URL"), "{}", text(&output));
    let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &["--nosuch"], &[], "");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// Regression: a completed job ran again, and its successor was added a second time.
#[tokio::test]
async fn a_completed_job_is_retried_only_when_that_is_said() {
    let redis = RedisServer::start();
    filled(&redis).await;
    let mut connection = redis.connection().await;
    let mut done = redis::pipe();
    done.cmd("LREM").arg("bull:Replication queue:wait").arg(0).arg("1").ignore();
    done.cmd("ZADD").arg("bull:Replication queue:completed").arg(1).arg("1").ignore();
    done.query_async::<()>(&mut connection).await.unwrap();
    let url = redis.url();
    let obey = |line: &str| {
        let script = format!("connect \"Replication queue\"\n{line}\n");
        repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[("REDIS_URL", &url)], &script)
    };
    let output = obey("retry 1");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("is completed, not failed") && text(&output).contains("--completed"), "{}", text(&output));
    let output = obey("retry 1 --completed");
    assert!(output.status.success() && text(&output).contains("job 1 waits again"), "{}", text(&output));
}

/// Regression: whatever a producer had written went to the terminal as it was.
#[tokio::test]
async fn nothing_that_a_job_holds_steers_the_terminal() {
    let redis = RedisServer::start();
    let mut connection = redis.connection().await;
    let mut hostile = redis::pipe();
    let evil = "x\u{1b}]0;pwn\u{7}\u{1b}[2J\u{202e}";
    let fields = ["name", "data", "opts", "failedReason", "stacktrace", "returnvalue", "progress"];
    for field in fields {
        let value = match field {
            "name" | "failedReason" => evil.to_owned(),
            "opts" => json!({"a": evil}).to_string(),
            "stacktrace" => json!([evil]).to_string(),
            _ => json!(evil).to_string(),
        };
        hostile.cmd("HSET").arg("bull:Notification queue:77").arg(field).arg(value).ignore();
    }
    hostile.cmd("HSET").arg("bull:Notification queue:77").arg("timestamp").arg(1).ignore();
    hostile.cmd("RPUSH").arg("bull:Notification queue:77:logs").arg(evil).ignore();
    hostile.cmd("ZADD").arg("bull:Notification queue:failed").arg(1).arg("77").ignore();
    hostile.cmd("RPUSH").arg("bull:Notification queue:wait").arg(evil).ignore();
    hostile.cmd("HSET").arg(format!("bull:Notification queue:{evil}")).arg("name").arg("y").arg("data").arg("{}").ignore();
    hostile.query_async::<()>(&mut connection).await.unwrap();
    let url = redis.url();
    for line in ["get 77", "logs 77", "failed", "waiting", &format!("get 'no {evil}'")] {
        let script = format!("connect \"Notification queue\"\n{line}\n");
        let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[("REDIS_URL", &url)], &script);
        let shown = text(&output);
        assert!(shown.contains(r"\u{1b}"), "{line}: {shown}");
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{line}: {shown:?}");
    }
}
