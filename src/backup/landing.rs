//! The database that an archive is restored into: made, looked at, dropped, renamed.
//!
//! A database that we make carries a comment that tells what it is, so that a run that takes over from one that was killed
//! knows its own: `being restored` until the rows are there, `restored from …` from the very transaction that
//! brought them.

use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::manifest::Demands;
use super::{demands, properties};
use crate::postgres::{Connection, Database, Doing, PostgresError, explain, quote_identifier, quote_literal};
use crate::worker::Run;

/// Longest name of a database.
const NAME_LIMIT: usize = 63;
/// How often a switch is tried while sessions come back faster than they are ended, and the pause between.
const TRIES: u32 = 20;
/// The server needs a moment to notice that a run was killed.
const CLAIMS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(500);

/// Lock of who restores into a database: `bulr` in ASCII, then a number for its name.
const CLAIM: &str = "select pg_try_advisory_lock(1651862642, hashtext($1))";
const OWNER: &str = "select pg_get_userbyid(datdba)::text, pg_has_role(datdba, 'usage') from pg_database where datname = $1";
const LOOK: &str = "select shobj_description(oid, 'pg_database') from pg_database where datname = $1";
/// Some of what is in a database that holds anything at all.
const HOLDINGS: &str = "select x from (
    (select 'table or view ' || c.oid::regclass as x from pg_class c where c.oid >= 16384 and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
        and c.relpersistence <> 't' and c.relnamespace <> 99 limit 4)
    union all (select 'function ' || p.oid::regprocedure from pg_proc p where p.oid >= 16384 limit 2)
    union all (select 'type ' || t.oid::regtype from pg_type t where t.oid >= 16384 and t.typrelid = 0 and t.typelem = 0 limit 2)
    union all (select 'schema ' || n.nspname from pg_namespace n where n.oid >= 16384 and n.nspname !~ '^pg_' limit 2)
    union all (select 'extension ' || e.extname from pg_extension e where e.oid >= 16384 limit 2)
    union all (select 'large object ' || l.oid from pg_largeobject_metadata l limit 1)) h limit 4";
const RIGHTS: &str = "select current_setting('server_version_num')::int, rolcreatedb or rolsuper, pg_is_in_recovery(), \
    (select setting from pg_settings where name = 'data_directory') from pg_roles where rolname = current_user";
const MISSING_ROLES: &str = "select string_agg(format('%I', r), ', ' order by r) from unnest($1::text[]) r \
    where not exists (select from pg_roles where rolname = r) and not (select rolsuper or rolcreaterole from pg_roles where rolname = current_user)";
const SESSIONS: &str = "select coalesce(string_agg(distinct coalesce(nullif(application_name, ''), usename::text, backend_type), ', '), ''), count(*) \
    from pg_stat_activity where datname = $1 and pid <> pg_backend_pid() and backend_type = 'client backend'";
const END_SESSIONS: &str =
    "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = any($1) and pid <> pg_backend_pid()";

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The name is none.
    #[error(
        "`{0}` cannot be a database's name here: letters, digits, `.`, `_` and `-`, begun with a letter or digit, 63 at most, or the very name of the database that the archive is of; an address with its password belongs into RESTORE_DATABASE_URL, never into an argument"
    )]
    Name(String),
    /// What is in it would be in every database that is made later.
    #[error("`{0}` is the template of every new database; name another one")]
    Template(String),
    /// Nothing may be written there.
    #[error("{0} is a standby, where nothing can be restored; let RESTORE_DATABASE_URL name a primary")]
    Standby(String),
    /// The role may not make databases.
    #[error("the role of {0} may not make databases; grant it CREATEDB, or restore into a database that is there and empty")]
    NoRight(String),
    /// It may not make the roles that are missing.
    #[error(
        "{server} lacks the roles {missing}, which the archive names, and the role that restores may not make them; make them, grant it CREATEROLE, or restore as a superuser"
    )]
    Roles {
        /// Where.
        server: String,
        /// Their names.
        missing: String,
    },
    /// It may not do what the archive needs.
    #[error("the role of {server} cannot restore this archive: {missing}")]
    Demands {
        /// Where.
        server: String,
        /// What is missing.
        missing: String,
    },
    /// The server is older than the source.
    #[error("{server} is PostgreSQL {found}, and the archive comes from {needed}; restore to a server that is not older")]
    TooOld {
        /// Where.
        server: String,
        /// Its major version.
        found: u32,
        /// The source's.
        needed: u32,
    },
    /// The disk is too small.
    #[error("the disk of {server} has {free} bytes free, and the archive holds {needed} as SQL, before indexes; make room")]
    Full {
        /// Where.
        server: String,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// There is something in it.
    #[error(
        "database `{name}` is not empty ({holdings}); name another one, or say --into-nonempty, which adds to what is there and changes nothing when a name is taken"
    )]
    NotEmpty {
        /// Its name.
        name: String,
        /// Some of what it holds.
        holdings: String,
    },
    /// An earlier restore made it.
    #[error("database `{0}` is there already, restored from this very archive; use that one, or name another one by --into")]
    Copy(String),
    /// Somebody works in the database that is to be replaced.
    #[error("{count} sessions are connected to `{name}` ({who}), so it cannot change places; end them, or say --end-sessions")]
    InUse {
        /// Its name.
        name: String,
        /// How many.
        count: i64,
        /// Their applications.
        who: String,
    },
    /// It is somebody else's, so its name is not ours to change.
    #[error(
        "database `{name}` belongs to the role `{owner}`, so the role of RESTORE_DATABASE_URL may not rename it; grant it `{owner}`, or restore as a superuser"
    )]
    NotOurs {
        /// Its name.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// Another run is at it.
    #[error("another run restores into database `{0}`; wait for its end, or name another one")]
    Busy(String),
    /// They came back.
    #[error("sessions come back to `{0}` as fast as they are ended; stop the application for the switch")]
    NeverIdle(String),
    /// The server failed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

/// A name that we made or that somebody gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DatabaseName(String);

impl DatabaseName {
    /// A plain name; or the one that the archive's `source` has, whatever is in it.
    pub(super) fn parse(text: &str, source: Option<&str>) -> Result<Self, LandingError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if matches!(text, "template0" | "template1") {
            Err(LandingError::Template(text.to_owned()))
        } else if source == Some(text) || begins && text.len() <= NAME_LIMIT && text.chars().all(good) {
            Ok(DatabaseName(text.to_owned()))
        } else {
            Err(LandingError::Name(crate::redact::mask_url(&text.chars().take(100).collect::<String>())))
        }
    }

    /// `base`, made fit, with `end` after it.
    pub(super) fn derived(base: &str, end: &str) -> Self {
        let fit: String =
            base.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect();
        let fit = fit.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let room = NAME_LIMIT - end.len() - 1;
        DatabaseName(format!("{}_{end}", if fit.is_empty() { "db" } else { &fit[..fit.len().min(room)] }))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn quoted(&self) -> String {
        quote_identifier(&self.0)
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a database by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// There is none.
    Absent,
    /// Ours, from a run that did not come to its end.
    Begun,
    /// Ours, restored by this very request.
    Restored,
    /// Anything else.
    Foreign,
}

/// The server that archives are restored to.
pub(super) struct Landing<'d> {
    server: &'d Database,
    session: Connection,
    major: u32,
    can_create: bool,
    data_directory: Option<String>,
}

/// Begins the comment of a database that is restored.
const RESTORED: &str = "bullwork: restored from";

/// What the comment of a database of ours says.
fn begun_mark(request: &str) -> String {
    format!("bullwork: being restored (request {request})")
}

/// The same once its rows are there.
pub(super) fn restored_mark(archive: &str, request: &str) -> String {
    format!("{RESTORED} {archive} (request {request})")
}

/// SQL that gives a database its comment.
pub(super) fn comment(name: &DatabaseName, text: &str) -> String {
    format!("comment on database {} is {};\n", name.quoted(), quote_literal(text))
}

impl<'d> Landing<'d> {
    /// Connects. `server`'s own database is only for that; where it is `replaced`, another one is.
    pub(super) async fn connect(server: &'d Database, replaced: Option<&DatabaseName>) -> Result<Self, LandingError> {
        let through = match replaced {
            Some(name) if name.as_str() == server.name() && name.as_str() == "postgres" => server.named("template1"),
            Some(name) if name.as_str() == server.name() => server.named("postgres"),
            _ => server.clone(),
        };
        let session = through.connect("restore").await?;
        let row = session.query_one(RIGHTS, &[]).await.doing(|| "asking the server what it is".to_owned())?;
        if row.get(2) {
            return Err(LandingError::Standby(server.to_string()));
        }
        let major = u32::try_from(row.get::<_, i32>(0) / 10_000).unwrap_or_default();
        Ok(Landing { server, session, major, can_create: row.get(1), data_directory: row.get(3) })
    }

    /// Whether the server is one for an archive of a source of version `needed` and of `bytes` bytes.
    pub(super) fn check(&self, needed: u32, bytes: u64) -> Result<(), LandingError> {
        let server = self.server.to_string();
        if self.major < needed {
            return Err(LandingError::TooOld { server, found: self.major, needed });
        }
        // Elsewhere the server does not tell.
        let directory = self.data_directory.as_deref().filter(|_| self.server.is_here());
        let stat = directory.and_then(|directory| nix::sys::statvfs::statvfs(directory).ok());
        let free = stat.map(|stat| stat.blocks_available() * stat.fragment_size());
        match free {
            Some(free) if free < bytes => Err(LandingError::Full { server, free, needed: bytes }),
            _ => Ok(()),
        }
    }

    /// Whether the role may make databases.
    pub(super) fn check_right(&self) -> Result<(), LandingError> {
        if self.can_create { Ok(()) } else { Err(LandingError::NoRight(self.server.to_string())) }
    }

    /// Whether the roles that the archive names are there, or can be made.
    pub(super) async fn check_roles(&self, names: &[String]) -> Result<(), LandingError> {
        let row =
            self.session.query_one(MISSING_ROLES, &[&names]).await.doing(|| "looking for the archive's roles".to_owned())?;
        match row.get::<_, Option<String>>(0) {
            Some(missing) => Err(LandingError::Roles { server: self.server.to_string(), missing }),
            None => Ok(()),
        }
    }

    /// Whether the role may make what the archive holds; in a database that is `new`, or in one that is there.
    pub(super) async fn check_demands(&self, demands: &Demands, new: bool) -> Result<(), LandingError> {
        let missing = demands::missing(&self.session, demands, new).await?;
        match missing.is_empty() {
            true => Ok(()),
            false => Err(LandingError::Demands { server: self.server.to_string(), missing: missing.join("; ") }),
        }
    }

    /// SQL that lets the role act as the owners which it makes.
    pub(super) async fn memberships(&self, demands: &Demands) -> Result<String, LandingError> {
        Ok(demands::memberships(&self.session, demands).await?)
    }

    /// The database of that name.
    pub(super) fn database(&self, name: &DatabaseName) -> Database {
        self.server.named(name.as_str())
    }

    /// Keeps other runs from the database of that name for as long as this session lives: what they find there must not be
    /// taken for what a killed run left.
    pub(super) async fn claim(&self, name: &DatabaseName) -> Result<(), LandingError> {
        for _ in 0..CLAIMS {
            let row = self.session.query_one(CLAIM, &[&name.as_str()]).await.doing(|| format!("claiming the name `{name}`"))?;
            if row.get(0) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(LandingError::Busy(name.to_string()))
    }

    /// What is there by that name, for a request that restores `archive`.
    pub(super) async fn look(&self, name: &DatabaseName, archive: &str, request: &str) -> Result<Condition, LandingError> {
        let row = self.session.query_opt(LOOK, &[&name.as_str()]).await.doing(|| format!("looking for database `{name}`"))?;
        Ok(match row.map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()) {
            None => Condition::Absent,
            // What somebody wrote about the one before stands below.
            Some(text) if text.lines().next() == Some(&restored_mark(archive, request)) => Condition::Restored,
            Some(text) if text.starts_with("bullwork: being restored") => Condition::Begun,
            Some(_) => Condition::Foreign,
        })
    }

    /// Fails unless the database is empty; one that an earlier request restored from `archive` is told as that.
    pub(super) async fn check_empty(&self, name: &DatabaseName, archive: &str) -> Result<(), LandingError> {
        let session = self.database(name).connect("restore").await?;
        let rows = session.query(HOLDINGS, &[]).await.doing(|| format!("looking what database `{name}` holds"))?;
        if rows.is_empty() {
            return Ok(());
        }
        let row = self.session.query_opt(LOOK, &[&name.as_str()]).await.doing(|| format!("looking for database `{name}`"))?;
        let text: Option<String> = row.and_then(|row| row.get(0));
        if text.is_some_and(|text| text.starts_with(&format!("{RESTORED} {archive} "))) {
            return Err(LandingError::Copy(name.to_string()));
        }
        let holdings: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        Err(LandingError::NotEmpty { name: name.to_string(), holdings: holdings.join(", ") })
    }

    /// Makes an empty database with the source's character set.
    pub(super) async fn create(&self, name: &DatabaseName, encoding: &str, request: &str) -> Result<(), LandingError> {
        let doing = || format!("making database `{name}`");
        let encoding = quote_literal(encoding);
        // What an administrator put into template1 would be in the way.
        let sql = format!("create database {} template template0 encoding {encoding}", name.quoted());
        self.session.batch_execute(&sql).await.doing(doing)?;
        Ok(self.session.batch_execute(&comment(name, &begun_mark(request))).await.doing(doing)?)
    }

    /// Drops a database of ours that was not restored, whoever is connected to it. One whose rows are there after all stays: only
    /// the word of it was lost.
    pub(super) async fn drop_begun(&self, name: &DatabaseName) -> Result<(), LandingError> {
        if self.look(name, "", "").await? != Condition::Begun {
            return Ok(());
        }
        let force = if self.major >= 13 { " with (force)" } else { "" };
        let sql = format!("drop database if exists {}{force}", name.quoted());
        Ok(self.session.batch_execute(&sql).await.doing(|| format!("dropping database `{name}`"))?)
    }

    /// Fails while others are connected to the database.
    pub(super) async fn check_idle(&self, name: &DatabaseName) -> Result<(), LandingError> {
        let row =
            self.session.query_one(SESSIONS, &[&name.as_str()]).await.doing(|| format!("asking who is connected to `{name}`"))?;
        match row.get(1) {
            0 => Ok(()),
            count => Err(LandingError::InUse { name: name.to_string(), count, who: row.get(0) }),
        }
    }

    /// Fails unless the database is ours to rename; one that is not there is.
    pub(super) async fn check_owner(&self, name: &DatabaseName) -> Result<(), LandingError> {
        let row =
            self.session.query_opt(OWNER, &[&name.as_str()]).await.doing(|| format!("asking whose database `{name}` is"))?;
        match row {
            Some(row) if !row.get::<_, bool>(1) => Err(LandingError::NotOurs { name: name.to_string(), owner: row.get(0) }),
            _ => Ok(()),
        }
    }

    /// Gives `fresh`, which is restored, owner, rights, settings and comment of `live`. What may not be done is told.
    pub(super) async fn take_over(
        &self,
        run: &Run,
        fresh: &DatabaseName,
        live: &DatabaseName,
        mark: &str,
    ) -> Result<(), LandingError> {
        for refused in properties::take_over(&self.session, live.as_str(), fresh.as_str()).await? {
            run.warn(format!("`{fresh}` does not take over from `{live}`: {refused}"));
        }
        if let Some(theirs) = properties::comment(&self.session, live.as_str()).await? {
            let sql = comment(fresh, &format!("{mark}\n{theirs}"));
            self.session.batch_execute(&sql).await.doing(|| format!("taking over the comment of database `{live}`"))?;
        }
        Ok(())
    }

    /// Gives `fresh` the name `live`, and what has that name the name `kept`, both or none. False: there was none of that name.
    pub(super) async fn swap(
        &self,
        run: &Run,
        fresh: &DatabaseName,
        live: &DatabaseName,
        kept: &DatabaseName,
        end_sessions: bool,
    ) -> Result<bool, LandingError> {
        let doing = || format!("giving database `{fresh}` the name `{live}`");
        let there = self.session.query_opt(LOOK, &[&live.as_str()]).await.doing(doing)?.is_some();
        let rename =
            |from: &DatabaseName, to: &DatabaseName| format!("alter database {} rename to {};", from.quoted(), to.quoted());
        let aside = if there { rename(live, kept) } else { String::new() };
        let sql = format!("begin; {aside} {} commit", rename(fresh, live));
        for _ in 0..TRIES {
            if end_sessions {
                let names = [fresh.as_str(), live.as_str()];
                let ended: i64 = self.session.query_one(END_SESSIONS, &[&&names[..]]).await.doing(doing)?.get(0);
                if ended > 0 {
                    run.warn(format!("ended {ended} sessions of `{live}` and `{fresh}` for the switch"));
                }
            } else if there {
                self.check_idle(live).await?;
            }
            match self.session.batch_execute(&sql).await {
                Ok(()) => return Ok(there),
                Err(error) => {
                    self.session.batch_execute("rollback").await.doing(doing)?;
                    if error.code() != Some(&SqlState::OBJECT_IN_USE) {
                        return Err(PostgresError::Statement { doing: doing(), reason: explain(&error) }.into());
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(LandingError::NeverIdle(live.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_derived_ones_fit() {
        for good in ["shop", "shop-2", "9.x_y"] {
            assert_eq!(DatabaseName::parse(good, None).unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a b", "é", "a\"b", "postgres://u:hunter22@h/d", &"x".repeat(64)] {
            let error = DatabaseName::parse(bad, Some("shop")).unwrap_err().to_string();
            assert!(!error.contains("hunter22"), "{error}");
        }
        assert_eq!(DatabaseName::parse("Mein \"Shöp\"", Some("Mein \"Shöp\"")).unwrap().quoted(), "\"Mein \"\"Shöp\"\"\"");
        assert!(DatabaseName::parse("template1", Some("template1")).is_err());
        assert_eq!(DatabaseName::derived("shop", "20260102_030405").as_str(), "shop_20260102_030405");
        let long = DatabaseName::derived(&"ü x".repeat(40), "before_20260102_030405");
        assert!(long.as_str().len() <= 63 && DatabaseName::parse(long.as_str(), None).is_ok(), "{long}");
        assert_eq!(DatabaseName::derived("é", "1").as_str(), "db_1");
    }
}
