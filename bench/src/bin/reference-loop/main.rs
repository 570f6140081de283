//! `reference-loop SOCKET FILE`: a vhost-user-blk backend that does nothing but the request. It
//! shows how much of the machine our backend uses (`ring-bench --reference`).
//!
//! It walks the chain, copies, and writes status and used ring, for one queue and one front end. It
//! knows no ring, no guard and no counters, and trusts its front end.
#![allow(
    clippy::cast_possible_truncation,
    reason = "descriptors are packed words, and sizes 64 bits"
)]
#![allow(clippy::inline_always, reason = "a request takes no call")]

mod queue;

use queue::{Memory, Piece, Rings};
use std::error::Error;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::{FileOffset, GuestAddressSpace, GuestMemoryAtomic, MmapRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the bit that says that the protocol's own features can be
/// negotiated.
const PROTOCOL_FEATURES: u32 = 30;

/// Time without a request after which the loop stops looking for one.
const POLL: Duration = Duration::from_millis(1);

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

type Vring = VringMutex<GuestMemoryAtomic<Memory>>;

/// The device: a file, mapped.
struct Disk {
    file: MmapRegion,
    bytes: u64,
    memory: Mutex<GuestMemoryAtomic<Memory>>,
}

impl VhostUserBackend for Disk {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        [VIRTIO_F_VERSION_1, VIRTIO_BLK_F_FLUSH, VIRTIO_RING_F_EVENT_IDX, PROTOCOL_FEATURES]
            .iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = [0; 60];
        config[..8].copy_from_slice(&(self.bytes / 512).to_le_bytes());
        let (start, size) = (offset as usize, size as usize);
        config.get(start..start + size).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        *self.memory.lock().map_err(|_| io::ErrorKind::Other)? = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.lock().map_err(|_| io::ErrorKind::Other)?.memory();
        // The lock is kept while requests come: the front end changes nothing meanwhile.
        self.serve(&mut vrings[0].get_mut(), &memory).ok_or(io::ErrorKind::InvalidData.into())
    }
}

impl Disk {
    /// Carries out requests until none has come for some time. Returns `None` where the driver
    /// breaks the rules.
    fn serve(&self, vring: &mut VringState<GuestMemoryAtomic<Memory>>, mem: &Memory) -> Option<()> {
        let mut rings = Rings::open(vring.get_queue(), mem)?;
        let disk: Piece<'_> = vm_memory::VolatileMemory::as_volatile_slice(&self.file);
        loop {
            let mut last = Instant::now();
            loop {
                let mut looks = 0;
                while rings.serve(&disk)? == 0 {
                    looks += 1;
                    if looks == LOOKS {
                        break;
                    }
                    std::hint::spin_loop();
                }
                if looks < LOOKS {
                    if rings.wants_interrupt()? {
                        vring.signal_used_queue().ok()?;
                    }
                    last = Instant::now();
                } else if last.elapsed() >= POLL {
                    break;
                }
            }
            if rings.ask_for_kick()? {
                break;
            }
        }
        let (next, used) = rings.indices();
        let queue = vring.get_queue_mut();
        queue.set_next_avail(next);
        queue.set_next_used(used);
        Some(())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [socket, file] = &arguments[..] else {
        eprintln!("usage: reference-loop SOCKET FILE");
        return ExitCode::from(2);
    };
    match run(socket, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reference-loop: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves one front end after the other.
fn run(socket: &OsStr, file: &OsStr) -> Result<(), Box<dyn Error>> {
    let file = File::options().read(true).write(true).open(file)?;
    let bytes = file.metadata()?.len();
    let size = usize::try_from(bytes)?;
    let file = MmapRegion::from_file(FileOffset::new(file, 0), size)?;
    let memory = GuestMemoryAtomic::new(Memory::new());
    let disk = Arc::new(Disk { file, bytes, memory: Mutex::new(memory) });
    let mut listener = Listener::new(socket, true)?;
    loop {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let mut daemon = VhostUserDaemon::new("loop".into(), Arc::clone(&disk), memory)
            .map_err(|error| error.to_string())?;
        daemon.start(&mut listener).map_err(|error| error.to_string())?;
        // However the connection ends, the next one is served.
        let _ = daemon.wait();
    }
}
