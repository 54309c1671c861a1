//! The pieces that the statements about a table are made of.

use super::Table;
use crate::postgres::quote_identifier;
use crate::replication::incremental::mapping::list;

impl Table {
    /// The temporary table of rows that came from the source.
    pub(super) fn rows(&self) -> String {
        format!("pg_temp.bullwork_rows_{}", self.number)
    }

    /// The temporary table of all keys of the source.
    pub(super) fn keys(&self) -> String {
        format!("pg_temp.bullwork_keys_{}", self.number)
    }

    /// The temporary table of keys that are to be deleted.
    pub(super) fn doomed(&self) -> String {
        format!("pg_temp.bullwork_doomed_{}", self.number)
    }

    /// The temporary table of keys that are to be deleted once nothing refers to them.
    pub(super) fn put_by(&self) -> String {
        format!("pg_temp.bullwork_waiting_{}", self.number)
    }

    /// The target's table, for `FROM`, `UPDATE` and `DELETE FROM`.
    pub(super) fn there(&self) -> String {
        self.plan.rows_of(&self.target)
    }

    pub(super) fn is_keyed(&self) -> bool {
        !self.plan.key.columns.is_empty()
    }

    pub(super) fn key_list(&self) -> String {
        list(&self.plan.key.columns)
    }

    /// That two rows have the same key.
    pub(super) fn same_key(&self, a: &str, b: &str) -> String {
        let equal = self.plan.key.columns.iter().map(|c| format!("{a}.{0} = {b}.{0}", quote_identifier(c)));
        equal.collect::<Vec<_>>().join(" and ")
    }

    /// That two rows differ in what the source fills. Compared byte by byte, because equality is
    /// not enough (`1.0 = 1.00`, `'a' = 'A'` in citext) and some types have none (json).
    pub(super) fn differs(&self, a: &str, b: &str) -> String {
        // The cast keeps the parser from comparing column by column.
        format!("{}::record operator(pg_catalog.*<>) {}::record", self.row(a), self.row(b))
    }

    /// The row as the source fills it.
    pub(super) fn row(&self, alias: &str) -> String {
        format!("row({})", of(alias, &self.plan.columns()))
    }

    /// Columns of the target that the source does not fill.
    pub(super) fn own(&self) -> Vec<String> {
        let copied = self.plan.columns();
        let own = self.target.columns.iter().filter(|c| !c.generated && !copied.contains(&c.name));
        own.map(|c| c.name.clone()).collect()
    }
}

/// The columns of `alias`.
pub(super) fn of(alias: &str, columns: &[String]) -> String {
    columns.iter().map(|c| format!("{alias}.{}", quote_identifier(c))).collect::<Vec<_>>().join(", ")
}
