//! What a ring asks of a device beyond sectors. All of it has defaults that suit any disk.

use super::users::same_file;
use super::{AlignedBuf, BlockDevice, DeviceError, LockRange, RangeLock};
use crate::format::{Position, Side};
use crate::wait::Woken;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a ring asks of a [`BlockDevice`] beyond a disk's methods. A device that is only a disk
/// leaves the implementation empty: `impl RingDevice for MyDisk {}`.
///
/// A device that wraps another one has to forward what it wants to keep: see `CONTRIBUTING.md`.
///
/// The defaults lock nothing, copy what is read, and have waits poll. A device that other processes
/// can open should return a [`lock_file`](Self::lock_file): without one nothing keeps two producers
/// apart.
pub trait RingDevice: BlockDevice {
    /// Returns the descriptor that the ring's advisory locks are taken on; `None` where no other
    /// handle can open the device.
    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Lends the stream bytes `from..to` where they lie in memory, without a copy.
    ///
    /// Returns `None` unless all of this holds: somebody vouches for the ring
    /// ([`UnixDevice::lend_in_place`](super::UnixDevice::lend_in_place),
    /// [`MappedDevice::lend_in_place`](super::MappedDevice::lend_in_place)); this handle is the
    /// ring's consumer; the ring's own pointers say that `from..to` is published and not freed; and
    /// it does not straddle the wrap point. While the loan lasts nothing else can be done with the
    /// device: neither can space be freed, nor can the device look for another backend.
    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        let _ = (from, to);
        None
    }

    /// Returns the position in a pointer sector by a single load, for callers that look for a
    /// change of it all the time; `None` where that takes reading the sector.
    fn peek_position(&self, side: Side) -> Option<u64> {
        let _ = side;
        None
    }

    /// Reads a pointer sector, at least the bytes in front of its text
    /// ([`TEXT_AT`](crate::format::TEXT_AT)).
    ///
    /// # Errors
    /// As [`read`](BlockDevice::read).
    fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.read(side.sector(), &mut [IoSliceMut::new(sector)])
    }

    /// Changes a pointer sector that more than one process may write: what `edit` leaves alone
    /// stays as the others made it. `edit` is given the sector, or its first
    /// [`POINTER_BYTES`](crate::format::POINTER_BYTES), and may be called more than once.
    ///
    /// # Errors
    /// Those of [`read`](BlockDevice::read), [`write`](BlockDevice::write) and
    /// [`RangeLock::acquire`].
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let _exclusive = RangeLock::acquire(self, LockRange::Edit(side))?;
        let mut sector = AlignedBuf::zeroed(self.geometry().sector_size().bytes());
        self.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        edit(&mut sector);
        self.write(side.sector(), &[IoSlice::new(&sector)])
    }

    /// Returns whether a read is a copy within this machine's memory, and so nothing to be saved.
    fn reads_are_free(&self) -> bool {
        false
    }

    /// Returns the way to sleep until the other side moves; `None` where that has to be polled for.
    fn sleeper(&self) -> Option<&dyn Sleep> {
        None
    }

    /// Returns the way to wait in a read of the other side's pointer sector; `None` where no
    /// backend can hold one.
    fn held_reads(&self) -> Option<&dyn HeldReads> {
        None
    }

    /// Makes sure that the device still has the role that it holds for the ring, and takes the role
    /// again if it was given back and no other handle has it. A producer or consumer calls this
    /// before it looks at the ring and writes: others may have moved the ring in between.
    ///
    /// # Errors
    /// [`Error::RoleTaken`](crate::Error::RoleTaken) if another handle has the role now.
    fn ensure_role(&self) -> crate::Result<()> {
        Ok(())
    }

    /// Gives back the role, if the device itself holds it.
    fn release_role(&self) {}

    /// Checks that the path which the device was opened by still names it, and that it is as large
    /// as it was. It takes a few system calls: [`Lookout`](super::Lookout) checks once a second,
    /// and [`Wait`](crate::wait::Wait) does so while it waits. A program that has done something
    /// with a ring checks once more before it reports success.
    ///
    /// # Errors
    /// [`Displaced`](super::Displaced) as the source of the error.
    fn check_presence(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Returns whether `file` is open on the file or block device that the sectors are in, or on a
    /// loop device of it: what is written there is written into the ring. False where the device
    /// cannot know.
    ///
    /// # Errors
    /// Those of `fstat`.
    fn is_stored_in(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.lock_file().map_or(Ok(false), |own| same_file(own, file))
    }
}

/// A way to sleep on a device whose other side wakes this one.
pub trait Sleep {
    /// Announces that this side is about to sleep. The caller looks at the ring once more before it
    /// does.
    fn announce(&self);

    /// Sleeps until the other side has moved, one of `interrupts` is readable, or `deadline` has
    /// passed.
    ///
    /// # Errors
    /// The operating system's, and those of the search for the next backend.
    fn sleep(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Woken, DeviceError>;

    /// Returns the way to sleep on this device and on others at the same time, as a
    /// [`ConsumerSet`](crate::ConsumerSet) does; `None` where the set has to poll.
    fn shared(&self) -> Option<&dyn SharedSleep> {
        None
    }
}

/// A sleep on many devices in one wait (`epoll`), without a thread for each. Nothing of it waits
/// for another process.
///
/// The announcement is [`Sleep::announce`]'s, and the caller looks at the ring once more after it,
/// as for any sleep.
pub trait SharedSleep {
    /// Calls `visit` with each descriptor to wait on, at most two, with its number as its argument:
    /// descriptor 0 is that of the wake-ups, and the same until [`step`](Self::step) is called for
    /// another reason than descriptor 0.
    ///
    /// # Errors
    /// Those of `visit`.
    fn descriptors(
        &self,
        visit: &mut dyn FnMut(usize, BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Deals with what the wait has found: a wake-up is accepted, and the search for a backend that
    /// is gone goes on by one step.
    ///
    /// # Errors
    /// Those that end the search: another ring, or one of another shape, is in the place of this
    /// one; another process has the role.
    fn step(&self, cause: Cause) -> Result<Peer, DeviceError>;
}

/// Reason of a step of a [`SharedSleep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The descriptor with this number is readable, or its other end was closed.
    Readable(usize),
    /// The time that the last step asked for has passed.
    Elapsed,
}

/// Process behind a device, as far as a [`SharedSleep`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// It is there: the caller looks at the ring.
    Here,
    /// It is gone, and searched for: the next step is due after this time, or when a descriptor is
    /// readable.
    Away(Duration),
}

/// Held reads: a backend parks a READ of the lowest priority until there is news.
pub trait HeldReads {
    /// Reads `peer`'s pointer sector with the lowest priority and waits for the answer, unless one
    /// of `interrupts` is readable or `deadline` passes before. The read goes on then, and the next
    /// call waits for it: there is never more than one.
    ///
    /// The bytes of the answer are not for the caller, who looks at the ring after it. The other
    /// side may move in between, unseen by this read: a backend that holds reads compares with the
    /// last answer that it gave.
    ///
    /// # Errors
    /// The operating system's.
    fn await_answer(
        &self,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<HeldReadOutcome, DeviceError>;
}

/// How a read that may be held ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeldReadOutcome {
    /// With other bytes than the last one.
    News,
    /// With the same bytes as the last one, or with none.
    Same,
    /// Not yet: the wait for it has ended.
    Woken(Woken),
    /// Such reads cannot be made here.
    Unable,
}

impl HeldReadOutcome {
    /// Compares `sector` with the last answer, and keeps it as that: [`News`](Self::News) if it
    /// differs, [`Same`](Self::Same) if not.
    pub fn of(sector: &[u8], last: &mut Option<Vec<u8>>) -> Self {
        if last.as_deref() == Some(sector) {
            return Self::Same;
        }
        last.get_or_insert_default().splice(.., sector.iter().copied());
        Self::News
    }
}

/// Implements the trait for a pointer to a device.
macro_rules! ring_device_behind_pointer {
    ({ $($head:tt)* } $($own:item)*) => {
        $($head)* {
            $($own)*

            fn lock_file(&self) -> Option<BorrowedFd<'_>> {
                (**self).lock_file()
            }

            fn peek_position(&self, side: Side) -> Option<u64> {
                (**self).peek_position(side)
            }

            fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
                (**self).read_pointer(side, sector)
            }

            fn edit_pointer(
                &self,
                side: Side,
                edit: &mut dyn FnMut(&mut [u8]),
            ) -> Result<(), DeviceError> {
                (**self).edit_pointer(side, edit)
            }

            fn reads_are_free(&self) -> bool {
                (**self).reads_are_free()
            }

            fn sleeper(&self) -> Option<&dyn Sleep> {
                (**self).sleeper()
            }

            fn held_reads(&self) -> Option<&dyn HeldReads> {
                (**self).held_reads()
            }

            fn ensure_role(&self) -> crate::Result<()> {
                (**self).ensure_role()
            }

            fn release_role(&self) {
                (**self).release_role();
            }

            fn check_presence(&self) -> Result<(), DeviceError> {
                (**self).check_presence()
            }

            fn is_stored_in(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
                (**self).is_stored_in(file)
            }
        }
    };
}

ring_device_behind_pointer!({ impl<D: RingDevice + ?Sized> RingDevice for Box<D> }
    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        (**self).lend(from, to)
    }
);
// It lends nothing: others may use the device meanwhile.
ring_device_behind_pointer!({ impl<D: RingDevice + Sync + ?Sized> RingDevice for Arc<D> });
