//! The verbs that read archives: `list`, `show`, `fetch`, `restore`, `verify`, `drill`, and `prune` and `clean`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use chrono::Utc;
use clap::{Args, Subcommand};
use indicatif::{DecimalBytes, HumanDuration};
use serde_json::Value;

use super::{Environment, Reader, declaration, enqueue, once, print};
use crate::backup::choice::{Choice, ChoiceError};
use crate::backup::local::BACKUP_LOCAL_DIRECTORY;
use crate::backup::manifest::Manifest;
use crate::backup::settings;
use crate::backup::shelf::Shelf;
use crate::jobs::backup_clean::{self, BackupClean};
use crate::jobs::backup_drill::{self, BackupDrill};
use crate::jobs::backup_prune::{self, BackupPrune};
use crate::jobs::restore::{self, RestoreKind};
use crate::ops;
use crate::ops::plain::plain;
use crate::shutdown;
use crate::worker::{JobKind as _, Run};

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum ReadingVerb {
    /// Show the archives in the store, newest first
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value = "50")]
        limit: std::num::NonZeroUsize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an archive holds
    Show {
        #[command(flatten)]
        which: Which,
        /// As JSON: the whole manifest
        #[arg(long)]
        json: bool,
    },
    /// Write an archive to a file here: latest.tar.zst.age and its like, or its own name; still encrypted
    Fetch {
        #[command(flatten)]
        which: Which,
        /// Another directory than BACKUP_LOCAL_DIRECTORY, or the working directory
        #[arg(long, value_name = "DIRECTORY")]
        to: Option<PathBuf>,
    },
    /// Restore an archive into a database on the server of RESTORE_DATABASE_URL
    Restore(Restore),
    /// Read an archive whole and compare it with its manifest; without a key, its stored bytes
    Verify {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Restore an archive into a scratch database, compare it with its manifest, and store the proof
    Drill {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Remove the archives that no BACKUP_KEEP_… rule keeps
    Prune {
        /// Only tell which
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        how: How,
    },
    /// Remove fetched archives from a directory: all but `latest` and what it points to
    Clean {
        /// Another directory than BACKUP_LOCAL_DIRECTORY, or the working directory
        directory: Option<PathBuf>,
    },
}

/// Which archive; the newest when nothing is said.
#[derive(Args, Debug)]
pub(in crate::cli) struct Which {
    /// Its name
    archive: Option<String>,
    /// The newest one
    #[arg(long, conflicts_with = "archive")]
    latest: bool,
    /// The newest one that is not younger than TIME (UTC): 2026-01-02, 2026-01-02T03:04, or with a zone
    #[arg(long, value_name = "TIME", conflicts_with_all = ["archive", "latest"])]
    at: Option<String>,
}

impl Which {
    fn choice(&self) -> anyhow::Result<Choice> {
        match (&self.archive, &self.at) {
            (Some(name), _) => Ok(Choice::Named(name.parse()?)),
            (None, Some(at)) => Ok(Choice::at(at)?),
            (None, None) => Ok(Choice::Latest),
        }
    }
}

/// Here or by a worker.
#[derive(Args, Clone, Copy, Debug)]
pub(in crate::cli) struct How {
    /// Leave it to a worker: add a job to the queue
    #[arg(long)]
    queue: bool,
    /// Follow that job to its end
    #[arg(long, requires = "queue")]
    wait: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Restore {
    #[command(flatten)]
    which: Which,
    /// Name of the database; a new one named after source and archive when nothing is said
    #[arg(long, value_name = "NAME")]
    into: Option<String>,
    /// Restore although it is not empty; fails, and changes nothing, where a name is taken
    #[arg(long, conflicts_with = "swap")]
    into_nonempty: bool,
    /// Only these groups of fixtures, into tables that are there
    #[arg(long, value_name = "GROUP", value_delimiter = ',', requires = "into", conflicts_with = "swap")]
    fixtures: Vec<String>,
    /// Let the restored database take the place of the one called NAME, or as the source; that one is kept under another name
    #[arg(long)]
    swap: bool,
    /// End the sessions that are in the way of that
    #[arg(long, requires = "swap")]
    end_sessions: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    how: How,
}

pub(super) async fn run(environment: &Environment, verb: ReadingVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ReadingVerb::List { limit, json } => list(&shelf(environment)?, limit.get(), json).await,
        ReadingVerb::Show { which, json } => show(&shelf(environment)?, which.choice()?, json).await,
        ReadingVerb::Fetch { which, to } => fetch(environment, which.choice()?, to).await,
        ReadingVerb::Restore(restore) => self::restore(environment, restore).await,
        ReadingVerb::Verify { which, how } => drill(environment, which.choice()?, true, how).await,
        ReadingVerb::Drill { which, how } => drill(environment, which.choice()?, false, how).await,
        ReadingVerb::Prune { dry_run, yes, how } => {
            if !dry_run && !yes {
                confirm("prune", "archives that no BACKUP_KEEP_… rule keeps are removed for good (--dry-run tells which)")?;
            }
            work(environment, BackupPrune::NAME, serde_json::to_value(backup_prune::Payload { dry_run })?, how).await
        }
        ReadingVerb::Clean { directory } => {
            let directory = local_directory(environment, directory);
            let data = serde_json::to_value(backup_clean::Payload { directory: Some(directory) })?;
            work(environment, BackupClean::NAME, data, How { queue: false, wait: false }).await
        }
    }
}

async fn drill(environment: &Environment, archive: Choice, without_restore: bool, how: How) -> anyhow::Result<ExitCode> {
    if how.queue {
        known(environment, archive).await?;
    }
    let data = serde_json::to_value(backup_drill::Payload { archive, without_restore })?;
    work(environment, BackupDrill::NAME, data, how).await
}

/// The manifest of the archive that is meant; none where this machine knows no store, as one that only adds jobs need not.
async fn known(environment: &Environment, archive: Choice) -> anyhow::Result<Option<Manifest>> {
    if !settings::wanted(&Reader::new(environment)) {
        return Ok(None);
    }
    let shelf = shelf(environment)?;
    let archive = archive.find(&shelf).await?;
    Ok(Some(shelf.manifest(archive).await?))
}

/// Here and now, or by a worker.
async fn work(environment: &Environment, kind: &str, data: Value, how: How) -> anyhow::Result<ExitCode> {
    if how.queue {
        return enqueue(environment, kind, data, how.wait).await;
    }
    print(&format!("{}\n", once(environment, declaration(kind)?, data).await?))
}

fn shelf(environment: &Environment) -> anyhow::Result<Shelf> {
    let reader = Reader::new(environment);
    let shelf = ops::backup::shelf(&reader)?;
    reader.finish()?;
    shelf.context("reading the configuration")
}

fn local_directory(environment: &Environment, asked: Option<PathBuf>) -> PathBuf {
    let configured = || environment.lookup(&BACKUP_LOCAL_DIRECTORY).map(|(text, _)| PathBuf::from(text));
    asked.or_else(configured).unwrap_or_else(|| PathBuf::from("."))
}

/// Has a person type `word`; scripts say --yes.
fn confirm(word: &str, what: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{what}; say --yes when that is meant");
    }
    eprint!("{what}\ntype `{word}` to go on: ");
    std::io::stderr().flush()?;
    let mut typed = String::new();
    std::io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() == word { Ok(()) } else { bail!("`{word}` was not typed, so nothing was done") }
}

async fn restore(environment: &Environment, asked: Restore) -> anyhow::Result<ExitCode> {
    let data = restore::Payload {
        archive: asked.which.choice()?,
        into: asked.into,
        into_nonempty: asked.into_nonempty,
        fixtures: asked.fixtures,
        swap: asked.swap,
        end_sessions: asked.end_sessions,
        request: None,
        task: None,
    };
    // Before anybody is asked, and before it is left to a worker.
    data.check(known(environment, data.archive).await?.as_ref())?;
    if !asked.yes {
        match data.into.as_deref() {
            Some(name) if data.swap => {
                confirm(name, &format!("the restored database takes the place of `{name}`, which is kept under another name"))?;
            }
            None if data.swap => {
                confirm(
                    "swap",
                    "the restored database takes the place of the one named as its source, which is kept under another name",
                )?;
            }
            Some(name) if data.into_nonempty => {
                confirm(name, &format!("rows may be added and overwritten in database `{name}`"))?;
            }
            _ => {}
        }
    }
    work(environment, RestoreKind::NAME, serde_json::to_value(data)?, asked.how).await
}

async fn list(shelf: &Shelf, limit: usize, json: bool) -> anyhow::Result<ExitCode> {
    let (archives, damaged) = ops::backup::list(shelf, limit).await?;
    for damage in &damaged {
        eprintln!("{damage}");
    }
    if json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&archives)?));
    }
    if archives.is_empty() && damaged.is_empty() {
        eprintln!("there is no complete archive in {}", shelf.shown());
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["archive", "size", "age", "changed", "verified"]);
    for archive in archives {
        let mut changed = archive.changed_tables.clone();
        if archive.definitions_changed {
            changed.push("definitions".to_owned());
        }
        if changed.is_empty() {
            changed.push(format!("({})", serde_json::to_value(archive.reason)?.as_str().unwrap_or_default()));
        }
        table.add_row([
            archive.archive.to_string(),
            DecimalBytes(archive.bytes).to_string(),
            age(archive.started_at),
            plain(&changed.join(", ")),
            archive.verified_at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at))),
        ]);
    }
    print(&format!("{table}\n"))
}

fn age(at: chrono::DateTime<Utc>) -> String {
    HumanDuration((Utc::now() - at).to_std().unwrap_or_default()).to_string()
}

async fn show(shelf: &Shelf, choice: Choice, json: bool) -> anyhow::Result<ExitCode> {
    let shown = ops::backup::show(shelf, choice).await?;
    if json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&shown)?));
    }
    let manifest = &shown.manifest;
    let or_none = |texts: &[String]| if texts.is_empty() { "none".to_owned() } else { texts.join(", ") };
    let mut facts = comfy_table::Table::new();
    facts.load_preset(comfy_table::presets::NOTHING);
    let origin = &manifest.database;
    for (name, value) in [
        ("archive", manifest.archive.to_string()),
        ("size", format!("{} ({} as a tar)", DecimalBytes(manifest.stored.bytes), DecimalBytes(manifest.plain.bytes))),
        ("made", format!("{} ({} ago)", manifest.started_at.format("%Y-%m-%d %H:%M:%S UTC"), age(manifest.started_at))),
        ("verified", shown.verified_at.map_or_else(|| "never".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string())),
        ("database", format!("{} of PostgreSQL {}", origin.name, origin.server_version)),
        ("changed", or_none(&manifest.changed_tables)),
        ("annotation", manifest.annotation.clone().unwrap_or_else(|| "none".to_owned())),
        ("recipients", or_none(&manifest.packing.recipients)),
        ("sha256", manifest.stored.sha256.clone()),
    ] {
        facts.add_row([name, &plain(&value)]);
    }
    let mut members = comfy_table::Table::new();
    members.load_preset(comfy_table::presets::NOTHING).set_header(["member", "size"]);
    for member in &manifest.members {
        members.add_row([plain(&member.name), DecimalBytes(member.content.bytes).to_string()]);
    }
    let mut tables = comfy_table::Table::new();
    tables.load_preset(comfy_table::presets::NOTHING).set_header(["table", "rows", "fingerprint"]);
    for table in &manifest.tables {
        let name = if table.schema == "public" { table.name.clone() } else { format!("{}.{}", table.schema, table.name) };
        tables.add_row([plain(&name), table.rows.to_string(), table.fingerprint.clone().unwrap_or_default()]);
    }
    print(&format!("{facts}\n\n{members}\n\n{tables}\n"))
}

async fn fetch(environment: &Environment, choice: Choice, to: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let shelf = shelf(environment)?;
    let directory = local_directory(environment, to);
    let quiet = shutdown::on_signals().context("installing signal handlers")?;
    let run = Run::new(serde_json::Map::new(), quiet, None);
    match ops::backup::fetch(&run, &shelf, choice, &directory).await {
        Ok(fetched) => print(&format!("{}\n", fetched.file.display())),
        Err(error)
            if matches!(
                error.downcast_ref(),
                Some(ChoiceError::Empty(_) | ChoiceError::Missing { .. } | ChoiceError::Younger { .. })
            ) =>
        {
            eprintln!("warning: {error}; nothing was written");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
    }
}
