#![allow(clippy::unwrap_used)]

use super::*;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x4000;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap()
}

fn queue(event_idx: bool) -> Queue {
    let mut queue = Queue::new(8).unwrap();
    queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_event_idx(event_idx);
    queue
}

fn next_chain<'m>(split: &mut SplitQueue<'m>) -> Chain<'m> {
    let head = split.next_head().unwrap().unwrap();
    split.take();
    split.chain(head)
}

fn put(mem: &GuestMemory, at: u64, value: u16) {
    mem.write_obj(value, GuestAddress(at)).unwrap();
}

fn describe(mem: &GuestMemory, table: u64, index: u16, address: u64, len: u32, rest: [u32; 2]) {
    let at = table + 16 * u64::from(index);
    mem.write_obj(address, GuestAddress(at)).unwrap();
    mem.write_obj(len, GuestAddress(at + 8)).unwrap();
    mem.write_obj(rest[0] | rest[1] << 16, GuestAddress(at + 12)).unwrap();
}

/// Sets the available index to `index`; every entry of the ring is descriptor 0.
fn offer(mem: &GuestMemory, index: u16) {
    put(mem, AVAILABLE + 2, index);
}

#[test]
fn interrupt_is_wanted_when_the_used_index_passes_the_drivers_event() {
    let mem = memory();
    let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
    assert_eq!(split.wants_interrupt(false), Ok(false), "nothing was answered");
    for (event, wanted) in [(0, true), (1, true), (5, false), (3, true), (u16::MAX, false)] {
        put(&mem, AVAILABLE + 4 + 2 * 8, event);
        split.add_used(0, 1).unwrap();
        assert_eq!(split.wants_interrupt(false), Ok(wanted), "event {event}");
    }
    let mut new = SplitQueue::open(&queue(true), &mem, None).unwrap();
    assert_eq!(new.wants_interrupt(false), Ok(true), "what was signalled before is unknown");
    let mut plain = SplitQueue::open(&queue(false), &mem, Some(0)).unwrap();
    put(&mem, AVAILABLE, 1);
    plain.add_used(0, 1).unwrap();
    assert_eq!(plain.wants_interrupt(false), Ok(false));
    put(&mem, AVAILABLE, 0);
    plain.add_used(0, 1).unwrap();
    assert_eq!(plain.wants_interrupt(false), Ok(true));
}

#[test]
fn wish_that_was_missed_while_there_was_more_is_found_at_the_end() {
    let mem = memory();
    let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
    let event = |index: u16| put(&mem, AVAILABLE + 4 + 2 * 8, index);
    event(100);
    (0..3).for_each(|head| split.add_used(head, 1).unwrap());
    assert_eq!(split.wants_interrupt(true), Ok(false));
    // As the driver has stored it before that look.
    event(1);
    assert_eq!(split.wants_interrupt(false), Ok(true));
    assert_eq!(split.wants_interrupt(false), Ok(false), "nothing was answered since");
    event(3);
    split.add_used(3, 1).unwrap();
    assert_eq!(split.wants_interrupt(true), Ok(true));
    assert_eq!(split.wants_interrupt(false), Ok(false), "it was interrupted for that");
}

#[test]
fn driver_is_interrupted_meanwhile_once_for_eight_completions() {
    let mem = memory();
    let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
    let wanted: Vec<_> = (0..20u16)
        .filter(|number| {
            put(&mem, AVAILABLE + 4 + 2 * 8, *number);
            split.add_used(0, 1).unwrap();
            split.wants_interrupt_meanwhile().unwrap()
        })
        .collect();
    assert_eq!(wanted, [7, 15]);
}

/// Without a final decision the completions since the last one would be more than an index counts,
/// and the driver's event would seem to lie before them.
#[test]
fn driver_of_a_queue_that_is_never_empty_is_interrupted_after_any_number_of_completions() {
    // Completions of one turn of the worker.
    const TURN: u16 = 500;
    let mem = memory();
    for completions in [10, 40_000, 70_000, 65_536 + 3] {
        let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
        let event = |index: u16| put(&mem, AVAILABLE + 4 + 2 * 8, index);
        let mut left: u32 = completions;
        while left > 0 {
            let turn = TURN.min(u16::try_from(left).unwrap_or(TURN));
            left -= u32::from(turn);
            split.next_used = split.next_used.after(turn);
            // Out of reach, as where the driver polls.
            event(split.next_used.get().wrapping_add(0x4000));
            assert_eq!(split.wants_interrupt(true), Ok(false), "{left} of {completions}");
        }
        event(split.next_used.get());
        split.next_used = split.next_used.after(5);
        assert_eq!(split.wants_interrupt(true), Ok(true), "{completions}");
    }
}

#[test]
fn chain_offered_while_a_kick_is_asked_for_is_seen() {
    for event_idx in [true, false] {
        let mem = memory();
        let mut split = SplitQueue::open(&queue(event_idx), &mem, None).unwrap();
        split.suppress_kicks().unwrap();
        assert_eq!(split.ask_for_kick(), Ok(false));
        offer(&mem, 1);
        assert_eq!(split.ask_for_kick(), Ok(true));
        assert_eq!(next_chain(&mut split).head(), 0);
        assert_eq!(split.ask_for_kick(), Ok(false));
        let event: u16 = mem.read_obj(GuestAddress(USED + 4 + 8 * 8)).unwrap();
        assert_eq!(event, u16::from(event_idx));
    }
}

#[test]
fn parts_are_found_in_any_order_and_in_separate_regions() {
    let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x10_0000), 0x1000)];
    let mem = GuestMemory::from_ranges(&ranges).unwrap();
    for (table, available, used) in
        [(0, 0x800, 0x900), (0x900, 0x800, 0), (0, 0x10_0000, 0x800), (0, 0x800, 0x10_0000)]
    {
        let mut queue = queue(true);
        queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(available)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
        describe(&mem, table, 3, 0, 5, [0, 0]);
        put(&mem, available + 2, 1);
        put(&mem, available + 4, 3);
        let mut split = SplitQueue::open(&queue, &mem, None).unwrap();
        let mut chain = next_chain(&mut split);
        assert_eq!(chain.next().map(|descriptor| descriptor.len()), Some(5));
        split.add_used(3, 7).unwrap();
        assert_eq!(mem.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 1);
        assert_eq!(mem.read_obj::<[u32; 2]>(GuestAddress(used + 4)).unwrap(), [3, 7]);
        put(&mem, available + 2, 0);
        put(&mem, used + 2, 0);
    }
}

#[test]
fn queue_breaks_at_an_index_or_a_head_out_of_bounds() {
    let mem = memory();
    offer(&mem, 9);
    let mut split = SplitQueue::open(&queue(true), &mem, None).unwrap();
    assert_eq!(split.next_head().err(), Some(Broken::Index));
    offer(&mem, 1);
    put(&mem, AVAILABLE + 4, 8);
    let mut split = SplitQueue::open(&queue(true), &mem, None).unwrap();
    assert_eq!(split.next_head().err(), Some(Broken::Head));
    let mut outside = queue(true);
    outside.try_set_used_ring_address(GuestAddress(0x8000 - 8)).unwrap();
    assert_eq!(SplitQueue::open(&outside, &mem, None).err(), Some(Broken::Rings));
}

#[test]
fn chain_ends_where_it_leaves_its_table_or_memory() {
    let lens = |mem: &GuestMemory| {
        let mut split = SplitQueue::open(&queue(true), mem, None).unwrap();
        let chain = next_chain(&mut split);
        chain.map(|descriptor| descriptor.len()).collect::<Vec<_>>()
    };
    let mem = memory();
    offer(&mem, 1);
    describe(&mem, TABLE, 0, 0, 5, [VRING_DESC_F_NEXT, 1]);
    describe(&mem, TABLE, 1, 0, 6, [0, 0]);
    assert_eq!(lens(&mem), [5, 6]);
    describe(&mem, TABLE, 1, 0, 6, [VRING_DESC_F_NEXT, 0]);
    assert_eq!(lens(&mem).len(), 8, "a circle");
    describe(&mem, TABLE, 1, 0, 6, [VRING_DESC_F_NEXT, 8]);
    assert_eq!(lens(&mem), [5, 6], "out of the table");
    describe(&mem, TABLE, 0, INDIRECT, 32, [VRING_DESC_F_INDIRECT, 0]);
    describe(&mem, INDIRECT, 0, 0, 7, [VRING_DESC_F_NEXT, 1]);
    describe(&mem, INDIRECT, 1, 0, 8, [VRING_DESC_F_NEXT, 2]);
    assert_eq!(lens(&mem), [7, 8], "out of an indirect one");
    describe(&mem, INDIRECT, 1, TABLE, 16, [VRING_DESC_F_INDIRECT, 0]);
    assert_eq!(lens(&mem), [7], "a table in a table");
    for (address, len) in [(0x8000, 16), (0x8000 - 16, 40), (INDIRECT, 24), (u64::MAX, 16)] {
        describe(&mem, TABLE, 0, address, len, [VRING_DESC_F_INDIRECT, 0]);
        assert!(lens(&mem).is_empty(), "{len} bytes at {address:#x}");
    }
}
