//! Rows that stay behind.

use super::World;

const TABLES: &str = "
    create table users (id int primary key, email text, created_at timestamptz);
    create table orders (id int primary key, user_id int references users, total int);
    insert into users select g, 'u' || g, now() - g * interval '100 days' from generate_series(1, 10) g;
    insert into orders select g, 1 + g % 10, g from generate_series(1, 100) g;";

#[tokio::test]
async fn only_rows_that_meet_the_condition_cross_and_keys_into_them_are_told_when_broken() {
    let mut world = World::new(TABLES).await;
    world.rules("[tables.users]\nwhere = \"created_at > now() - interval '365 days'\"");
    let (summary, lines) = world.full().await;
    assert_eq!(summary.rows, 103);
    assert_eq!(world.text("select string_agg(email, ',' order by id) from users").await, "u1,u2,u3", "other columns are copied");
    assert_eq!(summary.broken, ["orders orders_user_id_fkey"]);
    assert!(lines.has("stays NOT VALID, because REPLICATION_RULES leaves rows behind"), "{:?}", lines.all());
    assert_eq!(world.text("select convalidated::text from pg_constraint where conname = 'orders_user_id_fkey'").await, "false");

    world.rules(
        "[tables.users]\nwhere = \"created_at > now() - interval '365 days'\"\n[tables.users.columns]\nid = 'keep'\nemail = 'hash'\ncreated_at = 'keep'\n\
         [tables.orders]\nwhere = 'user_id in (select u.id from public.users u where u.id < 4)'",
    );
    let (summary, _) = world.full().await;
    assert_eq!((summary.rows, summary.broken.len()), (33, 0));
    assert_eq!(world.text("select convalidated::text from pg_constraint where conname = 'orders_user_id_fkey'").await, "true");
    assert_eq!(world.text("select count(*)::text from users where email ~ '^[0-9a-f]{32}$'").await, "3");
}

#[tokio::test]
async fn a_key_onto_an_expression_may_break_and_a_key_onto_null_cannot() {
    let mut world = World::new(TABLES).await;
    world.rules("[tables.orders.columns]\nid = 'keep'\nuser_id = { sql = 'user_id + 5' }\ntotal = 'keep'");
    let (summary, lines) = world.full().await;
    assert_eq!(summary.broken, ["orders orders_user_id_fkey"], "{:?}", lines.all());
    world.rules("[tables.users.columns]\nid = 'hash'\nemail = 'null'\ncreated_at = 'keep'\n[tables.orders.columns]\nid = 'keep'\nuser_id = 'null'\ntotal = 'keep'");
    let (summary, _) = world.full().await;
    assert_eq!(summary.broken, Vec::<String>::new());
}

#[tokio::test]
async fn rules_of_a_partitioned_table_hold_for_partitions_of_all_depths() {
    let mut world = World::new(
        "create table logs (day date, who text, region int) partition by range (day);
         create table logs_old partition of logs for values from ('2000-01-01') to ('2020-01-01');
         create table logs_new partition of logs for values from ('2020-01-01') to ('2030-01-01') partition by list (region);
         create table logs_new_1 partition of logs_new for values in (1);
         create table logs_new_rest (who text, extra int, region int, day date);
         alter table logs_new_rest drop column extra;
         alter table logs_new attach partition logs_new_rest default;
         insert into logs select date '2010-01-01' + g * 100, 'who ' || g, g % 3 from generate_series(1, 60) g;",
    )
    .await;
    world.rules("[tables.logs]\nwhere = 'region < 2'\n[tables.logs.columns]\nday = 'keep'\nregion = 'keep'\nwho = 'hash'");
    world.full().await;
    world.on_source("delete from logs where region = 2").await;
    world.assert_same("select count(*)::text || min(tableoid::regclass::text) || max(day) from logs").await;
    world.assert_same("select count(distinct who)::text from logs_new_rest").await;
    assert_eq!(world.text("select count(*)::text from logs where who like 'who%'").await, "0");
}

#[tokio::test]
async fn an_heir_has_rules_of_its_own() {
    let mut world = World::new(
        "create table people (name text); create table staff (wage int) inherits (people);
         insert into people values ('ann'), ('bob'); insert into staff values ('cid', 3)",
    )
    .await;
    world.rules("[tables.people.columns]\nname = 'hash'\n[tables.staff]\nother_columns = 'copy'\ncolumns.name = 'email'");
    world.full().await;
    assert_eq!(world.text("select count(*)::text from only people where name ~ '^[0-9a-f]{32}$'").await, "2");
    assert_eq!(world.text("select count(*)::text from staff where name like '%@masked.invalid' and wage = 3").await, "1");
}
