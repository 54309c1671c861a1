//! Signatures as standardwebhooks.com describes them, so that receivers can check them with any
//! of its libraries.
//!
//! `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`. The
//! timestamp is the time of sending, not of the event, because receivers refuse old ones.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::redact;

/// Announces a key in base64.
const PREFIX: &str = "whsec_";

/// A shared secret; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl SigningKey {
    /// Reads `whsec_<base64>`, the one form that every library of receivers takes for the same key.
    ///
    /// # Errors
    /// When the text is of another form, or there is no key at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        redact::remember(text);
        let key = match text.strip_prefix(PREFIX) {
            Some(encoded) => {
                redact::remember(encoded);
                STANDARD.decode(encoded).map_err(|_| "the text after `whsec_` is not base64".to_owned())?
            }
            None => return Err("the signing secret is not of the form whsec_…; write whsec_ and the key in base64 (`openssl rand -base64 24` makes one)".to_owned()),
        };
        if key.is_empty() { Err("the signing secret is empty".to_owned()) } else { Ok(SigningKey(key)) }
    }

    /// The three headers for `body`, sent at `timestamp` (seconds since 1970).
    #[must_use]
    pub fn headers(&self, id: &str, timestamp: u64, body: &[u8]) -> [(&'static str, String); 3] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", format!("v1,{signature}")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification; `openssl dgst -sha256 -mac HMAC` gives the same.
    #[test]
    fn the_signature_is_the_one_of_the_specification() {
        let key = SigningKey::parse("whsec_plJ3nmyCDGBKInavdOK15jsl").unwrap();
        let headers = key.headers("msg_loFOjxBNrRLzqYUf", 1_731_705_121, br#"{"event_type":"ping","data":{"success":true}}"#);
        assert_eq!(headers[2], ("webhook-signature", "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=".to_owned()));
        assert_eq!(headers[1].1, "1731705121");
    }

    #[test]
    fn unusable_secrets_are_refused_and_good_ones_never_shown() {
        assert!(SigningKey::parse("whsec_???").unwrap_err().contains("base64"));
        assert!(SigningKey::parse("whsec_").is_err());
        assert!(SigningKey::parse("mysecretvalue").unwrap_err().contains("write whsec_"));
        assert_eq!(format!("{:?}", SigningKey::parse("whsec_plJ3nmyCDGBKInavdOK15jsl").unwrap()), "***");
    }
}
