//! Decrypting through a running `gpg`.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use super::super::{SealError, Stream};
use super::{Keyring, STATUS, STUCK, program};
use crate::process::{ProcessError, Running};

/// What moves at once.
const PIECE: usize = 64 << 10;

/// Starts `gpg --decrypt` and returns its output, whose end is an error unless gpg vouches for all of it.
pub(super) fn open(keyring: &Keyring, sealed: Stream) -> Result<Stream, SealError> {
    let mut program = program(keyring.home.as_deref());
    if let Some(file) = &keyring.passphrase_file {
        program = program.args(["--pinentry-mode", "loopback", "--passphrase-file"]).args([file]);
    }
    let running = program.args(["--decrypt"]).start(true, Some(STATUS))?;
    let (give, take) = mpsc::channel::<io::Result<Bytes>>(1);
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = run(running, sealed, &give).await {
            // Nobody may be listening any more.
            let _ = give.send(Err(error.into())).await;
        }
    }));
    let pieces =
        stream::unfold((take, task), |(mut take, task)| async move { take.recv().await.map(|piece| (piece, (take, task))) });
    Ok(Box::new(StreamReader::new(Box::pin(pieces))))
}

enum Moved {
    Fed(Option<usize>),
    Read(usize),
}

/// Moves bytes both ways until gpg's output ends, then judges.
async fn run(mut running: Running, mut sealed: Stream, give: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), SealError> {
    let mut input = BytesMut::with_capacity(PIECE);
    let mut stdin = running.stdin.take();
    loop {
        let mut out = BytesMut::with_capacity(PIECE);
        let feed = async {
            let Some(to) = &mut stdin else { return std::future::pending().await };
            if input.is_empty() && sealed.read_buf(&mut input).await.map_err(SealError::Source)? == 0 {
                return Ok(None);
            }
            // gpg may end early: what it thinks of the input is told by its status, below.
            Ok(to.write(&input).await.ok())
        };
        let moved = timeout(STUCK, async {
            tokio::select! {
                fed = feed => fed.map(Moved::Fed),
                read = running.stdout.read_buf(&mut out) => read.map(Moved::Read).map_err(SealError::Source),
            }
        });
        match moved.await.map_err(|_| SealError::Stuck(STUCK.as_secs()))?? {
            Moved::Fed(Some(count)) => drop(input.split_to(count)),
            Moved::Fed(None) => drop(stdin.take()),
            Moved::Read(0) => break,
            Moved::Read(_) => {
                if give.send(Ok(out.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    drop(stdin);
    let end = timeout(STUCK, running.end()).await.map_err(|_| SealError::Stuck(STUCK.as_secs()))?;
    judge(end.result, &end.marked)
}

/// Whether gpg vouches for what it gave: it decrypted, and the whole stream was what its writer made of it.
fn judge(result: Result<(), ProcessError>, status: &[String]) -> Result<(), SealError> {
    let said = |word: &str| status.iter().any(|line| line.split(' ').next() == Some(word));
    let words = match &result {
        Err(error) => error.to_string(),
        Ok(()) => "gpg does not vouch for it".to_owned(),
    };
    if said("NO_SECKEY") && !said("DECRYPTION_OKAY") {
        return Err(SealError::WrongKey(words));
    }
    if ["DECRYPTION_FAILED", "BADMDC", "NODATA", "BADARMOR", "UNEXPECTED"].into_iter().any(said) {
        return Err(SealError::Damaged(words));
    }
    match result {
        Err(error @ ProcessError::Failed { .. }) if said("BEGIN_DECRYPTION") => Err(SealError::Damaged(error.to_string())),
        Err(error) => Err(error.into()),
        Ok(()) if said("DECRYPTION_OKAY") && said("GOODMDC") => Ok(()),
        Ok(()) => Err(SealError::Damaged(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_that_gpg_vouches_for_is_whole() {
        let lines = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
        assert!(judge(Ok(()), &lines("BEGIN_DECRYPTION|DECRYPTION_OKAY|GOODMDC|END_DECRYPTION")).is_ok());
        for text in ["", "PLAINTEXT 62 0", "DECRYPTION_OKAY", "BEGIN_DECRYPTION|END_DECRYPTION", "DECRYPTION_OKAY|GOODMDC|BADMDC"]
        {
            assert!(judge(Ok(()), &lines(text)).is_err(), "{text}");
        }
        assert!(matches!(judge(Ok(()), &lines("NO_SECKEY 0|DECRYPTION_FAILED")), Err(SealError::WrongKey(_))));
    }
}
