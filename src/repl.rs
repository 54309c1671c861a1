//! The REPL: inspect and operate queues with the verbs of npm's bull-repl 0.29.
//!
//! On a terminal it edits lines and completes verbs and queue names; from a pipe it is a script:
//! one command a line, no prompt, and the first command that fails ends it with exit code 1.
//! Lines are never written to a history file: `connect --password` may stand in them.

mod command;
mod show;
mod words;

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser as _;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::{Editor, Helper, Highlighter, Hinter, Validator};

use self::command::{Command, Connect, Line, Page};
use crate::config::{Environment, Reader};
use crate::jobs;
use crate::ops::plain::plain;
use crate::ops::store::{Counts, State, Store};
use crate::redact::scrub;

/// A longer line is no command, and messages quote what they do not understand.
const LONGEST_LINE: usize = 4096;

/// Runs until `exit`, the end of input, or a script's first failure.
///
/// # Errors
/// When the configuration cannot be read or the terminal fails.
pub async fn run(environment: &Environment) -> anyhow::Result<ExitCode> {
    let reader = Reader::new(environment);
    let store = Store::from_settings(&reader);
    reader.finish()?;
    let mut session = Session { default: store.context("reading the configuration")?, connected: None };
    if std::io::stdin().is_terminal() { interactive(&mut session).await } else { script(&mut session).await }
}

async fn script(session: &mut Session) -> anyhow::Result<ExitCode> {
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.context("reading standard input")?;
        match session.obey(&line).await {
            Ok(Next::Go) => {}
            Ok(Next::Exit) => break,
            Err(error) => {
                eprintln!("line {}: {}", number + 1, told(&error));
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn interactive(session: &mut Session) -> anyhow::Result<ExitCode> {
    eprintln!("`connect \"Replication queue\"` to begin, `help` for all commands");
    loop {
        let prompt = match &session.connected {
            Some((_, queue)) => format!("{queue}> "),
            None => "bullwork> ".to_owned(),
        };
        // The line editor blocks: it gets a thread of its own, and a fresh editor each time, so
        // that no history outlives the line.
        let line = tokio::task::spawn_blocking(move || {
            let mut editor: Editor<Completion, rustyline::history::DefaultHistory> = Editor::new()?;
            editor.set_helper(Some(Completion));
            editor.readline(&prompt)
        })
        .await
        .context("reading a line")?;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error).context("reading a line"),
        };
        match session.obey(&line).await {
            Ok(Next::Go) => {}
            Ok(Next::Exit) => return Ok(ExitCode::SUCCESS),
            Err(error) => eprintln!("{}", told(&error)),
        }
    }
}

/// An error, fit for the terminal.
fn told(error: &anyhow::Error) -> String {
    plain(&scrub(&format!("{error:#}")))
}

enum Next {
    Go,
    Exit,
}

struct Session {
    /// The store of the settings, for `connect` without an address.
    default: Store,
    connected: Option<(Store, String)>,
}

impl Session {
    async fn obey(&mut self, line: &str) -> anyhow::Result<Next> {
        if line.len() > LONGEST_LINE {
            bail!("a line of {} bytes; a command has {LONGEST_LINE} at most", line.len());
        }
        let words = words::split(line)?;
        if words.is_empty() || words[0].starts_with('#') {
            return Ok(Next::Go);
        }
        let command = match Line::try_parse_from(words) {
            Ok(line) => line.command,
            Err(error) if !error.use_stderr() => {
                print!("{error}");
                return Ok(Next::Go);
            }
            Err(error) => bail!("{}", error.render().to_string().trim_end()),
        };
        match command {
            Command::Exit => return Ok(Next::Exit),
            Command::Connect(connect) => self.connect(connect).await?,
            other => self.act(other).await?,
        }
        Ok(Next::Go)
    }

    async fn connect(&mut self, connect: Connect) -> anyhow::Result<()> {
        let store = match connect.url()? {
            Some(url) => Store::at(&url, &connect.prefix)?,
            None => self.default.clone(),
        };
        store.check().await?;
        let counts = store.counts(&connect.queue).await?;
        if counts == Counts::default() && !jobs::ALL.iter().any(|kind| kind.queue == connect.queue) {
            eprintln!(
                "`{}` holds no job and is no queue of Bullwork's; its queues are: {}",
                connect.queue,
                queue_names().join(", ")
            );
        }
        eprintln!("connected to `{}` at {}", connect.queue, store.shown());
        self.connected = Some((store, connect.queue));
        Ok(())
    }

    async fn act(&self, command: Command) -> anyhow::Result<()> {
        let Some((store, queue)) = &self.connected else { bail!("not connected; `connect \"Replication queue\"` first") };
        let list = async |state: State, page: &Page| -> anyhow::Result<()> {
            let jobs = store.list(queue, state, page.start, page.end).await?;
            println!("{}", show::jobs(&jobs));
            Ok(())
        };
        match command {
            Command::Stats => println!("{}", show::stats(&store.counts(queue).await?)),
            Command::Active(page) => list(State::Active, &page).await?,
            Command::Waiting(page) => {
                list(State::Waiting, &page).await?;
                if !store.list(queue, State::Paused, 0, 0).await?.is_empty() {
                    println!("paused:");
                    list(State::Paused, &page).await?;
                }
            }
            Command::Completed(page) => list(State::Completed, &page).await?,
            Command::Failed(page) => list(State::Failed, &page).await?,
            Command::Delayed(page) => list(State::Delayed, &page).await?,
            Command::Get { id } => {
                let (job, state) = store.job(queue, &id).await?;
                println!("{}", show::job(&job, state));
            }
            Command::Logs { id } => {
                for line in store.logs(queue, &id).await? {
                    println!("{}", plain(&line));
                }
            }
            Command::Retry { id, completed } => {
                store.retry(queue, &id, completed).await?;
                println!("job {id} waits again; `get {id}` shows it");
            }
            Command::RetryFailed => match store.retry_all_failed(queue).await? {
                1 => println!("1 failed job waits again"),
                count => println!("{count} failed jobs wait again"),
            },
            Command::Promote { id } => {
                store.promote(queue, &id).await?;
                println!("job {id} waits now instead of later");
            }
            Command::Rm { id } => {
                store.remove(queue, &id).await?;
                println!("removed job {id}");
            }
            Command::Cancel { id } => {
                let outcome = store.cancel(queue, &id, "an operator").await?;
                println!("{}", show::cancelled(&id, outcome));
            }
            Command::Pause => {
                store.pause(queue).await?;
                println!("`{queue}` is paused: a running job goes on, no other is taken until `resume`");
            }
            Command::Resume => {
                store.resume(queue).await?;
                println!("`{queue}` is resumed");
            }
            Command::Exit | Command::Connect(_) => bail!("handled before"),
        }
        Ok(())
    }
}

fn queue_names() -> Vec<&'static str> {
    jobs::ALL.iter().map(|kind| kind.queue).collect()
}

/// Completes verbs, and queue names after `connect`.
#[derive(Helper, Hinter, Highlighter, Validator)]
struct Completion;

impl Completer for Completion {
    type Candidate = String;

    fn complete(&self, line: &str, position: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..position];
        let (start, candidates): (usize, Vec<String>) = match typed.strip_prefix("connect ") {
            Some(rest) => {
                let bare = rest.trim_start_matches('"').to_lowercase();
                let names = queue_names().into_iter().filter(|name| name.to_lowercase().starts_with(&bare));
                (position - rest.len(), names.map(|name| format!("\"{name}\"")).collect())
            }
            None => (0, command::verbs().into_iter().filter(|verb| verb.starts_with(typed)).collect()),
        };
        Ok((start, candidates))
    }
}
