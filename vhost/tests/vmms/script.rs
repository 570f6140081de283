//! Scripts of messages, and the front end that plays them.

use super::common::daemon::Scene;
use super::guest::Guest;
use ring_test_support::front_end::SOCKET;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// The bit by which protocol features are negotiated (vhost-user, "Feature bits").
pub const PROTOCOL: u64 = 1 << 30;

/// What every front end here and Linux's driver take if it is offered.
pub const COMMON: u64 = PROTOCOL | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Further features of a disk that most take.
pub const DISK: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_CONFIG_WCE;

/// One message, or a group of them.
#[derive(Debug, Clone, Copy)]
pub enum Message {
    Owner,
    GetFeatures,
    /// The features that the guest's driver has taken.
    SetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    QueueNum,
    MemSlots,
    /// The configuration space: offset and bytes.
    Config(u32, u32),
    /// All of the guest's memory in one message.
    Memory,
    /// The guest's memory, region by region, unless this connection has it.
    AddMemory,
    /// The in-flight region, asked for once in a guest's life, if that was negotiated.
    Inflight,
    /// The messages for each queue in turn.
    Each(&'static [Message]),
    Num,
    Address,
    Base,
    Call,
    /// An interrupt event that nobody listens to: QEMU sets it before the guest's.
    MaskedCall,
    Err,
    Kick,
    Enable(bool),
    GetBase,
}

/// Where a front end has the queue start after the backend was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Used,
    Available,
    /// The used index if the driver has taken `IN_ORDER` and there is no in-flight region.
    InOrder,
}

/// Messages that a front end wants answered which have no answer of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    All,
    Enable,
    None,
}

/// A virtual machine monitor's front end.
pub struct Vmm {
    pub name: &'static str,
    /// The features that it and the guest's driver take if they are offered.
    pub features: u64,
    /// The protocol features that it takes if they are offered.
    pub protocol: VhostUserProtocolFeatures,
    /// The messages that it asks an answer to, besides those about memory.
    pub acknowledged: Acknowledged,
    /// The queues that it uses, if the backend has as many.
    pub queues: usize,
    pub queue_size: u16,
    /// The size of queues that it names when it asks for an in-flight region.
    pub inflight_size: u16,
    pub connect: &'static [Message],
    /// When the guest's driver is ready.
    pub start: &'static [Message],
    /// When the guest resets the device, if that can be.
    pub stop: Option<&'static [Message]>,
    /// When the guest is paused and goes on.
    pub pause: Option<(&'static [Message], &'static [Message])>,
    /// When the backend has come back, in front of `start`; none if it does not connect again.
    pub reconnect: Option<&'static [Message]>,
    pub base: Base,
}

impl Vmm {
    /// Number of messages that it sends before `queues` queues run again.
    pub fn messages(&self, queues: usize) -> usize {
        let reconnect = self.reconnect.unwrap_or(self.connect);
        reconnect.iter().chain(self.start).map(|message| message.count(queues)).sum()
    }
}

impl Message {
    fn count(&self, queues: usize) -> usize {
        if let Self::Each(messages) = self { messages.len() * queues } else { 1 }
    }
}

/// The most queues that a front end of these sets up.
const QUEUES: u64 = 64;

/// A connection on which messages are played.
pub struct Connection<'a> {
    wire: Frontend,
    vmm: &'a Vmm,
    offered: u64,
    protocol: VhostUserProtocolFeatures,
    has_memory: bool,
    /// Messages that are still sent: the ones behind are left out.
    left: usize,
}

impl<'a> Connection<'a> {
    pub fn open(scene: &Scene, vmm: &'a Vmm) -> Self {
        let stream = UnixStream::connect(scene.path(SOCKET)).unwrap();
        let wire = Frontend::from_stream(stream, QUEUES);
        wire.set_hdr_flags(VhostUserHeaderFlag::empty());
        Self { wire, vmm, offered: 0, protocol: vmm.protocol, has_memory: false, left: usize::MAX }
    }

    /// Sends only that many messages.
    pub fn limited(self, left: usize) -> Self {
        Self { left, ..self }
    }

    pub fn play(&mut self, messages: &[Message], guest: &mut Guest) -> vhost::Result<()> {
        for message in messages {
            match message {
                Message::Each(messages) => {
                    for queue in 0..guest.queues.len() {
                        for message in *messages {
                            self.send_within_limit(*message, queue, guest)?;
                        }
                    }
                }
                message => self.send_within_limit(*message, 0, guest)?,
            }
        }
        Ok(())
    }

    fn send_within_limit(
        &mut self,
        message: Message,
        queue: usize,
        guest: &mut Guest,
    ) -> vhost::Result<()> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(()) };
        self.left = left;
        self.send(message, queue, guest)
    }

    fn features(&self) -> u64 {
        self.offered & self.vmm.features
    }

    fn tracks_inflight(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn send(&mut self, message: Message, queue: usize, guest: &mut Guest) -> vhost::Result<()> {
        match message {
            Message::Owner => self.wire.set_owner(),
            Message::GetFeatures => {
                self.offered = self.wire.get_features()?;
                Ok(())
            }
            Message::SetFeatures => self.wire.set_features(self.features()),
            Message::GetProtocolFeatures => {
                self.protocol = self.vmm.protocol & self.wire.get_protocol_features()?;
                guest.protocol = self.protocol;
                Ok(())
            }
            Message::SetProtocolFeatures => {
                // A front end that does not ask again takes what it took the first time.
                self.protocol = guest.protocol;
                self.wire.set_protocol_features(self.protocol)?;
                self.acknowledge(self.acknowledges_all());
                Ok(())
            }
            Message::QueueNum => {
                let most = usize::try_from(self.wire.get_queue_num()?).unwrap();
                assert!(most >= 1);
                guest.queues.truncate(most);
                Ok(())
            }
            Message::MemSlots => {
                assert!(self.wire.get_max_mem_slots()? >= 8);
                Ok(())
            }
            Message::Config(offset, len) => {
                let buffer = vec![0; len as usize];
                let flags = VhostUserConfigFlags::WRITABLE;
                let (_, space) = self.wire.get_config(offset, len, flags, &buffer)?;
                assert_eq!(space.len(), buffer.len());
                Ok(())
            }
            Message::Memory => {
                self.acknowledge(true);
                let sent = self.wire.set_mem_table(&guest.regions());
                self.acknowledge(self.acknowledges_all());
                sent.map(drop)
            }
            Message::AddMemory => {
                if std::mem::replace(&mut self.has_memory, true) {
                    return Ok(());
                }
                self.acknowledge(true);
                let added = guest
                    .regions()
                    .iter()
                    .try_for_each(|region| self.wire.add_mem_region(region).map(drop));
                self.acknowledge(self.acknowledges_all());
                added
            }
            Message::Inflight if self.tracks_inflight() => self.track_inflight(guest),
            Message::Inflight => Ok(()),
            Message::Num => self.wire.set_vring_num(queue, guest.queues[queue].rings.size),
            Message::Address => self.wire.set_vring_addr(queue, &self.addresses(queue, guest)),
            Message::Base => self.wire.set_vring_base(queue, self.base(queue, guest)),
            Message::Call => self.wire.set_vring_call(queue, &guest.queues[queue].call),
            Message::MaskedCall => self.wire.set_vring_call(queue, &guest.queues[queue].masked),
            Message::Err => self.wire.set_vring_err(queue, &guest.queues[queue].masked),
            Message::Kick => self.wire.set_vring_kick(queue, &guest.queues[queue].kick),
            Message::Enable(enable) => {
                self.acknowledge(self.vmm.acknowledged != Acknowledged::None);
                let enabled = self.wire.set_vring_enable(queue, enable);
                self.acknowledge(self.acknowledges_all());
                enabled
            }
            Message::GetBase => {
                let base = u16::try_from(self.wire.get_vring_base(queue)?).unwrap();
                assert_eq!(base, guest.used_index(queue), "the base when the queue was stopped");
                guest.queues[queue].base = base;
                Ok(())
            }
            Message::Each(_) => unreachable!("played one by one"),
        }
    }

    fn acknowledges_all(&self) -> bool {
        self.vmm.acknowledged == Acknowledged::All
    }

    fn acknowledge(&self, acknowledged: bool) {
        let can = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let flag = VhostUserHeaderFlag::NEED_REPLY;
        self.wire.set_hdr_flags(if acknowledged && can {
            flag
        } else {
            VhostUserHeaderFlag::empty()
        });
    }

    fn base(&self, queue: usize, guest: &Guest) -> u16 {
        let in_order = self.features() & IN_ORDER != 0 && !self.tracks_inflight();
        match guest.resumed {
            Some(Base::Used) => guest.used_index(queue),
            Some(Base::InOrder) if in_order => guest.used_index(queue),
            Some(_) => guest.queues[queue].available_index(),
            None => guest.queues[queue].base,
        }
    }

    fn addresses(&self, queue: usize, guest: &Guest) -> VringConfigData {
        let rings = guest.queues[queue].rings;
        VringConfigData {
            queue_max_size: self.vmm.queue_size,
            queue_size: rings.size,
            flags: 0,
            desc_table_addr: guest.user_address(rings.descriptors),
            used_ring_addr: guest.user_address(rings.used),
            avail_ring_addr: guest.user_address(rings.available),
            log_addr: None,
        }
    }

    fn track_inflight(&mut self, guest: &mut Guest) -> vhost::Result<()> {
        if guest.inflight.is_none() {
            let queues = u16::try_from(guest.queues.len()).unwrap();
            let asked = VhostUserInflight::new(0, 0, queues, self.vmm.inflight_size);
            guest.inflight = Some(self.wire.get_inflight_fd(&asked)?);
        }
        let (about, file) = guest.inflight.as_ref().unwrap();
        self.wire.set_inflight_fd(about, file.as_raw_fd())
    }
}

pub const IN_ORDER: u64 = 1 << virtio_bindings::bindings::virtio_config::VIRTIO_F_IN_ORDER;
