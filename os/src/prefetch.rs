//! Prefetches: hints to the processor about memory that is used soon.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};

#[cfg(not(target_arch = "x86_64"))]
const _MM_HINT_T0: i32 = 0;
#[cfg(not(target_arch = "x86_64"))]
const _MM_HINT_ET0: i32 = 0;

/// Prefetches the cache line at an address, for a read. Any address will do, also one of no memory.
#[inline]
pub fn prefetch(at: *const u8) {
    hint::<_MM_HINT_T0>(at);
}

/// Prefetches the cache line at an address, for a write: other processors give it up. Any address
/// will do, also one of no memory.
#[inline]
pub fn prefetch_to_write(at: *const u8) {
    hint::<_MM_HINT_ET0>(at);
}

/// Does nothing where the processor has no such hint.
#[inline]
fn hint<const HINT: i32>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address makes fault (Intel SDM 2B, PREFETCHh and PREFETCHW).
    unsafe {
        _mm_prefetch::<HINT>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_can_be_prefetched() {
        let bytes = [7u8; 64];
        for at in [bytes.as_ptr(), std::ptr::null(), std::ptr::without_provenance(usize::MAX)] {
            prefetch(at);
            prefetch_to_write(at);
        }
        assert_eq!(bytes, [7; 64]);
    }
}
