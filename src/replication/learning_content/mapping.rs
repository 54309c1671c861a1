//! Which tables are filled from which members of the answer: data, not code.
//!
//! The shipped mapping is `data/learning-content.toml`, which also explains the form.

use serde::Deserialize;
use serde_json::Value;

use crate::postgres::quote_identifier;

/// The mapping in use when no file is named.
pub const SHIPPED: &str = include_str!("../../../data/learning-content.toml");

/// Longest name PostgreSQL keeps; it would cut a longer one in silence.
const LONGEST_NAME: usize = 63;

/// All tables, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mapping {
    /// At least one.
    pub tables: Vec<Table>,
}

/// A table and the array of the same name that fills it.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name in schema `public`, and the name of the array.
    pub name: String,
    /// What follows `id text primary key`.
    pub columns: Vec<Column>,
}

/// A column and its value's origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its SQL type.
    pub sql_type: String,
    /// Whether it is indexed.
    pub indexed: bool,
    /// Where the value comes from.
    pub from: Extractor,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Extractor {
    /// A member, or a member of a member.
    Path(Vec<String>),
    /// Whether that is there and not empty, as JavaScript sees it.
    Truthy(Vec<String>),
    /// An array with that as its only element.
    ArrayOf(Vec<String>),
    /// The same for every item.
    Constant(Value),
    /// Nothing.
    Null,
}

impl Column {
    /// Whether the SQL type is an array.
    #[must_use]
    pub fn is_array(&self) -> bool {
        self.sql_type.ends_with("[]")
    }

    /// Whether it is a boolean, which is never null.
    #[must_use]
    pub fn is_boolean(&self) -> bool {
        matches!(self.sql_type.as_str(), "boolean" | "bool")
    }
}

impl Table {
    /// Column definitions, without the primary key.
    #[must_use]
    pub fn definition(&self) -> String {
        let mut definition = "\"id\" text NOT NULL".to_owned();
        for column in &self.columns {
            let not_null = if column.is_boolean() { " NOT NULL" } else { "" };
            definition.push_str(&format!(", {} {}{not_null}", quote_identifier(&column.name), column.sql_type));
        }
        definition
    }

    /// All names, quoted, `id` first.
    #[must_use]
    pub fn column_list(&self) -> String {
        std::iter::once("\"id\"".to_owned())
            .chain(self.columns.iter().map(|c| quote_identifier(&c.name)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Name of the index on `column`.
    #[must_use]
    pub fn index_name(&self, column: &Column) -> String {
        format!("{}_{}_idx", self.name, column.name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapping {
    table: Vec<RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    name: String,
    #[serde(default)]
    columns: Vec<RawColumn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawColumn {
    name: String,
    r#type: String,
    #[serde(default)]
    index: bool,
    path: Option<String>,
    truthy: Option<String>,
    array_of: Option<String>,
    constant: Option<Value>,
    #[serde(default)]
    null: bool,
}

impl Mapping {
    /// Reads the TOML form.
    ///
    /// # Errors
    /// When it is malformed, naming the table and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawMapping = toml::from_str(text).map_err(|e| e.to_string().trim_end().replace('\n', " "))?;
        let mut tables: Vec<Table> = Vec::new();
        for table in raw.table {
            check_name(&table.name, "table")?;
            if tables.iter().any(|t| t.name == table.name) {
                return Err(format!("table `{}` stands there twice", table.name));
            }
            let columns = table
                .columns
                .into_iter()
                .map(column)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("table `{}`: {e}", table.name))?;
            for (number, one) in columns.iter().enumerate() {
                if one.name == "id" || columns[..number].iter().any(|c| c.name == one.name) {
                    return Err(format!("table `{}` has column `{}` twice (`id` is always there)", table.name, one.name));
                }
                if one.indexed && table.name.len() + one.name.len() + "__idx".len() > LONGEST_NAME {
                    return Err(format!(
                        "table `{}`: the name of the index on `{}` is longer than {LONGEST_NAME} bytes",
                        table.name, one.name
                    ));
                }
            }
            tables.push(Table { name: table.name, columns });
        }
        if tables.is_empty() { Err("it has no table".to_owned()) } else { Ok(Mapping { tables }) }
    }
}

fn check_name(name: &str, what: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
        return Err(format!("{what} name `{name}` is not of 1 to {LONGEST_NAME} bytes"));
    }
    Ok(())
}

fn column(raw: RawColumn) -> Result<Column, String> {
    check_name(&raw.name, "column")?;
    // The type goes into SQL as it is; nothing but a type is made of these.
    if raw.r#type.is_empty() || !raw.r#type.chars().all(|c| c.is_ascii_alphanumeric() || " _(),[]\".".contains(c)) {
        return Err(format!("column `{}`: `{}` is not a SQL type", raw.name, raw.r#type));
    }
    let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let mut origins = Vec::new();
    origins.extend(raw.path.as_deref().map(|p| Extractor::Path(path(p))));
    origins.extend(raw.truthy.as_deref().map(|p| Extractor::Truthy(path(p))));
    origins.extend(raw.array_of.as_deref().map(|p| Extractor::ArrayOf(path(p))));
    origins.extend(raw.constant.map(Extractor::Constant));
    origins.extend(raw.null.then_some(Extractor::Null));
    if origins.len() > 1 {
        return Err(format!("column `{}` has more than one of path, truthy, array_of, constant and null", raw.name));
    }
    let from = origins.pop().unwrap_or_else(|| Extractor::Path(vec![raw.name.clone()]));
    Ok(Column { name: raw.name, sql_type: raw.r#type.trim().to_owned(), indexed: raw.index, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_mapping_has_8_tables_and_84_columns_counting_each_id() {
        let mapping = Mapping::parse(SHIPPED).unwrap();
        let names: Vec<&str> = mapping.tables.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["areas", "attachments", "competences", "tubes", "skills", "challenges", "courses", "tutorials"]);
        let counts: Vec<usize> = mapping.tables.iter().map(|t| t.columns.len()).collect();
        assert_eq!(counts, [1, 5, 5, 4, 11, 44, 1, 5]);
        assert_eq!(counts.iter().sum::<usize>() + mapping.tables.len(), 84);
        let indexes: Vec<String> =
            mapping.tables.iter().flat_map(|t| t.columns.iter().filter(|c| c.indexed).map(|c| t.index_name(c))).collect();
        assert_eq!(
            indexes,
            [
                "competences_areaId_idx",
                "tubes_competenceId_idx",
                "skills_tubeId_idx",
                "challenges_firstSkillId_idx",
                "tutorials_title_idx"
            ]
        );
    }

    #[test]
    fn a_malformed_mapping_is_told_by_table_and_column() {
        for (text, wanted) in [
            ("", "table"),
            ("[[table]]\nname=\"a\"\n[[table]]\nname=\"a\"", "twice"),
            ("[[table]]\nname=\"a\"\ncolumns=[{name=\"id\",type=\"text\"}]", "`id` is always there"),
            ("[[table]]\nname=\"a\"\ncolumns=[{name=\"b\",type=\"text; drop table c\"}]", "is not a SQL type"),
            ("[[table]]\nname=\"a\"\ncolumns=[{name=\"b\",type=\"text\",path=\"c\",null=true}]", "more than one"),
            ("[[table]]\nname=\"a\"\ncolumns=[{name=\"b\",type=\"text\",pth=\"c\"}]", "pth"),
        ] {
            let error = Mapping::parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
