//! The byte stream under a session: plain or TLS, and where COPY's rows leave it.
//!
//! The driver hands out COPY data row by row, through two channels; for tables of small rows that
//! is most of the client's processor time. Here the payload of `CopyData` messages is taken out of
//! the stream below the driver, gathered, and sent to [`super::copy_out::CopyOut`] in large pieces.
//! Everything else, the end of the COPY and its errors too, passes to the driver untouched.
//! Message formats: PostgreSQL documentation, "Message Formats".

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio_postgres::Socket;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::PollSender;

/// Bytes asked from the server at once.
const READ: usize = 64 * 1024;
/// Bytes gathered before they are handed on. A piece may end within a row, so that a row of any
/// size needs no more than this.
pub(super) const PIECE: usize = 128 * 1024;
/// `SSLRequest`: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// Part of what a COPY sends.
#[derive(Debug)]
pub struct Piece {
    /// Payload of one or more `CopyData` messages, end to end.
    pub bytes: Bytes,
    /// `CopyData` messages that end in it: one a row, and in binary one for the trailer.
    pub messages: u64,
}

/// Where the next COPY's data goes; shared by a session and its stream.
#[derive(Debug, Default)]
pub(super) struct Diversion(Mutex<Option<mpsc::Sender<Piece>>>);

impl Diversion {
    /// The data of the session's next COPY goes to the receiver, which ends with it.
    pub(super) fn open(&self) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(1);
        *self.slot() = Some(sender);
        receiver
    }

    fn take(&self) -> Option<mpsc::Sender<Piece>> {
        self.slot().take()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Piece>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens [`Wire`]s. It agrees on TLS itself, so that the driver takes every stream for a TLS one and
/// leaves its reading to us; the driver is to be told `sslmode=require` and `sslnegotiation=direct`.
pub(super) struct Connector {
    pub(super) tls: MakeRustlsConnect,
    pub(super) mode: SslMode,
    pub(super) diversion: Arc<Diversion>,
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Wire;
    type TlsConnect = Negotiation;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Negotiation, Self::Error> {
        Ok(Negotiation {
            tls: <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(&mut self.tls, domain)?,
            mode: self.mode,
            diversion: Arc::clone(&self.diversion),
        })
    }
}

/// One attempt to agree on a stream.
pub(super) struct Negotiation {
    tls: <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect,
    mode: SslMode,
    diversion: Arc<Diversion>,
}

impl TlsConnect<Socket> for Negotiation {
    type Stream = Wire;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

    fn connect(self, mut socket: Socket) -> Self::Future {
        Box::pin(async move {
            if self.mode != SslMode::Disable {
                socket.write_all(&SSL_REQUEST).await?;
                // Exactly one byte: what follows it is TLS, or nobody's.
                if socket.read_u8().await? == b'S' {
                    let tls = TlsConnect::<Socket>::connect(self.tls, socket).await?;
                    return Ok(Wire::new(Inner::Tls(Box::new(tls)), self.diversion));
                }
                if self.mode != SslMode::Prefer {
                    return Err(io::Error::other("server does not support TLS"));
                }
            }
            Ok(Wire::new(Inner::Plain(socket), self.diversion))
        })
    }
}

enum Inner {
    Plain(Socket),
    Tls(Box<Rustls>),
}

/// What the next bytes from the server are.
enum Next {
    /// The type and length of a message.
    Header,
    /// The rest of a message for the driver.
    Driver(usize),
    /// The rest of a `CopyData` message's payload.
    Payload(usize),
}

/// A COPY whose data leaves the stream.
struct Copying {
    /// Nothing once the receiver is gone: then the data is thrown away, as the driver would.
    sender: Option<PollSender<Piece>>,
    bytes: BytesMut,
    messages: u64,
}

/// A session's stream.
pub(super) struct Wire {
    inner: Inner,
    buffer: BytesMut,
    next: Next,
    diversion: Arc<Diversion>,
    copying: Option<Copying>,
}

impl Wire {
    fn new(inner: Inner, diversion: Arc<Diversion>) -> Wire {
        Wire { inner, buffer: BytesMut::new(), next: Next::Header, diversion, copying: None }
    }

    /// Deals out the buffer until it is used up or `out` is full. Pending: a piece waits for its receiver.
    fn deal(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.next {
                Next::Driver(left) => {
                    let count = (*left).min(self.buffer.len()).min(out.remaining());
                    out.put_slice(&self.buffer[..count]);
                    self.buffer.advance(count);
                    *left -= count;
                    if *left > 0 {
                        return Poll::Ready(Ok(()));
                    }
                    self.next = Next::Header;
                }
                Next::Payload(left) => {
                    let Some(copying) = &mut self.copying else { return Poll::Ready(Err(broken("CopyData outside COPY"))) };
                    if copying.bytes.len() >= PIECE {
                        ready!(copying.hand_on(cx));
                    }
                    let count = (*left).min(self.buffer.len());
                    if copying.sender.is_some() {
                        copying.bytes.extend_from_slice(&self.buffer[..count]);
                    }
                    self.buffer.advance(count);
                    *left -= count;
                    if *left > 0 {
                        return Poll::Ready(Ok(()));
                    }
                    copying.messages += 1;
                    self.next = Next::Header;
                }
                Next::Header => {
                    let Some((&kind, length)) = self.buffer.get(..5).and_then(|header| header.split_first()) else {
                        return Poll::Ready(Ok(()));
                    };
                    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
                    if length < 4 {
                        return Poll::Ready(Err(broken("a message shorter than its length field")));
                    }
                    if kind == b'd' && self.copying.is_none() {
                        self.copying = self.diversion.take().map(Copying::new);
                    }
                    if kind == b'd' && self.copying.is_some() {
                        self.buffer.advance(5);
                        self.next = Next::Payload(length - 4);
                        continue;
                    }
                    // The end of the data, good or bad: the receiver hears it before the driver does.
                    if matches!(kind, b'c' | b'E') {
                        if let Some(copying) = &mut self.copying {
                            ready!(copying.hand_on(cx));
                        }
                        self.copying = None;
                        drop(self.diversion.take());
                    }
                    self.next = Next::Driver(length + 1);
                }
            }
        }
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server broke the protocol: {what}"))
}

impl Copying {
    fn new(sender: mpsc::Sender<Piece>) -> Copying {
        Copying { sender: Some(PollSender::new(sender)), bytes: BytesMut::new(), messages: 0 }
    }

    fn hand_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sender) = &mut self.sender
            && (self.messages > 0 || !self.bytes.is_empty())
        {
            let room = ready!(sender.poll_reserve(cx));
            let piece = Piece { bytes: self.bytes.split().freeze(), messages: std::mem::take(&mut self.messages) };
            if room.and_then(|()| sender.send_item(piece)).is_err() {
                self.sender = None;
            }
            self.bytes.reserve(PIECE + READ);
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            let dealt = this.deal(cx, out)?;
            if out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            ready!(dealt);
            this.buffer.reserve(READ);
            let read = match &mut this.inner {
                Inner::Plain(inner) => tokio_util::io::poll_read_buf(Pin::new(inner), cx, &mut this.buffer),
                Inner::Tls(inner) => tokio_util::io::poll_read_buf(Pin::new(inner), cx, &mut this.buffer),
            };
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(inner) => Pin::new(inner).poll_write(cx, bytes),
            Inner::Tls(inner) => Pin::new(inner).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(inner) => Pin::new(inner).poll_flush(cx),
            Inner::Tls(inner) => Pin::new(inner).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(inner) => Pin::new(inner).poll_shutdown(cx),
            Inner::Tls(inner) => Pin::new(inner).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.inner {
            Inner::Plain(_) => ChannelBinding::none(),
            Inner::Tls(inner) => inner.channel_binding(),
        }
    }
}
