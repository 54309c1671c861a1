//! A dump on its way to a file, compressed and encrypted, and back.
//!
//! The key file holds one age key. Its public half is told to nobody and stands nowhere, so only who has the file can make what
//! it opens: the property of a symmetric key. Each file has a random key of its own; every piece of 64 KiB is authenticated and
//! the last one marked. A file is read whole before a line of it is believed: [`verify`], and [`Opened`] after that.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::{PresetError, hex};
use crate::backup::name::Compression;
use crate::backup::squeeze::{self, SqueezeError};
use crate::backup::unsqueeze::{self, Pieces};
use crate::seal::{Opener, Seal, SealError, age};
use crate::worker::Run;

/// What a dump of a whole cluster ends with; one without was cut off, whatever exit codes say.
const END: &[u8] = b"-- PostgreSQL database cluster dump complete";
/// After it come comment signs and, in newer versions, a line that lifts a restriction.
const TAIL: usize = 512;
const PIECE: usize = 256 << 10;

/// The branch's key.
#[derive(Clone, Debug)]
pub struct Key {
    identities: age::Identities,
    /// Which one it is; tells nothing about it.
    pub id: String,
}

impl Key {
    pub(super) fn read(file: &Path) -> Result<Key, PresetError> {
        let found = std::fs::metadata(file).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => PresetError::Refused(format!(
                "there is no key file {}; copy the branch's key from a colleague's machine, or run `db-p gen-key` for a new branch",
                file.display()
            )),
            _ => PresetError::file(&format!("reading the key file {}", file.display()), e),
        })?;
        if found.mode() & 0o077 != 0 {
            let (file, mode) = (file.display(), found.mode() & 0o777);
            return Err(PresetError::Refused(format!(
                "others can read the key file {file} (mode {mode:o}); run: chmod 600 {file}"
            )));
        }
        let identities = age::Identities::from_file(file)?;
        let mut digest = Sha256::new_with_prefix(b"bullwork preset key\n");
        for recipient in identities.recipients().shown() {
            digest.update(recipient.as_bytes());
        }
        let id = hex(&digest.finalize())[..16].to_owned();
        Ok(Key { identities, id })
    }
}

/// What became of a dump.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// Bytes of the file.
    pub(super) size: u64,
    /// Their SHA-256.
    pub(super) sha256: String,
    /// Bytes of SQL.
    pub(super) plain: u64,
}

/// Writes `source` to the new file `to`, for its owner alone.
pub(super) async fn write(
    run: &Run,
    key: &Key,
    compression: Compression,
    mut source: impl AsyncRead + Unpin,
    to: &Path,
) -> Result<Made, PresetError> {
    let level = if compression == Compression::Xz { 9 } else { 3 };
    let (mut feed, mut squeezed) = squeeze::start(compression, level);
    let feeding = async {
        let (mut plain, mut tail) = (0, Tail::default());
        loop {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            // Pieces that were filled whole: a pipe gives a few kilobytes at a time.
            while piece.len() < PIECE
                && source.read_buf(&mut piece).await.map_err(|e| PresetError::file("reading the dump", e))? > 0
            {}
            if piece.is_empty() {
                break;
            }
            plain += piece.len() as u64;
            tail.push(&piece);
            run.progress(|p| p.bytes = plain);
            feed.put(piece.freeze()).await?;
        }
        if !tail.is_end() {
            return Err(PresetError::Refused("the dump has no end; it was cut off".to_owned()));
        }
        feed.end().await?;
        Ok(plain)
    };
    let writing = async {
        let doing = |e| PresetError::file(&format!("writing {}", to.display()), e);
        let mut file = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(to).await.map_err(doing)?;
        let mut sealer = Seal::Age(key.identities.recipients()).start().await?;
        let (mut digest, mut size) = (Sha256::new(), 0);
        let mut put = async |bytes: bytes::Bytes| {
            digest.update(&bytes);
            size += bytes.len() as u64;
            file.write_all(&bytes).await
        };
        while let Some(piece) = squeezed.next().await? {
            put(sealer.write(&piece).await?).await.map_err(doing)?;
        }
        put(sealer.finish().await?).await.map_err(doing)?;
        file.flush().await.map_err(doing)?;
        file.sync_all().await.map_err(doing)?;
        Ok((size, hex(&digest.finalize())))
    };
    let (fed, written) = run.unless_stopped(async { tokio::join!(feeding, writing) }).await?;
    match (fed, written) {
        (Ok(plain), Ok((size, sha256))) => Ok(Made { size, sha256, plain }),
        // One that merely gave up knows nothing: the other one tells why.
        (Err(PresetError::Squeeze(SqueezeError::GivenUp)), Err(error)) | (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// A sealed file being read.
pub(super) struct Opened {
    pieces: Pieces,
    tail: Tail,
    file: String,
    /// Bytes of what is in it.
    pub(super) size: u64,
}

impl Opened {
    /// Begins to read; a key that does not fit is noticed here.
    pub(super) async fn begin(key: &Key, file: &Path, compression: Compression, limit: u64) -> Result<Opened, PresetError> {
        let source =
            tokio::fs::File::open(file).await.map_err(|e| PresetError::file(&format!("reading {}", file.display()), e))?;
        let plain = Opener::Age(key.identities.clone()).open(Box::new(source)).await?;
        Ok(Opened {
            pieces: unsqueeze::start(compression, plain, limit),
            tail: Tail::default(),
            file: file.display().to_string(),
            size: limit,
        })
    }

    /// The next piece; nothing after the last one of a whole dump.
    pub(super) async fn next(&mut self) -> Result<Option<bytes::Bytes>, PresetError> {
        match self.pieces.next().await {
            Ok(Some(piece)) => {
                self.tail.push(&piece);
                Ok(Some(piece))
            }
            Ok(None) if self.tail.is_end() => Ok(None),
            Ok(None) => Err(PresetError::Refused(format!("{}: the dump in it has no end; it was cut off", self.file))),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: io::Error) -> PresetError {
        match SealError::of_reading(error) {
            SealError::Source(error) => PresetError::Refused(format!("{} is damaged: {error}", self.file)),
            error => error.into(),
        }
    }
}

/// Reads the whole file: the right key, no byte altered, a dump with an end. Returns the bytes of SQL.
pub(super) async fn verify(run: &Run, key: &Key, file: &Path, compression: Compression, limit: u64) -> Result<u64, PresetError> {
    let mut opened = run.unless_stopped(Opened::begin(key, file, compression, limit)).await??;
    let mut plain = 0;
    while let Some(piece) = run.unless_stopped(opened.next()).await?? {
        plain += piece.len() as u64;
        run.progress(|p| (p.bytes, p.bytes_total) = (plain, limit));
    }
    Ok(plain)
}

/// The last bytes of a dump.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, piece: &[u8]) {
        let kept = &piece[piece.len().saturating_sub(TAIL)..];
        let surplus = (self.0.len() + kept.len()).saturating_sub(TAIL);
        self.0.drain(..surplus.min(self.0.len()));
        self.0.extend_from_slice(kept);
    }

    fn is_end(&self) -> bool {
        self.0.windows(END.len()).any(|window| window == END)
    }
}

/// Passes an open stream on to another key, compressed as it is: for `rekey`.
pub(super) async fn reseal(run: &Run, from: &Key, to: &Key, source: &Path, target: &Path) -> Result<(u64, String), PresetError> {
    let doing = |e| PresetError::file(&format!("writing {}", target.display()), e);
    let sealed =
        tokio::fs::File::open(source).await.map_err(|e| PresetError::file(&format!("reading {}", source.display()), e))?;
    let mut plain = Opener::Age(from.identities.clone()).open(Box::new(sealed)).await?;
    let mut file = tokio::fs::File::options().write(true).create_new(true).mode(0o600).open(target).await.map_err(doing)?;
    let mut sealer = Seal::Age(to.identities.recipients()).start().await?;
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut put = async |bytes: bytes::Bytes| {
        digest.update(&bytes);
        size += bytes.len() as u64;
        file.write_all(&bytes).await
    };
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    while run.unless_stopped(plain.read_buf(&mut piece)).await?.map_err(SealError::of_reading)? > 0 {
        put(sealer.write(&piece).await?).await.map_err(doing)?;
        piece.clear();
    }
    put(sealer.finish().await?).await.map_err(doing)?;
    file.flush().await.map_err(doing)?;
    file.sync_all().await.map_err(doing)?;
    Ok((size, hex(&digest.finalize())))
}
