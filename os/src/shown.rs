//! Paths in messages: a name can have any bytes, and a message is one line of text.

use std::ffi::OsStr;

/// Returns a path or an address for messages: as it is where it is plain text, quoted and with
/// escapes where it has control characters or bytes that are no UTF-8.
#[expect(clippy::unnecessary_debug_formatting, reason = "the escapes are what is wanted")]
pub fn shown<T: AsRef<OsStr> + ?Sized>(path: &T) -> String {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("{path:?}"),
    }
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
        assert_eq!(shown(OsStr::from_bytes(b"a\xffb")), "\"a\\xFFb\"");
    }
}
