//! Queues and memory that no correct driver sets up: the queue is stopped, the daemon logs that
//! once, and serves correct requests after a reset.
#![allow(clippy::unwrap_used)]

use crate::common::attack::{BROKEN, broken, on_each_queue, start, writes};
use crate::common::daemon::Scene;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_test_support::beside::beside;
use ring_test_support::front_end::{
    DATA, FrontEnd, HEADER, MEMORY, RINGS, STATUS, TABLE, described, region,
};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{Desc, Rings, linked, readable, writable};
use shared_block_ring::format::{
    FormatError, Geometry, PointerSector, SectorSize, Side, Slot, Tally, decode_sector0, put_slot,
};
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, Error, Position};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[test]
fn available_index_that_jumps_breaks_the_queue() {
    for jump in [257, 1000, 32_768, 65_000] {
        on_each_queue(|(scene, daemon, mut guest)| {
            guest.set_available(guest.available().wrapping_add(jump));
            guest.kick();
            broken(&scene, &daemon, &mut guest);
        });
    }
}

#[test]
fn available_index_that_goes_back_breaks_the_queue() {
    on_each_queue(|(scene, daemon, mut guest)| {
        guest.set_available(guest.available() - 1);
        guest.kick();
        broken(&scene, &daemon, &mut guest);
    });
}

#[test]
fn head_outside_the_table_breaks_the_queue() {
    on_each_queue(|(scene, daemon, mut guest)| {
        guest.offer(256);
        guest.kick();
        broken(&scene, &daemon, &mut guest);
        assert_eq!(scene.counter("refused.malformed"), 0, "no request was looked at");
    });
}

#[test]
fn rings_that_end_outside_memory_are_not_served() {
    for rings in [
        Rings { descriptors: MEMORY - 16, ..RINGS },
        Rings { available: MEMORY - 4, ..RINGS },
        Rings { used: MEMORY - 4, ..RINGS },
    ] {
        on_each_queue(|(scene, daemon, mut guest)| {
            guest.stop();
            guest.start(rings);
            guest.set_available(1);
            guest.kick();
            broken(&scene, &daemon, &mut guest);
        });
    }
}

#[test]
fn rings_that_begin_outside_memory_end_their_connection() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        guest.stop();
        assert!(guest.place(Rings { available: MEMORY + 4096, ..RINGS }).is_err());
        // The connection of that front end ends; the next one is served.
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
    });
}

#[test]
fn overlapping_rings_harm_their_own_queue_alone() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        guest.stop();
        guest.start(Rings { available: 0x1000, used: 0x1000, ..RINGS });
        for _ in 0..100 {
            guest.offer(0);
            guest.kick();
        }
        std::thread::sleep(Duration::from_millis(20));
        guest.reset();
        guest.honest(&scene);
    });
}

#[test]
fn memory_removed_under_load_fails_its_requests_alone() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        let more = Arc::new(region(1 << 28, 1 << 20));
        let with = guest.memory.insert_region(Arc::clone(&more)).unwrap();
        guest.wire.add_mem_region(&described(&more)).unwrap();
        for round in 0..20u8 {
            guest.memory.write_slice(&[round; 64], GuestAddress(DATA)).unwrap();
            with.write_slice(&[round; 512], GuestAddress(1 << 28)).unwrap();
            writes(&mut guest, 60, 1 << 28);
            guest.wire.remove_mem_region(&described(&more)).unwrap();
            for _ in 0..60 {
                guest.completion().expect("no answer");
            }
            guest.wire.add_mem_region(&described(&more)).unwrap();
        }
        let failed = scene.counter("failed");
        guest.wire.remove_mem_region(&described(&more)).unwrap();
        writes(&mut guest, 1, 1 << 28);
        guest.completion().expect("no answer");
        assert_eq!(u32::from(guest.status()), VIRTIO_BLK_S_IOERR);
        assert_eq!(scene.counter("failed"), failed + 1);
        guest.honest(&scene);
        assert_eq!(scene.counter("broken"), 0);
    });
}

#[test]
fn memory_replaced_under_load_loses_no_request() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        for _ in 0..20 {
            writes(&mut guest, 60, DATA);
            // The same memory at the same place, mapped anew.
            guest.set_memory();
            for _ in 0..60 {
                guest.completion().expect("no answer");
            }
        }
        guest.honest(&scene);
        assert_eq!(scene.counter("broken"), 0);
    });
}

#[test]
fn memory_with_the_rings_removed_stops_the_queue_until_it_is_back() {
    on_each_queue(|(scene, daemon, mut guest)| {
        let queues = guest.queues();
        let rings = guest.memory.clone();
        let elsewhere = GuestMemoryMmap::from_regions(vec![region(1 << 30, 1 << 20)]).unwrap();
        guest.memory = elsewhere;
        guest.set_memory();
        guest.memory = rings;
        guest.kick();
        eventually("the queue is stopped", || scene.counter("broken") == queues);
        daemon.kicked_by(&guest);
        eventually("it is logged", || scene.logged(BROKEN) > 0);
        assert_eq!((scene.counter("broken"), scene.logged(BROKEN)), (queues, 1), "told once");
        // The memory is shared again, without a reset: nothing is lost.
        guest.set_memory();
        guest.honest(&scene);
    });
}

#[test]
fn resets_under_load_lose_no_other_request() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        for round in 0..300u16 {
            writes(&mut guest, 1 + round % 80, DATA);
            if round % 3 == 0 {
                guest.completion().expect("no answer");
            }
            guest.reset();
            if round % 10 == 0 {
                guest.honest(&scene);
            }
        }
        guest.honest(&scene);
        assert_eq!(scene.counter("broken"), 0);
    });
}

#[test]
fn queue_whose_size_is_no_power_of_two_is_broken() {
    on_each_queue(|(scene, daemon, mut guest)| {
        guest.stop();
        guest.start(Rings { size: 100, ..RINGS });
        guest.offer(0);
        guest.kick();
        broken(&scene, &daemon, &mut guest);
    });
}

#[test]
fn queue_starts_at_the_used_index_whatever_its_base() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        for base in [5000, u16::MAX, guest.used_index().wrapping_add(1)] {
            guest.stop();
            guest.run_from(base);
            assert_eq!(guest.read(0, &mut [0; 512]), 0);
        }
        eventually("it is logged", || scene.logged("the front end starts a queue at request") > 0);
        assert_eq!(scene.counter("broken"), 0);
        guest.honest(&scene);
    });
}

#[test]
fn queue_that_breaks_while_a_read_is_held_can_be_reset() {
    on_each_queue(|(scene, daemon, mut guest)| {
        guest.header(VIRTIO_BLK_T_IN, 2);
        // I/O priority class idle: the second such read has no news, and is held.
        guest.memory.write_obj(3u32 << 13, GuestAddress(HEADER + 4)).unwrap();
        let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(guest.chain(&chain), 0);
        guest.offer(0);
        guest.kick();
        eventually("the read is held", || scene.counter("held") == 1);
        guest.set_available(guest.available().wrapping_add(1000));
        guest.kick();
        broken(&scene, &daemon, &mut guest);
    });
}

#[test]
fn descriptors_that_change_during_a_request_harm_nothing() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        let good = linked(0, &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]);
        let bad =
            linked(0, &[readable(HEADER, 16), readable(MEMORY - 8, 1 << 20), writable(STATUS, 1)]);
        guest.header(VIRTIO_BLK_T_OUT, 20);
        guest.describe(RINGS.descriptors, 0, &good);
        // Address and length of the second descriptor, as another processor of the guest writes
        // them.
        let memory = guest.memory.clone();
        let racing = || {
            for chain in [&good, &bad] {
                let at = RINGS.descriptors + 16;
                memory.write_obj(chain[1].address, GuestAddress(at)).unwrap();
                memory.write_obj(chain[1].len, GuestAddress(at + 8)).unwrap();
            }
        };
        beside(racing, || {
            for _ in 0..2000 {
                guest.offer(0);
                guest.kick();
                guest.completion().expect("no answer");
            }
        });
        assert!(scene.counter("failed") + scene.counter("refused.out_of_range") > 0, "no race");
        guest.honest(&scene);
        assert_eq!(scene.counter("broken"), 0);
    });
}

/// Random descriptors, heads and indices, from a seed.
#[test]
fn random_chains_harm_nothing() {
    on_each_queue(|(scene, _daemon, mut guest)| {
        let seed: u64 = 20_261_124;
        let mut random = SmallRng::seed_from_u64(seed);
        let places =
            [0, HEADER, STATUS, DATA, TABLE, RINGS.descriptors, RINGS.used, MEMORY - 8, u64::MAX];
        let lengths = [0, 1, 15, 16, 17, 32, 512, 513, 1024, 4096, 1 << 20, 1 << 31, u32::MAX];
        for round in 0..300 {
            guest.header(random.random_range(0..12), random.random_range(0..140));
            for table in [RINGS.descriptors, TABLE] {
                let descriptors: Vec<_> = (0..24)
                    .map(|_| Desc {
                        address: places[random.random_range(0..places.len())],
                        len: lengths[random.random_range(0..lengths.len())],
                        flags: random.random_range(0..8),
                        next: random.random_range(0..26),
                    })
                    .collect();
                guest.describe(table, 0, &descriptors);
            }
            for _ in 0..random.random_range(1..40) {
                guest.offer(random.random_range(0..24));
            }
            if random.random_range(0..8) == 0 {
                guest.set_available(random.random());
            }
            guest.kick();
            if random.random() {
                guest.reset();
            }
            if round % 20 == 0 {
                guest.reset();
                guest.honest(&scene);
            }
        }
        guest.reset();
        guest.honest(&scene);
        assert_eq!(scene.logged("panicked"), 0, "seed {seed}");
        assert!(scene.counter("refused.malformed") > 100);
    });
}

/// The checksum of the stream is not verified before a consumer reads it.
#[test]
fn false_stream_checksum_is_found_by_the_consumer_and_does_not_prevent_a_start() {
    let (scene, mut daemon, mut guest) = start();
    let mut sector = [0; 512];
    assert_eq!(guest.read(1, &mut sector), 0);
    let position = u64::from_le_bytes(sector[..8].try_into().unwrap());
    // One more empty item, in a slot whose base is its start: the checksum of four zero bytes is
    // not zero.
    let (uuid, to) = (uuid(&scene), Position::new(position + 4).unwrap());
    let base = Position::new(position).unwrap();
    let tally = Tally { items: 1, since_base: true, base, crc: 0 };
    put_slot(uuid, &mut sector, base, &Slot { position: to, tally, time_ns: 0 });
    PointerSector { position: to, flag: false }.encode(Side::Producer, None, &mut sector);
    assert_eq!(guest.write(1, &sector), 0, "the guard knows the checksum no better");
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    let _daemon = scene.start(&[]);
    let device = scene.connect(Role::Consumer).unwrap();
    let mut consumer = Consumer::attach(device, "q", "host").unwrap();
    match consumer.pop(base).err() {
        Some(Error::Format(FormatError::Span { from, to: end, .. })) => {
            assert_eq!((from, end), (base, to));
            consumer.advance(end).unwrap();
        }
        other => panic!("{other:?}"),
    }
    drop(consumer);
    FrontEnd::new(&scene).honest(&scene);
}

fn uuid(scene: &Scene) -> Uuid {
    let image = std::fs::read(scene.path("ring")).unwrap();
    let geometry = Geometry::new(SectorSize::DEFAULT, (image.len() / 512) as u64).unwrap();
    decode_sector0(&image[..512], geometry).unwrap().uuid().unwrap()
}
