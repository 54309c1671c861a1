//! From beta to the business servers: archive first, digests, waves, hooks, what is taken away.

use std::process::Command;
use std::sync::{Arc, Mutex};

use bullwork::releases::ledger::Role;
use bullwork::releases::states::{ReleaseState, ServerState};
use bullwork::releases::worker1::Stands;
use bullwork::releases::worker2::Worked;
use bullwork::worker::Run;
use bullwork::worker::run::{Progress, Record, RunSink};
use tokio_util::sync::CancellationToken;

use super::fleet::{Fleet, user};

fn listed(archive: &std::path::Path) -> Vec<String> {
    let output = Command::new("tar").arg("-tf").arg(archive).output().expect("tar runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_archive_is_there_before_any_business_file_changes_and_production_copies_from_beta() {
    let fleet = Fleet::start(2).await;
    fleet.write("dev", "app/new", "2");
    fleet.write("dev", "app/same", "same");
    fleet.write("web1", "app/new", "1");
    fleet.write("web1", "other", "old");
    fleet.write("web2", "app/new", "1");
    let id = fleet.on_beta(&["app"]).await;
    // What developers do meanwhile is no part of the release.
    fleet.write("dev", "app/new", "3, not released");
    let before = (fleet.tree("web1"), fleet.tree("web2"));
    assert_eq!(fleet.to_production(id, &["web1+web2"]).await, Stands::At(id, ReleaseState::ProductionCopying));
    assert_eq!((fleet.tree("web1"), fleet.tree("web2")), before, "no business file is touched by the archive");
    let newest = fleet.backups("web1").join("site.tar.gz");
    let name = std::fs::read_link(&newest).expect("the plain name is a link").display().to_string();
    assert!(name.starts_with("site-2") && name.ends_with("Z.tar.gz"), "{name}");
    assert_eq!(listed(&newest), ["./", "./app/", "./app/new", "./other"]);
    let bytes = std::fs::read(&newest).unwrap();
    let sha256: String = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let backup = fleet.release(id).await.backup.unwrap();
    assert!(backup.contains(&format!("{name}, {} bytes, sha256 {sha256}", bytes.len())), "{backup}");
    assert!(fleet.journal(id).await.iter().any(|line| line.contains(&sha256)), "in the journal too");
    assert_eq!(std::fs::read_dir(fleet.backups("web1")).unwrap().count(), 2, "no part is left");

    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::ProductionCopying)));
    assert!(matches!(fleet.worker2("web2").await, Worked::Done(_, ReleaseState::Completed)));
    assert_eq!(fleet.worker2("web2").await, Worked::Nothing, "once");
    for server in ["web1", "web2"] {
        assert_eq!(fleet.read(server, "app/new").as_deref(), Some("2"), "what beta has");
        assert_eq!(fleet.read(server, "app/same").as_deref(), Some("same"));
    }
    assert_eq!(fleet.read("web1", "other").as_deref(), Some("old"));
    // The next release makes another archive, and the link goes on.
    let id = fleet.on_beta(&["app"]).await;
    fleet.to_production(id, &["web1"]).await;
    assert_eq!(std::fs::read_dir(fleet.backups("web1")).unwrap().count(), 3);
    assert_ne!(std::fs::read_link(&newest).unwrap().display().to_string(), name);
}

#[tokio::test]
async fn without_an_archive_no_business_file_is_touched() {
    let fleet = Fleet::start(2).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    fleet.write("web2", "f", "1");
    let id = fleet.on_beta(&["f"]).await;
    let before = (fleet.tree("web1"), fleet.tree("web2"));
    std::fs::remove_dir(fleet.backups("web1")).unwrap();
    let stands = fleet.to_production(id, &["web1+web2"]).await;
    assert!(matches!(&stands, Stands::Failed(_, ReleaseState::ProductionError, p) if p.contains("does not exist")), "{stands:?}");
    assert_eq!((fleet.worker2("web1").await, fleet.worker2("web2").await), (Worked::Nothing, Worked::Nothing));
    assert_eq!((fleet.tree("web1"), fleet.tree("web2")), before);
    // A file where the link belongs is somebody's archive.
    std::fs::create_dir(fleet.backups("web1")).unwrap();
    std::fs::write(fleet.backups("web1").join("site.tar.gz"), "precious").unwrap();
    let again = async || {
        let to = ReleaseState::ProductionRelease;
        assert!(fleet.ledger().step(id, ReleaseState::ProductionError, to, "me", "", None).await.unwrap());
        fleet.worker1().await
    };
    let stands = again().await;
    assert!(matches!(&stands, Stands::Failed(_, _, p) if p.contains("move it away")), "{stands:?}");
    assert_eq!(std::fs::read(fleet.backups("web1").join("site.tar.gz")).unwrap(), b"precious");
    std::fs::remove_file(fleet.backups("web1").join("site.tar.gz")).unwrap();
    assert_eq!(again().await, Stands::At(id, ReleaseState::ProductionCopying));
}

#[tokio::test]
async fn the_archive_may_hold_only_what_the_release_names() {
    let fleet = Fleet::with(1, &[("RELEASE_BACKUP", "paths")]).await;
    fleet.write("dev", "app/a", "2");
    fleet.write("dev", "new", "2");
    fleet.write("web1", "app/a", "1");
    fleet.write("web1", "app/b", "1");
    fleet.write("web1", "other", "1");
    let id = fleet.on_beta(&["app", "new"]).await;
    assert_eq!(fleet.to_production(id, &["web1"]).await, Stands::At(id, ReleaseState::ProductionCopying));
    assert_eq!(listed(&fleet.backups("web1").join("site.tar.gz")), ["app/", "app/a", "app/b"]);
}

#[tokio::test]
async fn beta_that_changed_since_is_found_before_production_begins() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "f", "tested");
    fleet.write("dev", "g", "1");
    let id = fleet.on_beta(&["f", "g"]).await;
    // As long, and as old.
    let time = std::fs::metadata(fleet.project("beta").join("f")).unwrap().modified().unwrap();
    fleet.write("beta", "f", "edited");
    let file = std::fs::File::options().write(true).open(fleet.project("beta").join("f")).unwrap();
    file.set_modified(time).unwrap();
    let stands = fleet.to_production(id, &["web1"]).await;
    let wanted = "beta is not what the manifest tells: `f`";
    assert!(matches!(&stands, Stands::Failed(_, ReleaseState::ProductionError, p) if p == wanted), "{stands:?}");
    assert_eq!(std::fs::read_dir(fleet.backups("web1")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_arrived_wrong_is_found_before_it_is_put_in_place() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "f", "right");
    let id = fleet.on_beta(&["f"]).await;
    assert_eq!(fleet.to_production(id, &["web1"]).await, Stands::At(id, ReleaseState::ProductionCopying));
    // A spool that says to be whole and is not.
    let spool = fleet.path("spool").join(id.to_string());
    std::fs::create_dir_all(spool.join("beta")).unwrap();
    std::fs::write(spool.join("beta/f"), "wrong").unwrap();
    std::fs::write(spool.join("beta.whole"), "").unwrap();
    let worked = fleet.worker2("web1").await;
    let wanted = "what arrived on web1 is not what the manifest tells: `f`";
    assert!(matches!(&worked, Worked::Failed(p, ReleaseState::ProductionError) if p == wanted), "{worked:?}");
    assert_eq!(fleet.read("web1", "f"), None);
    // The spool is not believed any more.
    fleet.ledger().start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::Completed)));
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("right"));
}

#[tokio::test]
async fn one_server_is_down_the_others_are_done_and_only_it_is_taken_up() {
    let mut fleet = Fleet::start(3).await;
    fleet.write("dev", "f", "2");
    let id = fleet.on_beta(&["f"]).await;
    assert_eq!(fleet.to_production(id, &["web1+web2+web3"]).await, Stands::At(id, ReleaseState::ProductionCopying));
    fleet.stop("web2");
    let down = fleet.worker2("web2").await;
    assert!(
        matches!(&down, Worked::Failed(p, ReleaseState::ProductionCopying) if p.contains("nothing listens there")),
        "{down:?}"
    );
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::ProductionCopying)));
    assert!(matches!(fleet.worker2("web3").await, Worked::Done(_, ReleaseState::ProductionError)));
    assert_eq!(
        (fleet.read("web1", "f"), fleet.read("web2", "f"), fleet.read("web3", "f")),
        (Some("2".into()), None, Some("2".into()))
    );
    let release = fleet.release(id).await;
    assert!(release.problem.unwrap().starts_with("web2: "));
    assert_eq!(fleet.ledger().server("web2").await.unwrap().state, ServerState::Error);
    let second = fleet.ledger().begin(&["x".to_owned()], false, "me").await.unwrap_err().to_string();
    assert!(second.contains("production_error («production-ошибка»)"), "{second}");
    fleet.start_again("web2");
    fleet.ledger().start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
    assert_eq!((fleet.worker2("web1").await, fleet.worker2("web3").await), (Worked::Nothing, Worked::Nothing));
    assert!(matches!(fleet.worker2("web2").await, Worked::Done(_, ReleaseState::Completed)));
    assert_eq!(fleet.read("web2", "f").as_deref(), Some("2"));
}

#[tokio::test]
async fn hooks_run_in_the_project_before_and_after_and_a_failed_one_is_told() {
    let before = "test -e allowed && echo \"$RELEASE_SERVER $RELEASE_ID $(cat f 2>/dev/null)\" >>hooks";
    let after = "echo \"after $(cat f)\" >>hooks";
    let fleet = Fleet::with(1, &[("RELEASE_BEFORE_SWITCH", before), ("RELEASE_AFTER_SWITCH", after)]).await;
    fleet.write("dev", "f", "2");
    fleet.write("web1", "f", "1");
    let id = fleet.on_beta(&["f"]).await;
    fleet.to_production(id, &["web1"]).await;
    let worked = fleet.worker2("web1").await;
    assert!(matches!(&worked, Worked::Failed(p, _) if p.contains("the hook before the switch")), "{worked:?}");
    assert_eq!(fleet.read("web1", "f").as_deref(), Some("1"), "nothing is changed");
    fleet.write("web1", "allowed", "");
    fleet.ledger().start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(..)));
    assert_eq!(fleet.read("web1", "hooks").as_deref(), Some(format!("web1 {id} 1\nafter 2\n").as_str()));
    assert_eq!(fleet.read("beta", "hooks"), None, "beta has none");
}

#[tokio::test]
async fn what_a_listed_directory_holds_too_much_stays_unless_it_is_to_go() {
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "app/a", "1");
    for server in ["beta", "web1"] {
        fleet.write(server, "app/too much", "x");
        fleet.write(server, "app/deep/er", "x");
        fleet.write(server, "beside", "x");
    }
    let id = fleet.begin(&["app"], false).await;
    fleet.worker1().await;
    assert_eq!(fleet.read("beta", "app/too much").as_deref(), Some("x"));
    fleet.ledger().abandon(id, "me").await.unwrap();
    let id = fleet.begin(&["app"], true).await;
    assert_eq!(fleet.worker1().await, Stands::At(id, ReleaseState::BetaDone));
    fleet.to_production(id, &["web1"]).await;
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(..)));
    for server in ["beta", "web1"] {
        assert_eq!((fleet.read(server, "app/too much"), fleet.read(server, "app/deep/er")), (None, None));
        assert_eq!(fleet.read(server, "beside").as_deref(), Some("x"));
    }
    // And it comes back.
    fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
    fleet.worker2("web1").await;
    assert_eq!(fleet.read("web1", "app/too much").as_deref(), Some("x"));
    assert_eq!(fleet.read("web1", "app/deep/er").as_deref(), Some("x"));
    assert_eq!(fleet.read("web1", "app/a"), None);
}

#[tokio::test]
async fn beta_copies_by_itself_with_a_key_of_its_own() {
    let fleet = Fleet::start(2).await;
    // The key that opens the business servers is on beta alone: another than the worker's.
    let key = fleet.path("stranger").display().to_string();
    let pins = fleet.path("known_hosts").display().to_string();
    let authorized = ["client.pub", "stranger.pub"].map(|name| std::fs::read_to_string(fleet.path(name)).unwrap()).concat();
    std::fs::write(fleet.path("authorized"), authorized).unwrap();
    let mut fleet = fleet;
    let transport =
        [("RELEASE_TRANSPORT", "beta"), ("RELEASE_BETA_KEY", key.as_str()), ("RELEASE_BETA_KNOWN_HOSTS", pins.as_str())];
    fleet.more.extend(transport.map(|(name, value)| (name.to_owned(), value.to_owned())));
    fleet.write("dev", "it's a dir/f 1", "2");
    let id = fleet.on_beta(&["it's a dir"]).await;
    fleet.to_production(id, &["web1+web2"]).await;
    for server in ["web1", "web2"] {
        let worked = fleet.worker2(server).await;
        assert!(matches!(worked, Worked::Done(..)), "{worked:?}");
        assert_eq!(fleet.tree(server), fleet.tree("beta"));
    }
    assert!(!fleet.path("spool").join(id.to_string()).join("beta").exists(), "nothing passed through the worker's spool");
    let check = |fleet: &Fleet| super::fleet::told(&fleet.bullwork(&["release", "servers", "check", "web1"]));
    let (code, out, errors) = check(&fleet);
    assert_eq!(code, Some(0), "{out}{errors}");
    let unknown = std::fs::read_to_string(fleet.path("client.pub")).unwrap();
    std::fs::write(fleet.path("authorized"), unknown).unwrap();
    let (code, out, _) = check(&fleet);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("from beta with its own key (RELEASE_BETA_KEY): it does not take our key"), "{out}");
}

#[tokio::test]
async fn a_server_is_probed_for_what_it_lacks() {
    let mut fleet = Fleet::start(1).await;
    std::fs::remove_dir(fleet.project("beta")).unwrap();
    let mut ghost = fleet.new_server("ghost", Role::Business, 1);
    ghost.user = user();
    fleet.ledger().add_servers(&[ghost]).await.unwrap();
    fleet.stop("dev");
    let output = fleet.bullwork(&["release", "servers", "check"]);
    let (code, out, errors) = super::fleet::told(&output);
    assert_eq!(code, Some(1), "{out}{errors}");
    let line = |name: &str| {
        out.lines()
            .find(|line| line.starts_with(&format!("{name}: ")))
            .unwrap_or_else(|| panic!("{name}: {out}{errors}"))
            .to_owned()
    };
    assert!(line("dev").contains("nothing listens there"), "{out}");
    assert!(line("beta").contains("does not exist"), "{out}");
    assert_eq!(line("web1"), "web1: ready");
    assert!(line("ghost").contains("host key is not pinned") || line("ghost").contains("nothing listens"), "{out}");
    assert_eq!(super::fleet::told(&fleet.bullwork(&["release", "servers", "check", "web1"])).0, Some(0));
}

/// Keeps every progress that it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<Progress>>);

impl RunSink for Heard {
    fn line(&self, _: &Record) {}

    fn progress(&self, progress: &Progress) {
        self.0.lock().unwrap().push(progress.clone());
    }
}

/// A large file fills a lot of its own, so the rest is sent while it is proven, and progress goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn progress_tells_files_and_bytes_over_all_that_is_sent() {
    const LARGE: u64 = 256 << 20;
    let fleet = Fleet::start(1).await;
    fleet.write("dev", "app/a-large", "");
    let large = std::fs::File::options().write(true).open(fleet.project("dev").join("app/a-large")).unwrap();
    large.set_len(LARGE).unwrap();
    for n in 0..20 {
        fleet.write("dev", &format!("app/b/{n}"), vec![b'x'; 1000]);
    }
    let id = fleet.on_beta(&["app"]).await;
    fleet.to_production(id, &["web1"]).await;
    let heard = Arc::new(Heard::default());
    let run = Run::new(serde_json::Map::new(), CancellationToken::new(), Some(heard.clone() as Arc<dyn RunSink>));
    let worked = fleet.releases().work_at(&run, "web1").await.unwrap();
    assert!(matches!(worked, Worked::Done(_, ReleaseState::Completed)), "{worked:?}");
    let heard: Vec<Progress> = heard.0.lock().unwrap().iter().filter(|p| p.phase == "copying to web1").cloned().collect();
    let first = heard.first().expect("it told something");
    assert_eq!((first.done, first.total, first.bytes), (0, 21, 0));
    let last = heard.last().unwrap();
    assert_eq!((last.done, last.total, last.bytes), (21, 21, LARGE + 20_000), "{heard:?}");
    assert!(heard.is_sorted_by_key(|p| p.bytes), "it never goes back: {heard:?}");
    assert_eq!(std::fs::metadata(fleet.project("web1").join("app/a-large")).unwrap().len(), LARGE);
}
