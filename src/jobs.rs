//! The kinds of job, one file each. From [`ALL`] come dispatch, `restart:`, schedules, the REPL's
//! completion and the reference documentation; adding a kind is a `mod` line and a line there.

pub mod backup;
pub mod backup_clean;
pub mod backup_drill;
pub mod backup_prune;
pub mod backup_watch;
pub mod full_replication;
pub mod incremental_replication;
pub mod learning_content_replication;
pub mod notification;
pub mod preset;
pub mod release;
pub mod release_copy;
pub mod restore;
pub mod schema_export;

use crate::config::{Reader, Setting};
use crate::presets::settings::DBP_REPO;
use crate::releases::settings::RELEASE_SSH_KEY;
use crate::replication::settings::{SOURCE_DATABASE_URL, TARGET_DATABASE_URL};
use crate::restore::config::is_named;
use crate::worker::{Declaration, Kind};

/// Every kind, those of the nightly chain in its order.
pub static ALL: &[Declaration] = &[
    Declaration::of::<full_replication::FullReplication>(),
    Declaration::of::<incremental_replication::IncrementalReplication>(),
    Declaration::of::<learning_content_replication::LearningContentReplication>(),
    Declaration::of::<notification::Notification>(),
    Declaration::of::<schema_export::SchemaExport>(),
    Declaration::of::<backup::BackupKind>(),
    Declaration::of::<restore::RestoreKind>(),
    Declaration::of::<backup_drill::BackupDrill>(),
    Declaration::of::<backup_prune::BackupPrune>(),
    Declaration::of::<backup_clean::BackupClean>(),
    Declaration::of::<backup_watch::BackupWatch>(),
    Declaration::of::<preset::PresetKind>(),
    Declaration::of::<release::ReleaseKind>(),
    Declaration::of::<release_copy::ReleaseCopy>(),
];

/// The kind called `name` on the command line.
#[must_use]
pub fn named(name: &str) -> Option<&'static Declaration> {
    ALL.iter().find(|kind| kind.name == name)
}

/// The kinds that this machine is set up for.
#[must_use]
pub fn set_up(reader: &Reader<'_>) -> Vec<&'static Declaration> {
    ALL.iter().filter(|kind| kind.is_set_up(reader)).collect()
}

/// Whether this machine replicates: it does, unless it is set up for something else alone. `DATABASE_URL` does not tell: it
/// names the target of the one and the source of the other.
#[must_use]
pub fn replicates(reader: &Reader<'_>) -> bool {
    let named = |setting: &Setting| reader.environment().get(setting.name).is_some();
    let else_wanted =
        crate::backup::settings::wanted(reader) || is_named(reader) || [&RELEASE_SSH_KEY, &DBP_REPO].into_iter().any(named);
    !else_wanted || named(&SOURCE_DATABASE_URL) || named(&TARGET_DATABASE_URL)
}

/// The names of all kinds, for messages.
#[must_use]
pub fn names() -> String {
    ALL.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

/// The kinds called `names`, or all that this machine is set up for; a name that is none is an error that lists them.
///
/// # Errors
/// When a name is no kind's.
pub fn select(names: &[String], reader: &Reader<'_>) -> Result<Vec<&'static Declaration>, UnknownKind> {
    if names.is_empty() {
        return Ok(set_up(reader));
    }
    let mut kinds: Vec<&'static Declaration> = Vec::new();
    for name in names {
        let kind = named(name).ok_or_else(|| UnknownKind(name.clone()))?;
        // Named twice is meant once: a queue has one worker in a process.
        if !kinds.iter().any(|known| known.name == kind.name) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// A name that is no kind's.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no kind of job; the kinds are: {list}", list = names())]
pub struct UnknownKind(pub String);

/// The settings of all kinds, each once, in the order of [`ALL`].
#[must_use]
pub fn settings() -> Vec<(&'static Declaration, Vec<&'static Setting>)> {
    let mut seen: Vec<&str> = Vec::new();
    ALL.iter()
        .map(|kind| {
            let own = kind.settings.iter().copied().filter(|s| {
                let new = !seen.contains(&s.name);
                seen.push(s.name);
                new
            });
            (kind, own.collect())
        })
        .collect()
}

/// Configures `declarations`, noting every mistake in `reader`.
#[must_use]
pub fn configure(declarations: &[&'static Declaration], reader: &Reader<'_>) -> Vec<Kind> {
    declarations.iter().map(|declaration| declaration.build(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn every_successor_is_a_kind_and_no_chain_runs_in_a_circle() {
        for kind in ALL {
            let mut at = kind;
            for _ in 0..=ALL.len() {
                match at.then {
                    None => break,
                    Some(next) => at = named(next).unwrap_or_else(|| panic!("`{next}` is no kind")),
                }
            }
            assert!(at.then.is_none(), "the chain from `{}` never ends", kind.name);
        }
    }

    #[test]
    fn a_kind_named_twice_is_chosen_once() {
        let environment = Environment::of([("", ""); 0]);
        let names = ["notification", "schema-export", "notification"].map(str::to_owned);
        let chosen = select(&names, &Reader::new(&environment)).unwrap();
        assert_eq!(chosen.iter().map(|kind| kind.name).collect::<Vec<_>>(), ["notification", "schema-export"]);
    }

    #[test]
    fn a_machine_runs_what_it_is_set_up_for() {
        let names = |pairs: &[(&str, &str)]| {
            let environment = Environment::of(pairs.iter().copied());
            set_up(&Reader::new(&environment)).iter().map(|kind| kind.name).collect::<Vec<_>>()
        };
        // Presets are of no use without a name for them, releases without a key.
        assert_eq!(names(&[]).len(), ALL.len() - 3, "what is missing is told");
        assert!(names(&[("DBP_REPO", "shop")]).contains(&"preset"));
        let kinds = names(&[("RELEASE_SSH_KEY", "key")]);
        assert!(kinds.contains(&"release") && kinds.contains(&"release-copy"), "{kinds:?}");
        assert!(!kinds.contains(&"full-replication"), "releases alone: {kinds:?}");
        let server = [("DATABASE_URL", "postgres://u@h/shop"), ("BACKUP_STORE", "file:///srv/backups")];
        assert_eq!(
            names(&server),
            ["backup", "restore", "backup-drill", "backup-prune", "backup-clean", "backup-watch"],
            "backups alone"
        );
        assert_eq!(names(&[&server[..], &[("SOURCE_DATABASE_URL", "postgres://u@h/a")]].concat()).len(), ALL.len() - 3);
        for more in [("RESTORE_DATABASE_URL", "postgres://u@h/postgres"), ("BACKUP_MAX_AGE", "2")] {
            let kinds = names(&[server[1], more]);
            assert!(!kinds.contains(&"backup") && kinds.contains(&"backup-watch"), "{kinds:?}");
        }
        assert!(names(&server[1..]).contains(&"backup"), "without any other sign its database is missing");
    }

    #[test]
    fn queues_have_the_names_that_operators_type() {
        let queues: Vec<&str> = ALL.iter().map(|kind| kind.queue).collect();
        assert_eq!(
            queues,
            [
                "Replication queue",
                "Incremental replication queue",
                "Learning Content replication queue",
                "Notification queue",
                "Schema export queue",
                "Backup queue",
                "Restore queue",
                "Backup drill queue",
                "Backup prune queue",
                "Backup clean queue",
                "Backup watch queue",
                "Preset queue",
                "Release queue",
                "Release copy queue"
            ]
        );
    }
}
