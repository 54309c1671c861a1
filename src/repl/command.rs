//! The REPL's commands, named as in npm's bull-repl.

use clap::{Args, CommandFactory as _, Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(no_binary_name = true, name = "", disable_help_flag = true, override_usage = "COMMAND [OPTIONS]")]
pub(super) struct Line {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Print help; -h is the host of `connect`
    #[arg(long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Choose the queue to work on
    Connect(Connect),
    /// How many jobs are in which state
    Stats,
    /// Jobs that run
    Active(Page),
    /// Jobs that wait
    Waiting(Page),
    /// Completed jobs, newest first
    Completed(Page),
    /// Failed jobs, newest first
    Failed(Page),
    /// Jobs that wait for their time
    Delayed(Page),
    /// All about one job
    Get {
        /// Job id
        id: String,
    },
    /// A job's log lines
    Logs {
        /// Job id
        id: String,
    },
    /// Put a failed job back to wait
    Retry {
        /// Job id
        id: String,
        /// Run it again even when it is completed
        #[arg(long)]
        completed: bool,
    },
    /// Put all failed jobs back to wait
    RetryFailed,
    /// Let a delayed job run now
    Promote {
        /// Job id
        id: String,
    },
    /// Remove a job that is not running
    Rm {
        /// Job id
        id: String,
    },
    /// Stop a running job, or fail one that waits
    Cancel {
        /// Job id
        id: String,
    },
    /// Take no more jobs from the queue, in all processes
    Pause,
    /// Take jobs again
    Resume,
    /// Leave
    #[command(alias = "quit")]
    Exit,
}

/// Without host, port, database, password and URI: the Redis of `REDIS_URL`.
#[derive(Args, Debug)]
pub(super) struct Connect {
    /// Queue name, in quotes when it holds blanks
    pub(super) queue: String,
    /// Key prefix
    #[arg(long, default_value = "bull")]
    pub(super) prefix: String,
    /// Redis host
    #[arg(short = 'h', long)]
    host: Option<String>,
    /// Redis port
    #[arg(short, long)]
    port: Option<u16>,
    /// Redis database number
    #[arg(short = 'd', long)]
    db: Option<u32>,
    /// Redis password
    #[arg(long)]
    password: Option<String>,
    /// Redis URI, instead of the parts
    #[arg(short, long, conflicts_with_all = ["host", "port", "db", "password"])]
    uri: Option<String>,
}

impl Connect {
    /// The URL that the options make; `None` when none is given.
    pub(super) fn url(&self) -> anyhow::Result<Option<String>> {
        if self.uri.is_some() {
            return Ok(self.uri.clone());
        }
        if self.host.is_none() && self.port.is_none() && self.db.is_none() && self.password.is_none() {
            return Ok(None);
        }
        let mut url = url::Url::parse("redis://127.0.0.1:6379")?;
        if let Some(host) = &self.host {
            url.set_host(Some(host)).map_err(|e| anyhow::anyhow!("`{host}` is no host: {e}"))?;
        }
        let unfit = |()| anyhow::anyhow!("the address cannot be written as a URL");
        url.set_port(Some(self.port.unwrap_or(6379))).map_err(unfit)?;
        if let Some(password) = &self.password {
            crate::redact::remember(password);
            url.set_password(Some(password)).map_err(unfit)?;
        }
        if let Some(db) = self.db {
            url.set_path(&db.to_string());
        }
        Ok(Some(url.to_string()))
    }
}

#[derive(Args, Debug)]
pub(super) struct Page {
    /// First job, counted from 0
    #[arg(short, long, default_value_t = 0)]
    pub(super) start: isize,
    /// Last job
    #[arg(short, long, default_value_t = 100)]
    pub(super) end: isize,
}

/// The verbs, for completion.
pub(super) fn verbs() -> Vec<String> {
    Line::command().get_subcommands().map(|verb| verb.get_name().to_owned()).chain(["help".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Line::command().debug_assert();
    }

    #[test]
    fn every_command_tells_its_options() {
        for verb in verbs().into_iter().filter(|verb| verb != "help") {
            let error = Line::try_parse_from([&verb, "--help"]).unwrap_err();
            assert!(!error.use_stderr() && error.to_string().contains("--help"), "{verb}: {error}");
        }
    }

    #[test]
    fn an_address_is_made_of_its_parts() {
        let line =
            Line::try_parse_from(["connect", "q", "-h", "db", "-p", "7000", "-d", "3", "--password", "p@ss/word"]).unwrap();
        let Command::Connect(connect) = line.command else { panic!("not connect") };
        assert_eq!(connect.url().unwrap().unwrap(), "redis://:p%40ss%2Fword@db:7000/3");
        let line = Line::try_parse_from(["connect", "q"]).unwrap();
        let Command::Connect(connect) = line.command else { panic!("not connect") };
        assert_eq!(connect.url().unwrap(), None);
    }
}
