//! The state store: the same on a SQLite file and on PostgreSQL.

use bullwork::postgres::Database;
use bullwork::state::{Migration, State, Statement, Value};

use crate::support::postgres::Cluster;

static FIRST: &[Migration] = &[Migration {
    name: "first",
    statements: &[
        "create table thing (id text primary key, size bigint not null, word text)",
        "insert into thing values ('old', 1, 'made by the migration')",
    ],
}];
static BOTH: &[Migration] = &[FIRST[0], Migration { name: "second", statements: &["alter table thing add column colour text"] }];
static BROKEN: &[Migration] =
    &[Migration { name: "broken", statements: &["create table half (id text)", "create table half (id text)"] }];

/// Everything that users rely on; `again` is the same store, opened by somebody else.
async fn behaves(state: &State, again: &State) {
    // Several at once, as when listener and worker start together.
    let (one, two) = tokio::join!(state.migrate(FIRST), again.migrate(FIRST));
    one.unwrap();
    two.unwrap();
    state.migrate(BOTH).await.unwrap();
    again.migrate(BOTH).await.unwrap();
    assert_eq!(state.query("select id from thing", []).await.unwrap().len(), 1, "a migration ran twice");

    let new = "insert into thing (id, size, word) values ($1, $2, $3)";
    let odd = "it's \"odd\" \u{1f980}\n$1 ?1";
    assert_eq!(state.execute(new, ["a".into(), 7_i64.into(), odd.into()]).await.unwrap(), 1);
    assert_eq!(state.execute(new, ["b".into(), i64::MIN.into(), Value::Null]).await.unwrap(), 1);
    let rows = again.query("select id, size, word from thing where size <> $1 order by id", [1_i64.into()]).await.unwrap();
    assert_eq!((rows[0].text(0), rows[0].integer(1), rows[0].optional(2)), ("a".to_owned(), 7, Some(odd.to_owned())));
    assert_eq!((rows[1].integer(1), rows[1].optional(2)), (i64::MIN, None));

    // A compare-and-set has one winner.
    let set = "update thing set size = $1 where id = $2 and size = $3";
    let take =
        |state: State, value: i64| async move { state.execute(set, [value.into(), "a".into(), 7_i64.into()]).await.unwrap() };
    let all =
        futures_util::future::join_all((0..10).map(|n| take(if n % 2 == 0 { state.clone() } else { again.clone() }, 100 + n)));
    assert_eq!(all.await.into_iter().sum::<u64>(), 1);

    // All or nothing.
    let add = |id: &str| Statement::new("insert into thing (id, size) values ($1, 0)", [id.into()]);
    let miss = || Statement::new("update thing set size = 0 where id = $1", ["none".into()]);
    assert!(!state.all_or_nothing(vec![add("c"), miss()]).await.unwrap());
    assert!(state.all_or_nothing(vec![add("d"), add("e")]).await.unwrap());
    assert!(state.all_or_nothing(vec![add("f"), add("a")]).await.is_err());
    let rows = state.query("select id from thing order by id", []).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.text(0)).collect::<Vec<_>>(), ["a", "b", "d", "e", "old"]);

    // A migration that fails leaves nothing, and the store is of use after it.
    let error = format!("{:#}", anyhow::Error::from(state.migrate(BROKEN).await.unwrap_err()));
    assert!(error.contains("preparing the state (`broken`)"), "{error}");
    assert!(state.query("select id from half", []).await.is_err());
    assert!(state.execute("nonsense", []).await.is_err());
    assert_eq!(state.query("select id from thing where id = $1", ["a".into()]).await.unwrap().len(), 1);

    // One holder of a lock, which dies with it.
    let held = state.lock("one").await.unwrap().expect("nobody holds it");
    assert!(again.lock("one").await.unwrap().is_none() && state.lock("one").await.unwrap().is_none());
    assert!(again.lock("other").await.unwrap().is_some());
    assert!(!held.lost().is_cancelled());
    drop(held);
    crate::support::eventually("the lock is free", std::time::Duration::from_secs(10), async || {
        again.lock("one").await.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn state_in_a_file_behaves_and_survives_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("made/when/needed/state.db");
    let open = || State::in_file(&file);
    assert!(!file.parent().unwrap().exists());
    behaves(&open(), &open()).await;
    assert_eq!(open().query("select id from thing where id = 'a'", []).await.unwrap().len(), 1);
    let error = State::in_file(std::path::Path::new("/proc/no/such")).query("select 1", []).await.unwrap_err().to_string();
    assert!(error.contains("the state file /proc/no/such"), "{error}");
}

#[tokio::test]
async fn state_in_postgresql_behaves_and_survives_a_broken_session() {
    let cluster = Cluster::start();
    cluster.create("state").await;
    let open = || State::in_database(Database::parse(&cluster.url("state")).unwrap());
    let state = open();
    behaves(&state, &open()).await;
    // Its server ends every session; the lock tells, and the next statement but one finds a new one.
    let held = state.lock("one").await.unwrap().expect("nobody holds it");
    let admin = cluster.client("postgres").await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'state'";
    admin.query(end, &[]).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(10), held.lost().cancelled())
        .await
        .expect("the lock tells that it is lost");
    crate::support::eventually("a new session", std::time::Duration::from_secs(10), async || {
        state.query("select id from thing", []).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn many_who_open_a_new_file_at_once_all_get_it() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.db");
        let opening: Vec<_> = (0..8)
            .map(|_| {
                let state = State::in_file(&file);
                tokio::spawn(async move { state.query("select 1", []).await.map(|rows| rows.len()) })
            })
            .collect();
        for opened in opening {
            assert_eq!(opened.await.unwrap().unwrap(), 1);
        }
    }
}
