//! The other end: a device that carries out block requests on a vector of sectors, with its own
//! view of the memory.

use crate::memory::DmaMemory;
use crate::queue::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering, fence};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// A request as the device has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub head: u16,
    pub kind: u32,
    pub priority: u32,
    pub sector: u64,
    pub bytes: u32,
    /// Descriptors in its chain.
    pub chain: usize,
    data: u64,
    status: u64,
}

/// A device's access to a queue's memory: by a pointer of its own, as hardware or another process
/// has it. The test keeps the queue for as long as its device works.
#[derive(Clone, Copy)]
pub struct View {
    start: NonNull<u8>,
    bytes: u64,
}

// SAFETY: what the pointer leads to is looked at by atomics, or by copies that the queue's own
// atomics put in order.
unsafe impl Send for View {}

impl View {
    pub fn of(memory: &DmaMemory) -> Self {
        Self { start: memory.as_ptr(), bytes: memory.bytes() }
    }

    fn at(&self, offset: u64, bytes: usize) -> *mut u8 {
        assert!(offset + bytes as u64 <= self.bytes, "a device's access beyond the queue's memory");
        let offset = usize::try_from(offset).unwrap();
        // SAFETY: the assertion keeps it within the memory.
        unsafe { self.start.as_ptr().add(offset) }
    }

    pub fn words<T>(&self, offset: u64, count: usize) -> &[T] {
        let at = self.at(offset, count * size_of::<T>()).cast::<T>();
        assert!(at.is_aligned());
        // SAFETY: `at` has checked the bytes; `T` is an atomic integer in this file, of which any
        // bytes are a valid one.
        unsafe { std::slice::from_raw_parts(at, count) }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: `at` has checked the bytes, and the driver does not write to what the device has.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

pub struct Device {
    memory: View,
    base: u64,
    layout: Layout,
    event_idx: bool,
    pub disk: Vec<u8>,
    available: u16,
    used: u16,
}

impl Device {
    pub fn new(memory: &DmaMemory, layout: Layout, event_idx: bool) -> Self {
        let (view, base, disk) = (View::of(memory), memory.device_start(), vec![0; 1 << 20]);
        Self { memory: view, base, layout, event_idx, disk, available: 0, used: 0 }
    }

    /// The device that takes this one's place, and begins there.
    pub fn succeeded(self, base: u16) -> Self {
        Self { available: base, used: base, ..self }
    }

    /// The next request that the driver has published.
    pub fn next(&mut self) -> Option<Seen> {
        let ring: &[AtomicU16] =
            self.memory.words(self.layout.available, 3 + usize::from(self.layout.size));
        if ring[1].load(Ordering::Acquire) == self.available {
            return None;
        }
        let head = ring[2 + usize::from(self.available % self.layout.size)].load(Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        Some(self.walk(head))
    }

    fn walk(&self, head: u16) -> Seen {
        let (mut table, mut size) = (self.layout.descriptors, self.layout.size);
        let mut index = head;
        let mut parts = Vec::new();
        loop {
            assert!(index < size, "a descriptor within the table");
            let mut bytes = [0; 16];
            self.memory.read(table + 16 * u64::from(index), &mut bytes);
            let address = u64::from_le_bytes(bytes[..8].try_into().unwrap()) - self.base;
            let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(bytes[12..14].try_into().unwrap());
            let next = u16::from_le_bytes(bytes[14..].try_into().unwrap());
            if flags & F_INDIRECT != 0 {
                assert_eq!((flags, parts.len()), (F_INDIRECT, 0), "2.7.5.3.1");
                (table, size, index) = (address, u16::try_from(len / 16).unwrap(), 0);
                continue;
            }
            parts.push((address, len, flags & F_WRITE != 0));
            if flags & F_NEXT == 0 {
                break;
            }
            index = next;
        }
        assert_eq!((parts[0].1, parts[0].2), (16, false), "a header");
        let (status, 1, true) = *parts.last().unwrap() else { panic!("no status: {parts:?}") };
        let mut header = [0; 16];
        self.memory.read(parts[0].0, &mut header);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let data = if parts.len() == 3 { parts[1] } else { (0, 0, kind == 0) };
        assert_eq!(data.2, kind == 0 || kind == 8, "the data's direction");
        Seen {
            head,
            kind,
            priority: u32::from_le_bytes(header[4..8].try_into().unwrap()),
            sector: u64::from_le_bytes(header[8..].try_into().unwrap()),
            bytes: data.1,
            chain: parts.len(),
            data: data.0,
            status,
        }
    }

    /// Carries it out, and gives it back.
    pub fn serve(&mut self, request: &Seen) {
        self.carry_out(request);
        self.answer(request, 0);
    }

    /// Carries it out, and no more.
    pub fn carry_out(&mut self, request: &Seen) {
        let start = usize::try_from(request.sector * 512).unwrap();
        let sectors = start..start + request.bytes as usize;
        match request.kind {
            0 => self.memory.write(request.data, &self.disk[sectors]),
            1 => self.memory.read(request.data, &mut self.disk[sectors]),
            _ => {}
        }
    }

    /// Gives a request back.
    pub fn answer(&mut self, request: &Seen, status: u8) {
        let byte: &[AtomicU8] = self.memory.words(request.status, 1);
        byte[0].store(status, Ordering::Release);
        self.give_back(request.head.into());
    }

    /// Puts something into the used ring.
    pub fn give_back(&mut self, id: u32) {
        let place = u64::from(self.used % self.layout.size);
        let entry: &[AtomicU32] = self.memory.words(self.layout.used + 4 + 8 * place, 2);
        entry[0].store(id, Ordering::Relaxed);
        entry[1].store(1, Ordering::Relaxed);
        self.set_used(self.used.wrapping_add(1));
    }

    pub fn set_used(&mut self, index: u16) {
        self.used = index;
        self.used_ring()[1].store(index, Ordering::Release);
    }

    /// Whether the driver wants an interrupt, now that the used index went up by one.
    pub fn interrupts(&self) -> bool {
        fence(Ordering::SeqCst);
        let ring: &[AtomicU16] =
            self.memory.words(self.layout.available, 3 + usize::from(self.layout.size));
        if self.event_idx {
            let event = ring[2 + usize::from(self.layout.size)].load(Ordering::Relaxed);
            event == self.used.wrapping_sub(1)
        } else {
            ring[0].load(Ordering::Relaxed) == 0
        }
    }

    /// Asks for a notification of the next request. `false` if there is one already.
    pub fn ask_for_notification(&self, wanted: bool) -> bool {
        if self.event_idx {
            let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
            let event: &[AtomicU16] = self.memory.words(at, 1);
            let index = if wanted { self.available } else { self.available.wrapping_sub(1) };
            event[0].store(index, Ordering::Relaxed);
        } else {
            self.used_ring()[0].store(u16::from(!wanted), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        let ring: &[AtomicU16] = self.memory.words(self.layout.available, 2);
        ring[1].load(Ordering::Acquire) == self.available
    }

    fn used_ring(&self) -> &[AtomicU16] {
        self.memory.words(self.layout.used, 2)
    }
}
