//! Settings of releases.

use std::path::PathBuf;

use super::{Across, Hooks, Releases};
use crate::config::{Reader, Setting};
use crate::releases::ledger::Ledger;
use crate::ssh::Access;

/// Where there is no key, there are no releases.
pub static RELEASE_SSH_KEY: Setting = Setting::new(
    "RELEASE_SSH_KEY",
    "File with the private key that opens the servers of releases; without it there are no releases.",
);
/// Pinned host keys.
pub static RELEASE_KNOWN_HOSTS: Setting = Setting::new(
    "RELEASE_KNOWN_HOSTS",
    "File with the host keys of those servers, in OpenSSH's form; a server whose key is not there is not talked to.",
);
/// Patience for a connection.
pub static RELEASE_SSH_TIMEOUT: Setting =
    Setting::new("RELEASE_SSH_TIMEOUT", "Seconds until a connection to a server of releases must stand, 1 to 600.").default("20");
/// Patience for data.
pub static RELEASE_IO_TIMEOUT: Setting =
    Setting::new("RELEASE_IO_TIMEOUT", "Seconds without any data after which rsync gives up, 1 to 86400.").default("300");
/// Where workers keep what passes through them.
pub static RELEASE_SPOOL: Setting = Setting::new(
    "RELEASE_SPOOL",
    "Directory on the worker's machine through which releases pass; it needs room for one release, twice.",
)
.default("release-spool");
/// Servers, releases and journals.
pub static RELEASE_STATE_FILE: Setting = Setting::new(
    "RELEASE_STATE_FILE",
    "SQLite file with servers, releases and journals, for processes of one machine; with STATE_DATABASE_URL they are kept there instead.",
)
.default("releases.db");
/// How files get from beta to the business servers.
pub static RELEASE_TRANSPORT: Setting = Setting::new(
    "RELEASE_TRANSPORT",
    "How files get from beta to a business server: `spool` (through the worker's machine) or `beta` (rsync runs on beta, with a key of its own).",
)
.default("spool");
/// Beta's own key.
pub static RELEASE_BETA_KEY: Setting = Setting::new(
    "RELEASE_BETA_KEY",
    "File on beta with the private key that opens the business servers, for RELEASE_TRANSPORT=beta.",
);
/// Beta's own pins.
pub static RELEASE_BETA_KNOWN_HOSTS: Setting = Setting::new(
    "RELEASE_BETA_KNOWN_HOSTS",
    "File on beta with the host keys of the business servers, for RELEASE_TRANSPORT=beta.",
);
/// A worker's time with a server.
pub static RELEASE_LEASE_SECONDS: Setting = Setting::new(
    "RELEASE_LEASE_SECONDS",
    "Seconds that a server stays locked without a sign of life from its worker, 5 to 3600; the clocks of all workers' machines must agree to a fraction of it.",
)
.default("60");
/// Servers at once.
pub static RELEASE_COPIES: Setting =
    Setting::new("RELEASE_COPIES", "Servers that one worker process copies to at the same time, 1 to 64.").default("4");
/// What is archived.
pub static RELEASE_BACKUP: Setting = Setting::new(
    "RELEASE_BACKUP",
    "What of the chosen business server is archived before any business server is changed: `project`, or `paths` (only what the release names).",
)
.default("project");
/// Owner and group.
pub static RELEASE_OWNERSHIP: Setting = Setting::new(
    "RELEASE_OWNERSHIP",
    "`true` keeps owner and group by number, which takes root on the worker's machine and on the servers.",
)
.default("false");
/// Before files change places.
pub static RELEASE_BEFORE_SWITCH: Setting = Setting::new(
    "RELEASE_BEFORE_SWITCH",
    "Shell line that each business server runs in its project directory before the files change places; RELEASE_ID and RELEASE_SERVER are set. When it fails, nothing is changed there.",
);
/// After files changed places.
pub static RELEASE_AFTER_SWITCH: Setting = Setting::new(
    "RELEASE_AFTER_SWITCH",
    "The same after the files changed places; when it fails, the server counts as failed although it has the files.",
);

/// Said where no key is configured.
pub const NOT_CONFIGURED: &str = "releases are not configured: set RELEASE_SSH_KEY and RELEASE_KNOWN_HOSTS (docs/releases.md)";

/// The list of servers and releases, which needs no key.
pub fn ledger(reader: &Reader<'_>) -> Ledger {
    Ledger::from_settings(reader, &PathBuf::from(reader.text(&RELEASE_STATE_FILE)))
}

/// What works at releases; `None` where no key is configured, or something is wrong, which is in `reader` then.
pub fn releases(reader: &Reader<'_>) -> Option<Releases> {
    let ssh_timeout = reader.seconds(&RELEASE_SSH_TIMEOUT, 1..=600);
    let io_timeout = reader.seconds(&RELEASE_IO_TIMEOUT, 1..=86_400);
    let lease = reader.seconds(&RELEASE_LEASE_SECONDS, 5..=3600);
    let whole_project = one_of(reader, &RELEASE_BACKUP, ["project", "paths"]) == 0;
    let ownership = reader.flag(&RELEASE_OWNERSHIP);
    let across = (one_of(reader, &RELEASE_TRANSPORT, ["spool", "beta"]) == 1).then(|| {
        let file = |setting: &Setting| {
            let path = reader.text(setting);
            if !path.starts_with('/') {
                reader.problem(setting.name, "with RELEASE_TRANSPORT=beta it must be the absolute path of a file on beta");
            }
            PathBuf::from(path)
        };
        Across(Access {
            key: file(&RELEASE_BETA_KEY),
            known_hosts: file(&RELEASE_BETA_KNOWN_HOSTS),
            timeout: ssh_timeout,
            through: None,
        })
    });
    let hooks = Hooks { before: reader.optional(&RELEASE_BEFORE_SWITCH), after: reader.optional(&RELEASE_AFTER_SWITCH) };
    let ledger = ledger(reader);
    let key = reader.optional(&RELEASE_SSH_KEY)?;
    let Some(known_hosts) = reader.optional(&RELEASE_KNOWN_HOSTS) else {
        reader.problem(
            RELEASE_KNOWN_HOSTS.name,
            "is not set; `ssh-keyscan HOST` writes host keys: compare them before you trust them",
        );
        return None;
    };
    Some(Releases {
        ledger,
        access: Access { key: PathBuf::from(key), known_hosts: PathBuf::from(known_hosts), timeout: ssh_timeout, through: None },
        spool: PathBuf::from(reader.text(&RELEASE_SPOOL)),
        io_timeout,
        across,
        lease,
        whole_project,
        ownership,
        hooks,
    })
}

fn one_of(reader: &Reader<'_>, setting: &Setting, words: [&str; 2]) -> usize {
    let text = reader.text(setting);
    words.iter().position(|word| *word == text).unwrap_or_else(|| {
        reader.problem(setting.name, format!("`{text}` is neither `{}` nor `{}`", words[0], words[1]));
        0
    })
}
