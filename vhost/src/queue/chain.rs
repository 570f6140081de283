//! One descriptor chain (virtio 1.3, 2.7.5), in the queue's table or in an indirect one (2.7.5.3).

use super::Part;
use crate::dirty::GuestMemory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_BYTES: usize = 16;

/// Descriptors in an indirect table at most: 16 bits number them.
const MAX_INDIRECT: usize = u16::MAX as usize;

/// The descriptors of a chain, each read once. It ends early where it leads out of its table, in a circle, or out of memory: the
/// last descriptor then says that another one follows.
pub struct Chain<'m> {
    mem: &'m GuestMemory,
    table: Table<'m>,
    head: u16,
    /// Of the next descriptor; `None` behind the last one.
    next: Option<u16>,
    /// Descriptors that may follow: without a circle, no more than the table has.
    left: usize,
    indirect: bool,
}

#[derive(Clone, Copy)]
enum Table<'m> {
    /// Side by side in our address space.
    Whole(Part<'m>),
    /// From here on, but not so, or not there at all.
    Elsewhere(GuestAddress),
}

impl<'m> Chain<'m> {
    /// From descriptor `head` of a queue's `table` on, which has `size` of them.
    pub(super) fn new(mem: &'m GuestMemory, table: Part<'m>, size: u16, head: u16) -> Self {
        let table = Table::Whole(table);
        Self { mem, table, head, next: Some(head), left: size.into(), indirect: false }
    }

    /// By which it is handed back.
    pub fn head(&self) -> u16 {
        self.head
    }

    #[inline]
    fn take(&mut self) -> Option<Descriptor> {
        let at = DESCRIPTOR_BYTES * usize::from(self.next.take()?);
        match self.table {
            // Its own length bounds it.
            Table::Whole(table) => table.get_ref(at).ok().map(|descriptor| descriptor.load()),
            Table::Elsewhere(start) => self.mem.read_obj(start.checked_add(at as u64)?).ok(),
        }
    }

    /// Goes on in the table that `descriptor` names, and begins with its first one.
    fn enter(&mut self, descriptor: Descriptor) -> Option<Descriptor> {
        let (start, bytes) = (descriptor.addr(), descriptor.len() as usize);
        let count = bytes / DESCRIPTOR_BYTES;
        if !bytes.is_multiple_of(DESCRIPTOR_BYTES) || count > MAX_INDIRECT {
            return None;
        }
        let whole = self.mem.get_slice(start, bytes).ok();
        self.table = whole.map_or(Table::Elsewhere(start), Table::Whole);
        (self.next, self.left, self.indirect) = (Some(0), count, true);
        self.take()
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.take()?;
        if descriptor.refers_to_indirect_table() && !self.indirect {
            descriptor = self.enter(descriptor)?;
        }
        if descriptor.refers_to_indirect_table() {
            // A table within a table.
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}
