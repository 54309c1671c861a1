//! A proxy before a PostgreSQL server that cuts all sessions at the n-th statement, as the end of the client's process or of the network
//! would, and then serves again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The server never hears of the statement.
    Before,
    /// The server does it, and its answer is lost.
    After,
}

/// Statements still to be let through; none: no cut is wanted.
type Blade = Arc<Mutex<Option<(usize, Edge)>>>;

pub struct Guillotine {
    pub port: u16,
    blade: Blade,
    /// Counts the cuts; sessions of before a cut end.
    cuts: Arc<watch::Sender<u64>>,
    task: tokio::task::JoinHandle<()>,
}

impl Guillotine {
    /// Listens on a free port and passes everything on to `port`.
    pub async fn start(port: u16) -> Guillotine {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let (blade, cuts) = (Blade::default(), Arc::new(watch::channel(0).0));
        let (hanging, counter) = (blade.clone(), cuts.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let session = Session { blade: hanging.clone(), cuts: counter.clone() };
                tokio::spawn(session.serve(client, SocketAddr::from(([127, 0, 0, 1], port))));
            }
        });
        Guillotine { port: own, blade, cuts, task }
    }

    /// From now on `statements` are let through, over all sessions; the next one is cut.
    pub fn arm(&self, statements: usize, edge: Edge) {
        *self.blade.lock().expect("nobody panics with it") = Some((statements, edge));
    }

    /// Statements that are still let through; nothing after the cut.
    pub fn left(&self) -> Option<usize> {
        self.blade.lock().expect("nobody panics with it").map(|(left, _)| left)
    }

    /// No cut from now on.
    pub fn disarm(&self) {
        *self.blade.lock().expect("nobody panics with it") = None;
    }

    /// Cuts since the start.
    pub fn cuts(&self) -> u64 {
        *self.cuts.borrow()
    }
}

impl Drop for Guillotine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Session {
    blade: Blade,
    cuts: Arc<watch::Sender<u64>>,
}

impl Session {
    async fn serve(self, mut client: TcpStream, upstream: SocketAddr) {
        let mut cut = self.cuts.subscribe();
        cut.mark_unchanged();
        let Ok(mut server) = TcpStream::connect(upstream).await else { return };
        let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
        let mut messages = Messages::default();
        loop {
            tokio::select! {
                biased;
                _ = cut.changed() => return,
                read = client.read(&mut up) => {
                    let Ok(count @ 1..) = read else { return };
                    let Some((at, edge)) = self.cut_in(&mut messages, &up[..count]) else {
                        if server.write_all(&up[..count]).await.is_err() { return }
                        continue;
                    };
                    let end = if edge == Edge::Before { at.start } else { at.end };
                    let _ = server.write_all(&up[..end]).await;
                    if edge == Edge::After {
                        // Everything is done when the server answers; the answer is dropped.
                        let _ = server.read(&mut down).await;
                    }
                    self.cuts.send_modify(|cuts| *cuts += 1);
                    return;
                }
                read = server.read(&mut down) => {
                    let Ok(count @ 1..) = read else { return };
                    if client.write_all(&down[..count]).await.is_err() { return }
                }
            }
        }
    }

    /// Where in the bytes the statement stands that is cut.
    fn cut_in(&self, messages: &mut Messages, bytes: &[u8]) -> Option<(std::ops::Range<usize>, Edge)> {
        let mut blade = self.blade.lock().expect("nobody panics with it");
        for statement in messages.statements(bytes) {
            match &mut *blade {
                Some((0, edge)) => {
                    let edge = *edge;
                    *blade = None;
                    return Some((statement, edge));
                }
                Some((left, _)) => *left -= 1,
                None => {}
            }
        }
        None
    }
}

/// Finds the ends of messages in a stream that comes in pieces.
#[derive(Default)]
struct Messages {
    begun: bool,
    head: Vec<u8>,
    /// Bytes of the current message that are still to come.
    left: usize,
    kind: u8,
}

impl Messages {
    /// The statements that end in these bytes: a simple query, or what is executed. With its Sync, which makes the server do it,
    /// an extended one ends.
    fn statements(&mut self, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
        let mut found = Vec::new();
        let (mut at, mut start, mut executes) = (0, 0, false);
        while at < bytes.len() {
            if self.left > 0 {
                let step = self.left.min(bytes.len() - at);
                self.left -= step;
                at += step;
            } else {
                if self.head.is_empty() && !executes {
                    start = at;
                }
                self.head.push(bytes[at]);
                at += 1;
                let length = if self.begun { 1..5 } else { 0..4 };
                if self.head.len() < length.end {
                    continue;
                }
                let size = u32::from_be_bytes(self.head[length].try_into().expect("four bytes")) as usize;
                self.kind = if self.begun { self.head[0] } else { 0 };
                self.left = size.saturating_sub(4);
                self.head.clear();
            }
            if self.left == 0 && self.head.is_empty() {
                match self.kind {
                    b'Q' => found.push(start..at),
                    b'E' => executes = true,
                    b'S' if executes => {
                        found.push(start..at);
                        executes = false;
                    }
                    _ => {}
                }
                // The start-up packet is the only message without a kind, where no encryption is asked for.
                self.begun = true;
            }
        }
        found
    }
}
