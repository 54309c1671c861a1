//! Prints what a full replication would do.

use std::process::ExitCode;

use anyhow::Context;

use super::print;
use crate::config::{Environment, Reader};
use crate::ops;
use crate::ops::plain::one_line;
use crate::redact::scrub;
use crate::shutdown;

pub(super) async fn plan(environment: &Environment, json: bool) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let config = ops::replication::full(&reader);
    reader.finish()?;
    let config = config.context("reading the configuration")?;
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    let plan = ops::replication::plan(&config, quiet).await?;
    if json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&plan)?));
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["table", "mode", "size", "rows", "time", "note"]);
    for row in plan.rows() {
        table.add_row(row.map(|cell| one_line(&cell)));
    }
    print(&format!("{table}\n"))?;
    for (what, reason) in &plan.left_out {
        print(&format!("left out {}: {}\n", one_line(what), one_line(&scrub(reason))))?;
    }
    print(&format!("{}\n", one_line(&scrub(&plan.to_string()))))
}
