//! The `DBP_…` settings. None of them is needed to start a process; each command says which it misses, all in one message.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::PresetError;
use super::arguments::check_name;
use crate::backup::name::Compression;
use crate::config::{Reader, Setting};
use crate::postgres::Database;
use crate::postgres::client_programs::PG_BIN;
use crate::redact::Secret;
use crate::storage::{self, Store};

/// The branch's key.
pub static DBP_KEY_PATH: Setting = Setting::new(
    "DBP_KEY_PATH",
    "Presets: file with the key of the branch, the same on every machine; `db-p gen-key` makes one. Who has it can read and make the branch's presets.",
)
.aliases(&["DBP_AESKEY_PATH"]);
/// Where presets are shared.
pub static DBP_S3_BACKET: Setting = Setting::new(
    "DBP_S3_BACKET",
    "Presets: bucket that they are shared in, spelled as ever, or a whole address: s3://bucket/prefix, file:///directory. Spoken to by the S3_… settings.",
)
.aliases(&["DBP_S3_BUCKET"]);
/// First part of every key.
pub static DBP_REPO: Setting = Setting::new("DBP_REPO", "Presets: name of the project, the first part of every object's key.");
/// Second part.
pub static DBP_BRANCH: Setting =
    Setting::new("DBP_BRANCH", "Presets: name of the branch, the second part of every object's key; letters, digits and `._-`.");
/// The running cluster's directory.
pub static DBP_PG_DATA_DIR: Setting = Setting::new(
    "DBP_PG_DATA_DIR",
    "Presets: data directory of the PostgreSQL cluster that presets are put into. Its content is replaced.",
);
/// How the cluster is started.
pub static DBP_PG_START_CMD: Setting = Setting::new(
    "DBP_PG_START_CMD",
    "Presets: shell line that starts that cluster and returns when it is up: `systemctl start postgresql@15-main`. Its output goes to commands.log in DBP_PRESETS_DIR.",
);
/// And stopped.
pub static DBP_PG_STOP_CMD: Setting =
    Setting::new("DBP_PG_STOP_CMD", "Presets: shell line that stops it and returns when it is down.");
/// For the superuser.
pub static DBP_PG_PASSWORD: Setting =
    Setting::new("DBP_PG_PASSWORD", "Presets: password of DBP_PG_USER. Unset: the server asks for none.").secret();
/// Where the server listens.
pub static DBP_PG_HOST: Setting = Setting::new("DBP_PG_HOST", "Presets: host of that cluster.").default("127.0.0.1");
/// And on which port.
pub static DBP_PG_PORT: Setting = Setting::new("DBP_PG_PORT", "Presets: its port, 1 to 65535.").default("5432");
/// A superuser.
pub static DBP_PG_USER: Setting =
    Setting::new("DBP_PG_USER", "Presets: a superuser there. It is the one role that presets neither drop nor change.")
        .default("postgres");
/// The application's start.
pub static DBP_APP_START: Setting =
    Setting::new("DBP_APP_START", "Presets: shell line that starts the application and returns. Unset: there is none to start.");
/// And its end.
pub static DBP_APP_STOP: Setting = Setting::new("DBP_APP_STOP", "Presets: shell line that stops the application.");
/// Where both are run.
pub static DBP_APP_WD: Setting = Setting::new("DBP_APP_WD", "Presets: directory that DBP_APP_START and DBP_APP_STOP work in.");
/// How one sees that it runs.
pub static DBP_APP_DEF_URL: Setting = Setting::new(
    "DBP_APP_DEF_URL",
    "Presets: URL that is asked until the application answers with less than 500. Unset: started is taken for running.",
);
/// Migrations.
pub static DBP_MIGR_CMD: Setting = Setting::new(
    "DBP_MIGR_CMD",
    "Presets: shell line that migrates a fetched preset before it is kept; PGHOST, PGPORT, PGUSER, PGPASSWORD and DBP_PRESET are in its environment. Unset: none.",
);
/// Where they are.
pub static DBP_MIGR_WD: Setting = Setting::new("DBP_MIGR_WD", "Presets: directory that DBP_MIGR_CMD works in.");
/// Notes and downloads.
pub static DBP_PRESETS_DIR: Setting =
    Setting::new("DBP_PRESETS_DIR", "Presets: directory for notes and downloads.").default("/opt/db-presets");
/// Ready data directories.
pub static DBP_PRESETS_DATA_DIR: Setting = Setting::new(
    "DBP_PRESETS_DATA_DIR",
    "Presets: directory for one ready data directory a preset; best on the file system of DBP_PG_DATA_DIR, where XFS and btrfs copy in an instant.",
)
.default("/opt/db-presets-data");
/// A log.
pub static DBP_LOGFILE: Setting = Setting::new("DBP_LOGFILE", "Presets: file that `db-p` appends what it did to. Unset: none.");
/// How they are switched.
pub static DBP_MODE: Setting = Setting::new(
    "DBP_MODE",
    "Presets: `cluster` keeps a whole data directory a preset; `fast` keeps template databases in the running cluster, which are switched by renaming while it runs.",
)
.default("cluster");
/// How small.
pub static DBP_COMPRESSION: Setting = Setting::new(
    "DBP_COMPRESSION",
    "Presets: zstd, or xz at its highest level with a thread for each CPU: a fifth smaller, for some 40 times the CPU and 1.2 GiB of memory a thread.",
)
.default("zstd");
/// Patience.
pub static DBP_TIME_LIMIT: Setting = Setting::new(
    "DBP_TIME_LIMIT",
    "Presets: minutes after which a start, stop or migration command, or an application that does not answer, counts as failed, 1 to 1440.",
)
.default("10");

/// All of them, in the order of `sample.env` and of `db-p --help`.
pub static SETTINGS: &[&Setting] = &[
    &DBP_KEY_PATH,
    &DBP_S3_BACKET,
    &DBP_REPO,
    &DBP_BRANCH,
    &DBP_PG_DATA_DIR,
    &DBP_PG_START_CMD,
    &DBP_PG_STOP_CMD,
    &DBP_PG_PASSWORD,
    &DBP_PG_HOST,
    &DBP_PG_PORT,
    &DBP_PG_USER,
    &DBP_APP_START,
    &DBP_APP_STOP,
    &DBP_APP_WD,
    &DBP_APP_DEF_URL,
    &DBP_MIGR_CMD,
    &DBP_MIGR_WD,
    &DBP_PRESETS_DIR,
    &DBP_PRESETS_DATA_DIR,
    &DBP_LOGFILE,
    &DBP_MODE,
    &DBP_COMPRESSION,
    &DBP_TIME_LIMIT,
    &PG_BIN,
];

/// What a command that shares presets needs.
pub(super) static SHARED: &[&Setting] = &[&DBP_S3_BACKET, &DBP_REPO, &DBP_BRANCH];
/// What one needs that stops and starts the cluster.
pub(super) static SERVER: &[&Setting] = &[&DBP_PG_DATA_DIR, &DBP_PG_START_CMD, &DBP_PG_STOP_CMD];

/// How presets are kept and switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Whole data directories.
    Cluster,
    /// Template databases.
    Fast,
}

/// The settings as they were read; what is not set is told by [`Settings::need`].
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) key_file: PathBuf,
    store: String,
    pub(super) repo: String,
    pub(super) branch: String,
    pub(super) data_directory: PathBuf,
    pub(super) start: String,
    pub(super) stop: String,
    /// The superuser's database `postgres`.
    pub(super) server: Option<Database>,
    pub(super) user: String,
    pub(super) app_start: Option<String>,
    pub(super) app_stop: Option<String>,
    pub(super) app_directory: Option<PathBuf>,
    pub(super) app_url: Option<Url>,
    pub(super) migrate: Option<String>,
    pub(super) migrate_directory: Option<PathBuf>,
    pub(super) presets: PathBuf,
    pub(super) snapshots: PathBuf,
    /// `DBP_LOGFILE`.
    pub log_file: Option<PathBuf>,
    pub(super) mode: Mode,
    pub(super) compression: Compression,
    pub(super) patience: Duration,
    pub(super) programs: Option<PathBuf>,
    options: storage::Options,
    /// Names of those that are set.
    set: Vec<&'static str>,
}

impl Settings {
    /// Reads them. What is set and cannot be used is noted in `reader`, nothing else.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let path = |setting| reader.optional(setting).map(PathBuf::from);
        let choice = |setting: &'static Setting, known: [&str; 2]| {
            let text = reader.text(setting);
            if !known.contains(&text.as_str()) {
                reader.problem(setting.name, format!("`{text}` is neither {} nor {}", known[0], known[1]));
            }
            text == known[1]
        };
        for setting in [&DBP_REPO, &DBP_BRANCH] {
            if let Some(Err(problem)) = reader.optional(setting).map(|text| check_name(&text)) {
                reader.problem(setting.name, problem);
            }
        }
        for setting in [&DBP_PG_DATA_DIR, &DBP_PRESETS_DIR, &DBP_PRESETS_DATA_DIR] {
            if path(setting).is_some_and(|path| !path.is_absolute() || path.parent().is_none()) {
                reader.problem(setting.name, "is not the whole path of a directory");
            }
        }
        let mode = if choice(&DBP_MODE, ["cluster", "fast"]) { Mode::Fast } else { Mode::Cluster };
        let compression = if choice(&DBP_COMPRESSION, ["zstd", "xz"]) { Compression::Xz } else { Compression::Zstd };
        Settings {
            key_file: path(&DBP_KEY_PATH).unwrap_or_default(),
            store: reader.text(&DBP_S3_BACKET),
            repo: reader.text(&DBP_REPO),
            branch: reader.text(&DBP_BRANCH),
            data_directory: path(&DBP_PG_DATA_DIR).unwrap_or_default(),
            start: reader.text(&DBP_PG_START_CMD),
            stop: reader.text(&DBP_PG_STOP_CMD),
            server: server(reader),
            user: reader.text(&DBP_PG_USER),
            app_start: reader.optional(&DBP_APP_START),
            app_stop: reader.optional(&DBP_APP_STOP),
            app_directory: path(&DBP_APP_WD),
            app_url: reader.url(&DBP_APP_DEF_URL, &["http", "https"]),
            migrate: reader.optional(&DBP_MIGR_CMD),
            migrate_directory: path(&DBP_MIGR_WD),
            presets: path(&DBP_PRESETS_DIR).unwrap_or_default(),
            snapshots: path(&DBP_PRESETS_DATA_DIR).unwrap_or_default(),
            log_file: path(&DBP_LOGFILE),
            mode,
            compression,
            patience: reader.minutes(&DBP_TIME_LIMIT, 1..=1440),
            programs: path(&PG_BIN),
            options: storage::Options::from_settings(reader),
            set: SETTINGS.iter().filter(|s| reader.optional(s).is_some()).map(|s| s.name).collect(),
        }
    }

    /// Refuses when one of these is not set, and names all that are not.
    pub(super) fn need(&self, groups: &[&[&'static Setting]]) -> Result<(), PresetError> {
        let mut missing: Vec<&str> =
            groups.iter().flat_map(|group| group.iter()).map(|s| s.name).filter(|name| !self.set.contains(name)).collect();
        let wants_store = groups.iter().any(|group| group.iter().any(|s| s.name == DBP_S3_BACKET.name));
        if wants_store && !self.store.starts_with("file://") {
            let keys =
                [("S3_ACCESS_KEY", self.options.access_key.is_empty()), ("S3_SECRET_KEY", self.options.secret_key.is_empty())];
            missing.extend(keys.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(PresetError::Refused(format!(
            "these settings are needed and not set: {} (`db-p --help` tells what each of them is)",
            missing.join(", ")
        )))
    }

    /// The store. Nothing is asked of it yet.
    pub(super) fn store(&self) -> Result<Arc<dyn Store>, PresetError> {
        let address = if self.store.contains("://") { self.store.clone() } else { format!("s3://{}", self.store) };
        Ok(storage::open(&address, &self.options)?)
    }

    /// Refuses when the store is a directory that is not there: one that is not mounted must not pass for a store without presets.
    pub(super) fn store_is_there(&self) -> Result<(), PresetError> {
        match self.store.strip_prefix("file://").map(Path::new) {
            Some(directory) if directory.is_absolute() && !directory.is_dir() => Err(PresetError::Refused(format!(
                "the directory {} of {} is not there; mount it, or make it for a new store",
                directory.display(),
                DBP_S3_BACKET.name
            ))),
            _ => Ok(()),
        }
    }

    /// The superuser's database `postgres`.
    pub(super) fn server(&self) -> Result<&Database, PresetError> {
        self.server
            .as_ref()
            .ok_or_else(|| PresetError::Refused("DBP_PG_HOST, DBP_PG_PORT and DBP_PG_USER name no server".to_owned()))
    }
}

fn server(reader: &Reader<'_>) -> Option<Database> {
    let mut url = Url::parse("postgres://localhost/postgres").expect("this is an URL");
    let (host, user, password) = (reader.text(&DBP_PG_HOST), reader.text(&DBP_PG_USER), reader.secret(&DBP_PG_PASSWORD));
    let port = u16::try_from(reader.integer(&DBP_PG_PORT, 1..=65_535)).unwrap_or(5432);
    if let Err(error) = url.set_host(Some(&host)) {
        reader.problem(DBP_PG_HOST.name, format!("`{host}` is no host: {error}"));
        return None;
    }
    // An URL with a host takes all of them.
    let _ = (url.set_port(Some(port)), url.set_username(&user));
    if !password.is_empty() {
        let _ = url.set_password(Some(password.expose()));
    }
    match Database::parse(url.as_str()) {
        Ok(database) => Some(database),
        Err(error) => {
            reader.problem(DBP_PG_HOST.name, error.to_string());
            None
        }
    }
}

/// The password as it is, for the migration command's environment.
pub(super) fn environment(database: &Database, preset: &str) -> Vec<(&'static str, Secret)> {
    let mut environment = database.client_environment();
    environment.push(("DBP_PRESET", Secret::unremembered(preset)));
    environment
}
