//! Hostile front ends, each with a connection to a backend in this process: see
//! `ring_test_support::conversation`. Each comes to its end, leaves nothing open, and the next
//! honest one is served.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring_test_support::conversation::Conversation;
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::front_end::FrontEnd;
use ring_test_support::messages::Messages;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::Side;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use vhost_device_blockring::data_path::fault;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::queue_thread::{QueueThread, SharedWorker};
use vhost_device_blockring::data_path::worker::Worker;
use vhost_device_blockring::front_end::backend::Backend;
use vhost_device_blockring::front_end::connection::{Connection, Served};

/// Hold time of a read: a front end may wait no longer than libFuzzer does.
const HOLD: Duration = Duration::from_millis(1);

/// Bound on the time until a woken thread runs, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Number of hostile front ends after which an honest one is served, which takes as long as all of
/// them. The first is followed by one, too, so that a single input is tried with it.
const HONEST: u32 = 8;

static TALKS: AtomicU32 = AtomicU32::new(0);

struct Scene {
    address: SocketAddr,
    /// Asks for one more connection to be served.
    next: Sender<()>,
    /// Reports that the connection is over.
    over: Mutex<Receiver<()>>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(Scene::new);

impl Scene {
    fn new() -> Self {
        let name = format!("ring-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listening = UnixListener::bind_addr(&address).expect("a socket");
        let disk = Disk::new(Side::Producer);
        let flusher =
            Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                .expect("an event");
        let event = new_event().expect("an event");
        let bell =
            Bell::new(&new_page().expect("a page"), event, Sleeper::Backend).expect("a bell");
        let counters = Arc::clone(&disk.counters);
        let polling = Polling::For(Duration::ZERO);
        let losses = disk.executor.losses().clone();
        let worker = Worker::new(disk.executor, counters, flusher, bell, HOLD, polling);
        let signaller = Arc::new(Signaller::new().expect("a context"));
        let worker = Arc::new(SharedWorker::new(worker).expect("an event"));
        let backend = Backend::new(Arc::clone(&worker), disk.geometry, false, true, signaller);
        let queue_thread = QueueThread::start(worker, None).expect("a thread");
        fault::catch().expect("a handler");
        let (backend, log) = (Arc::new(backend), Mutex::default());
        let served = Served { backend, losses, counters: disk.counters, scope: 0, log };
        let (next, turns) = channel();
        let (done, over) = channel();
        std::thread::spawn(move || {
            let _queue_thread = queue_thread;
            for () in turns {
                // Either end of a connection is fine.
                let listening = listening.try_clone().expect("a descriptor");
                let connection = Connection::new(new_event().expect("an event").into());
                let _ = connection.serve(&served, listening.into());
                done.send(()).expect("somebody to tell");
            }
        });
        let scene = Self { address, next, over: Mutex::new(over) };
        // The first front end has lazy state made.
        scene.serve(|stream| FrontEnd::over(stream, 0).works());
        scene
    }

    /// Serves one front end from its connection to its end.
    fn serve(&self, talk: impl FnOnce(UnixStream)) {
        let stream = UnixStream::connect_addr(&self.address).expect("a backend");
        self.next.send(()).expect("a backend");
        talk(stream);
        self.over.lock().expect("one thread").recv().expect("a backend");
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fuzz_target!(|conversation: Conversation| {
    let scene = &*SCENE;
    let before = open_descriptors();
    scene.serve(|stream| conversation.lead(Messages::over(stream)));
    // The queue's thread lets go of what it slept on when it wakes up, perhaps only now of the
    // conversation's before.
    let start = Instant::now();
    while open_descriptors() > before {
        assert!(start.elapsed() < SOON, "{} descriptors, not {before}", open_descriptors());
        std::thread::yield_now();
    }
    if TALKS.fetch_add(1, Relaxed).is_multiple_of(HONEST) {
        scene.serve(|stream| FrontEnd::over(stream, 0).works());
    }
});
