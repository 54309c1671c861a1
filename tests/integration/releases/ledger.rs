//! The steps of releases and servers in both sorts of state store: who may take which, and that nobody takes one twice.

use std::time::Duration;

use bullwork::releases::ledger::{Claimed, Ledger, NewServer, Role};
use bullwork::releases::manifest::Manifest;
use bullwork::releases::states::{ReleaseState, ServerState};
use bullwork::state::State;

use crate::support::postgres::Cluster;

const LEASE: Duration = Duration::from_secs(30);

/// A ledger in a file, and one in a database.
struct Both {
    _directory: tempfile::TempDir,
    _cluster: Cluster,
    ledgers: Vec<Ledger>,
}

async fn both() -> Both {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start();
    let database = bullwork::postgres::Database::parse(&cluster.url("postgres")).unwrap();
    let ledgers =
        vec![Ledger::of(State::in_file(&directory.path().join("deep/releases.db"))), Ledger::of(State::in_database(database))];
    for ledger in &ledgers {
        ledger.prepare().await.unwrap();
        ledger.prepare().await.expect("a second time does nothing");
        let server = |name: &str, role| NewServer {
            name: name.to_owned(),
            role,
            host: "h".to_owned(),
            user: "u".to_owned(),
            port: 22,
            project: format!("/srv/{name}"),
            backup: None,
        };
        ledger
            .add_servers(&[
                server("dev", Role::Developers),
                server("beta", Role::Beta),
                server("web1", Role::Business),
                server("web2", Role::Business),
                server("web3", Role::Business),
            ])
            .await
            .unwrap();
        let second = ledger.add_servers(&[server("other", Role::Beta)]).await.unwrap_err().to_string();
        assert!(second.contains("`beta` has the role beta already"), "{second}");
        let again = ledger.add_servers(&[server("web4", Role::Business), server("web1", Role::Business)]).await.unwrap_err();
        assert!(again.to_string().contains("there is a server `web1` already"), "{again}");
        let elsewhere = NewServer { project: "/srv/web1/".to_owned(), ..server("web5", Role::Business) };
        let same = ledger.add_servers(&[elsewhere]).await.unwrap_err().to_string();
        assert_eq!(same, "`web1` and `web5` would be one place, /srv/web1/ on h, port 22");
        assert_eq!(ledger.servers().await.unwrap().len(), 5, "all of a list or nothing");
    }
    Both { _directory: directory, _cluster: cluster, ledgers }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// To `production_copying`, with these waves.
async fn copying(ledger: &Ledger, waves: &[&[&str]]) -> i64 {
    let id = ledger.begin(&names(&["a"]), false, "me").await.unwrap();
    assert!(ledger.beta_done(id, &Manifest::default(), "w1", "").await.unwrap());
    let waves: Vec<Vec<String>> = waves.iter().map(|wave| names(wave)).collect();
    ledger.want_production(id, &waves, "web1", "me").await.unwrap();
    assert!(ledger.step(id, ReleaseState::ProductionRelease, ReleaseState::ProductionBackup, "w1", "", None).await.unwrap());
    ledger.start_copying(id, ReleaseState::ProductionBackup, Some("archive"), "w1").await.unwrap();
    id
}

async fn claim(ledger: &Ledger, server: &str, owner: &str) -> bullwork::releases::ledger::Claim {
    match ledger.claim(server, owner, LEASE).await.unwrap() {
        Claimed::Ours(claim) => claim,
        other => panic!("{server}: {other:?}"),
    }
}

#[tokio::test]
async fn a_release_goes_through_its_states_in_their_order_and_a_second_one_is_refused() {
    for ledger in both().await.ledgers {
        let id = ledger.begin(&names(&["a", "b/c"]), true, "me").await.unwrap();
        assert_eq!((id, ledger.release(id).await.unwrap().state), (1, ReleaseState::BetaCopying));
        assert_eq!(ledger.paths(id).await.unwrap(), ["a", "b/c"]);
        let second = ledger.begin(&names(&["x"]), false, "me").await.unwrap_err().to_string();
        assert!(
            second.contains("release 1 is beta_copying («бета-копирование»)") && second.contains("release cancel 1"),
            "{second}"
        );
        // No step that is not there to be taken.
        assert!(ledger.manifest(id).await.unwrap_err().to_string().contains("no manifest"));
        let waves = [names(&["web1", "web2"])];
        let early = ledger.want_production(id, &waves, "web1", "me").await.unwrap_err().to_string();
        assert!(early.contains("only one that is beta_done"), "{early}");
        assert!(ledger.abandon(id, "me").await.unwrap_err().to_string().contains("cancel it first"));
        assert!(ledger.beta_done(id, &Manifest::default(), "w1", "1 file").await.unwrap());
        assert!(!ledger.beta_done(id, &Manifest::default(), "w1", "again").await.unwrap(), "a step is taken once");
        assert!(ledger.begin(&names(&["x"]), false, "me").await.is_err());
        ledger.want_production(id, &waves, "web1", "me").await.unwrap();
        assert!(ledger.want_production(id, &waves, "web1", "me").await.is_err());
        let (from, to) = (ReleaseState::ProductionRelease, ReleaseState::ProductionBackup);
        assert!(ledger.step(id, from, to, "w1", "", None).await.unwrap());
        ledger.start_copying(id, to, Some("archive"), "w1").await.unwrap();
        let states: Vec<_> = ledger.servers().await.unwrap().into_iter().map(|server| (server.name, server.state)).collect();
        let copying = ServerState::Copying;
        assert_eq!(
            states[1..4],
            [("web1".to_owned(), copying), ("web2".to_owned(), copying), ("web3".to_owned(), ServerState::Idle)]
        );
        for server in ["web1", "web2"] {
            assert_eq!(ledger.settle(id, "w2").await.unwrap(), ReleaseState::ProductionCopying);
            let claim = claim(&ledger, server, "w2").await;
            assert!(ledger.finish(&claim, Ok("fine")).await.unwrap());
            assert!(!ledger.finish(&claim, Ok("fine")).await.unwrap());
        }
        assert_eq!(ledger.settle(id, "w2").await.unwrap(), ReleaseState::Completed);
        assert!(ledger.want_production(id, &waves, "web1", "me").await.unwrap_err().to_string().contains("is completed"));
        let lines: Vec<String> = ledger.journal(id).await.unwrap().into_iter().map(|line| line.line).collect();
        let order =
            ["created", "beta_copying", "beta_done", "production_release", "production_backup", "archive", "production_copying"];
        let mut from = 0;
        for word in order {
            from +=
                lines[from..].iter().position(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{word}: {lines:?}")) + 1;
        }
        assert!(lines.last().unwrap().starts_with("completed («завершено»)"), "{lines:?}");
        let next = ledger.begin(&names(&["x"]), false, "me").await.unwrap();
        assert_eq!(next, 2, "another one may begin");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_begin_a_release_at_once_one_does() {
    for ledger in both().await.ledgers {
        let tries = (0..12).map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.begin(&names(&["a"]), false, &format!("controller {n}")).await })
        });
        let mut begun = 0;
        for task in tries.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(_) => begun += 1,
                Err(error) => assert!(error.to_string().contains("one at a time"), "{error}"),
            }
        }
        assert_eq!(begun, 1);
        assert_eq!(ledger.journal(1).await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_workers_one_claims_a_server_and_a_lease_that_ran_out_is_taken_over() {
    for ledger in both().await.ledgers {
        let id = copying(&ledger, &[&["web1"]]).await;
        let tries = (0..12).map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.claim("web1", &format!("w{n}"), Duration::from_millis(300)).await.unwrap() })
        });
        let mut claims = Vec::new();
        for task in tries.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Claimed::Ours(claim) => claims.push(claim),
                Claimed::Busy(ms) => assert!((1..=5_000).contains(&ms), "{ms}"),
                Claimed::Nothing => panic!("it waits"),
            }
        }
        assert_eq!(claims.len(), 1);
        let first = claims.pop().unwrap();
        assert!(ledger.renew(&first, Duration::from_millis(300)).await.unwrap());
        assert!(ledger.claimable().await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(ledger.claimable().await.unwrap(), ["web1"]);
        let second = claim(&ledger, "web1", "later").await;
        assert!(!ledger.renew(&first, LEASE).await.unwrap(), "it is lost");
        assert!(!ledger.touch(&first, LEASE).await.unwrap());
        assert!(!ledger.finish(&first, Ok("late")).await.unwrap(), "and cannot be ended any more");
        assert!(!ledger.finish(&first, Err("late")).await.unwrap());
        assert!(ledger.give_back(&second).await.unwrap());
        let third = claim(&ledger, "web1", "third").await;
        assert!(ledger.finish(&third, Ok("fine")).await.unwrap());
        assert_eq!(ledger.settle(id, "third").await.unwrap(), ReleaseState::Completed);
        let lines: Vec<String> = ledger.journal(id).await.unwrap().into_iter().map(|line| line.line).collect();
        assert!(lines.iter().any(|line| line.contains("because the lease of w") && line.contains("ran out")), "{lines:?}");
    }
}

#[tokio::test]
async fn a_failed_server_fails_the_release_when_all_have_ended_and_only_it_is_taken_up() {
    for ledger in both().await.ledgers {
        let id = copying(&ledger, &[&["web1", "web2", "web3"]]).await;
        let (one, two) = (claim(&ledger, "web1", "a").await, claim(&ledger, "web2", "b").await);
        assert!(ledger.finish(&one, Err("no route")).await.unwrap());
        assert_eq!(ledger.settle(id, "a").await.unwrap(), ReleaseState::ProductionCopying, "others still work");
        assert!(ledger.finish(&two, Ok("fine")).await.unwrap());
        let three = claim(&ledger, "web3", "c").await;
        assert!(ledger.finish(&three, Ok("fine")).await.unwrap());
        assert_eq!(ledger.settle(id, "c").await.unwrap(), ReleaseState::ProductionError);
        let release = ledger.release(id).await.unwrap();
        assert_eq!(release.problem.as_deref(), Some("web1: no route"));
        assert!(ledger.begin(&names(&["x"]), false, "me").await.is_err());
        ledger.start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
        assert_eq!(ledger.claimable().await.unwrap(), ["web1"]);
        let again = claim(&ledger, "web1", "a").await;
        assert!(ledger.finish(&again, Ok("fine")).await.unwrap());
        assert_eq!(ledger.settle(id, "a").await.unwrap(), ReleaseState::Completed);
        assert_eq!(ledger.release(id).await.unwrap().backup.as_deref(), Some("archive"), "the first archive is the one");
    }
}

#[tokio::test]
async fn a_wave_waits_for_the_one_before_it_and_is_held_back_when_that_fails() {
    for ledger in both().await.ledgers {
        let id = copying(&ledger, &[&["web2"], &["web1", "web3"]]).await;
        assert_eq!(ledger.claimable().await.unwrap(), ["web2"]);
        assert_eq!(ledger.claim("web1", "x", LEASE).await.unwrap(), Claimed::Nothing);
        let canary = claim(&ledger, "web2", "x").await;
        assert!(ledger.finish(&canary, Err("broken")).await.unwrap());
        assert_eq!(ledger.settle(id, "x").await.unwrap(), ReleaseState::ProductionError);
        let states: Vec<_> = ledger.servers().await.unwrap()[1..4].iter().map(|server| server.state).collect();
        assert_eq!(states, [ServerState::Idle, ServerState::Error, ServerState::Idle]);
        ledger.start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
        let canary = claim(&ledger, "web2", "x").await;
        assert!(ledger.finish(&canary, Ok("fine")).await.unwrap());
        assert_eq!(ledger.settle(id, "x").await.unwrap(), ReleaseState::ProductionCopying);
        assert_eq!(ledger.claimable().await.unwrap(), ["web1", "web3"]);
    }
}

#[tokio::test]
async fn what_is_cancelled_is_a_failure_that_can_be_taken_up_or_given_up() {
    for ledger in both().await.ledgers {
        let id = ledger.begin(&names(&["a"]), false, "me").await.unwrap();
        assert_eq!(ledger.cancel(id, "me").await.unwrap(), ReleaseState::BetaError);
        assert!(ledger.cancel(id, "me").await.unwrap_err().to_string().contains("nothing works at it"));
        assert!(!ledger.beta_done(id, &Manifest::default(), "w1", "late").await.unwrap(), "the worker is too late");
        ledger.abandon(id, "me").await.unwrap();
        assert!(ledger.abandon(id, "me").await.unwrap_err().to_string().contains("already"));

        let id = copying(&ledger, &[&["web1", "web2"]]).await;
        let held = claim(&ledger, "web1", "a").await;
        assert_eq!(ledger.cancel(id, "me").await.unwrap(), ReleaseState::ProductionError);
        assert!(!ledger.renew(&held, LEASE).await.unwrap(), "the worker finds out");
        ledger.abandon(id, "me").await.unwrap();
        assert!(ledger.servers().await.unwrap().iter().all(|server| server.state == ServerState::Idle));
        ledger.begin(&names(&["a"]), false, "me").await.expect("another one may begin");
    }
}

#[tokio::test]
async fn a_server_in_the_way_refuses_all_of_the_step() {
    for ledger in both().await.ledgers {
        let first = copying(&ledger, &[&["web1"]]).await;
        let done = claim(&ledger, "web1", "a").await;
        assert!(ledger.touch(&done, LEASE).await.unwrap());
        assert!(ledger.finish(&done, Ok("fine")).await.unwrap());
        assert_eq!(ledger.settle(first, "a").await.unwrap(), ReleaseState::Completed);
        assert_eq!(ledger.want_rollback(first, &[], "me").await.unwrap(), ["web1"]);
        // While that goes on, another release comes as far as production.
        let id = ledger.begin(&names(&["a"]), false, "me").await.unwrap();
        assert!(ledger.beta_done(id, &Manifest::default(), "w1", "").await.unwrap());
        ledger.want_production(id, &[names(&["web1", "web2"])], "web2", "me").await.unwrap();
        let (from, to) = (ReleaseState::ProductionRelease, ReleaseState::ProductionBackup);
        assert!(ledger.step(id, from, to, "w1", "", None).await.unwrap());
        let error = ledger.start_copying(id, to, Some("archive"), "w1").await.unwrap_err().to_string();
        assert!(error.contains("web1 is copying") && error.contains("rollback of release 1"), "{error}");
        let web2 = ledger.server("web2").await.unwrap();
        assert_eq!(web2.state, ServerState::Idle, "all servers in the same step, or none");
        let back = claim(&ledger, "web1", "a").await;
        assert_eq!(back.task, "rollback");
        assert!(ledger.finish(&back, Ok("back")).await.unwrap());
        ledger.settle_rollback(first, "a").await.unwrap();
        assert!(ledger.release(first).await.unwrap().rolled_back_at.is_some());
        ledger.start_copying(id, to, Some("archive"), "w1").await.expect("nothing is in the way any more");
    }
}
