//! The list of what a release holds: files and directories, relative to the project directory.
//!
//! Blank lines are ignored and duplicates merged. Everything that could mean a place outside the project, or that no list of
//! names can hold, is refused, and all refusals are told together.

/// Where a release keeps its things in a project directory; never part of a release.
pub const ROOM: &str = ".bullwork-releases";
/// Longest path in bytes, as Linux has it.
const LONGEST: usize = 4096;
/// Refusals that are told one by one.
const TOLD: usize = 20;

/// Why a list is no list of what to copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathsError {
    /// Nothing is named.
    #[error("no path is named: list at least one file or directory, relative to the project directory")]
    Empty,
    /// It is no text.
    #[error("the list is no UTF-8 text, or holds a NUL byte")]
    NoText,
    /// These paths.
    #[error("refused: {}", .0.join("; "))]
    Refused(Vec<String>),
}

/// The paths of a text with one on each line.
///
/// # Errors
/// When the text holds a path that is refused, or none.
pub fn read_list(list: &[u8]) -> Result<Vec<String>, PathsError> {
    let text = std::str::from_utf8(list).ok().filter(|text| !text.contains('\0')).ok_or(PathsError::NoText)?;
    // Lists of Windows' editors end their lines with a return; no path of a project does.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    clean(text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)))
}

/// The paths as they are kept: each once, sorted, without needless parts.
///
/// # Errors
/// When one is refused, or there is none.
pub fn clean<'p>(paths: impl IntoIterator<Item = &'p str>) -> Result<Vec<String>, PathsError> {
    let (mut kept, mut refused) = (std::collections::BTreeSet::new(), Vec::new());
    for path in paths {
        if path.trim().is_empty() {
            continue;
        }
        match one(path) {
            Ok(path) => {
                kept.insert(path);
            }
            Err(reason) => refused.push(format!("`{}` {reason}", path.escape_debug())),
        }
    }
    if refused.len() > TOLD {
        let more = refused.len() - TOLD;
        refused.truncate(TOLD);
        refused.push(format!("and {more} more"));
    }
    match (refused.is_empty(), kept.is_empty()) {
        (false, _) => Err(PathsError::Refused(refused)),
        (true, true) => Err(PathsError::Empty),
        (true, false) => Ok(kept.into_iter().collect()),
    }
}

fn one(path: &str) -> Result<String, &'static str> {
    if path.contains(['\n', '\r', '\0']) {
        return Err("holds a line end or NUL");
    }
    if path.starts_with('/') {
        return Err("is absolute: name it relative to the project directory");
    }
    if path.len() > LONGEST {
        return Err("is longer than a path can be");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err("holds `..`, which may lead out of the project");
    }
    match parts.first() {
        None => Err("is the whole project: name what is in it"),
        Some(&ROOM) => Err("is where releases keep replaced files"),
        // `./ ` means a file whose name is a blank; a list takes that for an empty line.
        Some(_) if parts.join("/").trim().is_empty() => Err("is blank"),
        Some(_) => Ok(parts.join("/")),
    }
}

/// The directories above `path`, outermost first.
pub fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blank_lines_are_ignored_and_duplicates_merged() {
        let list = "\u{feff}b/c\n\n  \n./a\r\nb//c/\na\n с пробелом.txt\n-dash\nit's \"so\"\n";
        assert_eq!(read_list(list.as_bytes()).unwrap(), [" с пробелом.txt", "-dash", "a", "b/c", "it's \"so\""]);
    }

    #[test]
    fn what_leads_out_of_the_project_is_refused_and_all_of_it_is_told() {
        let error = read_list(b"ok\n/etc/passwd\na/../../b\n..\n.\n.bullwork-releases/1/old\n").unwrap_err().to_string();
        for part in [
            "`/etc/passwd` is absolute",
            "`a/../../b` holds `..`",
            "`..` holds `..`",
            "`.` is the whole project",
            "`.bullwork-releases/1/old` is where",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(clean(["./ "]).unwrap_err().to_string().contains("is blank"));
        assert!(clean(["a\nb"]).unwrap_err().to_string().contains(r"`a\nb` holds a line end"));
        assert_eq!(read_list(b"a\0b"), Err(PathsError::NoText));
        assert_eq!(read_list(b"\xff"), Err(PathsError::NoText));
        assert_eq!(read_list(b" \n\n"), Err(PathsError::Empty));
        assert_eq!(clean([]), Err(PathsError::Empty));
        let many: Vec<String> = (0..100).map(|n| format!("/{n}")).collect();
        assert!(clean(many.iter().map(String::as_str)).unwrap_err().to_string().ends_with("and 80 more"));
    }

    #[test]
    fn parents_are_named_outermost_first() {
        assert_eq!(parents("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(parents("a").count(), 0);
    }

    proptest! {
        #[test]
        fn whatever_is_kept_stays_below_the_project(list in proptest::collection::vec("(\\.|\\.\\.|/|a|b|-|\n|\r|\0|я| ){0,8}", 0..8)) {
            let Ok(kept) = clean(list.iter().map(String::as_str)) else { return Ok(()) };
            for path in &kept {
                prop_assert!(!path.starts_with('/') && !path.is_empty());
                prop_assert!(path.split('/').all(|part| !part.is_empty() && part != ".." && part != "."));
                prop_assert!(!path.contains(['\n', '\r', '\0']));
            }
            prop_assert_eq!(clean(kept.iter().map(String::as_str)).unwrap(), kept, "kept as it is");
        }
    }
}
