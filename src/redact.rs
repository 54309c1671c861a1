//! Keeps secrets out of logs, errors, Redis and pages.
//!
//! Two nets: [`Secret`] cannot be printed at all, and [`scrub`] cleans text that came from
//! elsewhere (a child's stderr, a driver's error) of URL passwords and of every value that was
//! handed to [`remember`].

use std::fmt;
use std::sync::RwLock;

const MASK: &str = "***";

/// Values shorter than this are not searched for in texts: they would mask ordinary words.
const SHORTEST_REMEMBERED: usize = 6;

static REMEMBERED: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// A value that prints as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value` and has [`scrub`] mask it from now on.
    pub fn new(value: impl Into<String>) -> Self {
        let value = value.into();
        remember(&value);
        Secret(value)
    }

    /// Wraps `value` without having [`scrub`] look for it: for values that are only confidential
    /// where they stand, such as a host name among connection settings.
    pub fn unremembered(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value itself, for the one place that must send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Has [`scrub`] mask `value` wherever it appears from now on.
pub fn remember(value: &str) {
    if value.len() < SHORTEST_REMEMBERED {
        return;
    }
    let mut known = REMEMBERED.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !known.iter().any(|k| k == value) {
        known.push(value.to_owned());
        // Longest first, so that a secret that contains another is masked whole.
        known.sort_by_key(|k| std::cmp::Reverse(k.len()));
    }
}

/// `text` with URL passwords and remembered secrets masked.
#[must_use]
pub fn scrub(text: &str) -> String {
    let mut clean = mask_urls(text);
    for secret in REMEMBERED.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
        if clean.contains(secret.as_str()) {
            clean = clean.replace(secret.as_str(), MASK);
        }
    }
    clean
}

/// `url` fit for printing: the password, and every query parameter named like one, masked.
#[must_use]
pub fn mask_url(url: &str) -> String {
    scrub(url)
}

/// Masks `scheme://user:PASSWORD@` and `password=…`, `token=…`, `key=…` query parameters.
fn mask_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // The authority and what follows it end at the first character no URL holds.
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '|')).unwrap_or(after.len());
        let (url, tail) = after.split_at(end);
        out.push_str(&mask_after_scheme(url));
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn mask_after_scheme(url: &str) -> String {
    // An unescaped '/' or '@' inside a password is a common mistake: cut at the last '@' so
    // that no part of it shows.
    let (user_info, host_on) = match url.rfind('@') {
        Some(at) => (Some(&url[..at]), &url[at + 1..]),
        None => (None, url),
    };
    let mut out = String::with_capacity(url.len());
    if let Some(info) = user_info {
        match info.split_once(':') {
            Some((user, _)) => {
                out.push_str(user);
                out.push(':');
                out.push_str(MASK);
            }
            None => out.push_str(info),
        }
        out.push('@');
    }
    match host_on.split_once('?') {
        None => out.push_str(host_on),
        Some((path, query)) => {
            out.push_str(path);
            out.push('?');
            let masked: Vec<String> = query
                .split('&')
                .map(|pair| match pair.split_once('=') {
                    Some((name, _)) if looks_secret(name) => format!("{name}={MASK}"),
                    _ => pair.to_owned(),
                })
                .collect();
            out.push_str(&masked.join("&"));
        }
    }
    out
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passwd", "secret", "token", "key", "signature"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_passwords_are_masked_wherever_they_stand() {
        assert_eq!(
            scrub("connecting to postgres://me:hunter2@db:5432/x?sslmode=require failed"),
            "connecting to postgres://me:***@db:5432/x?sslmode=require failed"
        );
        assert_eq!(mask_url("redis://:pw@h:1/0"), "redis://:***@h:1/0");
        assert_eq!(mask_url("redis://h:1/0"), "redis://h:1/0");
        assert_eq!(mask_url("postgres://u:a/b@c@h/x"), "postgres://u:***@h/x");
        assert_eq!(mask_url("http://h/p?api_key=abc&n=1"), "http://h/p?api_key=***&n=1");
    }

    #[test]
    fn remembered_secrets_are_masked_in_any_text() {
        let token = Secret::new("s3cr3t-token-value");
        assert_eq!(scrub("sent s3cr3t-token-value to"), "sent *** to");
        assert_eq!(format!("{token:?} {token}"), "*** ***");
    }
}
