//! Objects that stand in another schema while a copy is built beside the live one.
//!
//! A definition names everything with its schema, as the server wrote it. Names of staged objects are
//! found in it as tokens, never as text: comments, literals and function bodies are left alone, but for
//! literals that are cast to a name (`'public.s'::regclass`). What is made from such a definition refers
//! to the others by identity, so moving it into its real schema later changes nothing in it. That nothing
//! refers to the live copy by mistake is proven from the catalogue before rows are copied
//! ([`super::stage`]).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::postgres::quote_identifier;
use crate::replication::settings::TableName;

/// Which objects stand elsewhere; none by default.
#[derive(Clone, Debug, Default)]
pub(super) struct Relocation {
    /// Real schema → the one that stands for it.
    schemas: HashMap<String, String>,
    /// Staged objects of any kind, by their real name.
    names: HashSet<TableName>,
}

impl Relocation {
    pub(super) fn new(names: HashSet<TableName>, stand_in: impl Fn(&str) -> String) -> Self {
        let schemas = names.iter().map(|name| (name.schema.clone(), stand_in(&name.schema))).collect();
        Relocation { schemas, names }
    }

    /// Adds a schema and the one that stands for it.
    pub(super) fn add_schema(&mut self, real: &str, stand_in: String) {
        self.schemas.insert(real.to_owned(), stand_in);
    }

    /// Adds an object of a schema that is known already; false when it is not.
    pub(super) fn add(&mut self, name: TableName) -> bool {
        let known = self.schemas.contains_key(&name.schema);
        if known {
            self.names.insert(name);
        }
        known
    }

    /// Real schemas and their stand-ins.
    pub(super) fn schemas(&self) -> impl Iterator<Item = (&str, &str)> {
        self.schemas.iter().map(|(real, stand_in)| (real.as_str(), stand_in.as_str()))
    }

    /// Whether anything is staged.
    pub(super) fn is_staged(&self) -> bool {
        !self.schemas.is_empty()
    }

    /// Where the object of that name is now.
    pub(super) fn at(&self, name: &TableName) -> TableName {
        match self.schemas.get(&name.schema) {
            Some(stand_in) if self.names.contains(name) => TableName { schema: stand_in.clone(), name: name.name.clone() },
            _ => name.clone(),
        }
    }

    /// Where a further object of that name belongs: beside the others, when they are staged.
    pub(super) fn beside(&self, name: &TableName) -> TableName {
        let stand_in = self
            .schemas
            .get(&name.schema)
            .cloned()
            .or_else(|| self.is_staged().then(|| super::generation::new_schema(&name.schema)));
        TableName { schema: stand_in.unwrap_or_else(|| name.schema.clone()), name: name.name.clone() }
    }

    /// A definition with the names of staged objects as they are now.
    pub(super) fn sql<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.schemas.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + 64);
        let mut lexer = Lexer { text, at: 0 };
        let mut changed = false;
        let mut qualifies = false;
        while lexer.at < text.len() {
            let start = lexer.at;
            let token = lexer.next();
            let piece = &text[start..lexer.at];
            match token {
                Token::Name(schema) if !qualifies => {
                    let rest = lexer.at;
                    if let Some(name) = lexer.after_dot()
                        && let Some(stand_in) = self.stand_in(&schema, &name)
                    {
                        out.push_str(&quote_identifier(stand_in));
                        out.push_str(&text[rest..lexer.at]);
                        changed = true;
                    } else {
                        lexer.at = rest;
                        out.push_str(piece);
                    }
                }
                Token::Literal => match self.cast_name(piece, &text[lexer.at..]) {
                    Some(literal) => {
                        out.push_str(&literal);
                        changed = true;
                    }
                    None => out.push_str(piece),
                },
                _ => out.push_str(piece),
            }
            qualifies = text[..lexer.at].ends_with('.');
        }
        if changed { Cow::Owned(out) } else { Cow::Borrowed(text) }
    }

    fn stand_in(&self, schema: &str, name: &str) -> Option<&str> {
        let stand_in = self.schemas.get(schema)?;
        let wanted = TableName { schema: schema.to_owned(), name: name.to_owned() };
        self.names.contains(&wanted).then_some(stand_in)
    }

    /// A literal that is cast to a name, when it names a staged object.
    fn cast_name(&self, literal: &str, rest: &str) -> Option<String> {
        let cast = rest.trim_start().strip_prefix("::")?.trim_start();
        let cast = cast.strip_prefix("pg_catalog.").unwrap_or(cast);
        ["regclass", "regtype", "regproc"].iter().find(|kind| cast.starts_with(**kind))?;
        let inner = literal.strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'");
        match self.sql(&inner) {
            Cow::Owned(inner) => Some(format!("'{}'", inner.replace('\'', "''"))),
            Cow::Borrowed(_) => None,
        }
    }
}

/// Schema and plain name of a qualified name as the server writes it, arguments aside.
pub(super) fn split(identity: &str) -> Option<TableName> {
    let mut lexer = Lexer { text: identity, at: 0 };
    let Token::Name(schema) = lexer.next() else { return None };
    Some(TableName { schema, name: lexer.after_dot()? })
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Literal,
    Other,
}

/// Just enough of SQL's lexical rules (PostgreSQL manual, 4.1).
struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_to(&mut self, end: Option<usize>) {
        self.at = end.map_or(self.text.len(), |n| self.at + n);
    }

    fn next(&mut self) -> Token {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Token::Other };
        if rest.starts_with("--") {
            let end = rest.find('\n');
            self.skip_to(end);
        } else if rest.starts_with("/*") {
            let end = comment_end(rest);
            self.skip_to(end);
        } else if first == '\'' {
            let end = literal_end(rest, false);
            self.skip_to(end);
            return Token::Literal;
        } else if first == '"' {
            return self.quoted_name();
        } else if first == '$' {
            let end = dollar_end(rest);
            self.skip_to(Some(end.unwrap_or(1)));
        } else if begins_name(first) {
            let end = rest.find(|c: char| !(begins_name(c) || c.is_ascii_digit() || c == '$')).unwrap_or(rest.len());
            let name = &rest[..end];
            // A literal with backslash escapes; other prefixes change nothing for us.
            if name.eq_ignore_ascii_case("e") && rest[end..].starts_with('\'') {
                let literal = literal_end(&rest[end..], true).map(|n| n + end);
                self.skip_to(literal);
                return Token::Other;
            }
            let name = name.to_lowercase();
            self.at += end;
            return Token::Name(name);
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            self.at += end;
        } else {
            self.at += first.len_utf8();
        }
        Token::Other
    }

    fn quoted_name(&mut self) -> Token {
        let rest = self.rest();
        let mut from = 1;
        while let Some(quote) = rest[from..].find('"') {
            let end = from + quote + 1;
            if rest[end..].starts_with('"') {
                from = end + 1;
                continue;
            }
            let name = rest[1..end - 1].replace("\"\"", "\"");
            self.at += end;
            return Token::Name(name);
        }
        self.at = self.text.len();
        Token::Other
    }

    /// The name behind a dot that follows at once.
    fn after_dot(&mut self) -> Option<String> {
        let before = self.at;
        if self.rest().starts_with('.') {
            self.at += 1;
            if let Token::Name(name) = self.next() {
                return Some(name);
            }
        }
        self.at = before;
        None
    }
}

/// Just behind the literal that `text` begins with.
fn literal_end(text: &str, escapes: bool) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn comment_end(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// Just behind the dollar-quoted text that `text` begins with.
fn dollar_end(text: &str) -> Option<usize> {
    let tag_end = 1 + text[1..].find('$')?;
    let tag = &text[..=tag_end];
    let inner = &tag[1..tag.len() - 1];
    let is_tag = inner.chars().next().is_none_or(begins_name) && inner.chars().all(|c| begins_name(c) || c.is_ascii_digit());
    if !is_tag {
        return None;
    }
    Some(tag.len() + text[tag.len()..].find(tag)? + tag.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relocation() -> Relocation {
        let names = [
            ("public", "t"),
            ("public", "we\"ird"),
            ("public", "s_id_seq"),
            ("Other", "Up Per"),
            ("public", "f"),
            ("public", "e"),
        ];
        let names = names.map(|(schema, name)| TableName { schema: schema.into(), name: name.into() });
        Relocation::new(HashSet::from(names), |schema| format!("new_{schema}"))
    }

    #[test]
    fn staged_objects_are_named_where_they_are() {
        for (text, wanted) in [
            ("CREATE TABLE public.t (a public.e)", r#"CREATE TABLE "new_public".t (a "new_public".e)"#),
            (
                "create index i on PUBLIC.T using btree (public.f(a))",
                r#"create index i on "new_public".T using btree ("new_public".f(a))"#,
            ),
            (
                r#"select "public"."we""ird".c, "Other"."Up Per" from x"#,
                r#"select "new_public"."we""ird".c, "new_Other"."Up Per" from x"#,
            ),
            ("nextval('public.s_id_seq'::regclass)", r#"nextval('"new_public".s_id_seq'::regclass)"#),
            (
                "ALTER SEQUENCE public.s_id_seq OWNED BY public.t.id",
                r#"ALTER SEQUENCE "new_public".s_id_seq OWNED BY "new_public".t.id"#,
            ),
        ] {
            assert_eq!(relocation().sql(text), wanted);
        }
    }

    #[test]
    fn everything_else_is_left_as_it_is() {
        for text in [
            "select public.other, x.public.t, t.public, public . t from a",
            "select 'public.t', E'it\\'s public.t', $$ public.t $$, $b$ $$ public.t $b$ -- public.t\n/* public.t /* x */ public.t */",
            "select $1, 1e5, \"Public\".t, other.up",
            "select 'public.unknown'::regclass",
            "unterminated 'public.t",
            "unterminated \"public",
        ] {
            assert_eq!(relocation().sql(text), text);
        }
        assert_eq!(Relocation::default().sql("public.t"), "public.t");
    }

    #[test]
    fn qualified_names_are_split() {
        let name = |schema: &str, name: &str| Some(TableName { schema: schema.into(), name: name.into() });
        assert_eq!(split("public.f(integer, text)"), name("public", "f"));
        assert_eq!(split("\"We.ird\".\"F (x)\"(a.b)"), name("We.ird", "F (x)"));
        assert_eq!((split("plain"), split("")), (None, None));
    }

    proptest! {
        #[test]
        fn whatever_the_text_nothing_panics_and_nothing_else_is_lost(text in "[ a-z.'\"$\\\\/*é0-9E-]{0,60}") {
            let _ = relocation().sql(&text);
            prop_assert_eq!(Relocation::new(HashSet::new(), str::to_owned).sql(&text), text.as_str());
        }
    }
}
