//! Masking and subsetting: what fills a [`Projection`], so that personal data never leaves the source.
//!
//! `REPLICATION_RULES` names a TOML file ([`mod@file`], docs/masking.md). Each named column is replaced by an
//! expression that the *source* works out ([`mask`]), keyed by `REPLICATION_MASK_KEY` ([`key`]); each `where`
//! chooses rows there. [`apply`] holds the rules against the source's catalogue before anything is changed.
//!
//! **Fails closed.** A column of a masked table that no rule names, a rule for what does not exist, a mask that
//! its type, a key or an index could not bear: each stops the run by name. So does an appended table whose rows
//! on the target were copied under other rules ([`fingerprint`]).

mod apply;
mod catalogue;
mod expression;
mod file;
mod fingerprint;
mod key;
mod mask;

use std::collections::{HashMap, HashSet};
use std::path::Path;

pub use fingerprint::Fingerprint;
pub use key::MaskKey;

use super::projection::{Projection, Reading};
use crate::config::{Reader, Setting};
use crate::postgres::PostgresError;
use file::TableRules;

/// The file.
pub static REPLICATION_RULES: Setting = Setting::new(
    "REPLICATION_RULES",
    "TOML file that says which columns are masked before they leave the source, and which rows leave it at all (docs/masking.md). Unset: everything is copied as it is.",
);
/// The secret.
pub static REPLICATION_MASK_KEY: Setting = Setting::new(
    "REPLICATION_MASK_KEY",
    "Secret of at least 16 bytes that the masks `hash`, `email` and `date_shift` are made with. The same key gives the same masks every night; `openssl rand -base64 32` makes one.",
)
.secret();

/// What a column is replaced by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Itself.
    Keep,
    /// A value of the same type that nothing but the key leads to.
    Hash,
    /// An address that cannot receive anything.
    Email,
    /// NULL.
    Null,
    /// This, where there was something.
    Fixed(String),
    /// A moment at most so many days away.
    DateShift(u32),
    /// What this expression over the row gives.
    Sql(String),
}

impl Rule {
    /// As the file says it.
    fn name(&self) -> &'static str {
        match self {
            Rule::Keep => "keep",
            Rule::Hash => "hash",
            Rule::Email => "email",
            Rule::Null => "null",
            Rule::Fixed(_) => "fixed",
            Rule::DateShift(_) => "date_shift",
            Rule::Sql(_) => "sql",
        }
    }

    fn keyed(&self) -> bool {
        matches!(self, Rule::Hash | Rule::Email | Rule::DateShift(_))
    }
}

/// Why rules cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// They do not fit the source; trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// The source could not be asked.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

/// The rules of a deployment; none by default.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    tables: Vec<TableRules>,
    key: Option<MaskKey>,
}

impl Rules {
    /// Reads the file and the key.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let key = reader.optional(&REPLICATION_MASK_KEY).and_then(|_| {
            MaskKey::new(reader.secret(&REPLICATION_MASK_KEY).expose())
                .inspect_err(|problem| reader.problem(REPLICATION_MASK_KEY.name, problem))
                .ok()
        });
        let missing = reader.optional(&REPLICATION_MASK_KEY).is_none();
        let Some(path) = reader.optional(&REPLICATION_RULES) else { return Rules { tables: Vec::new(), key } };
        let read = std::fs::read_to_string(Path::new(&path)).map_err(|e| e.to_string()).and_then(|text| file::parse(&text));
        let tables = read.unwrap_or_else(|error| {
            reader.problem(REPLICATION_RULES.name, format!("`{path}` cannot be used: {error}"));
            Vec::new()
        });
        if missing && let Some(problem) = key_wanted(&tables) {
            reader.problem(REPLICATION_MASK_KEY.name, problem);
        }
        Rules { tables, key }
    }

    /// The rules of `text`, a file's content, with `key`.
    ///
    /// # Errors
    /// When either cannot be used, or the text needs a key and there is none.
    pub fn parse(text: &str, key: Option<&str>) -> Result<Self, String> {
        let tables = file::parse(text)?;
        let key = key.map(MaskKey::new).transpose().map_err(|e| format!("{} {e}", REPLICATION_MASK_KEY.name))?;
        match key_wanted(&tables).filter(|_| key.is_none()) {
            Some(problem) => Err(format!("{} {problem}", REPLICATION_MASK_KEY.name)),
            None => Ok(Rules { tables, key }),
        }
    }

    /// Whether everything is copied as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Gives the key to the transaction that `source` is in; masks cannot be worked out without, and it is
    /// forgotten with the transaction. Every session that reads rows needs it.
    ///
    /// # Errors
    /// The server's.
    pub async fn enter(&self, source: &tokio_postgres::Client) -> Result<(), PostgresError> {
        match &self.key {
            Some(key) if !self.tables.is_empty() => key.enter(source).await,
            _ => Ok(()),
        }
    }
}

fn key_wanted(tables: &[TableRules]) -> Option<String> {
    let (table, column, rule) =
        tables.iter().find_map(|t| t.columns.iter().find(|(_, r)| r.keyed()).map(|(c, r)| (&t.key, c, r)))?;
    Some(format!(
        "is not set, but table `{table}`, column `{column}` has rule `{}`, which needs it; set it to at least {} bytes (openssl rand -base64 32)",
        rule.name(),
        key::SHORTEST
    ))
}

/// The rules of one table of the source, a partition among them.
#[derive(Clone, Debug, Default)]
struct Ruled {
    /// What replaces each column; nothing: itself. A column that is not here has no rule.
    columns: HashMap<String, Option<String>>,
    condition: Option<String>,
    fingerprint: Fingerprint,
}

/// Rules that fit the source.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    tables: HashMap<u32, Ruled>,
    /// Foreign keys that need not hold any more, by oid.
    pub loose_keys: HashSet<u32>,
}

impl Applied {
    /// What is read of the `columns` of the table with this oid.
    ///
    /// # Errors
    /// The name of a column that has no rule where it needs one: it came after the rules were checked.
    pub fn projection(&self, oid: u32, columns: &[String]) -> Result<Projection, String> {
        let Some(ruled) = self.tables.get(&oid) else { return Ok(Projection::plain(columns)) };
        let reading = |column: &String| match ruled.columns.get(column) {
            Some(instead) => Ok(Reading { column: column.clone(), instead: instead.clone() }),
            None => Err(column.clone()),
        };
        let readings = columns.iter().map(reading).collect::<Result<_, _>>()?;
        Ok(Projection { readings, condition: ruled.condition.clone() })
    }

    /// What to remember beside rows that are copied under these rules.
    #[must_use]
    pub fn fingerprint(&self, oid: u32) -> Fingerprint {
        self.tables.get(&oid).map(|ruled| ruled.fingerprint.clone()).unwrap_or_default()
    }
}

/// The server's words about a statement over rows that are masked, without what may be a value of theirs: of
/// errors of data only the code is told.
#[must_use]
pub fn explain_without_values(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else { return crate::postgres::explain(error) };
    let code = db.code().code();
    const HARMLESS: &[&str] = &["08", "25", "28", "40", "42", "53", "54", "55", "57", "58"];
    let corrupted = matches!(code, "XX001" | "XX002");
    if corrupted || HARMLESS.contains(&&code[..code.len().min(2)]) {
        crate::redact::scrub(&format!("{} (SQLSTATE {code})", db.message()))
    } else {
        format!(
            "an expression or condition of {} failed on a row (SQLSTATE {code}; the server's words are not shown, because they may hold the row's values)",
            REPLICATION_RULES.name
        )
    }
}
