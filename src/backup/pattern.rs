//! Which tables are business tables: names with `*` and `?`.

use crate::config::{Reader, Setting};
use crate::replication::settings::TableName;

/// Tables that count.
pub static BACKUP_TABLES: Setting = Setting::new(
    "BACKUP_TABLES",
    "Business tables: an archive is made when one of them has changed. Names, separated by commas, with * for any text and ? for any character; `schema.table` outside `public`. Every archive holds the whole database all the same. Example: auth_*,checkouts_*",
)
.default("*,*.*");
/// Tables that do not.
pub static BACKUP_EXCLUDE_TABLES: Setting = Setting::new(
    "BACKUP_EXCLUDE_TABLES",
    "Tables that are no business tables though BACKUP_TABLES names them, written alike. Example: django_session,*_log",
);

/// The business set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Business {
    include: Vec<String>,
    exclude: Vec<String>,
    /// Whether somebody chose.
    everything: bool,
}

impl Business {
    /// Reads both settings.
    pub fn from_settings(reader: &Reader<'_>) -> Self {
        let list = |setting: &Setting| -> Vec<String> {
            reader.text(setting).split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect()
        };
        let (include, exclude) = (list(&BACKUP_TABLES), list(&BACKUP_EXCLUDE_TABLES));
        if include.is_empty() {
            reader.problem(BACKUP_TABLES.name, "names no table; write * for all");
        }
        let everything = exclude.is_empty() && include.iter().any(|p| p == "*") && include.iter().any(|p| p == "*.*");
        Business { include, exclude, everything }
    }

    /// The choice in words, for comparing.
    #[must_use]
    pub(super) fn told(&self) -> String {
        format!("{} but {}", self.include.join(","), self.exclude.join(","))
    }

    /// Every table, as if nobody chose.
    pub(super) fn everything() -> Self {
        Business { include: vec!["*".to_owned(), "*.*".to_owned()], exclude: Vec::new(), everything: true }
    }

    /// Whether `table` is one.
    #[must_use]
    pub fn holds(&self, table: &TableName) -> bool {
        let named = |patterns: &[String]| patterns.iter().any(|pattern| names(pattern, table));
        named(&self.include) && !named(&self.exclude)
    }

    /// Whether every table is one.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Patterns that name no table of `tables`: misspelt, perhaps, and then changes would go unnoticed.
    #[must_use]
    pub fn idle(&self, tables: &[TableName]) -> Vec<&str> {
        if self.everything {
            return Vec::new();
        }
        let idle = |pattern: &&String| !tables.iter().any(|table| names(pattern, table));
        self.include.iter().chain(&self.exclude).filter(idle).map(String::as_str).collect()
    }
}

/// A pattern is compared with the name whole, since names may hold dots themselves.
fn names(pattern: &str, table: &TableName) -> bool {
    (table.schema == "public" && matches(pattern, &table.name)) || matches(pattern, &format!("{}.{}", table.schema, table.name))
}

fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood, and how much of the text it takes; it takes one more when the rest fails.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn business(tables: &str, exclude: &str) -> Business {
        let environment = Environment::of([("BACKUP_TABLES", tables), ("BACKUP_EXCLUDE_TABLES", exclude)]);
        let reader = Reader::new(&environment);
        let business = Business::from_settings(&reader);
        reader.finish().unwrap();
        business
    }

    #[test]
    fn stars_and_question_marks_stand_for_text() {
        for (pattern, text, wanted) in [
            ("auth_*", "auth_user", true),
            ("auth_*", "xauth_user", false),
            ("*_log", "a_log_log", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("", "", true),
            ("*", "", true),
            ("é?", "éé", true),
            ("A", "a", false),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn a_table_outside_public_needs_its_schema() {
        let elsewhere = TableName { schema: "shop".to_owned(), name: "auth_user".to_owned() };
        let set = business("auth_*, shop.cart*", "auth_session");
        assert!(set.holds(&TableName::public("auth_user")) && !set.holds(&TableName::public("auth_session")));
        assert!(!set.holds(&elsewhere) && set.holds(&TableName { schema: "shop".to_owned(), name: "carts".to_owned() }));
        assert_eq!(set.idle(&[TableName::public("auth_user")]), ["shop.cart*", "auth_session"]);
        assert!(!set.is_everything());
        let all = business("", "");
        assert!(all.is_everything() && all.holds(&elsewhere) && all.idle(&[]).is_empty());
        assert!(!business("", "a").is_everything());
    }
}
