//! One request, from judgement to the region: the way of every guest byte.
//!
//! The guard judges a request whole before anything of it is stored. Here is what it sees by, and what is done then.

use crate::counters::Counters;
use crate::guard::{Denied, Grant, Guard, Judgement, Mine, Reason, Room, SECTOR_UNIT, Sight};
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
    Walking(Box<Judgement>),
    /// Not offered: `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// Not carried out: `VIRTIO_BLK_S_IOERR`.
    Failed,
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

impl From<Denied<BadAddress>> for Fault {
    fn from(denied: Denied<BadAddress>) -> Self {
        match denied {
            Denied::Refused(reason) => reason.into(),
            Denied::Fault(fault) => fault.into(),
        }
    }
}

/// How the daemon was told to serve the ring.
#[derive(Debug, Clone)]
pub struct Service {
    /// Refuse every write.
    pub read_only: bool,
    /// Judge every write by the ring's rules. Without, it is a plain disk.
    pub guarded: bool,
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
    /// Rung when the guest's pointer sector has changed.
    host: Bell,
    /// It has, and nobody has rung.
    unrung: bool,
    /// The guest's side: ours to know, since only we store it.
    mine: Mine,
    /// What the last idle-class read of the host's pointer sector was told.
    told: Option<Vec<u8>>,
    /// Room for what it says now.
    now: Vec<u8>,
    /// Room for a judgement; none while there is one, or after one that ended badly.
    room: Option<Box<Room>>,
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
        let now = vec![0; region.geometry().sector_size().bytes()];
        Self {
            region,
            guard,
            service,
            counters,
            refusals,
            host,
            unrung: false,
            mine,
            told: None,
            now,
            room: None,
        }
    }

    /// A new front end, or a reset one, has been told nothing.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// Whether the host's pointer sector differs from what the last idle-class read was told.
    pub fn has_news(&mut self) -> bool {
        self.region.head_sector(self.guard.host().sector(), &mut self.now);
        self.told.as_ref() != Some(&self.now)
    }

    /// Wakes the host if it sleeps and something has changed for it. That takes longer than a request, and so has time until the guest
    /// has its answer; whatever becomes of that, it has to be done.
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.unrung) && self.host.ring() {
            self.counters.wakeups.count();
        }
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
        judgement: Box<Judgement>,
    ) -> Outcome {
        let outcome = self.judge(mem, request, *judgement);
        self.settle(request, outcome)
    }

    fn settle(&mut self, request: &Request, outcome: Result<Outcome, Fault>) -> Outcome {
        match outcome {
            Ok(outcome) => outcome,
            Err(Fault::Refused(reason)) => {
                self.refusals.refuse(reason, Some(request.sector));
                Outcome::Failed
            }
            Err(Fault::BadAddress) => {
                self.counters.failed.count();
                Outcome::Failed
            }
        }
    }

    fn read<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        patient: bool,
    ) -> Result<Outcome, Fault> {
        let range = self.guard.range(request.sector, request.data_len)?;
        let host = self.guard.host();
        let size = u64::from(self.region.geometry().sector_size().get());
        if request.idle
            && range.start == self.region.geometry().pointer_start(host)
            && range.end == range.start + size
        {
            if !self.has_news() && patient {
                return Ok(Outcome::Hold);
            }
            self.region.to_guest(mem, &request.data, range.start)?;
            self.told.get_or_insert_default().clone_from(&self.now);
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
        let range = self.guard.range(request.sector, request.data_len)?;
        if self.service.read_only {
            return Err(Reason::ReadOnly.into());
        }
        if !self.service.guarded {
            return self.store_unjudged(mem, request, &range);
        }
        let judgement = self.guard.begin(range, self.room.take().unwrap_or_default());
        self.judge(mem, request, judgement)
    }

    /// Stores whatever it is: sectors in front of the data area as whole ones, since somebody may read positions there.
    fn store_unjudged<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        range: &Range<u64>,
    ) -> Result<Outcome, Fault> {
        all_there(mem, request)?;
        let view = View { region: &self.region, mem, request };
        let geometry = self.region.geometry();
        let size = u64::from(geometry.sector_size().get());
        let data = range.start.max(geometry.data_start())..range.end;
        let mut sector = vec![0; geometry.sector_size().bytes()];
        for index in range.start / size..(range.end.min(geometry.data_start())) / size {
            view.written(index * size..(index + 1) * size, &mut sector)?;
            self.region.store_head(index, &sector);
        }
        if !data.is_empty() {
            self.region.store(mem, &request.data, view.part(&data), data.start)?;
        }
        if range.contains(&geometry.pointer_start(self.guard.guest())) {
            self.unrung = true;
        }
        Ok(self.written(request))
    }

    fn judge<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        mut judgement: Judgement,
    ) -> Result<Outcome, Fault> {
        let view = View { region: &self.region, mem, request };
        match self.guard.judge(self.mine, &mut judgement, WALK_BUDGET, &view)? {
            None => Ok(Outcome::Walking(Box::new(judgement))),
            Some(grant) => self.store(mem, request, &grant, judgement),
        }
    }

    /// Stores what is granted: all of it, since nothing can fail any more once it has begun.
    fn store<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        grant: &Grant,
        judgement: Judgement,
    ) -> Result<Outcome, Fault> {
        let view = View { region: &self.region, mem, request };
        all_there(mem, request)?;
        for piece in &grant.stored {
            if !piece.is_empty() {
                self.region.store(mem, &request.data, view.part(piece), piece.start)?;
            }
        }
        if let Some(mine) = grant.pointer {
            self.region.store_head(self.guard.guest().sector(), judgement.pointer_sector());
            let moved = mine.pointer.position > self.mine.pointer.position;
            self.counters.published.add(u64::from(moved));
            self.mine = mine;
            self.unrung = true;
        }
        self.room = Some(judgement.into_room());
        Ok(self.written(request))
    }

    fn written(&self, request: &Request) -> Outcome {
        self.counters.writes.count();
        self.counters.written_bytes.add(request.data_len);
        Outcome::Done(0)
    }
}

/// Whether every byte of a request's buffers is guest memory: nothing is stored of one that is not.
fn all_there<M: GuestMemoryBackend>(mem: &M, request: &Request) -> Result<(), BadAddress> {
    let there = |segment: &Segment| mem.check_range(segment.address, segment.len);
    if request.data.iter().all(there) { Ok(()) } else { Err(BadAddress) }
}

/// What the guard sees of the region and of a request's bytes in guest memory.
struct View<'a, M> {
    region: &'a Region,
    mem: &'a M,
    request: &'a Request,
}

impl<M> View<'_, M> {
    /// Device bytes as bytes of the request's data.
    fn part(&self, range: &Range<u64>) -> Range<u64> {
        // Within 64 bits: the guard has looked at the request's range.
        let start = self.request.sector * SECTOR_UNIT;
        range.start - start..range.end - start
    }
}

impl<M: GuestMemoryBackend> Sight for View<'_, M> {
    type Fault = BadAddress;

    fn head_sector(&self, index: u64, sector: &mut [u8]) {
        self.region.head_sector(index, sector);
    }

    fn position(&self, side: Side) -> Option<Position> {
        self.region.position(side)
    }

    fn word(&self, offset: u64) -> [u8; 4] {
        self.region.word(offset)
    }

    fn written(&self, range: Range<u64>, private: &mut [u8]) -> Result<(), BadAddress> {
        Region::from_guest(self.mem, &self.request.data, self.part(&range), private)
    }

    fn same(&self, range: Range<u64>) -> Result<bool, BadAddress> {
        self.region.same(self.mem, &self.request.data, self.part(&range), range.start)
    }
}
