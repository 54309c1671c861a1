//! Whose backups go where.

use std::collections::BTreeMap;

use serde_json::Value;

use super::keys::{Keys, PROBACKUP_ALLOWED_TARGETS, PROBACKUP_DB_HOST_MAPPING, PROBACKUP_WAL_DIR};
use crate::restore::target::{Target, is_below, is_name, overlap, path_fault};

/// The targets by instance, and the hosts that may be restored to.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    targets: BTreeMap<String, Target>,
    allowed: Vec<String>,
}

/// Why a request means no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The instance is not mapped, and no host was named.
    #[error("Не найдено сопоставление db_host для db_instance: {0}")]
    Unmapped(String),
    /// The host is none that may be restored to.
    #[error("{0}")]
    Host(String),
}

impl Mapping {
    /// Reads it; with `roots`, directories are needed and must lie below them.
    pub(super) fn read(keys: &Keys<'_, '_>, roots: Option<&[String]>, wal_dir: &str) -> Mapping {
        let setting = &PROBACKUP_DB_HOST_MAPPING;
        let mut mapping = Mapping::default();
        match keys.json(setting) {
            Some(Value::Object(members)) if !members.is_empty() => {
                for (instance, entry) in &members {
                    let (target, faults) = read(instance, entry, roots, wal_dir);
                    for fault in faults {
                        keys.problem(setting, format!("`{instance}`: {fault}"));
                    }
                    mapping.targets.insert(instance.clone(), target);
                }
            }
            Some(Value::Object(_)) | None => keys.problem(setting, "names no target, so nothing could be restored"),
            Some(_) => keys.problem(setting, "is no JSON object"),
        }
        if wal_dir.contains('{') && wal_dir.replace("{pg_ctl_instance}", "").contains(['{', '}']) {
            keys.problem(&PROBACKUP_WAL_DIR, format!("`{wal_dir}` holds another place than {{pg_ctl_instance}}"));
        }
        let hosts = || mapping.targets.values().map(|target| target.host.clone()).collect();
        mapping.allowed = keys.list(&PROBACKUP_ALLOWED_TARGETS).unwrap_or_else(hosts);
        for host in mapping.allowed.iter().filter(|host| !is_name(host)) {
            keys.problem(&PROBACKUP_ALLOWED_TARGETS, format!("`{host}` is no plain name"));
        }
        mapping
    }

    /// All targets.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        self.targets.values().cloned().collect()
    }

    /// The target that a request means. With a host that is not the instance's own, the one cluster that is mapped on that host.
    ///
    /// # Errors
    /// When there is none, or none that may be restored to.
    pub fn resolve(&self, instance: &str, host: Option<&str>) -> Result<Target, Refusal> {
        let own = self.targets.get(instance);
        let target = match (own, host) {
            (None, None) => return Err(Refusal::Unmapped(instance.to_owned())),
            (Some(own), None) => own.clone(),
            (Some(own), Some(host)) if own.host == host => own.clone(),
            (_, Some(host)) => {
                let mut there = self.targets.values().filter(|target| target.host == host);
                match (there.next(), there.next()) {
                    (Some(one), None) => Target { instance: instance.to_owned(), ..one.clone() },
                    (Some(_), Some(_)) => {
                        return Err(Refusal::Host(format!(
                            "db_host {host} has several clusters, and none of them is mapped to db_instance {instance}"
                        )));
                    }
                    (None, _) => return Err(Refusal::Host(format!("db_host {host} is not an allowed target"))),
                }
            }
        };
        if self.allowed.contains(&target.host) {
            Ok(target)
        } else {
            Err(Refusal::Host(format!("db_host {} is not an allowed target", target.host)))
        }
    }
}

fn read(instance: &str, entry: &Value, roots: Option<&[String]>, wal_dir: &str) -> (Target, Vec<String>) {
    let mut faults = Vec::new();
    let mut text = |name: &str, default: Option<&str>| match (&entry[name], default) {
        (Value::String(text), _) => text.clone(),
        (Value::Null, Some(default)) => default.to_owned(),
        _ => {
            faults.push(format!("`{name}` is missing, or no text"));
            String::new()
        }
    };
    let host = text("db_host", None);
    let cluster = text("pg_ctl_instance", roots.is_none().then_some(instance));
    let pgdata = text("pgdata", roots.is_none().then_some(""));
    let wal_dir = text("wal_dir", Some(wal_dir)).replace("{pg_ctl_instance}", &cluster);
    let database = text("database", Some(instance));
    for (what, name) in [("the instance", instance), ("`db_host`", &host), ("`pg_ctl_instance`", &cluster)] {
        if !is_name(name) {
            faults.push(format!("{what} `{name}` is no plain name: letters, digits and . _ - only, up to 63"));
        }
    }
    let wal_dir = (!wal_dir.is_empty()).then_some(wal_dir);
    if let Some(roots) = roots {
        for path in std::iter::once(&pgdata).chain(&wal_dir) {
            if let Some(fault) = path_fault(path) {
                faults.push(format!("`{path}` {fault}"));
            } else if !is_below(path, roots) {
                faults.push(format!("`{path}` is not below any of `roots` ({})", roots.join(", ")));
            }
        }
        if wal_dir.as_ref().is_some_and(|wal_dir| overlap(wal_dir, &pgdata)) {
            faults.push("`pgdata` and `wal_dir` lie in one another".to_owned());
        }
    }
    (Target { instance: instance.to_owned(), host, cluster, pgdata, wal_dir, database }, faults)
}
