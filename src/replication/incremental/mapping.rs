//! Pairs the columns of a source table with the target's, by name.
//!
//! | column is | then |
//! |---|---|
//! | on both sides, same type | copied |
//! | on both sides, other type | the table is copied as text and the target's type reads it |
//! | new on the source | added to the target, nullable, when its type exists there; else left out with a warning |
//! | only on the target | left to its default |
//! | computed on the target | left to the target |
//!
//! Rows that were copied before a column appeared hold on the target what the source shows for
//! them: NULL, or the constant default that the column was added with.

use crate::postgres::{Connection, Doing, PostgresError, quote_identifier, quote_literal};
use crate::replication::projection::Projection;
use crate::replication::settings::TableName;
use crate::worker::Run;

use super::IncrementalError;
use super::catalogue::{Column, Relation};

/// What identifies a row on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its columns.
    pub columns: Vec<String>,
    /// Whether it is one integer column, so that there is a highest one.
    pub ordered: bool,
    /// Whether the source makes sure that a key occurs once.
    pub unique: bool,
}

/// How a table is copied.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The table, named alike on both sides.
    pub table: TableName,
    /// What is read: the columns to copy, and of which rows.
    pub projection: Projection,
    /// Binary, or text where a type needs it.
    pub binary: bool,
    /// What identifies a row.
    pub key: Key,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// The columns as SQL.
    #[must_use]
    pub fn column_list(&self) -> String {
        self.projection.columns()
    }

    /// The names of the columns to copy.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        self.projection.readings.iter().map(|r| r.column.clone()).collect()
    }

    /// The option of COPY on both sides.
    #[must_use]
    pub fn format(&self) -> &'static str {
        if self.binary { "(format binary)" } else { "(format text)" }
    }

    /// `COPY … TO STDOUT` of the rows that meet `condition`.
    #[must_use]
    pub fn select(&self, source: &Relation, condition: Option<&str>) -> String {
        let columns = self.columns();
        self.select_columns(&columns, source, condition)
    }

    /// The same, neighbouring keys together.
    #[must_use]
    pub fn select_in_order(&self, source: &Relation, condition: Option<&str>) -> String {
        let select = self.projection.select(&self.rows_of(source), &self.columns(), condition);
        format!("copy ({select} order by {}) to stdout {}", list(&self.key.columns), self.format())
    }

    /// The same for the key only.
    #[must_use]
    pub fn select_keys(&self, source: &Relation, condition: Option<&str>) -> String {
        self.select_columns(&self.key.columns, source, condition)
    }

    fn select_columns(&self, columns: &[String], source: &Relation, condition: Option<&str>) -> String {
        let select = self.projection.select(&self.rows_of(source), columns, condition);
        format!("copy ({select}) to stdout {}", self.format())
    }

    /// The table's rows on either side, for `FROM`. A plain table's inheritance children are tables of their own
    /// on both.
    #[must_use]
    pub fn rows_of(&self, relation: &Relation) -> String {
        let only = if relation.partitioned { "" } else { "only " };
        format!("{only}{}", self.table.quoted())
    }

    /// Condition of the rows above the watermark.
    #[must_use]
    pub fn above(&self, watermark: i64) -> String {
        format!("{} > '{watermark}'", list(&self.key.columns))
    }

    /// Condition of the rows up to the watermark.
    #[must_use]
    pub fn up_to(&self, watermark: i64) -> String {
        format!("{} <= '{watermark}'", list(&self.key.columns))
    }
}

pub(super) fn list(columns: &[String]) -> String {
    columns.iter().map(|c| quote_identifier(c)).collect::<Vec<_>>().join(", ")
}

/// The key of a source table.
///
/// # Errors
/// When it has none that could be used.
pub fn key(table: &TableName, source: &Relation) -> Result<Key, IncrementalError> {
    let integer = |name: &str| source.column(name).is_some_and(|c| c.integer);
    if integer("id") {
        return Ok(Key { columns: vec!["id".to_owned()], ordered: true, unique: source.unique.iter().any(|c| c == "id") });
    }
    match source.primary_key.as_slice() {
        [] => Err(IncrementalError::Refused(format!(
            "table `{table}` cannot be incremental: it has neither an integer column `id` nor a primary key; \
             give it one, or take it out of BACKUP_MODE to copy it in full"
        ))),
        [one] => Ok(Key { columns: vec![one.clone()], ordered: integer(one), unique: true }),
        several => Ok(Key { columns: several.to_vec(), ordered: false, unique: true }),
    }
}

/// Pairs the two tables of an appended table.
///
/// # Errors
/// When rows of the source could not be written to the target, naming the column.
pub fn plan(table: &TableName, source: &Relation, target: &Relation) -> Result<Plan, IncrementalError> {
    let mut plan = pair(table, source, target, key(table, source)?)?;
    if !plan.key.unique && !source.partitioned {
        plan.notes.push(
            "column `id` is not unique on the source: a late row whose id is on the target already is not copied".to_owned(),
        );
    }
    if source.column(&plan.key.columns[0]).is_some_and(|c| !c.not_null) {
        plan.notes.push(format!("column `{}` may be NULL on the source: such rows are not copied", plan.key.columns[0]));
    }
    Ok(plan)
}

/// Pairs the columns of the two tables.
///
/// # Errors
/// When rows of the source could not be written to the target, naming the column.
pub fn pair(table: &TableName, source: &Relation, target: &Relation, key: Key) -> Result<Plan, IncrementalError> {
    let refused = |problem: String| Err(IncrementalError::Refused(format!("table `{table}`: {problem}")));
    let mut notes = Vec::new();
    let mut columns = Vec::new();
    let mut binary = true;
    for column in &source.columns {
        match target.column(&column.name) {
            None => notes.push(format!("new column `{}` ({}) is left out, see above", column.name, column.sql_type)),
            Some(there) if there.generated => {}
            Some(there) => {
                binary &= column.portable && same_type(column, there);
                columns.push(column.name.clone());
            }
        }
    }
    for column in &key.columns {
        if !columns.contains(column) {
            return refused(format!("its key column `{column}` is absent or computed on the target; add it there"));
        }
    }
    for column in &target.columns {
        if source.column(&column.name).is_none() && column.not_null && !column.filled && !column.generated {
            return refused(format!(
                "column `{0}` is gone from the source, but the target refuses rows without it; \
                 alter column {1} drop not null there, or drop it",
                column.name,
                quote_identifier(&column.name)
            ));
        }
    }
    Ok(Plan { table: table.clone(), projection: Projection::plain(&columns), binary, key, notes })
}

/// What is read of the table; or which column came after the rules were made.
///
/// # Errors
/// When a column needs a rule and has none.
pub(in crate::replication) fn ruled(
    table: &TableName,
    projection: Result<Projection, String>,
) -> Result<Projection, IncrementalError> {
    projection.map_err(|column| {
        IncrementalError::Refused(format!(
            "table `{table}` has masks, but no rule for column `{column}`; give it one, or, where the source computes it, have the target compute it too"
        ))
    })
}

/// A masked key is not the source's, so nothing could be compared with it.
pub(super) fn refuse_masked_key(
    table: &TableName,
    key: &Key,
    projection: &Result<Projection, String>,
) -> Result<(), IncrementalError> {
    let masked = projection.as_ref().ok().and_then(|p| p.readings.iter().find(|r| r.instead.is_some()));
    match masked {
        Some(reading) => Err(IncrementalError::Refused(format!(
            "table `{table}` cannot be incremental with its key column `{}` masked: rows are compared with the source by {};              write \"keep\" for it in REPLICATION_RULES, or take the table out of BACKUP_MODE to copy it in full",
            reading.column,
            list(&key.columns)
        ))),
        None => Ok(()),
    }
}

fn same_type(a: &Column, b: &Column) -> bool {
    a.type_schema == b.type_schema && a.type_name == b.type_name
}

/// Adds to the target's table, when it exists, the columns that are new on the source.
///
/// Each in a transaction of its own before the copy, because it locks out readers until its end. A
/// column that stays after a failed run does no harm: it is nullable.
pub(super) async fn add_columns(
    target: &Connection,
    table: &TableName,
    (source, there): (&Relation, Option<&Relation>),
    masked: &Projection,
    run: &Run,
) -> Result<(), IncrementalError> {
    let Some(there) = there else { return Ok(()) };
    for column in source.columns.iter().filter(|c| there.column(&c.name).is_none()) {
        let left_out = |why: &str| run.warn(format!("{table}: new column `{}` is left out: {why}", column.name));
        if column.generated && masked.readings.iter().any(|r| r.instead.is_some()) {
            left_out("the source computes it from what may be masked; add it there as a generated column");
            continue;
        }
        let name = format!("{}.{}", quote_identifier(&column.type_schema), quote_identifier(&column.type_name));
        let exists: bool = target
            .query_one("select pg_catalog.to_regtype($1) is not null", &[&name])
            .await
            .doing(|| format!("looking for type {name} on the target"))?
            .get(0);
        if !exists {
            left_out(&format!("its type {} does not exist on the target; create it there", column.sql_type));
            continue;
        }
        // What older rows hold is a value of the source; NULL stands for its mask.
        let is_masked = masked.readings.iter().any(|r| r.column == column.name && r.instead.is_some());
        let missing = column.missing.as_deref().filter(|_| !is_masked);
        match target.batch_execute(&add_column(table, column, missing)).await {
            Ok(()) => run.info(format!("{table}: new column `{}` ({}) was added to the target", column.name, column.sql_type)),
            // Not our table: the copy goes on without the column, as it would without its type.
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => {
                left_out("the target's user does not own the table; add it there");
            }
            Err(error) => {
                let failed: Result<(), PostgresError> =
                    Err(error).doing(|| format!("adding column `{}` to table `{table}` of the target", column.name));
                failed?;
            }
        }
    }
    Ok(())
}

/// One implicit transaction: with the value that older rows have on the source, but without a
/// default for the rows to come, which bring their own.
fn add_column(table: &TableName, column: &Column, missing: Option<&str>) -> String {
    let (table, name) = (table.quoted(), quote_identifier(&column.name));
    let add = format!("alter table {table} add column {name} {}", column.sql_type);
    match missing {
        Some(missing) => format!(
            "{add} default ({}::text[])[1]::{}; alter table {table} alter column {name} drop default",
            quote_literal(missing),
            column.sql_type
        ),
        None => add,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str) -> Column {
        Column {
            name: name.to_owned(),
            type_schema: "pg_catalog".to_owned(),
            type_name: type_name.to_owned(),
            sql_type: type_name.to_owned(),
            not_null: true,
            portable: true,
            integer: type_name.starts_with("int"),
            ..Column::default()
        }
    }

    fn relation(columns: &[(&str, &str)], primary_key: &[&str]) -> Relation {
        Relation {
            columns: columns.iter().map(|(n, t)| column(n, t)).collect(),
            primary_key: primary_key.iter().map(|&c| c.to_owned()).collect(),
            unique: if let [one] = primary_key { vec![(*one).to_owned()] } else { vec![] },
            ..Relation::default()
        }
    }

    #[test]
    fn an_integer_id_is_the_key_else_the_primary_key() {
        let table = TableName::public("t");
        let of = |columns: &[(&str, &str)], pk: &[&str]| key(&table, &relation(columns, pk));
        let id = of(&[("uid", "uuid"), ("id", "int8")], &["uid"]).unwrap();
        assert_eq!((id.columns, id.ordered, id.unique), (vec!["id".to_owned()], true, false));
        assert!(of(&[("number", "int4")], &["number"]).unwrap().ordered);
        assert!(!of(&[("id", "uuid")], &["id"]).unwrap().ordered);
        assert_eq!(of(&[("a", "int4"), ("b", "int4")], &["b", "a"]).unwrap().columns, ["b", "a"]);
        let error = of(&[("x", "text")], &[]).unwrap_err();
        assert!(error.is_final() && error.to_string().contains("table `t` cannot be incremental"), "{error}");
    }

    #[test]
    fn columns_are_paired_by_name_and_other_types_go_as_text() {
        let table = TableName::public("t");
        let source = relation(&[("id", "int4"), ("b", "text"), ("a", "text")], &["id"]);
        let same = plan(&table, &source, &relation(&[("a", "text"), ("id", "int4"), ("b", "text")], &[])).unwrap();
        assert!(same.binary);
        assert_eq!(
            same.select(&source, Some(&same.above(7))),
            r#"copy (select "id", "b", "a" from only "public"."t" where ("id" > '7')) to stdout (format binary)"#
        );
        let wider = plan(&table, &source, &relation(&[("a", "text"), ("id", "int8"), ("b", "text")], &[])).unwrap();
        assert!(!wider.binary);
    }

    #[test]
    fn a_target_only_column_must_be_able_to_stay_empty() {
        let table = TableName::public("t");
        let source = relation(&[("id", "int4")], &["id"]);
        let mut target = relation(&[("id", "int4"), ("old", "text")], &["id"]);
        let error = plan(&table, &source, &target).unwrap_err().to_string();
        assert!(error.contains("column `old` is gone from the source"), "{error}");
        target.columns[1].filled = true;
        assert_eq!(plan(&table, &source, &target).unwrap().columns(), ["id"]);
    }
}
