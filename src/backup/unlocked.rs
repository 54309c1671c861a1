//! A script of `pg_dump` with its own lock left out: the lines `\\restrict KEY` near its beginning and `\\unrestrict KEY` at its end.

use std::borrow::Cow;

/// Comments before the lock are shorter.
const HEAD: usize = 16 << 10;
/// `pg_dump` writes nothing but the last line after its last comment.
const TAIL: usize = 4 << 10;

/// Takes a script in pieces of any size.
#[derive(Debug)]
pub(super) enum Unlocked {
    /// Only comments so far.
    Begun(Vec<u8>),
    /// There is no lock.
    Open,
    /// There is one.
    Locked {
        /// The line that lifts it.
        lifts: Vec<u8>,
        /// The end of what came, in which that line may be.
        tail: Vec<u8>,
    },
}

impl Default for Unlocked {
    fn default() -> Self {
        Unlocked::Begun(Vec::new())
    }
}

impl Unlocked {
    /// What may be passed on.
    pub(super) fn feed<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        match self {
            Unlocked::Open => Cow::Borrowed(bytes),
            Unlocked::Locked { tail, .. } => {
                let mut known = std::mem::take(tail);
                known.extend_from_slice(bytes);
                *tail = known.split_off(known.len().saturating_sub(TAIL));
                Cow::Owned(known)
            }
            Unlocked::Begun(head) => {
                let mut head = std::mem::take(head);
                head.extend_from_slice(bytes);
                Cow::Owned(self.begin(head))
            }
        }
    }

    /// Looks for the lock in all that came.
    fn begin(&mut self, mut head: Vec<u8>) -> Vec<u8> {
        let mut at = 0;
        while let Some(length) = head[at..].iter().position(|byte| *byte == b'\n') {
            let line = head[at..at + length].trim_ascii_end();
            if let Some(key) = line.strip_prefix(b"\\restrict ") {
                *self = Unlocked::Locked { lifts: [b"\\unrestrict ", key].concat(), tail: Vec::new() };
                let rest = head.split_off(at + length + 1);
                head.truncate(at);
                head.extend_from_slice(&self.feed(&rest));
                return head;
            }
            if !line.is_empty() && !line.starts_with(b"--") {
                *self = Unlocked::Open;
                return head;
            }
            at += length + 1;
        }
        if head.len() > HEAD {
            *self = Unlocked::Open;
            return head;
        }
        *self = Unlocked::Begun(head);
        Vec::new()
    }

    /// What was held back.
    pub(super) fn end(self) -> Vec<u8> {
        match self {
            Unlocked::Begun(head) => head,
            Unlocked::Open => Vec::new(),
            Unlocked::Locked { lifts, tail } => match tail.trim_ascii_end().strip_suffix(lifts.as_slice()) {
                Some(before) if before.is_empty() || before.ends_with(b"\n") => before.to_vec(),
                _ => tail,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Unlocked;

    fn through(script: &str, piece: usize) -> String {
        let mut unlocked = Unlocked::default();
        let mut passed = Vec::new();
        for bytes in script.as_bytes().chunks(piece) {
            passed.extend_from_slice(&unlocked.feed(bytes));
        }
        passed.extend(unlocked.end());
        String::from_utf8(passed).unwrap()
    }

    #[test]
    fn the_lock_of_a_dump_is_left_out_and_nothing_else() {
        let rows = "copy t from stdin;\n\\unrestrict Key\n\\! touch x\n\\.\n".repeat(300);
        let body = format!("SET x = 1;\n{rows}--\n-- PostgreSQL database dump complete\n--\n\n");
        for piece in [1, 7, 4096, 1 << 20] {
            let locked = format!("--\n-- PostgreSQL database dump\n--\n\n\\restrict Key\n\n{body}\\unrestrict Key\n\n");
            assert_eq!(through(&locked, piece), format!("--\n-- PostgreSQL database dump\n--\n\n\n{body}"), "{piece}");
            // Older dumps have none; one with another key is what somebody put there.
            for kept in [body.clone(), format!("--\n{body}"), format!("\\! x\n{body}"), String::new(), "--".to_owned()] {
                assert_eq!(through(&kept, piece), kept, "{piece}");
            }
            let other = format!("\\restrict Key\n{body}\\unrestrict Other\n");
            assert_eq!(through(&other, piece), format!("{body}\\unrestrict Other\n"), "{piece}");
        }
    }
}
