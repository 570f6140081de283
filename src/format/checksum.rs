//! CRC32C (Castagnoli), as the extensions have it.
//!
//! By carry-less multiplication of wide vectors where the processor has that, which takes half the time; elsewhere by the instruction
//! for this very checksum. An emulated processor carries out both bit by bit, and has it by tables, several times faster.

use crate::format::slicing;
use crc_fast::CrcAlgorithm::Crc32Iscsi;
use crc_fast::Digest;
use std::sync::LazyLock;

static WAY: LazyLock<fn(u32, &[u8]) -> u32> = LazyLock::new(|| {
    if is_emulated() {
        slicing::crc32c_append
    } else if has_wide_multiplication() {
        by_multiplication
    } else {
        crc32c::crc32c_append
    }
});

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The checksum of bytes whose own is `crc`, and of `bytes` behind them.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    WAY(crc, bytes)
}

/// Whether QEMU carries out each instruction itself: so it signs where a hypervisor would.
fn is_emulated() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use raw_cpuid::{CpuId, Hypervisor};
        let hypervisor = CpuId::new().get_hypervisor_info();
        hypervisor.is_some_and(|hypervisor| hypervisor.identify() == Hypervisor::QEMU)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn has_wide_multiplication() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("vpclmulqdq")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn by_multiplication(crc: u32, bytes: &[u8]) -> u32 {
    // The register is the checksum before its final inversion.
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    low_half(digest.finalize())
}

#[expect(clippy::cast_possible_truncation, reason = "a checksum of 32 bits")]
fn low_half(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    proptest! {
        #[test]
        fn it_can_be_continued_anywhere(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            at in any::<proptest::sample::Index>(),
        ) {
            let whole = bytes.iter().fold(!0u32, |register, byte| {
                (0..8).fold(register ^ u32::from(*byte), |register, _| {
                    (register >> 1) ^ ((register & 1) * 0x82f6_3b78)
                })
            });
            let (front, back) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(crc32c_append(crc32c(front), back), !whole);
            // Whichever it is here.
            prop_assert_eq!(by_multiplication(by_multiplication(0, front), back), !whole);
            prop_assert_eq!(slicing::crc32c_append(slicing::crc32c_append(0, front), back), !whole);
            prop_assert_eq!(crc32c::crc32c_append(crc32c::crc32c(front), back), !whole);
        }
    }
}
