//! The functions of a producer.

mod waiting;

use crate::border::{Answer, Caller, position};
use crate::code::{Code, ErrorInfo, Fault};
use crate::ring::open;
use crate::table::Table;
use crate::types::{BLOCKRING_DRIVE_PCI, Info, Options, ProducerHandle, Slice, durability};
use crate::waiting::Descriptor;
use ring_address::AnyDevice;
use shared_block_ring::format::Side;
use shared_block_ring::{Producer, Reservation, Role, State};
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

static PRODUCERS: Table<ProducerHandle, Held> = Table::new(0xb10c);

/// A producer, and the room that it lends.
struct Held {
    /// In front of what it borrows from, as in the order in which they are dropped.
    reservation: Option<Reservation<'static, AnyDevice>>,
    /// A box that was leaked, and belongs to this value alone: a box itself must not move while it
    /// is borrowed.
    producer: NonNull<Producer<AnyDevice>>,
    descriptor: Descriptor,
}

// SAFETY: the producer and what borrows from it move together, and a producer over a device that is
// `Send` may move.
unsafe impl Send for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        self.reservation = None;
        // SAFETY: it is a leaked box, from `Held::new`, and nothing borrows from it any more.
        drop(unsafe { Box::from_raw(self.producer.as_ptr()) });
    }
}

impl Held {
    fn new(producer: Producer<AnyDevice>) -> Self {
        let producer = NonNull::from(Box::leak(Box::new(producer)));
        Self { reservation: None, producer, descriptor: Descriptor::default() }
    }

    /// Returns the producer. Room that it has lent is given up.
    #[inline]
    fn producer(&mut self) -> &mut Producer<AnyDevice> {
        self.reservation = None;
        // SAFETY: it lives as long as this value, which is borrowed, and the only loan beside this
        // one has just ended.
        unsafe { self.producer.as_mut() }
    }

    /// Lends room for an item, and returns where it is.
    fn reserve(&mut self, length: usize) -> Answer<*mut c_void> {
        self.reservation = None;
        // SAFETY: the producer lives until this value is dropped, which drops the reservation
        // before; `producer` gives a reservation up before it lends the producer again.
        let producer: &'static mut Producer<AnyDevice> = unsafe { self.producer.as_mut() };
        let reservation = self.reservation.insert(producer.reserve(length)?);
        Ok(reservation.as_mut_ptr().cast())
    }

    /// Pushes the item that was written into the room.
    fn commit(&mut self, length: usize) -> Answer<u64> {
        let none = "no room is reserved: another call with the handle has given it up";
        let mut reservation = self.reservation.take().ok_or(Fault::Argument(none))?;
        if reservation.len() < length {
            return Err(Fault::Argument("more bytes than were reserved"));
        }
        reservation.truncate(length);
        Ok(reservation.commit()?.get())
    }

    fn descriptor(&mut self) -> Answer<i32> {
        self.reservation = None;
        // SAFETY: as in `producer`, beside which the descriptor is borrowed here.
        let producer = unsafe { self.producer.as_ref() };
        self.descriptor.number(Side::Consumer, producer.device())
    }

    fn arm(&mut self) -> Answer<bool> {
        self.reservation = None;
        // SAFETY: as above.
        let producer = unsafe { self.producer.as_ref() };
        self.descriptor.arm(producer.device())
    }
}

/// Calls `f` on a producer.
#[inline]
fn with<R>(
    handle: *const ProducerHandle,
    f: impl FnOnce(&mut Producer<AnyDevice>) -> shared_block_ring::Result<R>,
) -> Answer<R> {
    PRODUCERS.with(handle, |held| Ok(f(held.producer())?))
}

/// Becomes the producer of the ring with this address: the path of a file or block device,
/// serial:NAME, unix:PATH, vhost-user:PATH or pci:0000:00:04.0, as on the command line.
///
/// `queue` and `client` (may be NULL) are names for people who look at the ring. `options`: NULL
/// for the default. A pending suspend or resume is acknowledged. BLOCKRING_ROLE_TAKEN if the ring
/// has a producer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_attach(
    address: *const c_char,
    queue: *const c_char,
    client: *const c_char,
    options: *const Options,
    producer: *mut *mut ProducerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        if producer.is_null() {
            return Err(Fault::Argument("the place for the handle is NULL"));
        }
        let options = caller.get(options).unwrap_or_default();
        let durability = options.durability()?;
        let device = open(caller, address, &options, Role::Producer, BLOCKRING_DRIVE_PCI)?;
        let mut attached = Producer::attach(device, &caller.name(queue), &caller.name(client))?;
        attached.set_durability(durability);
        let handle = PRODUCERS.insert(Held::new(attached))?;
        caller.set(producer, || handle);
        Ok(())
    })
}

/// Adds an item behind those pushed before. The consumer sees it after an advance to `position`
/// (may be NULL) or beyond.
///
/// BLOCKRING_RETRY for lack of room, BLOCKRING_SUSPENDED, BLOCKRING_TOO_LARGE,
/// BLOCKRING_SUPERSEDED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_push(
    producer: *mut ProducerHandle,
    bytes: *const c_void,
    length: usize,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let item = caller.bytes(bytes, length)?;
        let end = with(producer, |producer| producer.push(item))?;
        caller.set(position, || end.get());
        Ok(())
    })
}

/// Adds all of `count` items, or none of them; otherwise as blockring_producer_push. An advance to
/// `position` publishes them at once, whatever crashes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_push_batch(
    producer: *mut ProducerHandle,
    items: *const Slice,
    count: usize,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let items = caller.items(items, count)?;
        let end = with(producer, |producer| producer.push_batch(items))?;
        caller.set(position, || end.get());
        Ok(())
    })
}

/// Adds as many of `count` items as there is room for, at least one, and tells how many in
/// `pushed`; otherwise as blockring_producer_push.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_push_some(
    producer: *mut ProducerHandle,
    items: *const Slice,
    count: usize,
    pushed: *mut usize,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let items = caller.items(items, count)?;
        let (number, end) = with(producer, |producer| producer.push_some(items))?;
        caller.set(pushed, || number);
        caller.set(position, || end.get());
        Ok(())
    })
}

/// Lends room for an item of `length` bytes, to be written by the caller and pushed by
/// blockring_producer_commit. What the room holds at first has no meaning. Any other call with the
/// handle gives the room up; nothing is pushed then. Errors are those of blockring_producer_push.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_reserve(
    producer: *mut ProducerHandle,
    length: usize,
    room: *mut *mut c_void,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        if room.is_null() {
            return Err(Fault::Argument("the place for the room's address is NULL"));
        }
        let lent = PRODUCERS.with(producer, |held| held.reserve(length))?;
        caller.set(room, || lent);
        Ok(())
    })
}

/// Pushes the first `length` bytes of the room that was reserved. `position` (may be NULL) is as
/// in blockring_producer_push.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_commit(
    producer: *mut ProducerHandle,
    length: usize,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let end = PRODUCERS.with(producer, |held| held.commit(length))?;
        caller.set(position, || end);
        Ok(())
    })
}

/// Publishes everything before `to`, a position that a push returned: after BLOCKRING_OK it
/// survives any crash, as far as the durability says.
///
/// BLOCKRING_SUSPENDED: what was pushed stays, and can be advanced over after the resume.
/// BLOCKRING_INVALID_ADVANCE, BLOCKRING_SUPERSEDED, BLOCKRING_ROLE_TAKEN. After BLOCKRING_DEVICE of
/// a flush or of the pointer the handle has failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_advance(
    producer: *mut ProducerHandle,
    to: u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        let to = position(to)?;
        with(producer, |producer| producer.advance(to))
    })
}

/// Makes durable what was advanced over and, still unpublished, what was pushed beyond that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_flush(
    producer: *mut ProducerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(producer, Producer::flush))
}

/// Looks at the ring, acknowledges a suspend or resume, and tells whether the ring is
/// suspended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_state(
    producer: *mut ProducerHandle,
    suspended: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let state = with(producer, Producer::state)?;
        caller.set(suspended, || state == State::Suspended);
        Ok(())
    })
}

/// Sets what blockring_producer_advance waits for: BLOCKRING_FLUSH, BLOCKRING_ORDERED or
/// BLOCKRING_PAGE_CACHE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_set_durability(
    producer: *mut ProducerHandle,
    flushes: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        let flushes = durability(flushes)?;
        with(producer, |producer| {
            producer.set_durability(flushes);
            Ok(())
        })
    })
}

/// Reads the state of the ring from its sectors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_debug_info(
    producer: *mut ProducerHandle,
    info: *mut Info,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let found = with(producer, |producer| producer.debug_info())?;
        caller.set(info, || found.into());
        Ok(())
    })
}

/// Tells the position of the next item to be pushed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_position(
    producer: *mut ProducerHandle,
    position: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let found = with(producer, |producer| Ok(producer.position()))?;
        caller.set(position, || found.get());
        Ok(())
    })
}

/// Tells the positions between which an advance that failed may have published items all the
/// same. The two are equal if nothing is in doubt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_in_doubt(
    producer: *mut ProducerHandle,
    from: *mut u64,
    to: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let range = with(producer, |producer| Ok(producer.in_doubt()))?;
        caller.set(from, || range.start.get());
        caller.set(to, || range.end.get());
        Ok(())
    })
}

/// Asks whether the ring is still the one that was attached to: neither removed, replaced, moved
/// nor resized. BLOCKRING_DEVICE if not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_check_presence(
    producer: *mut ProducerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| with(producer, |producer| producer.check_presence()))
}

/// Gives up the role. Every later call but blockring_producer_free answers BLOCKRING_DETACHED, or
/// tells what it knows without the ring.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_detach(
    producer: *mut ProducerHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| {
        with(producer, |producer| {
            producer.detach();
            Ok(())
        })
    })
}

/// Frees a producer, and sets the handle to NULL; nothing happens if it is NULL. Items that were
/// pushed and not advanced over are lost.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_producer_free(producer: *mut *mut ProducerHandle) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.free(producer, &PRODUCERS)
}
