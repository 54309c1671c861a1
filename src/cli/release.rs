//! `bullwork release …`

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::print;
use crate::config::{Environment, Reader};
use crate::ops::plain::{one_line, plain};
use crate::ops::release::{Desk, Planned, Status};
use crate::releases::ledger::{NewServer, Role};
use crate::releases::paths;

/// Between two looks with --watch and --wait.
const LOOK: Duration = Duration::from_secs(1);
/// Then somebody who waits is told that no worker has anything in hand.
const PATIENCE: Duration = Duration::from_secs(15);
/// Changes that are listed one by one, of each sort.
const LISTED: usize = 200;

#[derive(Subcommand, Debug)]
pub(super) enum ReleaseVerb {
    /// The list of servers
    #[command(subcommand)]
    Servers(ServersVerb),
    /// Begin a release: copy files and directories from the developers' server to beta
    Beta(Beta),
    /// Bring a release from beta to the business servers; one of them is archived first
    Production(Production),
    /// Show where a release stands, the newest when none is named
    Status {
        /// Number of the release
        release: Option<i64>,
        /// List the releases, newest first
        #[arg(long, conflicts_with_all = ["release", "watch", "json"])]
        all: bool,
        /// Go on showing it until no worker has anything to do
        #[arg(long)]
        watch: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the journals of a release, the newest when none is named
    Log {
        /// Number of the release
        release: Option<i64>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a failed release up again: in production only the servers that failed
    Retry(Again),
    /// Give a release up, so that another may begin; files stay as they are
    Abandon {
        /// Number of the release
        release: i64,
    },
    /// End what is being done; the release counts as failed then
    Cancel {
        /// Number of the release
        release: i64,
    },
    /// Bring back what a release replaced on the business servers
    Rollback {
        #[command(flatten)]
        again: Again,
        /// Only this server; may be given several times
        #[arg(long, value_name = "SERVER")]
        only: Vec<String>,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum ServersVerb {
    /// Add a server
    Add(Add),
    /// Show all servers
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Log in to each server and tell what it lacks; exit code 1 when one lacks something
    Check {
        /// Only these
        servers: Vec<String>,
    },
    /// Add the servers of a TOML file, a table `server` each with name, role, host, user, port, project, backup
    Import {
        /// The file
        file: PathBuf,
    },
    /// Free a server whose rollback failed; it stays as it is
    Free {
        /// Its name
        server: String,
    },
    /// Take a server off the list; nothing is changed on it
    Remove {
        /// Its name
        server: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// What it is called here
    name: String,
    /// developers, beta or business
    #[arg(long)]
    role: Role,
    /// Host name or address
    #[arg(long)]
    host: String,
    /// Who logs in
    #[arg(long)]
    user: String,
    /// Port of SSH
    #[arg(long, default_value_t = 22)]
    port: u16,
    /// Project directory
    #[arg(long, value_name = "DIRECTORY")]
    project: String,
    /// Archive of the project, such as /backups/site.tar.gz: the time comes into its name, and this becomes a link to the newest
    #[arg(long, value_name = "FILE")]
    backup: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Beta {
    /// Files and directories, relative to the project directory
    #[arg(required_unless_present = "files")]
    paths: Vec<String>,
    /// File with one path on each line; `-`: standard input
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    files: Option<PathBuf>,
    /// Take away what the listed directories hold on the other servers and not on the developers'
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Args, Debug)]
pub(super) struct Production {
    /// Number of the release
    release: i64,
    /// Only this server; may be given several times
    #[arg(long, value_name = "SERVER")]
    only: Vec<String>,
    /// One after the other, and no further when one fails: `web1,web2+web3` is web1, then the other two together
    #[arg(long, value_name = "ORDER")]
    order: Option<String>,
    /// The business server that is archived first; else the first that has an archive
    #[arg(long, value_name = "SERVER")]
    backup_of: Option<String>,
    #[command(flatten)]
    how: How,
}

#[derive(Args, Debug)]
pub(super) struct Again {
    /// Number of the release
    release: i64,
    #[command(flatten)]
    how: How,
}

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct How {
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// Follow it to its end; exit code 1 when it fails
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

/// A file of servers.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Servers {
    server: Vec<NewServer>,
}

pub(super) async fn run(environment: &Environment, verb: ReleaseVerb) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let desk = Desk::from_settings(&reader);
    reader.finish()?;
    desk.ledger.prepare().await?;
    match verb {
        ReleaseVerb::Servers(verb) => servers(&desk, verb).await,
        ReleaseVerb::Beta(beta) => to_beta(&desk, beta).await,
        ReleaseVerb::Production(production) => to_production(&desk, production).await,
        ReleaseVerb::Status { all: true, .. } => all(&desk).await,
        ReleaseVerb::Status { release, watch, json, .. } => status(&desk, release, watch, json).await,
        ReleaseVerb::Log { release, json } => log(&desk, release, json).await,
        ReleaseVerb::Retry(Again { release, how }) => {
            if how.dry_run {
                return planned(&desk.plan_retry(release).await?);
            }
            let said = desk.retry(release).await?;
            woken(&desk, release, &format!("release {release} is taken up: {said}"), how).await
        }
        ReleaseVerb::Abandon { release } => {
            desk.abandon(release).await?;
            eprintln!("release {release} is given up; another one may begin");
            Ok(ExitCode::SUCCESS)
        }
        ReleaseVerb::Cancel { release } => {
            let state = desk.cancel(release).await?;
            eprintln!("release {release} is {state}; `bullwork release retry {release}` takes it up, `abandon` gives it up");
            Ok(ExitCode::SUCCESS)
        }
        ReleaseVerb::Rollback { again: Again { release, how }, only } => {
            if how.dry_run {
                return planned(&desk.plan_rollback(release, &only).await?);
            }
            let servers = desk.rollback(release, &only).await?;
            woken(&desk, release, &format!("release {release} is rolled back on {}", servers.join(", ")), how).await
        }
    }
}

async fn servers(desk: &Desk, verb: ServersVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ServersVerb::Add(Add { name, role, host, user, port, project, backup }) => {
            let server = NewServer { name, role, host, user, port, project, backup };
            desk.ledger.add_servers(std::slice::from_ref(&server)).await?;
            eprintln!("added `{}`; `bullwork release servers check {}` looks whether it is ready", server.name, server.name);
            Ok(ExitCode::SUCCESS)
        }
        ServersVerb::Import { file } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading `{}`", file.display()))?;
            let Servers { server } = toml::from_str(&text).with_context(|| format!("reading `{}`", file.display()))?;
            desk.ledger.add_servers(&server).await?;
            eprintln!("added {} servers; `bullwork release servers check` looks whether they are ready", server.len());
            Ok(ExitCode::SUCCESS)
        }
        ServersVerb::Free { server } => {
            desk.free(&server).await?;
            eprintln!("`{server}` is free, and as it is: the next release compares it with what it should have");
            Ok(ExitCode::SUCCESS)
        }
        ServersVerb::Remove { server } => {
            desk.ledger.remove_server(&server).await?;
            eprintln!("took `{server}` off the list; nothing was changed on it");
            Ok(ExitCode::SUCCESS)
        }
        ServersVerb::Check { servers } => {
            let mut ready = true;
            for (server, lacking) in desk.check(&servers).await? {
                ready &= lacking.is_empty();
                let told = if lacking.is_empty() { "ready".to_owned() } else { one_line(&lacking.join("; ")) };
                print(&format!("{server}: {told}\n"))?;
            }
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        ServersVerb::List { json } => list(desk, json).await,
    }
}

async fn list(desk: &Desk, json: bool) -> anyhow::Result<ExitCode> {
    let servers = desk.ledger.servers().await?;
    if json {
        let all: Vec<_> = servers
            .iter()
            .map(|s| {
                serde_json::json!({"name": s.name, "role": s.role, "host": s.host.address, "user": s.host.user, "port": s.host.port,
                    "project": s.project, "backup": s.archive, "state": s.state.word(), "release": s.release, "problem": s.problem})
            })
            .collect();
        return print(&format!("{}\n", serde_json::to_string_pretty(&all)?));
    }
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(["server", "role", "login", "project", "archive", "state", "problem"]);
    for server in servers {
        table.add_row([
            server.name.clone(),
            server.role.word().to_owned(),
            format!("{}:{}", server.host, server.host.port),
            one_line(&server.project),
            server.archive.as_deref().map(one_line).unwrap_or_default(),
            server.state.to_string(),
            server.problem.as_deref().map(one_line).unwrap_or_default(),
        ]);
    }
    print(&format!("{table}\n"))
}

async fn to_beta(desk: &Desk, asked: Beta) -> anyhow::Result<ExitCode> {
    let list = match &asked.files {
        None => paths::clean(asked.paths.iter().map(String::as_str))?,
        Some(file) => {
            let mut list = Vec::new();
            if file.as_os_str() == "-" {
                std::io::stdin().read_to_end(&mut list).context("reading standard input")?;
            } else {
                list = std::fs::read(file).with_context(|| format!("reading `{}`", file.display()))?;
            }
            paths::read_list(&list)?
        }
    };
    if asked.how.dry_run {
        return planned(&[desk.plan_beta(&list, asked.delete).await?]);
    }
    let release = desk.beta(&list, asked.delete).await?;
    print(&format!("{release}\n"))?;
    woken(desk, release, &format!("release {release} begins with {} paths", list.len()), asked.how).await
}

async fn to_production(desk: &Desk, asked: Production) -> anyhow::Result<ExitCode> {
    let Production { release, only, order, backup_of, how } = asked;
    if how.dry_run {
        return planned(&desk.plan_production(release, &only, order.as_deref()).await?);
    }
    desk.production(release, &only, order.as_deref(), backup_of.as_deref()).await?;
    let left_out = desk.left_out(release).await?;
    if !left_out.is_empty() {
        eprintln!("left out: {}; they get it by a release of their own", left_out.join(", "));
    }
    woken(desk, release, &format!("release {release} goes to production"), how).await
}

/// Wakes a worker, and follows when asked.
async fn woken(desk: &Desk, release: i64, said: &str, how: How) -> anyhow::Result<ExitCode> {
    eprintln!("{said}; `bullwork release status {release} --watch` shows how far it is");
    desk.wake(release).await?;
    if !how.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut told, mut since) = (String::new(), tokio::time::Instant::now());
    let mut hinted = false;
    loop {
        let Some(status) = desk.status(Some(release)).await? else { bail!("there is no release {release} any more") };
        let line = state_line(&status);
        if line != told {
            eprintln!("{line}");
            (told, since) = (line, tokio::time::Instant::now());
        }
        if !hinted && since.elapsed() > PATIENCE && !desk.is_taken_up().await {
            hinted = true;
            eprintln!("no worker has taken it up yet: does `bullwork background` (or `worker release release-copy`) run?");
        }
        if !status.is_worked_at() {
            return Ok(outcome(&status));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn outcome(status: &Status) -> ExitCode {
    let id = status.release.id;
    let failed = |server: &crate::releases::ledger::Server| {
        server.release == Some(id) && server.state == crate::releases::states::ServerState::Error
    };
    let server_failed = status.targets.iter().any(|(_, server)| server.as_ref().is_some_and(failed));
    if status.release.problem.is_some() && !status.release.state.is_over() || server_failed {
        if let Some(problem) = &status.release.problem {
            eprintln!("{}", plain(problem));
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn state_line(status: &Status) -> String {
    let id = status.release.id;
    let servers = status.targets.iter().map(|(target, server)| {
        let own = server.as_ref().filter(|server| server.release == Some(id));
        format!("{} {}", target.server, own.map(|server| server.state.word()).unwrap_or("-"))
    });
    let servers = servers.collect::<Vec<_>>().join(", ");
    format!("release {id}: {}{}{servers}", status.release.state, if servers.is_empty() { "" } else { "; " })
}

fn planned(plan: &[Planned]) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for Planned { server, changes, problem } in plan {
        if let Some(problem) = problem {
            failed = true;
            eprintln!("{server}: {}", plain(problem));
        }
        let Some(changes) = changes else { continue };
        print(&format!("{server}: {}\n", changes.summary()))?;
        let sorts = [
            ("+ ", &changes.directories, "/"),
            ("+ ", &changes.added, ""),
            ("~ ", &changes.replaced, ""),
            ("- ", &changes.removed, ""),
        ];
        for (mark, names, end) in sorts {
            for name in names.iter().take(LISTED) {
                print(&format!("  {mark}{}{end}\n", one_line(name)))?;
            }
            if names.len() > LISTED {
                print(&format!("  {mark}… and {} more\n", names.len() - LISTED))?;
            }
        }
    }
    eprintln!("nothing was changed");
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn all(desk: &Desk) -> anyhow::Result<ExitCode> {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["release", "made", "state", "rolled back"]);
    for release in desk.ledger.releases().await? {
        let made = format!("{} by {}", release.made_at, one_line(&release.made_by));
        table.add_row([release.id.to_string(), made, release.state.to_string(), release.rolled_back_at.unwrap_or_default()]);
    }
    print(&format!("{table}\n"))
}

async fn status(desk: &Desk, release: Option<i64>, watch: bool, json: bool) -> anyhow::Result<ExitCode> {
    let mut told = String::new();
    loop {
        let Some(status) = desk.status(release).await? else {
            eprintln!("there is no release yet: `bullwork release beta`");
            return Ok(ExitCode::SUCCESS);
        };
        let text = if json { format!("{}\n", serde_json::to_string_pretty(&status.json())?) } else { table(&status) };
        if text != told {
            print(&text)?;
            told = text;
        }
        if !watch || !status.is_worked_at() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn table(status: &Status) -> String {
    let release = &status.release;
    let mut facts = comfy_table::Table::new();
    facts.load_preset(comfy_table::presets::NOTHING);
    facts.add_row(["release", &release.id.to_string()]);
    facts.add_row(["state", &release.state.to_string()]);
    facts.add_row(["made", &format!("{} by {}", release.made_at, one_line(&release.made_by))]);
    for (name, value) in [("archive", &release.backup), ("problem", &release.problem), ("rolled back", &release.rolled_back_at)] {
        if let Some(value) = value {
            facts.add_row([name, &one_line(value)]);
        }
    }
    let mut text = format!("{facts}\n");
    if !status.targets.is_empty() {
        let mut servers = comfy_table::Table::new();
        servers.load_preset(comfy_table::presets::NOTHING).set_header(["server", "wave", "state", "done", "problem"]);
        for (target, server) in &status.targets {
            let own = server.as_ref().filter(|server| server.release == Some(release.id));
            servers.add_row([
                target.server.clone(),
                (target.wave + 1).to_string(),
                own.map(|server| server.state.to_string()).unwrap_or_default(),
                target.done_at.clone().unwrap_or_default(),
                own.and_then(|server| server.problem.as_deref().map(one_line)).unwrap_or_default(),
            ]);
        }
        text.push_str(&format!("\n{servers}\n"));
    }
    text
}

async fn log(desk: &Desk, release: Option<i64>, json: bool) -> anyhow::Result<ExitCode> {
    let lines = desk.journal(release).await?;
    if json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&lines)?));
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["time", "journal", "who", "what"]);
    for line in lines {
        let book = line.server.unwrap_or(line.book);
        table.add_row([line.at, one_line(&book), one_line(&line.actor), one_line(&line.line)]);
    }
    print(&format!("{table}\n"))
}
