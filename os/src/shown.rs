//! Paths in messages: a name can have any bytes, and a message is one line of text.

use std::ffi::OsStr;

/// Returns a path or an address for messages: as it is where it is plain text, quoted and with
/// escapes where it has control characters, what is not seen, or bytes that are no UTF-8.
#[expect(clippy::unnecessary_debug_formatting, reason = "the escapes are what is wanted")]
pub fn shown<T: AsRef<OsStr> + ?Sized>(path: &T) -> String {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) if !text.chars().any(is_unfit) => text.to_owned(),
        _ => format!("{path:?}"),
    }
}

/// Returns whether the character is more than text to a terminal or a reader of lines: control
/// characters, line and paragraph separators, marks that change the direction of text, and what is
/// not seen at all. Joiners stay: scripts and emoji need them.
pub fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn plain_path_is_shown_as_it_is_and_another_one_in_one_escaped_line() {
        assert_eq!(shown("a ring.img"), "a ring.img");
        assert_eq!(shown("für"), "für");
        assert_eq!(shown("two\nlines\u{1b}[1m"), "\"two\\nlines\\u{1b}[1m\"");
        assert_eq!(shown("a\u{200b}b\u{e0001}"), "\"a\\u{200b}b\\u{e0001}\"");
        assert_eq!(shown(OsStr::from_bytes(b"a\xffb")), "\"a\\xFFb\"");
    }
}
