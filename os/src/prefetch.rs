//! Hints to the processor about memory that is used soon.

/// Asks for the cache line at an address, which is read soon. An address of no memory does no harm.
#[inline]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address makes fault (Intel SDM 2B, PREFETCHh).
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at an address, which is written soon: other processors give it up.
#[inline]
pub fn prefetch_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address makes fault (Intel SDM 2B, PREFETCHW); a processor that does
    // not know it does nothing.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_ET0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_can_be_asked_for() {
        let bytes = [7u8; 64];
        for at in [bytes.as_ptr(), std::ptr::null(), std::ptr::without_provenance(usize::MAX)] {
            prefetch(at);
            prefetch_to_write(at);
        }
        assert_eq!(bytes, [7; 64]);
    }
}
