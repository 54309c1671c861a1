//! Sealed streams: whole or an error, whatever happens to them; and the tools that read them without us.

mod age;
pub(crate) mod gpg;

use bullwork::seal::{Opener, Seal, SealError};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

/// Bytes that no compression makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Seals in pieces of `piece` bytes.
async fn sealed(seal: &Seal, plain: &[u8], piece: usize) -> Result<Bytes, SealError> {
    let mut sealer = seal.start().await?;
    let mut out = BytesMut::new();
    for piece in plain.chunks(piece) {
        out.extend_from_slice(&sealer.write(piece).await?);
    }
    out.extend_from_slice(&sealer.finish().await?);
    Ok(out.freeze())
}

/// Opens and reads to the end; also what was read before an error.
async fn opened(opener: &Opener, sealed: Bytes) -> (Vec<u8>, Result<(), SealError>) {
    let mut plain = Vec::new();
    let result = match opener.open(Box::new(std::io::Cursor::new(sealed))).await {
        Ok(mut stream) => stream.read_to_end(&mut plain).await.map(|_| ()).map_err(SealError::of_reading),
        Err(error) => Err(error),
    };
    (plain, result)
}
