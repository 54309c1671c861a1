//! The rules file. docs/masking.md explains it with examples.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Value;

use super::{Rule, expression};

/// What the file says of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRules {
    /// The table, as in `BACKUP_MODE`.
    pub(super) key: String,
    pub(super) condition: Option<String>,
    /// Columns without a rule are copied.
    pub(super) others: bool,
    pub(super) columns: Vec<(String, Rule)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    tables: BTreeMap<String, RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    #[serde(rename = "where")]
    condition: Option<String>,
    other_columns: Option<String>,
    #[serde(default)]
    columns: BTreeMap<String, Value>,
}

/// The most days of a `date_shift`: a century.
const MOST_DAYS: i64 = 36_525;

pub(super) const FORMS: &str =
    "\"keep\", \"hash\", \"email\", \"null\", { fixed = \"…\" }, { date_shift = DAYS } or { sql = \"…\" }";

/// Reads a file; every mistake is told.
pub(super) fn parse(text: &str) -> Result<Vec<TableRules>, String> {
    let raw: RawFile = toml::from_str(text).map_err(|e| e.to_string().trim().replace('\n', " "))?;
    if raw.tables.is_empty() {
        return Err("it names no table ([tables.NAME]); nothing would be masked".to_owned());
    }
    let mut problems = Vec::new();
    let mut tables = Vec::new();
    for (key, table) in raw.tables {
        let mut columns = Vec::new();
        for (column, value) in table.columns {
            match rule(&value) {
                Ok(rule) => columns.push((column, rule)),
                Err(problem) => problems.push(format!("table `{key}`, column `{column}`: {problem}")),
            }
        }
        if let Some(problem) = table.condition.as_deref().and_then(expression::objection) {
            problems.push(format!("table `{key}`, where: {problem}"));
        }
        let others = match table.other_columns.as_deref() {
            // Without any mask only rows are chosen.
            None => columns.is_empty(),
            Some("refuse") => false,
            Some("copy") => true,
            Some(other) => {
                problems.push(format!("table `{key}`: other_columns is `{other}`; write \"refuse\" or \"copy\""));
                false
            }
        };
        if columns.is_empty() && table.condition.is_none() && problems.is_empty() {
            problems.push(format!("table `{key}` has neither columns nor where; take it out"));
        }
        tables.push(TableRules { key, condition: table.condition, others, columns });
    }
    if problems.is_empty() { Ok(tables) } else { Err(problems.join("; ")) }
}

fn rule(value: &Value) -> Result<Rule, String> {
    let unknown = || {
        let what = value.as_str().map_or_else(|| format!("a {}", value.type_str()), |text| format!("`{text}`"));
        Err(format!("{what} is no rule; write {FORMS}"))
    };
    match value {
        Value::String(name) => match name.as_str() {
            "keep" => Ok(Rule::Keep),
            "hash" => Ok(Rule::Hash),
            "email" => Ok(Rule::Email),
            "null" => Ok(Rule::Null),
            _ => unknown(),
        },
        Value::Table(table) => match table.iter().collect::<Vec<_>>().as_slice() {
            [(name, value)] => match (name.as_str(), value) {
                ("fixed", Value::String(text)) if !text.contains('\0') => Ok(Rule::Fixed(text.clone())),
                ("fixed", Value::Integer(number)) => Ok(Rule::Fixed(number.to_string())),
                ("fixed", Value::Float(number)) => Ok(Rule::Fixed(number.to_string())),
                ("fixed", Value::Boolean(flag)) => Ok(Rule::Fixed(flag.to_string())),
                ("date_shift", Value::Integer(days)) if (1..=MOST_DAYS).contains(days) => {
                    Ok(Rule::DateShift(u32::try_from(*days).unwrap_or(1)))
                }
                ("date_shift", _) => Err(format!("date_shift takes a whole number of days, 1 to {MOST_DAYS}")),
                ("sql", Value::String(text)) => match expression::objection(text) {
                    None => Ok(Rule::Sql(text.clone())),
                    Some(problem) => Err(format!("sql {problem}")),
                },
                _ => unknown(),
            },
            _ => unknown(),
        },
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let tables = parse(
            r#"
            [tables.users]
            where = "id > 5"
            [tables.users.columns]
            id = "keep"
            mail = "email"
            name = "hash"
            ip = "null"
            birth = { date_shift = 30 }
            phone = { fixed = "+33" }
            score = { fixed = 7 }
            "city \" .x" = { sql = "left(city, 1)" }
            [tables."other.t"]
            where = "true"
            [tables.open]
            other_columns = "copy"
            columns.a = "hash"
            "#,
        )
        .unwrap();
        let of = |key: &str| tables.iter().find(|t| t.key == key).unwrap();
        let users = of("users");
        assert_eq!((users.condition.as_deref(), users.others), (Some("id > 5"), false));
        let rule = |column: &str| users.columns.iter().find(|(c, _)| c == column).map(|(_, r)| r.clone()).unwrap();
        assert_eq!(rule("birth"), Rule::DateShift(30));
        assert_eq!(rule("score"), Rule::Fixed("7".to_owned()));
        assert_eq!(rule("city \" .x"), Rule::Sql("left(city, 1)".to_owned()));
        assert!(of("other.t").others, "without masks, only rows are chosen");
        assert!(of("open").others);
    }

    #[test]
    fn mistakes_are_told_with_table_and_column() {
        for (text, reason) in [
            ("", "names no table"),
            ("[tables.t]", "neither columns nor where"),
            ("[tables.t]\ncolums.a = \"keep\"", "colums"),
            ("[table.t]\ncolumns.a = \"keep\"", "table"),
            ("[tables.t.columns]\na = \"mask\"", "table `t`, column `a`: `mask` is no rule; write \"keep\""),
            ("[tables.t.columns]\na = { sql = \"x\", fixed = \"y\" }", "column `a`"),
            ("[tables.t.columns]\na = { date_shift = 0 }", "1 to 36525"),
            ("[tables.t.columns]\na = { sql = \"x) from y where (z\" }", "column `a`: sql closes a `)`"),
            ("[tables.t]\nwhere = \"true; drop table x\"", "table `t`, where: holds a `;`"),
            ("[tables.t]\nother_columns = \"ignore\"\ncolumns.a = \"keep\"", "other_columns is `ignore`"),
            ("[tables.t.columns]\na = \"keep\"\na = \"hash\"", "duplicate"),
        ] {
            let found = parse(text).expect_err(text);
            assert!(found.contains(reason), "{text}: {found}");
        }
    }
}
