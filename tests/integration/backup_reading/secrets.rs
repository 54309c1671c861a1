//! What other users of the machine can see: command lines of our children, all of them, and their logs and errors.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{command, text};
use crate::backup::Setup;
use crate::seal::gpg::Home;
use crate::support::postgres::{PASSWORD, programs};

/// In the names of files that say what a child was given.
const GIVEN: &str = "given.";

/// Programs that note their own command line and environment, and then are what they are called.
fn noting(setup: &Setup) -> PathBuf {
    let bin = setup.directory.path().join("noting");
    std::fs::create_dir(&bin).unwrap();
    let search = std::env::var("PATH").unwrap();
    let found = |name: &str| std::env::split_paths(&search).map(|dir| dir.join(name)).find(|file| file.is_file());
    for name in ["pg_dump", "psql", "gpg"] {
        let real = if name == "gpg" { found(name).unwrap() } else { programs().join(name) };
        let script = format!(
            "#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ > {}/{GIVEN}{name}.$$\nexec {} \"$@\"\n",
            setup.directory.path().display(),
            real.display()
        );
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

/// The command lines of all processes below `root`, by their numbers, until `over`.
fn watched(root: u32, over: Arc<AtomicBool>) -> std::thread::JoinHandle<BTreeSet<String>> {
    let parent = |entry: &Path| -> Option<u32> {
        let stat = std::fs::read_to_string(entry.join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !over.load(Ordering::Relaxed) {
            let processes: BTreeMap<u32, (u32, PathBuf)> = std::fs::read_dir("/proc")
                .unwrap()
                .flatten()
                .filter_map(|entry| {
                    let number = entry.file_name().to_str()?.parse().ok()?;
                    Some((number, (parent(&entry.path())?, entry.path())))
                })
                .collect();
            for (number, (_, path)) in &processes {
                let mut at = *number;
                while at != root && at > 1 {
                    at = processes.get(&at).map_or(0, |(parent, _)| *parent);
                }
                if at == root
                    && let Ok(line) = std::fs::read(path.join("cmdline"))
                {
                    seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        seen
    })
}

#[tokio::test]
async fn no_child_has_a_secret_among_its_arguments() {
    const S3_SECRET: &str = "never-used-secret-key-0123456789";
    let Some(home) = Home::new() else { return };
    home.protected_key("backup@example.invalid", "open sesame");
    let setup = Setup::new().await;
    let bin = noting(&setup);
    let (path, ring) = (format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()), home.path().display().to_string());
    let passphrase = setup.directory.path().join("passphrase");
    std::fs::write(&passphrase, "open sesame\n").unwrap();
    let (bin, passphrase) = (bin.display().to_string(), passphrase.display().to_string());
    let settings = [
        ("PATH", path.as_str()),
        ("PG_BIN", bin.as_str()),
        ("GNUPGHOME", ring.as_str()),
        ("BACKUPS_GPG_RECIPIENT", "backup@example.invalid"),
        ("BACKUP_PLAIN", ""),
        ("RESTORE_GPG_PASSPHRASE_FILE", passphrase.as_str()),
        ("RESTORE_HOOK", "sleep 0.2; test -n \"$PGPASSWORD\""),
        ("BACKUP_PING_URL", "http://127.0.0.1:9/secret-path-of-ours"),
        ("S3_SECRET_KEY", S3_SECRET),
        ("LOG_LEVEL", "debug"),
    ];
    let secrets = [PASSWORD, "correct%20horse", "open sesame", "secret-path-of-ours", S3_SECRET];
    let mut programs_seen = BTreeSet::new();
    for arguments in [&["backup", "now"][..], &["backup", "restore", "--into", "copy"], &["backup", "drill"]] {
        let mut child = command(&setup, &settings, arguments);
        let child = child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let watching = watched(child.id(), over.clone());
        let output = child.wait_with_output().unwrap();
        over.store(true, Ordering::Relaxed);
        let lines = watching.join().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert!(lines.iter().any(|line| line.contains("backup")), "the program itself is seen: {lines:?}");
        if arguments[1] == "restore" {
            assert!(lines.iter().any(|line| line.contains("sleep 0.2")), "the hook is seen: {lines:?}");
        }
        let shown = format!("{lines:?}{}{}", text(&output.stdout), text(&output.stderr));
        for secret in secrets {
            assert!(!shown.contains(secret), "{arguments:?}: `{secret}` in {shown}");
        }
    }
    // Each child noted what it was given: arguments without any secret, and of our variables those that are for it.
    for entry in std::fs::read_dir(setup.directory.path()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some(program) = name.strip_prefix(GIVEN).and_then(|name| name.split('.').next()) else { continue };
        programs_seen.insert(program.to_owned());
        let given = text(&std::fs::read(entry.path()).unwrap());
        for secret in secrets {
            let is_for_it = secret == PASSWORD && program != "gpg";
            let allowed = if is_for_it { given.replacen(&format!("PGPASSWORD={PASSWORD}\0"), "", 1) } else { given.clone() };
            assert!(!allowed.contains(secret), "`{secret}` given to {program}: {allowed}");
        }
    }
    assert_eq!(programs_seen.into_iter().collect::<Vec<_>>(), ["gpg", "pg_dump", "psql"]);
}
