//! The age format.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bullwork::seal::age::{Identities, Recipients, keygen};
use bullwork::seal::{Opener, Seal, SealError};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::{noise, opened, sealed};

struct Key {
    _directory: tempfile::TempDir,
    file: PathBuf,
    public: String,
}

impl Key {
    fn new() -> Key {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.txt");
        let public = keygen(&file).unwrap();
        Key { file, public, _directory: directory }
    }

    fn seal(&self) -> Seal {
        Seal::Age(Recipients::parse(&self.public).unwrap())
    }

    fn opener(&self) -> Opener {
        Opener::Age(Identities::from_file(&self.file).unwrap())
    }
}

#[tokio::test]
async fn streams_of_any_length_come_back_and_each_has_its_own_key() {
    let key = Key::new();
    const PIECE: usize = 64 << 10;
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 1_000_000] {
        let plain = noise(length);
        let one = sealed(&key.seal(), &plain, 10_000).await.unwrap();
        let two = sealed(&key.seal(), &plain, 300_000).await.unwrap();
        assert_ne!(one, two);
        for sealed in [one, two] {
            assert!(length < 16 || !sealed.windows(16).any(|window| window == &plain[..16]));
            let (read, result) = opened(&key.opener(), sealed).await;
            result.unwrap();
            assert!(read == plain, "{length}");
        }
    }
}

#[tokio::test]
async fn each_of_several_recipients_can_read_and_nobody_else() {
    let (one, two, other) = (Key::new(), Key::new(), Key::new());
    let text = format!("# who restores\n{}\n\n{}, {} # twice\n", one.public, two.public, one.public);
    let recipients = Recipients::parse(&text).unwrap();
    assert_eq!(recipients.shown(), [one.public.clone(), two.public.clone()]);
    let seal = Seal::Age(recipients);
    assert_eq!((seal.extension(), seal.recipients().len()), ("age", 2));
    let stream = sealed(&seal, b"secret", 100).await.unwrap();
    for key in [&one, &two] {
        assert_eq!(opened(&key.opener(), stream.clone()).await.0, b"secret");
    }
    let (read, result) = opened(&other.opener(), stream).await;
    assert!(read.is_empty() && matches!(result, Err(SealError::WrongKey(_))), "{result:?}");
}

/// One key file for everybody who shares presets: it encrypts and decrypts.
#[tokio::test]
async fn a_key_file_is_enough_to_encrypt_and_decrypt() {
    let key = Key::new();
    let identities = Identities::from_file(&key.file).unwrap();
    let seal = Seal::Age(identities.recipients());
    let stream = sealed(&seal, b"preset", 100).await.unwrap();
    let (read, result) = opened(&Opener::Age(identities), stream).await;
    assert!(result.is_ok() && read == b"preset");
}

/// Every prefix of a stream is an error, and what was read before it is authentic.
#[tokio::test]
async fn a_stream_that_is_cut_anywhere_is_an_error() {
    let key = Key::new();
    let plain = noise(150_000);
    let whole = sealed(&key.seal(), &plain, 50_000).await.unwrap();
    let body = whole.len() - plain.len() - 3 * 16;
    let near = |at: usize| at.saturating_sub(2)..=at + 2;
    let chunk = (64 << 10) + 16;
    let cuts = (0..body + 2).chain(near(body + chunk)).chain(near(body + 2 * chunk)).chain(whole.len() - 20..whole.len());
    for cut in cuts {
        let (read, result) = opened(&key.opener(), whole.slice(..cut)).await;
        assert!(matches!(result, Err(SealError::Damaged(_) | SealError::WrongKey(_))), "cut at {cut}: {result:?}");
        assert!(plain.starts_with(&read) && read.len() < plain.len(), "cut at {cut}");
    }
    let mut longer = whole.to_vec();
    longer.push(0);
    let (_, result) = opened(&key.opener(), longer.into()).await;
    assert!(matches!(result, Err(SealError::Damaged(_))), "{result:?}");
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_an_error() {
    let key = Key::new();
    let plain = noise(70_000);
    let whole = sealed(&key.seal(), &plain, 50_000).await.unwrap();
    let body = whole.len() - plain.len() - 2 * 16;
    for at in (0..body + 20).chain((body + 20..whole.len()).step_by(1777)).chain(whole.len() - 20..whole.len()) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        let (read, result) = opened(&key.opener(), bytes.into()).await;
        assert!(result.is_err(), "flipped at {at}");
        assert!(plain.starts_with(&read) && read.len() < plain.len(), "flipped at {at}");
    }
}

#[tokio::test]
async fn what_was_never_sealed_is_refused_without_reading_on_for_ever() {
    let key = Key::new();
    for text in [&b""[..], b"hello", b"age-encryption.org/v1\n", b"age-encryption.org/v1\n-> X25519 AAAA\n"] {
        let (_, result) = opened(&key.opener(), Bytes::copy_from_slice(text)).await;
        assert!(matches!(result, Err(SealError::Damaged(_))), "{result:?}");
    }
    // A header that never ends, however much comes.
    let header = std::io::Cursor::new(b"age-encryption.org/v1\n-> X25519 ".to_vec());
    let endless = tokio::io::repeat(b'A');
    let opening = key.opener();
    let opening = opening.open(Box::new(header.chain(endless)));
    let result = tokio::time::timeout(std::time::Duration::from_secs(30), opening).await.expect("it gives up");
    assert!(matches!(result.err(), Some(SealError::Damaged(_))));
}

/// Fails after some bytes, as a store does that went away.
struct Failing(std::io::Cursor<Bytes>);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.0.position() < self.0.get_ref().len() as u64 {
            return std::pin::Pin::new(&mut self.0).poll_read(cx, buf);
        }
        std::task::Poll::Ready(Err(std::io::Error::other("the store went away")))
    }
}

#[tokio::test]
async fn the_sources_own_error_stays_what_it_was() {
    let key = Key::new();
    let whole = sealed(&key.seal(), &noise(200_000), 50_000).await.unwrap();
    for cut in [10, 100_000] {
        let source = Failing(std::io::Cursor::new(whole.slice(..cut)));
        let result = match key.opener().open(Box::new(source)).await {
            Ok(mut stream) => stream.read_to_end(&mut Vec::new()).await.map_err(SealError::of_reading).map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(matches!(&result, Err(SealError::Source(error)) if error.to_string().contains("went away")), "{result:?}");
    }
}

#[tokio::test]
async fn recipients_that_cannot_be_used_are_told_and_secrets_are_not() {
    let key = Key::new();
    let secret = std::fs::read_to_string(&key.file).unwrap().lines().last().unwrap().to_owned();
    let mistyped = format!("{}x", key.public);
    for (text, word) in [
        ("", "none is given"),
        ("age1nonsense", "age1nonsense"),
        (mistyped.as_str(), "age1"),
        ("ssh-ed25519 AAAA", "SSH"),
        (secret.as_str(), "public one"),
    ] {
        let error = Recipients::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(!error.contains(&secret), "{error}");
    }
    let file = key.file.with_file_name("mistyped.txt");
    std::fs::write(&file, format!("# a comment\n{}\n", &secret[..secret.len() - 1])).unwrap();
    let error = Identities::from_file(&file).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains(&secret[..30]), "{error}");
    assert!(!format!("{:?}", Identities::from_file(&key.file).unwrap()).contains(&secret));
    std::fs::write(&file, "# nothing\n").unwrap();
    assert!(Identities::from_file(&file).unwrap_err().to_string().contains("age-keygen"));
    assert!(Identities::from_file(Path::new("/nonexistent/key")).unwrap_err().to_string().contains("/nonexistent/key"));
}

#[tokio::test]
async fn a_new_key_is_for_its_owner_alone_and_replaces_none() {
    let key = Key::new();
    assert_eq!(std::fs::metadata(&key.file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&key.file).unwrap();
    let error = keygen(&key.file).unwrap_err().to_string();
    assert!(error.contains("never overwritten"), "{error}");
    assert_eq!(std::fs::read(&key.file).unwrap(), before);
    assert!(keygen(Path::new("/nonexistent/key")).is_err());
}

fn tool(name: &str) -> bool {
    let there =
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !there {
        println!("NOT RUN: `{name}` is not installed");
    }
    there
}

#[tokio::test]
async fn the_age_program_reads_ours_and_we_read_its() {
    if !tool("age") || !tool("age-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("their-key");
    assert!(Command::new("age-keygen").arg("-o").arg(&file).stderr(Stdio::null()).status().unwrap().success());
    let theirs = Identities::from_file(&file).unwrap();
    let ours = Key::new();
    let plain = noise(300_000);
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));

    std::fs::write(&input, sealed(&Seal::Age(theirs.recipients()), &plain, 70_000).await.unwrap()).unwrap();
    let status = Command::new("age").arg("-d").arg("-i").arg(&file).arg("-o").arg(&output).arg(&input).status().unwrap();
    assert!(status.success() && std::fs::read(&output).unwrap() == plain);
    std::fs::write(&input, sealed(&ours.seal(), &plain, 70_000).await.unwrap()).unwrap();
    std::fs::remove_file(&output).unwrap();
    let status = Command::new("age").arg("-d").arg("-i").arg(&ours.file).arg("-o").arg(&output).arg(&input).status().unwrap();
    assert!(status.success() && std::fs::read(&output).unwrap() == plain);

    std::fs::write(&input, &plain).unwrap();
    let status = Command::new("age").args(["-r", &ours.public]).arg("-o").arg(&output).arg(&input).status();
    assert!(status.unwrap().success());
    let (read, result) = opened(&ours.opener(), std::fs::read(&output).unwrap().into()).await;
    assert!(result.is_ok() && read == plain);
}
