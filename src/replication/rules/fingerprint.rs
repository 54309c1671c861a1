//! Which rules the rows of an appended table were copied under.
//!
//! Rows that are on the target stay as they were copied: under a new rule they would be masked otherwise than
//! the rows that join them, or not at all. So the rules are remembered beside the watermark, column by column
//! (one that is new on the source is no change), and other ones are refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Rule;
use super::key::{MaskKey, hex};

/// Raised when a named rule makes another mask of the same value.
const VERSION: u8 = 1;

/// What is remembered; no way leads back to the key or to a fixed value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    rows: String,
    /// Columns that are replaced; those that are not here are copied.
    #[serde(default)]
    columns: BTreeMap<String, String>,
    /// All columns there were. Rows of a table without rules do not tell them.
    #[serde(default)]
    known: Vec<String>,
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text)[..12])
}

impl Fingerprint {
    pub(super) fn new(condition: Option<&str>) -> Self {
        Fingerprint { rows: condition.map(digest).unwrap_or_default(), ..Fingerprint::default() }
    }

    pub(super) fn add(&mut self, column: &str, rule: &Rule, sql_type: &str, key: Option<&MaskKey>) {
        if *rule == Rule::Keep {
            return;
        }
        let key = key.filter(|_| rule.keyed()).map(MaskKey::mark).unwrap_or_default();
        self.columns.insert(column.to_owned(), digest(&format!("{VERSION}\n{rule:?}\n{sql_type}\n{key}")));
    }

    /// To be stored after a copy of `columns`.
    #[must_use]
    pub fn stored(mut self, columns: &[String]) -> String {
        self.known = columns.to_vec();
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// What differs from the rules that rows were copied under, of the `columns` that are copied now. Nothing
    /// stored is a table that was filled without rules.
    #[must_use]
    pub fn differences(&self, stored: Option<&str>, columns: &[String]) -> Vec<String> {
        let before: Option<Fingerprint> = stored.and_then(|text| serde_json::from_str(text).ok());
        let mut found = Vec::new();
        if self.rows != before.as_ref().map_or("", |b| b.rows.as_str()) {
            found.push("where".to_owned());
        }
        for column in columns {
            let there = before.as_ref().is_none_or(|b| b.known.contains(column));
            let rule = before.as_ref().and_then(|b| b.columns.get(column));
            if there && self.columns.get(column) != rule {
                found.push(format!("column `{column}`"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_rule_for_a_known_column_is_a_difference_and_a_new_column_is_none() {
        let columns = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let with = |condition: Option<&str>, rules: &[(&str, Rule)], key: &str| {
            let key = MaskKey::new(key).unwrap();
            let mut print = Fingerprint::new(condition);
            rules.iter().for_each(|(c, r)| print.add(c, r, "text", Some(&key)));
            print
        };
        const KEY: &str = "one key of some length";
        let hashed = with(None, &[("a", Rule::Hash)], KEY);
        let stored = hashed.clone().stored(&columns(&["a", "b"]));
        let stored = Some(stored.as_str());
        let none: [&str; 0] = [];
        assert_eq!(hashed.differences(stored, &columns(&["a", "b", "new"])), none);
        assert_eq!(
            with(None, &[("a", Rule::Hash), ("new", Rule::Email)], KEY).differences(stored, &columns(&["a", "new"])),
            none
        );
        assert_eq!(
            with(None, &[("a", Rule::Hash), ("b", Rule::Hash)], KEY).differences(stored, &columns(&["a", "b"])),
            ["column `b`"]
        );
        assert_eq!(
            with(None, &[("a", Rule::Hash)], "another key of length").differences(stored, &columns(&["a"])),
            ["column `a`"]
        );
        assert_eq!(Fingerprint::default().differences(stored, &columns(&["a", "b"])), ["column `a`"]);
        assert_eq!(with(Some("b > 1"), &[("a", Rule::Hash)], KEY).differences(stored, &columns(&["a"])), ["where"]);
        assert_eq!(hashed.differences(None, &columns(&["a", "b"])), ["column `a`"]);
        assert_eq!(Fingerprint::default().differences(None, &columns(&["a", "b"])), none);
        let fixed = with(None, &[("a", Rule::Fixed("x".to_owned()))], KEY).stored(&columns(&["a"]));
        let other = with(None, &[("a", Rule::Fixed("x".to_owned()))], "another key of length");
        assert_eq!(other.differences(Some(&fixed), &columns(&["a"])), none, "no key, no difference");
    }
}
