//! What presets need on this machine. Only where they are set up.

use std::time::Duration;

use super::Finding;
use crate::config::Reader;
use crate::presets::settings::{DBP_REPO, DBP_S3_BACKET, Settings};
use crate::presets::{PresetError, Presets};

/// Longest wait for one of them.
const LIMIT: Duration = Duration::from_secs(20);

/// Nothing where there are no presets; mistakes of the settings are told by another check.
pub(super) async fn examine(reader: &Reader<'_>) -> Vec<Finding> {
    if [&DBP_S3_BACKET, &DBP_REPO].iter().all(|setting| reader.optional(setting).is_none()) {
        return Vec::new();
    }
    let presets = Presets::new(Settings::from_settings(reader));
    let (key, store, cluster, programs) = tokio::join!(
        look("preset key", presets.look_at_key(), "DBP_KEY_PATH; `db-p gen-key` makes a new branch's key"),
        look(
            "preset store",
            presets.look_at_store(),
            "DBP_S3_BACKET, DBP_REPO, DBP_BRANCH and the S3_… settings; docs/storage.md lists the rights that a key needs"
        ),
        look("preset cluster", presets.look_at_cluster(), "the DBP_PG_… settings (`db-p --help` tells what each of them is)"),
        look(
            "preset programs",
            presets.look_at_programs(),
            "Debian and Ubuntu: `apt-get install postgresql-client rsync util-linux`; PG_BIN names the directory of PostgreSQL's"
        ),
    );
    vec![key, store, cluster, programs]
}

async fn look(check: &'static str, looking: impl Future<Output = Result<String, PresetError>>, fix: &str) -> Finding {
    match tokio::time::timeout(LIMIT, looking).await {
        Ok(Ok(seen)) => Finding::good(check, seen),
        Ok(Err(error)) => Finding::bad(check, error.to_string(), fix),
        Err(_) => Finding::bad(check, format!("no answer within {} s", LIMIT.as_secs()), fix),
    }
}
