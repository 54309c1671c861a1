//! What is added on the target after the copy: compatibility views and indexes for the
//! warehouse's queries. Both are configuration; the shipped file holds the reference system's.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use tokio_postgres::Client;

use super::build::millis;
use super::catalog::Key;
use super::relocate::Relocation;
use super::state;
use crate::config::{Reader, Setting};
use crate::postgres::{Doing, explain, quote_identifier};
use crate::replication::settings::{TableMode, TableModes, TableName};
use crate::worker::Run;

/// File that replaces the shipped enrichment.
pub static ENRICHMENT_FILE: Setting = Setting::new(
    "ENRICHMENT_FILE",
    "TOML file with the views and indexes that a full replication adds on the target; unset: the shipped data/enrichment.toml. An empty file adds none.",
);

const SHIPPED: &str = include_str!("../../../data/enrichment.toml");

/// Views and indexes to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrichment {
    #[serde(default, rename = "view")]
    views: Vec<View>,
    #[serde(default, rename = "index")]
    indexes: Vec<Index>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct View {
    name: String,
    of: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    table: String,
    name: String,
    on: String,
}

impl Enrichment {
    /// The shipped one.
    #[must_use]
    pub fn shipped() -> Self {
        toml::from_str(SHIPPED).expect("a unit test reads the shipped file")
    }

    /// Reads `text`, a TOML document.
    ///
    /// # Errors
    /// When it is none, or has members that mean nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim().replace('\n', " "))
    }

    /// The shipped one, or that of `ENRICHMENT_FILE`.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let Some(path) = reader.optional(&ENRICHMENT_FILE) else { return Self::shipped() };
        let read = std::fs::read_to_string(Path::new(&path)).map_err(|e| e.to_string()).and_then(|text| Self::parse(&text));
        read.unwrap_or_else(|error| {
            reader.problem(ENRICHMENT_FILE.name, format!("`{path}` cannot be used: {error}"));
            Self::default()
        })
    }

    /// Names of the views: ours to replace even where an earlier system made them.
    pub(super) fn view_names(&self) -> HashSet<TableName> {
        self.views.iter().map(|v| name_of(&v.name)).collect()
    }

    /// Names of the indexes.
    pub(super) fn index_names(&self) -> HashSet<TableName> {
        self.indexes.iter().map(|i| TableName { schema: name_of(&i.table).schema, name: i.name.clone() }).collect()
    }
}

/// `schema.table`, or a plain name of `public`. The names here are our configuration's, which
/// never hold dots otherwise.
fn name_of(text: &str) -> TableName {
    match text.split_once('.') {
        Some((schema, name)) => TableName { schema: schema.to_owned(), name: name.to_owned() },
        None => TableName::public(text),
    }
}

async fn exists(target: &Client, name: &TableName) -> anyhow::Result<bool> {
    let row = target.query_one("select to_regclass($1) is not null", &[&name.quoted()]).await;
    Ok(row.doing(|| format!("looking for `{name}` on the target"))?.get(0))
}

/// Makes the views; on what is staged, beside the live copy. `gone` is what that loses with the switch. Returns what was made.
pub(super) async fn make_views(
    run: &Run,
    target: &mut Client,
    enrichment: &Enrichment,
    relocation: &Relocation,
    gone: &HashSet<TableName>,
) -> anyhow::Result<Vec<Key>> {
    let mut made = Vec::new();
    run.info("Start create view");
    for view in &enrichment.views {
        let (name, of) = (name_of(&view.name), name_of(&view.of));
        if relocation.is_staged() && relocation.at(&name) == name {
            // Of a run that was cut off behind it.
            let place = relocation.beside(&name).quoted();
            let ours = "select relkind = 'v' from pg_class where oid = to_regclass($1)";
            let row = target.query_opt(ours, &[&place]).await.doing(|| format!("looking for `{name}` on the target"))?;
            if row.is_some_and(|row| row.get(0)) {
                target.batch_execute(&format!("drop view {place}")).await.doing(|| format!("making view `{name}` anew"))?;
            }
        }
        const TAKEN: &str = "select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                             where c.relname = $1 and c.relkind in ('r','p','v','m','f')";
        let rows = target.query(TAKEN, &[&name.name]).await.doing(|| format!("looking for `{name}` on the target"))?;
        let taken = rows.iter().map(|row| TableName { schema: row.get(0), name: name.name.clone() }).find(|taken| {
            let staged = relocation.schemas().any(|(_, stand_in)| stand_in == taken.schema);
            staged || !super::catalog::is_stand_in(&taken.schema) && !gone.contains(taken)
        });
        if let Some(taken) = taken {
            let real = relocation.schemas().find(|(_, stand_in)| *stand_in == taken.schema).map(|(real, _)| real);
            run.info(format!("no view `{name}`: schema `{}` has something of that name", real.unwrap_or(&taken.schema)));
            continue;
        }
        let place = relocation.beside(&name);
        let of_place = relocation.at(&of);
        if !exists(target, &of_place).await? || relocation.is_staged() && of_place == of && gone.contains(&of) {
            run.info(format!("no view `{name}`: table `{of}` does not exist"));
            continue;
        }
        let quoted = quote_identifier(&name.name);
        run.info(format!("CREATE VIEW {quoted} IF TABLE NOT EXISTS - Started"));
        let doing = || format!("making view `{name}`");
        let tx = target.transaction().await.doing(doing)?;
        if relocation.is_staged() {
            super::generation::stage_schema(tx.client(), &place.schema).await?;
        }
        tx.batch_execute(&format!("create view {} as select * from {}", place.quoted(), of_place.quoted())).await.doing(doing)?;
        let identity =
            tx.query_one("select format('%I.%I', $1::text, $2::text)", &[&name.schema, &name.name]).await.doing(doing)?;
        let key: Key = ("view".to_owned(), identity.get(0));
        if !relocation.is_staged() {
            state::record_also(tx.client(), &key).await?;
        }
        tx.commit().await.doing(doing)?;
        made.push(key);
        run.info(format!("CREATE VIEW {quoted} IF TABLE NOT EXISTS - Ended"));
    }
    run.info("End create view");
    Ok(made)
}

/// Makes the indexes, one after the other. Returns those that fit no table.
pub(super) async fn make_indexes(
    run: &Run,
    target: &Client,
    enrichment: &Enrichment,
    modes: &TableModes,
    relocation: &Relocation,
    gone: &HashSet<TableName>,
) -> anyhow::Result<Vec<String>> {
    run.info("Enrich imported data");
    run.info("enrichment.add - Started");
    let mut left_out = Vec::new();
    for index in &enrichment.indexes {
        let table = name_of(&index.table);
        let place = relocation.at(&table);
        let name = TableName { schema: place.schema.clone(), name: index.name.clone() };
        let reason = if modes.mode_of(&table) != TableMode::Full {
            Some(format!("table `{table}` is kept"))
        } else if !exists(target, &place).await? || relocation.is_staged() && place == table && gone.contains(&table) {
            Some(format!("table `{table}` does not exist"))
        } else if exists(target, &name).await? {
            Some("something of that name exists already".to_owned())
        } else {
            None
        };
        let quoted = quote_identifier(&index.name);
        if let Some(reason) = reason {
            run.info(format!("no index {quoted}: {reason}"));
            continue;
        }
        run.info(format!("CREATE INDEX {quoted} - Started"));
        let start = Instant::now();
        let sql = format!("create index {quoted} on {} ({})", place.quoted(), relocation.sql(&index.on));
        match target.batch_execute(&sql).await {
            Ok(()) => {}
            // Class 42: the expression does not fit this table. All rows are there; to fail the
            // night for it, and copy everything again, would help nobody.
            Err(error) if error.code().is_some_and(|c| c.code().starts_with("42")) => {
                run.warn(format!("no index {quoted}: it does not fit table `{table}`: {}", explain(&error)));
                left_out.push(format!("index {}", index.name));
                continue;
            }
            Err(error) => {
                return Err(error)
                    .doing(|| format!("building the enrichment's index `{}` of table `{table}`", index.name))
                    .map_err(Into::into);
            }
        }
        run.info_with(
            format!("CREATE INDEX {quoted} - Ended"),
            json!({"table_name": table.to_string(), "duration_ms": millis(start)}),
        );
    }
    run.info("enrichment.add - Ended");
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn the_shipped_enrichment_is_the_reference_systems() {
        let shipped = Enrichment::shipped();
        assert_eq!(shipped.view_names(), HashSet::from([TableName::public("schooling-registrations")]));
        let names: Vec<&str> = shipped.indexes.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "knowledge-elements_createdAt_idx",
                "knowledge-element-snapshots_snappedAt_idx",
                "answers_challengeId_idx",
                "users_createdAt_idx"
            ]
        );
    }

    #[test]
    fn an_unusable_file_is_a_problem_of_its_setting() {
        for path in ["/nonexistent/enrichment.toml", "/proc/self/cmdline"] {
            let environment = Environment::of([("ENRICHMENT_FILE", path)]);
            let reader = Reader::new(&environment);
            assert_eq!(Enrichment::from_settings(&reader), Enrichment::default());
            let text = reader.finish().unwrap_err().to_string();
            assert!(text.contains("ENRICHMENT_FILE") && text.contains(path), "{text}");
        }
        assert!(Enrichment::parse("[[index]]\ntable = 'a'\nname = 'b'\non = 'c'\ntypo = 1").is_err());
    }
}
