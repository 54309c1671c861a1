//! Definitions of every major, written to servers of the same and of later majors: there they read like what pg_dump
//! and psql make of the source.

mod as_of;
mod since;

use std::path::Path;

use bullwork::postgres::Database;
use bullwork::replication::ddl::{Catalogue, Options, SESSION};

use super::kinds::{EVERYTHING, TANGLED};
use super::{dump, entries, file};
use crate::support::postgres::{Cluster, MAJORS, has_majors, newest_pg_dump};
use as_of::as_of;
use since::SINCE;

/// What there is to copy of a major: every kind by itself, kinds that need each other, what came with it and before.
fn databases(major: u32) -> Vec<(&'static str, String)> {
    // Each in schemas of its own, so that one dump tells of all. Extensions stand alone; grants change what follows.
    let mut kinds = super::kinds::all();
    kinds.retain(|(name, _)| *name != "members_of_extensions_are_left_to_them");
    kinds.sort_by_key(|(name, _)| *name == "grants_are_copied");
    let mut of_kinds = String::new();
    for (at, (_, sql)) in kinds.iter().enumerate() {
        of_kinds.push_str(&format!("create schema k{at}; set search_path = k{at};\n{sql};\n"));
        of_kinds.push_str(&format!("select 'alter schema s rename to k{at}_s' from pg_namespace where nspname = 's' \\gexec\n"));
    }
    let mut new = "create extension btree_gist;\n".to_owned();
    for (number, sql) in SINCE.iter().filter(|(since, _)| *since <= major) {
        new.push_str(&format!("create schema since_{number}; set search_path = since_{number}, public;\n{sql};\n"));
    }
    let together = format!("{EVERYTHING}{TANGLED}set search_path = public; {}", file("data/source/schema.sql"));
    let extensions = kinds_sql("members_of_extensions_are_left_to_them");
    vec![("kinds", of_kinds), ("together", together), ("extensions", extensions), ("new", new)]
        .into_iter()
        .map(|(name, sql)| (name, as_of(major, &sql)))
        .collect()
}

fn kinds_sql(wanted: &str) -> String {
    super::kinds::all().into_iter().find(|(name, _)| *name == wanted).map(|(_, sql)| sql).expect("there is such a kind")
}

/// Roles belong to the whole cluster, and a fixture may come twice.
const ROLES: &str = "do $$ declare r text; begin foreach r in array array['reader', 'writer', 'odd Role', 'Odd \"role', 'all_reader'] loop \
                     if not exists (select from pg_roles where rolname = r) then execute format('create role %I', r); end if; end loop; end $$";

fn without_roles(sql: &str) -> String {
    sql.split_inclusive(';').filter(|part| !part.trim_start().starts_with("create role ")).collect()
}

async fn start(major: u32) -> Cluster {
    let cluster = Cluster::start_major(major);
    cluster.client("postgres").await.batch_execute(ROLES).await.unwrap();
    cluster
}

fn load(cluster: &Cluster, database: &str, sql: &str) {
    let file = tempfile::Builder::new().suffix(".sql").tempfile().unwrap();
    std::fs::write(file.path(), sql).unwrap();
    cluster.load(database, file.path());
}

async fn read(cluster: &Cluster, database: &str, options: &Options) -> Catalogue {
    let session = Database::parse(&cluster.url(database)).unwrap().connect("test").await.unwrap();
    session.batch_execute("begin isolation level repeatable read read only").await.unwrap();
    Catalogue::read(&session, options).await.unwrap_or_else(|e| panic!("{database}: {e}"))
}

/// What `to` says of statements that it does not take.
async fn run(to: &Cluster, database: &str, catalogue: &Catalogue) -> Vec<String> {
    to.create(database).await;
    let session = to.client(database).await;
    session.batch_execute(SESSION).await.unwrap();
    let mut refused = Vec::new();
    for statement in catalogue.statements() {
        if let Err(error) = session.batch_execute(&statement.sql).await {
            refused.push(format!(
                "{} {}: {}\n{}",
                statement.kind,
                statement.told(),
                bullwork::postgres::explain(&error),
                statement.sql
            ));
        }
    }
    refused
}

/// A dump's text without what tells of the servers.
fn told(from: u32, cluster: &Cluster, database: &str, more: &[&str]) -> String {
    let program = newest_pg_dump();
    let text = dump(Path::new(&program), cluster, database, more);
    // pg_dump has the sequence of an unlogged table logged, in words that servers of before 15 do not know.
    let is_logged =
        |line: &str| from < 15 && (line == "    LOGGED" || line.starts_with("ALTER SEQUENCE ") && line.ends_with(" SET LOGGED;"));
    let of_servers =
        |line: &str| line.starts_with("-- Dumped ") || line.starts_with("SET transaction_timeout") || is_logged(line);
    text.lines().filter(|line| !of_servers(line)).collect::<Vec<_>>().join("\n")
}

/// Where the copy does not read like the source, nor like what psql makes on the target of the source's dump. That may
/// be less than the dump tells: pg_dump finds no way out of some circles.
fn odd(wanted: &str, restored: &str, found: &str) -> Vec<String> {
    let (theirs, again, ours) = (entries(wanted), entries(restored), entries(found));
    let head = |entry: &str| entry.lines().next().unwrap_or_default().to_owned();
    let heads: Vec<String> = ours.iter().map(|e| head(e)).collect();
    // Made by itself and tied to its parents, so that its columns keep their order, a table's NOT NULL is its own as well.
    let is_tied = |entry: &str| head(entry).contains("Name: tied; Type: TABLE");
    let other = ours.iter().filter(|e| !theirs.contains(e) && !again.contains(e) && !is_tied(e)).map(|e| {
        let of_source = theirs.iter().find(|t| head(t) == head(e)).unwrap_or(&"nothing");
        format!("the source has\n{of_source}\nand the copy\n{e}")
    });
    // Servers differ in how they tell some names, and have no need of some entries.
    let there: Vec<String> = again.iter().map(|e| head(e)).collect();
    let missing = theirs.iter().filter(|t| !heads.contains(&head(t)) && there.contains(&head(t)));
    other.chain(missing.map(|t| format!("the copy lacks\n{t}"))).collect()
}

/// Copies every database of `from` to a server of each major of `to`.
async fn assert_reaches(from: u32, to: impl IntoIterator<Item = u32>) {
    let to: Vec<u32> = to.into_iter().collect();
    if !has_majors(to.iter().copied().chain([from])) {
        return;
    }
    let source = start(from).await;
    let databases = databases(from);
    for (name, sql) in &databases {
        source.create(name).await;
        load(&source, name, &without_roles(sql));
    }
    let mut faults = Vec::new();
    for major in to {
        let other = if major == from { None } else { Some(start(major).await) };
        let target = other.as_ref().unwrap_or(&source);
        // What an owner may do by default, and with the schema `public`, differs between majors.
        let (privileges, more): (bool, &[&str]) = if other.is_none() { (true, &[]) } else { (false, &["--no-privileges"]) };
        for (name, _) in &databases {
            let place = format!("{from} to {major}, {name}");
            let (copy, again) = (format!("copy of {name}"), format!("{name} restored"));
            let version = i32::try_from(major).unwrap() * 10_000;
            let options = Options { superuser: true, privileges, target: Some(version), ..Options::default() };
            let catalogue = read(&source, name, &options).await;
            let refused: Vec<&str> = catalogue.refusals().iter().map(|r| r.name.as_str()).collect();
            let without: &[&str] = if *name == "new" { not_copied(from) } else { &[] };
            assert_eq!(refused, without, "{place}");
            faults.extend(run(target, &copy, &catalogue).await.into_iter().map(|fault| format!("{place}: refused: {fault}")));
            let wanted = told(from, &source, name, more);
            let found = told(from, target, &copy, more);
            if major == from && odd(&wanted_of(&wanted, without), &wanted, &found).is_empty() {
                continue;
            }
            target.create(&again).await;
            load(target, &again, &format!("\\set ON_ERROR_STOP off\n{wanted}"));
            let odd = odd(&wanted_of(&wanted, without), &told(from, target, &again, more), &found);
            faults.extend(odd.into_iter().map(|fault| format!("{place}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n\n"));
}

/// Keys of partitioned tables that no server makes whole of parts.
fn not_copied(major: u32) -> &'static [&'static str] {
    match major {
        17 => &["px px_a_excl"],
        18 => &["px px_a_excl", "pt pt_pkey"],
        _ => &[],
    }
}

/// A dump without those, and without their being attached.
fn wanted_of(dump: &str, without: &[&str]) -> String {
    let parts = without.iter().filter_map(|key| key.split_once(' '));
    let is_left_out = |entry: &str| {
        parts.clone().any(|(table, key)| {
            entry.contains(&format!("Name: {table} {key}; Type: CONSTRAINT"))
                || (entry.contains("INDEX ATTACH") && entry.contains(&format!(".{key} ATTACH")))
        })
    };
    dump.split("\n\n--\n").filter(|entry| !is_left_out(entry)).collect::<Vec<_>>().join("\n\n--\n")
}

/// The same major; of two the last one too; in the long tests all later ones.
fn reached(from: u32) -> Vec<u32> {
    let all = std::env::var_os("BULLWORK_CHAOS").is_some();
    MAJORS.filter(|to| *to == from || *to > from && (all || *to == 18 && [12, 15].contains(&from))).collect()
}

macro_rules! majors {
    ($($name:ident $major:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            assert_reaches($major, reached($major)).await;
        }
    )*};
}

majors! {
    definitions_of_12_are_copied 12;
    definitions_of_13_are_copied 13;
    definitions_of_14_are_copied 14;
    definitions_of_15_are_copied 15;
    definitions_of_16_are_copied 16;
    definitions_of_17_are_copied 17;
    definitions_of_18_are_copied 18;
}

/// What servers of 13 take and later ones do not, in that form or at all.
const GONE: &str = r#"
    create table base (a int not null, b int not null); create table heir () inherits (base); create table below () inherits (heir);
    alter table only heir alter a drop not null;
    create table p (id int, v int) partition by range (id); create table p1 (id int generated always as identity, v int);
    alter table p attach partition p1 for values from (0) to (10);
    create unlogged table u (a int) partition by list (a); create unlogged table u1 partition of u for values in (1);
    create function same(int) returns int language sql immutable as 'select $1'; create operator !!! (function = same, leftarg = int);
    create view behind as select (4 !!!) as x; create view above as select x from behind;
    create aggregate array_accum(anyelement) (sfunc = array_append, stype = anyarray, initcond = '{}');
    create view accumulated as select array_accum(a) as a from base;
    create aggregate kept(int) (sfunc = int4pl, stype = int);
"#;

#[tokio::test]
async fn what_later_majors_do_not_take_is_told_and_the_rest_is_made() {
    if !has_majors([13, 18]) {
        return;
    }
    let (source, target) = (start(13).await, start(18).await);
    source.create("source").await;
    load(&source, "source", GONE);
    let same = read(&source, "source", &Options::default()).await;
    assert_eq!(same.refusals(), [], "servers of 13 take all of it");
    assert_eq!(run(&source, "copy", &same).await, Vec::<String>::new());
    let later = read(&source, "source", &Options { target: Some(180_000), ..Options::default() }).await;
    let refused: Vec<String> = later.refusals().iter().map(|r| format!("{} {}: {:?}", r.kind, r.name, r.cause)).collect();
    let wanted = [
        "aggregate array_accum(anyelement): Server",
        "operator !!!(integer, none): Server",
        "sequence p1_id_seq: Property",
        "view above: Needs",
        "view accumulated: Needs",
        "view behind: Needs",
    ];
    assert_eq!(refused, wanted.map(str::to_owned));
    assert_eq!(run(&target, "copy", &later).await, Vec::<String>::new());
    let client = target.client("copy").await;
    client.batch_execute("insert into heir values (null, 1); insert into p1 values (5, 1); select kept(1)").await.unwrap();
    for refused in [
        "heir values (1, null)",
        "base values (null, 1)",
        "base values (1, null)",
        "below values (null, 1)",
        "below values (1, null)",
    ] {
        assert!(client.batch_execute(&format!("insert into {refused}")).await.is_err(), "{refused}");
    }
}
