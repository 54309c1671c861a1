//! Digests of what is sent, and whether the server's answers agree with them.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ServerSideEncryption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::super::Fault;

/// The digests of one request's body.
#[derive(Clone, Debug)]
pub(super) struct Digests {
    md5: [u8; 16],
    sha256: [u8; 32],
}

/// Digests that grow with the body.
#[derive(Debug, Default)]
pub(super) struct Growing {
    md5: Md5,
    sha256: Sha256,
}

impl Growing {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
    }

    /// The digests so far; begins anew.
    pub(super) fn take(&mut self) -> Digests {
        Digests { md5: self.md5.finalize_reset().into(), sha256: self.sha256.finalize_reset().into() }
    }
}

impl Digests {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut growing = Growing::default();
        growing.add(bytes);
        growing.take()
    }

    /// As `Content-MD5` wants it.
    pub(super) fn md5(&self) -> String {
        STANDARD.encode(self.md5)
    }

    /// As S3's checksum header wants it.
    pub(super) fn sha256(&self) -> String {
        STANDARD.encode(self.sha256)
    }

    /// Compares with what the server says that it has.
    pub(super) fn compare(&self, told: &Told<'_>) -> Result<(), Fault> {
        told.compare(&hex(&self.md5), &self.sha256())
    }
}

impl Digests {
    /// Whether the server says that it has just this.
    pub(super) fn surely(&self, told: &Told<'_>) -> bool {
        (told.sha256.is_some() || told.md5_is_told()) && self.compare(told).is_ok()
    }
}

/// Compares what the server says about an object put together from parts. `Ok(false)` when it says nothing to compare.
pub(super) fn compare_parts(parts: &[Digests], told: &Told<'_>) -> Result<bool, Fault> {
    let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
    for part in parts {
        md5.update(part.md5);
        sha256.update(part.sha256);
    }
    let count = parts.len();
    told.compare(&format!("{}-{count}", hex(&md5.finalize())), &format!("{}-{count}", STANDARD.encode(sha256.finalize())))?;
    Ok(told.sha256.is_some() || told.md5_is_told())
}

/// What an answer says about a body.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) etag: Option<&'a str>,
    pub(super) sha256: Option<&'a str>,
    pub(super) encryption: Option<&'a ServerSideEncryption>,
}

impl<'a> Told<'a> {
    pub(super) fn of_head(head: &'a HeadObjectOutput) -> Self {
        Told { etag: head.e_tag(), sha256: head.checksum_sha256(), encryption: head.server_side_encryption() }
    }

    /// Whether the `ETag` has the form of an MD5, and is one: with a KMS key it is not.
    fn md5_is_told(&self) -> bool {
        let plain = matches!(self.encryption, None | Some(ServerSideEncryption::Aes256));
        plain
            && self.etag().is_some_and(|etag| {
                let (digest, parts) = etag.split_once('-').unwrap_or((etag, "1"));
                digest.len() == 32
                    && digest.bytes().all(|b| b.is_ascii_hexdigit())
                    && !parts.is_empty()
                    && parts.bytes().all(|b| b.is_ascii_digit())
            })
    }

    fn etag(&self) -> Option<&str> {
        self.etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'))
    }

    fn compare(&self, md5: &str, sha256: &str) -> Result<(), Fault> {
        // Of a checksum that covers the whole object, and not its parts, there is nothing here to compare with.
        if let Some(told) = self.sha256.filter(|told| told.contains('-') == sha256.contains('-')) {
            return if told == sha256 {
                Ok(())
            } else {
                Err(Fault::Corrupt(format!("the store has SHA-256 {told}, sent was {sha256}")))
            };
        }
        match self.etag().filter(|_| self.md5_is_told()) {
            Some(told) if !told.eq_ignore_ascii_case(md5) => Err(Fault::Corrupt(format!(
                "the store has MD5 {told}, sent was {md5}; if its ETag never is an MD5, set S3_CHECKSUM=always"
            ))),
            _ => Ok(()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_counts_only_where_it_is_an_md5() {
        let told = |etag: &'static str, encryption| Told { etag: Some(etag), sha256: None, encryption };
        let digests = Digests::of(b"hello");
        let good = "\"5d41402abc4b2a76b9719d911017c592\"";
        let other = "\"00000000000000000000000000000000\"";
        assert!(digests.compare(&told(good, None)).is_ok());
        assert!(matches!(digests.compare(&told(other, None)), Err(Fault::Corrupt(_))));
        assert!(matches!(digests.compare(&told(other, Some(&ServerSideEncryption::Aes256))), Err(Fault::Corrupt(_))));
        assert!(digests.compare(&told(other, Some(&ServerSideEncryption::AwsKms))).is_ok());
        assert!(digests.compare(&told("\"some-other-tag\"", None)).is_ok());

        let parts = [Digests::of(b"hello"), Digests::of(b"world")];
        let whole = {
            let mut md5 = Md5::new();
            parts.iter().for_each(|part| md5.update(part.md5));
            format!("\"{}-2\"", hex(&md5.finalize()))
        };
        let told = |etag| Told { etag: Some(etag), sha256: None, encryption: None };
        assert!(compare_parts(&parts, &told(&whole)).unwrap());
        assert!(!compare_parts(&parts, &told("\"x\"")).unwrap());
        assert!(compare_parts(&parts[..1], &told(&whole)).is_err());
    }

    #[test]
    fn the_stores_own_checksum_goes_before_the_etag() {
        let digests = Digests::of(b"hello");
        let sha256 = digests.sha256();
        let told = |sha256| Told { etag: Some("\"00000000000000000000000000000000\""), sha256: Some(sha256), encryption: None };
        assert!(digests.compare(&told(&sha256)).is_ok());
        assert!(matches!(digests.compare(&told("AAAA")), Err(Fault::Corrupt(_))));
    }
}
