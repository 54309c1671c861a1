//! `bullwork listen`

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::print;
use crate::config::{Environment, Reader};
use crate::jobs::{self, restore::RestoreKind};
use crate::logging::rotating::Rotating;
use crate::logging::{self, LogSettings};
use crate::ops::restore_service::RestoreDesk;
use crate::ops::serve::{Parts, Service};
use crate::sentry::{self, SentrySettings};
use crate::worker::JobKind as _;
use crate::{listen, shutdown};

#[derive(Args, Debug)]
pub(super) struct Listen {
    /// Run the worker of `restore` in the same process
    #[arg(long)]
    worker: bool,
}

pub(super) async fn run(environment: &Environment, arguments: &Listen) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let (log, tracker) = (LogSettings::from_settings(&reader), SentrySettings::from_settings(&reader));
    let desk = RestoreDesk::from_settings(&reader);
    let declarations = jobs::select(&[RestoreKind::NAME.to_owned()], &reader)?;
    let service = arguments.worker.then(|| Service::from_settings(&declarations, &reader)).flatten();
    reader.finish()?;
    let desk = desk.context(
        "there is no restore service to listen for; set PROBACKUP_CONFIG to its config.json (docs/restore-service.md)",
    )?;
    let file = &desk.config().log;
    let file =
        Rotating::open(&file.path, file.max_bytes, file.kept).with_context(|| format!("opening {}", file.path.display()))?;
    logging::init_with_file(&log, Some(file));
    let _tracker = sentry::init(&tracker);
    for key in &desk.config().unknown {
        tracing::warn!("`{key}` in the restore service's configuration means nothing");
    }
    desk.check().await?;
    let address = desk.config().address;
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    tracing::info!("listening on {address}; tasks are in {}", desk.config().tasks.shown());
    let worker = async {
        match service {
            // Without its worker the process is not what was asked for.
            Some(service) => service.run(Parts::Workers, quiet.clone()).await.inspect_err(|_| quiet.cancel()),
            None => Ok(()),
        }
    };
    let ((), worked) = tokio::join!(listen::server::serve(listener, desk, quiet.clone()), worker);
    worked?;
    print("")
}
