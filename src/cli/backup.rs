//! `bullwork backup …`

mod reading;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{added, declaration, once, print};
use crate::config::{Environment, Reader};
use crate::jobs::backup::{BackupKind, Payload};
use crate::ops::store::Store;
use crate::seal::age;
use crate::worker::{JobKind as _, RetryPolicy};

#[derive(Subcommand, Debug)]
pub(super) enum BackupVerb {
    /// Make an archive if business data changed, here and without Redis
    Now(Now),
    /// Write a new private key to FILE, which must not exist, and print its public key for BACKUP_AGE_RECIPIENTS
    Keygen {
        /// Where the private key goes; keep it off the server that is backed up
        file: PathBuf,
    },
    #[command(flatten)]
    Reading(reading::ReadingVerb),
}

#[derive(Args, Debug)]
pub(super) struct Now {
    /// Make one even if nothing changed
    #[arg(long)]
    force: bool,
    /// Words to be kept with the archive
    #[arg(long, value_name = "TEXT")]
    annotation: Option<String>,
    /// Leave it to a worker: add a job to the queue
    #[arg(long)]
    queue: bool,
    /// Follow that job to its end
    #[arg(long, requires = "queue")]
    wait: bool,
}

pub(super) async fn run(environment: &Environment, verb: BackupVerb) -> anyhow::Result<ExitCode> {
    match verb {
        BackupVerb::Now(now) => take(environment, now).await,
        BackupVerb::Keygen { file } => {
            let public = age::keygen(&file)?;
            eprintln!(
                "wrote a private key to {}; whoever has it can open the archives, and without it nobody can",
                file.display()
            );
            print(&format!("{public}\n"))
        }
        BackupVerb::Reading(verb) => reading::run(environment, verb).await,
    }
}

async fn take(environment: &Environment, now: Now) -> anyhow::Result<ExitCode> {
    let data = Payload { force: now.force, annotation: now.annotation };
    // Before it is left to a worker.
    data.check().map_err(anyhow::Error::msg)?;
    let data = serde_json::to_value(data)?;
    if !now.queue {
        return print(&format!("{}\n", once(environment, declaration(BackupKind::NAME)?, data).await?));
    }
    enqueue(environment, BackupKind::NAME, data, now.wait).await
}

/// Leaves it to a worker.
pub(super) async fn enqueue(
    environment: &Environment,
    kind: &str,
    data: serde_json::Value,
    wait: bool,
) -> anyhow::Result<ExitCode> {
    let kind = declaration(kind)?;
    let reader = Reader::new(environment);
    let (store, policy) = (Store::from_settings(&reader), RetryPolicy::from_settings(&reader));
    reader.finish()?;
    let store = store.context("reading the configuration")?;
    store.check().await?;
    let id = store.add(kind, &policy, data).await.context("adding the job")?;
    added(&store, kind, &id, wait, false).await
}
