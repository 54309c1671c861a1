//! The real program, killed at each step of a run: the next run goes on, and what is listed is whole.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bullwork::backup::name::{MANIFEST, Name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::{Setup, result};
use crate::support::eventually;

const SOON: Duration = Duration::from_secs(60);

/// `bullwork backup now`, with these settings and no others.
pub(super) fn start(setup: &Setup, more: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_bullwork"))
        .args(["backup", "now"])
        .current_dir(setup.directory.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(setup.settings(more))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(setup.directory.path().join("stdout")).expect("the directory is ours"))
        .stderr(std::fs::File::create(setup.directory.path().join("stderr")).expect("the directory is ours"))
        .spawn()
        .expect("the program runs")
}

/// Bytes of the uploads that do not show yet.
fn hidden_bytes(store: &Path) -> u64 {
    super::files(store)
        .iter()
        .filter(|file| !file.starts_with("db/2") && !file.ends_with("baseline.json"))
        .filter_map(|file| std::fs::metadata(store.join(file)).ok())
        .map(|meta| meta.len())
        .sum()
}

fn archives_there(setup: &Setup) -> usize {
    setup.files().iter().filter(|f| f.strip_prefix("db/").is_some_and(|f| f.parse::<Name>().is_ok())).count()
}

fn manifests_there(setup: &Setup) -> usize {
    setup.files().iter().filter(|f| f.ends_with(MANIFEST)).count()
}

/// What is listed is whole, byte for byte.
async fn listed_is_whole(setup: &Setup) {
    for shelved in setup.archives().await {
        let manifest = setup.shelf().manifest(shelved.name).await.expect("what is listed has a manifest");
        let bytes = std::fs::read(setup.store().join(&shelved.entry.key)).expect("what is listed is there");
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!((bytes.len() as u64, digest), (manifest.stored.bytes, manifest.stored.sha256), "{}", shelved.name);
    }
}

/// The next run goes on from whatever there is; after it every archive is listed, and the newest one holds the change.
async fn next_run_heals(setup: &Setup, what: &str) {
    listed_is_whole(setup).await;
    // The killed program's session ends when its server notices.
    let begun = Instant::now();
    loop {
        let value = setup.take(&[]).await;
        if result(&value) != "skipped" {
            break;
        }
        assert!(begun.elapsed() < SOON, "{what}: {value}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    listed_is_whole(setup).await;
    assert_eq!(archives_there(setup), setup.archives().await.len(), "{what}: an archive is there that is not listed");
    let newest = setup.newest().await;
    let rows: i64 = setup.shop.query_one("select count(*) from customer", &[]).await.unwrap().get(0);
    let archived = newest.tables.iter().find(|t| t.name == "customer").map(|t| t.rows);
    assert_eq!(archived, u64::try_from(rows).ok(), "{what}: the newest archive is not of now");
    assert_eq!(result(&setup.take(&[]).await), "unchanged", "{what}");
    assert!(setup.baseline().unwrap().pending.is_none(), "{what}");
}

/// Kills a run at `step`; before `finish`, nothing of it may show.
async fn kill_at(setup: &Setup, step: &str) {
    let bin = setup.slow_pg_dump();
    for file in ["go", "waiting"] {
        let _ = std::fs::remove_file(bin.join(file));
    }
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    let (archives, manifests, before) = (archives_there(setup), manifests_there(setup), setup.baseline());
    let mut child = start(setup, &[("PG_BIN", &bin.display().to_string())]);
    let store = setup.store();
    // pg_dump has written everything and does not end yet.
    eventually("pg_dump waits", SOON, async || bin.join("waiting").exists()).await;
    match step {
        "dump" => {}
        "mid-upload" => eventually("something is stored", SOON, async || hidden_bytes(&store) > 500_000).await,
        _ => {
            std::fs::write(bin.join("go"), "").unwrap();
            let begun = Instant::now();
            // Without a pause, for the steps follow each other within milliseconds.
            while begun.elapsed() < SOON {
                if match step {
                    "archive" => archives_there(setup) > archives,
                    "manifest" => manifests_there(setup) > manifests,
                    _ => setup.baseline().map(|b| b.archive) != before.as_ref().map(|b| b.archive),
                } {
                    break;
                }
            }
        }
    }
    let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL);
    child.wait().unwrap();
    println!(
        "{step}: killed with {} archives, {} manifests, baseline {}",
        archives_there(setup) - archives,
        manifests_there(setup) - manifests,
        if setup.baseline().map(|b| b.archive) == before.map(|b| b.archive) { "as before" } else { "advanced" }
    );
    if matches!(step, "dump" | "mid-upload") {
        assert_eq!((archives_there(setup), manifests_there(setup)), (archives, manifests), "{step}: something shows");
    }
}

#[tokio::test]
async fn kill_at_each_step_is_healed_by_the_next_run() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    for step in ["dump", "archive", "manifest", "baseline"] {
        kill_at(&setup, step).await;
        next_run_heals(&setup, step).await;
    }
}

#[tokio::test]
async fn kill_in_the_middle_of_an_upload_leaves_nothing_that_shows() {
    let setup = Setup::new().await;
    // More than one part of the tar, so that something is sent before the dump's end.
    let sql = "insert into customer (name) select md5(n::text) || md5((-n)::text) from generate_series(1, 100000) n";
    setup.shop.batch_execute(sql).await.unwrap();
    kill_at(&setup, "mid-upload").await;
    next_run_heals(&setup, "mid-upload").await;
}

/// The two steps that a kill seldom hits, made by hand from what the program left.
#[tokio::test]
async fn an_archive_whose_manifest_or_baseline_was_not_written_is_completed() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let before = std::fs::read(setup.store().join("db/baseline.json")).unwrap();
    setup.shop.batch_execute("insert into customer (name) values ('one more')").await.unwrap();
    setup.take(&[]).await;
    let manifest = setup.newest().await;
    let after = setup.baseline().unwrap();
    let pending = bullwork::backup::baseline::Pending { manifest: manifest.clone(), state: after.state.clone().unwrap() };
    let mut announced: bullwork::backup::baseline::Baseline = serde_json::from_slice(&before).unwrap();
    announced.pending = Some(Box::new(pending));
    let note = serde_json::to_vec(&announced).unwrap();
    let (baseline, archive) = (setup.store().join("db/baseline.json"), setup.newest_file().await);
    let mark = archive.with_file_name(format!("{}{MANIFEST}", manifest.archive));

    for removed in [Some(&mark), None] {
        if let Some(file) = removed {
            std::fs::remove_file(file).unwrap();
            assert_eq!(setup.archives().await.len(), 1, "without a manifest it is not listed");
        }
        std::fs::write(&baseline, &note).unwrap();
        let value = setup.take(&[]).await;
        assert_eq!(result(&value), "unchanged", "{value}");
        assert_eq!(setup.newest().await, manifest);
        assert_eq!(setup.baseline().unwrap().archive, Some(manifest.archive));
    }

    // Announced and never finished: there is nothing to complete.
    std::fs::remove_file(&mark).unwrap();
    std::fs::remove_file(&archive).unwrap();
    std::fs::write(&baseline, &note).unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(result(&value), "archived", "{value}");
    assert_eq!(setup.archives().await.len(), 2);

    // Finished, but not as announced.
    let newest = setup.newest().await;
    announced.pending.as_mut().unwrap().manifest = newest.clone();
    std::fs::write(&baseline, serde_json::to_vec(&announced).unwrap()).unwrap();
    let (file, mark) = (setup.newest_file().await, setup.store().join(format!("db/{}{MANIFEST}", newest.archive)));
    std::fs::remove_file(mark).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(result(&value), "archived", "{value}");
    assert_ne!(setup.newest().await.archive, newest.archive, "a damaged one is not completed");
    listed_is_whole(&setup).await;
}

#[tokio::test]
async fn sigterm_ends_children_and_uploads_at_once() {
    let setup = Setup::new().await;
    let bin = setup.slow_pg_dump();
    let mut child = start(&setup, &[("PG_BIN", &bin.display().to_string())]);
    eventually("pg_dump waits", SOON, async || bin.join("waiting").exists()).await;
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let begun = Instant::now();
    let mut status = None;
    eventually("the program ends", Duration::from_secs(20), async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    println!("ended within {:?}", begun.elapsed());
    assert!(!status.unwrap().success());
    assert_eq!(setup.files().iter().filter(|f| !f.ends_with("lock")).count(), 0, "{:?}", setup.files());
    let mark = bin.display().to_string();
    eventually("pg_dump ends too", Duration::from_secs(10), async || !super::runs(&mark)).await;
    assert_eq!(result(&setup.take(&[]).await), "archived");
}
