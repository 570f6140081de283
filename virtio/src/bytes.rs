//! Little-endian integers within a device's bytes.

/// Returns the 32-bit integer at byte `at`.
///
/// # Panics
/// If `bytes` end before it does.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
