//! `pgbackrest`: runs on the target's machine, over SSH, as its manual wants it.
//!
//! Incremental is its delta restore: files that are there and match by checksum stay. It takes the cluster's control file away
//! first and brings it last, so that a half-restored cluster cannot start.

use serde_json::Value;

use super::engine::{Backup, Engine, EngineError, Told, Work};
use super::probackup::ended;
use super::remote::Ssh;
use super::target::Target;
use crate::worker::Run;

/// What it needs to know.
#[derive(Clone, Debug)]
pub struct Pgbackrest {
    /// The program, on the targets.
    pub tool: String,
    /// Its configuration there; none: its default.
    pub config: Option<String>,
    /// Processes.
    pub threads: u16,
    /// Whether the stanza's backups are verified before.
    pub validate: bool,
    /// The way to the targets.
    pub ssh: Ssh,
}

impl Pgbackrest {
    fn words(&self, target: &Target, own: &[String]) -> Vec<String> {
        let mut words = vec![self.tool.clone()];
        words.extend(self.config.as_ref().map(|file| format!("--config={file}")));
        words.push(format!("--stanza={}", target.instance));
        words.extend(own.iter().cloned());
        words
    }

    /// The words of a listing.
    #[must_use]
    pub fn info_words(&self, target: &Target) -> Vec<String> {
        self.words(target, &["--output=json".to_owned(), "info".to_owned()])
    }

    /// The words of a restore.
    #[must_use]
    pub fn restore_words(&self, work: &Work) -> Vec<String> {
        let Work { target, backup, incremental, .. } = work;
        let mut own = vec![
            format!("--pg1-path={}", target.pgdata),
            format!("--set={}", backup.id),
            "--type=immediate".to_owned(),
            "--target-action=promote".to_owned(),
            format!("--process-max={}", self.threads),
            "--log-level-console=detail".to_owned(),
            "--log-level-stderr=off".to_owned(),
        ];
        own.extend(target.wal_dir.as_ref().map(|directory| format!("--link-map=pg_wal={directory}")));
        if *incremental {
            own.push("--delta".to_owned());
        }
        own.push("restore".to_owned());
        self.words(target, &own)
    }

    async fn info(&self, target: &Target) -> Result<Value, EngineError> {
        let words = self.info_words(target);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.ssh.run(&target.host, &words).await?;
        serde_json::from_str(&output).map_err(|error| {
            EngineError::Tool(format!("`{} info` on {} wrote something else than JSON: {error}", self.tool, target.host))
        })
    }
}

/// `P01 DETAIL: restore file /… (768KB, 3.41%) checksum …`, in hundredths of a percent.
fn progress(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("restore file ")?;
    let percent = rest[..rest.find("%)")?].rsplit(' ').next()?;
    let percent: f64 = percent.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some((percent * 100.0) as u64)
}

fn read(info: &Value, stanza: &str) -> Vec<Backup> {
    let stanzas = info.as_array().map(Vec::as_slice).unwrap_or_default();
    let own = stanzas.iter().filter(|entry| entry["name"].as_str() == Some(stanza));
    let backups = own.flat_map(|entry| entry["backup"].as_array().map(Vec::as_slice).unwrap_or_default());
    let backup = |entry: &Value| {
        let stop = entry["timestamp"]["stop"].as_i64().and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0));
        let damaged = entry["error"].as_bool().unwrap_or(false);
        Some(Backup {
            id: entry["label"].as_str()?.to_owned(),
            recovery_time: stop.map(|time| time.format("%Y-%m-%d %H:%M:%S+00").to_string()),
            usable: !damaged,
            state: if damaged { "error (pages with wrong checksums)" } else { "ok" }.to_owned(),
            bytes: entry["info"]["size"].as_u64(),
        })
    };
    backups.filter_map(backup).collect()
}

/// What `verify` says of a backup, or of one that it builds on: nothing, when all is well.
fn complaint(lines: &[String], id: &str) -> Option<String> {
    // A differential or incremental backup is called after the full one that it needs.
    let full = id.split('_').next().unwrap_or(id);
    let about = |line: &&String| {
        let named = line.contains(&format!("backup: {id},")) || line.contains(&format!("backup: {full},"));
        named && line.contains("status: ") && !line.contains("status: valid")
    };
    lines.iter().find(about).map(|line| line.trim().to_owned())
}

#[async_trait::async_trait]
impl Engine for Pgbackrest {
    fn name(&self) -> &'static str {
        "pgbackrest"
    }

    async fn catalogue(&self, targets: &[Target]) -> Result<Value, EngineError> {
        let mut all = Vec::new();
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for target in targets {
            if seen.contains(&(&target.host, &target.instance)) {
                continue;
            }
            seen.push((&target.host, &target.instance));
            if let Value::Array(stanzas) = self.info(target).await? {
                all.extend(stanzas);
            }
        }
        Ok(Value::Array(all))
    }

    async fn backups(&self, target: &Target) -> Result<Vec<Backup>, EngineError> {
        Ok(read(&self.info(target).await?, &target.instance))
    }

    async fn validate(&self, run: &Run, work: &Work) -> Result<(), EngineError> {
        if !self.validate {
            run.warn("validate is off: the backup is not looked at before the target is changed");
            return Ok(());
        }
        let words = self.words(&work.target, &["--output=text".to_owned(), "verify".to_owned()]);
        let mut lines = Vec::new();
        let host = &work.target.host;
        ended(self.ssh.long(host, &words, |line| lines.push(line.to_owned()), run.stop().cancelled()).await?)?;
        match complaint(&lines, &work.backup.id) {
            None => Ok(()),
            Some(said) => Err(EngineError::Invalid(format!(
                "backup `{}` is not valid: `{} verify` says: {said}",
                work.backup.id, self.tool
            ))),
        }
    }

    async fn restore(&self, run: &Run, work: &Work, told: Told<'_>) -> Result<(), EngineError> {
        let line = |line: &str| match progress(line) {
            Some(hundredths) => told(hundredths, 10_000),
            // Its details are thousands of lines; they are in its own log there.
            None if line.contains("DETAIL:") => {}
            None => run.info(format!("{}: {line}", self.name())),
        };
        ended(self.ssh.long(&work.target.host, &self.restore_words(work), line, run.stop().cancelled()).await?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_read_from_the_lines_of_either_form() {
        let restored = "2026-11-30 00:06:10.602 P01 DETAIL: restore file /d/base/5/1255 - exists and matches backup (768KB, 3.41%) checksum b7a9";
        assert_eq!(progress(restored), Some(341));
        assert_eq!(progress("P01 DETAIL: restore file /d/a (8KB, 100.00%) checksum 1"), Some(10_000));
        assert_eq!(progress("P00   INFO: restore command begin 2.45"), None);
        assert_eq!(progress("restore file x%)"), None);
    }

    #[test]
    fn backups_are_read_from_info() {
        let info = json!([{"name": "main1", "backup": [
            {"label": "20261130-000557F", "error": false, "timestamp": {"start": 1, "stop": 1_795_997_159}, "info": {"size": 23_033_334}},
            {"label": "20261130-000558F", "error": true, "timestamp": {"stop": 1_795_997_160}}
        ]}, {"name": "other", "backup": [{"label": "X"}]}]);
        let backups = read(&info, "main1");
        assert_eq!(backups.len(), 2);
        assert_eq!(backups[0].recovery_time.as_deref(), Some("2026-11-30 00:05:59+00"));
        assert_eq!((backups[0].usable, backups[0].bytes), (true, Some(23_033_334)));
        assert!(!backups[1].usable);
    }

    #[test]
    fn verify_speaks_of_a_backup_and_of_what_it_builds_on() {
        let lines = ["stanza: main1", "status: error", "  backup: 20261130-000557F, status: invalid, total files checked: 965"]
            .map(str::to_owned);
        assert!(complaint(&lines, "20261130-000557F").is_some());
        assert!(complaint(&lines, "20261130-000557F_20261130-010000D").is_some());
        assert!(complaint(&lines, "20261201-000557F").is_none());
        let valid = ["  backup: 20261130-000557F, status: valid, total files checked: 965".to_owned()];
        assert!(complaint(&valid, "20261130-000557F").is_none());
    }
}
