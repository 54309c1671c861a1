//! What goes wrong between machines: keys, host keys, silence, cuts, full disks. Each is told in words, and a retry goes on.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bullwork::releases::ledger::Role;
use bullwork::releases::states::ReleaseState;
use bullwork::releases::worker1::Stands;
use bullwork::releases::worker2::Worked;

use super::fleet::Fleet;
use crate::support::eventually;
use crate::support::proxy::{Mode, Proxy};

/// The problem of a release that failed on its way to beta.
async fn problem(fleet: &Fleet) -> String {
    let id = fleet.begin(&["f"], false).await;
    let stands = fleet.worker1().await;
    fleet.ledger().abandon(id, "me").await.unwrap();
    match stands {
        Stands::Failed(_, ReleaseState::BetaError, problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_key_and_unknown_or_changed_host_keys_are_told_apart() {
    let mut fleet = Fleet::start(0).await;
    fleet.write("dev", "f", "1");
    fleet.more.push(("RELEASE_SSH_KEY".to_owned(), fleet.path("stranger").display().to_string()));
    let told = problem(&fleet).await;
    assert!(told.contains("dev: looking at the project: it does not take our key"), "{told}");
    fleet.more.clear();
    fleet.more.push(("RELEASE_KNOWN_HOSTS".to_owned(), "/no/hosts".to_owned()));
    let told = problem(&fleet).await;
    assert!(told.contains("dev: the file of host keys /no/hosts (RELEASE_KNOWN_HOSTS) cannot be read: No such file"), "{told}");
    fleet.more.clear();
    fleet.more.push(("RELEASE_SSH_KEY".to_owned(), "/no/key".to_owned()));
    let told = problem(&fleet).await;
    assert!(told.contains("dev: the private key /no/key (RELEASE_SSH_KEY) cannot be read: No such file"), "{told}");
    fleet.more.clear();

    std::fs::write(fleet.path("known_hosts"), "").unwrap();
    let told = problem(&fleet).await;
    assert!(told.contains("its host key is not pinned"), "{told}");
    assert_eq!(std::fs::read(fleet.path("known_hosts")).unwrap(), b"", "nothing is trusted on first sight");

    let other = std::fs::read_to_string(fleet.path("stranger.pub")).unwrap();
    let lines: String = fleet.servers.values().map(|server| format!("[127.0.0.1]:{} {other}", server.port)).collect();
    std::fs::write(fleet.path("known_hosts"), lines).unwrap();
    let told = problem(&fleet).await;
    assert!(told.contains("its host key is not the pinned one"), "{told}");

    fleet.pin();
    let id = fleet.begin(&["f"], false).await;
    assert_eq!(fleet.worker1().await, Stands::At(id, ReleaseState::BetaDone));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let mut fleet = Fleet::start(1).await;
    fleet.more.push(("RELEASE_SSH_TIMEOUT".to_owned(), "2".to_owned()));
    fleet.write("dev", "f", "1");
    let id = fleet.on_beta(&["f"]).await;
    // It takes connections, and that is all.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    fleet.pin_also(&[port]);
    let mut server = fleet.new_server("silent", Role::Business, port);
    server.project = fleet.project("web1").display().to_string();
    // The list is closed while a release is unfinished for what is taken off it only.
    fleet.ledger().add_servers(&[server]).await.unwrap();
    fleet.to_production(id, &["web1+silent"]).await;
    let begun = Instant::now();
    let worked = fleet.worker2("silent").await;
    assert!(matches!(&worked, Worked::Failed(p, _) if p.contains("no answer in time")), "{worked:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(matches!(fleet.worker2("web1").await, Worked::Done(_, ReleaseState::ProductionError)));
}

/// Bytes that do not compress, so that they take their time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_mid_file_changes_nothing_and_the_retry_goes_on_from_there() {
    let fleet = Fleet::start(1).await;
    let proxy = Proxy::start(fleet.servers["web1"].port).await;
    fleet.pin_also(&[proxy.port]);
    let mut server = fleet.new_server("cut", Role::Business, proxy.port);
    server.project = fleet.project("web1").display().to_string();
    server.backup = Some(fleet.backups("web1").join("site.tar.gz").display().to_string());
    fleet.ledger().add_servers(&[server]).await.unwrap();
    fleet.write("dev", "big", noise(48 << 20));
    fleet.write("web1", "big", "before");
    let id = fleet.on_beta(&["big"]).await;
    fleet.to_production(id, &["cut"]).await;
    let room = fleet.project("web1").join(format!(".bullwork-releases/{id}/new"));
    let bytes = {
        let room = room.clone();
        move || {
            let of = |path: &std::path::Path| {
                std::fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter_map(|e| e.metadata().ok())
                    .map(|m| m.len())
                    .sum::<u64>()
            };
            of(&room) + of(&room.join(".bullwork-partial"))
        }
    };
    proxy.set(Mode::Slow(Duration::from_millis(4)));
    let releases = fleet.releases();
    let worker = tokio::spawn(async move { releases.work_at(&bullwork::worker::Run::detached(), "cut").await.unwrap() });
    eventually("a part has arrived", Duration::from_secs(40), async || bytes() > 1 << 20).await;
    proxy.set(Mode::Cut);
    let worked = worker.await.unwrap();
    assert!(matches!(&worked, Worked::Failed(p, ReleaseState::ProductionError) if p.contains("copying to it")), "{worked:?}");
    assert_eq!(fleet.read("web1", "big").as_deref(), Some("before"), "nothing is put in place");
    proxy.set(Mode::Forward);
    eventually("the other end has noticed, and kept the part", Duration::from_secs(30), async || {
        std::fs::read_dir(room.join(".bullwork-partial")).is_ok_and(|mut entries| entries.next().is_some())
    })
    .await;
    fleet.ledger().start_copying(id, ReleaseState::ProductionError, None, "me").await.unwrap();
    let worked = fleet.worker2("cut").await;
    assert!(matches!(worked, Worked::Done(_, ReleaseState::Completed)), "{worked:?}");
    assert_eq!(std::fs::read(fleet.project("web1").join("big")).unwrap(), noise(48 << 20));
}

/// A small file system; unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, options: &str) -> Option<SmallDisk> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_without_room_is_found_before_and_one_that_fills_up_meanwhile_changes_nothing() {
    let fleet = Fleet::start(2).await;
    let Some(_small) = SmallDisk::mount(&fleet.project("web1"), "size=3m") else {
        println!("NOT RUN: mounting a small file system takes root");
        return;
    };
    // Room for the bytes, and none for the names.
    let _few = SmallDisk::mount(&fleet.project("web2"), "size=64m,nr_inodes=24").expect("the other one was mounted");
    for server in ["web1", "web2"] {
        fleet.write(server, "many/0", "before");
    }
    for n in 0..40 {
        fleet.write("dev", &format!("many/{n}"), vec![b'x'; 100_000]);
    }
    let id = fleet.on_beta(&["many"]).await;
    let stands = fleet.to_production(id, &["web1+web2"]).await;
    assert_eq!(stands, Stands::At(id, ReleaseState::ProductionCopying));
    let worked = fleet.worker2("web1").await;
    assert!(matches!(&worked, Worked::Failed(p, _) if p.contains("the release needs 4000000 bytes")), "{worked:?}");
    let worked = fleet.worker2("web2").await;
    assert!(matches!(&worked, Worked::Failed(p, _) if p.contains("the disk is full")), "{worked:?}");
    for server in ["web1", "web2"] {
        assert_eq!(fleet.read(server, "many/0").as_deref(), Some("before"));
        assert_eq!(std::fs::read_dir(fleet.project(server).join("many")).unwrap().count(), 1);
    }
}
