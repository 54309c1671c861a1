//! Two at once.

use std::process::{Child, Stdio};

use super::{Machine, files, text};
use crate::support::s3::S3;

fn begin(machine: &Machine, words: &[&str]) -> Child {
    machine.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How both ended: what the winner says, and why the other one was refused.
fn ended(both: [Child; 2]) -> (usize, String, String) {
    let outputs = both.map(|child| child.wait_with_output().unwrap());
    let good: Vec<usize> = (0..2).filter(|n| outputs[*n].status.success()).collect();
    let told: Vec<String> = outputs.iter().map(|output| text(&output.stderr)).collect();
    assert_eq!(good.len(), 1, "{told:?}");
    let winner = good[0];
    assert_eq!(outputs[1 - winner].status.code(), Some(1));
    (winner, text(&outputs[winner].stdout), text(&outputs[1 - winner].stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn of_two_creators_and_of_two_lockers_exactly_one_wins() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    let mut boris = Machine::sharing(&s3, Some(&anna)).await;
    anna.fill(&["of Anna"]).await;
    boris.fill(&["of Boris"]).await;
    // Both have seen that there is no such preset before either stores one.
    for machine in [&mut anna, &mut boris] {
        machine.hold("pg_dumpall");
    }
    let both = [&anna, &boris].map(|machine| begin(machine, &["push-new", "name=base", "desc=x"]));
    for machine in [&anna, &boris] {
        let at = machine.path("at-pg_dumpall");
        crate::support::eventually("it dumps", std::time::Duration::from_secs(60), async || at.exists()).await;
    }
    for machine in [&anna, &boris] {
        std::fs::write(machine.path("go-pg_dumpall"), "").unwrap();
    }
    let (winner, _, refused) = ended(both);
    assert!(refused.contains("at the same moment") || refused.contains("already"), "{refused}");
    let stored = files(&s3.objects().join("shop/main/base"));
    assert_eq!(stored.iter().filter(|name| name.starts_with("rev-")).count(), 1, "the loser's object is gone: {stored:?}");
    let machines = [&anna, &boris];
    machines[1 - winner].good(&["get"]);
    machines[1 - winner].good(&["select", "base"]);
    assert_eq!(machines[1 - winner].rows().await[0], ["of Anna", "of Boris"][winner]);

    for _ in 0..6 {
        let (_, key, refused) = ended(machines.map(|machine| begin(machine, &["set-lock", "name=base", "who=x", "desc=y"])));
        assert!(
            refused.contains("locked by x") || refused.contains("at the same moment") || refused.contains("was at its lock"),
            "{refused}"
        );
        anna.good(&["reset-lock", "name=base", &format!("key={}", key.trim())]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_lock_that_is_set_while_somebody_pushes_holds_and_the_push_is_refused() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=base", "desc=one"]);
    let mut boris = Machine::sharing(&s3, Some(&anna)).await;
    boris.good(&["get"]);
    boris.good(&["select", "base"]);
    boris.hold("pg_dumpall");
    let pushing = begin(&boris, &["push-ex", "name=base", "desc=mine"]);
    let at = boris.path("at-pg_dumpall");
    crate::support::eventually("it dumps", std::time::Duration::from_secs(60), async || at.exists()).await;
    anna.good(&["set-lock", "name=base", "who=Анна", "desc=x"]);
    std::fs::write(boris.path("go-pg_dumpall"), "").unwrap();
    let output = pushing.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("at the same moment"), "{}", text(&output.stderr));
    assert!(anna.good(&["ls", "where=s3"]).contains("revision 1"));
    let log = std::fs::read_to_string(s3.objects().join("shop/main/base/log.txt")).unwrap();
    assert!(!log.contains("mine"), "{log}");
    // A second command on one machine waits for nobody: it is refused.
    let _ = std::fs::remove_file(boris.path("at-pg_dumpall"));
    let _ = std::fs::remove_file(boris.path("go-pg_dumpall"));
    let pushing = begin(&boris, &["push-new", "name=another", "desc=x"]);
    crate::support::eventually("it dumps", std::time::Duration::from_secs(60), async || at.exists()).await;
    assert!(boris.bad(&["select", "base"]).contains("another command of db-p"));
    std::fs::write(boris.path("go-pg_dumpall"), "").unwrap();
    assert!(pushing.wait_with_output().unwrap().status.success());
}
