//! What comes from outside and means no good, and clients that are slow, silent or many.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Scene;

/// Sends bytes as they are, and closes our side if `close`; the answer.
fn send(scene: &Scene, bytes: &[u8], close: bool) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", scene.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The other side may stop reading.
    let _ = stream.write_all(bytes);
    if close {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_mean_harm_are_refused_and_nothing_is_started() {
    let scene = Scene::new();
    let _listener = scene.listen();
    for line in [
        "db_instance=main1; touch x",
        "db_instance=main1, --pgdata=/",
        "db_instance=main1, pgdata=/",
        "db_instance=$(touch x)",
        "db_instance=main1`touch x`",
        "db_instance=main1, backup_id=../../../etc/passwd",
        "db_instance=main1, backup_id=-B/",
        "db_instance=main1 --pgdata=/",
        "db_instance=main1\0",
        "db_host=127.0.0.1",
        "GET / HTTP/1.1",
        "",
        "db_instance=main1, db_instance=main1",
    ] {
        assert_eq!(scene.ask(line), "Invalid data format", "{line:?}");
    }
    assert_eq!(scene.ask("db_instance=unknown"), "Не найдено сопоставление db_host для db_instance: unknown");
    assert_eq!(scene.ask("incremental"), "Не найдено сопоставление db_host для db_instance: None");
    assert_eq!(
        scene.ask("db_instance=main1, db_host=evil.example.org"),
        "Error: db_host evil.example.org is not an allowed target"
    );
    // Only the first line is a request.
    assert_eq!(send(&scene, b"hello\ndb_instance=main1\n", true), "Invalid data format\n");
    assert_eq!(send(&scene, b"\ndb_instance=main1\n", true), "Invalid data format\n");
    // Ten megabytes without a newline, and with one at the end; bytes that are no text.
    let long = vec![b'a'; 10 << 20];
    assert_eq!(send(&scene, &long, true), "Invalid data format\n");
    assert_eq!(send(&scene, &[&long[..], b"\n"].concat(), false), "Invalid data format\n");
    assert_eq!(send(&scene, &[0xff, 0xfe, 0, 1, 2, b'\n'], false), "Invalid data format\n");
    assert_eq!(scene.ask("status"), "[]");
    assert!(scene.calls("restore").is_empty() && !scene.path("x").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_say_nothing_or_half_a_line_keep_nobody_waiting() {
    let scene = Scene::new();
    let _listener = scene.listen();
    let connect = || TcpStream::connect(("127.0.0.1", scene.port)).unwrap();
    let silent: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"db_inst").unwrap();
    let begun = Instant::now();
    assert_eq!(scene.ask("status"), "[]");
    assert!(begun.elapsed() < Duration::from_secs(2), "it waited {:?}", begun.elapsed());
    // Without a newline, and the connection left open: silence ends the request.
    let begun = Instant::now();
    assert_eq!(send(&scene, b"status", false), "[]\n");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(send(&scene, b"status", true), "[]\n");
    // One that goes on and on is not taken for complete, although it would read as a restore.
    let mut slow = connect();
    let begun = Instant::now();
    slow.write_all(b"db_instance=main1").unwrap();
    while begun.elapsed() < Duration::from_secs(12) && slow.write_all(b" ").is_ok() {
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer == b"Invalid data format\n", "{answer:?}");
    assert_eq!(scene.ask("status"), "[]");
    drop(silent);
}

/// Regression: 64 connections without a word kept everybody out for ten seconds at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_hold_connections_open_keep_nobody_out() {
    let mut scene = Scene::new();
    let token = "a-token-of-24-characters";
    scene.set("token", json!(token));
    let _listener = scene.listen();
    let connect = |words: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", scene.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(words);
        stream
    };
    // Silent, in the middle of a word, refused and still there: three times as many as have a place.
    let mut strangers: Vec<TcpStream> =
        [&b""[..], b"token=", b"status\n"].into_iter().flat_map(|words| (0..64).map(move |_| words)).map(connect).collect();
    for _ in 0..10 {
        assert_eq!(scene.ask(&format!("token={token}, status")), "[]");
        strangers.push(connect(b""));
    }
    // The one that waited longest was told why it is let go; the youngest still has its place.
    let mut told = String::new();
    let _ = strangers[0].read_to_string(&mut told);
    assert!(told.contains("64 connections wait without a request, which is the limit"), "{told}");
    let mut youngest = strangers.pop().unwrap();
    youngest.write_all(format!("token={token}, status\n").as_bytes()).unwrap();
    let mut answer = String::new();
    youngest.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "[]\n");
    assert!(scene.log("listener.log").contains("those that wait longest give way"), "{}", scene.log("listener.log"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_token_nobody_is_answered_without_it_and_it_is_nowhere_else() {
    let mut scene = Scene::new();
    let token = "a-token-of-24-characters";
    scene.set("token", json!(token));
    scene.set("host", json!("0.0.0.0"));
    let _listener = scene.listen();
    let wrong = "a-token-of-24-characterz";
    for line in [
        "status",
        "show",
        "cancel, id=7",
        "db_instance=main1",
        "nonsense",
        &format!("token={wrong}, status"),
        &format!("status, token={token}"),
        "token=, status",
    ] {
        assert_eq!(scene.ask(line), "Unauthorized", "{line}");
    }
    assert_eq!(scene.ask(&format!("token={token}, status")), "[]");
    let id = scene.accepted(&format!("token={token}, db_instance=main1"));
    assert_eq!(scene.ask(&format!("token={token}, cancel, id={id}")), format!("Task {id} canceled."));
    for log in ["listener.log", "Logs/bot.log"] {
        assert!(!scene.log(log).contains(token), "{}", scene.log(log));
    }
    let state = std::fs::read(scene.path("tasks.db")).unwrap();
    assert!(!state.windows(token.len()).any(|part| part == token.as_bytes()));

    // Without one it listens to this machine only.
    scene.config.remove("token");
    let output = scene.command(&["listen"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && errors.contains("set `token`, or let `host` be 127.0.0.1"), "{errors}");
}
