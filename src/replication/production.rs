//! Production is only ever read. The copies compare their two databases because they need both; a
//! step that needs the target alone asks here, since a target URL that names production by
//! mistake would have its tables replaced.

use anyhow::Context;

use crate::postgres::same::same_database;
use crate::postgres::{Database, PostgresError};
use crate::worker::Run;

/// Why `written`, which the setting called `name` names, must not be written to: it is `source`, under
/// whatever URL. `None` when it is another database, or no source is configured.
///
/// # Errors
/// When either cannot be asked, because then nothing is known; or when the run must stop.
pub async fn objection(run: &Run, source: Option<&Database>, written: &Database, name: &str) -> anyhow::Result<Option<String>> {
    let Some(source) = source else { return Ok(None) };
    let compare = async {
        if source == written {
            return Ok(true);
        }
        let (a, b) = tokio::try_join!(written.connect("comparing"), source.connect("comparing"))?;
        same_database(&a, &b).await
    };
    let same: Result<bool, PostgresError> = run.unless_stopped(compare).await?;
    let same = same.context(
        "making sure that this does not write to SOURCE_DATABASE_URL (a process that has nothing to do with the source may leave it unset)",
    )?;
    Ok(same.then(|| {
        format!("{name} and SOURCE_DATABASE_URL are one database ({written} and {source}), and production is only read; correct either")
    }))
}
