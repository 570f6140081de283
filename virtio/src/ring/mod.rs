//! A virtio block device that this process drives itself: no kernel, and no system call while both
//! sides are awake.

mod driver;

use self::driver::{BUFFER, BlockingDriver};
use crate::pci::PciAddress;
use crate::{Error, Pci, Reconnect, Refusal, Transport, VhostUser};
use ring_os::{ANSWER_PATIENCE, Limits, Pauses, shown, wait_readable};
use shared_block_ring::device::{DeviceError, HeldReadOutcome, HeldReads, Operation};
use shared_block_ring::format::{FormatError, Geometry, SectorSize, Side};
use shared_block_ring::wait::Woken;
use shared_block_ring::{BlockDevice, RingDevice};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A block device behind a virtqueue.
pub struct VirtioDevice {
    name: String,
    geometry: Geometry,
    read_only: bool,
    driver: Mutex<BlockingDriver>,
    /// Descriptors that end a wait, beside the caller's own.
    events: Vec<(Event, OwnedFd)>,
}

/// Meaning of a descriptor of the device that is readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Interrupt,
    Gone,
}

impl VirtioDevice {
    /// Connects to the vhost-user-blk backend that listens at `path`, as its front end.
    /// `sector_size` is what the caller expects. Gives up after 5 seconds without an answer.
    ///
    /// # Errors
    /// The backend cannot be reached or does not answer, its device cannot be driven, has other
    /// sectors than the caller expects, or is too small for a ring.
    pub fn connect(
        path: impl AsRef<Path>,
        sector_size: Option<SectorSize>,
    ) -> shared_block_ring::Result<Self> {
        Self::connect_within(path, sector_size, &Limits::within(ANSWER_PATIENCE))
    }

    /// Connects like [`connect`](Self::connect), within other limits.
    ///
    /// # Errors
    /// A [`DeviceError`] whose source is [`TimedOut`](io::ErrorKind::TimedOut) or
    /// [`Interrupted`](io::ErrorKind::Interrupted) when the limits have ended the wait.
    pub fn connect_within(
        path: impl AsRef<Path>,
        sector_size: Option<SectorSize>,
        limits: &Limits<'_>,
    ) -> shared_block_ring::Result<Self> {
        let path = path.as_ref();
        let name = format!("vhost-user:{}", shown(path));
        match VhostUser::connect_within(path, limits) {
            Ok(transport) => Self::over(transport, name, sector_size, limits),
            Err(e) => Err(DeviceError::new(name, Operation::Connect, e).into()),
        }
    }

    /// Takes the virtio block device of this machine that the kernel has at `address` and does not
    /// drive (`blockring bind`), for this process alone. `sector_size` is what the caller expects.
    ///
    /// Only an `unsafe` block can take one:
    ///
    /// ```compile_fail,E0133
    /// # use virtio_blk_driver::VirtioDevice;
    /// let disk = VirtioDevice::open("0000:00:04.0".parse().unwrap(), None);
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Safety
    /// The device goes by physical addresses. The caller vouches for what [`Pci::open`] lists: that
    /// the device keeps to the standard, that no other program tells it where to write, and that
    /// the kernel leaves huge pages where they are.
    pub unsafe fn open(
        address: PciAddress,
        sector_size: Option<SectorSize>,
    ) -> shared_block_ring::Result<Self> {
        let name = format!("pci:{address}");
        // SAFETY: the caller's.
        match unsafe { Pci::open(address) } {
            Ok(transport) => Self::over(transport, name, sector_size, &Limits::default()),
            Err(e) => Err(DeviceError::new(name, Operation::Take, refused(e, address)).into()),
        }
    }

    /// Has requests look for their completion for so long before they sleep until it comes, which
    /// takes the whole of a processor: 50 µs unless this says otherwise.
    pub fn set_spin(&self, spin: Duration) {
        self.driver().set_spin(spin);
    }

    /// The device at the other end of `transport`.
    fn over(
        transport: impl Transport,
        name: String,
        sector_size: Option<SectorSize>,
        limits: &Limits<'_>,
    ) -> shared_block_ring::Result<Self> {
        let fail = |operation, source: io::Error| DeviceError::new(&*name, operation, source);
        let disk = transport.disk();
        let size = SectorSize::new(disk.sector_size)?;
        if let Some(asked) = sector_size.filter(|&expected| expected != size) {
            let (asked, device) = (asked.get(), size.get());
            return Err(FormatError::DeviceSectorSize { asked, device }.into());
        }
        let geometry = Geometry::new(size, disk.bytes / u64::from(size.get()))?;
        let driver = BlockingDriver::start(transport, Reconnect::new(&name), limits)
            .map_err(|e| fail(Operation::StartQueue, e))?;
        let device = driver.device();
        let events = [(Event::Interrupt, device.interrupt_fd()), (Event::Gone, device.gone_fd())];
        let events = events.into_iter().filter_map(|(event, fd)| Some((event, fd?)));
        let events: io::Result<_> =
            events.map(|(event, fd)| Ok((event, fd.try_clone_to_owned()?))).collect();
        let events = events.map_err(|e| fail(Operation::Watch, e))?;
        Ok(Self { name, geometry, read_only: disk.read_only, driver: Mutex::new(driver), events })
    }

    /// How long a backend may be gone before that is an error: five minutes, unless this is called.
    /// Until then whoever uses the device only waits.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        self.driver().search().set_patience(patience);
        self
    }

    /// Has waits end soon when `stop` is readable: that for a backend that is gone at once, and
    /// that for the answer to a request after 5 seconds, so that one more batch can be written to a
    /// device that answers. The device is of no use after such an error.
    #[must_use]
    pub fn stop_on(self, stop: OwnedFd) -> Self {
        self.driver().search().stop_on(stop);
        self
    }

    fn driver(&self) -> MutexGuard<'_, BlockingDriver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: Operation, sector: u64, source: io::Error) -> DeviceError {
        DeviceError::new(&*self.name, operation, source).at_sector(sector)
    }

    /// The first unit of 512 bytes of a transfer within the device.
    fn first_unit(&self, sector: u64, bytes: usize) -> io::Result<u64> {
        let size = u64::from(self.geometry.sector_size().get());
        let end = sector.checked_mul(size).and_then(|at| at.checked_add(bytes as u64));
        match end {
            Some(end) if end <= self.geometry.total_bytes() => Ok(sector * (size / 512)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Returns why a device of this machine is not driven, with what to do about it.
fn refused(error: Error, address: PciAddress) -> io::Error {
    match error {
        Error::Refused(Refusal::KernelDriver(_)) => {
            let text = format!("{error} (blockring bind {address} takes it from there)");
            io::Error::new(error.kind(), text)
        }
        _ => error.into(),
    }
}

impl fmt::Debug for VirtioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioDevice({}, {:?})", self.name, self.geometry)
    }
}

impl BlockDevice for VirtioDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        self.first_unit(first, bytes)
            .and_then(|unit| {
                let chunks = bufs.iter_mut().flat_map(|buf| buf.chunks_mut(BUFFER as usize));
                self.driver().read(unit, chunks)
            })
            .map_err(|e| self.error(Operation::Read, first, e))
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        self.first_unit(first, bytes)
            .and_then(|unit| {
                if self.read_only {
                    return Err(io::ErrorKind::ReadOnlyFilesystem.into());
                }
                let chunks = bufs.iter().flat_map(|buf| buf.chunks(BUFFER as usize));
                self.driver().write(unit, chunks)
            })
            .map_err(|e| self.error(Operation::Write, first, e))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.driver().flush().map_err(|e| DeviceError::new(&*self.name, Operation::Flush, e))
    }
}

impl RingDevice for VirtioDevice {
    fn held_reads(&self) -> Option<&dyn HeldReads> {
        Some(self)
    }

    /// None: a backend serves one front end at a time, and a device of this machine has one process
    /// to drive it.
    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl HeldReads for VirtioDevice {
    fn await_answer(
        &self,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<HeldReadOutcome, DeviceError> {
        let sector = peer.sector();
        let bytes = self.geometry.sector_size().bytes();
        let fail = |e| self.error(Operation::Wait, sector, e);
        let unit = self.first_unit(sector, bytes).map_err(fail)?;
        let own = self.events.len();
        let mut waited: Vec<_> = self.events.iter().map(|(_, fd)| fd.as_fd()).collect();
        waited.extend_from_slice(interrupts);
        let interrupted = self.events.iter().any(|(event, _)| *event == Event::Interrupt);
        let mut pauses = Pauses::default();
        loop {
            // Others may have the queue while we sleep.
            if let Some(answer) = self.driver().look_for_answer(unit, bytes).map_err(fail)? {
                return Ok(answer);
            }
            let left =
                || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
            let pause = if interrupted { left() } else { Some(pauses.next_pause_within(left())) };
            let woken = match wait_readable(&waited, pause).map_err(fail)? {
                Some(index) if index >= own => Some(index - own),
                None if interrupted || late() => None,
                event => {
                    let mut driver = self.driver();
                    if event.is_some_and(|index| self.events[index].0 == Event::Interrupt) {
                        driver.device().acknowledge_interrupt();
                    }
                    let pause = driver.look_for_device().map_err(fail)?;
                    drop(driver);
                    let Some(pause) = pause else { continue };
                    let pause = left().map_or(pause, |left| left.min(pause));
                    match wait_readable(interrupts, Some(pause)).map_err(fail)? {
                        None if !late() => continue,
                        woken => woken,
                    }
                }
            };
            return Ok(HeldReadOutcome::Woken(match woken {
                Some(index) => Woken::Readable(index),
                None if late() => Woken::TimedOut,
                None => Woken::Elapsed,
            }));
        }
    }
}
