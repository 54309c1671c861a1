//! Finding the one key that a name means.

use std::path::Path;

use super::super::SealError;
use super::program;
use crate::process::ProcessError;

/// A public key as `--with-colons` tells it (GnuPG's `doc/DETAILS`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    fingerprint: String,
    validity: String,
    capabilities: String,
}

/// The fingerprint of the one key that `name` means and that something can be encrypted for.
pub(super) async fn find(name: &str, home: Option<&Path>) -> Result<String, SealError> {
    let unusable = |reason: String| SealError::Recipient { recipient: name.to_owned(), reason };
    if name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(unusable("it is no name of a key; write its fingerprint".to_owned()));
    }
    let listing = program(home).args(["--no-autostart", "--with-colons", "--fixed-list-mode", "--list-keys", "--", name]);
    let listing = match listing.output().await {
        Ok(listing) => listing,
        // gpg ends with 2 when there is no such key; its words are in the error.
        Err(ProcessError::Failed { stderr, .. }) => {
            return Err(unusable(format!("gpg has no such key ({}); import it: gpg --import FILE", words(&stderr))));
        }
        Err(error) => return Err(error.into()),
    };
    choose(&parse(&String::from_utf8_lossy(&listing))).map_err(unusable)
}

/// gpg's text without its status lines.
fn words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.split(" | ").filter(|line| !line.starts_with(super::STATUS)).collect();
    if lines.is_empty() { "no reason given".to_owned() } else { lines.join("; ") }
}

fn parse(listing: &str) -> Vec<Found> {
    let mut keys: Vec<Found> = Vec::new();
    let mut of_primary = false;
    for line in listing.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let field = |n: usize| fields.get(n).copied().unwrap_or_default();
        match field(0) {
            "pub" => {
                keys.push(Found {
                    fingerprint: String::new(),
                    validity: field(1).to_owned(),
                    capabilities: field(11).to_owned(),
                });
                of_primary = true;
            }
            // Subkeys have fingerprints too; the first one is the key's own.
            "fpr" if of_primary => {
                if let Some(key) = keys.last_mut() {
                    key.fingerprint = field(9).to_owned();
                }
                of_primary = false;
            }
            _ => {}
        }
    }
    keys
}

fn choose(keys: &[Found]) -> Result<String, String> {
    let [key] = keys else {
        let fingerprints: Vec<&str> = keys.iter().map(|key| key.fingerprint.as_str()).collect();
        return Err(match keys.len() {
            0 => "gpg has no such key; import it: gpg --import FILE".to_owned(),
            number => format!("{number} keys have this name; write the fingerprint of one: {}", fingerprints.join(", ")),
        });
    };
    let state = match key.validity.as_str() {
        "e" => "it has expired; have its owner extend it, and import it again",
        "r" => "it was revoked; use its owner's new key",
        "i" => "it is invalid",
        _ if key.capabilities.contains('D') => "it is disabled; enable it with gpg --edit-key",
        // A capital letter: some part of the key can be used for it now.
        _ if !key.capabilities.contains('E') => "none of its parts can encrypt, or those that could have expired",
        _ if key.fingerprint.is_empty() => "gpg tells no fingerprint",
        _ => return Ok(key.fingerprint.clone()),
    };
    Err(format!("{state} ({})", key.fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "tru::1:1700000000:0:3:1:5\n\
        pub:u:255:22:AAAA:1700000000:::u:::scESC:::::ed25519:::0:\n\
        fpr:::::::::0123456789ABCDEF0123456789ABCDEF01234567:\n\
        uid:u::::1700000000::X::Backups <b@example.org>::::::::::0:\n\
        sub:u:255:18:BBBB:1700000000::::::e:::::cv25519::\n\
        fpr:::::::::FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF:\n";

    #[test]
    fn the_keys_own_fingerprint_is_taken_and_not_a_subkeys() {
        let keys = parse(LISTING);
        assert_eq!(choose(&keys).unwrap(), "0123456789ABCDEF0123456789ABCDEF01234567");
        let twice = [parse(LISTING), parse(LISTING)].into_iter().flatten().collect::<Vec<_>>();
        assert!(choose(&twice).unwrap_err().starts_with("2 keys have this name"));
        assert!(choose(&[]).is_err());
    }

    #[test]
    fn a_key_that_cannot_encrypt_now_is_refused_with_its_reason() {
        for (from, to, reason) in [
            ("pub:u", "pub:e", "expired"),
            ("pub:u", "pub:r", "revoked"),
            ("scESC", "scESCD", "disabled"),
            ("scESC", "scSC", "can encrypt"),
        ] {
            let error = choose(&parse(&LISTING.replacen(from, to, 1))).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
