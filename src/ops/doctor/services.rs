//! What releases and the restore service need on other machines. Each only where it is set up.

use std::collections::BTreeSet;
use std::path::Path;

use super::Finding;
use crate::backup::destination::RESTORE_DATABASE_URL;
use crate::backup::restore::Restore;
use crate::config::{Reader, Setting};
use crate::releases::settings::{self as releases, RELEASE_KNOWN_HOSTS, RELEASE_SSH_KEY};
use crate::restore::config::Config;

/// Nothing where neither is set up; mistakes of the settings are told by another check.
pub(super) async fn examine(reader: &Reader<'_>) -> Vec<Finding> {
    let (release, restore) = tokio::join!(release(reader), restore(reader));
    [release, restore].concat()
}

async fn release(reader: &Reader<'_>) -> Vec<Finding> {
    const SERVERS: &str = "release servers";
    if reader.optional(&RELEASE_SSH_KEY).is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for setting in [&RELEASE_SSH_KEY, &RELEASE_KNOWN_HOSTS] {
        findings.extend(reader.optional(setting).and_then(|path| unreadable(setting, &path)));
    }
    let Some(releases) = releases::releases(reader) else {
        findings.push(Finding::skipped(SERVERS, "the settings of releases cannot be used"));
        return findings;
    };
    let looked_at = async {
        releases.ledger.prepare().await?;
        releases.lacking(&releases.ledger.servers().await?).await
    };
    let servers = match looked_at.await {
        Ok(servers) => servers,
        Err(error) => {
            let fix = "RELEASE_STATE_FILE (or STATE_DATABASE_URL) has to be where this user may write";
            findings.push(Finding::bad("release state", error.to_string(), fix));
            return findings;
        }
    };
    let named = |(name, lacking): &(String, Vec<String>)| match lacking.join(", ") {
        none if none.is_empty() => None,
        // What went wrong on the way names the server itself.
        lacking if lacking.starts_with(&format!("{name}: ")) => Some(lacking),
        lacking => Some(format!("{name}: {lacking}")),
    };
    let lacking: Vec<String> = servers.iter().filter_map(named).collect();
    findings.push(match (servers.len(), lacking.is_empty()) {
        (0, _) => Finding::warning(SERVERS, "none is on the list", "`bullwork release servers add`, or `import FILE`"),
        (count, true) => Finding::good(SERVERS, format!("{count}, each ready")),
        _ => Finding::bad(SERVERS, lacking.join("; "), "mend it there; `bullwork release servers check` looks again"),
    });
    findings
}

async fn restore(reader: &Reader<'_>) -> Vec<Finding> {
    const TARGETS: &str = "restore targets";
    let Some(config) = Config::from_settings(reader, Restore::from_settings(reader, &[&RESTORE_DATABASE_URL])) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if let Err(error) = config.tasks.ready().await {
        let fix = "db_file (or STATE_DATABASE_URL) has to be where this user may write";
        findings.push(Finding::bad("restore state", error.to_string(), fix));
    }
    if !config.engine.is_physical() {
        return findings;
    }
    let hosts: BTreeSet<String> = config.mapping.targets().into_iter().map(|target| target.host).collect();
    let asked = hosts.iter().map(async |host| config.ssh.run(host, &["true"]).await.err().map(|error| error.to_string()));
    let away: Vec<String> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    findings.push(if away.is_empty() {
        Finding::good(TARGETS, format!("{} reached over SSH", hosts.into_iter().collect::<Vec<_>>().join(", ")))
    } else {
        Finding::bad(
            TARGETS,
            away.join("; "),
            "ssh_key, ssh_user, ssh_port and known_hosts of the configuration (docs/restore-service.md)",
        )
    });
    findings
}

fn unreadable(setting: &Setting, path: &str) -> Option<Finding> {
    let error = std::fs::File::open(Path::new(path)).err()?;
    Some(Finding::bad("release key", format!("{}: `{path}` cannot be read: {error}", setting.name), "docs/releases.md, set-up"))
}
