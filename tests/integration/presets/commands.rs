//! Words, settings, the key, and what nobody may read.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::failures::two;
use super::{Machine, files, text};
use crate::support::eventually;
use crate::support::postgres::PASSWORD;
use crate::support::s3::{S3, SECRET_KEY};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn wrong_words_and_missing_settings_are_told_together_and_nothing_is_done() {
    let mut machine = Machine::new("s3://bucket", None).await;
    let help = machine.good(&["--help"]);
    assert!(help.contains("push-ex* (update)") && help.contains("DBP_AESKEY_PATH"), "{help}");
    for words in [
        vec![],
        vec!["nonsense"],
        vec!["push-new", "nme=x"],
        vec!["select", "../x"],
        vec!["get", "include=a, b"],
        vec!["ls", "where=here"],
    ] {
        let output = machine.db_p(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
    }
    let output = machine.db_p(&["push-new", "nme=имя", "name=тест"]);
    for part in ["takes no `nme`", "`тест` is no name", "needs desc="] {
        assert!(text(&output.stderr).contains(part), "{part}: {}", text(&output.stderr));
    }
    for name in ["DBP_KEY_PATH", "DBP_REPO", "DBP_PG_STOP_CMD"] {
        machine.set(name, "");
    }
    let error = machine.bad(&["get"]);
    for name in ["DBP_KEY_PATH", "DBP_REPO", "DBP_PG_STOP_CMD", "S3_ACCESS_KEY", "S3_SECRET_KEY"] {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert!(!error.contains("DBP_BRANCH") && machine.steps().is_empty());
    machine.set("DBP_PG_PORT", "no number");
    machine.set("DBP_BRANCH", "a/b");
    let error = machine.bad(&["what-selected"]);
    assert!(error.contains("DBP_PG_PORT") && error.contains("DBP_BRANCH"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_key_is_made_once_and_for_its_owner_alone() {
    let mut machine = Machine::new("file:///nowhere", None).await;
    let store = machine.path("store");
    machine.set("DBP_S3_BACKET", &format!("file://{}", store.display()));
    // An unmounted store must not pass for an empty one.
    for words in [vec!["ls", "where=s3"], vec!["get"], vec!["push-new", "name=base", "desc=x"]] {
        let error = machine.bad(&words);
        assert!(error.contains(&store.display().to_string()) && error.contains("mount it, or make it"), "{words:?}: {error}");
    }
    assert!(!store.exists());
    std::fs::create_dir(&store).unwrap();
    let error = machine.bad(&["get"]);
    assert!(error.contains("there is no key file") && error.contains("colleague") && error.contains("gen-key"), "{error}");
    machine.good(&["gen-key"]);
    let key = std::fs::read(machine.path("key")).unwrap();
    assert_eq!(std::fs::metadata(machine.path("key")).unwrap().mode() & 0o777, 0o600);
    let error = machine.bad(&["gen-key"]);
    assert!(error.contains("exists already") && std::fs::read(machine.path("key")).unwrap() == key, "{error}");
    std::fs::set_permissions(machine.path("key"), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let error = machine.bad(&["get"]);
    assert!(error.contains("others can read") && error.contains("chmod 600"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_secret_is_in_arguments_logs_notes_or_objects() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.fill(&["a row that is nobody's business"]).await;
    for program in ["pg_dumpall", "psql", "pg_basebackup"] {
        anna.hold(program);
        std::fs::write(anna.path(&format!("go-{program}")), "").unwrap();
        let file = anna.path("bin").join(program);
        let script = std::fs::read_to_string(&file).unwrap();
        let noted = format!("echo \"$0 $@\" >>{}; touch", anna.path("arguments").display());
        std::fs::write(&file, script.replace("touch", &noted)).unwrap();
    }
    let mut said = anna.good(&["push-new", "name=base", "desc=first"]);
    let key = anna.good(&["set-lock", "name=base", "who=Анна", "desc=важная причина"]);
    said += &anna.bad(&["push-ex", "name=base", "desc=x"]);
    said += &anna.good(&["push-ex", "name=base", "desc=x", &format!("key={key}")]);
    said += &anna.good(&["get"]);
    said += &anna.good(&["select", "base"]);
    let arguments = std::fs::read_to_string(anna.path("arguments")).unwrap();
    for program in ["pg_dumpall", "psql", "pg_basebackup"] {
        assert!(arguments.contains(program), "{program} was run: {arguments}");
    }
    said += &arguments;
    for file in files(anna.path("presets").as_path()) {
        said += &text(&std::fs::read(anna.path("presets").join(file)).unwrap());
    }
    said += &std::fs::read_to_string(anna.path("db-p.log")).unwrap();
    for file in files(&s3.objects()) {
        said += &text(&std::fs::read(s3.objects().join(file)).unwrap());
    }
    let secret = std::fs::read_to_string(anna.path("key")).unwrap();
    let public = secret.lines().next().unwrap().rsplit(' ').next().unwrap();
    let private = secret.lines().last().unwrap();
    assert!(public.starts_with("age1") && private.starts_with("AGE-SECRET-KEY-1") && key.len() == 32);
    for secret in [PASSWORD, SECRET_KEY, public, private, &key, "nobody's business"] {
        assert!(!said.contains(secret), "{secret}");
    }
    assert!(said.contains("важная причина") && said.contains("push-ex is done"), "the log tells what was done");
    for (name, mode) in [("presets", 0o700), ("ready", 0o700), ("presets/selected.json", 0o600), ("db-p.log", 0o600)] {
        assert_eq!(std::fs::metadata(anna.path(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_terminal_shows_a_bar_with_what_is_done_in_percent() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    let (go, screen) = (boris.path("go"), boris.path("screen"));
    let wait = format!("[ $DBP_PRESET = one ] || while [ ! -e {} ]; do sleep 0.05; done", go.display());
    boris.set("DBP_MIGR_CMD", &wait);
    // `script` gives it a terminal, and writes down what is shown there.
    let line = format!("stty cols 120; exec {} get", env!("CARGO_BIN_EXE_db-p"));
    let mut command = boris.program("script");
    command.args(["-q", "-f", "-e", "-c", &line]).arg(&screen).env("TERM", "xterm").stdout(std::process::Stdio::null());
    let mut child = command.spawn().expect("`script` is part of every Debian");
    let shown = || text(&std::fs::read(&screen).unwrap_or_default());
    let half = "[##########----------] 50 % migrate, 1 of 2";
    let limit = Duration::from_secs(60);
    eventually("one of two is done", limit, async || shown().contains(half) || child.try_wait().unwrap().is_some()).await;
    assert!(shown().contains(half), "{}", shown());
    std::fs::write(&go, "").unwrap();
    assert!(child.wait().unwrap().success(), "{}", shown());
    assert!(shown().contains("updated: one, two"), "{}", shown());
}
