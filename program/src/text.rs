//! Foreign text, made fit for a line of a log or a terminal.

use ring_os::is_unfit;
use std::fmt::{self, Write};

/// Returns a message about a file's `text`, with the line that the byte `at` is in: its number and
/// what it says.
pub fn about_line(text: &str, at: usize, message: &str) -> String {
    let before = text.get(..at).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or("").trim();
    if line.is_empty() {
        return format!("line {number}: {message}");
    }
    format!("line {number}, `{line}`: {message}")
}

/// Returns the noun for so many items.
pub fn items(count: u64) -> &'static str {
    if count == 1 { "item" } else { "items" }
}

/// A line under construction: control characters are shown as escapes, and what is longer than the
/// limit is cut and counted.
#[derive(Debug)]
pub struct Line {
    text: String,
    limit: usize,
    /// Number of bytes that did not fit.
    cut: usize,
}

impl Line {
    /// Makes an empty line of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { text: String::new(), limit, cut: 0 }
    }

    /// Returns the line without a line feed, with a note of what was cut.
    pub fn finish(mut self) -> String {
        if self.cut > 0 {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "… ({} bytes more)", self.cut);
        }
        self.text
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let escaped = if is_unfit(c) { c.escape_default().len() } else { c.len_utf8() };
            if self.cut > 0 || self.text.len() + escaped > self.limit {
                self.cut += c.len_utf8();
            } else if is_unfit(c) {
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
        }
        Ok(())
    }
}

/// Returns the words as one line of at most `limit` bytes, and a note where they were longer.
pub fn one_line(words: fmt::Arguments<'_>, limit: usize) -> String {
    let mut line = Line::new(limit);
    // Only the text's own `Display` can fail; what it has written until then is shown.
    let _ = line.write_fmt(words);
    line.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_shows_control_characters_as_escapes() {
        let line = one_line(format_args!("a\nb\r\x1b[2Jc\u{9b}d\u{202e}e\0f \"ü\" \\"), 100);
        assert_eq!(line, "a\\nb\\r\\u{1b}[2Jc\\u{9b}d\\u{202e}e\\u{0}f \"ü\" \\");
    }

    #[test]
    fn line_shows_what_is_not_seen_as_escapes() {
        let line = one_line(format_args!("a\u{200b}b\u{feff}c\u{e0001}d\u{200d}e"), 100);
        assert_eq!(line, "a\\u{200b}b\\u{feff}c\\u{e0001}d\u{200d}e");
    }

    #[test]
    fn line_is_cut_at_its_limit_and_says_how_much() {
        assert_eq!(one_line(format_args!("{}", "x".repeat(10)), 10), "xxxxxxxxxx");
        assert_eq!(
            one_line(format_args!("{}{}", "x".repeat(9), "üy"), 10),
            "xxxxxxxxx… (3 bytes more)"
        );
        let long = one_line(format_args!("{}", "\n".repeat(15_000)), 1000);
        assert!(long.len() < 1050 && long.ends_with("(14500 bytes more)"), "{}", long.len());
    }
}
