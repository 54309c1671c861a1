//! The source's definitions, by `pg_dump` of a version that knows the source.
//!
//! pg_dump reads in the exported snapshot, so definitions and rows are of one moment. It gets the
//! password by environment, writes its archive to a pipe, and no file is made.

use std::path::{Path, PathBuf};

use super::archive::{self, Entry};
use crate::config::Setting;
use crate::postgres::{self, Database};
use crate::process::Program;
use crate::replication::settings::TableName;

/// Directory of the client programs.
pub static PG_BIN: Setting = Setting::new(
    "PG_BIN",
    "Directory that holds pg_dump; unset: the newest of PATH and the usual places (/usr/lib/postgresql/NN/bin).",
);

/// A `pg_dump` that was found.
#[derive(Clone, Debug)]
pub struct PgDump {
    path: PathBuf,
    /// Its version, such as `15.6`.
    pub version: String,
    /// The first part of the version.
    pub major: u32,
}

/// Finds the newest `pg_dump`, in `directory` when that is given, else on PATH and in the places
/// where packages put it. `None` when there is no working one.
pub async fn find(directory: Option<&Path>) -> Option<PgDump> {
    let mut places: Vec<PathBuf> = Vec::new();
    match directory {
        Some(directory) => places.push(directory.to_owned()),
        None => {
            // Debian's /usr/bin/pg_dump is a wrapper that chooses a version by itself, so real
            // programs come first and win when the versions are equal.
            for root in ["/usr/lib/postgresql", "/usr/local", "/usr"] {
                places.extend(std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path().join("bin")));
            }
            places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        }
    }
    let mut best: Option<PgDump> = None;
    for path in places.into_iter().map(|p| p.join("pg_dump")).filter(|p| p.is_file()) {
        let Ok(out) = Program::new(&path.to_string_lossy()).args(["--version"]).output().await else { continue };
        let Some((version, major)) = parse_version(&String::from_utf8_lossy(&out)) else { continue };
        if best.as_ref().is_none_or(|b| major > b.major) {
            best = Some(PgDump { path, version, major });
        }
    }
    best
}

/// `pg_dump (PostgreSQL) 15.6 (Debian …)` → `15.6`, 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split(')').nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

/// What to say when no `pg_dump` fits a source of version `needed`.
#[must_use]
pub fn unusable(found: Option<&PgDump>, directory: Option<&Path>, needed: u32) -> Option<String> {
    let way_out = format!(
        "install it (Debian and Ubuntu: `apt-get install postgresql-client-{needed}`) or set PG_BIN to the directory that holds it"
    );
    match found {
        None => {
            let place = directory.map_or_else(|| "PATH or /usr/lib/postgresql".to_owned(), |d| format!("PG_BIN={}", d.display()));
            Some(format!("no pg_dump in {place}, and version {needed} or newer is needed; {way_out}"))
        }
        Some(found) if found.major < needed => Some(format!(
            "pg_dump {} ({}) is older than the source server, which needs version {needed} or newer; {way_out}",
            found.version,
            found.path.display()
        )),
        Some(_) => None,
    }
}

/// The definitions of everything in `source` as of `snapshot`. Tables in `unreadable` are left
/// out by the program itself, because it would ask for a lock that we have no right to.
pub(super) async fn definitions(
    program: &PgDump,
    source: &Database,
    snapshot: &str,
    unreadable: &[TableName],
) -> anyhow::Result<Vec<Entry>> {
    let mut args: Vec<String> = [
        "--format=custom",
        "--compress=0",
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        "--no-tablespaces",
        "--no-password",
        "--encoding=UTF8",
        "--lock-wait-timeout=60s",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(format!("--snapshot={snapshot}"));
    args.extend(unreadable.iter().map(|t| format!("--exclude-table={}", exact_pattern(t))));
    let archive = Program::new(&program.path.to_string_lossy())
        .args(&args)
        .without_env(["PGSERVICE", "PGSERVICEFILE", "PGOPTIONS", "PGHOSTADDR", "PGPASSFILE", "PGTARGETSESSIONATTRS"])
        .secret_env(source.client_environment())
        .output()
        .await?;
    Ok(archive::read(&archive)?)
}

/// A pattern that matches this name alone: quoted, so that case, `*`, `?` and `.` are literal.
fn exact_pattern(table: &TableName) -> String {
    postgres::quote_qualified(&table.schema, &table.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("pg_dump (PostgreSQL) 15.6 (Debian 15.6-0+deb12u1)\n"), Some(("15.6".to_owned(), 15)));
        assert_eq!(parse_version("pg_dump (PostgreSQL) 18beta2"), Some(("18beta2".to_owned(), 18)));
        assert_eq!(parse_version("sh: not found"), None);
    }

    #[test]
    fn a_missing_or_old_pg_dump_is_told_with_the_way_out() {
        let text = unusable(None, None, 16).unwrap();
        assert!(text.contains("no pg_dump") && text.contains("postgresql-client-16") && text.contains("PG_BIN"), "{text}");
        let old = PgDump { path: "/x/pg_dump".into(), version: "13.2".into(), major: 13 };
        let text = unusable(Some(&old), None, 16).unwrap();
        assert!(text.contains("pg_dump 13.2") && text.contains("version 16 or newer"), "{text}");
        assert!(unusable(Some(&old), None, 13).is_none());
    }
}
