//! A million refused requests: neither the log nor the daemon's memory grows with them.
#![allow(clippy::unwrap_used)]

use crate::common::attack::start;
use ring_test_support::front_end::{DATA, FrontEnd, HEADER, RINGS, STATUS};
use ring_test_support::split_ring::{Desc, linked, readable, writable};
use shared_block_ring::Position;
use shared_block_ring::format::{FLAG_AT, SLOTS_AT};
use std::time::Instant;
use vhost_device_blockring::data_path::guard::Reason;
use vhost_device_blockring::data_path::request::MAX_BYTES;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress};

const REQUESTS: usize = 1_000_000;

/// Requests after which the daemon has allocated everything that it needs.
const WARM: usize = 10_000;

/// The most bytes of log for all refusals.
const LOG: u64 = 1_000_000;

/// The most that the daemon's memory may grow by, in KiB: pages that the allocator has not touched
/// before.
const SLACK: u64 = 128;

/// Bytes from one request's data to the next request's.
const ROOM: u64 = 0x2000;

/// The data area of the ring.
const DATA_SECTOR: u64 = 3;
const CAPACITY: u64 = 125 * 512;

/// Returns the data sector that holds stream position `position`.
fn sector_of(position: Position) -> u64 {
    DATA_SECTOR + position.get() % CAPACITY / 512
}

/// A write to `sector` that is refused for `reason`.
struct Bad {
    reason: Reason,
    sector: u64,
    bytes: Vec<u8>,
    /// The length in the data descriptor: that of the bytes, or a false one.
    len: u64,
    /// Bytes of the header that are readable.
    header: u32,
}

fn bad(reason: Reason, sector: u64, bytes: &[u8]) -> Bad {
    Bad { reason, sector, bytes: bytes.to_vec(), len: bytes.len() as u64, header: 16 }
}

/// Returns a request for each reason that a producer's requests can be refused for while its ring
/// is sound, except a wrong count. An item is published in front of `end`, and the bytes behind
/// `end` are no item.
fn requests(guest: &mut FrontEnd, end: Position) -> Vec<Bad> {
    let mut pointer = [0; 512];
    assert_eq!(guest.read(1, &mut pointer), 0);
    let junk = [0x77; 4096];
    let moved = |to: u64| {
        let mut sector = [0; 512];
        sector[..8].copy_from_slice(&to.to_le_bytes());
        sector[FLAG_AT] = 2;
        sector
    };
    let (at, mut flag, mut slot) = (end.get(), moved(end.get()), pointer);
    flag[FLAG_AT] = 3;
    slot[SLOTS_AT[0]] ^= 1;
    vec![
        bad(Reason::Signature, 0, &junk[..512]),
        bad(Reason::HostPointer, 2, &junk[..512]),
        bad(Reason::BufferedPage, 0, &junk),
        bad(Reason::PointerBackwards, 1, &moved(at - 4)),
        bad(Reason::PointerBeyond, 1, &moved(at + CAPACITY)),
        bad(Reason::PointerMisaligned, 1, &moved(at + 1)),
        bad(Reason::PointerFlag, 1, &flag),
        bad(Reason::PointerExtension, 1, &slot),
        bad(Reason::ItemFraming, 1, &moved(at + 4)),
        bad(Reason::PublishedData, sector_of(end), &junk[..512]),
        bad(Reason::OutOfRange, DATA_SECTOR + CAPACITY / 512, &junk[..512]),
        Bad { header: 15, ..bad(Reason::Malformed, 3, &[]) },
        Bad { len: MAX_BYTES + 512, ..bad(Reason::TooLarge, 3, &[]) },
    ]
}

/// Returns the address of a request's status byte.
fn status_at(index: usize) -> u64 {
    STATUS + index as u64
}

/// Writes a request to guest memory and to the descriptor table. Returns its head.
fn lay_out(guest: &FrontEnd, index: usize, request: &Bad) -> u16 {
    let (header, data) = (HEADER + 16 * index as u64, DATA + ROOM * index as u64);
    guest.header_at(header, VIRTIO_BLK_T_OUT, request.sector);
    guest.memory.write_slice(&request.bytes, GuestAddress(data)).unwrap();
    guest.memory.write_obj(0xaau8, GuestAddress(status_at(index))).unwrap();
    let chain: [Desc; 3] = [
        readable(header, request.header),
        readable(data, u32::try_from(request.len).unwrap()),
        writable(status_at(index), 1),
    ];
    let head = u16::try_from(index * chain.len()).unwrap();
    guest.describe(RINGS.descriptors, head, &linked(head, &chain));
    head
}

#[test]
fn million_refused_requests_grow_neither_log_nor_memory() {
    let (scene, daemon, mut guest) = start();
    let end = guest.publish("an item that nobody takes");
    let mut sector = [0; 512];
    assert_eq!(guest.read(sector_of(end), &mut sector), 0);
    sector[usize::try_from(end.get() % 512).unwrap()..].fill(0xff);
    assert_eq!(guest.write(sector_of(end), &sector), 0, "behind the item all is free");
    let requests = requests(&mut guest, end);
    let heads: Vec<_> =
        requests.iter().enumerate().map(|(index, bad)| lay_out(&guest, index, bad)).collect();
    let image = std::fs::read(scene.path("ring")).unwrap();

    let begun = Instant::now();
    let mut before = None;
    let mut heads = heads.iter().cycle();
    for sent in (0..REQUESTS).step_by(RINGS.size.into()) {
        if sent >= WARM {
            before.get_or_insert_with(|| daemon.footprint());
        }
        let batch = usize::from(RINGS.size).min(REQUESTS - sent);
        heads.by_ref().take(batch).for_each(|&head| guest.offer(head));
        guest.kick();
        for _ in 0..batch {
            guest.completion().expect("no answer");
        }
    }
    let (before, after) = (before.unwrap(), daemon.footprint());
    let seconds = begun.elapsed().as_secs() + 1;

    for (index, request) in requests.iter().enumerate() {
        let reason = request.reason;
        let each = (REQUESTS - index).div_ceil(requests.len()) as u64;
        assert_eq!(scene.counter(&format!("refused.{reason}")), each, "{reason}");
        let status: u8 = guest.memory.read_obj(GuestAddress(status_at(index))).unwrap();
        assert_eq!(u32::from(status), VIRTIO_BLK_S_IOERR, "{reason}");
    }
    assert!(std::fs::read(scene.path("ring")).unwrap() == image, "the region has changed");
    let log = std::fs::metadata(scene.path("log")).unwrap().len();
    println!("{REQUESTS} in {seconds} s: {log} bytes of log, {before:?}, then {after:?}");
    assert!(log < LOG, "{log}");
    let lines = scene.logged("refused a request") as u64;
    assert!(lines <= (seconds + 1) * requests.len() as u64, "{lines} lines in {seconds} s");
    // Pages of the program that were used for the first time are resident, and no growth.
    assert!(after.own_kib <= before.own_kib + SLACK, "{before:?} became {after:?}");
    // The first of the two counts may include a client of the hand-over that has just gone.
    assert!(after.descriptors <= before.descriptors, "{before:?} became {after:?}");
    assert!(after.threads <= before.threads, "{before:?} became {after:?}");
    guest.publish("an honest item");
    assert_eq!(scene.counter("broken"), 0);
}
