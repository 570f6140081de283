//! Little-endian integers within bytes.

/// Returns the 32-bit integer at byte `at`.
///
/// # Panics
/// If `bytes` end before it does.
#[inline]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Returns the 64-bit integer at byte `at`.
///
/// # Panics
/// If `bytes` end before it does.
#[inline]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
