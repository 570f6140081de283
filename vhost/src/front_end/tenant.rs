//! One front end as the device knows it: what it has set, and its right to the worker.

use crate::data_path::dirty::{DirtyLog, Log, MAX_REGIONS};
use crate::data_path::empty_kicks::HOW_TO_SHARE;
use crate::data_path::shared_queue::{Memory, QUEUE_SIZE, SharedQueue};
use crate::data_path::worker::Worker;
use crate::front_end::backend::{Backend, WRITEBACK_AT};
use crate::front_end::backing;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend as _};

/// Why a front end fails that has not noticed that the connection is a new one.
const EARLIER_CONNECTION: &str = "it goes on with what it set up on an earlier connection: while the guest was paused, or before its driver used the \
                                  disk, the backend was replaced, or another front end has gone on with the guest (QEMU 7.2 cannot do that: end this \
                                  QEMU and start it again; replace a backend only while its guest runs)";

/// A front end that is connected. Its messages are answered on its connection's thread.
pub struct Tenant {
    backend: Arc<Backend>,
    stream: UnixStream,
    set: Mutex<Set>,
}

/// What a front end has set.
struct Set {
    features: u64,
    writeback: bool,
    /// It has sent a message of its handshake.
    heard: bool,
    /// It has asked for the disk's properties, or set something.
    established: bool,
    /// It has said that it owns the device, or asked for the protocol's features, which a front end
    /// does first on a connection that it knows to be new.
    introduced: bool,
    /// It shares memory of the guest.
    has_memory: bool,
    /// The log of the pages of the guest's memory that the device writes to.
    log: DirtyLog,
    queues: Vec<SharedQueue>,
    /// Nothing of it is answered any more.
    closed: bool,
}

impl Set {
    /// Whether writes may be answered before they are durable. Virtio 1.3, 5.2.6.2: `writeback`
    /// counts if it was negotiated, else the cache is write-back if FLUSH was.
    fn is_write_back(&self) -> bool {
        let has = |bit: u32| self.features & (1 << bit) != 0;
        if has(VIRTIO_BLK_F_CONFIG_WCE) { self.writeback } else { has(VIRTIO_BLK_F_FLUSH) }
    }
}

impl Tenant {
    /// Makes the front end at the other end of `stream`, with the queues that it can set up.
    pub fn new(backend: Arc<Backend>, stream: UnixStream, queues: Vec<SharedQueue>) -> Self {
        let set = Set {
            features: backend.seat().features(),
            writeback: true,
            heard: false,
            established: false,
            introduced: false,
            has_memory: false,
            log: DirtyLog::default(),
            queues,
            closed: false,
        };
        Self { backend, stream, set: Mutex::new(set) }
    }

    /// The device.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Its connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its queues.
    pub(super) fn queues(&self) -> Vec<SharedQueue> {
        self.set().queues.clone()
    }

    /// The features that it has negotiated.
    pub(super) fn features(&self) -> u64 {
        self.set().features
    }

    /// Whether each of its writes has to be durable before it is answered.
    pub(super) fn writes_through(&self) -> bool {
        !self.set().is_write_back()
    }

    /// Whether it has sent a message.
    pub fn heard(&self) -> bool {
        let set = self.set();
        set.heard || set.introduced || set.established
    }

    /// Whether it has got beyond the start of its handshake.
    pub fn established(&self) -> bool {
        self.set().established
    }

    /// Whether the worker serves its queues, and has met memory that it has taken back.
    pub fn has_lost_memory(&self) -> bool {
        self.backend.seat().has_lost_memory(self)
    }

    /// Whether it was let go, or has hung up.
    pub fn is_closed(&self) -> bool {
        self.set().closed
    }

    /// Answers nothing more: it has hung up.
    pub(super) fn hang_up(&self) {
        self.set().closed = true;
    }

    /// Lets it go, since its guest goes on with another one.
    pub(super) fn supersede(&self) {
        self.hang_up();
        // Nothing to shut down if the front end has done so.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Answers nothing any more: the connection is about to be ended by us.
    pub fn close(&self) {
        self.hang_up();
        let seat = self.backend.seat();
        seat.change(self, Worker::close);
        seat.tell();
    }

    /// Forgets it: it is gone.
    pub fn depart(&self) {
        self.backend.seat().leave(self);
        self.set().queues.clear();
    }

    /// Returns why the library has ended the connection with this error, in words of the VMM's
    /// command line, where they fit. To be called while the front end is connected.
    pub fn misfit(&self, error: &Error) -> Option<String> {
        let set = self.set();
        match error {
            Error::InvalidParam => Some(set.refused_message()),
            Error::InactiveFeature(_) | Error::InactiveOperation(_) if !set.introduced => {
                Some(EARLIER_CONNECTION.to_owned())
            }
            _ => None,
        }
    }
}

impl Set {
    /// Returns why a message was refused.
    fn refused_message(&self) -> String {
        match self.queues.iter().any(SharedQueue::has_size) {
            true if !self.has_memory && !self.introduced => EARLIER_CONNECTION.to_owned(),
            true if !self.has_memory => {
                format!("it shares none of the guest's memory ({HOW_TO_SHARE})")
            }
            _ => {
                let most = self.queues.len();
                format!(
                    "it asks for what this disk does not offer: a feature, more than {most} queues (QEMU: num-queues={most} or less), or a queue of \
                     more than {QUEUE_SIZE} descriptors"
                )
            }
        }
    }
}

/// The answers to messages, and their effects on the device.
impl Tenant {
    /// Has the worker serve its queues. Waits while those of another front end are served.
    ///
    /// # Errors
    ///
    /// The connection is over, or ends before.
    pub fn take_seat(self: &Arc<Self>) -> io::Result<()> {
        self.backend.seat().take(self)
    }

    /// The features that are offered.
    pub fn offered_features(&self) -> u64 {
        self.set().heard = true;
        self.backend.features()
    }

    /// The protocol's features that are offered.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.introduce();
        self.backend.protocol_features()
    }

    /// Notes that the front end knows this connection to be a new one.
    pub fn introduce(&self) {
        self.set().introduced = true;
    }

    /// Takes note of the features that were negotiated.
    pub fn acked_features(&self, features: u64) {
        let mut set = self.set();
        set.features = features;
        set.established = true;
        drop(set);
        self.apply_cache_mode();
    }

    /// Tells the worker whether each write is durable before it is answered.
    fn apply_cache_mode(&self) {
        let through = self.writes_through();
        self.backend.seat().change(self, |worker| worker.set_write_through(through));
    }

    /// Returns a part of the configuration space; nothing if it does not lie there.
    pub fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut set = self.set();
        set.established = true;
        let space = self.backend.config(set.writeback);
        drop(set);
        let start = offset as usize;
        // An answer of another length than asked for tells the front end of an error.
        start
            .checked_add(size as usize)
            .and_then(|end| space.get(start..end))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    /// Sets a part of the configuration space.
    ///
    /// # Errors
    ///
    /// It cannot be set.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if offset as usize != WRITEBACK_AT || bytes.len() != 1 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the write-back flag can be set",
            ));
        }
        self.set().writeback = bytes[0] != 0;
        self.apply_cache_mode();
        Ok(())
    }

    /// Memory that is shared no longer is unmapped before this returns, when the turn that may be
    /// using it is over. New memory is added to the log before the worker can write to it.
    ///
    /// # Errors
    ///
    /// The memory cannot be used, or the log of dirty pages does not cover it.
    pub fn update_memory(self: &Arc<Self>, memory: &Memory) -> io::Result<()> {
        self.set().heard = true;
        let regions = memory.memory().num_regions();
        if regions > MAX_REGIONS {
            let text =
                format!("{regions} regions of memory are more than the {MAX_REGIONS} offered");
            return Err(io::Error::other(text));
        }
        backing::check(&memory.memory())?;
        let mut set = self.set();
        set.log.cover(&memory.memory(), self.backend.losses())?;
        set.has_memory = regions > 0;
        drop(set);
        self.backend.seat().change(self, |worker| worker.set_memory(memory));
        Ok(())
    }

    /// Marks the pages that are written to from now on in `log`.
    ///
    /// # Errors
    ///
    /// The log does not cover all of the memory.
    pub fn begin_log(&self, memory: &Memory, log: Log) -> io::Result<()> {
        self.set().log.begin(&memory.memory(), log, self.backend.losses())
    }

    /// Stops a queue, at `GET_VRING_BASE`.
    pub fn stop_vring(&self, queue: u32) {
        self.backend.seat().stop(self, |worker| worker.stop(queue as usize));
    }

    /// Stops the device.
    pub fn reset_device(&self) {
        self.backend.seat().stop(self, Worker::stop_all);
    }
}
