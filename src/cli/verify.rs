//! Prints how source and target compare.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

use super::print;
use crate::config::{Environment, Reader};
use crate::ops;
use crate::ops::plain::one_line;
use crate::redact::scrub;
use crate::shutdown;
use crate::worker::{Progress, Record, RunSink};

/// What goes on is a message, not data: the log, which is on standard output elsewhere, would stand in the table.
struct Messages;

impl RunSink for Messages {
    fn line(&self, record: &Record) {
        eprintln!("{}", one_line(&record.message));
    }

    fn progress(&self, _: &Progress) {}
}

pub(super) async fn verify(environment: &Environment, tables: Vec<String>, repair: bool) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let config = ops::replication::comparison(&reader, tables, repair);
    reader.finish()?;
    let config = config.context("reading the configuration")?;
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    let report = ops::replication::verify(&config, quiet, Arc::new(Messages)).await?;

    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["table", "rows on source", "on target", "result", "note"]);
    let number = |rows: Option<i64>| rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string());
    for compared in &report.tables {
        table.add_row([
            one_line(&compared.table.to_string()),
            number(compared.rows.0),
            number(compared.rows.1),
            compared.verdict.to_string(),
            one_line(&scrub(&compared.note)),
        ]);
    }
    print(&format!("{table}\n"))?;
    for remark in &report.remarks {
        eprintln!("{}", one_line(&scrub(remark)));
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
