//! Items that carry their number.

/// Payload bytes in front of the pattern.
const NUMBER_BYTES: usize = 4;

/// Returns the payload of item `number`, of `len` bytes: its number, and bytes that no other item
/// has.
pub fn payload(number: u32, len: usize) -> Vec<u8> {
    debug_assert!(len >= NUMBER_BYTES);
    let mut bytes = number.to_le_bytes().to_vec();
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    bytes.extend((NUMBER_BYTES..len).map(|_| {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        (state >> 24) as u8
    }));
    bytes
}

/// Returns the number of an item, if the item is whole.
pub fn number_of(bytes: &[u8]) -> Option<u32> {
    let number = u32::from_le_bytes(bytes.get(..NUMBER_BYTES)?.try_into().ok()?);
    (payload(number, bytes.len()) == bytes).then_some(number)
}
