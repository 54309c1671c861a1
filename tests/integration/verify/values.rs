//! What counts as a difference.

use super::{Pair, TableMode, TableModes, Verdict, assert_all, of};

/// A value of each sort, and another one that must not pass for it.
const VALUES: &[(&str, &str, &str)] = &[
    ("int8", "1", "2"),
    ("float8", "'0'", "'-0'"),
    ("float8", "'NaN'", "'Infinity'"),
    ("float4", "1.1", "1.1000001"),
    ("numeric", "1.0", "1.00"),
    ("text", "''", "null"),
    ("text", "'a'", "'a '"),
    ("varchar(9)", "'='", "''"),
    ("char(3)", "'a'", "'b'"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("bytea", "''", "null"),
    ("raw", "'\\x00ff'", "'\\x00fe'"),
    ("jsonb", "'{\"a\": null}'", "'{}'"),
    ("json", "'{\"a\":1}'", "'{\"a\": 1}'"),
    ("text[]", "'{a,NULL}'", "'{a,\"NULL\"}'"),
    ("text[]", "'{}'", "null"),
    ("int[][]", "'{{1,2},{3,4}}'", "'{1,2,3,4}'"),
    ("pair", "'(1,)'", "'(1,\"\")'"),
    ("pair", "'(,)'", "null"),
    ("mood", "'sad'", "'happy'"),
    ("citext", "'Word'", "'word'"),
    ("text collate folded", "'Word'", "'word'"),
    ("timestamptz", "'2026-01-01 00:00:00+00'", "'2026-01-01 00:00:00.000001+00'"),
    ("timestamp", "'infinity'", "'-infinity'"),
    ("interval", "'1 day'", "'24 hours'"),
    ("timetz", "'10:00+01'", "'09:00+00'"),
    ("date", "'0001-01-01 BC'", "'0001-01-01'"),
    ("money", "1.10", "1.11"),
    ("inet", "'10.0.0.1/32'", "'10.0.0.1/31'"),
    ("span", "'[1,5)'", "'[1,6)'"),
    ("bit(3)", "'101'", "'100'"),
    ("xml", "'<a/>'", "'<b/>'"),
    ("regclass", "'pg_class'", "'pg_type'"),
    ("tsvector", "'a:1'", "'a:2'"),
    ("boolean", "true", "false"),
];

const TYPES: &str = "create extension citext; create type mood as enum ('sad', 'happy'); create type pair as (a int, b text);
    create type span as range (subtype = int8); create domain raw as bytea;
    create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create function lies(mood) returns text language sql immutable as $$ select 'same' $$; create cast (mood as text) with function lies(mood);";

#[tokio::test]
async fn a_value_that_differs_is_found_in_every_type() {
    let tables: Vec<String> = VALUES
        .iter()
        .enumerate()
        .map(|(i, (kind, value, _))| {
            format!("create table t{i:02} (id int primary key, v {kind}); insert into t{i:02} values (1, {value}), (2, {value})")
        })
        .collect();
    let pair = Pair::new(&format!("{TYPES} {}", tables.join(";"))).await;
    // What the roles' settings are does not matter.
    pair.on_source("alter database \"from\" set timezone = 'Asia/Tokyo'; alter database \"from\" set datestyle = 'German'; alter database \"from\" set intervalstyle = 'iso_8601'").await;
    pair.on_target("alter database \"to\" set timezone = 'America/Lima'; alter database \"to\" set bytea_output = 'escape'; alter database \"to\" set extra_float_digits = -10; alter database \"to\" set search_path = pg_catalog, information_schema").await;
    assert_all(&pair.verify().await, Verdict::Equal);
    let changes: Vec<String> =
        VALUES.iter().enumerate().map(|(i, (_, _, other))| format!("update t{i:02} set v = {other} where id = 2")).collect();
    pair.on_target(&format!("set search_path = public; {}", changes.join(";"))).await;
    let report = pair.verify().await;
    for (i, (kind, value, other)) in VALUES.iter().enumerate() {
        let compared = of(&report, &format!("t{i:02}"));
        assert_eq!(compared.verdict, Verdict::Differs, "{kind}: {value} and {other}");
        assert_eq!(compared.rows, (Some(2), Some(2)));
    }
}

#[tokio::test]
async fn rows_that_are_more_fewer_exchanged_or_twice_are_found() {
    let rows =
        "create table NAME (id int, a text, b text); insert into NAME select g, 'a' || g, 'b' || g from generate_series(1, 50) g";
    let names = ["same", "more", "fewer", "exchanged", "columns", "twice", "swapped twins", "we\"ird.na''me; --", "é\u{202e}"];
    let all: Vec<String> = names.iter().map(|n| rows.replace("NAME", &format!("\"{}\"", n.replace('"', "\"\"")))).collect();
    let pair = Pair::new(&format!(
        "{}; create table nothing (); insert into nothing default values; create schema \"S.x\"; create table \"S.x\".t (x int)",
        all.join(";")
    ))
    .await;
    pair.on_target("insert into more values (51, 'x', 'y'); delete from fewer where id = 7").await;
    // Two rows exchange a value; one row exchanges its columns; one row is there twice instead of another.
    pair.on_target("update exchanged set a = case id when 1 then 'a2' else 'a1' end where id in (1, 2)").await;
    pair.on_target("update columns set a = b, b = a where id = 9; delete from twice where id = 5; insert into twice select * from twice where id = 6").await;
    pair.on_target("insert into \"swapped twins\" select * from \"swapped twins\" where id = 1; insert into nothing default values; insert into \"S.x\".t values (null)").await;
    pair.on_source("insert into \"swapped twins\" select * from \"swapped twins\" where id = 2").await;
    pair.on_target("update \"we\"\"ird.na''me; --\" set a = '' where id = 1; drop table \"é\u{202e}\"").await;
    let report = pair.verify().await;
    assert!(!report.is_good());
    assert_eq!(of(&report, "same").verdict, Verdict::Equal);
    assert_eq!(of(&report, "é\u{202e}").verdict, Verdict::Absent);
    for name in names[1..8].iter().copied().chain(["nothing", "S.x.t"]) {
        assert_eq!(of(&report, name).verdict, Verdict::Differs, "{name}");
    }
    assert_eq!(of(&report, "nothing").rows, (Some(1), Some(2)));
}

#[tokio::test]
async fn as_many_columns_as_a_table_may_have_and_large_values_are_compared() {
    let columns: Vec<String> = (0..1600).map(|i| format!("c{i} bool")).collect();
    let pair = Pair::new(&format!(
        "create table wide ({}); insert into wide (c0) select true from generate_series(1, 20);
         create table large (id int primary key, b bytea, t text); insert into large select 1, decode(repeat('ab', 30000000), 'hex'), repeat('x', 30000000)",
        columns.join(", ")
    ))
    .await;
    assert_all(&pair.verify().await, Verdict::Equal);
    pair.on_target("update wide set c1599 = false where ctid = '(0,1)'; update large set b = set_byte(b, 29999999, 1)").await;
    assert_all(&pair.verify().await, Verdict::Differs);
}

#[tokio::test]
async fn servers_of_different_encodings_are_compared_by_a_portable_hash() {
    let mut pair = Pair::new("create table t (id int primary key, x text, b bytea); insert into t values (1, 'é', '\\xe9'), (2, null, null), (3, '', '')").await;
    pair.cluster
        .client("postgres")
        .await
        .batch_execute("create database latin encoding 'LATIN1' locale 'C' template template0")
        .await
        .unwrap();
    pair.config.target = super::Database::parse(&pair.cluster.url("latin")).unwrap();
    pair.target = pair.cluster.client("latin").await;
    pair.on_target("create table t (id int primary key, x text, b bytea); insert into t values (1, 'é', '\\xe9'), (2, null, null), (3, '', '')").await;
    assert_all(&pair.verify().await, Verdict::Equal);
    pair.on_target("update t set x = 'è' where id = 1").await;
    assert_all(&pair.verify().await, Verdict::Differs);
    let repaired = pair.repair().await;
    assert_all(&repaired, Verdict::Repaired);
    assert_all(&pair.verify().await, Verdict::Equal);
}

#[tokio::test]
async fn tables_are_chosen_by_name_and_mode() {
    let mut pair = Pair::new(
        "create table a (id int primary key); create table b (id int primary key); create table own (id int primary key); insert into a values (1);
         create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (0) to (10); create table p2 partition of p default; insert into p values (1), (20)",
    )
    .await;
    pair.on_target("insert into own values (1); delete from p where id = 20; insert into b values (9)").await;
    pair.config.modes = TableModes::of([("own", TableMode::None), ("b", TableMode::Incremental)]);
    let names = |report: &super::Report| {
        report.tables.iter().map(|t| format!("{} {}", t.table, t.verdict)).collect::<Vec<_>>().join(", ")
    };
    // More rows on the target are no fault in an incremental table.
    assert_eq!(names(&pair.verify().await), "a equal, b equal, p1 equal, p2 differs");
    pair.config.tables = vec!["p".to_owned(), "public.a".to_owned()];
    assert_eq!(names(&pair.verify().await), "a equal, p1 equal, p2 differs");
    pair.config.tables = vec!["a".to_owned(), "A".to_owned()];
    let error = pair.try_verify().await.unwrap_err().to_string();
    assert!(error.contains("the source has no table `A`"), "{error}");
    pair.config.tables = vec!["own".to_owned()];
    let error = pair.try_verify().await.unwrap_err().to_string();
    assert!(error.contains("`own` has mode \"none\""), "{error}");
    pair.config.target = pair.config.source.clone();
    let error = pair.try_verify().await.unwrap_err().to_string();
    assert!(error.contains("one database"), "{error}");
}
