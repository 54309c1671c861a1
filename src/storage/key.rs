//! Names of objects.
//!
//! A key is the same text in every store, so it holds only what each of them takes: segments of letters,
//! digits and `-_.:=+@,~`, joined by `/`. A segment begins with a letter, a digit or `_`, which keeps `..`, hidden
//! files and the directory store's own temporary names out.

/// Longest segment: a file name has 255 bytes, of which temporary names need some.
const SEGMENT: usize = 200;
/// Longest key: S3 takes 1024 bytes, the store's prefix included.
const LONGEST: usize = 800;

/// What stands in a key besides letters and digits.
const MARKS: &str = "-_.:=+@,~";

/// Whether `key` may name an object.
///
/// # Errors
/// What is wrong with it.
pub fn check(key: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("`{}` is no key: {why}", key.escape_default()));
    if key.len() > LONGEST {
        return wrong(&format!("it has {} bytes, more than {LONGEST}", key.len()));
    }
    for segment in key.split('/') {
        let Some(first) = segment.chars().next() else { return wrong("a part between slashes is empty") };
        if !(first.is_ascii_alphanumeric() || first == '_') {
            return wrong("each part between slashes begins with a letter, a digit or `_`");
        }
        if let Some(other) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || MARKS.contains(*c))) {
            return wrong(&format!("`{}` is not one of letters, digits and {MARKS}", other.escape_default()));
        }
        if segment.len() > SEGMENT {
            return wrong(&format!("a part between slashes has {} bytes, more than {SEGMENT}", segment.len()));
        }
    }
    Ok(())
}

/// Whether `prefix` may begin a key; it may be empty, and end anywhere in a segment.
///
/// # Errors
/// What is wrong with it.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(()),
        text => check(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_holds_nothing_that_leads_elsewhere() {
        for good in ["a", "db/2026-01-31T23:59:59.tar.zst.age", "repo/branch_1/name/rev-3-0a1b", "_a/b=/0+@,~"] {
            assert_eq!(check(good), Ok(()));
        }
        for bad in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", ".tmp", "a/.b", "a\0b", "a\nb", "a b", "a\\b", "-a", "=a", "ä",
            "a?b", "a%b",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&"a".repeat(201)).is_err() && check(&"a/".repeat(500)).is_err());
        assert!(!check("a\nb").unwrap_err().contains('\n'));
        for (prefix, good) in [("", true), ("db/", true), ("db/2026", true), ("/", false), ("db//", false), ("../", false)] {
            assert_eq!(check_prefix(prefix).is_ok(), good, "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_joined_to_a_directory_stays_below_it(key in ".{0,40}") {
            if check(&key).is_ok() {
                let path = std::path::Path::new("/store").join(&key);
                prop_assert!(path.starts_with("/store") && path != std::path::Path::new("/store"));
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_))));
            }
        }
    }
}
