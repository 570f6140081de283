//! Carrying out one request on the region: read, judged write, publication, wake-up.
//!
//! The guard judges a write whole before anything of it is stored. `RequestView` is what it sees.

mod fast_path;
mod view;

use crate::data_path::counters::Counters;
use crate::data_path::fault::{Losses, Owner, Watched};
use crate::data_path::guard::{
    Denied, Grant, Guard, GuestState, Judgement, Published, Reason, SECTOR_UNIT, Scratch, View,
};
use crate::data_path::probes;
use crate::data_path::refusals::Refusals;
use crate::data_path::region::{BadAddress, Region};
use crate::data_path::request::{Kind, Request, Segment};
use crate::data_path::request_state::{Answer, RequestState};
use shared_block_ring::MappedDevice;
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::Bell;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use view::{RequestView, check_buffers};
use vm_memory::{Bytes, GuestMemoryBackend};

/// Bytes of a serial number (virtio 1.3, 5.2.6.1).
pub const SERIAL_BYTES: usize = 20;

/// Items of a new batch that are walked before other work gets its turn: about a millisecond.
const WALK_BUDGET: usize = 64 * 1024;

/// Why a request is not carried out.
type Failure = Denied<BadAddress>;

impl From<BadAddress> for Failure {
    fn from(fault: BadAddress) -> Self {
        Self::Fault(fault)
    }
}

/// How the ring is served.
#[derive(Debug, Clone)]
pub struct Service {
    /// Refuse every write.
    pub read_only: bool,
    /// Judge every write by the ring's rules. Without the guard the disk is a plain one.
    pub guarded: bool,
    /// The answer to `GET_ID`.
    pub serial: [u8; SERIAL_BYTES],
}

/// Carries out requests on a region, one at a time.
pub struct Executor {
    region: Region,
    guard: Guard,
    service: Service,
    counters: Arc<Counters>,
    refusals: Refusals,
    /// Signalled when the guest's pointer sector has changed.
    host: Watched<Bell>,
    /// The guest's pointer sector has changed and the host has not been woken yet.
    wake_pending: bool,
    /// The guest's side. Nobody else stores it.
    guest: GuestState,
    /// The host's pointer sector as the last idle-class read of it returned it, by any queue: a
    /// process that waits in the guest may run on one processor after the other.
    last_shown: Option<Vec<u8>>,
    /// The host's pointer sector as it was last looked at.
    host_sector: Vec<u8>,
    /// Scratch: a control sector that is stored unjudged.
    unjudged: Vec<u8>,
    /// The published bytes, as the fast path has last computed them.
    published: Option<Published>,
    /// Memory for a judgement. `None` while there is one, and after one that ended in a refusal.
    scratch: Option<Box<Scratch>>,
}

/// Whether a queue's next request may be a replayed one.
#[derive(Debug, Default)]
pub struct Replay {
    /// The next request may be a repeated one: a backend that was killed, or a stop, came between
    /// its work and its answer. It is the first one that was waiting when the queue started.
    may_repeat: bool,
}

impl Replay {
    /// The state at a queue's start. `waiting` says whether a request is in the queue then.
    pub fn at_start(waiting: bool) -> Self {
        Self { may_repeat: waiting }
    }

    /// Notes that a request was answered: the next one is a new one.
    pub fn answered(&mut self) {
        self.may_repeat = false;
    }
}

impl Executor {
    /// Makes an executor for a region that holds a sound ring; `guest` is its guest's side.
    pub fn new(
        region: Region,
        guard: Guard,
        service: Service,
        counters: Arc<Counters>,
        host: Bell,
        guest: GuestState,
    ) -> Self {
        let refusals = Refusals::new(Arc::clone(&counters));
        let host_sector = vec![0; region.geometry().sector_size().bytes()];
        let unjudged = host_sector.clone();
        let host = Watched::new(host, Owner::Ring, region.losses());
        Self {
            region,
            guard,
            service,
            counters,
            refusals,
            host,
            wake_pending: false,
            guest,
            last_shown: None,
            host_sector,
            unjudged,
            published: None,
            scratch: None,
        }
    }

    /// The ring's mapping.
    pub fn device(&self) -> &MappedDevice {
        self.region.device()
    }

    /// The losses of the ring's memory, and of its front end's.
    pub fn losses(&self) -> &Losses {
        self.region.losses()
    }

    /// Sets `suspend` in sector 2 on behalf of a process without a role. Returns false where
    /// another process edits that sector: to be tried again.
    pub fn suspend(&self, suspend: bool) -> Result<bool, DeviceError> {
        self.region.suspend(suspend)
    }

    /// Forgets what the guest has read: a new front end, or a reset one, has read nothing.
    pub fn forget(&mut self) {
        self.last_shown = None;
    }

    /// Whether the host's pointer sector differs from what the last idle-class read of it returned.
    pub fn has_news(&mut self) -> bool {
        self.region.read_control_sector(self.guard.host().sector(), &mut self.host_sector);
        self.last_shown.as_ref() != Some(&self.host_sector)
    }

    /// Whether the host's position or flag differs from what the last idle-class read returned. A
    /// look of [`has_news`](Self::has_news) also finds other changes, and takes ten times as long.
    pub fn has_moved(&self) -> bool {
        let words = self.region.pointer_words(self.guard.host());
        let shown = self.last_shown.as_deref().and_then(|shown| shown.first_chunk());
        shown.is_none_or(|shown: &[u8; 16]| *shown != words.map(u64::to_ne_bytes).as_flattened())
    }

    /// Whether a request concerns no control sector.
    pub fn is_data(&self, request: &Request) -> bool {
        request.sector >= self.region.geometry().data_start() / SECTOR_UNIT
    }

    /// Wakes the host if it sleeps and the guest's pointer sector has changed since the last call.
    pub fn wake_host(&mut self) {
        if std::mem::take(&mut self.wake_pending) && self.host.ring() {
            self.counters.wakeups.count();
            probes::wake();
        }
    }

    /// Counts and reports a chain that is no request.
    pub fn refuse(&mut self, reason: Reason) -> RequestState {
        self.refusals.refuse(reason, None);
        RequestState::Done(Answer::FAILED)
    }

    /// Carries out a parsed request as far as that goes now. An idle-class read of the host's
    /// pointer sector may be held for `hold`. A FLUSH stores nothing: that the medium has
    /// everything is the caller's part, as it is for a write that has to be durable.
    pub fn execute<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        replay: &Replay,
        hold: Option<Duration>,
    ) -> RequestState {
        let outcome = match request.kind() {
            Kind::Read => self.read(mem, request, hold),
            Kind::Write => self.write(mem, request, replay),
            Kind::Flush => Ok(RequestState::Done(Answer::ok(0))),
            Kind::GetId => self.get_id(mem, request),
            Kind::Unsupported => Ok(RequestState::Done(Answer::UNSUPPORTED)),
        };
        self.state_after(request, outcome)
    }

    /// Goes on with a write whose items are not all walked.
    pub fn resume<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        replay: &Replay,
        judgement: Box<Judgement>,
    ) -> RequestState {
        let outcome = self.judge(mem, request, replay, *judgement);
        self.state_after(request, outcome)
    }

    /// Returns the state of a request; a failure is counted and reported.
    fn state_after(
        &mut self,
        request: &Request,
        outcome: Result<RequestState, Failure>,
    ) -> RequestState {
        outcome.unwrap_or_else(|failure| {
            match failure {
                Denied::Refused(reason) => self.refusals.refuse(reason, Some(request.sector)),
                Denied::Fault(BadAddress) => self.counters.failed.count(),
            }
            RequestState::Done(Answer::FAILED)
        })
    }

    fn read<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        hold: Option<Duration>,
    ) -> Result<RequestState, Failure> {
        let range = self.guard.range(request.sector, request.data_len)?;
        let host = self.guard.host();
        let size = u64::from(self.region.geometry().sector_size().get());
        if request.idle
            && range.start == self.region.geometry().pointer_start(host)
            && range.end == range.start + size
        {
            if !self.has_news()
                && let Some(hold) = hold
            {
                self.counters.held.count();
                return Ok(RequestState::Held { until: Instant::now() + hold });
            }
            self.region.to_guest(mem, &request.data, range.start)?;
            self.last_shown.get_or_insert_default().clone_from(&self.host_sector);
        } else {
            self.region.to_guest(mem, &request.data, range.start)?;
        }
        self.counters.reads.count();
        self.counters.read_bytes.add(request.data_len);
        // MAX_BYTES bounds it.
        let written = u32::try_from(request.data_len).unwrap_or(u32::MAX);
        Ok(RequestState::Done(Answer::ok(written)))
    }

    fn get_id<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        request: &Request,
    ) -> Result<RequestState, Failure> {
        let mut rest = &self.service.serial[..];
        let mut written = 0;
        for Segment { address, len } in &request.data {
            let (now, later) = rest.split_at(rest.len().min(*len));
            mem.write_slice(now, *address).map_err(|_| BadAddress)?;
            // At most SERIAL_BYTES in all.
            written += u32::try_from(now.len()).unwrap_or(0);
            rest = later;
        }
        Ok(RequestState::Done(Answer::ok(written)))
    }

    fn write<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        replay: &Replay,
    ) -> Result<RequestState, Failure> {
        let range = self.guard.range(request.sector, request.data_len)?;
        if self.service.read_only {
            return Err(Reason::ReadOnly.into());
        }
        if !self.service.guarded {
            return self.store_unjudged(mem, request, &range);
        }
        let judgement = self.guard.begin(range, self.scratch.take().unwrap_or_default());
        self.judge(mem, request, replay, judgement)
    }

    fn judge<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        replay: &Replay,
        mut judgement: Judgement,
    ) -> Result<RequestState, Failure> {
        let view = RequestView { may_repeat: replay.may_repeat, ..self.view(mem, request) };
        match self.guard.judge(self.guest, &mut judgement, WALK_BUDGET, &view)? {
            None => Ok(RequestState::Walking(Box::new(judgement))),
            Some(grant) => self.store(mem, request, &grant, judgement),
        }
    }

    /// Stores what is granted, data first, then the pointer that publishes it. All of it: nothing
    /// can fail any more once it has begun.
    fn store<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        grant: &Grant,
        judgement: Judgement,
    ) -> Result<RequestState, Failure> {
        let view = self.view(mem, request);
        check_buffers(mem, request)?;
        for piece in &grant.stored {
            if !piece.is_empty() {
                self.region.store(mem, &request.data, view.part(piece), piece.start)?;
            }
        }
        if let Some(guest) = grant.guest {
            self.publish(guest, grant.keeps_flag, judgement.pointer_sector());
        }
        self.scratch = Some(judgement.into_scratch());
        Ok(self.written(request))
    }

    /// Stores the guest's pointer sector, which makes its items visible (or frees the host's).
    fn publish(&mut self, guest: GuestState, keeps_flag: bool, sector: &[u8]) {
        let side = self.guard.guest();
        if keeps_flag {
            self.region.store_beside_flag(side, sector);
        } else {
            self.region.store_control_sector(side.sector(), sector);
        }
        let moved = guest.pointer.position > self.guest.pointer.position;
        self.counters.published.add(u64::from(moved));
        self.guest = guest;
        self.wake_pending = true;
        probes::publish(guest.pointer.position);
    }

    /// Stores a write of a plain disk: control sectors as whole ones, since the host may read
    /// positions there.
    fn store_unjudged<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        request: &Request,
        range: &Range<u64>,
    ) -> Result<RequestState, Failure> {
        check_buffers(mem, request)?;
        let view = RequestView { region: &self.region, mem, request, may_repeat: false };
        let geometry = self.region.geometry();
        let size = u64::from(geometry.sector_size().get());
        let data = range.start.max(geometry.data_start())..range.end;
        for index in range.start / size..(range.end.min(geometry.data_start())) / size {
            view.requested(index * size..(index + 1) * size, &mut self.unjudged)?;
            self.region.store_control_sector(index, &self.unjudged);
        }
        if !data.is_empty() {
            self.region.store(mem, &request.data, view.part(&data), data.start)?;
        }
        if range.contains(&geometry.pointer_start(self.guard.guest())) {
            self.wake_pending = true;
        }
        Ok(self.written(request))
    }

    fn view<'a, M>(&'a self, mem: &'a M, request: &'a Request) -> RequestView<'a, M> {
        RequestView { region: &self.region, mem, request, may_repeat: false }
    }

    fn written(&self, request: &Request) -> RequestState {
        self.counters.writes.count();
        self.counters.written_bytes.add(request.data_len);
        RequestState::Done(Answer::ok(0))
    }
}
