//! Where archives are restored to, configured.

use std::path::PathBuf;

use super::fixture;
use super::keys::Keys;
use super::restore::Restore;
use super::settings;
use crate::config::{Reader, Setting};
use crate::postgres::client_programs::PG_BIN;
use crate::replication::settings::database;

/// The server that archives are restored to.
pub static RESTORE_DATABASE_URL: Setting = Setting::new(
    "RESTORE_DATABASE_URL",
    "Server that `backup restore` restores to: postgres://user:password@host:5432/postgres. Its database is only for connecting; archives go into new ones beside it. Never taken from DATABASE_URL.",
);
/// What is done with each restored database.
pub static RESTORE_HOOK: Setting = Setting::new(
    "RESTORE_HOOK",
    "Shell line that runs after each restore, before the database takes another one's place: PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE lead to it, RESTORED_DATABASE, RESTORED_ARCHIVE and RESTORED_FROM name it, its archive and its source. A failure fails the restore and keeps the database. Example: psql -c 'truncate session'",
);
/// The server for scratch databases.
pub static BACKUP_DRILL_DATABASE_URL: Setting = Setting::new(
    "BACKUP_DRILL_DATABASE_URL",
    "Server on which drills make and drop scratch databases (bullwork_drill_…): postgres://user:password@host:5432/postgres. The role makes databases, and the roles that archives name. Unset: RESTORE_DATABASE_URL.",
);

impl Restore {
    /// Reads everything, with the server of the first of `servers` that is set; nothing when no store or no server is configured, or a
    /// mistake was noted.
    pub fn from_settings(reader: &Reader<'_>, servers: &[&'static Setting]) -> Option<Self> {
        if !settings::wanted(reader) {
            return None;
        }
        let (keys, groups) = (Keys::from_settings(reader), fixture::groups(reader));
        let server = servers.iter().find(|setting| reader.optional(setting).is_some());
        let server = server.and_then(|setting| database(reader, setting));
        Some(Restore {
            shelf: settings::shelf(reader)?,
            keys,
            server: server?,
            programs: reader.optional(&PG_BIN).map(PathBuf::from),
            groups,
            hook: reader.optional(&RESTORE_HOOK),
        })
    }
}
