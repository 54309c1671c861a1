//! Copies the source into the target, whole: the first job of the night.
//!
//! Safe to run twice: a run replaces what the one before made. Interrupted: the copy before serves; in place, the target
//! may be incomplete and marked so, and the next run repairs it ([`crate::replication::full`]).

use std::time::Duration;

use crate::config::{Reader, Setting};
use crate::postgres::Database;
use crate::replication::full::{self, Config, ENRICHMENT_FILE, Enrichment, Refused, Resume, Swap};
use crate::replication::kindness::{self, Kindness};
use crate::replication::rules::{REPLICATION_MASK_KEY, REPLICATION_RULES, Rules};
use crate::replication::settings::{
    self, BACKUP_MODE, PG_RESTORE_JOBS, REPLICATION_BUSY_QUERY, REPLICATION_BUSY_SESSIONS, REPLICATION_GENERATIONS,
    REPLICATION_MAX_RATE, REPLICATION_RESUME, REPLICATION_SOURCE_CONNECTIONS, REPLICATION_SWAP, REPLICATION_SWAP_TIMEOUT,
    REPLICATION_TARGET_SPACE, REPLICATION_VERIFY, RESTORE_FK_CONSTRAINTS, SOURCE_DATABASE_URL, TARGET_DATABASE_URL, TableModes,
};
use crate::replication::verify::Depth;
use crate::schedule::Schedule;
use crate::worker::{JobContext, JobKind, Outcome};

/// When the night begins.
pub static SCHEDULE: Setting =
    Setting::new("SCHEDULE", "When the full replication starts: cron with 5 fields, or 6 with seconds first.")
        .default("10 5 * * *");

/// The kind.
pub struct FullReplication {
    /// Nothing when a database setting is missing; then reading the settings has failed.
    config: Option<Config>,
    schedule: Schedule,
}

impl FullReplication {
    /// What a run does; none when a database setting is missing.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }
}

#[async_trait::async_trait]
impl JobKind for FullReplication {
    const NAME: &'static str = "full-replication";
    const QUEUE: &'static str = "Replication queue";
    const SUMMARY: &'static str = "Copy the source database into the target and enrich it";
    const THEN: Option<&'static str> = Some("incremental-replication");
    const SETTINGS: &'static [&'static Setting] = &[
        &SCHEDULE,
        &SOURCE_DATABASE_URL,
        &TARGET_DATABASE_URL,
        &BACKUP_MODE,
        &REPLICATION_RULES,
        &REPLICATION_MASK_KEY,
        &RESTORE_FK_CONSTRAINTS,
        &PG_RESTORE_JOBS,
        &REPLICATION_SWAP,
        &REPLICATION_SWAP_TIMEOUT,
        &REPLICATION_GENERATIONS,
        &REPLICATION_TARGET_SPACE,
        &REPLICATION_RESUME,
        &REPLICATION_VERIFY,
        &REPLICATION_MAX_RATE,
        &REPLICATION_SOURCE_CONNECTIONS,
        &REPLICATION_BUSY_SESSIONS,
        &REPLICATION_BUSY_QUERY,
        &ENRICHMENT_FILE,
    ];
    type Payload = serde_json::Map<String, serde_json::Value>;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        super::replicates(reader)
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        let (source, target) = (settings::source(reader), settings::target(reader));
        let modes = TableModes::from_settings(reader);
        let rules = Rules::from_settings(reader);
        let foreign_keys = reader.flag(&RESTORE_FK_CONSTRAINTS);
        let jobs = usize::try_from(reader.integer(&PG_RESTORE_JOBS, 1..=32)).unwrap_or(1);
        let minutes = reader.integer(&REPLICATION_SWAP_TIMEOUT, 1..=1440);
        let generations = u32::try_from(reader.integer(&REPLICATION_GENERATIONS, 0..=9)).unwrap_or(1);
        let resume = match reader.text(&REPLICATION_RESUME).as_str() {
            "relaxed" => Resume::Relaxed,
            other => {
                if other != "consistent" {
                    reader.problem(REPLICATION_RESUME.name, format!("`{other}` is neither `consistent` nor `relaxed`"));
                }
                Resume::Consistent
            }
        };
        let swap = match reader.text(&REPLICATION_SWAP).as_str() {
            "off" => None,
            other => {
                if other != "on" {
                    reader.problem(REPLICATION_SWAP.name, format!("`{other}` is neither `on` nor `off`"));
                }
                Some(Swap { patience: Duration::from_secs(minutes * 60), generations, resume })
            }
        };
        let kindness = Kindness::from_settings(reader);
        let verify = Depth::from_settings(reader);
        let target_space =
            kindness::whole_number(reader, &REPLICATION_TARGET_SPACE, 1_000_000).map(|gigabytes| gigabytes * 1_000_000_000);
        let enrichment = Enrichment::from_settings(reader);
        FullReplication {
            config: source.zip(target).map(|(source, target)| Config {
                source,
                target,
                modes,
                foreign_keys,
                jobs,
                enrichment,
                rules,
                kindness,
                swap,
                target_space,
                verify,
            }),
            schedule: Schedule::from_settings(reader, &SCHEDULE),
        }
    }

    fn schedule(&self) -> Option<Schedule> {
        Some(self.schedule.clone())
    }

    fn writes_to(&self) -> Option<&Database> {
        self.config.as_ref().map(|c| &c.target)
    }

    async fn run(&self, ctx: &JobContext<Self::Payload>) -> anyhow::Result<Outcome> {
        let Some(config) = &self.config else {
            return Ok(Outcome::Refuse("SOURCE_DATABASE_URL or TARGET_DATABASE_URL is not usable".to_owned()));
        };
        match full::replicate(&ctx.run, config).await {
            Ok(summary) => Ok(Outcome::Done(serde_json::to_value(summary)?)),
            Err(error) if error.is::<Refused>() => Ok(Outcome::Refuse(format!("{error:#}"))),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn every_mistake_is_told_at_once() {
        let environment = Environment::of([
            ("SOURCE_DATABASE_URL", "mysql://u@h/d"),
            ("BACKUP_MODE", "{"),
            ("RESTORE_FK_CONSTRAINTS", "yes"),
            ("PG_RESTORE_JOBS", "0"),
            ("REPLICATION_VERIFY", "maybe"),
        ]);
        let reader = Reader::new(&environment);
        FullReplication::from_settings(&reader);
        let text = reader.finish().unwrap_err().to_string();
        for name in [
            "SOURCE_DATABASE_URL",
            "TARGET_DATABASE_URL",
            "BACKUP_MODE",
            "RESTORE_FK_CONSTRAINTS",
            "PG_RESTORE_JOBS",
            "REPLICATION_VERIFY",
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn foreign_keys_are_copied_unless_told_otherwise() {
        let databases = [("SOURCE_DATABASE_URL", "postgres://u@h/a"), ("TARGET_DATABASE_URL", "postgres://u@h/b")];
        for (setting, wanted) in [(None, true), (Some("false"), false), (Some("true"), true)] {
            let environment = Environment::of(databases.into_iter().chain(setting.map(|s| ("RESTORE_FK_CONSTRAINTS", s))));
            let reader = Reader::new(&environment);
            let kind = FullReplication::from_settings(&reader);
            reader.finish().unwrap();
            assert_eq!(kind.config.unwrap().foreign_keys, wanted);
        }
    }
}
