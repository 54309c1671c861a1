//! Every query and who takes its answer, in the order in which answers are taken.

use tokio_postgres::Row;

use super::draft::{Draft, Stage};
use super::{
    Kind, Options, access, indexes, operators, outside, routines, rows, schemas, sequences, tables, texts, triggers, types, views,
};

type Add = Box<dyn Fn(&mut Draft, Vec<Row>) + Send + Sync>;

pub(super) struct Source {
    /// For errors: "reading the source's …".
    pub(super) what: &'static str,
    pub(super) sql: String,
    pub(super) add: Add,
}

fn source(what: &'static str, sql: String, add: impl Fn(&mut Draft, Vec<Row>) + Send + Sync + 'static) -> Source {
    Source { what, sql, add: Box::new(add) }
}

/// Objects whose rows have the common form and nothing more.
fn plain(what: &'static str, sql: String, kind: Kind) -> Source {
    source(what, sql, move |draft, found| rows::add(draft, found, kind, Stage::Float))
}

pub(super) fn all(version: i32, options: &Options) -> Vec<Source> {
    let mut sources = vec![
        source("parts of objects", outside::parts(version), outside::add_parts),
        source("dependencies", outside::dependencies(), outside::add_dependencies),
        source("objects that are not copied", outside::refused(), outside::add_refused),
        plain("schemas", schemas::schemas(), Kind::Schema),
        plain("extensions", schemas::extensions(), Kind::Extension),
        plain("languages", schemas::languages(), Kind::Language),
        plain("access methods", schemas::access_methods(), Kind::AccessMethod),
        plain("enums", types::enums(), Kind::Enum),
        plain("composite types", types::composites(), Kind::Composite),
        source("domains", types::domains(version), types::add_domains),
        source("domains' checks", types::domain_checks(), types::add_domain_checks),
        source("range types", types::ranges(version), |d, r| types::add_with_shell(d, r, Kind::Range)),
        source("base types", types::base_types(version), |d, r| types::add_with_shell(d, r, Kind::BaseType)),
        source("functions", routines::functions(), routines::add_functions),
        source("aggregates", routines::aggregates(), routines::add_aggregates),
        source("operators", operators::operators(), operators::add_operators),
        plain("operator families", operators::families(), Kind::OperatorFamily),
        source("operator classes", operators::classes(), |d, r| operators::add_with_members(d, r, Kind::OperatorClass)),
        source("operator families' members", operators::loose_members(), |d, r| {
            operators::add_with_members(d, r, Kind::OperatorFamilyMembers);
        }),
        plain("casts", operators::casts(), Kind::Cast),
        plain("transforms", operators::transforms(), Kind::Transform),
        plain("collations", texts::collations(version), Kind::Collation),
        plain("conversions", texts::conversions(), Kind::Conversion),
        plain("text search parsers", texts::parsers(), Kind::TextSearchParser),
        plain("text search templates", texts::templates(), Kind::TextSearchTemplate),
        plain("text search dictionaries", texts::dictionaries(), Kind::TextSearchDictionary),
        plain("text search configurations", texts::configurations(), Kind::TextSearchConfiguration),
        source("sequences", sequences::sql(), sequences::add),
        source("tables and views", tables::relations(), tables::add_relations),
        source("columns", tables::columns(version), tables::add_columns),
        source("checks", tables::checks(version), tables::add_checks),
        source("extensions' tables", tables::extension_tables(), tables::add_extension_tables),
        source("rules of views", views::rules_of_views(), views::add_rules_of_views),
        source("indexes", indexes::indexes(), indexes::add_indexes),
        source("foreign keys", indexes::foreign_keys(), indexes::add_foreign_keys),
        source("extended statistics", indexes::statistics(version), |d, r| triggers::add_of_tables(d, r, Kind::Statistics)),
        source("triggers", triggers::triggers(version), |d, r| triggers::add_triggers(d, r, Kind::Trigger)),
        source("rules", triggers::rules(), |d, r| triggers::add_of_tables(d, r, Kind::Rule)),
        source("policies", triggers::policies(), |d, r| triggers::add_of_tables(d, r, Kind::Policy)),
        source("triggers of partitions", triggers::trigger_states(version), |d, r| {
            triggers::add_triggers(d, r, Kind::TriggerState);
        }),
        source("comments", access::comments(), access::add_comments),
        source("ties to extensions", access::extension_dependencies(), access::add_extension_dependencies),
    ];
    if options.privileges {
        sources.push(source("grants", access::grants(), access::add_grants));
        sources.push(source("default privileges", access::default_privileges(), access::add_default_privileges));
    }
    sources
}
