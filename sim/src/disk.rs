//! A simulated disk with a volatile cache.
//!
//! Sector-granular: a sector is written whole or not at all, a longer write may tear at any sector.
//! Every version of a sector since the last flush stays pending; a crash keeps, of each sector, the
//! durable version or any pending one. That is every subset of the pending writes, in every order.

use shared_block_ring::format::{Geometry, SectorSize};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Content of a sector.
pub type Content = Arc<[u8]>;

/// A disk; clones are the same one.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    geometry: Geometry,
}

struct State {
    sectors: Vec<Sector>,
    /// Indices of the sectors with pending versions.
    dirty: BTreeSet<usize>,
    faults: Vec<Fault>,
}

#[derive(Clone)]
struct Sector {
    durable: Content,
    /// Versions written since, oldest first.
    pending: Vec<Content>,
    /// Number of pending versions that a failed flush has lost: visible, but no later flush makes
    /// them durable.
    lost: usize,
}

/// A flush under way: sectors with pending versions, and the number of those.
#[derive(Debug, Clone, Default, Hash)]
pub struct BegunFlush(Vec<(u64, usize)>);

/// An operation that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
}

/// Plans a failure.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// Number of such operations that succeed before.
    pub after: u64,
    /// The operating system's error number.
    pub errno: i32,
    /// Whether every later one fails, too.
    pub for_ever: bool,
}

impl Disk {
    /// Makes a disk of durable zeros.
    pub fn new(sector_size: SectorSize, sectors: u64) -> Self {
        let geometry = Geometry::new(sector_size, sectors).expect("a disk large enough for a ring");
        let zeros = Sector::durable(vec![0; sector_size.bytes()].into());
        let count = usize::try_from(sectors).expect("a disk that fits into memory");
        let state =
            State { sectors: vec![zeros; count], dirty: BTreeSet::new(), faults: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), geometry }
    }

    /// Makes a disk that durably holds `image`.
    pub fn of(sector_size: SectorSize, image: &[u8]) -> Self {
        let size = sector_size.bytes();
        let disk = Self::new(sector_size, (image.len() / size) as u64);
        for (sector, content) in disk.state().sectors.iter_mut().zip(image.chunks_exact(size)) {
            sector.durable = content.into();
        }
        disk
    }

    /// Returns an independent disk in the same state: pending versions and faults, too.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state();
        let copy = State {
            sectors: state.sectors.clone(),
            dirty: state.dirty.clone(),
            faults: state.faults.clone(),
        };
        Self { state: Arc::new(Mutex::new(copy)), geometry: self.geometry }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave this state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the disk's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns the visible content of all sectors.
    pub fn image(&self) -> Vec<u8> {
        self.state().sectors.iter().flat_map(|sector| sector.visible().iter().copied()).collect()
    }

    /// Reads whole sectors.
    pub fn read(&self, first: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.meet(Operation::Read)?;
        let range = self.range(first, bytes.len())?;
        for (sector, buf) in state.sectors[range].iter().zip(bytes.chunks_mut(self.size())) {
            buf.copy_from_slice(sector.visible());
        }
        Ok(())
    }

    /// Writes whole sectors.
    pub fn write(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let range = self.range(first, bytes.len())?;
        state.meet(Operation::Write)?;
        for (index, content) in range.zip(bytes.chunks(self.size())) {
            state.put(index, content.into());
        }
        Ok(())
    }

    /// Changes bytes within one sector, as a store into a mapping does. The kernel may write a page
    /// back at any time, so each state that a sector has been in may be the one that is kept.
    pub fn store(&self, offset: u64, bytes: &[u8]) {
        let size = self.size() as u64;
        let within = usize::try_from(offset % size).expect("a sector fits into memory");
        let index = usize::try_from(offset / size).expect("within the disk");
        let mut state = self.state();
        let mut content = state.sectors[index].visible().to_vec();
        content[within..within + bytes.len()].copy_from_slice(bytes);
        state.put(index, content.into());
    }

    /// Makes durable what is visible; what a failed flush has lost stays lost until it is written
    /// again.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Err(e) = state.meet(Operation::Flush) {
            drop(state);
            self.lose_pending();
            return Err(e);
        }
        let State { sectors, dirty, .. } = &mut *state;
        dirty.retain(|&index| {
            let sector = &mut sectors[index];
            if sector.lost < sector.pending.len() {
                *sector = Sector::durable(Arc::clone(sector.visible()));
            }
            !sector.pending.is_empty()
        });
        Ok(())
    }

    /// Begins a flush that takes time: its end makes durable what is visible now.
    pub fn begin_flush(&self) -> BegunFlush {
        BegunFlush(self.choices().iter().map(|&(index, count)| (index, count - 1)).collect())
    }

    /// Ends a flush.
    pub fn end_flush(&self, flush: BegunFlush) {
        let mut state = self.state();
        let State { sectors, dirty, .. } = &mut *state;
        for (index, count) in flush.0 {
            let index = usize::try_from(index).expect("within the disk");
            let sector = &mut sectors[index];
            if sector.lost < count {
                sector.durable = Arc::clone(&sector.pending[count - 1]);
                sector.pending.drain(..count);
                sector.lost = 0;
            }
            if sector.pending.is_empty() {
                dirty.remove(&index);
            }
        }
    }

    /// Has all pending versions lost, as a failed flush does: they stay visible, and no later flush
    /// makes them durable.
    pub fn lose_pending(&self) {
        let mut state = self.state();
        let State { sectors, dirty, .. } = &mut *state;
        for &index in dirty.iter() {
            sectors[index].lost = sectors[index].pending.len();
        }
    }

    /// Returns all versions of each sector that a crash could leave: the durable one first, the
    /// visible one last.
    pub fn versions(&self) -> Vec<Vec<Content>> {
        let versions = |sector: &Sector| {
            let mut all = vec![Arc::clone(&sector.durable)];
            all.extend(sector.pending.iter().cloned());
            all
        };
        self.state().sectors.iter().map(versions).collect()
    }

    /// Plans a failure.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Returns the sectors that have more than one version, and the number of versions of each (the
    /// durable one is number 0).
    pub fn choices(&self) -> Vec<(u64, usize)> {
        let state = self.state();
        let choice = |&index: &usize| (index as u64, state.sectors[index].pending.len() + 1);
        state.dirty.iter().map(choice).collect()
    }

    /// Has the power fail: of each sector one version is left, by its number as in
    /// [`choices`](Self::choices). Faults end with it.
    pub fn crash(&self, mut choose: impl FnMut(u64, usize) -> usize) {
        let mut state = self.state();
        for index in std::mem::take(&mut state.dirty) {
            let sector = &mut state.sectors[index];
            let choice = choose(index as u64, sector.pending.len() + 1);
            let left = match choice.checked_sub(1) {
                None => &sector.durable,
                Some(pending) => &sector.pending[pending],
            };
            *sector = Sector::durable(Arc::clone(left));
        }
        state.faults.clear();
    }

    fn size(&self) -> usize {
        self.geometry.sector_size().bytes()
    }

    fn range(&self, first: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let count = (len / self.size()) as u64;
        let end = first.checked_add(count).filter(|&end| end <= self.geometry.sectors());
        match end {
            Some(end) if len.is_multiple_of(self.size()) => {
                let index = |at: u64| usize::try_from(at).expect("within the disk");
                Ok(index(first)..index(end))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl State {
    fn put(&mut self, index: usize, content: Content) {
        self.sectors[index].pending.push(content);
        self.dirty.insert(index);
    }

    /// Fails if a fault is due.
    fn meet(&mut self, operation: Operation) -> io::Result<()> {
        let mut met = None;
        self.faults.retain_mut(|fault| {
            if fault.operation != operation {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            met.get_or_insert(fault.errno);
            fault.for_ever
        });
        met.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Sector {
    fn durable(content: Content) -> Self {
        Self { durable: content, pending: Vec::new(), lost: 0 }
    }

    fn visible(&self) -> &Content {
        self.pending.last().unwrap_or(&self.durable)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EIO: i32 = 5;

    fn disk() -> Disk {
        Disk::new(SectorSize::DEFAULT, 4)
    }

    fn sectors(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|&byte| [byte; 512]).collect()
    }

    /// Returns the first byte of each sector.
    fn firsts(disk: &Disk) -> Vec<u8> {
        disk.image().chunks(512).map(|sector| sector[0]).collect()
    }

    #[test]
    fn write_is_visible_and_flushed_write_survives_a_crash() {
        let disk = disk();
        disk.write(0, &sectors(&[1, 2])).unwrap();
        disk.flush().unwrap();
        disk.write(1, &sectors(&[3, 4])).unwrap();
        assert_eq!(firsts(&disk), [1, 3, 4, 0]);
        assert_eq!(disk.choices(), [(1, 2), (2, 2)]);
        disk.crash(|_, _| 0);
        assert_eq!(firsts(&disk), [1, 2, 0, 0]);
        assert_eq!(disk.choices(), []);
    }

    #[test]
    fn crash_keeps_any_version_and_tears_anywhere() {
        let disk = disk();
        for byte in 1..=3 {
            disk.write(0, &sectors(&[byte, byte + 10])).unwrap();
        }
        let mut left = BTreeSet::new();
        for first in 0..4 {
            for second in 0..4 {
                let disk = disk.fork();
                disk.crash(|sector, versions| {
                    assert_eq!(versions, 4);
                    [first, second][usize::try_from(sector).unwrap()]
                });
                left.insert(firsts(&disk));
            }
        }
        assert_eq!(left.len(), 16);
        assert!(left.contains(&vec![1, 13, 0, 0]), "later ones may arrive before earlier ones");
    }

    #[test]
    fn write_lost_by_a_failed_flush_is_not_saved_by_a_later_flush() {
        let disk = disk();
        disk.write(0, &sectors(&[1])).unwrap();
        let fault = Fault { operation: Operation::Flush, after: 0, errno: EIO, for_ever: false };
        disk.inject(fault);
        assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(EIO));
        disk.write(1, &sectors(&[2])).unwrap();
        disk.flush().unwrap();
        assert_eq!(firsts(&disk), [1, 2, 0, 0]);
        let lost = disk.fork();
        lost.crash(|_, _| 0);
        assert_eq!(firsts(&lost), [0, 2, 0, 0]);
        // Written again, the sector is like any other.
        disk.write(0, &sectors(&[3])).unwrap();
        disk.flush().unwrap();
        disk.crash(|_, _| 0);
        assert_eq!(firsts(&disk), [3, 2, 0, 0]);
    }

    #[test]
    fn fault_comes_once_or_for_ever() {
        let disk = disk();
        let read = || disk.read(0, &mut [0; 512]).map_err(|e| e.raw_os_error());
        disk.inject(Fault { operation: Operation::Read, after: 1, errno: EIO, for_ever: false });
        assert_eq!([read(), read(), read()], [Ok(()), Err(Some(EIO)), Ok(())]);
        disk.inject(Fault { operation: Operation::Write, after: 0, errno: 28, for_ever: true });
        let write = || disk.write(0, &sectors(&[1])).map_err(|e| e.raw_os_error());
        assert_eq!([write(), write(), read()], [Err(Some(28)), Err(Some(28)), Ok(())]);
        assert_eq!(firsts(&disk), [0; 4]);
    }

    #[test]
    fn flush_that_takes_time_covers_what_was_written_before_it() {
        let disk = disk();
        disk.write(0, &sectors(&[1, 2])).unwrap();
        let flush = disk.begin_flush();
        disk.write(1, &sectors(&[3, 4])).unwrap();
        disk.end_flush(flush);
        disk.crash(|_, _| 0);
        assert_eq!(firsts(&disk), [1, 2, 0, 0]);
    }

    #[test]
    fn store_is_a_version_of_its_sector() {
        let disk = disk();
        disk.store(512, &[7; 8]);
        disk.store(520, &[8; 8]);
        assert_eq!(disk.choices(), [(1, 3)]);
        disk.crash(|_, _| 1);
        assert_eq!(disk.image()[512..528], [[7; 8], [0; 8]].concat());
    }
}
