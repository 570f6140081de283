//! Waits of a consumer for items, and for a suspend or resume.

use super::{CONSUMERS, Held};
use crate::border::{Caller, position};
use crate::code::{Code, ErrorInfo};
use crate::types::ConsumerHandle;
use crate::waiting::{expect_state, timeout, wait_until};
use shared_block_ring::Consumer;
use shared_block_ring::format::Side;
use shared_block_ring::wait::Wait;

/// Waits until there is an item at `from`.
///
/// `timeout_ms`: the longest wait; negative: no limit; 0: one look. `interrupt_fd`: a descriptor
/// that ends the wait when it is readable (BLOCKRING_INTERRUPTED), or -1. BLOCKRING_TIMED_OUT; and
/// the errors of blockring_consumer_pop. The wait sleeps where the other side can wake it, and
/// looks now and then where not. A signal does not end it: give it a descriptor that the handler
/// writes to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_wait(
    consumer: *mut ConsumerHandle,
    from: u64,
    timeout_ms: i64,
    interrupt_fd: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let (from, interrupt) = (position(from)?, caller.descriptor(interrupt_fd)?);
        CONSUMERS.with(consumer, |Held { consumer, descriptor }| {
            descriptor.refuse_wait()?;
            let wait = Wait::for_items(timeout(timeout_ms));
            wait_until(consumer, wait, interrupt, Consumer::device, |it| it.pop(from).map(drop))
        })
    })
}

/// Waits until the producer has acknowledged a suspend (`suspended`) or a resume. Time and
/// descriptor are as in blockring_consumer_wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_wait_state(
    consumer: *mut ConsumerHandle,
    suspended: bool,
    timeout_ms: i64,
    interrupt_fd: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let interrupt = caller.descriptor(interrupt_fd)?;
        CONSUMERS.with(consumer, |Held { consumer, descriptor }| {
            descriptor.refuse_wait()?;
            let wait = Wait::for_items(timeout(timeout_ms));
            wait_until(consumer, wait, interrupt, Consumer::device, |it| {
                expect_state(it.state()?, suspended)
            })
        })
    })
}

/// Tells the descriptor that a program with an event loop waits for: see blockring_consumer_arm.
/// It belongs to the handle, which closes it. From then on blockring_consumer_wait is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_fd(
    consumer: *mut ConsumerHandle,
    descriptor: *mut i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let number = CONSUMERS.with(consumer, |held| {
            held.descriptor.number(Side::Producer, held.consumer.device())
        })?;
        caller.set(descriptor, || number);
        Ok(())
    })
}

/// Prepares the descriptor, after blockring_consumer_pop has answered BLOCKRING_RETRY or a fold has
/// found nothing. With `again` the program looks at the ring again at once. Without it the
/// descriptor becomes readable when it is time to look again, and stays so until it is prepared
/// anew; nothing is to be read from it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_arm(
    consumer: *mut ConsumerHandle,
    again: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let at_once =
            CONSUMERS.with(consumer, |held| held.descriptor.arm(held.consumer.device()))?;
        caller.set(again, || at_once);
        Ok(())
    })
}
