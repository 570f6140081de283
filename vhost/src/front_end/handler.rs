//! What a front end's messages change: its memory, its queues, and the device behind them.
//!
//! The library's own handler (`vhost-user-backend`) refuses the messages about in-flight regions,
//! and cannot be wrapped: it is private to its crate, between the socket and us. So this one takes
//! its place. The library's queues, and its reader of messages, are used as they are.

use crate::data_path::dirty::{Dirty, GuestMemory, Log, MAX_REGIONS};
use crate::data_path::shared_queue::{Memory, SharedQueue};
use crate::front_end::backend::Backend;
use crate::front_end::inflight::{self, Inflight};
use crate::front_end::tenant::Tenant;
use crate::front_end::vring::Vring;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRegionMmap};

/// What keeps a backend from mapping a guest's memory.
const HOW_TO_MAP: &str = "its file has to be that large and open for reading and writing; a limit on the backend's address space \
     (ulimit -v, LimitAS=) has to leave room for it";

/// One connection's handler.
pub struct Handler {
    tenant: Arc<Tenant>,
    memory: Memory,
    vrings: Vec<Vring>,
    regions: Vec<Shared>,
    owned: bool,
    features: u64,
    inflight: Option<Inflight>,
}

/// Where a region of memory lies for the front end and for the guest.
struct Shared {
    user: u64,
    guest: u64,
    len: u64,
}

impl Shared {
    fn of(region: &VhostUserMemoryRegion) -> Self {
        Self { user: region.user_addr, guest: region.guest_phys_addr, len: region.memory_size }
    }

    fn guest_address(&self, user: u64) -> Option<u64> {
        let offset = user.checked_sub(self.user).filter(|offset| *offset < self.len)?;
        self.guest.checked_add(offset)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<Dirty>> {
    let len = region.memory_size;
    let mapped = region.mmap_region(file).map_err(|error| {
        // The library's words for the handler's errors say nothing here.
        let Error::ReqHandlerError(why) = error else { return error };
        failed(format!("cannot map {len} bytes of the guest's memory: {why} ({HOW_TO_MAP})"))
    })?;
    GuestRegionMmap::new(mapped, GuestAddress(region.guest_phys_addr))
        .ok_or_else(|| Error::ReqHandlerError(io::ErrorKind::InvalidInput.into()))
}

/// The queues of a connection, in memory that it has yet to share.
pub struct Vrings {
    memory: Memory,
    vrings: Vec<Vring>,
}

impl Vrings {
    /// Makes stopped queues.
    ///
    /// # Errors
    ///
    /// The queues cannot be made.
    pub fn new(backend: &Backend) -> std::result::Result<Self, virtio_queue::Error> {
        let memory = Memory::new(GuestMemory::new());
        let (size, links) = (backend.max_queue_size(), backend.links());
        let new = |number| Vring::new(number, memory.clone(), size, links.clone());
        let vrings = (0..backend.num_queues()).map(new).collect::<std::result::Result<_, _>>()?;
        Ok(Self { memory, vrings })
    }

    /// The queues as the worker serves them.
    pub fn queues(&self) -> Vec<SharedQueue> {
        self.vrings.iter().map(|vring| vring.queue().clone()).collect()
    }
}

impl Handler {
    /// Makes the handler of a front end that has set up nothing yet.
    pub fn new(tenant: Arc<Tenant>, Vrings { memory, vrings }: Vrings) -> Self {
        let (regions, owned, features, inflight) = (Vec::new(), false, 0, None);
        Self { tenant, memory, vrings, regions, owned, features, inflight }
    }

    fn vring(&self, index: impl Into<u32>) -> Result<&Vring> {
        self.vrings.get(index.into() as usize).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, user: u64) -> Result<u64> {
        let mut found = self.regions.iter().filter_map(|region| region.guest_address(user));
        found.next().ok_or_else(|| failed("an address outside of the shared memory"))
    }

    /// Has the worker serve the queues of this connection. To be called before each message that
    /// concerns it: two front ends may be connected, and one is served.
    fn take_seat(&self) -> Result<()> {
        self.tenant.take_seat().map_err(Error::ReqHandlerError)
    }

    fn replace_memory(&self, memory: GuestMemory) -> Result<()> {
        self.take_seat()?;
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).replace(memory);
        self.tenant.update_memory(&self.memory).map_err(Error::ReqHandlerError)
    }

    /// Starts a queue that has got what it needs to start: an event for kicks.
    fn start(&self, index: u8) -> Result<()> {
        let vring = self.vring(index)?;
        let is_due = {
            let state = vring.state();
            !state.get_queue().ready() && state.get_kick().is_some()
        };
        if is_due {
            if vring.state().is_enabled() {
                self.take_over(index.into())?;
            }
            vring.set_ready(true);
        }
        Ok(())
    }

    /// Enables a queue. One that is ready runs from then on, in the seat of this connection.
    fn enable(&self, vring: &Vring) -> Result<()> {
        let is_ready = vring.state().get_queue().ready();
        if is_ready {
            self.take_seat()?;
        }
        vring.set_enabled(true);
        Ok(())
    }

    /// Looks at the in-flight region, if there is one, before a queue is served.
    fn take_over(&self, index: u32) -> Result<()> {
        let Some(inflight) = &self.inflight else { return Ok(()) };
        let (used, available, size) = {
            let state = self.vring(index)?.state();
            let queue = state.get_queue();
            let used = queue.used_idx(&*self.memory.memory(), Ordering::Acquire);
            // Rings that are not in memory are the worker's to find.
            let Ok(used) = used else { return Ok(()) };
            (used.0, queue.avail_ring(), queue.size())
        };
        let memory = self.memory.memory();
        let head = |entry: u16| {
            let at = available + 4 + 2 * u64::from(entry % size.max(1));
            memory.read_obj::<u16>(GuestAddress(at)).map(u16::from_le).map_err(io::Error::other)
        };
        inflight.resume(index as usize, used, head).map_err(Error::ReqHandlerError)
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(Error::InvalidOperation("already claimed"));
        }
        self.tenant.introduce();
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        (self.owned, self.features) = (false, 0);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.vrings.iter().for_each(|vring| vring.set_enabled(false));
        self.features = 0;
        self.tenant.reset_device();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.tenant.offered_features())
    }

    /// Without protocol features there is no message that enables a queue: all are (vhost-user,
    /// "Ring states").
    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.tenant.offered_features() != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.vrings.iter().try_for_each(|vring| self.enable(vring))?;
        }
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.vrings.iter().for_each(|vring| vring.set_event_idx(event_idx));
        self.tenant.acked_features(features);
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = table.iter().zip(files).map(|(region, file)| map(region, file));
        let regions = regions.collect::<Result<Vec<_>>>()?;
        let memory = GuestMemory::from_regions(regions).map_err(failed)?;
        self.replace_memory(memory)?;
        self.regions = table.iter().map(Shared::of).collect();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let vring = self.vring(index)?;
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if size == 0 || size > self.tenant.backend().max_queue_size() {
            return Err(Error::InvalidParam);
        }
        vring.set_size(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let vring = self.vring(index)?;
        if self.regions.is_empty() {
            return Err(Error::InvalidParam);
        }
        let [descriptors, available, used] =
            [descriptors, available, used].map(|user| self.guest_address(user));
        vring.set_addresses(descriptors?, available?, used?).map_err(|_| Error::InvalidParam)?;
        // A queue that starts goes on at this index, which it then reads again.
        vring.find_used_index().map_err(|_| Error::BackendInternalError)
    }

    #[allow(clippy::cast_possible_truncation)] // an index of a split ring has 16 bits
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.vring(index)?.set_base(base as u16);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let vring = self.vring(index)?;
        vring.set_ready(false);
        self.tenant.stop_vring(index);
        let base = vring.base();
        vring.set_kick(None);
        vring.set_call(None);
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.take_seat()?;
        self.vring(index)?.set_kick(file);
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(index)?.set_call(file);
        self.start(index)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(index)?.set_err(file);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.tenant.protocol_features())
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        if !enable {
            vring.set_enabled(false);
            return Ok(());
        }
        let begins = {
            let state = vring.state();
            !state.is_enabled() && state.get_queue().ready()
        };
        if begins {
            self.take_over(index)?;
        }
        self.enable(vring)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.tenant.get_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.tenant.set_config(offset, bytes).map_err(Error::ReqHandlerError)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is no GPU"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("there are no shared objects"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if usize::from(asked.num_queues) > self.vrings.len() {
            return Err(Error::InvalidParam);
        }
        inflight::make(asked.num_queues, asked.queue_size).map_err(Error::ReqHandlerError)
    }

    fn set_inflight_fd(&mut self, about: &VhostUserInflight, file: File) -> Result<()> {
        let inflight = Inflight::new(about, file, self.vrings.len());
        self.inflight = Some(inflight.map_err(Error::ReqHandlerError)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let added = Arc::new(map(region, file)?);
        let memory = self.memory.memory().insert_region(added).map_err(failed)?;
        self.replace_memory(memory)?;
        self.regions.push(Shared::of(region));
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let start = GuestAddress(region.guest_phys_addr);
        let memory = self.memory.memory();
        let (left, _) = memory.remove_region(start, region.memory_size).map_err(failed)?;
        drop(memory);
        self.replace_memory(left)?;
        self.regions.retain(|shared| shared.guest != region.guest_phys_addr);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("the device has no state of its own"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("the device has no state of its own"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("there is no shared memory of the device's"))
    }

    fn set_log_base(&mut self, about: &VhostUserLog, file: File) -> Result<()> {
        // Its pages are touched by the queue's thread alone, whose waits the watchdog bounds.
        let log = Log::new(file, about.mmap_offset, about.mmap_size);
        let log = log.map_err(Error::ReqHandlerError)?;
        self.tenant.begin_log(&self.memory, log).map_err(Error::ReqHandlerError)
    }
}
