//! An object of any size, in parts.
//!
//! Memory: [`Options::part_size`] for the part that fills up and for each of [`Options::concurrency`] that are on
//! their way.
//!
//! [`Options::part_size`]: super::super::Options::part_size
//! [`Options::concurrency`]: super::super::Options::concurrency

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::super::{Fault, StorageError, Stored, Upload, Version};
use super::client::{Server, TRIES};
use super::digest::{Digests, Growing, Told, compare_parts};
use super::write::{Condition, Settled, encryption, lock, put, settle, take_back, version};
use super::{MARK, list};

/// More parts than this no store takes.
const MOST_PARTS: i32 = 10_000;

/// A part that the store has.
#[derive(Debug)]
struct Part {
    number: i32,
    etag: String,
    digests: Digests,
}

/// An object being sent.
#[derive(Debug)]
pub(super) struct Multipart {
    server: Arc<Server>,
    key: String,
    doing: String,
    mark: String,
    /// The open upload; none before the first part is full.
    id: Option<String>,
    filling: BytesMut,
    digests: Growing,
    whole: Sha256,
    size: u64,
    sent: Arc<AtomicU64>,
    under_way: JoinSet<Result<Part, Fault>>,
    parts: Vec<Part>,
    begun: i32,
}

impl Multipart {
    pub(super) fn new(server: Arc<Server>, key: String, doing: String) -> Self {
        Multipart {
            server,
            key,
            doing,
            mark: uuid::Uuid::new_v4().simple().to_string(),
            id: None,
            filling: BytesMut::new(),
            digests: Growing::default(),
            whole: Sha256::new(),
            size: 0,
            sent: Arc::default(),
            under_way: JoinSet::new(),
            parts: Vec::new(),
            begun: 0,
        }
    }

    async fn begin(&mut self) -> Result<String, Fault> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let server = &self.server;
        let (encryption, kms_key) = encryption(&server.options);
        let (lock, until) = lock(&server.options);
        let request = || {
            let request =
                server.client.create_multipart_upload().bucket(&server.bucket).key(&self.key).metadata(MARK, &self.mark);
            let request = request.set_server_side_encryption(encryption.clone()).set_ssekms_key_id(kms_key.clone());
            let request = request.set_object_lock_mode(lock.clone()).set_object_lock_retain_until_date(until);
            request.set_checksum_algorithm(server.options.checksums.then_some(ChecksumAlgorithm::Sha256)).send()
        };
        // Sent again after a lost answer it may open two: the other one holds no part, and `tidy` ends it.
        let answer = server.call("CreateMultipartUpload", 0, request).await.map_err(|failure| server.fault(&failure))?;
        let id = answer.upload_id().ok_or_else(|| Fault::Corrupt("the server's answer tells no upload id".to_owned()))?;
        self.id = Some(id.to_owned());
        Ok(id.to_owned())
    }

    /// Sends the part that is full, once fewer than the allowed ones are under way.
    async fn launch(&mut self) -> Result<(), Fault> {
        let id = self.begin().await?;
        while self.under_way.len() >= self.server.options.concurrency {
            self.one_done().await?;
        }
        if self.begun == MOST_PARTS {
            let mebibytes = self.server.options.part_size >> 20;
            return Err(Fault::Refused(format!(
                "it has more than {MOST_PARTS} parts of {mebibytes} MiB; set S3_PART_SIZE higher"
            )));
        }
        self.begun += 1;
        let (server, key, number) = (self.server.clone(), self.key.clone(), self.begun);
        let (body, digests, sent) = (self.filling.split().freeze(), self.digests.take(), self.sent.clone());
        self.under_way.spawn(async move {
            let size = body.len() as u64;
            let part = send(&server, &key, &id, number, body, digests).await?;
            sent.fetch_add(size, Ordering::Relaxed);
            Ok(part)
        });
        Ok(())
    }

    async fn one_done(&mut self) -> Result<(), Fault> {
        match self.under_way.join_next().await {
            Some(Ok(part)) => self.parts.push(part?),
            Some(Err(error)) => return Err(Fault::Unknown(format!("sending a part was broken off: {error}"))),
            None => {}
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<Version, Fault> {
        if self.id.is_none() {
            // All of it fits in one request.
            let body = self.filling.split().freeze();
            let version = put(&self.server, &self.key, body, Condition::Absent).await?;
            self.sent.store(self.size, Ordering::Relaxed);
            return Ok(version);
        }
        if !self.filling.is_empty() {
            self.launch().await?;
        }
        while !self.under_way.is_empty() {
            self.one_done().await?;
        }
        self.parts.sort_unstable_by_key(|part| part.number);
        let version = self.put_together().await?;
        self.id = None;
        Ok(version)
    }

    async fn put_together(&self) -> Result<Version, Fault> {
        let server = &self.server;
        let completed = self.parts.iter().map(|part| {
            let sum = server.options.checksums.then(|| part.digests.sha256());
            CompletedPart::builder().part_number(part.number).e_tag(&part.etag).set_checksum_sha256(sum).build()
        });
        let completed = CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build();
        let (mut tries, mut doubtful) = (0, false);
        loop {
            tries += 1;
            let request = server.client.complete_multipart_upload().bucket(&server.bucket).key(&self.key);
            let request = request.set_upload_id(self.id.clone()).if_none_match("*").multipart_upload(completed.clone());
            // The store copies the parts before it answers: a second for each is more than they take.
            let copying = self.parts.len() << 16;
            let failure = match server.once("CompleteMultipartUpload", copying, request.send()).await {
                Ok(answer) => return self.confirm(Some(&answer)).await,
                Err(failure) => failure,
            };
            if failure.lost() && !doubtful {
                return Err(Fault::AlreadyThere);
            }
            // An upload that is gone after a lost answer was completed then.
            let gone = failure.code_is(&["NoSuchUpload"]);
            doubtful |= failure.doubtful();
            if !failure.lost() && !gone && failure.may_pass() && tries < TRIES {
                tokio::time::sleep(server.pause(tries)).await;
                continue;
            }
            if !doubtful {
                return Err(server.fault(&failure.after(tries)));
            }
            return match settle(server, &self.key, &self.mark, &failure).await? {
                Settled::Ours(_) => self.confirm(None).await,
                Settled::Unmarked(head) if compare_parts(&self.digests(), &Told::of_head(&head)).is_ok_and(|told| told) => {
                    version(head.e_tag())
                }
                Settled::Theirs(_) | Settled::Unmarked(_) => Err(Fault::AlreadyThere),
                Settled::Absent => Err(match server.fault(&failure.after(tries)) {
                    Fault::Refused(text) => Fault::Unreachable(text),
                    fault => fault,
                }),
            };
        }
    }

    fn digests(&self) -> Vec<Digests> {
        self.parts.iter().map(|part| part.digests.clone()).collect()
    }

    /// Compares what the store has with what was sent.
    async fn confirm(&self, answer: Option<&CompleteMultipartUploadOutput>) -> Result<Version, Fault> {
        let mut told = false;
        if let Some(answer) = answer {
            let answered =
                Told { etag: answer.e_tag(), sha256: answer.checksum_sha256(), encryption: answer.server_side_encryption() };
            told = match compare_parts(&self.digests(), &answered) {
                Ok(told) => told,
                Err(fault) => return Err(take_back(&self.server, &self.key, &self.mark, &Condition::Absent, fault).await),
            };
        }
        match (self.server.head(&self.key).await, answer) {
            (Ok(Some(head)), _) => {
                let size = head.content_length().and_then(|size| u64::try_from(size).ok());
                let checked = match size {
                    Some(size) if size == self.size => compare_parts(&self.digests(), &Told::of_head(&head)).map(|_| ()),
                    _ => Err(Fault::Corrupt(format!("{} bytes were sent, the store has {}", self.size, size.unwrap_or(0)))),
                };
                match checked {
                    Ok(()) => version(head.e_tag()),
                    Err(fault) => Err(take_back(&self.server, &self.key, &self.mark, &Condition::Absent, fault).await),
                }
            }
            (Ok(None), _) => Err(Fault::Corrupt("the store said that it has it, but shows nothing".to_owned())),
            // Who may write need not be allowed to read: then the checksum of all parts is proof enough.
            (Err(Fault::Refused(_)), Some(answer)) if told => version(answer.e_tag()),
            (Err(fault), _) => Err(fault),
        }
    }

    async fn end(&mut self) -> Result<(), Fault> {
        self.under_way.shutdown().await;
        match self.id.take() {
            Some(id) => list::abort(&self.server, &self.key, &id).await.map(|_| ()),
            None => Ok(()),
        }
    }

    fn failed(&self, fault: Fault) -> StorageError {
        StorageError { doing: self.doing.clone(), fault }
    }
}

/// Sends one part until the store has it.
async fn send(server: &Server, key: &str, id: &str, number: i32, body: Bytes, digests: Digests) -> Result<Part, Fault> {
    let mut tries = 0;
    loop {
        tries += 1;
        let request = || {
            let request = server.client.upload_part().bucket(&server.bucket).key(key).upload_id(id).part_number(number);
            let request = if server.options.checksums {
                request.checksum_sha256(digests.sha256())
            } else {
                request.content_md5(digests.md5())
            };
            request.body(ByteStream::from(body.clone())).send()
        };
        let answer = server.call("UploadPart", body.len(), request).await.map_err(|failure| server.fault(&failure))?;
        let told = Told { etag: answer.e_tag(), sha256: answer.checksum_sha256(), encryption: answer.server_side_encryption() };
        match digests.compare(&told) {
            Ok(()) => {
                let etag = version(answer.e_tag())?.0;
                return Ok(Part { number, etag, digests });
            }
            // A part that is sent again replaces the one before.
            Err(_) if tries < TRIES => tokio::time::sleep(server.pause(tries)).await,
            Err(fault) => return Err(fault),
        }
    }
}

#[async_trait]
impl Upload for Multipart {
    async fn write(&mut self, mut piece: Bytes) -> Result<(), StorageError> {
        self.size += piece.len() as u64;
        self.whole.update(&piece);
        while !piece.is_empty() {
            let part_size = self.server.options.part_size;
            if self.filling.len() == part_size {
                // Only now, when there is more: what fits in one part needs no parts.
                self.launch().await.map_err(|fault| self.failed(fault))?;
            }
            if self.filling.capacity() == 0 {
                // The first part may stay the only one, and small.
                self.filling.reserve(if self.id.is_some() { part_size } else { 64 << 10 });
            }
            let next = piece.split_to(piece.len().min(part_size - self.filling.len()).min(64 << 10));
            self.server.throttle.pass(next.len()).await;
            self.digests.add(&next);
            self.filling.extend_from_slice(&next);
        }
        Ok(())
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored, StorageError> {
        match self.complete().await {
            Ok(version) => {
                let sha256 = std::mem::take(&mut self.whole).finalize().into();
                Ok(Stored { size: self.size, sha256, version })
            }
            Err(fault) => {
                // What is told is why it failed; that the parts could not be removed either is `tidy`'s business.
                let _ = self.end().await;
                Err(self.failed(fault))
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StorageError> {
        self.end().await.map_err(|fault| self.failed(fault))
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let (server, key) = (self.server.clone(), self.key.clone());
        let mut under_way = std::mem::take(&mut self.under_way);
        runtime.spawn(async move {
            under_way.shutdown().await;
            let _ = list::abort(&server, &key, &id).await;
        });
    }
}
