//! Reading an object to its end, over as many connections as that takes.

use std::io;
use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures_util::stream;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use super::super::whole::Whole;
use super::super::{Fault, Meta, Opened, StorageError};
use super::answer::Failure;
use super::client::{Server, TRIES};
use super::{described, meta};

/// Pieces that wait for the reader; each is what the connection gave at once, some tens of kilobytes.
const AHEAD: usize = 4;

pub(super) async fn open(server: Arc<Server>, key: String, from: u64, doing: String) -> Result<Opened, StorageError> {
    let failed = |fault| StorageError { doing: doing.clone(), fault };
    let answer = match get(&server, &key, from, None).await {
        Ok(answer) => answer,
        // Nothing is left to read, or nothing was there.
        Err(failure) if failure.status == Some(416) => {
            let head = server.head(&key).await.map_err(failed)?.ok_or_else(|| failed(Fault::Missing))?;
            let meta = meta(&head).map_err(failed)?;
            if from != meta.size {
                return Err(failed(Fault::Refused(format!("it has {} bytes only", meta.size))));
            }
            return Ok(Opened { meta, body: Box::new(tokio::io::empty()) });
        }
        Err(failure) => return Err(failed(fault(&server, &failure))),
    };
    let meta = whole(&answer, from).map_err(failed)?;
    let left = meta.size - from;
    let (give, take) = mpsc::channel::<io::Result<Bytes>>(AHEAD);
    let pump = Pump { server, key, doing: doing.clone(), meta: meta.clone(), at: from };
    let task = AbortOnDropHandle::new(tokio::spawn(pump.run(answer.body, give)));
    let pieces =
        stream::unfold((take, task), |(mut take, task)| async move { take.recv().await.map(|piece| (piece, (take, task))) });
    let body: Box<dyn AsyncRead + Send + Unpin> = Box::new(StreamReader::new(Box::pin(pieces)));
    Ok(Opened { meta, body: Box::new(Whole::new(body, left, doing)) })
}

async fn get(server: &Server, key: &str, from: u64, known: Option<&Meta>) -> Result<GetObjectOutput, Failure> {
    let request = || {
        let request = server.client.get_object().bucket(&server.bucket).key(key);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        request.set_range(range).set_if_match(known.map(|meta| meta.version.0.clone())).send()
    };
    server.call("GetObject", 0, request).await
}

fn fault(server: &Server, failure: &Failure) -> Fault {
    match failure.status {
        Some(404) if !failure.code_is(&["NoSuchBucket"]) => Fault::Missing,
        Some(412) => Fault::Changed,
        _ => server.fault(failure),
    }
}

/// The object that an answer with its part from `from` on describes.
fn whole(answer: &GetObjectOutput, from: u64) -> Result<Meta, Fault> {
    let mut meta = described(answer.content_length(), answer.e_tag(), answer.last_modified())?;
    if from == 0 {
        return Ok(meta);
    }
    // `bytes 5-9/10`; a server that ignores the range would begin at the wrong byte.
    let range = answer.content_range().and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
    let parsed = range.and_then(|(span, size)| Some((span.split_once('-')?.0.parse::<u64>().ok()?, size.parse::<u64>().ok()?)));
    match parsed {
        Some((first, size)) if first == from && size == from + meta.size => {
            meta.size = size;
            Ok(meta)
        }
        _ => Err(Fault::Corrupt("the server did not answer with the part that was asked for".to_owned())),
    }
}

/// Moves an object's bytes to its reader.
struct Pump {
    server: Arc<Server>,
    key: String,
    doing: String,
    meta: Meta,
    at: u64,
}

impl Pump {
    async fn run(mut self, mut body: ByteStream, give: mpsc::Sender<io::Result<Bytes>>) {
        let mut failures = 0;
        loop {
            let reason = match tokio::time::timeout(self.server.options.timeout, body.next()).await {
                Ok(Some(Ok(piece))) => {
                    failures = 0;
                    self.at += piece.len() as u64;
                    // The reader went away: nothing is left to do.
                    if give.send(Ok(piece)).await.is_err() {
                        return;
                    }
                    continue;
                }
                Ok(None) if self.at >= self.meta.size => return,
                Ok(None) => "the connection was closed early".to_owned(),
                Ok(Some(Err(error))) => error.to_string(),
                Err(_) => format!("nothing came for {} s", self.server.options.timeout.as_secs()),
            };
            failures += 1;
            let fault = if failures > TRIES {
                Fault::Unreachable(format!("{reason}, {failures} times, after {} of {} bytes", self.at, self.meta.size))
            } else {
                tracing::debug!(key = %self.key, at = self.at, "{reason}; reading on");
                tokio::time::sleep(self.server.pause(failures)).await;
                match self.go_on().await {
                    Ok(next) => {
                        body = next;
                        continue;
                    }
                    Err(fault) => fault,
                }
            };
            let _ = give.send(Err(StorageError { doing: self.doing, fault }.into())).await;
            return;
        }
    }

    /// The rest of the same version.
    async fn go_on(&self) -> Result<ByteStream, Fault> {
        if self.at == self.meta.size {
            return Ok(ByteStream::from_static(b""));
        }
        let answer =
            get(&self.server, &self.key, self.at, Some(&self.meta)).await.map_err(|failure| fault(&self.server, &failure))?;
        let found = whole(&answer, self.at)?;
        // A store may ignore the precondition.
        if (&found.version, found.size) != (&self.meta.version, self.meta.size) {
            return Err(Fault::Changed);
        }
        Ok(answer.body)
    }
}
