//! The client programs `pg_dump` and `psql`: finding those that know the server, and running them.
//!
//! It gets the password by environment, writes to a pipe, and no file is made. No variable that would
//! lead it elsewhere is inherited. Dropping the future kills it.

use std::path::{Path, PathBuf};

use super::Database;
use crate::config::Setting;
use crate::process::{ProcessError, Program};
use crate::redact::Secret;

/// Directory of the client programs.
pub static PG_BIN: Setting = Setting::new(
    "PG_BIN",
    "Directory that holds pg_dump and psql, which backups, restores and the schema export run; unset: the newest of PATH and the usual places (/usr/lib/postgresql/NN/bin).",
);

/// What every dump leaves out, and how it behaves.
const ALWAYS: [&str; 9] = [
    "--no-owner",
    "--no-privileges",
    // Subscriptions hold passwords; none of these says anything about the data.
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
    "--no-password",
    "--encoding=UTF8",
    // A table that is locked longer fails the dump, with its name.
    "--lock-wait-timeout=60s",
];

/// No `pg_dump` that fits; the way out is told apart, for tables that show it by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {way_out}")]
pub struct Unusable {
    /// What is missing or too old.
    pub problem: String,
    /// What to do.
    pub way_out: String,
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// There is no program for it.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The program failed.
    #[error("reading the definitions")]
    Failed(#[from] ProcessError),
    /// The program wrote something else than the SQL we know.
    #[error("the output of `pg_dump` {0}")]
    Script(&'static str),
}

/// A `pg_dump` that was found.
#[derive(Clone, Debug)]
pub struct PgDump {
    path: PathBuf,
    /// Its version, such as `15.6`.
    pub version: String,
    /// The first part of the version.
    pub major: u32,
}

impl PgDump {
    /// Finds the newest `pg_dump`, in `directory` ([`PG_BIN`]) when that is given, else on PATH and
    /// in the places where packages put it.
    ///
    /// # Errors
    /// When there is none that works, or it is too old for a server of version `needed`.
    pub async fn find(directory: Option<&Path>, needed: u32) -> Result<PgDump, Unusable> {
        let newest = newest("pg_dump", directory).await;
        let best = newest.map(|Found { path, version, major }| PgDump { path, version, major });
        usable(best, directory, needed)
    }

    /// The definitions of `database` that `what` asks for (in pg_dump's options), as SQL.
    ///
    /// # Errors
    /// When the program fails or wrote half a script.
    pub async fn script(&self, database: &Database, what: &[String]) -> Result<Script, DumpError> {
        let output = self.run(database, &["--format=plain"], what).await?;
        Script::parse(&String::from_utf8(output).map_err(|_| DumpError::Script("is not UTF-8"))?)
    }

    async fn run(&self, database: &Database, format: &[&str], what: &[String]) -> Result<Vec<u8>, DumpError> {
        Ok(self.program(database).args(format).args(ALWAYS).args(what).output().await?)
    }

    /// The program, led to `database` and without arguments yet.
    #[must_use]
    pub fn program(&self, database: &Database) -> Program {
        led_to(&self.path, database)
    }

    /// The program called `name` that came with it: `pg_dumpall`, `pg_basebackup`.
    #[must_use]
    pub fn beside(&self, name: &str, database: &Database) -> Program {
        led_to(&self.path.with_file_name(name), database)
    }
}

/// A program in one of its versions.
struct Found {
    path: PathBuf,
    version: String,
    major: u32,
}

/// The newest program called `name` in `directory`, or on PATH and in the places where packages put it.
async fn newest(name: &str, directory: Option<&Path>) -> Option<Found> {
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
    let mut best: Option<Found> = None;
    for path in places.into_iter().map(|p| p.join(name)).filter(|p| p.is_file()) {
        let Ok(out) = Program::new(&path.to_string_lossy()).args(["--version"]).output().await else { continue };
        let Some((version, major)) = parse_version(&String::from_utf8_lossy(&out)) else { continue };
        if best.as_ref().is_none_or(|b| major > b.major) {
            best = Some(Found { path, version, major });
        }
    }
    best
}

/// The program `path`, led to `database` and without arguments yet.
fn led_to(path: &Path, database: &Database) -> Program {
    Program::new(&path.to_string_lossy())
        .secret_env(database.client_environment())
        // Its words are part of our errors, which are in one language.
        .secret_env([("LC_ALL", Secret::unremembered("C"))])
}

/// A `psql` that was found.
#[derive(Clone, Debug)]
pub struct Psql {
    path: PathBuf,
    /// Its version, such as `15.6`.
    pub version: String,
}

impl Psql {
    /// Finds the newest `psql`, where [`PgDump::find`] looks too, that reads scripts of `pg_dump` in version `dump`.
    ///
    /// # Errors
    /// When there is none that works, or it is too old for that.
    pub async fn find(directory: Option<&Path>, dump: &str) -> Result<Psql, Unusable> {
        let (major, _) = parts(dump);
        let place = directory.map_or_else(|| "PATH or /usr/lib/postgresql".to_owned(), |d| format!("PG_BIN={}", d.display()));
        let problem = match newest("psql", directory).await {
            Some(found) if found.major >= major && (restricts(&found.version) || !restricts(dump)) => {
                return Ok(Psql { path: found.path, version: found.version });
            }
            Some(old) => format!("psql {} ({}) cannot read what pg_dump {dump} wrote", old.version, old.path.display()),
            None => format!("no psql in {place}, and version {major} or newer is needed"),
        };
        let way_out = format!(
            "install psql {dump} or newer (Debian and Ubuntu: `apt-get install postgresql-client-{major}`) or set PG_BIN to the directory that holds it"
        );
        Err(Unusable { problem, way_out })
    }

    /// Whether it knows `\restrict`, which locks out meta-commands until it is lifted with the same key.
    #[must_use]
    pub fn restricts(&self) -> bool {
        restricts(&self.version)
    }

    /// The program, led to `database` and without arguments yet.
    #[must_use]
    pub fn program(&self, database: &Database) -> Program {
        led_to(&self.path, database)
    }
}

/// Major and minor version; a minor that is no number is that of a trial version, before all others.
fn parts(version: &str) -> (u32, u32) {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    let major = numbers.next().unwrap_or(0);
    (major, if version.contains('.') { numbers.next().unwrap_or(0) } else { 0 })
}

/// Whether this version of `pg_dump` writes, and of `psql` reads, lines that lock out further meta-commands. They came with
/// one day's minor releases.
fn restricts(version: &str) -> bool {
    let (major, minor) = parts(version);
    match major {
        0..=12 => false,
        13 => minor >= 22,
        14 => minor >= 19,
        15 => minor >= 14,
        16 => minor >= 10,
        17 => minor >= 6,
        18 => !version.contains("beta") || version.contains("beta3"),
        _ => true,
    }
}

/// `pg_dump (PostgreSQL) 15.6 (Debian …)` → `15.6`, 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split(')').nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

fn usable(found: Option<PgDump>, directory: Option<&Path>, needed: u32) -> Result<PgDump, Unusable> {
    let problem = match found {
        Some(found) if found.major >= needed => return Ok(found),
        Some(old) => format!(
            "pg_dump {} ({}) is older than the server that it reads, of version {needed}",
            old.version,
            old.path.display()
        ),
        None => {
            let place = directory.map_or_else(|| "PATH or /usr/lib/postgresql".to_owned(), |d| format!("PG_BIN={}", d.display()));
            format!("no pg_dump in {place}, and version {needed} or newer is needed")
        }
    };
    let way_out = format!(
        "install pg_dump (Debian and Ubuntu: `apt-get install postgresql-client-{needed}`) or set PG_BIN to the directory that holds it"
    );
    Err(Unusable { problem, way_out })
}

/// A dump as SQL, without what only `psql` understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The settings that the definitions are written for, as `SET` commands. The server that they
    /// are written by may know more of them than the one that they are executed by.
    pub settings: String,
    /// The definitions themselves; every name in them is qualified.
    pub definitions: String,
}

impl Script {
    /// The only meta-commands are `\restrict <token>` near the start and `\unrestrict <token>` near
    /// the end; the token is random, so no function body holds such a line. A dump without the end
    /// marker was cut off.
    fn parse(dump: &str) -> Result<Script, DumpError> {
        let mut script = Script { settings: String::new(), definitions: String::with_capacity(dump.len()) };
        let mut in_settings = true;
        let mut end_of_restriction = None;
        let mut complete = false;
        for line in dump.split_inclusive('\n') {
            let bare = line.trim_end_matches('\n');
            if in_settings && let Some(token) = bare.strip_prefix("\\restrict ") {
                end_of_restriction = Some(format!("\\unrestrict {token}"));
                continue;
            }
            if end_of_restriction.as_deref() == Some(bare) {
                continue;
            }
            in_settings &= !bare.starts_with("-- Name: ");
            complete |= bare == "-- PostgreSQL database dump complete";
            if in_settings { &mut script.settings } else { &mut script.definitions }.push_str(line);
        }
        if complete { Ok(script) } else { Err(DumpError::Script("has no end; it was cut off")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict aB3\n\nSET lock_timeout = 0;\nSET transaction_timeout = 0;\n\n--\n-- Name: f(); Type: FUNCTION\n--\nCREATE FUNCTION f() AS $$\n\\restrict aB3\nSET transaction_timeout = 0;\n\\unrestrict other\n$$;\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aB3\n\n";

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("pg_dump (PostgreSQL) 15.6 (Debian 15.6-0+deb12u1)\n"), Some(("15.6".to_owned(), 15)));
        assert_eq!(parse_version("pg_dump (PostgreSQL) 18beta2"), Some(("18beta2".to_owned(), 18)));
        assert_eq!(parse_version("sh: not found"), None);
    }

    #[test]
    fn a_psql_that_would_stumble_over_the_dump_is_known() {
        assert_eq!((parts("15.6"), parts("18beta2"), parts("")), ((15, 6), (18, 0), (0, 0)));
        for (version, wanted) in
            [("15.13", false), ("15.14", true), ("12.22", false), ("18beta2", false), ("18.0", true), ("19", true)]
        {
            assert_eq!(restricts(version), wanted, "{version}");
        }
    }

    #[test]
    fn a_missing_or_old_pg_dump_is_told_with_the_way_out() {
        let text = usable(None, None, 16).unwrap_err().to_string();
        assert!(text.contains("no pg_dump") && text.contains("postgresql-client-16") && text.contains("PG_BIN"), "{text}");
        let old = PgDump { path: "/x/pg_dump".into(), version: "13.2".into(), major: 13 };
        let text = usable(Some(old.clone()), None, 16).unwrap_err().to_string();
        assert!(text.contains("pg_dump 13.2") && text.contains("of version 16"), "{text}");
        assert!(usable(Some(old), None, 13).is_ok());
    }

    #[test]
    fn only_the_meta_commands_of_the_dump_itself_are_left_out() {
        let script = Script::parse(DUMP).unwrap();
        assert_eq!(
            script.settings,
            "--\n-- PostgreSQL database dump\n--\n\n\nSET lock_timeout = 0;\nSET transaction_timeout = 0;\n\n--\n"
        );
        assert!(script.definitions.starts_with("-- Name: f(); Type: FUNCTION\n--\nCREATE FUNCTION"), "{}", script.definitions);
        assert!(script.definitions.contains("\\restrict aB3"), "the one in the function body stays");
        assert!(script.definitions.contains("\\unrestrict other") && !script.definitions.contains("\\unrestrict aB3"));
    }

    #[test]
    fn a_dump_of_nothing_has_no_definitions() {
        let script = Script::parse(
            "--\n-- PostgreSQL database dump\n--\n\nSET a = 0;\n\n--\n-- PostgreSQL database dump complete\n--\n\n",
        );
        assert_eq!(script.unwrap().definitions, "");
    }

    #[test]
    fn a_dump_that_was_cut_off_is_refused() {
        assert!(Script::parse(&DUMP[..150]).unwrap_err().to_string().contains("cut off"));
    }
}
