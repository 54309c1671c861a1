//! Replaced files come back.

use bullwork::releases::ledger::Role;
use bullwork::releases::states::{ReleaseState, ServerState};
use bullwork::releases::worker1::Stands;
use bullwork::releases::worker2::Worked;

use super::fleet::{Fleet, told};

async fn released(fleet: &Fleet, paths: &[&str], servers: &[&str]) -> i64 {
    let id = fleet.on_beta(paths).await;
    fleet.to_production(id, &[&servers.join("+")]).await;
    for server in servers {
        let worked = fleet.worker2(server).await;
        assert!(matches!(worked, Worked::Done(..)), "{worked:?}");
    }
    assert_eq!(fleet.release(id).await.state, ReleaseState::Completed);
    id
}

#[tokio::test]
async fn every_server_gets_back_what_it_had_and_loses_what_was_new() {
    let fleet = Fleet::start(2).await;
    for name in ["app/changed", "app/-new", "fresh/dir/я", "same"] {
        fleet.write("dev", name, "2");
    }
    std::os::unix::fs::symlink("changed", fleet.project("dev").join("app/link")).unwrap();
    for server in ["web1", "web2"] {
        fleet.write(server, "app/changed", format!("1 on {server}"));
        fleet.write(server, "same", "2");
        std::os::unix::fs::symlink("nowhere", fleet.project(server).join("app/link")).unwrap();
        let time = std::fs::metadata(fleet.project("dev").join("same")).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(fleet.project(server).join("same")).unwrap().set_modified(time).unwrap();
    }
    fleet.write("web1", "fresh/was here", "x");
    let before = (fleet.tree("web1"), fleet.tree("web2"));
    let id = released(&fleet, &["app", "fresh", "same"], &["web1", "web2"]).await;
    assert_ne!((fleet.tree("web1"), fleet.tree("web2")), before);

    let (code, out, _) = told(&fleet.bullwork(&["release", "rollback", &id.to_string(), "--dry-run"]));
    assert_eq!(code, Some(0));
    for line in ["  ~ app/changed", "  - app/-new", "  - fresh/dir/я", "  ~ app/link"] {
        assert!(out.lines().any(|l| l == line), "{line}: {out}");
    }
    assert!(!out.lines().any(|line| line == "  ~ same" || line == "  - same"), "{out}");
    assert_ne!((fleet.tree("web1"), fleet.tree("web2")), before, "a dry run changes nothing");

    assert_eq!(fleet.ledger().want_rollback(id, &["web1".to_owned()], "me").await.unwrap(), ["web1"]);
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(..)));
    assert_eq!(fleet.tree("web1"), before.0);
    assert_ne!(fleet.tree("web2"), before.1);
    assert_eq!(fleet.release(id).await.rolled_back_at, None, "not everywhere");
    assert_eq!(fleet.ledger().want_rollback(id, &[], "me").await.unwrap(), ["web2"]);
    assert!(matches!(fleet.worker2("web2").await, Worked::Done(..)));
    assert_eq!(fleet.tree("web2"), before.1);
    let release = fleet.release(id).await;
    assert!(release.rolled_back_at.is_some() && release.state == ReleaseState::Completed);
    assert!(fleet.journal(id).await.last().unwrap().contains("rolled back: every server"));
    let again = fleet.ledger().want_rollback(id, &[], "me").await.unwrap_err().to_string();
    assert!(again.contains("was rolled back at"), "{again}");
}

#[tokio::test]
async fn the_newest_release_is_rolled_back_first() {
    let fleet = Fleet::start(2).await;
    fleet.write("web1", "f", "0");
    fleet.write("dev", "f", "1");
    let first = released(&fleet, &["f"], &["web1", "web2"]).await;
    fleet.write("dev", "f", "2");
    let second = released(&fleet, &["f"], &["web1"]).await;
    let error = fleet.ledger().want_rollback(first, &[], "me").await.unwrap_err().to_string();
    assert!(error.contains(&format!("release {second} changed web1 later: roll it back first")), "{error}");
    for (id, content) in [(second, "1"), (first, "0")] {
        fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
        fleet.worker2("web1").await;
        fleet.worker2("web2").await;
        assert_eq!(fleet.read("web1", "f").as_deref(), Some(content));
    }
    assert_eq!(fleet.read("web2", "f"), None);
}

#[tokio::test]
async fn a_failed_release_is_rolled_back_where_it_was_done_and_is_given_up_then() {
    let mut fleet = Fleet::start(2).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    let id = fleet.on_beta(&["f"]).await;
    fleet.to_production(id, &["web1+web2"]).await;
    fleet.stop("web2");
    fleet.worker2("web2").await;
    fleet.worker2("web1").await;
    assert_eq!(fleet.release(id).await.state, ReleaseState::ProductionError);
    assert_eq!(fleet.ledger().want_rollback(id, &[], "me").await.unwrap(), ["web1"], "the other one was not touched");
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::Abandoned)));
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("1"));
    let idle = fleet.ledger().servers().await.unwrap().into_iter().all(|server| server.state == ServerState::Idle);
    assert!(idle, "all servers are free");
    fleet.ledger().begin(&["x".to_owned()], false, "me").await.expect("another one may begin");
}

#[tokio::test]
async fn a_rollback_that_fails_is_the_servers_error_and_is_tried_again() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "d/f", "2");
    fleet.write("web1", "d/f", "1");
    let id = released(&fleet, &["d/f"], &["web1"]).await;
    // Somebody puts a directory where the file was.
    let file = fleet.project("web1").join("d/f");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
    let failed = fleet.worker2("web1").await;
    assert!(matches!(&failed, Worked::Failed(p, ReleaseState::Completed) if p.contains("rolling back")), "{failed:?}");
    assert_eq!(fleet.ledger().server("web1").await.unwrap().state, ServerState::Error);
    std::fs::remove_dir(&file).unwrap();
    fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(..)));
    assert_eq!(fleet.read("web1", "d/f").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_rollback_whose_answer_got_lost_is_done_by_the_next_try() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    let id = released(&fleet, &["f"], &["web1"]).await;
    let server = fleet.ledger().server("web1").await.unwrap();
    fleet.releases().back(&server, id, Some("a worker that died then")).await.unwrap();
    fleet.write("web1", "f", "somebody's change since");
    fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
    let worked = fleet.worker2("web1").await;
    assert!(matches!(worked, Worked::Done(..)), "{worked:?}");
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("somebody's change since"), "nothing is brought back twice");
    assert!(fleet.release(id).await.rolled_back_at.is_some());
}

#[tokio::test]
async fn a_release_that_cannot_be_rolled_back_keeps_nobody_from_the_next_one() {
    let fleet = Fleet::start(2).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    fleet.write("web2", "f", "1");
    let id = released(&fleet, &["f"], &["web1", "web2"]).await;
    std::fs::remove_dir_all(fleet.project("web1").join(format!(".bullwork-releases/{id}"))).unwrap();
    let (code, _, error) = told(&fleet.bullwork(&["release", "rollback", &id.to_string()]));
    assert!(
        code == Some(1) && error.contains("nothing was begun") && error.contains("nothing is kept of this release"),
        "{error}"
    );
    assert_eq!(fleet.ledger().server("web2").await.unwrap().state, ServerState::Idle);
    // It was lost after the look.
    fleet.ledger().want_rollback(id, &["web1".to_owned()], "me").await.unwrap();
    assert!(matches!(fleet.worker2("web1").await, Worked::Failed(..)));
    fleet.write("dev", "f", "3");
    let next = fleet.on_beta(&["f"]).await;
    fleet.to_production(next, &["web1"]).await;
    let problem = fleet.release(next).await.problem.unwrap();
    assert!(problem.contains("web1 is error") && problem.contains("bullwork release servers free"), "{problem}");
    let (code, _, error) = told(&fleet.bullwork(&["release", "servers", "free", "web1"]));
    assert_eq!(code, Some(0), "{error}");
    let (code, _, error) = told(&fleet.bullwork(&["release", "servers", "free", "web1"]));
    assert!(code == Some(1) && error.contains("only one in error is freed"), "{error}");
    fleet.ledger().step(next, ReleaseState::ProductionError, ReleaseState::ProductionRelease, "me", "", None).await.unwrap();
    fleet.worker1().await;
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::Completed)));
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("3"));
    let (code, list, error) = told(&fleet.bullwork(&["release", "status", "--all"]));
    assert!(code == Some(0) && list.lines().count() == 3, "{list}{error}");
}

#[tokio::test]
async fn a_new_list_of_releases_never_takes_what_an_earlier_one_kept_for_its_own() {
    let mut fleet = Fleet::start(1).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    released(&fleet, &["f"], &["web1"]).await;
    // The list is lost: numbers begin anew.
    let old = fleet.ledger();
    fleet.more.push(("RELEASE_STATE_FILE".to_owned(), fleet.path("new.db").display().to_string()));
    let new = fleet.ledger();
    new.prepare().await.unwrap();
    let servers = ["dev", "beta", "web1"].map(|name| (name, fleet.servers[name].port));
    for ((name, port), role) in servers.into_iter().zip([Role::Developers, Role::Beta, Role::Business]) {
        new.add_servers(&[fleet.new_server(name, role, port)]).await.unwrap();
    }
    fleet.write("dev", "f", "3");
    let id = fleet.begin(&["f"], false).await;
    assert_eq!(id, 1, "the number of the one that was lost");
    let failed = fleet.worker1().await;
    let other = "is of another release with this number: the list of releases is not the one that it was";
    assert!(matches!(&failed, Stands::Failed(1, ReleaseState::BetaError, p) if p.contains(other)), "{failed:?}");
    assert_eq!(fleet.read("beta", "f").as_deref(), Some("2"), "nothing is changed there");

    // Where that was mended on beta alone, a business server still keeps it.
    std::fs::remove_dir_all(fleet.project("beta").join(".bullwork-releases")).unwrap();
    assert!(new.step(id, ReleaseState::BetaError, ReleaseState::BetaCopying, "me", "", None).await.unwrap());
    assert_eq!(fleet.worker1().await, Stands::At(id, ReleaseState::BetaDone));
    fleet.to_production(id, &["web1"]).await;
    let failed = fleet.worker2("web1").await;
    assert!(matches!(&failed, Worked::Failed(p, _) if p.contains(other) && p.contains("web1")), "{failed:?}");
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("2"));
    let server = new.server("web1").await.unwrap();
    let told = fleet.releases().back(&server, id, None).await.unwrap_err().to_string();
    assert!(told.contains(other), "{told}");

    // The list that was there before still brings back what it replaced.
    fleet.more.clear();
    old.want_rollback(id, &[], "me").await.unwrap();
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(..)));
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("1"));
}
