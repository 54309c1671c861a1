//! Making the tar smaller, on a thread of its own: it is what takes the time.
//!
//! The end is a message. A channel that is merely closed means that the other side gave up, and half a tar must
//! never become a whole stream.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::name::Compression;

/// What comes out is passed on in pieces of about this size.
const PIECE: usize = 256 << 10;

enum Message {
    Bytes(Bytes),
    End,
}

/// The compressor ended before the stream did.
#[derive(Debug, thiserror::Error)]
pub enum SqueezeError {
    /// It failed.
    #[error("compressing: {0}")]
    Failed(#[source] io::Error),
    /// The next stage gave up, and tells why itself.
    #[error("the stream was given up")]
    GivenUp,
}

/// Takes what is to be made smaller.
pub(crate) struct Feed(mpsc::Sender<Message>);

impl Feed {
    pub(crate) async fn put(&mut self, bytes: Bytes) -> Result<(), SqueezeError> {
        self.0.send(Message::Bytes(bytes)).await.map_err(|_| SqueezeError::GivenUp)
    }

    pub(crate) async fn end(self) -> Result<(), SqueezeError> {
        self.0.send(Message::End).await.map_err(|_| SqueezeError::GivenUp)
    }
}

/// Gives what was made smaller.
pub(crate) struct Squeezed {
    pieces: mpsc::Receiver<Message>,
    thread: JoinHandle<io::Result<()>>,
}

impl Squeezed {
    /// The next piece; nothing after the last one of a whole stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SqueezeError> {
        match self.pieces.recv().await {
            Some(Message::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Message::End) => Ok(None),
            None => match (&mut self.thread).await {
                Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(SqueezeError::Failed(error)),
                Err(join) => Err(SqueezeError::Failed(io::Error::other(join))),
                _ => Err(SqueezeError::GivenUp),
            },
        }
    }
}

/// Starts the thread. It ends when either side is dropped.
pub(crate) fn start(compression: Compression, level: u32) -> (Feed, Squeezed) {
    let (feed, input) = mpsc::channel(1);
    let (output, pieces) = mpsc::channel(4);
    let thread = tokio::task::spawn_blocking(move || squeeze(compression, level, input, Out { output, buffer: BytesMut::new() }));
    (Feed(feed), Squeezed { pieces, thread })
}

fn squeeze(compression: Compression, level: u32, input: mpsc::Receiver<Message>, out: Out) -> io::Result<()> {
    let out = match compression {
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(out, i32::try_from(level).unwrap_or(3))?;
            encoder.include_checksum(true)?;
            pass(input, &mut encoder)?;
            encoder.finish()?
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(level));
            pass(input, &mut encoder)?;
            encoder.finish()?
        }
        // Levels above 6 are asked for by who wants the fewest bytes: those get all CPUs, which need a block each.
        Compression::Xz if level > 6 => {
            let threads = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
            let stream = liblzma::stream::MtStreamBuilder::new()
                .preset(level)
                .threads(threads)
                .check(liblzma::stream::Check::Crc64)
                .encoder()?;
            let mut encoder = liblzma::write::XzEncoder::new_stream(out, stream);
            pass(input, &mut encoder)?;
            encoder.finish()?
        }
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(out, level);
            pass(input, &mut encoder)?;
            encoder.finish()?
        }
    };
    out.end()
}

fn pass(mut input: mpsc::Receiver<Message>, encoder: &mut impl Write) -> io::Result<()> {
    loop {
        match input.blocking_recv() {
            Some(Message::Bytes(bytes)) => encoder.write_all(&bytes)?,
            Some(Message::End) => return Ok(()),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Gathers small writes.
struct Out {
    output: mpsc::Sender<Message>,
    buffer: BytesMut,
}

impl Out {
    fn send(&self, message: Message) -> io::Result<()> {
        self.output.blocking_send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn end(mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let rest = self.buffer.split().freeze();
            self.send(Message::Bytes(rest))?;
        }
        self.send(Message::End)
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            let piece = self.buffer.split().freeze();
            self.send(Message::Bytes(piece))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    async fn squeezed(compression: Compression, level: u32, pieces: &[Bytes]) -> Result<Vec<u8>, SqueezeError> {
        let (mut feed, mut out) = start(compression, level);
        let feeding = async {
            for piece in pieces {
                feed.put(piece.clone()).await?;
            }
            feed.end().await
        };
        let taking = async {
            let mut all = Vec::new();
            while let Some(piece) = out.next().await? {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        tokio::try_join!(feeding, taking).map(|(_, all)| all)
    }

    #[tokio::test]
    async fn each_form_reads_back_as_it_was() {
        let pieces: Vec<Bytes> = (0..40_u8).map(|n| vec![n; 70_000].into()).collect();
        let plain = pieces.concat();
        for (compression, level) in [(Compression::Zstd, 3), (Compression::Gzip, 6), (Compression::Xz, 1), (Compression::Xz, 9)] {
            let small = squeezed(compression, level, &pieces).await.unwrap();
            assert!(small.len() < plain.len() / 10);
            let mut back = Vec::new();
            match compression {
                Compression::Zstd => back = zstd::decode_all(&small[..]).unwrap(),
                Compression::Gzip => drop(flate2::read::GzDecoder::new(&small[..]).read_to_end(&mut back).unwrap()),
                Compression::Xz => drop(liblzma::read::XzDecoder::new(&small[..]).read_to_end(&mut back).unwrap()),
            }
            assert!(back == plain, "{compression:?}");
        }
    }

    #[tokio::test]
    async fn a_feed_that_is_dropped_is_no_end() {
        let (mut feed, mut out) = start(Compression::Zstd, 3);
        feed.put(Bytes::from_static(b"half")).await.unwrap();
        drop(feed);
        assert!(matches!(out.next().await, Err(SqueezeError::GivenUp)));
    }
}
