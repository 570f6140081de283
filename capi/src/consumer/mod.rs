//! The functions of a consumer.

mod waiting;

use crate::border::{Answer, Caller, position};
use crate::code::{Code, ErrorInfo, Fault};
use crate::ring::open;
use crate::table::Table;
use crate::types::{
    BLOCKRING_DRIVE_PCI, BLOCKRING_LEND_IN_PLACE, ConsumerHandle, Info, Item, Options, durability,
};
use crate::waiting::Descriptor;
use ring_address::AnyDevice;
use shared_block_ring::{Consumer, Popped, Role, State};
use std::ffi::{c_char, c_void};

static CONSUMERS: Table<ConsumerHandle, Held> = Table::new(0xb10d);

/// A consumer, and its descriptor if the program has asked for one.
struct Held {
    consumer: Consumer<AnyDevice>,
    descriptor: Descriptor,
}

impl From<Popped<'_>> for Item {
    #[inline]
    fn from(item: Popped<'_>) -> Self {
        let (bytes, length) = (item.bytes.as_ptr().cast(), item.bytes.len());
        Self { bytes, length, next: item.next.get() }
    }
}

/// Calls `f` on a consumer.
#[inline]
fn with<R>(
    handle: *const ConsumerHandle,
    f: impl FnOnce(&mut Consumer<AnyDevice>) -> shared_block_ring::Result<R>,
) -> Answer<R> {
    CONSUMERS.with(handle, |held| Ok(f(&mut held.consumer)?))
}

/// Becomes the consumer of the ring with this address; otherwise as blockring_producer_attach.
/// Items are copied, unless BLOCKRING_LEND_IN_PLACE is set. BLOCKRING_ROLE_TAKEN if the ring has a
/// consumer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_attach(
    address: *const c_char,
    queue: *const c_char,
    client: *const c_char,
    options: *const Options,
    consumer: *mut *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        if consumer.is_null() {
            return Err(Fault::Argument("the place for the handle is NULL"));
        }
        let options = caller.get(options).unwrap_or_default();
        let durability = options.durability()?;
        let allowed = BLOCKRING_LEND_IN_PLACE | BLOCKRING_DRIVE_PCI;
        let device = open(caller, address, &options, Role::Consumer, allowed)?;
        let mut attached = Consumer::attach(device, &caller.name(queue), &caller.name(client))?;
        attached.set_durability(durability);
        let held = Held { consumer: attached, descriptor: Descriptor::default() };
        let handle = CONSUMERS.insert(held)?;
        caller.set(consumer, || handle);
        Ok(())
    })
}

/// Looks at the item at `from`: the same one every time. The item is lent until the next call with
/// the handle. The first one is at blockring_consumer_position, each further one at the `next` of
/// the one before.
///
/// BLOCKRING_RETRY: there is none yet. BLOCKRING_INVALID_START. BLOCKRING_FORMAT for items that are
/// not what the producer wrote, which an advance to the error's `to` skips. BLOCKRING_SUPERSEDED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_pop(
    consumer: *mut ConsumerHandle,
    from: u64,
    item: *mut Item,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let from = position(from)?;
        let found = with(consumer, |consumer| Ok(Item::from(consumer.pop(from)?)))?;
        caller.set(item, || found);
        Ok(())
    })
}

/// A function that is called with each item, which is lent for this call. It must return: neither
/// longjmp nor a C++ exception may leave it. A call with the handle that calls it is
/// BLOCKRING_BUSY.
pub type Visitor = Option<extern "C" fn(context: *mut c_void, item: *const Item)>;

/// Calls `visit` with each published item from `from` on, and tells in `end` the position behind
/// the last one, to advance to. It is the fastest way to read many items. No item at `from` is no
/// error: `end` is `from` then. Errors are those of blockring_consumer_pop; some items may have
/// been visited by then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_fold(
    consumer: *mut ConsumerHandle,
    from: u64,
    visit: Visitor,
    context: *mut c_void,
    end: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let from = position(from)?;
        let visit = visit.ok_or(Fault::Argument("the function to call is NULL"))?;
        let each = |(), item: Popped<'_>| visit(context, &Item::from(item));
        let (behind, ()) = with(consumer, |consumer| consumer.fold(from, (), each))?;
        caller.set(end, || behind.get());
        Ok(())
    })
}

/// Frees the space of everything before `to`: those items were dealt with, and do not come again.
///
/// BLOCKRING_INVALID_ADVANCE for a position that is no end of an item. After BLOCKRING_DEVICE of a
/// flush or of the pointer the handle has failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_advance(
    consumer: *mut ConsumerHandle,
    to: u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        let to = position(to)?;
        with(consumer, |consumer| consumer.advance(to))
    })
}

/// Has blockring_consumer_advance keep the pointer back until `bytes` can be freed at once, half of
/// the ring at most. It is also written when there is nothing more to pop, by
/// blockring_consumer_flush, and when the consumer is detached or freed. What was advanced over
/// since then comes again after a crash.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_advance_every(
    consumer: *mut ConsumerHandle,
    bytes: u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        with(consumer, |consumer| {
            consumer.advance_every(bytes);
            Ok(())
        })
    })
}

/// Writes the pointer that blockring_consumer_advance_every has kept back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_flush(
    consumer: *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(consumer, Consumer::flush))
}

/// Asks the producer to stop. BLOCKRING_RETRY while it has not acknowledged the previous change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_suspend(
    consumer: *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(consumer, Consumer::suspend))
}

/// Lets the producer go on; as blockring_consumer_suspend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_resume(
    consumer: *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(consumer, Consumer::resume))
}

/// Tells whether the producer has acknowledged a suspend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_state(
    consumer: *mut ConsumerHandle,
    suspended: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let state = with(consumer, Consumer::state)?;
        caller.set(suspended, || state == State::Suspended);
        Ok(())
    })
}

/// Sets what blockring_consumer_advance waits for: BLOCKRING_FLUSH, BLOCKRING_ORDERED or
/// BLOCKRING_PAGE_CACHE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_set_durability(
    consumer: *mut ConsumerHandle,
    flushes: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        let flushes = durability(flushes)?;
        with(consumer, |consumer| {
            consumer.set_durability(flushes);
            Ok(())
        })
    })
}

/// Reads the state of the ring from its sectors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_debug_info(
    consumer: *mut ConsumerHandle,
    info: *mut Info,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let found = with(consumer, |consumer| consumer.debug_info())?;
        caller.set(info, || found.into());
        Ok(())
    })
}

/// Tells the position of the first item that was not advanced over: to start popping at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_position(
    consumer: *mut ConsumerHandle,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let found = with(consumer, |consumer| Ok(consumer.position()))?;
        caller.set(position, || found.get());
        Ok(())
    })
}

/// Asks whether the ring is still the one that was attached to: neither removed, replaced, moved
/// nor resized. BLOCKRING_DEVICE if not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_check_presence(
    consumer: *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(consumer, |consumer| consumer.check_presence()))
}

/// Gives up the role. Every later call but blockring_consumer_free answers BLOCKRING_DETACHED, or
/// tells what it knows without the ring.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_detach(
    consumer: *mut ConsumerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        with(consumer, |consumer| {
            consumer.detach();
            Ok(())
        })
    })
}

/// Frees a consumer, and sets the handle to NULL; nothing happens if it is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_consumer_free(consumer: *mut *mut ConsumerHandle) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.free(consumer, &CONSUMERS)
}
