//! A table that rows of a fixture are loaded into: its columns, and the SQL that reads them from JSON. The counterpart of
//! [`super::fixture`], which writes them.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::columns::{self, Column, oid};
use super::loading::LoadError;
use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};
use crate::replication::settings::TableName;

/// Sequences that number a column upwards.
const SEQUENCES: &str = "select a.attname::text, s.seqrelid::regclass::text from pg_attribute a
    join pg_sequence s on s.seqrelid = pg_get_serial_sequence(a.attrelid::regclass::text, a.attname)::regclass
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and s.seqincrement > 0";

/// A table and how it is filled.
pub(super) struct Shape {
    pub(super) oid: u32,
    /// As people write it.
    pub(super) shown: String,
    name: TableName,
    columns: Vec<Column>,
    /// From field to column, where they differ.
    fields: BTreeMap<String, String>,
}

impl Shape {
    /// Looks at the table called `shown`; `fields` are the names that its columns have in fixtures.
    pub(super) async fn read(client: &Client, shown: &str, fields: BTreeMap<String, String>) -> Result<Shape, LoadError> {
        let Some((oid, name)) = columns::table(client, shown).await? else {
            return Err(LoadError::MissingTable(shown.to_owned()));
        };
        let columns = columns::columns(client, oid, &name).await?;
        let fields = fields.into_iter().map(|(column, field)| (field, column)).collect();
        Ok(Shape { oid, shown: shown.to_owned(), name, columns, fields })
    }

    /// Whether it holds anything.
    pub(super) async fn has_rows(&self, client: &Client) -> Result<bool, PostgresError> {
        let sql = format!("select exists (select from {})", self.name.quoted());
        Ok(client.query_one(&sql, &[]).await.doing(|| format!("looking whether table `{}` has rows", self.shown))?.get(0))
    }

    /// The column of a field. Django calls the column of a field that refers to another table `…_id`.
    fn column(&self, field: &str) -> Option<&Column> {
        let wanted = self.fields.get(field).map_or(field, String::as_str);
        let named = |name: &str| self.columns.iter().find(|column| column.name == name);
        named(wanted).or_else(|| named(&format!("{wanted}_id")))
    }

    /// The statement that takes a JSON list of rows with these fields as its only parameter; or the field that is no column.
    pub(super) fn insert(&self, fields: &[String]) -> Result<String, String> {
        let key = columns::key(&self.columns);
        let mut values: Vec<(&Column, String)> = Vec::new();
        // A key of one column stands beside the fields.
        if let [only] = key.as_slice() {
            values.push((only, read(only, "r -> 'pk'", "r ->> 'pk'")));
        }
        for field in fields {
            let column = self.column(field).ok_or_else(|| field.clone())?;
            let literal = quote_literal(field);
            let (json, text) = (format!("r -> 'fields' -> {literal}"), format!("r -> 'fields' ->> {literal}"));
            values.push((column, read(column, &json, &text)));
        }
        let list = |columns: &mut dyn Iterator<Item = &Column>| {
            columns.map(|column| quote_identifier(&column.name)).collect::<Vec<_>>().join(", ")
        };
        let changed: Vec<String> = values
            .iter()
            .filter(|(column, _)| column.key_place == 0 && !column.always_numbered)
            .map(|(column, _)| format!("{0} = excluded.{0}", quote_identifier(&column.name)))
            .collect();
        let conflict = match (key.is_empty(), changed.is_empty()) {
            (true, _) => String::new(),
            (false, true) => " on conflict do nothing".to_owned(),
            (false, false) => format!(" on conflict ({}) do update set {}", list(&mut key.iter().copied()), changed.join(", ")),
        };
        Ok(format!(
            "insert into {} ({}) overriding system value select {} from json_array_elements($1::text::json) with ordinality x(r, n) order by n{conflict}",
            self.name.quoted(),
            list(&mut values.iter().map(|(column, _)| *column)),
            values.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
        ))
    }

    /// Has sequences go on behind the highest value.
    pub(super) async fn advance_sequences(&self, client: &Client) -> Result<(), PostgresError> {
        let doing = || format!("moving the sequences of table `{}`", self.shown);
        for row in client.query(SEQUENCES, &[&self.oid]).await.doing(doing)? {
            let (column, sequence): (&str, &str) = (row.get(0), row.get(1));
            let sql = format!(
                "select setval({}, m.top) from (select max({})::bigint as top from {}) m, {sequence} s \
                 where m.top > s.last_value or m.top = s.last_value and not s.is_called",
                quote_literal(sequence),
                quote_identifier(column),
                self.name.quoted()
            );
            client.query(&sql, &[]).await.doing(doing)?;
        }
        Ok(())
    }
}

/// SQL for the value of `column`, from expressions for it as JSON and as text.
fn read(column: &Column, json: &str, text: &str) -> String {
    let of = &column.sql_type;
    if column.element != 0 {
        // The elements stand in a text that holds JSON.
        return match column.element {
            oid::BYTEA => format!(
                "(case when {text} is not null then (select coalesce(array_agg(decode(e, 'base64') order by i), '{{}}') \
                 from json_array_elements_text(({text})::json) with ordinality a(e, i)) end)::{of}"
            ),
            element if element == oid::BOOL || oid::NUMBERS.contains(&element) => {
                format!("translate({text}, '[]', '{{}}')::{of}")
            }
            // A list in a list would come out as one text. The cast that fails tells so.
            _ => format!(
                "(case when {text} is null then null \
                 when exists (select from json_array_elements(({text})::json) e where json_typeof(e) = 'array') \
                 then array[(left({text}, 50) || ' has more than one dimension, which fixtures cannot bring back')::int::text] \
                 else (select coalesce(array_agg(e order by i), '{{}}') \
                 from json_array_elements_text(({text})::json) with ordinality a(e, i)) end)::{of}"
            ),
        };
    }
    match column.oid {
        oid::BYTEA => format!("decode({text}, 'base64')::{of}"),
        oid if oid::JSON.contains(&oid) => format!("(case when json_typeof({json}) <> 'null' then {json} end)::{of}"),
        _ if column.kind == "c" => {
            format!("(case when json_typeof({json}) <> 'null' then json_populate_record(null::{of}, {json}) end)")
        }
        _ if column.kind == "r" => {
            let end = |which: &str| {
                format!("coalesce('\"' || replace(replace(j ->> '{which}', '\\', '\\\\'), '\"', '\\\"') || '\"', '')")
            };
            format!(
                "(select case when j is null then null when (j ->> 'empty')::bool then 'empty' \
                 else left(j ->> 'bounds', 1) || {} || ',' || {} || right(j ->> 'bounds', 1) end \
                 from (select ({text})::json) x(j))::{of}",
                end("lower"),
                end("upper")
            )
        }
        _ => format!("({text})::{of}"),
    }
}
