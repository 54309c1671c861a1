//! When an archive is made, and when none is.

use std::time::Instant;

use bullwork::jobs::backup::Payload;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Setup, result};
use crate::support::postgres::Cluster;

#[tokio::test]
async fn first_run_archives_and_second_one_finds_nothing_changed() {
    let setup = Setup::new().await;
    let first = setup.take(&[]).await;
    assert_eq!((result(&first), &first["reason"]), ("archived", &json!("there is none yet")));
    let manifest = setup.newest().await;
    assert_eq!(first["archive"], json!(manifest.archive.to_string()));
    assert_eq!(first["bytes"], json!(manifest.stored.bytes));
    let counts: Vec<(&str, u64, bool)> =
        manifest.tables.iter().map(|t| (t.name.as_str(), t.rows, t.fingerprint.is_some())).collect();
    assert_eq!(counts, [("customer", 100, true), ("order", 500, true), ("session_log", 0, false)]);
    assert_eq!(std::fs::metadata(setup.newest_file().await).unwrap().len(), manifest.stored.bytes);

    let begun = Instant::now();
    let second = setup.take(&[]).await;
    println!("unchanged took {:?}, of it {}", begun.elapsed(), second["stages"]);
    assert_eq!((result(&second), &second["archive"]), ("unchanged", &first["archive"]));
    assert!(second["reason"].as_str().unwrap().starts_with("there was no transaction"), "{second}");
    assert_eq!(setup.archives().await.len(), 1);
}

/// What is done to the database, and which changed tables (or definitions) the next run has to name; nothing where
/// it must find nothing changed.
const TRUTH: &[(&str, Option<&[&str]>)] = &[
    ("insert into customer (name) values ('new')", Some(&["customer"])),
    ("update \"order\" set total = total + 1 where id = 7", Some(&["order"])),
    ("delete from \"order\" where id = 8", Some(&["order"])),
    ("update customer set name = name", None),
    ("begin; delete from customer where id > 100; insert into customer (id, name) values (101, 'new'); commit", None),
    ("begin; delete from \"order\"; rollback", None),
    ("select nextval('customer_id_seq') from generate_series(1, 100)", None),
    ("vacuum full", None),
    ("analyze; reindex table customer; checkpoint", None),
    ("insert into session_log values (1)", None),
    // Each value stays, at another row: what adds up column by column does not see it.
    (
        "update customer a set name = b.name from customer b where a.id in (1, 2) and b.id in (1, 2) and a.id <> b.id",
        Some(&["customer"]),
    ),
    ("update \"order\" set total = 10.50 where id = 9", Some(&["order"])),
    ("alter table session_log add extra text default 'x'", Some(&["definitions"])),
    ("alter table session_log drop extra", Some(&["definitions"])),
    ("create or replace function total_of(int) returns numeric language sql as $$ select 1.0 $$", Some(&["definitions"])),
    ("grant select on customer to public", Some(&["definitions"])),
    ("create table fresh (id int)", Some(&["definitions", "fresh"])),
    ("create temp table mine as select 1", None),
    (
        "update customer set note = 'x' where id = 3; update \"order\" set placed = null where id = 3",
        Some(&["customer", "order"]),
    ),
    ("truncate \"order\"", Some(&["order"])),
    ("drop table fresh", Some(&["definitions", "fresh"])),
];

#[tokio::test]
async fn each_kind_of_write_is_noticed_or_proven_to_be_none() {
    let setup = Setup::new().await;
    let other = setup.cluster.create("other").await;
    other.batch_execute("create table t (id int)").await.unwrap();
    setup.take(&[]).await;
    let mut archives = 1;
    for (sql, wanted) in TRUTH {
        for statement in
            if sql.starts_with("vacuum") || sql.starts_with("analyze") { sql.split(';').collect() } else { vec![*sql] }
        {
            setup.shop.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
        let value = setup.take(&[]).await;
        let mut named: Vec<String> =
            value["changedTables"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
        if value["definitionsChanged"] == json!(true) {
            named.insert(0, "definitions".to_owned());
        }
        match wanted {
            None => assert_eq!((result(&value), named.len()), ("unchanged", 0), "{sql}: {value}"),
            Some(wanted) => {
                archives += 1;
                assert_eq!(
                    (result(&value), named),
                    ("archived", wanted.iter().map(|t| (*t).to_owned()).collect()),
                    "{sql}: {value}"
                );
                assert_eq!(
                    setup.newest().await.changed_tables,
                    wanted.iter().copied().filter(|t| *t != "definitions").collect::<Vec<_>>()
                );
            }
        }
        // The proof is kept: without a further transaction the cheap test is enough.
        let again = setup.take(&[]).await;
        assert!(again["reason"].as_str().unwrap().starts_with("there was no transaction"), "{sql}: {again}");
    }
    other.batch_execute("insert into t values (1)").await.unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(result(&value), "unchanged", "another database's writes: {value}");
    assert!(value["reason"].as_str().unwrap().starts_with("definitions and business tables"), "{value}");
    assert_eq!(setup.archives().await.len(), archives);
}

#[tokio::test]
async fn large_objects_count_where_all_tables_do() {
    let setup = Setup::new().await;
    let (all, some) = ([("BACKUP_EXCLUDE_TABLES", "")], []);
    setup.take(&all).await;
    for (sql, wanted) in [
        ("select lo_create(70001)", "archived"),
        ("select lo_put(70001, 5000, 'far behind')", "archived"),
        ("select lo_put(70001, 5000, 'far behind')", "unchanged"),
        ("select lo_put(70001, 4999, '\\x00')", "unchanged"),
        ("select lo_put(70001, 5010, '\\x00')", "archived"),
        ("grant select on large object 70001 to public", "archived"),
        ("begin; select lo_unlink(70001); rollback", "unchanged"),
        ("select lo_unlink(70001)", "archived"),
    ] {
        setup.shop.batch_execute(sql).await.unwrap();
        let value = setup.take(&all).await;
        assert_eq!(result(&value), wanted, "{sql}: {value}");
        if wanted == "archived" {
            assert_eq!(value["changedTables"], json!(["large objects"]), "{sql}: {value}");
        }
    }
    // The first run with fewer tables has fewer to compare than the newest archive.
    setup.shop.batch_execute("select lo_create(70002)").await.unwrap();
    setup.take(&some).await;
    setup.shop.batch_execute("select lo_create(70003)").await.unwrap();
    assert_eq!(result(&setup.take(&some).await), "unchanged");
}

#[tokio::test]
async fn values_without_a_hash_of_their_own_are_compared_as_they_print() {
    let setup = Setup::new().await;
    let sql = "create extension citext; create type mood as enum ('good', 'bad');
        create table odd (id int, j json, x xml, p point, n numeric, c citext, m mood, f float8, a int[], b bytea, jb jsonb, d interval);
        insert into odd values (1, '{\"a\":1}', '<a/>', '(1,2)', 1.0, 'Word', 'good', 0, '{1,2}', '\\x00', '{\"n\":1.0}', '1 day')";
    setup.shop.batch_execute(sql).await.unwrap();
    setup.take(&[]).await;
    for change in [
        "j = '{ \"a\":1}'",
        "x = '<b/>'",
        "p = '(2,1)'",
        "n = 1.00",
        "c = 'word'",
        "m = 'bad'",
        "f = '-0'",
        "a = '{{1,2}}'",
        "b = '\\x0000'",
        "jb = '{\"n\":1.00}'",
        "d = '24:00:00'",
        "j = null",
    ] {
        setup.shop.batch_execute(&format!("update odd set {change}")).await.unwrap_or_else(|e| panic!("{change}: {e:?}"));
        let value = setup.take(&[]).await;
        assert_eq!((result(&value), &value["changedTables"]), ("archived", &json!(["odd"])), "{change}");
    }
}

#[tokio::test]
async fn an_archive_is_made_on_demand_or_when_the_newest_one_is_gone() {
    let setup = Setup::new().await;
    setup.take(&[]).await;
    let forced = Payload { force: true, annotation: Some("before the move – « so »".to_owned()) };
    let (outcome, _) = setup.run_with(&setup.kind(&[]), forced, CancellationToken::new()).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let manifest = setup.newest().await;
    assert_eq!(manifest.annotation.as_deref(), Some("before the move – « so »"));
    assert_eq!(setup.archives().await.len(), 2, "two archives, perhaps in one second");
    std::fs::remove_file(setup.newest_file().await).unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(result(&value), "archived", "{value}");
    assert!(value["reason"].as_str().unwrap().contains("not in the store any more"), "{value}");
    // Archives without what they held are told from none.
    std::fs::remove_file(setup.store().join("db/baseline.json")).unwrap();
    let value = setup.take(&[]).await;
    assert_eq!(
        (result(&value), value["reason"].as_str().unwrap().contains("the baseline is lost")),
        ("archived", true),
        "{value}"
    );
    assert_eq!(result(&setup.take(&[]).await), "unchanged");
}

#[tokio::test]
async fn business_tables_that_are_none_are_a_mistake_and_idle_patterns_are_told() {
    let setup = Setup::new().await;
    let error = setup.fails(&[("BACKUP_TABLES", "custmer"), ("BACKUP_EXCLUDE_TABLES", "")]).await;
    assert!(error.contains("BACKUP_TABLES") && error.contains("no table"), "{error}");
    let kind = setup.kind(&[("BACKUP_TABLES", "cust*,ordr")]);
    let (outcome, lines) = setup.run_with(&kind, Payload::default(), CancellationToken::new()).await;
    assert!(outcome.is_ok() && lines.holds("`ordr`"), "{:?}", lines.messages());
}

#[tokio::test]
async fn where_snapshots_cannot_be_compared_rows_are() {
    let setup = Setup::new().await;
    setup
        .shop
        .batch_execute(
            "create role reader login password 'correct horse battery'; grant pg_read_all_data to reader;
             revoke execute on function pg_control_system() from public",
        )
        .await
        .unwrap();
    let url = setup.cluster.url("shop").replace("owner:", "reader:");
    let settings = [("DATABASE_URL", url.as_str())];
    setup.take(&settings).await;
    let (outcome, lines) = setup.run_with(&setup.kind(&settings), Payload::default(), CancellationToken::new()).await;
    assert!(format!("{outcome:?}").contains("unchanged"), "{outcome:?}");
    assert!(lines.holds("pg_control_system"), "{:?}", lines.messages());
    setup.shop.batch_execute("update customer set name = 'x' where id = 1").await.unwrap();
    assert_eq!(setup.take(&settings).await["changedTables"], json!(["customer"]));
}

#[tokio::test]
async fn a_standby_is_compared_by_rows() {
    let cluster = Cluster::start_standby();
    let directory = tempfile::tempdir().unwrap();
    let shop = cluster.client("postgres").await;
    let setup = Setup { cluster, shop, directory };
    let url = setup.cluster.url("postgres");
    let settings = [("DATABASE_URL", url.as_str())];
    assert_eq!(result(&setup.take(&settings).await), "archived");
    let (outcome, lines) = setup.run_with(&setup.kind(&settings), Payload::default(), CancellationToken::new()).await;
    assert!(format!("{outcome:?}").contains("unchanged") && lines.holds("standby"), "{outcome:?} {:?}", lines.messages());
    assert!(setup.newest().await.database.standby);
}
