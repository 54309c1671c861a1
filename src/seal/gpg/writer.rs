//! Encrypting through a running `gpg`.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::SealError;
use super::{STATUS, STUCK, program};
use crate::process::Running;

/// What is read from gpg at once.
const PIECE: usize = 64 << 10;

/// A running `gpg --encrypt`; killed when dropped.
#[derive(Debug)]
pub struct Writer {
    running: Running,
}

impl Writer {
    pub(super) fn start(fingerprint: &str, home: Option<&Path>) -> Result<Self, SealError> {
        let program = program(home)
            // No agent: only a public key is used. No compression: what comes is compressed.
            .args(["--no-autostart", "--no-encrypt-to", "--compress-algo", "none", "--trust-model", "always"])
            .args(["--encrypt", "--recipient", fingerprint]);
        Ok(Writer { running: program.start(true, Some(STATUS))? })
    }

    /// Writes and reads at the same time: gpg stops taking when nobody takes what it gives.
    pub(in crate::seal) async fn write(&mut self, mut plain: &[u8]) -> Result<Bytes, SealError> {
        let mut out = BytesMut::new();
        while !plain.is_empty() {
            let Some(stdin) = &mut self.running.stdin else { return Err(self.failure().await) };
            out.reserve(PIECE);
            let moved = timeout(STUCK, async {
                tokio::select! {
                    written = stdin.write(plain) => written.map(|count| (count, None)),
                    read = self.running.stdout.read_buf(&mut out) => read.map(|count| (0, Some(count))),
                }
            });
            match moved.await {
                Ok(Ok((_, Some(0))) | Err(_)) => return Err(self.failure().await),
                Ok(Ok((written, _))) => plain = &plain[written..],
                Err(_) => return Err(SealError::Stuck(STUCK.as_secs())),
            }
        }
        Ok(out.freeze())
    }

    pub(in crate::seal) async fn finish(mut self) -> Result<Bytes, SealError> {
        drop(self.running.stdin.take());
        let mut out = BytesMut::new();
        loop {
            out.reserve(PIECE);
            match timeout(STUCK, self.running.stdout.read_buf(&mut out)).await {
                Ok(Ok(0)) => break,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(SealError::Source(error)),
                Err(_) => return Err(SealError::Stuck(STUCK.as_secs())),
            }
        }
        let end = timeout(STUCK, self.running.end()).await.map_err(|_| SealError::Stuck(STUCK.as_secs()))?;
        end.result?;
        if end.marked.iter().any(|line| line.starts_with("END_ENCRYPTION")) {
            Ok(out.freeze())
        } else {
            Err(SealError::Damaged("gpg ended well but did not say that it had encrypted".to_owned()))
        }
    }

    /// Why it takes no more.
    async fn failure(&mut self) -> SealError {
        match timeout(STUCK, self.running.last_words()).await {
            Ok(end) => match end.result {
                Err(error) => error.into(),
                Ok(()) => SealError::Damaged("gpg ended before its input did".to_owned()),
            },
            Err(_) => SealError::Stuck(STUCK.as_secs()),
        }
    }
}
