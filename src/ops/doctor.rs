//! Checks with a fix for each: configuration, Redis, both databases, client tools, stores and what they hold, presets.
//!
//! Every check has its line whatever the others come to: one that cannot be made says why, so that
//! two runs can be compared line by line. The servers are asked at the same time, because a mute one
//! is waited for 20 s.

mod archives;
mod databases;
mod presets;
mod services;
mod stores;

use std::fmt;

use super::check;
use super::store::Store;
use crate::config::{Environment, REDIS_URL, Reader};
use crate::jobs;
use crate::jobs::schema_export::DB_SCHEMA_EXPORTER_ENABLED;
use crate::postgres::client_programs::{PG_BIN, PgDump};

/// What is seen on a machine that only does something else.
const NOT_REPLICATING: &str = "not set up: neither SOURCE_DATABASE_URL nor TARGET_DATABASE_URL is set, and something else is";

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, with a drawback.
    Warning,
    /// Does not work.
    Bad,
    /// Could not be looked at, because of what another check tells.
    Skipped,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::Good => "ok",
            Grade::Warning => "warning",
            Grade::Bad => "failed",
            Grade::Skipped => "skipped",
        })
    }
}

/// One check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it came out.
    pub grade: Grade,
    /// What was seen.
    pub seen: String,
    /// What to do; empty when good.
    pub fix: String,
}

impl Finding {
    fn good(check: &'static str, seen: impl Into<String>) -> Self {
        Finding { check, grade: Grade::Good, seen: seen.into(), fix: String::new() }
    }

    fn warning(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { check, grade: Grade::Warning, seen: seen.into(), fix: fix.into() }
    }

    fn bad(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { check, grade: Grade::Bad, seen: seen.into(), fix: fix.into() }
    }

    fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Finding { check, grade: Grade::Skipped, seen: why.into(), fix: String::new() }
    }
}

/// Looks at everything that the configured kinds need. Changes nothing, except that an object is written to each store for
/// archives and removed again.
pub async fn examine(environment: &Environment) -> Vec<Finding> {
    // A reader of its own, whose problems the first finding has told.
    let reader = Reader::new(environment);
    let store = Store::from_settings(&reader);
    let replicates = jobs::replicates(&reader);
    let databases = async {
        match replicates {
            true => databases::examine(environment).await,
            false => (vec![Finding::good("replication", NOT_REPLICATING)], None),
        }
    };
    let (redis, (databases, target_major), archives, stores, services, presets) = tokio::join!(
        redis(store.as_ref()),
        databases,
        archives::examine(&reader),
        stores::examine(&reader),
        services::examine(&reader),
        presets::examine(&reader)
    );
    let mut findings = vec![configuration(environment)];
    findings.extend(open_file(environment));
    let unknown = check::unknown(environment);
    if !unknown.is_empty() {
        findings.push(Finding::warning("setting names", unknown.join("; "), "`bullwork config sample` lists all that there are"));
    }
    // Verbs for archives work without it.
    let by_hand = !replicates && environment.get(REDIS_URL.name).is_none();
    findings.extend(redis.into_iter().map(|finding| match finding.grade {
        Grade::Bad if by_hand => Finding {
            grade: Grade::Warning,
            fix: format!("{}; schedules and `--queue` need it, verbs such as `backup now` do not", finding.fix),
            ..finding
        },
        _ => finding,
    }));
    findings.extend(databases);
    if replicates {
        findings.push(client_tools(&reader, target_major).await);
    }
    findings.extend(archives);
    findings.extend(stores);
    findings.extend(services);
    findings.extend(presets);
    findings
}

fn configuration(environment: &Environment) -> Finding {
    let problems = check::problems(environment);
    if problems.is_empty() {
        return Finding::good("configuration", "every setting can be read");
    }
    let told: Vec<String> = problems.into_iter().map(|problem| format!("{}: {}", problem.setting, problem.message)).collect();
    Finding::bad(
        "configuration",
        told.join("; "),
        "set them in the environment or in .env; `bullwork config sample` tells what each takes",
    )
}

/// A `.env` with secrets that others on this machine can read.
fn open_file(environment: &Environment) -> Option<Finding> {
    let mode = environment.file_mode()?;
    if mode & 0o077 == 0 {
        return None;
    }
    let told = format!("others on this machine may open .env (mode {:o}), which may hold passwords", mode & 0o777);
    Some(Finding::warning("settings file", told, "chmod 600 .env"))
}

async fn redis(store: Option<&Store>) -> Vec<Finding> {
    const EVICTION: &str = "Redis eviction";
    let unreachable = |finding: Finding| vec![finding, Finding::skipped(EVICTION, "Redis cannot be asked")];
    let Some(store) = store else {
        return unreachable(Finding::bad("Redis", "REDIS_URL cannot be used", "correct REDIS_URL"));
    };
    let mut connection = match store.redis().connection().await {
        Ok(connection) => connection,
        Err(error) => {
            let fix = "start Redis, or correct address, user and password in REDIS_URL";
            return unreachable(Finding::bad("Redis", super::store::told(&error), fix));
        }
    };
    let info: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
    let info = match info {
        Ok(info) => info,
        Err(error) => {
            let seen = crate::redact::scrub(&error.to_string());
            return unreachable(Finding::bad("Redis", seen, "check user, password and rights in REDIS_URL"));
        }
    };
    let value = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    let version = value("redis_version");
    let mut findings = vec![Finding::good("Redis", format!("version {version} at {}", store.shown()))];
    let major: u32 = version.split('.').next().and_then(|m| m.parse().ok()).unwrap_or(0);
    if major < 6 {
        findings.push(Finding::warning("Redis version", version, "use Redis 6 or later; 7 is what Bullwork is tested on"));
    }
    findings.push(match value("maxmemory_policy").as_str() {
        "noeviction" => Finding::good(EVICTION, "maxmemory-policy is noeviction"),
        other => Finding::bad(
            EVICTION,
            format!("maxmemory-policy is {other}: Redis may throw jobs away when memory is short"),
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        ),
    });
    if value("aof_enabled") == "0" && value("rdb_last_save_time") == "?" {
        findings.push(Finding::warning("Redis persistence", "neither AOF nor RDB is on", "CONFIG SET appendonly yes"));
    }
    findings
}

/// Only the export of definitions runs one. Any version is looked at when the target's is not known.
async fn client_tools(reader: &Reader<'_>, target_major: Option<u32>) -> Finding {
    if reader.text(&DB_SCHEMA_EXPORTER_ENABLED) != "true" {
        return Finding::good("pg_dump", "not needed: only the schema export runs it, and that is not enabled");
    }
    let directory = reader.optional(&PG_BIN).map(std::path::PathBuf::from);
    match (PgDump::find(directory.as_deref(), target_major.unwrap_or(0)).await, target_major) {
        (Ok(found), Some(_)) => Finding::good("pg_dump", format!("version {}", found.version)),
        (Ok(found), None) => Finding::good(
            "pg_dump",
            format!("version {}; the target's, which it must not be older than, is not known", found.version),
        ),
        (Err(unusable), Some(_)) => Finding::bad("pg_dump", unusable.problem, unusable.way_out),
        // Without a version the message of `find` would name version 0.
        (Err(_), None) => Finding::bad(
            "pg_dump",
            "there is none in PG_BIN, PATH or /usr/lib/postgresql",
            "install the PostgreSQL client of the target's version or newer, or set PG_BIN to the directory that holds it",
        ),
    }
}
