//! Old archives, only read: AES-256 in CBC mode, which authenticates nothing.
//!
//! Two forms are known: 16 bytes of initialization vector and the ciphertext, for a key file with 32 bytes or 64 hexadecimal digits; and
//! what `openssl enc -aes-256-cbc -pbkdf2 -pass file:KEY` writes (`Salted__`, 8 bytes of salt). Inside is SQL of `pg_dumpall`, compressed
//! by xz, zstd or gzip, or not at all. Because nothing vouches for the bytes, an archive is taken only when padding, compression and the
//! dump's last line are what they should be; then it is sealed anew and stored as any preset.

use std::io::{self, BufReader, Read};
use std::path::Path;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut as _, KeyIvInit as _, generic_array::GenericArray};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio_util::io::SyncIoBridge;

use super::local::Local;
use super::push::Push;
use super::sealed;
use super::{Done, PresetError, Presets};
use crate::redact::remember;
use crate::worker::Run;

type Decryptor = cbc::Decryptor<aes::Aes256>;

const BLOCK: usize = 16;
/// Bytes decrypted at a time.
const PIECE: usize = 64 << 10;
/// What `openssl enc -pbkdf2` takes unless told otherwise.
const ITERATIONS: u32 = 10_000;
/// Most memory of an xz decoder.
const XZ_MEMORY: u64 = 96 << 20;

/// The plaintext of an old archive.
struct Plain<R> {
    inner: R,
    cipher: Decryptor,
    /// Ciphertext that is not decrypted yet: at least one block, until the end is known.
    held: Vec<u8>,
    ready: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R: Read> Plain<R> {
    fn new(mut inner: R, key_file: &[u8]) -> io::Result<Self> {
        let mut head = [0; BLOCK];
        inner.read_exact(&mut head).map_err(|_| damaged("it is shorter than one block"))?;
        let (key, iv) = match head.strip_prefix(b"Salted__") {
            Some(salt) => {
                let password = key_file.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let derived = pbkdf2(password.strip_suffix(b"\r").unwrap_or(password), salt);
                let (key, iv) = derived.split_at(32);
                (key.to_vec(), iv.to_vec())
            }
            None => (raw_key(key_file)?, head.to_vec()),
        };
        let cipher = Decryptor::new(GenericArray::from_slice(&key), GenericArray::from_slice(&iv));
        Ok(Plain { inner, cipher, held: Vec::new(), ready: Vec::new(), at: 0, ended: false })
    }

    /// Decrypts what may be decrypted; the last block only at the end.
    fn fill(&mut self) -> io::Result<()> {
        let before = self.held.len();
        self.held.resize(before + PIECE, 0);
        let read = self.inner.read(&mut self.held[before..])?;
        self.held.truncate(before + read);
        self.ready.clear();
        self.at = 0;
        if read == 0 {
            self.ended = true;
            let held = std::mem::take(&mut self.held);
            if held.len() != BLOCK {
                return Err(damaged("its length is no multiple of a block"));
            }
            let plain = self.cipher.clone().decrypt_padded_vec_mut::<Pkcs7>(&held);
            self.ready =
                plain.map_err(|_| damaged("its last block has no padding: the key is another one, or it was cut off"))?;
            return Ok(());
        }
        let whole = (self.held.len() - 1) / BLOCK * BLOCK;
        let mut blocks: Vec<u8> = self.held.drain(..whole).collect();
        for block in blocks.chunks_exact_mut(BLOCK) {
            self.cipher.decrypt_block_mut(GenericArray::from_mut_slice(block));
        }
        self.ready = blocks;
        Ok(())
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.ready.len() && !self.ended {
            self.fill()?;
        }
        let read = buf.len().min(self.ready.len() - self.at);
        buf[..read].copy_from_slice(&self.ready[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn raw_key(file: &[u8]) -> io::Result<Vec<u8>> {
    if file.len() == 32 {
        return Ok(file.to_vec());
    }
    let text = file.trim_ascii();
    let digits = std::str::from_utf8(text).ok().filter(|text| text.len() == 64);
    let bytes = digits.and_then(|text| (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect());
    bytes.ok_or_else(|| damaged("the old key file has neither 32 bytes nor 64 hexadecimal digits"))
}

/// Key and initialization vector of a password: PBKDF2 with HMAC-SHA-256.
fn pbkdf2(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let keyed = Hmac::<Sha256>::new_from_slice(password).expect("HMAC takes keys of any length");
    let mut derived = Vec::new();
    for number in 1..=2_u32 {
        let mut first = keyed.clone();
        first.update(salt);
        first.update(&number.to_be_bytes());
        let mut last = first.finalize().into_bytes();
        let mut sum = last;
        for _ in 1..ITERATIONS {
            let mut next = keyed.clone();
            next.update(&last);
            last = next.finalize().into_bytes();
            sum.iter_mut().zip(last.iter()).for_each(|(sum, byte)| *sum ^= byte);
        }
        derived.extend_from_slice(&sum);
    }
    derived.truncate(32 + BLOCK);
    derived
}

/// The SQL, by what the plaintext begins with.
fn decompressed(plain: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut plain = BufReader::with_capacity(PIECE, plain);
    let head: Vec<u8> = io::BufRead::fill_buf(&mut plain)?.iter().take(6).copied().collect();
    Ok(if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(plain, stream))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(plain)?)
    } else if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(plain))
    } else {
        Box::new(plain)
    })
}

impl Presets {
    pub(super) async fn import(
        &self,
        run: &Run,
        name: &str,
        who: &str,
        what: &str,
        archive: &Path,
        old_key: &Path,
    ) -> Result<Done, PresetError> {
        let (branch, key, local) = (self.branch()?, self.key()?, Local::open(&self.settings)?);
        let _held = local.hold()?;
        local.tidy(&[])?;
        let known = self.absent(&branch, &key, name).await?;
        let old = std::fs::read(old_key).map_err(|e| PresetError::file(&format!("reading {}", old_key.display()), e))?;
        if let Ok(text) = std::str::from_utf8(&old) {
            remember(text.trim());
        }
        let source = std::fs::File::open(archive).map_err(|e| PresetError::file(&format!("reading {}", archive.display()), e))?;
        let file = local.files().join(format!("import-{name}"));
        run.progress(|p| "decrypt".clone_into(&mut p.phase));
        let (near, far) = tokio::io::duplex(PIECE);
        let reading = tokio::task::spawn_blocking(move || {
            let mut sql = decompressed(Plain::new(source, &old)?)?;
            let mut far = SyncIoBridge::new(far);
            io::copy(&mut sql, &mut far).map(|_| ())
        });
        let made = sealed::write(run, &key, self.settings.compression, near, &file).await;
        let read = reading.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let told = |e: io::Error| PresetError::Refused(format!("{} cannot be read as an old archive: {e}", archive.display()));
        let imported = match (made, read) {
            (Err(error @ PresetError::Stopped(_)), _) => Err(error),
            (Ok(_), Err(error)) => Err(told(error)),
            (Err(_), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(told(error)),
            (Err(error), _) => Err(error),
            (Ok(made), Ok(())) => {
                let push = Push {
                    name,
                    who,
                    what,
                    known,
                    compression: self.settings.compression,
                    dump_version: None,
                    key_id: key.id,
                    of_cluster: false,
                };
                self.store(run, &branch, &local, &push, &file, &made).await
            }
        };
        let _ = std::fs::remove_file(&file);
        imported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_whole_archives_of_the_right_key_are_read() {
        let key = [7_u8; 32];
        let iv = [9_u8; BLOCK];
        for length in [0, 1, 15, 16, 17, PIECE - 1, PIECE, 3 * PIECE + 5] {
            let plain: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let encryptor = cbc::Encryptor::<aes::Aes256>::new(&key.into(), &iv.into());
            let sealed = aes::cipher::BlockEncryptMut::encrypt_padded_vec_mut::<Pkcs7>(encryptor, &plain);
            let archive = [iv.to_vec(), sealed].concat();
            let read = |archive: &[u8], key: &[u8]| {
                let mut all = Vec::new();
                Plain::new(archive, key).and_then(|mut plain| plain.read_to_end(&mut all)).map(|_| all)
            };
            assert!(read(&archive, &key).unwrap() == plain, "{length}");
            assert!(read(&archive, &[b"07".repeat(32), b"\n".to_vec()].concat()).unwrap() == plain, "{length}");
            assert!(read(&archive[..archive.len() - 1], &key).is_err() && read(&archive[..BLOCK], &key).is_err());
            assert!(read(&archive, b"short").is_err());
        }
    }
}
