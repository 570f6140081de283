//! Bare vhost-user messages, well formed or not, and a guest's memory with one request in it.
//!
//! The front end that follows the protocol is [`FrontEnd`](crate::front_end::FrontEnd).

use crate::process::{PATIENCE, eventually};
use crate::split_ring::{GuestBytes, Rings, linked, put_header, readable, writable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_IN;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const ADD_MEM_REG: u32 = 37;

/// The flags of every message: the version of the protocol.
pub const VERSION: u32 = 1;

/// Address of the memory in the front end's process.
pub const USER_ADDRESS: u64 = 0x7000_0000;

/// The queue, whose parts lie on different pages of guest memory, as does everything below.
pub const RINGS: Rings = Rings { size: 8, descriptors: 0, available: 0x1000, used: 0x2000 };
pub const HEADER: u64 = 0x3000;
pub const DATA: u64 = 0x4000;
pub const STATUS: u64 = 0x5000;
pub const MEMORY: u64 = 0x8000;

/// One connection of a front end.
pub struct Messages(pub UnixStream);

impl Messages {
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Sends bytes and descriptors as they are.
    pub fn raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> nix::Result<usize> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let buffers = [IoSlice::new(bytes)];
        sendmsg::<()>(self.0.as_raw_fd(), &buffers, control, MsgFlags::MSG_NOSIGNAL, None)
    }

    /// Sends a well-formed message.
    pub fn send(&self, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let size = u32::try_from(body.len()).unwrap();
        let head = [code, VERSION, size].map(u32::to_ne_bytes).concat();
        // The backend may have hung up already: that is what many tests wait for.
        let _ = self.raw(&[&head, body].concat(), files);
    }

    /// Reads the body of an answer.
    pub fn answer(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_ne_bytes(head[8..].try_into().unwrap());
        let mut body = vec![0; size as usize];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    /// The backend must answer.
    pub fn answers(&mut self) {
        self.send(GET_FEATURES, &[], &[]);
        assert_eq!(self.answer().len(), 8);
    }

    /// Sends nothing any more. The backend must end the connection.
    pub fn leaves(self) {
        // It may have hung up already.
        let _ = self.0.shutdown(Shutdown::Write);
        self.ends();
    }

    /// The backend must end the connection by itself.
    pub fn ends(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("still connected: {e}"),
        }
    }

    /// Shares `memory` and starts the queue.
    pub fn start(&self, memory: &File, kick: &OwnedFd, call: &OwnedFd) {
        for (code, body, files) in opening(memory, kick, call) {
            self.send(code, &body, &files);
        }
    }
}

/// A message's code, its body, and the descriptors that go with it.
pub type Message<'a> = (u32, Vec<u8>, Vec<BorrowedFd<'a>>);

/// Returns the messages that an honest front end starts with.
pub fn opening<'a>(memory: &'a File, kick: &'a OwnedFd, call: &'a OwnedFd) -> Vec<Message<'a>> {
    let rings = [RINGS.descriptors, RINGS.used, RINGS.available];
    let addresses = rings.map(|at| (USER_ADDRESS + at).to_ne_bytes());
    let addresses = [&words(&[0, 0]), &addresses.concat(), &[0; 8][..]].concat();
    let first = || 0u64.to_ne_bytes().to_vec();
    vec![
        (SET_OWNER, vec![], vec![]),
        // VERSION_1 and the protocol features' own bit.
        (SET_FEATURES, (1u64 << 32 | 1 << 30).to_ne_bytes().to_vec(), vec![]),
        // CONFIG.
        (SET_PROTOCOL_FEATURES, (1u64 << 9).to_ne_bytes().to_vec(), vec![]),
        (SET_MEM_TABLE, table(&[(0, MEMORY)]), vec![memory.as_fd()]),
        (SET_VRING_NUM, words(&[0, RINGS.size.into()]), vec![]),
        (SET_VRING_ADDR, addresses, vec![]),
        (SET_VRING_BASE, words(&[0, 0]), vec![]),
        (SET_VRING_CALL, first(), vec![call.as_fd()]),
        (SET_VRING_KICK, first(), vec![kick.as_fd()]),
        (SET_VRING_ENABLE, words(&[0, 1]), vec![]),
    ]
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Returns a memory table: guest address and size of each region.
pub fn table(regions: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = words(&[u32::try_from(regions.len()).unwrap(), 0]);
    for &(address, size) in regions {
        let user = USER_ADDRESS.wrapping_add(address);
        bytes.extend([address, size, user, 0].map(u64::to_ne_bytes).concat());
    }
    bytes
}

pub fn memory() -> File {
    let memory = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    memory.set_len(MEMORY).unwrap();
    memory
}

/// Makes request number `index` available: one sector, read from sector `sector` of 512 bytes.
pub fn ask(memory: &File, index: u16, sector: u64) {
    put_header(memory, HEADER, VIRTIO_BLK_T_IN, 0, sector);
    memory.put(STATUS, &[0xff]);
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    RINGS.describe(memory, 0, &linked(0, &chain));
    RINGS.offer(memory, index, 0);
    RINGS.set_available_index(memory, index.wrapping_add(1));
}

pub fn kick(event: &OwnedFd) {
    nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
}

/// Waits for the completion of request `index`, and returns its status.
pub fn status(memory: &File, index: u16) -> u8 {
    eventually("the request is answered", || RINGS.used_index(memory) == index + 1);
    let mut status = [0];
    memory.get(STATUS, &mut status);
    status[0]
}
