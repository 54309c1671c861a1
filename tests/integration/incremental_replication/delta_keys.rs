//! Delta mode beside the target's constraints.

use std::time::Duration;

use super::delta::{done, sync, work};
use super::{Pair, number, run};
use crate::support::eventually;
use crate::support::postgres::{Cluster, PASSWORD};
use bullwork::postgres::Database;
use bullwork::replication::incremental::Incremental;
use bullwork::replication::kindness::Kindness;
use bullwork::replication::settings::{TableMode, TableModes};

#[tokio::test]
async fn unique_values_that_change_places_are_followed() {
    let pair = Pair::new(
        "create table t (id int primary key, place int not null unique, mail text unique, during int4range,
             exclude using gist (during with &&))",
    )
    .await;
    pair.target("alter table t add column mine text").await;
    pair.source(
        "insert into t (id, place, mail, during) select i, i, 'm' || i, int4range(i * 10, i * 10 + 5) from generate_series(1, 20) i",
    )
    .await;
    sync(&pair, &["t"]).await.summary();
    pair.target("update t set mine = 'noted ' || id").await;
    // A value of a row that goes is free for one that comes.
    pair.source("delete from t where id = 20; insert into t (id, place, mail) values (21, 20, 'm20')").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (1, 0, 1));
    // Round in a circle, all kinds at once.
    pair.source(
        "begin; update t set place = -1 - id, mail = mail || '!', during = null where id in (1, 2, 3);
         update t set place = id % 3 + 1, mail = 'm' || id % 3 + 1, during = int4range((id % 3 + 1) * 10, (id % 3 + 1) * 10 + 5) where id in (1, 2, 3);
         update t set mail = 'free' where id = 4; insert into t (id, place, mail) values (22, 22, 'm4'); commit",
    )
    .await;
    let ran = sync(&pair, &["t"]).await;
    assert_eq!(done(&ran), (1, 4, 0), "{:?}", ran.messages());
    let copied = "select string_agg(row(id, place, mail, during)::text, ';' order by id) from t";
    let (source, target) = (pair.source.query_one(copied, &[]).await.unwrap(), pair.target.query_one(copied, &[]).await.unwrap());
    assert_eq!(source.get::<_, String>(0), target.get::<_, String>(0));
    assert_eq!(
        number(&pair.target, "select count(*) from t where mine = 'noted ' || id").await,
        19,
        "somebody's own column is kept"
    );
    // Without a column of somebody's own, what we wrote in a second try is not taken for somebody else's.
    pair.target("alter table t drop column mine").await;
    pair.source("begin; update t set place = -1 where id = 5; update t set place = 5 where id = 6; update t set place = 6 where id = 5; commit").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 2, 0));
    let ran = sync(&pair, &["t"]).await;
    assert!(ran.says("t is unchanged"), "{:?}", ran.messages());
}

#[tokio::test]
async fn identity_columns_take_the_numbers_of_the_source() {
    let pair = Pair::new(
        "create table t (id int generated always as identity primary key, v text);
         create table u (name text primary key, number int generated always as identity, v text)",
    )
    .await;
    pair.source("insert into t (v) select 'v' from generate_series(1, 20); insert into u (name, v) select 'n' || i, 'v' from generate_series(1, 20) i")
        .await;
    sync(&pair, &["t", "u"]).await.summary();
    pair.source(
        "update t set v = 'w' where id < 3; insert into t (v) values ('x'); delete from t where id = 9;
         update u set v = 'w', number = default where number < 3; insert into u (name) values ('x'); delete from u where number = 9",
    )
    .await;
    assert_eq!(done(&sync(&pair, &["t", "u"]).await), (2, 4, 2));
    pair.assert_equal(&["t", "u"]).await;
}

#[tokio::test]
async fn foreign_keys_between_tables_of_the_run_do_not_get_in_the_way() {
    let tables = "create table city (id int primary key);
        create table author (id int primary key, city int references city, boss int references author);
        create table book (id int primary key, author int not null references author on delete cascade);
        create table loan (id bigserial primary key, book int references book, city int references city)";
    let pair = Pair::new(tables).await;
    // In the wrong order, so that only the keys themselves give the right one.
    let modes =
        [("loan", TableMode::Incremental), ("book", TableMode::Delta), ("author", TableMode::Delta), ("city", TableMode::Delta)];
    let all = Incremental { modes: TableModes::of(modes), ..work(&pair, &[]) };
    pair.source(
        "insert into city values (1), (2); insert into author values (1, 1, null), (2, 2, 1), (3, 2, 2); insert into book values (1, 1), (2, 3);
         insert into loan (book, city) values (1, 1)",
    )
    .await;
    assert_eq!(done(&run(&all).await), (8, 0, 0));
    pair.source(
        "insert into city values (3); insert into author values (4, 3, 4); insert into book values (3, 4); insert into loan (book, city) values (3, 3);
         update book set author = 4 where id = 2; update author set boss = 4 where id = 2; delete from author where id = 3;
         update author set city = 3; delete from city where id = 2",
    )
    .await;
    assert_eq!(done(&run(&all).await), (4, 3, 2));
    pair.assert_equal(&["city", "author", "book", "loan"]).await;
    pair.source("delete from loan; delete from book; delete from author; delete from city").await;
    let ran = run(&all).await;
    ran.summary();
    // Appended rows stay, and with them what they refer to.
    assert!(ran.says("book: 2 rows that are gone from the source stay, because foreign keys of the target refer to them: loan (loan_book_fkey)"), "{:?}", ran.messages());
    assert_eq!(number(&pair.target, "select count(*) from loan").await, 2);
    assert_eq!(number(&pair.target, "select count(*) from author").await, 2);
    assert_eq!(number(&pair.target, "select count(*) from city").await, 2);
}

#[tokio::test]
async fn no_deletion_cascades_into_a_kept_table_whatever_the_key_does() {
    for action in ["cascade", "set null", "restrict", "no action"] {
        let pair = Pair::new("create table t (id int primary key, v int unique)").await;
        pair.target(&format!(
            "create table report (id int primary key, t int references t on delete {action}); insert into t values (1, 1), (2, 2), (3, 3);
             insert into report values (1, 1), (2, null)"
        ))
        .await;
        pair.source("insert into t values (1, 1), (2, 2), (3, 3)").await;
        sync(&pair, &["t"]).await.summary();
        pair.source("delete from t where id in (1, 2)").await;
        let ran = sync(&pair, &["t"]).await;
        assert_eq!(done(&ran), (0, 0, 1), "{action}: {:?}", ran.messages());
        assert!(
            ran.says("t: 1 rows that are gone from the source stay") && ran.says("report (report_t_fkey)"),
            "{:?}",
            ran.messages()
        );
        assert_eq!(number(&pair.target, "select count(*) from report where t = 1").await, 1);
        // It is remembered, and changes go on meanwhile.
        pair.source("insert into t values (4, 4)").await;
        assert_eq!(done(&sync(&pair, &["t"]).await), (1, 0, 0));
        pair.target("delete from report where id = 1").await;
        assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 1));
        pair.assert_equal(&["t"]).await;

        // Rows that would have to go for a moment.
        pair.target("insert into report values (3, 3)").await;
        pair.source(
            "begin; update t set v = -1 where id = 3; update t set v = 3 where id = 4; update t set v = 4 where id = 3; commit",
        )
        .await;
        let ran = sync(&pair, &["t"]).await;
        match action {
            "no action" => pair.assert_equal(&["t"]).await,
            "restrict" => assert!(ran.error().contains("report_t_fkey"), "{}", ran.error()),
            _ => {
                let error = ran.error();
                assert!(
                    error.contains("foreign key `report_t_fkey` of table `report`") && error.contains("deferrable"),
                    "{error}"
                );
                assert!(ran.result.unwrap_err().is_final());
                pair.target("alter table t drop constraint t_v_key, add unique (v) deferrable").await;
                sync(&pair, &["t"]).await.summary();
                pair.assert_equal(&["t"]).await;
            }
        }
        assert_eq!(number(&pair.target, "select count(*) from report where t = 3").await, 1);
    }
}

#[tokio::test]
async fn a_table_without_key_does_not_cascade_either() {
    for (action, refused) in [("cascade", true), ("set null", true), ("no action", false)] {
        let pair = Pair::new("create table t (code int unique, v int)").await;
        pair.target(&format!("create table report (t int references t (code) on delete {action}); insert into t values (1, 1), (2, 2); insert into report values (1)"))
            .await;
        pair.source("insert into t values (1, 1), (2, 2)").await;
        let ran = sync(&pair, &["t"]).await;
        pair.source("update t set v = 5 where code = 1").await;
        let second = sync(&pair, &["t"]).await;
        if refused {
            for ran in [ran, second] {
                assert!(
                    ran.error().contains("foreign key `report_t_fkey` of table `report` would then change rows"),
                    "{}",
                    ran.error()
                );
            }
        } else {
            assert_eq!((done(&ran), done(&second)), ((0, 0, 0), (1, 0, 1)));
        }
        assert_eq!(number(&pair.target, "select count(*) from report where t = 1").await, 1);
    }
}

#[tokio::test]
async fn nothing_comes_to_refer_to_a_row_while_a_run_deletes_it() {
    let tables = "create table t (id int primary key); create table u (id int primary key, v int)";
    let pair = Pair::new(tables).await;
    pair.target("create table report (t int references t)").await;
    pair.source("insert into t select generate_series(1, 20); insert into u values (1, 1)").await;
    sync(&pair, &["t", "u"]).await.summary();
    pair.source("delete from t where id in (3, 4)").await;

    // Began before: the run waits for it, and leaves the row.
    let early = pair.cluster.client("warehouse").await;
    early.batch_execute("begin; insert into report values (3)").await.unwrap();
    let waits = "select count(*) from pg_stat_activity where application_name like 'bullwork: %' and wait_event_type = 'Lock'";
    let tables = ["t", "u"];
    let (ran, ()) = tokio::join!(sync(&pair, &tables), async {
        eventually("the run waits", Duration::from_secs(20), async || number(&pair.source, waits).await == 1).await;
        early.batch_execute("commit").await.unwrap();
    });
    assert_eq!(done(&ran), (0, 0, 1), "{:?}", ran.messages());
    assert!(ran.says("t: 1 rows that are gone from the source stay"), "{:?}", ran.messages());
    assert_eq!(number(&pair.target, "select count(*) from report join t on t = id").await, 1);

    // Begins later: it waits for the run, and is refused.
    pair.source("delete from t where id = 5; update u set v = 2").await;
    let holder = pair.cluster.client("warehouse").await;
    holder.batch_execute("begin; lock table u in share mode").await.unwrap();
    let late = pair.cluster.client("warehouse").await;
    let (ran, refused) = tokio::join!(sync(&pair, &tables), async {
        eventually("the run waits", Duration::from_secs(20), async || number(&pair.source, waits).await == 1).await;
        let inserting = late.batch_execute("insert into report values (5)");
        let (refused, ()) = tokio::join!(inserting, async {
            let blocked = "select count(*) from pg_stat_activity where query = 'insert into report values (5)' and wait_event_type = 'Lock'";
            eventually("the insert waits", Duration::from_secs(20), async || number(&pair.source, blocked).await == 1).await;
            holder.batch_execute("commit").await.unwrap();
        });
        refused
    });
    assert_eq!(done(&ran), (0, 1, 1), "{:?}", ran.messages());
    assert!(refused.is_err_and(|e| e.code().is_some_and(|c| c.code() == "23503")), "the row is gone");
}

#[tokio::test]
async fn deletions_do_not_read_a_referring_table_for_each_row_where_that_may_be_left_out() {
    let tables = "create table t (id int primary key, v int unique); create table c (id int primary key, t int references t, v int references t (v))";
    let pair = Pair::new(tables).await;
    let limited = "create role limited login password 'limited'; grant create on database warehouse to limited;
                   alter table t owner to limited; alter table c owner to limited";
    pair.target(limited).await;
    pair.source(
        "insert into t select i, i from generate_series(1, 1000) i; insert into c select i, i, i from generate_series(1, 100) i",
    )
    .await;
    let url = pair.cluster.url("warehouse").replace(&format!("owner:{}@", PASSWORD.replace(' ', "%20")), "limited:limited@");
    let by_owner = work(&pair, &["t", "c"]);
    let by_limited = Incremental { target: Database::parse(&url).unwrap(), ..by_owner.clone() };
    run(&by_limited).await.summary();
    // Sessions tell what they did when they end.
    let scans = async || number(&pair.target, "select seq_scan from pg_stat_user_tables where relname = 'c'").await;
    let told = "select count(*) from pg_stat_activity where application_name like 'bullwork: %'";
    for (by, is_allowed, gone) in
        [(&by_limited, false, "id = 1 or id between 101 and 300"), (&by_owner, true, "id = 2 or id between 301 and 500")]
    {
        let before = scans().await;
        // One of them something refers to, on the target, until that goes too.
        pair.source(&format!("delete from c where {gone}; delete from t where {gone}")).await;
        let ran = run(by).await;
        assert_eq!(done(&ran), (0, 0, 202), "{:?}", ran.messages());
        pair.assert_equal(&["t", "c"]).await;
        eventually("the sessions ended", Duration::from_secs(20), async || number(&pair.source, told).await == 0).await;
        let scanned = scans().await - before;
        assert_eq!(scanned < 50, is_allowed, "{scanned} scans for 201 rows");
    }
    let role: String = pair.target.query_one("show session_replication_role", &[]).await.unwrap().get(0);
    assert_eq!(role, "origin");
}

#[tokio::test]
async fn triggers_of_a_table_that_is_referred_to_see_each_deletion() {
    let pair = Pair::new("create table t (id int primary key)").await;
    let trigger = "create table c (t int references t); create table noted (id int);
        create function note() returns trigger language plpgsql as $$ begin insert into noted values (old.id); return old; end $$;
        create trigger note after delete on t for each row execute function note()";
    pair.target(trigger).await;
    pair.source("insert into t select generate_series(1, 50)").await;
    sync(&pair, &["t"]).await.summary();
    pair.source("delete from t where id <= 7").await;
    assert_eq!(done(&sync(&pair, &["t"]).await), (0, 0, 7));
    assert_eq!(number(&pair.target, "select count(*) from noted").await, 7);
}

#[tokio::test]
async fn one_session_with_the_source_is_enough() {
    let source = Cluster::start();
    let production = source.create("production").await;
    let tables = "create table t (id int primary key, v int); create table u (id text primary key)";
    let mut pair = Pair::new(tables).await;
    production.batch_execute(tables).await.unwrap();
    pair.source = production;
    let rows =
        "insert into t select i, i from generate_series(1, 100) i; insert into u select 'u' || i from generate_series(1, 100) i";
    pair.source(rows).await;
    let database = Database::parse(&source.url("production")).unwrap();
    let (few, many) = (Kindness { connections: Some(1), ..Kindness::default() }, Kindness::default());
    for (day, (kindness, sessions)) in [(few.clone(), 1), (many, 2), (few, 1)].into_iter().enumerate() {
        pair.source(&format!(
            "delete from t where id = 1 + {day}; update t set v = 0 where id = 90 + {day}; delete from u where id = 'u{day}1'"
        ))
        .await;
        // Seen while the run waits for the target: these hold a snapshot of the source.
        let holder = pair.cluster.client("warehouse").await;
        holder.batch_execute("begin; lock table u in share mode").await.unwrap();
        let work = Incremental { source: database.clone(), kindness, ..work(&pair, &["t", "u"]) };
        let waits =
            "select count(*) from pg_stat_activity where application_name like 'bullwork: %' and wait_event_type = 'Lock'";
        let reading = "select count(*) from pg_stat_activity where application_name like 'bullwork: incremental%' and xact_start is not null";
        let (ran, ()) = tokio::join!(run(&work), async {
            eventually("the run waits", Duration::from_secs(20), async || number(&pair.target, waits).await == 1).await;
            assert_eq!(number(&pair.source, reading).await, sessions);
            holder.batch_execute("commit").await.unwrap();
        });
        ran.summary();
        pair.assert_equal(&["t", "u"]).await;
    }
}
