//! A long command of `db-p`, done by a worker on the machine whose cluster it is for.
//!
//! Guarantees, and what is left at each step when it is killed: [`crate::presets`]. Safe to run again: what was fetched, kept or pushed
//! is found. A lock's key never goes through the queue, so pushes of locked presets are for `db-p` itself.

use anyhow::Result;

use crate::config::{Reader, Setting};
use crate::presets::arguments::Call;
use crate::presets::settings::{self, Settings};
use crate::presets::{PresetError, Presets};
use crate::worker::{JobContext, JobKind, Outcome};

/// Runs commands of `db-p`.
#[derive(Debug)]
pub struct PresetKind {
    presets: Presets,
}

/// Why a call is not for the queue.
#[must_use]
pub fn unfit(call: &Call) -> Option<String> {
    let spec = match call.spec() {
        Ok(spec) => spec,
        Err(error) => return Some(error.to_string()),
    };
    if !spec.long {
        return Some(format!("`{}` is done at once, by db-p itself, and not by a job", spec.name));
    }
    if call.value("key").is_some() {
        return Some("a lock's key must not go through the queue; run db-p on that machine".to_owned());
    }
    None
}

#[async_trait::async_trait]
impl JobKind for PresetKind {
    const NAME: &'static str = "preset";
    const QUEUE: &'static str = "Preset queue";
    const SUMMARY: &'static str = "Pull, push or select a preset of a whole cluster";
    const SETTINGS: &'static [&'static Setting] = settings::SETTINGS;
    type Payload = Call;

    fn is_set_up(reader: &Reader<'_>) -> bool {
        reader.optional(&settings::DBP_REPO).is_some()
    }

    fn from_settings(reader: &Reader<'_>) -> Self {
        PresetKind { presets: Presets::new(Settings::from_settings(reader)) }
    }

    async fn run(&self, ctx: &JobContext<Call>) -> Result<Outcome> {
        if let Some(why) = unfit(&ctx.payload) {
            return Ok(Outcome::Refuse(why));
        }
        match self.presets.run(&ctx.run, &ctx.payload).await {
            Ok(done) => Ok(Outcome::Done(done.value)),
            // As itself: the worker tells an interrupted run from a failed one.
            Err(PresetError::Stopped(stopped)) => Err(stopped.into()),
            Err(error) if error.is_final() => Ok(Outcome::Refuse(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }
}
