//! What makes archives and what opens them: the database, the programs, the keys, the servers that archives are
//! restored to. Each only on a machine that is set up for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Finding;
use crate::backup::choice::Choice;
use crate::backup::demands;
use crate::backup::destination::{BACKUP_DRILL_DATABASE_URL, RESTORE_DATABASE_URL};
use crate::backup::keys::RESTORE_AGE_KEY_FILE;
use crate::backup::manifest::Manifest;
use crate::backup::settings::{self as backup, BACKUP_DATABASE_URL};
use crate::backup::{Backup, name::Sealing};
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::{PG_BIN, PgDump, Psql, Unusable};
use crate::postgres::{Connection, explain};
use crate::replication::settings::{TableName, database};
use crate::seal::age::Identities;
use tokio_postgres::Client;

/// Longest wait for the newest archive's manifest.
const LIMIT: Duration = Duration::from_secs(20);

/// Version, its first number, whether it is a standby, and whether our role makes databases.
const SERVER: &str = "select current_setting('server_version'), current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery(), \
                      rolcreatedb or rolsuper from pg_roles where rolname = current_user";

/// What `pg_dump` reads, and whether our role can.
const TABLES: &str = "select n.nspname::text, c.relname::text,
        case c.relkind when 'S' then has_sequence_privilege(c.oid, 'select') else has_table_privilege(c.oid, 'select') and not row_security_active(c.oid) end
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p', 'S') and c.oid >= 16384 and n.nspname !~ '^pg_' order by 1, 2";
/// Whether one is somebody else's, with no right given to anybody.
const LARGE_OBJECTS: &str =
    "select exists (select from pg_largeobject_metadata where lomacl is null and not pg_has_role(lomowner, 'usage'))";

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
        let newest = newest(reader).await;
        for (setting, check) in servers {
            findings.push(landing(reader, setting, check, newest.as_ref()).await);
        }
        findings.push(reading(reader, newest.as_ref()).await);
        findings.push(key(reader, newest.as_ref()));
    }
    findings
}

/// Whether the role can read all of it: an archive holds the whole database, and `pg_dump` refuses what policies hide.
async fn rights(session: &Client, backup: Option<&Backup>) -> Finding {
    const CHECK: &str = "backup rights";
    let rows = match session.query(TABLES, &[]).await {
        Ok(rows) => rows,
        Err(error) => return Finding::bad(CHECK, explain(&error), "check the rights of BACKUP_DATABASE_URL's role"),
    };
    let all: Vec<(TableName, bool)> =
        rows.iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2))).collect();
    let unreadable: Vec<String> =
        all.iter().filter(|(_, readable)| !readable).take(10).map(|(name, _)| name.to_string()).collect();
    if !unreadable.is_empty() {
        let way_out =
            "GRANT SELECT on all tables and sequences (or pg_read_all_data) to the role; BYPASSRLS where policies hide rows";
        return Finding::bad(CHECK, format!("cannot read {}", unreadable.join(", ")), way_out);
    }
    if session.query_one(LARGE_OBJECTS, &[]).await.is_ok_and(|row| row.get(0)) {
        let way_out = "GRANT SELECT ON LARGE OBJECT … to it, or let their owner or a superuser make backups: pg_read_all_data does not hold for large objects";
        return Finding::bad(CHECK, "there are large objects that the role may not read", way_out);
    }
    if !all.is_empty() && backup.is_some_and(|backup| !all.iter().any(|(name, _)| backup.business.holds(name))) {
        let way_out = "correct BACKUP_TABLES and BACKUP_EXCLUDE_TABLES";
        return Finding::bad(CHECK, "no table of the database is a business table, so no change would ever be noticed", way_out);
    }
    Finding::good(CHECK, "everything can be read")
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
            let rights = rights(&server.session, Backup::from_settings(reader).as_ref()).await;
            vec![Finding::good(CHECK, server.told), rights, program]
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

/// A server that archives are restored to, and whether our role there may restore the newest one.
async fn landing(reader: &Reader<'_>, setting: &'static Setting, check: &'static str, newest: Option<&Manifest>) -> Finding {
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
        Ok(server) => {
            let Some((archive, demands)) = newest.and_then(|manifest| Some((manifest.archive, manifest.demands.as_ref()?)))
            else {
                return Finding::good(check, server.told);
            };
            match demands::missing(&server.session, demands, true).await {
                Ok(missing) if missing.is_empty() => Finding::good(check, server.told),
                Ok(missing) => Finding::bad(
                    check,
                    format!("the role cannot restore the newest archive, {archive}: {}", missing.join("; ")),
                    format!("grant what is missing, or let {} name a superuser", setting.name),
                ),
                Err(error) => Finding::bad(check, error.to_string(), format!("check the rights of {}'s role", setting.name)),
            }
        }
    }
}

/// The manifest of the newest archive; nothing where there is none, or the store does not tell within its time, which its
/// own check says.
async fn newest(reader: &Reader<'_>) -> Option<Manifest> {
    let shelf = backup::shelf(reader)?;
    let looking = async {
        let archive = Choice::Latest.find(&shelf).await.ok()?;
        shelf.manifest(archive).await.ok()
    };
    tokio::time::timeout(LIMIT, looking).await.ok().flatten()
}

/// Whether there is a program that reads the newest archive, or any at all.
async fn reading(reader: &Reader<'_>, newest: Option<&Manifest>) -> Finding {
    const CHECK: &str = "psql";
    let directory = reader.optional(&PG_BIN).map(PathBuf::from);
    let wanted = newest.map(|manifest| manifest.tools.pg_dump.as_str());
    match Psql::find(directory.as_deref(), wanted.unwrap_or("1")).await {
        Ok(found) if found.restricts() => {
            let reads = wanted.map(|dump| format!(", which reads what pg_dump {dump} wrote")).unwrap_or_default();
            Finding::good(CHECK, format!("version {}{reads}", found.version))
        }
        Ok(found) => {
            let seen = format!(
                "version {} obeys commands to itself that stand in an archive, and does not read what newer minor releases of pg_dump write",
                found.version
            );
            Finding::warning(CHECK, seen, "install the newest minor release")
        }
        Err(Unusable { problem, way_out }) if wanted.is_some() => Finding::bad(CHECK, problem, way_out),
        // Without a version the message of `find` would name version 1.
        Err(_) => Finding::bad(
            CHECK,
            "there is none in PG_BIN, PATH or /usr/lib/postgresql",
            "install the PostgreSQL client (Debian and Ubuntu: `apt-get install postgresql-client`), or set PG_BIN to the directory that holds it",
        ),
    }
}

/// Whether the private key is one that the newest archive is for.
fn key(reader: &Reader<'_>, newest: Option<&Manifest>) -> Finding {
    const CHECK: &str = "archive key";
    let Some(file) = reader.optional(&RESTORE_AGE_KEY_FILE) else {
        let seen = "RESTORE_AGE_KEY_FILE is not set: only archives for gpg, or without encryption, can be opened";
        let fix = "set RESTORE_AGE_KEY_FILE where archives are encrypted with age";
        return match newest {
            Some(manifest) if manifest.archive.sealing == Sealing::Age => Finding::bad(
                CHECK,
                format!("RESTORE_AGE_KEY_FILE is not set, and the newest archive, {}, needs it", manifest.archive),
                fix,
            ),
            _ => Finding::warning(CHECK, seen, fix),
        };
    };
    let ours = match Identities::from_file(Path::new(&file)) {
        Ok(identities) => identities.recipients().shown(),
        Err(error) => {
            return Finding::bad(
                CHECK,
                error.to_string(),
                "let RESTORE_AGE_KEY_FILE name a file that `bullwork backup keygen` wrote",
            );
        }
    };
    match newest {
        Some(manifest) if manifest.archive.sealing == Sealing::Age && !manifest.packing.recipients.is_empty() => {
            let (archive, theirs) = (manifest.archive, &manifest.packing.recipients);
            match theirs.iter().any(|recipient| ours.contains(recipient)) {
                true => Finding::good(CHECK, format!("the newest archive, {archive}, is encrypted for it")),
                false => Finding::bad(
                    CHECK,
                    format!(
                        "the newest archive, {archive}, is for {}, and RESTORE_AGE_KEY_FILE holds {}",
                        theirs.join(", "),
                        ours.join(", ")
                    ),
                    "put the private key of one of those into that file, or correct BACKUP_AGE_RECIPIENTS where archives are made",
                ),
            }
        }
        _ => Finding::good(CHECK, "RESTORE_AGE_KEY_FILE can be read; there is no archive for age yet to try it on"),
    }
}

struct Server {
    session: Connection,
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
    let (major, standby, makes_databases) = (row.get::<_, i32>(1), row.get(2), row.get(3));
    Ok(Server {
        session,
        told: format!("PostgreSQL {version}, {database}"),
        major: u32::try_from(major).unwrap_or(0),
        standby,
        makes_databases,
    })
}
