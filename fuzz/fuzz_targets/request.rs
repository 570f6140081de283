//! A queue anywhere in a guest's memory, with arbitrary content: requests within their bounds,
//! refusals, or a broken queue; never a panic or an endless walk.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::queue::SplitQueue;
use vhost_device_blockring::data_path::request::{Kind, MAX_BYTES, MAX_SEGMENTS, Request};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Two regions with a hole between them.
const REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0x4000), (GuestAddress(0x1_0000), 0x1000)];

/// Largest number of requests taken from one queue.
const MOST: usize = 64;

#[derive(Debug, Arbitrary)]
struct Layout {
    size: u8,
    descriptors: u16,
    available: u16,
    used: u16,
    next_available: u16,
    /// Words written into the queue, so that descriptors are found there.
    entries: Vec<(u16, u64, u32, u16, u16)>,
    heads: Vec<u16>,
    index: u16,
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(layout) = Layout::arbitrary(&mut input) else { return };
    let memory = GuestMemory::from_ranges(&REGIONS).expect("memory");
    let rest = input.take_rest();
    let at = |place: u16| GuestAddress(u64::from(place));
    // What does not fit is not written.
    let _ = memory.write(rest, GuestAddress(0x3000));
    let table = layout.descriptors & !15;
    for (place, address, len, flags, next) in &layout.entries {
        let entry = at(table.wrapping_add((place % 256) * 16)).0;
        let _ = memory.write_obj(*address & 0x1_ffff, GuestAddress(entry));
        let _ = memory.write_obj(*len, GuestAddress(entry + 8));
        let _ = memory.write_obj(*flags, GuestAddress(entry + 12));
        let _ = memory.write_obj(*next, GuestAddress(entry + 14));
    }
    let available = u64::from(layout.available & !1);
    let _ = memory.write_obj(layout.index, GuestAddress(available + 2));
    for (place, head) in (0u64..).zip(&layout.heads) {
        let _ = memory.write_obj(*head, GuestAddress(available + 4 + 2 * place));
    }
    let size = 1 << (layout.size % 9);
    let mut queue = Queue::new(256).expect("a queue");
    queue.set_size(size);
    let _ = queue.try_set_desc_table_address(GuestAddress(u64::from(table)));
    let _ = queue.try_set_avail_ring_address(GuestAddress(available));
    let _ = queue.try_set_used_ring_address(GuestAddress(u64::from(layout.used & !3)));
    queue.set_next_avail(layout.next_available);
    queue.set_ready(true);
    let mut request = Request::default();
    let Ok(mut split) = SplitQueue::open(&queue, &memory, None) else { return };
    for _ in 0..MOST {
        let Ok(Some(head)) = split.next_head() else { break };
        assert!(head < size);
        let fast = split.fast_chain(head).and_then(|chain| {
            chain.prefetch(split.memory());
            let parsed = chain.parse(split.memory())?;
            let data = chain.data(split.memory())?;
            chain.status(split.memory()).map(|_| (parsed, data.len() as u64))
        });
        split.take();
        let parsed = request.parse(&memory, split.chain(head));
        if let Some(((kind, sector), len)) = fast {
            assert_eq!(parsed, Ok(()));
            assert_eq!((request.kind(), request.sector, request.data_len), (kind, sector, len));
        }
        if parsed.is_ok() {
            assert!(request.status().is_some());
            assert!(request.data_len <= MAX_BYTES);
            assert!(request.data.len() <= MAX_SEGMENTS as usize + 34);
            let bytes: u64 = request.data.iter().map(|segment| segment.len as u64).sum();
            assert_eq!(bytes, request.data_len);
            let _: Kind = request.kind();
        }
        if split.add_used(head, 1).is_err() || split.wants_interrupt(false).is_err() {
            break;
        }
    }
    split.close(&mut queue);
});
