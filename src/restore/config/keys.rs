//! The keys of `config.json`, their variables in the environment, and how both are read.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config::{Reader, Setting};
use crate::redact::Secret;
use crate::restore::target::is_name;
use crate::webhook::{Endpoint, signature::SigningKey};

/// Begins every variable; the rest, in small letters, is the key.
const PREFIX: &str = "PROBACKUP_";

macro_rules! settings {
    ($($name:ident $(($secret:ident))? $about:literal;)*) => {
        $(#[doc = $about] pub(in crate::restore) static $name: Setting = Setting::new(stringify!($name), $about)$(.$secret())?;)*
        /// All of them, in the order of the documentation.
        pub static SETTINGS: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    PROBACKUP_CONFIG "File with the restore service's configuration (docs/restore-service.md), for `listen` and for the worker of `restore`. Unset: config.json beside the program, where there is one. Every key of it can be set here too, as `PROBACKUP_<KEY>`, and wins then.";
    PROBACKUP_HOST "Address to listen on. Unset: 0.0.0.0 with a token, 127.0.0.1 without one.";
    PROBACKUP_PORT "Port to listen on; 5000 when unset.";
    PROBACKUP_TOKEN (secret) "What requests must begin with, as token=…: 16 characters or more without blanks and commas. Needed unless the address is a loopback one.";
    PROBACKUP_DB_HOST_MAPPING "JSON object: whose backups go where, {\"main1\":{\"db_host\":\"S-DB1\",\"pg_ctl_instance\":\"main\",\"pgdata\":\"/var/lib/postgresql/15/main\"}}; wal_dir and database may stand there too.";
    PROBACKUP_ALLOWED_TARGETS "Hosts that may be restored to, with commas between. Unset: those of the mapping.";
    PROBACKUP_ROOTS "Directories, with commas between, below which data and WAL directories must lie to be emptied. Unset: /var/lib/postgresql,/pgdata,/pgwal.";
    PROBACKUP_ENGINE "What restores: pg_probackup (when unset), pgbackrest, or archive.";
    PROBACKUP_TOOL "The tool's program. Unset: pg_probackup-<pg_version>, or pgbackrest.";
    PROBACKUP_PG_VERSION "Major version of the clusters, such as 15.";
    PROBACKUP_BACKUP_DIR "Catalogue of pg_probackup.";
    PROBACKUP_PGBACKREST_CONFIG "Configuration file of pgbackrest on the targets. Unset: its default.";
    PROBACKUP_WAL_DIR "Where a cluster's WAL lies when it is outside of its data directory, with {pg_ctl_instance} for the cluster's name. Unset: /pgwal/{pg_ctl_instance} for pg_probackup, none for pgbackrest.";
    PROBACKUP_THREADS "Threads of the tool; 2 when unset.";
    PROBACKUP_VALIDATE "`false`: backups are not validated before the target is touched; `true` when unset.";
    PROBACKUP_ARCHIVE_HOST "Host that restored clusters fetch WAL from (pg_probackup).";
    PROBACKUP_ARCHIVE_USER "User there; probackup when unset.";
    PROBACKUP_ARCHIVE_PORT "Its SSH port; 22 when unset.";
    PROBACKUP_RESTORE_COMMAND "The restore_command of restored clusters. Unset: archive-get of pg_probackup from archive_host.";
    PROBACKUP_REMOTE_PORT "SSH port that pg_probackup itself uses for targets; ssh_port when unset.";
    PROBACKUP_REMOTE_USER "User that pg_probackup itself is on targets; ssh_user when unset.";
    PROBACKUP_SSH_KEY "Private key for targets. Unset: what ssh finds by itself.";
    PROBACKUP_SSH_PORT "SSH port of targets; 22 when unset.";
    PROBACKUP_SSH_USER "User on targets; postgres when unset.";
    PROBACKUP_KNOWN_HOSTS "File with the host keys of targets. Unset: the user's own. A host that is not in it is refused.";
    PROBACKUP_STOP_COMMAND "Shell line that stops a cluster, run on its host; {pg_version}, {pg_ctl_instance} and {pgdata} are filled in. Unset: sudo systemctl stop postgresql@{pg_version}-{pg_ctl_instance}.";
    PROBACKUP_START_COMMAND "Shell line that starts it. Unset: sudo systemctl start postgresql@{pg_version}-{pg_ctl_instance}.";
    PROBACKUP_START_TIMEOUT "Seconds that a started cluster may take until it accepts connections and has left recovery; 300 when unset.";
    PROBACKUP_RESUME "`true`: a restore whose worker died goes on incrementally with what is there; `false` when unset: it becomes an error.";
    PROBACKUP_PARALLEL "How many hosts a worker restores side by side, 1 to 16; a host is restored by one at a time. 1 when unset: one restore at a time, whatever the hosts.";
    PROBACKUP_HISTORY "Ended tasks that are kept; 30 when unset.";
    PROBACKUP_MESSAGE_HOST "Host of the chat's page: a form with the field `message` goes to http://<message_host>:8085/we.php when a task ends.";
    PROBACKUP_NOTIFY_URL "Another URL for that form.";
    PROBACKUP_WEBHOOKS (secret) "JSON array of receivers of ends as JSON: {\"url\":\"https://…\",\"token\":\"sent as Authorization\",\"secret\":\"whsec_…\"}.";
    PROBACKUP_DB_FILE "SQLite file with tasks and history, unless STATE_DATABASE_URL is set; restore.db beside the configuration when unset.";
    PROBACKUP_LOG_DIR "Directory of the listener's log files; Logs beside the configuration when unset.";
    PROBACKUP_LOG_FILE "Name of the log file; restore.log when unset.";
    PROBACKUP_LOG_MAX_BYTES "Size at which a new log file is begun; 10485760 when unset.";
    PROBACKUP_LOG_BACKUP_COUNT "Earlier log files that are kept; 5 when unset.";
}

/// The keys of one file, under the environment.
pub(super) struct Keys<'r, 'e> {
    reader: &'r Reader<'e>,
    file: PathBuf,
    members: Map<String, Value>,
    problems: Cell<usize>,
}

/// The key that `setting` stands for.
fn key(setting: &Setting) -> String {
    setting.name.strip_prefix(PREFIX).unwrap_or(setting.name).to_lowercase()
}

impl<'r, 'e> Keys<'r, 'e> {
    /// Reads the file; nothing where no restore service is configured.
    pub(super) fn open(reader: &'r Reader<'e>, default: &Path) -> Option<Self> {
        let named = reader.optional(&PROBACKUP_CONFIG).map(PathBuf::from);
        let in_environment = reader.optional(&PROBACKUP_DB_HOST_MAPPING).is_some();
        let file = match &named {
            Some(file) => file.clone(),
            None if default.is_file() => default.to_owned(),
            None if in_environment => PathBuf::from("."),
            None => return None,
        };
        let keys = |members| Keys { reader, file: file.clone(), members, problems: Cell::new(0) };
        if named.is_none() && !default.is_file() {
            return Some(keys(Map::new()));
        }
        let shown = file.display();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                reader.problem(PROBACKUP_CONFIG.name, format!("{shown} cannot be read: {error}"));
                return None;
            }
        };
        match serde_json::from_str(&text) {
            Ok(Value::Object(members)) => Some(keys(members)),
            Ok(_) => {
                reader.problem(PROBACKUP_CONFIG.name, format!("{shown} holds no JSON object"));
                None
            }
            Err(error) => {
                let place = format!("line {}, column {}", error.line(), error.column());
                reader.problem(PROBACKUP_CONFIG.name, format!("{shown} is not JSON ({place})"));
                None
            }
        }
    }

    /// How many problems were noted here.
    pub(super) fn problems(&self) -> usize {
        self.problems.get()
    }

    pub(super) fn problem(&self, setting: &Setting, message: impl AsRef<str>) {
        self.problems.set(self.problems.get() + 1);
        let message = message.as_ref();
        if self.reader.environment().get(setting.name).is_some() {
            self.reader.problem(setting.name, message);
        } else {
            self.reader.problem(PROBACKUP_CONFIG.name, format!("`{}` in {}: {message}", key(setting), self.file.display()));
        }
    }

    /// Keys of the file that mean nothing.
    pub(super) fn unknown(&self) -> Vec<String> {
        let known = |name: &String| SETTINGS.iter().any(|setting| key(setting) == *name);
        self.members.keys().filter(|name| !known(name)).cloned().collect()
    }

    /// The value, as JSON; what the environment holds is a text.
    pub(super) fn value(&self, setting: &Setting) -> Option<Value> {
        match self.reader.environment().get(setting.name) {
            Some((text, _)) => Some(Value::String(text.to_owned())),
            None => self.members.get(&key(setting)).filter(|value| !value.is_null()).cloned(),
        }
    }

    /// The value where it is JSON in a text, too.
    pub(super) fn json(&self, setting: &Setting) -> Option<Value> {
        match self.value(setting)? {
            Value::String(text) => match serde_json::from_str(&text) {
                Ok(value) => Some(value),
                Err(error) => {
                    self.problem(setting, format!("is not JSON (column {})", error.column()));
                    None
                }
            },
            other => Some(other),
        }
    }

    /// A text, or a number as one. An empty one counts as set: it says that there is none.
    pub(super) fn text(&self, setting: &Setting) -> Option<String> {
        match self.value(setting)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => {
                self.problem(setting, "is no text");
                None
            }
        }
    }

    pub(super) fn secret(&self, setting: &Setting) -> Option<Secret> {
        self.text(setting).filter(|text| !text.is_empty()).map(Secret::new)
    }

    pub(super) fn number(&self, setting: &Setting, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(text) = self.text(setting) else { return default };
        match text.trim().parse::<u64>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.problem(setting, format!("`{text}` is not a whole number from {} to {}", range.start(), range.end()));
                default
            }
        }
    }

    pub(super) fn port(&self, setting: &Setting, default: u16) -> u16 {
        u16::try_from(self.number(setting, u64::from(default), 1..=65_535)).unwrap_or(default)
    }

    pub(super) fn flag(&self, setting: &Setting, default: bool) -> bool {
        match self.text(setting).as_deref() {
            None => default,
            Some("true") => true,
            Some("false") => false,
            Some(other) => {
                self.problem(setting, format!("`{other}` is neither `true` nor `false`"));
                default
            }
        }
    }

    /// A plain word; one is needed when `default` is empty.
    pub(super) fn name(&self, setting: &Setting, default: &str) -> String {
        let name = self.text(setting).unwrap_or_else(|| default.to_owned());
        if !is_name(&name) {
            self.problem(setting, format!("`{name}` is no plain name: letters, digits and . _ - only, up to 63"));
        }
        name
    }

    /// Texts: an array, or with commas between.
    pub(super) fn list(&self, setting: &Setting) -> Option<Vec<String>> {
        match self.value(setting)? {
            Value::String(text) => {
                Some(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
            }
            Value::Array(values) if values.iter().all(Value::is_string) => {
                Some(values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect())
            }
            _ => {
                self.problem(setting, "is no array of texts");
                None
            }
        }
    }

    /// A path, relative to the file's directory.
    pub(super) fn path(&self, setting: &Setting, default: &str) -> PathBuf {
        let text = self.text(setting).filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned());
        let directory = self.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = directory.join(text);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// A file that must be there.
    pub(super) fn file(&self, setting: &Setting) -> Option<PathBuf> {
        self.text(setting).filter(|text| !text.is_empty())?;
        let path = self.path(setting, "");
        let shown = path.display().to_string();
        if !path.is_file() {
            self.problem(setting, format!("{shown} is no file"));
        } else if shown.contains(|c: char| c.is_whitespace() || c == '"') {
            // pg_probackup is given ssh's options as one text, which it cuts at blanks.
            self.problem(setting, format!("{shown} holds a blank or a quote, which the tools' ssh would not read"));
        }
        Some(path)
    }

    pub(super) fn webhooks(&self, setting: &Setting) -> Vec<Endpoint> {
        let entries = match self.json(setting) {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => {
                self.problem(setting, "is no array");
                return Vec::new();
            }
        };
        let mut endpoints = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            match endpoint(entry) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(fault) => self.problem(setting, format!("entry {}: {fault}", place + 1)),
            }
        }
        endpoints
    }
}

/// Reads one by hand: no message may quote a value, which may be secret.
fn endpoint(entry: &Value) -> Result<Endpoint, String> {
    let text = |name: &str| match &entry[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(format!("`{name}` is no text")),
    };
    let url = text("url")?.or_else(|| entry.as_str().map(str::to_owned)).unwrap_or_default();
    let url = reqwest::Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or("has no usable `url`; write https://host/path")?;
    if let Some(password) = url.password() {
        crate::redact::remember(password);
    }
    let key = text("secret")?.map(|secret| SigningKey::parse(&secret)).transpose()?;
    let endpoint = Endpoint { url, token: text("token")?.map(Secret::new), key };
    endpoint.check().map_err(|error| error.to_string())?;
    Ok(endpoint)
}
