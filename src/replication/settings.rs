//! Settings that several replication kinds share: source, target, and the mode of each table.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::config::{Reader, Setting};
use crate::postgres::{self, Database};

/// The database that is copied from.
pub static SOURCE_DATABASE_URL: Setting = Setting::new(
    "SOURCE_DATABASE_URL",
    "Database to copy from: postgres://user:password@host:5432/name?sslmode=require. Nothing is ever written to it.",
);
/// The database that is copied to.
pub static TARGET_DATABASE_URL: Setting = Setting::new(
    "TARGET_DATABASE_URL",
    "Database to copy to (the warehouse). DATABASE_URL is accepted too; when both are set they must agree.",
)
.aliases(&["DATABASE_URL"]);
/// Mode of each table.
pub static BACKUP_MODE: Setting = Setting::new(
    "BACKUP_MODE",
    "JSON object from table name to `incremental` (only new rows are appended), `delta` (kept, and changed rows, new and deleted ones are brought over), `none` (never touched) or `full`. Tables it does not name are copied in full. Names are exact; `schema.table` outside `public`. Example: {\"knowledge-elements\":\"incremental\",\"audit\":\"none\"}",
)
.default("{}");
/// Whether foreign keys are copied.
pub static RESTORE_FK_CONSTRAINTS: Setting =
    Setting::new("RESTORE_FK_CONSTRAINTS", "Whether the full copy makes the source's foreign keys on the target: true or false.")
        .default("true");
/// Whether a copy is built beside the one that serves.
pub static REPLICATION_SWAP: Setting = Setting::new(
    "REPLICATION_SWAP",
    "Whether the full copy is built beside the one that serves and switched in when it is whole: on or off. off needs room for one copy only, but readers see tables empty meanwhile.",
)
.default("on");
/// Patience with readers.
pub static REPLICATION_SWAP_TIMEOUT: Setting = Setting::new(
    "REPLICATION_SWAP_TIMEOUT",
    "Minutes to wait for readers whose transactions hold replaced tables, before the run fails and the copy before goes on serving; 1 to 1440.",
)
.default("60");
/// How much the target can hold.
pub static REPLICATION_TARGET_SPACE: Setting = Setting::new(
    "REPLICATION_TARGET_SPACE",
    "Gigabytes (10^9 bytes) that the databases of the target's server may take in all, as your plan says. When two copies do not fit, tables are replaced in place. Unset: free space is asked for where the server is on this machine, and taken for granted elsewhere.",
);
/// History.
pub static REPLICATION_GENERATIONS: Setting = Setting::new(
    "REPLICATION_GENERATIONS",
    "Earlier copies that are kept after the switch, for `bullwork replication rollback`; 0 to 9. The oldest one goes when the next run begins.",
)
.default("1");
/// What becomes of half a copy.
pub static REPLICATION_RESUME: Setting = Setting::new(
    "REPLICATION_RESUME",
    "What a full copy does with the tables that a run that was cut off had finished: consistent takes them over only if nobody has written to the source since, so that all tables are of one moment; relaxed takes them over although the source moved on.",
)
.default("consistent");
/// Proof of the copy.
pub static REPLICATION_VERIFY: Setting = Setting::new(
    "REPLICATION_VERIFY",
    "How the full copy is compared with the source before it serves: counts (the rows that each side counted) or checksum (every value of every row as well, in the copy's own snapshot; reads both sides once more).",
)
.default("counts");
/// A limit for what is read.
pub static REPLICATION_MAX_RATE: Setting = Setting::new(
    "REPLICATION_MAX_RATE",
    "Most megabytes (10^6 bytes) a second that a replication reads from the source, over all tables; 1 to 1000000. Unset: no limit.",
);
/// A limit for who reads.
pub static REPLICATION_SOURCE_CONNECTIONS: Setting = Setting::new(
    "REPLICATION_SOURCE_CONNECTIONS",
    "Tables that the full copy reads from the source at the same time, each by a connection, beside one or two that only wait; 1 to 32. Unset: as PG_RESTORE_JOBS. Delta tables are read by two at most.",
);
/// When to stand back, by numbers.
pub static REPLICATION_BUSY_SESSIONS: Setting = Setting::new(
    "REPLICATION_BUSY_SESSIONS",
    "Reading stops while more sessions of others than this are at work on the source database, for 30 minutes in all at most; 1 to 100000. Unset: never.",
);
/// When to stand back, by a query.
pub static REPLICATION_BUSY_QUERY: Setting = Setting::new(
    "REPLICATION_BUSY_QUERY",
    "The same while this query says true on the source; it is asked every second. Example: select count(*) > 20 from pg_stat_activity where wait_event_type = 'Lock'",
);
/// Parallelism.
pub static PG_RESTORE_JOBS: Setting =
    Setting::new("PG_RESTORE_JOBS", "Tables copied, and indexes built, at the same time; 1 to 32.").default("4");

/// A table by its exact names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Name inside the schema.
    pub name: String,
}

impl TableName {
    /// A table of schema `public`.
    #[must_use]
    pub fn public(name: &str) -> Self {
        TableName { schema: "public".to_owned(), name: name.to_owned() }
    }

    /// Quoted for SQL, with its schema.
    #[must_use]
    pub fn quoted(&self) -> String {
        postgres::quote_qualified(&self.schema, &self.name)
    }
}

/// As people write it: the plain name in `public`, else `schema.name`.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema == "public" { f.write_str(&self.name) } else { write!(f, "{}.{}", self.schema, self.name) }
    }
}

/// How a table gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableMode {
    /// Copied whole by the full replication.
    Full,
    /// Kept by the full replication; new rows are appended by the incremental one.
    Incremental,
    /// Kept by the full replication; the incremental one makes it equal to the source.
    Delta,
    /// Kept by both.
    None,
}

/// The members of a JSON object in their order, repeated ones too, where a map would keep the last in silence.
#[derive(Debug, Default)]
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// `BACKUP_MODE`: the tables it names, in its order. A key is compared with the names of the
/// catalogue, never split, because a name may hold dots itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableModes {
    entries: Vec<(String, TableMode)>,
}

impl TableModes {
    /// Reads `BACKUP_MODE`.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let Members(members) = reader.json(&BACKUP_MODE, "an object such as {\"answers\":\"incremental\"}");
        let mut entries: Vec<(String, TableMode)> = Vec::new();
        for (table, mode) in members {
            if entries.iter().any(|(known, _)| *known == table) {
                reader.problem(BACKUP_MODE.name, format!("names table `{table}` twice; keep one of the two"));
                continue;
            }
            let mode = match mode.as_str() {
                Some("incremental") => TableMode::Incremental,
                Some("delta") => TableMode::Delta,
                Some("none") => TableMode::None,
                Some("full") => TableMode::Full,
                _ => {
                    reader.problem(
                        BACKUP_MODE.name,
                        format!("table `{table}` has mode {mode}; write \"incremental\", \"delta\", \"none\" or \"full\""),
                    );
                    continue;
                }
            };
            entries.push((table, mode));
        }
        TableModes { entries }
    }

    /// Modes given in code.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a str, TableMode)>) -> Self {
        TableModes { entries: entries.into_iter().map(|(t, m)| (t.to_owned(), m)).collect() }
    }

    /// The keys with this mode, as written and in order.
    pub fn keys_with(&self, mode: TableMode) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(move |(_, m)| *m == mode).map(|(t, _)| t.as_str())
    }

    /// The mode written for `table`, under either spelling; [`TableMode::Full`] when none is.
    #[must_use]
    pub fn mode_of(&self, table: &TableName) -> TableMode {
        let qualified = format!("{}.{}", table.schema, table.name);
        self.entries
            .iter()
            .find(|(key, _)| (table.schema == "public" && *key == table.name) || *key == qualified)
            .map_or(TableMode::Full, |(_, mode)| *mode)
    }

    /// Keys that name no table of `existing`: a mistake somebody would otherwise find out about
    /// by a table that is copied, or not copied, against their wish.
    #[must_use]
    pub fn unknown<'a>(&'a self, existing: &[TableName]) -> Vec<&'a str> {
        self.entries
            .iter()
            .map(|(key, _)| key.as_str())
            .filter(|key| {
                !existing.iter().any(|t| (t.schema == "public" && *key == t.name) || *key == format!("{}.{}", t.schema, t.name))
            })
            .collect()
    }
}

/// Reads a database setting; a missing or unusable one is a problem of `setting`.
pub fn database(reader: &Reader<'_>, setting: &Setting) -> Option<Database> {
    let Some(text) = reader.optional(setting) else {
        reader.problem(setting.name, "is not set; write postgres://user@host:5432/name");
        return None;
    };
    match Database::parse(&text) {
        Ok(database) => Some(database),
        Err(error) => {
            reader.problem(setting.name, error.to_string());
            None
        }
    }
}

/// The source database.
pub fn source(reader: &Reader<'_>) -> Option<Database> {
    database(reader, &SOURCE_DATABASE_URL)
}

/// The source database for a step that does not need it: nothing when it is not set.
pub fn source_if_set(reader: &Reader<'_>) -> Option<Database> {
    reader.optional(&SOURCE_DATABASE_URL).and_then(|_| source(reader))
}

/// The target database. The reference system wrote it through two variables that nothing
/// compared (contract §2); here they must agree.
pub fn target(reader: &Reader<'_>) -> Option<Database> {
    let target = database(reader, &TARGET_DATABASE_URL)?;
    let environment = reader.environment();
    if let (Some(_), Some((other, _))) = (environment.get("TARGET_DATABASE_URL"), environment.get("DATABASE_URL")) {
        match Database::parse(other) {
            Ok(other) if other == target => {}
            Ok(other) => reader
                .problem("DATABASE_URL", format!("names {other} but TARGET_DATABASE_URL names {target}; set one of them only")),
            Err(error) => reader.problem("DATABASE_URL", error.to_string()),
        }
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn table_modes_are_read_in_order_and_mistakes_are_named() {
        let environment = Environment::of([("BACKUP_MODE", r#"{"b":"incremental","A.x":"none","c":"full","d":"delta"}"#)]);
        let reader = Reader::new(&environment);
        let modes = TableModes::from_settings(&reader);
        assert!(reader.finish().is_ok());
        assert_eq!(modes.keys_with(TableMode::Incremental).collect::<Vec<_>>(), ["b"]);
        assert_eq!(modes.keys_with(TableMode::Delta).collect::<Vec<_>>(), ["d"]);
        assert_eq!(modes.mode_of(&TableName { schema: "A".into(), name: "x".into() }), TableMode::None);
        assert_eq!(modes.mode_of(&TableName::public("other")), TableMode::Full);
        assert_eq!(modes.unknown(&["b", "c", "d"].map(TableName::public)), ["A.x"]);

        let environment = Environment::of([("BACKUP_MODE", r#"{"b":"incremantal"}"#)]);
        let reader = Reader::new(&environment);
        TableModes::from_settings(&reader);
        let error = reader.finish().unwrap_err().to_string();
        assert!(error.contains("table `b` has mode \"incremantal\""), "{error}");

        let environment = Environment::of([("BACKUP_MODE", "nonsense")]);
        let reader = Reader::new(&environment);
        TableModes::from_settings(&reader);
        assert!(reader.finish().unwrap_err().to_string().contains("BACKUP_MODE: should be a JSON value"));

        let environment = Environment::of([("BACKUP_MODE", r#"{"b":"incremental","c":"full","b":"none"}"#)]);
        let reader = Reader::new(&environment);
        TableModes::from_settings(&reader);
        assert!(reader.finish().unwrap_err().to_string().contains("BACKUP_MODE: names table `b` twice"));
    }

    #[test]
    fn two_names_for_the_target_must_agree() {
        let environment =
            Environment::of([("TARGET_DATABASE_URL", "postgres://u:pw1234@h/a"), ("DATABASE_URL", "postgres://u:pw1234@h/b")]);
        let reader = Reader::new(&environment);
        target(&reader);
        let error = reader.finish().unwrap_err().to_string();
        assert!(error.contains("set one of them only") && !error.contains("pw1234"), "{error}");
    }
}
