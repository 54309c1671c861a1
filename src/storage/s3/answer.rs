//! What a server's refusal means, and what helps.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::{Fault, Options};
use crate::redact::scrub;

/// An HTTP answer as the client holds it.
pub(super) type HttpAnswer = aws_sdk_s3::config::http::HttpResponse;

/// Codes of refusals that pass by themselves, whatever status they come with.
const PASSING: [&str; 7] =
    ["InternalError", "RequestTimeout", "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "BadDigest"];

/// A request without the answer that it was sent for.
#[derive(Debug)]
pub(super) struct Failure {
    doing: &'static str,
    pub(super) status: Option<u16>,
    code: Option<String>,
    text: String,
    /// Where the bucket is, when the server says so.
    region: Option<String>,
    /// Whether anything was sent at all.
    sent: bool,
    tries: u32,
}

impl Failure {
    pub(super) fn of<E>(doing: &'static str, error: &SdkError<E, HttpAnswer>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let answer = error.raw_response();
        let status = answer.map(|answer| answer.status().as_u16());
        let region = answer.and_then(|answer| answer.headers().get("x-amz-bucket-region")).map(str::to_owned);
        let code = error.code().map(str::to_owned);
        let sent = !matches!(error, SdkError::ConstructionFailure(_));
        let text = match error {
            SdkError::ServiceError(inner) => inner.err().message().unwrap_or("it gives no reason").to_owned(),
            SdkError::ResponseError(_) => "its answer cannot be read".to_owned(),
            other => causes(other),
        };
        Failure { doing, status, code, text: scrub(&text), region, sent, tries: 1 }
    }

    pub(super) fn no_answer(doing: &'static str, limit: Duration) -> Self {
        let text = format!("no answer within {} s", limit.as_secs());
        Failure { doing, status: None, code: None, text, region: None, sent: true, tries: 1 }
    }

    pub(super) fn after(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// Whether the same request may be answered later.
    pub(super) fn may_pass(&self) -> bool {
        let passing_code = self.code.as_deref().is_some_and(|code| PASSING.contains(&code));
        match self.status {
            None => self.sent,
            // 501 is "never"; an answer of 200 that holds an error, or cannot be read, is "not yet".
            Some(501) => false,
            Some(429 | 500..=599 | 200..=299) => true,
            Some(_) => passing_code,
        }
    }

    /// Whether the request may have taken effect all the same.
    pub(super) fn doubtful(&self) -> bool {
        self.sent && !matches!(self.status, Some(300..=499))
    }

    /// Whether a precondition was not met: somebody else was first.
    pub(super) fn lost(&self) -> bool {
        // 409 is also a bucket's or an upload's trouble, which has other codes.
        self.status == Some(412)
            || (self.status == Some(409) && self.code_is(&["ConditionalRequestConflict", "OperationAborted", ""]))
    }

    pub(super) fn code_is(&self, codes: &[&str]) -> bool {
        codes.contains(&self.code.as_deref().unwrap_or_default())
    }

    /// Whether the server cannot do this at all.
    pub(super) fn not_done_here(&self) -> bool {
        self.status == Some(501) || self.status == Some(405) || self.code_is(&["NotImplemented", "MethodNotAllowed"])
    }

    /// Whether it is a lock that keeps the object.
    pub(super) fn locked(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        self.code_is(&["ObjectLocked", "ObjectProtected"])
            || (matches!(self.status, Some(400 | 403 | 409))
                && ["object lock", "worm", "retention", "legal hold"].iter().any(|word| text.contains(word)))
    }

    pub(super) fn fault(&self, bucket: &str, options: &Options) -> Fault {
        let way_out = self.way_out(bucket, options);
        let way_out = if way_out.is_empty() { way_out } else { format!("; {way_out}") };
        let tries = if self.tries > 1 { format!(", {} times", self.tries) } else { String::new() };
        let text = format!("{self}{tries}{way_out}");
        if self.may_pass() { Fault::Unreachable(text) } else { Fault::Refused(text) }
    }

    fn way_out(&self, bucket: &str, options: &Options) -> String {
        match (self.code.as_deref().unwrap_or_default(), self.status) {
            ("InvalidAccessKeyId", _) => "the server does not know this key; check S3_ACCESS_KEY and S3_ENDPOINT".to_owned(),
            ("SignatureDoesNotMatch", _) => "check S3_SECRET_KEY and S3_REGION".to_owned(),
            ("RequestTimeTooSkewed", _) => "this machine's clock is wrong; set it".to_owned(),
            ("ExpiredToken" | "InvalidToken", _) => {
                "the temporary key has ended; set a new S3_ACCESS_KEY, S3_SECRET_KEY and S3_SESSION_TOKEN".to_owned()
            }
            ("NoSuchBucket", _) => {
                format!(
                    "there is no bucket `{bucket}` there; make it, or check its name, S3_ENDPOINT and S3_REGION (now {})",
                    options.region
                )
            }
            ("NoSuchKey", _) => String::new(),
            (
                "InvalidLocationConstraint"
                | "IllegalLocationConstraintException"
                | "AuthorizationHeaderMalformed"
                | "PermanentRedirect",
                _,
            )
            | (_, Some(301 | 307)) => match &self.region {
                Some(region) => format!("the bucket is in region {region}; set S3_REGION={region} (now {})", options.region),
                None => format!(
                    "the bucket is in another region or elsewhere; check S3_REGION (now {}) and S3_ENDPOINT",
                    options.region
                ),
            },
            ("AccessDenied" | "AllAccessDisabled" | "", Some(403)) => {
                format!("the key's policy has to allow {} on the bucket `{bucket}`", self.rights(options))
            }
            ("InvalidRequest" | "ObjectLockConfigurationNotFoundError" | "InvalidArgument", _) if options.lock.is_some() => {
                "object lock works only in a bucket made for it; make such a bucket, or unset S3_OBJECT_LOCK_MODE".to_owned()
            }
            (_, Some(501)) if options.checksums => "try S3_CHECKSUM=when-required".to_owned(),
            (_, Some(501)) => "the server cannot do this; it has to know conditional writes (If-None-Match, If-Match)".to_owned(),
            (_, Some(507)) | ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage", _) => {
                "make room there, or have the quota raised".to_owned()
            }
            _ if self.status.is_none() && self.text.contains("certificate") => "name the server's CA in S3_CA_FILE".to_owned(),
            _ => String::new(),
        }
    }

    fn rights(&self, options: &Options) -> String {
        let mut rights = vec![match self.doing {
            "GetObject" => "s3:GetObject",
            "HeadObject" => "s3:GetObject, and s3:ListBucket (without which an absent object looks forbidden),",
            "ListObjectsV2" => "s3:ListBucket",
            "ListMultipartUploads" => "s3:ListBucketMultipartUploads",
            "AbortMultipartUpload" => "s3:AbortMultipartUpload",
            "DeleteObject" => "s3:DeleteObject",
            _ => "s3:PutObject",
        }];
        if rights == ["s3:PutObject"] {
            if options.lock.is_some() {
                rights.push("s3:PutObjectRetention");
            }
            if matches!(options.encryption, Some(super::super::settings::Encryption::Kms(_))) {
                rights.push("kms:GenerateDataKey and kms:Decrypt of the key");
            }
        }
        rights.join(", ")
    }
}

/// An error with its causes, of which the last ones say something.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

/// The operation, the server's answer, and its words.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.doing)?;
        if let Some(status) = self.status {
            write!(f, "the server answered {status}")?;
            if let Some(code) = &self.code {
                write!(f, " {code}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.text)
    }
}
