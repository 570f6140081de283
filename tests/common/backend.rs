//! A backend that hands a ring over, and does nothing else: the guest's end is played on the file.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use shared_block_ring::BlockDevice;
use shared_block_ring::UnixDevice;
use shared_block_ring::device::bell::{new_event, new_page};
use shared_block_ring::handover::{Hello, Role, receive, send};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// Whether it says that it guards the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Guarded,
    NotGuarded,
    /// A version that does not say.
    Nothing,
}

pub struct Backend {
    listening: OwnedFd,
    path: PathBuf,
    ring: PathBuf,
    welcome: serde_json::Value,
}

impl Backend {
    /// For the ring in `file`, with a socket beside it.
    pub fn new(file: &super::RingFile, word: Word) -> Self {
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

    /// One client.
    fn serve(&self) {
        let raw = accept4(self.listening.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let client = unsafe { OwnedFd::from_raw_fd(raw) };
        receive::<Hello>(client.as_fd()).unwrap();
        let region = File::options().read(true).write(true).open(&self.ring).unwrap();
        let (page, events) = (new_page().unwrap(), [new_event().unwrap(), new_event().unwrap()]);
        let descriptors = [region.as_fd(), page.as_fd(), events[0].as_fd(), events[1].as_fd()];
        send(client.as_fd(), &self.welcome, &descriptors).unwrap();
    }
}
