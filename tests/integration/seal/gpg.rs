//! OpenPGP through the real `gpg`, with key rings of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bullwork::seal::gpg::{Keyring, Recipient};
use bullwork::seal::{Opener, Seal, SealError};

use super::{noise, opened, sealed};

/// A key ring in a directory of its own.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    /// None where gpg is not installed.
    pub(crate) fn new() -> Option<Home> {
        let there = Command::new("gpg").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
        if !there {
            println!("NOT RUN: gpg is not installed");
            return None;
        }
        // Sockets are there; their paths must be short.
        Some(Home(tempfile::Builder::new().prefix("gpg").tempdir_in("/tmp").unwrap()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn gpg(&self, args: &[&str]) -> std::process::Output {
        self.gpg_with("", args)
    }

    fn gpg_with(&self, passphrase: &str, args: &[&str]) -> std::process::Output {
        let output = Command::new("gpg")
            .args(["--batch", "--no-tty", "--yes", "--pinentry-mode", "loopback", "--passphrase", passphrase])
            .arg("--homedir")
            .arg(self.path())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Makes a key pair that a passphrase protects, and has the agent forget it.
    pub(crate) fn protected_key(&self, name: &str, passphrase: &str) {
        self.gpg_with(passphrase, &["--quick-generate-key", name, "future-default", "default", "never"]);
        self.forget();
    }

    /// Has the agent forget every passphrase.
    fn forget(&self) {
        let killed = Command::new("gpgconf").arg("--homedir").arg(self.path()).args(["--kill", "gpg-agent"]).status();
        assert!(killed.unwrap().success());
    }

    /// Makes a key pair and returns its fingerprint.
    pub(crate) fn key(&self, name: &str) -> String {
        self.gpg(&["--quick-generate-key", name, "future-default", "default", "never"]);
        self.fingerprint(name)
    }

    fn fingerprint(&self, name: &str) -> String {
        let listing = self.gpg(&["--with-colons", "--list-keys", name]).stdout;
        let listing = String::from_utf8(listing).unwrap();
        let line = listing.lines().rfind(|line| line.starts_with("pub:")).unwrap().to_owned();
        let after = listing.split_once(&line).unwrap().1;
        after.lines().find(|l| l.starts_with("fpr:")).unwrap().split(':').nth(9).unwrap().to_owned()
    }

    fn seal(&self, name: &str) -> Seal {
        Seal::Gpg(Recipient::new(name).home(self.path().to_owned()))
    }

    fn opener(&self) -> Opener {
        Opener::Gpg(Keyring { home: Some(self.path().to_owned()), passphrase_file: None })
    }

    /// A key ring that holds only the public part of what `self` has.
    pub(crate) fn public(&self) -> Home {
        let other = Home::new().unwrap();
        let file = other.path().join("public");
        std::fs::write(&file, self.gpg(&["--export"]).stdout).unwrap();
        other.gpg(&["--import", file.to_str().unwrap()]);
        other
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.path()).args(["--kill", "all"]).stderr(Stdio::null()).status();
    }
}

#[tokio::test]
async fn the_public_key_seals_and_only_the_secret_one_opens() {
    let Some(home) = Home::new() else { return };
    let fingerprint = home.key("Backups <backups@example.org>");
    let server = home.public();
    for name in ["backups@example.org", &fingerprint] {
        let seal = server.seal(name);
        seal.check().await.unwrap();
        assert_eq!((seal.extension(), seal.recipients()), ("gpg", vec![name.to_owned()]));
        // More than pipes hold, so that it would stop if nobody read while it writes.
        for length in [0, 1, 3_000_000] {
            let plain = noise(length);
            let stream = sealed(&seal, &plain, 400_000).await.unwrap();
            let (read, result) = opened(&home.opener(), stream.clone()).await;
            result.unwrap();
            assert!(read == plain, "{length}");
            let (read, result) = opened(&server.opener(), stream).await;
            assert!(read.is_empty() && matches!(result, Err(SealError::WrongKey(_))), "{result:?}");
        }
    }
    // And by hand.
    let (input, output) = (home.path().join("in.gpg"), home.path().join("out"));
    std::fs::write(&input, sealed(&server.seal(&fingerprint), b"by hand", 100).await.unwrap()).unwrap();
    home.gpg(&["--output", output.to_str().unwrap(), "--decrypt", input.to_str().unwrap()]);
    assert_eq!(std::fs::read(output).unwrap(), b"by hand");
}

#[tokio::test]
async fn a_recipient_that_cannot_be_used_fails_before_the_first_byte() {
    let Some(home) = Home::new() else { return };
    home.gpg(&[
        "--faked-system-time",
        "20200101T000000",
        "--quick-generate-key",
        "old@example.org",
        "future-default",
        "default",
        "1d",
    ]);
    home.key("Twins <twins@example.org>");
    home.key("Other twin <other-twins@example.org>");
    home.gpg(&["--quick-generate-key", "sign@example.org", "ed25519", "sign", "never"]);
    for (name, reason) in [
        ("nobody@example.org", "import it"),
        ("old@example.org", "expired"),
        ("twins@example.org", "2 keys"),
        ("sign@example.org", "can encrypt"),
        ("", "no name"),
        ("--output=/tmp/x", "no such key"),
        ("a\nb", "no name"),
    ] {
        let seal = home.seal(name);
        for error in [seal.check().await.unwrap_err(), seal.start().await.unwrap_err()] {
            assert!(matches!(&error, SealError::Recipient { recipient, .. } if recipient == name), "{error}");
            assert!(error.to_string().contains(reason), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_or_altered_is_an_error() {
    let Some(home) = Home::new() else { return };
    let fingerprint = home.key("x@example.org");
    let plain = noise(100_000);
    let whole = sealed(&home.seal(&fingerprint), &plain, 30_000).await.unwrap();
    let cuts = [0, 1, 10, 100, 500, 8_000, 50_000, 90_000].into_iter().chain(whole.len() - 24..whole.len());
    for cut in cuts {
        let (_, result) = opened(&home.opener(), whole.slice(..cut)).await;
        assert!(matches!(result, Err(SealError::Damaged(_) | SealError::Program(_))), "cut at {cut}: {result:?}");
    }
    for at in [300, 5_000, 60_000, whole.len() - 30, whole.len() - 1] {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 4;
        let (_, result) = opened(&home.opener(), bytes.into()).await;
        assert!(result.is_err(), "flipped at {at}");
    }
    // What was only packed, or never went through gpg, is not vouched for by anybody.
    let (file, packed) = (home.path().join("plain"), home.path().join("packed"));
    std::fs::write(&file, &plain).unwrap();
    home.gpg(&["--output", packed.to_str().unwrap(), "--store", file.to_str().unwrap()]);
    for bytes in [std::fs::read(&packed).unwrap(), plain] {
        let (_, result) = opened(&home.opener(), bytes.into()).await;
        assert!(result.is_err(), "{result:?}");
    }
}

#[tokio::test]
async fn a_passphrase_comes_from_a_file() {
    let Some(home) = Home::new() else { return };
    home.protected_key("x@example.org", "open sesame");
    let stream = sealed(&home.seal("x@example.org"), b"hello", 100).await.unwrap();
    let file = home.path().join("passphrase");
    std::fs::write(&file, "wrong\n").unwrap();
    let opener = Opener::Gpg(Keyring { home: Some(home.path().to_owned()), passphrase_file: Some(file.clone()) });
    assert!(opened(&opener, stream.clone()).await.1.is_err());
    std::fs::write(&file, "open sesame\n").unwrap();
    let (read, result) = opened(&opener, stream).await;
    assert!(result.is_ok() && read == b"hello", "{result:?}");
}

fn running(home: &Path) -> usize {
    let mark = home.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line.starts_with(b"gpg\0") && line.windows(mark.len()).any(|window| window == mark))
        .count()
}

#[tokio::test]
async fn a_sealer_or_reader_that_is_dropped_leaves_no_gpg_behind() {
    let Some(home) = Home::new() else { return };
    let fingerprint = home.key("x@example.org");
    let mut sealer = home.seal(&fingerprint).start().await.unwrap();
    sealer.write(&noise(1000)).await.unwrap();
    assert_eq!(running(home.path()), 1);
    drop(sealer);
    let ended = async || running(home.path()) == 0;
    crate::support::eventually("gpg has ended", Duration::from_secs(10), ended).await;

    let stream = sealed(&home.seal(&fingerprint), &noise(3_000_000), 1 << 20).await.unwrap();
    let mut reader = home.opener().open(Box::new(std::io::Cursor::new(stream))).await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut reader, &mut [0; 1000]).await.unwrap();
    assert_eq!(running(home.path()), 1);
    drop(reader);
    let ended = async || running(home.path()) == 0;
    crate::support::eventually("gpg has ended", Duration::from_secs(10), ended).await;
}
