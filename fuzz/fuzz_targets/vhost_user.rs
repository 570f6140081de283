//! Front ends of bad faith, each with a connection to a backend in this process: see `ring_simulation::conversation`. Each comes to its
//! end, leaves nothing open, and the next honest one is served.
#![no_main]

#[path = "../../vhost/tests/common/disk.rs"]
#[allow(dead_code)]
mod disk;

use disk::{Disk, open};
use libfuzzer_sys::fuzz_target;
use ring_simulation::conversation::Conversation;
use ring_simulation::front_end::FrontEnd;
use shared_block_ring::Stop;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::format::Side;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use vhost_device_blockring::backend::Backend;
use vhost_device_blockring::connections::Connections;
use vhost_device_blockring::driver::Driver;
use vhost_device_blockring::fault::Faults;
use vhost_device_blockring::flusher::Flusher;
use vhost_device_blockring::polling::Polling;
use vhost_device_blockring::worker::Worker;

/// Of a read; a front end may wait no longer than libFuzzer does.
const HOLD: Duration = Duration::from_millis(1);

/// A processor for a thread that was woken, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// After so many others one honest front end: it takes as long as all of them. After the first, too, so that a single input is tried with it.
const HONEST: u32 = 8;

static TALKS: AtomicU32 = AtomicU32::new(0);

struct Scene {
    address: SocketAddr,
    /// One more connection is to be served.
    next: Sender<()>,
    /// It is over, and nothing of it left.
    over: Mutex<Receiver<()>>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(Scene::new);

impl Scene {
    fn new() -> Self {
        let name = format!("ring-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listening = UnixListener::bind_addr(&address).expect("a socket");
        let disk = Disk::new(Side::Producer);
        let flusher = Flusher::start(open(&disk.path)).expect("a thread");
        let event = new_event().expect("an event");
        let bell =
            Bell::new(&new_page().expect("a page"), event, Sleeper::Backend).expect("a bell");
        let counters = Arc::clone(&disk.counters);
        let polling = Polling::For(Duration::ZERO);
        let worker = Worker::new(disk.executor, counters, flusher, bell, HOLD, polling);
        let backend = Backend::new(worker, disk.geometry, false, true).expect("an event");
        let driver = Driver::start(Arc::new(backend), None).expect("a thread");
        // Nobody cuts the ring's file: all that is lost is a front end's.
        let faults = Faults::catch(&(0..0)).expect("a handler");
        let connections = Connections::new(
            driver,
            listening.into(),
            Stop::on_signal().expect("signals"),
            faults,
            disk.counters,
            "ring".to_owned(),
        );
        let (next, turns) = channel();
        let (done, over) = channel();
        std::thread::spawn(move || {
            for () in turns {
                // How it has ended is the front end's affair.
                let _ = connections.serve_one();
                done.send(()).expect("somebody to tell");
            }
        });
        let scene = Self { address, next, over: Mutex::new(over) };
        // Whatever is made when it is first needed.
        scene.serve(FrontEnd::works);
        scene
    }

    /// One front end, from its arrival to its end.
    fn serve(&self, talk: impl FnOnce(FrontEnd)) {
        let stream = UnixStream::connect_addr(&self.address).expect("a backend");
        self.next.send(()).expect("a backend");
        talk(FrontEnd::over(stream));
        self.over.lock().expect("one thread").recv().expect("a backend");
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fuzz_target!(|conversation: Conversation| {
    let scene = &*SCENE;
    let before = open_descriptors();
    scene.serve(|front_end| conversation.lead(front_end));
    // The queue's thread lets go of what it slept on when it wakes up, perhaps only now of the conversation's before.
    let start = Instant::now();
    while open_descriptors() > before {
        assert!(start.elapsed() < SOON, "{} descriptors, not {before}", open_descriptors());
        std::thread::yield_now();
    }
    if TALKS.fetch_add(1, Relaxed).is_multiple_of(HONEST) {
        scene.serve(FrontEnd::works);
    }
});
