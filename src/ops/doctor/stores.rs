//! The stores for archives: whether they can be used, and whether what they hold is young enough.

use std::time::Duration;

use super::Finding;
use crate::backup::destination::BACKUP_DRILL_DATABASE_URL;
use crate::backup::freshness::Limits;
use crate::backup::retention::Rules;
use crate::backup::settings as backup;
use crate::backup::shelf::Shelf;
use crate::config::Reader;
use crate::ops;
use crate::storage::settings::S3_OBJECT_LOCK_MODE;
use crate::storage::{self, Probed};

/// Longest wait for a store that is only tried.
const LIMIT: Duration = Duration::from_secs(20);
/// Why a store is not looked at.
const UNUSABLE: &str = "the store's settings cannot be used";

/// Nothing where no store is configured.
pub(super) async fn examine(reader: &Reader<'_>) -> Vec<Finding> {
    if !backup::wanted(reader) {
        return Vec::new();
    }
    let first = store(reader, "store", backup::shelf(reader));
    let second = async {
        match reader.optional(&backup::BACKUP_SECOND_STORE) {
            Some(_) => Some(store(reader, "second store", backup::second(reader)).await),
            None => None,
        }
    };
    let (first, second, ages) = tokio::join!(first, second, ages(reader));
    [Some(first), second, Some(ages)].into_iter().flatten().collect()
}

/// Whether archives can be written to a store, or at least read from it.
async fn store(reader: &Reader<'_>, check: &'static str, shelf: Option<Shelf>) -> Finding {
    let Some(shelf) = shelf else { return Finding::skipped(check, UNUSABLE) };
    let tried = tokio::time::timeout(LIMIT, attempt(reader, check, &shelf)).await;
    tried.unwrap_or_else(|_| {
        let seen = format!("no answer from {} within {} s", shelf.shown(), LIMIT.as_secs());
        Finding::bad(check, seen, "check the store's address, S3_ENDPOINT and the way there")
    })
}

async fn attempt(reader: &Reader<'_>, check: &'static str, shelf: &Shelf) -> Finding {
    const SETTINGS: &str = "check the store's address and its S3_… settings; docs/storage.md lists the rights that a key needs";
    if let Err(error) = shelf.store.list(&shelf.prefix).await {
        return Finding::bad(check, error.to_string(), SETTINGS);
    }
    let shown = shelf.shown();
    if reader.optional(&S3_OBJECT_LOCK_MODE).is_some() && shown.starts_with("s3://") {
        return Finding::good(
            check,
            format!("{shown} can be listed; nothing was written, for S3_OBJECT_LOCK_MODE would keep it"),
        );
    }
    match storage::probe(shelf.store.as_ref()).await {
        Ok(Probed::Everything) => {
            Finding::good(check, format!("{shown} creates objects, never overwrites them, and removes them"))
        }
        Ok(Probed::Kept(why)) => Finding::good(check, format!("{shown} creates objects and keeps them: {why}")),
        // Removing is for retention alone, and better done with another key.
        Ok(Probed::MayNotRemove(error)) if Rules::from_settings(reader).is_some() => Finding::warning(
            check,
            format!("{shown} creates objects, but keeps bullwork-probe-…: {error}"),
            "give the key of the machine that prunes s3:DeleteObject",
        ),
        Ok(Probed::MayNotRemove(_)) => {
            Finding::good(check, format!("{shown} creates objects; this key may not remove them, so bullwork-probe-… stays"))
        }
        Ok(Probed::MayNotWrite(error)) if writes(reader) => Finding::bad(check, error.to_string(), SETTINGS),
        Ok(Probed::MayNotWrite(error)) => Finding::warning(
            check,
            format!("{shown} can be read, not written to: {error}"),
            "nothing to do where archives are only restored; backups, and drills, which store proofs, need the right to write",
        ),
        Err(error) => Finding::bad(check, error.to_string(), SETTINGS),
    }
}

/// Whether this machine makes archives or proofs.
fn writes(reader: &Reader<'_>) -> bool {
    [&backup::BACKUP_DATABASE_URL, &BACKUP_DRILL_DATABASE_URL].iter().any(|setting| reader.optional(setting).is_some())
}

/// Ages of the newest archive and the newest drill, where there is a store.
async fn ages(reader: &Reader<'_>) -> Finding {
    const CHECK: &str = "backups";
    let limits = Limits::from_settings(reader);
    let Some(shelf) = backup::shelf(reader) else {
        return Finding::skipped(CHECK, UNUSABLE);
    };
    match ops::backup::freshness(&shelf, limits).await {
        Err(error) => Finding::bad(CHECK, format!("{error:#}"), "check BACKUP_STORE, its S3_… settings and rights"),
        Ok(seen) if !seen.alarms.is_empty() => {
            let fix = "see why in the jobs of `Backup queue` and `Backup drill queue`; `bullwork backup now --force` and `bullwork backup drill` make new ones";
            Finding::bad(CHECK, seen.alarms.join("; "), fix)
        }
        Ok(seen) => {
            let name = |name: Option<String>| name.unwrap_or_else(|| "none".to_owned());
            let proven = name(seen.proven);
            let text = format!("newest archive {}, newest proven one {proven}", name(seen.newest.map(|name| name.to_string())));
            if limits.any() {
                Finding::good(CHECK, text)
            } else {
                Finding::warning(
                    CHECK,
                    text,
                    "set BACKUP_MAX_AGE and BACKUP_DRILL_MAX_AGE, so that somebody hears when they get old",
                )
            }
        }
    }
}
