//! The restore service's configuration: `config.json` as the earlier service had it, our keys beside its, and the environment over both.
//!
//! The file is the one that `PROBACKUP_CONFIG` names, else `config.json` beside the program; where there is neither, and no mapping in
//! the environment, there is no restore service. Every key may be set in the environment as `PROBACKUP_<KEY>`. All mistakes are
//! noted in the reader, whose one message names them all. Relative paths are relative to the file's directory, so that worker
//! and listener, which read the same file, mean the same.

mod keys;
mod mapping;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use keys::SETTINGS;
use keys::*;
pub use mapping::{Mapping, Refusal};

use super::archive::Archives;
use super::engine::Engine;
use super::notify::Receivers;
use super::pgbackrest::Pgbackrest;
use super::probackup::Probackup;
use super::remote::Ssh;
use super::target::{is_name, path_fault, root_fault};
use super::tasks::Tasks;
use crate::backup::restore::Restore;
use crate::config::Reader;
use crate::redact::Secret;
use crate::state::State;

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// The default roots: where Debian and the earlier service's hosts keep clusters.
const ROOTS: &[&str] = &["/var/lib/postgresql", "/pgdata", "/pgwal"];

/// Where the listener's lines go besides standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// Bytes after which a new one is begun.
    pub max_bytes: u64,
    /// Earlier ones that are kept.
    pub kept: u32,
}

/// Everything, checked.
#[derive(Clone)]
pub struct Config {
    /// Where to listen.
    pub address: SocketAddr,
    /// What requests must begin with.
    pub token: Option<Secret>,
    /// The log file.
    pub log: LogFile,
    /// Tasks.
    pub tasks: Tasks,
    /// Targets.
    pub mapping: Mapping,
    /// Directories below which directories may be emptied.
    pub roots: Vec<String>,
    /// The tool.
    pub engine: Arc<dyn Engine>,
    /// The way to targets.
    pub ssh: Ssh,
    /// The major version, as `PG_VERSION` says it.
    pub pg_version: String,
    /// Shell line that stops a cluster there, with places for names.
    pub stop_command: String,
    /// Shell line that starts it.
    pub start_command: String,
    /// How long a started cluster may take until it accepts connections.
    pub start_timeout: Duration,
    /// Whether a restore that was cut off goes on incrementally.
    pub resume: bool,
    /// How many hosts a worker restores side by side; 1: one restore at a time, whatever the hosts.
    pub parallel: usize,
    /// Ended tasks that are kept.
    pub history: u32,
    /// Who hears of ends.
    pub receivers: Receivers,
    /// Keys of the file that mean nothing.
    pub unknown: Vec<String>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("address", &self.address).field("engine", &self.engine.name()).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads it; nothing where there is no restore service, or a mistake was noted. `archives` is what the archive engine restores.
    pub fn from_settings(reader: &Reader<'_>, archives: Option<Restore>) -> Option<Config> {
        Config::read(reader, archives, &beside_program())
    }

    fn read(reader: &Reader<'_>, archives: Option<Restore>, default: &Path) -> Option<Config> {
        let keys = Keys::open(reader, default)?;
        let before = keys.problems();
        let token = token(&keys);
        let address = address(&keys, token.as_ref());
        let kind = keys.text(&PROBACKUP_ENGINE).unwrap_or_else(|| "pg_probackup".to_owned());
        let physical = kind != "archive";
        let roots = roots(&keys);
        let pg_version = pg_version(&keys, physical);
        let wal_dir = keys.text(&PROBACKUP_WAL_DIR).unwrap_or_else(|| match kind.as_str() {
            "pg_probackup" => "/pgwal/{pg_ctl_instance}".to_owned(),
            _ => String::new(),
        });
        let mapping = Mapping::read(&keys, physical.then_some(&roots[..]), &wal_dir);
        let ssh = Ssh {
            program: "ssh".to_owned(),
            port: keys.port(&PROBACKUP_SSH_PORT, 22),
            user: keys.name(&PROBACKUP_SSH_USER, "postgres"),
            key: keys.file(&PROBACKUP_SSH_KEY),
            known_hosts: keys.file(&PROBACKUP_KNOWN_HOSTS),
        };
        let engine = engine(&keys, &kind, &pg_version, &ssh, archives);
        let command = |setting, verb: &str| {
            keys.text(setting).unwrap_or_else(|| format!("sudo systemctl {verb} postgresql@{{pg_version}}-{{pg_ctl_instance}}"))
        };
        let log_dir = keys.path(&PROBACKUP_LOG_DIR, "Logs");
        let config = Config {
            address,
            token,
            log: LogFile {
                path: log_dir.join(keys.text(&PROBACKUP_LOG_FILE).unwrap_or_else(|| "restore.log".to_owned())),
                max_bytes: keys.number(&PROBACKUP_LOG_MAX_BYTES, 10_485_760, 1024..=1 << 40),
                kept: u32::try_from(keys.number(&PROBACKUP_LOG_BACKUP_COUNT, 5, 0..=1000)).unwrap_or(5),
            },
            tasks: Tasks::new(State::from_settings(reader, &keys.path(&PROBACKUP_DB_FILE, "restore.db"))),
            mapping,
            roots,
            engine: engine?,
            ssh,
            pg_version,
            stop_command: command(&PROBACKUP_STOP_COMMAND, "stop"),
            start_command: command(&PROBACKUP_START_COMMAND, "start"),
            start_timeout: Duration::from_secs(keys.number(&PROBACKUP_START_TIMEOUT, 300, 1..=86_400)),
            resume: keys.flag(&PROBACKUP_RESUME, false),
            parallel: usize::try_from(keys.number(&PROBACKUP_PARALLEL, 1, 1..=16)).unwrap_or(1),
            history: u32::try_from(keys.number(&PROBACKUP_HISTORY, 30, 1..=100_000)).unwrap_or(30),
            receivers: receivers(&keys),
            unknown: keys.unknown(),
        };
        (keys.problems() == before).then_some(config)
    }
}

/// Whether a configuration is named.
#[must_use]
pub fn is_named(reader: &Reader<'_>) -> bool {
    reader.environment().get(PROBACKUP_CONFIG.name).is_some()
}

fn beside_program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().unwrap_or(Path::new(".")).join("config.json")
}

fn token(keys: &Keys<'_, '_>) -> Option<Secret> {
    let token = keys.secret(&PROBACKUP_TOKEN)?;
    let text = token.expose();
    if text.len() < SHORTEST_TOKEN {
        keys.problem(&PROBACKUP_TOKEN, format!("is shorter than {SHORTEST_TOKEN} characters; `openssl rand -hex 24` makes one"));
    } else if !text.chars().all(|c| c.is_ascii_graphic() && c != ',') {
        keys.problem(&PROBACKUP_TOKEN, "holds a blank, a comma or a character beyond ASCII, which no request could carry");
    }
    Some(token)
}

fn address(keys: &Keys<'_, '_>, token: Option<&Secret>) -> SocketAddr {
    let default = if token.is_some() { "0.0.0.0" } else { "127.0.0.1" };
    let host = keys.text(&PROBACKUP_HOST).unwrap_or_else(|| default.to_owned());
    let local = IpAddr::from([127, 0, 0, 1]);
    let ip = match host.as_str() {
        "localhost" => local,
        other => other.parse().unwrap_or_else(|_| {
            keys.problem(&PROBACKUP_HOST, format!("`{other}` is not an IP address; write 127.0.0.1, 0.0.0.0 or ::"));
            local
        }),
    };
    if !ip.is_loopback() && token.is_none() {
        let way_out = "set `token`, or let `host` be 127.0.0.1";
        keys.problem(
            &PROBACKUP_HOST,
            format!("`{host}` can be reached from outside, and whoever reaches it may have clusters overwritten: {way_out}"),
        );
    }
    SocketAddr::new(ip, keys.port(&PROBACKUP_PORT, 5000))
}

fn roots(keys: &Keys<'_, '_>) -> Vec<String> {
    let mut roots = keys.list(&PROBACKUP_ROOTS).unwrap_or_else(|| ROOTS.iter().map(|root| (*root).to_owned()).collect());
    roots.retain(|root| match root_fault(root) {
        Some(fault) => {
            keys.problem(&PROBACKUP_ROOTS, format!("`{root}` {fault}"));
            false
        }
        None => true,
    });
    roots
}

fn pg_version(keys: &Keys<'_, '_>, needed: bool) -> String {
    let version = keys.text(&PROBACKUP_PG_VERSION).unwrap_or_default();
    let plain = version.chars().all(|c| c.is_ascii_digit() || c == '.') && version.starts_with(|c: char| c.is_ascii_digit());
    if needed && !plain {
        keys.problem(&PROBACKUP_PG_VERSION, format!("`{version}` is no major version of PostgreSQL; write 15, say"));
    }
    version
}

fn engine(keys: &Keys<'_, '_>, kind: &str, pg_version: &str, ssh: &Ssh, archives: Option<Restore>) -> Option<Arc<dyn Engine>> {
    let threads = u16::try_from(keys.number(&PROBACKUP_THREADS, 2, 1..=256)).unwrap_or(2);
    let validate = keys.flag(&PROBACKUP_VALIDATE, true);
    let tool = |default: String| {
        let tool = keys.text(&PROBACKUP_TOOL).unwrap_or(default);
        if !is_name(&tool) && path_fault(&tool).is_some() {
            keys.problem(&PROBACKUP_TOOL, format!("`{tool}` is neither a plain name nor an absolute path"));
        }
        tool
    };
    match kind {
        "pg_probackup" => {
            let backup_dir = keys.text(&PROBACKUP_BACKUP_DIR).unwrap_or_default();
            if let Some(fault) = path_fault(&backup_dir) {
                keys.problem(&PROBACKUP_BACKUP_DIR, format!("`{backup_dir}` {fault}; it is the catalogue of pg_probackup"));
            }
            Some(Arc::new(Probackup {
                tool: tool(format!("pg_probackup-{pg_version}")),
                backup_dir,
                threads,
                remote_port: keys.port(&PROBACKUP_REMOTE_PORT, ssh.port),
                remote_user: keys.name(&PROBACKUP_REMOTE_USER, &ssh.user),
                archive_host: keys.name(&PROBACKUP_ARCHIVE_HOST, ""),
                archive_user: keys.name(&PROBACKUP_ARCHIVE_USER, "probackup"),
                archive_port: keys.port(&PROBACKUP_ARCHIVE_PORT, 22),
                validate,
                restore_command: keys.text(&PROBACKUP_RESTORE_COMMAND),
                ssh: ssh.clone(),
            }))
        }
        "pgbackrest" => {
            let config = keys.text(&PROBACKUP_PGBACKREST_CONFIG);
            if let Some((file, fault)) = config.as_ref().and_then(|file| Some((file, path_fault(file)?))) {
                keys.problem(&PROBACKUP_PGBACKREST_CONFIG, format!("`{file}` {fault}"));
            }
            Some(Arc::new(Pgbackrest { tool: tool("pgbackrest".to_owned()), config, threads, validate, ssh: ssh.clone() }))
        }
        "archive" => match archives {
            Some(restore) => Some(Arc::new(Archives { restore })),
            None => {
                let needs = "needs BACKUP_STORE (or S3_BUCKET_NAME) and RESTORE_DATABASE_URL";
                keys.problem(&PROBACKUP_ENGINE, format!("`archive` {needs}"));
                None
            }
        },
        other => {
            keys.problem(&PROBACKUP_ENGINE, format!("`{other}` is none of pg_probackup, pgbackrest, archive"));
            None
        }
    }
}

fn receivers(keys: &Keys<'_, '_>) -> Receivers {
    let of_host = || Some(format!("http://{}:8085/we.php", keys.text(&PROBACKUP_MESSAGE_HOST)?));
    let form = keys.text(&PROBACKUP_NOTIFY_URL).or_else(of_host);
    let form = form.and_then(|text| match reqwest::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Some(url),
        _ => {
            keys.problem(&PROBACKUP_NOTIFY_URL, "is no usable URL; write http://host:8085/we.php, or a plain `message_host`");
            None
        }
    });
    Receivers { form, webhooks: keys.webhooks(&PROBACKUP_WEBHOOKS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    const SEED: &str = r#"{
        "host": "127.0.0.1", "port": 5000, "archive_host": "S-BACKUP", "message_host": "S-CHAT",
        "log_dir": "Logs", "log_file": "bot.log", "db_file": "tasks.db", "log_max_bytes": 10485760, "log_backup_count": 5,
        "ssh_key": "KEY", "ssh_port": 22, "ssh_user": "postgres", "pg_version": "14", "backup_dir": "/backup",
        "db_host_mapping": {
            "main1": {"db_host": "S-DB1", "pg_ctl_instance": "main", "pgdata": "/pgdata/main1"},
            "main2": {"db_host": "S-DB2", "pg_ctl_instance": "second", "pgdata": "/pgdata/main2"}
        }
    }"#;

    fn read(directory: &Path, text: &str, environment: &[(&str, &str)]) -> (Option<Config>, String) {
        let key = directory.join("key");
        std::fs::write(&key, "").unwrap();
        let file = directory.join("config.json");
        std::fs::write(&file, text.replace("KEY", &key.display().to_string())).unwrap();
        let environment = Environment::of(environment.iter().copied());
        let reader = Reader::new(&environment);
        let config = Config::read(&reader, None, &file);
        (config, reader.finish().err().map(|error| error.to_string()).unwrap_or_default())
    }

    #[test]
    fn the_seeds_file_is_read_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (config, problems) = read(directory.path(), SEED, &[]);
        assert_eq!(problems, "");
        let config = config.unwrap();
        assert_eq!(config.address.to_string(), "127.0.0.1:5000");
        assert_eq!(config.log, LogFile { path: directory.path().join("Logs/bot.log"), max_bytes: 10_485_760, kept: 5 });
        assert_eq!(config.tasks.shown(), directory.path().join("tasks.db").display().to_string());
        assert_eq!(config.engine.name(), "pg_probackup");
        let target = config.mapping.resolve("main1", None).unwrap();
        assert_eq!((target.host.as_str(), target.cluster.as_str()), ("S-DB1", "main"));
        assert_eq!((target.pgdata.as_str(), target.wal_dir.as_deref()), ("/pgdata/main1", Some("/pgwal/main")));
        assert_eq!(config.receivers.form.unwrap().as_str(), "http://s-chat:8085/we.php");
        assert_eq!(config.stop_command, "sudo systemctl stop postgresql@{pg_version}-{pg_ctl_instance}");
        assert!(config.unknown.is_empty(), "{:?}", config.unknown);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let mapping = r#"{"x": {"db_host": "H", "pg_ctl_instance": "x", "pgdata": "/pgdata/x"}}"#;
        let environment =
            [("PROBACKUP_PORT", "5001"), ("PROBACKUP_DB_HOST_MAPPING", mapping), ("PROBACKUP_TOKEN", "0123456789abcdef")];
        let (config, problems) = read(directory.path(), SEED, &environment);
        assert_eq!(problems, "");
        let config = config.unwrap();
        assert_eq!(config.address.port(), 5001);
        assert!(config.mapping.resolve("x", None).is_ok() && config.mapping.resolve("main1", None).is_err());
        assert!(config.token.is_some());
    }

    #[test]
    fn all_mistakes_are_told_together_and_no_secret_with_them() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{
            "host": "0.0.0.0", "port": 70000, "pg_version": "fifteen", "backup_dir": "backup/../x", "threads": "many",
            "ssh_key": "/nowhere/key", "roots": ["/", "/pgdata"], "engine": "pg_probackup", "resume": "maybe", "tokn": "x",
            "db_host_mapping": {
                "main1; touch x": {"db_host": "S-DB1", "pg_ctl_instance": "main", "pgdata": "/pgdata/main1"},
                "main2": {"db_host": "-oProxyCommand=x", "pg_ctl_instance": "ma in", "pgdata": "/etc"},
                "main3": {"db_host": "S-DB3"}
            }
        }"#;
        let (config, problems) = read(directory.path(), text, &[]);
        assert!(config.is_none());
        for part in [
            "can be reached from outside",
            "70000",
            "fifteen",
            "backup/../x",
            "many",
            "/nowhere/key",
            "is the root of the file system",
            "maybe",
            "main1; touch x",
            "-oProxyCommand=x",
            "ma in",
            "`/etc` is not below",
            "main3",
            "archive_host",
        ] {
            assert!(problems.contains(part), "{part} is missing in: {problems}");
        }
        let (config, problems) = read(directory.path(), &SEED.replace("\"host\"", "\"token\": \"short-secret\", \"host\""), &[]);
        assert!(config.is_none() && problems.contains("shorter than 16") && !problems.contains("short-secret"), "{problems}");
        let (config, problems) = read(directory.path(), "{\"host\": ", &[]);
        assert!(config.is_none() && problems.contains("is not JSON"), "{problems}");
    }

    #[test]
    fn directories_that_would_be_emptied_lie_below_roots_and_apart() {
        let directory = tempfile::tempdir().unwrap();
        for (pgdata, wal, part) in [
            ("/", "/pgwal/main", "is the root of the file system"),
            ("/pgdata", "/pgwal/main", "is not below"),
            ("/pgdata/../etc", "/pgwal/main", "is not normalised"),
            ("/pgdata/main", "/pgwal", "is not below"),
            ("/pgdata/main", "/pgdata/main", "lie in one another"),
            ("/pgdata/main", "/pgdata/main/pg_wal", "lie in one another"),
            ("relative", "/pgwal/main", "is not absolute"),
        ] {
            let text = SEED.replace("/pgdata/main1", pgdata).replace("\"host\"", &format!("\"wal_dir\": \"{wal}\", \"host\""));
            let (config, problems) = read(directory.path(), &text, &[]);
            assert!(config.is_none() && problems.contains(part), "{pgdata} {wal}: {problems}");
        }
    }

    #[test]
    fn without_a_file_there_is_no_service_but_a_file_that_is_named_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.json");
        let environment = Environment::of([("A", "b")]);
        let reader = Reader::new(&environment);
        assert!(Config::read(&reader, None, &missing).is_none());
        reader.finish().unwrap();
        let environment = Environment::of([("PROBACKUP_CONFIG", missing.display().to_string())]);
        let reader = Reader::new(&environment);
        assert!(Config::read(&reader, None, Path::new("/nowhere")).is_none());
        assert!(reader.finish().unwrap_err().to_string().contains("none.json"));
    }
}
