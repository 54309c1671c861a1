//! The `.env` file, read so that every mistake in it is told with its line, and nothing of a value.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

/// A longer file is not one that a person wrote. Also the bound for a file that grows while it is read.
const LONGEST: u64 = 1 << 20;

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EnvFile {
    /// Names and values in order.
    pub(super) values: Vec<(String, String)>,
    /// What is wrong with it, fit for printing.
    pub(super) problems: Vec<String>,
}

/// Reads the file at `path`; an absent one says nothing.
pub(super) fn read(path: &Path) -> EnvFile {
    match text(path) {
        Ok(text) => parse(&text),
        Err(problem) => EnvFile { values: Vec::new(), problems: Vec::from_iter(problem) },
    }
}

/// The file's text; `Err(None)` when it is not there. Only regular files are opened: a directory
/// fails at every read, and a pipe or a device may never end.
fn text(path: &Path) -> Result<String, Option<String>> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => None,
        _ => Some(format!("cannot be read: {error}")),
    };
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Some("is not a regular file; remove it, or make it a file of lines NAME=value".to_owned()));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Some(format!("is longer than {LONGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Some(format!("line {} is not UTF-8", before.iter().filter(|byte| **byte == b'\n').count() + 1))
    })
}

fn parse(text: &str) -> EnvFile {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut file = EnvFile::default();
    let mut seen: HashMap<String, usize> = HashMap::new();
    // Each error carries its line; equal lines fail alike, so the search goes on behind the last hit.
    let mut searched = 0;
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        match item {
            Ok((name, value)) => {
                *seen.entry(name.clone()).or_default() += 1;
                if seen[&name] == 2 {
                    file.problems.push(format!("`{name}` is set twice; keep one of the lines"));
                }
                file.values.push((name, value));
            }
            // The parser's own text quotes the end of the line, which may hold a password.
            Err(dotenvy::Error::LineParse(rest, _)) => {
                let rest = rest.lines().next().unwrap_or_default().trim_end();
                let found = text.lines().enumerate().skip(searched).find(|(_, line)| line.trim_end().ends_with(rest));
                let place = found.map_or_else(
                    || "a line".to_owned(),
                    |(number, line)| {
                        searched = number + 1;
                        let name = name_in(line).map(|name| format!(" (`{name}`)")).unwrap_or_default();
                        format!("line {searched}{name}")
                    },
                );
                file.problems.push(format!(
                    "{place} cannot be read; write NAME='value', with quotes around values that hold blanks or quotes"
                ));
            }
            Err(error) => file.problems.push(format!("cannot be read: {error}")),
        }
    }
    file
}

/// The name that the line sets, when what stands before `=` is one.
fn name_in(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('=')?;
    let name = name.trim().trim_start_matches("export ").trim();
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_read_is_told_by_number_and_name_but_not_value() {
        let file = parse("APP=x\n# comment\nSCHEDULE=15 3 * * *\nnonsense secret\nLOG_LEVEL=debug\nSCHEDULE=15 3 * * *\n");
        assert_eq!(file.values, [("APP".to_owned(), "x".to_owned()), ("LOG_LEVEL".to_owned(), "debug".to_owned())]);
        assert_eq!(file.problems.len(), 3, "{file:?}");
        assert!(file.problems[0].starts_with("line 3 (`SCHEDULE`) cannot be read"), "{file:?}");
        assert!(file.problems[1].starts_with("line 4 cannot be read"), "{file:?}");
        assert!(file.problems[2].starts_with("line 6 (`SCHEDULE`)"), "{file:?}");
        assert!(!file.problems.concat().contains("secret"), "{file:?}");
    }

    #[test]
    fn a_quote_that_is_never_closed_is_told_by_the_line_that_opens_it() {
        let file = parse("\u{feff}APP=x\nPASSWORD='top\nsecret\nLOG_LEVEL=debug\n");
        assert_eq!(file.problems.len(), 1, "{file:?}");
        assert!(file.problems[0].starts_with("line 2 (`PASSWORD`)") && !file.problems[0].contains("secret"), "{file:?}");
        assert_eq!(file.values, [("APP".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn a_name_that_is_set_twice_is_a_mistake() {
        assert_eq!(parse("A=1\nB=2\nA=1\nA=3\n").problems, ["`A` is set twice; keep one of the lines"]);
    }

    /// Regression: a directory was read for ever, and a pipe or a device as long as it gave something.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".env");
        assert_eq!(read(&path), EnvFile::default());
        std::fs::create_dir(&path).unwrap();
        assert!(read(&path).problems[0].starts_with("is not a regular file"));
        std::fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&path).problems[0].starts_with("is not a regular file"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(&path).problems[0].starts_with("is not a regular file"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"A=1\nB=\xff\n").unwrap();
        assert_eq!(read(&path).problems, ["line 2 is not UTF-8"]);
        std::fs::write(&path, vec![b'#'; 1_100_000]).unwrap();
        assert_eq!(read(&path).problems, ["is longer than 1048576 bytes"]);
    }
}
