//! Whether this machine has what the commands need, in one line each: the key, the store, the cluster, the programs. Nothing is changed.

use std::path::Path;

use super::cluster::Cluster;
use super::local::Local;
use super::remote::Existing;
use super::settings::{DBP_KEY_PATH, SERVER, SHARED};
use super::{PresetError, Presets};
use crate::postgres::client_programs::{PgDump, Psql};
use crate::process::{ProcessError, Program};
use crate::worker::Run;

/// What came with `pg_dump` and is run too.
const BESIDE: [&str; 2] = ["pg_dumpall", "pg_basebackup"];
/// Programs of the system.
const SYSTEM: [&str; 2] = ["rsync", "flock"];

impl Presets {
    /// The key file is there, for its owner alone, and opens what the branch holds.
    ///
    /// # Errors
    /// What is wrong with it; so do the others here.
    pub async fn look_at_key(&self) -> Result<String, PresetError> {
        self.settings.need(&[&[&DBP_KEY_PATH]])?;
        let key = self.key()?;
        let file = self.settings.key_file.display();
        // A store that does not answer is told for itself.
        let Ok(found) = self.stored().await else { return Ok(format!("{file}, mode 600")) };
        let strange = |key_id: &str| key_id != key.id;
        let other = found.there.iter().filter(|(_, known)| known.current().is_some_and(|current| strange(&current.key_id)));
        let other: Vec<&str> = other.map(|(name, _)| name.as_str()).collect();
        if other.is_empty() {
            return Ok(format!("{file}, mode 600, is the key of all presets of {}", self.branch()?.shown()));
        }
        Err(PresetError::Refused(format!(
            "{file} is not the key of `{}` in {}; copy the branch's key from a colleague's machine",
            other.join("`, `"),
            self.branch()?.shown()
        )))
    }

    /// The store answers, and every pointer can be read.
    ///
    /// # Errors
    /// As above.
    pub async fn look_at_store(&self) -> Result<String, PresetError> {
        let found = self.stored().await?;
        let shown = self.branch()?.shown();
        match &found.broken[..] {
            [] => Ok(format!("{} presets in {shown}", found.there.len())),
            broken => {
                let told: Vec<String> = broken.iter().map(|(name, error)| format!("`{name}`: {error}")).collect();
                Err(PresetError::Refused(format!("in {shown} {}", told.join("; "))))
            }
        }
    }

    async fn stored(&self) -> Result<Existing, PresetError> {
        self.settings.need(&[SHARED])?;
        self.branch()?.existing().await
    }

    /// The data directory is one, and its server, when it runs, is the one that answers and can be dumped. After a pull it is stopped.
    ///
    /// # Errors
    /// As above.
    pub async fn look_at_cluster(&self) -> Result<String, PresetError> {
        self.settings.need(&[SERVER])?;
        let (run, local) = (Run::detached(), Local::open(&self.settings)?);
        let cluster = Cluster::new(&self.settings, &run, &local);
        cluster.check_place().await?;
        let data = self.settings.data_directory.display();
        if !cluster.runs() {
            return Ok(format!("{data} holds version {}; its server is stopped", self.version()));
        }
        cluster.check().await?;
        Ok(format!("{data} holds version {}, and its server answers", self.version()))
    }

    /// What is run is there, and new enough for the data directory.
    ///
    /// # Errors
    /// As above.
    pub async fn look_at_programs(&self) -> Result<String, PresetError> {
        let major = self.version().parse().unwrap_or(0);
        let place = self.settings.programs.as_deref();
        let dump = PgDump::find(place, major).await?;
        let psql = Psql::find(place, &dump.version).await?;
        let mut missing = Vec::new();
        for name in BESIDE {
            let program = dump.beside(name, self.settings.server()?).args(["--version"]);
            missing.extend(program.output().await.err().map(|error| error.to_string()));
        }
        for name in SYSTEM {
            // Any version will do.
            match Program::new(name).args(["--version"]).output().await {
                Err(ProcessError::Missing(_)) => missing.push(format!("`{name}` is not on PATH")),
                Err(error) => missing.push(error.to_string()),
                Ok(_) => {}
            }
        }
        if missing.is_empty() {
            let (dump, psql, system) = (&dump.version, &psql.version, SYSTEM.join(", "));
            return Ok(format!("pg_dumpall, pg_basebackup {dump}, psql {psql}, {system}"));
        }
        Err(PresetError::Refused(missing.join("; ")))
    }

    /// The major version of the data directory, as its file tells it; empty where there is none.
    fn version(&self) -> String {
        let file = Path::new(&self.settings.data_directory).join("PG_VERSION");
        std::fs::read_to_string(file).map(|text| text.trim().to_owned()).unwrap_or_default()
    }
}
