//! From one machine to another, and back.

use hyper::Method;

use super::{Machine, files, whole};
use crate::support::s3::{Action, BUCKET, S3};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_preset_goes_from_one_machine_to_another_and_back() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    let boris = Machine::sharing(&s3, Some(&anna)).await;
    assert!(boris.bad(&["get"]).contains("there are no presets in shop/main"));

    anna.fill(&["первый", "it's \\ one"]).await;
    anna.good(&["push-new", "name=base", "desc=Первая версия", "who=Анна"]);
    assert_eq!(anna.good(&["what-selected"]), "base (revision 1 of shop/main)");
    anna.client("postgres").await.batch_execute("create database extra").await.unwrap();
    anna.good(&["add", "name=other", "desc=with another database", "who=Анна"]);
    let stored = files(&s3.objects().join("shop/main/base"));
    assert_eq!(stored.len(), 3, "{stored:?}");
    assert!(stored[0] == "current.json" && stored[1] == "log.txt" && stored[2].starts_with("rev-1-"), "{stored:?}");
    let dumped = whole(&anna);

    // The order of the steps, and the end state.
    boris.steps();
    for sql in ["create role stranger", "create database strange owner stranger"] {
        boris.client("postgres").await.batch_execute(sql).await.unwrap();
    }
    boris.good(&["pull-and-update-local"]);
    assert_eq!(boris.steps(), ["app-stop", "migrate base", "migrate other", "pg-stop"]);
    assert!(!boris.runs(), "PostgreSQL is stopped in the end");
    assert_eq!(boris.good(&["ls", "where=local", "short"]), "base\nother");
    assert!(files(&boris.path("presets/shop/main/files")).is_empty(), "no sealed file stays");
    let refused = boris.db_p(&["what-selected"]);
    assert_eq!(refused.status.code(), Some(1));

    boris.good(&["select", "base"]);
    assert_eq!(boris.steps(), ["app-stop", "pg-start", "app-start"]);
    assert_eq!(boris.rows().await, ["первый", "it's \\ one", "migrated"]);
    let databases = boris.client("postgres").await.query("select datname::text from pg_database order by 1", &[]).await.unwrap();
    let databases: Vec<String> = databases.iter().map(|row| row.get(0)).collect();
    assert_eq!(databases, ["postgres", "shop", "template0", "template1"], "neither what was there nor the other preset's");
    // Selected again: it runs, and keeps what was changed, unless a clean one is asked for.
    boris.client("shop").await.batch_execute("insert into t values ('mine')").await.unwrap();
    assert!(boris.good(&["select", "base"]).contains("selected already"));
    assert_eq!(boris.rows().await.last().unwrap(), "mine");
    boris.good(&["select", "name=base", "clean"]);
    assert_eq!(boris.rows().await.last().unwrap(), "migrated");
    boris.good(&["select", "other"]);
    boris.client("extra").await.batch_execute("select 1").await.unwrap();
    // Everything is what was pushed, but for what the migration added.
    boris.client("shop").await.batch_execute("delete from t where x = 'migrated'").await.unwrap();
    assert_eq!(whole(&boris), dumped);

    // The next revision; who did not see it must not push over it.
    boris.good(&["select", "base"]);
    boris.client("shop").await.batch_execute("insert into t values ('второй')").await.unwrap();
    boris.good(&["update", "who=Борис", "name=base", "desc=вторая версия"]);
    let stale = anna.bad(&["push-ex", "name=base", "desc=x"]);
    assert!(stale.contains("descends from revision 1") && stale.contains("Борис pushed revision 2"), "{stale}");
    let log = std::fs::read_to_string(s3.objects().join("shop/main/base/log.txt")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].ends_with("Z Борис: вторая версия") && lines[1].ends_with("Z Анна: Первая версия"),
        "{log}"
    );

    // Only what changed is fetched, and only what is included.
    anna.good(&["get", "exclude=base,other"]);
    anna.start();
    anna.good(&["get"]);
    let before = s3.count("rev-");
    anna.good(&["get"]);
    assert_eq!(s3.count("rev-"), before, "nothing is fetched that is here");
    boris.good(&["get"]);
    boris.good(&["select", "base"]);
    boris.client("shop").await.batch_execute("insert into t values ('third')").await.unwrap();
    boris.good(&["push-ex", "name=base", "desc=third"]);
    s3.order(Method::GET, "other/rev-", 100, Action::Answer(403, "AccessDenied"));
    anna.good(&["get"]);
    anna.good(&["select", "base"]);
    assert_eq!(anna.rows().await, ["первый", "it's \\ one", "migrated", "второй", "migrated", "third", "migrated"]);
    let listed = anna.good(&["ls", "where=s3"]);
    assert!(listed.contains("base\trevision 3") && listed.contains("with another database"), "{listed}");
    assert!(anna.bad(&["get", "include=none,base"]).contains("no preset `none`"));
    assert!(s3.heard().iter().all(|heard| heard.line.contains(BUCKET)));
}
