//! A database's definitions, written from its catalogue: the ordered statements that make an empty
//! copy of everything on a server of the same or a later major version. No client program is needed.
//!
//! The server's own deparsers (`pg_get_viewdef` and its kin) tell the hard parts; the rest is put
//! together here. Each kind of object is one query over the whole database (`sources`), sent
//! without waiting for the answer of the one before, so the time hardly grows with the distance.
//!
//! ```text
//! rows of the catalogue ─ draft: one item for each object ─ judged: left out, refused, and what needs those
//!                         pg_depend: who needs whom       ─ ordered: circles cut, sorted
//! ```
//!
//! **Guarantees.** Everything is told by identity (oid), never by matching text. The statements, run
//! in their order by a session prepared with [`SESSION`], make a database whose `pg_dump
//! --schema-only` is the source's, owners and tablespaces aside. The order is the same for the same
//! objects, whatever their oids. Nothing is changed on the source.
//!
//! **Needs** a transaction (repeatable read, so that all queries see one moment), whose `search_path`
//! and output formats are set for its remainder.
//!
//! **Circles** are cut where the catalogue lets them be closed later: a default or check is set by
//! itself, a view is first made with its columns alone, a function with its signature alone, a type
//! with its name alone.
//!
//! **Not copied**, and told in [`Catalogue::refusals`] before anything starts: what needs a superuser
//! (unless [`Options::superuser`]), what holds secrets, and whatever needs one of those.

mod access;
mod draft;
mod indexes;
mod judge;
mod operators;
mod order;
mod outside;
mod routines;
mod rows;
mod schemas;
mod sequences;
mod sources;
mod table_text;
mod tables;
mod texts;
mod triggers;
mod types;
mod views;

use std::fmt;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::postgres::{Connection, Doing, PostgresError};
use crate::replication::settings::TableName;
use draft::Draft;

/// Prepares a session for running the statements: names are all qualified, bodies of functions are
/// not looked into (what they name may come later), and texts mean what they meant on the source.
pub const SESSION: &str = "set search_path = ''; set check_function_bodies = off; set client_min_messages = warning; \
     set datestyle = 'ISO'; set intervalstyle = 'postgres'; set standard_conforming_strings = on; \
     set default_tablespace = ''; set default_table_access_method = 'heap'; set row_security = off; \
     set transform_null_equals = off; set xmloption = content";

/// The same on the source, until its transaction ends: these decide how the deparsers write.
const READING: &str = "select set_config(name, value, true) from (values ('search_path', ''), ('datestyle', 'ISO'), \
     ('intervalstyle', 'postgres'), ('extra_float_digits', '3'), ('bytea_output', 'hex'), ('quote_all_identifiers', 'off')) s(name, value)";

/// Versions that are known.
const OLDEST: i32 = 120_000;

/// Why the definitions could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DdlError {
    /// The source refused a query.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Two queries could see two moments.
    #[error("the source's catalogue is read outside a transaction; begin one (repeatable read, read only) first")]
    NoTransaction,
    /// Older than what is known.
    #[error("the source runs PostgreSQL {0}, and its catalogue is known from 12 on; upgrade the source")]
    TooOld(i32),
    /// Objects that need each other in a way that no order satisfies.
    #[error("these objects need each other and none of them can be made first: {0}; leave one out")]
    Circle(String),
}

/// A relation, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Its oid on the source.
    Oid(u32),
    /// Its name.
    Name(TableName),
}

/// What is left out, and what the target can do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Schemas that are not made; what needs something in them is refused.
    pub without_schemas: Vec<String>,
    /// Relations that are not made, nor what belongs to them; what needs them is refused.
    pub without: Vec<Chosen>,
    /// Relations that the target has already: neither they nor what belongs to them is made, but
    /// what needs them is.
    pub kept: Vec<Chosen>,
    /// Whether grants and default privileges are given. Their roles may be missing on the target:
    /// see [`Statement::roles`].
    pub privileges: bool,
    /// The target's role is a superuser, so that C functions, base types, operator classes and the
    /// like can be made.
    pub superuser: bool,
    /// The target's version, as in `server_version_num`; none: that of the source.
    pub target: Option<i32>,
}

/// When a statement is run, relative to the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Before the rows.
    Pre,
    /// After them.
    Post,
}

/// What a statement makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are PostgreSQL's; those that are not have their line")]
pub enum Kind {
    Schema,
    Extension,
    Language,
    AccessMethod,
    /// Only a name, so that functions can use it; the type itself follows.
    ShellType,
    Enum,
    Composite,
    Range,
    BaseType,
    Domain,
    DomainCheck,
    Collation,
    TextSearchParser,
    TextSearchTemplate,
    TextSearchDictionary,
    TextSearchConfiguration,
    /// A function's signature with an empty body, to be replaced.
    ShellFunction,
    Function,
    Procedure,
    Aggregate,
    Operator,
    OperatorFamily,
    OperatorClass,
    /// Operators of a family that belong to none of its classes.
    OperatorFamilyMembers,
    Cast,
    Conversion,
    Transform,
    Sequence,
    Table,
    /// `ATTACH PARTITION`.
    Partition,
    /// `ALTER TABLE … INHERIT`.
    Inheritance,
    /// `OWNED BY`.
    SequenceOwner,
    Default,
    Check,
    /// A view's columns without their contents, to be replaced.
    ShellView,
    View,
    MaterializedView,
    /// `setval`, as of the moment of reading.
    SequenceValue,
    /// Fills a materialized view that is filled on the source. Functions in it may rely on the
    /// database's own `search_path`.
    Refresh,
    /// A primary or unique key has its index made first, by itself.
    Index,
    /// Primary and unique keys, exclusions.
    Key,
    /// `ALTER INDEX … ATTACH PARTITION`.
    IndexPartition,
    Statistics,
    Rule,
    Trigger,
    /// A partition's trigger that is enabled in another way than its parent's.
    TriggerState,
    ForeignKey,
    /// Looks at the rows of a foreign key that was made without.
    ForeignKeyValidation,
    Policy,
    /// Row-level security of a table, on or forced.
    RowSecurity,
    Comment,
    /// `DEPENDS ON EXTENSION`.
    ExtensionDependency,
    Grant,
    DefaultPrivileges,
    EventTrigger,
    ForeignDataWrapper,
    ForeignServer,
    UserMapping,
    ForeignTable,
    Publication,
    Subscription,
    SecurityLabel,
    LargeObject,
    /// Where a table lies.
    Tablespace,
}

/// In words, as in `CREATE …`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Kind::ShellType | Kind::BaseType | Kind::Enum | Kind::Composite | Kind::Range => "type",
            Kind::ShellFunction => "function",
            Kind::ShellView => "view",
            Kind::Key => "constraint",
            Kind::OperatorFamilyMembers => "members of operator family",
            Kind::Grant => "grant on",
            Kind::TriggerState => "state of trigger",
            Kind::SequenceValue => "position of sequence",
            Kind::SequenceOwner => "owner of sequence",
            Kind::ForeignKeyValidation => "validation of foreign key",
            Kind::Refresh => "rows of materialized view",
            Kind::Comment => "comment on",
            other => return f.write_str(&spaced(&format!("{other:?}"))),
        };
        f.write_str(words)
    }
}

/// `MaterializedView` as `materialized view`.
fn spaced(name: &str) -> String {
    let mut words = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

/// One definition; may hold several commands, to be run at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// When.
    pub section: Section,
    /// What.
    pub kind: Kind,
    /// The object's schema, where it has one.
    pub schema: Option<String>,
    /// The object's name, not quoted; with its table or its arguments where those belong to it.
    pub name: String,
    /// The object's number on the source.
    pub oid: u32,
    /// The catalogue that the object is in; 0: not an object, but a step of making one, or a comment and the like.
    pub catalogue: u32,
    /// The table, view or sequence that it is or belongs to; 0: none.
    pub relation: u32,
    /// What to run.
    pub sql: String,
    /// Statements, by index, that must have succeeded before. All are earlier ones.
    pub depends_on: Vec<usize>,
    /// Roles that it names; they may be missing on the target.
    pub roles: Vec<String>,
}

impl Statement {
    /// Catalogue and number; `(0, 0)` for what is no object.
    #[must_use]
    pub fn object(&self) -> (u32, u32) {
        if self.catalogue == 0 { (0, 0) } else { (self.catalogue, self.oid) }
    }

    /// For people: `schema.name`, without the schema for what is in `public`.
    #[must_use]
    pub fn told(&self) -> String {
        match self.schema.as_deref() {
            None | Some("public") => self.name.clone(),
            Some(schema) => format!("{schema}.{}", self.name),
        }
    }
}

/// Why an object is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Only a superuser of the target could make it.
    Superuser,
    /// It holds secrets, or acts on other systems.
    Secret,
    /// The target's server would not take it.
    Server,
    /// It needs something that is left out, or refused.
    Needs,
    /// The rest of the object is copied; this property of it is not.
    Property,
}

/// Something of the source that the target will not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What.
    pub kind: Kind,
    /// Its schema, where it has one.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
    /// Its number on the source.
    pub oid: u32,
    /// Why, for programs.
    pub cause: Cause,
    /// Why, for people.
    pub reason: String,
}

impl Refusal {
    /// For people: kind and name.
    #[must_use]
    pub fn told(&self) -> String {
        match self.schema.as_deref() {
            None | Some("public") => format!("{} {}", self.kind, self.name),
            Some(schema) => format!("{} {schema}.{}", self.kind, self.name),
        }
    }
}

/// What sort of relation a [`Table`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Rows of its own.
    Table,
    /// Rows of its own, which belong to a partitioned table too.
    Partition,
    /// No rows of its own.
    Partitioned,
    /// Filled by a refresh, not by copying.
    MaterializedView,
    /// Made by an extension, which says that its rows are the user's.
    Extension,
}

/// Something with rows, or whose parts have some.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its number on the source.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// What it is.
    pub kind: TableKind,
    /// Columns that hold data of their own: no generated ones.
    pub columns: Vec<String>,
    /// Bytes on disk.
    pub bytes: i64,
    /// Rows when the server last counted; none: it never did.
    pub rows: Option<f64>,
    /// `WHERE …` that chooses the rows which are the user's; of extensions' tables only.
    pub condition: Option<String>,
    /// We may read it, and row-level security hides nothing from us.
    pub readable: bool,
    /// Its direct parents: of a partition, or by inheritance.
    pub parents: Vec<u32>,
}

/// The definitions of a database.
#[derive(Debug)]
pub struct Catalogue {
    statements: Vec<Statement>,
    refusals: Vec<Refusal>,
    tables: Vec<Table>,
}

impl Catalogue {
    /// Reads `source`, which must be in a transaction.
    ///
    /// # Errors
    /// When a query fails, or the definitions have no order.
    pub async fn read(source: &Connection, options: &Options) -> Result<Catalogue, DdlError> {
        let version = prepare(source).await?;
        let mut draft = Draft::new(version, options);
        let sources = sources::all(version, options);
        let answers = futures_util::future::join_all(sources.iter().map(|s| source.query(&s.sql, &[]))).await;
        // The first failure fails those behind it, and the answers come in any order.
        let is_echo = |e: &tokio_postgres::Error| e.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION);
        let failed = |echo: bool| answers.iter().position(|a| a.as_ref().is_err_and(|e| is_echo(e) == echo));
        let first = failed(false).or_else(|| failed(true));
        let mut found = Vec::new();
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Err(_) if first != Some(at) => {}
                answer => found.push(answer.doing(|| format!("reading the source's {}", sources[at].what))?),
            }
        }
        for (source, rows) in sources.iter().zip(found) {
            (source.add)(&mut draft, rows);
        }
        sequences::read_values(source, &mut draft).await?;
        table_text::write(&mut draft);
        views::chain_refreshes(&mut draft);
        indexes::chain_foreign_keys(&mut draft);
        access::settle(&mut draft);
        judge::judge(&mut draft, options);
        let statements = order::order(&mut draft)?;
        let refusals = draft.told();
        let made = draft.made_relations();
        let mut tables: Vec<Table> = draft.tables.into_iter().filter(|t| made.contains(&t.oid)).collect();
        tables.sort_by(|a, b| (&a.name.schema, &a.name.name).cmp(&(&b.name.schema, &b.name.name)));
        Ok(Catalogue { statements, refusals, tables })
    }

    /// In an order that runs: all of [`Section::Pre`] first.
    #[must_use]
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The statements alone.
    #[must_use]
    pub fn into_statements(self) -> Vec<Statement> {
        self.statements
    }

    /// What the target will not have.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Everything with rows that is made, by name; extensions' tables whose rows are the user's among them.
    #[must_use]
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }
}

async fn prepare(source: &Client) -> Result<i32, DdlError> {
    let doing = || "preparing the source's session".to_owned();
    source.query(READING, &[]).await.doing(doing)?;
    let state = "select current_setting('search_path') = '', current_setting('server_version_num')::int";
    let row = source.query_one(state, &[]).await.doing(doing)?;
    let version: i32 = row.get(1);
    if !row.get::<_, bool>(0) {
        return Err(DdlError::NoTransaction);
    }
    if version < OLDEST {
        return Err(DdlError::TooOld(version / 10_000));
    }
    Ok(version)
}
