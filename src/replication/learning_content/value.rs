//! An item of the answer as a row of COPY text.
//!
//! The server parses the values, with every check it has; here they are only found, brought to the
//! column's arity, and escaped so that no comma, quote, brace or backslash in them means anything.

use serde_json::{Map, Value};

use super::mapping::{Column, Extractor, Table};
use crate::postgres::text_form::{self, escape};

/// Appends the row of `item` to `out`, with its line end, and returns the item's id; `None` when
/// it has none, with nothing appended.
pub(super) fn write_row(table: &Table, item: &Value, out: &mut String) -> Option<String> {
    let Value::Object(item) = item else { return None };
    let id = scalar_text(first(item.get("id")?))?;
    escape(&id, out);
    for column in &table.columns {
        out.push('\t');
        match cell(column, item) {
            Some(text) => escape(&text, out),
            None => out.push_str("\\N"),
        }
    }
    out.push('\n');
    Some(id)
}

/// The text of one value in the form the column's input function takes; `None` is null.
fn cell(column: &Column, item: &Map<String, Value>) -> Option<String> {
    let text = match &column.from {
        Extractor::Path(path) => value_text(column, walk(item, path)),
        Extractor::Truthy(path) => Some(walk(item, path).is_some_and(truthy).to_string()),
        Extractor::ArrayOf(path) => {
            let element = walk(item, path).filter(|v| !v.is_null());
            let text = array_text(element.into_iter());
            if column.is_array() { Some(text) } else { element.and_then(scalar_text) }
        }
        Extractor::Constant(value) => value_text(column, Some(value)),
        Extractor::Null => None,
    };
    if column.is_boolean() { Some(text.unwrap_or_else(|| "false".to_owned())) } else { text }
}

/// The member that `path` leads to. A path that leads nowhere is null, not a failure: one item
/// without translations must not cost the night's load.
fn walk<'v>(item: &'v Map<String, Value>, path: &[String]) -> Option<&'v Value> {
    let (head, rest) = path.split_first()?;
    rest.iter().try_fold(item.get(head)?, |value, member| value.as_object()?.get(member))
}

fn value_text(column: &Column, value: Option<&Value>) -> Option<String> {
    let value = value?;
    if !column.is_array() {
        return scalar_text(first(value));
    }
    match value {
        Value::Null => None,
        Value::Array(elements) => Some(array_text(elements.iter())),
        scalar => Some(array_text(std::iter::once(scalar))),
    }
}

/// An array's first element, null when it is empty; anything else as it is.
fn first(value: &Value) -> &Value {
    match value {
        Value::Array(elements) => elements.first().unwrap_or(&Value::Null),
        other => other,
    }
}

/// PostgreSQL's array literal.
fn array_text<'v>(elements: impl Iterator<Item = &'v Value>) -> String {
    text_form::array(elements.map(scalar_text))
}

/// Objects and nested arrays become their JSON, as the reference's driver writes them.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Number(number) => Some(match number.as_f64() {
            // JSON knows one sort of number: 3.0 is 3 for an integer column too.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => format!("{float:.0}"),
            _ => number.to_string(),
        }),
        other => Some(other.to_string()),
    }
}

/// JavaScript's truth: the producer of these values and the reference are JavaScript.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(number) => number.as_f64().is_none_or(|f| f != 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::replication::learning_content::mapping::Mapping;

    fn row(columns: &str, item: &Value) -> String {
        let mapping = Mapping::parse(&format!("[[table]]\nname=\"t\"\ncolumns=[{columns}]")).unwrap();
        let mut out = String::new();
        write_row(&mapping.tables[0], item, &mut out).expect("the item has an id");
        out.strip_suffix('\n').unwrap().split_once('\t').map(|(_, rest)| rest.to_owned()).unwrap_or_default()
    }

    #[test]
    fn arrays_survive_whatever_their_elements_hold() {
        let item = json!({"id": "a", "x": ["a,b", "q\"q", "{c}", "back\\slash", "", null, "NULL", "new\nline", 7]});
        assert_eq!(
            row(r#"{name="x",type="text[]"}"#, &item),
            r#"{"a,b","q\\"q","{c}","back\\\\slash","",NULL,"NULL","new\nline","7"}"#
        );
    }

    #[test]
    fn values_take_the_columns_arity() {
        let item = json!({"id": "a", "list": ["b", "c"], "none": [], "one": "d", "nil": null});
        assert_eq!(row(r#"{name="list",type="text"}"#, &item), "b");
        assert_eq!(row(r#"{name="none",type="text"}"#, &item), "\\N");
        assert_eq!(row(r#"{name="one",type="text[]"}"#, &item), r#"{"d"}"#);
        assert_eq!(row(r#"{name="nil",type="text[]"}"#, &item), "\\N");
        assert_eq!(row(r#"{name="gone",type="text[]"}"#, &item), "\\N");
        assert_eq!(row(r#"{name="x",type="text[]",array_of="gone"}"#, &item), "{}");
        assert_eq!(row(r#"{name="x",type="text[]",array_of="one"}"#, &item), r#"{"d"}"#);
    }

    #[test]
    fn an_absent_boolean_is_false_and_truth_is_javascripts() {
        let item = json!({"id": "a", "empty": "", "zero": 0, "text": "x", "list": [], "nil": null});
        assert_eq!(row(r#"{name="gone",type="boolean"}"#, &item), "false");
        assert_eq!(row(r#"{name="nil",type="boolean"}"#, &item), "false");
        for (path, truth) in [("empty", "false"), ("zero", "false"), ("gone", "false"), ("text", "true"), ("list", "true")] {
            assert_eq!(row(&format!(r#"{{name="x",type="boolean",truthy="{path}"}}"#), &item), truth, "{path}");
        }
    }

    #[test]
    fn a_path_into_an_absent_object_is_null() {
        let item = json!({"id": "a", "name_i18n": {"fr": "nom"}, "flat": "x"});
        assert_eq!(row(r#"{name="x",type="text",path="name_i18n.fr"}"#, &item), "nom");
        assert_eq!(row(r#"{name="x",type="text",path="hint_i18n.fr"}"#, &item), "\\N");
        assert_eq!(row(r#"{name="x",type="text",path="flat.fr"}"#, &item), "\\N");
    }

    #[test]
    fn numbers_read_as_javascript_writes_them() {
        let item: Value = serde_json::from_str(r#"{"id":1,"a":3.0,"b":0.1,"c":-7,"d":1e300}"#).unwrap();
        assert_eq!(row(r#"{name="a",type="smallint"},{name="b",type="numeric"},{name="c",type="text"}"#, &item), "3\t0.1\t-7");
        assert_eq!(row(r#"{name="d",type="numeric"}"#, &item), "1e+300");
    }

    #[test]
    fn an_item_without_id_has_no_row() {
        let mapping = Mapping::parse("[[table]]\nname=\"t\"").unwrap();
        for item in [json!({}), json!({"id": null}), json!(null), json!("x"), json!({"id": []})] {
            assert_eq!(write_row(&mapping.tables[0], &item, &mut String::new()), None, "{item}");
        }
    }
}
