//! Groups of fixtures into tables that are there.

use bullwork::jobs::restore::Payload;
use tokio_postgres::Client;

use super::{dump, into, restore};
use crate::backup::{Setup, psql};

const GROUPS: &str = r#"{"orders":["order","line"],"people":{"customer":"shop.customer","tree":{"model":"shop.node","fields":{"parent":"above"}}},"odd":["odd","pair","empty"],"circle":["a","b"]}"#;

/// Keys between groups, to itself, in a circle; types that JSON does not know; keys of two columns.
const TABLES: &str = r#"
create table line (id int generated always as identity primary key, order_id int not null references "order", n numeric);
insert into line (order_id, n) select id, 1.50 from "order" where id <= 20;
create table tree (id int primary key, parent int references tree, name text);
insert into tree values (1, 3, 'first, under the last'), (2, 1, 'é "quoted" \ back'), (3, null, E'line\nbreak');
create table a (id int primary key, b int); create table b (id int primary key, a int references a);
alter table a add foreign key (b) references b; insert into a values (1, null); insert into b values (1, 1); update a set b = 1;
create type mood as enum ('good', 'bad'); create domain money2 as numeric(8,2); create type spot as (x int, y text);
create table empty (id int primary key);
create table pair (left_id int, right_id int, note text, primary key (left_id, right_id));
insert into pair values (1, 2, 'x'), (2, 1, null);
create table odd (id uuid primary key, b bytea, j jsonb, js json, ts timestamptz, t time, d interval, m mood, mm mood[], i int[], tt text[],
    n numeric[], bb bytea[], r int4range, tr tstzrange, m2 money2, s spot, f float8, o bool, c "char", i2 int[], u uuid[], v varchar(3)[]);
insert into odd values ('00000000-0000-0000-0000-000000000001', '\x00ff10', '{"a": [1, null, "x"]}', '{"z":  1,"z": 2}', '2026-01-02 03:04:05.678901+02',
    '23:59:59.5', '1 mon 2 days 03:00', 'bad', '{good,bad,NULL}', '{1,NULL,3}', '{"a,b",NULL,"q\"\\uote",""}', '{1.50,NaN}', '{"\\x00","\\xff"}', '[1,5)',
    '["2026-01-01 00:00+00",)', 12.50, '(4,"te ""x""t")', 'Infinity', true, 'q', '{{1,2},{3,4}}', '{00000000-0000-0000-0000-000000000002}', '{abc,d}'),
    ('00000000-0000-0000-0000-000000000002', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
    ('00000000-0000-0000-0000-000000000003', '', '{}', '[]', '-infinity', '00:00', '-1 day', 'good', '{}', '{}', '{}', '{}', '{}', 'empty', '(,)', 0, '(,)', 'NaN', false, ' ', '{}', '{}', '{}');
"#;

async fn setup() -> Setup {
    let setup = Setup::new().await;
    setup.shop.batch_execute(TABLES).await.unwrap();
    setup.take(&[("BACKUP_FIXTURES", GROUPS)]).await;
    setup
}

/// A database with the tables of the source, and no rows.
async fn tables_only(setup: &Setup, name: &str) -> Client {
    let client = setup.cluster.create(name).await;
    psql(&setup.cluster, name, dump(&setup.cluster, "shop", &["-s"]).as_bytes(), &[]);
    client
}

fn groups(name: &str, groups: &[&str]) -> Payload {
    Payload { fixtures: groups.iter().map(|group| (*group).to_owned()).collect(), ..into(name) }
}

const ALL: &[&str] = &["orders", "people", "odd", "circle"];

async fn rows(client: &Client, table: &str) -> String {
    let sql = format!("select coalesce(string_agg(whole::text, E'\\n' order by whole::text), '') from \"{table}\" whole");
    client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{table}: {e:?}")).get(0)
}

#[tokio::test]
async fn groups_arrive_whole_whatever_their_keys_and_types_are() {
    let setup = setup().await;
    let copy = tables_only(&setup, "copy").await;
    let schema = dump(&setup.cluster, "copy", &["-s"]);
    let value = restore(&setup, &[("BACKUP_FIXTURES", GROUPS)], groups("copy", ALL)).await.unwrap();
    for table in ["customer", "order", "line", "tree", "a", "b", "pair", "odd", "empty"] {
        assert_eq!(rows(&copy, table).await, rows(&setup.shop, table).await, "{table}");
    }
    assert_eq!(value["rows"], 100 + 500 + 20 + 3 + 2 + 2 + 3);
    assert!(dump(&setup.cluster, "copy", &["-s"]) == schema, "no key keeps another rule");
    // Sequences go on behind the rows.
    copy.batch_execute("insert into customer (name) values ('new'); insert into line (order_id, n) values (1, 1)").await.unwrap();
    let ids = "select (select max(id) from customer), (select max(id) from line)";
    let row = copy.query_one(ids, &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (101, 21));
}

#[tokio::test]
async fn rows_with_the_same_key_are_overwritten_and_others_stay() {
    let setup = setup().await;
    let copy = tables_only(&setup, "copy").await;
    copy.batch_execute(
        "insert into customer (id, name) values (7, 'changed'), (1000, 'mine'); insert into pair values (1, 2, 'changed')",
    )
    .await
    .unwrap();
    let error = restore(&setup, &[], groups("copy", &["people"])).await.unwrap_err();
    assert!(error.contains("table `customer` has rows already"), "{error}");
    assert_eq!(rows(&copy, "tree").await, "");
    let payload = || Payload { into_nonempty: true, ..groups("copy", &["odd", "people"]) };
    for _ in 0..2 {
        restore(&setup, &[("BACKUP_FIXTURES", GROUPS)], payload()).await.unwrap();
        let names = "select string_agg(name, ',' order by id) from customer where id in (7, 1000)";
        assert_eq!(copy.query_one(names, &[]).await.unwrap().get::<_, &str>(0), "name 7,mine");
        assert_eq!(rows(&copy, "pair").await, rows(&setup.shop, "pair").await);
        assert_eq!(copy.query_one("select count(*) from customer", &[]).await.unwrap().get::<_, i64>(0), 101);
    }
}

#[tokio::test]
async fn an_error_in_a_later_group_leaves_nothing_of_the_earlier_ones() {
    let setup = setup().await;
    let copy = tables_only(&setup, "copy").await;
    copy.batch_execute("alter table line add check (order_id < 20)").await.unwrap();
    let settings = [("BACKUP_FIXTURES", GROUPS)];
    let error = restore(&setup, &settings, groups("copy", ALL)).await.unwrap_err();
    assert!(error.contains("line_order_id_check") && error.contains("left nothing behind"), "{error}");
    for table in ["customer", "order", "line", "tree", "odd"] {
        assert_eq!(rows(&copy, table).await, "", "{table}");
    }
    // Without those that they refer to, rows are refused by the server.
    let error = restore(&setup, &settings, groups("copy", &["orders"])).await.unwrap_err();
    assert!(error.contains("violates foreign key"), "{error}");
    for (payload, more, wanted) in [
        (groups("copy", &["nobody"]), vec![], "has no fixtures of group `nobody`; it has:"),
        (groups("absent", &["people"]), vec![], "there is no database `absent`"),
        (groups("postgres", &["people"]), vec![], "has no table `customer`"),
        (groups("copy", &["people"]), vec![("BACKUP_FIXTURES", "{}")], "field `above` of the fixtures is no column of `tree`"),
        (Payload { into: None, ..groups("copy", &["people"]) }, vec![], "name their database by --into"),
    ] {
        let error = restore(&setup, &more, payload).await.unwrap_err();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert_eq!(rows(&copy, "customer").await, "");
}
