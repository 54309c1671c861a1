//! Which cluster a request means, and whether anybody may restore there.
//!
//! Names that come from outside go into command lines, so they are plain words. Paths come from the configuration alone, and
//! nothing is ever emptied outside the configured roots.

use std::path::{Component, Path};

/// A name's greatest length.
const LONGEST: usize = 63;

/// Directories that hold more than databases; none of them can be a root.
const NOT_ROOTS: &[&str] = &[
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin",
    "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/tmp",
];

/// Whether `name` may stand in a command line: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= LONGEST && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

/// Why `path` cannot be used at all; nothing when it can.
#[must_use]
pub fn path_fault(path: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@' | '=' | ',' | ':');
    let normalised = || {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        parts.iter().all(|part| !matches!(*part, "" | "." | ".."))
    };
    if !path.starts_with('/') {
        Some("is not absolute")
    } else if path == "/" {
        Some("is the root of the file system")
    } else if !normalised() {
        Some("is not normalised: it must hold no `.`, `..` or empty part, and not end with `/`")
    } else if !path.chars().all(plain) {
        Some("holds a character other than letters, digits and / . _ - + @ = , :")
    } else {
        None
    }
}

/// Why `root` cannot be a root; nothing when it can.
#[must_use]
pub fn root_fault(root: &str) -> Option<&'static str> {
    path_fault(root).or_else(|| NOT_ROOTS.contains(&root).then_some("holds more than databases; name a directory below it"))
}

/// Whether `path` lies below one of `roots`, and is none of them.
#[must_use]
pub fn is_below(path: &str, roots: &[String]) -> bool {
    let inside = |root: &String| Path::new(path).strip_prefix(root).is_ok_and(|rest| rest.components().next().is_some());
    Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))) && roots.iter().any(inside)
}

/// Whether one of two paths is the other, or lies in it.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    Path::new(one).starts_with(other) || Path::new(other).starts_with(one)
}

/// A cluster that may be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose backups: the instance, or the stanza, as the tool calls it.
    pub instance: String,
    /// The machine.
    pub host: String,
    /// The cluster's name there.
    pub cluster: String,
    /// Its data directory.
    pub pgdata: String,
    /// Where its WAL lies, when that is outside.
    pub wal_dir: Option<String>,
    /// The database that the archive engine restores as.
    pub database: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words() {
        for name in ["main1", "S-DB1", "SSCOAD", "20261130-000557F_20261130-000557D", "a.b", "7"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", "-a", ".a", "_a", "a b", "a;b", "a/b", "$(a)", "a\n", "é", "a\0", "`a`", "--pgdata=/", long.as_str()] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name(&"a".repeat(63)));
    }

    #[test]
    fn only_paths_strictly_below_a_root_are_inside() {
        let roots = ["/var/lib/postgresql".to_owned(), "/pgwal".to_owned()];
        for path in ["/var/lib/postgresql/15/main1", "/pgwal/main1"] {
            assert_eq!(path_fault(path), None);
            assert!(is_below(path, &roots), "{path}");
        }
        for path in ["/", "/var/lib", "/var/lib/postgresql", "/pgwal", "/pgwal2/a", "/etc", "pgwal/a", ""] {
            assert!(!is_below(path, &roots), "{path}");
        }
        for path in
            ["/pgwal/../etc", "/pgwal/./a", "/pgwal//a", "/pgwal/a/", "//pgwal/a", "/pgwal/a b", "/pgwal/%p", "/pgwal/a'b"]
        {
            assert!(path_fault(path).is_some(), "{path}");
        }
        assert!(!is_below("/pgwal/../etc", &roots));
    }

    #[test]
    fn roots_hold_nothing_but_databases() {
        for root in ["/", "/etc", "/var", "/var/lib", "/tmp", "relative", "/var/lib/"] {
            assert!(root_fault(root).is_some(), "{root}");
        }
        for root in ["/var/lib/postgresql", "/pgdata", "/srv/databases"] {
            assert_eq!(root_fault(root), None, "{root}");
        }
    }

    #[test]
    fn directories_that_contain_one_another_overlap() {
        assert!(overlap("/a/b", "/a/b") && overlap("/a/b", "/a/b/c") && overlap("/a/b/c", "/a/b"));
        assert!(!overlap("/a/b", "/a/bc"));
    }
}
