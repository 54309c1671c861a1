//! kill -9 at each phase, and the same command again.

use std::process::Stdio;
use std::time::Duration;

use hyper::Method;

use super::failures::two;
use super::{Machine, files};
use crate::support::eventually;
use crate::support::s3::{Action, S3};

const SOON: Duration = Duration::from_secs(60);

/// Runs a command until `reached`, and kills it there, alone, as the system would.
async fn killed_at(machine: &Machine, words: &[&str], reached: &str, there: impl Fn() -> bool) {
    let log = std::fs::File::create(machine.path("killed.log")).unwrap();
    let mut child = machine.command(words).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let said = || std::fs::read_to_string(machine.path("killed.log")).unwrap_or_default();
    eventually(&format!("{words:?} reaches {reached}"), SOON, async || {
        assert!(matches!(child.try_wait(), Ok(None)) || there(), "{words:?} ended before {reached}: {}", said());
        there()
    })
    .await;
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "{words:?} was not killed at {reached}");
}

/// Has the operator's command `setting` wait in its middle; the file that tells that it does.
fn held(machine: &mut Machine, setting: &str) -> std::path::PathBuf {
    let home = machine.path("").display().to_string();
    let line = machine.setting(setting);
    machine.set(
        setting,
        &format!("touch {home}/at-{setting}; for n in $(seq 600); do [ -e {home}/go-{setting} ] && break; [ -d {home} ] || exit 1; sleep 0.05; done; {line}"),
    );
    machine.path(&format!("at-{setting}"))
}

fn go(machine: &Machine, what: &str) {
    std::fs::write(machine.path(&format!("go-{what}")), "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_killed_pull_loses_nothing_and_the_next_one_does_the_rest() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    // While it fetches.
    s3.order(Method::GET, "two/rev-", 1, Action::Delay(Duration::from_secs(600)));
    let fetched = boris.path("presets/shop/main/files");
    killed_at(&boris, &["get"], "the second download", || {
        files(&fetched).iter().any(|name| name.starts_with("one@")) && s3.count("two/rev-") > 0
    })
    .await;
    s3.relent();
    let fetches = s3.count("one/rev-");
    for program in ["psql", "pg_basebackup"] {
        boris.hold(program);
        let at = boris.path(&format!("at-{program}"));
        killed_at(&boris, &["get"], program, || at.exists()).await;
        // What it started ends by itself, or is ended by the next command.
        go(&boris, program);
        boris.let_go();
        assert!(boris.bad(&["select", "two"]).contains("not ready"));
    }
    assert_eq!(s3.count("one/rev-"), fetches, "what was fetched whole is not fetched again");
    let line = boris.setting("DBP_MIGR_CMD");
    let at = held(&mut boris, "DBP_MIGR_CMD");
    killed_at(&boris, &["get"], "the migration", || at.exists()).await;
    go(&boris, "DBP_MIGR_CMD");
    boris.set("DBP_MIGR_CMD", &line);
    // At the very end: everything is ready, PostgreSQL still runs.
    let line = boris.setting("DBP_PG_STOP_CMD");
    let at = held(&mut boris, "DBP_PG_STOP_CMD");
    killed_at(&boris, &["get"], "the stop", || at.exists()).await;
    go(&boris, "DBP_PG_STOP_CMD");
    boris.set("DBP_PG_STOP_CMD", &line);
    eventually("the stop command that outlived us is done", SOON, async || !boris.runs()).await;
    boris.steps();
    boris.good(&["get"]);
    assert!(!boris.steps().iter().any(|step| step.starts_with("migrate")), "nothing is done twice");
    for name in ["one", "two"] {
        boris.good(&["select", name]);
        assert_eq!(boris.rows().await, [name, "migrated"]);
    }
    assert_eq!(std::fs::read_dir(boris.path("ready/shop/main")).unwrap().count(), 2, "no half data directory stays");
    assert!(files(&fetched).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_killed_select_leaves_the_old_preset_or_the_new_one_runnable() {
    let s3 = S3::start().await;
    let (_anna, mut boris) = two(&s3).await;
    boris.good(&["get"]);
    boris.good(&["select", "one"]);
    let (mut from, mut to) = ("one", "two");
    for (phase, new) in [
        ("rsync", false),
        ("DBP_APP_STOP", false),
        ("DBP_PG_STOP_CMD", false),
        ("DBP_PG_START_CMD", true),
        ("DBP_APP_START", true),
    ] {
        let line = boris.setting(phase);
        let at = if phase == "rsync" {
            boris.hold(phase);
            boris.path("at-rsync")
        } else {
            held(&mut boris, phase)
        };
        killed_at(&boris, &["select", to], phase, || at.exists()).await;
        if phase == "rsync" {
            boris.let_go();
            // The rest of the killed one copies on, and the next one waits for its end.
            let waiting = boris.command(&["select", to]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
            go(&boris, phase);
            assert!(waiting.wait_with_output().unwrap().status.success());
            assert_eq!(boris.rows().await, [to, "migrated"]);
            boris.good(&["select", from]);
        } else {
            go(&boris, phase);
            boris.set(phase, &line);
            if phase == "DBP_PG_STOP_CMD" {
                eventually("the stop command that outlived us is done", SOON, async || !boris.runs()).await;
            }
            if phase == "DBP_PG_START_CMD" {
                eventually("the start command that outlived us is done", SOON, async || tokio_postgres_answers(&boris).await)
                    .await;
            }
        }
        boris.start_if_stopped();
        assert_eq!(boris.rows().await, [if new { to } else { from }, "migrated"], "killed at {phase}");
        boris.good(&["select", to]);
        assert_eq!(boris.rows().await, [to, "migrated"], "again after {phase}");
        (from, to) = (to, from);
    }
}

async fn tokio_postgres_answers(machine: &Machine) -> bool {
    tokio::net::TcpStream::connect(("127.0.0.1", machine.port)).await.is_ok() && machine.runs() && {
        let line = std::fs::read_to_string(machine.path("data/postmaster.pid")).unwrap_or_default();
        line.lines().last().is_some_and(|state| state.trim() == "ready")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_killed_push_was_made_or_was_not_and_the_next_one_knows() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    let stored = || s3.objects().join("shop/main/base/current.json").exists();
    anna.hold("pg_dumpall");
    let at = anna.path("at-pg_dumpall");
    killed_at(&anna, &["push-new", "name=base", "desc=first"], "the dump", || at.exists()).await;
    go(&anna, "pg_dumpall");
    anna.let_go();
    for holds in ["base/rev-1", "base/current.json"] {
        s3.order(Method::PUT, holds, 1, Action::Delay(Duration::from_secs(600)));
        let before = s3.heard().iter().filter(|heard| heard.line.starts_with("PUT") && heard.line.contains(holds)).count();
        let asked =
            || s3.heard().iter().filter(|heard| heard.line.starts_with("PUT") && heard.line.contains(holds)).count() > before;
        killed_at(&anna, &["push-new", "name=base", "desc=first"], holds, asked).await;
        s3.relent();
        assert!(!stored(), "{holds}");
    }
    // The pointer is made, the log is not written.
    s3.order(Method::PUT, "base/log.txt", 1, Action::Delay(Duration::from_secs(600)));
    killed_at(&anna, &["push-new", "name=base", "desc=first"], "the log", || {
        s3.count("PUT") > 0 && s3.heard().iter().any(|heard| heard.line.starts_with("PUT") && heard.line.contains("log.txt"))
    })
    .await;
    s3.relent();
    assert!(stored() && !s3.objects().join("shop/main/base/log.txt").exists());
    let said = anna.good(&["push-new", "name=base", "desc=first"]);
    assert!(said.contains("had been stored by a run that was cut off"), "{said}");
    assert!(std::fs::read_to_string(s3.objects().join("shop/main/base/log.txt")).unwrap().contains(": first"));
    assert!(anna.bad(&["push-new", "name=base", "desc=first"]).contains("already"));

    // A push of another one, killed there; then the cluster gets something else, which that push must not be taken for.
    s3.order(Method::PUT, "third/log.txt", 1, Action::Delay(Duration::from_secs(600)));
    let pointer = s3.objects().join("shop/main/third/current.json");
    killed_at(&anna, &["push-new", "name=third", "desc=x"], "the log", || pointer.exists() && s3.count("third/log.txt") > 0)
        .await;
    s3.relent();
    anna.good(&["get", "include=base"]);
    anna.good(&["push-new", "name=third", "desc=x"]);
    assert!(anna.bad(&["push-new", "name=fourth", "desc=x"]).contains("nobody's preset"), "the cluster holds what the pull left");
    anna.good(&["select", "base"]);

    // The same of a next revision, with a lock: the run after it goes on from what was stored, and ends the lock.
    let key = anna.good(&["set-lock", "name=base", "who=A", "desc=x"]);
    let before = s3.count("base/log.txt");
    s3.order(Method::PUT, "base/log.txt", 1, Action::Delay(Duration::from_secs(600)));
    let push = ["push-ex", "name=base", "desc=second", &format!("key={key}")];
    let pointer = s3.objects().join("shop/main/base/current.json");
    killed_at(&anna, &push, "the log", || {
        std::fs::read_to_string(&pointer).is_ok_and(|text| text.contains("\"revision\": 2")) && s3.count("base/log.txt") > before
    })
    .await;
    s3.relent();
    anna.client("shop").await.batch_execute("insert into t values ('later')").await.unwrap();
    anna.good(&push);
    assert_eq!(anna.good(&["get-lock", "name=base"]), "free");
    let versions = anna.good(&["versions", "name=base"]);
    assert!(versions.starts_with("3\t") && versions.lines().count() == 3, "{versions}");
    assert!(files(&anna.path("presets/shop/main/files")).is_empty());
}
