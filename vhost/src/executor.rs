//! One request, from judgement to the region: the way of every guest byte.
//!
//! A request is judged whole before anything of it is stored, as the sequence of its sectors: a pointer sector that it
//! contains is judged first, and the data behind it by the pointers as they will be then.

use crate::counters::Counters;
use crate::guard::{Guard, Host, Mine, Move, Piece, Progress, Reason, Walk};
use crate::refusals::Refusals;
use crate::region::{BadAddress, Region};
use crate::request::{Kind, Request, Segment};
use shared_block_ring::Position;
use shared_block_ring::device::bell::Bell;
use shared_block_ring::format::Side;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{Bytes, GuestMemoryBackend};

/// Bytes of a serial number (virtio 1.3, 5.2.6.1).
pub const SERIAL_BYTES: usize = 20;

/// Items of a new batch that are walked before other work gets its turn: about a millisecond.
const WALK_BUDGET: usize = 64 * 1024;

/// The unit of a request's sector, whatever the block size (5.2.6).
const SECTOR_UNIT: u64 = 512;

/// What the page cache of a guest writes at a time.
const PAGE: u64 = 4096;

/// How a request stands.
#[derive(Debug)]
pub enum Outcome {
    /// Carried out; the number of bytes that were written to the guest.
    Done(u32),
    /// Carried out, and to be answered only when everything stored so far is durable.
    Flush,
    /// A read that has nothing new to tell.
    Hold,
    /// A write whose items are not all looked at.
    Walking(Box<PointerWrite>),
    /// Not offered: `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// Not carried out: `VIRTIO_BLK_S_IOERR`.
    Failed,
}

/// A new pointer sector on its way into the region.
#[derive(Debug)]
pub struct PointerWrite {
    change: Move,
    sector: Vec<u8>,
    walk: Walk,
}

enum Fault {
    Refused(Reason),
    BadAddress,
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

impl From<BadAddress> for Fault {
    fn from(_: BadAddress) -> Self {
        Self::BadAddress
    }
}

/// How the daemon was told to serve the ring.
#[derive(Debug, Clone)]
pub struct Service {
    /// Refuse every write.
    pub read_only: bool,
    /// What `GET_ID` answers.
    pub serial: [u8; SERIAL_BYTES],
}

/// Carries out requests on a region, one at a time.
pub struct Executor {
    region: Region,
    guard: Guard,
    service: Service,
    counters: Arc<Counters>,
    refusals: Refusals,
    /// Rung when the guest's pointer sector changes.
    host: Bell,
    /// The guest's side: ours to know, since only we store it.
    mine: Mine,
    /// What the last idle-class read of the host's pointer sector was told.
    told: Option<Vec<u8>>,
}

impl Executor {
    /// For a region that holds a sound ring. `mine` is what it says for the guest's side.
    pub fn new(
        region: Region,
        guard: Guard,
        service: Service,
        counters: Arc<Counters>,
        host: Bell,
        mine: Mine,
    ) -> Self {
        let refusals = Refusals::new(Arc::clone(&counters));
        Self { region, guard, service, counters, refusals, host, mine, told: None }
    }

    /// A new front end, or a reset one, has been told nothing.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// Counts and reports a chain that was not a request.
    pub fn refuse(&mut self, reason: Reason) -> Outcome {
        self.refusals.refuse(reason, None);
        Outcome::Failed
    }

    /// Carries out a parsed request. `patient`: an idle-class read may be held.
    pub fn execute<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        patient: bool,
    ) -> Outcome {
        let outcome = match request.kind() {
            Kind::Read => self.read(mem, request, patient),
            Kind::Write => self.write(mem, request),
            Kind::Flush => Ok(Outcome::Flush),
            Kind::GetId => self.get_id(mem, request),
            Kind::Unsupported => Ok(Outcome::Unsupported),
        };
        self.settle(request, outcome)
    }

    /// Goes on with a write.
    pub fn resume<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        pointer: Box<PointerWrite>,
    ) -> Outcome {
        let outcome = self
            .range(request)
            .map_err(Fault::from)
            .and_then(|range| self.finish(mem, request, &range, Some(pointer)));
        self.settle(request, outcome)
    }

    fn settle(&mut self, request: &Request, outcome: Result<Outcome, Fault>) -> Outcome {
        match outcome {
            Ok(outcome) => outcome,
            Err(Fault::Refused(reason)) => {
                let reason = if self.is_buffered_page(request, reason) {
                    Reason::BufferedPage
                } else {
                    reason
                };
                self.refusals.refuse(reason, Some(request.sector));
                Outcome::Failed
            }
            Err(Fault::BadAddress) => {
                self.counters.failed.count();
                Outcome::Failed
            }
        }
    }

    /// Nobody writes the first page whole who knows that it holds both pointers: part of it is stale, or meant for elsewhere.
    fn is_buffered_page(&self, request: &Request, reason: Reason) -> bool {
        let page = request.kind() == Kind::Write && request.sector == 0 && request.data_len >= PAGE;
        let about_bytes =
            !matches!(reason, Reason::ReadOnly | Reason::OutOfRange | Reason::HostCorrupt);
        page && about_bytes && u64::from(self.region.geometry().sector_size().get()) < PAGE
    }

    /// Device bytes that a request is about.
    fn range(&self, request: &Request) -> Result<Range<u64>, Reason> {
        let geometry = self.region.geometry();
        let size = u64::from(geometry.sector_size().get());
        let start = request.sector.checked_mul(SECTOR_UNIT).ok_or(Reason::OutOfRange)?;
        let end = start.checked_add(request.data_len).ok_or(Reason::OutOfRange)?;
        let whole = start.is_multiple_of(size) && end.is_multiple_of(size);
        if whole && end <= geometry.total_bytes() {
            Ok(start..end)
        } else {
            Err(Reason::OutOfRange)
        }
    }

    fn read<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        patient: bool,
    ) -> Result<Outcome, Fault> {
        let range = self.range(request)?;
        let host = self.guard.host();
        let size = u64::from(self.region.geometry().sector_size().get());
        if request.idle
            && range.start == self.region.geometry().pointer_start(host)
            && range.end == range.start + size
        {
            let mut sector = vec![0; self.region.geometry().sector_size().bytes()];
            self.region.head_sector(host.sector(), &mut sector);
            if patient && self.told.as_ref() == Some(&sector) {
                return Ok(Outcome::Hold);
            }
            self.region.to_guest(mem, &request.data, range.start)?;
            self.told = Some(sector);
        } else {
            self.region.to_guest(mem, &request.data, range.start)?;
        }
        self.counters.reads.count();
        self.counters.read_bytes.add(request.data_len);
        // MAX_BYTES bounds it.
        Ok(Outcome::Done(u32::try_from(request.data_len).unwrap_or(u32::MAX)))
    }

    fn get_id<M: GuestMemoryBackend>(&self, mem: &M, request: &Request) -> Result<Outcome, Fault> {
        let mut rest = &self.service.serial[..];
        let mut written = 0;
        for Segment { address, len } in &request.data {
            let (now, later) = rest.split_at(rest.len().min(*len));
            mem.write_slice(now, *address).map_err(|_| Fault::BadAddress)?;
            // At most SERIAL_BYTES in all.
            written += u32::try_from(now.len()).unwrap_or(0);
            rest = later;
        }
        Ok(Outcome::Done(written))
    }

    fn write<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
    ) -> Result<Outcome, Fault> {
        let range = self.range(request)?;
        if self.service.read_only {
            return Err(Reason::ReadOnly.into());
        }
        let pointer = self.judge_head(mem, request, &range)?;
        self.finish(mem, request, &range, pointer)
    }

    /// Judges what of a write lies in front of the data area.
    fn judge_head<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        request: &Request,
        range: &Range<u64>,
    ) -> Result<Option<Box<PointerWrite>>, Fault> {
        let geometry = self.region.geometry();
        let size = u64::from(geometry.sector_size().get());
        let mut pointer = None;
        for index in range.start / size..range.end.min(geometry.data_start()).div_ceil(size) {
            let within = index * size - range.start;
            let mut theirs = vec![0; geometry.sector_size().bytes()];
            Region::from_guest(mem, &request.data, within..within + size, &mut theirs)?;
            let mut ours = vec![0; theirs.len()];
            self.region.head_sector(index, &mut ours);
            if theirs == ours {
                continue;
            }
            if let Some(reason) = self.guard.immutable(index) {
                return Err(reason.into());
            }
            let change = self.guard.judge_pointer(self.mine, self.host()?, &ours, &theirs)?;
            pointer =
                Some(Box::new(PointerWrite { change, sector: theirs, walk: Walk::new(change) }));
        }
        Ok(pointer)
    }

    fn host_position(&self) -> Result<Position, Reason> {
        self.region.position(self.guard.host()).ok_or(Reason::HostCorrupt)
    }

    fn host(&self) -> Result<Host, Reason> {
        let position = self.host_position()?;
        let mut sector = vec![0; self.region.geometry().sector_size().bytes()];
        self.region.head_sector(self.guard.host().sector(), &mut sector);
        Ok(Host { position, tally: self.guard.host_tally(position, &sector) })
    }

    /// Walks the items that a new position covers, judges the data by it, and only then stores.
    fn finish<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        range: &Range<u64>,
        mut pointer: Option<Box<PointerWrite>>,
    ) -> Result<Outcome, Fault> {
        if let Some(write) = &mut pointer {
            let geometry = self.region.geometry();
            if write.walk.step(geometry, WALK_BUDGET, |offset| self.region.word(offset))?
                == Progress::Unfinished
            {
                return Ok(pointer.map_or(Outcome::Failed, Outcome::Walking));
            }
        }
        let start = range.start.max(self.region.geometry().data_start());
        if start < range.end {
            let mine = pointer.as_ref().map_or(self.mine, |write| write.change.mine());
            self.write_data(mem, request, range, start..range.end, mine.pointer.position)?;
        }
        if let Some(write) = pointer {
            self.region.store_pointer(self.guard.guest(), &write.sector);
            let mine = write.change.mine();
            let moved = mine.pointer.position > self.mine.pointer.position;
            self.counters.published.add(u64::from(moved));
            self.mine = mine;
            if self.host.ring() {
                self.counters.wakeups.count();
            }
        }
        self.counters.writes.count();
        self.counters.written_bytes.add(request.data_len);
        Ok(Outcome::Done(0))
    }

    fn write_data<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        request: &Request,
        range: &Range<u64>,
        data: Range<u64>,
        mine: Position,
    ) -> Result<(), Fault> {
        let host = self.host_position()?;
        let (producer, consumer) = match self.guard.guest() {
            Side::Producer => (mine, host),
            Side::Consumer => (host, mine),
        };
        let pieces = self.guard.data_pieces(&data, producer, consumer)?;
        let within = |piece: &Range<u64>| piece.start - range.start..piece.end - range.start;
        for piece in &pieces {
            if let Piece::Same(piece, reason) = piece
                && !self.region.same(mem, &request.data, within(piece), piece.start)?
            {
                return Err((*reason).into());
            }
        }
        for piece in &pieces {
            if let Piece::Store(piece) = piece {
                self.region.store(mem, &request.data, within(piece), piece.start)?;
            }
        }
        Ok(())
    }
}
