//! Fixtures in the words of older majors.

/// Texts of the fixtures that only majors from the given one on know, and what says nearly the same before.
const WORDS: &[(u32, &str, &str)] = &[
    (15, "unlogged sequence", "sequence"),
    (15, "alter sequence l_a_seq set logged;", ""),
    (15, "unique nulls not distinct", "unique"),
    (15, "on delete set null (x)", "on delete set null"),
    (15, "with (security_invoker = true) ", ""),
    (14, ", multirange_type_name = \"many Floats\"", ""),
    (14, "b \"many Floats\", ", ""),
    (14, ", alter a set compression pglz", ""),
    (14, "create statistics ex on lower(b), (a + c) from t;", ""),
    (14, "create statistics one on (a % 3) from t;", ""),
    // Refreshed in the copy, where a text's names would not be found.
    (14, "begin atomic select count(*) from aa; end;", "as 'select 3::bigint';"),
    (14, " returns int return ", " returns int language sql return "),
    (13, "alter statistics s.st set statistics 40;", ""),
    (13, "alter view a_last rename b to bb", "alter table a_last rename b to bb"),
    (13, "create trigger hook before insert", "create trigger hook after insert"),
    (13, "create trigger a before insert on tangled.p", "create trigger a after insert on tangled.p"),
];

/// `sql` as far as `major` knows it.
pub fn as_of(major: u32, sql: &str) -> String {
    let mut text = sql.to_owned();
    for (_, new, old) in WORDS.iter().filter(|(since, ..)| major < *since) {
        text = text.replace(new, old);
    }
    if major < 14 {
        text = quoted(&text, "begin atomic ", " end;", "");
        for head in ["language sql ", "language sql stable ", "language sql immutable "] {
            text = quoted(&text, &format!("{head}return "), ";", head);
        }
    }
    text
}

/// Bodies that stand between `from` and `to`, as texts.
fn quoted(text: &str, from: &str, to: &str, head: &str) -> String {
    let mut parts = text.split(from);
    let mut written = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (body, rest) = part.split_once(to).expect("a body ends");
        let select = if from.ends_with("return ") { "select " } else { "" };
        written.push_str(&format!("{head}as $q${select}{body}$q$;{rest}"));
    }
    written
}
