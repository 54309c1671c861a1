//! What makes archives and what opens them: the database, the programs, the keys, the servers that archives are
//! restored to. Each only on a machine that is set up for it.

use std::path::PathBuf;

use super::Finding;
use crate::backup::destination::{BACKUP_DRILL_DATABASE_URL, RESTORE_DATABASE_URL};
use crate::backup::keys::RESTORE_AGE_KEY_FILE;
use crate::backup::settings::{self as backup, BACKUP_DATABASE_URL};
use crate::backup::{Backup, name::Sealing};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::{PG_BIN, PgDump, Psql, Unusable};
use crate::postgres::explain;
use crate::replication::settings::database;

/// Version, its first number, whether it is a standby, and whether our role makes databases.
const SERVER: &str = "select current_setting('server_version'), current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery(), \
                      rolcreatedb or rolsuper from pg_roles where rolname = current_user";

/// Nothing where no store is configured.
pub(super) async fn examine(reader: &Reader<'_>) -> Vec<Finding> {
    if !backup::wanted(reader) {
        return Vec::new();
    }
    let set = |setting: &Setting| reader.optional(setting).is_some();
    let mut findings = Vec::new();
    if set(&BACKUP_DATABASE_URL) {
        findings.extend(making(reader).await);
        findings.push(recipients(reader).await);
    }
    let servers = [(&RESTORE_DATABASE_URL, "restore server"), (&BACKUP_DRILL_DATABASE_URL, "drill server")];
    let servers: Vec<_> = servers.into_iter().filter(|(setting, _)| set(setting)).collect();
    if !servers.is_empty() {
        for (setting, check) in servers {
            findings.push(landing(reader, setting, check).await);
        }
        findings.push(reading(reader).await);
        findings.push(if set(&RESTORE_AGE_KEY_FILE) {
            Finding::good("archive key", "RESTORE_AGE_KEY_FILE is set; whether it fits shows `bullwork backup verify`")
        } else {
            let fix = "set RESTORE_AGE_KEY_FILE where archives are encrypted with age";
            Finding::warning(
                "archive key",
                "RESTORE_AGE_KEY_FILE is not set: only archives for gpg, or without encryption, can be opened",
                fix,
            )
        });
    }
    findings
}

/// The database, and the program that reads it.
async fn making(reader: &Reader<'_>) -> Vec<Finding> {
    const CHECK: &str = "backup source";
    const PROGRAM: &str = "backup pg_dump";
    match server(reader, &BACKUP_DATABASE_URL).await {
        Ok(server) => {
            let directory = reader.optional(&PG_BIN).map(PathBuf::from);
            let program = match PgDump::find(directory.as_deref(), server.major).await {
                Ok(found) => Finding::good(PROGRAM, format!("version {}", found.version)),
                Err(Unusable { problem, way_out }) => Finding::bad(PROGRAM, problem, way_out),
            };
            vec![Finding::good(CHECK, server.told), program]
        }
        Err(seen) => vec![
            Finding::bad(CHECK, seen, "check BACKUP_DATABASE_URL (or DATABASE_URL), the network and pg_hba.conf"),
            Finding::skipped(PROGRAM, "the version that it needs is the source's"),
        ],
    }
}

async fn recipients(reader: &Reader<'_>) -> Finding {
    const CHECK: &str = "recipients";
    let Some(backup) = Backup::from_settings(reader) else {
        return Finding::skipped(CHECK, "the settings of backups cannot be used");
    };
    let fix = "check BACKUP_AGE_RECIPIENTS or BACKUPS_GPG_RECIPIENT";
    match (backup.recipients().await, backup.sealing()) {
        (Err(error), _) => Finding::bad(CHECK, format!("{:#}", anyhow::Error::from(error)), fix),
        (Ok(_), Sealing::Plain) => {
            let way_out = "`bullwork backup keygen FILE` on another machine, and its public key into BACKUP_AGE_RECIPIENTS";
            Finding::warning(CHECK, "archives are not encrypted (BACKUP_PLAIN)", way_out)
        }
        (Ok(names), _) => Finding::good(CHECK, format!("archives are encrypted for {}", names.join(", "))),
    }
}

/// A server that archives are restored to.
async fn landing(reader: &Reader<'_>, setting: &'static Setting, check: &'static str) -> Finding {
    match server(reader, setting).await {
        Err(seen) => Finding::bad(check, seen, format!("check {}, the network and pg_hba.conf", setting.name)),
        Ok(server) if server.standby => {
            let seen = format!("{} is a standby, where nothing can be restored", server.told);
            Finding::bad(check, seen, format!("point {} at a primary", setting.name))
        }
        Ok(server) if !server.makes_databases => {
            let seen = format!("the role may not make databases on {}", server.told);
            Finding::bad(
                check,
                seen,
                "ALTER ROLE … CREATEDB; without CREATEROLE the roles that archives name have to be there too",
            )
        }
        Ok(server) => Finding::good(check, server.told),
    }
}

async fn reading(reader: &Reader<'_>) -> Finding {
    let directory = reader.optional(&PG_BIN).map(PathBuf::from);
    // What wrote the archives is told by each of them.
    match Psql::find(directory.as_deref(), "1").await {
        Ok(found) if found.restricts() => Finding::good("psql", format!("version {}", found.version)),
        Ok(found) => {
            let seen = format!(
                "version {} obeys commands to itself that stand in an archive, and does not read what newer minor releases of pg_dump write",
                found.version
            );
            Finding::warning("psql", seen, "install the newest minor release")
        }
        Err(_) => Finding::bad(
            "psql",
            "there is none in PG_BIN, PATH or /usr/lib/postgresql",
            "install the PostgreSQL client (Debian and Ubuntu: `apt-get install postgresql-client`), or set PG_BIN to the directory that holds it",
        ),
    }
}

struct Server {
    told: String,
    major: u32,
    standby: bool,
    makes_databases: bool,
}

async fn server(reader: &Reader<'_>, setting: &'static Setting) -> Result<Server, String> {
    let Some(database) = database(reader, setting) else { return Err(format!("{} cannot be used", setting.name)) };
    let session = database.connect("doctor").await.map_err(|error| error.to_string())?;
    let row = session.query_one(SERVER, &[]).await.map_err(|error| explain(&error))?;
    let version: String = row.get(0);
    Ok(Server {
        told: format!("PostgreSQL {version}, {database}"),
        major: u32::try_from(row.get::<_, i32>(1)).unwrap_or(0),
        standby: row.get(2),
        makes_databases: row.get(3),
    })
}
