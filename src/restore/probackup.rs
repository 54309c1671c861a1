//! `pg_probackup`: runs here, where the backups are, and reaches the target by its own SSH.
//!
//! The command lines are those that the tool's users know, in their order. What is corrected: `-B` is always given; a backup is
//! validated before the target is touched, so that `--no-validate` is no risk; the tool's ssh gets our options; and the
//! `restore_command` that the tool would generate, which loses them, is given. Its WAL directory has to be empty even for an
//! incremental restore; that is done before.

use serde_json::Value;

use super::engine::{Backup, Engine, EngineError, Told, Work};
use super::leash::{self, Ended};
use super::remote::Ssh;
use super::target::Target;
use crate::process::Program;
use crate::ssh::quote;
use crate::worker::Run;

/// What it needs to know.
#[derive(Clone, Debug)]
pub struct Probackup {
    /// The program.
    pub tool: String,
    /// The catalogue.
    pub backup_dir: String,
    /// Threads and connections.
    pub threads: u16,
    /// Where the tool's ssh goes.
    pub remote_port: u16,
    /// As whom.
    pub remote_user: String,
    /// Where the target fetches WAL from.
    pub archive_host: String,
    /// As whom.
    pub archive_user: String,
    /// On which port.
    pub archive_port: u16,
    /// Whether a backup is validated before.
    pub validate: bool,
    /// The target's `restore_command`, when the operator knows a better one.
    pub restore_command: Option<String>,
    /// Our way to the target, whose options the tool's ssh gets.
    pub ssh: Ssh,
}

impl Probackup {
    /// The words of a listing; of all instances when none is named.
    #[must_use]
    pub fn show_words(&self, instance: Option<&str>) -> Vec<String> {
        let mut words = vec![self.tool.clone(), "show".to_owned()];
        words.extend(instance.map(|instance| format!("--instance={instance}")));
        words.extend(["--format=json".to_owned(), "-B".to_owned(), self.backup_dir.clone()]);
        words
    }

    /// The words of a validation.
    #[must_use]
    pub fn validate_words(&self, work: &Work) -> Vec<String> {
        let Work { target, backup, .. } = work;
        let own = [
            "validate".to_owned(),
            "--progress".to_owned(),
            format!("-j{}", self.threads),
            format!("--instance={}", target.instance),
            "-B".to_owned(),
            self.backup_dir.clone(),
            format!("--backup-id={}", backup.id),
        ];
        std::iter::once(self.tool.clone()).chain(own).collect()
    }

    /// The words of a restore.
    #[must_use]
    pub fn restore_words(&self, work: &Work) -> Vec<String> {
        let Work { target, backup, incremental, .. } = work;
        let mut words: Vec<String> = vec![self.tool.clone()];
        words.extend(["restore", "--skip-external-dirs", "--progress"].map(str::to_owned));
        words.push(format!("-j{}", self.threads));
        words.push(format!("--instance={}", target.instance));
        words.extend(["--no-validate".to_owned(), "-B".to_owned(), self.backup_dir.clone()]);
        words.push(format!("--remote-host={}", target.host));
        words.push(format!("--remote-port={}", self.remote_port));
        words.push(format!("--remote-user={}", self.remote_user));
        words.push(format!("--pgdata={}", target.pgdata));
        words.push("--recovery-target-action=promote".to_owned());
        words.push(format!("--archive-user={}", self.archive_user));
        words.push(format!("--archive-host={}", self.archive_host));
        words.push(format!("--archive-port={}", self.archive_port));
        words.push("--recovery-target=immediate".to_owned());
        words.extend(target.wal_dir.as_ref().map(|directory| format!("--waldir={directory}")));
        words.push(format!("--backup-id={}", backup.id));
        if *incremental {
            words.extend(["-I".to_owned(), "CHECKSUM".to_owned()]);
        }
        words.push(format!("--ssh-options={}", self.ssh.options().join(" ")));
        words.push(format!("--restore-command={}", self.restore_command(target)));
        words
    }

    /// How the target fetches WAL. The known hosts there are that machine's own.
    fn restore_command(&self, target: &Target) -> String {
        if let Some(own) = &self.restore_command {
            return own.clone();
        }
        let words = [
            self.tool.clone(),
            "archive-get".to_owned(),
            "-B".to_owned(),
            self.backup_dir.clone(),
            format!("--instance={}", target.instance),
            "--wal-file-path=%p".to_owned(),
            "--wal-file-name=%f".to_owned(),
            format!("--remote-host={}", self.archive_host),
            format!("--remote-port={}", self.archive_port),
            format!("--remote-user={}", self.archive_user),
            "--ssh-options=-o BatchMode=yes -o StrictHostKeyChecking=yes".to_owned(),
        ];
        words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
    }

    async fn show(&self, instance: Option<&str>) -> Result<Value, EngineError> {
        let words = self.show_words(instance);
        let output = Program::new(&words[0]).args(&words[1..]).output().await?;
        serde_json::from_slice(&output)
            .map_err(|error| EngineError::Tool(format!("`{} show` wrote something else than JSON: {error}", self.tool)))
    }

    async fn run(&self, run: &Run, words: &[String], line: impl FnMut(&str)) -> Result<(), EngineError> {
        let shown = format!("{} {}", words[0], words[1]);
        let held = leash::words(words);
        let program = Program::new(&held[0]).args(&held[1..]).inheriting(["SSH_AUTH_SOCK"]);
        ended(leash::run(program, &shown, line, run.stop().cancelled()).await?)
    }
}

/// The end of a tool as an engine tells it.
pub(super) fn ended(ended: Ended) -> Result<(), EngineError> {
    match ended {
        Ended::Done => Ok(()),
        Ended::Failed(told) => Err(EngineError::Tool(told)),
        Ended::LetGo { gone } => Err(EngineError::Ended { gone }),
    }
}

/// `INFO: Progress: (12/300). Restore file "…"`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (_, rest) = line.split_once("Progress: (")?;
    let (numbers, _) = rest.split_once(')')?;
    let (done, total) = numbers.split_once('/')?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

fn read(catalogue: &Value, instance: &str) -> Vec<Backup> {
    let instances = catalogue.as_array().map(Vec::as_slice).unwrap_or_default();
    let own = instances.iter().filter(|entry| entry["instance"].as_str().is_none_or(|name| name == instance));
    let backups = own.flat_map(|entry| entry["backups"].as_array().map(Vec::as_slice).unwrap_or_default());
    let backup = |entry: &Value| {
        let state = entry["status"].as_str().unwrap_or("unknown").to_owned();
        Some(Backup {
            id: entry["id"].as_str()?.to_owned(),
            recovery_time: entry["recovery-time"].as_str().map(str::to_owned),
            usable: matches!(state.as_str(), "OK" | "DONE"),
            state,
            bytes: entry["data-bytes"].as_u64(),
        })
    };
    backups.filter_map(backup).collect()
}

#[async_trait::async_trait]
impl Engine for Probackup {
    fn name(&self) -> &'static str {
        "pg_probackup"
    }

    async fn catalogue(&self, targets: &[Target]) -> Result<Value, EngineError> {
        match targets {
            [one] => self.show(Some(&one.instance)).await,
            _ => self.show(None).await,
        }
    }

    async fn backups(&self, target: &Target) -> Result<Vec<Backup>, EngineError> {
        Ok(read(&self.show(Some(&target.instance)).await?, &target.instance))
    }

    async fn validate(&self, run: &Run, work: &Work) -> Result<(), EngineError> {
        if !self.validate {
            run.warn("validate is off: the backup is not looked at before the target is changed");
            return Ok(());
        }
        let validated = self.run(run, &self.validate_words(work), |_| ()).await;
        validated.map_err(|error| match error {
            EngineError::Tool(told) => EngineError::Invalid(format!("backup `{}` is not valid: {told}", work.backup.id)),
            other => other,
        })
    }

    async fn restore(&self, run: &Run, work: &Work, told: Told<'_>) -> Result<(), EngineError> {
        let line = |line: &str| match progress(line) {
            Some((done, total)) => told(done, total),
            None => run.info(format!("{}: {line}", self.name())),
        };
        self.run(run, &self.restore_words(work), line).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probackup() -> Probackup {
        Probackup {
            tool: "pg_probackup-14".to_owned(),
            backup_dir: "/backup".to_owned(),
            threads: 2,
            remote_port: 22,
            remote_user: "postgres".to_owned(),
            archive_host: "S-BACKUP".to_owned(),
            archive_user: "probackup".to_owned(),
            archive_port: 22,
            validate: true,
            restore_command: None,
            ssh: Ssh { program: "ssh".to_owned(), port: 22, user: "postgres".to_owned(), key: None, known_hosts: None },
        }
    }

    fn work(incremental: bool) -> Work {
        let target = Target {
            instance: "main1".to_owned(),
            host: "S-DB1".to_owned(),
            cluster: "main".to_owned(),
            pgdata: "/var/lib/postgresql/14/main".to_owned(),
            wal_dir: Some("/pgwal/main".to_owned()),
            database: "main".to_owned(),
        };
        let backup = Backup { id: "SSCOAD".to_owned(), recovery_time: None, usable: true, state: "OK".to_owned(), bytes: None };
        Work { task: "t".to_owned(), target, backup, incremental }
    }

    #[test]
    fn the_command_line_is_the_one_that_people_know() {
        let known = "pg_probackup-14 restore --skip-external-dirs --progress -j2 --instance=main1 --no-validate -B /backup \
                     --remote-host=S-DB1 --remote-port=22 --remote-user=postgres --pgdata=/var/lib/postgresql/14/main \
                     --recovery-target-action=promote --archive-user=probackup --archive-host=S-BACKUP --archive-port=22 \
                     --recovery-target=immediate --waldir=/pgwal/main --backup-id=SSCOAD";
        let known: Vec<&str> = known.split(' ').collect();
        let words = probackup().restore_words(&work(false));
        assert_eq!(words[..known.len()], known[..]);
        let own = &words[known.len()..];
        assert_eq!(own.len(), 2, "{own:?}");
        assert!(own[0].starts_with("--ssh-options=-o BatchMode=yes -o StrictHostKeyChecking=yes "), "{own:?}");
        assert_eq!(
            own[1],
            "--restore-command=pg_probackup-14 archive-get -B /backup '--instance=main1' '--wal-file-path=%p' \
             '--wal-file-name=%f' '--remote-host=S-BACKUP' '--remote-port=22' '--remote-user=probackup' \
             '--ssh-options=-o BatchMode=yes -o StrictHostKeyChecking=yes'"
        );
        let words = probackup().restore_words(&work(true));
        assert_eq!(words[..known.len()], known[..]);
        assert_eq!(words[known.len()..known.len() + 2], ["-I", "CHECKSUM"]);
        assert_eq!(
            probackup().show_words(Some("main1")).join(" "),
            "pg_probackup-14 show --instance=main1 --format=json -B /backup"
        );
    }

    #[test]
    fn the_catalogue_is_read_whatever_it_lacks() {
        let catalogue = json!([
            {"instance": "other", "backups": [{"id": "X", "status": "OK", "recovery-time": "2026-01-01 00:00:00+00"}]},
            {"instance": "main1", "backups": [
                {"id": "A", "status": "OK", "recovery-time": "2026-01-01 00:00:00+03", "data-bytes": 10},
                {"id": "B", "status": "ERROR"},
                {"status": "OK"}
            ]}
        ]);
        let backups = read(&catalogue, "main1");
        let seen: Vec<_> = backups.iter().map(|b| (b.id.as_str(), b.usable, b.bytes)).collect();
        assert_eq!(seen, [("A", true, Some(10)), ("B", false, None)]);
        assert!(read(&json!({}), "main1").is_empty() && read(&json!([{"instance": "main1"}]), "main1").is_empty());
    }

    #[test]
    fn progress_is_read_from_its_lines() {
        assert_eq!(progress("INFO: Progress: (12/300). Restore file \"base/1/2\""), Some((12, 300)));
        assert_eq!(progress("INFO: Restore of backup SSCOAD completed."), None);
        assert_eq!(progress("INFO: Progress: (x/y)."), None);
    }
}
