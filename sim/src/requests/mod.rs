//! Requests of a guest, one after the other, while its host moves the ring: each outcome, and the
//! ring after it, must be the oracle's.

mod write;

use crate::oracle::states::{self, Shape, say};
use crate::oracle::{Known, Refusal, Ring, UNIT, number, other, sector_of};
use arbitrary::{Arbitrary, Unstructured};
use shared_block_ring::format::Side;
use write::{Patch, Pointer, Span, position, written};

/// Number of requests and moves of one sequence at most.
const STEPS: usize = 64;

/// The backend that is compared with the oracle.
pub trait Backend {
    /// Carries out a write that begins `unit` times 512 bytes from the start.
    fn write(&mut self, unit: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Carries out a read that begins there.
    fn read(&mut self, unit: u64, len: usize) -> Result<Vec<u8>, Refusal>;

    /// Starts the queue again. `waiting` says whether the next request is in it already.
    fn restarts(&mut self, waiting: bool);

    /// Stores bytes as a process of the host does, past the backend.
    fn host_stores(&mut self, at: usize, bytes: &[u8]);

    /// Returns the bytes of the ring's device.
    fn bytes(&self) -> Vec<u8>;
}

/// A ring in some state, and the steps that change it.
#[derive(Debug)]
pub struct Sequence {
    start: Start,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
struct Start {
    guest_produces: bool,
    large_sectors: bool,
    identity: bool,
    /// Number of data sectors: one to three, or five, where the whole device is more than a page.
    data_sectors: u8,
    framing: u8,
    slots: (u8, u8),
    /// Position of the consumer, and distance to the producer, in words.
    consumer: u16,
    used: u16,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Write { span: Span, pointer: Option<Pointer>, patches: Vec<Patch> },
    Read(Span),
    Host(Move),
}

#[derive(Debug, Arbitrary)]
enum Move {
    /// The host consumes or publishes items.
    Items { count: u8, slot: u8 },
    /// The host moves its pointer by any number of words.
    To { words: i16, slot: u8 },
    /// The host stores bytes in its own sector or in the data.
    Stores(Patch),
    /// The host suspends or resumes: the one byte that a guest consumer shares with it.
    Suspend(bool),
}

impl<'a> Arbitrary<'a> for Sequence {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let start = input.arbitrary()?;
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < STEPS {
            steps.push(input.arbitrary()?);
        }
        Ok(Self { start, steps })
    }
}

impl Start {
    fn ring(&self) -> Ring {
        let shape = Shape {
            guest: if self.guest_produces { Side::Producer } else { Side::Consumer },
            size: if self.large_sectors { 4096 } else { 512 },
            data_sectors: [1, 2, 3, 5][usize::from(self.data_sectors) % 4],
            identity: self.identity,
            framing: usize::from(self.framing) % 9,
            slots: (usize::from(self.slots.0) % 4, usize::from(self.slots.1) % 4),
        };
        let most = shape.data_sectors * shape.size as u64 / 4;
        let consumer = u64::from(self.consumer) * 4;
        states::ring(shape, consumer, consumer + u64::from(self.used) % (most + 1) * 4)
    }
}

impl Sequence {
    /// Returns the ring before the first step.
    pub fn ring(&self) -> Ring {
        self.start.ring()
    }

    /// Takes all steps. Returns the numbers of writes that were carried out and refused.
    ///
    /// # Panics
    /// Where the backend and the oracle differ.
    pub fn judge(&self, backend: &mut impl Backend) -> (u64, u64) {
        let mut ring = self.ring();
        let mut done = (0, 0);
        // A bit that no other part of the state depends on: inputs on record keep their meaning.
        ring.may_repeat = self.start.framing >= 128;
        backend.restarts(ring.may_repeat);
        for step in &self.steps {
            match step {
                Step::Write { span, pointer, patches } => {
                    let (unit, len) = span.of(&ring);
                    let bytes = written(&ring, unit, len, pointer.as_ref(), patches);
                    let found = backend.write(unit, &bytes);
                    let expected = judge(&ring, unit, &bytes);
                    let decision = expected.as_ref().map(|_| ()).map_err(|why| *why);
                    assert_eq!(found, decision, "{step:?}");
                    match expected {
                        Ok(after) => {
                            ring.becomes(after);
                            done.0 += 1;
                        }
                        Err(_) => done.1 += 1,
                    }
                    ring.may_repeat = false;
                }
                Step::Read(span) => {
                    let (unit, len) = span.of(&ring);
                    let expected =
                        whole(&ring, unit, len).map(|at| ring.bytes[at..at + len].to_vec());
                    assert!(backend.read(unit, len) == expected, "{len} bytes read at {unit}");
                    ring.may_repeat = false;
                }
                Step::Host(step) => step.take(&mut ring, backend),
            }
            assert!(backend.bytes() == ring.bytes, "the ring after {step:?}");
        }
        done
    }
}

/// Returns the first byte of whole sectors within the device.
fn whole(ring: &Ring, unit: u64, len: usize) -> Result<usize, Refusal> {
    let at = usize::try_from(unit).unwrap_or(usize::MAX).saturating_mul(UNIT);
    let sectors = at.is_multiple_of(ring.size) && len.is_multiple_of(ring.size);
    let there = at.saturating_add(len) <= ring.bytes.len();
    if sectors && there { Ok(at) } else { Err("out_of_range") }
}

fn judge(ring: &Ring, unit: u64, bytes: &[u8]) -> Result<(Vec<u8>, Known), Refusal> {
    ring.judge(whole(ring, unit, bytes.len())? / UNIT, bytes)
}

impl Move {
    fn take(&self, ring: &mut Ring, backend: &mut impl Backend) {
        let host = other(ring.guest);
        let from = ring.position(&ring.bytes, host);
        let (at, bytes) = match self {
            Self::Items { count, slot } => {
                let to = (0..*count % 8).fold(from, |at, _| next(ring, at));
                moved(ring, to, *slot)
            }
            Self::To { words, slot } => moved(ring, position(from, *words), *slot),
            Self::Stores(patch) => patch.bytes(ring, &ring.bytes),
            Self::Suspend(on) => (2 * ring.size + 8, vec![2 - u8::from(*on)]),
        };
        let start = sector_of(host) * ring.size;
        let own = at >= start && at + bytes.len() <= start + ring.size
            || matches!(self, Self::Suspend(_));
        // The host writes neither the guest's pointer nor the identity.
        if own || at >= ring.data_start() {
            ring.host_stores(at, &bytes);
            backend.host_stores(at, &bytes);
        }
    }
}

/// Returns the end of the item that begins at a position, by its length.
fn next(ring: &Ring, at: u64) -> u64 {
    let place = ring.place(at) & !3;
    let length = number(&ring.bytes[place..place + 4]);
    at.wrapping_add((length + 7) & !3)
}

/// Returns the host's pointer sector with another position and slots.
fn moved(ring: &Ring, to: u64, slot: u8) -> (usize, Vec<u8>) {
    let index = sector_of(other(ring.guest));
    let mut sector = ring.sector(&ring.bytes, index).to_vec();
    sector[..8].copy_from_slice(&to.to_le_bytes());
    if slot & 8 != 0 {
        sector[9..128].fill(0);
    }
    if ring.uuid.is_some() {
        say(&mut sector, to, usize::from(slot & 7), ring.known.position);
    }
    (index * ring.size, sector)
}
