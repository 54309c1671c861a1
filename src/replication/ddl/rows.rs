//! The form in which most queries tell their objects, and pieces of SQL that they share.
//!
//! A row is: catalogue, oid, schema, name, statement, and, where only a superuser may make the
//! object, why.

use tokio_postgres::Row;

use super::draft::{Draft, Fate, Item, Stage};
use super::{Cause, Kind};

/// Adds the objects that `rows` tell.
pub(super) fn add(draft: &mut Draft, rows: Vec<Row>, kind: Kind, stage: Stage) {
    for row in rows {
        let item = item(draft, &row, kind, stage);
        draft.add(item);
    }
}

/// The object that `row` tells.
pub(super) fn item(draft: &Draft, row: &Row, kind: Kind, stage: Stage) -> Item {
    let mut item = Item::new((row.get(0), row.get(1)), kind, stage, row.get(2), row.get(3), row.get(4));
    if !draft.superuser
        && let Some(reason) = row.get::<_, Option<String>>(5)
    {
        item.fate = Fate::Refused(Cause::Superuser, reason);
    }
    item
}

/// Namespace `n` is neither the system's nor one for temporary objects.
pub(super) const OWN: &str = "n.nspname <> 'information_schema' and n.nspname !~ '^pg_'";

/// `alias` is a row of `catalogue` that is neither the system's nor an extension's.
pub(super) fn free(catalogue: &str, alias: &str) -> String {
    format!(
        "{alias}.oid >= 16384 and not exists (select from pg_depend ed where ed.classid = '{catalogue}'::regclass \
         and ed.objid = {alias}.oid and ed.deptype = 'e')"
    )
}

/// ` collate x` where `of` is not `usual`, both expressions for oids of collations.
pub(super) fn collate(of: &str, usual: &str) -> String {
    format!(
        "coalesce((select format(' collate %I.%I', cn.nspname, co.collname) from pg_collation co join pg_namespace cn \
         on cn.oid = co.collnamespace where co.oid = {of} and {of} <> {usual}), '')"
    )
}

/// A qualified name out of `catalogue`, whose columns begin with `prefix`, by oid.
pub(super) fn named(catalogue: &str, prefix: &str, oid: &str) -> String {
    format!(
        "(select format('%I.%I', xn.nspname, x.{prefix}name) from {catalogue} x join pg_namespace xn \
         on xn.oid = x.{prefix}namespace where x.oid = {oid})"
    )
}

/// An operator's qualified name, as `operator(…)`.
pub(super) fn operator(oid: &str) -> String {
    format!(
        "(select format('operator(%I.%s)', xn.nspname, x.oprname) from pg_operator x join pg_namespace xn \
         on xn.oid = x.oprnamespace where x.oid = {oid})"
    )
}
