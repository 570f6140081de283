//! A disk whose power can fail: requests, the simulated medium behind them, and the instant of the cut.
//!
//! What was answered is in the disk's cache, or on its medium; after the cut nothing is answered, and nothing is carried out.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring_simulation::{Adversary, Disk};
use shared_block_ring::format::Side;
use vhost_device_blockring::request::{Kind, Request};
use vhost_device_blockring::worker::{Memory, Vring};
use vhost_user_backend::{VringState, VringT as _};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_queue::{Error as QueueError, QueueOwnedT as _};
use vm_memory::{Bytes as _, GuestAddressSpace as _, GuestMemoryMmap};
use vmm_sys_util::timerfd::TimerFd;

use crate::load::Random;

/// What the guest finds the disk by.
const SERIAL: &[u8] = b"ring";

/// Sectors in front of the ring's data: those that the adversary likes.
const HEAD_SECTORS: u64 = 3;

/// A flush may take as long as a real one. Meanwhile the other end of the ring goes on, over what is not durable.
const SLOW_FLUSH_US: u64 = 3000;

/// Requests that the right one is waited for, when it is time for the cut: the ends may be busy with others.
const WAIT: u64 = 1000;

/// Whether a flush makes anything durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushes {
    /// As it should.
    Honest,
    /// It is answered, and that is all: for a campaign that has to fail.
    Lies,
}

/// When the power fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Requests before.
    requests: u64,
    /// The kind of the request that is the last one, and how many were of another kind when it was due.
    last: Last,
    waited: u64,
    /// Whether that one is answered, too, or only carried out.
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Any,
    /// A pointer has arrived, and is not flushed.
    Pointer,
    /// The same, while a flush of the other end is still under way: neither end's pointer need be durable.
    Overtaking,
    /// A flush, which is not even carried out: as much as can be is at stake.
    Flush,
}

impl Cut {
    /// Within the next `requests`.
    pub fn at_random(requests: u64, random: &mut Random) -> Self {
        let kinds = [Last::Any, Last::Pointer, Last::Overtaking, Last::Flush];
        let last = kinds[random.count(kinds.len())];
        Self { requests: random.below(requests), last, waited: 0, answered: random.one_in(2) }
    }

    /// Whether this request, carried out while a flush is under way or not, is the last one.
    fn is_due(&mut self, request: &Request, flushing: bool) -> bool {
        if let Some(left) = self.requests.checked_sub(1) {
            self.requests = left;
            return false;
        }
        self.waited += 1;
        let pointers = Side::Producer.sector()..=Side::Consumer.sector();
        let pointer = request.kind() == Kind::Write && pointers.contains(&request.sector);
        match self.last {
            _ if self.waited > WAIT => true,
            Last::Any => true,
            Last::Pointer => pointer,
            Last::Overtaking => pointer && flushing,
            Last::Flush => request.kind() == Kind::Flush,
        }
    }
}

/// A disk with a power supply.
pub(super) struct PoweredDisk {
    disk: Disk,
    flushes: Flushes,
    power: Mutex<Power>,
}

/// What lives as long as the power is on.
pub(super) struct Power {
    on: bool,
    cut: Option<Cut>,
    pub memory: Option<Memory>,
    request: Request,
    /// A flush that takes its time, and the descriptor that it came with.
    slow: Option<(u16, Request)>,
    pub timer: TimerFd,
    random: Random,
}

impl Power {
    fn new(seed: u64) -> io::Result<Self> {
        Ok(Self {
            on: true,
            cut: None,
            memory: None,
            request: Request::default(),
            slow: None,
            timer: TimerFd::new().map_err(io::Error::from)?,
            random: Random::new(seed),
        })
    }
}

impl PoweredDisk {
    pub fn new(disk: Disk, flushes: Flushes) -> io::Result<Self> {
        let power = Mutex::new(Power { on: false, ..Power::new(0)? });
        Ok(Self { disk, flushes, power })
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn power(&self) -> MutexGuard<'_, Power> {
        // A panic in between is this test's failure anyway.
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power is back.
    pub fn switch_on(&self, seed: u64) -> io::Result<()> {
        *self.power() = Power::new(seed)?;
        Ok(())
    }

    /// Lets the power fail.
    pub fn cut(&self, cut: Cut) {
        self.power().cut = Some(cut);
    }

    /// Whether it has failed.
    pub fn is_off(&self) -> bool {
        !self.power().on
    }

    /// What an adversary likes of what was not flushed is gone; to be called when QEMU is.
    pub fn lose(&self, seed: u64) {
        let mut random = Random::new(seed);
        let mut adversary = Adversary::new(random.next_u64(), HEAD_SECTORS);
        // What rests on both pointers is best shaken by keeping one of them.
        let one_pointer = random.one_in(3);
        let kept = [Side::Producer, Side::Consumer][random.count(2)].sector();
        self.disk.crash(|sector, versions| match sector {
            1 | 2 if one_pointer && sector == kept => versions - 1,
            1 | 2 if one_pointer => 0,
            _ => adversary.choose(sector, versions),
        });
    }

    /// Carries out what is in the available ring, in its order.
    pub fn drain(&self, vring: &Vring) -> Result<(), QueueError> {
        let mut power = self.power();
        let Some(memory) = power.memory.clone() else { return Ok(()) };
        let memory = memory.memory();
        let mut state = vring.get_mut();
        while power.on {
            let Some(chain) = state.get_queue_mut().iter(memory.clone())?.next() else {
                if state.enable_notification()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let mut request = std::mem::take(&mut power.request);
            // What is no request is answered as one that failed.
            let parsed = request.parse(&*memory, chain).is_ok();
            let slow = parsed && request.kind() == Kind::Flush && power.slow.is_none();
            if slow && power.random.one_in(2) {
                let delay = Duration::from_micros(1 + power.random.below(SLOW_FLUSH_US));
                if power.timer.reset(delay, None).is_ok() {
                    power.slow = Some((head, request));
                    continue;
                }
            }
            self.finish(&mut power, &mut state, &memory, (head, &request, parsed))?;
            power.request = request;
        }
        signal(&state)
    }

    /// A slow flush is over.
    pub fn finish_flush(&self, vring: &Vring) -> Result<(), QueueError> {
        let mut power = self.power();
        // Nothing to read if another event has woken us.
        let _ = power.timer.wait();
        let (Some(memory), Some((head, request))) = (power.memory.clone(), power.slow.take())
        else {
            return Ok(());
        };
        let mut state = vring.get_mut();
        if power.on {
            self.finish(&mut power, &mut state, &memory.memory(), (head, &request, true))?;
        }
        signal(&state)
    }

    /// Carries a request out and answers it, as far as the power lasts.
    fn finish(
        &self,
        power: &mut Power,
        state: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
        (head, request, parsed): (u16, &Request, bool),
    ) -> Result<(), QueueError> {
        let cut = power.cut.as_mut();
        let flushing = power.slow.is_some();
        let cut = cut.and_then(|cut| cut.is_due(request, flushing).then_some(*cut));
        power.on = cut.is_none();
        if cut.is_some_and(|cut| cut.last == Last::Flush && request.kind() == Kind::Flush) {
            return Ok(());
        }
        let (status, len) =
            if parsed { self.carry_out(request, memory) } else { (VIRTIO_BLK_S_IOERR, 0) };
        let answered = cut.is_none_or(|cut| cut.answered);
        if let Some(address) = request.status().filter(|_| answered) {
            // The constants are small, and generated as 32 bits wide.
            let status = u8::try_from(status).unwrap_or(u8::MAX);
            memory.write_obj(status, address).map_err(QueueError::GuestMemory)?;
            state.add_used(head, len + 1)?;
        }
        Ok(())
    }

    fn carry_out(&self, request: &Request, memory: &GuestMemoryMmap) -> (u32, u32) {
        let mut written = 0;
        let outcome = match request.kind() {
            Kind::Read => self.read(request, memory).inspect(|&len| written = len).map(drop),
            Kind::Write => self.write(request, memory),
            Kind::Flush if self.flushes == Flushes::Lies => Ok(()),
            Kind::Flush => self.disk.flush(),
            Kind::GetId => get_id(request, memory).inspect(|&len| written = len).map(drop),
            Kind::Unsupported => return (VIRTIO_BLK_S_UNSUPP, 0),
        };
        (outcome.map_or(VIRTIO_BLK_S_IOERR, |()| VIRTIO_BLK_S_OK), written)
    }

    fn read(&self, request: &Request, memory: &GuestMemoryMmap) -> io::Result<u32> {
        let mut bytes = buffer(request);
        self.disk.read(request.sector, &mut bytes)?;
        scatter(request, memory, &bytes)
    }

    fn write(&self, request: &Request, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut bytes = buffer(request);
        let mut rest = &mut bytes[..];
        for segment in &request.data {
            let (now, later) = rest.split_at_mut(segment.len);
            memory.read_slice(now, segment.address).map_err(io::Error::other)?;
            rest = later;
        }
        self.disk.write(request.sector, &bytes)
    }
}

/// Without `EVENT_IDX`: a notification too many does no harm.
fn signal(state: &VringState<Memory>) -> Result<(), QueueError> {
    state.signal_used_queue().map_err(|_| QueueError::QueueNotReady)
}

/// Its length is bounded by the parser.
fn buffer(request: &Request) -> Vec<u8> {
    vec![0; request.data.iter().map(|segment| segment.len).sum()]
}

/// Copies as much as the request has room for; how much that was.
fn scatter(request: &Request, memory: &GuestMemoryMmap, bytes: &[u8]) -> io::Result<u32> {
    let mut rest = bytes;
    for segment in &request.data {
        let (now, later) = rest.split_at(segment.len.min(rest.len()));
        memory.write_slice(now, segment.address).map_err(io::Error::other)?;
        rest = later;
    }
    u32::try_from(bytes.len() - rest.len()).map_err(io::Error::other)
}

fn get_id(request: &Request, memory: &GuestMemoryMmap) -> io::Result<u32> {
    let mut id = [0; 20];
    id[..SERIAL.len()].copy_from_slice(SERIAL);
    scatter(request, memory, &id)
}
