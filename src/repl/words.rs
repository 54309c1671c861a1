//! Splits a line into words: quotes, single or double, keep blanks; a backslash keeps any character.

use anyhow::bail;

pub(super) fn split(line: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match letters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => bail!("the line ends in a backslash"),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        bail!("a quote {open} is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn quotes_keep_blanks() {
        assert_eq!(split(r#"connect "Replication queue" -p 6380"#).unwrap(), ["connect", "Replication queue", "-p", "6380"]);
        assert_eq!(split(r"get a\ b 'c \ d' ''").unwrap(), ["get", "a b", r"c \ d", ""]);
        assert!(split("connect \"open").unwrap_err().to_string().contains("not closed"));
        assert!(split("  ").unwrap().is_empty());
    }
}
