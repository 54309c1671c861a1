//! A preset's change log: text, newest on top, a line `TIME who: what`.
//!
//! Pushes stand in the pointer too, so a line that a killed push did not write is made up for by whoever writes next.

use std::time::Duration;

use bytes::Bytes;

use super::PresetError;
use super::remote::{Branch, Pointer, lost, now};
use crate::storage::{Fault, StorageError};

/// Longest log; the oldest lines beyond it are dropped.
const SIZE: usize = 2 << 20;
/// How often it is tried when others write too.
const TRIES: u32 = 50;
const LEAF: &str = "log.txt";

/// A line of the log.
pub(super) fn line(at: &str, who: &str, what: &str) -> String {
    format!("{at} {who}: {what}")
}

/// Notes something that happened now.
pub(super) async fn note(branch: &Branch, name: &str, who: &str, what: &str) -> Result<(), PresetError> {
    let line = line(&now(), who, what);
    let pointer = branch.pointer(name).await?.map(|known| known.pointer).unwrap_or_default();
    write(branch, name, &pointer, Some(line)).await
}

/// Has the log hold a line for everything in the pointer, and `more`.
pub(super) async fn write(branch: &Branch, name: &str, pointer: &Pointer, more: Option<String>) -> Result<(), PresetError> {
    let key = branch.key(name, LEAF);
    let mut wanted: Vec<String> = pointer.revisions.iter().map(|r| line(&r.at, &r.who, &r.what)).collect();
    wanted.extend(pointer.deleted.iter().map(|d| line(&d.at, &d.who, &format!("deleted: {}", d.what))));
    wanted.extend(more);
    for attempt in 1..=TRIES {
        let (old, version) = match branch.store.read(&key, 2 * SIZE as u64).await {
            Ok((bytes, meta)) => (String::from_utf8_lossy(&bytes).into_owned(), Some(meta.version)),
            Err(StorageError { fault: Fault::Missing, .. }) => (String::new(), None),
            Err(error) => return Err(error.into()),
        };
        let Some(text) = merged(&old, &wanted) else { return Ok(()) };
        let written = match &version {
            None => branch.store.create(&key, Bytes::from(text)).await,
            Some(version) => branch.store.replace(&key, Bytes::from(text), version).await,
        };
        match written {
            Ok(_) => return Ok(()),
            Err(error) if lost(&error) && attempt < TRIES => {
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 7)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The log with these lines in it; nothing when they are there.
fn merged(old: &str, wanted: &[String]) -> Option<String> {
    let mut lines: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = wanted.iter().map(String::as_str).filter(|line| !lines.contains(line)).collect();
    if new.is_empty() {
        return None;
    }
    lines.extend(new);
    // Times are of one width. Those of other machines' clocks stay where they were among equals.
    lines.sort_by(|a, b| b.split(' ').next().cmp(&a.split(' ').next()));
    let mut text = String::new();
    for line in lines {
        if text.len() + line.len() > SIZE {
            break;
        }
        text.push_str(line);
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn the_newest_line_is_on_top_and_none_stands_there_twice() {
        let lines = ["2026-01-01T00:00:00.000Z a: один", "2026-01-02T00:00:00.000Z b: zwei"].map(str::to_owned);
        let text = merged("", &lines).unwrap();
        assert_eq!(text, "2026-01-02T00:00:00.000Z b: zwei\n2026-01-01T00:00:00.000Z a: один\n");
        assert_eq!(merged(&text, &lines), None);
        let later = merged(&text, &["2026-01-03T00:00:00.000Z c: three".to_owned()]).unwrap();
        assert!(later.starts_with("2026-01-03") && later.ends_with(&text));
    }
}
