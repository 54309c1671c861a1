//! A reader that knows how much is to come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Fault, StorageError};

/// Passes on exactly the bytes that were told: an end before that is an error, and never a shorter object.
#[derive(Debug)]
pub(super) struct Whole<R> {
    inner: R,
    left: u64,
    doing: String,
}

impl<R> Whole<R> {
    pub(super) fn new(inner: R, left: u64, doing: String) -> Self {
        Whole { inner, left, doing }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Whole<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        let corrupt = match self.left.checked_sub(read) {
            Some(left) if read > 0 => {
                self.left = left;
                return Poll::Ready(Ok(()));
            }
            Some(_) => format!("it ends {} bytes too early", self.left),
            None => "it has more bytes than the store said".to_owned(),
        };
        buf.set_filled(before);
        Poll::Ready(Err(StorageError { doing: self.doing.clone(), fault: Fault::Corrupt(corrupt) }.into()))
    }
}
