//! Checks with a fix for each: configuration, Redis, both databases, client tools.

use std::fmt;

use tokio_postgres::Client;

use super::store::Store;
use crate::config::{Environment, Reader};
use crate::jobs;
use crate::postgres::client_programs::{PG_BIN, PgDump};
use crate::postgres::same::same_database;
use crate::postgres::{Database, Doing, explain};
use crate::replication::settings::{self as replication, SOURCE_DATABASE_URL, TARGET_DATABASE_URL};
use crate::worker::{RetryPolicy, Timing};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, with a drawback.
    Warning,
    /// Does not work.
    Bad,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::Good => "ok",
            Grade::Warning => "warning",
            Grade::Bad => "failed",
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
}

/// Looks at everything that the nightly chain needs and changes nothing.
pub async fn examine(environment: &Environment) -> Vec<Finding> {
    let mut findings = vec![configuration(environment)];
    // A reader of its own, whose problems the first finding has told.
    let reader = Reader::new(environment);
    if let Some(store) = Store::from_settings(&reader) {
        findings.extend(redis(&store).await);
    }
    let source = database(environment, &SOURCE_DATABASE_URL);
    let target = database(environment, &TARGET_DATABASE_URL);
    let mut source_major = None;
    if let Some(source) = &source {
        let (found, major) = examine_source(source).await;
        findings.extend(found);
        source_major = major;
    }
    if let Some(target) = &target {
        findings.extend(examine_target(target, source_major).await);
    }
    if let (Some(source), Some(target)) = (&source, &target) {
        findings.extend(two_databases(source, target).await);
    }
    if let Some(major) = source_major {
        findings.push(client_tools(&reader, major).await);
    }
    findings
}

fn configuration(environment: &Environment) -> Finding {
    let reader = Reader::new(environment);
    let _ = jobs::configure(&jobs::ALL.iter().collect::<Vec<_>>(), &reader);
    let _ = (RetryPolicy::from_settings(&reader), Timing::from_settings(&reader), Store::from_settings(&reader));
    match reader.finish() {
        Ok(()) => Finding::good("configuration", "every setting can be read"),
        Err(error) => Finding::bad(
            "configuration",
            error.to_string(),
            "set them in the environment or in .env; `bullwork config sample` tells what each takes",
        ),
    }
}

fn database(environment: &Environment, setting: &'static crate::config::Setting) -> Option<Database> {
    replication::database(&Reader::new(environment), setting)
}

async fn redis(store: &Store) -> Vec<Finding> {
    let mut connection = match store.redis().connection().await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![Finding::bad(
                "Redis",
                error.to_string(),
                "start Redis, or correct address, user and password in REDIS_URL",
            )];
        }
    };
    let info: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
    let info = match info {
        Ok(info) => info,
        Err(error) => {
            return vec![Finding::bad(
                "Redis",
                crate::redact::scrub(&error.to_string()),
                "check user, password and rights in REDIS_URL",
            )];
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
        "noeviction" => Finding::good("Redis eviction", "maxmemory-policy is noeviction"),
        other => Finding::bad(
            "Redis eviction",
            format!("maxmemory-policy is {other}: Redis may throw jobs away when memory is short"),
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        ),
    });
    if value("aof_enabled") == "0" && value("rdb_last_save_time") == "?" {
        findings.push(Finding::warning("Redis persistence", "neither AOF nor RDB is on", "CONFIG SET appendonly yes"));
    }
    findings
}

async fn examine_source(source: &Database) -> (Vec<Finding>, Option<u32>) {
    let client = match source.connect("doctor").await {
        Ok(client) => client,
        Err(error) => {
            return (
                vec![Finding::bad("source", error.to_string(), "check SOURCE_DATABASE_URL, the network and pg_hba.conf")],
                None,
            );
        }
    };
    let mut findings = Vec::new();
    let major = match server(&client).await {
        Ok((version, major, recovering)) => {
            findings.push(Finding::good("source", format!("PostgreSQL {version}, {source}")));
            if recovering {
                findings.push(Finding::bad(
                    "source role",
                    "the source is a standby (in recovery)",
                    "point SOURCE_DATABASE_URL at the primary",
                ));
            }
            Some(major)
        }
        Err(error) => {
            findings.push(Finding::bad("source", error, "check SOURCE_DATABASE_URL"));
            None
        }
    };
    let unreadable = client
        .query(
            "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('r', 'S') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' \
             and not case c.relkind when 'S' then has_sequence_privilege(c.oid, 'select') else has_table_privilege(c.oid, 'select') end \
             order by 1 limit 20",
            &[],
        )
        .await;
    match unreadable {
        Ok(rows) if rows.is_empty() => findings.push(Finding::good("source rights", "every table can be read")),
        Ok(rows) => {
            let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            findings.push(Finding::bad(
                "source rights",
                format!("cannot read {}", names.join(", ")),
                "GRANT SELECT on them to the user of SOURCE_DATABASE_URL",
            ));
        }
        Err(error) => findings.push(Finding::warning("source rights", explain(&error), "")),
    }
    (findings, major)
}

/// Nothing when either cannot be reached, which has been told.
async fn two_databases(source: &Database, target: &Database) -> Option<Finding> {
    let (a, b) = (source.connect("doctor").await.ok()?, target.connect("doctor").await.ok()?);
    Some(match same_database(&a, &b).await {
        Ok(false) => Finding::good("two databases", "source and target are not the same"),
        Ok(true) => Finding::bad(
            "two databases",
            format!("source and target are one database ({target}): a full copy would drop what it copies, so every run refuses"),
            "correct SOURCE_DATABASE_URL or TARGET_DATABASE_URL",
        ),
        Err(error) => Finding::warning("two databases", error.to_string(), "make sure that they are not the same"),
    })
}

async fn examine_target(target: &Database, source_major: Option<u32>) -> Vec<Finding> {
    let client = match target.connect("doctor").await {
        Ok(client) => client,
        Err(error) => {
            return vec![Finding::bad("target", error.to_string(), "check TARGET_DATABASE_URL, the network and pg_hba.conf")];
        }
    };
    let mut findings = Vec::new();
    match server(&client).await {
        Ok((version, major, recovering)) => {
            findings.push(Finding::good("target", format!("PostgreSQL {version}, {target}")));
            if recovering {
                findings.push(Finding::bad(
                    "target role",
                    "the target is a standby: it cannot be written",
                    "point TARGET_DATABASE_URL at a primary",
                ));
            }
            if source_major.is_some_and(|source| major < source) {
                findings.push(Finding::bad(
                    "target version",
                    format!("PostgreSQL {major} is older than the source"),
                    "upgrade the target to the source's major version or later",
                ));
            }
        }
        Err(error) => findings.push(Finding::bad("target", error, "check TARGET_DATABASE_URL")),
    }
    let rights = client.query_one("select has_database_privilege(current_database(), 'create'), current_user::text", &[]).await;
    match rights.doing(|| "asking for rights".to_owned()) {
        Ok(row) if row.get::<_, bool>(0) => {
            findings.push(Finding::good("target rights", format!("{} may create schemas", row.get::<_, &str>(1))));
        }
        Ok(row) => {
            let user: &str = row.get(1);
            findings.push(Finding::bad(
                "target rights",
                format!("{user} may not create schemas"),
                format!("GRANT CREATE ON DATABASE … TO {user}"),
            ));
        }
        Err(error) => findings.push(Finding::bad("target rights", error.to_string(), "")),
    }
    findings.push(space(&client).await);
    findings
}

async fn server(client: &Client) -> Result<(String, u32, bool), String> {
    let row = client
        .query_one(
            "select current_setting('server_version'), current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery()",
            &[],
        )
        .await
        .map_err(|error| explain(&error))?;
    let major: i32 = row.get(1);
    Ok((row.get(0), u32::try_from(major).unwrap_or(0), row.get(2)))
}

/// Free space can be read only by a superuser of a server on this very machine, or not at all.
async fn space(client: &Client) -> Finding {
    let size: i64 = match client.query_one("select pg_database_size(current_database())", &[]).await {
        Ok(row) => row.get(0),
        Err(error) => return Finding::warning("target space", explain(&error), "watch the disk of the target yourself"),
    };
    let directory: Option<String> =
        client.query_one("select current_setting('data_directory', true)", &[]).await.ok().and_then(|row| row.get(0));
    let free = directory.and_then(|directory| nix::sys::statvfs::statvfs(directory.as_str()).ok());
    let mebibytes = |bytes: u64| bytes / (1 << 20);
    match free {
        Some(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let seen = format!("database {} MiB, free {} MiB", mebibytes(size.unsigned_abs()), mebibytes(free));
            if free < size.unsigned_abs() {
                Finding::warning(
                    "target space",
                    seen,
                    "a full copy may need as much again while it builds indexes: free some space",
                )
            } else {
                Finding::good("target space", seen)
            }
        }
        None => Finding::good(
            "target space",
            format!("database {} MiB; free space is not readable from here", mebibytes(size.unsigned_abs())),
        ),
    }
}

async fn client_tools(reader: &Reader<'_>, source_major: u32) -> Finding {
    let directory = reader.optional(&PG_BIN).map(std::path::PathBuf::from);
    match PgDump::find(directory.as_deref(), source_major).await {
        Ok(found) => Finding::good("pg_dump", format!("version {}", found.version)),
        Err(unusable) => Finding::bad("pg_dump", unusable.problem, unusable.way_out),
    }
}
