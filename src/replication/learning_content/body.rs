//! The answer's body, read as it arrives: bytes in, rows of COPY text out, one item in memory.
//!
//! serde_json reads from a blocking source, so the parser has a thread of its own between two
//! short channels. Either side's end ends it: no bytes any more, or nobody who takes its rows.

use std::fmt;
use std::io::{self, Read};

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc;

use super::ContentError;
use super::mapping::{Mapping, Table};
use super::value::write_row;

/// Rows are handed on once they are this many bytes.
const CHUNK: usize = 64 * 1024;

/// What the parser found, in the order of the body.
#[derive(Debug)]
pub(super) enum Piece {
    /// From here on, rows are of this table (its place in the mapping).
    Table(usize),
    /// Rows of COPY text, with the id of each for error messages.
    Rows { text: String, ids: Vec<String> },
    /// The body is complete and holds every table.
    End,
}

/// What the body as a whole was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// An object with all tables.
    Content,
    /// Empty, or one of JavaScript's empty values: nothing to load.
    Nothing,
}

/// Parses the body that arrives on `bytes`. Blocking: for a thread of its own.
pub(super) fn parse(mapping: &Mapping, bytes: mpsc::Receiver<Bytes>, rows: &mpsc::Sender<Piece>) -> Result<Body, ContentError> {
    let mut source = Source { bytes, now: Bytes::new(), blank: true };
    let mut deserializer = serde_json::Deserializer::from_reader(io::BufReader::with_capacity(CHUNK, &mut source));
    let mut top = Top { mapping, rows, failure: None };
    let result = (&mut top).deserialize(&mut deserializer).and_then(|body| deserializer.end().map(|()| body));
    drop(deserializer);
    match result {
        Ok(body) => {
            if body == Body::Content {
                top.send(Piece::End)?;
            }
            Ok(body)
        }
        // The reason of a failure of ours travels beside serde's error, which only holds text.
        Err(_) if top.failure.is_some() => Err(top.failure.unwrap_or(ContentError::Abandoned)),
        Err(error) if error.is_eof() && source.blank => Ok(Body::Nothing),
        Err(error) => Err(ContentError::Json(error.to_string())),
    }
}

/// The channel as a blocking reader.
struct Source {
    bytes: mpsc::Receiver<Bytes>,
    now: Bytes,
    /// Whether nothing but white space has come.
    blank: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.bytes.blocking_recv() {
                Some(next) => self.now = next,
                None => return Ok(0),
            }
        }
        let length = self.now.len().min(buffer.len());
        let taken = self.now.split_to(length);
        self.blank &= taken.iter().all(u8::is_ascii_whitespace);
        buffer[..length].copy_from_slice(&taken);
        Ok(length)
    }
}

/// The whole body.
struct Top<'m> {
    mapping: &'m Mapping,
    rows: &'m mpsc::Sender<Piece>,
    failure: Option<ContentError>,
}

impl Top<'_> {
    fn send(&self, piece: Piece) -> Result<(), ContentError> {
        self.rows.blocking_send(piece).map_err(|_| ContentError::Abandoned)
    }

    /// Keeps `error` and gives serde one to carry upwards.
    fn fail<E: serde::de::Error>(&mut self, error: ContentError) -> E {
        let carried = E::custom(&error);
        self.failure = Some(error);
        carried
    }
}

impl<'de> DeserializeSeed<'de> for &mut Top<'_> {
    type Value = Body;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Body, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Top<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one array for each table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut found = vec![false; self.mapping.tables.len()];
        while let Some(name) = map.next_key::<String>()? {
            let Some(index) = self.mapping.tables.iter().position(|t| t.name == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if std::mem::replace(&mut found[index], true) {
                return Err(self.fail(ContentError::Twice(name)));
            }
            self.send(Piece::Table(index)).map_err(|e| self.fail(e))?;
            found[index] = map.next_value_seed(Items { table: &self.mapping.tables[index], top: &mut *self })?;
        }
        let missing: Vec<String> =
            self.mapping.tables.iter().zip(found).filter(|(_, found)| !found).map(|(t, _)| t.name.clone()).collect();
        if missing.is_empty() { Ok(Body::Content) } else { Err(self.fail(ContentError::Missing(missing))) }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Body, E> {
        if value { Err(E::invalid_type(serde::de::Unexpected::Bool(true), &self)) } else { Ok(Body::Nothing) }
    }

    fn visit_unit<E>(self) -> Result<Body, E> {
        Ok(Body::Nothing)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Body, E> {
        // Not shown: it may be an error page of any length.
        if value.is_empty() {
            Ok(Body::Nothing)
        } else {
            Err(E::custom("a text where an object with one array for each table was expected"))
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Body, E> {
        if value == 0 { Ok(Body::Nothing) } else { Err(E::invalid_type(serde::de::Unexpected::Unsigned(value), &self)) }
    }
}

/// The array of one table. Its value is whether it was an array at all.
struct Items<'t, 'm> {
    table: &'t Table,
    top: &'t mut Top<'m>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of items for table `{}`", self.table.name)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        let mut text = String::new();
        let mut ids = Vec::new();
        let mut number = 1_u64;
        while let Some(item) = items.next_element::<Value>()? {
            match write_row(self.table, &item, &mut text) {
                Some(id) => ids.push(id),
                None => {
                    let error = ContentError::NoProperty { table: self.table.name.clone(), problem: without_id(number, &item) };
                    return Err(self.top.fail(error));
                }
            }
            number += 1;
            if text.len() >= CHUNK {
                let rows = Piece::Rows { text: std::mem::take(&mut text), ids: std::mem::take(&mut ids) };
                self.top.send(rows).map_err(|e| self.top.fail(e))?;
            }
        }
        if !ids.is_empty() {
            self.top.send(Piece::Rows { text, ids }).map_err(|e| self.top.fail(e))?;
        }
        Ok(true)
    }

    // null, false and the like count as a missing array; the list of all missing ones says more
    // than the first mismatch.
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(false)
    }
}

/// What item `number` is, without its values and not too long: it may be anything.
fn without_id(number: u64, item: &Value) -> String {
    const MEMBERS: usize = 8;
    const LETTERS: usize = 40;
    let Value::Object(members) = item else { return format!("item {number} is no object") };
    if members.is_empty() {
        return format!("item {number} is empty");
    }
    let mut names: Vec<String> =
        members.keys().take(MEMBERS).map(|name| format!("`{}`", name.chars().take(LETTERS).collect::<String>())).collect();
    if members.len() > MEMBERS {
        names.push(format!("{} more", members.len() - MEMBERS));
    }
    let id = if members.contains_key("id") { "an `id` that is null" } else { "no `id`" };
    format!("item {number} has {id}; its members are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPING: &str = "[[table]]\nname=\"a\"\n[[table]]\nname=\"b\"\ncolumns=[{name=\"x\",type=\"text\"}]";

    fn parse_all(body: &[u8]) -> (Result<Body, ContentError>, Vec<String>) {
        let mapping = Mapping::parse(MAPPING).unwrap();
        let (feed, bytes) = mpsc::channel(1000);
        // Byte by byte: no token may depend on arriving whole.
        for byte in body {
            feed.blocking_send(Bytes::copy_from_slice(&[*byte])).unwrap();
        }
        drop(feed);
        let (rows, mut taken) = mpsc::channel(1000);
        let result = parse(&mapping, bytes, &rows);
        let mut pieces = Vec::new();
        while let Ok(piece) = taken.try_recv() {
            pieces.push(format!("{piece:?}"));
        }
        (result, pieces)
    }

    #[test]
    fn unknown_members_are_ignored_and_order_is_free() {
        let (result, pieces) = parse_all(br#"{"z":[{"deep":[1]}],"b":[{"id":"1","x":"y","w":{}}],"a":[]}"#);
        assert_eq!(result.unwrap(), Body::Content);
        assert_eq!(pieces, ["Table(1)", r#"Rows { text: "1\ty\n", ids: ["1"] }"#, "Table(0)", "End"]);
    }

    #[test]
    fn empty_and_false_bodies_are_nothing_to_do() {
        for body in ["", " \n", "false", "null", "\"\"", "0"] {
            assert_eq!(parse_all(body.as_bytes()).0.unwrap(), Body::Nothing, "{body:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_body_is_told() {
        for (body, wanted) in [
            ("{}", "no array for: a, b"),
            (r#"{"a":[],"b":null}"#, "no array for: b"),
            (r#"{"a":{"c":1},"b":"x"}"#, "no array for: a, b"),
            (r#"{"a":[],"a":[],"b":[]}"#, "twice"),
            (r#"{"a":[{}],"b":[]}"#, "in table a has no property at all: item 1 is empty"),
            (r#"{"a":[{"id":"1"},{"name":"secret"}],"b":[]}"#, "item 2 has no `id`; its members are `name`"),
            (r#"{"a":[{"id":null}],"b":[]}"#, "item 1 has an `id` that is null; its members are `id`"),
            (r#"{"a":["secret"],"b":[]}"#, "item 1 is no object"),
            (r#"{"a":[{"id":"1"}],"b":["#, "EOF"),
            (r#"{"a":[],"b":[]}x"#, "trailing"),
            ("[]", "invalid type: sequence"),
            ("\"oops, secret\"", "a text where an object"),
            ("<html>", "expected value"),
        ] {
            let (result, pieces) = parse_all(body.as_bytes());
            let text = result.unwrap_err().to_string();
            assert!(text.contains(wanted), "{body}: {text}");
            assert!(!pieces.contains(&"End".to_owned()) && !text.contains("secret"));
        }
    }
}
