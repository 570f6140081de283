//! Shared memory whose every load loom answers.

use loom::cell::UnsafeCell;
use loom::sync::Condvar;
use loom::sync::atomic::{AtomicUsize, fence};
use shared_block_ring::device::{Memory, Orders};
use shared_block_ring::format::{
    FLAG_AT, Geometry, SLOT_BYTES, SLOTS_AT, Side, TEXT_AT, TEXT_BYTES,
};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of a position that is copied out instead of loaded in one piece: no position.
const NOT_LOADED: u8 = 0xff;

/// Model of the data area.
#[derive(Debug, Clone, Copy)]
pub enum Data {
    /// A sector at a time, checked for races: two unordered accesses, one of them a write, fail the
    /// search, in whichever order they came. This costs no scheduling point, and suits rings in
    /// which no side touches a sector that is not wholly its own at that time.
    Sectors,
    /// These words of eight bytes of the area are atomic, and loads may be stale. This suits
    /// sectors that hold published bytes beside free ones, where a reader may race for bytes that
    /// it ignores. All other words must keep their value.
    Words(&'static [u64]),
}

/// Owner of a handle: every word of a ring has one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Producer,
    Consumer,
    /// A process beside the two ends.
    Control,
}

/// One handle on the memory. Each has orderings of its own, so that one side alone can be a mutant.
#[derive(Clone)]
pub struct Shared {
    who: Who,
    orders: Orders,
    state: Arc<State>,
    loads: Arc<AtomicU64>,
}

struct State {
    /// The bytes that no atom and no checked sector holds. They never change.
    constant: Vec<u8>,
    atoms: Vec<Atom>,
    checked: Vec<Checked>,
    /// Text for people: no decision rests on it, so stores to it vanish, and no reader tells two
    /// readings apart by it.
    text: Vec<Range<usize>>,
}

/// Bytes that are stored and loaded in one piece.
///
/// A slot's body is one atom of 40 bytes. Tearing inside it adds nothing to a torn head and body:
/// the slot's checksum refuses any mixture of two writes.
struct Atom {
    at: Range<usize>,
    is_position: bool,
    /// The only handle that stores this atom, and so finds in it what it stored last: loom has
    /// nothing to answer. Loom must not be asked either: it remembers the last load of an atomic,
    /// so the writer's own load would hide a reader's before it, and with that every execution in
    /// which the store comes first.
    owner: Option<Who>,
    /// For the same reason, where several threads load this atom: a point that every access passes,
    /// and that orders nothing.
    turn: Option<Condvar>,
    /// Index into `versions`.
    version: AtomicUsize,
    versions: Mutex<Vec<Vec<u8>>>,
}

impl Atom {
    fn new(at: Range<usize>, image: &[u8], owner: Option<Who>, threads: usize) -> Self {
        Self {
            is_position: false,
            owner,
            turn: (threads > 2).then(Condvar::new),
            version: AtomicUsize::new(0),
            versions: Mutex::new(vec![image[at.clone()].to_vec()]),
            at,
        }
    }

    fn position(self) -> Self {
        Self { is_position: true, ..self }
    }

    fn load(&self, who: Who, order: Ordering) -> Vec<u8> {
        if self.owner == Some(who) {
            return self.versions.lock().unwrap().last().unwrap().clone();
        }
        self.pass();
        let version = self.version.load(order);
        self.versions.lock().unwrap()[version].clone()
    }

    fn store(&self, who: Who, bytes: &[u8], order: Ordering) {
        assert!(self.owner.is_none_or(|owner| owner == who), "{who:?} stores another's bytes");
        self.pass();
        let version = {
            let mut versions = self.versions.lock().unwrap();
            versions.push(bytes.to_vec());
            versions.len() - 1
        };
        self.version.store(version, order);
    }

    fn pass(&self) {
        if let Some(turn) = &self.turn {
            // No thread ever waits on this.
            turn.notify_one();
        }
    }

    /// Returns whether the last store, in the order of execution, was of `bytes`: for the owner.
    fn holds(&self, bytes: &[u8]) -> bool {
        self.versions.lock().unwrap().last().is_some_and(|last| last == bytes)
    }
}

/// Bytes that only one side at a time may touch.
struct Checked {
    at: Range<usize>,
    held: Mutex<Held>,
}

struct Held {
    /// The cell by which loom detects races.
    access: UnsafeCell<()>,
    bytes: Vec<u8>,
}

/// A model of a ring beside its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub data: Data,
    /// The writer of `suspend`.
    pub suspender: Who,
    pub threads: usize,
}

fn common(one: &Range<usize>, other: &Range<usize>) -> Option<Range<usize>> {
    let both = one.start.max(other.start)..one.end.min(other.end);
    (!both.is_empty()).then_some(both)
}

/// Returns the range of `part` in a buffer that starts at `start`.
fn within(part: &Range<usize>, start: usize) -> Range<usize> {
    part.start - start..part.end - start
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Shared {
    /// Makes a ring whose bytes are `image`.
    pub fn ring(image: &[u8], geometry: Geometry, plan: Plan) -> Self {
        let (size, start) = (geometry.sector_size().bytes(), index(geometry.data_start()));
        let atom = |at, owner| Atom::new(at, image, Some(owner), plan.threads);
        let mut atoms = Vec::new();
        let mut text = Vec::new();
        let sides = [
            (Side::Producer, Who::Producer, Who::Producer),
            (Side::Consumer, Who::Consumer, plan.suspender),
        ];
        for (side, owner, suspender) in sides {
            let head = index(geometry.pointer_start(side));
            atoms.push(atom(head..head + 8, owner).position());
            atoms.push(atom(head + FLAG_AT..head + FLAG_AT + 1, suspender));
            for slot in SLOTS_AT.map(|at| head + at) {
                atoms.push(atom(slot..slot + 8, owner));
                atoms.push(atom(slot + 8..slot + SLOT_BYTES, owner));
            }
            text.push(head + TEXT_AT..head + TEXT_AT + TEXT_BYTES);
        }
        let mut checked = Vec::new();
        match plan.data {
            Data::Words(words) => atoms.extend(words.iter().map(|&word| {
                let at = start + index(word);
                atom(at..at + 8, Who::Producer)
            })),
            Data::Sectors => checked.extend((start..image.len()).step_by(size).map(|start| {
                let at = start..start + size;
                let bytes = image[at.clone()].to_vec();
                Checked { at, held: Mutex::new(Held { access: UnsafeCell::new(()), bytes }) }
            })),
        }
        let state = State { constant: image.to_vec(), atoms, checked, text };
        Self::over(Arc::new(state), Who::Control, Orders::RING)
    }

    /// Makes a page of zeros in which any handle may use these words.
    pub fn page(words: &[usize], threads: usize) -> Self {
        let constant = vec![0; words.iter().max().map_or(0, |last| last + 8)];
        let atom = |&at: &usize| Atom::new(at..at + 8, &constant, None, threads);
        let atoms = words.iter().map(atom).collect();
        let state = State { constant, atoms, checked: Vec::new(), text: Vec::new() };
        Self::over(Arc::new(state), Who::Control, Orders::RING)
    }

    /// Returns a handle on the memory.
    pub fn with(&self, who: Who, orders: Orders) -> Self {
        Self::over(Arc::clone(&self.state), who, orders)
    }

    fn over(state: Arc<State>, who: Who, orders: Orders) -> Self {
        Self { who, orders, state, loads: Arc::default() }
    }

    /// Returns the number of words loaded in one piece through this handle: one for every reading
    /// of a pointer sector.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    fn atom(&self, at: &Range<usize>) -> Option<&Atom> {
        self.state.atoms.iter().find(|atom| atom.at == *at)
    }

    fn store(&self, at: &Range<usize>, bytes: &[u8]) {
        let atom = self.atom(at).unwrap_or_else(|| panic!("the model has no atom at {at:?}"));
        atom.store(self.who, bytes, self.orders.store);
    }
}

/// Fences; `Relaxed` stands for no fence.
fn fence_unless_relaxed(order: Ordering) {
    if order != Ordering::Relaxed {
        fence(order);
    }
}

impl Memory for Shared {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let start = index(offset);
        let wanted = start..start + bytes.len();
        bytes.copy_from_slice(&self.state.constant[wanted.clone()]);
        for atom in &self.state.atoms {
            let Some(both) = common(&atom.at, &wanted) else { continue };
            let copied = &mut bytes[within(&both, start)];
            if atom.is_position {
                copied.fill(NOT_LOADED);
            } else {
                let loaded = atom.load(self.who, Ordering::Relaxed);
                copied.copy_from_slice(&loaded[within(&both, atom.at.start)]);
            }
        }
        for sector in &self.state.checked {
            let Some(both) = common(&sector.at, &wanted) else { continue };
            let held = sector.held.lock().unwrap();
            held.access.with(|_| ());
            let copied = &held.bytes[within(&both, sector.at.start)];
            bytes[within(&both, start)].copy_from_slice(copied);
        }
        fence_unless_relaxed(self.orders.after_read);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let start = index(offset);
        let given = start..start + bytes.len();
        // Where nothing is stored there is no fence either: nothing may rest on the one in front of
        // a text.
        let is_text = |text: &Range<usize>| text.contains(&given.start) && given.end <= text.end;
        if given.is_empty() || self.state.text.iter().any(is_text) {
            return;
        }
        fence_unless_relaxed(self.orders.before_write);
        let mut at = start;
        while at < given.end {
            // The next piece that is modelled as one.
            if let Some(atom) = self.state.atoms.iter().find(|atom| atom.at.contains(&at)) {
                let whole = common(&atom.at, &given).is_some_and(|both| both == atom.at);
                assert!(whole, "the model cannot store a part of {:?}", atom.at);
                let new = &bytes[within(&atom.at, start)];
                // A store of the same bytes changes nothing for a reader.
                if !atom.holds(new) {
                    atom.store(self.who, new, Ordering::Relaxed);
                }
                at = atom.at.end;
            } else if let Some(sector) = self.state.checked.iter().find(|it| it.at.contains(&at)) {
                let piece = at..sector.at.end.min(given.end);
                let mut held = sector.held.lock().unwrap();
                held.access.with_mut(|_| ());
                let stored = &mut held.bytes[within(&piece, sector.at.start)];
                stored.copy_from_slice(&bytes[within(&piece, start)]);
                at = piece.end;
            } else {
                let was = self.state.constant[at];
                assert!(bytes[at - start] == was, "the model has no place for byte {at}");
                at += 1;
            }
        }
    }

    fn load_u64(&self, offset: u64) -> u64 {
        let at = index(offset)..index(offset) + 8;
        self.loads.fetch_add(1, Ordering::Relaxed);
        // Sector 0 has no atoms: it never changes.
        let constant = || self.state.constant[at.clone()].to_vec();
        let bytes =
            self.atom(&at).map_or_else(constant, |atom| atom.load(self.who, self.orders.load));
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    fn store_u64(&self, offset: u64, value: u64) {
        self.store(&(index(offset)..index(offset) + 8), &value.to_le_bytes());
    }

    fn store_u8(&self, offset: u64, value: u8) {
        self.store(&(index(offset)..index(offset) + 1), &[value]);
    }

    fn fence(&self) {
        fence_unless_relaxed(self.orders.fence);
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
