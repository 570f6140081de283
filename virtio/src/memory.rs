//! Memory that a device reads and writes: one piece, which the queue in it owns.
//!
//! An address for the device is made by [`DmaMemory::range`] alone, which checks in every build
//! that the bytes are this memory's. Nothing outside the package sees such an address, and the
//! fields of [`DeviceRange`] are private to this file: no other part of the package can make one
//! up.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_os::allocate;
use ring_os::{Mapping, Memory, Word};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Device address of the first byte where the device has its own table of addresses. Not 0: an
/// address that was forgotten must not be a valid one.
const BASE: u64 = 1 << 20;

/// Bytes of a huge page; the size of memory of huge pages is rounded up to a multiple of it.
pub const HUGE_BYTES: u64 = 2 << 20;

/// Size of the pages that memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The usual size.
    Small,
    /// 2 MiB each, out of those that the administrator has set aside (`vm.nr_hugepages`).
    Huge,
}

/// Bytes of a queue's memory, by their device address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRange {
    address: u64,
    len: u32,
}

impl DeviceRange {
    /// Returns the device address of the first byte.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Returns the number of bytes.
    pub fn len(self) -> u32 {
        self.len
    }
}

/// A piece of memory that is allocated once and whole.
#[derive(Debug)]
pub struct DmaMemory {
    mapping: Mapping,
    /// The file behind the mapping, which a device in another process is given.
    file: Option<File>,
    bytes: u64,
    /// Device address of the first byte.
    base: u64,
}

impl DmaMemory {
    /// Allocates at least `bytes` of zeros in a file without a name. The file's size is sealed: a
    /// device in another process cannot take the memory back.
    pub fn new(bytes: u64, pages: Pages) -> io::Result<Self> {
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut unit = 4096;
        if pages == Pages::Huge {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
            unit = HUGE_BYTES;
        }
        let bytes = bytes.next_multiple_of(unit);
        let file = File::from(memfd_create("virtqueue", flags)?);
        // A page that is not to be had is an error here, and would be a SIGBUS later.
        allocate(&file, bytes)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let mapping = Mapping::new(file.try_clone()?, bytes)?;
        Ok(Self { mapping, file: Some(file), bytes, base: BASE })
    }

    /// Allocates memory without a file: for a device that the test plays, at
    /// [`as_ptr`](Self::as_ptr).
    #[cfg(test)]
    pub fn anonymous(bytes: u64) -> Self {
        let bytes = bytes.next_multiple_of(4096);
        let mapping = Mapping::anonymous(bytes).expect("memory");
        Self { mapping, file: None, bytes, base: BASE }
    }

    /// Returns a pointer to the first byte, for as long as the memory lives.
    #[cfg(test)]
    pub fn as_ptr(&self) -> std::ptr::NonNull<u8> {
        self.mapping.as_ptr()
    }

    /// Returns the same memory with the device address `base`.
    ///
    /// # Safety
    /// For as long as this memory is mapped, the device finds all of its bytes in one piece from
    /// `base` on.
    pub unsafe fn at(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// Returns the number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns `len` bytes from `offset` on as the device addresses them.
    ///
    /// # Panics
    /// If they do not all lie in this memory.
    pub fn range(&self, offset: u64, len: u32) -> DeviceRange {
        let end = offset.checked_add(len.into());
        assert!(end.is_some_and(|end| end <= self.bytes), "a range within the queue's memory");
        DeviceRange { address: self.base + offset, len }
    }

    /// Returns the device address of the first byte.
    pub fn device_start(&self) -> u64 {
        self.base
    }

    /// Returns the address at which this process has the byte at `offset` mapped.
    pub fn host_address(&self, offset: u64) -> u64 {
        self.mapping.addresses().start as u64 + offset
    }

    /// Returns the file that the memory is in, if it has one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Asks for the cache line at `offset` ahead of reading it.
    pub fn prefetch(&self, offset: u64) {
        self.mapping.prefetch(offset);
    }

    /// Copies bytes from `offset` on out of the memory.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.mapping.read(offset, bytes);
    }

    /// Copies bytes into the memory, from `offset` on.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.mapping.write(offset, bytes);
    }

    /// Returns `count` integers from `offset` on, which is a multiple of their size.
    pub(super) fn words<T: Word>(&self, offset: u64, count: usize) -> &[T] {
        self.mapping.words(offset, count)
    }
}
