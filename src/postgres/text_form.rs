//! Values in PostgreSQL's text form: lines of COPY and array literals, whatever the values hold.

/// Appends `text` to a line of COPY's text format, with the four characters escaped that mean
/// something there. NULL is `\N`, which no text can become.
pub fn escape(text: &str, line: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c => line.push(c),
        }
    }
}

/// An array literal with every element in quotes; `None` is NULL.
#[must_use]
pub fn array<T: AsRef<str>>(elements: impl IntoIterator<Item = Option<T>>) -> String {
    let mut text = "{".to_owned();
    for (number, element) in elements.into_iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        let Some(element) = element else {
            text.push_str("NULL");
            continue;
        };
        text.push('"');
        for c in element.as_ref().chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_elements_are_quoted_whatever_they_hold() {
        assert_eq!(array([Some("1"), None, Some("2")]), r#"{"1",NULL,"2"}"#);
        assert_eq!(
            array(["a,b", "\"q\"", "back\\slash", "{}", "NULL", ""].map(Some)),
            r#"{"a,b","\"q\"","back\\slash","{}","NULL",""}"#
        );
        assert_eq!(array::<&str>([]), "{}");
    }

    #[test]
    fn a_line_of_copy_holds_any_text() {
        let mut line = String::from("1\t");
        escape("tab\there, \\N, \\., new\nline\r", &mut line);
        assert_eq!(line, r"1	tab\there, \\N, \\., new\nline\r");
    }
}
