//! The archive's inside, read as strictly as it was written: exactly the members of the manifest, in its order,
//! part by part, and nothing else. The counterpart of [`super::tar`].

use bytes::{Buf as _, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::hex;
use super::manifest::{Content, Manifest};

const BLOCK: usize = 512;

/// What is met on the way through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The member with this number begins.
    Begin(usize),
    /// Some of its content.
    Bytes(Bytes),
    /// It ends, and was what the manifest says.
    End(usize),
}

/// The archive is not what the manifest says; what it is instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unlike(pub(super) String);

/// Where in the tar we are.
enum State {
    /// Before a header, or the end.
    Between,
    /// Inside a part, with so much of it left and so much padding behind it.
    Part { left: u64, padding: usize },
    /// Past the two empty blocks.
    Over,
}

/// A tar being read. Feed it with [`Untar::feed`], ask with [`Untar::next`].
pub(super) struct Untar {
    members: Vec<(String, u32, Content)>,
    plain: Content,
    part_bytes: u64,
    buffer: BytesMut,
    state: State,
    /// The member that is read, and how much of it was.
    at: usize,
    parts: u32,
    bytes: u64,
    digest: Sha256,
    fed: u64,
    whole: Sha256,
}

impl Untar {
    pub(super) fn new(manifest: &Manifest) -> Self {
        Untar {
            members: manifest.members.iter().map(|m| (m.name.clone(), m.parts, m.content.clone())).collect(),
            plain: manifest.plain.clone(),
            part_bytes: manifest.packing.part_bytes,
            buffer: BytesMut::new(),
            state: State::Between,
            at: 0,
            parts: 0,
            bytes: 0,
            digest: Sha256::new(),
            fed: 0,
            whole: Sha256::new(),
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, piece: &Bytes) {
        self.fed += piece.len() as u64;
        self.whole.update(piece);
        self.buffer.extend_from_slice(piece);
    }

    /// The next thing that can be told; nothing when more bytes are needed, or all was told.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Unlike> {
        loop {
            match self.state {
                State::Part { left: 0, padding } => {
                    if self.buffer.len() < padding {
                        return Ok(None);
                    }
                    self.buffer.advance(padding);
                    self.state = State::Between;
                    if self.parts == self.members[self.at].1 {
                        return self.end_member().map(Some);
                    }
                }
                State::Part { left, padding } => {
                    if self.buffer.is_empty() {
                        return Ok(None);
                    }
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                    let bytes = self.buffer.split_to(taken).freeze();
                    self.digest.update(&bytes);
                    self.bytes += taken as u64;
                    self.state = State::Part { left: left - taken as u64, padding };
                    return Ok(Some(Event::Bytes(bytes)));
                }
                State::Between if self.buffer.len() < BLOCK => return Ok(None),
                State::Between => {
                    let block = self.buffer.split_to(BLOCK);
                    if block.iter().all(|byte| *byte == 0) {
                        if self.at < self.members.len() {
                            let (name, ..) = &self.members[self.at];
                            return Err(Unlike(format!("it ends before `{name}` does")));
                        }
                        self.state = State::Over;
                    } else if let Some(event) = self.begin_part(&block)? {
                        return Ok(Some(event));
                    }
                }
                // The second empty block and nothing else; [`Untar::finish`] compares the whole.
                State::Over => {
                    if self.buffer.len() > BLOCK || self.buffer.iter().any(|byte| *byte != 0) {
                        return Err(Unlike("something follows the end of the tar".to_owned()));
                    }
                    return Ok(None);
                }
            }
        }
    }

    fn begin_part(&mut self, block: &[u8]) -> Result<Option<Event>, Unlike> {
        let (name, size) = header(block)?;
        let Some((member, parts, _)) = self.members.get(self.at) else {
            return Err(Unlike(format!("it holds `{}`, which the manifest does not know", name.escape_default())));
        };
        let expected = format!("{member}.{:06}", self.parts + 1);
        if name != expected || self.parts == *parts {
            return Err(Unlike(format!("it holds `{}` where `{expected}` is due", name.escape_default())));
        }
        if size > self.part_bytes {
            return Err(Unlike(format!("`{expected}` has {size} bytes, more than a part may have")));
        }
        self.parts += 1;
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.state = State::Part { left: size, padding };
        Ok((self.parts == 1).then_some(Event::Begin(self.at)))
    }

    fn end_member(&mut self) -> Result<Event, Unlike> {
        let (name, _, content) = &self.members[self.at];
        let digest = hex(&std::mem::take(&mut self.digest).finalize());
        if self.bytes != content.bytes || digest != content.sha256 {
            return Err(Unlike(format!("`{name}` is not what the manifest tells: its size or its SHA-256 differs")));
        }
        let ended = self.at;
        (self.at, self.parts, self.bytes) = (self.at + 1, 0, 0);
        Ok(Event::End(ended))
    }

    /// Whether all that was fed is the tar that the manifest tells, after the last event.
    pub(super) fn finish(self) -> Result<(), Unlike> {
        match self.state {
            State::Over if self.buffer.len() == BLOCK => {}
            _ => return Err(Unlike("it ends in the middle of the tar".to_owned())),
        }
        if self.fed != self.plain.bytes || hex(&self.whole.finalize()) != self.plain.sha256 {
            return Err(Unlike("its content is not what the manifest tells: its size or its SHA-256 differs".to_owned()));
        }
        Ok(())
    }
}

/// Name and size of an entry, which has to be a plain file.
fn header(block: &[u8]) -> Result<(String, u64), Unlike> {
    let wrong = |why: &str| Unlike(format!("there is no header of a tar where one is due: {why}"));
    let octal = |range: std::ops::Range<usize>| {
        let text = std::str::from_utf8(&block[range]).ok()?;
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
    };
    let sum: u64 =
        block.iter().enumerate().map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum();
    if octal(148..156) != Some(sum) {
        return Err(wrong("its checksum is wrong"));
    }
    if block[156] != b'0' {
        return Err(wrong("it is not that of a plain file"));
    }
    let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).map_err(|_| wrong("its name is no text"))?;
    Ok((name.to_owned(), octal(124..136).ok_or_else(|| wrong("its size is no number"))?))
}
