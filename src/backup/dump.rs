//! The whole database as SQL, by `pg_dump` in the run's snapshot.

use std::path::Path;

use super::reading::Reading;
use super::tar::{Open, ReadError};
use crate::postgres::Database;
use crate::postgres::client_programs::{PgDump, Unusable};
use crate::process::ProcessError;
use crate::worker::Run;

/// Name of the member.
pub(super) const MEMBER: &str = "database.sql";

/// A dump without this at its end was cut off, whatever the program's exit code says.
const END: &[u8] = b"-- PostgreSQL database dump complete\n";
/// The marker and, in newer versions, a line that lifts a restriction.
const TAIL: usize = 256;

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// There is no program for it.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The program failed.
    #[error("dumping the database")]
    Failed(#[from] ProcessError),
    /// Its output stopped in the middle.
    #[error("the output of `pg_dump` has no end; it was cut off")]
    CutOff,
    /// The output cannot be passed on.
    #[error("passing on the output of `pg_dump`")]
    Squeeze(#[from] super::squeeze::SqueezeError),
}

/// A dump to be made.
pub(super) struct Dump {
    program: PgDump,
    arguments: Vec<String>,
}

impl Dump {
    /// Finds the program, in `programs` when that is given.
    pub(super) async fn prepare(programs: Option<&Path>, reading: &Reading, snapshot: &str) -> Result<Dump, DumpError> {
        let program = PgDump::find(programs, reading.major()).await?;
        let mut arguments: Vec<String> = [
            "--format=plain",
            "--encoding=UTF8",
            // Where it is restored there may be other tablespaces, and no publisher's password belongs in an archive.
            "--no-tablespaces",
            "--no-subscriptions",
            "--no-password",
            // A table that is locked longer fails the dump, with its name.
            "--lock-wait-timeout=60s",
        ]
        .map(str::to_owned)
        .to_vec();
        if reading.origin.standby {
            // They are empty there, and reading them is an error.
            arguments.push("--no-unlogged-table-data".to_owned());
        }
        arguments.push(format!("--snapshot={snapshot}"));
        Ok(Dump { program, arguments })
    }

    /// Its version.
    pub(super) fn version(&self) -> &str {
        &self.program.version
    }

    /// As a person would type it.
    pub(super) fn text(&self) -> String {
        format!("pg_dump {}", self.arguments.join(" "))
    }

    /// Writes the dump into `member`.
    pub(super) async fn write(&self, run: &Run, source: &Database, member: &mut Open<'_>, before: u64) -> Result<(), DumpError> {
        let mut child = self.program.program(source).args(&self.arguments).start(false, None)?;
        let mut tail: Vec<u8> = Vec::new();
        loop {
            let read = match member.read(&mut child.stdout, &mut |piece| keep_tail(&mut tail, piece)).await {
                Ok(read) => read,
                Err(ReadError::Squeeze(error)) => return Err(error.into()),
                Err(ReadError::Read(error)) => {
                    return Err(ProcessError::Io { program: "pg_dump".to_owned(), reason: error.to_string() }.into());
                }
            };
            if read == 0 {
                break;
            }
            run.progress(|p| p.bytes = before + member.bytes());
        }
        child.end().await.result?;
        if tail.windows(END.len()).any(|window| window == END) { Ok(()) } else { Err(DumpError::CutOff) }
    }
}

fn keep_tail(tail: &mut Vec<u8>, piece: &[u8]) {
    if piece.len() >= TAIL {
        tail.clear();
        tail.extend_from_slice(&piece[piece.len() - TAIL..]);
        return;
    }
    let surplus = (tail.len() + piece.len()).saturating_sub(TAIL);
    tail.drain(..surplus);
    tail.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_bytes_however_they_came() {
        let mut tail = Vec::new();
        for n in 0..1000_u32 {
            keep_tail(&mut tail, format!("{n},").as_bytes());
        }
        assert!(tail.len() == TAIL && tail.ends_with(b"998,999,"));
        keep_tail(&mut tail, &[b'x'; 3 * TAIL]);
        assert_eq!(tail, [b'x'; TAIL]);
    }
}
