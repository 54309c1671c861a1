//! Groups of tables as JSON that Django's `loaddata` reads: a list of `{"model", "pk", "fields"}`.
//!
//! Values are written as Django's own serializer does: decimals, dates, intervals and UUIDs as text, bytes in
//! base64, JSON as it is, arrays and ranges as a text that holds JSON. Fields are named as columns are
//! (`user_id`), which Django takes for its own names, unless the configuration says otherwise. Rows stand in
//! the order of their keys, tables after those that they refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{TryStreamExt as _, pin_mut};
use serde::Deserialize;
use tokio_postgres::Client;

use super::columns::{self, Column, oid};
use super::manifest::MemberKind;
use super::squeeze::SqueezeError;
use super::tar::Tar;
use crate::config::{Reader, Setting};
use crate::postgres::{Doing, PostgresError, quote_identifier, quote_literal};
use crate::replication::settings::TableName;
use crate::worker::Run;

/// Which groups there are.
pub static BACKUP_FIXTURES: Setting = Setting::new(
    "BACKUP_FIXTURES",
    "JSON object of groups of tables that each archive holds as a Django fixture too: from the group's name to an object from table to model, or a list of tables, whose models have the tables' names then. Instead of a model there may be {\"model\":\"auth.user\",\"fields\":{\"column\":\"field\"}}. Example: {\"auth\":{\"auth_group\":\"auth.group\",\"auth_user\":\"auth.user\"},\"checkouts\":[\"checkouts_cart\"]}",
)
.default("{}");

/// Longest name of a group: it is part of a file's name.
const NAME_LIMIT: usize = 60;

/// A group of tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    name: String,
    tables: Vec<Wanted>,
}

impl Group {
    /// The group in words, for comparing.
    pub(super) fn told(&self) -> String {
        let tables = self.tables.iter().map(|wanted| format!("{} as {} {:?}", wanted.table, wanted.model, wanted.fields));
        format!("{}: {}", self.name, tables.collect::<Vec<_>>().join(", "))
    }
}

/// A table of a group, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    table: String,
    model: String,
    fields: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tables {
    Names(Vec<String>),
    Models(BTreeMap<String, Model>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Model {
    Name(String),
    Detailed {
        model: String,
        #[serde(default)]
        fields: BTreeMap<String, String>,
    },
}

/// Reads the groups.
pub fn groups(reader: &Reader<'_>) -> Vec<Group> {
    let read: BTreeMap<String, Tables> =
        reader.json(&BACKUP_FIXTURES, "an object such as {\"auth\":{\"auth_user\":\"auth.user\"}}");
    let mut groups = Vec::new();
    for (name, tables) in read {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || !name.chars().all(good) || name.len() > NAME_LIMIT {
            let rule = format!("letters, digits, `_`, `-` and `.`, {NAME_LIMIT} at most");
            reader.problem(BACKUP_FIXTURES.name, format!("the group `{name}` cannot be a file's name; write {rule}"));
            continue;
        }
        let tables: Vec<Wanted> = match tables {
            Tables::Names(names) => {
                names.into_iter().map(|table| Wanted { model: table.clone(), table, fields: BTreeMap::new() }).collect()
            }
            Tables::Models(models) => models
                .into_iter()
                .map(|(table, model)| match model {
                    Model::Name(model) => Wanted { table, model, fields: BTreeMap::new() },
                    Model::Detailed { model, fields } => Wanted { table, model, fields },
                })
                .collect(),
        };
        if tables.is_empty() {
            reader.problem(BACKUP_FIXTURES.name, format!("the group `{name}` names no table"));
        }
        groups.push(Group { name, tables });
    }
    groups
}

/// The names that columns of `table` have in the fixture of `group`, where they have others.
pub(super) fn fields(groups: &[Group], group: &str, table: &str) -> BTreeMap<String, String> {
    let group = groups.iter().find(|known| known.name == group);
    let wanted = group.and_then(|group| group.tables.iter().find(|wanted| wanted.table == table));
    wanted.map(|wanted| wanted.fields.clone()).unwrap_or_default()
}

/// Why there is no fixture.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// The configuration names a table that is not there.
    #[error("BACKUP_FIXTURES names table `{table}` in group `{group}`, which does not exist or holds no rows of its own")]
    Unknown {
        /// The group.
        group: String,
        /// The table.
        table: String,
    },
    /// The configuration names a column that is not there.
    #[error("BACKUP_FIXTURES names column `{column}` of table `{table}`, which does not exist")]
    UnknownColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The server failed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The rows cannot be passed on.
    #[error("passing on a fixture")]
    Squeeze(#[from] SqueezeError),
}

/// A group whose tables were found.
pub(super) struct Fixture {
    pub(super) group: String,
    tables: Vec<Source>,
}

struct Source {
    name: TableName,
    sql: String,
}

const REFERENCES: &str = "select distinct conrelid, confrelid from pg_constraint where contype = 'f' and conrelid <> confrelid and conrelid = any($1) and confrelid = any($1)";

/// How a value becomes JSON.
fn value(column: &str, of: &Column) -> String {
    let base64 = |v: &str| format!("translate(encode({v}, 'base64'), E'\\n', '')");
    if of.element != 0 {
        // Django keeps the elements inside a text, and reads each as its own type does.
        return match of.element {
            oid::BYTEA => {
                format!(
                    "case when {column} is not null then (select coalesce(json_agg({}), '[]')::text from unnest({column}) e) end",
                    base64("e")
                )
            }
            element if element == oid::BOOL || oid::NUMBERS.contains(&element) => format!("to_json({column})::text"),
            _ if of.element_kind == "r" => format!("to_json({column})::text"),
            _ => format!("to_json({column}::text[])::text"),
        };
    }
    match of.oid {
        oid::BYTEA => base64(column),
        oid::NUMERIC | oid::INTERVAL | oid::MONEY => format!("{column}::text"),
        _ if of.kind == "r" => format!(
            "case when {column} is null then null when isempty({column}) then '{{\"empty\": true}}' else json_build_object(\
             'bounds', case when lower_inc({column}) then '[' else '(' end || case when upper_inc({column}) then ']' else ')' end, \
             'lower', lower({column})::text, 'upper', upper({column})::text)::text end"
        ),
        _ => column.to_owned(),
    }
}

/// The query whose only column is a row of the fixture.
async fn query(client: &Client, name: &TableName, oid: u32, wanted: &Wanted) -> Result<String, FixtureError> {
    let mut columns = columns::columns(client, oid, name).await?;
    columns.retain(|column| !column.generated);
    if let Some(column) = wanted.fields.keys().find(|wanted| !columns.iter().any(|column| column.name == **wanted)) {
        return Err(FixtureError::UnknownColumn { table: name.to_string(), column: column.clone() });
    }
    let qualified = |column: &Column| format!("t.{}", quote_identifier(&column.name));
    let key = columns::key(&columns);
    let (pk, order): (String, Vec<String>) = match key.as_slice() {
        [] => ("null".to_owned(), columns.iter().map(|column| format!("{}::text", qualified(column))).collect()),
        [only] => (value(&qualified(only), only), vec![qualified(only)]),
        several => {
            let parts: Vec<String> = several.iter().map(|column| value(&qualified(column), column)).collect();
            (format!("json_build_array({})", parts.join(", ")), several.iter().map(|column| qualified(column)).collect())
        }
    };
    // A key of one column is `pk` and no field.
    let fields: Vec<String> = columns
        .iter()
        .filter(|column| !(column.key_place > 0 && key.len() == 1))
        .map(|column| {
            let field = wanted.fields.get(&column.name).unwrap_or(&column.name);
            format!("{} as {}", value(&qualified(column), column), quote_identifier(field))
        })
        .collect();
    let model = quote_literal(&wanted.model);
    let order = if order.is_empty() { String::new() } else { format!(" order by {}", order.join(", ")) };
    // A column may be called as the row is, and would be taken for it.
    Ok(format!(
        "select json_build_object('model', {model}, 'pk', {pk}, 'fields', coalesce((select row_to_json(\"all fields\") from (select {}) \"all fields\"), '{{}}'))::text \
         from {} t{order}",
        fields.join(", "),
        name.quoted()
    ))
}

/// Finds the tables of `groups` and puts groups, and tables in them, after those that they refer to.
pub(super) async fn prepare(client: &Client, groups: &[Group]) -> Result<Vec<Fixture>, FixtureError> {
    let mut found: Vec<(Fixture, Vec<u32>)> = Vec::new();
    for group in groups {
        let (mut sources, mut oids) = (Vec::new(), Vec::new());
        for wanted in &group.tables {
            let Some((oid, name)) = columns::table(client, &wanted.table).await? else {
                return Err(FixtureError::Unknown { group: group.name.clone(), table: wanted.table.clone() });
            };
            sources.push(Source { sql: query(client, &name, oid, wanted).await?, name });
            oids.push(oid);
        }
        found.push((Fixture { group: group.name.clone(), tables: sources }, oids));
    }
    let all: Vec<u32> = found.iter().flat_map(|(_, oids)| oids.clone()).collect();
    let mut needs: HashMap<u32, BTreeSet<u32>> = HashMap::new();
    for row in client.query(REFERENCES, &[&all]).await.doing(|| "reading the foreign keys".to_owned())? {
        needs.entry(row.get(0)).or_default().insert(row.get(1));
    }
    let group_of: HashMap<u32, u32> =
        (0..).zip(&found).flat_map(|(at, (_, oids))| oids.iter().map(move |oid| (*oid, at))).collect();
    let mut group_needs: HashMap<u32, BTreeSet<u32>> = HashMap::new();
    for (from, to) in needs.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        if group_of[from] != group_of[to] {
            group_needs.entry(group_of[from]).or_default().insert(group_of[to]);
        }
    }
    let group_order = by_need((0..).take(found.len()).collect(), &group_needs);
    let mut places: HashMap<u32, (Fixture, Vec<u32>)> = (0..).zip(found).collect();
    let in_order = group_order.into_iter().filter_map(|at| places.remove(&at)).map(|(fixture, oids)| {
        let order = by_need(oids.clone(), &needs);
        let mut sources: HashMap<u32, Source> = oids.into_iter().zip(fixture.tables).collect();
        Fixture { group: fixture.group, tables: order.iter().filter_map(|oid| sources.remove(oid)).collect() }
    });
    Ok(in_order.collect())
}

/// `all`, each after those of them that it needs, as far as there is no circle.
fn by_need(all: Vec<u32>, needs: &HashMap<u32, BTreeSet<u32>>) -> Vec<u32> {
    fn visit(at: u32, waiting: &mut BTreeSet<u32>, needs: &HashMap<u32, BTreeSet<u32>>, done: &mut Vec<u32>) {
        if waiting.remove(&at) {
            for needed in needs.get(&at).into_iter().flatten() {
                visit(*needed, waiting, needs, done);
            }
            done.push(at);
        }
    }
    let mut waiting: BTreeSet<u32> = all.iter().copied().collect();
    let mut done = Vec::new();
    for at in all {
        visit(at, &mut waiting, needs, &mut done);
    }
    done
}

impl Fixture {
    /// Name of the member.
    pub(super) fn member(&self) -> String {
        format!("fixtures/{}.json", self.group)
    }

    /// Writes the group into the tar; false when it has no rows, and then there is no member.
    pub(super) async fn write(&self, run: &Run, client: &Client, tar: &mut Tar, before: u64) -> Result<bool, FixtureError> {
        let mut member = tar.open(self.member(), MemberKind::Fixture);
        let mut tables = Vec::new();
        for table in &self.tables {
            let doing = || format!("reading table `{}` for the fixture `{}`", table.name, self.group);
            let none: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];
            let rows = client.query_raw(&table.sql, none).await.doing(doing)?;
            pin_mut!(rows);
            let mut any = false;
            while let Some(row) = rows.try_next().await.doing(doing)? {
                let first = tables.is_empty() && !any;
                any = true;
                member.write(if first { b"[\n" } else { b",\n" }).await?;
                member.write(row.try_get::<_, &str>(0).doing(doing)?.as_bytes()).await?;
                run.progress(|p| p.bytes = before + member.bytes());
            }
            if any {
                tables.push(table.name.to_string());
            }
        }
        if tables.is_empty() {
            return Ok(false);
        }
        member.write(b"\n]\n").await?;
        let group = self.group.clone();
        member
            .close_with(|member| {
                member.group = Some(group);
                member.tables = tables;
            })
            .await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(text: &str) -> (Vec<Group>, Result<(), crate::config::ConfigError>) {
        let environment = Environment::of([("BACKUP_FIXTURES", text)]);
        let reader = Reader::new(&environment);
        let groups = groups(&reader);
        (groups, reader.finish())
    }

    #[test]
    fn groups_are_read_in_each_of_their_forms() {
        let (groups, result) = read(
            r#"{"auth":{"auth_user":"auth.user","g":{"model":"auth.group","fields":{"a":"b"}}},"checkouts":["checkouts_cart"]}"#,
        );
        result.unwrap();
        assert_eq!(groups[0].tables[0], Wanted { table: "auth_user".into(), model: "auth.user".into(), fields: BTreeMap::new() });
        assert_eq!(groups[0].tables[1].fields["a"], "b");
        assert_eq!(groups[1].tables[0].model, "checkouts_cart");
        for (wrong, wanted) in [
            (r#"{"../x":["t"]}"#, "cannot be a file's name"),
            (r#"{"x":[]}"#, "names no table"),
            (r#"{"x":"t"}"#, "should be a JSON value"),
        ] {
            assert!(read(wrong).1.unwrap_err().to_string().contains(wanted), "{wrong}");
        }
    }

    #[test]
    fn what_is_needed_comes_first_and_a_circle_ends() {
        let needs = HashMap::from([
            (1, BTreeSet::from([2])),
            (2, BTreeSet::from([3])),
            (3, BTreeSet::from([1])),
            (5, BTreeSet::from([4])),
        ]);
        assert_eq!(by_need(vec![5, 4], &needs), [4, 5]);
        assert_eq!(by_need(vec![1, 2, 3], &needs), [3, 2, 1]);
    }
}
