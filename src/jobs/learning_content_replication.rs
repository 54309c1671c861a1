//! Copies the learning content of an HTTP API into the target's tables.
//!
//! Safe to run again at any point: readers see yesterday's content until the one commit
//! ([`learning_content`]). Interrupted: the session ends and the server forgets what it staged.
//! Without `LCMS_API_URL` the step does nothing and succeeds, so that the chain reaches its end.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{APP, Reader, Setting};
use crate::postgres::Database;
use crate::replication::learning_content::mapping::{Mapping, SHIPPED};
use crate::replication::learning_content::{self, Api};
use crate::replication::{production, settings};
use crate::worker::{JobContext, JobKind, Outcome};

/// Base address of the API.
pub static LCMS_API_URL: Setting = Setting::new(
    "LCMS_API_URL",
    "Base URL of the learning-content API; `/databases/airtable` is appended. Unset: the step is skipped.",
);
/// Its key.
pub static LCMS_API_KEY: Setting =
    Setting::new("LCMS_API_KEY", "Key of the learning-content API, sent as bearer token.").secret();
/// Limit for the whole exchange.
pub static LCMS_TIMEOUT: Setting =
    Setting::new("LCMS_TIMEOUT", "Longest time for the learning-content answer to arrive completely, in seconds, 1 to 86400.")
        .default("180");
/// Limit for the answer.
pub static LCMS_MAX_BYTES: Setting =
    Setting::new("LCMS_MAX_BYTES", "Longest learning-content answer, in bytes; the default is 512 MiB.").default("536870912");
/// Another mapping.
pub static LEARNING_CONTENT_MAPPING: Setting = Setting::new(
    "LEARNING_CONTENT_MAPPING",
    "TOML file that tells which tables and columns the learning content fills; unset: the shipped data/learning-content.toml.",
);

/// The job's data: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Payload {}

/// Copies the learning content.
#[derive(Debug)]
pub struct LearningContentReplication {
    api: Option<Api>,
    mapping: Arc<Mapping>,
    target: Option<Database>,
    /// Compared with the target, which it must not be.
    source: Option<Database>,
}

#[async_trait::async_trait]
impl JobKind for LearningContentReplication {
    const NAME: &'static str = "learning-content-replication";
    const QUEUE: &'static str = "Learning Content replication queue";
    const SUMMARY: &'static str = "Copy the learning content of an HTTP API into the target";
    const THEN: Option<&'static str> = Some("notification");
    const SETTINGS: &'static [&'static Setting] = &[
        &LCMS_API_URL,
        &LCMS_API_KEY,
        &LCMS_TIMEOUT,
        &LCMS_MAX_BYTES,
        &LEARNING_CONTENT_MAPPING,
        &settings::TARGET_DATABASE_URL,
        &settings::SOURCE_DATABASE_URL,
    ];
    type Payload = Payload;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        super::replicates(reader)
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        let api = reader.optional(&LCMS_API_URL).and_then(|base| match Api::address(&base) {
            Ok(url) => Some(Api {
                url,
                key: reader.secret(&LCMS_API_KEY),
                client: reader.text(&APP),
                time_limit: reader.seconds(&LCMS_TIMEOUT, 1..=86_400),
                max_bytes: reader.integer(&LCMS_MAX_BYTES, 1..=u64::MAX),
            }),
            Err(problem) => {
                reader.problem(LCMS_API_URL.name, problem);
                None
            }
        });
        // Without the API nothing is written, and nothing else needs to be right.
        let (mapping, target, source) = if api.is_some() {
            (mapping(reader), settings::target(reader), settings::source_if_set(reader))
        } else {
            (Mapping::default(), None, None)
        };
        LearningContentReplication { api, mapping: Arc::new(mapping), target, source }
    }

    fn writes_to(&self) -> Option<&Database> {
        self.target.as_ref()
    }

    async fn run(&self, ctx: &JobContext<Payload>) -> Result<Outcome> {
        let (Some(api), Some(target)) = (&self.api, &self.target) else {
            ctx.run.info("LCMS_API_URL is not set: learning content is skipped");
            return Ok(Outcome::Done(json!({"skipped": true})));
        };
        let named = settings::TARGET_DATABASE_URL.name;
        if let Some(objection) = production::objection(&ctx.run, self.source.as_ref(), target, named).await? {
            return Ok(Outcome::Refuse(objection));
        }
        ctx.run.info("learningContent.run - Started");
        let published = learning_content::load(&ctx.run, api, &self.mapping, target).await?;
        let mut result = published.unwrap_or_default().to_json();
        if published.is_none() {
            // The reference counts this as a success, and the chain has to reach its end; but nobody
            // may take it for today's content.
            ctx.run.warn(
                "the learning-content API answered with nothing: the tables are left as they were, without today's content; check LCMS_API_URL and what its server logs",
            );
            result["emptyAnswer"] = json!(true);
        }
        ctx.run.info("learningContent.run - Ended");
        Ok(Outcome::Done(result))
    }
}

fn mapping(reader: &Reader<'_>) -> Mapping {
    let parsed = match reader.optional(&LEARNING_CONTENT_MAPPING) {
        None => Mapping::parse(SHIPPED),
        Some(path) => std::fs::read_to_string(&path)
            .map_err(|e| format!("`{path}` cannot be read: {e}"))
            .and_then(|text| Mapping::parse(&text).map_err(|e| format!("`{path}`: {e}"))),
    };
    parsed.unwrap_or_else(|problem| {
        reader.problem(LEARNING_CONTENT_MAPPING.name, problem);
        Mapping::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn mistakes_are_named_by_their_setting() {
        for (name, value, wanted) in [
            ("LCMS_API_URL", "nonsense", "LCMS_API_URL: is not a URL"),
            ("LCMS_API_URL", "ftp://h", "LCMS_API_URL: scheme `ftp`"),
            ("LCMS_TIMEOUT", "0", "LCMS_TIMEOUT: `0` is not a whole number"),
            ("LEARNING_CONTENT_MAPPING", "/no/such/file", "LEARNING_CONTENT_MAPPING: `/no/such/file` cannot be read"),
        ] {
            let mut pairs = vec![("LCMS_API_URL", "http://h/api/"), ("TARGET_DATABASE_URL", "postgres://u@h/d"), (name, value)];
            pairs.dedup_by_key(|(name, _)| *name);
            let environment = Environment::of(pairs);
            let reader = Reader::new(&environment);
            LearningContentReplication::from_settings(&reader);
            let text = reader.finish().unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn a_slash_at_the_end_of_the_address_does_no_harm() {
        for base in ["http://h/api", "http://h/api/", " http://h/api// "] {
            assert_eq!(Api::address(base).unwrap().as_str(), "http://h/api/databases/airtable");
        }
    }
}
