//! Texts of others, fit for a terminal: a job's name, reason or log line may hold whatever its
//! producer wrote, and must not set the window's title, hide lines or turn them around.

/// `text` with control characters, and those that change the direction of writing, written as `\u{1b}`;
/// line ends and tabs stay.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\n' | '\t') || !steers(c) { clean.push(c) } else { clean.extend(c.escape_unicode()) }
    }
    clean
}

/// The same on one line, for a cell of a table or a message of one line: line ends and tabs are written as `\u{a}` too.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { clean.extend(c.escape_unicode()) } else { clean.push(c) }
    }
    clean
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::{one_line, plain};

    #[test]
    fn nothing_in_a_text_steers_the_terminal() {
        assert_eq!(plain("a\x1b]0;x\x07b\u{9b}2J\u{202e}c\r"), r"a\u{1b}]0;x\u{7}b\u{9b}2J\u{202e}c\u{d}");
        assert_eq!(plain("línea\n\tzwei ✓"), "línea\n\tzwei ✓");
        assert_eq!(one_line("línea\n\tzwei ✓\u{2028}\u{202e}"), r"línea\u{a}\u{9}zwei ✓\u{2028}\u{202e}");
    }
}
