//! The secret of the masks, and how a session of the source gets it.
//!
//! Masks are HMAC-SHA256, which PostgreSQL does not have: it is put together from `sha256(bytea)`, with the inner
//! and the outer pad as settings of the transaction. They are sent as parameters, so they stand in no SQL text
//! (`pg_stat_activity`, `pg_stat_statements`), and what is sent is made from the secret, which itself never
//! leaves this process. A server that logs every statement with its parameters logs them, though: where our role
//! may, that is switched off for the transaction; docs/masking.md says what else helps.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use crate::postgres::{Doing, PostgresError};
use crate::redact::{self, Secret};

/// Fewest bytes of a secret.
pub(super) const SHORTEST: usize = 16;
/// The block of SHA-256.
const BLOCK: usize = 64;
const INNER: u8 = 0x36;
const OUTER: u8 = 0x5c;

/// A text that stands for the HMAC of the bytes that the expression `message` gives; NULL for NULL. The pads are
/// in subqueries because these are worked out once a statement, not once a row.
pub(super) fn hmac(message: &str) -> String {
    let pad = |which: &str| format!("(select decode(current_setting('bullwork.mask_{which}'), 'hex'))");
    format!("sha256({} || sha256({} || {message}))", pad("outer"), pad("inner"))
}

/// The key. Prints as nothing.
#[derive(Clone, Debug)]
pub struct MaskKey {
    bytes: Secret,
    inner: Secret,
    outer: Secret,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl MaskKey {
    /// The key made from `secret`.
    ///
    /// # Errors
    /// When that is short enough to be guessed.
    pub fn new(secret: &str) -> Result<Self, String> {
        if secret.len() < SHORTEST {
            return Err(format!("has {} bytes; write at least {SHORTEST} (openssl rand -base64 32)", secret.len()));
        }
        redact::remember(secret);
        let key = Sha256::new().chain_update("bullwork mask key\n").chain_update(secret).finalize();
        let mut block = [0; BLOCK];
        block[..key.len()].copy_from_slice(&key);
        let pad = |with: u8| Secret::new(hex(&block.map(|byte| byte ^ with)));
        Ok(MaskKey { bytes: Secret::new(hex(&key)), inner: pad(INNER), outer: pad(OUTER) })
    }

    /// Eight bytes in hex that are this key's, and no way back to it.
    pub(super) fn mark(&self) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.bytes.expose().as_bytes()).expect("any length is a key");
        mac.update(b"mark");
        hex(&mac.finalize().into_bytes()[..8])
    }

    pub(super) async fn enter(&self, source: &Client) -> Result<(), PostgresError> {
        let doing = || "giving the source's session the key of the masks".to_owned();
        // Only superusers may, and only newer servers know them.
        const QUIET: &str = "select set_config(name, '0', true) from pg_settings where current_setting('is_superuser') = 'on' \
                             and name in ('log_parameter_max_length', 'auto_explain.log_parameter_max_length')";
        source.query(QUIET, &[]).await.doing(doing)?;
        const SET: &str =
            "select set_config('bullwork.mask_inner', $1, true) is null, set_config('bullwork.mask_outer', $2, true) is null";
        source.query_one(SET, &[&self.inner.expose(), &self.outer.expose()]).await.doing(doing)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pads_are_those_of_hmac() {
        let key = MaskKey::new("a secret of some length").unwrap();
        let bytes = |text: &str| {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect::<Vec<u8>>()
        };
        let inner = Sha256::new().chain_update(bytes(key.inner.expose())).chain_update("message").finalize();
        let outer = Sha256::new().chain_update(bytes(key.outer.expose())).chain_update(inner).finalize();
        let mut mac = Hmac::<Sha256>::new_from_slice(&bytes(key.bytes.expose())).unwrap();
        mac.update(b"message");
        assert_eq!(outer[..], mac.finalize().into_bytes()[..]);
    }

    #[test]
    fn a_key_is_long_and_never_shown() {
        assert!(MaskKey::new("fifteen bytes..").unwrap_err().contains("has 15 bytes; write at least 16"));
        let key = MaskKey::new("sixteen bytes...").unwrap();
        let shown = format!("{key:?}");
        assert!(!shown.contains("sixteen") && !shown.contains(key.inner.expose()), "{shown}");
        assert_ne!(key.mark(), MaskKey::new("sixteen bytes..!").unwrap().mark());
    }
}
