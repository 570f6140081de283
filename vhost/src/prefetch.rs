//! Asking for cache lines ahead: each that another processor has written takes as long to come as hundreds of instructions, and those that
//! are asked for at once come at once.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Bytes of a line.
const LINE: usize = 64;

/// Lines of one stretch that are asked for: about what a processor can wait for at a time. Behind them its own prefetcher has caught on.
const MOST: usize = 16;

/// What is going to be read.
pub fn to_read<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    let start = slice.ptr_guard();
    for line in (0..slice.len()).step_by(LINE).take(MOST) {
        fetch(start.as_ptr().wrapping_add(line));
    }
}

/// What is going to be written.
pub fn to_write<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    let start = slice.ptr_guard();
    for line in (0..slice.len()).step_by(LINE).take(MOST) {
        fetch_to_write(start.as_ptr().wrapping_add(line));
    }
}

#[cfg(target_arch = "x86_64")]
fn fetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which faults at no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(target_arch = "x86_64")]
fn fetch_to_write(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
    // SAFETY: a hint, which faults at no address.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_: *const u8) {}

#[cfg(not(target_arch = "x86_64"))]
fn fetch_to_write(_: *const u8) {}
