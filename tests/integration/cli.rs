//! The command line as a person meets it: arguments, exit codes, messages.

use std::process::{Command, Output};

use crate::support::postgres::Cluster;
use crate::support::redis::RedisServer;

fn bullwork(directory: &std::path::Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied())
        .output()
        .expect("the program runs")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn all_mistakes_of_the_configuration_are_told_in_one_message() {
    let directory = empty();
    let output = bullwork(
        directory.path(),
        &[
            ("MAX_RETRY_COUNT", "0"),
            ("EXPONENTIAL_RETRY_DELAY", "soon"),
            ("SOURCE_DATABASE_URL", "mysql://u:topsecret@h/d"),
            ("BACKUP_MODE", "{\"a\":1"),
            ("SCHEDULE", "61 * * * *"),
            ("NOTIFICATIONS", "nonsense"),
            ("REDIS_URL", "http://x"),
        ],
        &["background"],
    );
    assert_eq!(output.status.code(), Some(1));
    let message = errors(&output);
    for name in [
        "MAX_RETRY_COUNT",
        "EXPONENTIAL_RETRY_DELAY",
        "SOURCE_DATABASE_URL",
        "TARGET_DATABASE_URL",
        "BACKUP_MODE",
        "SCHEDULE",
        "NOTIFICATIONS",
        "REDIS_URL",
    ] {
        assert!(message.contains(&format!("  {name}: ")), "{name} is missing in: {message}");
    }
    assert!(message.contains("BACKUP_MODE: should be a JSON value"), "{message}");
    assert!(!message.contains("topsecret"), "{message}");
}

#[test]
fn a_worker_needs_only_its_own_kinds_settings() {
    let directory = empty();
    let output = bullwork(directory.path(), &[("REDIS_URL", "redis://127.0.0.1:1")], &["worker", "notification"]);
    assert_eq!(output.status.code(), Some(1));
    let message = errors(&output);
    assert!(message.contains("redis://127.0.0.1:1") && !message.contains("SOURCE_DATABASE_URL"), "{message}");
}

#[test]
fn unknown_kinds_and_options_are_named_with_the_way_out() {
    let directory = empty();
    for arguments in [vec!["restart:full-replicaton"], vec!["worker", "nonsense"], vec!["run", "nonsense"]] {
        let output = bullwork(directory.path(), &[], &arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors(&output).contains("the kinds are: full-replication, incremental-replication"), "{}", errors(&output));
    }
    let output = bullwork(directory.path(), &[], &["background", "--fast"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("--fast"));
}

#[test]
fn an_unreachable_redis_is_told_at_the_start() {
    let directory = empty();
    let output = bullwork(directory.path(), &[("REDIS_URL", "redis://:topsecret@127.0.0.1:1")], &["restart:notification"]);
    assert_eq!(output.status.code(), Some(1));
    let message = errors(&output);
    assert!(message.contains("redis://:***@127.0.0.1:1") && message.contains("set REDIS_URL"), "{message}");
    assert!(!message.contains("topsecret"), "{message}");
}

#[test]
fn a_server_that_is_no_redis_is_doubted() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", server.local_addr().unwrap());
    // What hangs up on the first words, as PostgreSQL does.
    std::thread::spawn(move || {
        for client in server.incoming() {
            let _ = std::io::Read::read(&mut client.unwrap(), &mut [0; 8]);
        }
    });
    let output = bullwork(empty().path(), &[("REDIS_URL", &url)], &["restart:notification"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("is what listens there a Redis?"), "{}", errors(&output));
}

#[test]
fn values_come_from_the_environment_then_the_file_then_the_default() {
    let directory = empty();
    std::fs::write(
        directory.path().join(".env"),
        "MAX_RETRY_COUNT=7\nAPP='my warehouse'\nSOURCE_DATABASE_URL=postgres://u:topsecret@h/d\n",
    )
    .unwrap();
    let output = bullwork(directory.path(), &[("MAX_RETRY_COUNT", "8")], &["config", "show"]);
    assert!(output.status.success());
    let shown = text(&output);
    let line = |name: &str| {
        shown.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {shown}")).to_owned()
    };
    assert!(line("MAX_RETRY_COUNT").contains('8') && line("MAX_RETRY_COUNT").contains("environment"));
    assert!(line("APP").contains("my warehouse") && line("APP").contains(".env"));
    assert!(line("REDIS_URL").contains("default"));
    assert!(shown.contains("postgres://u:***@h/d") && !shown.contains("topsecret"), "{shown}");

    std::fs::write(directory.path().join(".env"), "PASSWORD=top\"secret value\n").unwrap();
    let output = bullwork(directory.path(), &[], &["restart:notification"]);
    let message = errors(&output);
    assert!(message.contains(".env: ") && !message.contains("secret value"), "{message}");
}

#[test]
fn sample_env_is_what_the_program_prints() {
    let output = bullwork(empty().path(), &[], &["config", "sample"]);
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sample.env")).unwrap();
    assert_eq!(text(&output), kept, "run `cargo run -- config sample > sample.env`");
}

#[test]
fn the_sample_can_be_loaded_as_it_is() {
    let directory = empty();
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sample.env")).unwrap();
    // Every commented default switched on.
    let active: String = sample
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_uppercase()) && rest.contains('=') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(directory.path().join(".env"), active).unwrap();
    let output = bullwork(directory.path(), &[], &["config", "show"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(text(&output).contains("10 5 * * *"));
}

/// Regression: the fields that are left out are filled from the left, so this meant every minute of an hour.
#[test]
fn a_schedule_of_four_fields_is_refused() {
    let output = bullwork(empty().path(), &[("SCHEDULE", "10 5 * *")], &["scheduler"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("`10 5 * *`: it has 4 fields of the 5"), "{}", errors(&output));
}

#[test]
fn no_verb_hangs_on_a_dot_env_that_is_no_file() {
    let directory = empty();
    std::fs::create_dir(directory.path().join(".env")).unwrap();
    for verb in [vec!["restart:notification"], vec!["config", "show"], vec!["doctor"]] {
        let output = bullwork(directory.path(), &[], &verb);
        assert_eq!(output.status.code(), Some(1), "{verb:?}");
        let told = text(&output) + &errors(&output);
        assert!(told.contains(".env: is not a regular file"), "{told}");
    }
}

#[test]
fn json_whose_quotes_the_file_took_away_is_told_so() {
    let directory = empty();
    std::fs::write(directory.path().join(".env"), "BACKUP_MODE={\"answers\":\"incremental\"}\n").unwrap();
    let told = errors(&bullwork(directory.path(), &[], &["background"]));
    assert!(told.contains("BACKUP_MODE: should be a JSON value") && told.contains("around the whole value"), "{told}");
}

#[test]
fn a_bad_schedule_and_a_bad_time_zone_are_both_told() {
    let settings = [
        ("SOURCE_DATABASE_URL", "postgres://owner@127.0.0.1/production"),
        ("TARGET_DATABASE_URL", "postgres://owner@127.0.0.1/warehouse"),
        ("SCHEDULE", "61 * * * *"),
        ("SCHEDULE_TZ", "Mars/Crater"),
    ];
    let output = bullwork(empty().path(), &settings, &["scheduler"]);
    assert_eq!(output.status.code(), Some(1));
    let told = errors(&output);
    assert!(told.contains("SCHEDULE_TZ: time zone `Mars/Crater`") && told.contains("SCHEDULE: "), "{told}");
}

#[tokio::test]
async fn doctor_tells_what_is_wrong_and_what_to_do() {
    let cluster = Cluster::start();
    cluster.create("production").await;
    cluster.create("warehouse").await;
    let redis = RedisServer::start();
    let directory = empty();
    let (source, target, store) = (cluster.url("production"), cluster.url("warehouse"), redis.url());
    let good =
        [("SOURCE_DATABASE_URL", source.as_str()), ("TARGET_DATABASE_URL", target.as_str()), ("REDIS_URL", store.as_str())];
    let output = bullwork(directory.path(), &good, &["doctor"]);
    assert!(output.status.success(), "{}{}", text(&output), errors(&output));
    assert!(text(&output).contains("noeviction") && text(&output).contains("pg_dump"), "{}", text(&output));
    assert!(text(&output).contains("source and target are not the same"), "{}", text(&output));

    let twice = source.replace("127.0.0.1", "localhost");
    let same = [("SOURCE_DATABASE_URL", source.as_str()), ("TARGET_DATABASE_URL", twice.as_str()), ("REDIS_URL", store.as_str())];
    let output = bullwork(directory.path(), &same, &["doctor"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("source and target are one database"), "{}", text(&output));

    let mut connection = redis.connection().await;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("allkeys-lru").query_async::<()>(&mut connection).await.unwrap();
    let wrong = source.replace("correct", "wrong");
    let output = bullwork(
        directory.path(),
        &[("SOURCE_DATABASE_URL", wrong.as_str()), ("TARGET_DATABASE_URL", target.as_str()), ("REDIS_URL", store.as_str())],
        &["doctor"],
    );
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output);
    assert!(
        shown.contains("CONFIG SET maxmemory-policy noeviction") && shown.contains("password authentication failed"),
        "{shown}"
    );
    assert!(!shown.contains("horse"), "{shown}");
}

/// Regression: each of these passed, and the run refused or failed.
#[tokio::test]
async fn doctor_finds_what_a_run_would_fail_for() {
    let cluster = Cluster::start();
    let source = cluster.create("production").await;
    let target = cluster.create("warehouse").await;
    source
        .batch_execute(
            "create role clerk login password 'clerk-word'; create table answers (id serial primary key); \
             grant select on answers, answers_id_seq to clerk; create table \"AuditTrail\" (id serial primary key)",
        )
        .await
        .unwrap();
    target.batch_execute("grant create on database warehouse to clerk; grant all on schema public to clerk").await.unwrap();
    let redis = RedisServer::start();
    let directory = empty();
    let as_clerk = |database: &str| {
        let mut url = url::Url::parse(&cluster.url(database)).unwrap();
        url.set_username("clerk").unwrap();
        url.set_password(Some("clerk-word")).unwrap();
        url.to_string()
    };
    let (from, to, store) = (as_clerk("production"), as_clerk("warehouse"), redis.url());
    let doctor = |modes: &str| {
        let settings = [
            ("SOURCE_DATABASE_URL", from.as_str()),
            ("TARGET_DATABASE_URL", to.as_str()),
            ("REDIS_URL", store.as_str()),
            ("BACKUP_MODE", modes),
        ];
        let output = bullwork(directory.path(), &settings, &["doctor"]);
        (output.status.code(), text(&output) + &errors(&output))
    };
    let kept = r#"{"AuditTrail":"none"}"#;
    assert_eq!(doctor(kept).0, Some(0), "a table that is not copied needs no rights: {}", doctor(kept).1);
    let (code, told) = doctor("{}");
    assert!(code == Some(1) && told.contains("cannot read AuditTrail"), "{told}");
    let (code, told) = doctor(r#"{"AuditTrail":"none","nosuch":"incremental"}"#);
    assert!(code == Some(1) && told.contains("neither source nor target has: nosuch"), "{told}");

    target.batch_execute("create table answers (id int); create schema bullwork").await.unwrap();
    let (code, told) = doctor(kept);
    assert!(code == Some(1) && told.contains("clerk does not own what it replaces: public.answers"), "{told}");
    assert!(told.contains("the schema bullwork, where the state"), "{told}");
    target.batch_execute("revoke all on schema public from clerk, public").await.unwrap();
    assert!(doctor(kept).1.contains("GRANT USAGE, CREATE ON SCHEMA public TO clerk"));
}

#[tokio::test]
async fn doctor_has_a_line_for_every_check_when_nothing_answers() {
    let dead = [
        ("SOURCE_DATABASE_URL", "postgres://u@127.0.0.1:1/a"),
        ("TARGET_DATABASE_URL", "postgres://u@127.0.0.1:1/b"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
    ];
    let output = bullwork(empty().path(), &dead, &["doctor"]);
    let told = text(&output) + &errors(&output);
    for check in ["Redis eviction", "source rights", "target rights", "target space", "two databases", "table modes", "pg_dump"] {
        assert!(told.contains(check), "{check}: {told}");
    }
    assert!(told.contains("3 of 11 checks failed, 6 could not be made"), "{told}");
}

#[test]
fn config_show_tells_bad_values_and_names_that_are_no_setting() {
    let directory = empty();
    std::fs::write(directory.path().join(".env"), "SCHEDULE=15 3 * * *\nBACKUP_MODES={}\n").unwrap();
    let settings =
        [("SOURCE_DATABASE_URL", "owner:hunter@h/d"), ("LOG_LEVEL", "loud"), ("REDIS_URL", "unix:///nope?pass=hunter")];
    let output = bullwork(directory.path(), &settings, &["config", "show"]);
    assert_eq!(output.status.code(), Some(1));
    let told = errors(&output);
    for wanted in ["line 1 (`SCHEDULE`)", "LOG_LEVEL: ", "`BACKUP_MODES` (.env) is no setting; is `BACKUP_MODE` meant?"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    assert!(!told.contains("TARGET_DATABASE_URL"), "what is missing stands in the table: {told}");
    assert!(text(&output).contains("owner:***@h/d") && !format!("{output:?}").contains("hunter"), "{output:?}");
    let output = bullwork(directory.path(), &settings, &["restart:notification"]);
    assert!(!errors(&output).contains("hunter"), "{}", errors(&output));
}

#[test]
fn web_answers_healthz_on_its_port_until_it_is_told_to_stop() {
    let port = crate::support::free_port();
    let mut web = Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .arg("web")
        .env_clear()
        .env("PORT", port.to_string())
        .current_dir(std::env::temp_dir())
        .spawn()
        .unwrap();
    let url = format!("http://127.0.0.1:{port}/healthz");
    let mut body = String::new();
    for _ in 0..200 {
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
            use std::io::{Read, Write};
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            stream.read_to_string(&mut body).unwrap();
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(web.id().try_into().unwrap()), nix::sys::signal::Signal::SIGTERM);
    let status = web.wait().unwrap();
    assert!(body.starts_with("HTTP/1.1 200") && body.ends_with("ok\n"), "{url}: {body}");
    assert!(status.success());
}
