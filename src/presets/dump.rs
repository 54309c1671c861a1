//! A whole cluster as SQL, and back.
//!
//! `pg_dumpall --clean --if-exists` writes it; `psql` executes it in a cluster that was emptied, and stops at the first error. What
//! can be no error of ours is taken out before: the role that we connect as, and those of `initdb`, can be neither dropped nor
//! made, and keep their passwords. Drops in dumps of others, without `IF EXISTS`, get it.
//!
//! A dump holds commands for `psql` (`\connect`), so `\restrict` cannot lock them out as it does for archives; what is executed comes
//! from who has the branch's key ([`super::sealed`]).

use std::collections::HashSet;

use tokio::io::AsyncWriteExt as _;

use super::cluster::Cluster;
use super::sealed::Opened;
use super::settings::Mode;
use super::{PresetError, fast};
use crate::postgres::client_programs::{PgDump, Psql};
use crate::postgres::{Doing, server_major};
use crate::process::Running;
use crate::redact::Secret;

/// Longest line that is looked at before the databases; a role's comment may be long.
const LINE: usize = 4 << 20;

impl Cluster<'_> {
    /// The `pg_dump` that fits the running server, with what came with it.
    pub(super) async fn tools(&self) -> Result<PgDump, PresetError> {
        let major = server_major(&*self.session().await?).await?;
        Ok(PgDump::find(self.settings.programs.as_deref(), major).await?)
    }

    /// Starts to dump everything but our own templates.
    pub(super) fn dump(&self, tools: &PgDump) -> Result<Running, PresetError> {
        let arguments = [
            "--clean",
            "--if-exists",
            // Directories of this machine.
            "--no-tablespaces",
            "--no-password",
            "--encoding=UTF8",
            "--lock-wait-timeout=60s",
        ];
        let program = tools.beside("pg_dumpall", self.settings.server()?).args(arguments);
        Ok(program.args([format!("--exclude-database={}*", fast::PREFIX)]).start(false, None)?)
    }

    /// Executes a dump in the emptied cluster.
    pub(super) async fn replay(&self, dump_version: Option<&str>, mut opened: Opened) -> Result<(), PresetError> {
        self.phase("apply");
        let server = self.settings.server()?;
        let mut filter = Filter::new(self.roles().await?, self.settings.user.clone());
        let psql = Psql::find(self.settings.programs.as_deref(), dump_version.unwrap_or("0")).await?;
        let arguments = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"];
        // A database that is read only by default is so from its first `\connect` on, before its tables are made.
        let writing = [("PGOPTIONS", Secret::unremembered("-c default_transaction_read_only=off"))];
        let mut running = psql.program(server).secret_env(writing).args(arguments).start(true, None)?;
        let mut bytes = 0;
        let fed = async {
            while let Some(piece) = opened.next().await? {
                bytes += piece.len() as u64;
                self.run.progress(|p| (p.bytes, p.bytes_total) = (bytes, opened.size));
                let out = filter.feed(&piece)?;
                if !feed(&mut running, &out).await {
                    return Ok(());
                }
            }
            let rest = filter.end();
            feed(&mut running, &rest).await;
            Ok::<_, PresetError>(())
        };
        self.run.unless_stopped(fed).await??;
        let end = self.run.unless_stopped(running.end()).await?;
        Ok(end.result?)
    }

    /// Roles that are there: in an emptied cluster only those that nobody can drop.
    async fn roles(&self) -> Result<Roles, PresetError> {
        let session = self.session().await?;
        let rows =
            session.query("select rolname::text, oid = 10 from pg_roles", &[]).await.doing(|| "listing roles".to_owned())?;
        let first = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
        let there = rows.iter().map(|row| row.get(0)).collect();
        Ok(Roles { first, there, keep: self.settings.mode == Mode::Fast })
    }
}

/// Whether it still takes input; why not, it tells at its end.
async fn feed(running: &mut Running, bytes: &[u8]) -> bool {
    match &mut running.stdin {
        Some(stdin) => stdin.write_all(bytes).await.is_ok(),
        None => false,
    }
}

struct Roles {
    first: HashSet<String>,
    there: HashSet<String>,
    /// Templates of other presets belong to them.
    keep: bool,
}

/// Takes a dump in pieces of any size, and changes lines before its databases.
struct Filter {
    roles: Roles,
    protected: HashSet<String>,
    /// An unfinished line; none once the databases have begun.
    line: Option<Vec<u8>>,
}

impl Filter {
    fn new(roles: Roles, user: String) -> Self {
        let mut protected = roles.first.clone();
        protected.insert(user);
        Filter { roles, protected, line: Some(Vec::new()) }
    }

    fn feed(&mut self, piece: &[u8]) -> Result<Vec<u8>, PresetError> {
        let Some(mut line) = self.line.take() else { return Ok(piece.to_vec()) };
        let mut out = Vec::with_capacity(piece.len());
        line.extend_from_slice(piece);
        let mut at = 0;
        while let Some(length) = line[at..].iter().position(|byte| *byte == b'\n') {
            let whole = &line[at..=at + length];
            if whole.starts_with(b"\\connect ") {
                out.extend_from_slice(&line[at..]);
                return Ok(out);
            }
            self.pass(whole, &mut out);
            at += length + 1;
        }
        line.drain(..at);
        if line.len() > LINE {
            return Err(PresetError::Refused("the dump is none of pg_dumpall: it begins with an endless line".to_owned()));
        }
        self.line = Some(line);
        Ok(out)
    }

    fn pass(&self, line: &[u8], out: &mut Vec<u8>) {
        let Ok(text) = std::str::from_utf8(line) else { return out.extend_from_slice(line) };
        if let Some(role) = named(text, &["DROP ROLE IF EXISTS ", "DROP ROLE "]) {
            if self.protected.contains(&role) || self.roles.keep {
                return;
            }
        } else if let Some(role) = named(text, &["CREATE ROLE "]) {
            if self.roles.there.contains(&role) {
                return;
            }
        } else if let Some(role) = named(text, &["ALTER ROLE "])
            && self.protected.contains(&role)
        {
            return;
        }
        for what in ["DROP DATABASE ", "DROP ROLE ", "DROP TABLESPACE "] {
            if let Some(rest) = text.strip_prefix(what)
                && !rest.starts_with("IF EXISTS ")
            {
                return out.extend_from_slice(format!("{what}IF EXISTS {rest}").as_bytes());
            }
        }
        out.extend_from_slice(line);
    }

    fn end(self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(line) = &self.line {
            self.pass(line, &mut out);
        }
        out
    }
}

/// The role that a line is about, when it begins so.
fn named(line: &str, beginnings: &[&str]) -> Option<String> {
    let rest = beginnings.iter().find_map(|beginning| line.strip_prefix(beginning))?;
    let Some(quoted) = rest.strip_prefix('"') else {
        return Some(rest.split([' ', ';', '\n']).next().unwrap_or_default().to_owned());
    };
    let mut name = String::new();
    let mut letters = quoted.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '"' && letters.next_if_eq(&'"').is_none() {
            break;
        }
        name.push(letter);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "-- PostgreSQL database cluster dump\nDROP DATABASE shop;\nDROP DATABASE IF EXISTS other;\nDROP ROLE owner;\nDROP ROLE IF EXISTS postgres;\nDROP ROLE app;\nCREATE ROLE owner;\nALTER ROLE owner WITH SUPERUSER PASSWORD 'x';\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nALTER ROLE postgres SET x TO y;\nCREATE ROLE \"o\"\"ne\";\nGRANT app TO owner;\n\\connect template1\nCREATE ROLE owner;\nDROP DATABASE shop;\n";

    fn through(keep: bool, there: &[&str], piece: usize) -> String {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let roles = Roles { first: set(&["owner"]), there: set(there), keep };
        let mut filter = Filter::new(roles, "postgres".to_owned());
        let mut out = Vec::new();
        for bytes in DUMP.as_bytes().chunks(piece) {
            out.extend(filter.feed(bytes).unwrap());
        }
        out.extend(filter.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_what_can_be_no_error_is_taken_out() {
        let wanted = "-- PostgreSQL database cluster dump\nDROP DATABASE IF EXISTS shop;\nDROP DATABASE IF EXISTS other;\nDROP ROLE IF EXISTS app;\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nCREATE ROLE \"o\"\"ne\";\nGRANT app TO owner;\n\\connect template1\nCREATE ROLE owner;\nDROP DATABASE shop;\n";
        for piece in [1, 7, 1 << 20] {
            assert_eq!(through(false, &["owner", "postgres"], piece), wanted, "{piece}");
        }
        // Beside templates that belong to them, roles stay.
        let kept = through(true, &["owner", "postgres", "app", "o\"ne"], 64);
        assert!(!kept.contains("DROP ROLE") && !kept.contains("CREATE ROLE app") && kept.contains("ALTER ROLE app WITH LOGIN"));
        assert!(!kept.contains("o\"\"ne"));
    }
}
