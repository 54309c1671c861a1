//! What stops a run before anything is changed.

use bullwork::config::{Environment, Reader};
use bullwork::replication::rules::Rules;

use super::{KEY, World};

const TABLES: &str = r#"
    create type mood as enum ('calm', 'cross');
    create table users (id int primary key, email varchar(60) unique, name text not null, born date, code varchar(8) unique, feeling mood, ok boolean,
        data jsonb, shout text generated always as (upper(name)) stored, tiny "char", tags text[], at time, score numeric, ip inet);
    create table orders (id bigint primary key, user_id int references users, total int);
    create table days (day date, who text, primary key (day, who)) partition by range (day);
    create table days_1 partition of days for values from ('2000-01-01') to ('2030-01-01');
    create table halves (a int, b int) partition by hash ((a % 10));
    create table base (who text);
    create table heir () inherits (base);
    create view everybody as select * from users;
    create schema other; create table other.users (id int); create table other.things (id int); create table "other.things" (id int);
    insert into users (id, email, name) values (1, 'ann@home.example', 'ann')"#;

/// Rules for all columns of `users`: `keep` but for one.
fn users(column: &str, rule: &str) -> String {
    format!("[tables.users]\nother_columns = \"copy\"\n[tables.users.columns]\n{column} = {rule}\n")
}

#[tokio::test]
async fn a_column_without_rule_stops_the_run_unless_it_is_allowed() {
    let mut world = World::new(
        "create table users (id int, email text, \"na\"\"me\" text, born date); insert into users values (1, 'a', 'b', null)",
    )
    .await;
    world.rules("[tables.users.columns]\nemail = 'email'\nid = 'keep'");
    let text = world.refused().await;
    assert!(text.contains("table `users` has masks, but no rule for column `na\"me`, `born`; name a rule for each"), "{text}");
    world.rules("[tables.users]\nother_columns = 'copy'\ncolumns.email = 'email'");
    world.full().await;
    assert_eq!(world.text("select \"na\"\"me\" from users").await, "b");
    // What comes later is not let through either.
    world.rules("[tables.users.columns]\nemail = 'email'\nid = 'keep'\nborn = 'keep'\n'na\"me' = 'null'");
    world.full().await;
    world.on_source("alter table users add phone text default '+49 30 1234'").await;
    let (result, _) = world.try_full().await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("no rule for column `phone`") && error.contains("target untouched"), "{error}");
    assert_eq!(world.text("select (\"na\"\"me\" is null)::text from users").await, "true", "the copy before serves");
}

#[tokio::test]
async fn rules_that_fit_nothing_are_all_told_at_once_with_what_is_near() {
    let mut world = World::new(TABLES).await;
    world.rules(
        "[tables.usres.columns]\nid = 'keep'\n[tables.everybody.columns]\nid = 'keep'\n[tables.days_1.columns]\nwho = 'hash'\n\
         [tables.\"other.things\".columns]\nid = 'keep'\n[tables.\"public.users\"]\nwhere = 'true'\n[tables.base.columns]\nwho = 'hash'\n\
         [tables.users]\nother_columns = 'copy'\n[tables.users.columns]\nemial = 'email'\nshout = 'hash'\nctid = 'keep'\n",
    );
    let text = world.refused().await;
    for part in [
        "the source has no table `usres` (near: `users`)",
        "`everybody` is no table but a view",
        "`days_1` is a partition; give its rules to `days`",
        "`other.things` means any of",
        "`public.users` and `users` are one table",
        "table `heir` inherits from `base`, which has masks; rules are not inherited",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    world.rules(
        "[tables.users]\nother_columns = 'copy'\n[tables.users.columns]\nemial = 'email'\nshout = 'hash'\nctid = 'keep'\n",
    );
    let text = world.refused().await;
    for part in [
        "table `users` has no column `emial` (near: `email`)",
        "table `users`, column `shout`: it is computed from other columns",
        "table `users` has no column `ctid`",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn masks_that_a_type_a_key_or_an_index_could_not_bear_are_refused_by_name() {
    let mut world = World::new(TABLES).await;
    for (rules, part) in [
        (users("feeling", "'hash'"), "column `feeling`: rule `hash` is not for type `public.mood`"),
        (users("ok", "'hash'"), "`hash` is not for type `boolean`"),
        (users("data", "'hash'"), "`hash` is not for type `jsonb`"),
        (users("score", "'hash'"), "`hash` is not for type `numeric`"),
        (users("tags", "'hash'"), "`hash` is not for type `text[]`"),
        (users("tiny", "'hash'"), "`hash` is not for type `\"char\"`"),
        (users("ip", "'hash'"), "`hash` is not for type `inet`"),
        (users("id", "'email'"), "`email` is not for type `integer`"),
        (users("at", "{ date_shift = 3 }"), "`date_shift` is not for type `time without time zone`"),
        (users("code", "'email'"), "rule `email` needs 27 characters and `character varying(8)` has fewer"),
        (users("name", "'null'"), "column `name`: rule `null`, but the column is NOT NULL"),
        (users("ok", "{ fixed = 'perhaps' }"), "column `ok`, fixed: invalid input syntax for type boolean"),
        (
            users("email", "{ fixed = 'x' }"),
            "rule `fixed` may make different values alike, which unique index `users_email_key` would refuse",
        ),
        (users("code", "'hash'"), "rule `hash` may make different values alike, which unique index `users_code_key`"),
        (
            users("id", "'hash'"),
            "foreign key `orders_user_id_fkey` of table `orders` would not hold: `user_id` has rule `keep` and `users`.`id` has rule `hash`",
        ),
        (
            "[tables.days.columns]\nday = { date_shift = 3 }\nwho = 'keep'".to_owned(),
            "table `days`, column `day`: it decides which partition",
        ),
        ("[tables.halves.columns]\na = 'hash'\nb = 'keep'".to_owned(), "table `halves`, column `a`: it decides which partition"),
    ] {
        world.rules(&rules);
        let text = world.refused().await;
        assert!(text.contains(part), "{part}: {text}");
    }
    // Without foreign keys on the target nothing could break.
    world.config.foreign_keys = false;
    world.rules(&users("id", "'hash'"));
    world.full().await;
}

#[tokio::test]
async fn texts_that_are_no_single_expression_are_refused_and_reach_nothing() {
    let mut world = World::new(TABLES).await;
    for text in [
        "name) from users; drop table orders; select (1",
        "name; drop table orders",
        "name), (email",
        "name, email",
        "name /* ",
        "name --",
        "'a",
        "$1",
        "$a$ ) $a$",
        "E'\\\\') union select (email'",
        "(select name from users",
    ] {
        for rules in [
            format!("[tables.users.columns]\nname = {{ sql = \"\"\"{text}\"\"\" }}"),
            format!("[tables.users]\nwhere = \"\"\"{text}\"\"\""),
        ] {
            let error = Rules::parse(&rules, Some(KEY)).expect_err(text);
            assert!(error.contains("table `users`"), "{error}");
        }
    }
    for (text, part) in [
        ("name as x", "syntax error"),
        ("count(*)", "aggregate functions are not allowed"),
        ("row_number() over ()", "window functions are not allowed"),
        ("unnest(array[name, email])", "set-returning functions are not allowed"),
        ("nowhere", "column \"nowhere\" does not exist"),
        ("(select name, email from public.users limit 1)", "must return only one column"),
    ] {
        world.rules(&users("name", &format!("{{ sql = \"{text}\" }}")));
        let error = world.refused().await;
        assert!(error.contains("table `users`, column `name`, sql: ") && error.contains(part), "{text}: {error}");
    }
    for (text, part) in [
        ("name", "must be type boolean"),
        ("count(*) > 1", "aggregate"),
        ("true union select 1", "syntax error"),
        ("true limit 1", "syntax error"),
    ] {
        world.rules(&format!("[tables.users]\nwhere = \"{text}\""));
        let error = world.refused().await;
        assert!(error.contains("table `users`, where: ") && error.contains(part), "{text}: {error}");
    }
    // A partition has another name than the table that the rules name.
    world.rules("[tables.days]\nwhere = \"days.who > ''\"");
    let error = world.refused().await;
    assert!(error.contains("table `days`, where: "), "{error}");
    let left = super::text(&world.source, "select count(*)::text from users, orders o right join (select 1) x on true").await;
    assert_eq!(left, "1", "nothing was dropped");
}

#[tokio::test]
async fn an_expression_that_fails_on_a_row_is_told_without_the_row() {
    let mut world = World::new(TABLES).await;
    world.rules(&users("name", "{ sql = 'email::int::text' }"));
    let (result, lines) = world.try_full().await;
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains("reading table `users`") && error.contains("SQLSTATE 22P02"), "{error}");
    assert!(!error.contains("ann@home") && !lines.has("ann@home"), "{error}");
    assert!(!world.text("select problem from bullwork.replication_state").await.contains("ann@home"));
    world.rules("[tables.users]\nwhere = 'email::int > 4'");
    let error = format!("{:#}", world.try_full().await.0.unwrap_err());
    assert!(error.contains("SQLSTATE 22P02") && !error.contains("ann@home"), "{error}");
}

#[tokio::test]
async fn a_file_or_key_that_cannot_be_used_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rules.toml");
    let problem = |text: &str, key: Option<&str>| {
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let environment =
            Environment::of([("REPLICATION_RULES", path)].into_iter().chain(key.map(|k| ("REPLICATION_MASK_KEY", k))));
        let reader = Reader::new(&environment);
        Rules::from_settings(&reader);
        reader.finish().err().map(|e| e.to_string()).unwrap_or_default()
    };
    let hashed = "[tables.t.columns]\na = 'hash'";
    assert_eq!(problem(hashed, Some(KEY)), "");
    assert_eq!(problem("[tables.t.columns]\na = 'null'", None), "", "no key is needed");
    let text = problem(hashed, None);
    assert!(text.contains("REPLICATION_MASK_KEY: is not set, but table `t`, column `a` has rule `hash`"), "{text}");
    let text = problem(hashed, Some("short secret"));
    assert!(text.contains("REPLICATION_MASK_KEY: has 12 bytes; write at least 16") && !text.contains("short secret"), "{text}");
    assert!(problem("", Some(KEY)).contains("names no table"));
    assert!(problem("[tables.t.columns]\na = 'mask'", Some(KEY)).contains("table `t`, column `a`: `mask` is no rule"));
    std::fs::remove_file(&file).unwrap();
    let environment = Environment::of([("REPLICATION_RULES", file.to_str().unwrap())]);
    let reader = Reader::new(&environment);
    Rules::from_settings(&reader);
    assert!(reader.finish().unwrap_err().to_string().contains("cannot be used"));
}
