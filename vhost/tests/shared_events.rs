//! Events that the daemon shares with a consumer or a front end which makes them block, and empties
//! or fills them: no other party is held up.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use ring_test_support::beside::beside;
use ring_test_support::front_end::{DATA, FrontEnd, HEADER, STATUS};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{readable, writable};
use shared_block_ring::device::bell::PAGE_BYTES;
use shared_block_ring::device::{Mapping, Memory};
use shared_block_ring::handover::{Answer, Hello, Role, VERSION, receive, send};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};
use virtio_blk_driver::IDLE;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Requests that are served during an attack.
const REQUESTS: u32 = 300;

/// A consumer that misuses what it was handed.
struct Hostile {
    _connection: OwnedFd,
    page: Mapping,
    to_host: OwnedFd,
    to_backend: OwnedFd,
}

impl Hostile {
    fn attach(scene: &Scene) -> Self {
        let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let connection = socket(AddressFamily::Unix, kind.0, kind.1, None).unwrap();
        connect(connection.as_raw_fd(), &UnixAddr::new(&scene.path("c")).unwrap()).unwrap();
        let hello = Hello { version: VERSION, role: Role::Consumer };
        send(connection.as_fd(), &hello, &[]).unwrap();
        let (_, descriptors) = receive::<Answer>(connection.as_fd()).unwrap();
        let [_, page, to_host, to_backend] = descriptors.try_into().unwrap();
        let page = Mapping::new(File::from(page), PAGE_BYTES).unwrap();
        Self { _connection: connection, page, to_host, to_backend }
    }
}

/// Makes an event blocking, and its counter full or empty.
fn spoil(event: BorrowedFd<'_>, full: bool) {
    let flags = |flags| fcntl(event, FcntlArg::F_SETFL(flags)).unwrap();
    flags(OFlag::O_NONBLOCK);
    let spoiled = if full {
        nix::unistd::write(event, &(u64::MAX - 1).to_ne_bytes())
    } else {
        nix::unistd::read(event, &mut [0; 8])
    };
    assert!(matches!(spoiled, Ok(8) | Err(Errno::EAGAIN)));
    flags(OFlag::empty());
}

fn duplicate(event: &EventFd) -> OwnedFd {
    // SAFETY: the descriptor is the event's, which lives through the call.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    event.try_clone_to_owned().unwrap()
}

/// Reads the host's pointer sector with an idle-class read, like a guest that waits for the host.
fn idle_read(guest: &mut FrontEnd) -> u8 {
    guest.header(VIRTIO_BLK_T_IN, 2);
    guest.memory.write_obj(IDLE, GuestAddress(HEADER + 4)).unwrap();
    guest.chain(&[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)])
}

/// Checks that the daemon ends when it is asked to.
fn stops(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    eventually("the daemon ends", || daemon.0.try_wait().unwrap().is_some());
}

fn serves(guest: &mut FrontEnd) {
    for _ in 0..REQUESTS {
        assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA, 20)), 0);
    }
}

#[test]
fn consumer_that_fills_its_event_does_not_hold_up_the_queue() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let hostile = Hostile::attach(&scene);
    let mut guest = FrontEnd::new(&scene);
    beside(
        move || {
            spoil(hostile.to_host.as_fd(), true);
            // It claims to sleep.
            hostile.page.store_u64(0, 1);
        },
        || {
            for _ in 0..20 {
                guest.publish("an item");
            }
        },
    );
    assert!(scene.counter("wakeups") > 0, "nobody was woken");
    stops(daemon);
}

#[test]
fn consumer_that_empties_the_backends_event_does_not_hold_up_the_queue() {
    let scene = Scene::new();
    let daemon = scene.start(&["--hold-ms", "1"]);
    let hostile = Hostile::attach(&scene);
    let mut guest = FrontEnd::new(&scene);
    beside(
        || {
            let one = 1u64.to_ne_bytes();
            let _ = nix::unistd::write(&hostile.to_backend, &one);
            spoil(hostile.to_backend.as_fd(), false);
        },
        || {
            for _ in 0..REQUESTS {
                // The read is held to the end of its time: the wake-ups of the host were taken.
                assert_eq!(idle_read(&mut guest), 0);
            }
        },
    );
    assert!(scene.counter("held") > 0, "no read was held");
    stops(daemon);
}

#[test]
fn front_end_that_fills_its_interrupt_does_not_hold_up_the_next_one() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    let call = duplicate(&guest.call);
    beside(|| spoil(call.as_fd(), true), || serves(&mut guest));
    drop(guest);
    FrontEnd::new(&scene).honest(&scene);
    stops(daemon);
}

#[test]
fn front_end_that_empties_its_kick_does_not_hold_up_the_next_one() {
    let scene = Scene::new();
    // Requests are found by polling, although the kick that announces them is gone each time.
    let daemon = scene.start(&["--poll-us", "0"]);
    let mut guest = FrontEnd::new(&scene);
    let kick = duplicate(&guest.kick_event);
    beside(
        || {
            let _ = nix::unistd::write(&kick, &1u64.to_ne_bytes());
            spoil(kick.as_fd(), false);
        },
        || serves(&mut guest),
    );
    drop(guest);
    FrontEnd::new(&scene).honest(&scene);
    stops(daemon);
}
