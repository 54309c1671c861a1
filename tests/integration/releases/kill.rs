//! The real workers, killed at each step: the next ones go on, by lock and lease. Many workers: never two at one server.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bullwork::releases::states::ReleaseState;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fleet::Fleet;
use crate::support::redis::RedisServer;

/// Longer than the longest recovery: lock and lease run out in seconds here.
const SOON: Duration = Duration::from_secs(75);

struct Workers(Vec<Child>);

impl Workers {
    fn start(fleet: &Fleet, verb: &[&str], count: usize, more: &[(&str, &str)]) -> Workers {
        let one = |n: usize| {
            let log = std::fs::File::options().create(true).append(true).open(fleet.path(&format!("worker-{n}.log"))).unwrap();
            let mut command = fleet.command(verb);
            command.envs(more.iter().copied()).env("LOG_LEVEL", "info").stdout(log.try_clone().unwrap()).stderr(log);
            command.stdin(Stdio::null()).process_group(0).spawn().expect("the program runs")
        };
        Workers((0..count).map(one).collect())
    }

    fn kill(&mut self) {
        for child in &mut self.0 {
            let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL);
            let _ = child.wait();
        }
        self.0.clear();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn fleet(redis: &RedisServer, business: usize, more: &[(&str, &str)]) -> Fleet {
    let url = redis.url();
    let usual = [("REDIS_URL", url.as_str()), ("JOB_LOCK_SECONDS", "2")];
    Fleet::with(business, &usual.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()).await
}

fn bullwork(fleet: &Fleet, arguments: &[&str]) {
    let (code, _, errors) = super::fleet::told(&fleet.bullwork(arguments));
    assert_eq!(code, Some(0), "{arguments:?}: {errors}");
}

/// Waits until the release stands there.
async fn reaches(fleet: &Fleet, id: i64, state: ReleaseState) {
    let begun = Instant::now();
    loop {
        let release = fleet.release(id).await;
        if release.state == state {
            return;
        }
        let failed = matches!(release.state, ReleaseState::BetaError | ReleaseState::ProductionError);
        assert!(!failed && begun.elapsed() < SOON, "{release:?} instead of {state}\n{}", fleet.journal(id).await.join("\n"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the journals hold such a line.
async fn tells(fleet: &Fleet, id: i64, part: &str) {
    let begun = Instant::now();
    while !fleet.journal(id).await.iter().any(|line| line.contains(part)) {
        assert!(begun.elapsed() < SOON, "{part}\n{}", fleet.journal(id).await.join("\n"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn fill(fleet: &Fleet) {
    for n in 0..150 {
        fleet.write("dev", &format!("app/{}/{n}", n % 7), format!("new {n}"));
        for web in ["web1", "web2"] {
            fleet.write(web, &format!("app/{}/{n}", n % 7), format!("old {n}"));
        }
    }
    fleet.write("dev", "app/large", vec![b'x'; 8 << 20]);
}

fn all_is_there(fleet: &Fleet, servers: &[&str]) {
    for server in servers {
        assert_eq!(fleet.tree(server), fleet.tree("dev"), "{server}");
    }
}

/// Everything that a killed worker 1 had begun is done by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn worker_1_is_killed_at_each_of_its_steps_and_the_next_one_goes_on() {
    let redis = RedisServer::start();
    let fleet = fleet(&redis, 2, &[]).await;
    fill(&fleet);
    let verb = ["worker", "release", "release-copy"];
    let mut workers = Workers::start(&fleet, &verb, 1, &[]);
    bullwork(&fleet, &["release", "beta", "app"]);
    let room = fleet.project("beta").join(".bullwork-releases/1");
    for (what, there) in [("owner", room.join("owner")), ("new", room.join("new/app"))] {
        let begun = Instant::now();
        while !there.exists() && fleet.release(1).await.state == ReleaseState::BetaCopying {
            assert!(begun.elapsed() < SOON, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        println!("killed at {what}, in {}", fleet.release(1).await.state);
        workers.kill();
        workers = Workers::start(&fleet, &verb, 1, &[]);
    }
    reaches(&fleet, 1, ReleaseState::BetaDone).await;
    all_is_there(&fleet, &["beta"]);
    bullwork(&fleet, &["release", "production", "1"]);
    for state in [ReleaseState::ProductionRelease, ReleaseState::ProductionBackup] {
        tells(&fleet, 1, "production_release").await;
        let word = if state == ReleaseState::ProductionRelease { "production_backup (" } else { "production_copying (" };
        println!("killed in {}, waiting for {word}", fleet.release(1).await.state);
        workers.kill();
        workers = Workers::start(&fleet, &verb, 1, &[]);
        tells(&fleet, 1, word).await;
    }
    reaches(&fleet, 1, ReleaseState::Completed).await;
    all_is_there(&fleet, &["web1", "web2"]);
    drop(workers);
}

/// Half an archive never has an archive's name, and another one is made before any business file changes.
#[tokio::test(flavor = "multi_thread")]
async fn worker_1_is_killed_while_it_writes_the_archive_and_another_one_is_made() {
    let redis = RedisServer::start();
    let fleet = fleet(&redis, 1, &[]).await;
    fill(&fleet);
    // Not to be compressed, so that the archive takes seconds.
    let mut noise = vec![0_u64; 12 << 20];
    let mut last = 0x2545_f491_4f6c_dd1d_u64;
    for word in &mut noise {
        last ^= last << 13;
        last ^= last >> 7;
        last ^= last << 17;
        *word = last;
    }
    fleet.write("web1", "noise", noise.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
    let before = fleet.tree("web1");
    let id = fleet.on_beta(&["app"]).await;
    let verb = ["worker", "release", "release-copy"];
    let mut workers = Workers::start(&fleet, &verb, 1, &[]);
    bullwork(&fleet, &["release", "production", &id.to_string()]);
    let names = || {
        let entries = std::fs::read_dir(fleet.backups("web1")).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while !names().iter().any(|name| name.ends_with(".part")) {
        assert!(begun.elapsed() < SOON, "no archive was begun: {:?}", names());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    workers.kill();
    assert_eq!(fleet.release(id).await.state, ReleaseState::ProductionBackup);
    assert_eq!(fleet.tree("web1"), before, "no business file is touched without an archive");
    let _workers = Workers::start(&fleet, &verb, 1, &[]);
    reaches(&fleet, id, ReleaseState::Completed).await;
    for name in names().iter().filter(|name| !name.starts_with('.')) {
        let listed = std::process::Command::new("tar").arg("-tzf").arg(fleet.backups("web1").join(name)).output().unwrap();
        assert!(listed.status.success(), "{name} is whole");
    }
    let archive = fleet.release(id).await.backup.unwrap();
    let name = std::fs::read_link(fleet.backups("web1").join("site.tar.gz")).unwrap();
    assert!(archive.contains(name.to_str().unwrap()), "{archive} is the newest: {name:?}");
}

/// The hooks hold a worker where it is killed: before the switch, and after it. What they left running ends with the test's directory.
#[tokio::test(flavor = "multi_thread")]
async fn worker_2_is_killed_at_each_of_its_steps_and_another_one_takes_the_server_over() {
    let redis = RedisServer::start();
    let hold = "test -e ../go-before || { touch ../held-before; while test -e ../held-before; do sleep 0.2; done; }";
    let hold_after = "test -e ../go-after || { touch ../held-after; while test -e ../held-after; do sleep 0.2; done; }";
    let fleet = fleet(&redis, 1, &[("RELEASE_BEFORE_SWITCH", hold), ("RELEASE_AFTER_SWITCH", hold_after)]).await;
    fill(&fleet);
    let id = fleet.on_beta(&["app"]).await;
    fleet.to_production(id, &["web1"]).await;
    let before = fleet.tree("web1");
    let verb = ["worker", "release-copy"];
    bullwork(&fleet, &["release", "retry", "1"]);
    let mut workers = Workers::start(&fleet, &verb, 1, &[]);
    let begun = Instant::now();
    let mut there = async |what: &str, path: std::path::PathBuf| {
        while !path.exists() {
            assert!(begun.elapsed() < SOON * 2, "{what}\n{}", fleet.journal(id).await.join("\n"));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        println!("killed at {what}");
        workers.kill();
        workers = Workers::start(&fleet, &verb, 1, &[]);
    };
    there("the claim", fleet.project("web1").join(".bullwork-releases/1/owner")).await;
    there("the copy", fleet.project("web1").join(".bullwork-releases/1/new/app")).await;
    there("the hook before", fleet.path("web1/held-before")).await;
    assert_eq!(fleet.tree("web1"), before, "nothing is in place yet");
    std::fs::write(fleet.path("web1/go-before"), "").unwrap();
    there("the hook after", fleet.path("web1/held-after")).await;
    std::fs::write(fleet.path("web1/go-after"), "").unwrap();
    reaches(&fleet, id, ReleaseState::Completed).await;
    all_is_there(&fleet, &["web1"]);
    let journal = fleet.journal(id).await.join("\n");
    assert!(journal.contains("because the lease of"), "{journal}");
    // What was replaced first is what comes back, though four workers were at it.
    fleet.ledger().want_rollback(id, &[], "me").await.unwrap();
    fleet.worker2("web1").await;
    assert_eq!(fleet.tree("web1"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_workers_and_three_servers_are_never_two_at_one() {
    let redis = RedisServer::start();
    // Each worker marks the server while it is there; `mkdir` is for one.
    let enter = "mkdir ../inside || echo twice >>../twice; sleep 0.4; rmdir ../inside; echo in >>../visits";
    let fleet = fleet(&redis, 3, &[("RELEASE_BEFORE_SWITCH", enter), ("RELEASE_COPIES", "2")]).await;
    let workers = Workers::start(&fleet, &["worker", "release", "release-copy"], 10, &[]);
    for round in 1..=3_i64 {
        fleet.write("dev", "f", format!("{round}"));
        bullwork(&fleet, &["release", "beta", "f"]);
        reaches(&fleet, round, ReleaseState::BetaDone).await;
        bullwork(&fleet, &["release", "production", &round.to_string()]);
        for _ in 0..5 {
            // More jobs than there is to do.
            for server in ["web1", "web2", "web3"] {
                bullwork_copy(&redis, server).await;
            }
        }
        reaches(&fleet, round, ReleaseState::Completed).await;
    }
    for server in ["web1", "web2", "web3"] {
        assert!(!fleet.path(server).join("twice").exists(), "two were at {server}");
        assert_eq!(std::fs::read_to_string(fleet.path(server).join("visits")).unwrap().lines().count(), 3, "{server}");
        assert_eq!(fleet.read(server, "f").as_deref(), Some("3"));
    }
    drop(workers);
}

async fn bullwork_copy(redis: &RedisServer, server: &str) {
    use bullwork::queue::{JobOptions, NewJob, Queue};
    let queue = Queue::new(
        bullwork::redis::Redis::new(&redis.url()).unwrap(),
        "bull",
        "Release copy queue",
        bullwork::clock::Clock::System,
    );
    queue.add(&NewJob::unnamed(serde_json::json!({"server": server}), JobOptions::default())).await.unwrap();
}

/// Told to stop, a worker gives its server back at once: the next one need not wait for the lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_gives_its_server_back() {
    let redis = RedisServer::start();
    let hold = "test -e ../go || { touch ../held; while test -e ../held; do sleep 0.2; done; }";
    let fleet = fleet(&redis, 1, &[("RELEASE_BEFORE_SWITCH", hold), ("RELEASE_LEASE_SECONDS", "600")]).await;
    fleet.write("dev", "f", "2");
    let id = fleet.on_beta(&["f"]).await;
    fleet.to_production(id, &["web1"]).await;
    let mut workers = Workers::start(&fleet, &["worker", "release-copy"], 1, &[]);
    bullwork(&fleet, &["release", "retry", "1"]);
    let begun = Instant::now();
    while !fleet.path("web1/held").exists() {
        assert!(begun.elapsed() < SOON, "{}", fleet.journal(id).await.join("\n"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kill(Pid::from_raw(workers.0[0].id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    tells(&fleet, id, "interrupted, another worker goes on").await;
    assert!(workers.0[0].wait().unwrap().success());
    workers.0.clear();
    std::fs::write(fleet.path("web1/go"), "").unwrap();
    let workers = Workers::start(&fleet, &["worker", "release-copy"], 1, &[]);
    reaches(&fleet, id, ReleaseState::Completed).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_stops_within_seconds() {
    let redis = RedisServer::start();
    let fleet = fleet(&redis, 1, &[("RELEASE_BEFORE_SWITCH", "touch ../held; while test -e ../held; do sleep 0.2; done")]).await;
    fleet.write("dev", "f", "2");
    let id = fleet.on_beta(&["f"]).await;
    fleet.to_production(id, &["web1"]).await;
    let releases = fleet.releases();
    let worker = tokio::spawn(async move { releases.work_at(&bullwork::worker::Run::detached(), "web1").await });
    let begun = Instant::now();
    while !fleet.path("web1/held").exists() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bullwork(&fleet, &["release", "cancel", "1"]);
    let ended = tokio::time::timeout(Duration::from_secs(10), worker).await.expect("within seconds").unwrap();
    assert!(ended.unwrap_err().to_string().contains("or it was cancelled"));
    let release = fleet.release(id).await;
    assert_eq!(release.state, ReleaseState::ProductionError);
    assert!(release.problem.unwrap().contains("cancelled by"));
    assert_eq!(fleet.read("web1", "f"), None);
}
