//! The archive's inside: a tar whose members lie in parts.
//!
//! A tar tells the size of an entry before its content, and nobody knows the size of a dump before its end. So a
//! member is cut into parts that fit into memory, `database.sql.000001`, `database.sql.000002` …, each an entry of its own.
//! Any `tar` joins them again: `tar -xO --wildcards 'database.sql.*'` writes them in order (ADR 0017).

use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::hex;
use super::manifest::{Content, Member, MemberKind};
use super::squeeze::{Feed, SqueezeError};

/// Most bytes of a part. Four or five are in memory at a time.
pub const PART: usize = 4 << 20;
const BLOCK: usize = 512;
static ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A tar being written.
pub(super) struct Tar {
    out: Feed,
    /// Seconds since 1970, for every entry.
    modified: u64,
    bytes: u64,
    digest: Sha256,
    members: Vec<Member>,
}

/// A member being written.
pub(super) struct Open<'t> {
    tar: &'t mut Tar,
    member: Member,
    buffer: BytesMut,
    digest: Sha256,
}

impl Tar {
    pub(super) fn new(out: Feed, modified: u64) -> Self {
        Tar { out, modified, bytes: 0, digest: Sha256::new(), members: Vec::new() }
    }

    /// Begins a member. One that gets no byte leaves no entry and is not listed.
    pub(super) fn open(&mut self, name: String, kind: MemberKind) -> Open<'_> {
        let content = Content { bytes: 0, sha256: String::new() };
        let member = Member { name, kind, group: None, tables: Vec::new(), parts: 0, content };
        Open { tar: self, member, buffer: BytesMut::new(), digest: Sha256::new() }
    }

    /// A member that is there already.
    pub(super) async fn add(&mut self, name: &str, kind: MemberKind, content: &str) -> Result<(), SqueezeError> {
        let mut member = self.open(name.to_owned(), kind);
        member.write(content.as_bytes()).await?;
        member.close().await.map(|_| ())
    }

    /// Size of the member that was closed last.
    pub(super) fn last_bytes(&self) -> u64 {
        self.members.last().map_or(0, |member| member.content.bytes)
    }

    /// Ends the tar; returns its members and what it was as a whole.
    pub(super) async fn close(mut self) -> Result<(Vec<Member>, Content), SqueezeError> {
        self.put(Bytes::from_static(&ZEROS)).await?;
        let content = Content { bytes: self.bytes, sha256: hex(&self.digest.finalize()) };
        self.out.end().await?;
        Ok((self.members, content))
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), SqueezeError> {
        self.bytes += bytes.len() as u64;
        self.digest.update(&bytes);
        self.out.put(bytes).await
    }
}

impl Open<'_> {
    /// Takes more of the content.
    pub(super) async fn write(&mut self, mut piece: &[u8]) -> Result<(), SqueezeError> {
        while !piece.is_empty() {
            let taken = piece.len().min(PART - self.buffer.len());
            self.buffer.extend_from_slice(&piece[..taken]);
            piece = &piece[taken..];
            self.flush_if(self.buffer.len() == PART).await?;
        }
        Ok(())
    }

    /// Takes one read's worth from `reader` and shows it to `look`; the number of bytes, none at its end.
    pub(super) async fn read(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        look: &mut impl FnMut(&[u8]),
    ) -> Result<usize, ReadError> {
        let before = self.buffer.len();
        // A small member stays small; a large one gets its part at once.
        self.buffer.reserve(if before == 0 && self.member.parts == 0 { 64 << 10 } else { PART - before });
        let read = reader.read_buf(&mut (&mut self.buffer).limit(PART - before)).await.map_err(ReadError::Read)?;
        look(&self.buffer[before..]);
        self.flush_if(self.buffer.len() == PART).await.map_err(ReadError::Squeeze)?;
        Ok(read)
    }

    /// Bytes taken so far.
    pub(super) fn bytes(&self) -> u64 {
        self.member.content.bytes + self.buffer.len() as u64
    }

    /// Ends the member.
    pub(super) async fn close(self) -> Result<Option<Member>, SqueezeError> {
        self.close_with(|_| {}).await
    }

    /// The same, with more to say about it.
    pub(super) async fn close_with(mut self, describe: impl FnOnce(&mut Member)) -> Result<Option<Member>, SqueezeError> {
        self.flush_if(!self.buffer.is_empty()).await?;
        if self.member.parts == 0 {
            return Ok(None);
        }
        self.member.content.sha256 = hex(&self.digest.finalize());
        describe(&mut self.member);
        self.tar.members.push(self.member.clone());
        Ok(Some(self.member))
    }

    async fn flush_if(&mut self, due: bool) -> Result<(), SqueezeError> {
        if !due {
            return Ok(());
        }
        let part = self.buffer.split().freeze();
        self.digest.update(&part);
        self.member.parts += 1;
        self.member.content.bytes += part.len() as u64;
        let name = format!("{}.{:06}", self.member.name, self.member.parts);
        self.tar.put(header(&name, part.len(), self.tar.modified)).await?;
        let padding = part.len().next_multiple_of(BLOCK) - part.len();
        self.tar.put(part).await?;
        if padding > 0 {
            self.tar.put(Bytes::from_static(&ZEROS).slice(..padding)).await?;
        }
        Ok(())
    }
}

/// Why a member could not take from a reader.
pub(super) enum ReadError {
    Read(std::io::Error),
    Squeeze(SqueezeError),
}

/// A ustar header of a plain file. Names are ours: short, and without what would need escapes.
fn header(name: &str, size: usize, modified: u64) -> Bytes {
    debug_assert!(name.len() <= 100, "`{name}` is too long for a tar");
    let mut block = [0_u8; BLOCK];
    let mut set = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    set(0, name);
    set(100, "0000600\0");
    set(108, "0000000\0");
    set(116, "0000000\0");
    set(124, &format!("{size:011o}\0"));
    set(136, &format!("{modified:011o}\0"));
    set(156, "0");
    set(257, "ustar\x0000");
    // The sum counts its own field as blanks.
    set(148, "        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::copy_from_slice(&block)
}
