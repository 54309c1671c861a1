//! What is in an archive, and that a person can get it out.

use std::path::Path;
use std::process::Command;

use bullwork::backup::manifest::MemberKind;
use bullwork::jobs::backup::Payload;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{Setup, psql, result, unpack};
use crate::support::eventually;

/// All rows and definitions, as text.
async fn contents(client: &Client) -> String {
    let mut text = String::new();
    for sql in [
        "select t::text from public.customer t order by id",
        "select t::text from public.\"order\" t order by id",
        "select t::text from public.\"big orders\" t order by id",
        "select last_value::text from public.customer_id_seq",
        "select pg_get_functiondef('public.total_of'::regproc)",
        "select relname || ' ' || relowner::regrole::text || ' ' || coalesce(relacl::text, '') from pg_class where relnamespace = 'public'::regnamespace order by 1",
        "select lomowner::regrole || ' ' || encode(lo_get(oid), 'hex') from pg_largeobject_metadata",
    ] {
        for row in client.query(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")) {
            text.push_str(row.get(0));
            text.push('\n');
        }
    }
    text
}

#[tokio::test]
async fn tar_and_psql_restore_an_exact_copy_by_hand() {
    let setup = Setup::new().await;
    setup
        .shop
        .batch_execute(
            "create role \"shop's app\"; alter table customer owner to \"shop's app\"; grant select on \"order\" to \"shop's app\";
             select lo_from_bytea(0, '\\xdeadbeef')",
        )
        .await
        .unwrap();
    for (compression, program) in [("zstd", "zstd"), ("gzip", "gzip"), ("xz", "xz")] {
        setup.shop.batch_execute("update \"order\" set total = total + 1 where id = 1").await.unwrap();
        assert_eq!(result(&setup.take(&[("BACKUP_COMPRESSION", compression)]).await), "archived");
        let archive = setup.newest_file().await;
        let copy = format!("copy_{compression}");
        let copied = setup.cluster.create(&copy).await;
        psql(&setup.cluster, &copy, &unpack(&archive, program, "roles.sql"), &[]);
        psql(&setup.cluster, &copy, &unpack(&archive, program, "database.sql"), &["-1"]);
        assert_eq!(contents(&copied).await, contents(&setup.shop).await, "{compression}");
        copied.batch_execute("set search_path = ''").await.unwrap();
        let digest = bullwork::backup::schema::definitions(&copied).await.unwrap();
        assert_eq!(digest, setup.newest().await.schema_sha256, "the definitions' digest is the copy's too");
    }
}

#[tokio::test]
async fn roles_that_the_server_lacks_are_made_by_the_archive() {
    let setup = Setup::new().await;
    setup
        .shop
        .batch_execute("create role \"shop's \\ app\" login; alter table customer owner to \"shop's \\ app\"")
        .await
        .unwrap();
    setup.take(&[]).await;
    let archive = setup.newest_file().await;
    let other = crate::support::postgres::Cluster::start();
    other.create("copy").await;
    psql(&other, "copy", &unpack(&archive, "zstd", "roles.sql"), &[]);
    psql(&other, "copy", &unpack(&archive, "zstd", "roles.sql"), &[]);
    psql(&other, "copy", &unpack(&archive, "zstd", "database.sql"), &["-1"]);
    let client = other.client("copy").await;
    let row = client.query_one(
        "select rolname::text, rolcanlogin from pg_roles join pg_class on relowner = pg_roles.oid where relname = 'customer'",
        &[],
    );
    let row = row.await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), ("shop's \\ app", false));
}

#[tokio::test]
async fn the_manifest_tells_what_is_in_the_archive() {
    let setup = Setup::new().await;
    // Over one part, and hard to make smaller.
    setup
        .shop
        .batch_execute("create table large as select n, md5(n::text) || md5((-n)::text) as t from generate_series(1, 120000) n")
        .await
        .unwrap();
    let fixtures = r#"{"people":{"customer":"shop.customer"},"nothing":["session_log"]}"#;
    let kind = setup.kind(&[("BACKUP_FIXTURES", fixtures)]);
    let (outcome, lines) = setup.run_with(&kind, Payload::default(), CancellationToken::new()).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(lines.holds("group `nothing` has no rows and is left out"), "{:?}", lines.messages());
    let (manifest, archive) = (setup.newest().await, setup.newest_file().await);
    let kinds: Vec<(&str, MemberKind)> = manifest.members.iter().map(|m| (m.name.as_str(), m.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("README", MemberKind::Readme),
            ("roles.sql", MemberKind::Roles),
            ("database.sql", MemberKind::Sql),
            ("fixtures/people.json", MemberKind::Fixture)
        ]
    );
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    for member in &manifest.members {
        let bytes = unpack(&archive, "zstd", &member.name);
        assert_eq!(
            (bytes.len() as u64, digest(&bytes)),
            (member.content.bytes, member.content.sha256.clone()),
            "{}",
            member.name
        );
    }
    assert!(manifest.member(MemberKind::Sql).unwrap().parts >= 2, "{:?}", manifest.members);
    assert_eq!(digest(&std::fs::read(&archive).unwrap()), manifest.stored.sha256);
    assert_eq!(manifest.empty_groups, ["nothing"]);
    assert_eq!(manifest.member(MemberKind::Fixture).unwrap().tables, ["customer"]);
    for wanted in ["pg_dump --format=plain", "fixture people: ", "compare: ", "collect and upload: ", "bytes uploaded"] {
        assert!(lines.holds(wanted), "{wanted} in {:?}", lines.messages());
    }
}

#[tokio::test]
async fn all_is_of_one_moment_whatever_is_written_meanwhile() {
    let setup = Setup::new().await;
    let bin = setup.false_pg_dump(&format!(
        "touch {dir}/waiting; while [ -d {dir} ] && [ ! -e {dir}/go ]; do sleep 0.05; done; exec {} \"$@\"",
        super::programs().join("pg_dump").display(),
        dir = setup.directory.path().join("bin").display()
    ));
    let fixtures = r#"{"people":["customer"]}"#;
    let bin_text = bin.display().to_string();
    let kind = setup.kind(&[("PG_BIN", &bin_text), ("BACKUP_FIXTURES", fixtures)]);
    let writing = async {
        eventually("pg_dump is about to begin", std::time::Duration::from_secs(30), async || bin.join("waiting").exists()).await;
        setup.shop.batch_execute("insert into customer (name) values ('too late'); delete from \"order\"").await.unwrap();
        std::fs::write(bin.join("go"), "").unwrap();
    };
    let (outcome, ()) = tokio::join!(setup.run_with(&kind, Payload::default(), CancellationToken::new()), writing);
    assert!(outcome.0.is_ok(), "{outcome:?}", outcome = outcome.0);
    let (manifest, archive) = (setup.newest().await, setup.newest_file().await);
    let sql = String::from_utf8(unpack(&archive, "zstd", "database.sql")).unwrap();
    let fixture: Value = serde_json::from_slice(&unpack(&archive, "zstd", "fixtures/people.json")).unwrap();
    assert!(!sql.contains("too late") && sql.contains("name 100"));
    assert_eq!(fixture.as_array().unwrap().len(), 100);
    assert_eq!(manifest.tables.iter().map(|t| t.rows).collect::<Vec<_>>(), [100, 500, 0]);
    let next = setup.take(&[]).await;
    assert_eq!(next["changedTables"], json!(["customer", "order"]), "what came meanwhile is the next run's");
}

const EVERY_TYPE: &str = r#"
create extension hstore;
create table kind (id uuid primary key, name text);
create table thing (
  id bigint primary key, kind_id uuid references kind, at timestamptz, day date, hour time, price numeric(10,2), ratio float8, yes bool, raw bytea,
  doc json, docb jsonb, tags text[], days date[], flags bool[], amounts numeric[], span int4range, pause interval, addr inet, h hstore,
  doubled bigint generated always as (id * 2) stored, "Odd ""Name" text, nothing text);
create table link (thing_id bigint, kind_id uuid, primary key (thing_id, kind_id));
insert into kind values ('00000000-0000-0000-0000-000000000001', E'tab\t"quote" \\ back\nline é');
insert into thing values (7, '00000000-0000-0000-0000-000000000001', '2026-03-04 05:06:07.123456+02', '2026-03-04', '05:06', 12.50, 0.1, true, '\x00ff10',
  '{"b": 1, "a": [null]}', '{"b": 1}', '{a,"b c",NULL}', '{2026-01-01}', '{t,f}', '{1.10,2}', '[1,5)', '1 day 02:03:04', '10.0.0.1', 'k=>v', default, 'odd', null);
insert into thing (id) values (3);
insert into link values (7, '00000000-0000-0000-0000-000000000001');
"#;

#[tokio::test]
async fn fixtures_have_the_shape_that_loaddata_reads() {
    let setup = Setup::new().await;
    setup.shop.batch_execute(EVERY_TYPE).await.unwrap();
    // Another time zone and notation of the role must not show.
    setup
        .shop
        .batch_execute("alter role owner set timezone = 'Asia/Tokyo'; alter role owner set datestyle = 'German'")
        .await
        .unwrap();
    let fixtures =
        r#"{"a-things":{"link":"shop.link","thing":{"model":"shop.thing","fields":{"kind_id":"kind"}}},"kinds":["kind"]}"#;
    setup.take(&[("BACKUP_FIXTURES", fixtures)]).await;
    let (manifest, archive) = (setup.newest().await, setup.newest_file().await);
    let groups: Vec<&str> = manifest.members.iter().filter_map(|m| m.group.as_deref()).collect();
    assert_eq!(groups, ["kinds", "a-things"], "what others refer to comes first");
    let read =
        |group: &str| -> Value { serde_json::from_slice(&unpack(&archive, "zstd", &format!("fixtures/{group}.json"))).unwrap() };
    let key = "00000000-0000-0000-0000-000000000001";
    assert_eq!(read("kinds"), json!([{"model": "kind", "pk": key, "fields": {"name": "tab\t\"quote\" \\ back\nline é"}}]));
    let things = read("a-things");
    let things = things.as_array().unwrap();
    assert_eq!(things.iter().map(|t| &t["pk"]).collect::<Vec<_>>(), [&json!([7, key]), &json!(3), &json!(7)]);
    assert_eq!(things[0], json!({"model": "shop.link", "pk": [7, key], "fields": {"thing_id": 7, "kind_id": key}}));
    let fields = json!({
        "kind": key, "at": "2026-03-04T03:06:07.123456+00:00", "day": "2026-03-04", "hour": "05:06:00", "price": "12.50", "ratio": 0.1,
        "yes": true, "raw": "AP8Q", "doc": {"b": 1, "a": [null]}, "docb": {"b": 1}, "tags": "[\"a\",\"b c\",null]", "days": "[\"2026-01-01\"]",
        "flags": "[true,false]", "amounts": "[\"1.10\",\"2\"]", "span": "{\"bounds\" : \"[)\", \"lower\" : \"1\", \"upper\" : \"5\"}",
        "pause": "1 day 02:03:04", "addr": "10.0.0.1", "h": {"k": "v"}, "Odd \"Name": "odd", "nothing": null
    });
    assert_eq!(things[2], json!({"model": "shop.thing", "pk": 7, "fields": fields}));
    assert!(things[1]["fields"].as_object().unwrap().values().all(Value::is_null), "{}", things[1]);
}

#[tokio::test]
async fn a_fixture_of_a_table_that_is_not_there_is_refused_before_anything_is_sent() {
    let setup = Setup::new().await;
    let error = setup.fails(&[("BACKUP_FIXTURES", r#"{"x":["custmer"]}"#)]).await;
    assert!(error.contains("custmer") && error.contains("BACKUP_FIXTURES"), "{error}");
    let error = setup.fails(&[("BACKUP_FIXTURES", r#"{"x":{"customer":{"model":"a.b","fields":{"nme":"n"}}}}"#)]).await;
    assert!(error.contains("nme"), "{error}");
    assert_eq!(setup.files(), [""; 0]);
}

fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[tokio::test]
async fn sealed_archives_are_opened_by_their_key_alone() {
    let setup = Setup::new().await;
    let key = setup.directory.path().join("key");
    let public = bullwork::seal::age::keygen(&key).unwrap();
    let settings = [("BACKUP_AGE_RECIPIENTS", public.as_str()), ("BACKUP_PLAIN", "")];
    setup.take(&settings).await;
    let (manifest, file) = (setup.newest().await, setup.newest_file().await);
    assert!(file.display().to_string().ends_with(".tar.zst.age"));
    assert_eq!(manifest.packing.recipients, [public.as_str()]);
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1"));
    let identities = bullwork::seal::age::Identities::from_file(&key).unwrap();
    let opener = bullwork::seal::Opener::Age(identities);
    let mut opened = opener.open(Box::new(std::io::Cursor::new(bytes))).await.unwrap();
    let plain = setup.directory.path().join("plain.tar.zst");
    let mut content = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut opened, &mut content).await.unwrap();
    std::fs::write(&plain, content).unwrap();
    assert!(String::from_utf8(unpack(&plain, "zstd", "database.sql")).unwrap().contains("name 100"));
}

fn gpg(home: &Path, arguments: &[&str]) -> std::process::Output {
    let output = Command::new("gpg")
        .args(["--homedir"])
        .arg(home)
        .args(["--batch", "--quiet"])
        .args(arguments)
        .output()
        .expect("gpg runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test]
async fn openpgp_archives_are_opened_by_gpg_and_a_missing_recipient_fails() {
    if !have("gpg") {
        println!("NOT RUN: gpg is not installed");
        return;
    }
    let setup = Setup::new().await;
    let error = setup.fails(&[("BACKUPS_GPG_RECIPIENT", "nobody@example.invalid"), ("BACKUP_PLAIN", "")]).await;
    assert!(error.contains("nobody@example.invalid"), "{error}");
    assert_eq!(setup.files(), [""; 0], "nothing was sent");

    let home = setup.directory.path().join("gnupg");
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    gpg(&home, &["--passphrase", "", "--quick-generate-key", "backup@example.invalid", "default", "default", "never"]);
    let settings = [
        ("BACKUPS_GPG_RECIPIENT", "backup@example.invalid"),
        ("BACKUP_PLAIN", ""),
        ("BACKUP_COMPRESSION", "gzip"),
        ("GNUPGHOME", &home.display().to_string()),
    ];
    // The failed run's session may be there a moment longer, and holds the lock.
    eventually("the archive is made", std::time::Duration::from_secs(60), async || {
        let mut child = super::kill::start(&setup, &settings);
        eventually("the program ends", std::time::Duration::from_secs(60), async || child.try_wait().unwrap().is_some()).await;
        let said = std::fs::read_to_string(setup.directory.path().join("stderr")).unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
        std::fs::read_to_string(setup.directory.path().join("stdout")).unwrap().contains("\"archived\"")
    })
    .await;
    let file = setup.newest_file().await;
    assert!(file.display().to_string().ends_with(".tar.gz.gpg"), "{}", file.display());
    let plain = setup.directory.path().join("plain.tar.gz");
    std::fs::write(&plain, gpg(&home, &["--decrypt", &file.display().to_string()]).stdout).unwrap();
    assert!(String::from_utf8(unpack(&plain, "gzip", "database.sql")).unwrap().contains("name 100"));
    let _ = Command::new("gpgconf").arg("--homedir").arg(&home).args(["--kill", "all"]).status();
}
