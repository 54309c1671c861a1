//! What of a table leaves the source: each column as itself or as an expression over the row, and of all
//! rows or of those that meet a condition. Expressions are worked out by the source, so what they
//! replace never leaves it.

use crate::postgres::quote_identifier;

/// A column that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The column, on both sides.
    pub column: String,
    /// What is sent in its place, of the column's type; none: itself.
    pub instead: Option<String>,
}

/// What is read of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The columns, in the order in which they are sent.
    pub readings: Vec<Reading>,
    /// The rows that are sent, as a condition; none: all.
    pub condition: Option<String>,
}

impl Projection {
    /// Every row of `columns`, as they are.
    #[must_use]
    pub fn plain(columns: &[String]) -> Self {
        let readings = columns.iter().map(|column| Reading { column: column.clone(), instead: None }).collect();
        Projection { readings, condition: None }
    }

    /// Whether rows leave as they are, and all of them.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.condition.is_none() && self.readings.iter().all(|r| r.instead.is_none())
    }

    /// The columns by name, quoted, for the target.
    #[must_use]
    pub fn columns(&self) -> String {
        self.readings.iter().map(|r| quote_identifier(&r.column)).collect::<Vec<_>>().join(", ")
    }

    /// `SELECT` of all columns. `from` as in [`Projection::select`].
    #[must_use]
    pub fn select_all(&self, from: &str) -> String {
        let all: Vec<String> = self.readings.iter().map(|r| r.column.clone()).collect();
        self.select(from, &all, None)
    }

    /// `SELECT` of `only`, in that order, of the rows that also meet `also`. `from` is quoted, with `ONLY` where it is wanted.
    #[must_use]
    pub fn select(&self, from: &str, only: &[String], also: Option<&str>) -> String {
        let readings = only.iter().filter_map(|column| self.readings.iter().find(|r| r.column == *column));
        let list: Vec<String> = readings
            .map(|r| match &r.instead {
                Some(expression) => format!("({expression}) as {}", quote_identifier(&r.column)),
                None => quote_identifier(&r.column),
            })
            .collect();
        let conditions: Vec<String> = self.condition.as_deref().into_iter().chain(also).map(|c| format!("({c})")).collect();
        let filter = if conditions.is_empty() { String::new() } else { format!(" where {}", conditions.join(" and ")) };
        format!("select {} from {from}{filter}", list.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_stand_in_for_columns_and_conditions_add_up() {
        let columns = ["id".to_owned(), "E mail".to_owned()];
        let mut projection = Projection::plain(&columns);
        assert!(projection.is_plain());
        assert_eq!(projection.select("only public.t", &columns, None), "select \"id\", \"E mail\" from only public.t");
        projection.readings[1].instead = Some("null::text".to_owned());
        projection.condition = Some("id > 5 or id = 1".to_owned());
        assert!(!projection.is_plain());
        assert_eq!(projection.columns(), "\"id\", \"E mail\"");
        assert_eq!(
            projection.select("public.t", &columns, Some("id < 9")),
            "select \"id\", (null::text) as \"E mail\" from public.t where (id > 5 or id = 1) and (id < 9)"
        );
        let turned = [columns[1].clone(), columns[0].clone()];
        assert!(projection.select("public.t", &turned, None).starts_with("select (null::text) as \"E mail\", \"id\" from"));
        assert_eq!(projection.select("public.t", &columns[..1], None), "select \"id\" from public.t where (id > 5 or id = 1)");
    }
}
