//! Rules in the incremental replication.

use bullwork::postgres::Database;

use super::World;
use super::leaks::{found_in, originals};
use crate::support::postgres::Cluster;
use crate::support::proxy::Proxy;

const EVENTS: &str = "
    create table events (id bigint primary key, email text, name text, birth date, seen timestamptz, ref uuid, number bigint, small int, blob bytea,
        phone text, ip inet, note jsonb, city text);
    create function fill(first int, last int) returns void language sql as $$
        insert into events select g, 'zaphod' || g || '@beeblebrox.example', 'Tricia McMillan ' || g, date '1931-03-07' + g * 811,
            timestamptz '2021-01-01 11:22:33.123456+00' + g * interval '40 days 00:00:01.000777', md5('ref' || g)::uuid,
            4446744073709551 * (g * 97 + 13), 1911911911 - g * 7919177, decode(md5('blob' || g), 'hex'), '+4930' || 8675309 + g * 7777,
            ('203.0.' || g || '.77')::inet, jsonb_build_object('secret', 'marvin' || g * 31337), 'Islington' || g * 4242
            from generate_series(first, last) g $$;
    select fill(1, 5);";

const RULES: &str = "[tables.events]
    where = \"city <> 'nowhere'\"
    [tables.events.columns]
    id = 'keep'
    email = 'email'
    name = 'hash'
    birth = { date_shift = 30 }
    seen = { date_shift = 10 }
    ref = 'hash'
    number = 'hash'
    small = 'hash'
    blob = 'hash'
    phone = { fixed = '+33 000' }
    ip = 'null'
    note = 'null'
    city = { sql = 'left(city, 1)' }";

#[tokio::test]
async fn first_loads_appended_and_late_rows_are_masked() {
    let mut world = World::of(Cluster::start(), Some(Cluster::start()), EVENTS).await;
    let there = world.target_cluster.as_ref().unwrap();
    let proxy = Proxy::start_recording(there.port).await;
    world.config.target = Database::parse(&there.url("to").replace(&there.port.to_string(), &proxy.port.to_string())).unwrap();
    world.rules(RULES);
    assert_eq!(world.append(&["events"]).await.rows, 5, "the table is made");
    world.on_source("select fill(11, 15); insert into events (id, city) values (16, 'nowhere')").await;
    assert_eq!(world.append(&["events"]).await.rows, 5);
    world.on_source("select fill(6, 10); insert into events (id, city) values (-3, 'nowhere')").await;
    assert_eq!(world.append(&["events"]).await.rows, 5, "late rows");
    world.on_target("delete from bullwork.incremental_watermark where false; delete from events where id = 3").await;
    world.on_target("update bullwork.incremental_watermark set source_identity = 'lost'").await;
    assert_eq!(world.append(&["events"]).await.rows, 1, "a healing pass");
    world.on_source("delete from events where city = 'nowhere'").await;
    world.assert_same("select count(*)::text || count(distinct name) || count(distinct number) from events").await;
    let wanted = originals(&world.source, "events").await;
    let wanted: Vec<_> = wanted.into_iter().filter(|(text, _)| !text.starts_with("ISLINGTON")).collect();
    assert_eq!(found_in(&proxy.heard(), &wanted), Vec::<&str>::new());
    // The full copy makes the same masks of the same values.
    let all = "select string_agg(t::text, ';' order by id) from events t";
    let appended = world.text(all).await;
    world.full().await;
    assert_eq!(world.text(all).await, appended);
}

#[tokio::test]
async fn a_masked_key_is_refused_because_rows_are_compared_by_it() {
    let mut world =
        World::new("create table t (id bigint primary key, a text); create table u (code uuid primary key, a text)").await;
    world.rules("[tables.t]\nother_columns = 'copy'\ncolumns.id = 'hash'\n[tables.u.columns]\ncode = 'hash'\na = 'keep'");
    let text = world.append_refused(&["t"]).await;
    assert!(text.contains("table `t` cannot be incremental with its key column `id` masked"), "{text}");
    let text = world.append_refused(&["u"]).await;
    assert!(text.contains("key column `code` masked"), "{text}");
    assert_eq!(world.text("select to_regclass('t')::text").await, "");
}

#[tokio::test]
async fn rows_under_other_rules_stop_the_run_until_the_table_is_empty() {
    let mut world =
        World::new("create table t (id bigint primary key, a text, b text); insert into t values (1, 'one', 'x')").await;
    world.append(&["t"]).await;
    world.on_source("insert into t values (2, 'two', 'y')").await;
    world.rules("[tables.t.columns]\nid = 'keep'\na = 'hash'\nb = 'keep'");
    let text = world.append_refused(&["t"]).await;
    assert!(text.contains("table `t`: its rows on the target were copied under other rules (column `a`)"), "{text}");
    assert_eq!(world.text("select count(*)::text from t").await, "1", "nothing was changed");
    world.on_target("truncate t").await;
    assert_eq!(world.append(&["t"]).await.rows, 2);
    assert_eq!(world.append(&["t"]).await.rows, 0, "the same rules go on");
    assert_eq!(world.text("select count(*)::text from t where a ~ '^[0-9a-f]{32}$'").await, "2");

    // A new column is no change of the rules for the others; what older rows hold of it is a value too.
    world
        .on_source("alter table t add c text default 'from the default'; insert into t values (3, 'three', 'z', 'secret')")
        .await;
    let text = world.append_refused(&["t"]).await;
    assert!(text.contains("no rule for column `c`"), "{text}");
    world.rules("[tables.t.columns]\nid = 'keep'\na = 'hash'\nb = 'keep'\nc = 'hash'");
    assert_eq!(world.append(&["t"]).await.rows, 1);
    assert_eq!(world.text("select count(*) || ' ' || count(c) from t where c is null or c ~ '^[0-9a-f]{32}$'").await, "3 1");

    for rules in [
        "[tables.t]\nwhere = 'id > 0'\n[tables.t.columns]\nid = 'keep'\na = 'hash'\nb = 'keep'\nc = 'hash'",
        "[tables.t.columns]\nid = 'keep'\na = 'hash'\nb = 'null'\nc = 'hash'",
    ] {
        world.rules(rules);
        world.append_refused(&["t"]).await;
    }
    // What the source computes from masked values is not copied either.
    world.rules("[tables.t.columns]\nid = 'keep'\na = 'hash'\nb = 'keep'\nc = 'hash'");
    world.on_source("alter table t add shout text generated always as (upper(a)) stored").await;
    let (result, lines) = world.try_append(&["t"]).await;
    assert!(result.is_ok() && lines.has("new column `shout` is left out: the source computes it"), "{:?}", lines.all());
    world.on_target("alter table t add shout text").await;
    assert!(world.append_refused(&["t"]).await.contains("no rule for column `shout`"));
    world.on_target("alter table t drop shout").await;

    // Rules that were lost would let originals through.
    world.config.rules = bullwork::replication::rules::Rules::default();
    let text = world.append_refused(&["t"]).await;
    assert!(text.contains("(column `a`, column `c`)"), "{text}");
}

#[tokio::test]
async fn a_watermark_of_an_earlier_version_is_one_without_rules() {
    let mut world = World::new("create table t (id bigint primary key, a text); insert into t values (1, 'one')").await;
    world.append(&["t"]).await;
    world.on_target("alter table bullwork.incremental_watermark drop column rules").await;
    world.on_source("insert into t values (2, 'two')").await;
    assert_eq!(world.append(&["t"]).await.rows, 1);
    world.on_target("alter table bullwork.incremental_watermark drop column rules").await;
    world.rules("[tables.t.columns]\nid = 'keep'\na = 'hash'");
    assert!(world.append_refused(&["t"]).await.contains("under other rules"));
}
