//! The guard compared with an independent, naive oracle: every decision, its reason, and the bytes
//! that it leaves.
//!
//! Every pair of positions of small rings is a state. The ordinary run tries all states of rings
//! with one data sector and a part of the others; with `BLOCKRING_LONG` set it tries all of them.
#![allow(clippy::unwrap_used)]

use ring_simulation::oracle::slot::Claim;
use ring_simulation::oracle::states::{Shape, ring};
use ring_simulation::oracle::{Known, Refusal, Ring, UNIT, sector_of, writes};
use ring_test_support::guard_write::{Write, index};
use shared_block_ring::Position;
use shared_block_ring::format::{Geometry, PointerSector, SectorSize, Side, Tally};
use std::collections::BTreeMap;
use uuid::Uuid;
use vhost_device_blockring::data_path::guard::{Denied, Guard, GuestState, Reason, Scratch};

fn guard(ring: &Ring) -> Guard {
    let sectors = ring.bytes.len() / ring.size;
    let geometry =
        Geometry::new(SectorSize::new(u32::try_from(ring.size).unwrap()).unwrap(), sectors as u64)
            .unwrap();
    Guard::new(geometry, ring.guest, ring.uuid.map(Uuid::from_bytes))
}

fn guest_state(known: Known) -> GuestState {
    let position = Position::new(known.position).unwrap();
    let Claim { items, since_base, base, crc } = known.claim;
    let tally = Tally { items, since_base, base: Position::new(base).unwrap(), crc };
    GuestState { pointer: PointerSector { position, flag: known.flag == 1 }, tally }
}

/// Judges a write, in memory that an earlier judgement has left as it is. Returns the ring's bytes
/// and the guest's state after it.
fn judge(
    guard: &Guard,
    ring: &Ring,
    first: usize,
    bytes: &[u8],
    scratch: &mut Box<Scratch>,
) -> Result<(Vec<u8>, GuestState), Reason> {
    let before = guest_state(ring.known);
    let range = guard.range(first as u64, bytes.len() as u64)?;
    let write = Write {
        region: &ring.bytes,
        sector_size: ring.size,
        start: first * UNIT,
        bytes,
        may_repeat: ring.may_repeat,
    };
    let mut judgement = guard.begin(range, std::mem::take(scratch));
    let outcome = loop {
        // A budget so small that long walks are interrupted.
        match guard.judge(before, &mut judgement, 9, &write) {
            Ok(Some(grant)) => break Ok(grant),
            Ok(None) => {}
            Err(Denied::Refused(reason)) => break Err(reason),
        }
    };
    let pointer_sector = judgement.pointer_sector().to_vec();
    *scratch = judgement.into_scratch();
    let grant = outcome?;
    let mut after = ring.bytes.clone();
    let then = grant.guest.unwrap_or(before);
    // Frozen bytes are never stored, not even over equal ones: the guest can change its bytes after
    // they were compared.
    let frozen = ring.frozen_by(&after, then.pointer.position.get());
    for piece in grant.stored.clone() {
        let frozen = |at: u64| frozen.as_ref().unwrap()[index(at) - ring.data_start()];
        assert!(!piece.clone().any(frozen), "{piece:?} is to be stored");
        if !piece.is_empty() {
            after[index(piece.start)..index(piece.end)].copy_from_slice(write.part(&piece));
        }
    }
    let Some(guest) = grant.guest else { return Ok((after, before)) };
    let start = sector_of(ring.guest) * ring.size;
    let flag = after[start + 8];
    after[start..start + ring.size].copy_from_slice(&pointer_sector);
    if grant.keeps_flag {
        after[start + 8] = flag;
    }
    Ok((after, guest))
}

/// The numbers of decisions by their outcome.
#[derive(Default)]
struct Tried {
    granted: u64,
    refused: BTreeMap<Refusal, u64>,
}

impl Tried {
    /// Tries all writes of interest on one state.
    fn state(&mut self, shape: Shape, consumer: u64, producer: u64) {
        let mut ring = ring(shape, consumer, producer);
        // Alternates; the other parts of a state have odd periods, so that every combination is
        // met.
        ring.may_repeat = (consumer / 4 + producer / 4).is_multiple_of(2);
        let guard = guard(&ring);
        let mut scratch = Box::default();
        writes::all(&ring, &mut |first, bytes| {
            let expected =
                ring.judge(first, bytes).map(|(after, known)| (after, guest_state(known)));
            let found = judge(&guard, &ring, first, bytes, &mut scratch).map_err(Reason::name);
            if found != expected {
                let (found, expected) = (found.map(|it| it.1), expected.map(|it| it.1));
                panic!(
                    "consumer {consumer}, producer {producer}, {shape:?}\n{} sectors at unit {first}: guard {found:?}, oracle {expected:?}\n{:?}",
                    bytes.len() / ring.size,
                    &bytes[..128]
                );
            }
            match found {
                Ok(_) => self.granted += 1,
                Err(refusal) => *self.refused.entry(refusal).or_default() += 1,
            }
        });
    }

    fn total(&self) -> u64 {
        self.granted + self.refused.values().sum::<u64>()
    }

    fn met(&self, reason: Reason) -> bool {
        self.refused.contains_key(reason.name())
    }

    fn report(&self, what: &str, reasons: &[Reason]) {
        let refused: Vec<_> =
            self.refused.iter().map(|(refusal, times)| format!("{refusal} {times}")).collect();
        println!(
            "{what}: {} decisions, {} granted, {}",
            self.total(),
            self.granted,
            refused.join(", ")
        );
        assert!(self.granted > 0);
        for reason in reasons {
            assert!(self.met(*reason), "{reason} never occurred");
        }
    }
}

/// The reasons that a guest in either role can be refused for while the ring is sound.
const COMMON: [Reason; 10] = [
    Reason::Signature,
    Reason::HostPointer,
    Reason::PointerBackwards,
    Reason::PointerBeyond,
    Reason::PointerMisaligned,
    Reason::PointerFlag,
    Reason::PointerExtension,
    Reason::ItemCount,
    Reason::ItemFraming,
    Reason::OutOfRange,
];

/// Bytes of a sector, number of data sectors, and every how many states the ordinary run tries one.
const RINGS: [(usize, u64, usize); 5] =
    [(512, 1, 1), (512, 2, 17), (512, 3, 71), (512, 5, 5003), (4096, 1, 20011)];

/// Tries every pair of positions of laps 0 and 1, or one in `stride`. The other parts of a state
/// change from one to the next.
fn every_state(guest: Side, size: usize, data_sectors: u64, stride: usize) -> Tried {
    // Larger rings have too many states.
    let long = std::env::var_os("BLOCKRING_LONG").is_some() && size == UNIT && data_sectors <= 3;
    let stride = if long { 1 } else { stride };
    let capacity = data_sectors * size as u64;
    let pairs = (0..2 * capacity).step_by(4).flat_map(|consumer| {
        (0..=capacity).step_by(4).map(move |used| (consumer, consumer + used))
    });
    let mut tried = Tried::default();
    for (number, (consumer, producer)) in pairs.enumerate().step_by(stride) {
        let number = number / stride;
        // Coprime periods: every combination is met at every pair of positions.
        let shape = Shape {
            guest,
            size,
            data_sectors,
            identity: number % 5 != 0,
            framing: number % 9,
            slots: (number / 3 % 4, number / 7 % 5),
        };
        tried.state(shape, consumer, producer);
        if long && data_sectors == 1 {
            for framing in 0..9 {
                tried.state(Shape { framing, identity: true, ..shape }, consumer, producer);
            }
        }
    }
    tried
}

#[test]
fn guard_judges_a_guest_producer_as_the_oracle() {
    let mut all = 0;
    for (size, data_sectors, stride) in RINGS {
        let tried = every_state(Side::Producer, size, data_sectors, stride);
        tried.report(&format!("guest producer, {data_sectors} data sectors of {size}"), &COMMON);
        assert!(tried.met(Reason::PublishedData));
        all += tried.total();
    }
    assert!(all > 8_000_000, "{all}");
}

#[test]
fn guard_judges_a_guest_consumer_as_the_oracle() {
    let mut all = 0;
    for (size, data_sectors, stride) in RINGS {
        let tried = every_state(Side::Consumer, size, data_sectors, stride);
        tried.report(&format!("guest consumer, {data_sectors} data sectors of {size}"), &COMMON);
        assert!(tried.met(Reason::ForeignData));
        all += tried.total();
    }
    assert!(all > 8_000_000, "{all}");
}

/// Positions that contradict each other, a consumer that is ahead after a power loss, positions
/// near the end of 64 bits.
#[test]
fn guard_judges_a_ring_that_is_not_sound_as_the_oracle() {
    let mut tried = Tried::default();
    let top = u64::MAX - 3;
    let pairs = [
        (8, 4),
        (512, 100),
        (4, 1032),
        (0, 2048),
        (6, 12),
        (8, 13),
        (4096, 0),
        (top, 0),
        (0, top),
        (top, top),
        (top - 512, top),
        (top - 2048, top),
        (top - 4, top),
        (top - 1024, top - 512),
    ];
    for guest in [Side::Producer, Side::Consumer] {
        for (consumer, producer) in pairs {
            let own = if guest == Side::Producer { producer } else { consumer };
            if own % 4 != 0 {
                // With such a position the daemon does not start.
                continue;
            }
            for number in 0..90 {
                let shape = Shape {
                    guest,
                    size: UNIT,
                    data_sectors: 2,
                    identity: number % 5 != 0,
                    framing: number % 4,
                    slots: (number / 3 % 4, number / 7 % 5),
                };
                tried.state(shape, consumer, producer);
            }
        }
    }
    tried.report("unsound rings", &[Reason::HostCorrupt, Reason::PointerBackwards]);
}
