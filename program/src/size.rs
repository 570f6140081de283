//! Sizes in bytes, as command lines give them.

/// Parses a number of bytes: `65536`, `512K`, `8M` or `1G`, where the letters stand for powers of
/// 1024.
///
/// # Errors
/// What a size looks like, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("not a size such as 65536, 512K, 8M or 1G".to_owned());
    }
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| format!("larger than anything can be: at most {}", i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn parse_size_takes_bytes_and_powers_of_1024_that_an_offset_can_count() {
        for (text, bytes) in [("0", 0), ("65536", 65536), ("512K", 512 << 10), ("8M", 8 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        for wrong in
            ["", "K", "-1", "1.5M", "1k", "8 M", "18446744073709551615", "9007199254740992K"]
        {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
