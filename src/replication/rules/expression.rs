//! Makes sure that a text of the rules file is one expression before it is put between parentheses.
//!
//! The server says whether it means anything; here it is only made sure that the text cannot leave its
//! parentheses, whatever the server makes of it. What is hard to follow in SQL is refused rather than followed:
//! comments, dollar quotes, `E'…'` (whose escapes go on in the literal of the next line), parameters.

/// Why `text` is no expression of its own; nothing: it may stand in parentheses.
pub(super) fn objection(text: &str) -> Option<String> {
    let mut open: Vec<char> = Vec::new();
    let mut rest = text.chars().peekable();
    let mut any = false;
    while let Some(c) = rest.next() {
        any |= !c.is_whitespace();
        if matches!(c, '\'' | '"') {
            // A doubled quote ends one literal and begins the next, which comes to the same here.
            if rest.by_ref().any(|next| next == c) {
                continue;
            }
            return Some(format!("has a {c} that is never closed"));
        }
        match c {
            '\0' => return Some("holds a NUL character".to_owned()),
            '(' | '[' => open.push(c),
            ')' | ']' => {
                let wanted = if c == ')' { '(' } else { '[' };
                if open.pop() != Some(wanted) {
                    return Some(format!("closes a `{c}` that it did not open"));
                }
            }
            ',' if open.is_empty() => return Some("holds a `,` outside of parentheses; write one expression".to_owned()),
            ';' => return Some("holds a `;`; write one expression".to_owned()),
            '$' => return Some("holds a `$`; write texts as '…', and no parameters".to_owned()),
            '-' if rest.peek() == Some(&'-') => return Some("holds a comment (`--`)".to_owned()),
            '/' if rest.peek() == Some(&'*') => return Some("holds a comment (`/*`)".to_owned()),
            _ if is_word(c) => {
                let mut word = c.to_string();
                while let Some(next) = rest.next_if(|next| is_word(*next) || *next == '$') {
                    word.push(next);
                }
                // `1e'…'` was a number and such a text before PostgreSQL 15.
                let escapes = word.ends_with(['e', 'E']) && (word.len() == 1 || word.starts_with(|c: char| c.is_ascii_digit()));
                if escapes && rest.peek() == Some(&'\'') {
                    return Some("holds a text with escapes (E'…'); write '…', and chr(10) for a line's end".to_owned());
                }
            }
            _ => {}
        }
    }
    if let Some(c) = open.pop() {
        return Some(format!("opens a `{c}` that it does not close"));
    }
    (!any).then(|| "is empty".to_owned())
}

/// What PostgreSQL's words are made of: everything beyond ASCII among it.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_taken() {
        for text in [
            "left(city, 1)",
            "created_at > now() - interval '1 year'",
            "'it''s ) fine; -- here' || \"a \"\"(\" ",
            "case when a[1] = ')' then 'x' else '\\' end",
            "data #>> '{a,b}' - 'c' / 2 * - 3",
            "somee'x'",
            "(select max(v) from public.rates r where r.id = rate_id)",
            "ärger$1 || 'x'",
        ] {
            assert_eq!(objection(text), None, "{text}");
        }
    }

    #[test]
    fn what_could_leave_its_parentheses_is_refused() {
        for (text, reason) in [
            ("true) union all select 1, secret from other where (true", "closes a `)`"),
            ("a), (b", "closes a `)`"),
            ("a); drop table t; select (1", "closes a `)`"),
            ("a; select 1", "`;`"),
            ("a, b", "`,`"),
            ("a -- ", "comment"),
            ("a /* b", "comment"),
            ("'open", "never closed"),
            ("\"open", "never closed"),
            ("(a", "does not close"),
            ("a[1)", "closes a `)`"),
            ("$$) union select 1$$", "`$`"),
            ("$1", "`$`"),
            ("E'\\') union select (1'", "escapes"),
            ("1e'\\') union select (1'", "escapes"),
            ("e'a'\n'\\' || ') union select 1 --'", "escapes"),
            ("\u{0}", "NUL"),
            (" \n", "is empty"),
        ] {
            let found = objection(text).unwrap_or_else(|| panic!("taken: {text}"));
            assert!(found.contains(reason), "{text}: {found}");
        }
    }
}
