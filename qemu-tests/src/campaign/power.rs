//! A disk whose power can fail: requests, and the simulated medium behind them.
//!
//! Answered requests are in the disk's cache or on its medium; after the cut nothing is answered,
//! and nothing is carried out.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring_simulation::Disk;
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::request::{Kind, Request};
use vhost_device_blockring::data_path::shared_queue::Memory;
use vhost_user_backend::{VringMutex, VringState, VringT as _};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_queue::{Error as QueueError, QueueOwnedT as _};
use vm_memory::{Bytes as _, GuestAddressSpace as _};
use vmm_sys_util::timerfd::TimerFd;

use super::cut::{Cut, Loss};
use crate::load::Random;

/// Serial number of the disk.
const SERIAL: &[u8] = b"ring";

/// A flush may take as long as a real one. Meanwhile the other end of the ring goes on, over what
/// is not durable.
const SLOW_FLUSH_US: u64 = 3000;

/// Whether a flush makes anything durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushes {
    /// A flush makes everything durable.
    Honest,
    /// A flush is answered, and makes nothing durable: for a campaign that has to fail.
    Lies,
}

/// A disk with a power supply.
pub(super) struct PoweredDisk {
    disk: Disk,
    flushes: Flushes,
    power: Mutex<Power>,
}

/// State that lives as long as the power is on.
pub(super) struct Power {
    on: bool,
    cut: Option<Cut>,
    pub memory: Option<Memory>,
    request: Request,
    /// A slow flush, and the head of its chain.
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
        // A panic fails the test anyway.
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches the power on.
    pub fn switch_on(&self, seed: u64) -> io::Result<()> {
        *self.power() = Power::new(seed)?;
        Ok(())
    }

    /// Lets the power fail.
    pub fn cut(&self, cut: Cut) {
        self.power().cut = Some(cut);
    }

    /// Returns whether the power has failed.
    pub fn is_off(&self) -> bool {
        !self.power().on
    }

    /// Has some unflushed writes lost. Called when QEMU is gone.
    pub fn lose(&self, seed: u64) {
        let mut loss = Loss::new(self.power().cut, Random::new(seed));
        self.disk.crash(|sector, versions| loss.choose(sector, versions));
    }

    /// Carries out what is in the available ring, in its order.
    pub fn drain(&self, vring: &VringMutex<Memory>) -> Result<(), QueueError> {
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
            // A chain that is no request is answered with an error.
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

    /// Ends a slow flush.
    pub fn finish_flush(&self, vring: &VringMutex<Memory>) -> Result<(), QueueError> {
        let mut power = self.power();
        // There is nothing to read if another event has woken the thread.
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
        memory: &GuestMemory,
        (head, request, parsed): (u16, &Request, bool),
    ) -> Result<(), QueueError> {
        let pending = |sector| self.disk.choices().iter().any(|&(dirty, _)| dirty == sector);
        let cut = power.cut.as_mut().and_then(|cut| cut.is_due(request, pending).then_some(*cut));
        power.on = cut.is_none();
        if request.kind() == Kind::Flush && cut.is_some_and(Cut::forestalls_a_flush) {
            return Ok(());
        }
        let (status, len) =
            if parsed { self.carry_out(request, memory) } else { (VIRTIO_BLK_S_IOERR, 0) };
        let answered = cut.is_none_or(Cut::is_answered);
        if let Some(address) = request.status().filter(|_| answered) {
            // The constants are small, and generated as 32 bits wide.
            let status = u8::try_from(status).unwrap_or(u8::MAX);
            memory.write_obj(status, address).map_err(QueueError::GuestMemory)?;
            state.add_used(head, len + 1)?;
        }
        Ok(())
    }

    fn carry_out(&self, request: &Request, memory: &GuestMemory) -> (u32, u32) {
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

    fn read(&self, request: &Request, memory: &GuestMemory) -> io::Result<u32> {
        let mut bytes = buffer(request);
        self.disk.read(request.sector, &mut bytes)?;
        scatter(request, memory, &bytes)
    }

    fn write(&self, request: &Request, memory: &GuestMemory) -> io::Result<()> {
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

/// The parser bounds its length.
fn buffer(request: &Request) -> Vec<u8> {
    vec![0; request.data.iter().map(|segment| segment.len).sum()]
}

/// Copies as much as the request has room for; how much that was.
fn scatter(request: &Request, memory: &GuestMemory, bytes: &[u8]) -> io::Result<u32> {
    let mut rest = bytes;
    for segment in &request.data {
        let (now, later) = rest.split_at(segment.len.min(rest.len()));
        memory.write_slice(now, segment.address).map_err(io::Error::other)?;
        rest = later;
    }
    u32::try_from(bytes.len() - rest.len()).map_err(io::Error::other)
}

fn get_id(request: &Request, memory: &GuestMemory) -> io::Result<u32> {
    let mut id = [0; 20];
    id[..SERIAL.len()].copy_from_slice(SERIAL);
    scatter(request, memory, &id)
}
