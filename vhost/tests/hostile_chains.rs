//! Descriptor chains that no correct driver writes: each is answered with an error and counted
//! under its reason, and correct requests are served before and after, on the same queue.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use ring_test_support::front_end::{DATA, FrontEnd, HEADER, MEMORY, STATUS, TABLE};
use ring_test_support::split_ring::{Desc, indirect, linked, readable, writable};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;
use vm_memory::{Bytes, GuestAddress};

/// The status byte before the device writes it.
const UNTOUCHED: u8 = 0xaa;

struct Attack {
    scene: Scene,
    _daemon: Daemon,
    guest: FrontEnd,
}

impl Attack {
    fn new() -> Self {
        let scene = Scene::new();
        let daemon = scene.start(&[]);
        let mut guest = FrontEnd::new(&scene);
        guest.honest(&scene);
        Self { scene, _daemon: daemon, guest }
    }

    fn ring(&self) -> Vec<u8> {
        std::fs::read(self.scene.path("ring")).unwrap()
    }

    /// Sends a bad request. The region must be unchanged, and the counter one higher.
    fn refused(&mut self, counter: &str, status: u8, attack: impl FnOnce(&mut FrontEnd) -> u8) {
        let (before, count) = (self.ring(), self.scene.counter(counter));
        assert_eq!(attack(&mut self.guest), status, "{counter}");
        assert_eq!(self.scene.counter(counter), count + 1, "{counter}");
        assert!(self.ring() == before, "{counter}: the region has changed");
    }

    fn malformed(&mut self, chain: &[Desc]) {
        self.refused_write("refused.malformed", ioerr(), chain);
    }

    /// Sends a write to sector 3 with these descriptors.
    fn refused_write(&mut self, counter: &str, status: u8, chain: &[Desc]) {
        self.refused(counter, status, |guest| {
            guest.header(VIRTIO_BLK_T_OUT, 3);
            guest.chain(chain)
        });
    }

    /// Checks that the queue still works.
    fn survived(mut self) {
        self.guest.honest(&self.scene);
        assert_eq!(self.scene.counter("broken"), 0);
        assert_eq!(self.scene.logged("panicked"), 0);
    }
}

fn ioerr() -> u8 {
    u8::try_from(VIRTIO_BLK_S_IOERR).unwrap()
}

fn ok() -> u8 {
    u8::try_from(VIRTIO_BLK_S_OK).unwrap()
}

/// Sends a write whose descriptors are stored in the table as they are, with their own next
/// indices.
fn refused_as_it_stands(attack: &mut Attack, counter: &str, chain: &[Desc]) {
    attack.refused(counter, UNTOUCHED, |guest| {
        guest.header(VIRTIO_BLK_T_OUT, 3);
        guest.describe(guest.rings.descriptors, 0, chain);
        guest.offer(0);
        guest.kick();
        guest.completion().expect("no answer");
        guest.status()
    });
}

#[test]
fn descriptor_loop_is_refused() {
    let mut attack = Attack::new();
    for next in [0, 1] {
        let first = Desc { flags: VRING_DESC_F_NEXT, next: 1, ..readable(HEADER, 16) };
        let second = Desc { flags: VRING_DESC_F_NEXT, next, ..readable(DATA, 512) };
        refused_as_it_stands(&mut attack, "refused.too_large", &[first, second]);
    }
    attack.survived();
}

#[test]
fn next_index_outside_the_table_is_refused() {
    let mut attack = Attack::new();
    let first = Desc { flags: VRING_DESC_F_NEXT, next: 1, ..readable(HEADER, 16) };
    let second = Desc { flags: VRING_DESC_F_NEXT, next: 256, ..readable(DATA, 512) };
    refused_as_it_stands(&mut attack, "refused.malformed", &[first, second]);
    attack.survived();
}

#[test]
fn lengths_of_zero_are_refused_or_skipped() {
    let mut attack = Attack::new();
    attack.malformed(&[readable(HEADER, 0), readable(DATA, 0), writable(STATUS, 1)]);
    attack.refused("refused.malformed", UNTOUCHED, |guest| {
        guest.header(VIRTIO_BLK_T_OUT, 3);
        guest.chain(&[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 0)])
    });
    let empty = readable(DATA, 0);
    let chain =
        [empty, readable(HEADER, 16), empty, readable(DATA, 512), empty, writable(STATUS, 1)];
    let bytes = attack.ring()[8192..8704].to_vec();
    attack.guest.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    attack.guest.header(VIRTIO_BLK_T_OUT, 16);
    assert_eq!(attack.guest.chain(&chain), ok(), "nothing is not wrong between something");
    attack.survived();
}

#[test]
fn huge_lengths_are_refused() {
    let mut attack = Attack::new();
    for len in [(16 << 20) + 512, u32::MAX - 512, u32::MAX] {
        let all = [readable(HEADER, 16), readable(DATA, len), writable(STATUS, 1)];
        attack.refused_write("refused.too_large", ioerr(), &all);
    }
    // More than 4 GiB in all.
    let mut all = vec![readable(HEADER, 16)];
    all.extend([readable(DATA, u32::MAX); 3]);
    all.push(writable(STATUS, 1));
    attack.refused_write("refused.too_large", ioerr(), &all);
    attack.refused("refused.too_large", ioerr(), |guest| {
        guest.request(VIRTIO_BLK_T_IN, 0, writable(DATA, 1 << 31))
    });
    attack.survived();
}

#[test]
fn overlapping_buffers_harm_their_own_request_alone() {
    let mut attack = Attack::new();
    let image = attack.ring();
    // Two buffers at one address; the status within the data; data over the header.
    attack.guest.header(VIRTIO_BLK_T_IN, 0);
    let chain =
        [readable(HEADER, 16), writable(DATA, 512), writable(DATA, 512), writable(STATUS, 1)];
    assert_eq!(attack.guest.chain(&chain), ok());
    let mut bytes = [0; 512];
    attack.guest.memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!(bytes[..], image[512..1024], "the later one wins");
    attack.guest.header(VIRTIO_BLK_T_IN, 0);
    let chain = [readable(HEADER, 16), writable(STATUS - 100, 512), writable(STATUS, 1)];
    assert_eq!(attack.guest.chain(&chain), ok());
    attack.guest.header(VIRTIO_BLK_T_IN, 0);
    let chain = [readable(HEADER, 16), writable(HEADER, 512), writable(STATUS, 1)];
    attack.guest.chain(&chain);
    attack.survived();
}

#[test]
fn wrong_directions_are_refused() {
    let mut attack = Attack::new();
    attack.malformed(&[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]);
    attack.malformed(&[readable(HEADER, 16), writable(STATUS, 1), readable(DATA, 512)]);
    attack.malformed(&[writable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]);
    let unwritable = [readable(HEADER, 16), readable(DATA, 512), readable(STATUS, 1)];
    attack.refused_write("refused.malformed", UNTOUCHED, &unwritable);
    attack.refused("refused.malformed", ioerr(), |guest| {
        guest.request(VIRTIO_BLK_T_IN, 3, readable(DATA, 512))
    });
    attack.survived();
}

#[test]
fn header_in_pieces_is_served() {
    let mut attack = Attack::new();
    let bytes = attack.ring()[8192..8704].to_vec();
    attack.guest.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    attack.guest.header(VIRTIO_BLK_T_OUT, 16);
    let mut pieces: Vec<_> = (0..16).map(|at| readable(HEADER + at, 1)).collect();
    pieces.extend([readable(DATA, 512), writable(STATUS, 1)]);
    assert_eq!(attack.guest.chain(&pieces), ok());
    // Header and data in one descriptor.
    attack.guest.header(VIRTIO_BLK_T_OUT, 16);
    attack.guest.memory.write_slice(&bytes, GuestAddress(HEADER + 16)).unwrap();
    assert_eq!(attack.guest.chain(&[readable(HEADER, 528), writable(STATUS, 1)]), ok());
    attack.malformed(&[readable(HEADER, 15), writable(STATUS, 1)]);
    attack.malformed(&[readable(MEMORY - 8, 16), readable(DATA, 512), writable(STATUS, 1)]);
    attack.survived();
}

#[test]
fn invalid_indirect_tables_are_refused() {
    let mut attack = Attack::new();
    // The longest possible table.
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend(vec![readable(DATA, 1); 65_533]);
    chain.push(writable(STATUS, 1));
    attack.guest.describe(TABLE, 0, &linked(0, &chain));
    attack.refused_write("refused.too_large", UNTOUCHED, &[indirect(TABLE, 65_535 * 16)]);
    // A loop in a table.
    let mut chain = linked(0, &[readable(HEADER, 16), readable(DATA, 1)]);
    chain[1] = Desc { flags: VRING_DESC_F_NEXT, next: 0, ..chain[1] };
    attack.guest.describe(TABLE, 0, &chain);
    attack.refused_write("refused.too_large", UNTOUCHED, &[indirect(TABLE, 65_535 * 16)]);
    // A table in a table.
    let chain = linked(0, &[readable(HEADER, 16), indirect(TABLE + 4096, 32)]);
    attack.guest.describe(TABLE, 0, &chain);
    attack.guest.describe(TABLE + 4096, 0, &linked(0, &[readable(DATA, 512), writable(STATUS, 1)]));
    attack.refused_write("refused.malformed", UNTOUCHED, &[indirect(TABLE, 32)]);
    // An empty table, half an entry, too many entries, and tables outside memory.
    for table in [
        indirect(TABLE, 0),
        indirect(TABLE, 40),
        indirect(TABLE, 65_536 * 16),
        indirect(MEMORY + 4096, 32),
        indirect(u64::MAX - 8, 32),
    ] {
        attack.refused_write("refused.malformed", UNTOUCHED, &[table]);
    }
    // A correct request with as many segments as the configuration space allows.
    let bytes = attack.ring()[8192..8704].to_vec();
    attack.guest.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend((0..126).map(|at| readable(DATA + at * 4, if at < 125 { 4 } else { 12 })));
    chain.push(writable(STATUS, 1));
    attack.guest.describe(TABLE, 0, &linked(0, &chain));
    attack.guest.header(VIRTIO_BLK_T_OUT, 16);
    assert_eq!(attack.guest.chain(&[indirect(TABLE, 128 * 16)]), ok());
    attack.survived();
}

#[test]
fn buffers_outside_memory_fail_the_request_whole() {
    let mut attack = Attack::new();
    for address in [MEMORY, MEMORY - 256, 1 << 40, u64::MAX - 100] {
        let data = readable(address, 512);
        attack.refused_write("failed", ioerr(), &[readable(HEADER, 16), data, writable(STATUS, 1)]);
        // All or nothing: the first sector of the request could be stored.
        let all = [readable(HEADER, 16), readable(DATA, 512), data, writable(STATUS, 1)];
        attack.guest.memory.write_slice(&[0x77; 512], GuestAddress(DATA)).unwrap();
        attack.refused_write("failed", ioerr(), &all);
        attack.refused("failed", ioerr(), |guest| {
            guest.request(VIRTIO_BLK_T_IN, 3, writable(address, 512))
        });
    }
    // The status byte is outside memory: the request is answered in the used ring alone.
    attack.guest.header(VIRTIO_BLK_T_IN, 0);
    attack.guest.chain(&[readable(HEADER, 16), writable(DATA, 512), writable(MEMORY, 1)]);
    attack.survived();
}

#[test]
fn unknown_types_are_unsupported() {
    let mut attack = Attack::new();
    let unsupported = u8::try_from(VIRTIO_BLK_S_UNSUPP).unwrap();
    for kind in [2, 3, 5, 9, 10, 11, 13, 14, 0x100, 0x8000_0000, u32::MAX] {
        let before = attack.ring();
        assert_eq!(attack.guest.request(kind, 3, readable(DATA, 512)), unsupported, "{kind}");
        assert_eq!(attack.guest.request(kind, 3, writable(DATA, 512)), unsupported, "{kind}");
        assert!(attack.ring() == before);
    }
    attack.survived();
}

#[test]
fn sectors_past_the_end_are_refused() {
    let mut attack = Attack::new();
    for sector in [127, 128, 1 << 32, 1 << 55, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        for (kind, data) in
            [(VIRTIO_BLK_T_OUT, readable(DATA, 1024)), (VIRTIO_BLK_T_IN, writable(DATA, 1024))]
        {
            attack.refused("refused.out_of_range", ioerr(), |guest| {
                guest.request(kind, sector, data)
            });
        }
    }
    for len in [1, 511, 513] {
        attack.refused("refused.out_of_range", ioerr(), |guest| {
            guest.request(VIRTIO_BLK_T_OUT, 3, readable(DATA, len))
        });
    }
    attack.survived();
}
