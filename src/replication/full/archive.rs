//! Reads the table of contents of a `pg_dump --format=custom` archive.
//!
//! The archive tells for every definition *which* object it is, by catalogue and oid, and what it
//! depends on. So we choose definitions by identity: a name that holds `*`, a space or the name
//! of another table means nothing here. The format is stable since PostgreSQL 9 (versions 1.12 to
//! 1.16 are read); only its head and table of contents are read, for an archive of definitions
//! holds nothing else.
//!
//! ```text
//! "PGDMP" major minor revision int-size offset-size format [compression] date×7 name versions×2
//! count, then count × { dump-id had-dumper tableoid oid tag desc section defn drop copy
//!                       namespace tablespace [access-method] [relkind] owner "false"
//!                       dependency* NULL  data-state offset }
//! integer = sign byte + little-endian bytes; string = integer length (-1: NULL) + bytes
//! ```

use std::collections::HashMap;

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ArchiveError {
    #[error("pg_dump wrote no archive, or one cut off at byte {0}")]
    Cut(usize),
    #[error(
        "pg_dump wrote an archive of format {0}.{1}, and formats 1.12 to 1.16 are known; set PG_BIN to the programs of PostgreSQL 18 or older"
    )]
    Version(u8, u8),
    #[error("pg_dump wrote text that is not UTF-8 at byte {0}")]
    Encoding(usize),
}

/// When a definition is made, relative to the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// Comments and the like, which go with their object.
    None,
    /// Types, functions, tables, views.
    PreData,
    /// Rows; absent from an archive of definitions.
    Data,
    /// Indexes, keys, triggers.
    PostData,
}

/// One definition.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) dump_id: i64,
    /// Catalogue and oid on the source; `(0, 0)` for what has no row of its own there.
    pub(super) object: (u32, u32),
    /// Name as pg_dump tells it; for people.
    pub(super) tag: String,
    /// `TABLE`, `INDEX`, `COMMENT` …
    pub(super) desc: String,
    pub(super) section: Section,
    /// The statements.
    pub(super) definition: String,
    pub(super) schema: Option<String>,
    pub(super) dependencies: Vec<i64>,
}

/// Reads every entry, in the archive's order, which is an order they can be made in.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let mut r = Bytes { bytes, at: 0, int_size: 4 };
    if r.take(5)? != b"PGDMP" {
        return Err(ArchiveError::Cut(0));
    }
    let (major, minor) = (r.byte()?, r.byte()?);
    r.byte()?;
    if major != 1 || !(12..=16).contains(&minor) {
        return Err(ArchiveError::Version(major, minor));
    }
    r.int_size = usize::from(r.byte()?);
    let offset_size = usize::from(r.byte()?);
    r.byte()?;
    if minor >= 15 {
        r.byte()?;
    } else {
        r.int()?;
    }
    for _ in 0..7 {
        r.int()?;
    }
    for _ in 0..3 {
        r.string()?;
    }
    let count = r.int()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let dump_id = r.int()?;
        r.int()?;
        let tableoid = r.number()?;
        let oid = r.number()?;
        let tag = r.string()?.unwrap_or_default();
        let desc = r.string()?.unwrap_or_default();
        let section = match r.int()? {
            2 => Section::PreData,
            3 => Section::Data,
            4 => Section::PostData,
            _ => Section::None,
        };
        let definition = r.string()?.unwrap_or_default();
        r.string()?;
        r.string()?;
        let schema = r.string()?.filter(|s| !s.is_empty());
        r.string()?;
        if minor >= 14 {
            r.string()?;
        }
        if minor >= 16 {
            r.int()?;
        }
        r.string()?;
        r.string()?;
        let mut dependencies = Vec::new();
        while let Some(id) = r.string()? {
            dependencies.push(id.trim().parse().map_err(|_| ArchiveError::Cut(r.at))?);
        }
        r.take(1 + offset_size)?;
        entries.push(Entry { dump_id, object: (tableoid, oid), tag, desc, section, definition, schema, dependencies });
    }
    Ok(entries)
}

/// The entries by dump id, for following dependencies.
pub(super) fn by_dump_id(entries: &[Entry]) -> HashMap<i64, usize> {
    entries.iter().enumerate().map(|(i, e)| (e.dump_id, i)).collect()
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ArchiveError> {
        let end = self.at.checked_add(n).ok_or(ArchiveError::Cut(self.at))?;
        let part = self.bytes.get(self.at..end).ok_or(ArchiveError::Cut(self.bytes.len()))?;
        self.at = end;
        Ok(part)
    }

    fn byte(&mut self) -> Result<u8, ArchiveError> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> Result<i64, ArchiveError> {
        let negative = self.byte()? != 0;
        let mut value = 0i64;
        for (i, byte) in self.take(self.int_size)?.iter().enumerate() {
            if i < 7 {
                value |= i64::from(*byte) << (8 * i);
            }
        }
        Ok(if negative { -value } else { value })
    }

    fn string(&mut self) -> Result<Option<String>, ArchiveError> {
        let Ok(length) = usize::try_from(self.int()?) else { return Ok(None) };
        let at = self.at;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| ArchiveError::Encoding(at))?;
        Ok(Some(text.to_owned()))
    }

    /// A number written as text.
    fn number(&mut self) -> Result<u32, ArchiveError> {
        let at = self.at;
        self.string()?.unwrap_or_default().trim().parse().map_err(|_| ArchiveError::Cut(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_archive_is_told() {
        assert_eq!(read(b"").unwrap_err(), ArchiveError::Cut(0));
        assert_eq!(read(b"-- PostgreSQL dump").unwrap_err(), ArchiveError::Cut(0));
        assert_eq!(read(b"PGDMP\x01\x63\x00\x04\x08\x01").unwrap_err(), ArchiveError::Version(1, 0x63));
        assert_eq!(read(b"PGDMP\x01\x0e\x00\x04\x08\x01\x00").unwrap_err(), ArchiveError::Cut(12));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(minor in 12u8..17, rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = b"PGDMP\x01".to_vec();
            bytes.push(minor);
            bytes.push(0);
            bytes.extend(rest);
            let _ = read(&bytes);
        }
    }
}
