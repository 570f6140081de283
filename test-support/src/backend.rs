//! A backend that only hands a ring over: the test acts as the guest on the file.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::handover::{Hello, Role, receive, send};
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{BlockDevice, FileDevice, Producer, RingDevice, UnixDevice};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// The backend's answer about its guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Guarded,
    NotGuarded,
    /// No word, as of an old version.
    Nothing,
}

pub struct Backend {
    listening: OwnedFd,
    path: PathBuf,
    ring: PathBuf,
    welcome: serde_json::Value,
}

impl Backend {
    /// Listens for clients of the ring in `file`, at a socket beside it.
    pub fn new(file: &crate::RingFile, word: Word) -> Self {
        let geometry = file.open().geometry();
        let path = file.path.with_extension("socket");
        let listening =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listening.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listening, Backlog::new(1).unwrap()).unwrap();
        let mut welcome = serde_json::json!({"welcome": {
            "sector_size": geometry.sector_size().get(),
            "sectors": geometry.sectors(),
            "guest": "producer",
            "counters": {},
        }});
        if word != Word::Nothing {
            welcome["welcome"]["guarded"] = (word == Word::Guarded).into();
        }
        Self { listening, path, ring: file.path.clone(), welcome }
    }

    pub fn connect(&self, role: Role) -> UnixDevice {
        std::thread::scope(|scope| {
            scope.spawn(|| self.serve());
            UnixDevice::connect(&self.path, role).unwrap()
        })
    }

    /// A device that lends items where they lie, if this backend says that they stay as they are.
    pub fn connect_in_place(&self, role: Role) -> UnixDevice {
        // SAFETY: a test that has such a device changes the file by producers that keep to the
        // ring's rules, and what is published only after the last loan of it has ended.
        unsafe { self.connect(role).lend_in_place() }
    }

    /// Serves one client, and is gone then.
    pub fn serve(&self) {
        drop(self.accept());
    }

    /// Connects a client, and stays there for it.
    pub fn connect_and_stay(&self, role: Role) -> (UnixDevice, Client) {
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| self.accept());
            let device = UnixDevice::connect(&self.path, role).unwrap();
            (device, serving.join().unwrap())
        })
    }

    /// Waits for a client, and welcomes it.
    pub fn accept(&self) -> Client {
        let client = self.next();
        receive::<Hello>(client.as_fd()).unwrap();
        let region = File::options().read(true).write(true).open(&self.ring).unwrap();
        let (page, events) = (new_page().unwrap(), [new_event().unwrap(), new_event().unwrap()]);
        let descriptors = [region.as_fd(), page.as_fd(), events[0].as_fd(), events[1].as_fd()];
        send(client.as_fd(), &self.welcome, &descriptors).unwrap();
        let [event, _] = events;
        let bell = Bell::new(&page, event, Sleeper::Host).unwrap();
        Client { connection: client, bell, page }
    }

    /// Refuses the next client, if one comes within that time: another one, which is not named, has
    /// the role. Returns whether one came.
    pub fn refuse(&self, time: Duration) -> bool {
        if wait_readable(&[self.listening.as_fd()], Some(time)).unwrap().is_none() {
            return false;
        }
        let client = self.next();
        receive::<Hello>(client.as_fd()).unwrap();
        let refused =
            serde_json::json!({"refused": {"reason": "taken", "held_by": null, "held": true}});
        // It may have gone away meanwhile.
        let _ = send(client.as_fd(), &refused, &[]);
        true
    }

    /// Accepts the next client's connection, and does not answer.
    pub fn next(&self) -> OwnedFd {
        let raw = accept4(self.listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }
}

/// A small ring that a backend has handed over to a consumer, with the guest's end of it.
pub struct Served {
    pub file: crate::RingFile,
    pub client: Client,
    pub producer: Producer<FileDevice>,
}

impl Served {
    /// Returns the ring, and the consumer's device.
    pub fn new() -> (Self, Box<dyn RingDevice>) {
        let file = crate::RingFile::new(64 << 10, 512);
        let (device, client) = Backend::new(&file, Word::Guarded).connect_and_stay(Role::Consumer);
        let producer = file.producer().unwrap();
        (Self { file, client, producer }, Box::new(device))
    }

    /// Publishes an item as a guest does. Returns whether the consumer slept, and was woken.
    pub fn publish(&mut self, item: &str) -> bool {
        let end = self.producer.push(item).unwrap();
        self.producer.advance(end).unwrap();
        self.client.ring()
    }
}

/// A client that was welcomed; for it the backend is gone when this is dropped.
pub struct Client {
    connection: OwnedFd,
    bell: Bell,
    page: File,
}

impl Client {
    /// Returns whether the client sleeps, or is about to.
    pub fn is_asleep(&self) -> bool {
        // The announcement of the process on the host is the page's first word.
        let mut word = [0; 8];
        self.page.read_exact_at(&mut word, 0).unwrap();
        word != [0; 8]
    }

    /// Wakes the client if it sleeps, as the backend does after each move of the guest's pointer.
    /// Returns whether it slept.
    pub fn ring(&self) -> bool {
        self.bell.ring()
    }

    /// Returns whether the client has ended its connection.
    pub fn is_gone(&self) -> bool {
        let readable = wait_readable(&[self.connection.as_fd()], Some(Duration::ZERO));
        readable.unwrap().is_some()
    }
}
