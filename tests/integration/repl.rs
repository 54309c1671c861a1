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
    let output = repl(env!("CARGO_BIN_EXE_bull-repl"), &[], &[("REDIS_URL", &url)], "help\nconnect --help\n");
    assert!(output.status.success() && text(&output).contains("stats"), "{}", text(&output));
}
