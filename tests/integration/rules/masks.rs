//! What the masks are: their types, that nulls stay nulls, that equal values stay equal.

use super::{World, text};

const TYPES: &str = r#"
create extension citext;
create schema "wei.rd";
create domain short_name as varchar(20) check (length(value) > 1);
create domain shorter_name as short_name;
create table "wei.rd"."ta""ble.é" (k int primary key, "co""l.1" text, "v" varchar(40), c char(36), n name, ci citext, "s" shorter_name,
    "a" uuid, "b" bytea, "r" smallint, i integer, l bigint, d date, ts timestamp, tz timestamptz(0), m varchar(30), arr text[], j json, num numeric(9,2));
insert into "wei.rd"."ta""ble.é" select g, 'text ' || g, 'v' || g, 'c' || g, 'n' || g, 'Ci' || g, 'some name ' || g, md5(g::text)::uuid,
    decode(md5(g::text), 'hex'), g - 300, -g * 1000003, g * 100000000003, date '2000-01-01' + g, timestamp '2000-01-01 12:00' + g * interval '1 hour',
    timestamptz '2000-01-01 12:00Z' + g * interval '1 hour', 'm' || g || '@x.y', array['a', g::text], '{"a": 1}', g * 1.5
    from generate_series(1, 500) g;
insert into "wei.rd"."ta""ble.é" (k) values (0);
insert into "wei.rd"."ta""ble.é" (k, d, ts, tz, i, l, r) values (-1, 'infinity', '-infinity', 'infinity', -2147483648, 9223372036854775807, -32768);
"#;

const TABLE: &str = r#""wei.rd"."ta""ble.é""#;

fn rules() -> String {
    let hashed = ["co\\\"l.1", "v", "c", "n", "ci", "s", "a", "b", "r", "i", "l"].map(|c| format!("\"{c}\" = 'hash'")).join("\n");
    format!(
        "[tables.\"wei.rd.ta\\\"ble.é\".columns]\nk = 'keep'\n{hashed}\nd = {{ date_shift = 5 }}\nts = {{ date_shift = 5 }}\ntz = {{ date_shift = 5 }}\n\
         m = 'email'\narr = {{ fixed = '{{x,y}}' }}\nj = {{ sql = \"j - 'a'\" }}\nnum = {{ fixed = 7.5 }}\n"
    )
    .replace("j - 'a'", "json_build_object('n', k)")
}

const COLUMNS: &[&str] =
    &["\"co\"\"l.1\"", "v", "c", "n", "ci", "s", "a", "b", "r", "i", "l", "d", "ts", "tz", "m", "arr", "num"];

#[tokio::test]
async fn every_rule_keeps_types_and_nulls_and_replaces_every_value() {
    let mut world = World::new(TYPES).await;
    world.rules(&rules());
    world.full().await;
    for column in COLUMNS {
        let sql =
            format!("select k::text || ' ' || ({column})::text from {TABLE} where {column} is not null and k > 0 order by k");
        let (there, here) = (text(&world.source, &sql).await, world.text(&sql).await);
        assert_eq!(there.lines().count(), 500);
        let same: Vec<&str> = there.lines().filter(|line| here.lines().any(|h| h == *line)).collect();
        // Of `1.5 g` one is 7.5 itself.
        assert!(same.len() <= usize::from(*column == "num"), "{column}: {same:?}");
        world.assert_same(&format!("select count({column})::text || min(pg_typeof({column})::text) from {TABLE}")).await;
        assert_eq!(world.text(&format!("select ({column} is null)::text from {TABLE} where k = 0")).await, "true", "{column}");
    }
    for unique in ["\"co\"\"l.1\"", "v", "c", "n", "ci", "s", "a", "b", "r", "i", "l", "m"] {
        world.assert_same(&format!("select count(distinct {unique})::text from {TABLE}")).await;
    }
    world.assert_same(&format!("select (r < 0)::text || (i < 0) || (l < 0) from {TABLE} order by k")).await;
    world.assert_same(&format!("select d::text || ts || tz from {TABLE} where k = -1")).await;
    assert_eq!(world.text(&format!("select j::text from {TABLE} where k = 3")).await, r#"{"n" : 3}"#);
    let far = format!("from {TABLE} t join before b using (k) where k > 0 and");
    world.on_target("create table before (k int, d date, ts timestamp)").await;
    world.on_target("insert into before select g, date '2000-01-01' + g, timestamp '2000-01-01 12:00' + g * interval '1 hour' from generate_series(1, 500) g").await;
    assert_eq!(
        world
            .text(&format!(
                "select count(*)::text {far} abs(t.d - b.d) between 1 and 5 and t.ts - b.ts between '-5 days' and '5 days'"
            ))
            .await,
        "500"
    );
    assert_eq!(
        world.text(&format!("select (count(distinct t.d - b.d) = 10)::text {far} true")).await,
        "true",
        "every distance occurs"
    );
}

#[tokio::test]
async fn hashed_small_numbers_change_places_so_that_none_is_lost() {
    let mut world =
        World::new("create table t (n smallint unique); insert into t select g from generate_series(-32768, 32767) g").await;
    world.rules("[tables.t.columns]\nn = 'hash'");
    world.full().await;
    assert_eq!(world.text("select count(distinct n) || ' ' || min(n) || ' ' || max(n) from t").await, "65536 -32768 32767");
}

const KEYS: &str = "
    create table users (id int primary key, code uuid unique, login text unique, boss int references users);
    create table orders (id bigint primary key, user_id int references users, code uuid references users (code), login text references users (login));
    create table lines (order_id bigint references orders, n int, primary key (order_id, n));
    create table visits (at timestamptz, login varchar(80));
    insert into users select g, md5(g::text)::uuid, 'user ' || g, nullif(g / 3, 0) from generate_series(1, 90) g;
    insert into orders select g * 10000000000, 1 + g % 90, md5((1 + g % 90)::text)::uuid, case when g % 5 > 0 then 'user ' || 1 + g % 90 end from generate_series(1, 200) g;
    insert into lines select g * 10000000000, n from generate_series(1, 200) g, generate_series(1, g % 4) n;
    insert into visits select now(), 'user ' || g % 120 from generate_series(1, 300) g;";

const KEY_RULES: &str = "
    [tables.users.columns]
    id = 'hash'
    code = 'hash'
    login = 'hash'
    boss = 'hash'
    [tables.orders.columns]
    id = 'hash'
    user_id = 'hash'
    code = 'hash'
    login = 'hash'
    [tables.lines.columns]
    order_id = 'hash'
    n = 'keep'
    [tables.visits.columns]
    at = 'keep'
    login = 'hash'";

#[tokio::test]
async fn joins_on_masked_keys_count_as_on_the_source_and_foreign_keys_hold() {
    let mut world = World::new(KEYS).await;
    world.rules(KEY_RULES);
    let (summary, _) = world.full().await;
    assert_eq!(summary.broken, Vec::<String>::new());
    for join in [
        "users u join orders o on o.user_id = u.id",
        "users u join orders o using (code)",
        "users u join orders o using (login)",
        "users u join users b on b.id = u.boss",
        "orders o join lines l on l.order_id = o.id",
        "visits v join users u using (login)",
        "visits v left join orders o using (login)",
    ] {
        world.assert_same(&format!("select count(*)::text from {join}")).await;
    }
    world.assert_same("select count(*)::text from pg_constraint where contype = 'f' and convalidated and connamespace = 'public'::regnamespace").await;
    world.assert_same("select count(*)::text from orders where login is null").await;
    assert_eq!(world.text("select count(*)::text from users where login like 'user%' or id between 1 and 90").await, "0");
}

#[tokio::test]
async fn a_value_has_one_mask_whatever_the_session_and_another_under_another_key() {
    let mut world = World::new(TYPES).await;
    world.rules(&rules());
    let all = format!("select t::text from {TABLE} t order by k");
    world.full().await;
    let first = world.text(&all).await;
    world
        .on_source(
            "alter role owner set datestyle = 'German'; alter role owner set timezone = 'Asia/Tokyo'; alter role owner set bytea_output = 'escape';
             alter role owner set extra_float_digits = 0; alter role owner set intervalstyle = 'sql_standard'; alter role owner set standard_conforming_strings = off",
        )
        .await;
    world.full().await;
    assert_eq!(world.text(&all).await, first);
    world.config.rules = bullwork::replication::rules::Rules::parse(&rules(), Some("another key, long enough")).unwrap();
    world.full().await;
    let hashed = format!("select l::text || i || ci || d from {TABLE} where k > 0 order by k");
    let other = world.text(&hashed).await;
    world.rules(&rules());
    world.full().await;
    let ours = world.text(&hashed).await;
    assert!(ours.lines().zip(other.lines()).all(|(a, b)| a != b));
}

#[tokio::test]
async fn equal_citexts_have_one_mask() {
    let mut world = World::new(
        "create extension citext; create table t (c citext); insert into t values ('Ada'), ('ADA'), ('ada '), ('Bob')",
    )
    .await;
    world.rules("[tables.t.columns]\nc = 'hash'");
    world.full().await;
    assert_eq!(world.text("select count(distinct c)::text from t").await, "3");
}
