//! Nothing that a mask replaces reaches the target, on the wire or on its disk.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use bullwork::postgres::Database;
use tokio_postgres::Client;

use super::{KEY, World, text};
use crate::support::postgres::Cluster;
use crate::support::proxy::Proxy;

/// Three tables with the same columns: one that is copied in binary, one in text, one in partitions.
const DEFINITIONS: &str = "
    create type mood as enum ('calm', 'cross');
    create table people (id bigint primary key, email text unique, name varchar(40), birth date, seen timestamptz, ref uuid unique,
        number bigint, small int, blob bytea, phone text, ip inet, note jsonb, city text, shout text generated always as (upper(city)) stored);
    create table texts (like people including all, moods mood[]);
    create table parts (like people including generated, part int not null) partition by list (part);
    create table parts_1 partition of parts for values in (1);
    create table parts_2 partition of parts for values in (2);
    insert into people select g, 'zaphod' || g || '@beeblebrox.example', 'Tricia McMillan ' || g, date '1931-03-07' + g * 811,
        timestamptz '2021-01-01 11:22:33.123456+00' + g * interval '40 days 00:00:01.000777', md5('ref' || g)::uuid,
        4446744073709551 * (g * 97 + 13), 1911911911 - g * 7919177, decode(md5('blob' || g), 'hex'), '+4930' || 8675309 + g * 7777,
        ('203.0.' || g || '.77')::inet, jsonb_build_object('secret', 'marvin' || g * 31337), 'Islington' || g * 4242
        from generate_series(1, 20) g;
    insert into texts (id, email, name, birth, seen, ref, number, small, blob, phone, ip, note, city, moods)
        select id, email, name, birth, seen, ref, number, small, blob, phone, ip, note, city, array['calm']::mood[] from people;
    insert into parts (id, email, name, birth, seen, ref, number, small, blob, phone, ip, note, city, part)
        select id, email, name, birth, seen, ref, number, small, blob, phone, ip, note, city, id % 2 + 1 from people;
    create materialized view mails as select email, name from people;
    create index on people (lower(email)); create statistics pairs on email, name from people; analyze;";

fn rules() -> String {
    let columns = |more: &str| {
        format!(
            "id = 'keep'\nemail = 'email'\nname = 'hash'\nbirth = {{ date_shift = 30 }}\nseen = {{ date_shift = 10 }}\nref = 'hash'\n\
             number = 'hash'\nsmall = 'hash'\nblob = 'hash'\nphone = {{ fixed = '+33 000' }}\nip = 'null'\n\
             note = {{ sql = \"jsonb_build_object('kept', note ? 'secret')\" }}\ncity = {{ sql = 'left(city, 1)' }}\n{more}\n"
        )
    };
    format!(
        "[tables.people.columns]\n{}[tables.texts.columns]\n{}[tables.parts.columns]\n{}",
        columns(""),
        columns("moods = 'keep'"),
        columns("part = 'keep'")
    )
}

/// Every original in the forms that it may take: text, and binary as COPY sends it.
pub(super) async fn originals(source: &Client, table: &str) -> Vec<(String, Vec<u8>)> {
    let sql = format!(
        "select email, name, birth::text, (seen at time zone 'UTC')::time::text, ref::text, number::text, small::text,
            encode(blob, 'hex'), phone, host(ip), note->>'secret', city, upper(city) from {table}"
    );
    let mut found = Vec::new();
    for row in source.query(&sql, &[]).await.unwrap() {
        for i in 0..row.len() {
            let value: String = row.get(i);
            found.push((value.clone(), value.into_bytes()));
        }
    }
    let sql = format!(
        "select birth::text, date_send(birth), seen::text, timestamptz_send(seen), ref::text, uuid_send(ref), number::text, int8send(number),
            small::text, int4send(small), encode(blob, 'hex'), blob, ip::text, inet_send(ip) from {table}"
    );
    for row in source.query(&sql, &[]).await.unwrap() {
        for i in (0..row.len()).step_by(2) {
            found.push((format!("{}, in binary", row.get::<_, String>(i)), row.get(i + 1)));
        }
    }
    found
}

/// Those of `wanted` that occur in `heard`.
pub(super) fn found_in<'w>(heard: &[Vec<u8>], wanted: &'w [(String, Vec<u8>)]) -> Vec<&'w str> {
    let mut by_start: HashMap<[u8; 4], Vec<usize>> = HashMap::new();
    for (i, (_, bytes)) in wanted.iter().enumerate() {
        by_start.entry([bytes[0], bytes[1], bytes[2], bytes[3]]).or_default().push(i);
    }
    let mut hits: Vec<usize> = heard
        .iter()
        .flat_map(|piece| piece.windows(4).enumerate().map(move |(at, start)| (piece, at, start)))
        .flat_map(|(piece, at, start)| {
            let start: [u8; 4] = start.try_into().unwrap();
            by_start
                .get(&start)
                .into_iter()
                .flatten()
                .filter(move |i| piece[at..].starts_with(&wanted[**i].1))
                .copied()
                .collect::<Vec<_>>()
        })
        .collect();
    hits.sort_unstable();
    hits.dedup();
    hits.into_iter().map(|i| wanted[i].0.as_str()).collect()
}

/// Files below `directory` that hold one of the texts.
fn files_with(directory: &Path, texts: &[String]) -> Vec<String> {
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), texts.join("\n")).unwrap();
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "-f"]).arg(list.path()).arg(directory).env("LC_ALL", "C");
    String::from_utf8_lossy(&grep.output().unwrap().stdout).lines().map(str::to_owned).collect()
}

/// Through a proxy that remembers, into a target whose disk is looked at.
async fn copy(rules: &str) -> (World, Vec<Vec<u8>>, Vec<String>) {
    let mut world = World::of(Cluster::start(), Some(Cluster::start()), DEFINITIONS).await;
    let there = world.target_cluster.as_ref().unwrap();
    let proxy = Proxy::start_recording(there.port).await;
    world.config.target = Database::parse(&there.url("to").replace(&there.port.to_string(), &proxy.port.to_string())).unwrap();
    if !rules.is_empty() {
        world.rules(rules);
    }
    world.full().await;
    world.on_target("checkpoint").await;
    let texts: Vec<String> = originals(&world.source, "people").await.into_iter().map(|(text, _)| text).collect();
    // Short numbers and texts in them occur by chance among megabytes of catalogue.
    let telling: Vec<String> = texts.into_iter().filter(|t| t.len() > 9 && !t.ends_with("binary")).collect();
    let files = files_with(&world.target_cluster.as_ref().unwrap().data(), &telling);
    (world, proxy.heard(), files)
}

#[tokio::test]
async fn no_original_value_crosses_to_the_target_or_stands_on_its_disk() {
    let (world, heard, files) = copy(&rules()).await;
    let wanted = originals(&world.source, "people").await;
    assert!(wanted.len() == 400, "{}", wanted.len());
    assert_eq!(found_in(&heard, &wanted), Vec::<&str>::new());
    assert_eq!(files, Vec::<String>::new());
    assert!(!heard.concat().windows(KEY.len()).any(|w| w == KEY.as_bytes()));
    for table in ["people", "texts", "parts"] {
        world.assert_same(&format!("select count(*)::text || count(email) || count(distinct number) from {table}")).await;
        assert_eq!(world.text(&format!("select distinct city from {table}")).await, "I");
        assert_eq!(
            world.text(&format!("select distinct phone || note || (ip is null) from {table}")).await,
            "+33 000{\"kept\": true}true"
        );
    }
    assert_eq!(world.text("select distinct shout from people").await, "I", "computed from the mask");
    assert_eq!(world.text("select count(*)::text from mails where email like '%@masked.invalid'").await, "20");
    let first = "select email || name || birth || ref || number || small || encode(blob, 'hex') from people order by id limit 1";
    assert_eq!(world.text(first).await, world.text(&first.replace("people", "parts")).await);
    assert_ne!(world.text(first).await, text(&world.source, first).await);
}

#[tokio::test]
async fn without_rules_the_same_scan_finds_every_value() {
    let (world, heard, files) = copy("").await;
    let wanted = originals(&world.source, "people").await;
    // The text table sends dates and moments as texts, the binary one as numbers: both forms of each cross.
    let found = found_in(&heard, &wanted);
    let missed: Vec<&str> = wanted.iter().map(|(t, _)| t.as_str()).filter(|t| !found.contains(t)).collect();
    // What is computed crosses in no form.
    assert!(missed.iter().all(|t| t.starts_with("ISLINGTON")), "{missed:?}");
    assert!(!files.is_empty());
}

#[tokio::test]
async fn the_key_stands_in_no_statement_and_no_log_of_the_source() {
    let cluster = Cluster::start_with(&["log_statement=all", "log_min_duration_statement=0"]);
    let mut world = World::of(cluster, None, DEFINITIONS).await;
    world.rules(&rules());
    let (_, lines) = world.full().await;
    world.on_target("truncate people").await;
    world.append(&["people"]).await;
    let log = world.source_cluster.log();
    assert!(log.contains("set_config('bullwork.mask_inner', $1, true)"), "it was given");
    // The pads are 128 hex digits, and their first 64 are not all alike.
    let hex = |word: &str| word.len() >= 128 && word.chars().all(|c| c.is_ascii_hexdigit());
    let words = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).any(hex);
    assert!(!words(&log), "a pad is logged");
    assert!(!log.contains(KEY));
    for line in lines.all() {
        assert!(!words(&line) && !line.contains(KEY), "{line}");
    }
}
