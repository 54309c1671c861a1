//! `COPY … TO STDOUT` in large pieces.

use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use tokio::sync::mpsc;
use tokio_postgres::CopyOutStream;

use super::Connection;
use super::wire::{PIECE, Piece};

/// A running `COPY … TO STDOUT`. Dropped early, the rest of it is read and thrown away before the
/// session does anything else.
pub struct CopyOut<'c> {
    pieces: mpsc::Receiver<Piece>,
    end: Pin<Box<CopyOutStream>>,
    /// Another COPY must not begin while this one takes the data out.
    session: &'c mut Connection,
}

impl Connection {
    /// Begins `statement`, a `COPY … TO STDOUT`. The server is read only as fast as the pieces are taken.
    ///
    /// # Errors
    /// The server's.
    pub async fn copy_out_in_pieces(&mut self, statement: &str) -> Result<CopyOut<'_>, tokio_postgres::Error> {
        let pieces = match &self.diversion {
            Some(diversion) => Arc::clone(diversion).open(),
            // Closed from the start.
            None => mpsc::channel(1).1,
        };
        let end = Box::pin(self.copy_out(statement).await?);
        Ok(CopyOut { pieces, end, session: self })
    }
}

impl CopyOut<'_> {
    /// The next piece; nothing after the last one, when the server has said that it was the last.
    ///
    /// # Errors
    /// The server's, or that it is gone: what came before is not the whole then.
    pub async fn next(&mut self) -> Result<Option<Piece>, tokio_postgres::Error> {
        let piece = self.take().await?;
        if let (Some(piece), Some(throttle)) = (&piece, &self.session.throttle) {
            throttle.pass(piece.bytes.len()).await;
        }
        Ok(piece)
    }

    async fn take(&mut self) -> Result<Option<Piece>, tokio_postgres::Error> {
        if let Some(piece) = self.pieces.recv().await {
            return Ok(Some(piece));
        }
        let (mut bytes, mut messages) = (BytesMut::new(), 0);
        while bytes.len() < PIECE
            && let Some(row) = self.end.as_mut().try_next().await?
        {
            bytes.extend_from_slice(&row);
            messages += 1;
        }
        Ok((messages > 0).then(|| Piece { bytes: bytes.freeze(), messages }))
    }
}
