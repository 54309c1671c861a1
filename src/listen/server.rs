//! Connections, and their limits.
//!
//! Each connection is a task of its own, so that one that says nothing, or half a line, keeps nobody else waiting. A request ends with a
//! newline, with the end of the input, or when a client that has written something is silent for
//! [`SILENCE`]: then it has sent what it wanted to, without a newline. One that is still writing after [`PATIENCE`], or
//! after [`LONGEST`] bytes, is not taken for complete: half a request for a restore might be another one.
//!
//! Who has not shown the token yet is a stranger. Strangers have places of their own, and the one that waited longest gives way to a
//! new one: whoever only holds connections open keeps nobody out, neither who has the token nor a stranger that speaks at once.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::protocol::{self, Fault, INVALID, Request, UNAUTHORIZED};
use crate::ops::restore_service::{Canceled, Denied, RestoreDesk};

/// Bytes of a request.
pub const LONGEST: usize = 4096;
/// Time for a request, and for taking the answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// After so much silence, what came is the request.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Connections at the same time whose request is not read yet, or was refused.
const STRANGERS: usize = 64;
/// Requests that are answered at the same time.
const CONNECTIONS: usize = 64;
/// Between two lines of the log that tell of strangers who had to give way.
const QUIET: Duration = Duration::from_secs(60);
/// Listings at the same time: each starts programs.
const LISTINGS: usize = 4;
/// Between two looks at tasks whose jobs are missing.
const RECONCILE: Duration = Duration::from_secs(15);
/// What a client that goes on writing is listened to after its answer, so that the answer is not lost with a reset.
const REST: Duration = Duration::from_secs(2);
/// How long connections have to end when the process does.
const LAST: Duration = Duration::from_secs(10);

/// Serves until `quiet`; then the requests that came are answered.
pub async fn serve(listener: TcpListener, desk: RestoreDesk, quiet: CancellationToken) {
    let face = Arc::new(Face { desk, places: Semaphore::new(CONNECTIONS), listings: Semaphore::new(LISTINGS) });
    let mut strangers = Strangers::default();
    let tracker = TaskTracker::new();
    tracker.spawn(reconcile(face.clone(), quiet.clone()));
    loop {
        let accepted = tokio::select! {
            () = quiet.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: others may end meanwhile.
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (face, stranger) = (face.clone(), strangers.admit());
        tracker.spawn(async move { face.attend(stream, stranger).await });
    }
    tracker.close();
    let _ = timeout(LAST, tracker.wait()).await;
}

async fn reconcile(face: Arc<Face>, quiet: CancellationToken) {
    let mut told = false;
    loop {
        match face.desk.reconcile().await {
            Ok(()) => told = false,
            Err(error) if !told => {
                told = true;
                tracing::error!("tasks and jobs cannot be compared: {error:#}");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = quiet.cancelled() => return,
            () = sleep(RECONCILE) => {}
        }
    }
}

/// Those whose request is not read yet, oldest first; who is let go by its own task is no stranger any more.
#[derive(Default)]
struct Strangers {
    line: VecDeque<Weak<Notify>>,
    told: Option<Instant>,
}

impl Strangers {
    /// A place for a new one, who is told when it has to give way.
    fn admit(&mut self) -> Arc<Notify> {
        self.line.retain(|stranger| stranger.strong_count() > 0);
        if self.line.len() >= STRANGERS
            && let Some(oldest) = self.line.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.notify_one();
            if self.told.is_none_or(|told| told.elapsed() >= QUIET) {
                self.told = Some(Instant::now());
                tracing::warn!("{STRANGERS} connections are open without a request; those that wait longest give way");
            }
        }
        let stranger = Arc::new(Notify::new());
        self.line.push_back(Arc::downgrade(&stranger));
        stranger
    }
}

struct Face {
    desk: RestoreDesk,
    places: Semaphore,
    listings: Semaphore,
}

impl Face {
    async fn attend(&self, mut stream: TcpStream, stranger: Arc<Notify>) {
        let met = tokio::select! {
            met = self.meet(&mut stream) => met,
            () = stranger.notified() => {
                let way_out = "this one waited longest; send the request at once";
                let told = format!("Error: {STRANGERS} connections wait without a request, which is the limit, and {way_out}\n");
                // Whoever does not read gets no more of our time.
                let _ = stream.try_write(told.as_bytes());
                return;
            }
        };
        let Some((request, _place)) = met else { return };
        drop(stranger);
        let reply = self.reply(request).await;
        answer(&mut stream, &reply).await;
    }

    /// A request of somebody who may ask, and a place for it; whoever else there is gets the answer here.
    async fn meet(&self, stream: &mut TcpStream) -> Option<(Result<Request, Fault>, SemaphorePermit<'_>)> {
        let refusal = match receive(stream).await {
            Received::Nothing => return None,
            Received::Part => INVALID.to_owned(),
            Received::Request(line) => match (self.understand(&line), self.places.try_acquire()) {
                (Some(request), Ok(place)) => return Some((request, place)),
                (None, _) => UNAUTHORIZED.to_owned(),
                (Some(_), Err(_)) => {
                    format!("Error: {CONNECTIONS} requests are being answered, which is the limit; try again in a few seconds")
                }
            },
        };
        answer(stream, &refusal).await;
        None
    }

    /// What is asked for; nothing when the token is not the right one.
    fn understand(&self, line: &[u8]) -> Option<Result<Request, Fault>> {
        let read = protocol::read(line);
        if let Some(wanted) = &self.desk.config().token
            && !protocol::same_token(&read.token.unwrap_or_default(), wanted.expose())
        {
            tracing::warn!("a request without the right token was refused");
            return None;
        }
        Some(read.request)
    }

    async fn reply(&self, request: Result<Request, Fault>) -> String {
        match request {
            Err(fault) => fault.reply(),
            Ok(Request::Restore(wish)) => match self.desk.accept(wish).await {
                Ok(id) => format!("Task accepted with ID: {id}"),
                Err(denied) => denied_reply(&denied),
            },
            Ok(Request::Show(instance)) => {
                let Ok(_place) = self.listings.acquire().await else { return INVALID.to_owned() };
                match self.desk.show(instance.as_deref()).await {
                    Ok(catalogue) => catalogue.to_string(),
                    Err(denied) => denied_reply(&denied),
                }
            }
            Ok(Request::Status(None)) => match self.desk.status().await {
                Ok(tasks) => serde_json::to_string(&tasks).unwrap_or_else(|error| failure(&error.into())),
                Err(error) => failure(&error),
            },
            Ok(Request::Status(Some(id))) => match self.desk.task(&id).await {
                Ok(task) => task.map_or_else(|| not_found(&id), |task| task.with_steps().to_string()),
                Err(error) => failure(&error),
            },
            Ok(Request::Cancel(id)) => match self.desk.cancel(&id).await {
                Ok(Canceled::Yes) => format!("Task {id} canceled."),
                Ok(Canceled::Unknown) => not_found(&id),
                Ok(Canceled::Ended(status)) => {
                    let status = serde_json::to_value(status).unwrap_or(Value::Null);
                    format!("Task {id} is already {}.", status.as_str().unwrap_or_default())
                }
                Err(error) => failure(&error),
            },
        }
    }
}

fn not_found(id: &str) -> String {
    format!("Task {id} not found.")
}

fn denied_reply(denied: &Denied) -> String {
    match denied {
        Denied::Refused(crate::restore::config::Refusal::Unmapped(_)) => denied.to_string(),
        other => one_line(&format!("Error: {other}")),
    }
}

fn failure(error: &anyhow::Error) -> String {
    tracing::error!("a request could not be answered: {error:#}");
    one_line(&format!("Error: {error:#}"))
}

/// An answer is a line.
fn one_line(text: &str) -> String {
    crate::redact::scrub(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

enum Received {
    /// Not a word.
    Nothing,
    /// Something that had no end.
    Part,
    /// A request.
    Request(Vec<u8>),
}

async fn receive(stream: &mut TcpStream) -> Received {
    let deadline = Instant::now() + PATIENCE;
    let mut line = Vec::with_capacity(512);
    loop {
        let silence = if line.is_empty() { deadline } else { deadline.min(Instant::now() + SILENCE) };
        let begun = line.len();
        let mut limited = (&mut *stream).take((LONGEST - begun) as u64);
        let read = timeout_at(silence, limited.read_buf(&mut line)).await;
        let new = &line[begun.min(line.len())..];
        if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
            line.truncate(begun + end);
            return Received::Request(line);
        }
        match read {
            Err(_) if line.is_empty() => return Received::Nothing,
            Err(_) if Instant::now() >= deadline => return Received::Part,
            Ok(Err(_)) => return Received::Nothing,
            Ok(Ok(0)) if line.is_empty() => return Received::Nothing,
            Err(_) | Ok(Ok(0)) => return Received::Request(line),
            // Cut off, it might mean something else.
            Ok(Ok(_)) if line.len() >= LONGEST => return Received::Part,
            Ok(Ok(_)) => {}
        }
    }
}

async fn answer(stream: &mut TcpStream, reply: &str) {
    let sending = async {
        stream.write_all(format!("{reply}\n").as_bytes()).await?;
        stream.shutdown().await
    };
    if !matches!(timeout(PATIENCE, sending).await, Ok(Ok(()))) {
        return;
    }
    // Bytes that were sent and never read would turn the end into a reset, which takes the answer with it.
    let mut rest = vec![0; 64 << 10];
    let _ = timeout(REST, async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} }).await;
}
