//! A TCP proxy that misbehaves when told to, and can remember what passed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does with everything it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Forward,
    /// Passes it on, each piece after this time.
    Slow(Duration),
    /// Closes every connection, new ones at once.
    Cut,
    /// Keeps connections open and passes nothing on: neither side hears of it. Those that were open
    /// then never come back.
    BlackHole,
}

/// What clients sent, one piece a connection.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    heard: Option<Heard>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `port`.
    pub async fn start(port: u16) -> Proxy {
        Proxy::launch(port, None).await
    }

    /// The same, and remembers every byte that clients send.
    pub async fn start_recording(port: u16) -> Proxy {
        Proxy::launch(port, Some(Heard::default())).await
    }

    async fn launch(port: u16, heard: Option<Heard>) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let (mode, modes) = watch::channel(Mode::Forward);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let ears = heard.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(client, SocketAddr::from(([127, 0, 0, 1], port)), modes.clone(), ears.clone()));
            }
        });
        Proxy { port: own, mode, accepted, heard, task }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes all connections; new ones are served.
    pub async fn cut_once(&self) {
        self.set(Mode::Cut);
        // Each connection looks at the mode by itself.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.set(Mode::Forward);
    }

    /// What clients sent so far, connection by connection.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.as_ref().map(|h| h.lock().expect("nobody panics with it").clone()).unwrap_or_default()
    }

    /// Connections since the start.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, mut modes: watch::Receiver<Mode>, heard: Option<Heard>) {
    if *modes.borrow() == Mode::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let place = heard.as_ref().map_or(0, |h| {
        let mut pieces = h.lock().expect("nobody panics with it");
        pieces.push(Vec::new());
        pieces.len() - 1
    });
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut dead = false;
    loop {
        match *modes.borrow_and_update() {
            Mode::Cut => return,
            Mode::BlackHole => dead = true,
            _ => {}
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                if let Some(heard) = &heard {
                    heard.lock().expect("nobody panics with it")[place].extend_from_slice(&up[..count]);
                }
                if !dead && pass(&mut server, &up[..count], &modes).await.is_err() { return }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if !dead && pass(&mut client, &down[..count], &modes).await.is_err() { return }
            }
        }
    }
}

async fn pass(to: &mut TcpStream, bytes: &[u8], modes: &watch::Receiver<Mode>) -> std::io::Result<()> {
    let mode = *modes.borrow();
    if let Mode::Slow(delay) = mode {
        tokio::time::sleep(delay).await;
    }
    to.write_all(bytes).await
}
