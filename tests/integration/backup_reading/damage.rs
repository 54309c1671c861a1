//! Whatever is wrong with an archive is noticed before a statement runs.

use std::path::Path;

use bullwork::backup::name::MANIFEST;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{databases, into, restore, result, sealed_archive};
use crate::backup::Setup;
use crate::support::postgres::Cluster;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Numbers that look random and are the same each time.
fn scattered(below: usize, seed: u64) -> usize {
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    usize::try_from(mixed >> 20).unwrap_or(0) % below
}

/// Damaged forms of `bytes`, with what was done.
fn damaged(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let length = bytes.len();
    for cut in [0, 1, 20, 200, length / 2, length - 17, length - 1].into_iter().chain((0..4).map(|n| scattered(length, n))) {
        all.push((format!("cut off at {cut} of {length}"), bytes[..cut].to_vec()));
    }
    // Header, key, MAC, nonce, body, last piece.
    for at in [0, 30, 70, 120, 170, 200, 230, length / 2, length - 20, length - 1]
        .into_iter()
        .chain((9..15).map(|n| scattered(length, n)))
    {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        all.push((format!("bit flipped at {at} of {length}"), flipped));
    }
    all.push(("longer".to_owned(), [bytes, b"more"].concat()));
    all.push(("twice".to_owned(), [bytes, bytes].concat()));
    all
}

/// A manifest that says of these bytes that they are right.
fn vouching(manifest: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    json["stored"] = json!({"bytes": bytes.len(), "sha256": sha256(bytes)});
    serde_json::to_vec(&json).unwrap()
}

async fn every_damage_is_refused(sealed: bool) {
    let setup = Setup::with(Cluster::start_with(&["log_statement=all"])).await;
    let key = if sealed {
        sealed_archive(&setup).await
    } else {
        setup.take(&[]).await;
        String::new()
    };
    let file = setup.newest_file().await;
    let manifest = file.with_file_name(format!("{}{MANIFEST}", file.file_name().unwrap().display()));
    let (bytes, honest) = (std::fs::read(&file).unwrap(), std::fs::read(&manifest).unwrap());
    let before = databases(&setup.cluster).await;
    let logged = setup.cluster.log().len();
    for (what, bad) in damaged(&bytes) {
        for vouched in [false, true] {
            std::fs::write(&file, &bad).unwrap();
            std::fs::write(&manifest, if vouched { vouching(&manifest, &bad) } else { honest.clone() }).unwrap();
            let error = restore(&setup, &[("RESTORE_AGE_KEY_FILE", &key)], into("copy")).await.unwrap_err();
            // Bytes that the manifest does not tell are damage, also where they look like somebody else's key.
            let words = ["damaged", "none of the given keys", "was never encrypted"];
            let named = words[..if vouched { 3 } else { 1 }].iter().any(|word| error.contains(word));
            assert!(named, "{what}, vouched {vouched}: {error}");
            assert_eq!(databases(&setup.cluster).await, before, "{what}, vouched {vouched}");
        }
    }
    // A manifest that tells other members, digests or sizes than there are.
    std::fs::write(&file, &bytes).unwrap();
    let json: Value = serde_json::from_slice(&honest).unwrap();
    for (pointer, value) in [
        ("/members/2/sha256", json!("0".repeat(64))),
        ("/members/2/bytes", json!(12)),
        ("/members/2/parts", json!(2)),
        ("/members/2/name", json!("other.sql")),
        ("/members/0/name", json!("database.sql")),
        ("/plain/sha256", json!("0".repeat(64))),
        ("/plain/bytes", json!(1024)),
        ("/packing/partBytes", json!(100)),
    ] {
        let mut lie = json.clone();
        *lie.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&manifest, lie.to_string()).unwrap();
        let error = restore(&setup, &[("RESTORE_AGE_KEY_FILE", &key)], into("copy")).await.unwrap_err();
        assert!(error.contains("damaged"), "{pointer}: {error}");
    }
    std::fs::write(&manifest, b"{}").unwrap();
    let error = restore(&setup, &[("RESTORE_AGE_KEY_FILE", &key)], into("copy")).await.unwrap_err();
    assert!(error.contains("the manifest cannot be read"), "{error}");
    assert_eq!(databases(&setup.cluster).await, before);
    let log = setup.cluster.log()[logged..].to_lowercase();
    for statement in ["create ", "copy ", "insert ", "drop ", "begin", "alter "] {
        assert!(!log.contains(&format!("statement: {statement}")), "`{statement}` ran");
    }
    std::fs::write(&manifest, honest).unwrap();
    restore(&setup, &[("RESTORE_AGE_KEY_FILE", &key)], into("copy")).await.expect("undamaged, it restores");
    assert!(setup.cluster.log()[logged..].to_lowercase().contains("statement: create database"), "the log tells what runs");
}

#[tokio::test]
async fn damaged_sealed_archives_are_refused_before_a_statement_runs() {
    every_damage_is_refused(true).await;
}

#[tokio::test]
async fn damaged_plain_archives_are_refused_before_a_statement_runs() {
    every_damage_is_refused(false).await;
}

#[tokio::test]
async fn a_damaged_newest_archive_is_no_reason_to_make_none() {
    let setup = Setup::new().await;
    assert_eq!(result(&setup.take(&[]).await), "archived");
    assert_eq!(result(&setup.take(&[]).await), "unchanged");
    std::fs::write(setup.newest_file().await, "").unwrap();
    assert_eq!(result(&setup.take(&[]).await), "archived");
    assert_eq!(result(&setup.take(&[]).await), "unchanged");
}

/// Where in the tar the member's content is.
fn content_of(tar: &[u8], name: &str, bytes: usize) -> std::ops::Range<usize> {
    let header = tar.chunks(512).position(|block| block[..100].windows(name.len()).any(|part| part == name.as_bytes()));
    let begin = (header.expect("the member is there") + 1) * 512;
    begin..begin + bytes
}

/// Who can write to the store knows the recipients, and could seal a script of their own.
#[tokio::test]
async fn a_forged_script_gives_psql_no_commands() {
    let setup = Setup::new().await;
    let space = "x".repeat(400);
    setup.shop.batch_execute(&format!("create table spacious (); comment on table spacious is '{space}'")).await.unwrap();
    setup.take(&[]).await;
    let file = setup.newest_file().await;
    let manifest = file.with_file_name(format!("{}{MANIFEST}", file.file_name().unwrap().display()));
    let mut json: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let mut tar = zstd::decode_all(std::fs::File::open(&file).unwrap()).unwrap();
    let member = json["members"].as_array().unwrap().iter().position(|member| member["name"] == "database.sql").unwrap();
    let bytes = usize::try_from(json["members"][member]["bytes"].as_u64().unwrap()).unwrap();
    let content = content_of(&tar, "database.sql", bytes);
    assert_eq!(sha256(&tar[content.clone()]), json["members"][member]["sha256"], "that is the script");

    let script = String::from_utf8(tar[content.clone()].to_vec()).unwrap();
    let mark = setup.directory.path().join("commanded");
    let line = script.lines().find(|line| line.contains(&space)).unwrap();
    for key in script.lines().find_map(|line| line.strip_prefix("\\restrict ")).into_iter().chain(["other"]) {
        let forged = format!("\\unrestrict {key}\n\\! touch {}\n--", mark.display());
        let forged = script.replace(line, &format!("{forged:line_length$}", line_length = line.len()));
        assert_eq!(forged.len(), script.len());
        tar[content.clone()].copy_from_slice(forged.as_bytes());
        let packed = zstd::encode_all(&*tar, 1).unwrap();
        json["members"][member]["sha256"] = json!(sha256(forged.as_bytes()));
        json["plain"]["sha256"] = json!(sha256(&tar));
        json["stored"] = json!({"bytes": packed.len(), "sha256": sha256(&packed)});
        std::fs::write(&file, packed).unwrap();
        std::fs::write(&manifest, json.to_string()).unwrap();
        let before = databases(&setup.cluster).await;
        let error = restore(&setup, &[], into("copy")).await.unwrap_err();
        assert!(error.contains("restrict"), "{error}");
        assert!(!mark.exists(), "{error}");
        assert_eq!(databases(&setup.cluster).await, before);
    }
}

#[tokio::test]
async fn templates_are_no_place_for_a_copy() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let error = restore(&setup, &[], into("template1")).await.unwrap_err();
    assert!(error.contains("the template of every new database"), "{error}");
}
