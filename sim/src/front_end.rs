//! A vhost-user front end that sends what it is told to, and the memory of a guest with one request in it.
#![allow(missing_docs, clippy::unwrap_used)]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

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

/// The longest that anything is waited for.
pub const SOON: Duration = Duration::from_secs(20);

/// The version of the protocol, which every message says.
pub const VERSION: u32 = 1;

/// Where the memory is, as the front end's process has it.
pub const USER_ADDRESS: u64 = 0x7000_0000;

/// The queue's parts and one request, in guest memory: all of them on different pages.
pub const DESCRIPTORS: u64 = 0;
pub const AVAILABLE: u64 = 0x1000;
pub const USED: u64 = 0x2000;
pub const HEADER: u64 = 0x3000;
pub const DATA: u64 = 0x4000;
pub const STATUS: u64 = 0x5000;
pub const MEMORY: u64 = 0x8000;

pub struct FrontEnd(pub UnixStream);

impl FrontEnd {
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    /// An honest one, with one request that has to succeed.
    pub fn works(self) {
        let (memory, kicks, calls) = (memory(), new_event().unwrap(), new_event().unwrap());
        ask(&memory, 0, 0);
        self.start(&memory, &kicks, &calls);
        kick(&kicks);
        assert_eq!(status(&memory, 0), 0);
    }

    pub fn raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> nix::Result<usize> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let buffers = [IoSlice::new(bytes)];
        sendmsg::<()>(self.0.as_raw_fd(), &buffers, control, MsgFlags::MSG_NOSIGNAL, None)
    }

    pub fn send(&self, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let size = u32::try_from(body.len()).unwrap();
        let head = [code, VERSION, size].map(u32::to_ne_bytes).concat();
        // It may have hung up on us already: that is what many of these tests wait for.
        let _ = self.raw(&[&head, body].concat(), files);
    }

    pub fn answer(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_ne_bytes(head[8..].try_into().unwrap());
        let mut body = vec![0; size as usize];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    pub fn answers(&mut self) {
        self.send(GET_FEATURES, &[], &[]);
        assert_eq!(self.answer().len(), 8);
    }

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

/// What an honest front end starts with.
pub fn opening<'a>(memory: &'a File, kick: &'a OwnedFd, call: &'a OwnedFd) -> Vec<Message<'a>> {
    let addresses = [DESCRIPTORS, USED, AVAILABLE].map(|at| (USER_ADDRESS + at).to_ne_bytes());
    let addresses = [&words(&[0, 0]), &addresses.concat(), &[0; 8][..]].concat();
    let first = || 0u64.to_ne_bytes().to_vec();
    vec![
        (SET_OWNER, vec![], vec![]),
        // VERSION_1 and the protocol features' own bit.
        (SET_FEATURES, (1u64 << 32 | 1 << 30).to_ne_bytes().to_vec(), vec![]),
        // CONFIG.
        (SET_PROTOCOL_FEATURES, (1u64 << 9).to_ne_bytes().to_vec(), vec![]),
        (SET_MEM_TABLE, table(&[(0, MEMORY)]), vec![memory.as_fd()]),
        (SET_VRING_NUM, words(&[0, 8]), vec![]),
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

/// A memory table: guest address and size of each region.
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

/// Makes the request number `index` available: one sector, read from sector `sector` of 512 bytes.
pub fn ask(memory: &File, index: u16, sector: u64) {
    let read = 0u32;
    let header = [&read.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    memory.write_all_at(&header, HEADER).unwrap();
    memory.write_all_at(&[0xff], STATUS).unwrap();
    let (next, write) = (1u16, 2u16);
    let chain = [(HEADER, 16u32, next, 1u16), (DATA, 512, next | write, 2), (STATUS, 1, write, 0)];
    for (at, (address, len, flags, then)) in (0..).zip(chain) {
        let descriptor = [
            &address.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &then.to_le_bytes(),
        ];
        memory.write_all_at(&descriptor.concat(), DESCRIPTORS + 16 * at).unwrap();
    }
    let slot = AVAILABLE + 4 + 2 * u64::from(index % 8);
    memory.write_all_at(&0u16.to_le_bytes(), slot).unwrap();
    memory.write_all_at(&index.wrapping_add(1).to_le_bytes(), AVAILABLE + 2).unwrap();
}

pub fn kick(event: &OwnedFd) {
    nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
}

/// Waits for the answer to request `index`, and gives its status.
pub fn status(memory: &File, index: u16) -> u8 {
    let start = Instant::now();
    loop {
        let mut used = [0; 2];
        memory.read_exact_at(&mut used, USED + 2).unwrap();
        if u16::from_le_bytes(used) == index + 1 {
            let mut status = [0];
            memory.read_exact_at(&mut status, STATUS).unwrap();
            return status[0];
        }
        assert!(start.elapsed() < SOON, "no answer");
        std::thread::sleep(Duration::from_micros(100));
    }
}
