//! The named rules as SQL expressions of PostgreSQL's own functions, 12 and newer.
//!
//! All are NULL for NULL, and read the same value alike under every setting of a session, so a value has one mask
//! in every table and every night.
//!
//! | type | `hash` | two values with one mask |
//! |---|---|---|
//! | text, varchar(n), char(n), citext, name | hex digits: 32, or n | 1 in 2¹²⁸ a pair, or 16ⁿ |
//! | uuid | a random-looking uuid (version 4) | 1 in 2¹²² a pair |
//! | bytea | 32 bytes | 1 in 2²⁵⁶ a pair |
//! | smallint, integer, bigint | a number of the same sign | never: the numbers change places |
//!
//! A whole number goes through a Feistel network of four rounds over all its bits but the sign, which is a
//! permutation whatever its round function is; that is HMAC here. A hash cut to 31 bits would meet its like
//! among 50 000 keys.

use super::Rule;
use super::catalogue::Column;
use super::key::hmac;
use crate::postgres::{quote_identifier, quote_literal};

/// Hex digits of a hashed text.
const TEXT_DIGITS: usize = 32;
/// Hex digits of a mail address, and the fewest that keep addresses apart.
const MAIL_DIGITS: usize = 24;
const FEWEST_MAIL_DIGITS: usize = 12;
/// It can never receive anything (RFC 2606).
const MAIL_DOMAIN: &str = "@masked.invalid";
/// Fewer hex digits do not keep the values of a unique column apart.
const UNIQUE_DIGITS: usize = 16;

/// What a rule makes of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mask {
    /// The expression, of the column's type; nothing: the column itself.
    pub(super) sql: Option<String>,
    /// Equal for columns whose equal values stay equal; nothing: unknown.
    pub(super) family: Option<String>,
    /// Different values may get one mask.
    pub(super) merges: bool,
}

/// The mask of `column`, or why there is none.
pub(super) fn mask(rule: &Rule, column: &Column) -> Result<Mask, String> {
    let name = quote_identifier(&column.name);
    let (sql, family, merges) = match rule {
        Rule::Keep => return Ok(Mask { sql: None, family: Some("keep".to_owned()), merges: false }),
        Rule::Null if column.not_null => return Err("rule `null`, but the column is NOT NULL; write { fixed = … }".to_owned()),
        Rule::Null => ("null".to_owned(), None, false),
        Rule::Fixed(text) => {
            (format!("case when {name} is null then null else {}::{} end", quote_literal(text), column.sql_type), None, true)
        }
        Rule::Sql(text) => (text.clone(), None, false),
        Rule::Hash => hash(&name, column)?,
        Rule::Email => email(&name, column)?,
        Rule::DateShift(days) => date_shift(&name, column, *days)?,
    };
    Ok(Mask { sql: Some(format!("({sql})::{}", column.sql_type)), family, merges })
}

type Made = (String, Option<String>, bool);

fn unsuited(rule: &str, column: &Column) -> String {
    format!("rule `{rule}` is not for type `{}`; write \"null\", {{ fixed = … }}, {{ sql = … }} or \"keep\"", column.sql_type)
}

/// The hex digits of the keyed hash of `value`, a text; `kind` keeps equal texts of different kinds apart.
fn digits(kind: &str, value: &str) -> String {
    format!("encode({}, 'hex')", hmac(&format!("convert_to('{kind}:' || {value}, 'UTF8')")))
}

/// The first `count` hex digits of the keyed hash as a whole number; at most 14.
fn number(kind: &str, value: &str, count: usize) -> String {
    format!("('x' || left({}, {count}))::bit({})::int8", digits(kind, value), count * 4)
}

/// The value as a text that equal values have in common; nothing for other types.
fn text(name: &str, column: &Column) -> Option<String> {
    match column.base.as_str() {
        "text" | "varchar" | "bpchar" | "name" => Some(format!("{name}::text")),
        "citext" => Some(format!("lower({name}::text)")),
        _ => None,
    }
}

fn hash(name: &str, column: &Column) -> Result<Made, String> {
    if let Some(value) = text(name, column) {
        let count = column.length.unwrap_or(TEXT_DIGITS).min(TEXT_DIGITS);
        let sql = format!("left({}, {count})", digits("text", &value));
        return Ok((sql, Some(format!("hash text {count}")), count < UNIQUE_DIGITS));
    }
    let sql = match column.base.as_str() {
        "uuid" => format!(
            "overlay(overlay(left({}, 32) placing '4' from 13) placing 'a' from 17)",
            digits("uuid", &format!("{name}::text"))
        ),
        "bytea" => hmac(&format!("('bytea:'::bytea || {name})")),
        "int2" => permuted(name, "int2", 8, 7),
        "int4" => permuted(name, "int4", 16, 15),
        "int8" => permuted(name, "int8", 32, 31),
        _ => return Err(unsuited("hash", column)),
    };
    Ok((sql, Some(format!("hash {}", column.base)), false))
}

/// A permutation of the whole numbers of `high + low` bits, and of their negatives.
fn permuted(name: &str, kind: &str, high: u32, low: u32) -> String {
    let round = |number_of: u32, value: &str, bits: u32| {
        format!("({} & {})", number(&format!("{kind} {number_of}"), &format!("{value}::text"), 8), (1u64 << bits) - 1)
    };
    // `offset 0` keeps the planner from writing each step out where the next one uses it twice.
    let mut sql = format!("select {name}::int8 as v offset 0");
    sql = format!("select v >> 63 as s, v # (v >> 63) as v from ({sql}) r offset 0");
    sql = format!("select s, v >> {low} as a, v & {} as b from ({sql}) r offset 0", (1u64 << low) - 1);
    for number_of in 1..=4 {
        sql = if number_of % 2 == 1 {
            format!("select s, a # {} as a, b from ({sql}) r offset 0", round(number_of, "b", high))
        } else {
            format!("select s, a, b # {} as b from ({sql}) r offset 0", round(number_of, "a", low))
        };
    }
    format!("select ((a << {low}) | b) # s from ({sql}) r")
}

fn email(name: &str, column: &Column) -> Result<Made, String> {
    let Some(value) = text(name, column) else { return Err(unsuited("email", column)) };
    let room = column.length.unwrap_or(usize::MAX).saturating_sub(MAIL_DOMAIN.len());
    if room < FEWEST_MAIL_DIGITS {
        return Err(format!(
            "rule `email` needs {} characters and `{}` has fewer; write \"hash\" or {{ sql = … }}",
            MAIL_DOMAIN.len() + FEWEST_MAIL_DIGITS,
            column.sql_type
        ));
    }
    let count = room.min(MAIL_DIGITS);
    let sql = format!("left({}, {count}) || '{MAIL_DOMAIN}'", digits("text", &value));
    Ok((sql, Some(format!("email {count}")), count < UNIQUE_DIGITS))
}

/// Every value goes its own way, never nowhere: dates by whole days, moments by microseconds, because a time of
/// day may tell as much as a date.
fn date_shift(name: &str, column: &Column, days: u32) -> Result<Made, String> {
    let days = u64::from(days);
    let (value, span) = match column.base.as_str() {
        "date" => (format!("({name} - date '2000-01-01')::text"), days),
        "timestamp" | "timestamptz" => (format!("(extract(epoch from {name}) * 1000000)::int8::text"), days * 86_400_000_000),
        _ => return Err(unsuited("date_shift", column)),
    };
    let kind = &column.base;
    let shift = format!(
        "(select k - {span} + (k >= {span})::int from (select {} % {} as k offset 0) r)",
        number(kind, &value, 14),
        span * 2
    );
    let shifted = match kind.as_str() {
        "date" => format!("{name} + {shift}::int"),
        _ => format!("{name} + {shift}::float8 * interval '1 microsecond'"),
    };
    let sql = format!("case when isfinite({name}) then {shifted} else {name} end");
    Ok((sql, Some(format!("date_shift {days} {kind}")), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(base: &str, sql_type: &str, length: Option<usize>) -> Column {
        Column { name: "a\"b".to_owned(), base: base.to_owned(), sql_type: sql_type.to_owned(), length, ..Column::default() }
    }

    #[test]
    fn a_mask_is_of_the_columns_type_and_quotes_its_name() {
        let made = mask(&Rule::Hash, &column("varchar", "character varying(20)", Some(20))).unwrap();
        let sql = made.sql.unwrap();
        assert!(sql.ends_with(", 20))::character varying(20)") && sql.contains("\"a\"\"b\"::text"), "{sql}");
        assert!(!made.merges);
        assert!(mask(&Rule::Hash, &column("varchar", "character varying(8)", Some(8))).unwrap().merges);
        assert_eq!(mask(&Rule::Keep, &column("xml", "xml", None)).unwrap().sql, None);
        let fixed = mask(&Rule::Fixed("it's".to_owned()), &column("text", "text", None)).unwrap();
        assert_eq!(fixed.sql.unwrap(), "(case when \"a\"\"b\" is null then null else 'it''s'::text end)::text");
    }

    #[test]
    fn unsuited_types_are_named() {
        for (rule, base) in [
            (Rule::Hash, "bool"),
            (Rule::Hash, "jsonb"),
            (Rule::Hash, "numeric"),
            (Rule::Hash, "date"),
            (Rule::Email, "int4"),
            (Rule::DateShift(3), "text"),
            (Rule::DateShift(3), "time"),
        ] {
            let problem = mask(&rule, &column(base, &format!("the {base}"), None)).unwrap_err();
            assert!(problem.contains(&format!("is not for type `the {base}`")) && problem.contains(rule.name()), "{problem}");
        }
        let mut column = column("text", "text", None);
        column.not_null = true;
        assert!(mask(&Rule::Null, &column).unwrap_err().contains("NOT NULL"));
        column.length = Some(20);
        assert!(mask(&Rule::Email, &column).unwrap_err().contains("27 characters"));
    }
}
