//! The elements of a JSON array, one by one, as they come: a fixture may be larger than memory.

/// Longest row: more than PostgreSQL takes for one.
const LARGEST: usize = 1 << 30;

/// Cuts a stream into the objects of its one array.
#[derive(Debug, Default)]
pub(super) struct Rows {
    state: State,
    buffer: Vec<u8>,
    depth: u32,
    in_text: bool,
    escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Between,
    Inside,
    After,
}

impl Rows {
    /// Takes the next bytes and gives each object that ends in them to `found`.
    pub(super) fn feed(&mut self, piece: &[u8], mut found: impl FnMut(Vec<u8>)) -> Result<(), String> {
        for byte in piece {
            let blank = byte.is_ascii_whitespace();
            match (self.state, byte) {
                (State::Before, b'[') => self.state = State::Between,
                (State::Between, b']') => self.state = State::After,
                (State::Between, b'{') => {
                    (self.state, self.depth) = (State::Inside, 1);
                    self.buffer.push(b'{');
                }
                (State::Between, b',') => {}
                (State::Before | State::Between | State::After, _) if blank => {}
                (State::Inside, _) => {
                    self.buffer.push(*byte);
                    if self.inside(*byte) {
                        self.state = State::Between;
                        found(std::mem::take(&mut self.buffer));
                    } else if self.buffer.len() > LARGEST {
                        return Err(format!("a row has more than {LARGEST} bytes"));
                    }
                }
                _ => return Err(format!("it is no list of objects: `{}` is out of place", byte.escape_ascii())),
            }
        }
        Ok(())
    }

    /// Whether `byte` ends the object.
    fn inside(&mut self, byte: u8) -> bool {
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }

    /// Whether the array came to its end.
    pub(super) fn finish(self) -> Result<(), String> {
        if self.state == State::After { Ok(()) } else { Err("it ends in the middle of the list".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_wherever_the_pieces_are_cut() {
        let objects = [r#"{"a":"}{\"],"}"#, "{\"b\" :\n[1,{\"c\":[]}]}", r#"{"d":"\\"}"#];
        let text = format!(" [\n{}\n]\n", objects.join(",\n"));
        for size in 1..text.len() {
            let mut rows = Rows::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                rows.feed(piece, |row| found.push(String::from_utf8(row).unwrap())).unwrap();
            }
            rows.finish().unwrap();
            assert_eq!(found, objects);
        }
    }

    #[test]
    fn what_is_no_list_of_objects_is_refused() {
        for bad in ["{}", "[1]", "[{}] x", "null"] {
            assert!(Rows::default().feed(bad.as_bytes(), |_| ()).is_err(), "{bad}");
        }
        for cut in ["", "[", "[{\"a\":1", "[{}"] {
            let mut rows = Rows::default();
            rows.feed(cut.as_bytes(), |_| ()).unwrap();
            assert!(rows.finish().is_err(), "{cut}");
        }
    }
}
