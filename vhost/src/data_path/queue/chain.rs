//! One descriptor chain (virtio 1.3, 2.7.5), in the queue's table or in an indirect one (2.7.5.3).

use crate::data_path::dirty::GuestMemory;
use crate::data_path::lookup::{Lookup, Part};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_BYTES: usize = 16;

/// The most descriptors in an indirect table: 16 bits number them.
const MAX_INDIRECT: usize = u16::MAX as usize;

/// The descriptors of a chain, each read once.
///
/// The iteration ends early where the chain leaves its table or guest memory, or runs in a circle:
/// the last descriptor then has its NEXT flag set.
pub struct Chain<'m> {
    mem: &'m GuestMemory,
    table: Table<'m>,
    head: u16,
    /// The next descriptor's number; `None` behind the last one.
    next: Option<u16>,
    /// Descriptors that may still follow: without a circle, no more than the table has.
    left: usize,
    indirect: bool,
}

#[derive(Clone, Copy)]
enum Table<'m> {
    /// Contiguous in our address space.
    Mapped(Part<'m>),
    /// At this guest address, but in several pieces of our address space, or not in memory at all.
    InPieces(GuestAddress),
}

impl<'m> Chain<'m> {
    /// The chain that begins with descriptor `head` of a queue's `table` of `size` descriptors.
    pub(super) fn new(mem: &'m GuestMemory, table: Part<'m>, size: u16, head: u16) -> Self {
        let table = Table::Mapped(table);
        Self { mem, table, head, next: Some(head), left: size.into(), indirect: false }
    }

    /// The number of the first descriptor, which names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    #[inline]
    fn read_next(&mut self) -> Option<Descriptor> {
        let number = self.next.take()?;
        let at = DESCRIPTOR_BYTES * usize::from(number);
        match self.table {
            // Bounded by the table's own length.
            Table::Mapped(table) => read(&table, number),
            Table::InPieces(start) => self.mem.read_obj(start.checked_add(at as u64)?).ok(),
        }
    }

    /// Enters the indirect table that `descriptor` refers to. Returns that table's first
    /// descriptor.
    fn enter(&mut self, descriptor: Descriptor) -> Option<Descriptor> {
        let (start, bytes) = (descriptor.addr(), descriptor.len() as usize);
        let count = bytes / DESCRIPTOR_BYTES;
        if !bytes.is_multiple_of(DESCRIPTOR_BYTES) || count > MAX_INDIRECT {
            return None;
        }
        let whole = self.mem.get_slice(start, bytes).ok();
        self.table = whole.map_or(Table::InPieces(start), Table::Mapped);
        (self.next, self.left, self.indirect) = (Some(0), count, true);
        self.read_next()
    }
}

/// Returns the descriptors of the chain that begins at `head`, if there are just three: in a queue's
/// `table`, or in an indirect table, where they have to stand in their order. Each is read once.
#[inline]
pub(super) fn three<'m>(
    table: &Part<'m>,
    size: u16,
    head: u16,
    memory: &mut Lookup<'m>,
) -> Option<[Descriptor; 3]> {
    let first = read(table, head)?;
    if first.refers_to_indirect_table() {
        let bytes = 3 * DESCRIPTOR_BYTES;
        if first.len() as usize != bytes {
            return None;
        }
        let table = memory.find(first.addr(), bytes)?;
        let chain = [read(&table, 0)?, read(&table, 1)?, read(&table, 2)?];
        return (chain[0].next() == 1 && chain[1].next() == 2).then_some(chain);
    }
    let follows = |before: &Descriptor| {
        let next = before.next();
        if before.has_next() && next < size { read(table, next) } else { None }
    };
    let second = follows(&first)?;
    let third = follows(&second)?;
    Some([first, second, third])
}

/// Reads one descriptor, if it lies in the table.
#[inline]
fn read(table: &Part<'_>, number: u16) -> Option<Descriptor> {
    // In one piece of two words: a load of one value is two instructions.
    let raw: u128 = table.get_ref(DESCRIPTOR_BYTES * usize::from(number)).ok()?.load();
    let bytes = u128::from_le(raw);
    // Each cast takes the lower bits.
    #[allow(clippy::cast_possible_truncation)]
    let parts = (bytes as u64, (bytes >> 64) as u32, (bytes >> 96) as u16, (bytes >> 112) as u16);
    Some(Descriptor::new(parts.0, parts.1, parts.2, parts.3))
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read_next()?;
        if descriptor.refers_to_indirect_table() && !self.indirect {
            descriptor = self.enter(descriptor)?;
        }
        if descriptor.refers_to_indirect_table() {
            // An indirect table within an indirect table (2.7.5.3.1 forbids it).
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}
