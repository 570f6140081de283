//! CRC32C (Castagnoli), the checksum of the extensions.
//!
//! A processor with carry-less multiplication of wide vectors computes it by that, in half the time
//! of the instruction for this very checksum, which is used elsewhere. An emulated processor
//! carries out both bit by bit; there it is computed by tables, several times faster.

use crate::format::slicing;
use std::sync::LazyLock;

/// The fastest function on this processor.
static APPEND: LazyLock<fn(u32, &[u8]) -> u32> = LazyLock::new(|| {
    if is_emulated() {
        slicing::crc32c_append
    } else {
        by_wide_multiplication().unwrap_or(crc32c::crc32c_append)
    }
});

/// Returns the checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// Returns the checksum of bytes whose own is `crc`, followed by `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    APPEND(crc, bytes)
}

/// Returns whether QEMU emulates the processor: it then signs where a hypervisor would.
fn is_emulated() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use raw_cpuid::{CpuId, Hypervisor};
        let hypervisor = CpuId::new().get_hypervisor_info();
        hypervisor.is_some_and(|hypervisor| hypervisor.identify() == Hypervisor::QEMU)
    }
    // The interpreter that looks for undefined behaviour knows tables best, too.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    cfg!(miri)
}

/// The checksum by multiplication, where the processor and this build have it.
fn by_wide_multiplication() -> Option<fn(u32, &[u8]) -> u32> {
    #[cfg(all(target_arch = "x86_64", feature = "wide-checksums"))]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("vpclmulqdq") {
        return Some(by_multiplication);
    }
    None
}

#[cfg(feature = "wide-checksums")]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only tests use it there"))]
fn by_multiplication(crc: u32, bytes: &[u8]) -> u32 {
    use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

    // The register is the checksum before its final inversion.
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    low_half(digest.finalize())
}

#[cfg(feature = "wide-checksums")]
#[expect(clippy::cast_possible_truncation, reason = "a checksum of 32 bits")]
fn low_half(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of the longest input: few where an interpreter (Miri) computes each bit of it.
    const LONGEST: usize = if cfg!(miri) { 100 } else { 3000 };

    #[test]
    fn crc32c_is_that_of_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    proptest! {
        #[test]
        fn crc32c_can_be_continued_anywhere_by_every_function(
            bytes in proptest::collection::vec(any::<u8>(), 0..LONGEST),
            at in any::<proptest::sample::Index>(),
        ) {
            let whole = bytes.iter().fold(!0u32, |register, byte| {
                (0..8).fold(register ^ u32::from(*byte), |register, _| {
                    (register >> 1) ^ ((register & 1) * 0x82f6_3b78)
                })
            });
            let (front, back) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(crc32c_append(crc32c(front), back), !whole);
            #[cfg(feature = "wide-checksums")]
            prop_assert_eq!(by_multiplication(by_multiplication(0, front), back), !whole);
            prop_assert_eq!(slicing::crc32c_append(slicing::crc32c_append(0, front), back), !whole);
            prop_assert_eq!(crc32c::crc32c_append(crc32c::crc32c(front), back), !whole);
        }
    }
}
