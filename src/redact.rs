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
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // No URL holds these, so a URL in a text ends there.
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '|');
    while let Some(end) = rest.find(ends) {
        out.push_str(&mask_word(&rest[..end]));
        let behind = rest[end..].chars().next().map_or(rest.len(), |c| end + c.len_utf8());
        out.push_str(&rest[end..behind]);
        rest = &rest[behind..];
    }
    out.push_str(&mask_word(rest));
    mask_remembered(out)
}

/// `url` fit for printing: whatever may be a password is masked, also when it is not quite a URL
/// or its password holds characters that would end it in a text.
#[must_use]
pub fn mask_url(url: &str) -> String {
    mask_remembered(mask_word(url))
}

/// `url` fit for printing when its path may be the secret, as with the incoming webhooks of many
/// services: of the path only the first segment stays.
#[must_use]
pub fn mask_path(url: &str) -> String {
    let shown = mask_url(url);
    let Some(authority) = shown.find("://").map(|at| at + 3) else { return MASK.to_owned() };
    let path_end = shown.find(['?', '#']).unwrap_or(shown.len());
    let path = shown[authority..path_end].find('/').map_or(path_end, |at| authority + at);
    let mut segments = shown[path..path_end].splitn(3, '/');
    let (_, first, more) = (segments.next(), segments.next(), segments.next());
    match more {
        Some(more) if !more.is_empty() => {
            format!("{}/{}/{MASK}{}", &shown[..path], first.unwrap_or_default(), &shown[path_end..])
        }
        _ => shown,
    }
}

fn mask_remembered(mut clean: String) -> String {
    for secret in REMEMBERED.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
        if clean.contains(secret.as_str()) {
            clean = clean.replace(secret.as_str(), MASK);
        }
    }
    clean
}

/// Masks what may be secret in one word of a text: `scheme://user:PASSWORD@`, `user:PASSWORD@` of a
/// URL whose scheme was forgotten, and the value of `password=…` and its like.
fn mask_word(word: &str) -> String {
    match word.split_once("://") {
        Some((scheme, rest)) => {
            format!("{scheme}://{}", mask_members(&mask_user_info(rest, scheme.ends_with("http") || scheme.ends_with("https"))))
        }
        None => mask_members(&mask_user_info(word, false)),
    }
}

/// An unescaped '/' or '@' inside a password is a common mistake: it ends at the last '@', so that
/// no part of it shows. `token`: a user without password is as good as one, as in HTTP URLs.
fn mask_user_info(text: &str, token: bool) -> String {
    let Some((info, host_on)) = text.rsplit_once('@') else { return text.to_owned() };
    match info.split_once(':') {
        Some((user, _)) => format!("{user}:{MASK}@{host_on}"),
        None if token && !info.contains(['/', '?']) => format!("{MASK}@{host_on}"),
        None => text.to_owned(),
    }
}

fn mask_members(text: &str) -> String {
    if !text.contains('=') {
        return text.to_owned();
    }
    let masked = |piece: &str| match piece.split_once('=') {
        Some((name, value)) if !value.is_empty() && looks_secret(name) => format!("{name}={MASK}"),
        _ => piece.to_owned(),
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(end) = rest.find(['?', '&', '#', ';']) {
        out.push_str(&masked(&rest[..end]));
        out.push_str(&rest[end..=end]);
        rest = &rest[end + 1..];
    }
    out.push_str(&masked(rest));
    out
}

fn looks_secret(name: &str) -> bool {
    // `Key (tokenId)=(5)` is a server's detail that people need.
    let name = name.to_ascii_lowercase();
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '%' | '[' | ']'))
        && ["pass", "pwd", "secret", "token", "key", "signature", "credential"].iter().any(|word| name.contains(word))
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
        assert_eq!(scrub("two: redis://:a@h,  \"http://u:b@h/x\"\tend"), "two: redis://:***@h,  \"http://u:***@h/x\"\tend");
    }

    /// Regression: each of these showed its password.
    #[test]
    fn what_is_not_quite_a_url_shows_no_password_either() {
        for (text, shown) in [
            ("owner:hunter@h/d", "owner:***@h/d"),
            (":hunter@h", ":***@h"),
            ("unix:///nope?pass=hunter", "unix:///nope?pass=***"),
            ("http://h/p?mail=a@b&key=hunter#token=hunter", "http://h/p?mail=a@b&key=***#token=***"),
            ("https://hunter@h/p", "https://***@h/p"),
            ("host=h password=hunter user=me", "host=h password=*** user=me"),
        ] {
            assert_eq!(scrub(text), shown);
        }
        assert_eq!(mask_url("postgres://u:hun ter'x@h/d"), "postgres://u:***@h/d");
        for plain in [
            "mail to me@example.org",
            "at 05:10:00",
            "a=1&b=2",
            "postgres://me@h/d",
            "rows=3 table_name=a",
            "Key (tokenId)=(5) exists",
        ] {
            assert_eq!(scrub(plain), plain);
        }
    }

    #[test]
    fn of_a_secret_path_only_the_first_segment_shows() {
        for (url, shown) in [
            ("https://hooks.example/services/T000/LEAK", "https://hooks.example/services/***"),
            (
                "https://u:pw@hooks.example/services/T000?page=1&token=x",
                "https://u:***@hooks.example/services/***?page=1&token=***",
            ),
            ("https://hooks.example/hook", "https://hooks.example/hook"),
            ("https://hooks.example/hook/", "https://hooks.example/hook/"),
            ("https://hooks.example", "https://hooks.example"),
            ("https://hooks.example?page=1", "https://hooks.example?page=1"),
        ] {
            assert_eq!(mask_path(url), shown);
        }
    }

    #[test]
    fn remembered_secrets_are_masked_in_any_text() {
        let token = Secret::new("s3cr3t-token-value");
        assert_eq!(scrub("sent s3cr3t-token-value to"), "sent *** to");
        assert_eq!(format!("{token:?} {token}"), "*** ***");
    }
}
