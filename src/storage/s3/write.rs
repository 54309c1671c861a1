//! Writing small objects, and finding out what became of a write whose answer was lost.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption};
use bytes::Bytes;

use super::super::settings::Encryption;
use super::super::{Fault, Options, Removal, Version};
use super::MARK;
use super::answer::Failure;
use super::client::{Server, TRIES};
use super::digest::{Digests, Told};

/// What has to be so for a write to take effect.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    /// There is no such object.
    Absent,
    /// It is this version.
    Still(Version),
}

impl Condition {
    fn lost(&self) -> Fault {
        match self {
            Condition::Absent => Fault::AlreadyThere,
            Condition::Still(_) => Fault::Changed,
        }
    }
}

/// The encryption that a new object is to have: kind and key.
pub(super) fn encryption(options: &Options) -> (Option<ServerSideEncryption>, Option<String>) {
    match &options.encryption {
        None => (None, None),
        Some(Encryption::Aes256) => (Some(ServerSideEncryption::Aes256), None),
        Some(Encryption::Kms(key)) => (Some(ServerSideEncryption::AwsKms), key.clone()),
    }
}

/// The lock that a new object is to have: kind and end.
pub(super) fn lock(options: &Options) -> (Option<ObjectLockMode>, Option<DateTime>) {
    let Some(lock) = options.lock else { return (None, None) };
    let mode = if lock.compliance { ObjectLockMode::Compliance } else { ObjectLockMode::Governance };
    let until = chrono::Utc::now() + chrono::Duration::days(i64::from(lock.days));
    (Some(mode), Some(DateTime::from_secs(until.timestamp())))
}

/// Writes a small object under a condition.
pub(super) async fn put(server: &Server, key: &str, body: Bytes, condition: Condition) -> Result<Version, Fault> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let digests = Digests::of(&body);
    let (encryption, kms_key) = encryption(&server.options);
    let (lock, until) = lock(&server.options);
    let (mut tries, mut doubtful) = (0, false);
    loop {
        tries += 1;
        server.throttle.pass(body.len()).await;
        let request = server.client.put_object().bucket(&server.bucket).key(key).metadata(MARK, &mark);
        let request = request.set_server_side_encryption(encryption.clone()).set_ssekms_key_id(kms_key.clone());
        let request = request.set_object_lock_mode(lock.clone()).set_object_lock_retain_until_date(until);
        let request = match &condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Still(version) => request.if_match(&version.0),
        };
        let request =
            if server.options.checksums { request.checksum_sha256(digests.sha256()) } else { request.content_md5(digests.md5()) };
        let failure = match server.once("PutObject", body.len(), request.body(ByteStream::from(body.clone())).send()).await {
            Ok(answer) => {
                let told =
                    Told { etag: answer.e_tag(), sha256: answer.checksum_sha256(), encryption: answer.server_side_encryption() };
                if let Err(fault) = digests.compare(&told) {
                    return Err(take_back(server, key, &mark, &condition, fault).await);
                }
                return version(answer.e_tag());
            }
            Err(failure) => failure,
        };
        let lost = failure.lost()
            || (failure.status == Some(404) && !failure.code_is(&["NoSuchBucket"]) && matches!(condition, Condition::Still(_)));
        if lost && !doubtful {
            return Err(condition.lost());
        }
        doubtful |= failure.doubtful();
        if !lost && failure.may_pass() && tries < TRIES {
            tokio::time::sleep(server.pause(tries)).await;
            continue;
        }
        if !doubtful {
            return Err(server.fault(&failure.after(tries)));
        }
        return match settle(server, key, &mark, &failure).await? {
            Settled::Ours(head) => {
                digests.compare(&Told::of_head(&head))?;
                version(head.e_tag())
            }
            // A store that keeps no metadata: the same content under the same name is the same write.
            Settled::Unmarked(head) if digests.surely(&Told::of_head(&head)) => version(head.e_tag()),
            Settled::Unmarked(head) | Settled::Theirs(head) => Err(match &condition {
                Condition::Still(known) if !lost && head.e_tag() == Some(&known.0) => server.fault(&failure.after(tries)),
                condition => condition.lost(),
            }),
            Settled::Absent => Err(match &condition {
                Condition::Absent => server.fault(&failure.after(tries)),
                Condition::Still(_) => Fault::Changed,
            }),
        };
    }
}

/// The version in an answer to a write.
pub(super) fn version(etag: Option<&str>) -> Result<Version, Fault> {
    match etag {
        Some(etag) if !etag.is_empty() => Ok(Version(etag.to_owned())),
        _ => Err(Fault::Corrupt("the server's answer tells no ETag".to_owned())),
    }
}

/// Whose object is there.
#[derive(Debug)]
pub(super) enum Settled {
    /// The one that carries our mark.
    Ours(Box<HeadObjectOutput>),
    /// One with another mark.
    Theirs(Box<HeadObjectOutput>),
    /// One without a mark.
    Unmarked(Box<HeadObjectOutput>),
    /// None.
    Absent,
}

/// Looks what became of a write after `failure`.
pub(super) async fn settle(server: &Server, key: &str, mark: &str, failure: &Failure) -> Result<Settled, Fault> {
    match server.head(key).await {
        Ok(None) => Ok(Settled::Absent),
        Ok(Some(head)) => Ok(match head.metadata().and_then(|metadata| metadata.get(MARK)) {
            Some(found) if found == mark => Settled::Ours(Box::new(head)),
            Some(_) => Settled::Theirs(Box::new(head)),
            None => Settled::Unmarked(Box::new(head)),
        }),
        Err(fault) => Err(Fault::Unknown(format!(
            "it may or may not have been written ({failure}), and looking was no help either: {fault}"
        ))),
    }
}

/// Removes what was just created and is not what was sent, so that nobody takes it for whole.
pub(super) async fn take_back(server: &Server, key: &str, mark: &str, condition: &Condition, fault: Fault) -> Fault {
    let Fault::Corrupt(reason) = fault else { return fault };
    if matches!(condition, Condition::Still(_)) {
        return Fault::Corrupt(format!("{reason}; what it replaced is gone"));
    }
    let ours = match server.head(key).await {
        Ok(Some(head)) => head.metadata().and_then(|metadata| metadata.get(MARK)).is_some_and(|found| found == mark),
        _ => false,
    };
    let removed = ours && matches!(remove(server, key).await, Ok(Removal::Removed));
    Fault::Corrupt(if removed {
        format!("{reason}; it was removed again")
    } else {
        format!("{reason}; it is still there: remove it")
    })
}

/// Removes an object.
pub(super) async fn remove(server: &Server, key: &str) -> Result<Removal, Fault> {
    match server.call("DeleteObject", 0, || server.client.delete_object().bucket(&server.bucket).key(key).send()).await {
        Ok(_) => Ok(Removal::Removed),
        Err(failure) if failure.status == Some(404) && !failure.code_is(&["NoSuchBucket"]) => Ok(Removal::Removed),
        Err(failure) if failure.locked() => Ok(Removal::Kept(format!("object lock: {failure}"))),
        Err(failure) => Err(server.fault(&failure)),
    }
}
