//! Undoing the compression, on a thread of its own. The counterpart of [`super::squeeze`].
//!
//! The end is a message here too: a thread that died has not ended the stream. What the decoder holds is bounded
//! whatever the archive says about itself, and so is what comes out of it.

use std::io::{self, BufRead, BufReader, Read};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use super::name::Compression;
use crate::seal::Stream;

/// What comes out is passed on in pieces of about this size.
const PIECE: usize = 256 << 10;
/// Most memory of an xz decoder: what level 9 needs, and half more.
const XZ_MEMORY: u64 = 96 << 20;
/// Largest window of a zstd stream, as a power of two: what `zstd -19` needs.
const ZSTD_WINDOW: u32 = 23;

/// Gives what comes out.
pub(crate) struct Pieces {
    pieces: mpsc::Receiver<io::Result<Option<Bytes>>>,
}

impl Pieces {
    /// The next piece; nothing after the last one of a whole stream.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.pieces.recv().await {
            Some(piece) => piece,
            None => Err(io::Error::other("the thread that decompresses ended early")),
        }
    }
}

/// Starts the thread; it ends when the pieces are dropped. More than `limit` bytes are an error.
pub(crate) fn start(compression: Compression, source: Stream, limit: u64) -> Pieces {
    let (give, pieces) = mpsc::channel(4);
    let source = BufReader::with_capacity(PIECE, SyncIoBridge::new(source));
    tokio::task::spawn_blocking(move || {
        let end = unsqueeze(compression, source, limit, &give);
        // Nobody may be listening any more.
        let _ = give.blocking_send(end.map(|()| None));
    });
    Pieces { pieces }
}

type Give = mpsc::Sender<io::Result<Option<Bytes>>>;

fn unsqueeze(compression: Compression, source: impl BufRead, limit: u64, give: &Give) -> io::Result<()> {
    let mut rest = match compression {
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            pass(&mut decoder, limit, give)?;
            decoder.finish()
        }
        Compression::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(source);
            pass(&mut decoder, limit, give)?;
            decoder.into_inner()
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
            let mut decoder = liblzma::bufread::XzDecoder::new_stream(source, stream);
            pass(&mut decoder, limit, give)?;
            decoder.into_inner()
        }
    };
    // The source tells only at its own end whether all of it was right.
    if rest.fill_buf()?.is_empty() { Ok(()) } else { Err(damaged("something follows the end of the compressed stream")) }
}

fn pass(decoder: &mut impl Read, limit: u64, give: &Give) -> io::Result<()> {
    let mut passed = 0;
    loop {
        let mut piece = BytesMut::zeroed(PIECE);
        let mut filled = 0;
        while filled < PIECE {
            match decoder.read(&mut piece[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        passed += filled as u64;
        if passed > limit {
            return Err(damaged(&format!("it has more than the {limit} bytes that its manifest tells")));
        }
        piece.truncate(filled);
        if give.blocking_send(Ok(Some(piece.freeze()))).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn squeezed(compression: Compression, plain: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Zstd => zstd::encode_all(plain, 3).unwrap(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    async fn read(compression: Compression, bytes: Vec<u8>, limit: u64) -> io::Result<Vec<u8>> {
        let mut pieces = start(compression, Box::new(io::Cursor::new(bytes)), limit);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn each_form_ends_only_where_it_was_ended() {
        let plain: Vec<u8> = (0..700_000_u32).flat_map(|n| (n % 1000).to_le_bytes()).collect();
        for compression in [Compression::Zstd, Compression::Gzip, Compression::Xz] {
            let small = squeezed(compression, &plain);
            assert!(read(compression, small.clone(), plain.len() as u64).await.unwrap() == plain, "{compression:?}");
            for cut in [0, 1, small.len() / 2, small.len() - 1] {
                // An empty stream holds nothing, which the tar inside would not be.
                let read = read(compression, small[..cut].to_vec(), u64::MAX).await;
                assert!(read.as_ref().is_err() || (cut == 0 && read.unwrap().is_empty()), "{compression:?} cut at {cut}");
            }
            let longer = [small.clone(), b"more".to_vec()].concat();
            assert!(read(compression, longer, u64::MAX).await.is_err(), "{compression:?}");
            let error = read(compression, small, 1_000_000).await.unwrap_err();
            assert!(error.to_string().contains("more than the 1000000 bytes"), "{error}");
        }
    }
}
