//! Fast mode: template databases, switched by renaming in a cluster that runs.

use std::process::Stdio;
use std::time::Duration;

use super::Machine;
use crate::support::eventually;
use crate::support::s3::S3;

async fn databases(machine: &Machine) -> Vec<String> {
    let sql = "select datname::text from pg_database where datname !~ '^(template[01]|postgres)$' order by 1";
    machine.client("postgres").await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn presets_are_switched_by_renaming_while_the_cluster_runs() {
    let s3 = S3::start().await;
    let anna = Machine::sharing(&s3, None).await;
    anna.fill(&["one"]).await;
    for sql in [
        "create database extra",
        "alter database shop set work_mem to '5MB'",
        "revoke connect on database shop from public",
        "grant connect on database shop to seller",
    ] {
        anna.client("postgres").await.batch_execute(sql).await.unwrap();
    }
    anna.good(&["push-new", "name=one", "desc=x"]);
    anna.client("postgres").await.batch_execute("drop database extra").await.unwrap();
    anna.fill(&["two"]).await;
    anna.client("postgres").await.batch_execute("create role second; grant second to seller").await.unwrap();
    anna.good(&["push-new", "name=two", "desc=x"]);

    let mut boris = Machine::sharing(&s3, Some(&anna)).await;
    boris.set("DBP_MODE", "fast");
    boris.good(&["get"]);
    assert!(!boris.runs() && std::fs::read_dir(boris.path("ready/shop/main")).unwrap().count() == 0);
    boris.good(&["select", "one"]);
    let started = std::fs::read_to_string(boris.path("data/postmaster.pid")).unwrap();
    assert_eq!(boris.rows().await, ["one", "migrated"]);
    let names = databases(&boris).await;
    assert!(
        names.contains(&"extra".to_owned()) && names.iter().filter(|name| name.starts_with("bullwork_preset_")).count() == 3,
        "{names:?}"
    );
    // Owner, rights and settings are the preset's.
    let sql = "select d.datdba::regrole::text, d.datacl::text, s.setconfig::text from pg_database d
        join pg_db_role_setting s on s.setdatabase = d.oid where datname = 'shop'";
    let row = boris.client("postgres").await.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, String>(0).as_str(), row.get::<_, String>(2).as_str()), ("seller", "{work_mem=5MB}"));
    assert!(
        !row.get::<_, String>(1).contains("{=") && row.get::<_, String>(1).contains("seller="),
        "{}",
        row.get::<_, String>(1)
    );
    // Somebody is connected, and comes back.
    let _session = boris.client("shop").await;
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated"]);
    let names = databases(&boris).await;
    assert!(names.iter().filter(|name| !name.starts_with("bullwork_")).eq(["shop"]), "what was there is gone: {names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("bullwork_next_")).count(), 3, "a copy of each is ready: {names:?}");
    assert_eq!(std::fs::read_to_string(boris.path("data/postmaster.pid")).unwrap(), started, "the server was not restarted");

    // A push leaves the templates out, and the next pull takes the old ones away.
    boris.client("shop").await.batch_execute("insert into t values ('of Boris')").await.unwrap();
    boris.good(&["push-ex", "name=two", "desc=x"]);
    anna.good(&["get"]);
    anna.good(&["select", "two"]);
    assert_eq!(anna.rows().await, ["two", "migrated", "of Boris", "migrated"]);
    assert_eq!(databases(&anna).await, ["shop"]);
    boris.good(&["get"]);
    boris.good(&["select", "two"]);
    assert_eq!(boris.rows().await, ["two", "migrated", "of Boris", "migrated"]);
    assert_eq!(databases(&boris).await.iter().filter(|name| name.starts_with("bullwork_preset_")).count(), 3);
    boris.good(&["select", "one"]);
    assert_eq!(boris.rows().await, ["one", "migrated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_killed_fast_select_leaves_the_old_databases_or_the_new_ones() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.set("DBP_MODE", "fast");
    for name in ["one", "two"] {
        anna.fill(&[name]).await;
        anna.good(&["push-new", &format!("name={name}"), "desc=x"]);
    }
    anna.good(&["get"]);
    anna.good(&["select", "one"]);
    let home = anna.path("").display().to_string();
    let (mut from, mut to) = ("one", "two");
    for (phase, new) in [("DBP_APP_STOP", false), ("DBP_APP_START", true)] {
        let line = anna.setting(phase);
        anna.set(phase, &format!("touch {home}/at-{phase}; for n in $(seq 600); do [ -e {home}/go-{phase} ] && break; [ -d {home} ] || exit 1; sleep 0.05; done"));
        let mut child = anna.command(&["select", to]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let at = anna.path(&format!("at-{phase}"));
        eventually(phase, Duration::from_secs(60), async || at.exists()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::write(anna.path(&format!("go-{phase}")), "").unwrap();
        anna.set(phase, &line);
        assert_eq!(anna.rows().await, [if new { to } else { from }, "migrated"], "killed at {phase}");
        anna.good(&["select", to]);
        assert_eq!(anna.rows().await, [to, "migrated"], "again after {phase}");
        let names = databases(&anna).await;
        assert!(!names.iter().any(|name| name.starts_with("bullwork_old") || name.starts_with("bullwork_part")), "{names:?}");
        assert_eq!(names.iter().filter(|name| name.starts_with("bullwork_next")).count(), 2, "a copy of each is ready");
        (from, to) = (to, from);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_copy_that_the_server_still_makes_for_a_killed_command_is_ended_or_waited_for() {
    let s3 = S3::start().await;
    let mut anna = Machine::sharing(&s3, None).await;
    anna.set("DBP_MODE", "fast");
    anna.fill(&["one"]).await;
    anna.good(&["push-new", "name=one", "desc=x"]);
    anna.good(&["get"]);
    anna.good(&["select", "one"]);
    // A session that shows itself as ours, and one that does not.
    for name in ["bullwork: presets", "somebody"] {
        let watching = anna.client("postgres").await;
        let template = databases(&anna).await.into_iter().find(|name| name.starts_with("bullwork_preset_")).unwrap();
        let (next, part) = (template.replacen("preset", "next", 1), template.replacen("preset", "part", 1));
        watching.batch_execute(&format!("drop database {next}")).await.unwrap();
        // Both have looked for the name before either takes it.
        let holder = anna.client("postgres").await;
        holder.batch_execute("begin; lock table pg_database in share mode").await.unwrap();
        let killed = anna.client("postgres").await;
        killed.batch_execute(&format!("set application_name = '{name}'")).await.unwrap();
        let sql = format!("create database \"{part}\" template \"{template}\"");
        let left = tokio::spawn(async move { killed.batch_execute(&sql).await });
        let waits = async |beginning: &str| {
            let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and starts_with(query, $1)";
            watching.query_one(sql, &[&beginning]).await.unwrap().get::<_, i64>(0) == 1
        };
        eventually("the copy begins", Duration::from_secs(60), async || waits("create database").await).await;
        let log = std::fs::File::create(anna.path("select.log")).unwrap();
        let mut child = anna.command(&["select", "one", "clean"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("the next one waits", Duration::from_secs(60), async || waits("drop database").await).await;
        holder.batch_execute("commit").await.unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "{name}: {}", std::fs::read_to_string(anna.path("select.log")).unwrap());
        let _ = left.await.unwrap();
        assert_eq!(anna.rows().await, ["one", "migrated"], "{name}");
    }
}
