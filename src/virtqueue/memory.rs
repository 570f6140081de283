//! Memory that a device reads and writes.

use crate::create::allocate;
use crate::device::{Mapping, Memory, Word};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Where the device finds the first byte unless it is told otherwise. Not 0: an address that was forgotten must not be one.
const BASE: u64 = 1 << 20;

/// Bytes of a huge page, and so what such memory is rounded up to.
pub(super) const HUGE_BYTES: u64 = 2 << 20;

/// What memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// The usual ones.
    #[default]
    Small,
    /// 2 MiB each, out of those that the administrator has set aside (`vm.nr_hugepages`).
    Huge,
}

/// A piece of memory in a file without a name, allocated once and whole; a device gets it by its descriptor.
#[derive(Debug)]
pub struct DmaMemory {
    mapping: Mapping,
    file: File,
    bytes: u64,
    base: u64,
}

impl DmaMemory {
    /// At least `bytes` of it, all zero. Nobody can resize it any more: not the device either.
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
        Ok(Self { mapping, file, bytes, base: BASE })
    }

    /// The same memory, which the device finds from `base` on.
    #[must_use]
    pub fn at(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the device finds what lies at `offset` here.
    pub fn device_address(&self, offset: u64) -> u64 {
        self.base + offset
    }

    /// Where this process has it mapped.
    pub fn host_address(&self, offset: u64) -> u64 {
        self.mapping.addresses().start as u64 + offset
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Asks for the cache line at `offset` ahead of reading it.
    pub(crate) fn prefetch(&self, offset: u64) {
        self.mapping.prefetch(offset);
    }

    /// Copies out.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.mapping.read(offset, bytes);
    }

    /// Copies in.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.mapping.write(offset, bytes);
    }

    /// `count` integers from `offset` on, which is a multiple of their size.
    pub(crate) fn words<T: Word>(&self, offset: u64, count: usize) -> &[T] {
        self.mapping.words(offset, count)
    }
}
