//! A bucket of an S3-compatible server as a store.
//!
//! Of the preconditions only `PUT` with `If-None-Match: *` and with `If-Match` are used, because only those are
//! honoured everywhere; 412 and 409 mean that somebody else was first, with `If-Match` 404 as well.
//!
//! A request is tried five times. One that writes may have taken effect although its answer was lost, and
//! then finds its own object in the way: so each write carries a mark of its own (`x-amz-meta-bullwork-write`),
//! and a lost or doubtful outcome is settled by looking whose mark the object carries.
//!
//! ```text
//! create, replace   PUT with a precondition
//! upload            up to one part: the same. More: CreateMultipartUpload, UploadPart several at a time,
//!                   CompleteMultipartUpload with If-None-Match: *, HEAD
//! open              GET, continued with Range and If-Match where the connection was cut
//! ```
//!
//! What arrived is what was sent: each request's signature covers its body's SHA-256; the MD5 that most servers
//! return as `ETag` is compared, with `S3_CHECKSUM=always` the SHA-256 that the store keeps instead.
//!
//! In a versioned bucket removing hides an object; its bytes go by the bucket's lifecycle rule. An object lock
//! that has not run out is told as [`Removal::Kept`].

mod answer;
mod client;
mod digest;
mod list;
mod read;
mod upload;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ObjectLockLegalHoldStatus;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Entry, Fault, Meta, Opened, Options, Removal, StorageError, Store, Tidied, Upload, Version, key};
use client::Server;

/// The metadata that tells one write from another.
const MARK: &str = "bullwork-write";

/// A bucket as a store.
#[derive(Debug)]
pub struct Bucket {
    server: Arc<Server>,
}

impl Bucket {
    /// A store of the objects of `bucket` whose keys begin with `prefix`, which is empty or ends with a slash.
    ///
    /// # Errors
    /// When keys are missing or TLS cannot be set up.
    pub fn new(bucket: String, prefix: String, options: &Options) -> Result<Self, StorageError> {
        let shown = format!("s3://{bucket}/{prefix}");
        match Server::new(bucket, prefix, options.clone()) {
            Ok(server) => Ok(Bucket { server: Arc::new(server) }),
            Err(reason) => Err(StorageError { doing: format!("opening {shown}"), fault: Fault::Refused(reason) }),
        }
    }

    fn checked(&self, doing: &str, key: &str) -> Result<String, StorageError> {
        key::check(key).map_err(|problem| self.failed(doing, key)(Fault::Key(problem)))?;
        Ok(self.server.full(key))
    }

    fn failed(&self, doing: &str, key: &str) -> impl Fn(Fault) -> StorageError + use<> {
        let doing = format!("{doing} `{}` in {}", key.escape_default(), self.server.shown);
        move |fault| StorageError { doing: doing.clone(), fault }
    }
}

#[async_trait]
impl Store for Bucket {
    fn shown(&self) -> &str {
        &self.server.shown
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Version, StorageError> {
        let full = self.checked("creating", key)?;
        write::put(&self.server, &full, body, write::Condition::Absent).await.map_err(self.failed("creating", key))
    }

    async fn replace(&self, key: &str, body: Bytes, known: &Version) -> Result<Version, StorageError> {
        let full = self.checked("replacing", key)?;
        let condition = write::Condition::Still(known.clone());
        write::put(&self.server, &full, body, condition).await.map_err(self.failed("replacing", key))
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StorageError> {
        let full = self.checked("creating", key)?;
        let failed = self.failed("creating", key);
        // Not after hours of sending; that it is still absent then is decided by the store.
        match self.server.head(&full).await {
            Ok(Some(_)) => return Err(failed(Fault::AlreadyThere)),
            // Who may write need not be allowed to read.
            Ok(None) | Err(Fault::Refused(_)) => {}
            Err(fault) => return Err(failed(fault)),
        }
        Ok(Box::new(upload::Multipart::new(self.server.clone(), full, failed(Fault::Missing).doing)))
    }

    async fn open(&self, key: &str, from: u64) -> Result<Opened, StorageError> {
        let full = self.checked("reading", key)?;
        let doing = format!("reading `{key}` from {}", self.server.shown);
        read::open(self.server.clone(), full, from, doing).await
    }

    async fn look(&self, key: &str) -> Result<Option<Meta>, StorageError> {
        let full = self.checked("looking at", key)?;
        let failed = self.failed("looking at", key);
        let Some(head) = self.server.head(&full).await.map_err(&failed)? else { return Ok(None) };
        meta(&head).map(Some).map_err(failed)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let failed = self.failed("listing", prefix);
        key::check_prefix(prefix).map_err(|problem| failed(Fault::Key(problem)))?;
        list::objects(&self.server, prefix).await.map_err(failed)
    }

    async fn remove(&self, key: &str) -> Result<Removal, StorageError> {
        let full = self.checked("removing", key)?;
        let failed = self.failed("removing", key);
        let head = match self.server.head(&full).await {
            Ok(None) => return Ok(Removal::Removed),
            Ok(Some(head)) => Some(head),
            // Who may remove need not be allowed to read.
            Err(Fault::Refused(_)) => None,
            Err(fault) => return Err(failed(fault)),
        };
        if let Some(reason) = head.as_ref().and_then(lock) {
            return Ok(Removal::Kept(reason));
        }
        write::remove(&self.server, &full).await.map_err(failed)
    }

    async fn tidy(&self, prefix: &str, older_than: Duration) -> Result<Tidied, StorageError> {
        let failed = self.failed("tidying", prefix);
        key::check_prefix(prefix).map_err(|problem| failed(Fault::Key(problem)))?;
        list::tidy(&self.server, prefix, older_than).await.map_err(failed)
    }
}

/// Why an object cannot be removed yet.
fn lock(head: &HeadObjectOutput) -> Option<String> {
    if head.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On) {
        return Some("object lock: a legal hold is on".to_owned());
    }
    let until = time(head.object_lock_retain_until_date()?)?;
    let mode = head.object_lock_mode().map_or("", |mode| mode.as_str());
    (until > Utc::now()).then(|| format!("object lock {mode} until {}", until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)))
}

fn meta(head: &HeadObjectOutput) -> Result<Meta, Fault> {
    described(head.content_length(), head.e_tag(), head.last_modified())
}

/// What the store must tell of an object.
fn described(size: Option<i64>, etag: Option<&str>, modified: Option<&aws_sdk_s3::primitives::DateTime>) -> Result<Meta, Fault> {
    let told = |what: &str| Fault::Corrupt(format!("the server's answer tells no {what}"));
    Ok(Meta {
        size: size.and_then(|size| u64::try_from(size).ok()).ok_or_else(|| told("size"))?,
        version: Version(etag.filter(|etag| !etag.is_empty()).ok_or_else(|| told("ETag"))?.to_owned()),
        modified: modified.and_then(time).ok_or_else(|| told("time"))?,
    })
}

fn time(at: &aws_sdk_s3::primitives::DateTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(at.secs(), at.subsec_nanos())
}
