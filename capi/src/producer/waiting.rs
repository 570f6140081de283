//! Waits of a producer for space.

use super::{Held, PRODUCERS};
use crate::border::Caller;
use crate::code::{Code, ErrorInfo};
use crate::types::{ProducerHandle, Slice};
use crate::waiting::{expect_state, timeout, wait_until};
use shared_block_ring::format::{HEADER_BYTES, framed_len};
use shared_block_ring::wait::Wait;

/// Returns the length of one item that takes as much room as all of these.
fn as_one_item(items: &[Slice]) -> usize {
    let framed = |item: &Slice| framed_len(u32::try_from(item.length).unwrap_or(u32::MAX));
    let all: u64 = items.iter().map(framed).sum();
    // Longer items than that fit in no ring, which the reservation says.
    usize::try_from(all.saturating_sub(HEADER_BYTES)).unwrap_or(usize::MAX)
}

/// Waits until there is room for `count` items together, and the ring is not suspended. Only the
/// lengths of the items are looked at. Without items it waits until the ring is not suspended.
///
/// `timeout_ms`: the longest wait; negative: no limit; 0: one look. `interrupt_fd`: a descriptor
/// that ends the wait when it is readable (BLOCKRING_INTERRUPTED), or -1. BLOCKRING_TIMED_OUT;
/// BLOCKRING_TOO_LARGE; and the errors of blockring_producer_push. The wait sleeps where the other
/// side can wake it, and looks now and then where not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_wait(
    producer: *mut ProducerHandle,
    items: *const Slice,
    count: usize,
    timeout_ms: i64,
    interrupt_fd: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let (items, interrupt) = (caller.items(items, count)?, caller.descriptor(interrupt_fd)?);
        let length = as_one_item(items);
        PRODUCERS.with(producer, |held| {
            held.descriptor.refuse_wait()?;
            let wait = Wait::for_space(timeout(timeout_ms));
            let producer = held.producer();
            wait_until(
                producer,
                wait,
                interrupt,
                |it| it.device(),
                |it| {
                    if items.is_empty() {
                        return expect_state(it.state()?, false);
                    }
                    it.reserve(length).map(drop)
                },
            )
        })
    })
}

/// Tells the descriptor that a program with an event loop waits for: see
/// blockring_producer_arm. It belongs to the handle, which closes it. From then on
/// blockring_producer_wait is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_fd(
    producer: *mut ProducerHandle,
    descriptor: *mut i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let number = PRODUCERS.with(producer, Held::descriptor)?;
        caller.set(descriptor, || number);
        Ok(())
    })
}

/// Prepares the descriptor, after a call has answered BLOCKRING_RETRY or BLOCKRING_SUSPENDED. With
/// `again` the program looks at the ring again at once. Without it the descriptor becomes readable
/// when it is time to look again, and stays so until it is prepared anew; nothing is to be read
/// from it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_arm(
    producer: *mut ProducerHandle,
    again: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let at_once = PRODUCERS.with(producer, Held::arm)?;
        caller.set(again, || at_once);
        Ok(())
    })
}
