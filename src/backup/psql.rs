//! SQL into a database by `psql`, as one transaction.
//!
//! `psql` takes the end of its input for the end of a script, and with `--single-transaction` would commit what
//! it has: a restore whose process was killed would leave half a database. So the transaction is ours: it begins
//! before the first byte, and only [`Feeding::commit`] ends it, after everything was proven. Input that merely ends is rolled back.
//!
//! A line that begins with `\` is a command to `psql` itself, and `\!` one to the shell. Whoever can write to the store knows the
//! recipients and could seal a script of their own, so such commands are locked out by `\restrict` with a key that no script can know.
//! Scripts of `pg_dump` do the same with keys that stand in them; their two lines are left out ([`Unlocked`]).

use std::path::Path;

use tokio::io::AsyncWriteExt as _;

use super::manifest::Manifest;
use super::unlocked::Unlocked;
use crate::postgres::Database;
use crate::postgres::client_programs::{Psql, Unusable};
use crate::process::{ProcessError, Running};

/// Why there is no restored database.
#[derive(Debug, thiserror::Error)]
pub enum PsqlError {
    /// There is no program for it.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// It stopped at an error of the server, or failed itself.
    #[error("restoring by SQL, which left nothing behind")]
    Failed(#[from] ProcessError),
    /// It did not take what it was given, and did not say why.
    #[error("`psql` stopped reading in the middle")]
    Deaf,
}

/// The first lines.
const BEGIN: &[u8] = b"begin;\n";

/// Finds a `psql` that reads what the manifest's `pg_dump` wrote.
pub(super) async fn find(directory: Option<&Path>, manifest: &Manifest) -> Result<Psql, Unusable> {
    Psql::find(directory, &manifest.tools.pg_dump).await
}

/// A running `psql`; what it did is undone when this is dropped.
pub(super) struct Feeding {
    running: Running,
    /// The script that is being fed, when meta-commands are locked out.
    script: Option<Unlocked>,
    restricted: bool,
}

impl Feeding {
    pub(super) async fn begin(psql: &Psql, database: &Database) -> Result<Self, PsqlError> {
        let program = psql.program(database).args([
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            // What functions return is of no interest, and nobody would read it.
            "--output=/dev/null",
            "--file=-",
        ]);
        let restricted = psql.restricts();
        let mut feeding = Feeding { running: program.start(true, None)?, script: None, restricted };
        feeding.write(BEGIN).await?;
        if restricted {
            let key = crate::identity::new_uuid().replace('-', "");
            feeding.write(format!("\\restrict {key}\n").as_bytes()).await?;
        }
        Ok(feeding)
    }

    /// The next bytes of a script belong to a new one.
    pub(super) fn begin_script(&mut self) {
        self.script = self.restricted.then(Unlocked::default);
    }

    /// Takes the next bytes of a script.
    pub(super) async fn write_script(&mut self, bytes: &[u8]) -> Result<(), PsqlError> {
        match &mut self.script {
            Some(script) => {
                let unlocked = script.feed(bytes);
                self.write(&unlocked).await
            }
            None => self.write(bytes).await,
        }
    }

    /// The script is over.
    pub(super) async fn end_script(&mut self) -> Result<(), PsqlError> {
        let rest = self.script.take().map(Unlocked::end).unwrap_or_default();
        self.write(&rest).await
    }

    /// Takes the next bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), PsqlError> {
        let Some(stdin) = &mut self.running.stdin else { return Err(PsqlError::Deaf) };
        match stdin.write_all(bytes).await {
            Ok(()) => Ok(()),
            // It ended at an error, and its last words tell which.
            Err(_) => Err(match self.running.last_words().await.result {
                Err(error) => error.into(),
                Ok(()) => PsqlError::Deaf,
            }),
        }
    }

    /// Ends the transaction. After an error nobody can tell whether the server did, only where the connection was lost in this
    /// very moment.
    pub(super) async fn commit(mut self) -> Result<(), PsqlError> {
        self.write(b"\n;\ncommit;\n").await?;
        Ok(self.running.end().await.result?)
    }
}
