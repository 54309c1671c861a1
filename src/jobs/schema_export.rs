//! Exports the warehouse's definitions into a catalogue database, at noon.
//!
//! Safe to run again at any point: one transaction in the catalogue ([`schema_export`]). Does
//! nothing, in silence, unless it is enabled.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{Reader, Setting};
use crate::postgres::Database;
use crate::postgres::client_programs::PG_BIN;
use crate::replication::production;
use crate::replication::schema_export::{self, ExportError};
use crate::replication::settings::{self, database};
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// The switch.
pub static DB_SCHEMA_EXPORTER_ENABLED: Setting = Setting::new(
    "DB_SCHEMA_EXPORTER_ENABLED",
    "Exactly `true` exports the target's definitions to DB_SCHEMA_EXPORTER_DATABASE_TARGET every day at noon; anything else does not.",
);
/// Where to.
pub static DB_SCHEMA_EXPORTER_DATABASE_TARGET: Setting = Setting::new(
    "DB_SCHEMA_EXPORTER_DATABASE_TARGET",
    "Catalogue database that gets the definitions: postgres://user:password@host:5432/name. A database of its own: it holds no rows.",
);

/// When it runs.
const NOON: &str = "0 12 * * *";

/// The job's data: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Payload {}

/// Exports definitions.
#[derive(Debug)]
pub struct SchemaExport {
    /// From and to; `None` when not enabled.
    databases: Option<(Database, Database)>,
    /// Compared with the catalogue, which it must not be.
    production: Option<Database>,
    /// Directory of pg_dump; none: it is looked for.
    programs: Option<PathBuf>,
    schedule: Option<Schedule>,
}

#[async_trait::async_trait]
impl JobKind for SchemaExport {
    const NAME: &'static str = "schema-export";
    const QUEUE: &'static str = "Schema export queue";
    const SUMMARY: &'static str = "Export the target's definitions into a catalogue database";
    const SETTINGS: &'static [&'static Setting] = &[
        &DB_SCHEMA_EXPORTER_ENABLED,
        &DB_SCHEMA_EXPORTER_DATABASE_TARGET,
        &settings::TARGET_DATABASE_URL,
        &settings::SOURCE_DATABASE_URL,
        &PG_BIN,
    ];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        super::replicates(reader)
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        let enabled = reader.text(&DB_SCHEMA_EXPORTER_ENABLED) == "true";
        let databases = enabled
            .then(|| (settings::target(reader), database(reader, &DB_SCHEMA_EXPORTER_DATABASE_TARGET)))
            .and_then(|(source, catalogue)| Some((source?, catalogue?)));
        if databases.as_ref().is_some_and(|(source, catalogue)| source == catalogue) {
            reader.problem(DB_SCHEMA_EXPORTER_DATABASE_TARGET.name, "is the warehouse itself; name another database");
        }
        let schedule = enabled.then(|| Schedule::of(reader, DB_SCHEMA_EXPORTER_ENABLED.name, NOON.to_owned()));
        let production = if enabled { settings::source_if_set(reader) } else { None };
        SchemaExport { databases, production, programs: reader.optional(&PG_BIN).map(Into::into), schedule }
    }

    fn schedule(&self) -> Option<Schedule> {
        self.schedule.clone()
    }

    fn writes_to(&self) -> Option<&Database> {
        self.databases.as_ref().map(|(_, catalogue)| catalogue)
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let Some((source, catalogue)) = &self.databases else { return Ok(Outcome::Done(json!({"skipped": true}))) };
        let named = DB_SCHEMA_EXPORTER_DATABASE_TARGET.name;
        if let Some(objection) = production::objection(&ctx.run, self.production.as_ref(), catalogue, named).await? {
            return Ok(Outcome::Refuse(objection));
        }
        let event = json!({"event": "db-schema-exporter"});
        ctx.run.info_with("Data Catalog enrichment starting", event.clone());
        let exported = match schema_export::export(&ctx.run, source, catalogue, self.programs.as_deref()).await {
            Ok(exported) => exported,
            // Trying again cannot make it another database.
            Err(error @ ExportError::SameDatabase) => return Ok(Outcome::Refuse(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        ctx.run.info_with("Data Catalog enrichment ended successfully", event);
        Ok(Outcome::Done(json!({"objects": exported.objects, "removed": exported.removed})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(pairs: &[(&str, &str)]) -> (SchemaExport, Result<(), crate::config::ConfigError>) {
        let environment = Environment::of(pairs.iter().copied());
        let reader = Reader::new(&environment);
        let kind = SchemaExport::from_settings(&reader);
        (kind, reader.finish())
    }

    #[test]
    fn only_the_exact_text_true_enables_it_at_noon_in_paris() {
        for value in ["", "TRUE", "1", "yes", "false"] {
            let (kind, result) = read(&[("DB_SCHEMA_EXPORTER_ENABLED", value)]);
            result.unwrap();
            assert!(kind.schedule().is_none() && kind.writes_to().is_none(), "{value}");
        }
        let (kind, result) = read(&[
            ("DB_SCHEMA_EXPORTER_ENABLED", "true"),
            ("DATABASE_URL", "postgres://u@h/warehouse"),
            ("DB_SCHEMA_EXPORTER_DATABASE_TARGET", "postgres://u@h/catalogue"),
        ]);
        result.unwrap();
        let schedule = kind.schedule().unwrap();
        assert_eq!((schedule.cron.as_str(), schedule.time_zone.as_str()), ("0 12 * * *", "Europe/Paris"));
        assert_eq!(kind.writes_to().unwrap().name(), "catalogue");
    }

    #[test]
    fn an_enabled_export_needs_two_different_databases() {
        let enabled = ("DB_SCHEMA_EXPORTER_ENABLED", "true");
        let text = read(&[enabled]).1.unwrap_err().to_string();
        assert!(
            text.contains("TARGET_DATABASE_URL: is not set") && text.contains("DB_SCHEMA_EXPORTER_DATABASE_TARGET: is not set")
        );
        let same = [("DATABASE_URL", "postgres://u@h/d"), ("DB_SCHEMA_EXPORTER_DATABASE_TARGET", "postgres://u@h/d"), enabled];
        assert!(read(&same).1.unwrap_err().to_string().contains("is the warehouse itself"));
    }
}
